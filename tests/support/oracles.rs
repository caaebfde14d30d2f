//! Tar archives as ocivol reads them, and as the crates `tar` and `tar-core` do.
//!
//! The crates take much that ocivol refuses. Of what ocivol accepts they read a few things in another way than GNU tar, Python
//! and Go, whom ocivol follows; [`Reading::odd`] names those. All else has one reading, or [`difference`] says so.

use std::io::Read as _;

use ocivol::oci::digest::Digest;
use ocivol::unpack::tar::{Archive, Type};
use tar_core::PaxExtensions;
use tar_core::parse::{Limits, ParseEvent, Parser};

/// An entry of an archive.
#[derive(Debug, PartialEq, Eq)]
pub struct Entry {
    pub name: Vec<u8>,
    /// `None` for what ocivol knows nothing of.
    pub kind: Option<Type>,
    /// Where a link leads; empty for all else.
    pub link: Vec<u8>,
    pub mode: u32,
    pub size: u64,
    /// The digest of its content.
    pub content: Digest,
}

/// What a crate makes of an archive.
#[derive(Debug, Default)]
pub struct Reading {
    pub entries: Vec<Entry>,
    /// What is in it that the crate is known to read in its own way.
    pub odd: Option<&'static str>,
}

/// Why an archive is refused.
pub type Refusal = String;

type Reader = fn(&[u8]) -> Result<Reading, Refusal>;

/// The crates, by name.
const CRATES: [(&str, Reader); 2] = [("tar", by_tar), ("tar-core", by_tar_core)];

/// The first difference between ocivol's reading of an archive and that of a crate, where both accept it and nothing in it is
/// known to be read in different ways.
pub fn difference(bytes: &[u8]) -> Option<String> {
    let ours = by_ocivol(bytes).ok()?;
    CRATES.iter().find_map(|(name, read)| match read(bytes) {
        Ok(Reading { entries, odd: None }) if entries != ours => {
            Some(format!("ocivol: {ours:?}\n{name}: {entries:?}"))
        }
        _ => None,
    })
}

/// The entries as ocivol reads them. Of a file with holes, what is stored.
pub fn by_ocivol(bytes: &[u8]) -> Result<Vec<Entry>, Refusal> {
    let mut archive = Archive::new(bytes);
    let mut entries = Vec::new();
    while let Some(header) = archive.next_entry().map_err(|error| error.to_string())? {
        let content = stored(&mut archive)?;
        entries.push(entry(header.name, Some(header.kind), header.link, header.mode.into(), &content));
    }
    Ok(entries)
}

/// What is stored of the entry that `archive` is at.
pub fn stored(archive: &mut Archive<&[u8]>) -> Result<Vec<u8>, Refusal> {
    let mut content = Vec::new();
    loop {
        let piece = archive.content().map_err(|error| error.to_string())?;
        if piece.is_empty() {
            return Ok(content);
        }
        content.extend_from_slice(piece);
        let length = piece.len();
        archive.consume(length);
    }
}

/// The entries as the crate `tar` reads them.
pub fn by_tar(bytes: &[u8]) -> Result<Reading, Refusal> {
    let said = |error: std::io::Error| error.to_string();
    let mut reading = Reading::default();
    for found in tar::Archive::new(bytes).entries().map_err(said)? {
        let mut found = found.map_err(said)?;
        if found.header().entry_type().is_pax_global_extensions() {
            continue;
        }
        // Only the holes of an old sparse file come to more than the archive, and they may be of any size.
        let mut content = Vec::new();
        found.by_ref().take(bytes.len() as u64).read_to_end(&mut content).map_err(said)?;
        let name = found.path_bytes().into_owned();
        let link = found.link_name_bytes().unwrap_or_default().into_owned();
        let block = *found.header().as_bytes();
        let kind = kind(&block, &name);
        let mode = found.header().mode().map_err(said)?;
        let mut keys = Vec::new();
        for record in found.pax_extensions().map_err(said)?.into_iter().flatten() {
            match record {
                Ok(record) => keys.push(record.key_bytes().to_vec()),
                Err(_) => reading.odd = Some("a record with a line break"),
            }
        }
        keys.sort();
        if keys.windows(2).any(|pair| pair[0] == pair[1]) {
            // Of which it takes the first.
            reading.odd = Some("two records of a key");
        }
        reading.add(&block, &keys, entry(name, kind, link, mode, &content));
    }
    Ok(reading)
}

/// The entries as the crate `tar-core` reads them.
pub fn by_tar_core(bytes: &[u8]) -> Result<Reading, Refusal> {
    let mut parser = Parser::new(Limits::default());
    parser.set_allow_empty_path(true);
    let mut reading = Reading::default();
    let mut rest = bytes;
    loop {
        let (start, found) = match parser.parse(rest).map_err(|error| error.to_string())? {
            ParseEvent::End { .. } => return Ok(reading),
            // It would like to see the second block of zeros.
            ParseEvent::NeedData { .. } if rest.iter().all(|byte| *byte == 0) => return Ok(reading),
            ParseEvent::NeedData { .. } => return Err("it ends too early".into()),
            ParseEvent::GlobalExtensions { consumed, .. } => {
                rest = &rest[consumed..];
                continue;
            }
            ParseEvent::Entry { consumed, entry } | ParseEvent::SparseEntry { consumed, entry, .. } => {
                (consumed, entry)
            }
        };
        let size = usize::try_from(found.size).unwrap_or(usize::MAX);
        let content = rest[start..].get(..size).ok_or("it ends within an entry")?;
        let padded = start + size.next_multiple_of(512);
        rest = rest.get(padded..).unwrap_or_default();
        let records = found.pax.map(PaxExtensions::new).into_iter().flatten().flatten();
        let keys: Vec<Vec<u8>> = records.map(|record| record.key_bytes().to_vec()).collect();
        let link = found.link_target.unwrap_or_default().into_owned();
        let kind = kind(found.header.as_bytes(), &found.path);
        let entry = entry(found.path.into_owned(), kind, link, found.mode, content);
        reading.add(found.header.as_bytes(), &keys, entry);
    }
}

impl Reading {
    /// Adds an entry, and notes what both crates read in their own way. `keys` are those of its extended header.
    fn add(&mut self, block: &[u8; 512], keys: &[Vec<u8>], entry: Entry) {
        let odd = match entry.kind {
            None => {
                Some("an entry of a kind that is refused, or an extended header in the format before POSIX")
            }
            Some(kind) if kind != Type::File && entry.size > 0 => Some("content of what is no file"),
            _ if keys.iter().any(|key| key.starts_with(b"GNU.sparse.")) => Some("a sparse file"),
            _ if &block[257..263] == b"ustar\0" && &block[263..265] != b"00" => {
                Some("another version, in which the prefix counts for nothing")
            }
            _ if entry.name.contains(&0) || entry.link.contains(&0) => {
                Some("a long name with something after it")
            }
            _ => None,
        };
        self.odd = self.odd.or(odd);
        self.entries.push(entry);
    }
}

fn entry(name: Vec<u8>, kind: Option<Type>, link: Vec<u8>, mode: u32, content: &[u8]) -> Entry {
    let link = if matches!(kind, Some(Type::HardLink | Type::Symlink)) { link } else { Vec::new() };
    let (size, content) = (content.len() as u64, Digest::sha256(content));
    Entry { name, kind, link, mode: mode & 0o7777, size, content }
}

/// What the type flag in `block` says, for which the crates have names of their own.
fn kind(block: &[u8; 512], name: &[u8]) -> Option<Type> {
    match block[156] {
        0 if name.ends_with(b"/") => Some(Type::Directory),
        0 | b'0' | b'7' => Some(Type::File),
        b'1' => Some(Type::HardLink),
        b'2' => Some(Type::Symlink),
        b'3' | b'4' | b'6' => Some(Type::Special),
        b'5' => Some(Type::Directory),
        _ => None,
    }
}
