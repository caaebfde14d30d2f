//! The tree of a plan whose blobs are all here: linked once, whoever needs it.

use std::sync::Arc;
use std::time::Duration;

use crate::host::blocking;
use crate::host::fair_queue::FairQueue;
use crate::host::limits;
use crate::host::tenants::Tenants;
use crate::pull::error::Error;
use crate::store::content::build::Build;
use crate::store::content::file_list;
use crate::store::content::trees::Tree;
use crate::store::key::TreeKey;
use crate::store::open::Store;
use crate::tenant::Tenant;
use crate::transfer::error::Error as TransferError;
use crate::transfer::flight::Flights;

/// Links trees.
pub struct TreeBuilder {
    store: Arc<Store>,
    flights: Flights<TreeKey, Tenants, Result<Tree, Arc<TransferError>>>,
    /// Bytes of memory for what takes much of it and does not take long.
    memory: FairQueue,
}

/// Bytes of memory that linking a tree takes at least.
const SMALLEST: u64 = 1024 * 1024;

impl TreeBuilder {
    /// Merges take memory from `memory`.
    pub fn new(store: Arc<Store>, memory: FairQueue) -> Self {
        Self { store, flights: Flights::new(Duration::ZERO), memory }
    }

    /// Links the tree, or joins who does.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn build(&self, build: Build, tenant: &Tenant) -> Result<Tree, Error> {
        let key = build.key.clone();
        let mut waiter = self.flights.join(key, || {
            let tenants = Arc::new(Tenants::default());
            tenants.add(tenant);
            let (store, memory, waiting) =
                (Arc::clone(&self.store), self.memory.clone(), Arc::clone(&tenants));
            let work = async move { link(store, memory, &waiting, build).await.map_err(Arc::new) };
            (tenants, work)
        });
        waiter.state().add(tenant);
        let built = waiter.wait().await.ok_or(TransferError::Fault)?;
        Ok(built.map_err(TransferError::Shared)?)
    }
}

async fn link(
    store: Arc<Store>,
    memory: FairQueue,
    tenants: &Tenants,
    build: Build,
) -> Result<Tree, TransferError> {
    let build = Arc::new(build);
    if build.plan.file_list().is_some() {
        let permit = tenants.acquire(&[&memory], file_list::MEMORY).await;
        let (store, checked) = (Arc::clone(&store), Arc::clone(&build));
        let check = move || {
            let _permit = permit; // Until it is done, also when nobody waits any more.
            store.trees.check_file_list(&checked)
        };
        blocking::on_own_thread("check-list", check).await.map_err(TransferError::Thread)??;
    }
    let needed = {
        let (store, build) = (Arc::clone(&store), Arc::clone(&build));
        let look = move || store.trees.merge_memory(&build);
        blocking::run(blocking::Lane::Work, look).await?.clamp(SMALLEST, limits::MERGE_BYTES)
    };
    let permit = tenants.acquire(&[&memory], needed).await;
    let link = move || {
        let _permit = permit; // Until it is done, also when nobody waits any more.
        match store.trees.get(&build.key)? {
            Some(tree) => Ok(tree),
            None => store.trees.build(&build),
        }
    };
    Ok(blocking::on_own_thread("merge", link).await.map_err(TransferError::Thread)??)
}
