//! What can go wrong with the store, by what the caller does about it.

use std::path::{Path, PathBuf};

use crate::failure::Kind;
use crate::oci::digest::Digest;
use crate::store::space::amount::Amount;

/// Why the store did not do it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another process writes to it.
    #[error(
        "the store {root} is in use by {}; wait until that has ended, or stop it",
        if holder.is_empty() { "another process" } else { holder.as_str() },
        root = root.display()
    )]
    Locked {
        /// The store.
        root: PathBuf,
        /// Host name and process ID, as the holder wrote them.
        holder: String,
    },
    /// A later version of ocivol wrote it.
    #[error("the store {root} has format {format}, which a newer ocivol wrote; run that version, or use another --root", root = root.display())]
    Newer {
        /// The store.
        root: PathBuf,
        /// The format's directory.
        format: String,
    },
    /// It cannot be opened at all.
    #[error("the store {root} cannot be used: {reason}", root = root.display())]
    Unusable {
        /// The store.
        root: PathBuf,
        /// Why.
        reason: String,
    },
    /// The disk, or a quota, is full. How much is missing, and where, is for the log: it would tell a pod what others have here.
    #[error("no space left on the node for this content; free some, or give ocivol a larger disk")]
    NoSpace {
        /// Where.
        store: PathBuf,
        /// What is missing, where that is known.
        missing: Option<Amount>,
    },
    /// A tenant has made too many trees of one manifest.
    #[error(
        "this namespace has more than {limit} different volumes of {manifest} that are not mounted and were used a moment ago; use \
         fewer different attributes, or wait some minutes"
    )]
    Variants {
        /// Of which.
        manifest: Digest,
        /// How many it may have.
        limit: usize,
    },
    /// A namespace has used up its quota.
    #[error(
        "namespace {tenant} has as many {what} on this node as its quota allows; delete pods that use others, or ask for a larger quota"
    )]
    Quota {
        /// Which.
        tenant: String,
        /// Of what.
        what: &'static str,
    },
    /// Content is not what its digest says.
    #[error("content does not match its digest: expected {expected}, got {got}")]
    Mismatch {
        /// The digest it should have.
        expected: Digest,
        /// The digest it has.
        got: Digest,
    },
    /// The layers cannot be applied.
    #[error("layer {digest} is refused: {source}")]
    Refused {
        /// The layer.
        digest: Digest,
        /// Why.
        source: crate::layer::merge::Refused,
    },
    /// A merge takes more memory than it may.
    #[error(
        "layer {digest} is refused: with the layers below it, its tree takes more than {bytes} bytes of memory; make it of fewer files, or of shorter names"
    )]
    MergeMemory {
        /// The layer that was too much.
        digest: Digest,
        /// What it may take.
        bytes: u64,
    },
    /// Of what the layers hold nothing is wanted.
    #[error(transparent)]
    Selection(#[from] crate::layout::error::Error),
    /// The kernel refused something in the store.
    #[error("cannot {action} {path}: {source}", path = path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// The kernel's answer.
        source: std::io::Error,
    },
    /// Who reads what is being written has ended; its own error says why.
    #[error("what is written is not wanted any more")]
    Abandoned,
    /// Something the store should hold is not there: it was damaged while in use.
    #[error("the store is damaged: {0}; it is pulled again")]
    Damaged(String),
}

impl Error {
    /// Whether the disk has lost what it was asked for: `EIO`, and what file systems say of themselves.
    pub(in crate::store) fn is_loss(&self) -> bool {
        match self {
            Self::Damaged(_) => true,
            Self::Io { source, .. } => {
                source.kind() == std::io::ErrorKind::NotFound
                    || matches!(source.raw_os_error(), Some(libc::EIO | libc::EUCLEAN | libc::EBADMSG))
            }
            _ => false,
        }
    }

    /// What the caller can do.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Locked { .. }
            | Self::Newer { .. }
            | Self::Unusable { .. }
            | Self::Io { .. }
            | Self::Damaged(_) => Kind::Unavailable,
            Self::Abandoned => Kind::Aborted,
            Self::NoSpace { .. } | Self::Variants { .. } | Self::Quota { .. } => Kind::ResourceExhausted,
            Self::Mismatch { .. } | Self::Refused { .. } | Self::MergeMemory { .. } => {
                Kind::FailedPrecondition
            }
            Self::Selection(error) => error.kind(),
        }
    }
}

/// Turns a kernel error into [`Error`]: `map_err(io("write", path))`.
pub(in crate::store) fn io(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Error {
    let path = path.to_owned();
    move |source| match source.raw_os_error() {
        Some(libc::ENOSPC | libc::EDQUOT) => {
            let directory = path.parent().unwrap_or(&path);
            let available = rustix::fs::statvfs(directory)
                .map_or(0, |found| found.f_bavail.saturating_mul(found.f_frsize));
            tracing::warn!(path = %path.display(), available, "no space left");
            Error::NoSpace { store: path, missing: None }
        }
        _ => Error::Io { action, path, source },
    }
}
