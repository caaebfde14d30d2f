//! Owner, permissions, times and extended attributes: how what an archive says of a file gets onto the disk.

use std::os::fd::BorrowedFd;
use std::sync::OnceLock;

use rustix::fs::{AtFlags, Gid, Mode, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;

use crate::layer::index::EntryMetadata;

/// Lets new files of this thread have exactly the mode they are created with; returns what they lose if that cannot
/// be had. The rest of the process keeps its own mask (`man 2 umask`, `CLONE_FS` in `man 2 unshare`).
pub fn clear_umask() -> u16 {
    if nix::sched::unshare(nix::sched::CloneFlags::CLONE_FS).is_err() {
        return 0o777; // Every mode is then set once more.
    }
    rustix::process::umask(Mode::empty());
    0
}

/// Permission bits as the kernel takes them.
pub fn mode(bits: u16) -> Mode {
    Mode::from_raw_mode(bits.into())
}

/// Sets all of `metadata` with this `mode` instead of its own; returns how many extended attributes could not be
/// set. Times come last: everything else changes them.
///
/// # Errors
/// The kernel's.
pub fn set<B: AsRef<[u8]>>(
    file: BorrowedFd<'_>,
    bits: u16,
    metadata: &EntryMetadata<B>,
) -> Result<u64, Errno> {
    set_owner(file, metadata)?;
    rustix::fs::fchmod(file, mode(bits))?;
    let dropped = set_xattrs(file, metadata)?;
    set_times(file, metadata)?;
    Ok(dropped)
}

/// Sets the owner, where it is not the one that new files have.
///
/// # Errors
/// The kernel's.
pub fn set_owner<B: AsRef<[u8]>>(file: BorrowedFd<'_>, metadata: &EntryMetadata<B>) -> Result<(), Errno> {
    match owner(metadata) {
        Some((user, group)) => if_owner_exists(rustix::fs::fchown(file, user, group)),
        None => Ok(()),
    }
}

/// Sets access and modification time.
///
/// # Errors
/// The kernel's.
pub fn set_times<B: AsRef<[u8]>>(file: BorrowedFd<'_>, metadata: &EntryMetadata<B>) -> Result<(), Errno> {
    rustix::fs::futimens(file, &times(metadata))
}

/// Sets owner and times of the symlink `part` in the directory `at`.
///
/// # Errors
/// The kernel's.
pub fn set_symlink<B: AsRef<[u8]>>(
    at: BorrowedFd<'_>,
    part: &[u8],
    metadata: &EntryMetadata<B>,
) -> Result<(), Errno> {
    if let Some((user, group)) = owner(metadata) {
        if_owner_exists(rustix::fs::chownat(at, part, user, group, AtFlags::SYMLINK_NOFOLLOW))?;
    }
    rustix::fs::utimensat(at, part, &times(metadata), AtFlags::SYMLINK_NOFOLLOW)
}

/// Returns how many could not be set: not every file system has them, and some have little room.
///
/// # Errors
/// The kernel's, but for those that say so.
pub fn set_xattrs<B: AsRef<[u8]>>(file: BorrowedFd<'_>, metadata: &EntryMetadata<B>) -> Result<u64, Errno> {
    let mut dropped = 0;
    for (name, value) in &metadata.xattrs {
        match rustix::fs::fsetxattr(file, name.as_ref(), value.as_ref(), XattrFlags::empty()) {
            Ok(()) => {}
            Err(Errno::OPNOTSUPP | Errno::NOSPC | Errno::RANGE | Errno::TOOBIG) => dropped += 1,
            Err(error) => return Err(error),
        }
    }
    Ok(dropped)
}

fn times<B>(metadata: &EntryMetadata<B>) -> Timestamps {
    let time = Timespec { tv_sec: metadata.mtime, tv_nsec: metadata.nanos.into() };
    Timestamps { last_access: time, last_modification: time }
}

fn owner<B>(metadata: &EntryMetadata<B>) -> Option<(Option<Uid>, Option<Gid>)> {
    /// Who owns new files. It does not change while anything is unpacked.
    static OWN: OnceLock<(u32, u32)> = OnceLock::new();
    let own = OWN.get_or_init(|| (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw()));
    if *own == (metadata.uid, metadata.gid) {
        return None;
    }
    Some((Some(Uid::from_raw(metadata.uid)), Some(Gid::from_raw(metadata.gid))))
}

/// In a user namespace of one's own most users do not exist; what is unpacked then belongs to its root.
fn if_owner_exists(result: Result<(), Errno>) -> Result<(), Errno> {
    match result {
        Err(Errno::INVAL) => Ok(()),
        Err(Errno::PERM) if !rustix::process::geteuid().is_root() => Ok(()),
        result => result,
    }
}
