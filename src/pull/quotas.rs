//! The quotas of namespaces, for pulls that run.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::host::blocking;
use crate::pull::error::Error;
use crate::store::collect::quota;
use crate::store::open::Store;
use crate::store::space::amount::Amount;
use crate::store::space::quota::{Possession, Quota};
use crate::tenant::Tenant;
use crate::transfer::error::Error as TransferError;

/// Says whether a namespace may bring in more.
#[derive(Clone)]
pub struct Quotas {
    store: Arc<Store>,
    quota: Quota,
    coming: Arc<Mutex<HashMap<Tenant, Coming>>>,
    /// Held by who asks, one for some namespaces each: what one has is added up from all records.
    asking: Arc<[tokio::sync::Mutex<()>; LINES]>,
}

/// What comes for a namespace at this moment.
#[derive(Debug, Clone, Copy, Default)]
struct Coming {
    bytes: u64,
    trees: u64,
}

/// Lines of those who ask.
const LINES: usize = 16;

/// What a pull may bring in, until it is dropped.
pub struct Admission {
    quotas: Quotas,
    tenant: Tenant,
    bytes: u64,
}

impl Quotas {
    /// Every namespace has the same.
    pub fn new(store: Arc<Store>, quota: Quota) -> Self {
        Self { store, quota, coming: Arc::default(), asking: Arc::default() }
    }

    /// Makes sure that `tenant` may bring in so many bytes and one tree, beside what comes for it at this moment. Whoever works on
    /// the node itself has no quota, and what an operator wants to be there before pods has none.
    ///
    /// # Errors
    /// [`crate::store::error::Error::Quota`]; those of the store.
    pub async fn admit(&self, tenant: &Tenant, bytes: u64) -> Result<Admission, Error> {
        if self.quota.is_endless() || matches!(tenant, Tenant::CommandLine | Tenant::PrePull) {
            return Ok(self.note(tenant, bytes));
        }
        // Until it is noted: the next of this namespace counts it.
        let _one = self.line_of(tenant).lock().await;
        let coming = self.lock().get(tenant).copied().unwrap_or_default();
        let takes = Amount { bytes: coming.bytes.saturating_add(bytes), inodes: 1 };
        let more = Possession { takes, trees: coming.trees + 1 };
        let (store, quota, of) = (Arc::clone(&self.store), self.quota, tenant.clone());
        let make_room = move || quota::make_room(&store, &of, &quota, more);
        blocking::on_own_thread("collect", make_room).await.map_err(TransferError::Thread)??;
        Ok(self.note(tenant, bytes))
    }

    fn note(&self, tenant: &Tenant, bytes: u64) -> Admission {
        let mut all = self.lock();
        let coming = all.entry(tenant.clone()).or_default();
        coming.bytes = coming.bytes.saturating_add(bytes);
        coming.trees += 1;
        drop(all);
        Admission { quotas: self.clone(), tenant: tenant.clone(), bytes }
    }

    fn line_of(&self, tenant: &Tenant) -> &tokio::sync::Mutex<()> {
        let hash = xxhash_rust::xxh3::xxh3_64(tenant.to_string().as_bytes());
        &self.asking[usize::try_from(hash % LINES as u64).unwrap_or_default()]
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Tenant, Coming>> {
        self.coming.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Admission {
    fn drop(&mut self) {
        let mut all = self.quotas.lock();
        if let Some(coming) = all.get_mut(&self.tenant) {
            coming.bytes = coming.bytes.saturating_sub(self.bytes);
            coming.trees = coming.trees.saturating_sub(1);
            if coming.trees == 0 {
                all.remove(&self.tenant);
            }
        }
    }
}
