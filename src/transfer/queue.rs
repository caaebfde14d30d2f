//! How many transfers run, and how many layers are unpacked: so many of each tenant, so many of these from one registry, and so
//! many on the node.
//!
//! Small blobs have lanes of their own, so that they never wait behind large ones. A layer is unpacked while it comes only if
//! there is room for that at once; else it is a file until all of it is here. So who unpacks in its turn holds it as long as
//! processor and disk take, and no turn that others wait for is held as long as a registry likes.

use crate::host::fair_queue::{FairQueue, Permit};
use crate::host::limits;
use crate::host::tenants::Tenants;
use crate::registry::source::Asker;
use crate::tenant::Tenant;
use crate::unpack::directory_memory::DirectoryMemory;

/// Turns for transfers, and to unpack.
#[derive(Debug)]
pub struct Queue {
    small: Lane,
    large: Lane,
    /// Connections beside the first of a transfer.
    helpers: FairQueue,
    /// Memory for directories of layers that are unpacked.
    directories: FairQueue,
}

/// Turns for blobs of like size.
#[derive(Debug)]
struct Lane {
    transfers: FairQueue,
    /// Layers that are unpacked while they come.
    unpacks_while_coming: FairQueue,
    /// Layers that are unpacked when they are here.
    unpacks: FairQueue,
}

impl Queue {
    /// `per_registry` is how many large blobs a tenant fetches at a time from one registry.
    pub fn new(per_registry: usize) -> Self {
        let small = Lane {
            transfers: FairQueue::with_registries(limits::SMALL_TRANSFERS, limits::SMALL_PER_REGISTRY),
            unpacks_while_coming: FairQueue::new(limits::SMALL_UNPACKS_WHILE_COMING),
            unpacks: FairQueue::new(limits::SMALL_UNPACKS),
        };
        let large = Lane {
            transfers: FairQueue::with_registries(limits::LARGE_TRANSFERS, per_registry as u64),
            unpacks_while_coming: FairQueue::new(limits::LARGE_UNPACKS_WHILE_COMING),
            unpacks: FairQueue::new(limits::LARGE_UNPACKS),
        };
        let (helpers, directories) =
            (FairQueue::new(limits::HELPERS), FairQueue::new(limits::DIRECTORY_BYTES));
        Self { small, large, helpers, directories }
    }

    /// Whether a blob of `size` bytes is small.
    pub fn is_small(size: u64) -> bool {
        size <= limits::SMALL_BLOB
    }

    /// Waits for a turn to fetch `size` bytes for `asker`.
    pub async fn transfer(&self, asker: &Asker, size: u64) -> Permit {
        self.lane(size).transfers.acquire(&asker.tenant, &asker.source.repository.host, 1).await
    }

    /// A turn to unpack a layer of `size` bytes while it comes, if it can be had at once.
    pub fn unpack_while_coming(&self, asker: &Asker, size: u64) -> Option<Permit> {
        self.lane(size).unpacks_while_coming.try_acquire(&asker.tenant, "", 1)
    }

    /// Waits for a turn to unpack a layer of `size` bytes that is here, for those who wait for it.
    pub async fn unpack(&self, tenants: &Tenants, size: u64) -> Permit {
        let lane = self.lane(size);
        tenants.acquire(&[&lane.unpacks_while_coming, &lane.unpacks], 1).await
    }

    /// Memory for directories, on behalf of `tenant`.
    pub fn directories(&self, tenant: &Tenant) -> DirectoryMemory {
        DirectoryMemory::Shared(self.directories.clone(), tenant.clone())
    }

    /// One more connection for `asker`, if it can be had at once.
    pub fn helper(&self, asker: &Asker) -> Option<Permit> {
        self.helpers.try_acquire(&asker.tenant, &asker.source.repository.host, 1)
    }

    fn lane(&self, size: u64) -> &Lane {
        if Self::is_small(size) { &self.small } else { &self.large }
    }
}
