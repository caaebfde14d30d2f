//! Reading tar: v7, ustar, PAX and GNU, one entry after the other.
//!
//! Tools disagree on archives that are broken or ambiguous, and attackers live off that (CVE-2025-62518,
//! CVE-2026-33055). So what GNU tar, Python and Go could read in different ways is refused: two names for one entry,
//! global headers that change entries, sparse files of the old GNU kind, content after the end. Where they agree, they
//! are followed: what is no file has no content, whatever its header says of a size.
//! Sources: POSIX pax "ustar Interchange Format" and "pax Extended Header", GNU tar "Basic Tar Format".

#![cfg_attr(not(test), deny(clippy::indexing_slicing))]

use std::io::BufRead;

use crate::unpack::error::Error;
use crate::unpack::pax;
use crate::unpack::pax::Extended;
use crate::unpack::sparse::{Lines, Map, Sparse};

/// An archive that is being read.
pub struct Archive<R> {
    input: R,
    /// Bytes read of the archive.
    position: u64,
    /// Bytes of content that follow.
    content: u64,
    /// Bytes after the content, up to the next block.
    padding: u64,
}

/// The header of an entry, with what extended headers say of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// Its name, as it is written.
    pub name: Vec<u8>,
    /// What it is.
    pub kind: Type,
    /// Where a link leads.
    pub link: Vec<u8>,
    /// Bytes of the file, with its holes; 0 for all but files.
    pub size: u64,
    /// Where its content belongs.
    pub map: Map,
    /// Permission bits, with setuid, setgid and sticky.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Last modification, in seconds since the epoch.
    pub mtime: i64,
    /// And nanoseconds after that second.
    pub nanos: u32,
    /// Extended attributes.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Type {
    /// A regular file.
    File,
    /// Another name of an entry before it.
    HardLink,
    /// A symbolic link.
    Symlink,
    /// A device or FIFO.
    Special,
    /// A directory.
    Directory,
}

/// Bytes of a block: everything in an archive is a multiple of it.
const BLOCK: usize = 512;
/// Bytes of one extended header, and of one long name: far above what 255-byte parts and attributes need.
pub const EXTENDED_LIMIT: u64 = 1024 * 1024;

type Block = [u8; BLOCK];

impl<R: BufRead> Archive<R> {
    /// Reads an archive from its first byte.
    pub fn new(input: R) -> Self {
        Self { input, position: 0, content: 0, padding: 0 }
    }

    /// The next entry, after skipping what is left of the content of the last one. `None` at the end, which is
    /// where the input ends, or two blocks of zeros with nothing but zeros after them.
    ///
    /// # Errors
    /// [`Error::Archive`] when what follows is no entry with exactly one meaning; else those of the input.
    pub fn next_entry(&mut self) -> Result<Option<Header>, Error> {
        self.skip(self.content)?;
        self.skip_padding(self.padding)?;
        (self.content, self.padding) = (0, 0);
        let mut extended: Option<Extended> = None;
        let (mut long_name, mut long_link) = (None, None);
        loop {
            let start = self.position;
            let Some(block) = self.block()? else {
                let pending = extended.is_some() || long_name.is_some() || long_link.is_some();
                return if pending {
                    Err(self.bad("an extended header describes nothing"))
                } else {
                    Ok(None)
                };
            };
            if block == [0; BLOCK] {
                if extended.is_some() || long_name.is_some() || long_link.is_some() {
                    return Err(self.bad("an extended header describes nothing"));
                }
                self.end()?;
                return Ok(None);
            }
            let at = |rule: &'static str| Error::archive(start, rule);
            check_sum(&block).map_err(at)?;
            for field in [100..108, 108..116, 116..124, 136..148, 329..337, 337..345] {
                number(block.get(field).unwrap_or_default()).map_err(at)?;
            }
            let size = number(&block[124..136]).map_err(at)?;
            let size = u64::try_from(size).map_err(|_| at("a negative size"))?;
            match block[156] {
                b'x' if extended.is_none() => {
                    extended = Some(pax::parse(&self.extended(size)?).map_err(at)?);
                }
                b'g' if extended.is_some() || long_name.is_some() || long_link.is_some() => {
                    return Err(at("a global header between an extended one and its entry"));
                }
                b'g' => pax::check_global(&self.extended(size)?).map_err(at)?,
                b'L' if long_name.is_none() => long_name = Some(text(self.extended(size)?)),
                b'K' if long_link.is_none() => long_link = Some(text(self.extended(size)?)),
                b'x' | b'L' | b'K' => return Err(at("two extended headers of a kind for one entry")),
                _ => {
                    let mut extended = extended.unwrap_or_default();
                    let sparse = extended.sparse.take();
                    let name = sparse.as_ref().and_then(|sparse| sparse.name.clone());
                    // The one of the entry is made up.
                    extended.path = name.or(extended.path);
                    let header = header(&block, size, extended, long_name, long_link);
                    let mut header = header.map_err(at)?;
                    self.content = header.size;
                    self.padding = padding(header.size);
                    if let Some(sparse) = sparse {
                        if header.kind != Type::File || &block[257..263] != b"ustar\0" {
                            return Err(at(
                                "a sparse file that is no file, or not in the format that has them",
                            ));
                        }
                        let sparse = sparse.finish().map_err(at)?;
                        header.size = sparse.size;
                        header.map = self.map(sparse)?;
                    }
                    return Ok(Some(header));
                }
            }
        }
    }

    /// The next piece of the entry's content, as much as is at hand; empty at its end. It stays the next until it
    /// is [consumed](Self::consume).
    ///
    /// # Errors
    /// [`Error::Archive`] when the archive ends before, else those of the input.
    pub fn content(&mut self) -> Result<&[u8], Error> {
        if self.content == 0 {
            return Ok(&[]);
        }
        let position = self.position;
        let piece = fill(&mut self.input)?;
        if piece.is_empty() {
            return Err(Error::archive(position, "it ends within an entry"));
        }
        let length = usize::try_from(self.content).unwrap_or(usize::MAX).min(piece.len());
        Ok(piece.get(..length).unwrap_or_default())
    }

    /// Goes on by `length` bytes of content.
    pub fn consume(&mut self, length: usize) {
        let length = length.min(usize::try_from(self.content).unwrap_or(usize::MAX));
        self.input.consume(length);
        self.content -= length as u64;
        self.position += length as u64;
    }

    /// The map of a file with holes, which may be in front of its content.
    fn map(&mut self, sparse: Sparse) -> Result<Map, Error> {
        let start = self.position;
        let at = |rule: &'static str| Error::archive(start, rule);
        if let Some(numbers) = sparse.map {
            return Map::new(numbers, sparse.size, self.content).map_err(at);
        }
        let (mut lines, mut read) = (Lines::default(), 0_u64);
        loop {
            let piece = self.content()?;
            if piece.is_empty() {
                return Err(at("a sparse file whose map is not sound"));
            }
            let mut taken = 0;
            let mut complete = false;
            for byte in piece {
                complete = lines.byte(*byte).map_err(at)?;
                taken += 1;
                if complete {
                    break;
                }
            }
            self.consume(taken);
            read += taken as u64;
            if complete {
                break;
            }
        }
        let rest = padding(read);
        if rest > self.content {
            return Err(at("a sparse file whose map is not sound"));
        }
        self.skip(rest)?;
        self.content -= rest;
        Map::new(lines.numbers(), sparse.size, self.content).map_err(at)
    }

    /// A header's block; `None` where the input ends, or zeros begin that are too few for a block.
    fn block(&mut self) -> Result<Option<Block>, Error> {
        let mut block = [0; BLOCK];
        let mut filled = 0;
        while let Some(left) = block.get_mut(filled..).filter(|left| !left.is_empty()) {
            let piece = fill(&mut self.input)?;
            if piece.is_empty() {
                // Nothing but zeros is what was not filled.
                let only_zeros = block.iter().all(|byte| *byte == 0);
                return if only_zeros { Ok(None) } else { Err(self.bad("it ends within a block")) };
            }
            let length = piece.len().min(left.len());
            left.iter_mut().zip(piece).for_each(|(to, from)| *to = *from);
            self.input.consume(length);
            filled += length;
            self.position += length as u64;
        }
        Ok(Some(block))
    }

    /// The content of an extended header.
    fn extended(&mut self, size: u64) -> Result<Vec<u8>, Error> {
        if size > EXTENDED_LIMIT {
            return Err(self.bad("an extended header is larger than 1 MiB"));
        }
        let size = usize::try_from(size).unwrap_or(usize::MAX);
        let mut bytes = Vec::with_capacity(size.min(4096));
        while bytes.len() < size {
            let piece = fill(&mut self.input)?;
            if piece.is_empty() {
                return Err(self.bad("it ends within an extended header"));
            }
            let length = piece.len().min(size - bytes.len());
            bytes.extend_from_slice(piece.get(..length).unwrap_or_default());
            self.input.consume(length);
            self.position += length as u64;
        }
        self.skip(padding(size as u64))?;
        Ok(bytes)
    }

    fn skip(&mut self, mut length: u64) -> Result<(), Error> {
        while length > 0 {
            let piece = fill(&mut self.input)?.len();
            if piece == 0 {
                return Err(self.bad("it ends within an entry"));
            }
            let piece = piece.min(usize::try_from(length).unwrap_or(usize::MAX));
            self.input.consume(piece);
            length -= piece as u64;
            self.position += piece as u64;
        }
        Ok(())
    }

    /// As [`Self::skip`]. An archive whose last block is not padded ends there.
    fn skip_padding(&mut self, length: u64) -> Result<(), Error> {
        match self.skip(length) {
            Err(Error::Archive { .. }) => Ok(()),
            skipped => skipped,
        }
    }

    /// After a block of zeros: nothing but zeros may follow.
    fn end(&mut self) -> Result<(), Error> {
        loop {
            let piece = fill(&mut self.input)?;
            if piece.is_empty() {
                return Ok(());
            }
            let length = piece.len();
            if piece.iter().any(|byte| *byte != 0) {
                return Err(self.bad("there is content after the end of the archive"));
            }
            self.input.consume(length);
            self.position += length as u64;
        }
    }

    fn bad(&self, rule: &'static str) -> Error {
        Error::archive(self.position, rule)
    }
}

/// What is at hand of the input. Its errors are ours, wrapped to pass through [`BufRead`].
fn fill<R: BufRead>(input: &mut R) -> Result<&[u8], Error> {
    input.fill_buf().map_err(|error| match error.downcast::<Error>() {
        Ok(own) => own,
        Err(source) => Error::Io { action: "read", name: "the archive".into(), source },
    })
}

fn padding(size: u64) -> u64 {
    let block = BLOCK as u64;
    (block - size % block) % block
}

/// A header as one entry.
fn header(
    block: &Block,
    size: u64,
    extended: Extended,
    long_name: Option<Vec<u8>>,
    long_link: Option<Vec<u8>>,
) -> Result<Header, &'static str> {
    let link = text(block[157..257].to_vec());
    let short = short_name(block)?;
    let name = one(extended.path, long_name, "two names for one entry")?.unwrap_or_else(|| short.clone());
    let link = one(extended.linkpath, long_link, "two targets for one link")?.unwrap_or(link);
    let size = extended.size.unwrap_or(size);
    let kind = match block[156] {
        // Before POSIX a directory was a file whose name ends in a slash; which name, tools do not agree.
        0 if name.ends_with(b"/") != short.ends_with(b"/") => {
            return Err("an entry that is a directory by one of its names");
        }
        0 if name.ends_with(b"/") => Type::Directory,
        0 | b'0' | b'7' => Type::File,
        b'1' => Type::HardLink,
        b'2' => Type::Symlink,
        b'3' | b'4' | b'6' => Type::Special,
        b'5' => Type::Directory,
        b'S' => {
            return Err(
                "a sparse file of the old GNU kind; make the archive with --format=posix, or without --sparse",
            );
        }
        _ => return Err("an entry of an unknown type"),
    };
    let size = match kind {
        // A directory may be the root. Nothing else has no name.
        _ if name.is_empty() && kind != Type::Directory => return Err("an entry without a name"),
        Type::File if name.ends_with(b"/") => return Err("a file whose name ends in a slash"),
        Type::File => size,
        // Whether content follows a directory that is one by its name alone, tools do not agree.
        Type::Directory if block[156] == 0 && size != 0 => {
            return Err("an entry with a size that has no content");
        }
        // What is no file has no content, as GNU tar, Go and Python read it.
        _ => 0,
    };
    let owner = |stated: Option<u32>, field: &[u8]| match stated {
        Some(stated) => Ok(stated),
        // Some tools write 32 bits with a sign: -2 is nobody, 4294967294. But -1 tells chown(2) to leave the owner.
        None => {
            let number = number(field)?;
            let unsigned = i32::try_from(number).map(i32::cast_unsigned).or_else(|_| u32::try_from(number));
            unsigned.ok().filter(|id| *id != u32::MAX).ok_or("an owner that is none")
        }
    };
    let (mtime, nanos) = match extended.mtime {
        Some(time) => time,
        None => (number(&block[136..148])?, 0),
    };
    Ok(Header {
        name,
        kind,
        link,
        size,
        map: Map::whole(size),
        // Some archives have the file type in it, as stat(2) shows it.
        mode: u16::try_from(number(&block[100..108])? & 0o7777).map_err(|_| "a mode that is none")?,
        uid: owner(extended.uid, &block[108..116])?,
        gid: owner(extended.gid, &block[116..124])?,
        mtime,
        nanos,
        xattrs: extended.xattrs,
    })
}

/// The one of two that is there.
fn one(
    first: Option<Vec<u8>>,
    second: Option<Vec<u8>>,
    rule: &'static str,
) -> Result<Option<Vec<u8>>, &'static str> {
    match (first, second) {
        (Some(first), Some(second)) if first != second => Err(rule),
        (first, second) => Ok(first.or(second)),
    }
}

/// The name in the block itself, with the prefix that POSIX has. GNU tar and star have times in that place, which
/// Python takes for a prefix all the same.
fn short_name(block: &Block) -> Result<Vec<u8>, &'static str> {
    let name = text(block[..100].to_vec());
    let mut prefix = text(block[345..500].to_vec());
    let posix = &block[257..263] == b"ustar\0";
    let star = &block[508..512] == b"tar\0" && block[476..500] != [0; 24];
    if prefix.is_empty() && !star {
        return Ok(name);
    }
    if !posix || star {
        return Err("a header with times that others take for a part of the name");
    }
    prefix.push(b'/');
    prefix.extend_from_slice(&name);
    Ok(prefix)
}

/// Up to the first NUL.
fn text(mut bytes: Vec<u8>) -> Vec<u8> {
    if let Some(end) = bytes.iter().position(|byte| *byte == 0) {
        bytes.truncate(end);
    }
    bytes
}

/// A number: octal digits, or since GNU tar 1.13 a byte for its sign (80 or ff, in hex) and binary after it.
fn number(field: &[u8]) -> Result<i64, &'static str> {
    const BAD: &str = "a number that is none";
    if let [first @ (0x80 | 0xff), rest @ ..] = field {
        let sign = if *first == 0xff { -1 } else { 0 };
        let append = |value: i64, byte: &u8| value.checked_mul(256)?.checked_add(i64::from(*byte));
        return rest.iter().try_fold(sign, append).ok_or("a number that is too large");
    }
    let end = field.iter().position(|byte| *byte == 0).unwrap_or(field.len());
    if end == 0 && field.iter().any(|byte| *byte != 0) {
        return Err(BAD);
    }
    let digits = field.get(..end).unwrap_or_default().trim_ascii();
    digits.iter().try_fold(0_i64, |value, digit| match digit {
        b'0'..=b'7' => value.checked_mul(8).map(|value| value + i64::from(digit - b'0')).ok_or(BAD),
        _ => Err(BAD),
    })
}

/// The header's checksum: the sum of its bytes, of which the checksum's own count as spaces. Old tools summed
/// signed bytes.
fn check_sum(block: &Block) -> Result<(), &'static str> {
    let stated = number(&block[148..156]).map_err(|_| "a checksum that is none")?;
    let (mut unsigned, mut signed) = (8 * i64::from(b' '), 8 * i64::from(b' '));
    for (position, byte) in block.iter().enumerate() {
        if !(148..156).contains(&position) {
            unsigned += i64::from(*byte);
            signed += i64::from(byte.cast_signed());
        }
    }
    if stated == unsigned || stated == signed { Ok(()) } else { Err("a header with a wrong checksum") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers() {
        let good: [(&[u8], i64); 9] = [
            (b"0000644\0", 0o644),
            (b"   644 \0", 0o644),
            (b"\0\0\0\0\0\0\0\0", 0),
            (b"        ", 0),
            (b"77777777", 0o77_777_777),
            (b"644\0junk", 0o644),
            (b"\x80\0\0\0\0\0\x01\x02", 0x102),
            (b"\xff\xff\xff\xff\xff\xff\xff\xfe", -2),
            (b"\x80\0\0\0\x7f\xff\xff\xff\xff\xff\xff\xff", i64::MAX),
        ];
        for (field, expected) in good {
            assert_eq!(number(field), Ok(expected), "{field:?}");
        }
        let bad: [&[u8]; 5] =
            [b"64x\0    ", b"6 4     ", b"\0  644\0\0", b"-1      ", b"\x80\x01\0\0\0\0\0\0\0\0"];
        for field in bad {
            assert!(number(field).is_err(), "{field:?}");
        }
    }
}
