//! Which registries metrics tell apart: those that the operator has named. Pod authors name others, as many as they like.

use crate::node::config::NodeConfig;
use crate::oci::repository::Repository;

/// Hosts, with their ports, in the order of how much they are the operator's own. *Caller:* may block; a directory is listed.
pub(in crate::node) fn of(config: &NodeConfig) -> Vec<String> {
    let pinned = config.pins.iter().map(Repository::of).filter(|pin| !pin.is_layout());
    let all = pinned.map(|pin| pin.host).chain(config.permits.registries());
    let mut names: Vec<String> = Vec::new();
    for name in all.chain(config.registry.hosts.registries()) {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    names
}
