//! The index of a layer: every entry in the order of the archive, with what is needed to merge and to check it.

#![cfg_attr(not(test), deny(clippy::indexing_slicing))]

use std::io;

use serde::{Deserialize, Serialize};

use crate::layer::checksum::Checksum;
use crate::layer::name::Name;
use crate::layer::stream;

/// One entry of an archive. `Entry` has its bytes, and `Entry<&[u8]>` refers to them; on disk both are the same.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry<B: AsRef<[u8]> = Vec<u8>> {
    /// Where it is. For a whiteout: what it hides; for an opaque whiteout: the directory.
    pub name: Name<B>,
    /// What it is.
    pub kind: EntryKind<B>,
    /// Owner, permissions and times; without meaning for hard links and whiteouts.
    pub metadata: EntryMetadata<B>,
}

/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum EntryKind<B: AsRef<[u8]> = Vec<u8>> {
    /// A directory.
    Directory,
    /// A regular file.
    File {
        /// Bytes.
        size: u64,
        /// Of the content.
        checksum: Checksum,
        /// Where the content is.
        place: Place,
    },
    /// A symbolic link.
    Symlink {
        /// What it says; any bytes.
        target: B,
        /// Where the link itself is.
        place: Place,
    },
    /// Another name of a file, of this layer or of a lower one.
    HardLink {
        /// The other name.
        target: Name<B>,
    },
    /// Hides a lower layer's file or directory.
    Whiteout,
    /// Hides what lower layers have in a directory.
    Opaque,
    /// A device, FIFO or socket: not created, but it takes the place of what was there.
    Dropped,
}

/// Where an unpacked layer keeps an entry's content.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Place {
    /// At `fs/<name>`.
    Named,
    /// Apart, under the number of the entry: the name was taken, or its parent is no directory of this layer.
    Shadowed,
}

/// Owner, permissions and times.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct EntryMetadata<B = Vec<u8>> {
    /// Permission bits; at most `0o777`: setuid, setgid and sticky are dropped by rule.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Last modification, in seconds since the epoch.
    pub mtime: i64,
    /// And nanoseconds after that second.
    pub nanos: u32,
    /// Extended attributes, `user.*` only.
    pub xattrs: Vec<(B, B)>,
}

impl EntryMetadata {
    /// What a directory gets that no archive describes.
    pub fn implied() -> Self {
        Self { mode: 0o755, ..Self::default() }
    }
}

impl EntryMetadata<&[u8]> {
    /// The same, with bytes of its own.
    pub fn to_owned(&self) -> EntryMetadata {
        let Self { mode, uid, gid, mtime, nanos, ref xattrs } = *self;
        let xattrs = xattrs.iter().map(|(name, value)| (name.to_vec(), value.to_vec())).collect();
        EntryMetadata { mode, uid, gid, mtime, nanos, xattrs }
    }
}

/// Writes an index, entry by entry.
pub struct Writer<W> {
    stream: stream::Writer<W>,
    entries: usize,
    memory: u64,
}

impl<W: io::Write> Writer<W> {
    /// Writes to `out`, in pieces of about 64 KiB.
    pub fn new(out: W) -> Self {
        Self { stream: stream::Writer::new(out), entries: 0, memory: 0 }
    }

    /// Entries so far: the number of the next one.
    pub fn entries(&self) -> usize {
        self.entries
    }

    /// Bytes of memory that the entries so far take in a merge, at most.
    pub fn memory(&self) -> u64 {
        self.memory
    }

    /// Adds an entry.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn add(&mut self, entry: &Entry) -> io::Result<()> {
        self.entries += 1;
        let more = if let EntryKind::HardLink { .. } = entry.kind { LINK_MEMORY } else { 0 };
        self.memory += (self.stream.add(entry)? + MEMORY + more) as u64;
        Ok(())
    }

    /// Writes what is left; returns the checksum of the whole.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn finish(self) -> io::Result<Checksum> {
        self.stream.finish()
    }
}

/// Reads an index whose checksum is known, entry by entry.
pub type Reader<R> = stream::Reader<R, Entry>;

/// Entries of one layer, and files and directories of one tree: what a node's memory and inodes bear. The largest
/// images have some hundred thousands.
pub const ENTRY_LIMIT: usize = 1_000_000;
/// Bytes of memory that an entry takes in a merge beside those that it has on disk.
const MEMORY: usize = size_of::<u32>() + NODE_MEMORY;
/// Bytes of memory that a hard link takes more than that: where its other name was copied to, if it was not linked. Two tables have an
/// entry for it, of which at most half are taken, and there is the path.
pub const LINK_MEMORY: usize = 256;
/// Bytes of memory that a file or directory takes in a merge, at most.
pub const NODE_MEMORY: usize = 80;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_and_damage_is_seen() {
        let name = |text: &str| Name::parse(text.as_bytes()).expect("safe");
        let xattrs = vec![(b"user.a".to_vec(), b"\0\xff".to_vec())];
        let metadata = EntryMetadata { mode: 0o640, uid: 1, gid: 2, mtime: -5, nanos: 7, xattrs };
        let checksum = Checksum::of(b"x");
        let kinds = [
            EntryKind::Directory,
            EntryKind::File { size: 1 << 40, checksum, place: Place::Named },
            EntryKind::Symlink { target: b"\xff/..".to_vec(), place: Place::Shadowed },
            EntryKind::HardLink { target: name("a/b") },
            EntryKind::Whiteout,
            EntryKind::Opaque,
            EntryKind::Dropped,
        ];
        let entries: Vec<Entry> = kinds
            .into_iter()
            .map(|kind| Entry { name: name("a/b/c"), kind, metadata: metadata.clone() })
            .collect();
        let mut bytes = Vec::new();
        let mut writer = Writer::new(&mut bytes);
        for entry in &entries {
            writer.add(entry).expect("memory");
        }
        assert_eq!(writer.entries(), entries.len());
        let checksum = writer.finish().expect("memory");
        let read = |bytes: &[u8]| Reader::new(bytes, checksum, ENTRY_LIMIT).collect::<Result<Vec<_>, _>>();
        assert_eq!(read(&bytes).expect("sound"), entries);
        for position in 0..bytes.len() {
            let mut bad = bytes.clone();
            bad[position] ^= 1;
            assert!(read(&bad).is_err(), "byte {position}");
        }
        assert!(read(&bytes[..bytes.len() - 1]).is_err());
    }
}
