//! The content-addressed store on disk: verified blobs, and trees linked from them.
//!
//! ```text
//! <root>/                    0700
//!   lock                     held by the one process that writes; names its holder
//!   v1/                      this format
//!     ingest/                in flight, trusted by nobody; survives restarts of the process, not of the machine
//!     blobs/<alg>/<hex>      a verified blob; its record is <hex>.json beside it
//!     layers/<key>/          an unpacked archive; its record is <key>.json beside it
//!     trees/<key>/fs         what pods see, where a layer alone is not it
//!     images/<key>.json      the record of a tree
//!     volumes/<sha256>.json  published targets
//!     tags/ proofs/          what references resolved to; who has shown a right to what
//! ```
//!
//! *The name is the proof:* outside `ingest/` an entry exists only if its content is complete and verified and a
//! readable record belongs to it. Publishing is one rename; the record comes last.
//!
//! *Durability:* publishing does not wait for the disk. A record carries the kernel's boot ID and becomes
//! *durable* when a background `syncfs` has covered it ([`flush`]). An entry that is not durable is discarded
//! after a reboot, and checked against its digests before its first use by another process of the same boot.
//!
//! Everything here blocks; async code calls it through [`crate::host::blocking::run`].

use crate::store::error::Error;
use crate::store::layers::LayerKey;
use crate::store::trees::TreeKey;
pub mod access;
pub mod blobs;
pub mod error;
pub mod file_list;
pub mod flush;
pub mod ingest;
pub mod layers;
mod leftovers;
mod link;
pub mod lock;
pub mod ranges;
pub mod record;
pub mod trees;
pub mod volumes;

use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, SystemTime};

use crate::store::error::io;

/// The directory of the format this code writes.
const FORMAT: &str = "v1";
/// Directories of the format.
const DIRECTORIES: [&str; 11] = [
    "ingest",
    "ingest/trash",
    "blobs/sha256",
    "blobs/sha512",
    "layers",
    "trees",
    "images",
    "volumes",
    "tags",
    "proofs",
    "empty",
];
/// Bytes that pulls leave free, at most.
const RESERVE_LIMIT: u64 = 1 << 30;
/// First looks at a time: an index may take 256 MiB.
pub const CHECKS_AT_A_TIME: usize = 2;

/// The store, open for writing by this process alone.
#[derive(Debug)]
pub struct Store {
    /// `<root>/v1`.
    directory: PathBuf,
    boot_id: String,
    reflink: bool,
    key: [u8; 64],
    temporaries: AtomicU64,
    /// Entries that this process wrote or checked.
    verified: Mutex<HashSet<Entry>>,
    /// Held while a record is read, changed and written.
    records: Mutex<()>,
    /// Held while something that is not durable is looked at for the first time: once each, and few at a time.
    checking: [Mutex<()>; CHECKS_AT_A_TIME],
    /// Held while a layer or tree takes its name.
    publishing: Mutex<()>,
    /// How often what was not durable had to be given up.
    losses: AtomicU64,
    /// Directories of `ingest/` that are being written.
    ingests: Mutex<HashSet<PathBuf>>,
    ingest_closed: Condvar,
    flusher: flush::Flusher,
    _lock: lock::Lock,
}

/// Something with a record.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Entry {
    Blob(crate::oci::digest::Digest),
    Layer(LayerKey),
    Tree(TreeKey),
}

impl Store {
    /// Opens the store at `root`, and creates it where there is none.
    ///
    /// # Errors
    /// [`Error::Locked`] while another process has it, [`Error::Newer`] when a later version wrote it,
    /// [`Error::Unusable`] when the directory cannot be created, belongs to somebody else, or cannot be written.
    pub fn open(root: &Path) -> Result<Arc<Self>, Error> {
        let unusable = |reason: String| Error::Unusable { root: root.to_owned(), reason };
        create_private(root).map_err(|error| unusable(error.to_string()))?;
        let metadata = fs::metadata(root).map_err(|error| unusable(error.to_string()))?;
        if metadata.uid() != rustix::process::geteuid().as_raw() {
            return Err(unusable(format!("it belongs to user {}", metadata.uid())));
        }
        let lock = lock::Lock::take(root)?;
        for entry in fs::read_dir(root).map_err(io("list", root))? {
            let name = entry.map_err(io("list", root))?.file_name();
            let version = name.to_str().and_then(|name| name.strip_prefix('v')?.parse::<u32>().ok());
            if version.is_some_and(|version| version > 1) {
                return Err(Error::Newer { root: root.to_owned(), format: name.to_string_lossy().into() });
            }
        }
        let directory = root.join(FORMAT);
        for name in DIRECTORIES {
            create_private(&directory.join(name)).map_err(|error| unusable(error.to_string()))?;
        }
        let boot_id = boot_id()?;
        // First: on a full disk it is what makes the rest possible.
        leftovers::clear(&directory, &boot_id)?;
        let store = Arc::new(Self {
            reflink: probe_reflink(&directory).unwrap_or_else(|error| {
                tracing::warn!(%error, "cannot find out whether files can be cloned");
                false
            }),
            key: access::node_key(&directory)?,
            flusher: flush::Flusher::new(),
            directory,
            boot_id,
            temporaries: AtomicU64::new(0),
            losses: AtomicU64::new(0),
            verified: Mutex::default(),
            records: Mutex::default(),
            checking: Default::default(),
            publishing: Mutex::default(),
            ingests: Mutex::default(),
            ingest_closed: Condvar::new(),
            _lock: lock,
        });
        tracing::info!(root = %root.display(), reflink = store.reflink, "store opened");
        store.flusher.start(&store)?;
        Ok(store)
    }

    /// `<root>/v1`.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Bytes that pulls leave free: a twentieth of the file system, and at most 1 GiB. Other programs need some, and
    /// so does kubelet.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn reserve(&self) -> Result<u64, Error> {
        let found = self.measure()?;
        Ok((found.f_blocks.saturating_mul(found.f_frsize) / 20).min(RESERVE_LIMIT))
    }

    /// Checks that `needed` more bytes fit, beside the [reserve](Self::reserve).
    ///
    /// # Errors
    /// [`Error::NoSpace`] when they do not.
    pub fn check_space(&self, needed: u64) -> Result<(), Error> {
        if needed == 0 {
            return Ok(());
        }
        let found = self.measure()?;
        let available = found.f_bavail.saturating_mul(found.f_frsize).saturating_sub(self.reserve()?);
        if needed > available {
            return Err(Error::NoSpace { store: self.directory.clone(), needed: Some(needed), available });
        }
        Ok(())
    }

    fn measure(&self) -> Result<rustix::fs::StatVfs, Error> {
        rustix::fs::statvfs(&self.directory).map_err(|error| io("measure", &self.directory)(error.into()))
    }

    /// A name in `ingest/` that nobody else uses.
    fn temporary(&self) -> PathBuf {
        let number = self.temporaries.fetch_add(1, Ordering::Relaxed);
        self.directory.join(format!("ingest/tmp-{}-{number}", std::process::id()))
    }

    /// Takes `path` out of sight by one rename, then deletes it.
    fn discard(&self, path: &Path) -> Result<(), Error> {
        let number = self.temporaries.fetch_add(1, Ordering::Relaxed);
        let trash = self.directory.join(format!("ingest/trash/{}-{number}", std::process::id()));
        match fs::rename(path, &trash) {
            Ok(()) => remove(&trash),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(io("discard", path)(error)),
        }
    }

    /// Moves a directory that may be mounted out of the way, and leaves it as it is.
    fn retire(&self, directory: &Path) -> Result<(), Error> {
        let name = directory.file_name().unwrap_or_default().to_string_lossy();
        let aside = directory.with_file_name(format!("retired-{name}-{:016x}", rand::random::<u64>()));
        match fs::rename(directory, &aside) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(io("move", directory)(error)),
            _ => Ok(()),
        }
    }

    fn verified(&self) -> MutexGuard<'_, HashSet<Entry>> {
        self.verified.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// How often what was not durable had to be given up. Who began before must not publish after.
    fn losses(&self) -> u64 {
        self.losses.load(Ordering::SeqCst)
    }

    /// Fails when something was given up since `losses` were counted.
    fn check_losses(&self, losses: u64, what: &str) -> Result<(), Error> {
        if self.losses() == losses {
            return Ok(());
        }
        Err(Error::Damaged(format!("the disk failed while {what} was written")))
    }

    /// Waits for its turn to look at what has `key`, a hash in hex.
    fn checking(&self, key: &str) -> MutexGuard<'_, ()> {
        let number = usize::from(key.as_bytes().last().copied().unwrap_or_default()) % CHECKS_AT_A_TIME;
        self.checking[number].lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn publishing(&self) -> MutexGuard<'_, ()> {
        self.publishing.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn lock_records(&self) -> MutexGuard<'_, ()> {
        self.records.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        self.flusher.stop();
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

fn create_private(path: &Path) -> std::io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
}

fn children(directory: &Path) -> Result<Vec<PathBuf>, Error> {
    let entries = fs::read_dir(directory).map_err(io("list", directory))?;
    entries.map(|entry| entry.map(|entry| entry.path()).map_err(io("list", directory))).collect()
}

/// Deletes a file or a directory of our own; what is not there is fine.
fn remove(path: &Path) -> Result<(), Error> {
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

fn age(path: &Path) -> Option<Duration> {
    fs::symlink_metadata(path).ok()?.modified().ok()?.elapsed().ok()
}

/// The kernel's boot ID: another one means that the machine was started again.
fn boot_id() -> Result<String, Error> {
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
