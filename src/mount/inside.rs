//! Where the attribute `path` leads inside a tree, through the symbolic links that the tree has.

use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use crate::layout::tree_path::TreePath;

pub(super) const DIRECTORY: OFlags =
    OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC).union(OFlags::NOFOLLOW);

/// Symlinks on the way, as in the kernel: `man 7 path_resolution`.
const SYMLINK_LIMIT: usize = 40;
/// Parts looked at on the way: each symlink may name as many as fit into 4,096 bytes.
const STEP_LIMIT: usize = 1024;

/// Opens the directory that `path` leads to below `root`, and says where that is, without symlinks.
///
/// Links are read as the merge of layers reads them: an absolute one starts at the root of the tree, because that is what
/// it means in a container of this image. What leads above that root is an error. Nobody changes a tree, so that what
/// was looked up is what is opened; should it not be, `openat2` refuses it.
///
/// # Errors
/// Why there is no such directory, in words.
pub(super) fn open(root: &OwnedFd, path: &TreePath) -> Result<(OwnedFd, PathBuf), String> {
    let place = resolve(root, path.as_str().as_bytes())?;
    let place = Path::new(OsStr::from_bytes(&place)).to_owned();
    let opened = if place.as_os_str().is_empty() {
        rustix::fs::openat(root, ".", DIRECTORY, Mode::empty())
    } else {
        let inside = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        rustix::fs::openat2(root, &place, DIRECTORY, Mode::empty(), inside)
    };
    Ok((opened.map_err(words)?, place))
}

fn resolve(root: impl AsFd, path: &[u8]) -> Result<Vec<u8>, String> {
    let mut way: Vec<Vec<u8>> = Vec::new();
    let parts = |path: &[u8]| path.split(|byte| *byte == b'/').rev().map(<[u8]>::to_vec).collect::<Vec<_>>();
    let mut ahead = parts(path);
    let (mut symlinks, mut steps) = (0, 0);
    while let Some(part) = ahead.pop() {
        steps += 1;
        match part.as_slice() {
            b"" | b"." => continue,
            b".." if way.pop().is_some() => continue,
            b".." => return Err("a symbolic link on the way leads out of the volume".to_owned()),
            _ => way.push(part),
        }
        match rustix::fs::readlinkat(&root, way.join(&b'/').as_slice(), Vec::new()) {
            Ok(target) => {
                way.pop();
                if target.as_bytes().starts_with(b"/") {
                    way.clear();
                }
                symlinks += 1;
                ahead.extend(parts(target.as_bytes()));
            }
            Err(Errno::INVAL) => {} // It is no symlink.
            Err(errno) => return Err(words(errno)),
        }
        if symlinks > SYMLINK_LIMIT || steps > STEP_LIMIT {
            return Err("too many symbolic links are on the way".to_owned());
        }
    }
    Ok(way.join(&b'/'))
}

fn words(errno: Errno) -> String {
    match errno {
        Errno::NOENT => "it does not exist".to_owned(),
        Errno::NOTDIR => "it is no directory".to_owned(),
        other => std::io::Error::from(other).to_string(),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn regression_links_are_followed_inside_the_tree() {
        let directory = tempfile::tempdir().expect("a directory");
        let root = directory.path();
        fs::create_dir_all(root.join("usr/lib/x")).expect("directories");
        fs::create_dir_all(root.join("releases/7")).expect("directories");
        fs::write(root.join("file"), "").expect("a file");
        for (name, target) in [
            ("lib", "usr/lib"),
            ("usr/up", ".."),
            ("current", "/releases/7"),
            ("releases/latest", "../current/."),
            ("out", "../../etc"),
            ("above", "usr/../.."),
            ("host", "/proc/self/root"),
            ("loop", "loop2"),
            ("loop2", "loop"),
            ("gone", "nowhere"),
            ("to-file", "file"),
            ("slash", "/"),
        ] {
            symlink(target, root.join(name)).expect(name);
        }
        let opened = rustix::fs::openat(rustix::fs::CWD, root, DIRECTORY, Mode::empty()).expect("the root");
        let of = |path: &str| open(&opened, &TreePath::new(path).expect(path));
        for (path, expected) in [
            ("lib/x", "usr/lib/x"),
            ("usr/up/lib", "usr/lib"),
            ("current", "releases/7"),
            ("releases/latest", "releases/7"),
            ("slash", ""),
            ("slash/current/.", "releases/7"),
            ("usr/lib", "usr/lib"),
        ] {
            assert_eq!(of(path).map(|(_, place)| place), Ok(expected.into()), "{path}");
        }
        for (path, reason) in [
            ("out", "leads out"),
            ("above", "leads out"),
            ("host", "does not exist"),
            ("loop", "too many"),
            ("gone", "does not exist"),
            ("file", "no directory"),
            ("to-file", "no directory"),
            ("file/x", "no directory"),
            ("absent", "does not exist"),
        ] {
            let error = of(path).map(|(_, place)| place).expect_err(path);
            assert!(error.contains(reason), "{path}: {error}");
        }
    }
}
