//! Attaching a tree to a target: read-only before anybody can see it.

use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Dir, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::mount::{MoveMountFlags, OpenTreeFlags};

use super::{Error, Target, kernel};
use crate::layout::TreePath;
use crate::sys::{MountAttributes, mount_setattr};

const DIRECTORY: OFlags =
    OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC).union(OFlags::NOFOLLOW);

/// What [`attach`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attached {
    /// Whether the target's directory was made for the mount.
    pub made_target: bool,
}

/// Mounts the directory `path` of the tree at `tree` (all of it without `path`) on `target`, `ro,nosuid,nodev`,
/// and `noexec` unless `exec`.
///
/// The target is made if it is not there. The mount is a copy that gets its flags while it is attached nowhere
/// (`man 2 open_tree`, `mount_setattr`), then moved by descriptors: it is never writable, not for an instant. There
/// is no other way for older kernels: a bind that is made read-only afterwards has by then spread, writable, to the
/// host, where pods get it from.
///
/// *Caller:* holds the target's turn, and has seen in the mount table that nothing is mounted there.
///
/// # Errors
/// [`Error::BadTarget`], [`Error::NoSuchPath`], [`Error::Kernel`]. A target that was made here is removed again.
pub fn attach(tree: &Path, path: Option<&TreePath>, target: &Target, exec: bool) -> Result<Attached, Error> {
    let source = open_source(tree, path)?;
    let parent = target
        .open_parent()?
        .ok_or_else(|| target.bad("the directory that should hold it does not exist"))?;
    let made = match rustix::fs::mkdirat(&parent, target.name(), Mode::from_raw_mode(0o750)) {
        Ok(()) => true,
        Err(Errno::EXIST) => false,
        Err(errno) => return Err(kernel("create", target.path())(errno)),
    };
    crate::moment::reached("publish.target_made");
    let result =
        open_target(&parent, target).and_then(|directory| attach_clone(&source, &directory, target, exec));
    if result.is_err() && made {
        // Only an empty directory goes; the error that matters is the first one.
        let _ = rustix::fs::unlinkat(&parent, target.name(), AtFlags::REMOVEDIR);
    }
    result?;
    crate::moment::reached("publish.mounted");
    Ok(Attached { made_target: made })
}

fn open_source(tree: &Path, path: Option<&TreePath>) -> Result<OwnedFd, Error> {
    let root = rustix::fs::openat(CWD, tree, DIRECTORY, Mode::empty()).map_err(kernel("open", tree))?;
    let Some(path) = path else { return Ok(root) };
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    rustix::fs::openat2(&root, path.as_str(), DIRECTORY, Mode::empty(), resolve).map_err(|errno| {
        let reason = match errno {
            Errno::NOENT => "it does not exist".to_owned(),
            Errno::NOTDIR => "it is no directory".to_owned(),
            Errno::LOOP => "a symbolic link is on the way".to_owned(),
            other => std::io::Error::from(other).to_string(),
        };
        Error::NoSuchPath { path: path.to_string(), reason }
    })
}

/// Opens the target itself: an empty directory.
fn open_target(parent: &OwnedFd, target: &Target) -> Result<OwnedFd, Error> {
    let directory =
        rustix::fs::openat(parent, target.name(), DIRECTORY, Mode::empty()).map_err(|errno| match errno {
            Errno::NOTDIR | Errno::LOOP => target.bad("it exists and is no directory"),
            other => kernel("open", target.path())(other),
        })?;
    let readable = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let listed = rustix::fs::openat(&directory, ".", readable, Mode::empty())
        .map_err(kernel("list", target.path()))?;
    for entry in Dir::new(listed).map_err(kernel("list", target.path()))? {
        let entry = entry.map_err(kernel("list", target.path()))?;
        if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
            return Err(target.bad("it is a directory that is not empty"));
        }
    }
    Ok(directory)
}

fn attach_clone(source: &OwnedFd, directory: &OwnedFd, target: &Target, exec: bool) -> Result<(), Error> {
    let flags =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    let clone = rustix::mount::open_tree(source, c"", flags).map_err(|errno| match errno {
        Errno::NOSYS => Error::OldKernel,
        other => kernel("clone the tree for", target.path())(other),
    })?;
    let mut set = libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV;
    if !exec {
        set |= libc::MOUNT_ATTR_NOEXEC;
    }
    // Private: what happens to mounts of the store must not propagate into pods, nor back.
    let attributes = MountAttributes { set, propagation: libc::MS_PRIVATE, user_namespace: None };
    mount_setattr(clone.as_fd(), &attributes).map_err(|source| match source.raw_os_error() {
        Some(libc::ENOSYS) => Error::OldKernel,
        _ => {
            let path = target.path().to_owned();
            Error::Kernel { action: "make read-only the tree for", path, source }
        }
    })?;
    let moves = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    rustix::mount::move_mount(&clone, c"", directory, c"", moves).map_err(kernel("mount on", target.path()))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::super::{Policy, Table, detach};
    use super::*;

    /// Gives this thread a mount namespace of its own; what is mounted there ends with the thread.
    fn isolate() {
        use nix::mount::{MsFlags, mount};
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS)
            .expect("mount tests need root: run them with sudo, or as root in a container");
        let none: Option<&str> = None;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).expect("private mounts");
    }

    fn tree() -> tempfile::TempDir {
        let directory = tempfile::tempdir().expect("a directory");
        fs::create_dir_all(directory.path().join("tree/sub")).expect("a tree");
        fs::write(directory.path().join("tree/sub/file"), "content").expect("a file");
        directory
    }

    #[test]
    fn the_mount_has_its_flags() {
        isolate();
        let directory = tree();
        let policy = Policy { pods: None, roots: vec![directory.path().to_owned()] };
        for (number, exec) in [(0, false), (1, true)] {
            let path = directory.path().canonicalize().expect("a path").join(format!("target-{number}"));
            let target = policy.check(path.to_str().expect("text")).expect("allowed");
            let attached = attach(&directory.path().join("tree"), None, &target, exec).expect("mounted");
            assert!(attached.made_target);
            let table = Table::read().expect("a table");
            let mount = table.at(&path).expect("in the table");
            for flag in ["ro", "nosuid", "nodev"] {
                assert!(mount.has(flag), "{}", mount.options);
            }
            assert_eq!(mount.has("noexec"), !exec);
            assert!(!mount.shared);
            let error = fs::write(path.join("sub/file"), "x").expect_err("read-only");
            assert_eq!(error.raw_os_error(), Some(libc::EROFS));
            assert_eq!(fs::read(path.join("sub/file")).expect("content"), b"content");
            assert_eq!(detach(&target, |_| true, true).expect("unmounted"), 1);
            assert!(!path.exists());
        }
    }

    #[test]
    fn t34_a_target_that_is_not_an_empty_directory_is_refused() {
        isolate();
        let directory = tree();
        let base = directory.path().canonicalize().expect("a path");
        let policy = Policy { pods: None, roots: vec![base.clone()] };
        fs::create_dir_all(base.join("full/inner")).expect("a directory");
        fs::write(base.join("file"), "x").expect("a file");
        std::os::unix::fs::symlink("tree", base.join("link")).expect("a link");
        for name in ["full", "file", "link", "link/sub", "file/x", "absent/x"] {
            let target = policy.check(base.join(name).to_str().expect("text")).expect("allowed");
            let error = attach(&base.join("tree"), None, &target, false).expect_err(name);
            assert!(matches!(error, Error::BadTarget { .. }), "{name}: {error}");
        }
        assert!(base.join("full/inner").exists() && base.join("file").exists());
        let table = Table::read().expect("a table");
        assert!(!table.iter().any(|mount| mount.mount_point.starts_with(&base)));
    }

    #[test]
    fn a_part_of_the_tree_is_mounted_and_must_exist() {
        isolate();
        let directory = tree();
        let base = directory.path().canonicalize().expect("a path");
        std::os::unix::fs::symlink("/etc", base.join("tree/link")).expect("a link");
        let policy = Policy { pods: None, roots: vec![base.clone()] };
        let target = policy.check(base.join("t").to_str().expect("text")).expect("allowed");
        for name in ["absent", "sub/file", "link"] {
            let path = TreePath::new(name).expect("safe");
            let error = attach(&base.join("tree"), Some(&path), &target, false).expect_err(name);
            assert!(matches!(error, Error::NoSuchPath { .. }), "{error}");
            assert!(!base.join("t").exists());
        }
        let path = TreePath::new("sub").expect("safe");
        attach(&base.join("tree"), Some(&path), &target, false).expect("mounted");
        assert!(base.join("t/file").exists());
        detach(&target, |_| true, true).expect("unmounted");
    }
}
