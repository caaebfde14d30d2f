//! Where image layouts may lie, and how what is there is opened.

#![cfg_attr(not(test), deny(clippy::indexing_slicing))]

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use crate::registry::error::Error;

/// The directories below which image layouts may lie. None, unless somebody says so.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Places {
    directories: Vec<PathBuf>,
    is_anywhere: bool,
}

/// Something that was opened: a regular file or a directory.
pub(super) enum Opened {
    /// A directory.
    Directory,
    /// A file, and its size.
    File(File, u64),
}

/// Why something was not opened.
pub(super) enum Refused {
    /// Nothing is there.
    NotFound,
    /// A symbolic link leads out of where layouts may lie.
    LeadsOut,
    /// It is neither a file nor a directory.
    NoFile,
    /// The kernel's.
    Io(Errno),
}

/// What is opened must not make the process wait (a FIFO), nor become its terminal.
const FLAGS: OFlags = OFlags::RDONLY.union(OFlags::CLOEXEC).union(OFlags::NONBLOCK).union(OFlags::NOCTTY);

impl Places {
    /// Below these directories, which have absolute paths, and nowhere else.
    pub fn below(directories: Vec<PathBuf>) -> Self {
        Self { directories, is_anywhere: false }
    }

    /// The same for a command that a person gives on this node: where no directories are named, that person names the path.
    #[must_use]
    pub fn of_a_command(mut self) -> Self {
        self.is_anywhere = self.directories.is_empty();
        self
    }

    /// Opens the layout at `path`, or what is at `inner` below it.
    ///
    /// The kernel resolves the path below the directory that the operator named, whatever symbolic links are in it (`man 2 openat2`,
    /// RESOLVE_BENEATH). Where a person names any path, that path is followed, and what is below it is confined to it.
    ///
    /// # Errors
    /// [`Error::Layout`] when `path` is not below any of the directories; the inner result says what is wrong with what is there.
    pub(super) fn open(&self, path: &str, inner: Option<&str>) -> Result<Result<Opened, Refused>, Error> {
        let full = Path::new(path);
        let found = self
            .directories
            .iter()
            .find_map(|directory| Some((directory, full.strip_prefix(directory).ok()?)));
        Ok(match found {
            Some((directory, rest)) => self.open_below(directory, rest, inner),
            None if self.is_anywhere => match inner {
                None => {
                    rustix::fs::openat(CWD, full, FLAGS, Mode::empty()).map_err(Refused::of).and_then(opened)
                }
                Some(inner) => directory_at(full).and_then(|base| beneath(base.as_fd(), Path::new(inner))),
            },
            None => {
                let named: Vec<_> =
                    self.directories.iter().take(8).map(|it| it.display().to_string()).collect();
                let reason = match named.is_empty() {
                    true => "no directory for image layouts is configured; name one in --oci-layout-dir (env OCIVOL_OCI_LAYOUT_DIRS)".to_owned(),
                    false => format!("image layouts may lie below {}, as --oci-layout-dir says, and it does not", named.join(", ")),
                };
                return Err(Error::Layout { path: path.to_owned(), reason });
            }
        })
    }

    fn open_below(&self, directory: &Path, rest: &Path, inner: Option<&str>) -> Result<Opened, Refused> {
        let base = directory_at(directory)?;
        let rest = inner.map_or_else(|| rest.to_owned(), |inner| rest.join(inner));
        let rest = if rest.as_os_str().is_empty() { Path::new(".") } else { &rest };
        beneath(base.as_fd(), rest)
    }
}

impl Refused {
    fn of(error: Errno) -> Self {
        match error {
            Errno::NOENT | Errno::NOTDIR => Self::NotFound,
            // RESOLVE_BENEATH says EXDEV, and RESOLVE_NO_MAGICLINKS says ELOOP, as a circle of links does.
            Errno::XDEV | Errno::LOOP => Self::LeadsOut,
            // A socket, or a device that no driver has.
            Errno::NXIO | Errno::NODEV => Self::NoFile,
            error => Self::Io(error),
        }
    }
}

fn directory_at(path: &Path) -> Result<OwnedFd, Refused> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::openat(CWD, path, flags, Mode::empty()).map_err(Refused::of)
}

fn beneath(base: BorrowedFd<'_>, path: &Path) -> Result<Opened, Refused> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    loop {
        match rustix::fs::openat2(base, path, FLAGS, Mode::empty(), resolve) {
            // Something on the way was renamed meanwhile.
            Err(Errno::AGAIN) => {}
            file => return opened(file.map_err(Refused::of)?),
        }
    }
}

fn opened(file: OwnedFd) -> Result<Opened, Refused> {
    let status = rustix::fs::fstat(&file).map_err(Refused::Io)?;
    match rustix::fs::FileType::from_raw_mode(status.st_mode) {
        rustix::fs::FileType::Directory => Ok(Opened::Directory),
        rustix::fs::FileType::RegularFile => {
            let size = u64::try_from(status.st_size).unwrap_or_default();
            Ok(Opened::File(File::from(file), size))
        }
        _ => Err(Refused::NoFile),
    }
}
