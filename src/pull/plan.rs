//! From a manifest to the plan of its tree: make room for it, and lay it out.

use std::sync::Arc;

use tokio::sync::OwnedSemaphorePermit;

use crate::layout::artifact::Artifact;
use crate::layout::decide::Family;
use crate::layout::plan::Plan;
use crate::oci::descriptor::Descriptor;
use crate::oci::digest::Digest;
use crate::oci::manifest::Manifest;
use crate::oci::reference::Reference;
use crate::pull::error::Error;
use crate::pull::progress::Progress;
use crate::pull::resolve::Resolved;
use crate::pull::wanted::Wanted;
use crate::pull::{Puller, Request};
use crate::store::Store;
use crate::{layout, store};

/// What a request's tree is made of.
pub(super) struct Planned {
    pub plan: Plan,
    /// Held as long as the plan is.
    pub room: Option<OwnedSemaphorePermit>,
}

/// A manifest above this size is large: one of 300 layers, each with ModelPack's annotations, is not.
pub const LARGE_MANIFEST: u64 = 256 * 1024;
/// What is made of a manifest takes so many times its size: names, a plan, and a tree's record. From the peak of
/// `regression_manifests_of_long_names`: 153 MiB above idle, with 16 MiB of manifests of the longest names.
pub const PLAN_FACTOR: u64 = 10;
/// Bytes, in KiB, of all large manifests whose pulls run; what is made of one takes several times its size.
pub const LARGE_MANIFESTS_KIB: usize = 16 * 1024;

impl Puller {
    /// Lays `manifest` out, with its config where names depend on that.
    pub(super) async fn plan(
        self: &Arc<Self>,
        resolved: &Resolved,
        manifest: Manifest,
        family: &Family,
        request: &Request,
        progress: &Progress,
    ) -> Result<Planned, Error> {
        let (manifest, room) = self.make_room(resolved, manifest, &request.reference).await?;
        let manifest = Arc::new(manifest);
        let config = manifest.config.bare();
        let mut plan = match self.lay_out(resolved, &manifest, request, None).await {
            Err(Error::Layout(layout::error::Error::NeedsConfig)) => {
                self.obtain_config(resolved, &config, &request.reference, progress).await?;
                self.lay_out(resolved, &manifest, request, Some(config.digest.clone())).await?
            }
            planned => planned?,
        };
        if family.name == layout::families::image::NAME && self.settings.verify_diff_ids {
            self.obtain_config(resolved, &config, &request.reference, progress).await?;
            let _turn = self.plans.acquire().await.map_err(|_| Error::Stopped)?;
            let read = move |store: &Arc<Store>| {
                Ok::<_, Error>(layout::families::image::diff_ids(&read_config(store, &config.digest)?)?)
            };
            plan.promise(self.with_store(read).await?)?;
        }
        Ok(Planned { plan, room })
    }

    /// Large manifests share a bound. One that has to wait is let go, and read again.
    async fn make_room(
        &self,
        resolved: &Resolved,
        manifest: Manifest,
        reference: &Reference,
    ) -> Result<(Manifest, Option<OwnedSemaphorePermit>), Error> {
        if resolved.manifest_size <= LARGE_MANIFEST {
            return Ok((manifest, None));
        }
        let kib = u32::try_from(resolved.manifest_size / 1024).unwrap_or(u32::MAX);
        let all = Arc::clone(&self.large_manifests);
        if let Ok(room) = Arc::clone(&all).try_acquire_many_owned(kib) {
            return Ok((manifest, Some(room)));
        }
        drop(manifest);
        let room = all.acquire_many_owned(kib).await.map_err(|_| Error::Stopped)?;
        let manifest = self.read_again(resolved, reference).await?;
        Ok((manifest, Some(room)))
    }

    /// Thousands of names and patterns are work for a thread that may take its time, and memory for a few at a time.
    async fn lay_out(
        &self,
        resolved: &Resolved,
        manifest: &Arc<Manifest>,
        request: &Request,
        config: Option<Digest>,
    ) -> Result<Plan, Error> {
        let _turn = self.plans.acquire().await.map_err(|_| Error::Stopped)?;
        let (manifest, digest) = (Arc::clone(manifest), resolved.manifest_digest.clone());
        let (options, size) = (request.options.clone(), resolved.manifest_size);
        let plan = move |store: &Arc<Store>| {
            // Read only now: it may have megabytes, and those that wait for their turn are many.
            let config = config.map(|config| read_config(store, &config)).transpose()?;
            let artifact = Artifact { manifest: &manifest, digest: &digest, size, config: config.as_deref() };
            Ok(layout::decide::plan(&artifact, &options)?)
        };
        self.with_store(plan).await
    }

    /// Brings the artifact's config into the store.
    async fn obtain_config(
        self: &Arc<Self>,
        resolved: &Resolved,
        config: &Descriptor,
        reference: &Reference,
        progress: &Progress,
    ) -> Result<(), Error> {
        if config.size > layout::artifact::CONFIG_LIMIT as u64 {
            return Err(layout::error::Error::LargeConfig {
                size: config.size,
                limit: layout::artifact::CONFIG_LIMIT,
            }
            .into());
        }
        let wanted = Wanted::file(config);
        if resolved.offline {
            self.all_here(vec![wanted], &resolved.source, reference).await
        } else {
            self.obtain(&wanted, &resolved.source, progress).await
        }
    }
}

/// A config that was obtained.
fn read_config(store: &Store, digest: &Digest) -> Result<Vec<u8>, store::error::Error> {
    // Gone since then: the disk failed meanwhile.
    let gone = || store::error::Error::Damaged(format!("blob {digest} is gone"));
    store.read_blob(digest, layout::artifact::CONFIG_LIMIT)?.ok_or_else(gone)
}
