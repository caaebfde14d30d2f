//! What an unpacked layer has on disk, and what is known of it.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::layer::checksum::Checksum;
use crate::layer::index::Place;
use crate::layer::name::Name;

/// The directory with the files of a layer at their names.
pub const FILES: &str = "fs";
/// The directory with content that is shadowed: its name was taken, so it is under the number of its entry. Stores have it
/// under this name since the first version.
pub const SHADOWED: &str = "aside";
/// The file with every entry, in the order of the archive.
pub const INDEX: &str = "index";
/// The file, of a layer that is being unpacked, with bytes of the archive that came before their turn.
pub const EARLY: &str = "early";

/// Where the content of the entry `number` is, relative to the layer's directory.
pub fn place_of<B: AsRef<[u8]>>(name: &Name<B>, place: Place, number: u32) -> PathBuf {
    match place {
        Place::Named => Path::new(FILES).join(OsStr::from_bytes(name.as_bytes())),
        Place::Shadowed => Path::new(SHADOWED).join(number.to_string()),
    }
}

/// How the entries of an archive are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Profile {
    /// A layer of a container image: `.wh.` names are whiteouts (image-spec layer.md#whiteouts), and a parent that
    /// is a symlink resolves inside the root (`lib -> usr/lib` is common).
    Image,
    /// An archive inside an artifact: every name is a plain one, no parent may be a symlink, and everybody may read
    /// what it holds unless the volume asks otherwise.
    Archive,
}

impl Profile {
    /// Permission bits that a file of `mode` has on disk, where all trees link to it.
    pub fn mode_on_disk(self, mode: u16) -> u16 {
        match self {
            Self::Image => mode,
            Self::Archive => readable(mode, false),
        }
    }
}

/// `mode` as `chmod a+rX` changes it: everybody may read, and may search directories, and execute what somebody may
/// execute.
pub fn readable(mode: u16, directory: bool) -> u16 {
    mode | 0o444 | if directory || mode & 0o111 != 0 { 0o111 } else { 0 }
}

/// What was unpacked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Summary {
    /// Entries of the index.
    pub entries: usize,
    /// Files and symlinks, by all their names.
    pub files: usize,
    /// Bytes of all files.
    pub bytes: u64,
    /// Bytes of memory that its entries and the directories around them take in a merge, at most.
    pub memory: u64,
    /// Checksum of the index.
    pub index: Checksum,
    /// `fs` is exactly what the layer holds when there is no layer below it.
    pub regular: bool,
    /// Everybody may read all of it.
    pub readable: bool,
    /// What was left out by rule.
    pub dropped: Dropped,
}

/// What is left out by rule, because a pod's volume must not bring it: how often.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Dropped {
    /// setuid, setgid and sticky bits.
    pub mode_bits: u64,
    /// Extended attributes other than `user.*`, or that the file system cannot hold.
    pub xattrs: u64,
    /// Devices, FIFOs and sockets.
    pub devices: u64,
}

impl Dropped {
    /// Both together.
    pub fn plus(self, other: Self) -> Self {
        Self {
            mode_bits: self.mode_bits + other.mode_bits,
            xattrs: self.xattrs + other.xattrs,
            devices: self.devices + other.devices,
        }
    }

    /// In words; `None` when nothing was left out.
    pub fn in_words(self) -> Option<String> {
        let counts = [
            (self.mode_bits, "setuid, setgid or sticky bits"),
            (self.xattrs, "extended attributes"),
            (self.devices, "devices and FIFOs"),
        ];
        let some: Vec<String> = counts
            .iter()
            .filter(|(count, _)| *count > 0)
            .map(|(count, what)| format!("{what} of {count} entries"))
            .collect();
        (!some.is_empty()).then(|| some.join(", "))
    }
}
