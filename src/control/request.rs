//! What the command line asks, and what is answered: one JSON object a line.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::control::status::Status;
use crate::failure::Failure;
use crate::layer::format::Dropped;
use crate::oci::digest::Digest;
use crate::pull::progress::Snapshot;
use crate::store::collect::report::Report;
use crate::store::fsck::report::Report as CheckReport;
use crate::volume::list::Listing;
use crate::volume::remove::Removed;

/// The socket's name in the store's directory.
pub const SOCKET: &str = "control.sock";

/// What is asked.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "kebab-case")]
pub enum ControlRequest {
    /// Bring a tree into the store.
    Pull {
        /// What.
        content: Content,
        /// Who asks will mount it itself: it is kept as long as that process lives.
        #[serde(default)]
        lease: bool,
    },
    /// Pull and mount.
    Mount {
        /// What.
        content: Content,
        /// Where.
        target: String,
    },
    /// Unmount.
    Unmount {
        /// Where.
        target: String,
    },
    /// Bring all blobs of a manifest into the store as files, and keep them until who asks hangs up.
    Save {
        /// What: `reference`, `pullPolicy`, and what chooses from an index.
        content: Content,
    },
    /// Bring the manifests of an image layout into the store, under their names and for everybody.
    Load(Load),
    /// List the store.
    List,
    /// Take away what nothing needs.
    Collect {
        /// Only say what that is.
        dry_run: bool,
    },
    /// Take away what has this name, unless it is in use.
    Remove {
        /// A reference, or a digest.
        name: String,
    },
    /// Compare the store with what is recorded of it, and take out what is damaged.
    Fsck,
    /// Tell what the plugin does.
    Status,
}

/// What to pull, and as whom.
#[derive(Clone, Serialize, Deserialize)]
pub struct Content {
    /// As in a volume.
    pub attributes: BTreeMap<String, String>,
    /// The text of the caller's Docker `config.json`.
    pub docker_config: Option<String>,
}

impl std::fmt::Debug for Content {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Content").field("attributes", &self.attributes).finish_non_exhaustive()
    }
}

/// What to load.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Load {
    /// The absolute path of a directory or archive, as the process that holds the store sees it.
    pub path: String,
    /// The name of its only manifest, if not the one that it has there.
    pub name: Option<String>,
    /// `os/arch[/variant]`, for an index; this machine's if not said.
    pub platform: Option<String>,
}

/// One line of an answer; the last one is not `Progress`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reply {
    /// It goes on.
    Progress(Snapshot),
    /// A tree is in the store.
    Pulled(Pulled),
    /// A tree is mounted.
    Mounted(Pulled),
    /// Nothing is mounted there any more.
    Unmounted,
    /// Blobs are files in the store.
    Saved(Saved),
    /// Manifests are in the store under their names.
    Loaded(Vec<Pulled>),
    /// What the store holds.
    List(Listing),
    /// What went, or would.
    Collected(Report),
    /// What went because it was named.
    Removed(Removed),
    /// What was damaged.
    Checked(CheckReport),
    /// What the plugin does.
    Status(Box<Status>),
    /// It failed.
    Failed(Failure),
}

/// A tree in the store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pulled {
    /// What was asked for.
    pub reference: String,
    /// What it resolved to: an index, or the manifest itself.
    pub digest: String,
    /// The manifest that it shows.
    #[serde(default)]
    pub manifest: String,
    /// The artifact family.
    #[serde(default)]
    pub family: String,
    /// Bytes of all files.
    pub size: u64,
    /// How many files.
    pub files: usize,
    /// What of its archives was left out by rule.
    pub dropped: Dropped,
    /// Bytes that came over the network.
    pub fetched: u64,
    /// Whether a registry was asked what the reference is.
    #[serde(default)]
    pub asked: bool,
    /// When one said so last, in seconds since the epoch; 0 where that is not known.
    #[serde(default)]
    pub resolved_at: u64,
    /// The tree's name in the store.
    pub tree: String,
    /// Its directory. A plugin that does not say it is another version's, and cannot be worked with.
    pub path: PathBuf,
}

/// A manifest whose blobs are files in the store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Saved {
    /// What was asked for.
    pub reference: String,
    /// What it resolved to: an index, or the manifest itself.
    pub digest: Digest,
    /// The manifest's media type.
    pub media_type: String,
    /// The manifest, its config and its layers, in this order and each once.
    pub blobs: Vec<Blob>,
    /// Bytes that came over the network.
    pub fetched: u64,
}

/// A blob as a file of the store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Blob {
    /// Its digest.
    pub digest: Digest,
    /// Its bytes.
    pub size: u64,
    /// Where its file is, below the store's directory.
    pub path: PathBuf,
}
