//! Why no volume was made of a claim. The text becomes the claim's event `ProvisioningFailed`.

use indicatif::BinaryBytes;

use crate::failure::{Failure, Kind};

/// What went wrong with a claim.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A parameter is unknown or has a bad value.
    #[error("the StorageClass: {0}")]
    Attributes(#[from] crate::volume::attributes::Error),
    /// A parameter of the class itself has a bad value.
    #[error("the StorageClass: parameter {key} is {value:?}; allowed are true, false")]
    Flag {
        /// The key.
        key: &'static str,
        /// The value.
        value: String,
    },
    /// What nobody here can look at cannot be pinned.
    #[error(
        "the StorageClass: what is in an image layout on a node is not known here, so that pin: \"true\" cannot be: leave it out, or name a digest in reference"
    )]
    PinOnNode,
    /// Two parameters that go against each other.
    #[error(
        "the StorageClass: check: \"false\" asks no registry, so that nothing says which digest the tag is: set pin: \"false\" as well, or name a digest in reference"
    )]
    PinUnasked,
    /// The reference has something in `${…}` that is not known.
    #[error(
        "the StorageClass: parameter reference has {text:?}; known are ${{pvc.metadata.name}} and ${{pvc.metadata.namespace}}, behind the registry's host"
    )]
    Placeholder {
        /// What it has.
        text: String,
    },
    /// The provisioner does not say what the claim is called.
    #[error(
        "the StorageClass: parameter reference wants {text}, which the provisioner does not tell: start it with --extra-create-metadata"
    )]
    NotTold {
        /// What it wants.
        text: &'static str,
    },
    /// The claim's name cannot be part of a reference.
    #[error(
        "{value:?} cannot be part of a reference: its parts have lower-case letters, digits, '-' and '.'"
    )]
    Name {
        /// The name.
        value: String,
    },
    /// The provisioner's secret cannot be read.
    #[error("the StorageClass's provisioner secret: {0}")]
    Credentials(#[from] crate::registry::credentials::docker_config::InvalidCredentials),
    /// The namespace's claims are worked on, as many as others leave room for.
    #[error(
        "as many claims of namespace {tenant} are worked on as there is room for: their registries are slow; it is tried again"
    )]
    Crowded {
        /// Whose.
        tenant: String,
    },
    /// The claim says how large it may be, and it is larger.
    #[error("{reference} has {}, and the claim's limit is {}", BinaryBytes(*size), BinaryBytes(*limit))]
    TooLarge {
        /// What was asked for.
        reference: String,
        /// Bytes that it has.
        size: u64,
        /// Bytes that it may have.
        limit: u64,
    },
    /// The registry says no, or says what cannot be mounted.
    #[error(transparent)]
    Asking(#[from] Failure),
}

impl Error {
    /// What the caller can do.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Attributes(_)
            | Self::Flag { .. }
            | Self::PinOnNode
            | Self::PinUnasked
            | Self::Placeholder { .. }
            | Self::NotTold { .. }
            | Self::Name { .. } => Kind::InvalidArgument,
            // The class is right, and the Secret can be mended.
            Self::Credentials(_) => Kind::FailedPrecondition,
            Self::Crowded { .. } => Kind::ResourceExhausted,
            Self::TooLarge { .. } => Kind::OutOfRange,
            Self::Asking(failure) => failure.kind,
        }
    }
}
