//! Manifests and indexes: parsing with bounds, and no room for two readings.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::{Descriptor, descriptor, media_type};

/// Bytes of a manifest or index: what registries accept at most, by distribution-spec v1.1.
pub const SIZE_LIMIT: usize = 4 * 1024 * 1024;
/// Layers of a manifest, and children of an index. Far above real artifacts; bounds work per publish.
pub const ENTRY_LIMIT: usize = 4096;

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
    /// A type or version this program does not read.
    #[error("manifest has unsupported {what}: {value:?}")]
    Unsupported {
        /// Which property.
        what: &'static str,
        /// Its value.
        value: String,
    },
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Raw {
    schema_version: Option<i64>,
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
    if bytes.len() > SIZE_LIMIT {
        return Err(InvalidManifest::TooLarge);
    }
    let raw: Raw = serde_json::from_slice(bytes)?;
    if raw.schema_version == Some(1) || raw.fs_layers.is_some() {
        return Err(InvalidManifest::Unsupported { what: "schemaVersion", value: "1".into() });
    }
    if raw.schema_version != Some(2) {
        let value = raw.schema_version.map_or_else(|| "none".into(), |version| version.to_string());
        return Err(InvalidManifest::Unsupported { what: "schemaVersion", value });
    }
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
        (None, None) if is_index => media_type::OCI_INDEX.to_owned(),
        (None, None) => media_type::OCI_MANIFEST.to_owned(),
    };
    if !media_type::is_manifest_or_index(&media_type) {
        return Err(InvalidManifest::Unsupported { what: "mediaType", value: media_type });
    }
    if media_type::is_index(&media_type) != is_index {
        return Err(InvalidManifest::Ambiguous(format!("its fields are not those of {media_type}")));
    }
    if let Some(manifests) = raw.manifests {
        check_count(manifests.len())?;
        return Ok(Document::Index(Index { media_type, manifests, annotations: raw.annotations }));
    }
    let config =
        raw.config.ok_or_else(|| InvalidManifest::Unsupported { what: "config", value: "none".into() })?;
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
