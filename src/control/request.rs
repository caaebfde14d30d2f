//! What the command line asks, and what is answered.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::failure::Failure;
use crate::failure::Kind;
use crate::layer::format::Dropped;
use crate::pull::progress::Snapshot;
use crate::registry::credentials::Keyring;
use crate::volume::attributes::Attributes;
use crate::volume::list::Listed;
use crate::volume::publish::{Publish, Published, pull_request};
use crate::volume::volumes::Volumes;
use crate::{pull, volume};

/// The socket's name in the store's directory.
pub const SOCKET: &str = "control.sock";

/// What is asked.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "kebab-case")]
pub enum Request {
    /// Bring a tree into the store.
    Pull(Content),
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
    /// List the store.
    List,
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
    /// What the store holds.
    List(Vec<Listed>),
    /// It failed.
    Failed(Failure),
}

/// A tree in the store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pulled {
    /// What was asked for.
    pub reference: String,
    /// What it resolved to.
    pub digest: String,
    /// Bytes of all files.
    pub size: u64,
    /// How many files.
    pub files: usize,
    /// What of its archives was left out by rule.
    pub dropped: Dropped,
    /// Bytes that came over the network.
    pub fetched: u64,
    /// The directory in the store.
    pub tree: PathBuf,
}

/// How often progress is told.
const PROGRESS_EVERY: Duration = Duration::from_millis(200);
/// A person waits as long as it takes; this only bounds it.
const PATIENCE: Duration = Duration::from_secs(7 * 24 * 3600);

/// Does what `request` asks, and tells `progress` of it meanwhile.
///
/// # Errors
/// [`Failure`], whatever failed.
pub async fn execute(
    volumes: &Volumes,
    request: Request,
    mut progress: impl FnMut(Snapshot),
) -> Result<Reply, Failure> {
    match request {
        Request::Pull(content) => {
            let (attributes, keyring) = content.check()?;
            pull(volumes, &attributes, &keyring, &mut progress).await.map(Reply::Pulled)
        }
        Request::Mount { content, target } => {
            let (attributes, keyring) = content.check()?;
            let target = volumes.check_any_target(&target)?;
            let pulled = pull(volumes, &attributes, &keyring, &mut progress).await?;
            let volume_id = format!("command line {}", target.path().display());
            let publish = Publish {
                arguments: volume::publish::arguments(&volume_id, &content.attributes, "command line"),
                volume_id,
                target,
                attributes,
                read_only: true,
                keyring,
                deadline: Instant::now() + PATIENCE,
            };
            match volumes.publish(publish).await? {
                Published::Mounted(_) => Ok(Reply::Mounted(pulled)),
                Published::AlreadyThere => Err(Failure {
                    kind: Kind::AlreadyExists,
                    message: "it is mounted there already; unmount it first to get what the tag is now"
                        .into(),
                }),
            }
        }
        Request::Unmount { target } => {
            let target = volumes.check_any_target(&target)?;
            volumes.unmount(target).await?;
            Ok(Reply::Unmounted)
        }
        Request::List => Ok(Reply::List(volumes.list().await?)),
    }
}

impl Content {
    fn check(&self) -> Result<(Attributes, Keyring), Failure> {
        let attributes = Attributes::parse(&self.attributes).map_err(volume::error::Error::from)?;
        let keyring = match &self.docker_config {
            Some(text) => {
                Keyring::from_docker_config(text, "the Docker config").map_err(volume::error::Error::from)?
            }
            None => Keyring::default(),
        };
        Ok((attributes, keyring))
    }
}

async fn pull(
    volumes: &Volumes,
    attributes: &Attributes,
    keyring: &Keyring,
    progress: &mut impl FnMut(Snapshot),
) -> Result<Pulled, Failure> {
    let mut pull = volumes.puller().await?.pull(pull_request(attributes, keyring));
    let state = std::sync::Arc::clone(pull.state());
    let mut ticks = tokio::time::interval(PROGRESS_EVERY);
    let outcome = loop {
        tokio::select! {
            outcome = pull.wait() => break outcome,
            () = volumes.stopping() => return Err(volume::error::Error::Stopping.into()),
            _ = ticks.tick() => progress(state.snapshot()),
        }
    };
    let pulled = match outcome {
        Some(result) => result.map_err(volume::error::Error::Pull)?,
        None => {
            return Err(volume::error::Error::Pull(std::sync::Arc::new(pull::error::Error::Stopped)).into());
        }
    };
    Ok(Pulled {
        reference: attributes.reference.to_string(),
        digest: pulled.digest.to_string(),
        size: pulled.tree.image.size,
        files: pulled.tree.image.files,
        dropped: pulled.tree.image.dropped,
        fetched: pulled.fetched,
        tree: pulled.tree.root.clone(),
    })
}
