//! The one who says whether there is room: for pulls that begin, and again while they write.
//!
//! What a pull is going to write is *promised* to it before its first byte is asked for, so that pulls that begin together do not
//! each see all that is free. A promise is of content: of pulls that need the same, it is counted once. It shrinks as the bytes
//! arrive, since then the file system shows them.
//!
//! What is promised to others counts for at most half of what may be taken: whoever declares everything, and then brings little, does
//! not keep others from bringing theirs. So more may be promised than there is, and who writes first has it.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use crate::store::error::{Error, io};
use crate::store::key::Name;
use crate::store::space::amount::Amount;
use crate::store::space::budget::{Budget, Usage};
use crate::tenant::Tenant;

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
    /// For whom, once for each pull.
    holders: Vec<Tenant>,
}

/// Which promises are one's own, and whether they are to be kept free as well.
#[derive(Clone, Copy)]
struct Own<'a> {
    is: &'a dyn Fn(&Name, &Promised) -> bool,
    counts: bool,
}

/// Room for what a pull is going to write, until it is dropped.
#[derive(Debug)]
pub struct Promise {
    room: Arc<Room>,
    tenant: Tenant,
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

    /// Promises `tenant` what is missing of `contents`. What does not fit is not promised: it is returned how much is missing.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn promise(
        self: &Arc<Self>,
        tenant: &Tenant,
        contents: &[Coming],
    ) -> Result<Result<Promise, Amount>, Error> {
        let usage = self.measure()?;
        let mut promises = self.lock();
        let missing = self.missing(tenant, contents, usage, &promises);
        if !missing.is_nothing() {
            return Ok(Err(missing));
        }
        for Coming { name, size, missing } in contents {
            let promised =
                promises.entry(*name).or_insert(Promised { size: 0, left: 0, holders: Vec::new() });
            promised.holders.push(tenant.clone());
            // Whoever says of the same content that it has another size may be wrong, and is not who it was promised for.
            if promised.size != *size {
                promised.size = promised.size.max(*size);
                promised.left = promised.left.max(*missing);
            }
        }
        drop(promises);
        let names = contents.iter().map(|coming| coming.name).collect();
        Ok(Ok(Promise { room: Arc::clone(self), tenant: tenant.clone(), names }))
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
            let is_own = |name: &Name, _: &Promised| content == Some(*name);
            // What is promised to oneself is what is written.
            let available = self.available(usage, &self.lock(), Own { is: &is_own, counts: false });
            Ok::<_, Error>(self.short_of(needed, available, usage))
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

    /// Collects what is unused until there is room for `contents` of `tenant`, or nothing is left that may go.
    pub fn make_room_for(&self, tenant: &Tenant, contents: &[Coming]) {
        if let Some(collect) = self.collect.get() {
            collect(&|| {
                let usage = self.measure()?;
                Ok(self.missing(tenant, contents, usage, &self.lock()))
            });
        }
    }

    /// What is missing for `contents`, of each of which only what is not promised yet counts.
    fn missing(
        &self,
        tenant: &Tenant,
        contents: &[Coming],
        usage: Usage,
        promises: &HashMap<Name, Promised>,
    ) -> Amount {
        let more = contents.iter().filter_map(|coming| {
            let more = match promises.get(&coming.name) {
                Some(promised) if promised.size == coming.size => 0,
                Some(promised) => coming.missing.saturating_sub(promised.left),
                None => coming.missing,
            };
            (more > 0).then_some(Coming { missing: more, ..*coming })
        });
        let is_own = |_: &Name, promised: &Promised| promised.holders.contains(tenant);
        let available = self.available(usage, promises, Own { is: &is_own, counts: true });
        self.short_of(needed(more), available, usage)
    }

    /// What has to be freed until so much is `available`: what others have written into what is kept free as well.
    fn short_of(&self, needed: Amount, available: Amount, usage: Usage) -> Amount {
        let (missing, deficit) = (needed.minus(available), self.budget.deficit(usage));
        let of = |missing: u64, deficit: u64| if missing > 0 { missing.saturating_add(deficit) } else { 0 };
        Amount { bytes: of(missing.bytes, deficit.bytes), inodes: of(missing.inodes, deficit.inodes) }
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

    /// What may be used of the file system, by whomever.
    pub fn limit(&self, usage: Usage) -> Amount {
        self.budget.limit(usage)
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

    /// What may be taken, beside what is promised.
    fn available(&self, usage: Usage, promises: &HashMap<Name, Promised>, own: Own<'_>) -> Amount {
        let available = self.budget.available(usage);
        let (mut to_self, mut to_others) = (0_u64, 0_u64);
        for (name, promised) in promises {
            let sum = if (own.is)(name, promised) { &mut to_self } else { &mut to_others };
            *sum = sum.saturating_add(promised.left);
        }
        let to_others = to_others.min(available.bytes / 2);
        let to_self = if own.counts { to_self } else { 0 };
        available.minus(Amount::bytes(to_self.saturating_add(to_others)))
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
                if let Some(place) = promised.holders.iter().position(|holder| *holder == self.tenant) {
                    promised.holders.swap_remove(place);
                }
                if promised.holders.is_empty() {
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

    const GIB: u64 = 1 << 30;

    fn tenant(name: &str) -> Tenant {
        Tenant::of_namespace(Some(name))
    }

    fn coming(number: u8, gib: u64) -> Coming {
        let name = Name::content(&Digest::sha256(&[number]));
        Coming { name, size: gib * GIB, missing: gib * GIB }
    }

    #[test]
    fn what_is_promised_to_one_is_not_there_for_another_until_it_has_come() {
        let directory = tempfile::tempdir().expect("a directory");
        let room = room(directory.path(), 10 * GIB);
        let [one, two] = [1, 2].map(|number| coming(number, 6));
        let promise = |coming: Coming| room.promise(&tenant("a"), &[coming]).expect("measured");
        let first = promise(one).expect("it fits");
        assert!(promise(two).is_err());
        // The same content is promised once.
        let again = promise(one).expect("it is the same");
        assert!(
            promise(Coming { size: 20 * GIB, missing: 20 * GIB, ..one }).is_err(),
            "it is said to be larger"
        );
        let second = promise(coming(2, 3)).expect("it fits");
        assert!(promise(coming(3, 3)).is_err());
        drop(second);
        // What has come is no longer to come; here the disk does not show it.
        room.written(one.name, 4 * GIB);
        let third = promise(coming(3, 7)).expect("it fits");
        drop((first, third));
        assert!(promise(coming(3, 9)).is_err(), "the first is still held");
        drop(again);
        assert!(promise(coming(3, 9)).is_ok());
        let fourth = promise(coming(4, 9)).expect("it fits");
        room.arrived(coming(4, 9).name);
        assert!(promise(coming(3, 9)).is_ok());
        drop(fourth);
    }

    #[test]
    fn whoever_is_promised_everything_leaves_others_half() {
        let directory = tempfile::tempdir().expect("a directory");
        let room = room(directory.path(), 10 * GIB);
        let promise = |name: &str, coming: Coming| room.promise(&tenant(name), &[coming]).expect("measured");
        let all = promise("a", coming(1, 9)).expect("it fits");
        assert!(promise("b", coming(2, 6)).is_err(), "it is more than half");
        let half = promise("b", coming(2, 4)).expect("it is less than half");
        // And what it was promised it can write, and so can what is made without a promise.
        assert!(room.ensure(Some(coming(2, 4).name), Amount::bytes(4 * GIB)).is_ok());
        assert!(room.ensure(None, Amount::bytes(4 * GIB)).is_ok());
        assert!(room.ensure(None, Amount::bytes(6 * GIB)).is_err());
        assert!(promise("b", coming(3, 3)).is_err(), "its own counts as a whole");
        drop((all, half));
    }

    /// It was collected as much as the pull needed, which was then there and could not be taken.
    #[test]
    fn regression_what_others_have_taken_of_what_is_kept_free_is_made_good_first() {
        let directory = tempfile::tempdir().expect("a directory");
        let Usage { total, free } = room(directory.path(), 0).measure().expect("a disk");
        let free = free.bytes;
        // No more can be kept free than there is.
        let taken = GIB.min(total.bytes - free);
        let keep_free = Level::Count(free + GIB);
        let budget = Budget { keep_free, keep_free_inodes: Level::Count(0), ..Budget::COMMAND };
        let room = Room::new(directory.path(), budget);
        let short = room.promise(&tenant("a"), &[coming(1, 2)]).expect("measured").expect_err("too much");
        // Others write to the disk meanwhile, and remove what they wrote.
        let others = room.measure().expect("a disk").free.bytes.abs_diff(free);
        assert!(
            short.bytes.abs_diff(2 * GIB + taken) <= others + (GIB >> 4),
            "{} bytes, others {others}",
            short.bytes
        );
    }

    #[test]
    fn too_little_room_is_made_before_it_is_refused() {
        let directory = tempfile::tempdir().expect("a directory");
        let room = room(directory.path(), 2 * GIB);
        let large = Coming { missing: 3 * GIB / 2, ..coming(1, 2) };
        let promise = room.promise(&tenant("a"), &[large]).expect("measured").expect("it fits");
        let promise = Mutex::new(Some(promise));
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (freed, noted) = (promise, Arc::clone(&asked));
        room.make_room_with(move |missing| {
            noted.lock().expect("a lock").push(missing().expect("measured").bytes >> 20);
            drop(freed.lock().expect("a lock").take());
        });
        // Half of it is what is promised to others at most.
        assert!(room.ensure(None, Amount::bytes(3 * GIB / 2)).is_ok());
        // Others write to the disk meanwhile.
        let first = asked.lock().expect("a lock")[0];
        assert!((500..600).contains(&first), "{first} MiB were missing");
        assert!(room.ensure(None, Amount::bytes(4 * GIB)).is_err());
    }
}
