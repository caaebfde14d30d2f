//! Why something was not mounted or unmounted.

use std::path::PathBuf;

use crate::failure::Kind;

/// Why something was not mounted or unmounted.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The target is no place where a volume may be mounted.
    #[error("target path {path:?} is refused: {reason}")]
    BadTarget {
        /// The target.
        path: String,
        /// The rule it breaks.
        reason: String,
    },
    /// The `path` attribute names nothing.
    #[error("the volume has no directory {path:?} (attribute path): {reason}")]
    NoSuchPath {
        /// The attribute's value.
        path: String,
        /// Why not.
        reason: String,
    },
    /// Somebody else's mount is at the target.
    #[error("{path} has a mount on it that is not ocivol's ({what}); unmount it by hand", path = path.display())]
    NotOurs {
        /// The target.
        path: PathBuf,
        /// What is mounted.
        what: String,
    },
    /// The target cannot be removed or unmounted, because something uses it.
    #[error("{path} is in use: {source}; it is tried again", path = path.display())]
    Busy {
        /// The target.
        path: PathBuf,
        /// The kernel's answer.
        source: std::io::Error,
    },
    /// The directory that should hold the target has something else under its name.
    #[error("{path} is not empty; ocivol removes nothing it did not make", path = path.display())]
    NotEmpty {
        /// The target.
        path: PathBuf,
    },
    /// The kernel cannot make a mount read-only before it is visible.
    #[error(
        "this kernel is too old: mounting read-only from the first instant needs Linux 5.12 (mount_setattr)"
    )]
    OldKernel,
    /// The kernel refused.
    #[error("cannot {action} {path}: {source}", path = path.display())]
    Kernel {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// The kernel's answer.
        source: std::io::Error,
    },
}

impl Error {
    /// What the caller can do.
    pub fn kind(&self) -> Kind {
        match self {
            Self::BadTarget { .. } | Self::NoSuchPath { .. } => Kind::InvalidArgument,
            Self::NotOurs { .. } | Self::NotEmpty { .. } | Self::OldKernel => Kind::FailedPrecondition,
            Self::Busy { .. } => Kind::Unavailable,
            Self::Kernel { .. } => Kind::Internal,
        }
    }
}

pub(in crate::mount) fn kernel(
    action: &'static str,
    path: &std::path::Path,
) -> impl FnOnce(rustix::io::Errno) -> Error {
    let path = path.to_owned();
    move |errno| Error::Kernel { action, path, source: errno.into() }
}
