//! Why a manifest cannot be laid out.

use crate::oci::digest::Digest;
use crate::oci::manifest::Manifest;

/// The manifest cannot be laid out.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No family's rule reads these layers.
    #[error(
        "unsupported artifact: {what}; layers need a title (org.opencontainers.image.title), or a family that \
         docs/layouts.md lists; layout: blobs mounts every layer under its digest; media types seen: {media_types}"
    )]
    Unsupported {
        /// What it seems to be, in words.
        what: String,
        /// Config, artifact and layer types, comma-separated.
        media_types: String,
    },
    /// A layer has no name to appear under.
    #[error(
        "layer {digest} ({media_type}) has no file name: {expected} is missing; layout: blobs mounts every layer under \
         its title or digest"
    )]
    Unnamed {
        /// The layer.
        digest: Digest,
        /// Its media type.
        media_type: String,
        /// The annotation that should name it.
        expected: &'static str,
    },
    /// A signature, an attestation, an SBOM: not content but a statement about some.
    #[error(
        "{what}: it says something about another artifact, and is mounted only with layout: blobs (its blobs by digest) or \
         layout: oci-layout"
    )]
    Attachment {
        /// What it is, in words.
        what: String,
    },
    /// A name would leave the volume, or is none.
    #[error("layer {digest} has an unsafe file name \"{name}\": {reason}")]
    UnsafeName {
        /// The layer.
        digest: Digest,
        /// Its name, as [`crate::layer::name::shown`] shows it.
        name: String,
        /// The rule it breaks.
        reason: &'static str,
    },
    /// Two layers want the same path, or one wants a directory where another has a file.
    #[error("layer {digest} wants \"{name}\", which is already {there}")]
    Collision {
        /// The later layer.
        digest: Digest,
        /// Its name.
        name: String,
        /// What is there: a file, or a directory.
        there: &'static str,
    },
    /// A metadata annotation cannot be read, or contradicts its layer.
    #[error("layer {digest} (\"{name}\") has invalid metadata in annotation {annotation}: {reason}")]
    Metadata {
        /// The layer.
        digest: Digest,
        /// The file's name, if it has one.
        name: String,
        /// The annotation's key.
        annotation: &'static str,
        /// What is wrong.
        reason: String,
    },
    /// `include` and `exclude` leave nothing, or a pattern matches nothing.
    #[error("{attribute} pattern {pattern:?} matches no file; there are: {paths}")]
    NothingSelected {
        /// `include` or `exclude`.
        attribute: &'static str,
        /// The pattern.
        pattern: String,
        /// The paths there are, shortened.
        paths: String,
    },
    /// An attribute that only means something for artifacts.
    #[error("{attribute} is for archives inside artifacts, and this is a container image")]
    NotForImages {
        /// The attribute.
        attribute: &'static str,
    },
    /// `layout: ollama` of something else.
    #[error("layout: ollama is for models of Ollama, and this is none: {media_types}")]
    NotOllama {
        /// The types of its layers.
        media_types: String,
    },
    /// Ollama could not list what is mounted.
    #[error(
        "layout: ollama cannot name it {name}: in Ollama {reason}; use another reference, or layout: auto"
    )]
    OllamaName {
        /// Where the manifest would be.
        name: String,
        /// Ollama's rule.
        reason: &'static str,
    },
    /// The names depend on the config, which was not given.
    #[error("the artifact's config is needed to name its files")]
    NeedsConfig,
    /// The config of an image does not fit its manifest.
    #[error("the image has {layers} layers, and its config names {diff_ids} diff IDs")]
    DiffIds {
        /// Layers of the manifest.
        layers: usize,
        /// Digests in the config.
        diff_ids: usize,
    },
    /// A config is larger than anything real.
    #[error("the artifact's config has {size} bytes; at most {limit} are read")]
    LargeConfig {
        /// Its size.
        size: u64,
        /// What is read.
        limit: usize,
    },
    /// A config cannot be read.
    #[error("the artifact's config is not valid")]
    Config(#[source] serde_json::Error),
    /// The artifact holds no file.
    #[error("the artifact holds no file")]
    Empty,
}

impl Error {
    /// What the caller can do.
    pub fn kind(&self) -> crate::failure::Kind {
        use crate::failure::Kind;
        match self {
            Self::NothingSelected { .. }
            | Self::NotForImages { .. }
            | Self::NotOllama { .. }
            | Self::OllamaName { .. } => Kind::InvalidArgument,
            // Whoever plans brings the config.
            Self::NeedsConfig => Kind::Internal,
            Self::Unsupported { .. }
            | Self::Unnamed { .. }
            | Self::UnsafeName { .. }
            | Self::Collision { .. }
            | Self::Metadata { .. }
            | Self::DiffIds { .. }
            | Self::LargeConfig { .. }
            | Self::Config(_)
            | Self::Attachment { .. }
            | Self::Empty => Kind::FailedPrecondition,
        }
    }
}

/// The error that tells a reader of the artifact what it is made of.
pub(in crate::layout) fn unsupported(manifest: &Manifest, what: &str) -> Error {
    Error::Unsupported { what: what.to_owned(), media_types: media_types(manifest) }
}

/// The media types of a manifest, for people: the first few, not all of each.
pub(in crate::layout) fn media_types(manifest: &Manifest) -> String {
    let layers = manifest.layers.iter().map(|layer| layer.media_type.as_str());
    let artifact = manifest.artifact_type.as_deref();
    let mut seen: Vec<String> = Vec::new();
    for name in artifact.into_iter().chain([manifest.config.media_type.as_str()]).chain(layers) {
        let name: String = name.chars().take(80).collect();
        if seen.len() == 8 {
            seen.push("…".to_owned());
            break;
        }
        if !name.is_empty() && !seen.contains(&name) {
            seen.push(name);
        }
    }
    seen.join(", ")
}
