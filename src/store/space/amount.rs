//! How much of a file system something takes.

use serde::{Deserialize, Serialize};

/// Bytes and inodes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Amount {
    /// Bytes on the disk.
    pub bytes: u64,
    /// Files, directories and symbolic links.
    pub inodes: u64,
}

impl Amount {
    /// More than there is of anything.
    pub const ALL: Self = Self { bytes: u64::MAX, inodes: u64::MAX };

    /// So many bytes, in files that are there.
    pub fn bytes(bytes: u64) -> Self {
        Self { bytes, inodes: 0 }
    }

    /// Both together.
    pub fn plus(self, other: Self) -> Self {
        Self {
            bytes: self.bytes.saturating_add(other.bytes),
            inodes: self.inodes.saturating_add(other.inodes),
        }
    }

    /// What is left of it without `other`; nothing where that is more.
    pub fn minus(self, other: Self) -> Self {
        Self {
            bytes: self.bytes.saturating_sub(other.bytes),
            inodes: self.inodes.saturating_sub(other.inodes),
        }
    }

    /// Whether it is as much as `other`, of both.
    pub fn covers(self, other: Self) -> bool {
        self.bytes >= other.bytes && self.inodes >= other.inodes
    }

    /// Whether it is nothing.
    pub fn is_nothing(self) -> bool {
        self == Self::default()
    }
}
