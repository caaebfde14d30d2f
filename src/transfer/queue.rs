//! How many transfers run: so many of each tenant, so many of these from one registry, and so many on the node.
//!
//! Small blobs have a lane of their own, so that they never wait behind large ones.

use crate::host::fair_queue::{FairQueue, Permit};
use crate::host::limits;
use crate::registry::source::Asker;

/// Turns for transfers.
#[derive(Debug)]
pub struct Queue {
    large: FairQueue,
    small: FairQueue,
    /// Layers that are unpacked, of large and of small blobs.
    large_unpacks: FairQueue,
    small_unpacks: FairQueue,
    /// Connections beside the first of a transfer.
    helpers: FairQueue,
}

/// A turn, until dropped.
#[derive(Debug)]
pub struct Turn {
    _transfer: Permit,
    _unpack: Option<Permit>,
}

impl Queue {
    /// `per_registry` is how many large blobs a tenant fetches at a time from one registry.
    pub fn new(per_registry: usize) -> Self {
        Self {
            large: FairQueue::with_registries(limits::LARGE_TRANSFERS, per_registry as u64),
            small: FairQueue::with_registries(limits::SMALL_TRANSFERS, limits::SMALL_PER_REGISTRY),
            large_unpacks: FairQueue::new(limits::LARGE_UNPACKS),
            small_unpacks: FairQueue::new(limits::SMALL_UNPACKS),
            helpers: FairQueue::new(limits::HELPERS),
        }
    }

    /// Whether a blob of `size` bytes is small.
    pub fn is_small(size: u64) -> bool {
        size <= limits::SMALL_BLOB
    }

    /// Waits for a turn to fetch `size` bytes for `asker`, which are unpacked if `unpacks`.
    pub async fn turn(&self, asker: &Asker, size: u64, unpacks: bool) -> Turn {
        let host = &asker.source.repository.host;
        let (transfers, unpackers) = if Self::is_small(size) {
            (&self.small, &self.small_unpacks)
        } else {
            (&self.large, &self.large_unpacks)
        };
        let unpack = match unpacks {
            true => Some(unpackers.acquire(&asker.tenant, host, 1).await),
            false => None,
        };
        Turn { _transfer: transfers.acquire(&asker.tenant, host, 1).await, _unpack: unpack }
    }

    /// Waits for a turn to unpack a file of the store that has `size` bytes.
    pub async fn local(&self, asker: &Asker, size: u64) -> Permit {
        let unpackers = if Self::is_small(size) { &self.small_unpacks } else { &self.large_unpacks };
        unpackers.acquire(&asker.tenant, "", 1).await
    }

    /// One more connection for `asker`, if it can be had at once.
    pub fn helper(&self, asker: &Asker) -> Option<Permit> {
        self.helpers.try_acquire(&asker.tenant, &asker.source.repository.host, 1)
    }
}
