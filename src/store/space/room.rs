//! The one who says whether there is room: for pulls that begin, and again while they write.
//!
//! What a pull is going to write is *promised* to it before its first byte is asked for, so that pulls that begin together do not
//! each see all that is free. A promise is of content: of pulls that need the same, it is counted once. It shrinks as the bytes
//! arrive, since then the file system shows them.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use crate::store::error::{Error, io};
use crate::store::key::Name;
use crate::store::space::amount::Amount;
use crate::store::space::budget::{Budget, Usage};

/// The space of the store's file system.
pub struct Room {
    directory: PathBuf,
    budget: Budget,
    promises: Mutex<HashMap<Name, Promised>>,
    /// Makes room where there is too little.
    collect: OnceLock<Collect>,
}

/// How much is missing.
pub type Missing<'a> = dyn Fn() -> Result<Amount, Error> + 'a;

/// Frees what is missing, as far as it can, and returns when it has.
type Collect = Box<dyn Fn(&Missing<'_>) + Send + Sync>;

#[derive(Debug)]
struct Promised {
    /// Bytes that have not come yet.
    left: u64,
    holders: usize,
}

/// Room for what a pull is going to write, until it is dropped.
#[derive(Debug)]
pub struct Promise {
    room: Arc<Room>,
    names: Vec<Name>,
}

/// Inodes of a blob beside its file: its record, what is learnt of it, and that it is durable.
const INODES_OF_A_BLOB: u64 = 4;

impl std::fmt::Debug for Room {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Room").field("directory", &self.directory).finish_non_exhaustive()
    }
}

impl Room {
    pub(in crate::store) fn new(directory: &Path, budget: Budget) -> Arc<Self> {
        let (promises, collect) = (Mutex::default(), OnceLock::new());
        Arc::new(Self { directory: directory.to_owned(), budget, promises, collect })
    }

    /// From now on `collect` makes room where there is too little. *Caller:* once.
    pub fn make_room_with(&self, collect: impl Fn(&Missing<'_>) + Send + Sync + 'static) {
        let _ = self.collect.set(Box::new(collect));
    }

    /// Promises the bytes of `contents`, each with how many of it are not here yet. What does not fit is not promised: it is
    /// returned how much is missing.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn promise(self: &Arc<Self>, contents: &[(Name, u64)]) -> Result<Result<Promise, Amount>, Error> {
        let mut promises = self.lock();
        let missing = self.missing(contents, &promises)?;
        if !missing.is_nothing() {
            return Ok(Err(missing));
        }
        for (name, bytes) in contents {
            promises.entry(*name).or_insert(Promised { left: *bytes, holders: 0 }).holders += 1;
        }
        drop(promises);
        let names = contents.iter().map(|(name, _)| *name).collect();
        Ok(Ok(Promise { room: Arc::clone(self), names }))
    }

    /// So many bytes of `content` have been written: they are no longer to come.
    pub(in crate::store) fn written(&self, content: Name, bytes: u64) {
        if let Some(promised) = self.lock().get_mut(&content) {
            promised.left = promised.left.saturating_sub(bytes);
        }
    }

    /// Makes sure that `needed` fits, beside what is promised to others than `content`: what is unused is collected if it does
    /// not. *Caller:* may wait.
    ///
    /// # Errors
    /// [`Error::NoSpace`] when it does not fit all the same, [`Error::Io`].
    pub(in crate::store) fn ensure(&self, content: Option<Name>, needed: Amount) -> Result<(), Error> {
        let missing = || self.available(&self.lock(), content).map(|available| needed.minus(available));
        let short = missing()?;
        if short.is_nothing() {
            return Ok(());
        }
        if let Some(collect) = self.collect.get() {
            collect(&missing);
        }
        let short = missing()?;
        if short.is_nothing() { Ok(()) } else { Err(self.full(needed, short)) }
    }

    /// Collects what is unused until there is room for `contents`, or nothing is left that may go.
    pub fn make_room_for(&self, contents: &[(Name, u64)]) {
        if let Some(collect) = self.collect.get() {
            collect(&|| self.missing(contents, &self.lock()));
        }
    }

    fn missing(&self, contents: &[(Name, u64)], promises: &HashMap<Name, Promised>) -> Result<Amount, Error> {
        let new = contents.iter().filter(|(name, _)| !promises.contains_key(name));
        Ok(needed(new).minus(self.available(promises, None)?))
    }

    /// Whether there is room for `more` bytes of `content` that nobody knew of, after so many were `written`. What is unused is
    /// collected if there is not.
    pub fn has_for(&self, content: Name, written: u64, more: u64) -> bool {
        self.written(content, written);
        let room = self.ensure(Some(content), Amount { bytes: more.max(1), inodes: 1 });
        room.inspect_err(|error| tracing::debug!(%error, "there is no room for what is unpacked")).is_ok()
    }

    /// That there is no room for `contents`.
    pub fn full_for(&self, contents: &[(Name, u64)], missing: Amount) -> Error {
        self.full(needed(contents), missing)
    }

    /// How much that is is for the log alone.
    fn full(&self, needed: Amount, missing: Amount) -> Error {
        let usage = self.measure().ok();
        let available = usage.map(|usage| self.budget.available(usage)).unwrap_or_default();
        let free = usage.map(|usage| usage.free).unwrap_or_default();
        tracing::warn!(
            store = %self.directory.display(),
            needed = needed.bytes,
            needed_inodes = needed.inodes,
            free = free.bytes,
            free_inodes = free.inodes,
            available = available.bytes,
            missing = missing.bytes,
            missing_inodes = missing.inodes,
            "no space left in the store"
        );
        Error::NoSpace { store: self.directory.clone(), missing: Some(missing) }
    }

    /// What has to be freed, if it is time to.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn excess(&self) -> Result<Option<Amount>, Error> {
        Ok(self.budget.excess(self.measure()?))
    }

    /// What the file system has.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn measure(&self) -> Result<Usage, Error> {
        let found = rustix::fs::statvfs(&self.directory)
            .map_err(|error| io("measure", &self.directory)(error.into()))?;
        let bytes = |blocks: u64| blocks.saturating_mul(found.f_frsize);
        Ok(Usage {
            total: Amount { bytes: bytes(found.f_blocks), inodes: found.f_files },
            free: Amount { bytes: bytes(found.f_bavail), inodes: found.f_favail },
        })
    }

    /// What may be taken, beside what is promised to others than `content`.
    fn available(&self, promises: &HashMap<Name, Promised>, content: Option<Name>) -> Result<Amount, Error> {
        let others = promises.iter().filter(|(name, _)| content != Some(**name));
        let promised = others.fold(0_u64, |sum, (_, promised)| sum.saturating_add(promised.left));
        Ok(self.budget.available(self.measure()?).minus(Amount::bytes(promised)))
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Name, Promised>> {
        self.promises.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn needed<'a>(contents: impl IntoIterator<Item = &'a (Name, u64)>) -> Amount {
    contents.into_iter().fold(Amount::default(), |sum, (_, bytes)| {
        sum.plus(Amount { bytes: *bytes, inodes: INODES_OF_A_BLOB })
    })
}

impl Drop for Promise {
    fn drop(&mut self) {
        let mut promises = self.room.lock();
        for name in &self.names {
            if let Some(promised) = promises.get_mut(name) {
                promised.holders -= 1;
                if promised.holders == 0 {
                    promises.remove(name);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::digest::Digest;
    use crate::store::space::budget::Level;

    /// A room in which so many bytes may be taken, whatever else the disk has.
    fn room(directory: &Path, bytes: u64) -> Arc<Room> {
        let open = Room::new(directory, Budget { keep_free: Level::Count(0), ..Budget::COMMAND });
        let free = open.measure().expect("a disk").free.bytes;
        let keep_free = Level::Count(free - bytes);
        Room::new(directory, Budget { keep_free, keep_free_inodes: Level::Count(0), ..Budget::COMMAND })
    }

    #[test]
    fn what_is_promised_to_one_is_not_there_for_another_until_it_has_come() {
        const GIB: u64 = 1 << 30;
        let directory = tempfile::tempdir().expect("a directory");
        let room = room(directory.path(), 10 * GIB);
        let [one, two, three] = [b"1", b"2", b"3"].map(|text| Name::content(&Digest::sha256(text)));
        let promise = |name, gib: u64| room.promise(&[(name, gib * GIB)]).expect("measured");
        let first = promise(one, 6).expect("it fits");
        assert!(promise(two, 6).is_err());
        // The same content is promised once.
        let again = promise(one, 6).expect("it is the same");
        let second = promise(two, 3).expect("it fits");
        assert!(promise(three, 3).is_err());
        drop(second);
        assert!(room.ensure(None, Amount::bytes(5 * GIB)).is_err());
        assert!(room.ensure(Some(one), Amount::bytes(5 * GIB)).is_ok());
        // What has come is no longer to come; here the disk does not show it.
        room.written(one, 4 * GIB);
        let third = promise(three, 6).expect("it fits");
        drop((first, third));
        assert!(room.ensure(None, Amount::bytes(9 * GIB)).is_err(), "one still holds the first");
        drop(again);
        assert!(room.ensure(None, Amount::bytes(9 * GIB)).is_ok());
    }

    #[test]
    fn too_little_room_is_made_before_it_is_refused() {
        const GIB: u64 = 1 << 30;
        let directory = tempfile::tempdir().expect("a directory");
        let room = room(directory.path(), 2 * GIB);
        let name = Name::content(&Digest::sha256(b"1"));
        let promise =
            Mutex::new(Some(room.promise(&[(name, GIB + GIB / 2)]).expect("measured").expect("it fits")));
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (freed, noted) = (promise, Arc::clone(&asked));
        room.make_room_with(move |missing| {
            noted.lock().expect("a lock").push(missing().expect("measured").bytes >> 20);
            drop(freed.lock().expect("a lock").take());
        });
        assert!(room.ensure(None, Amount::bytes(GIB)).is_ok());
        // Others write to the disk meanwhile.
        let first = asked.lock().expect("a lock")[0];
        assert!((500..600).contains(&first), "{first} MiB were missing");
        assert!(room.ensure(None, Amount::bytes(4 * GIB)).is_err());
    }
}
