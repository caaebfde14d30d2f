//! Pulls, for the whole node: one for all of a tenant who ask for the same as the same.
//!
//! Whoever waits may go away; a pull that nobody waited for in [`PullSettings::abandon_after`] stops, and what it has fetched stays
//! for the next one.

use std::sync::Arc;

use crate::failure;
use crate::host::blocking::{self, Lane};
use crate::host::fair_queue::FairQueue;
use crate::host::limits;
use crate::host::work_memory::WorkMemory;
use crate::layout;
use crate::layout::decide::Family;
use crate::oci::manifest::Manifest;
use crate::oci::reference::Reference;
use crate::pull::content::Contents;
use crate::pull::error::Error;
use crate::pull::manifests::{Carried, Manifests};
use crate::pull::metrics::Metrics;
use crate::pull::plan::{Planned, Planner, Purpose};
use crate::pull::progress::Progress;
use crate::pull::request::{PullPolicy, PullRequest, PullSettings, Pulled};
use crate::pull::resolve::{Resolved, Resolver};
use crate::pull::rights::Rights;
use crate::pull::tree::TreeBuilder;
use crate::registry::client::Registry;
use crate::registry::credentials::secret::Credential;
use crate::store::content::build::Build;
use crate::store::error::Error as StoreError;
use crate::store::key::TreeKey;
use crate::store::open::Store;
use crate::tenant::Tenant;
use crate::transfer::flight::{Flights, Waiter};
use crate::transfer::needed::Needed;
use crate::transfer::run::Transfers;

/// The outcome of a pull, shared by all who wait.
pub type Shared = Result<Arc<Pulled>, Arc<Error>>;

/// Pulls, for the whole node.
pub struct Puller {
    store: Arc<Store>,
    requests: Flights<RequestKey, Progress, Shared>,
    manifests: Manifests,
    rights: Rights,
    resolver: Resolver,
    planner: Planner,
    contents: Contents,
    trees: TreeBuilder,
    verify_diff_ids: bool,
    metrics: Metrics,
}

/// What makes two requests one.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct RequestKey {
    tenant: Tenant,
    reference: Reference,
    policy: PullPolicy,
    tree: String,
    credentials: Vec<Credential>,
    /// Part of the error, and so of who may see it.
    unused_helper: Option<String>,
}

/// Blobs of a large plan that are brought before it is made again for the next.
const NEEDED_AT_A_TIME: usize = 2_048;

impl Puller {
    /// Pulls into `store` from registries.
    pub fn new(
        store: Arc<Store>,
        registry: Registry,
        settings: &PullSettings,
        metrics: Metrics,
    ) -> Arc<Self> {
        let memory = WorkMemory::default();
        let plans = FairQueue::new(limits::PLAN_BYTES);
        let transfers = Transfers::new(
            Arc::clone(&store),
            registry.clone(),
            settings.parallel_downloads,
            memory.clone(),
            metrics.fetched.clone(),
        );
        let manifests = Manifests::new(Arc::clone(&store), registry.clone(), memory.clone());
        let rights = Rights::new(Arc::clone(&store), registry.clone(), settings);
        let resolver = Resolver::new(manifests.clone(), rights.clone());
        let contents = Contents::new(Arc::clone(&store), registry, rights.clone(), transfers);
        let verify_diff_ids = settings.verify_diff_ids;
        let planner = Planner::new(
            Arc::clone(&store),
            resolver.clone(),
            contents.clone(),
            verify_diff_ids,
            plans,
            memory.clone(),
        );
        Arc::new(Self {
            requests: Flights::new(settings.abandon_after),
            trees: TreeBuilder::new(Arc::clone(&store), memory),
            store,
            manifests,
            rights,
            resolver,
            planner,
            contents,
            verify_diff_ids,
            metrics,
        })
    }

    /// The store that is pulled into.
    pub fn store(&self) -> &Arc<Store> {
        &self.store
    }

    /// Ends all pulls; what they have so far is kept.
    pub fn stop(&self) {
        self.requests.stop();
    }

    /// Starts to pull `request`, or joins the pull of an equal one. The waiter's state is its progress.
    pub fn pull(self: &Arc<Self>, request: PullRequest) -> Waiter<Progress, Shared> {
        let key = RequestKey {
            tenant: request.tenant.clone(),
            reference: request.reference.clone(),
            policy: request.policy,
            tree: format!("{:?} {:?} {}", request.choice, request.readable, request.options.normal_form()),
            credentials: request.credentials.clone(),
            unused_helper: request.unused_helper.clone(),
        };
        self.requests.join(key, || {
            let progress = Arc::new(Progress::default());
            let (puller, shared) = (Arc::clone(self), Arc::clone(&progress));
            let work = async move {
                let _running = puller.metrics.in_flight();
                let result = puller.run(&request, &shared).await;
                puller.metrics.ended(&shared.snapshot(), result.is_ok());
                if let Err(error) = &result {
                    let error = failure::chain(error);
                    tracing::warn!(reference = %request.reference, tenant = %request.tenant, %error, "pull failed");
                }
                result.map(Arc::new).map_err(Arc::new)
            };
            (progress, work)
        })
    }

    async fn run(&self, request: &PullRequest, progress: &Progress) -> Result<Pulled, Error> {
        let (resolved, manifest) = self.resolver.resolve(request).await?;
        let family = layout::decide::decide(&manifest, &request.options.layout)?.family;
        let readable = request.readable.unwrap_or(family.readable);
        let checked = self.verify_diff_ids && family.name == layout::families::image::NAME;
        let key = TreeKey::new(&resolved.manifest_digest, &request.options, readable, checked);
        let pin = Arc::new(self.store.pins.pin(&key));
        let asker = &resolved.asker;
        let granted = self.rights.holds_tree(asker, &key, resolved.offline).await?;
        let present = {
            let (store, key) = (Arc::clone(&self.store), key.clone());
            blocking::run(Lane::Work, move || store.trees.get(&key)).await?
        };
        let tree = match present.filter(|_| granted) {
            Some(tree) => tree,
            None => {
                let Planned { plan, room } =
                    self.gather(&resolved, manifest, family, request, progress).await?;
                let (merge_bytes, room, memory) = match Planner::is_large(&resolved) {
                    true => (limits::MERGE_BYTES_OF_LARGE_PLAN, None, Some(room)),
                    false => (limits::MERGE_BYTES, Some(room), None),
                };
                let build = Build {
                    key: key.clone(),
                    plan,
                    options: request.options.clone(),
                    readable,
                    manifest: resolved.manifest_digest.clone(),
                    family: family.name.to_owned(),
                    merge_bytes,
                };
                let tree = self.trees.build(build, memory, &asker.tenant).await?;
                drop(room); // The plan is gone.
                tree
            }
        };
        let noted = async {
            if !granted && !resolved.offline {
                self.rights.grant_tree(asker, &key).await?;
            }
            // The right to the manifest is renewed by the registry alone.
            if resolved.asked {
                self.rights.grant_manifest(asker, &request.reference, &resolved.digest).await?;
            }
            let (store, reference) = (Arc::clone(&self.store), request.reference.to_string());
            blocking::run(Lane::Store, move || store.trees.touch(&key, &reference)).await
        };
        match noted.await {
            // What is here can be mounted all the same.
            Err(error @ StoreError::NoSpace { .. }) => {
                tracing::warn!(%error, "cannot note what was learnt of a reference");
            }
            noted => noted?,
        }
        Ok(Pulled { tree, digest: resolved.digest, fetched: progress.snapshot().fetched, _pin: pin })
    }

    /// The plan of what was resolved, when all it needs is here.
    async fn gather(
        &self,
        resolved: &Resolved,
        manifest: Manifest,
        family: &'static Family,
        request: &PullRequest,
        progress: &Progress,
    ) -> Result<Planned, Error> {
        let asker = &resolved.asker;
        let carried = Carried::of(manifest.layers.iter());
        self.manifests.keep_embedded(&manifest.config, &asker.source).await?;
        let planned = self.planner.plan(resolved, manifest, family, request, progress).await?;
        let mut needed = Needed::of(&planned.plan);
        for needed in &needed {
            if let Some(carrying) = carried.get(&needed.blob.digest) {
                self.manifests.keep_embedded(carrying, &asker.source).await?;
            }
        }
        if !resolved.offline {
            needed = self.contents.expect(needed, asker, progress).await?;
        }
        if !Planner::is_large(resolved) {
            self.bring(resolved, needed, request, progress).await?;
            return Ok(planned);
        }
        let all = needed.len();
        drop((planned, needed, carried));
        self.gather_in_parts(resolved, family, request, progress, all).await
    }

    /// The same for a large plan, which needs `all` blobs. Memory for it is there for as long as processor and disk take, not for as
    /// long as a registry likes: so it is made once for each part of them, and in the end for the tree.
    async fn gather_in_parts(
        &self,
        resolved: &Resolved,
        family: &'static Family,
        request: &PullRequest,
        progress: &Progress,
        all: usize,
    ) -> Result<Planned, Error> {
        let _room = self.planner.room_for_part(resolved).await;
        for done in (0..all).step_by(NEEDED_AT_A_TIME) {
            let planned = self.planner.plan_again(resolved, family, request, Purpose::Needed).await?;
            let part = Needed::of(&planned.plan).into_iter().skip(done).take(NEEDED_AT_A_TIME).collect();
            drop(planned);
            self.bring(resolved, part, request, progress).await?;
        }
        self.planner.plan_again(resolved, family, request, Purpose::Tree).await
    }

    /// Brings what is needed, or sees that it is here.
    async fn bring(
        &self,
        resolved: &Resolved,
        needed: Vec<Needed>,
        request: &PullRequest,
        progress: &Progress,
    ) -> Result<(), Error> {
        if !resolved.offline {
            return self.contents.ensure_all(needed, &resolved.asker, progress).await;
        }
        match self.contents.are_here(&needed, &resolved.asker).await? {
            true => Ok(()),
            false => Err(Error::NotPresent { reference: request.reference.to_string() }),
        }
    }
}
