//! Manifests and indexes: parsing with bounds, and no room for two readings.

#![cfg_attr(not(test), deny(clippy::indexing_slicing))]

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::value::RawValue;

use crate::oci::descriptor::Descriptor;
use crate::oci::{descriptor, media_type};

/// Bytes of a manifest or index: what registries accept at most, by distribution-spec v1.1.
pub const SIZE_LIMIT: usize = 4 * 1024 * 1024;
/// Layers of a manifest, and children of an index: as many as fit into the largest manifest, when each has a type, a digest,
/// a size and a name. What is shorter names nothing that can be mounted.
pub const ENTRY_LIMIT: usize = SIZE_LIMIT / 160;

/// A manifest: a config and layers. OCI image manifest v1 or Docker schema 2.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    /// Its own media type.
    pub media_type: String,
    /// What kind of artifact it is, if it says so.
    pub artifact_type: Option<String>,
    /// The config; families put their metadata there.
    pub config: Descriptor,
    /// The layers, lowest first.
    pub layers: Vec<Descriptor>,
    /// Free keys.
    pub annotations: BTreeMap<String, String>,
    /// Whether it says something about another manifest (manifest.md#subject).
    pub has_subject: bool,
}

/// An index: manifests to choose from. OCI image index v1 or Docker manifest list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Index {
    /// Its own media type.
    pub media_type: String,
    /// The children.
    pub manifests: Vec<Descriptor>,
    /// Free keys.
    pub annotations: BTreeMap<String, String>,
}

/// What a manifest request can return.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(clippy::large_enum_variant)] // One lives at a time.
pub enum Document {
    /// A manifest.
    Manifest(Manifest),
    /// An index.
    Index(Index),
}

/// The bytes are not a manifest or index that has exactly one meaning.
#[derive(Debug, thiserror::Error)]
pub enum InvalidManifest {
    /// Not JSON of the right shape.
    #[error("manifest is not valid")]
    Json(#[from] serde_json::Error),
    /// More bytes than a registry should accept.
    #[error("manifest is larger than {SIZE_LIMIT} bytes")]
    TooLarge,
    /// More layers or children than bounded work allows.
    #[error("manifest lists {count} entries, more than {ENTRY_LIMIT}")]
    TooManyEntries {
        /// How many there are.
        count: usize,
    },
    /// Two readings are possible (CVE-2021-41190).
    #[error("manifest is ambiguous: {0}")]
    Ambiguous(String),
    /// Something else that registries keep, and that holds no files.
    #[error("it is {0}")]
    Other(&'static str),
    /// A type or version this program does not read.
    #[error("manifest has unsupported {what}: {value:?}")]
    Unsupported {
        /// Which property.
        what: &'static str,
        /// Its value.
        value: String,
    },
}

/// The artifact manifest of a draft of image-spec v1.1.
const DRAFT_ARTIFACT: &str = "application/vnd.oci.artifact.manifest.v1+json";
/// What BuildKit's caches have as config, and among their layers.
const BUILD_CACHE: &str = "application/vnd.buildkit.cacheconfig.";

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Raw<'a> {
    /// Of which only two values mean something.
    #[serde(borrow)]
    schema_version: Option<&'a RawValue>,
    media_type: Option<String>,
    artifact_type: Option<String>,
    config: Option<Descriptor>,
    layers: Option<Vec<Descriptor>>,
    manifests: Option<Vec<Descriptor>>,
    fs_layers: Option<serde::de::IgnoredAny>,
    subject: Option<serde::de::IgnoredAny>,
    #[serde(default, deserialize_with = "descriptor::annotations")]
    annotations: BTreeMap<String, String>,
}

/// Reads `bytes`, which the registry sent with `content_type`.
///
/// The type in the body and the type in the header must not contradict each other; a header that names no
/// manifest type (`application/json`, `text/plain`) says nothing.
///
/// # Errors
/// [`InvalidManifest`] when the bytes exceed a bound, are no manifest, or could be read in two ways.
pub fn parse(bytes: &[u8], content_type: Option<&str>) -> Result<Document, InvalidManifest> {
    read(bytes, content_type, false)
}

/// Reads `bytes` that were accepted before. What the registry said of them then is not known any more.
///
/// # Errors
/// As [`parse`].
pub fn parse_kept(bytes: &[u8]) -> Result<Document, InvalidManifest> {
    read(bytes, None, true)
}

fn read(bytes: &[u8], content_type: Option<&str>, kept: bool) -> Result<Document, InvalidManifest> {
    if bytes.len() > SIZE_LIMIT {
        return Err(InvalidManifest::TooLarge);
    }
    let raw: Raw<'_> = serde_json::from_slice(bytes)?;
    let is_index = match (&raw.manifests, raw.config.is_some() || raw.layers.is_some()) {
        (Some(_), true) => {
            return Err(InvalidManifest::Ambiguous("it has both manifests and config or layers".into()));
        }
        (Some(_), false) => true,
        (None, _) => false,
    };
    let header = content_type
        .map(|value| value.split(';').next().unwrap_or(value).trim())
        .filter(|value| media_type::is_manifest_or_index(value));
    let media_type = match (raw.media_type.as_deref(), header) {
        (Some(body), Some(header)) if body != header => {
            return Err(InvalidManifest::Ambiguous(format!(
                "it says it is {body}, the registry says {header}"
            )));
        }
        (Some(own), _) | (None, Some(own)) => own.to_owned(),
        (None, None) if kept => String::new(),
        // Only what does not say its type is known by its version.
        (None, None) => {
            check_version(&raw)?;
            String::new()
        }
    };
    let media_type = match media_type.as_str() {
        "" if is_index => media_type::OCI_INDEX.to_owned(),
        "" => media_type::OCI_MANIFEST.to_owned(),
        DRAFT_ARTIFACT => {
            return Err(InvalidManifest::Other(
                "an artifact manifest of an OCI draft, which was dropped; push it again with a newer version of its tool",
            ));
        }
        _ => media_type,
    };
    if !media_type::is_manifest_or_index(&media_type) {
        return Err(InvalidManifest::Unsupported { what: "mediaType", value: media_type });
    }
    if media_type::is_index(&media_type) != is_index {
        return Err(InvalidManifest::Ambiguous(format!("its fields are not those of {media_type}")));
    }
    if raw.fs_layers.is_some() {
        return Err(InvalidManifest::Ambiguous(format!("it has fsLayers, which {media_type} has not")));
    }
    if let Some(manifests) = raw.manifests {
        check_count(manifests.len())?;
        if is_build_cache(&manifests) {
            return Err(InvalidManifest::Other(BUILD_CACHE_WORDS));
        }
        return Ok(Document::Index(Index { media_type, manifests, annotations: raw.annotations }));
    }
    let config =
        raw.config.ok_or_else(|| InvalidManifest::Unsupported { what: "config", value: "none".into() })?;
    if config.media_type.starts_with(BUILD_CACHE) {
        return Err(InvalidManifest::Other(BUILD_CACHE_WORDS));
    }
    let layers = raw.layers.unwrap_or_default();
    check_count(layers.len())?;
    Ok(Document::Manifest(Manifest {
        media_type,
        artifact_type: raw.artifact_type.filter(|value| !value.is_empty()),
        config,
        layers,
        annotations: raw.annotations,
        has_subject: raw.subject.is_some(),
    }))
}

const BUILD_CACHE_WORDS: &str =
    "a build cache: layers that only a builder can put together; name the image that was built with it";

/// Checks the `schemaVersion` of what has no `mediaType`.
fn check_version(raw: &Raw<'_>) -> Result<(), InvalidManifest> {
    match raw.schema_version.map(RawValue::get) {
        Some("2") => Ok(()),
        Some("1") => Err(InvalidManifest::Other(
            "a manifest of Docker's schema 1, which is given up; push the image again with a newer version of its tool",
        )),
        version => {
            let value = version.unwrap_or("none").chars().take(40).collect();
            Err(InvalidManifest::Unsupported { what: "schemaVersion", value })
        }
    }
}

/// Whether an index lists layers, as BuildKit's older caches do.
fn is_build_cache(children: &[Descriptor]) -> bool {
    let is_layer = |name: &str| name.contains(".layer.") || name.contains(".rootfs.");
    children.iter().any(|child| child.media_type.starts_with(BUILD_CACHE))
        || (!children.is_empty() && children.iter().all(|child| is_layer(&child.media_type)))
}

fn check_count(count: usize) -> Result<(), InvalidManifest> {
    if count > ENTRY_LIMIT { Err(InvalidManifest::TooManyEntries { count }) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGEST: &str = "sha256:0000000000000000000000000000000000000000000000000000000000000000";

    fn descriptor() -> String {
        format!(r#"{{"mediaType":"a/b","digest":"{DIGEST}","size":1}}"#)
    }

    fn manifest(extra: &str) -> String {
        let one = descriptor();
        format!(r#"{{"schemaVersion":2,"config":{one},"layers":[{one}]{extra}}}"#)
    }

    #[test]
    fn the_type_comes_from_body_or_header_or_fields() {
        let typed = |body: &str, header: Option<&str>| match parse(body.as_bytes(), header) {
            Ok(Document::Manifest(found)) => found.media_type,
            Ok(Document::Index(found)) => found.media_type,
            Err(error) => panic!("{body}: {error}"),
        };
        assert_eq!(typed(&manifest(""), None), media_type::OCI_MANIFEST);
        assert_eq!(typed(&manifest(""), Some("application/json")), media_type::OCI_MANIFEST);
        assert_eq!(typed(&manifest(""), Some(media_type::DOCKER_MANIFEST)), media_type::DOCKER_MANIFEST);
        let body = manifest(&format!(r#","mediaType":"{}""#, media_type::DOCKER_MANIFEST));
        let header = format!("{}; charset=utf-8", media_type::DOCKER_MANIFEST);
        assert_eq!(typed(&body, Some(&header)), media_type::DOCKER_MANIFEST);
        let index = format!(r#"{{"schemaVersion":2,"manifests":[{}]}}"#, descriptor());
        assert_eq!(typed(&index, None), media_type::OCI_INDEX);
    }

    #[test]
    fn t20_documents_with_two_readings_are_refused() {
        let both = manifest(r#","manifests":[]"#);
        let lying = manifest(&format!(r#","mediaType":"{}""#, media_type::OCI_INDEX));
        let typed = manifest(&format!(r#","mediaType":"{}""#, media_type::OCI_MANIFEST));
        let table = [
            (both.as_str(), None),
            (&lying, None),
            (&typed, Some(media_type::OCI_INDEX)),
            (&typed, Some(media_type::DOCKER_MANIFEST)),
        ];
        for (body, header) in table {
            assert!(matches!(parse(body.as_bytes(), header), Err(InvalidManifest::Ambiguous(_))), "{body}");
        }
    }

    #[test]
    fn t17_bounds() {
        let many = vec![descriptor(); ENTRY_LIMIT + 1].join(",");
        let body = format!(r#"{{"schemaVersion":2,"config":{},"layers":[{many}]}}"#, descriptor());
        assert!(matches!(
            parse(body.as_bytes(), None),
            Err(InvalidManifest::TooManyEntries { count }) if count == ENTRY_LIMIT + 1
        ));
        let mut padded = manifest("").into_bytes();
        padded.resize(SIZE_LIMIT + 1, b' ');
        assert!(matches!(parse(&padded, None), Err(InvalidManifest::TooLarge)));
        let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
        let nested = manifest(&format!(r#","artifactType":{deep}"#));
        assert!(matches!(parse(nested.as_bytes(), None), Err(InvalidManifest::Json(_))));
    }

    #[test]
    fn t21_a_bad_digest_anywhere_is_refused_before_use() {
        let bad = r#"{"mediaType":"a/b","digest":"sha256:../../../etc/passwd","size":1}"#;
        let body = format!(r#"{{"schemaVersion":2,"config":{},"layers":[{bad}]}}"#, descriptor());
        assert!(matches!(parse(body.as_bytes(), None), Err(InvalidManifest::Json(_))));
    }

    #[test]
    fn regression_the_type_is_trusted_before_the_version() {
        let one = descriptor();
        for version in [
            "",
            r#""schemaVersion":1,"#,
            r#""schemaVersion":"2","#,
            r#""schemaVersion":0,"#,
            r#""schemaVersion":{},"#,
        ] {
            let body = |own: &str| format!(r#"{{{version}{own}"config":{one},"layers":[{one}]}}"#);
            let typed = body(&format!(r#""mediaType":"{}","#, media_type::OCI_MANIFEST));
            assert!(parse(typed.as_bytes(), None).is_ok(), "{typed}");
            assert!(parse(body("").as_bytes(), Some(media_type::DOCKER_MANIFEST)).is_ok(), "{version}");
            assert!(parse_kept(body("").as_bytes()).is_ok(), "{version}");
            assert!(parse(body("").as_bytes(), None).is_err(), "{version}");
        }
    }

    #[test]
    fn regression_what_holds_no_files_is_named() {
        let index = |children: &[&str]| {
            let children: Vec<String> = children
                .iter()
                .map(|name| format!(r#"{{"mediaType":"{name}","digest":"{DIGEST}","size":1}}"#))
                .collect();
            format!(
                r#"{{"schemaVersion":2,"mediaType":"{}","manifests":[{}]}}"#,
                media_type::OCI_INDEX,
                children.join(",")
            )
        };
        let (layer, docker) = (
            "application/vnd.oci.image.layer.v1.tar+gzip",
            "application/vnd.docker.image.rootfs.diff.tar.gzip",
        );
        let cache = "application/vnd.buildkit.cacheconfig.v0";
        let table = [
            (format!(r#"{{"mediaType":"{DRAFT_ARTIFACT}","artifactType":"a/b","blobs":[]}}"#), "OCI draft"),
            (index(&[layer, docker]), "build cache"),
            (index(&[layer, cache]), "build cache"),
            (
                format!(
                    r#"{{"schemaVersion":2,"config":{{"mediaType":"{cache}","digest":"{DIGEST}","size":1}},"layers":[]}}"#
                ),
                "build cache",
            ),
            (r#"{"schemaVersion":1,"fsLayers":[],"history":[]}"#.to_owned(), "schema 1"),
        ];
        for (body, expected) in table {
            let error = parse(body.as_bytes(), None).expect_err(&body).to_string();
            assert!(error.contains(expected), "{body}: {error}");
        }
        assert!(parse(index(&[]).as_bytes(), None).is_ok());
        assert!(parse(index(&[layer, media_type::OCI_MANIFEST]).as_bytes(), None).is_ok());
    }

    #[test]
    fn other_versions_and_types_are_named() {
        for body in [
            r#"{"schemaVersion":1,"fsLayers":[],"history":[]}"#,
            r#"{"config":{}}"#,
            "[]",
            "null",
            "not json",
            r#"{"schemaVersion":2,"layers":[]}"#,
            r#"{"schemaVersion":2,"mediaType":"application/vnd.other+json","manifests":[]}"#,
        ] {
            assert!(parse(body.as_bytes(), None).is_err(), "{body} was accepted");
        }
    }
}
