//! How a volume is to be accessed: a file system, mount flags, an access mode.

use tonic::Status;

use crate::csi::status::missing;
use crate::csi::v1::VolumeCapability;
use crate::csi::v1::volume_capability::access_mode::Mode;
use crate::csi::v1::volume_capability::{AccessType, MountVolume};

/// Mount flags that a read-only volume has or can ignore. Never `rw`, `suid`, `dev`, `exec`, nor `context=`,
/// which a bind mount cannot take.
const MOUNT_FLAGS: [&str; 9] =
    ["ro", "nosuid", "nodev", "noexec", "noatime", "nodiratime", "relatime", "norelatime", "noiversion"];

/// The mode and the flags of a capability that ocivol's volumes may have.
///
/// # Errors
/// `INVALID_ARGUMENT` when something is missing, for block devices, and for flags of other kinds of mounts.
pub fn of_mount(capability: Option<&VolumeCapability>) -> Result<(Mode, &[String]), Status> {
    let capability = capability.ok_or_else(|| missing("volume_capability"))?;
    let flags = match &capability.access_type {
        None => return Err(missing("volume_capability.access_type")),
        Some(AccessType::Block(_)) => {
            return Err(Status::invalid_argument(
                "volume_capability asks for a block device; ocivol volumes are file systems: set volumeMode: Filesystem",
            ));
        }
        Some(AccessType::Mount(MountVolume { mount_flags, .. })) => mount_flags,
    };
    if let Some(flag) = flags.iter().find(|flag| !MOUNT_FLAGS.contains(&flag.as_str())) {
        let flag: String = flag.chars().take(60).collect();
        return Err(Status::invalid_argument(format!(
            "mount flag {flag:?} is not allowed; allowed are {}",
            MOUNT_FLAGS.join(", ")
        )));
    }
    match capability.access_mode.as_ref().map_or(Mode::Unknown, |mode| mode.mode()) {
        Mode::Unknown => Err(missing("volume_capability.access_mode")),
        mode => Ok((mode, flags)),
    }
}

/// Whether a volume that is used so, and as `read_only` says, is to be written.
pub fn writes(mode: Mode, read_only: bool) -> bool {
    match mode {
        Mode::Unknown | Mode::SingleNodeReaderOnly | Mode::MultiNodeReaderOnly => false,
        Mode::SingleNodeWriter | Mode::SingleNodeSingleWriter | Mode::SingleNodeMultiWriter => !read_only,
        Mode::MultiNodeSingleWriter | Mode::MultiNodeMultiWriter => true,
    }
}
