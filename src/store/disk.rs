//! The directory of the store, and how it is changed.

use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use crate::store::error::{Error, io};
use crate::store::space::budget::Budget;
use crate::store::space::room::Room;

/// The directory of the format this code writes.
pub(in crate::store) const FORMAT: &str = "v1";

/// `<root>/v1`, in which this process alone writes.
#[derive(Debug)]
pub struct Disk {
    directory: PathBuf,
    /// The kernel's boot ID.
    pub(in crate::store) boot_id: String,
    /// Whether files can share their content.
    pub(in crate::store) reflink: bool,
    /// The space it may take.
    pub room: Arc<Room>,
    temporaries: AtomicU64,
}

impl Disk {
    /// The directory, which is there. It may take what `budget` says.
    ///
    /// # Errors
    /// [`Error::Io`] when the boot ID cannot be read.
    pub(in crate::store) fn new(directory: PathBuf, budget: Budget) -> Result<Self, Error> {
        let reflink = probe_reflink(&directory).unwrap_or_else(|error| {
            tracing::warn!(%error, "cannot find out whether files can be cloned");
            false
        });
        let room = Room::new(&directory, budget);
        Ok(Self { directory, boot_id: boot_id()?, reflink, room, temporaries: AtomicU64::new(0) })
    }

    /// `<root>/v1`.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// A name in `ingest/` that nobody else uses.
    pub(in crate::store) fn temporary(&self) -> PathBuf {
        let number = self.temporaries.fetch_add(1, Ordering::Relaxed);
        self.directory.join(format!("ingest/tmp-{}-{number}", std::process::id()))
    }

    /// Takes `path` out of sight by one rename, then deletes it.
    pub(in crate::store) fn discard(&self, path: &Path) -> Result<(), Error> {
        remove(&self.to_trash(path)?)
    }

    /// Takes `path` out of sight by one rename. Returns where it is now; what is not there is fine.
    pub(in crate::store) fn to_trash(&self, path: &Path) -> Result<PathBuf, Error> {
        let number = self.temporaries.fetch_add(1, Ordering::Relaxed);
        let trash = self.trash().join(format!("{}-{number}", std::process::id()));
        match fs::rename(path, &trash) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(io("discard", path)(error)),
            _ => Ok(trash),
        }
    }

    /// Where what is to be deleted is. A process that opens the store deletes what another has left there.
    pub(in crate::store) fn trash(&self) -> PathBuf {
        self.directory.join("ingest/trash")
    }

    /// Moves a directory that may be mounted out of the way, and leaves it as it is.
    pub(in crate::store) fn retire(&self, directory: &Path) -> Result<(), Error> {
        let name = directory.file_name().unwrap_or_default().to_string_lossy();
        let retired = directory.with_file_name(format!("retired-{name}-{:016x}", rand::random::<u64>()));
        match fs::rename(directory, &retired) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(io("move", directory)(error)),
            _ => Ok(()),
        }
    }
}

/// A directory of the store at `root` that stays empty; it is there once the store was opened.
pub fn empty_directory(root: &Path) -> PathBuf {
    root.join(FORMAT).join("empty")
}

/// Seconds since the epoch.
pub fn now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// A time that tells what happens within a second apart.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Moment {
    /// Seconds since the epoch; 0 where that is not known, as where ocivol 0.1 wrote it.
    #[serde(rename = "at", default)]
    pub seconds: u64,
    /// Nanoseconds after that; not in records of ocivol 0.1.
    #[serde(default)]
    pub nanos: u32,
}

impl Moment {
    /// This moment.
    pub fn now() -> Self {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Self { seconds: since.as_secs(), nanos: since.subsec_nanos() }
    }
}

pub(in crate::store) fn create_private(path: &Path) -> std::io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
}

pub(in crate::store) fn children(directory: &Path) -> Result<Vec<PathBuf>, Error> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(io("list", directory))?,
    };
    entries.map(|entry| entry.map(|entry| entry.path()).map_err(io("list", directory))).collect()
}

/// Calls `take` with the path of one child of a directory after the other, however many there are.
pub(in crate::store) fn each_child(
    directory: &Path,
    take: &mut dyn FnMut(&Path) -> Result<(), Error>,
) -> Result<(), Error> {
    for entry in fs::read_dir(directory).map_err(io("list", directory))? {
        take(&entry.map_err(io("list", directory))?.path())?;
    }
    Ok(())
}

/// Deletes a file or a directory of our own; what is not there is fine.
pub(in crate::store) fn remove(path: &Path) -> Result<(), Error> {
    let result = match fs::symlink_metadata(path) {
        Ok(found) if found.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match result {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(io("remove", path)(error)),
        _ => Ok(()),
    }
}

pub(in crate::store) fn age(path: &Path) -> Option<Duration> {
    fs::symlink_metadata(path).ok()?.modified().ok()?.elapsed().ok()
}

/// The kernel's boot ID: another one means that the machine was started again.
pub(in crate::store) fn boot_id() -> Result<String, Error> {
    let path = Path::new("/proc/sys/kernel/random/boot_id");
    fs::read_to_string(path).map(|text| text.trim().to_owned()).map_err(io("read", path))
}

fn probe_reflink(directory: &Path) -> Result<bool, Error> {
    let (from, to) = (directory.join("ingest/probe-from"), directory.join("ingest/probe-to"));
    fs::write(&from, [0_u8; 4096]).map_err(io("write", &from))?;
    let source = fs::File::open(&from).map_err(io("open", &from))?;
    let target = fs::File::create(&to).map_err(io("create", &to))?;
    let shared = rustix::fs::ioctl_ficlone(&target, &source).is_ok();
    remove(&from)?;
    remove(&to)?;
    Ok(shared)
}
