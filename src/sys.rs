//! The system calls that no crate offers safely. The only `unsafe` code of the project.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Attributes of a mount to set, clear or map. See `man 2 mount_setattr`.
#[derive(Debug, Default)]
pub struct MountAttributes<'a> {
    /// `MOUNT_ATTR_…` bits to set.
    pub set: u64,
    /// Propagation type, such as `MS_PRIVATE`; 0 leaves it.
    pub propagation: u64,
    /// User namespace that `MOUNT_ATTR_IDMAP` in `set` refers to.
    pub user_namespace: Option<BorrowedFd<'a>>,
}

/// Changes the mount that `mount` refers to.
///
/// # Errors
/// The kernel's: `ENOSYS` before Linux 5.12, `EINVAL` where the file system cannot do what is asked.
pub fn mount_setattr(mount: BorrowedFd<'_>, attributes: &MountAttributes<'_>) -> io::Result<()> {
    let argument = libc::mount_attr {
        attr_set: attributes.set,
        attr_clr: 0,
        propagation: attributes.propagation,
        userns_fd: attributes.user_namespace.map_or(0, |fd| fd.as_raw_fd().unsigned_abs().into()),
    };
    // SAFETY: the path is an empty C string, as AT_EMPTY_PATH wants; `argument` lives through the call, and the
    // size passed is its own; both descriptors are borrowed, thus open. The kernel writes to none of them.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const argument,
            size_of::<libc::mount_attr>(),
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Starts to write the dirty pages of `range` to disk and does not wait. See `man 2 sync_file_range`.
///
/// # Errors
/// The kernel's; the data is no worse for it.
pub fn start_writeback(file: BorrowedFd<'_>, range: std::ops::Range<u64>) -> io::Result<()> {
    let offset = i64::try_from(range.start).map_err(io::Error::other)?;
    let length = i64::try_from(range.end.saturating_sub(range.start)).map_err(io::Error::other)?;
    // SAFETY: plain integers and a borrowed, thus open, descriptor; no memory is passed.
    let result =
        unsafe { libc::sync_file_range(file.as_raw_fd(), offset, length, libc::SYNC_FILE_RANGE_WRITE) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
