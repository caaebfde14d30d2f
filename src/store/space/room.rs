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

/// Content that a pull is going to bring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Coming {
    /// Which.
    pub name: Name,
    /// Bytes of all of it.
    pub size: u64,
    /// Bytes that are not here yet.
    pub missing: u64,
}

#[derive(Debug)]
struct Promised {
    /// Bytes of all of it.
    size: u64,
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
    pub fn promise(self: &Arc<Self>, contents: &[Coming]) -> Result<Result<Promise, Amount>, Error> {
        let usage = self.measure()?;
        let mut promises = self.lock();
        let missing = self.missing(contents, usage, &promises);
        if !missing.is_nothing() {
            return Ok(Err(missing));
        }
        for Coming { name, size, missing } in contents {
            let promised = promises.entry(*name).or_insert(Promised { size: 0, left: 0, holders: 0 });
            promised.holders += 1;
            // Whoever says of the same content that it has another size may be wrong, and is not who it was promised for.
            if promised.size != *size {
                promised.size = promised.size.max(*size);
                promised.left = promised.left.max(*missing);
            }
        }
        drop(promises);
        let names = contents.iter().map(|coming| coming.name).collect();
        Ok(Ok(Promise { room: Arc::clone(self), names }))
    }

    /// So many bytes of `content` have been written: they are no longer to come.
    pub(in crate::store) fn written(&self, content: Name, bytes: u64) {
        if let Some(promised) = self.lock().get_mut(&content) {
            promised.left = promised.left.saturating_sub(bytes);
        }
    }

    /// All of `content` is on the disk.
    pub(in crate::store) fn arrived(&self, content: Name) {
        self.written(content, u64::MAX);
    }

    /// Makes sure that `needed` fits, beside what is promised to others than `content`: what is unused is collected if it does
    /// not. *Caller:* may wait.
    ///
    /// # Errors
    /// [`Error::NoSpace`] when it does not fit all the same, [`Error::Io`].
    pub(in crate::store) fn ensure(&self, content: Option<Name>, needed: Amount) -> Result<(), Error> {
        let missing = || {
            let usage = self.measure()?;
            Ok::<_, Error>(needed.minus(self.available(usage, &self.lock(), content)))
        };
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
    pub fn make_room_for(&self, contents: &[Coming]) {
        if let Some(collect) = self.collect.get() {
            collect(&|| {
                let usage = self.measure()?;
                Ok(self.missing(contents, usage, &self.lock()))
            });
        }
    }

    /// What is missing for `contents`, of each of which only what is not promised yet counts.
    fn missing(&self, contents: &[Coming], usage: Usage, promises: &HashMap<Name, Promised>) -> Amount {
        let more = contents.iter().filter_map(|coming| {
            let more = match promises.get(&coming.name) {
                Some(promised) if promised.size == coming.size => 0,
                Some(promised) => coming.missing.saturating_sub(promised.left),
                None => coming.missing,
            };
            (more > 0).then_some(Coming { missing: more, ..*coming })
        });
        needed(more).minus(self.available(usage, promises, None))
    }

    /// Whether there is room for `more` bytes of `content` that nobody knew of, after so many were `written`. What is unused is
    /// collected if there is not.
    pub fn has_for(&self, content: Name, written: u64, more: u64) -> bool {
        self.written(content, written);
        let room = self.ensure(Some(content), Amount { bytes: more.max(1), inodes: 1 });
        room.inspect_err(|error| tracing::debug!(%error, "there is no room for what is unpacked")).is_ok()
    }

    /// That there is no room for `contents`.
    pub fn full_for(&self, contents: &[Coming], missing: Amount) -> Error {
        self.full(needed(contents.iter().copied()), missing)
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
    fn available(&self, usage: Usage, promises: &HashMap<Name, Promised>, content: Option<Name>) -> Amount {
        let others = promises.iter().filter(|(name, _)| content != Some(**name));
        let promised = others.fold(0_u64, |sum, (_, promised)| sum.saturating_add(promised.left));
        self.budget.available(usage).minus(Amount::bytes(promised))
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Name, Promised>> {
        self.promises.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn needed(contents: impl IntoIterator<Item = Coming>) -> Amount {
    contents.into_iter().fold(Amount::default(), |sum, coming| {
        sum.plus(Amount { bytes: coming.missing, inodes: INODES_OF_A_BLOB })
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
        let coming = |name, gib: u64| Coming { name, size: gib * GIB, missing: gib * GIB };
        let promise = |name, gib: u64| room.promise(&[coming(name, gib)]).expect("measured");
        let first = promise(one, 6).expect("it fits");
        assert!(promise(two, 6).is_err());
        // The same content is promised once.
        let again = promise(one, 6).expect("it is the same");
        assert!(promise(one, 20).is_err(), "who says that it is larger has to find more");
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
        let promise = Mutex::new(Some(
            room.promise(&[Coming { name, size: 3 * GIB / 2, missing: 3 * GIB / 2 }])
                .expect("measured")
                .expect("it fits"),
        ));
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
