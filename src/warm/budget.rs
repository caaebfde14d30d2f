//! How much of the node's memory may be warm, and how it is divided between namespaces.

use std::fs;
use std::io;

/// Bounds of what is warmed, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WarmBudget {
    /// Bytes that are read into memory for all volumes that are published. Each namespace that has some may have as much as
    /// every other.
    pub warm: u64,
    /// Bytes that are locked in memory, so that the kernel cannot drop them. A namespace may lock as much as it then leaves to
    /// others.
    pub pinned: u64,
}

/// Hundredths of the node's memory that have to be available, or nothing is warmed.
const AVAILABLE: u64 = 10;

impl WarmBudget {
    /// Bytes that a namespace which has warmed `own` may warm beside them, when `namespaces` of them want some.
    pub fn allowance(&self, own: u64, namespaces: usize) -> u64 {
        let share = self.warm / u64::try_from(namespaces.max(1)).unwrap_or(u64::MAX);
        share.saturating_sub(own)
    }

    /// Whether a namespace that has locked `own` bytes of the `all` that are locked may lock `more`.
    ///
    /// So one alone gets half of what there is, a second one a third part, and nobody finds nothing left.
    pub fn may_pin(&self, own: u64, all: u64, more: u64) -> bool {
        may_have(own, all, more, self.pinned)
    }
}

/// Whether a namespace that has `own` of the `all` that are taken of `bound` may have `more`: as much as it then leaves to others.
pub(in crate::warm) fn may_have(own: u64, all: u64, more: u64, bound: u64) -> bool {
    own.saturating_add(more) <= bound.saturating_sub(all.saturating_add(more))
}

/// Memory of the node, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory {
    /// All of it.
    pub total: u64,
    /// What programs can have without swapping: what is free, and what the kernel can take from caches.
    pub available: u64,
}

impl Memory {
    /// What the kernel says of the whole node (`man 5 proc`, `/proc/meminfo`), also in a container.
    ///
    /// # Errors
    /// When it cannot be read, or does not say.
    pub fn read() -> io::Result<Self> {
        let text = fs::read_to_string("/proc/meminfo")?;
        Self::parse(&text).ok_or_else(|| io::Error::other("/proc/meminfo does not say what is available"))
    }

    fn parse(text: &str) -> Option<Self> {
        let of = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
            line.trim().strip_suffix(" kB")?.parse::<u64>().ok()?.checked_mul(1024)
        };
        Some(Self { total: of("MemTotal")?, available: of("MemAvailable")? })
    }

    /// Whether programs are short of it.
    pub fn is_short(self) -> bool {
        self.available < self.total / 100 * AVAILABLE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn namespaces_share_what_may_be_warm() {
        let budget = WarmBudget { warm: 90, pinned: 0 };
        assert_eq!((budget.allowance(80, 1), budget.allowance(91, 1)), (10, 0));
        assert_eq!((budget.allowance(0, 2), budget.allowance(40, 2)), (45, 5));
        assert_eq!(budget.allowance(0, 0), 90, "nobody else");
    }

    #[test]
    fn a_namespace_leaves_to_others_what_it_locks() {
        let budget = WarmBudget { warm: 0, pinned: 90 };
        assert!(budget.may_pin(0, 0, 45) && !budget.may_pin(0, 0, 46));
        assert!(budget.may_pin(0, 45, 22) && !budget.may_pin(0, 45, 23), "a second one");
        assert!(!WarmBudget { warm: 90, pinned: 0 }.may_pin(0, 0, 1));
    }

    #[test]
    fn memory_is_short_below_a_tenth() {
        let text = "MemTotal:       1000 kB\nMemFree:  1 kB\nMemAvailable:   99 kB\n";
        let memory = Memory::parse(text).expect("it says");
        assert_eq!(memory, Memory { total: 1_024_000, available: 101_376 });
        assert!(memory.is_short());
        assert!(!Memory { available: 102_400, ..memory }.is_short());
        assert!(Memory::parse("MemTotal: 1000 kB\n").is_none(), "before Linux 3.14");
        assert!(Memory::read().is_ok());
    }
}
