//! Names of entries: bytes, checked once.

#![cfg_attr(not(test), deny(clippy::indexing_slicing))]

use std::fmt;

use serde::{Deserialize, Serialize};

/// A path relative to the root of a tree, without `.`, `..`, empty parts or NUL; empty is the root itself.
///
/// Names need not be UTF-8. They are shown escaped: a name must not forge lines in a log.
///
/// `Name` has its bytes, and `Name<&[u8]>` refers to them. On disk both are the same.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Name<B = Vec<u8>>(B);

/// Bytes of one part: `NAME_MAX` of every file system ocivol runs on.
pub const PART_LIMIT: usize = 255;
/// Bytes of a name; leaves room below `PATH_MAX` (4096) for where the tree is mounted.
pub const LIMIT: usize = 3072;
/// Directories above a file.
pub const DEPTH_LIMIT: usize = 128;
/// Where AUFS kept files that have several names in a layer: these are hard links to `.wh..wh.plnk/<number>`. Docker's
/// images of that time have it, and show nothing of it.
pub const AUFS_LINKS: &[u8] = b".wh..wh.plnk";
/// Characters of a name that a message shows.
const SHOWN: usize = 160;

impl Name {
    /// Reads a name as an archive has it. A leading `/` or `./` and trailing slashes are common and mean nothing:
    /// names are relative to the root.
    ///
    /// # Errors
    /// The rule that the name breaks, in words.
    pub fn parse(raw: &[u8]) -> Result<Self, &'static str> {
        let mut name = Vec::with_capacity(raw.len());
        let mut depth = 0;
        for part in raw.split(|byte| *byte == b'/') {
            match part {
                b"" | b"." => continue,
                b".." => return Err("its name contains '..'"),
                _ if part.len() > PART_LIMIT => return Err("a part of its name is longer than 255 bytes"),
                _ if part.contains(&0) => return Err("its name contains NUL"),
                _ => {}
            }
            if !name.is_empty() {
                name.push(b'/');
            }
            name.extend_from_slice(part);
            depth += 1;
        }
        if name.len() > LIMIT {
            return Err("its name is longer than 3072 bytes");
        }
        if depth > DEPTH_LIMIT {
            return Err("it is deeper than 128 directories");
        }
        Ok(Self(name))
    }

    /// `self` below `directory`, which is another name's part before a slash, or `""`.
    pub fn below(directory: &[u8], part: &[u8]) -> Self {
        let mut name = Vec::with_capacity(directory.len() + 1 + part.len());
        name.extend_from_slice(directory);
        if !directory.is_empty() && !part.is_empty() {
            name.push(b'/');
        }
        name.extend_from_slice(part);
        Self(name)
    }

    /// Goes down to `part` of the directory that it names. Returns what [`Self::leave`] needs to come back.
    pub fn enter(&mut self, part: &[u8]) -> usize {
        let above = self.0.len();
        if above > 0 {
            self.0.push(b'/');
        }
        self.0.extend_from_slice(part);
        above
    }

    /// Goes back to the directory from which `above` came.
    pub fn leave(&mut self, above: usize) {
        self.0.truncate(above);
    }
}

impl<B: AsRef<[u8]>> Name<B> {
    /// The bytes.
    pub fn as_bytes(&self) -> &[u8] {
        self.0.as_ref()
    }

    /// Whether it names the root.
    pub fn is_root(&self) -> bool {
        self.as_bytes().is_empty()
    }

    /// The name's parts, outermost first.
    pub fn parts(&self) -> impl Iterator<Item = &[u8]> {
        self.as_bytes().split(|byte| *byte == b'/').filter(|part| !part.is_empty())
    }

    /// The directory it is in, and its last part; `None` for the root.
    pub fn split(&self) -> Option<(&[u8], &[u8])> {
        split(self.as_bytes())
    }

    /// Whether it is `directory` or something in it.
    pub fn is_within(&self, directory: &Name) -> bool {
        match self.as_bytes().strip_prefix(directory.as_bytes()) {
            Some(rest) => directory.is_root() || rest.is_empty() || rest.starts_with(b"/"),
            None => false,
        }
    }

    /// The same, with the bytes of this one.
    pub fn borrowed(&self) -> Name<&[u8]> {
        Name(self.as_bytes())
    }

    /// The same, with bytes of its own.
    pub fn to_owned(&self) -> Name {
        Name(self.as_bytes().to_vec())
    }
}

impl<'a> Name<&'a [u8]> {
    /// The bytes, for as long as they are there.
    pub fn bytes(self) -> &'a [u8] {
        self.0
    }

    /// The name without its first `count` parts; `None` when nothing is left.
    pub fn strip(self, count: usize) -> Option<Self> {
        let mut rest = self.0;
        for _ in 0..count {
            let slash = rest.iter().position(|byte| *byte == b'/')?;
            rest = rest.get(slash + 1..)?;
        }
        (!rest.is_empty()).then_some(Self(rest))
    }
}

/// As [`Name::split`].
pub fn split(name: &[u8]) -> Option<(&[u8], &[u8])> {
    if name.is_empty() {
        return None;
    }
    Some(match name.iter().rposition(|byte| *byte == b'/') {
        Some(slash) => {
            let (directory, part) = name.split_at(slash);
            (directory, part.get(1..).unwrap_or_default())
        }
        None => (b"", name),
    })
}

impl<B: AsRef<[u8]>> fmt::Display for Name<B> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&shown(self.as_bytes()))
    }
}

impl<B: AsRef<[u8]>> fmt::Debug for Name<B> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "\"{}\"", shown(self.as_bytes()))
    }
}

/// Bytes of an archive for a message: escaped where they are no plain text, and not long.
pub fn shown(bytes: &[u8]) -> String {
    let mut text = String::new();
    let start = bytes.get(..4 * SHOWN).unwrap_or(bytes);
    for chunk in start.utf8_chunks() {
        text.extend(chunk.valid().chars().flat_map(char::escape_debug));
        for byte in chunk.invalid() {
            text.push_str(&format!("\\x{byte:02x}"));
        }
    }
    match text.char_indices().nth(SHOWN) {
        Some((end, _)) => text[..end].to_owned() + "…",
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn t01_t02_t49_names_are_one_safe_path() {
        let parse = |raw: &[u8]| Name::parse(raw).map(|name| name.as_bytes().to_vec());
        let plain: [(&[u8], &[u8]); 8] = [
            (b"a", b"a"),
            (b"./a//b/", b"a/b"),
            (b"/etc/probe", b"etc/probe"),
            (b"//etc/probe", b"etc/probe"),
            (b".", b""),
            (b"./", b""),
            (b"..a/b..", b"..a/b.."),
            (b"\xff\n", b"\xff\n"),
        ];
        for (raw, expected) in plain {
            assert_eq!(parse(raw).as_deref(), Ok(expected), "{}", shown(raw));
        }
        let long = vec![b'a'; 256];
        let deep = b"d/".repeat(200);
        let far = b"abcdefgh/".repeat(600);
        let bad: [&[u8]; 8] =
            [b"..", b"../../probe", b"a/../../probe", b"./..//probe", b"a\0b", &long, &deep, &far];
        for raw in bad {
            assert!(parse(raw).is_err(), "{} was accepted", shown(raw));
        }
        let widest = vec![b'a'; 255];
        assert!(parse(&widest).is_ok());
    }

    #[test]
    fn parts_and_prefixes() {
        let name = Name::parse(b"a/b/c").expect("safe");
        assert_eq!(name.split(), Some((&b"a/b"[..], &b"c"[..])));
        let strip = |count| name.borrowed().strip(count).map(Name::bytes);
        assert_eq!((strip(1), strip(3), strip(4)), (Some(&b"b/c"[..]), None, None));
        assert_eq!(Name::below(b"a/b", b"c"), name);
        let mut way = Name::default();
        for (part, at) in [(b"a", 0), (b"b", 1), (b"c", 3)] {
            assert_eq!(way.enter(part), at);
        }
        assert_eq!(way, name);
        way.leave(1);
        assert_eq!(way.as_bytes(), b"a");
        assert_eq!(Name::parse(b"/").expect("root").split(), None);
    }

    #[test]
    fn t49_t57_names_cannot_forge_lines() {
        assert_eq!(shown(b"a\n\x1b[31m\xff"), "a\\n\\u{1b}[31m\\xff");
        assert!(shown(&[b'x'; 5000]).len() < 200);
    }
}
