//! What `ocivol status` tells of a plugin.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::failure::Failure;
use crate::volume::census::Census;
use crate::volume::status::PullStatus;
use crate::volume::volumes::Volumes;

/// A plugin and what it does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Who it is.
    #[serde(flatten)]
    pub about: About,
    /// What it holds, and how full its disk is.
    pub store: Census,
    /// Pulls that run, the oldest first.
    pub pulls: Vec<PullStatus>,
}

/// A plugin, as it knows itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct About {
    /// Its version.
    pub version: String,
    /// The driver's name.
    pub driver: String,
    /// The node's name.
    pub node: String,
    /// Whether kubelet sends it volumes, and it can use its store: what `/readyz` says.
    pub ready: bool,
    /// What has to be so for volumes to be published.
    pub checks: Vec<Check>,
    /// Whether it asks the Kubernetes API for something, or writes events there.
    pub uses_api_server: bool,
}

/// Something that has to be so.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    /// What.
    pub name: String,
    /// Whether it is.
    pub ok: bool,
    /// How it stands, in words.
    pub message: String,
}

/// Says who the plugin is. It does not block.
pub type AboutNode = Arc<dyn Fn() -> About + Send + Sync>;

/// Counts what the store holds, and looks what goes on.
///
/// # Errors
/// When the store or the mount table cannot be read.
pub(in crate::control) async fn look(volumes: &Volumes, about: &AboutNode) -> Result<Status, Failure> {
    let store = volumes.census().await?;
    Ok(Status { about: about(), store, pulls: volumes.pulls_in_flight() })
}
