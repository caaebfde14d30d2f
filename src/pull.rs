//! From a reference to a complete tree in the store: resolve, plan, fetch, link.
//!
//! A pull belongs to the node, not to who asked for it. There are three levels of single flight: a request (all
//! who ask for the same with the same credentials), a blob or layer (all requests that need it), and a tree (its
//! linking).
//! Whoever waits may go away; a pull that nobody waited for in [`Settings::abandon_after`] stops, and what it
//! has fetched stays for the next one.

use crate::host::blocking;
use crate::pull::choose::Choice;
use crate::pull::error::Error;
use crate::pull::metrics::Metrics;
use crate::pull::progress::Progress;
use crate::pull::progress::Snapshot;
use crate::registry::client::Registry;
use crate::registry::credentials::Credential;
pub mod choose;
pub mod download;
pub mod error;
mod fetch;
pub mod flight;
pub mod metrics;
pub mod obtain;
mod offers;
pub mod plan;
pub mod progress;
pub mod resolve;
pub mod segments;
pub mod turns;
mod unpacking;
mod wanted;
mod watch;

use std::sync::Arc;
use std::time::Duration;

use futures_util::TryStreamExt as _;
use tokio::sync::Semaphore;

use crate::layout;
use crate::layout::options::Options;
use crate::oci::digest::Digest;
use crate::oci::reference::Reference;
use crate::pull::flight::{Flights, Waiter};
use crate::pull::wanted::{Form, Stored, Wanted};
use crate::registry::source::Source;
use crate::store::Store;
use crate::store::access::AccessKey;
use crate::store::blobs::Origin;
use crate::store::trees::{Build, Tree, TreeKey};

/// What to pull, and as whom. Equal requests share one pull.
#[derive(Debug, Clone)]
pub struct Request {
    /// What.
    pub reference: Reference,
    /// Whether the registry is asked although the content may be here.
    pub policy: PullPolicy,
    /// What to choose from an index.
    pub choice: Choice,
    /// Which files, and how.
    pub options: Options,
    /// Whether everybody may read the files; the family decides if it is not said.
    pub readable: Option<bool>,
    /// Tried in order; none means anonymous.
    pub credentials: Vec<Credential>,
    /// The credential helper that would have some, for the error.
    pub unused_helper: Option<String>,
}

/// Kubernetes' words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PullPolicy {
    /// Ask the registry each time what the tag is now.
    Always,
    /// Ask only when the content is not here.
    IfNotPresent,
    /// Never ask.
    Never,
}

/// Bounds and times of pulls.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Blobs downloaded from one registry at the same time.
    pub parallel_downloads: usize,
    /// A pull that nobody waits for stops after this time.
    pub abandon_after: Duration,
    /// Whether the uncompressed layers of images have to be what their configs promise.
    pub verify_diff_ids: bool,
    /// How long a shown right to content is believed without asking the registry again.
    pub proof_ttl: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            parallel_downloads: 4,
            abandon_after: Duration::from_secs(600),
            verify_diff_ids: false,
            proof_ttl: Duration::from_secs(24 * 3600),
        }
    }
}

/// A tree, and what it shows.
#[derive(Debug, Clone)]
pub struct Pulled {
    /// The tree.
    pub tree: Tree,
    /// What the reference resolved to: an index, or the manifest itself.
    pub digest: Digest,
    /// Bytes that came over the network for it.
    pub fetched: u64,
}

/// The outcome of a flight, shared by all who wait.
type Shared<T> = Result<T, Arc<Error>>;

/// Pulls, for the whole node.
pub struct Puller {
    store: Arc<Store>,
    registry: Registry,
    settings: Settings,
    requests: Flights<RequestKey, Progress, Shared<Arc<Pulled>>>,
    /// By digest, size and form.
    blobs: Flights<(Digest, u64, Form), offers::Offers, Shared<Stored>>,
    trees: Flights<TreeKey, (), Shared<Tree>>,
    downloads: turns::Downloads,
    /// Manifests that are read and planned at the same time.
    plans: Semaphore,
    /// Permits are KiB: of large manifests, as long as their pulls last.
    large_manifests: Arc<Semaphore>,
    /// Lists of files that are compared with layers at the same time.
    file_lists: Arc<Semaphore>,
    /// Trees that are merged at the same time.
    merges: Arc<Semaphore>,
    /// Layers that are unpacked from files of the store at the same time.
    local_unpacks: Arc<Semaphore>,
    /// Layers that have 128 MiB to decompress at the same time.
    large_windows: Arc<Semaphore>,
    /// Permits are bytes: what was received and is not yet written, of all downloads together.
    buffers: Arc<Semaphore>,
    metrics: Metrics,
}

/// Bytes received and not yet written, on the whole node. With the bounds on connections and on manifests this
/// bounds memory, whatever registries send.
pub const BUFFERED_BYTES: usize = 6 * 1024 * 1024;
/// Manifests that are taken apart at the same time; this takes many times their size, and no network.
pub const PLANS_AT_A_TIME: usize = 4;
/// Trees that are merged at the same time; each may take a quarter of a GiB.
pub const MERGES_AT_A_TIME: usize = 2;
/// Lists of files that are compared with layers at the same time: that reads the layers once more, and holds up no merge.
pub const FILE_LISTS_AT_A_TIME: usize = 2;
/// Layers that are unpacked from files of the store at the same time.
const LOCAL_UNPACKS_AT_A_TIME: usize = 4;
/// Blobs of one pull that are looked after at a time; downloads are bounded apart.
const BLOBS_AT_A_TIME: usize = 16;

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct RequestKey {
    reference: Reference,
    policy: PullPolicy,
    tree: String,
    credentials: Vec<Credential>,
    /// Part of the error, and so of who may see it.
    unused_helper: Option<String>,
}

impl Puller {
    /// Pulls into `store` from registries.
    pub fn new(store: Arc<Store>, registry: Registry, settings: Settings, metrics: Metrics) -> Arc<Self> {
        Arc::new(Self {
            store,
            registry,
            requests: Flights::new(settings.abandon_after),
            blobs: Flights::new(Duration::ZERO),
            trees: Flights::new(Duration::ZERO),
            downloads: turns::Downloads::new(settings.parallel_downloads),
            plans: Semaphore::new(PLANS_AT_A_TIME),
            large_manifests: Arc::new(Semaphore::new(plan::LARGE_MANIFESTS_KIB)),
            file_lists: Arc::new(Semaphore::new(FILE_LISTS_AT_A_TIME)),
            merges: Arc::new(Semaphore::new(MERGES_AT_A_TIME)),
            local_unpacks: Arc::new(Semaphore::new(LOCAL_UNPACKS_AT_A_TIME)),
            large_windows: Arc::new(Semaphore::new(1)),
            buffers: Arc::new(Semaphore::new(BUFFERED_BYTES)),
            settings,
            metrics,
        })
    }

    /// The store that is pulled into.
    pub fn store(&self) -> &Arc<Store> {
        &self.store
    }

    /// Starts to pull `request`, or joins the pull of an equal one. The waiter's state is its progress.
    pub fn pull(self: &Arc<Self>, request: Request) -> Waiter<Progress, Shared<Arc<Pulled>>> {
        let key = RequestKey {
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
                puller.account(&shared.snapshot(), result.is_ok());
                if let Err(error) = &result {
                    let error = crate::failure::chain(error);
                    tracing::warn!(reference = %request.reference, %error, "pull failed");
                }
                result.map(Arc::new).map_err(Arc::new)
            };
            (progress, work)
        })
    }

    fn account(&self, end: &Snapshot, succeeded: bool) {
        let result = if succeeded { metrics::Ending::Ok } else { metrics::Ending::Error };
        self.metrics.pulls.get_or_create(&metrics::Outcome { result }).inc();
        self.metrics.seconds.observe(end.elapsed_ms as f64 / 1000.0);
    }

    async fn run(self: &Arc<Self>, request: &Request, progress: &Progress) -> Result<Pulled, Error> {
        let (resolved, manifest) = self.resolve(request).await?;
        let family = layout::decide::decide(&manifest, &request.options.layout)?.family;
        let readable = request.readable.unwrap_or(family.readable);
        // What was not checked is another tree.
        let checked = self.settings.verify_diff_ids && family.name == layout::families::image::NAME;
        let key = TreeKey::new(&resolved.manifest_digest, &request.options, readable, checked);
        let source = &resolved.source;
        let proof = format!("tree {key}");
        let proven = {
            let (who, proof) = (source.clone(), proof.clone());
            let ttl = self.ttl(resolved.offline);
            self.with_store(move |store| store.is_proven(access_key(&who).as_key(), &proof, ttl)).await?
        };
        let present = {
            let key = key.clone();
            self.with_store(move |store| store.tree(&key)).await?
        };
        let tree = match present.filter(|_| proven) {
            Some(tree) => tree,
            None => {
                let carried = resolve::Carried::of(manifest.layers.iter());
                self.keep_embedded(&manifest.config, source).await?;
                let plan::Planned { plan, room } =
                    self.plan(&resolved, manifest, family, request, progress).await?;
                let wanted = Wanted::of(&plan);
                for wanted in &wanted {
                    if let Some(carrying) = carried.get(&wanted.blob.digest) {
                        self.keep_embedded(carrying, source).await?;
                    }
                }
                if resolved.offline {
                    self.all_here(wanted, source, &request.reference).await?;
                } else {
                    self.fetch_all(wanted, source, progress).await?;
                }
                let tree = self
                    .build(Build {
                        key: key.clone(),
                        plan,
                        options: request.options.clone(),
                        readable,
                        manifest: resolved.manifest_digest.clone(),
                        family: family.name.to_owned(),
                    })
                    .await?;
                drop(room); // The plan is gone.
                tree
            }
        };
        let (who, reference, digest) = (source.clone(), request.reference.clone(), resolved.digest.clone());
        let (asked, confirmed) = (resolved.asked, !proven && !resolved.offline);
        self.with_store(move |store| {
            // The manifest's proof is renewed by the registry alone. The blobs' proof counts only beside it.
            let keys = access_key(&who);
            let note = || {
                if confirmed {
                    store.set_proven(keys.as_key(), &proof)?;
                }
                if asked {
                    store.set_proven(keys.as_key(), &resolve::manifest_proof(&digest))?;
                    if reference.digest().is_none() {
                        store.set_tag(keys.as_key(), &reference.target(), &digest)?;
                    }
                }
                store.touch_tree(&key, &reference.to_string())
            };
            match note() {
                // What is here can be mounted all the same.
                Err(error @ crate::store::error::Error::NoSpace { .. }) => {
                    tracing::warn!(%error, "cannot note what was learnt of a reference");
                    Ok(())
                }
                noted => noted,
            }
        })
        .await?;
        Ok(Pulled { tree, digest: resolved.digest, fetched: progress.snapshot().fetched })
    }

    /// Checks that every blob is here and `source` may have it, without asking anybody.
    async fn all_here(
        self: &Arc<Self>,
        all: Vec<Wanted>,
        source: &Source,
        reference: &Reference,
    ) -> Result<(), Error> {
        for wanted in all {
            if !self.is_here(&wanted, source).await? {
                return Err(Error::NotPresent { reference: reference.to_string() });
            }
        }
        Ok(())
    }

    /// How old a proof may be. Who may not ask the registry has to believe what there is.
    fn ttl(&self, offline: bool) -> Duration {
        if offline { Duration::MAX } else { self.settings.proof_ttl }
    }

    /// Brings every blob here, each with a proof that `source` may read it.
    async fn fetch_all(
        self: &Arc<Self>,
        all: Vec<Wanted>,
        source: &Source,
        progress: &Progress,
    ) -> Result<(), Error> {
        let total = all.iter().fold(0_u64, |sum, wanted| sum.saturating_add(wanted.blob.size));
        progress.expect(all.len(), total);
        let missing = {
            let (all, from) = (all.clone(), origin(source));
            self.with_store(move |store| {
                all.iter().try_fold(0_u64, |sum, wanted| {
                    let found = wanted.find(store)?.filter(|found| wanted.keeps_promise(found).is_some());
                    Ok::<_, Error>(match (found, &wanted.form) {
                        (Some(_), _) => sum,
                        (None, Form::File) => sum.saturating_add(store.missing_of(&wanted.blob, &from)?),
                        // What is in it takes more; that is looked at while it is unpacked.
                        (None, Form::Layer { .. }) => sum.saturating_add(wanted.blob.size),
                    })
                })
            })
            .await?
        };
        let (blobs, from): (Vec<_>, _) =
            (all.iter().map(|wanted| wanted.blob.clone()).collect(), origin(source));
        self.with_store(move |store| store.make_space(missing, &blobs, &from)).await?;
        futures_util::stream::iter(all.iter().map(Ok))
            .try_for_each_concurrent(BLOBS_AT_A_TIME, |wanted| self.obtain(wanted, source, progress))
            .await
    }

    async fn build(self: &Arc<Self>, build: Build) -> Result<Tree, Error> {
        let mut waiter = self.trees.join(build.key.clone(), || {
            let puller = Arc::clone(self);
            let work = async move {
                let build = Arc::new(build);
                if build.plan.file_list().is_some() {
                    let turn = Arc::clone(&puller.file_lists).acquire_owned().await;
                    let turn = turn.map_err(|_| Arc::new(Error::Stopped))?;
                    let checked = Arc::clone(&build);
                    let check = move |store: &Arc<Store>| {
                        let _turn = turn; // Until it is done, also when nobody waits any more.
                        store.check_file_list(&checked)
                    };
                    puller.with_store(check).await.map_err(|error| Arc::new(Error::from(error)))?;
                }
                let turn = Arc::clone(&puller.merges).acquire_owned().await;
                let turn = turn.map_err(|_| Arc::new(Error::Stopped))?;
                let build = move |store: &Arc<Store>| {
                    let _turn = turn; // Until it is done, also when nobody waits any more.
                    match store.tree(&build.key)? {
                        Some(tree) => Ok(tree),
                        None => store.build_tree(&build),
                    }
                };
                puller.with_store(build).await.map_err(|error| Arc::new(Error::from(error)))
            };
            (Arc::default(), work)
        });
        waiter.wait().await.ok_or(Error::Stopped)?.map_err(Error::Shared)
    }

    /// Runs blocking `work` on the store.
    async fn with_store<T, E>(
        &self,
        work: impl FnOnce(&Arc<Store>) -> Result<T, E> + Send + 'static,
    ) -> Result<T, E>
    where
        T: Send + 'static,
        E: Send + 'static,
    {
        let store = Arc::clone(&self.store);
        blocking::run(move || work(&store)).await
    }
}

/// An asker, as the store tells them apart, with what the key borrows from.
struct Asker<'a> {
    source: &'a Source,
    credential: Vec<&'a str>,
}

fn access_key(source: &Source) -> Asker<'_> {
    let credential = source.credential.as_deref().map_or_else(Vec::new, |known| {
        let token = known.identity_token.as_ref().map_or("", |token| token.reveal());
        vec![known.user.as_str(), known.password.reveal(), token]
    });
    Asker { source, credential }
}

impl Asker<'_> {
    fn as_key(&self) -> AccessKey<'_> {
        AccessKey {
            host: &self.source.host,
            repository: &self.source.repository,
            credential: &self.credential,
        }
    }
}

/// `source` as what the store remembers of it.
fn origin(source: &Source) -> Origin {
    Origin {
        host: source.host.clone(),
        repository: source.repository.clone(),
        anonymous: source.credential.is_none(),
    }
}
