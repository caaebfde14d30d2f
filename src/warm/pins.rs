//! Files that are locked in memory, each once however many volumes want it, and who may lock how many.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::host::limits;
use crate::host::sys::FileMapping;
use crate::warm::budget::{WarmBudget, may_have};

/// Which file it is, by whatever name: its device and inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::warm) struct Identity(u64, u64);

/// A file that is locked in memory as long as this exists.
#[derive(Debug)]
pub(in crate::warm) struct Pinned {
    pub identity: Identity,
    /// In bytes.
    pub size: u64,
    /// Dropping it may take as long as unmapping does.
    _mapping: FileMapping,
}

/// All that is locked, as one namespace sees it.
#[derive(Debug, Default)]
pub(in crate::warm) struct Pins {
    /// With whether a volume of the namespace has it.
    files: BTreeMap<Identity, (Arc<Pinned>, bool)>,
}

/// Bytes that are locked at a call, during which the process's other threads may have to wait for its map of addresses.
const PIECE: u64 = 16 << 20;

impl Identity {
    pub fn of(file: &File) -> io::Result<Self> {
        file.metadata().map(|known| Self(known.dev(), known.ino()))
    }
}

impl Pinned {
    /// Locks `file` in memory. `None` when `gone` has become true meanwhile.
    ///
    /// # Errors
    /// The kernel's: `ENOMEM` beyond RLIMIT_MEMLOCK.
    pub fn lock(file: &File, size: u64, gone: &AtomicBool) -> io::Result<Option<Self>> {
        let mapping = FileMapping::new(file.as_fd(), 0, size)?;
        let mut at = 0;
        while at < size {
            if gone.load(Ordering::Relaxed) {
                return Ok(None);
            }
            let length = PIECE.min(size - at);
            mapping.lock(at, length)?;
            at += length;
        }
        Ok(Some(Self { identity: Identity::of(file)?, size, _mapping: mapping }))
    }
}

impl Pins {
    /// `pinned` is locked for a volume, of the namespace or of another.
    pub fn note(&mut self, pinned: &Arc<Pinned>, is_own: bool) {
        let known = self.files.entry(pinned.identity).or_insert_with(|| (Arc::clone(pinned), false));
        known.1 |= is_own;
    }

    /// Bytes that all have locked.
    pub fn bytes(&self) -> u64 {
        self.files.values().map(|(pinned, _)| pinned.size).sum()
    }

    /// The lock of a file, if it is locked already.
    pub fn get(&self, identity: Identity) -> Option<&Arc<Pinned>> {
        self.files.get(&identity).map(|(pinned, _)| pinned)
    }

    /// Whether the namespace may have a file of `size` bytes locked. What it has locked already costs nothing more; what another has
    /// locked counts for both, and once in the sum.
    pub fn may_lock(&self, budget: WarmBudget, identity: Identity, size: u64) -> bool {
        let own = self.files.values().filter(|(_, is_own)| *is_own);
        let (own_files, own_bytes) = own.fold((0, 0), |(files, bytes), (it, _)| (files + 1, bytes + it.size));
        let (files, bytes) = (self.files.len() as u64, self.bytes());
        match self.files.get(&identity) {
            Some((_, true)) => true,
            Some((_, false)) => {
                may_have(own_bytes, bytes - size.min(bytes), size, budget.pinned)
                    && may_have(own_files, files - 1, 1, limits::WARM_MAPPINGS)
            }
            None => {
                budget.may_pin(own_bytes, bytes, size) && may_have(own_files, files, 1, limits::WARM_MAPPINGS)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: u64 = 64 * 1024;

    fn locked(pins: &mut Pins, is_own: bool) -> Identity {
        let file = tempfile::tempfile_in(env!("CARGO_MANIFEST_DIR")).expect("a file");
        file.set_len(SIZE).expect("a hole");
        let pinned = Pinned::lock(&file, SIZE, &AtomicBool::new(false)).expect("locked").expect("not gone");
        let identity = pinned.identity;
        pins.note(&Arc::new(pinned), is_own);
        identity
    }

    #[test]
    fn what_is_locked_already_costs_nothing_more() {
        let budget = WarmBudget { warm: 0, pinned: 4 * SIZE };
        let (mut pins, other) = (Pins::default(), Identity(0, 0));
        assert!(pins.may_lock(budget, other, 2 * SIZE) && !pins.may_lock(budget, other, 2 * SIZE + 1));
        let theirs = locked(&mut pins, false);
        assert_eq!(pins.bytes(), SIZE);
        assert!(pins.may_lock(budget, theirs, SIZE), "it counts once in the sum");
        assert!(pins.may_lock(budget, other, SIZE) && !pins.may_lock(budget, other, 2 * SIZE));
        let own = locked(&mut pins, true);
        assert!(pins.may_lock(WarmBudget { pinned: 0, ..budget }, own, SIZE), "it has it");
        assert!(!pins.may_lock(budget, other, SIZE), "as much is left as it has");
        pins.note(&Arc::clone(pins.get(theirs).expect("locked")), true);
        assert_eq!(pins.bytes(), 2 * SIZE);
        assert!(pins.may_lock(WarmBudget { pinned: 0, ..budget }, theirs, SIZE));
    }

    #[test]
    fn what_is_gone_is_not_locked() {
        let file = tempfile::tempfile_in(env!("CARGO_MANIFEST_DIR")).expect("a file");
        file.set_len(SIZE).expect("a hole");
        assert!(Pinned::lock(&file, SIZE, &AtomicBool::new(true)).expect("no error").is_none());
    }
}
