//! The tenants that wait for the same thing: a blob, a layer, a tree is made once, for all who need it.
//!
//! It goes on as soon as it is the turn of any of them. So who joins others, of whom one has much else to do, does not wait behind
//! that.

use std::collections::HashSet;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tokio::sync::watch;

use crate::host::fair_queue::{FairQueue, Permit};
use crate::tenant::Tenant;

/// Who waits for one thing, or has waited.
#[derive(Debug)]
pub struct Tenants {
    all: watch::Sender<HashSet<Tenant>>,
}

impl Default for Tenants {
    fn default() -> Self {
        Self { all: watch::Sender::new(HashSet::new()) }
    }
}

impl Tenants {
    /// One more waits.
    pub fn add(&self, tenant: &Tenant) {
        self.all.send_if_modified(|all| all.insert(tenant.clone()));
    }

    /// Whether nobody waits for it: all of them are last ([`Tenant::is_last`]).
    pub fn are_last(&self) -> bool {
        self.all.borrow().iter().all(Tenant::is_last)
    }

    /// Waits until one of them has `units` of one of `queues`. *Caller:* there is at least one tenant.
    pub async fn acquire(&self, queues: &[&FairQueue], units: u64) -> Permit {
        let mut changes = self.all.subscribe();
        let mut waiting = FuturesUnordered::new();
        let mut known = HashSet::new();
        loop {
            // Who waits already keeps the place.
            let all = changes.borrow_and_update().clone();
            for tenant in all.into_iter().filter(|tenant| known.insert(tenant.clone())) {
                for queue in queues {
                    let tenant = tenant.clone();
                    waiting.push(async move { queue.acquire(&tenant, "", units).await });
                }
            }
            tokio::select! {
                biased;
                Some(permit) = waiting.next() => return permit,
                // The sender is `self`.
                _ = changes.changed() => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    fn tenant(name: &str) -> Tenant {
        Tenant::of_namespace(Some(name))
    }

    #[tokio::test]
    async fn who_joins_does_not_wait_in_the_line_of_who_came_first() {
        let queue = FairQueue::new(4);
        let (loud, quiet) = (tenant("loud"), tenant("quiet"));
        let _held = [queue.acquire(&loud, "", 1).await, queue.acquire(&loud, "", 1).await];
        let tenants = Tenants::default();
        tenants.add(&loud);
        let queues = [&queue];
        let mut waits = Box::pin(tenants.acquire(&queues, 1));
        assert!(waits.as_mut().now_or_never().is_none(), "the first has half");
        tenants.add(&quiet);
        assert!(waits.as_mut().now_or_never().is_some());
    }

    #[tokio::test]
    async fn the_first_queue_that_has_some_gives_it() {
        let (full, free) = (FairQueue::new(1), FairQueue::new(1));
        let _held = full.acquire(&tenant("other"), "", 1).await;
        let tenants = Tenants::default();
        tenants.add(&tenant("one"));
        drop(tenants.acquire(&[&full, &free], 1).await);
        // What was waited for and not needed is not taken.
        assert!(free.try_acquire(&tenant("next"), "", 1).is_some());
    }
}
