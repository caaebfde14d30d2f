//! Whether what is mounted here reaches the pods.

use crate::failure::Failure;
use crate::mount::mountinfo::Table;
use crate::node::config::NodeConfig;

/// Mounts reach the pods only if the directory of pods propagates them (`mountPropagation: Bidirectional`). Where it
/// is mounted by itself, as in a container, and does not, nothing would ever work.
///
/// Returns whether they are seen to.
///
/// # Errors
/// When nothing would ever work.
pub(in crate::node) fn check(config: &NodeConfig) -> Result<bool, Failure> {
    let Some(pods) = &config.policy.pods else { return Ok(true) };
    let Ok(table) = Table::read() else { return Ok(false) };
    if table.holder(pods).is_some_and(|mount| mount.shared) {
        return Ok(true);
    }
    let what =
        "mounts made here do not reach the pods; set mountPropagation: Bidirectional on the volume mount of";
    if table.at(pods).is_some() {
        let advice = "and see that the node's mounts are shared (mount --make-rshared /)";
        return Err(Failure::internal(&format!("{what} {}, {advice}", pods.display())));
    }
    tracing::warn!(pods = %pods.display(), "{what} this directory, if this is a container");
    Ok(false)
}
