//! Why a pull failed.

use crate::failure::Kind;
use crate::oci::manifest::InvalidManifest;

/// Why there is no tree.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The registry did not deliver.
    #[error(transparent)]
    Registry(#[from] crate::registry::error::Error),
    /// A blob did not come.
    #[error(transparent)]
    Transfer(#[from] crate::transfer::error::Error),
    /// The store did not take it.
    #[error(transparent)]
    Store(#[from] crate::store::error::Error),
    /// The manifest describes no volume.
    #[error(transparent)]
    Layout(#[from] crate::layout::error::Error),
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
    /// An image that is in no index is for another machine.
    #[error(
        "{reference} is an image for {found}, and not for {wanted}; leave out platform, or name another reference"
    )]
    OtherPlatform {
        /// What was asked for.
        reference: String,
        /// What it is for.
        found: String,
        /// What was wanted.
        wanted: String,
    },
    /// The index leads to more indexes than anything real.
    #[error("{reference} is an index of indexes, more than {limit} deep")]
    TooDeep {
        /// What was asked for.
        reference: String,
        /// The bound.
        limit: usize,
    },
    /// Nobody is asked without credentials on this node, and there are none.
    #[error(
        "there are no credentials for {reference}, and this node pulls nothing without: give the volume a nodePublishSecretRef"
    )]
    NoCredentials {
        /// What was asked for.
        reference: String,
    },
    /// `pullPolicy: Never`. The same for content that is not here and for content that is not theirs.
    #[error(
        "{reference} is not in this node's store, and pullPolicy is Never; pull it first, or allow pulling"
    )]
    NotPresent {
        /// What was asked for.
        reference: String,
    },
}

impl Error {
    /// Whether other credentials may help.
    pub fn is_about_access(&self) -> bool {
        matches!(self, Self::Registry(cause) if cause.is_about_access())
    }

    /// Whether the registry says that what was asked for is not there.
    pub fn is_not_there(&self) -> bool {
        matches!(self, Self::Registry(crate::registry::error::Error::NotFound { .. }))
    }

    /// The same, with what is to know of credentials that could not be had.
    #[must_use]
    pub fn with_notes(self, notes: &[String]) -> Self {
        match self {
            Self::Registry(error) => Self::Registry(error.with_notes(notes)),
            Self::NoCredentials { reference } if !notes.is_empty() => {
                Self::NoCredentials { reference: format!("{reference} ({})", notes.join("; ")) }
            }
            error => error,
        }
    }

    /// What the caller can do.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Registry(error) => error.kind(),
            Self::Transfer(error) => error.kind(),
            Self::Store(error) => error.kind(),
            Self::Layout(error) => error.kind(),
            Self::Manifest { .. }
            | Self::NoChild { .. }
            | Self::OtherPlatform { .. }
            | Self::TooDeep { .. } => Kind::FailedPrecondition,
            Self::NoCredentials { .. } => Kind::Unauthenticated,
            Self::NotPresent { .. } => Kind::NotFound,
        }
    }
}
