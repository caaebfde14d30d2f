//! The system calls that no crate offers safely. The only `unsafe` code of the project.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use rustix::fs::{Mode, OFlags};
use rustix::mount::OpenTreeFlags;

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

/// Bytes of the part of a [`statmount`] answer that has the same length always; strings follow it.
pub const STATMOUNT_FIXED: usize = 512;

/// What the kernel knows of the mount with the unique ID `mount` in the caller's mount namespace: the parts that the bits of
/// `wanted` stand for, as a `struct statmount` of `linux/mount.h`. Its strings are in `answer` too, if there is room for them.
///
/// # Errors
/// The kernel's: `ENOSYS` before Linux 6.8, `ENOENT` when there is no such mount, `EOVERFLOW` when `answer` is too small.
pub fn statmount(mount: u64, wanted: u64, answer: &mut [u8]) -> io::Result<()> {
    /// The same on all architectures of this size; not in `libc` for all of them.
    const SYS_STATMOUNT: libc::c_long = 457;
    /// `struct mnt_id_req` of Linux 6.8, with its size first.
    #[repr(C)]
    struct Request {
        size: u32,
        spare: u32,
        mount: u64,
        wanted: u64,
    }
    let size = u32::try_from(size_of::<Request>()).map_err(io::Error::other)?;
    let request = Request { size, spare: 0, mount, wanted };
    // SAFETY: `request` lives through the call and says its own size; the kernel writes at most as many bytes to `answer` as the
    // length that is passed, and any bytes are good there.
    let result = unsafe {
        let no_flags: libc::c_long = 0;
        libc::syscall(SYS_STATMOUNT, &raw const request, answer.as_mut_ptr(), answer.len(), no_flags)
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// How many pages of `length` bytes of `file` from `start` are in the page cache, also those that are still being read.
///
/// # Errors
/// The kernel's: `ENOSYS` before Linux 6.5, `EPERM` for a file that is neither the caller's nor open for writing,
/// `EOPNOTSUPP` for what is on huge pages.
pub fn cachestat(file: BorrowedFd<'_>, start: u64, length: u64) -> io::Result<u64> {
    /// The same on all architectures; not in `libc` for all of them.
    const SYS_CACHESTAT: libc::c_long = 451;
    /// `struct cachestat_range` and `struct cachestat` of `linux/mman.h`.
    #[repr(C)]
    struct Range {
        start: u64,
        length: u64,
    }
    #[repr(C)]
    #[derive(Default)]
    struct Pages {
        cached: u64,
        dirty: u64,
        writeback: u64,
        evicted: u64,
        recently_evicted: u64,
    }
    let range = Range { start, length };
    let mut pages = Pages::default();
    // SAFETY: both structures are the kernel's, live through the call, and are of the size it knows; the descriptor is borrowed,
    // thus open.
    let result = unsafe {
        let no_flags: libc::c_long = 0;
        libc::syscall(SYS_CACHESTAT, file.as_raw_fd(), &raw const range, &raw mut pages, no_flags)
    };
    if result == 0 { Ok(pages.cached) } else { Err(io::Error::last_os_error()) }
}

/// A part of a file in this process's addresses, which nobody reads there. It is there for what the kernel does with its pages.
#[derive(Debug)]
pub struct FileMapping {
    /// Where it begins. Never read or written.
    address: *mut libc::c_void,
    length: usize,
}

// SAFETY: the address is only passed to system calls that work on the process's addresses, from whichever thread.
unsafe impl Send for FileMapping {}
// SAFETY: what is shared is an address and a length, which do not change.
unsafe impl Sync for FileMapping {}

impl FileMapping {
    /// Maps `length` bytes of `file` from `start`, which is a multiple of the page size. Nothing is read.
    ///
    /// # Errors
    /// The kernel's: `EINVAL` for no bytes, `ENOMEM` where the process has too many mappings.
    pub fn new(file: BorrowedFd<'_>, start: u64, length: u64) -> io::Result<Self> {
        let length = usize::try_from(length).map_err(io::Error::other)?;
        let offset = i64::try_from(start).map_err(io::Error::other)?;
        let anywhere = std::ptr::null_mut();
        // SAFETY: a new mapping at an address that the kernel chooses overlaps none; the descriptor is borrowed, thus open.
        let address = unsafe {
            libc::mmap(anywhere, length, libc::PROT_READ, libc::MAP_SHARED, file.as_raw_fd(), offset)
        };
        if address == libc::MAP_FAILED {
            Err(io::Error::last_os_error())
        } else {
            Ok(Self { address, length })
        }
    }

    /// Reads what is not in memory of `length` bytes from `start` of the mapping, and keeps the kernel from dropping any of it as long as
    /// this exists. See `man 2 mlock`.
    ///
    /// # Errors
    /// The kernel's: `ENOMEM` and `EPERM` beyond RLIMIT_MEMLOCK; `EINVAL` for what is not in the mapping.
    pub fn lock(&self, start: u64, length: u64) -> io::Result<()> {
        let (start, length) = (usize::try_from(start).ok(), usize::try_from(length).ok());
        let (Some(start), Some(length)) = (start, length) else { return Err(Errno::EINVAL.into()) };
        if start.checked_add(length).is_none_or(|end| end > self.length) {
            return Err(Errno::EINVAL.into());
        }
        // SAFETY: the range is within this mapping, which exists, and nobody reads it there.
        let result = unsafe { libc::mlock(self.address.byte_add(start), length) };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// How many of its pages are in memory.
    ///
    /// # Errors
    /// The kernel's.
    pub fn resident(&self) -> io::Result<u64> {
        let mut pages = vec![0_u8; self.length.div_ceil(rustix::param::page_size())];
        // SAFETY: the range is this mapping, which exists and begins at a page; the kernel writes a byte for each page of it.
        let result = unsafe { libc::mincore(self.address, self.length, pages.as_mut_ptr()) };
        if result != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(pages.iter().map(|page| u64::from(page & 1)).sum())
    }
}

impl Drop for FileMapping {
    fn drop(&mut self) {
        // SAFETY: the range is this mapping, which exists, and whose address nobody else has.
        unsafe { libc::munmap(self.address, self.length) };
    }
}

/// Lets this thread's reads and writes wait until nobody else uses the disk, where the disk's scheduler knows such a thing. See
/// `man 2 ioprio_set`.
///
/// # Errors
/// The kernel's; the thread is no worse for it.
pub fn be_idle_at_the_disk() -> io::Result<()> {
    const WHO_PROCESS: libc::c_long = 1;
    const THIS_THREAD: libc::c_long = 0;
    const CLASS_IDLE: libc::c_long = 3 << 13;
    // SAFETY: plain integers.
    let result = unsafe { libc::syscall(libc::SYS_ioprio_set, WHO_PROCESS, THIS_THREAD, CLASS_IDLE) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// A clone of the mount that is this thread's root directory, made in a user namespace and a mount namespace of its own:
/// all flags that the mount has are locked on the clone. See `man 7 mount_namespaces`, and [`crate::mount::locked`].
///
/// *Caller:* its root directory is the root of its mount namespace, which holds little: it is copied.
///
/// # Errors
/// The kernel's: `ENOSPC` when `user.max_user_namespaces` is used up or 0, `EPERM` in a chroot or where a security module
/// forbids user namespaces.
pub fn clone_of_root_in_a_user_namespace() -> io::Result<OwnedFd> {
    // The child puts its result in this descriptor's place: it shares the table of descriptors, and no memory.
    let place = rustix::fs::open("/", OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    let clone = (OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC).bits();
    // No signal at its end, which the process may ignore by inheritance: the child would then not wait to be waited for.
    let flags = libc::c_long::from(libc::CLONE_NEWUSER | libc::CLONE_NEWNS | libc::CLONE_FILES);
    let zero: libc::c_long = 0;
    // SAFETY: without CLONE_VM the child has a copy of this thread alone; it calls nothing but system calls that touch no
    // lock, no heap and no state of the C library, and ends by exit_group without returning into code of others. The stack
    // argument 0 keeps the copied stack. Arguments 3 to 5 are unused without their flags, in whatever order they come.
    let child = unsafe {
        let child = libc::syscall(libc::SYS_clone, flags, zero, zero, zero, zero);
        if child == 0 {
            let mount = libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, c"/".as_ptr(), clone);
            let moved = if mount < 0 {
                mount
            } else {
                libc::syscall(libc::SYS_dup3, mount, place.as_raw_fd(), libc::O_CLOEXEC)
            };
            let status = if moved < 0 { *libc::__errno_location() } else { 0 };
            if mount >= 0 {
                libc::syscall(libc::SYS_close, mount);
            }
            libc::syscall(libc::SYS_exit_group, status);
        }
        child
    };
    if child < 0 {
        return Err(io::Error::last_os_error());
    }
    let child = Pid::from_raw(i32::try_from(child).map_err(io::Error::other)?);
    loop {
        match waitpid(child, Some(WaitPidFlag::__WALL)) {
            Err(Errno::EINTR) => {}
            Ok(WaitStatus::Exited(_, 0)) => return Ok(place),
            Ok(WaitStatus::Exited(_, errno)) => return Err(io::Error::from_raw_os_error(errno)),
            Ok(other) => {
                return Err(io::Error::other(format!("the process that locks mounts ended: {other:?}")));
            }
            Err(errno) => return Err(errno.into()),
        }
    }
}
