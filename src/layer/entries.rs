//! The entries of one layer in memory, as the index has them: a merge of many files needs most of its memory for these.

use std::io;
use std::io::Read;

use crate::layer::checksum::Checksum;
use crate::layer::index::{Entry, Writer};
use crate::layer::stream::{Damaged, ReadError};

/// Entries, each of which can be asked for by its number. They are kept as bytes and are decoded when they are asked for.
#[derive(Debug, Default)]
pub struct Entries {
    bytes: Vec<u8>,
    /// Where each begins.
    starts: Vec<u32>,
}

/// Where an entry stands: in which layer, and its number there. Two names of the tree that stand for the same
/// entry are hard links of each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct At {
    /// Number of the layer, in the order they were applied.
    pub layer: u32,
    /// Number of the entry.
    pub entry: u32,
}

impl Entries {
    /// Reads an index of `size` bytes and at most `limit` entries, which has this checksum.
    ///
    /// # Errors
    /// When it is not what was written, and those of `input`.
    pub fn read(input: impl Read, expected: Checksum, limit: usize, size: u64) -> Result<Self, ReadError> {
        let too_long = Damaged("it is too long");
        // There is room for all from the start, because what a vector holds is there twice while it grows.
        let Ok(room) = u32::try_from(size) else { return Err(too_long.into()) };
        let mut bytes = Vec::with_capacity(room as usize);
        input.take(size + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > size {
            return Err(too_long.into());
        }
        if Checksum::of(&bytes) != expected {
            return Err(Damaged("its checksum is wrong").into());
        }
        Ok(Self::parse(bytes, limit)?)
    }

    /// These entries.
    ///
    /// # Errors
    /// None, as long as there is memory.
    pub fn of(entries: &[Entry]) -> io::Result<Self> {
        let mut bytes = Vec::new();
        let mut writer = Writer::new(&mut bytes);
        entries.iter().try_for_each(|entry| writer.add(entry))?;
        writer.finish()?;
        Self::parse(bytes, entries.len()).map_err(io::Error::other)
    }

    /// Bytes of memory that they take.
    pub fn memory(&self) -> u64 {
        (self.bytes.len() + self.starts.len() * size_of::<u32>()) as u64
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.starts.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.starts.is_empty()
    }

    /// The entry of this number, if there are so many.
    pub fn get(&self, number: u32) -> Option<Entry<&[u8]>> {
        let start = *self.starts.get(number as usize)?;
        let bytes = self.bytes.get(start as usize..)?;
        postcard::take_from_bytes(bytes).ok().map(|(entry, _)| entry)
    }

    /// All, in the order of the archive, with their numbers.
    pub fn iter(&self) -> impl Iterator<Item = (u32, Entry<&[u8]>)> {
        (0..).map_while(|number| Some((number, self.get(number)?)))
    }

    /// Every entry is decoded once: one that was can be decoded again.
    fn parse(bytes: Vec<u8>, limit: usize) -> Result<Self, Damaged> {
        let mut starts = Vec::with_capacity(limit.min(bytes.len()));
        let mut start = 0;
        while let Some(rest @ [_, ..]) = bytes.get(start..) {
            let decoded = postcard::take_from_bytes::<Entry<&[u8]>>(rest);
            let (_, after) = decoded.map_err(|_| Damaged("it cannot be decoded"))?;
            if starts.len() == limit {
                return Err(Damaged("it is too long"));
            }
            starts.push(u32::try_from(start).map_err(|_| Damaged("it is too long"))?);
            start = bytes.len() - after.len();
        }
        Ok(Self { bytes, starts })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layer::index::{ENTRY_LIMIT, EntryKind, EntryMetadata, Place, Reader};
    use crate::layer::name::Name;

    fn entries() -> Vec<Entry> {
        let name = |text: &str| Name::parse(text.as_bytes()).expect("safe");
        let xattrs = vec![(b"user.a".to_vec(), b"\0\xff".to_vec())];
        let metadata = EntryMetadata { mode: 0o640, uid: 1, gid: 2, mtime: -5, nanos: 7, xattrs };
        let file = EntryKind::File { size: 1 << 40, checksum: Checksum::of(b"x"), place: Place::Named };
        let link = EntryKind::Symlink { target: b"\xff/..".to_vec(), place: Place::Shadowed };
        let kinds = [file, link, EntryKind::HardLink { target: name("a/0") }, EntryKind::Whiteout];
        let entry =
            |(number, kind)| Entry { name: name(&format!("a/{number}")), kind, metadata: metadata.clone() };
        kinds.into_iter().enumerate().map(entry).collect()
    }

    fn written(entries: &[Entry]) -> (Vec<u8>, Checksum) {
        let mut bytes = Vec::new();
        let mut writer = Writer::new(&mut bytes);
        entries.iter().for_each(|entry| writer.add(entry).expect("memory"));
        let checksum = writer.finish().expect("memory");
        (bytes, checksum)
    }

    #[test]
    fn they_are_what_was_written() {
        let entries = entries();
        let (bytes, checksum) = written(&entries);
        let size = bytes.len() as u64;
        let read = Entries::read(bytes.as_slice(), checksum, ENTRY_LIMIT, size).expect("sound");
        assert_eq!(read.len(), entries.len());
        assert!(read.get(4).is_none());
        let kept = Entries::of(&entries).expect("memory");
        for read in [read, kept] {
            let again: Vec<u8> = {
                let mut bytes = Vec::new();
                for (number, entry) in read.iter() {
                    assert_eq!(entry.name.as_bytes(), entries[number as usize].name.as_bytes());
                    assert_eq!(entry.metadata.to_owned(), entries[number as usize].metadata);
                    bytes = postcard::to_extend(&entry, bytes).expect("memory");
                }
                bytes
            };
            // Both kinds of entries are the same on disk.
            assert_eq!(again, bytes);
        }
        let one_by_one: Vec<Entry> =
            Reader::new(bytes.as_slice(), checksum, ENTRY_LIMIT).collect::<Result<_, _>>().expect("sound");
        assert_eq!(one_by_one, entries);
    }

    #[test]
    fn damage_is_seen() {
        let (bytes, checksum) = written(&entries());
        let size = bytes.len() as u64;
        let read = |bytes: &[u8], limit, size| Entries::read(bytes, checksum, limit, size);
        for position in 0..bytes.len() {
            let mut bad = bytes.clone();
            bad[position] ^= 1;
            assert!(read(&bad, ENTRY_LIMIT, size).is_err(), "byte {position}");
        }
        assert!(read(&bytes[..bytes.len() - 1], ENTRY_LIMIT, size).is_err());
        assert!(read(&bytes, 3, size).is_err(), "more entries than there may be");
        assert!(read(&bytes, 4, size - 1).is_err(), "more bytes than there may be");
        assert!(read(&bytes, 4, size).is_ok());
        // What has a checksum and cannot be decoded is of another version.
        let cut = &bytes[..bytes.len() - 1];
        assert!(Entries::read(cut, Checksum::of(cut), 4, size).is_err());
    }
}
