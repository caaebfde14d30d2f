//! Memory for what takes much of it: plans, as long as a pull lasts; and work that does not take long: manifests and configs that are
//! read, merges, large windows.
//!
//! What takes little has a lane of its own. So a layer whose window takes most of the memory for minutes of the processor holds up
//! other such layers, and neither manifests nor the trees of common images.

use crate::host::fair_queue::{FairQueue, Permit};
use crate::host::limits;
use crate::host::tenants::Tenants;
use crate::tenant::Tenant;

/// Bytes of memory, shared between tenants. Clones share them.
#[derive(Debug, Clone)]
pub struct Memory {
    small: FairQueue,
    large: FairQueue,
    /// Bytes of a request that is small, at most.
    at_most: u64,
}

impl Memory {
    /// For work, which ends by itself: nobody is passed over for ever.
    pub fn for_work() -> Self {
        let small = FairQueue::new(limits::SMALL_WORK_BYTES).with_patience();
        let large = FairQueue::new(limits::WORK_BYTES).with_patience();
        Self { small, large, at_most: limits::SMALL_WORK }
    }

    /// For plans, which are held as long as a registry takes.
    pub fn for_plans() -> Self {
        let (small, large) = (FairQueue::new(limits::SMALL_PLAN_BYTES), FairQueue::new(limits::PLAN_BYTES));
        Self { small, large, at_most: limits::SMALL_PLAN }
    }

    /// Waits for `bytes` on behalf of `tenant`.
    pub async fn acquire(&self, tenant: &Tenant, bytes: u64) -> Permit {
        self.lane(bytes).acquire(tenant, "", bytes).await
    }

    /// The same for what takes milliseconds, however much of memory.
    pub async fn acquire_for_a_moment(&self, tenant: &Tenant, bytes: u64) -> Permit {
        self.small.acquire(tenant, "", bytes).await
    }

    /// Waits for `bytes` until it is the turn of one of `tenants`. *Caller:* there is at least one.
    pub async fn acquire_for(&self, tenants: &Tenants, bytes: u64) -> Permit {
        tenants.acquire(&[self.lane(bytes)], bytes).await
    }

    /// Takes `bytes` if they can be had at once.
    pub fn try_acquire(&self, tenant: &Tenant, bytes: u64) -> Option<Permit> {
        self.lane(bytes).try_acquire(tenant, "", bytes)
    }

    fn lane(&self, bytes: u64) -> &FairQueue {
        if bytes <= self.at_most { &self.small } else { &self.large }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    #[tokio::test]
    async fn a_manifest_does_not_wait_for_large_windows() {
        let memory = Memory::for_work();
        let tenant = |name: &str| Tenant::of_namespace(Some(name));
        let _window = memory.acquire(&tenant("a"), limits::LARGE_UNPACK).await;
        assert!(memory.acquire(&tenant("b"), limits::LARGE_WINDOW).now_or_never().is_none());
        assert!(memory.acquire(&tenant("b"), limits::SMALL_WORK).now_or_never().is_some());
        assert!(memory.acquire_for_a_moment(&tenant("b"), 32 << 20).now_or_never().is_some());
    }
}
