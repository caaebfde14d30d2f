//! The tree of a plan whose blobs are all here: linked once, whoever needs it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::host::blocking;
use crate::host::fair_queue::Permit;
use crate::host::memory::Memory;
use crate::host::metric::Seconds;
use crate::host::tenants::Tenants;
use crate::oci::digest::Digest;
use crate::pull::error::Error;
use crate::store::collect::variants::{self, VARIANTS};
use crate::store::content::build::Build;
use crate::store::content::file_list;
use crate::store::content::trees::Tree;
use crate::store::error::Error as StoreError;
use crate::store::key::TreeKey;
use crate::store::open::Store;
use crate::store::usage::holds::Hold;
use crate::tenant::Tenant;
use crate::transfer::error::Error as TransferError;
use crate::transfer::flight::Flights;
use crate::transfer::metrics::Stage;

/// Links trees.
pub struct TreeBuilder {
    store: Arc<Store>,
    flights: Flights<TreeKey, Tenants, Result<Tree, Arc<TransferError>>>,
    memory: Memory,
    busy: Seconds<Stage>,
}

/// Bytes of memory that linking a tree takes at least.
const SMALLEST: u64 = 1024 * 1024;

impl TreeBuilder {
    /// Merges take memory from `memory`. How long they take is added to `busy`.
    pub fn new(store: Arc<Store>, memory: Memory, busy: Seconds<Stage>) -> Self {
        Self { store, flights: Flights::new(Duration::ZERO), memory, busy }
    }

    /// Bytes of memory that linking the tree takes, beside its plan.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn memory(&self, build: Build) -> Result<u64, Error> {
        let store = Arc::clone(&self.store);
        let list = build.plan.file_list().map_or(0, |_| file_list::MEMORY);
        let look = move || store.trees.merge_memory(&build);
        Ok(blocking::run(blocking::Lane::Work, look).await?.max(list))
    }

    /// Makes room for one more tree of `manifest` for `tenant`, whose trees of it are bounded.
    ///
    /// # Errors
    /// [`StoreError::Variants`]; those of the store.
    pub async fn make_room(&self, manifest: &Digest, tenant: &Tenant) -> Result<(), Error> {
        if self.store.trees.made_of(manifest) < VARIANTS {
            return Ok(());
        }
        let (store, manifest, tenant) = (Arc::clone(&self.store), manifest.clone(), tenant.clone());
        let make_room = move || variants::make_room(&store, &manifest, &tenant);
        Ok(blocking::on_own_thread("collect", make_room).await.map_err(TransferError::Thread)??)
    }

    /// Links the tree, or joins who does. What has no `memory` for it waits for some. `hold` holds what it is made of.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn build(
        &self,
        build: Build,
        memory: Option<Permit>,
        tenant: &Tenant,
        hold: Arc<Hold>,
    ) -> Result<Tree, Error> {
        let key = build.key.clone();
        let mut waiter = self.flights.join(key, || {
            let tenants = Arc::new(Tenants::default());
            tenants.add(tenant);
            let (store, queue, waiting) =
                (Arc::clone(&self.store), self.memory.clone(), Arc::clone(&tenants));
            let busy = self.busy.clone();
            let work = async move {
                let linked = match memory {
                    Some(memory) => link_with(store, memory, build, hold, busy).await,
                    None => link(store, queue, &waiting, build, hold, busy).await,
                };
                linked.map_err(Arc::new)
            };
            (tenants, work)
        });
        waiter.state().add(tenant);
        let built = waiter.wait().await.ok_or(TransferError::Fault)?;
        Ok(built.map_err(TransferError::Shared)?)
    }
}

async fn link(
    store: Arc<Store>,
    memory: Memory,
    tenants: &Tenants,
    mut build: Build,
    hold: Arc<Hold>,
    busy: Seconds<Stage>,
) -> Result<Tree, TransferError> {
    if build.plan.file_list().is_some() {
        let build = Arc::new(build.clone());
        let permit = memory.acquire_for(tenants, file_list::MEMORY).await;
        let (store, hold) = (Arc::clone(&store), Arc::clone(&hold));
        // Who has it keeps it until it is done, also when nobody waits any more.
        let check = move || {
            let (_permit, _hold) = (permit, hold);
            store.trees.check_file_list(&build)
        };
        blocking::on_own_thread("check-list", check).await.map_err(TransferError::Thread)??;
    }
    let most = build.merge_bytes;
    build.merge_bytes = {
        let (store, build) = (Arc::clone(&store), build.clone());
        let look = move || store.trees.merge_memory(&build);
        blocking::run(blocking::Lane::Work, look).await?.clamp(SMALLEST, most)
    };
    loop {
        let permit = memory.acquire_for(tenants, build.merge_bytes).await;
        let (store, hold, busy) = (Arc::clone(&store), Arc::clone(&hold), busy.clone());
        let this = build.clone();
        let link = move || {
            let (_permit, _hold) = (permit, hold);
            get_or_build(&store, &this, &busy)
        };
        match blocking::on_own_thread("merge", link).await.map_err(TransferError::Thread)? {
            Err(StoreError::MergeMemory { .. }) if build.merge_bytes < most => build.merge_bytes = most,
            linked => return Ok(linked?),
        }
    }
}

/// The same with `memory` for all of it.
async fn link_with(
    store: Arc<Store>,
    memory: Permit,
    mut build: Build,
    hold: Arc<Hold>,
    busy: Seconds<Stage>,
) -> Result<Tree, TransferError> {
    let link = move || {
        let (_memory, _hold) = (memory, hold);
        build.merge_bytes = store.trees.merge_memory(&build)?.clamp(SMALLEST, build.merge_bytes);
        if build.plan.file_list().is_some() {
            store.trees.check_file_list(&build)?;
        }
        get_or_build(&store, &build, &busy)
    };
    Ok(blocking::on_own_thread("merge", link).await.map_err(TransferError::Thread)??)
}

fn get_or_build(store: &Store, build: &Build, busy: &Seconds<Stage>) -> Result<Tree, StoreError> {
    if let Some(tree) = store.trees.get(&build.key)? {
        return Ok(tree);
    }
    let began = Instant::now();
    let built = store.trees.build(build);
    busy.add(Stage::Link, began.elapsed());
    built
}
