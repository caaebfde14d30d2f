//! Why a pull failed.

use std::sync::Arc;

use crate::failure::Kind;
use crate::oci::manifest::InvalidManifest;

/// Why there is no tree.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The registry did not deliver.
    #[error(transparent)]
    Registry(#[from] crate::registry::error::Error),
    /// The store did not take it.
    #[error(transparent)]
    Store(#[from] crate::store::error::Error),
    /// The manifest describes no volume.
    #[error(transparent)]
    Layout(#[from] crate::layout::error::Error),
    /// A layer cannot be unpacked.
    #[error("layer {digest}: {source}")]
    Unpack {
        /// The layer.
        digest: crate::oci::digest::Digest,
        /// Why.
        source: crate::unpack::error::Error,
    },
    /// A manifest in the store cannot be read.
    #[error("the manifest of {reference} cannot be used: {source}")]
    Manifest {
        /// What was asked for.
        reference: String,
        /// Why.
        source: InvalidManifest,
    },
    /// The index has nothing that is wanted, or several.
    #[error("{reference} {found}; {advice}; there is {offered}")]
    NoChild {
        /// What was asked for.
        reference: String,
        /// How much of what is wanted there is, in words.
        found: String,
        /// What there is.
        offered: String,
        /// What to do.
        advice: &'static str,
    },
    /// The index leads to more indexes than anything real.
    #[error("{reference} is an index of indexes, more than {limit} deep")]
    TooDeep {
        /// What was asked for.
        reference: String,
        /// The bound.
        limit: usize,
    },
    /// `pullPolicy: Never`. The same for content that is not here and for content that is not theirs.
    #[error(
        "{reference} is not in this node's store, and pullPolicy is Never; pull it first, or allow pulling"
    )]
    NotPresent {
        /// What was asked for.
        reference: String,
    },
    /// The pull was given up because nobody waited for it, or because the program ends.
    #[error("the pull was stopped; it continues where it was when it is asked for again")]
    Stopped,
    /// Somebody else's flight failed, on which this one depended.
    #[error(transparent)]
    Shared(Arc<Error>),
}

impl Error {
    /// Whether it is the same for everybody who needs the content, whoever sends it: the disk failed, or the content is
    /// the right one and no good.
    pub(super) fn is_everybodys(&self) -> bool {
        match self {
            Self::Store(_) => true,
            Self::Unpack { source, .. } => source.is_about_content(),
            Self::Shared(error) => error.is_everybodys(),
            _ => false,
        }
    }

    /// Whether it says what is in a blob.
    pub(super) fn tells_content(&self) -> bool {
        match self {
            Self::Unpack { .. } => true,
            Self::Shared(error) => error.tells_content(),
            _ => false,
        }
    }

    /// What the caller can do.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Registry(error) => error.kind(),
            Self::Store(error) => error.kind(),
            Self::Layout(error) => error.kind(),
            Self::Unpack { source, .. } => source.kind(),
            Self::Manifest { .. } | Self::NoChild { .. } | Self::TooDeep { .. } => Kind::FailedPrecondition,
            Self::NotPresent { .. } => Kind::NotFound,
            Self::Stopped => Kind::Aborted,
            Self::Shared(error) => error.kind(),
        }
    }
}
