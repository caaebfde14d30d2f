//! Why a blob did not come.

use std::sync::Arc;

use crate::failure::Kind;
use crate::oci::digest::Digest;

/// Why a blob is not here, or not for this asker.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The registry did not deliver.
    #[error(transparent)]
    Registry(#[from] crate::registry::error::Error),
    /// The store did not take it.
    #[error(transparent)]
    Store(#[from] crate::store::error::Error),
    /// A layer cannot be unpacked.
    #[error("layer {digest}: {source}")]
    Unpack {
        /// The layer.
        digest: Digest,
        /// Why.
        source: crate::unpack::error::Error,
    },
    /// Other askers' sources failed, again and again, and this asker's own one was never reached.
    #[error("every source of {digest} failed before the one of this pull was tried; it is tried again")]
    Crowded {
        /// The blob.
        digest: Digest,
    },
    /// The kernel gives no thread.
    #[error("cannot start a thread: {0}")]
    Thread(std::io::Error),
    /// The work ended without an outcome: it panicked.
    #[error("ocivol failed in the middle of the work; its log says more, and the pull can be tried again")]
    Fault,
    /// A transfer failed on which this one depended.
    #[error(transparent)]
    Shared(Arc<Error>),
}

impl Error {
    /// Whether it is the same for everybody who needs the content, whoever sends it: the disk failed, or the content is
    /// the right one and no good.
    pub fn is_everybodys(&self) -> bool {
        match self {
            Self::Store(_) | Self::Thread(_) => true,
            Self::Unpack { source, .. } => source.is_about_content(),
            Self::Shared(error) => error.is_everybodys(),
            Self::Registry(_) | Self::Crowded { .. } | Self::Fault => false,
        }
    }

    /// Whether a layer needs more memory than it could have at that moment.
    pub fn is_short_of_memory(&self) -> bool {
        matches!(self, Self::Unpack { source: crate::unpack::error::Error::Busy(_), .. })
    }

    /// Whether it says what is in a blob.
    pub fn tells_content(&self) -> bool {
        match self {
            Self::Unpack { .. } => true,
            Self::Shared(error) => error.tells_content(),
            _ => false,
        }
    }

    /// Whether the source sent other bytes than it should have.
    pub fn is_wrong_content(&self) -> bool {
        match self {
            Self::Registry(crate::registry::error::Error::WrongContent { .. }) => true,
            Self::Shared(error) => error.is_wrong_content(),
            _ => false,
        }
    }

    /// Whether an uncompressed layer is not what was promised of it.
    pub fn breaks_promise(&self) -> bool {
        match self {
            Self::Unpack { source: crate::unpack::error::Error::Content { .. }, .. } => true,
            Self::Shared(error) => error.breaks_promise(),
            _ => false,
        }
    }

    /// What the caller can do.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Registry(error) => error.kind(),
            Self::Store(error) => error.kind(),
            Self::Unpack { source, .. } => source.kind(),
            Self::Crowded { .. } | Self::Thread(_) => Kind::Unavailable,
            Self::Fault => Kind::Internal,
            Self::Shared(error) => error.kind(),
        }
    }
}
