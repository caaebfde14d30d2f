//! All volumes that are warmed, and the one thread that does it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use crate::host::sys;
use crate::tenant::Tenant;
use crate::warm::budget::{Memory, WarmBudget};
use crate::warm::fill::Filler;
use crate::warm::order::{WarmFile, WarmFiles};
use crate::warm::pins::Pins;
use crate::warm::resident::resident;
use crate::warm::volume::{End, Shares, Sum, Wanted, Warming};

/// The volumes that are warmed. Each namespace has its turn, and one file is read at a time: more would only make a disk seek.
#[derive(Debug)]
pub struct Warmer {
    /// `None`: nothing is warmed.
    budget: Option<WarmBudget>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// By the target where they are mounted.
    volumes: BTreeMap<PathBuf, Volume>,
    /// Who had a turn last.
    last: Option<Tenant>,
    /// How many volumes came so far.
    came: u64,
    /// Whether there is a thread.
    has_thread: bool,
    is_stopped: bool,
    /// Bytes that were read into memory since the start.
    filled: u64,
    /// What part was in memory when it was looked at last.
    resident: Option<f64>,
}

/// What a warmer has done, and what it holds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sums {
    /// Bytes that were read into memory since the start.
    pub filled: u64,
    /// Bytes that are locked in memory now.
    pub locked: u64,
    /// What part of the files that are warmed was in memory at the last [`Warmer::look`]; `None` where there were none.
    pub resident: Option<f64>,
}

#[derive(Debug)]
struct Volume {
    tenant: Tenant,
    /// The how manieth it is: a namespace's volumes are warmed one after another.
    number: u64,
    since: Instant,
    gone: Arc<AtomicBool>,
    sum: Sum,
    files: Option<Arc<WarmFiles>>,
    /// What is to be done. When all was, what is locked stays here.
    warming: Option<Warming>,
    /// Why no more is done at present.
    end: Option<End>,
}

impl Volume {
    fn is_waiting(&self) -> bool {
        self.end.is_none() && self.warming.is_some()
    }

    /// Whether it would have more if others had less.
    fn is_short(&self) -> bool {
        let lacks_locks = self.warming.as_ref().is_some_and(Warming::lacks_locks);
        matches!(self.end, Some(End::Budget | End::Names | End::Memory))
            || (self.end.is_some() && lacks_locks)
    }

    fn begin_again(&mut self) {
        if let Some(warming) = &mut self.warming {
            warming.begin_again();
            self.end = None;
        }
    }
}

impl State {
    /// Whether somebody has to start a thread, and who is told so does.
    fn needs_thread(&mut self) -> bool {
        let is_needed = !self.is_stopped && !self.has_thread && self.volumes.values().any(Volume::is_waiting);
        self.has_thread |= is_needed;
        is_needed
    }

    /// All that is locked, as `tenant` sees it.
    fn pins(&self, tenant: Option<&Tenant>) -> Pins {
        let mut pins = Pins::default();
        for volume in self.volumes.values() {
            let locked = volume.warming.iter().flat_map(|warming| warming.locked());
            locked.for_each(|pinned| pins.note(pinned, tenant == Some(&volume.tenant)));
        }
        pins
    }
}

/// What was warmed of a volume that is gone. It goes with this, which may take as long as unmapping what was locked does.
#[derive(Debug, Default)]
pub struct Removed {
    _volume: Option<Volume>,
    /// Whether something was locked.
    pub had_locks: bool,
    /// Whether the caller has to run [`Warmer::work`] on a thread: others may have what it leaves.
    pub needs_thread: bool,
}

/// Volumes of one namespace that are warmed. Of more, the rest is read when it is read.
const VOLUMES_OF_TENANT: usize = 256;
/// Files that are looked at for [`Warmer::look`].
const SAMPLE: usize = 64;

/// A slice that is next.
struct Turn {
    target: PathBuf,
    number: u64,
    warming: Warming,
    shares: Shares,
}

impl Warmer {
    /// Warms within `budget`; nothing without one.
    pub fn new(budget: Option<WarmBudget>) -> Self {
        Self { budget, state: Mutex::default() }
    }

    /// Whether a volume may be locked in memory at all.
    pub fn may_pin(&self) -> bool {
        self.budget.is_some_and(|budget| budget.pinned > 0)
    }

    /// Whether anything is warmed.
    pub fn is_on(&self) -> bool {
        self.budget.is_some()
    }

    /// Whether the volume at `target` is warmed.
    pub fn has(&self, target: &Path) -> bool {
        self.lock().volumes.contains_key(target)
    }

    /// Warms the volume at `target` from now on. Returns whether the caller has to run [`Warmer::work`] on a thread.
    #[must_use]
    pub fn add(&self, tenant: &Tenant, target: &Path, wanted: Wanted) -> bool {
        let before = self.remove(target);
        let mut state = self.lock();
        if self.budget.is_none() || state.is_stopped {
            return before.needs_thread;
        }
        let of_tenant = state.volumes.values().filter(|volume| volume.tenant == *tenant).count();
        if of_tenant >= VOLUMES_OF_TENANT {
            tracing::info!(target_path = %target.display(), "not warmed: {VOLUMES_OF_TENANT} volumes of its namespace are");
            return before.needs_thread;
        }
        state.came += 1;
        let gone = Arc::new(AtomicBool::new(false));
        let volume = Volume {
            tenant: tenant.clone(),
            number: state.came,
            since: Instant::now(),
            gone: Arc::clone(&gone),
            sum: Sum::default(),
            files: None,
            warming: Some(Warming::new(wanted, gone)),
            end: None,
        };
        state.volumes.insert(target.to_owned(), volume);
        state.needs_thread() || before.needs_thread
    }

    /// The volume at `target` is gone: no more of it is read, and others may have its share.
    #[must_use]
    pub fn remove(&self, target: &Path) -> Removed {
        let mut state = self.lock();
        let Some(volume) = state.volumes.remove(target) else { return Removed::default() };
        volume.gone.store(true, Ordering::Relaxed);
        state.volumes.values_mut().filter(|volume| volume.is_short()).for_each(Volume::begin_again);
        let had_locks = volume.sum.locked > 0;
        Removed { _volume: Some(volume), had_locks, needs_thread: state.needs_thread() }
    }

    /// Ends the thread soon, and warms nothing any more. What is locked stays so until the process ends.
    pub fn stop(&self) {
        let mut state = self.lock();
        state.is_stopped = true;
        for volume in state.volumes.values() {
            volume.gone.store(true, Ordering::Relaxed);
        }
    }

    /// The thread that was to run [`Warmer::work`] could not be had: the next volume asks for one again.
    pub fn has_no_thread(&self) {
        self.lock().has_thread = false;
    }

    /// Warms until nothing is left to do.
    pub fn work(&self) {
        // A panic ends the thread, and not all warming.
        let _ended = Ended(self);
        if let Err(error) = sys::be_idle_at_the_disk() {
            tracing::debug!(%error, "warming has the same rights at the disk as others");
        }
        let filler = match Filler::new() {
            Ok(filler) => filler,
            Err(error) => {
                tracing::warn!(%error, "cannot warm: no pipe");
                return self.has_no_thread();
            }
        };
        while let Some(turn) = self.next_turn() {
            self.take(turn, &filler);
        }
    }

    /// Reads one slice.
    fn take(&self, turn: Turn, filler: &Filler) {
        let Turn { target, number, mut warming, shares } = turn;
        let Some(budget) = self.budget else { return };
        let before = warming.sum.filled;
        // Where the kernel does not say, it is not short.
        let is_short = Memory::read().is_ok_and(Memory::is_short);
        let stepped = if is_short { Ok(Some(End::Memory)) } else { warming.step(filler, budget, &shares) };
        let lacks_locks = warming.lacks_locks();
        let mut state = self.lock();
        state.filled += warming.sum.filled - before;
        let volume = state.volumes.get_mut(&target).filter(|volume| volume.number == number);
        let Some(volume) = volume else { return };
        volume.sum = warming.sum;
        volume.files = warming.files().cloned();
        volume.warming = Some(warming);
        volume.end = match &stepped {
            Ok(end) => *end,
            Err(_) => Some(End::Gone),
        };
        let (sum, took, end) = (volume.sum, volume.since.elapsed(), volume.end);
        if matches!(end, Some(End::Complete | End::Gone)) && sum.wanted == 0 {
            // It is no model.
            state.volumes.remove(&target);
        }
        drop(state);
        let end = match (stepped, end) {
            (Err(error), _) => {
                tracing::warn!(%error, target_path = %target.display(), "cannot warm a volume");
                return;
            }
            (Ok(_), None | Some(End::Gone)) => return,
            (Ok(_), Some(End::Complete)) if sum.wanted == 0 => return,
            (Ok(_), Some(End::Complete)) if lacks_locks => {
                "all is in memory; not all of it is locked, because warm.pinBudget has no room for more"
            }
            (Ok(_), Some(End::Complete)) => "all is in memory",
            (Ok(_), Some(End::Names)) => "its namespace has too many files that are warmed",
            (Ok(_), Some(End::Budget)) => "the namespace's share of warm.budget is used up",
            (Ok(_), Some(End::Evicted)) => "the kernel drops as much as is read",
            (Ok(_), Some(End::Memory)) => "less than a tenth of the node's memory is available",
        };
        tracing::info!(
            target_path = %target.display(),
            bytes = sum.wanted,
            filled = sum.filled,
            locked = sum.locked,
            seconds = took.as_secs_f64(),
            end,
            "warmed"
        );
    }

    /// Whose turn it is; `None` when nothing is left to do, and then there is no thread any more.
    fn next_turn(&self) -> Option<Turn> {
        let mut state = self.lock();
        let waiting: BTreeSet<Tenant> = state
            .volumes
            .values()
            .filter(|volume| volume.is_waiting() && !state.is_stopped)
            .map(|volume| volume.tenant.clone())
            .collect();
        let after = state.last.as_ref().and_then(|last| waiting.iter().find(|tenant| *tenant > last));
        let Some(tenant) = after.or(waiting.first()).cloned() else {
            state.has_thread = false;
            return None;
        };
        let of = |state: &State, of: fn(&Sum) -> u64, tenant: Option<&Tenant>| {
            let volumes = state.volumes.values();
            volumes.filter(|it| tenant.is_none_or(|tenant| it.tenant == *tenant)).map(|it| of(&it.sum)).sum()
        };
        // Those whose volumes turn out to be no models take nobody's share.
        let takes_part = |volume: &&Volume| volume.sum.wanted > 0 || volume.tenant == tenant;
        let shares = Shares {
            namespaces: state
                .volumes
                .values()
                .filter(takes_part)
                .map(|it| &it.tenant)
                .collect::<BTreeSet<_>>()
                .len(),
            own_filled: of(&state, |sum| sum.filled, Some(&tenant)),
            pins: state.pins(Some(&tenant)),
            own_names: of(&state, |sum| sum.names, Some(&tenant)),
            all_names: of(&state, |sum| sum.names, None),
        };
        let own =
            state.volumes.iter_mut().filter(|(_, volume)| volume.is_waiting() && volume.tenant == tenant);
        let (target, volume) = own.min_by_key(|(_, volume)| volume.number)?;
        let (target, number, warming) = (target.clone(), volume.number, volume.warming.take()?);
        state.last = Some(tenant);
        Some(Turn { target, number, warming, shares })
    }

    /// Looks what part of the files that are warmed is in memory, at a sample of them; and whether there is memory again for volumes that
    /// found none. Returns whether the caller has to run [`Warmer::work`] on a thread.
    #[must_use]
    pub fn look(&self) -> bool {
        let lists: Vec<Arc<WarmFiles>> =
            self.lock().volumes.values().filter_map(|volume| volume.files.clone()).collect();
        let all =
            lists.iter().flat_map(|list| list.files.iter().map(|file| (list.directory.as_path(), file)));
        let files: Vec<(&Path, &WarmFile)> = all.collect();
        let (mut all, mut here) = (0, 0);
        for (directory, file) in files.iter().step_by(files.len().div_ceil(SAMPLE).max(1)) {
            let counted =
                File::open(directory.join(&file.name)).and_then(|opened| resident(&opened, 0..file.size));
            // Of a volume that has just gone.
            let Ok(counted) = counted else { continue };
            (all, here) = (all + file.size, here + counted);
        }
        let mut state = self.lock();
        state.resident = (all > 0).then(|| here as f64 / all as f64);
        let waiting = state.volumes.values_mut().filter(|volume| volume.end == Some(End::Memory));
        waiting.for_each(Volume::begin_again);
        state.needs_thread()
    }

    /// What it has done, and what it holds.
    pub fn sums(&self) -> Sums {
        let state = self.lock();
        Sums { filled: state.filled, locked: state.pins(None).bytes(), resident: state.resident }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The thread has ended, however it did.
struct Ended<'a>(&'a Warmer);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.has_no_thread();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::warm::order::Content;
    use crate::warm::volume::SLICE;
    use std::fs;

    const MIB: u64 = 1 << 20;

    /// A directory with weights of so many bytes, which are not on any disk: a hole.
    fn model(size: u64) -> tempfile::TempDir {
        let directory = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).expect("a directory");
        let file = File::create(directory.path().join("model.gguf")).and_then(|file| file.set_len(size));
        file.expect("weights");
        directory
    }

    fn wanted(directory: &Path) -> Wanted {
        Wanted { directory: directory.to_owned(), content: Content::Anything, pinned: false }
    }

    fn namespace(name: &str) -> Tenant {
        Tenant::of_namespace(Some(name))
    }

    #[test]
    fn namespaces_have_their_turns() {
        let warmer = Warmer::new(Some(WarmBudget { warm: u64::MAX, pinned: 0 }));
        let directory = model(2 * SLICE);
        let filler = Filler::new().expect("a pipe");
        assert!(
            warmer.add(&namespace("loud"), Path::new("/1"), wanted(directory.path())),
            "a thread is needed"
        );
        assert!(!warmer.add(&namespace("loud"), Path::new("/2"), wanted(directory.path())), "one is enough");
        assert!(!warmer.add(&namespace("quiet"), Path::new("/3"), wanted(directory.path())));
        let mut turns = Vec::new();
        while let Some(turn) = warmer.next_turn() {
            turns.push(turn.target.clone());
            warmer.take(turn, &filler);
        }
        let turns: Vec<_> = turns.iter().map(|target| target.to_str().expect("text")).collect();
        assert_eq!(turns, ["/1", "/3", "/1", "/3", "/2"]);
        // Who looked at it when half of it was in memory and who read the rest both count that.
        assert!((2 * SLICE..=3 * SLICE).contains(&warmer.sums().filled), "{:?}", warmer.sums());
        assert!(
            warmer.add(&namespace("quiet"), Path::new("/4"), wanted(directory.path())),
            "the thread has ended"
        );
        assert!(!warmer.look());
        assert_eq!(warmer.sums().resident, Some(1.0));
    }

    #[test]
    fn what_is_gone_is_not_read_to_its_end() {
        let warmer = Warmer::new(Some(WarmBudget { warm: u64::MAX, pinned: 0 }));
        let directory = model(4 * SLICE);
        let filler = Filler::new().expect("a pipe");
        assert!(warmer.add(&namespace("a"), Path::new("/1"), wanted(directory.path())));
        let turn = warmer.next_turn().expect("one");
        warmer.take(turn, &filler);
        // In the middle of its second slice.
        let turn = warmer.next_turn().expect("one");
        assert!(!warmer.remove(Path::new("/1")).needs_thread);
        warmer.take(turn, &filler);
        assert!(warmer.next_turn().is_none());
        assert_eq!(warmer.sums().filled, SLICE);
        // A volume that takes the place of one whose slice is being read is another.
        assert!(warmer.add(&namespace("a"), Path::new("/1"), wanted(directory.path())));
        let turn = warmer.next_turn().expect("one");
        assert!(!warmer.add(&namespace("a"), Path::new("/1"), wanted(directory.path())));
        warmer.take(turn, &filler);
        assert!(warmer.next_turn().is_some());
    }

    #[test]
    fn an_end_does_not_wait_for_what_is_read() {
        let warmer = Arc::new(Warmer::new(Some(WarmBudget { warm: u64::MAX, pinned: 0 })));
        let directory = model(64 * SLICE);
        assert!(warmer.add(&namespace("a"), Path::new("/1"), wanted(directory.path())));
        let working = Arc::clone(&warmer);
        let thread = std::thread::spawn(move || working.work());
        while warmer.sums().filled == 0 {
            std::thread::yield_now();
        }
        drop(warmer.remove(Path::new("/1")));
        thread.join().expect("no panic");
        assert!(warmer.sums().filled < 64 * SLICE, "it was read to its end");
    }

    #[test]
    fn what_is_no_model_takes_nobodys_share() {
        let warmer = Warmer::new(Some(WarmBudget { warm: 3 * SLICE, pinned: 0 }));
        let (empty, directory) = (tempfile::tempdir().expect("a directory"), model(2 * SLICE));
        let filler = Filler::new().expect("a pipe");
        fs::write(empty.path().join("app"), "an application").expect("a file");
        assert!(warmer.add(&namespace("model"), Path::new("/1"), wanted(directory.path())));
        for number in 2..9 {
            assert!(!warmer.add(&namespace("other"), Path::new(&format!("/{number}")), wanted(empty.path())));
        }
        while let Some(turn) = warmer.next_turn() {
            warmer.take(turn, &filler);
        }
        assert_eq!(warmer.sums().filled, 2 * SLICE);
    }

    #[test]
    fn who_goes_leaves_a_share_to_who_found_none() {
        let warmer = Warmer::new(Some(WarmBudget { warm: 2 * SLICE, pinned: 2 * SLICE }));
        let (one, two) = (model(SLICE), model(SLICE));
        let filler = Filler::new().expect("a pipe");
        let all = || {
            while let Some(turn) = warmer.next_turn() {
                warmer.take(turn, &filler);
            }
        };
        let pinned = |directory: &Path| Wanted { pinned: true, ..wanted(directory) };
        assert!(warmer.add(&namespace("a"), Path::new("/1"), pinned(one.path())));
        assert!(!warmer.add(&namespace("a"), Path::new("/2"), pinned(two.path())));
        all();
        assert_eq!(warmer.sums().locked, SLICE, "as much is left as it has");
        // The next pod with the same model has the same lock, before the first one goes.
        assert!(warmer.add(&namespace("a"), Path::new("/3"), pinned(one.path())));
        all();
        assert!(warmer.remove(Path::new("/1")).needs_thread, "the second would have more");
        all();
        assert_eq!(warmer.sums().locked, SLICE, "the third still has it");
        assert!(warmer.remove(Path::new("/3")).needs_thread);
        all();
        let locked: Vec<u64> = warmer.lock().volumes.values().map(|volume| volume.sum.locked).collect();
        assert_eq!(locked, [SLICE], "the second one has it now");
    }

    #[test]
    fn nothing_is_warmed_without_a_budget_nor_after_the_end() {
        let directory = model(MIB);
        let none = Warmer::new(None);
        assert!(!none.add(&namespace("a"), Path::new("/1"), wanted(directory.path())) && !none.may_pin());
        let warmer = Warmer::new(Some(WarmBudget { warm: u64::MAX, pinned: 1 }));
        assert!(warmer.may_pin());
        assert!(warmer.add(&namespace("a"), Path::new("/1"), wanted(directory.path())));
        warmer.stop();
        assert!(warmer.next_turn().is_none());
        assert!(!warmer.add(&namespace("a"), Path::new("/2"), wanted(directory.path())));
        assert_eq!(warmer.sums(), Sums { filled: 0, locked: 0, resident: None });
    }
}
