//! From a manifest to the plan of its tree: make room for it, and lay it out.

use std::sync::Arc;

use crate::host::blocking::{self, Lane};
use crate::host::fair_queue::Permit;
use crate::host::limits;
use crate::host::memory::Memory;
use crate::layout;
use crate::layout::artifact::{Artifact, CONFIG_LIMIT};
use crate::layout::decide::Family;
use crate::layout::plan::Plan;
use crate::oci::descriptor::Descriptor;
use crate::oci::digest::Digest;
use crate::oci::manifest::{Manifest, SIZE_LIMIT};
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
    plans: Memory,
    memory: Memory,
}

/// What a request's tree is made of.
pub struct Planned {
    /// Which files it has.
    pub plan: Plan,
    /// Memory, held as long as the plan is.
    pub room: Permit,
    /// Whether it needed the config.
    pub with_config: bool,
}

/// What a pull is about, once it is resolved.
#[derive(Clone, Copy)]
pub struct Job<'a> {
    /// What is pulled, and for whom.
    pub resolved: &'a Resolved,
    /// What it is.
    pub family: &'static Family,
    /// What is wanted of it.
    pub request: &'a PullRequest,
    /// How far the pull is.
    pub progress: &'a Progress,
}

/// What is made of a manifest takes so many times its size: names, a plan, and a tree's record. From the peak of
/// `regression_manifests_of_long_names`: 153 MiB above idle, with 16 MiB of manifests of the longest names.
const PLAN_FACTOR: u64 = 10;
/// Bytes of memory that a plan takes at least.
const SMALLEST_PLAN: u64 = 16 * 1024;
/// What is made of a config takes so many times its size.
const CONFIG_FACTOR: u64 = 4;

const _: () = {
    assert!(PLAN_FACTOR * SIZE_LIMIT as u64 <= limits::LARGEST_PLAN);
    assert!(2 * limits::LARGEST_PLAN + CONFIG_FACTOR * CONFIG_LIMIT as u64 <= limits::WORK_BYTES);
};

impl Planner {
    /// Plans that are kept take memory from `plans`; making a plan, and having a large one, from `memory`.
    pub fn new(
        store: Arc<Store>,
        resolver: Resolver,
        contents: Contents,
        verify_diff_ids: bool,
        plans: Memory,
        memory: Memory,
    ) -> Self {
        Self { store, resolver, contents, verify_diff_ids, plans, memory }
    }

    /// Whether the plan of what was resolved takes more memory than may be held while a registry is waited for. Such a plan is
    /// let go meanwhile, and made again.
    pub fn is_large(resolved: &Resolved) -> bool {
        plan_bytes(resolved) > limits::KEPT_PLAN
    }

    /// Bytes of memory that the merge of the tree may take, beside its plan.
    pub fn merge_bytes(resolved: &Resolved) -> u64 {
        match Self::is_large(resolved) {
            true => limits::WORK_BYTES.saturating_sub(plan_bytes(resolved)),
            false => limits::MERGE_BYTES,
        }
    }

    /// Memory for a part of what a large plan needs, while registries are waited for.
    pub async fn room_for_part(&self, resolved: &Resolved) -> Permit {
        self.plans.acquire(&resolved.asker.tenant, limits::KEPT_PLAN).await
    }

    /// Lays `manifest` out, with its config where names depend on that.
    ///
    /// # Errors
    /// Those of layouts, and of fetching a config.
    pub async fn plan(&self, job: Job<'_>, manifest: Manifest) -> Result<Planned, Error> {
        let config = manifest.config.bare();
        let mut manifest = Some(manifest);
        let is_checked = self.checks(job.family);
        if is_checked {
            manifest = None; // It is read again, when the registry has sent the config.
            self.ensure_config(job, &config).await?;
        }
        match self.lay_out(job, manifest, is_checked, 0).await {
            Err(Error::Layout(layout::error::Error::NeedsConfig)) => {
                self.ensure_config(job, &config).await?;
                self.lay_out(job, None, true, 0).await
            }
            planned => planned,
        }
    }

    /// A large plan once more, when all it is made of is here, with memory for so many bytes `beside` it.
    ///
    /// # Errors
    /// Those of layouts and of the store.
    pub async fn plan_again(&self, job: Job<'_>, with_config: bool, beside: u64) -> Result<Planned, Error> {
        self.lay_out(job, None, with_config, beside).await
    }

    /// Whether the config says what the content of layers has to be, and that is to be compared.
    pub fn checks(&self, family: &Family) -> bool {
        self.verify_diff_ids && family.name == layout::families::image::NAME
    }

    /// Checks that an image is for the platform that is wanted, by its `config`.
    ///
    /// # Errors
    /// [`Error::OtherPlatform`] when it is for another; those of fetching the config.
    pub async fn check_platform(&self, job: Job<'_>, config: &Descriptor) -> Result<(), Error> {
        match self.ensure_config(job, config).await {
            // What it is for cannot be known without asking for it, which is forbidden.
            Err(Error::NotPresent { .. }) if job.resolved.offline => return Ok(()),
            ensured => ensured?,
        }
        let (store, digest) = (Arc::clone(&self.store), config.digest.clone());
        let read = blocking::run(Lane::Work, move || read_config(&store, &digest)).await?;
        let found = layout::families::image::platform(&read)?;
        let wanted = &job.request.choice.platform;
        if found.as_ref().is_none_or(|found| wanted.accepts(found)) {
            return Ok(());
        }
        Err(Error::OtherPlatform {
            reference: job.request.reference.to_string(),
            found: found.map(|found| found.to_string()).unwrap_or_default(),
            wanted: wanted.to_string(),
        })
    }

    /// Thousands of names and patterns are work for a thread that may take its time, and memory for a few at a time. Without
    /// `manifest` it is read again.
    async fn lay_out(
        &self,
        job: Job<'_>,
        manifest: Option<Manifest>,
        with_config: bool,
        beside: u64,
    ) -> Result<Planned, Error> {
        let (manifest, room) = self.make_room(job, manifest, with_config, beside).await?;
        let Job { resolved, family, request, .. } = job;
        let config = with_config.then(|| manifest.config.bare());
        let memory = if Self::is_large(resolved) {
            None // There is enough in its room.
        } else {
            let bytes =
                plan_bytes(resolved) + CONFIG_FACTOR * config.as_ref().map_or(0, |config| config.size);
            Some(self.memory.acquire(&resolved.asker.tenant, bytes).await)
        };
        let (store, is_checked) = (Arc::clone(&self.store), self.checks(family));
        let (digest, options) = (resolved.manifest_digest.clone(), request.options.clone());
        let size = resolved.manifest_size;
        blocking::run(Lane::Work, move || {
            let _memory = memory;
            // Read only now: it may have megabytes, and those that wait for their turn are many.
            let config = config.map(|config| read_config(&store, &config.digest)).transpose()?;
            let artifact = Artifact { manifest: &manifest, digest: &digest, size, config: config.as_deref() };
            let mut plan = layout::decide::plan(&artifact, &options)?;
            if let Some(config) = config.filter(|_| is_checked) {
                plan.promise(layout::families::image::diff_ids(&config)?)?;
            }
            Ok(Planned { plan, room, with_config })
        })
        .await
    }

    /// Plans share a bound. A manifest that has to wait is let go, and read again.
    async fn make_room(
        &self,
        Job { resolved, request, .. }: Job<'_>,
        manifest: Option<Manifest>,
        with_config: bool,
        beside: u64,
    ) -> Result<(Manifest, Permit), Error> {
        let (tenant, bytes) = (&resolved.asker.tenant, plan_bytes(resolved));
        if Self::is_large(resolved) {
            drop(manifest);
            // Either is needed at a time: what is made while the plan is, or what the tree needs beside it.
            let config = if with_config { CONFIG_FACTOR * CONFIG_LIMIT as u64 } else { 0 };
            let bytes = bytes + beside.max(bytes + config);
            let room = self.memory.acquire(tenant, bytes).await;
            return Ok((self.resolver.read_here(resolved, &request.reference).await?, room));
        }
        let room = match self.plans.try_acquire(tenant, bytes) {
            Some(room) => match manifest {
                Some(manifest) => return Ok((manifest, room)),
                None => room,
            },
            None => {
                drop(manifest);
                self.plans.acquire(tenant, bytes).await
            }
        };
        Ok((self.resolver.read_again(resolved, &request.reference).await?, room))
    }

    /// Brings the artifact's config into the store.
    async fn ensure_config(&self, job: Job<'_>, config: &Descriptor) -> Result<(), Error> {
        if config.size > CONFIG_LIMIT as u64 {
            let (size, limit) = (config.size, CONFIG_LIMIT);
            return Err(layout::error::Error::LargeConfig { size, limit }.into());
        }
        bring(&self.contents, job, vec![Needed::file(config)]).await
    }
}

/// Brings what is needed, or sees that it is here.
///
/// # Errors
/// [`Error::NotPresent`] when the registry must not be asked and something is not here; those of transfers.
pub async fn bring(contents: &Contents, job: Job<'_>, needed: Vec<Needed>) -> Result<(), Error> {
    let Job { resolved, request, progress, .. } = job;
    if !resolved.offline {
        return contents.ensure_all(needed, &resolved.asker, progress).await;
    }
    match contents.are_here(&needed, &resolved.asker).await? {
        true => Ok(()),
        false => Err(Error::NotPresent { reference: request.reference.to_string() }),
    }
}

/// Bytes of memory that the plan of what was resolved takes.
fn plan_bytes(resolved: &Resolved) -> u64 {
    (PLAN_FACTOR * resolved.manifest_size).max(SMALLEST_PLAN)
}

/// A config that is here.
fn read_config(store: &Store, digest: &Digest) -> Result<Vec<u8>, StoreError> {
    // Gone since then: the disk failed meanwhile.
    let gone = || StoreError::Damaged(format!("blob {digest} is gone"));
    store.blobs.read(digest, CONFIG_LIMIT)?.ok_or_else(gone)
}
