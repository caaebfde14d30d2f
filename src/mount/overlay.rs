//! A volume whose file system cannot be written, whatever its mount's flags are.
//!
//! A volume that a pod uses without `readOnly` (a claim, or one with the attribute `readOnlyForWriters`) is bound into the container with `rw`: runc 1.2 and later then clears the
//! flags of the mount, and where they are [locked](crate::mount::locked) the container does not start. Claims of other read-only
//! drivers start. So such a volume is an overlay without an upper layer: its superblock is read-only, and stays so
//! (`Documentation/filesystems/overlayfs.rst`, "Multiple lower layers"; `ovl_reconfigure` refuses `rw` without an upper
//! layer). What it cannot do is be mapped to the users of a pod with `hostUsers: false`.

use std::os::fd::{AsRawFd as _, OwnedFd};

use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_flag, fsconfig_set_string,
    fsmount, fsopen,
};

use crate::mount::mountinfo::{OVERLAY_SOURCE, StoreLocation};

/// Bytes that the kernel takes for the value of an option. `man 2 fsconfig`.
const VALUE_LIMIT: usize = 255;

/// An overlay that shows `directory`, a part of the tree at `place`, and is attached nowhere yet; `ro,nosuid,nodev`, and `noexec` unless
/// `executable`. `empty` is an empty directory: without an upper layer there must be two lower ones.
///
/// # Errors
/// The kernel's.
pub(super) fn mount_of(
    directory: &OwnedFd,
    place: &StoreLocation,
    empty: &OwnedFd,
    executable: bool,
) -> Result<OwnedFd, Errno> {
    let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_flag(&context, "ro")?;
    let source = format!("{OVERLAY_SOURCE}{}{}", place.device, place.root.display());
    if source.len() > VALUE_LIMIT {
        return Err(Errno::NAMETOOLONG);
    }
    fsconfig_set_string(&context, "source", source)?;
    // By descriptors: a path can be too long, has characters that mean something here, and can be changed meanwhile.
    let layer = |descriptor: &OwnedFd| format!("/proc/self/fd/{}", descriptor.as_raw_fd());
    fsconfig_set_string(&context, "lowerdir", format!("{}:{}", layer(directory), layer(empty)))?;
    // A tree means what it shows: nothing in it is a message to overlayfs.
    fsconfig_set_string(&context, "redirect_dir", "nofollow")?;
    fsconfig_set_string(&context, "metacopy", "off")?;
    fsconfig_create(&context)?;
    let mut flags = MountAttrFlags::MOUNT_ATTR_RDONLY
        | MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV;
    if !executable {
        flags |= MountAttrFlags::MOUNT_ATTR_NOEXEC;
    }
    fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, flags)
}
