//! What is kept whether a volume needs it or not: references of the configuration, which are pulled at the start, and trees of
//! CachedArtifacts.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use crate::host::blocking::{self, Lane};
use crate::oci::reference::Reference;
use crate::store::error::Error as StoreError;
use crate::store::key::TreeKey;
use crate::store::usage::pins::Pin;
use crate::tenant::Tenant;
use crate::volume::attributes::Attributes;
use crate::volume::credentials::Wanting;
use crate::volume::error::Error;
use crate::volume::volumes::Volumes;

/// Until what could not be pulled is tried again; twice as long each time.
const FIRST_RETRY: Duration = Duration::from_secs(5);
const LAST_RETRY: Duration = Duration::from_secs(300);

impl Volumes {
    /// Pulls `reference`, with the node's own credentials if there are some, until it is here, and keeps it from then on. What was pulled as the same before
    /// is kept until then.
    pub async fn pin(&self, reference: &Reference) {
        let mut retry = FIRST_RETRY;
        loop {
            let pulled = tokio::select! {
                () = self.stopping() => return,
                pulled = self.pull_pinned(reference) => pulled,
            };
            match pulled {
                Ok(()) => return,
                Err(error) => {
                    tracing::warn!(%reference, error, ?retry, "cannot pull what is pinned; it is tried again");
                }
            }
            tokio::select! {
                () = self.stopping() => return,
                () = tokio::time::sleep(retry) => {}
            }
            retry = (retry * 2).min(LAST_RETRY);
        }
    }

    async fn pull_pinned(&self, reference: &Reference) -> Result<(), String> {
        let name = reference.to_string();
        let attributes = Attributes::parse(&BTreeMap::from([("reference".to_owned(), name.clone())]));
        let attributes = attributes.map_err(|error| error.to_string())?;
        let request = self.pull_request(&attributes, &Wanting::default(), &Tenant::CommandLine).await;
        let puller = self.puller().await.map_err(|error| error.to_string())?;
        let pulled = puller.pull(request).wait().await.ok_or("the pull failed")?;
        let pulled = pulled.map_err(|error| crate::failure::chain(&*error))?;
        self.collector.pin(&name, &pulled.tree.key);
        tracing::info!(reference = name, tree = %pulled.tree.key, "pinned");
        Ok(())
    }

    /// Keeps the tree of `pin` for its CachedArtifact, instead of what was kept for it before. The store notes it: it is kept after a
    /// restart as well. *Caller:* holds the tree.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn keep(&self, pin: Pin) -> Result<(), Error> {
        let store = Arc::clone(self.puller().await?.store());
        Ok(blocking::run(Lane::Store, move || store.pins.set(&pin)).await?)
    }

    /// Whether a tree is in the store.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn has(&self, tree: &TreeKey) -> Result<bool, Error> {
        let (store, tree) = (Arc::clone(self.puller().await?.store()), tree.clone());
        Ok(blocking::run(Lane::Store, move || store.trees.get(&tree)).await?.is_some())
    }

    /// What is kept for CachedArtifacts.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn kept(&self) -> Result<Vec<Pin>, Error> {
        let store = Arc::clone(self.puller().await?.store());
        Ok(blocking::run(Lane::Store, move || store.pins.all()).await?)
    }

    /// No longer keeps what is kept for CachedArtifacts other than these. What no volume has of it may be collected then.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn keep_only(&self, artifacts: BTreeSet<String>) -> Result<(), Error> {
        let store = Arc::clone(self.puller().await?.store());
        let release = move || {
            let mut is_changed = false;
            for pin in store.pins.all()?.into_iter().filter(|pin| !artifacts.contains(&pin.artifact)) {
                store.pins.remove(&pin.artifact)?;
                if pin.is_kept {
                    tracing::info!(artifact = pin.artifact, reference = pin.reference, "no longer kept");
                }
                is_changed = true;
            }
            Ok::<_, StoreError>(is_changed)
        };
        if blocking::run(Lane::Store, release).await? {
            self.collector.changed.notify_one();
        }
        Ok(())
    }
}
