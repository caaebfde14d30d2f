//! Where a copy is made before it takes its name: a directory beside the place, or in it where that is there already.
//!
//! All of it is reached through open directories (`man 5 proc_pid_fd`), so that root is led nowhere by links of whoever owns a
//! directory above.

use std::ffi::OsString;
use std::fs::{self, FileTimes};
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStringExt as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, RenameFlags};

/// What failed, and at which path.
pub(super) type Failed = (PathBuf, io::Error);

/// Links that are followed on the way to a directory, as many as the kernel follows (`man 7 path_resolution`).
const LINKS: usize = 40;
/// A directory that is only gone through.
const THROUGH: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

/// A directory for a copy. What is in it when this is dropped is removed.
pub(super) struct Staging {
    /// The place, as it was named.
    place: PathBuf,
    /// Whether it was there.
    is_there: bool,
    /// Removed before the directories are closed through which it is reached.
    _temporary: tempfile::TempDir,
    inside: OwnedFd,
    /// The place, or the directory that it will be in.
    outside: OwnedFd,
}

impl Staging {
    /// Makes one for `place`, which is an empty directory, or is not there. Blocks.
    ///
    /// # Errors
    /// The kernel's, at the path where it refused.
    pub(super) fn make(place: &Path, is_there: bool) -> Result<Self, Failed> {
        let around = if is_there { Some(place) } else { place.parent() };
        let around = around.ok_or_else(|| (place.to_owned(), io::ErrorKind::InvalidInput.into()))?;
        let at = |error: io::Error| (around.to_owned(), error);
        let outside = open(around).map_err(at)?;
        let temporary = tempfile::Builder::new().prefix(".ocivol-export-").tempdir_in(through(&outside));
        let temporary = temporary.map_err(|error| at(bare(&error)))?;
        let inside = rustix::fs::open(temporary.path(), THROUGH | OFlags::NOFOLLOW, Mode::empty());
        let inside = inside.map_err(|error| at(error.into()))?;
        let owner = rustix::fs::fstat(&inside).map_err(|error| at(error.into()))?.st_uid;
        if owner != rustix::process::geteuid().as_raw() {
            return Err(at(io::Error::other("somebody else changes what is in it")));
        }
        Ok(Self { place: place.to_owned(), is_there, _temporary: temporary, inside, outside })
    }

    /// Where the copy is made; nothing is there yet.
    pub(super) fn tree(&self) -> PathBuf {
        through(&self.inside).join("tree")
    }

    /// `path` as it is called by who named the place.
    pub(super) fn shown(&self, path: &Path) -> PathBuf {
        path.strip_prefix(self.tree()).map_or_else(|_| path.to_owned(), |rest| self.place.join(rest))
    }

    /// Gives the copy its name. Blocks.
    ///
    /// # Errors
    /// The kernel's. Then nothing of the copy is left.
    pub(super) fn finish(self) -> Result<(), Failed> {
        let at = |error: io::Error| (self.place.clone(), error);
        if self.is_there {
            return self.fill().map_err(at);
        }
        let name = self.place.file_name().ok_or_else(|| at(io::ErrorKind::InvalidInput.into()))?;
        rustix::fs::renameat(&self.inside, "tree", &self.outside, name).map_err(|error| at(error.into()))
    }

    /// Moves what was copied into the directory that was there, or none of it.
    fn fill(&self) -> io::Result<()> {
        let tree = self.tree();
        let entries = fs::read_dir(&tree)?.map(|entry| Ok(entry?.file_name()));
        let names: Vec<OsString> = entries.collect::<io::Result<_>>()?;
        let from = rustix::fs::open(&tree, THROUGH, Mode::empty())?;
        let place = through(&self.outside);
        let found = fs::metadata(&tree)?;
        let move_all = |moved: &mut Vec<PathBuf>| {
            for name in &names {
                // What came there meanwhile is somebody's; not every file system can say so.
                let moving =
                    rustix::fs::renameat_with(&from, name, &self.outside, name, RenameFlags::NOREPLACE);
                match moving {
                    Err(rustix::io::Errno::INVAL) => {
                        rustix::fs::renameat(&from, name, &self.outside, name)?;
                    }
                    moving => moving?,
                }
                moved.push(place.join(name));
            }
            fs::set_permissions(&place, fs::Permissions::from_mode(found.mode() & 0o777))?;
            fs::File::open(&place)?.set_times(FileTimes::new().set_modified(found.modified()?))
        };
        let mut moved = Vec::new();
        move_all(&mut moved).inspect_err(|_| {
            for path in &moved {
                let is_directory = fs::symlink_metadata(path).is_ok_and(|found| found.is_dir());
                // The first error says more.
                let _ = if is_directory { fs::remove_dir_all(path) } else { fs::remove_file(path) };
            }
        })
    }
}

fn through(directory: &OwnedFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", directory.as_raw_fd()))
}

/// The kernel's error, without the path that `tempfile` adds: that is none which anybody named.
fn bare(error: &io::Error) -> io::Error {
    let text = error.to_string();
    let text = text.split_once(" at path ").map_or(text.as_str(), |(reason, _)| reason);
    io::Error::new(error.kind(), text.to_owned())
}

/// Opens a directory. Root follows no link that lies in a directory of another user: who owns that could lead it anywhere.
fn open(directory: &Path) -> io::Result<OwnedFd> {
    if !rustix::process::geteuid().is_root() {
        return Ok(rustix::fs::openat(CWD, directory, THROUGH, Mode::empty())?);
    }
    let mut here = rustix::fs::open("/", THROUGH, Mode::empty())?;
    let mut left: Vec<OsString> = names(directory);
    let mut links = 0;
    while let Some(name) = left.pop() {
        let step = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let next = rustix::fs::openat(&here, &name, step, Mode::empty())?;
        let kind = rustix::fs::FileType::from_raw_mode(rustix::fs::fstat(&next)?.st_mode);
        if kind != rustix::fs::FileType::Symlink {
            here = next;
            continue;
        }
        links += 1;
        if links > LINKS {
            return Err(rustix::io::Errno::LOOP.into());
        }
        if rustix::fs::fstat(&here)?.st_uid != 0 {
            let name = name.to_string_lossy();
            let message = format!(
                "{name:?} is a link in a directory of another user, which root does not follow; name where it leads"
            );
            return Err(io::Error::other(message));
        }
        let target = rustix::fs::readlinkat(&next, "", Vec::new())?;
        let target = PathBuf::from(OsString::from_vec(target.into_bytes()));
        if target.is_absolute() {
            here = rustix::fs::open("/", THROUGH, Mode::empty())?;
        }
        left.extend(names(&target));
    }
    // Only a directory can be gone through.
    Ok(rustix::fs::openat(&here, ".", THROUGH, Mode::empty())?)
}

/// The names on the way, the first last.
fn names(path: &Path) -> Vec<OsString> {
    let all =
        path.components().rev().filter(|part| matches!(part, Component::Normal(_) | Component::ParentDir));
    all.map(|part| part.as_os_str().to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_finished_leaves_nothing() {
        let directory = tempfile::tempdir().expect("a directory");
        let left = || fs::read_dir(directory.path()).expect("listed").count();
        for is_there in [false, true] {
            let place = if is_there { directory.path().to_owned() } else { directory.path().join("out") };
            let staging = Staging::make(&place, is_there).expect("made");
            fs::create_dir(staging.tree()).expect("made");
            fs::write(staging.tree().join("x"), "x").expect("written");
            assert_eq!(staging.shown(&staging.tree().join("x")), place.join("x"));
            assert_eq!(left(), 1);
            drop(staging);
            assert_eq!(left(), 0);
        }
    }

    #[test]
    fn a_copy_takes_its_place() {
        let directory = tempfile::tempdir().expect("a directory");
        for (name, is_there) in [("new", false), ("old", true)] {
            let place = directory.path().join(name);
            if is_there {
                fs::create_dir(&place).expect("made");
            }
            let staging = Staging::make(&place, is_there).expect("made");
            fs::create_dir(staging.tree()).expect("made");
            fs::write(staging.tree().join("x"), "x").expect("written");
            staging.finish().expect("finished");
            let names =
                fs::read_dir(&place).expect("listed").map(|entry| entry.expect("an entry").file_name());
            assert_eq!(names.collect::<Vec<_>>(), ["x"]);
        }
        let (path, error) =
            Staging::make(&directory.path().join("absent/out"), false).err().expect("refused");
        assert_eq!((path, error.kind()), (directory.path().join("absent"), io::ErrorKind::NotFound));
    }
}
