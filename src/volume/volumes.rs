//! The volumes of this node, and the store and the pulls that they come from.

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::{Mutex, MutexGuard, watch};

use crate::host::blocking::{self, Lane};
use crate::kube::events::Events;
use crate::mount::attach::Mounter;
use crate::mount::locked::Lock;
use crate::mount::lookup;
use crate::mount::mountinfo::Table;
use crate::mount::target::Policy;
use crate::pull::metrics::Metrics;
use crate::pull::puller::Puller;
use crate::pull::request::PullSettings;
use crate::registry::client::Registry;
use crate::store::disk::empty_directory;
use crate::store::open::Store;
use crate::store::space::budget::Budget;
use crate::store::usage::volumes::{Measured, VolumeRecord};
use crate::tenant::Tenant;
use crate::volume::announce::Announcements;
use crate::volume::collector::Collector;
use crate::volume::credentials::CredentialSources;
use crate::volume::damages::Damages;
use crate::volume::error::Error;
use crate::volume::interests::Interests;
use crate::volume::metrics::StoreMetrics;
use crate::volume::order::Order;
use crate::volume::permits::Permits;
use crate::volume::slots::Slots;
use crate::volume::store_mounts::StoreMounts;
use crate::volume::store_watch::StoreWatch;
use crate::volume::warmed;
use crate::warm::budget::WarmBudget;
use crate::warm::warmer::Warmer;

/// What was in use within this time is not collected, unless something else is configured.
pub const MIN_AGE: Duration = Duration::from_secs(10 * 60);
/// How long what needs no store waits for one that is being opened.
const STORE_PATIENCE: Duration = Duration::from_secs(2);

/// Publishes, unpublishes and describes volumes of this node.
pub struct Volumes {
    pub(in crate::volume) store_root: PathBuf,
    pub(in crate::volume) registry: Registry,
    pub(in crate::volume) credentials: CredentialSources,
    pub(in crate::volume) permits: Permits,
    pub(in crate::volume) pulls: PullSettings,
    pub(in crate::volume) budget: Budget,
    pub(in crate::volume) metrics: Metrics,
    pub(in crate::volume) policy: Policy,
    pub(in crate::volume) mounter: Arc<Mounter>,
    /// Opened when first needed, and again after it could not be.
    pub(in crate::volume) puller: Mutex<Option<Arc<Puller>>>,
    /// Whether it is open, for who does not wait while it is being opened.
    is_open: AtomicBool,
    pub(in crate::volume) order: Order,
    pub(in crate::volume) slots: Slots,
    pub(in crate::volume) interests: Interests,
    /// What was measured, by what is mounted: trees never change.
    pub(in crate::volume) measured: std::sync::Mutex<HashMap<PathBuf, Measured>>,
    pub(in crate::volume) collector: Arc<Collector>,
    /// Held by who looks at all of the store because somebody asked.
    pub(in crate::volume) repairing: Mutex<()>,
    /// What pods are told of their pulls.
    pub announcements: Announcements,
    /// What is damaged on the disk.
    pub(in crate::volume) damages: Arc<Damages>,
    /// What happens to the store.
    pub store_metrics: StoreMetrics,
    /// What fills the page cache.
    pub warmer: Arc<Warmer>,
    /// What was told of the store.
    pub(in crate::volume) store_watch: StoreWatch,
    pub(in crate::volume) stopping: watch::Sender<bool>,
}

/// How volumes are made, and what they may take.
#[derive(Clone)]
pub struct Settings {
    /// Where credentials come from.
    pub credentials: CredentialSources,
    /// Which registries pods may use.
    pub permits: Permits,
    /// Bounds of pulls.
    pub pulls: PullSettings,
    /// How much of its disk the store may take.
    pub budget: Budget,
    /// References that are kept.
    pub pinned: BTreeSet<String>,
    /// What was in use within this time is not collected.
    pub min_age: Duration,
    /// Which paths are targets.
    pub policy: Policy,
    /// Which flags of mounts are locked.
    pub lock: Lock,
    /// Where events of pods are written; none where they are not.
    pub events: Option<Events>,
    /// How much may be read into memory before anybody asks for it; nothing if not said.
    pub warm: Option<WarmBudget>,
}

impl Volumes {
    /// Nothing is opened yet.
    pub fn new(store_root: PathBuf, registry: Registry, settings: Settings, metrics: Metrics) -> Arc<Self> {
        let Settings { credentials, permits, pulls, budget, pinned, min_age, policy, lock, events, warm } =
            settings;
        let store_metrics = StoreMetrics::default();
        let collector = Collector::new(&store_root, pinned, min_age, store_metrics.clone());
        let mounter = Mounter::new(&store_root, &empty_directory(&store_root), lock);
        Arc::new(Self {
            store_root,
            registry,
            credentials,
            permits,
            pulls,
            budget,
            metrics,
            policy,
            mounter: Arc::new(mounter),
            puller: Mutex::default(),
            is_open: AtomicBool::new(false),
            order: Order::default(),
            slots: Slots::new(),
            interests: Interests::default(),
            measured: std::sync::Mutex::default(),
            collector,
            repairing: Mutex::default(),
            damages: Arc::new(Damages::new(events.clone())),
            announcements: Announcements::new(events),
            store_metrics,
            warmer: Arc::new(Warmer::new(warm)),
            store_watch: StoreWatch::default(),
            stopping: watch::Sender::new(false),
        })
    }

    /// The pulls into the store, which is opened if it is not open.
    ///
    /// # Errors
    /// As [`Store::open`].
    pub async fn puller(&self) -> Result<Arc<Puller>, Error> {
        let slot = self.puller.lock().await;
        self.open(slot).await
    }

    async fn open(&self, mut slot: MutexGuard<'_, Option<Arc<Puller>>>) -> Result<Arc<Puller>, Error> {
        if let Some(puller) = slot.as_ref() {
            return Ok(Arc::clone(puller));
        }
        let (root, budget) = (self.store_root.clone(), self.budget);
        let store = blocking::run(Lane::Work, move || Store::open(&root, budget)).await?;
        self.collector.serve(&store);
        let puller = Puller::new(store, self.registry.clone(), &self.pulls, self.metrics.clone());
        *slot = Some(Arc::clone(&puller));
        self.is_open.store(true, Ordering::Release);
        self.collector.changed.notify_one();
        Ok(puller)
    }

    /// The store, if it is open.
    pub(in crate::volume) async fn store_if_open(&self) -> Option<Arc<Store>> {
        self.puller.lock().await.as_ref().map(|puller| Arc::clone(puller.store()))
    }

    /// The store, if it is open or can be opened; for what works without it as well.
    pub(in crate::volume) async fn store_if_usable(&self) -> Option<Arc<Store>> {
        usable(self.puller().await)
    }

    /// The same for what does not wait while it is being opened.
    pub(in crate::volume) async fn store_if_at_hand(&self) -> Option<Arc<Store>> {
        let Ok(slot) = tokio::time::timeout(STORE_PATIENCE, self.puller.lock()).await else {
            tracing::warn!("going on without the store, which is being opened");
            return None;
        };
        usable(self.open(slot).await)
    }

    /// Makes what is counted of pulls, registries, credentials and the store part of what is served.
    pub fn register(&self, registry: &mut prometheus_client::registry::Registry) {
        self.metrics.register(registry);
        self.registry.register(registry);
        self.credentials.metrics.register(registry);
        self.store_metrics.register(registry);
        self.announcements.register(registry);
    }

    /// Whether the store is open. Once it is, it stays so as long as the process runs.
    pub fn has_store(&self) -> bool {
        self.is_open.load(Ordering::Acquire)
    }

    /// The client for registries.
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// What was in use within this time is not collected.
    pub fn min_age(&self) -> Duration {
        self.collector.min_age
    }

    /// Where the store is.
    pub fn store_root(&self) -> &Path {
        &self.store_root
    }

    /// Whether flags of mounts can be locked, and why not. Without, volumes are overlays, which pods with user
    /// namespaces of their own cannot have.
    ///
    /// *Caller:* has seen the store open.
    ///
    /// # Errors
    /// The kernel's.
    pub async fn check_locks(&self) -> std::io::Result<()> {
        let mounter = Arc::clone(&self.mounter);
        blocking::run(Lane::Mounts, move || mounter.check()).await
    }

    /// Makes waiting publishes answer at once, and refuses new ones. Mounts stay.
    pub fn stop(&self) {
        self.stopping.send_replace(true);
        self.collector.stop();
        self.warmer.stop();
    }

    /// Ends all pulls; what they have so far is kept.
    pub async fn end_pulls(&self) {
        if let Some(puller) = self.puller.lock().await.as_ref() {
            puller.stop();
        }
    }

    /// Waits until what the store has is durable; what is not, the next process checks.
    pub async fn flush(&self) {
        let puller = self.puller.lock().await.clone();
        if let Some(puller) = puller {
            let store = Arc::clone(puller.store());
            blocking::run(Lane::Work, move || store.flush()).await;
        }
    }

    /// Ends when [`Volumes::stop`] was called.
    pub async fn stopping(&self) {
        // The sender lives as long as `self`.
        let _ = self.stopping.subscribe().wait_for(|stopping| *stopping).await;
    }

    /// Forgets records of targets where nothing is mounted any more, and goes on warming the others; returns how many volumes are
    /// published.
    ///
    /// # Errors
    /// When the mount table or the store cannot be read.
    pub async fn recover(&self) -> Result<usize, Error> {
        let root = self.store_root.clone();
        let store = self.store_if_usable().await;
        let recorded = {
            let store = store.clone();
            let read = move || store.map_or(Ok(Vec::new()), |store| store.volumes.all());
            blocking::run(Lane::Store, read).await?
        };
        let table = blocking::run(Lane::Mounts, Table::read).await?;
        for record in recorded {
            let Some(store) = &store else { continue };
            if table.at(&record.target).is_some() && record.warm.is_none() {
                continue;
            }
            // A publish may have come meanwhile: nobody else changes the target while it is looked at again.
            let operation = self.order.publish(&record.target);
            let Ok(guard) = operation.guard().await else { continue };
            let (store, warmer, root) = (Arc::clone(store), Arc::clone(&self.warmer), root.clone());
            let look = move || {
                let _guard = guard;
                if lookup::at(&record.target)?.is_none() {
                    store.end_volume(&record.target)?;
                } else if let Some(record) =
                    store.volumes.get(&record.target)?.filter(|it| !warmer.has(&it.target))
                {
                    // As it is now; and a publish has begun with its volume itself.
                    warmed::begin(&warmer, &root, &tenant_of(&record), &record);
                }
                Ok::<_, Error>(())
            };
            blocking::run(Lane::Mounts, look).await?;
        }
        let ours = StoreMounts::locate(&table, &root);
        Ok(table.iter().filter(|mount| ours.holds(mount)).count())
    }
}

/// Whether the kernel says what is mounted: without that nothing can be published or unpublished.
///
/// # Errors
/// [`Error::Mount`] with the kernel's reason.
pub async fn is_able_to_mount() -> Result<(), Error> {
    blocking::run(Lane::Mounts, || lookup::at(Path::new("/")).map(drop)).await.map_err(Error::from)
}

/// Whose volume it is, as far as its record says.
fn tenant_of(record: &VolumeRecord) -> Tenant {
    Tenant::of_namespace(record.pod.as_deref().and_then(|pod| pod.split('/').next()))
}

fn usable(puller: Result<Arc<Puller>, Error>) -> Option<Arc<Store>> {
    puller
        .inspect_err(|error| tracing::warn!(%error, "going on without the store"))
        .ok()
        .map(|puller| Arc::clone(puller.store()))
}
