//! From a manifest to a [`Plan`]: which blob becomes which file of the volume.
//!
//! One file per artifact family, each a pure function of manifest and config. [`family`] decides which one.

pub mod family;
pub mod image;
pub mod modelpack;
pub mod oras;
pub mod plan;
pub mod select;
pub mod tree_path;

pub use family::{Family, plan};
pub use plan::{Archive, File, Item, Metadata, Plan};
pub use select::Selection;
pub use tree_path::TreePath;

/// Changes whenever a manifest would be laid out differently than before: trees made by other versions of the
/// rules are then not reused.
pub const LAYOUT_VERSION: u32 = 2;

/// What a volume's attributes want of a layout.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// `include`, `exclude`
    pub selection: Selection,
    /// `unpack`
    pub unpack: Unpack,
    /// `stripComponents`
    pub strip: usize,
}

/// Which archives inside artifacts are unpacked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Unpack {
    /// Those that the family's rule unpacks.
    #[default]
    Auto,
    /// All.
    Always,
    /// None.
    Never,
}

impl Options {
    /// The options as text: equal when they ask for the same.
    pub fn normal_form(&self) -> String {
        let [include, exclude] = self.selection.normal_form();
        format!("{include:?} {exclude:?} {:?} {}", self.unpack, self.strip)
    }
}

/// The manifest cannot be laid out.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No family's rule reads these layers.
    #[error(
        "unsupported artifact: {what}; media types seen: {media_types}; supported are container images, \
         ModelPack artifacts, and artifacts whose layers have a title (ORAS)"
    )]
    Unsupported {
        /// What it seems to be, in words.
        what: String,
        /// Config, artifact and layer types, comma-separated.
        media_types: String,
    },
    /// A layer has no name to appear under.
    #[error("layer {digest} ({media_type}) has no file name: {expected} is missing")]
    Unnamed {
        /// The layer.
        digest: crate::oci::Digest,
        /// Its media type.
        media_type: String,
        /// The annotation that should name it.
        expected: &'static str,
    },
    /// A name would leave the volume, or is none.
    #[error("layer {digest} has an unsafe file name {name:?}: {reason}")]
    UnsafeName {
        /// The layer.
        digest: crate::oci::Digest,
        /// Its name.
        name: String,
        /// The rule it breaks.
        reason: &'static str,
    },
    /// Two layers want the same path, or one wants a directory where another has a file.
    #[error("layer {digest} wants {name:?}, which is already {there}")]
    Collision {
        /// The later layer.
        digest: crate::oci::Digest,
        /// Its name.
        name: String,
        /// What is there: a file, or a directory.
        there: &'static str,
    },
    /// A metadata annotation cannot be read, or contradicts its layer.
    #[error("layer {digest} has invalid metadata in annotation {annotation}: {reason}")]
    Metadata {
        /// The layer.
        digest: crate::oci::Digest,
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
    /// The config of an image does not fit its manifest.
    #[error("the image has {layers} layers, and its config names {diff_ids} diff IDs")]
    DiffIds {
        /// Layers of the manifest.
        layers: usize,
        /// Digests in the config.
        diff_ids: usize,
    },
    /// The config of an image is larger than anything real.
    #[error("the image's config has {size} bytes; at most {} are read", image::CONFIG_LIMIT)]
    LargeConfig {
        /// Its size.
        size: u64,
    },
    /// The config of an image cannot be read.
    #[error("the image's config is not valid")]
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
            Self::NothingSelected { .. } | Self::NotForImages { .. } => Kind::InvalidArgument,
            Self::Unsupported { .. }
            | Self::Unnamed { .. }
            | Self::UnsafeName { .. }
            | Self::Collision { .. }
            | Self::Metadata { .. }
            | Self::DiffIds { .. }
            | Self::LargeConfig { .. }
            | Self::Config(_)
            | Self::Empty => Kind::FailedPrecondition,
        }
    }
}
