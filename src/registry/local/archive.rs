//! What lies where in a tar archive of an image layout: its names are read, its content is left where it is.
//!
//! An archive is what `skopeo copy … oci-archive:`, `podman save --format oci-archive`, `docker save` and `docker buildx -o type=oci`
//! write. What is not one of the layout's names is skipped. That tools may read odd archives in different ways does no harm here, as
//! content goes by its digest. Sources: POSIX pax "ustar Interchange Format" and "pax Extended Header", GNU tar "Basic Tar Format".

#![cfg_attr(not(test), deny(clippy::indexing_slicing))]

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

/// The names of an archive. It takes as much memory as [`KEPT`] entries, however many there are.
#[derive(Debug, Default)]
pub struct Archive {
    layout: Option<Place>,
    index: Option<Place>,
    /// The first blobs, by the beginning of their names' digests.
    blobs: Vec<([u8; KEY], Place)>,
    /// Where the first entry is that is not among them; none when all are.
    rest: Option<u64>,
}

/// Where a file's content is in an archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Its first byte.
    pub start: u64,
    /// Its bytes.
    pub size: u64,
}

/// Why an archive cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum Unreadable {
    /// What is there is no archive, or is cut off.
    #[error("{0}")]
    Bad(String),
    /// The kernel's.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// An entry that is a file.
struct Entry {
    name: String,
    place: Place,
}

/// Blobs of an archive whose places are kept. Others are looked for each time.
pub const KEPT: usize = 4096;
/// Entries of an archive.
const ENTRY_LIMIT: usize = 1_000_000;
/// Hexadecimal digits of a digest that are kept: that of another blob begins with others.
const KEY: usize = 32;
const BLOCK: usize = 512;
/// Bytes of a name in an extended header: that of a blob has 141.
const NAME_LIMIT: u64 = 64 * 1024;

impl Archive {
    /// Reads the names of the archive `file`, which has `size` bytes.
    ///
    /// # Errors
    /// [`Unreadable`] when it is no tar archive, is compressed, or is cut off.
    pub fn read(file: &File, size: u64) -> Result<Self, Unreadable> {
        let mut archive = Self::default();
        let mut entries = Entries { file, size, position: 0, count: 0 };
        loop {
            let before = entries.position;
            let Some(Entry { name, place }) = entries.next()? else { return Ok(archive) };
            match (name.as_str(), key_of(&name)) {
                // As tools do that add to an archive: the last one counts.
                ("oci-layout", _) => archive.layout = Some(place),
                ("index.json", _) => archive.index = Some(place),
                (_, Some(_)) if archive.blobs.len() >= KEPT => {
                    archive.rest.get_or_insert(before);
                }
                (_, Some(key)) => archive.blobs.push((key, place)),
                _ => {}
            }
        }
    }

    /// Whether there are blobs whose places are not kept.
    pub fn has_more(&self) -> bool {
        self.rest.is_some()
    }

    /// Where `name` is, a name of image-layout.md, in the archive `file` of `size` bytes that this was read from.
    ///
    /// # Errors
    /// As [`Archive::read`].
    pub fn find(&self, file: &File, size: u64, name: &str) -> Result<Option<Place>, Unreadable> {
        match name {
            "oci-layout" => return Ok(self.layout),
            "index.json" => return Ok(self.index),
            _ => {}
        }
        let Some(key) = key_of(name) else { return Ok(None) };
        if let Some((_, place)) = self.blobs.iter().find(|(known, _)| *known == key) {
            return Ok(Some(*place));
        }
        let Some(position) = self.rest else { return Ok(None) };
        let mut entries = Entries { file, size, position, count: 0 };
        while let Some(entry) = entries.next()? {
            if entry.name == name {
                return Ok(Some(entry.place));
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
impl Archive {
    /// Blobs whose places are kept.
    pub fn kept(&self) -> usize {
        self.blobs.len()
    }
}

/// The beginning of the digest in `blobs/<algorithm>/<hex>`.
fn key_of(name: &str) -> Option<[u8; KEY]> {
    let (_, hex) = name.strip_prefix("blobs/")?.split_once('/')?;
    hex.as_bytes().get(..KEY)?.try_into().ok()
}

/// The entries of an archive, from a header on.
struct Entries<'a> {
    file: &'a File,
    size: u64,
    position: u64,
    count: usize,
}

impl Entries<'_> {
    /// The next file; `None` at the end.
    fn next(&mut self) -> Result<Option<Entry>, Unreadable> {
        let (mut long_name, mut pax) = (None, Pax::default());
        loop {
            let at = self.position;
            if at >= self.size {
                return Ok(None);
            }
            let mut block = [0; BLOCK];
            let there = usize::try_from(self.size - at).unwrap_or(BLOCK).min(BLOCK);
            self.file.read_exact_at(block.get_mut(..there).unwrap_or_default(), at)?;
            if block == [0; BLOCK] {
                return Ok(None);
            }
            if !has_its_sum(&block) || there < BLOCK {
                return Err(Unreadable::Bad(not_an_archive(&block, at)));
            }
            self.count += 1;
            if self.count > ENTRY_LIMIT {
                return Err(Unreadable::Bad(format!("has more than {ENTRY_LIMIT} entries")));
            }
            let kind = block[156];
            let bad = || Unreadable::Bad(format!("has a header that cannot be read at byte {at}"));
            let stated = number(&block[124..136]).ok_or_else(bad)?;
            let size = match kind {
                // What is no file has no content, whatever its header says of a size.
                b'1'..=b'6' => 0,
                b'x' | b'g' | b'L' | b'K' => stated,
                _ => pax.size.unwrap_or(stated),
            };
            let start = at + BLOCK as u64;
            let end = start.checked_add(size).filter(|end| *end <= self.size);
            let Some(end) = end else {
                let have = self.size;
                return Err(Unreadable::Bad(format!(
                    "is cut off: what begins at byte {start} has {size} bytes, and the archive ends at byte {have}"
                )));
            };
            self.position = end.next_multiple_of(BLOCK as u64);
            match kind {
                b'L' => long_name = Some(self.text(start, size)?),
                b'x' => pax = Pax::of(&self.text(start, size)?).ok_or_else(bad)?,
                b'g' | b'K' => {}
                b'0' | 0 | b'7' => {
                    let name = pax.path.take().or(long_name.take()).unwrap_or_else(|| name_of(&block));
                    let name = String::from_utf8_lossy(&name).trim_start_matches("./").to_owned();
                    return Ok(Some(Entry { name, place: Place { start, size } }));
                }
                _ => (long_name, pax) = (None, Pax::default()),
            }
        }
    }

    /// An extended header. One that is too long for any name of a layout is not read.
    fn text(&self, start: u64, size: u64) -> Result<Vec<u8>, Unreadable> {
        if size > NAME_LIMIT {
            return Err(Unreadable::Bad(format!(
                "has an extended header of {size} bytes, and {NAME_LIMIT} are read"
            )));
        }
        let mut text = vec![0; usize::try_from(size).unwrap_or_default()];
        self.file.read_exact_at(&mut text, start)?;
        Ok(text.into_iter().take_while(|byte| *byte != 0).collect())
    }
}

/// What of a pax extended header is of use here.
#[derive(Default)]
struct Pax {
    path: Option<Vec<u8>>,
    size: Option<u64>,
}

impl Pax {
    /// Records are `<length> <key>=<value>\n`.
    fn of(mut text: &[u8]) -> Option<Self> {
        let mut found = Self::default();
        while !text.is_empty() {
            let space = text.iter().position(|byte| *byte == b' ')?;
            let length: usize = std::str::from_utf8(text.get(..space)?).ok()?.parse().ok()?;
            let record = text.get(space + 1..length)?.strip_suffix(b"\n")?;
            let equals = record.iter().position(|byte| *byte == b'=')?;
            let value = record.get(equals + 1..)?;
            match record.get(..equals)? {
                b"path" => found.path = Some(value.to_vec()),
                b"size" => found.size = Some(std::str::from_utf8(value).ok()?.parse().ok()?),
                _ => {}
            }
            text = text.get(length..)?;
        }
        Some(found)
    }
}

/// The name in a header's own fields.
fn name_of(block: &[u8; BLOCK]) -> Vec<u8> {
    let text = |field: &[u8]| -> Vec<u8> { field.iter().copied().take_while(|byte| *byte != 0).collect() };
    let name = text(&block[..100]);
    let is_posix = &block[257..263] == b"ustar\0";
    match text(&block[345..500]) {
        mut prefix if is_posix && !prefix.is_empty() => {
            prefix.push(b'/');
            prefix.extend(name);
            prefix
        }
        _ => name,
    }
}

/// Octal digits, or GNU tar's big-endian bytes for what is larger.
fn number(field: &[u8]) -> Option<u64> {
    if let Some((0x80, rest)) = field.split_first() {
        return rest.iter().try_fold(0_u64, |number, byte| Some(number.checked_mul(256)? | u64::from(*byte)));
    }
    let digits: &[u8] = field.trim_ascii_start();
    let end = digits.iter().position(|byte| matches!(byte, 0 | b' ')).unwrap_or(digits.len());
    digits.get(..end)?.iter().try_fold(0_u64, |number, digit| match digit {
        b'0'..=b'7' => Some(number.checked_mul(8)? + u64::from(digit - b'0')),
        _ => None,
    })
}

/// Whether the sum of a header's bytes is what it says, with spaces where it says so.
fn has_its_sum(block: &[u8; BLOCK]) -> bool {
    let stated = number(&block[148..156]);
    let sum = block
        .iter()
        .enumerate()
        .map(|(at, byte)| if (148..156).contains(&at) { 32 } else { u64::from(*byte) });
    stated == Some(sum.sum())
}

fn not_an_archive(block: &[u8; BLOCK], at: u64) -> String {
    let compression = match block {
        [0x1f, 0x8b, ..] => "gzip",
        [0x28, 0xb5, 0x2f, 0xfd, ..] => "zstd",
        [0xfd, b'7', b'z', b'X', b'Z', ..] => "xz",
        [b'B', b'Z', b'h', ..] => "bzip2",
        _ => "",
    };
    match at {
        0 if !compression.is_empty() => {
            format!(
                "is compressed with {compression}; decompress it first: the blobs in it are compressed already"
            )
        }
        0 => "is no tar archive".to_owned(),
        _ => format!("is cut off, or no tar archive: there is no header at byte {at}"),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;
    use crate::demo::tarball::{FILE, Header, SYMLINK, Tarball};

    fn read(bytes: &[u8]) -> (File, u64, Result<Archive, Unreadable>) {
        let mut file = tempfile::tempfile().expect("a file");
        file.write_all(bytes).expect("written");
        let size = bytes.len() as u64;
        let archive = Archive::read(&file, size);
        (file, size, archive)
    }

    fn content(bytes: &[u8], name: &str) -> Option<Vec<u8>> {
        let (_, _, archive) = read(bytes);
        let (file, size, _) = read(bytes);
        let place = archive.expect("an archive").find(&file, size, name).expect("readable")?;
        let start = usize::try_from(place.start).expect("small");
        bytes.get(start..start + usize::try_from(place.size).expect("small")).map(<[u8]>::to_vec)
    }

    #[test]
    fn names_of_all_kinds_of_headers_are_read() {
        let long = format!("blobs/sha512/{}", "ab".repeat(64));
        // A name of 141 bytes has an extended header.
        let mut gnu = Tarball::new();
        let mut header = Header { size: long.len() as u64 + 1, ..Header::new("././@LongLink", b'L') };
        gnu = gnu.entry(&header, format!("{long}\0").as_bytes());
        header = Header { size: 3, ..Header::new("cut", FILE) };
        gnu = gnu.entry(&header, b"gnu");
        assert_eq!(content(&gnu.finish(), &long).as_deref(), Some(b"gnu".as_slice()));
        let pax = Tarball::new().pax(&[("comment", b"x=y"), ("path", long.as_bytes())]);
        let pax = pax.file("cut", b"pax").finish();
        assert_eq!(content(&pax, &long).as_deref(), Some(b"pax".as_slice()));
        let sized = Tarball::new().pax(&[("size", b"4")]);
        let sized = sized.entry(&Header { size: 0, ..Header::new("index.json", FILE) }, b"four").finish();
        assert_eq!(content(&sized, "index.json").as_deref(), Some(b"four".as_slice()));
    }

    #[test]
    fn what_is_no_file_is_skipped_and_the_last_index_counts() {
        let tar = Tarball::new()
            .directory("blobs/")
            .file("index.json", b"old")
            .symlink("oci-layout", "/etc/passwd")
            .file("other", b"x")
            .file("index.json", b"new")
            .finish();
        assert_eq!(content(&tar, "index.json").as_deref(), Some(b"new".as_slice()));
        assert_eq!(content(&tar, "oci-layout"), None);
        let header = Header { size: 1 << 30, ..Header::new("link", SYMLINK) };
        let tar = Tarball::new().entry(&header, b"").file("index.json", b"it").finish();
        assert_eq!(content(&tar, "index.json").as_deref(), Some(b"it".as_slice()));
    }

    #[test]
    fn no_bytes_are_read_beyond_a_bound_or_in_a_panic() {
        let header = Header { size: 1 << 20, ..Header::new("long", b'L') };
        let tar = Tarball::new().entry(&header, &vec![b'a'; 1 << 20]).finish();
        let (.., archive) = read(&tar);
        assert!(archive.expect_err("too long").to_string().contains("extended header of 1048576 bytes"));
        for records in ["5 path", "9999999999999999999999 a=b\n", "0 a=b\n", "7 a=b\n", "1 \n", " =\n"] {
            let header = Header { size: records.len() as u64, ..Header::new("pax", b'x') };
            let tar = Tarball::new().entry(&header, records.as_bytes()).file("index.json", b"x").finish();
            let (.., archive) = read(&tar);
            assert!(archive.is_err(), "{records:?}");
        }
        assert!(read(b"").2.expect("empty").index.is_none());
    }
}
