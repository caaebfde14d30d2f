//! Descriptors: how one piece of content names another.

#![cfg_attr(not(test), deny(clippy::indexing_slicing))]

use std::collections::BTreeMap;
use std::fmt;

use base64::Engine as _;
use bytes::Bytes;
use serde::de::{IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Serialize};

use crate::oci::digest::Digest;
use crate::oci::platform::Platform;

/// Type, digest and size of some content elsewhere. Source: image-spec v1.1 descriptor.md.
///
/// `urls` of the specification are never read: foreign URLs leaked credentials (CVE-2020-15157).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// What the content claims to be.
    #[serde(default)]
    pub media_type: String,
    /// Digest of the content's bytes.
    pub digest: Digest,
    /// Bytes of content.
    #[serde(deserialize_with = "size")]
    pub size: u64,
    /// The artifact's type, in an index that lists artifacts.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "not_empty")]
    pub artifact_type: Option<String>,
    /// What the content runs on, in an index.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "platform")]
    pub platform: Option<Platform>,
    /// Free keys; artifact families keep file names here.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "annotations")]
    pub annotations: BTreeMap<String, String>,
    /// The content itself, as the descriptor carries it; nothing says yet that it is what the digest names
    /// (descriptor.md#embedded-content).
    #[serde(default, skip_serializing, deserialize_with = "data")]
    pub data: Option<Bytes>,
}

impl Descriptor {
    /// The content that the descriptor carries, if it is what the digest names.
    pub fn embedded(&self) -> Option<&Bytes> {
        self.data.as_ref().filter(|data| data.len() as u64 == self.size && self.digest.matches(data))
    }

    /// The same content, without annotations and data: what there is to know once it has a name.
    pub fn bare(&self) -> Self {
        Self {
            media_type: self.media_type.clone(),
            digest: self.digest.clone(),
            size: self.size,
            artifact_type: None,
            platform: None,
            annotations: BTreeMap::new(),
            data: None,
        }
    }

    /// The value of annotation `key`.
    pub fn annotation(&self, key: &str) -> Option<&str> {
        self.annotations.get(key).map(String::as_str)
    }
}

/// A size is a non-negative `int64` (descriptor.md#properties).
fn size<'de, D: serde::Deserializer<'de>>(input: D) -> Result<u64, D::Error> {
    let size = i64::deserialize(input)?;
    u64::try_from(size).map_err(|_| serde::de::Error::custom(format!("negative size: {size}")))
}

/// An empty text says nothing.
fn not_empty<'de, D: serde::Deserializer<'de>>(input: D) -> Result<Option<String>, D::Error> {
    Ok(Option::<String>::deserialize(input)?.filter(|text| !text.is_empty()))
}

/// A platform of empty words says nothing: Go writes it for a zero value.
fn platform<'de, D: serde::Deserializer<'de>>(input: D) -> Result<Option<Platform>, D::Error> {
    let found = Option::<Platform>::deserialize(input)?;
    Ok(found.filter(|platform| !platform.os.is_empty() || !platform.architecture.is_empty()))
}

/// What is no base64 counts as none: the content is then asked for.
fn data<'de, D: serde::Deserializer<'de>>(input: D) -> Result<Option<Bytes>, D::Error> {
    input.deserialize_any(Data)
}

/// Reads a text, and passes over anything else without keeping it.
struct Data;

impl<'de> Visitor<'de> for Data {
    type Value = Option<Bytes>;

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("base64")
    }

    fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
        Ok(base64::engine::general_purpose::STANDARD.decode(text).ok().map(Bytes::from))
    }

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
        while list.next_element::<IgnoredAny>()?.is_some() {}
        Ok(None)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(None)
    }
}

/// `null` counts as none: Go writes it for an empty map.
pub(super) fn annotations<'de, D>(input: D) -> Result<BTreeMap<String, String>, D::Error>
where
    D: serde::Deserializer<'de>,
{
    Ok(Option::<BTreeMap<String, String>>::deserialize(input)?.unwrap_or_default())
}

/// The child of an index that runs best on `self`, by position.
///
/// Attestations are no candidates. Of equally good children the first wins.
pub fn choose<'a>(platform: &Platform, children: impl IntoIterator<Item = &'a Descriptor>) -> Option<usize> {
    let mut best: Option<(u32, usize)> = None;
    for (position, child) in children.into_iter().enumerate() {
        let Some(offered) = child.platform.as_ref().filter(|_| !is_attestation(child)) else { continue };
        let Some(rank) = offered.rank_on(platform) else { continue };
        if best.is_none_or(|(highest, _)| rank > highest) {
            best = Some((rank, position));
        }
    }
    best.map(|(_, position)| position)
}

/// Whether an index's child is no content but a statement about another child (BuildKit's provenance).
pub fn is_attestation(child: &Descriptor) -> bool {
    let is_unknown = child.platform.as_ref().is_some_and(|platform| platform.os == "unknown");
    child.annotation("vnd.docker.reference.type") == Some("attestation-manifest")
        || (is_unknown && child.artifact_type.is_none())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regression_data_counts_when_it_is_what_the_digest_names() {
        let digest = Digest::sha256(b"{}");
        let parse = |size: u64, data: &str| {
            let text = format!(r#"{{"mediaType":"x","digest":"{digest}","size":{size},"data":{data}}}"#);
            serde_json::from_str::<Descriptor>(&text).expect(&text)
        };
        assert_eq!(parse(2, r#""e30=""#).embedded().map(|data| &data[..]), Some(&b"{}"[..]));
        for (size, data) in [
            (3, r#""e30=""#),
            (2, r#""e31=""#),
            (2, r#""{}""#),
            (2, r#""""#),
            (2, "null"),
            (2, "{}"),
            (2, "[1]"),
            (2, "7"),
        ] {
            assert_eq!(parse(size, data).embedded(), None, "{size} {data}");
        }
    }

    #[test]
    fn t18_a_size_is_a_non_negative_int64() {
        let parse = |size: &str| {
            let digest = "0".repeat(64);
            serde_json::from_str::<Descriptor>(&format!(
                r#"{{"mediaType":"x","digest":"sha256:{digest}","size":{size}}}"#
            ))
        };
        for bad in ["-1", "9223372036854775808", "1e3", "1.5", "\"1\"", "null"] {
            assert!(parse(bad).is_err(), "{bad} was accepted");
        }
        assert_eq!(parse("9223372036854775807").map(|found| found.size).ok(), Some(i64::MAX as u64));
    }
}
