//! What must not go, whatever room is needed.

use std::collections::{HashMap, HashSet};

use crate::store::collect::report::Reason;
use crate::store::collect::rules::{Mounted, Rules};
use crate::store::content::trees::Tree;
use crate::store::disk::now;
use crate::store::error::Error;
use crate::store::key::{LayerKey, Name, TreeKey};
use crate::store::open::Store;
use crate::store::usage::pins::Pin;

/// A last use that lies further ahead than this was noted when the clock was wrong.
const CLOCK_ERROR: u64 = 3600;

/// What is in use, as it was when this was read.
#[derive(Debug)]
pub(in crate::store) struct InUse {
    mounted: Mounted,
    /// Trees that targets are recorded with, whether the mount is there or not.
    recorded: HashSet<TreeKey>,
    leased: HashMap<TreeKey, u32>,
    pinned: HashMap<TreeKey, Pin>,
}

impl InUse {
    pub(in crate::store) fn read(store: &Store, mounted: Mounted) -> Result<Self, Error> {
        let recorded = store.volumes.all()?.into_iter().map(|record| record.tree).collect();
        let leased = store.leases.current()?.into_iter().map(|lease| (lease.tree, lease.pid)).collect();
        let pinned = store
            .pins
            .all()?
            .into_iter()
            .filter(|pin| pin.is_kept)
            .map(|pin| (pin.tree.clone(), pin))
            .collect();
        Ok(Self { mounted, recorded, leased, pinned })
    }

    /// Why `tree` has to stay, if it has to.
    pub(in crate::store) fn keeps(&self, store: &Store, tree: &Tree, rules: &Rules<'_>) -> Option<Reason> {
        let layer = tree.image.only_layer.as_ref();
        if self.has_mounted(&tree.key, layer) || self.recorded.contains(&tree.key) {
            return Some(Reason::Mounted);
        }
        if let Some(pid) = self.leased.get(&tree.key) {
            return Some(Reason::Leased(*pid));
        }
        if let Some(reference) = rules.pinned.reference(tree) {
            return Some(Reason::Pinned(reference.clone()));
        }
        if let Some(Pin { reference, artifact, .. }) = self.pinned.get(&tree.key) {
            return Some(Reason::Pinned(format!("{reference} (CachedArtifact {artifact})")));
        }
        if store.holds.is_held(Name::tree(&tree.key)) {
            return Some(Reason::Pulled);
        }
        let age = age(tree.usage.last_use);
        (age < rules.min_age.as_secs()).then_some(Reason::UsedAgo(age))
    }

    /// Whether the tree, or the layer that is the tree, is mounted.
    pub(in crate::store) fn has_mounted(&self, tree: &TreeKey, only_layer: Option<&LayerKey>) -> bool {
        match only_layer {
            Some(layer) => self.has_directory("layers", layer.as_str()),
            None => self.has_directory("trees", tree.as_str()),
        }
    }

    /// Whether a directory of the store is mounted.
    pub(in crate::store) fn has_directory(&self, kind: &str, name: &str) -> bool {
        self.mounted.contains(&format!("{kind}/{name}"))
    }
}

/// Seconds since `time`.
pub(in crate::store) fn age(time: u64) -> u64 {
    let now = now();
    if time > now + CLOCK_ERROR { u64::MAX } else { now.saturating_sub(time) }
}
