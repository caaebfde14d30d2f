//! The index of an image layout: which manifest is meant by a tag.

#![cfg_attr(not(test), deny(clippy::indexing_slicing))]

use std::fmt;
use std::io;

use serde::Deserialize;
use serde::de::{DeserializeSeed, IgnoredAny, MapAccess, SeqAccess, Visitor};

use crate::failure::one_line;
use crate::oci::digest::Digest;
use crate::oci::reference::{ONLY, Reference};

/// A manifest that an index names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Named {
    /// Its digest.
    pub digest: Digest,
    /// What it is said to be.
    pub media_type: Option<String>,
    /// `org.opencontainers.image.ref.name`: a tag, or a whole reference.
    pub ref_name: Option<String>,
    /// `io.containerd.image.name`: a whole reference.
    pub image_name: Option<String>,
}

/// Why no manifest was chosen.
#[derive(Debug)]
pub enum NoChoice {
    /// The index cannot be read.
    Unreadable(serde_json::Error),
    /// It has no such manifest; this is what it has, in words.
    NotThere(String),
    /// Several are meant; these are their digests, in words.
    Several(String),
}

/// Names and digests that an error lists.
const LISTED: usize = 12;
/// Characters of each of them.
const LISTED_CHARACTERS: usize = 80;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Entry {
    digest: Digest,
    media_type: Option<String>,
    annotations: Option<Names>,
}

#[derive(Default, Deserialize)]
struct Names {
    #[serde(rename = "org.opencontainers.image.ref.name")]
    ref_name: Option<String>,
    #[serde(rename = "io.containerd.image.name")]
    image_name: Option<String>,
}

impl Named {
    /// What it is called, for people.
    pub fn name(&self) -> Option<&str> {
        let names = [&self.ref_name, &self.image_name];
        names.into_iter().flatten().map(String::as_str).find(|name| !name.is_empty())
    }

    /// Whether `tag` is its name, as image-layout.md writes it.
    fn is_tagged(&self, tag: &str) -> bool {
        self.ref_name.as_deref() == Some(tag)
    }

    /// Whether `tag` is that of its name as a whole reference, as containerd and podman write it.
    fn is_named_with(&self, tag: &str) -> bool {
        let names = [&self.ref_name, &self.image_name].into_iter().flatten();
        let mut references =
            names.filter(|name| name.contains('/')).filter_map(|name| name.parse::<Reference>().ok());
        references.any(|reference| reference.tag() == Some(tag))
    }
}

/// What is known of an index when it was read up to some entry: never more than a few entries.
#[derive(Default)]
struct Choice {
    listed: Vec<String>,
    count: usize,
    only: Vec<Named>,
    tagged: Vec<Named>,
    named: Vec<Named>,
}

/// Reads the `index.json` in `input`, and chooses what `target` means in it: a tag, or [`ONLY`].
///
/// # Errors
/// [`NoChoice`] when it is no index, has no such manifest, or several.
pub fn choose(input: impl io::Read, target: &str) -> Result<Named, NoChoice> {
    let tag = if target == ONLY { "latest" } else { target };
    let mut choice = Choice::default();
    each(input, &mut |named| {
        choice.count += 1;
        if choice.listed.len() < LISTED {
            let name = named.name().map_or_else(|| named.digest.to_string(), str::to_owned);
            choice.listed.push(one_line(&name.chars().take(LISTED_CHARACTERS).collect::<String>()));
        }
        if named.is_tagged(tag) {
            note(&mut choice.tagged, &named);
        } else if named.is_named_with(tag) {
            note(&mut choice.named, &named);
        }
        note(&mut choice.only, &named);
    })
    .map_err(NoChoice::Unreadable)?;
    let is_any = target == ONLY && choice.only.len() == 1;
    let found = match () {
        () if is_any => choice.only,
        () if !choice.tagged.is_empty() => choice.tagged,
        () => choice.named,
    };
    let mut all = found.into_iter();
    match (all.next(), all.next()) {
        (Some(one), None) => Ok(one),
        (Some(one), Some(two)) => Err(NoChoice::Several(format!("{} and {}", one.digest, two.digest))),
        (None, _) if choice.count == 0 => Err(NoChoice::NotThere("it has no manifests".to_owned())),
        (None, _) => {
            let more = choice.count.saturating_sub(choice.listed.len());
            let more = if more > 0 { format!(" and {more} more") } else { String::new() };
            Err(NoChoice::NotThere(format!("it has {}{more}", choice.listed.join(", "))))
        }
    }
}

/// Adds `named`, if it is another manifest than those before; two are as good as many.
fn note(all: &mut Vec<Named>, named: &Named) {
    if all.len() < 2 && all.iter().all(|known| known.digest != named.digest) {
        all.push(named.clone());
    }
}

/// Calls `see` for each manifest that the `index.json` in `input` names, one at a time.
///
/// # Errors
/// When it is no index, or cannot be read.
pub fn each(input: impl io::Read, see: &mut dyn FnMut(Named)) -> Result<(), serde_json::Error> {
    let mut reader = serde_json::Deserializer::from_reader(io::BufReader::new(input));
    Index { see }.deserialize(&mut reader)?;
    reader.end()
}

struct Index<'a> {
    see: &'a mut dyn FnMut(Named),
}

struct Manifests<'a> {
    see: &'a mut dyn FnMut(Named),
}

impl<'de> DeserializeSeed<'de> for Index<'_> {
    type Value = ();

    fn deserialize<D: serde::Deserializer<'de>>(self, input: D) -> Result<(), D::Error> {
        input.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Index<'_> {
    type Value = ();

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("an image index")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let mut has_manifests = false;
        while let Some(key) = map.next_key::<String>()? {
            if key == "manifests" {
                has_manifests = true;
                map.next_value_seed(Manifests { see: &mut *self.see })?;
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        if has_manifests { Ok(()) } else { Err(serde::de::Error::missing_field("manifests")) }
    }
}

impl<'de> DeserializeSeed<'de> for Manifests<'_> {
    type Value = ();

    fn deserialize<D: serde::Deserializer<'de>>(self, input: D) -> Result<(), D::Error> {
        input.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for Manifests<'_> {
    type Value = ();

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("a list of descriptors")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        while let Some(Entry { digest, media_type, annotations }) = list.next_element()? {
            let Names { ref_name, image_name } = annotations.unwrap_or_default();
            (self.see)(Named { digest, media_type, ref_name, image_name });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn index(entries: &[(u8, &str)]) -> Vec<u8> {
        let manifests: Vec<_> = entries
            .iter()
            .map(|(number, annotations)| {
                let annotations: serde_json::Value = serde_json::from_str(annotations).expect("JSON");
                serde_json::json!({"digest": digest(*number).to_string(), "size": 1, "annotations": annotations})
            })
            .collect();
        serde_json::to_vec(&serde_json::json!({"schemaVersion": 2, "manifests": manifests})).expect("JSON")
    }

    fn digest(number: u8) -> Digest {
        Digest::sha256(&[number])
    }

    fn ref_name(name: &str) -> String {
        serde_json::json!({"org.opencontainers.image.ref.name": name}).to_string()
    }

    #[test]
    fn a_tag_is_a_name_or_that_of_a_whole_reference() {
        let containerd = r#"{"io.containerd.image.name": "docker.io/library/alpine:3.20", "other": "x"}"#;
        let (v1, whole, latest) = (ref_name("v1"), ref_name("localhost:5000/a/b:v9"), ref_name("latest"));
        let several = index(&[(1, &v1), (2, containerd), (3, &whole), (4, &latest), (1, &v1)]);
        for (tag, number) in [("v1", 1), ("3.20", 2), ("v9", 3), ("latest", 4), (ONLY, 4)] {
            assert_eq!(choose(several.as_slice(), tag).expect(tag).digest, digest(number), "{tag}");
        }
        let one = index(&[(7, &v1)]);
        assert_eq!(choose(one.as_slice(), ONLY).expect("the only one").digest, digest(7));
        assert!(
            matches!(choose(one.as_slice(), "latest"), Err(NoChoice::NotThere(has)) if has == "it has v1")
        );
        let two = index(&[(1, &v1), (2, &v1)]);
        assert!(matches!(choose(two.as_slice(), "v1"), Err(NoChoice::Several(_))));
    }

    #[test]
    fn what_is_listed_has_bounds_and_no_control_characters() {
        let names: Vec<String> =
            (0..200).map(|number| ref_name(&format!("v{number}\n{}", "x".repeat(500)))).collect();
        let entries: Vec<(u8, &str)> = (0..200).zip(names.iter().map(String::as_str)).collect();
        let Err(NoChoice::NotThere(has)) = choose(index(&entries).as_slice(), ONLY) else {
            panic!("it was found")
        };
        assert!(has.len() < 1200 && has.contains("v0\\nxx") && has.ends_with("and 188 more"), "{has}");
        assert!(
            matches!(choose(index(&[]).as_slice(), ONLY), Err(NoChoice::NotThere(has)) if has.contains("no manifests"))
        );
        for bad in ["", "[]", "{}", r#"{"manifests": [{"digest": "md5:1"}]}"#, r#"{"manifests": []} x"#] {
            assert!(matches!(choose(bad.as_bytes(), "v1"), Err(NoChoice::Unreadable(_))), "{bad}");
        }
    }
}
