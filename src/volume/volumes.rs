//! The volumes of this node.

use crate::host::blocking;
use crate::volume::error::Error;
use crate::volume::store_mounts::StoreMounts;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Mutex, MutexGuard, Semaphore, watch};

use crate::mount::attach::Mounter;
use crate::mount::locked::Lock;
use crate::mount::mountinfo::Table;
use crate::mount::target::Policy;
use crate::pull::Puller;
use crate::registry::client::Registry;
use crate::store::Store;
use crate::volume::turn::Turns;
use crate::{pull, store};

/// Publishes that are worked on or wait; more are refused.
pub const PUBLISHES_LIMIT: usize = 1024;
/// How long what needs no store waits for one that is being opened.
const STORE_PATIENCE: Duration = Duration::from_secs(2);

/// Publishes, unpublishes and describes volumes of this node.
pub struct Volumes {
    pub(in crate::volume) store_root: PathBuf,
    pub(in crate::volume) registry: Registry,
    pub(in crate::volume) pulls: pull::Settings,
    pub(in crate::volume) metrics: pull::metrics::Metrics,
    pub(in crate::volume) policy: Policy,
    pub(in crate::volume) mounter: Arc<Mounter>,
    /// Opened when first needed, and again after it could not be.
    pub(in crate::volume) puller: Mutex<Option<Arc<Puller>>>,
    pub(in crate::volume) turns: Turns,
    pub(in crate::volume) publishes: Arc<Semaphore>,
    pub(in crate::volume) stopping: watch::Sender<bool>,
}

impl Volumes {
    /// Nothing is opened yet.
    pub fn new(
        store_root: PathBuf,
        registry: Registry,
        pulls: pull::Settings,
        metrics: pull::metrics::Metrics,
        policy: Policy,
        lock: Lock,
    ) -> Arc<Self> {
        let mounter = Mounter::new(&store_root, &store::empty_directory(&store_root), lock);
        Arc::new(Self {
            store_root,
            registry,
            pulls,
            metrics,
            policy,
            mounter: Arc::new(mounter),
            puller: Mutex::default(),
            turns: Turns::default(),
            publishes: Arc::new(Semaphore::new(PUBLISHES_LIMIT)),
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
        let root = self.store_root.clone();
        let store = blocking::run(move || Store::open(&root)).await?;
        let puller = Puller::new(store, self.registry.clone(), self.pulls.clone(), self.metrics.clone());
        *slot = Some(Arc::clone(&puller));
        Ok(puller)
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

    /// The client for registries.
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// Where the store is.
    pub fn store_root(&self) -> &std::path::Path {
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
        blocking::run(move || mounter.check()).await
    }

    /// Makes waiting publishes answer at once, and refuses new ones. Mounts stay.
    pub fn stop(&self) {
        self.stopping.send_replace(true);
    }

    /// Waits until what the store has is durable; what is not, the next process checks.
    pub async fn flush(&self) {
        let puller = self.puller.lock().await.clone();
        if let Some(puller) = puller {
            let store = Arc::clone(puller.store());
            blocking::run(move || store.flush()).await;
        }
    }

    /// Ends when [`Volumes::stop`] was called.
    pub async fn stopping(&self) {
        // The sender lives as long as `self`.
        let _ = self.stopping.subscribe().wait_for(|stopping| *stopping).await;
    }

    /// Forgets records of targets where nothing is mounted any more; returns how many volumes are published.
    ///
    /// # Errors
    /// When the mount table or the store cannot be read.
    pub async fn recover(&self) -> Result<usize, Error> {
        let root = self.store_root.clone();
        let store = self.store_if_usable().await;
        blocking::run(move || {
            // Records first: a volume that is published meanwhile is then in the table, too.
            let records = store.as_ref().map_or(Ok(Vec::new()), |store| store.volumes())?;
            let table = Table::read()?;
            if let Some(store) = store {
                for record in records {
                    if table.at(&record.target).is_none() {
                        store.remove_volume(&record.target)?;
                    }
                }
            }
            let ours = StoreMounts::locate(&table, &root);
            Ok(table.iter().filter(|mount| ours.holds(mount)).count())
        })
        .await
    }
}

/// Whether the mount table can be read: without it nothing can be published or unpublished.
///
/// # Errors
/// [`Error::Mount`] with the kernel's reason.
pub async fn is_able_to_mount() -> Result<(), Error> {
    blocking::run(|| Table::read().map(drop)).await.map_err(Error::from)
}

fn usable(puller: Result<Arc<Puller>, Error>) -> Option<Arc<Store>> {
    puller
        .inspect_err(|error| tracing::warn!(%error, "going on without the store"))
        .ok()
        .map(|puller| Arc::clone(puller.store()))
}
