//! Processes that a program has started and left behind.
//!
//! In its container the plugin is process 1: who loses its parent becomes its child, and stays in the table of processes after its end
//! until somebody waits for it (`man 7 pid_namespaces`).

use std::sync::{Mutex, PoisonError};

use rustix::io::Errno;
use rustix::process::{Pid, WaitOptions, waitpgid};

/// Process groups in which somebody still runs, who may be a child of this process. As long as there is somebody, the kernel gives the
/// group's id to nobody else; when the last one leaves the group alive, somebody else could get it, and would be waited for here.
static LEFT: Mutex<Vec<Pid>> = Mutex::new(Vec::new());

/// Groups that are remembered. Of more the oldest is forgotten: what a program leaves behind each time is not for ocivol to clean up.
const GROUPS: usize = 64;

/// Waits for those of the process group `group` that have ended, and of groups before it: now, or when the next one is looked at.
///
/// *Caller:* has waited for the group's first process; otherwise that would be waited for here.
pub fn bury(group: Pid) {
    let mut left = LEFT.lock().unwrap_or_else(PoisonError::into_inner);
    left.push(group);
    left.retain(|group| has_somebody(*group));
    let surplus = left.len().saturating_sub(GROUPS);
    left.drain(..surplus);
}

/// Waits for those of `group` that have ended. Whether there are others.
fn has_somebody(group: Pid) -> bool {
    loop {
        match waitpgid(group, WaitOptions::NOHANG) {
            Ok(Some(_)) | Err(Errno::INTR) => {}
            Ok(None) => return true,
            // None of them is a child of this process.
            Err(_) => return false,
        }
    }
}
