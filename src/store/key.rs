//! The names of entries: hashes of everything that decides what an entry holds.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::layer::format::Profile;
use crate::layout::artifact::LAYOUT_VERSION;
use crate::layout::options::Options;
use crate::oci::digest::Digest;

/// Changes whenever the same archive would be unpacked differently than before.
const UNPACK_VERSION: u32 = 2;

/// The name of a layer or tree.
///
/// *Invariant:* 64 lower-case hex digits.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String")]
pub struct Key(String);

/// The name of a layer.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct LayerKey(Key);

/// The name of a tree.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TreeKey(Key);

/// Something that has a record.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Entry {
    /// A blob as a file.
    Blob(Digest),
    /// An unpacked archive.
    Layer(LayerKey),
    /// A tree.
    Tree(TreeKey),
}

/// A short name of a tree, or of content, as a file and unpacked: a hash, so that very many need little memory. Of two that have
/// the same, one is taken for in use because of the other is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Name(u64);

impl Name {
    /// Bytes of memory that something takes which is held.
    pub const BYTES: u64 = 32;

    /// A tree, whether it is here already or not.
    pub fn tree(key: &TreeKey) -> Self {
        Self(xxhash_rust::xxh3::xxh3_64(key.as_str().as_bytes()))
    }

    /// A layer. It is held by the name of its content; this one tells it from others of the same content.
    pub(in crate::store) fn layer(key: &LayerKey) -> Self {
        Self(xxhash_rust::xxh3::xxh3_64(key.as_str().as_bytes()))
    }

    /// Whether it is in the part with this number, of so many equal parts of all names.
    pub(in crate::store) fn is_in_part(self, number: u64, of: u64) -> bool {
        self.0 % of.max(1) == number
    }

    /// A blob, and the layers that are unpacked from it, whether they are here already or not.
    pub fn content(digest: &Digest) -> Self {
        Self(xxhash_rust::xxh3::xxh3_64(digest.hex().as_bytes()))
    }
}

impl Key {
    fn of(text: &str) -> Self {
        Self(Digest::sha256(text.as_bytes()).hex().to_owned())
    }
}

impl TryFrom<String> for Key {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, &'static str> {
        let hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        if text.len() == 64 && text.bytes().all(hex) { Ok(Self(text)) } else { Err("not a key of the store") }
    }
}

impl LayerKey {
    /// The key of the blob `digest`, unpacked in this way.
    pub fn new(digest: &Digest, profile: Profile) -> Self {
        Self(Key::of(&format!("{digest} {profile:?} {UNPACK_VERSION}")))
    }

    /// The key whose text is `text`.
    pub fn parse(text: &str) -> Option<Self> {
        Key::try_from(text.to_owned()).ok().map(Self)
    }

    /// The key as text.
    pub fn as_str(&self) -> &str {
        &self.0.0
    }
}

impl TreeKey {
    /// The key of what `manifest` shows when laid out with these attributes, and with checked diff IDs or not. A tree whose
    /// diff IDs were not checked has a key of its own.
    pub fn new(manifest: &Digest, options: &Options, readable: bool, checked: bool) -> Self {
        let checked = if checked { " diff-ids" } else { "" };
        Self(Key::of(&format!("{manifest} {LAYOUT_VERSION} {readable} {}{checked}", options.normal_form())))
    }

    /// The key whose text is `text`.
    pub fn parse(text: &str) -> Option<Self> {
        Key::try_from(text.to_owned()).ok().map(Self)
    }

    /// The key as text.
    pub fn as_str(&self) -> &str {
        &self.0.0
    }
}

impl fmt::Display for TreeKey {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.as_str())
    }
}

impl fmt::Display for LayerKey {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.as_str())
    }
}

impl Entry {
    /// The entry with this [name](Self::file_name).
    pub(in crate::store) fn parse(name: &str) -> Option<Self> {
        let (kind, rest) = name.split_once('-')?;
        match kind {
            "blob" => {
                let (algorithm, hex) = rest.split_once('-')?;
                format!("{algorithm}:{hex}").parse().ok().map(Self::Blob)
            }
            "layer" => LayerKey::parse(rest).map(Self::Layer),
            "tree" => TreeKey::parse(rest).map(Self::Tree),
            _ => None,
        }
    }

    /// Where its record is, in the store's directory.
    pub(in crate::store) fn record(&self) -> String {
        match self {
            Self::Blob(digest) => format!("blobs/{}/{}.json", digest.algorithm().as_str(), digest.hex()),
            Self::Layer(key) => format!("layers/{key}.json"),
            Self::Tree(key) => format!("images/{key}.json"),
        }
    }

    /// A name for files about the entry that are not beside it.
    pub(in crate::store) fn file_name(&self) -> String {
        match self {
            Self::Blob(digest) => format!("blob-{}-{}", digest.algorithm().as_str(), digest.hex()),
            Self::Layer(key) => format!("layer-{key}"),
            Self::Tree(key) => format!("tree-{key}"),
        }
    }
}
