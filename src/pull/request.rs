//! What is asked of a pull, and what it gives.

use std::sync::Arc;
use std::time::Duration;

use crate::layout::options::Options;
use crate::oci::digest::Digest;
use crate::oci::reference::Reference;
use crate::pull::choose::Choice;
use crate::registry::credentials::secret::Credential;
use crate::store::content::trees::Tree;
use crate::store::disk::Moment;
use crate::store::space::quota::Quota;
use crate::store::usage::holds::Hold;
use crate::tenant::Tenant;

/// What to pull, and as whom. Equal requests share one pull.
#[derive(Debug, Clone)]
pub struct PullRequest {
    /// On whose behalf.
    pub tenant: Tenant,
    /// What.
    pub reference: Reference,
    /// Whether the registry is asked although the content may be here.
    pub policy: PullPolicy,
    /// What to choose from an index.
    pub choice: Choice,
    /// Which files, and how.
    pub options: Options,
    /// Whether everybody may read the files; the family decides if it is not said.
    pub readable: Option<bool>,
    /// Whether an image that no index says the platform of has to be for the one that is chosen.
    pub exact_platform: bool,
    /// Tried in order.
    pub credentials: Vec<Credential>,
    /// Whether it is tried without any after them.
    pub anonymous: bool,
    /// What is to know of credentials that could not be had, for the error; without secrets.
    pub notes: Vec<String>,
}

/// Kubernetes' words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PullPolicy {
    /// Ask the registry each time what the tag is now.
    Always,
    /// Ask only when the content is not here, or this asker has not shown a right to it.
    IfNotPresent,
    /// Never ask.
    Never,
}

/// Bounds and times of pulls.
#[derive(Debug, Clone)]
pub struct PullSettings {
    /// Large blobs that a tenant downloads from one registry at the same time.
    pub parallel_downloads: usize,
    /// A pull that nobody waits for stops after this time.
    pub abandon_after: Duration,
    /// Whether the uncompressed layers of images have to be what their configs promise.
    pub verify_diff_ids: bool,
    /// How long a right that was shown is believed without asking the registry again; for good if not said.
    pub grant_ttl: Option<Duration>,
    /// Whether the registry is asked for each volume with private content, whatever was shown before.
    pub always_verify: bool,
    /// What each namespace may bring in that nobody else uses.
    pub quota: Quota,
    /// Layers of blobs above so many bytes are files before they are unpacked, so that they are resumed after a restart; none if not
    /// said.
    pub spool_above: Option<u64>,
    /// Bytes per second that come of all together that nobody waits for ([`Tenant::is_last`]); as many as can if not said.
    pub prepull_bytes_per_second: Option<u64>,
}

impl Default for PullSettings {
    fn default() -> Self {
        Self {
            parallel_downloads: 4,
            abandon_after: Duration::from_secs(600),
            verify_diff_ids: false,
            grant_ttl: None,
            always_verify: false,
            quota: Quota::default(),
            spool_above: None,
            prepull_bytes_per_second: None,
        }
    }
}

/// A tree, and what it shows. It is not collected as long as this exists.
#[derive(Debug, Clone)]
pub struct Pulled {
    /// The tree.
    pub tree: Tree,
    /// What the reference resolved to: an index, or the manifest itself.
    pub digest: Digest,
    /// Bytes that came over the network for it.
    pub fetched: u64,
    /// Whether a registry was asked what the reference is.
    pub asked: bool,
    /// When one said so last, the epoch where that is not known.
    pub at: Moment,
    /// Holds the tree.
    pub(in crate::pull) _hold: Arc<Hold>,
}
