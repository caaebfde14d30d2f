//! From a manifest to the plan of its tree: make room for it, and lay it out.

use std::sync::Arc;

use crate::host::blocking::{self, Lane};
use crate::host::fair_queue::{FairQueue, Permit};
use crate::layout;
use crate::layout::artifact::{Artifact, CONFIG_LIMIT};
use crate::layout::decide::Family;
use crate::layout::plan::Plan;
use crate::oci::descriptor::Descriptor;
use crate::oci::digest::Digest;
use crate::oci::manifest::Manifest;
use crate::oci::reference::Reference;
use crate::pull::content::Contents;
use crate::pull::error::Error;
use crate::pull::progress::Progress;
use crate::pull::request::PullRequest;
use crate::pull::resolve::{Resolved, Resolver};
use crate::store::error::Error as StoreError;
use crate::store::open::Store;
use crate::transfer::needed::Needed;

/// Lays manifests out.
#[derive(Clone)]
pub struct Planner {
    store: Arc<Store>,
    resolver: Resolver,
    contents: Contents,
    verify_diff_ids: bool,
    /// Bytes of memory for plans, as long as their pulls last.
    plans: FairQueue,
    /// Bytes of memory for what takes much of it and does not take long.
    memory: FairQueue,
}

/// What a request's tree is made of.
pub struct Planned {
    /// Which files it has.
    pub plan: Plan,
    /// Memory, held as long as the plan is.
    pub room: Permit,
}

/// What is made of a manifest takes so many times its size: names, a plan, and a tree's record. From the peak of
/// `regression_manifests_of_long_names`: 153 MiB above idle, with 16 MiB of manifests of the longest names.
const PLAN_FACTOR: u64 = 10;
/// Bytes of memory that a plan takes at least.
const SMALLEST_PLAN: u64 = 16 * 1024;
/// What is made of a config takes so many times its size.
const CONFIG_FACTOR: u64 = 4;

impl Planner {
    /// Plans take memory from `plans`, and making one from `memory`.
    pub fn new(
        store: Arc<Store>,
        resolver: Resolver,
        contents: Contents,
        verify_diff_ids: bool,
        plans: FairQueue,
        memory: FairQueue,
    ) -> Self {
        Self { store, resolver, contents, verify_diff_ids, plans, memory }
    }

    /// Lays `manifest` out, with its config where names depend on that.
    ///
    /// # Errors
    /// Those of layouts, and of fetching a config.
    pub async fn plan(
        &self,
        resolved: &Resolved,
        manifest: Manifest,
        family: &Family,
        request: &PullRequest,
        progress: &Progress,
    ) -> Result<Planned, Error> {
        let (manifest, room) = self.make_room(resolved, manifest, &request.reference).await?;
        let manifest = Arc::new(manifest);
        let config = manifest.config.bare();
        let mut plan = match self.lay_out(resolved, &manifest, request, None).await {
            Err(Error::Layout(layout::error::Error::NeedsConfig)) => {
                self.ensure_config(resolved, &config, &request.reference, progress).await?;
                self.lay_out(resolved, &manifest, request, Some(&config)).await?
            }
            planned => planned?,
        };
        if family.name == layout::families::image::NAME && self.verify_diff_ids {
            self.ensure_config(resolved, &config, &request.reference, progress).await?;
            let memory = self.memory.acquire(&resolved.asker.tenant, "", CONFIG_FACTOR * config.size).await;
            let store = Arc::clone(&self.store);
            let read = move || {
                let _memory = memory;
                Ok::<_, Error>(layout::families::image::diff_ids(&read_config(&store, &config.digest)?)?)
            };
            plan.promise(blocking::run(Lane::Work, read).await?)?;
        }
        Ok(Planned { plan, room })
    }

    /// Plans share a bound. A manifest that has to wait is let go, and read again.
    async fn make_room(
        &self,
        resolved: &Resolved,
        manifest: Manifest,
        reference: &Reference,
    ) -> Result<(Manifest, Permit), Error> {
        let tenant = &resolved.asker.tenant;
        let bytes = (PLAN_FACTOR * resolved.manifest_size).max(SMALLEST_PLAN);
        if let Some(room) = self.plans.try_acquire(tenant, "", bytes) {
            return Ok((manifest, room));
        }
        drop(manifest);
        let room = self.plans.acquire(tenant, "", bytes).await;
        let manifest = self.resolver.read_again(resolved, reference).await?;
        Ok((manifest, room))
    }

    /// Thousands of names and patterns are work for a thread that may take its time, and memory for a few at a time.
    async fn lay_out(
        &self,
        resolved: &Resolved,
        manifest: &Arc<Manifest>,
        request: &PullRequest,
        config: Option<&Descriptor>,
    ) -> Result<Plan, Error> {
        let bytes =
            PLAN_FACTOR * resolved.manifest_size + CONFIG_FACTOR * config.map_or(0, |config| config.size);
        let memory = self.memory.acquire(&resolved.asker.tenant, "", bytes).await;
        let (store, manifest) = (Arc::clone(&self.store), Arc::clone(manifest));
        let (digest, config) = (resolved.manifest_digest.clone(), config.map(|config| config.digest.clone()));
        let (options, size) = (request.options.clone(), resolved.manifest_size);
        blocking::run(Lane::Work, move || {
            let _memory = memory;
            // Read only now: it may have megabytes, and those that wait for their turn are many.
            let config = config.map(|config| read_config(&store, &config)).transpose()?;
            let artifact = Artifact { manifest: &manifest, digest: &digest, size, config: config.as_deref() };
            Ok(layout::decide::plan(&artifact, &options)?)
        })
        .await
    }

    /// Brings the artifact's config into the store.
    async fn ensure_config(
        &self,
        resolved: &Resolved,
        config: &Descriptor,
        reference: &Reference,
        progress: &Progress,
    ) -> Result<(), Error> {
        if config.size > CONFIG_LIMIT as u64 {
            let (size, limit) = (config.size, CONFIG_LIMIT);
            return Err(layout::error::Error::LargeConfig { size, limit }.into());
        }
        let needed = Needed::file(config);
        if !resolved.offline {
            return self.contents.ensure(&needed, &resolved.asker, progress).await;
        }
        if self.contents.are_here(&[needed], &resolved.asker).await? {
            return Ok(());
        }
        Err(Error::NotPresent { reference: reference.to_string() })
    }
}

/// A config that is here.
fn read_config(store: &Store, digest: &Digest) -> Result<Vec<u8>, StoreError> {
    // Gone since then: the disk failed meanwhile.
    let gone = || StoreError::Damaged(format!("blob {digest} is gone"));
    store.blobs.read(digest, CONFIG_LIMIT)?.ok_or_else(gone)
}
