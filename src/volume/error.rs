//! Why a volume was not published, unpublished or described.

use std::path::PathBuf;
use std::sync::Arc;

use crate::failure::Kind;

/// What went wrong with a volume.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An attribute is unknown or has a bad value.
    #[error(transparent)]
    Attributes(#[from] crate::volume::attributes::Error),
    /// The volume's secret cannot be read.
    #[error(transparent)]
    Credentials(#[from] crate::registry::credentials::docker_config::InvalidCredentials),
    /// Something else is at the target.
    #[error("{path} already has {there}; unpublish it first", path = path.display())]
    Occupied {
        /// The target.
        path: PathBuf,
        /// What is there.
        there: String,
    },
    /// No volume of ours is at that path, or it is another one.
    #[error("no volume {volume_id:?} is published at {path:?}")]
    NotPublished {
        /// The volume's ID as asked for.
        volume_id: String,
        /// The path as asked for.
        path: String,
    },
    /// There is nothing to unmount.
    #[error("nothing of ocivol's is mounted on {path}; `ocivol ls` shows what is mounted where", path = path.display())]
    NotMounted {
        /// The directory.
        path: PathBuf,
    },
    /// Nothing in the store has this name.
    #[error("{name} is not in this store; `ocivol ls` shows what is")]
    NotInStore {
        /// The name.
        name: String,
    },
    /// It cannot be removed.
    #[error("{name} is in use: {by}; {}", removed_of(*removed))]
    InUse {
        /// What should go.
        name: String,
        /// Who uses it, in words.
        by: String,
        /// How many of its trees went all the same: they were not in use.
        removed: usize,
    },
    /// The content is still on its way.
    #[error("still pulling {reference}: {progress}")]
    StillPulling {
        /// What is pulled.
        reference: String,
        /// How far it is.
        progress: String,
    },
    /// The operator does not let pods of this namespace use it.
    #[error(
        "pods of namespace {namespace} may not use {repository} on this node; its operator says what they may use \
         (registry.permits in the chart)"
    )]
    NotPermitted {
        /// Whose pods.
        namespace: String,
        /// Registry and repository.
        repository: String,
    },
    /// An unpublish of the same target came.
    #[error("the volume was unpublished while it was being published")]
    Preempted,
    /// The namespace has too much at once.
    #[error(
        "namespace {tenant} has as many volumes being published at once as there is room for, of {limit} on the node; it is \
         tried again"
    )]
    TooMany {
        /// Whose.
        tenant: String,
        /// The bound for all.
        limit: u64,
    },
    /// The pod has too much at once.
    #[error("{limit} volumes of this pod are being published at once, which is the limit; it is tried again")]
    TooManyOfPod {
        /// The bound.
        limit: u64,
    },
    /// The program is ending.
    #[error("ocivol is restarting; the pull continues afterwards")]
    Stopping,
    /// The content could not be brought here.
    #[error(transparent)]
    Pull(Arc<crate::pull::error::Error>),
    /// It could not be mounted or unmounted.
    #[error(transparent)]
    Mount(#[from] crate::mount::error::Error),
    /// The store cannot be used.
    #[error(transparent)]
    Store(#[from] crate::store::error::Error),
}

impl Error {
    /// Who holds the store, if that is why: a process, as it named itself.
    pub fn holder(&self) -> Option<&str> {
        match self {
            Self::Store(crate::store::error::Error::Locked { holder, .. }) => Some(holder),
            _ => None,
        }
    }

    /// What the caller can do.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Attributes(_) | Self::Credentials(_) => Kind::InvalidArgument,
            Self::Occupied { .. } => Kind::AlreadyExists,
            Self::NotPublished { .. } | Self::NotMounted { .. } | Self::NotInStore { .. } => Kind::NotFound,
            Self::InUse { .. } => Kind::FailedPrecondition,
            Self::StillPulling { .. } => Kind::DeadlineExceeded,
            Self::NotPermitted { .. } => Kind::PermissionDenied,
            Self::Preempted => Kind::Aborted,
            Self::TooMany { .. } | Self::TooManyOfPod { .. } => Kind::ResourceExhausted,
            Self::Stopping => Kind::Unavailable,
            Self::Pull(error) => error.kind(),
            Self::Mount(error) => error.kind(),
            Self::Store(error) => error.kind(),
        }
    }
}

/// What went of something of which a part is in use.
fn removed_of(count: usize) -> String {
    match count {
        0 => "nothing was removed".to_owned(),
        1 => "one of its trees was removed".to_owned(),
        many => format!("{many} of its trees were removed"),
    }
}

impl From<Error> for crate::failure::Failure {
    fn from(error: Error) -> Self {
        Self::new(error.kind(), &error)
    }
}
