//! How many publishes are worked on or wait: on the node, of a tenant, and of a pod. More are refused, and kubelet tries again.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::host::fair_queue::{FairQueue, Permit};
use crate::host::limits;
use crate::tenant::Tenant;
use crate::volume::error::Error;

/// The slots of the node.
#[derive(Debug, Clone)]
pub(in crate::volume) struct Slots {
    all: FairQueue,
    pods: Arc<Mutex<HashMap<String, u64>>>,
}

/// One slot, until dropped.
#[derive(Debug)]
pub(in crate::volume) struct Slot {
    _all: Permit,
    pods: Arc<Mutex<HashMap<String, u64>>>,
    pod: Option<String>,
}

impl Slots {
    pub(in crate::volume) fn new() -> Self {
        Self { all: FairQueue::new(limits::PUBLISHES), pods: Arc::default() }
    }

    /// A slot for a publish of `tenant`, for the pod with this UID.
    ///
    /// # Errors
    /// [`Error::TooManyOfPod`], [`Error::TooMany`].
    pub(in crate::volume) fn take(&self, tenant: &Tenant, pod: Option<&str>) -> Result<Slot, Error> {
        let mut pods = lock(&self.pods);
        if let Some(pod) = pod {
            let taken = pods.get(pod).copied().unwrap_or_default();
            if taken >= limits::PUBLISHES_OF_A_POD {
                return Err(Error::TooManyOfPod { limit: limits::PUBLISHES_OF_A_POD });
            }
        }
        let all = self
            .all
            .try_acquire(tenant, "", 1)
            .ok_or_else(|| Error::TooMany { tenant: tenant.to_string(), limit: limits::PUBLISHES })?;
        if let Some(pod) = pod {
            *pods.entry(pod.to_owned()).or_default() += 1;
        }
        Ok(Slot { _all: all, pods: Arc::clone(&self.pods), pod: pod.map(str::to_owned) })
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let Some(pod) = &self.pod else { return };
        let mut pods = lock(&self.pods);
        if let Some(taken) = pods.get_mut(pod) {
            *taken -= 1;
            if *taken == 0 {
                pods.remove(pod);
            }
        }
    }
}

fn lock(pods: &Mutex<HashMap<String, u64>>) -> MutexGuard<'_, HashMap<String, u64>> {
    pods.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regression_a_pod_and_a_tenant_have_bounds_of_their_own() {
        let slots = Slots::new();
        let loud = Tenant::of_namespace(Some("loud"));
        let of_pod = |pod: &str| -> Vec<Slot> {
            std::iter::from_fn(|| slots.take(&loud, Some(pod)).ok()).take(2000).collect()
        };
        let first = of_pod("one");
        assert_eq!(first.len() as u64, limits::PUBLISHES_OF_A_POD);
        assert!(matches!(slots.take(&loud, Some("one")), Err(Error::TooManyOfPod { .. })));
        let pods: Vec<Vec<Slot>> = (0..20).map(|number| of_pod(&number.to_string())).collect();
        let taken = first.len() + pods.iter().map(Vec::len).sum::<usize>();
        assert_eq!(taken as u64, limits::PUBLISHES / 2);
        assert!(matches!(slots.take(&loud, Some("new")), Err(Error::TooMany { .. })));
        assert!(slots.take(&Tenant::of_namespace(Some("quiet")), Some("other")).is_ok());
        drop(first);
        assert!(slots.take(&loud, Some("one")).is_ok());
        drop(pods);
        assert!(lock(&slots.pods).is_empty());
    }
}
