//! Leases: trees that a command on the node has mounted where this process cannot see it, in a mount namespace of its own. A
//! lease lasts as long as the process that it was given to; of one that is not seen from here, for a while.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::store::disk::{Disk, children, now, remove};
use crate::store::durable::record;
use crate::store::error::Error;
use crate::store::key::TreeKey;

/// The owner of `leases/`.
#[derive(Debug)]
pub struct Leases {
    disk: Arc<Disk>,
}

/// A tree, and the process that has it mounted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// The tree.
    pub tree: TreeKey,
    /// The process; 0 is one in a PID namespace that is not seen from here.
    pub pid: u32,
    /// When the process was started, in ticks since the machine was: another process may get its number later.
    pub started: u64,
    /// The kernel's boot ID.
    boot_id: String,
    /// Seconds since the epoch.
    pub since: u64,
    /// Until when it lasts at most, in the same; 0 is no bound.
    #[serde(default)]
    until: u64,
}

impl Lease {
    /// Whether its process is there, or may be.
    pub(in crate::store) fn is_current(&self, boot_id: &str) -> bool {
        let lasts = match self.pid {
            UNSEEN => now() < self.until,
            pid => started(pid) == Some(self.started),
        };
        self.boot_id == boot_id && lasts
    }
}

/// The number of a process that is not seen from here (`man 7 pid_namespaces`).
const UNSEEN: u32 = 0;

impl Leases {
    pub(in crate::store) fn new(disk: Arc<Disk>) -> Self {
        Self { disk }
    }

    /// Gives the process `pid` a lease of `tree`.
    ///
    /// # Errors
    /// [`Error::NoSpace`], [`Error::Io`]; [`Error::Damaged`] when there is no such process.
    pub fn give(&self, tree: &TreeKey, pid: u32) -> Result<(), Error> {
        let gone = || Error::Damaged(format!("process {pid}, which wants to mount a tree, is gone"));
        let started = started(pid).ok_or_else(gone)?;
        let boot_id = self.disk.boot_id.clone();
        let lease = Lease { tree: tree.clone(), pid, started, boot_id, since: now(), until: 0 };
        self.write(&lease)
    }

    /// Gives a process that is not seen from here a lease of `tree`, which lasts for `time`: when it ends is not seen either.
    ///
    /// # Errors
    /// [`Error::NoSpace`], [`Error::Io`].
    pub fn give_unseen(&self, tree: &TreeKey, time: Duration) -> Result<(), Error> {
        let (since, boot_id) = (now(), self.disk.boot_id.clone());
        let until = since.saturating_add(time.as_secs());
        self.write(&Lease { tree: tree.clone(), pid: UNSEEN, started: 0, boot_id, since, until })
    }

    fn write(&self, lease: &Lease) -> Result<(), Error> {
        let Lease { pid, started, tree, .. } = lease;
        record::write(&self.disk, &self.directory().join(format!("{pid}-{started}-{tree}.json")), lease)
    }

    /// The leases whose processes are there. Those of others are dropped.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn current(&self) -> Result<Vec<Lease>, Error> {
        let mut current = Vec::new();
        for path in children(&self.directory())? {
            match record::read::<Lease>(&path)? {
                Some(lease) if lease.is_current(&self.disk.boot_id) => current.push(lease),
                _ => remove(&path)?,
            }
        }
        Ok(current)
    }

    fn directory(&self) -> PathBuf {
        self.disk.directory().join("leases")
    }
}

/// When a process was started: field 22 of `man 5 proc_pid_stat`, counted after the name in brackets.
fn started(pid: u32) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    text.rsplit_once(')')?.1.split_ascii_whitespace().nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_known_by_its_number_and_its_start() {
        assert!(started(std::process::id()).is_some_and(|ticks| ticks > 0));
        assert_eq!(started(u32::MAX), None);
    }

    #[test]
    fn a_process_that_is_not_seen_has_its_lease_for_a_while() {
        let tree = TreeKey::parse(&"0".repeat(64)).expect("a key");
        let lease = |until| Lease {
            tree: tree.clone(),
            pid: UNSEEN,
            started: 0,
            boot_id: "b".into(),
            since: 0,
            until,
        };
        assert!(lease(now() + 60).is_current("b"));
        assert!(!lease(now() + 60).is_current("after a reboot"));
        assert!(!lease(now()).is_current("b"));
    }
}
