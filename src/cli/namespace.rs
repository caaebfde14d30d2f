//! Namespaces of one's own: mounts that nobody else sees and that end with the process, also without root.

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use rustix::process::{getegid, geteuid};

use crate::failure::Failure;

/// Whether this is the machine's own user namespace, where root is root.
pub fn is_initial_user() -> bool {
    std::fs::read_to_string("/proc/self/uid_map")
        .is_ok_and(|map| map.split_whitespace().eq(["0", "0", "4294967295"]))
}

/// Moves this process into a mount namespace of its own; without root into a user namespace as well, where the
/// user is root and owns every file.
///
/// *Caller:* the process has one thread.
///
/// # Errors
/// When the kernel or a security module forbids it.
pub fn enter() -> Result<(), Failure> {
    let (uid, gid) = (geteuid(), getegid());
    let flags = if uid.is_root() {
        CloneFlags::CLONE_NEWNS
    } else {
        CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWUSER
    };
    alone(|| unshare(flags)).map_err(|error| {
        Failure::internal(&format!(
            "cannot make a namespace: {error}; run as root, or allow user namespaces \
             (sysctl kernel.unprivileged_userns_clone, kernel.apparmor_restrict_unprivileged_userns)"
        ))
    })?;
    if !uid.is_root() {
        write("/proc/self/setgroups", "deny")?;
        write("/proc/self/uid_map", &format!("0 {} 1", uid.as_raw()))?;
        write("/proc/self/gid_map", &format!("0 {} 1", gid.as_raw()))?;
    }
    let none: Option<&str> = None;
    // Slave: mounts of the machine still appear here, ours do not appear there.
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_SLAVE, none)
        .map_err(|error| Failure::internal(&format!("cannot make mounts private: {error}")))
}

/// Tries again where the kernel says that there are other threads: those that were waited for may be about to end.
fn alone(unshare: impl Fn() -> nix::Result<()>) -> nix::Result<()> {
    const TIMES: usize = 200;
    for _ in 0..TIMES {
        match unshare() {
            Err(nix::errno::Errno::EINVAL) => std::thread::park_timeout(std::time::Duration::from_millis(1)),
            done => return done,
        }
    }
    unshare()
}

fn write(path: &str, text: &str) -> Result<(), Failure> {
    std::fs::write(path, text).map_err(|error| Failure::internal(&format!("cannot write {path}: {error}")))
}
