//! The quotas of namespaces, for pulls that run.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::host::blocking;
use crate::pull::error::Error;
use crate::store::collect::quota;
use crate::store::open::Store;
use crate::store::space::amount::Amount;
use crate::store::space::quota::Quota;
use crate::tenant::Tenant;
use crate::transfer::error::Error as TransferError;

/// Says whether a namespace may bring in more.
#[derive(Clone)]
pub struct Quotas {
    store: Arc<Store>,
    quota: Quota,
    coming: Arc<Mutex<HashMap<Tenant, u64>>>,
    /// Held by who asks: what a namespace has is added up from all records.
    asking: Arc<tokio::sync::Mutex<()>>,
}

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

    /// Makes sure that `tenant` may bring in so many bytes, beside what comes for it at this moment. Whoever works on the node
    /// itself has no quota.
    ///
    /// # Errors
    /// [`crate::store::error::Error::Quota`]; those of the store.
    pub async fn admit(&self, tenant: &Tenant, bytes: u64) -> Result<Admission, Error> {
        if !self.quota.is_endless() && *tenant != Tenant::CommandLine {
            let _one = self.asking.lock().await;
            let coming = self.lock().get(tenant).copied().unwrap_or(0).saturating_add(bytes);
            let (store, quota, of) = (Arc::clone(&self.store), self.quota, tenant.clone());
            let make_room =
                move || quota::make_room(&store, &of, &quota, Amount { bytes: coming, inodes: 1 });
            blocking::on_own_thread("collect", make_room).await.map_err(TransferError::Thread)??;
        }
        *self.lock().entry(tenant.clone()).or_default() += bytes;
        Ok(Admission { quotas: self.clone(), tenant: tenant.clone(), bytes })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Tenant, u64>> {
        self.coming.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Admission {
    fn drop(&mut self) {
        let mut coming = self.quotas.lock();
        if let Some(bytes) = coming.get_mut(&self.tenant) {
            *bytes = bytes.saturating_sub(self.bytes);
            if *bytes == 0 {
                coming.remove(&self.tenant);
            }
        }
    }
}
