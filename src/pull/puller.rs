//! Pulls, for the whole node: one for all of a tenant who ask for the same as the same.
//!
//! Whoever waits may go away; a pull that nobody waited for in [`PullSettings::abandon_after`] stops, and what it has fetched stays
//! for the next one.

use std::sync::Arc;

use crate::failure;
use crate::host::blocking::{self, Lane};
use crate::host::limits;
use crate::host::memory::Memory;
use crate::host::repeats::Repeats;
use crate::host::throttle::Throttle;
use crate::host::traces::Work;
use crate::layout;
use crate::layout::families::image;
use crate::layout::plan::Plan;
use crate::oci::manifest::Manifest;
use crate::oci::reference::Reference;
use crate::pull::content::Contents;
use crate::pull::error::Error;
use crate::pull::manifests::Manifests;
use crate::pull::metrics::{Grant, Metrics, Resolve};
use crate::pull::outcome::Outcome;
use crate::pull::plan::{Job, Planned, Planner, bring};
use crate::pull::progress::Progress;
use crate::pull::quotas::Quotas;
use crate::pull::request::{PullPolicy, PullRequest, PullSettings, Pulled};
use crate::pull::resolve::{Resolved, Resolver};
use crate::pull::rights::Rights;
use crate::pull::room::{Reservation, Rooms};
use crate::pull::tree::TreeBuilder;
use crate::registry::client::Registry;
use crate::registry::credentials::secret::Credential;
use crate::store::content::build::Build;
use crate::store::content::trees::Use;
use crate::store::error::Error as StoreError;
use crate::store::key::{Name, TreeKey};
use crate::store::open::Store;
use crate::store::usage::holds::Hold;
use crate::tenant::Tenant;
use crate::transfer::flight::{Flights, Waiter};
use crate::transfer::needed::Needed;
use crate::transfer::run::Transfers;

/// The outcome of a pull, shared by all who wait.
pub type Shared = Result<Arc<Pulled>, Arc<Error>>;

/// Pulls, for the whole node.
pub struct Puller {
    pub(in crate::pull) store: Arc<Store>,
    requests: Flights<RequestKey, Progress, Shared>,
    pub(in crate::pull) registry: Registry,
    pub(in crate::pull) manifests: Manifests,
    pub(in crate::pull) rights: Rights,
    pub(in crate::pull) resolver: Resolver,
    pub(in crate::pull) planner: Planner,
    pub(in crate::pull) contents: Contents,
    pub(in crate::pull) rooms: Rooms,
    trees: TreeBuilder,
    metrics: Metrics,
    failures: Repeats,
}

/// What makes two requests one.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct RequestKey {
    tenant: Tenant,
    reference: Reference,
    policy: PullPolicy,
    tree: String,
    credentials: Vec<Credential>,
    anonymous: bool,
    /// Part of the error, and so of who may see it.
    notes: Vec<String>,
}

impl Puller {
    /// Pulls into `store` from registries.
    pub fn new(
        store: Arc<Store>,
        registry: Registry,
        settings: &PullSettings,
        metrics: Metrics,
    ) -> Arc<Self> {
        let memory = Memory::for_work();
        let plans = Memory::for_plans();
        let transfers = Transfers::new(
            Arc::clone(&store),
            registry.clone(),
            settings.parallel_downloads,
            Throttle::new(settings.prepull_bytes_per_second),
            memory.clone(),
            metrics.transfers.clone(),
        );
        let manifests = Manifests::new(Arc::clone(&store), registry.clone(), memory.clone());
        let rights = Rights::new(Arc::clone(&store), registry.clone(), settings);
        let resolver = Resolver::new(manifests.clone(), rights.clone());
        let contents = Contents::new(
            Arc::clone(&store),
            registry.clone(),
            rights.clone(),
            transfers,
            settings.spool_above,
            metrics.clone(),
        );
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
            rooms: Rooms::new(Arc::clone(&store), Quotas::new(Arc::clone(&store), settings.quota)),
            trees: TreeBuilder::new(Arc::clone(&store), memory, metrics.transfers.busy.clone()),
            store,
            registry,
            manifests,
            rights,
            resolver,
            planner,
            contents,
            metrics,
            failures: Repeats::default(),
        })
    }

    /// The store that is pulled into.
    pub fn store(&self) -> &Arc<Store> {
        &self.store
    }

    /// The pulls that run, and counters.
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
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
            tree: format!(
                "{:?} {} {:?} {}",
                request.choice,
                request.exact_platform,
                request.readable,
                request.options.normal_form()
            ),
            credentials: request.credentials.clone(),
            anonymous: request.anonymous,
            notes: request.notes.clone(),
        };
        self.requests.join(key, || {
            let progress = Arc::new(Progress::default());
            let (puller, shared) = (Arc::clone(self), Arc::clone(&progress));
            // Of who asked first; others wait for it.
            let mut traced = Work::begin("pull");
            traced.set("oci.reference", || request.reference.to_string());
            let work = async move {
                let running = puller.metrics.in_flight(&request, &shared);
                let result = traced.parent().scope(Box::pin(puller.run(&request, &shared))).await;
                running.ended(&result);
                if let Ok(pulled) = &result {
                    traced.set("oci.manifest.digest", || pulled.digest.to_string());
                }
                traced.end(result.as_ref().err());
                if let Err(error) = &result {
                    puller.log(&request, error);
                }
                result.map(Arc::new).map_err(Arc::new)
            };
            (progress, work)
        })
    }

    /// Logs that a pull failed: kubelet has the same pulled again and again.
    fn log(&self, request: &PullRequest, error: &Error) {
        let PullRequest { tenant, reference, .. } = request;
        let (left_out, error) =
            (self.failures.next(tenant, &(reference, Outcome::of(error))), failure::chain(error));
        match left_out {
            None => tracing::debug!(%reference, %tenant, %error, "pull failed again"),
            Some(0) => tracing::warn!(%reference, %tenant, %error, "pull failed"),
            Some(repeated) => tracing::warn!(%reference, %tenant, %error, repeated, "pull failed"),
        }
    }

    async fn run(&self, request: &PullRequest, progress: &Progress) -> Result<Pulled, Error> {
        let traced = Work::begin("resolve");
        let resolving = traced.parent().scope(Box::pin(self.resolver.resolve(request))).await;
        traced.end(resolving.as_ref().err());
        self.metrics.resolves.inc(match &resolving {
            Ok((resolved, _)) if resolved.asked => Resolve::Remote,
            Ok(_) => Resolve::Hit,
            Err(_) => Resolve::Error,
        });
        let (resolved, mut manifest) = resolving?;
        let family = layout::decide::decide(&manifest, &request.options.layout)?.family;
        let readable = request.readable.unwrap_or(family.readable);
        if request.exact_platform && resolved.platform.is_none() && family.name == image::NAME {
            let job = Job { resolved: &resolved, family, request, progress };
            self.planner.check_platform(job, &manifest.config).await?;
        }
        let is_checked = self.planner.checks(family);
        let key = TreeKey::new(&resolved.manifest_digest, &request.options, readable, is_checked);
        let hold = self.hold(&key, &resolved, &manifest).await;
        let asker = &resolved.asker;
        let granted = self.rights.holds_tree(asker, &key, resolved.offline).await?;
        let config = manifest.config.digest.clone();
        let present = {
            let (store, key) = (Arc::clone(&self.store), key.clone());
            blocking::run(Lane::Work, move || store.trees.get(&key)).await?
        };
        // Until it is noted whose the tree is.
        let mut reserved = None;
        let tree = match present.filter(|_| granted) {
            Some(tree) => tree,
            None => {
                self.trees.make_room(&resolved.manifest_digest, &asker.tenant).await?;
                // It may have been collected in the moment before it was held.
                if !self.manifests.holds(&resolved.manifest_digest).await? {
                    manifest = self.resolver.read_again(&resolved, &request.reference).await?;
                }
                let build = |plan| Build {
                    key: key.clone(),
                    plan,
                    options: request.options.clone(),
                    readable,
                    manifest: resolved.manifest_digest.clone(),
                    family: family.name.to_owned(),
                    platform: resolved.platform.as_ref().map(ToString::to_string),
                    filter: filter(request, family.readable),
                    merge_bytes: Planner::merge_bytes(&resolved),
                };
                let job = Job { resolved: &resolved, family, request, progress };
                let Planned { plan, room, .. } = self.gather(job, manifest, &build, &mut reserved).await?;
                // There is enough for the tree in the room of a large plan.
                let (room, memory) = match Planner::is_large(&resolved) {
                    true => (None, Some(room)),
                    false => (Some(room), None),
                };
                let build = build(plan);
                let traced = Work::begin("tree");
                let built = self.trees.build(build, memory, &asker.tenant, Arc::clone(&hold)).await;
                traced.end(built.as_ref().err());
                drop(room); // The plan is gone.
                built?
            }
        };
        let noted = async {
            if !granted && !resolved.offline {
                self.rights.grant_tree(asker, &key).await?;
                self.metrics.grants.inc(Grant::Given);
            } else if granted {
                self.metrics.grants.inc(Grant::Held);
            }
            // The right to the manifest is renewed by the registry alone.
            if resolved.asked {
                self.rights.grant_manifest(asker, &request.reference, &resolved.digest).await?;
            }
            let (store, reference) = (Arc::clone(&self.store), request.reference.to_string());
            let (tenant, mut documents) = (asker.tenant.clone(), resolved.documents);
            let (digest, at) = (resolved.digest.clone(), resolved.at);
            documents.push(config);
            let used = move || {
                let (documents, tenant) = (&documents, &tenant);
                let used = Use { reference: &reference, digest: &digest, at, documents, tenant };
                store.trees.used(&key, &used)
            };
            blocking::run(Lane::Store, used).await
        };
        let noted = noted.await;
        drop(reserved);
        match noted {
            // What is here can be mounted all the same.
            Err(error @ StoreError::NoSpace { .. }) => {
                tracing::warn!(%error, "cannot note what was learnt of a reference");
            }
            noted => noted?,
        }
        Ok(Pulled {
            tree,
            digest: resolved.digest,
            fetched: progress.snapshot().fetched,
            asked: resolved.asked,
            at: resolved.at,
            _hold: hold,
        })
    }

    /// Holds the tree, and all that it may be made of.
    async fn hold(&self, key: &TreeKey, resolved: &Resolved, manifest: &Manifest) -> Arc<Hold> {
        let descriptors = std::iter::once(&manifest.config).chain(&manifest.layers);
        let contents = descriptors.map(|descriptor| &descriptor.digest).chain(&resolved.documents);
        let names: Vec<_> = std::iter::once(Name::tree(key)).chain(contents.map(Name::content)).collect();
        let holds = self.store.holds.clone();
        Arc::new(blocking::run(Lane::Store, move || holds.hold(names)).await)
    }

    /// The plan of what was resolved, when all it needs is here. The room for it is `reserved`.
    async fn gather(
        &self,
        job: Job<'_>,
        manifest: Manifest,
        build: &(dyn Fn(Plan) -> Build + Sync),
        reserved: &mut Option<Reservation>,
    ) -> Result<Planned, Error> {
        let Job { resolved, progress, .. } = job;
        let asker = &resolved.asker;
        for descriptor in std::iter::once(&manifest.config).chain(&manifest.layers) {
            self.manifests.keep_embedded(descriptor, &asker.source).await?;
        }
        let planned = self.planner.plan(job, manifest).await?;
        let mut needed = Needed::of(&planned.plan);
        let total = needed.iter().fold(0_u64, |sum, needed| sum.saturating_add(needed.blob.size));
        progress.expect(needed.len(), total);
        if resolved.offline {
            *reserved = Some(self.rooms.admit(asker).await?);
        } else {
            let (all, reservation) = self.rooms.reserve(needed, asker).await?;
            (needed, *reserved) = (all, Some(reservation));
        }
        if !Planner::is_large(resolved) {
            bring(&self.contents, job, needed).await?;
            return Ok(planned);
        }
        let (all, with_config) = (needed.len(), planned.with_config);
        drop((planned, needed));
        // Memory for such a plan is there for as long as processor and disk take, not for as long as a registry likes: so it is
        // made once for each part of what it needs, and in the end for the tree.
        let again = |beside| self.planner.plan_again(job, with_config, beside);
        let _room = self.planner.room_for_part(resolved).await;
        let mut done = 0;
        while done < all {
            let planned = again(0).await?;
            let part = part_of(&Needed::of(&planned.plan), done);
            drop(planned);
            done += part.len();
            bring(&self.contents, job, part).await?;
        }
        let Planned { plan, room, .. } = again(0).await?;
        let beside = self.trees.memory(build(plan)).await?;
        drop(room);
        again(beside).await
    }
}

/// What is wanted of an artifact beside all of it, in words; empty where nothing is.
fn filter(request: &PullRequest, usual: bool) -> String {
    let mut words = request.options.in_words();
    if let Some(readable) = request.readable.filter(|readable| *readable != usual) {
        words.push(format!("readable {readable}"));
    }
    words.join(", ")
}

/// Some of what a large plan needs, from the one at `first` on: as much as has room while it is waited for.
fn part_of(all: &[Needed], first: usize) -> Vec<Needed> {
    /// Of the record, its digest, and what a map and a future have of it.
    const EACH: u64 = 512;
    // All of them are held meanwhile.
    let held = all.len() as u64 * Name::BYTES;
    let all_room = limits::KEPT_PLAN.saturating_sub(held).max(limits::KEPT_PLAN / 4);
    let mut room = all_room;
    let fits = |needed: &&Needed| {
        let takes = EACH + needed.blob.media_type.len() as u64;
        let is_first = room == all_room;
        room = room.saturating_sub(takes);
        is_first || room > 0
    };
    all.iter().skip(first).take_while(fits).cloned().collect()
}
