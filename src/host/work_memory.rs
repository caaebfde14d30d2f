//! Memory for work that takes much of it and does not take long: manifests and configs that are read, plans, merges, large
//! windows.
//!
//! What takes little has a lane of its own. So a layer whose window takes most of the memory for minutes of the processor holds up
//! other such layers, and neither manifests nor the trees of common images.

use crate::host::fair_queue::{FairQueue, Permit};
use crate::host::limits;
use crate::host::tenants::Tenants;
use crate::tenant::Tenant;

/// Bytes of memory, shared between tenants. Clones share them.
#[derive(Debug, Clone)]
pub struct WorkMemory {
    small: FairQueue,
    large: FairQueue,
}

impl Default for WorkMemory {
    fn default() -> Self {
        let (small, large) = (FairQueue::new(limits::SMALL_WORK_BYTES), FairQueue::new(limits::WORK_BYTES));
        Self { small, large }
    }
}

impl WorkMemory {
    /// Waits for `bytes` on behalf of `tenant`.
    pub async fn acquire(&self, tenant: &Tenant, bytes: u64) -> Permit {
        self.lane(bytes).acquire(tenant, "", bytes).await
    }

    /// Waits for `bytes` until it is the turn of one of `tenants`. *Caller:* there is at least one.
    pub async fn acquire_for(&self, tenants: &Tenants, bytes: u64) -> Permit {
        tenants.acquire(&[self.lane(bytes)], bytes).await
    }

    fn lane(&self, bytes: u64) -> &FairQueue {
        if bytes <= limits::SMALL_WORK { &self.small } else { &self.large }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    #[tokio::test]
    async fn a_manifest_does_not_wait_for_large_windows() {
        let memory = WorkMemory::default();
        let tenant = |name: &str| Tenant::of_namespace(Some(name));
        let _window = memory.acquire(&tenant("a"), limits::LARGE_UNPACK).await;
        assert!(memory.acquire(&tenant("c"), limits::LARGE_WINDOW).now_or_never().is_none());
        assert!(memory.acquire(&tenant("c"), limits::SMALL_WORK).now_or_never().is_some());
    }
}
