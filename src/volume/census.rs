//! What the store holds and how full its disk is, as it was counted last, for those who watch it.

use std::sync::{Arc, Mutex, PoisonError};

use prometheus_client::registry::Registry;
use serde::{Deserialize, Serialize};

use crate::host::metric::{Looked, Pairs};
use crate::store::error::Error as StoreError;
use crate::store::open::Store;
use crate::store::space::amount::Amount;

/// What was counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Census {
    /// What is used of the store's file system, by whomever.
    pub used: Amount,
    /// What is free there for who is not root.
    pub free: Amount,
    /// What may be used there, by whomever, until pulls are refused. No inodes where they are made as they are needed.
    pub limit: Amount,
    /// What a collection would free.
    pub evictable: Amount,
    /// What belongs to references that the configuration keeps, and is not mounted.
    pub pinned: Amount,
    /// Blobs as files.
    pub blobs: u64,
    /// Unpacked archives.
    pub layers: u64,
    /// What pods see.
    pub trees: u64,
    /// Volumes that pods describe themselves.
    pub inline_volumes: u64,
    /// Volumes of claims.
    pub persistent_volumes: u64,
    /// What commands have mounted.
    pub command_volumes: u64,
}

/// How full the file system of the store is: the part of a census that is measured in no time.
#[derive(Debug, Clone, Copy)]
pub(in crate::volume) struct Disk {
    used: Amount,
    free: Amount,
    limit: Amount,
}

/// What was counted last, if anything was. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Counted(Arc<Mutex<Option<Census>>>);

impl Disk {
    /// Asks the file system of `store`, which may block.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub(in crate::volume) fn measure(store: &Store) -> Result<Self, StoreError> {
        let usage = store.disk.room.measure()?;
        let (used, limit) = (usage.total.minus(usage.free), store.disk.room.limit(usage));
        Ok(Self { used, free: usage.free, limit })
    }
}

impl Census {
    /// The same, with how full the file system is.
    pub(in crate::volume) fn on(self, Disk { used, free, limit }: Disk) -> Self {
        Self { used, free, limit, ..self }
    }

    /// Which part of what may be used is used and would be so after a collection: 1 when pulls are refused.
    pub fn fill(&self) -> f64 {
        let needed = self.used.minus(self.evictable);
        let share = |needed: u64, limit: u64| if limit == 0 { 0.0 } else { needed as f64 / limit as f64 };
        share(needed.bytes, self.limit.bytes).max(share(needed.inodes, self.limit.inodes))
    }

    /// Volumes that are published.
    pub fn volumes(&self) -> u64 {
        self.inline_volumes + self.persistent_volumes + self.command_volumes
    }
}

impl Counted {
    pub(in crate::volume) fn set(&self, census: Census) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(census);
    }

    /// The file system is so full now. The census with that, if there was one: before, nobody knows what could be collected.
    pub(in crate::volume) fn measured(&self, disk: Disk) -> Option<Census> {
        let mut counted = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *counted = counted.map(|census| census.on(disk));
        *counted
    }

    pub(in crate::volume) fn register(&self, registry: &mut Registry) {
        let gauges = |look: fn(&Census) -> Vec<(Pairs, f64)>| {
            let counted = Arc::clone(&self.0);
            Looked::all(move || {
                look(&counted.lock().unwrap_or_else(PoisonError::into_inner).unwrap_or_default())
            })
        };
        let bytes = gauges(|census| {
            vec![
                (&[("kind", "used")], census.used.bytes as f64),
                (&[("kind", "evictable")], census.evictable.bytes as f64),
                (&[("kind", "pinned")], census.pinned.bytes as f64),
                (&[("kind", "free")], census.free.bytes as f64),
                (&[("kind", "limit")], census.limit.bytes as f64),
            ]
        });
        registry.register(
            "ocivol_store_bytes",
            "Bytes of the store's file system: used and free, whoever uses them; evictable, which a collection would free, of the 8192 trees that would go first; pinned, of pinned trees that are not mounted, where what several have in common is counted for each; and limit, the most that may be used",
            bytes,
        );
        let inodes = gauges(|census| {
            vec![
                (&[("kind", "used")], census.used.inodes as f64),
                (&[("kind", "evictable")], census.evictable.inodes as f64),
                (&[("kind", "limit")], census.limit.inodes as f64),
            ]
        });
        registry.register(
            "ocivol_store_inodes",
            "Inodes of the store's file system, as its bytes; limit 0 where there is none",
            inodes,
        );
        let entries = gauges(|census| {
            vec![
                (&[("kind", "blob")], census.blobs as f64),
                (&[("kind", "layer")], census.layers as f64),
                (&[("kind", "tree")], census.trees as f64),
            ]
        });
        registry.register("ocivol_store_entries", "What the store holds, by kind", entries);
        let volumes = gauges(|census| {
            vec![
                (&[("kind", "inline")], census.inline_volumes as f64),
                (&[("kind", "persistent")], census.persistent_volumes as f64),
                (&[("kind", "command")], census.command_volumes as f64),
            ]
        });
        registry.register(
            "ocivol_volumes",
            "Volumes that are published: inline in pods, of claims, and by commands on the node",
            volumes,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_collection_would_free_does_not_fill_the_store() {
        let amount = |bytes, inodes| Amount { bytes, inodes };
        let census = Census {
            used: amount(90, 10),
            evictable: amount(50, 0),
            limit: amount(80, 100),
            ..Census::default()
        };
        assert_eq!(census.fill(), 0.5);
        assert_eq!(Census { used: amount(90, 90), ..census }.fill(), 0.9, "the inodes");
        assert_eq!(Census { limit: amount(0, 0), ..census }.fill(), 0.0, "nothing is known yet");
    }

    #[test]
    fn how_full_the_disk_is_may_be_newer_than_what_was_counted() {
        let disk = Disk { used: Amount::bytes(90), free: Amount::bytes(10), limit: Amount::bytes(80) };
        let counted = Counted::default();
        assert_eq!(counted.measured(disk), None, "what could be collected is not known");
        let census =
            Census { used: Amount::bytes(50), evictable: Amount::bytes(20), trees: 3, ..Census::default() };
        counted.set(census);
        let now = counted.measured(disk).expect("it was counted");
        assert_eq!(now, Census { used: disk.used, free: disk.free, limit: disk.limit, ..census });
        assert_eq!(*counted.0.lock().expect("no panic"), Some(now), "it is what is served");
    }
}
