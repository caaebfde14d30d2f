//! What the process of the node plugin may have and do: all descriptors it can get, and no privilege it does not need.

use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::thread::{self, CapabilitySet, CapabilitySets};

use crate::failure::Failure;

/// The capabilities the plugin works with, for `man 7 capabilities`. Whoever takes the process over has no other:
/// it can load no module, trace no process, make no device, and change no network.
const NEEDED: [CapabilitySet; 5] = [
    // Mounts are cloned, made read-only, moved to their targets and removed.
    CapabilitySet::SYS_ADMIN,
    // setns(2) into a mount namespace wants it beside SYS_ADMIN.
    CapabilitySet::SYS_CHROOT,
    // What an image holds belongs to any user and may be closed to all others; so may kubelet's directories.
    CapabilitySet::DAC_OVERRIDE,
    // Files of an image get the owners that its layers name.
    CapabilitySet::CHOWN,
    // Files that have such owners get their permissions, times and attributes, and further hard links.
    CapabilitySet::FOWNER,
];

/// Numbers of capabilities that the kernel's interface has room for.
const CAPABILITY_BITS: u32 = u64::BITS;

/// Raises the limit of open files to the most that the process may have. Container runtimes start processes with
/// 1,024, because of programs that use select(2); this one does not.
pub fn raise_open_files() {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    // No limit is `None`.
    if current == maximum || current.is_none() {
        return;
    }
    match setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }) {
        Ok(()) => tracing::debug!(?current, ?maximum, "raised the limit of open files"),
        Err(error) => tracing::warn!(?current, ?maximum, %error, "cannot raise the limit of open files"),
    }
}

/// Sets the limit of memory that may be locked to `bytes`: the plugin can then lock so much without a capability, and no more.
/// Returns whether it can.
pub fn limit_locked_memory(bytes: u64) -> bool {
    let maximum = getrlimit(Resource::Memlock).maximum.map(|maximum| maximum.max(bytes));
    setrlimit(Resource::Memlock, Rlimit { current: Some(bytes), maximum }).is_ok()
}

/// Gives up, for good, all capabilities that the plugin does not need, and lets no program that is executed gain any.
///
/// What the process does not have it does not get: run by an ordinary user it has none before and after. With `and_lock_memory` it
/// keeps the one to lock memory beyond its limit.
///
/// *Caller:* the process has one thread. Capabilities are a thread's, and new threads have those of their creator.
///
/// # Errors
/// When the kernel refuses what it grants every process: to have less.
pub fn give_up_privileges(and_lock_memory: bool) -> Result<(), Failure> {
    reduce(and_lock_memory)
        .map_err(|error| Failure::internal(&format!("cannot give up capabilities: {error}")))
}

fn reduce(and_lock_memory: bool) -> rustix::io::Result<()> {
    let further = if and_lock_memory { CapabilitySet::IPC_LOCK } else { CapabilitySet::empty() };
    let needed = NEEDED.into_iter().fold(further, CapabilitySet::union);
    for bit in 0..CAPABILITY_BITS {
        let capability = CapabilitySet::from_bits_retain(1 << bit);
        match thread::capability_is_in_bounding_set(capability) {
            Ok(true) if !needed.contains(capability) => {}
            Ok(_) => continue,
            Err(Errno::INVAL) => break, // The running kernel has no more.
            Err(error) => return Err(error),
        }
        match thread::remove_capability_from_bounding_set(capability) {
            Ok(()) => {}
            // Without SETPCAP the bounding set stays. It bounds what executed programs gain, and they gain nothing.
            Err(Errno::PERM) => break,
            Err(error) => return Err(error),
        }
    }
    thread::clear_ambient_capability_set()?;
    let CapabilitySets { effective, permitted, .. } = thread::capabilities(None)?;
    thread::set_capabilities(
        None,
        CapabilitySets {
            effective: effective & needed,
            permitted: permitted & needed,
            inheritable: CapabilitySet::empty(),
        },
    )?;
    thread::set_no_new_privs(true)
}
