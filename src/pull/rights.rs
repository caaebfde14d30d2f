//! Who may read what is here: a manifest is no proof of its blobs, because anybody can write down a digest.
//!
//! What is here serves
//! - everybody, when it was once fetched without credentials (a manifest: whoever names the repository that it was fetched from);
//! - everybody who names what the operator has loaded by the name that it was given there;
//! - an asker that has shown its right to the repository it came from;
//! - an asker to which the registry it came from says, by HEAD, that it is in the asker's repository as well;
//! - else an asker whose own repository sends the same bytes again.
//!
//! What was shown is kept as a grant, for the same credential.

use std::sync::Arc;
use std::time::Duration;

use crate::host::blocking::{self, Lane};
use crate::oci::digest::Digest;
use crate::oci::reference::Reference;
use crate::pull::request::PullSettings;
use crate::registry;
use crate::registry::client::Registry;
use crate::registry::credentials::secret::Secret;
use crate::registry::source::Asker;
use crate::store::access::keyed::AccessKey;
use crate::store::disk::Moment;
use crate::store::error::Error as StoreError;
use crate::store::key::TreeKey;
use crate::store::open::Store;

/// What askers have shown.
#[derive(Clone)]
pub struct Rights {
    store: Arc<Store>,
    registry: Registry,
    /// How old a grant may be.
    ttl: Option<Duration>,
}

/// What an asker knows of a reference.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Known {
    /// What it is, or was when it was last resolved.
    pub digest: Digest,
    /// Whether the asker may read that without asking.
    pub granted: bool,
    /// When it was resolved, the epoch where that is not known.
    pub at: Moment,
}

/// The name of the grant for the manifest at `digest`.
fn of_manifest(digest: &Digest) -> String {
    format!("manifest {digest}")
}

/// The name of the grant for all blobs of a tree.
fn of_tree(key: &TreeKey) -> String {
    format!("tree {key}")
}

impl Rights {
    /// Grants are kept in `store`.
    pub fn new(store: Arc<Store>, registry: Registry, settings: &PullSettings) -> Self {
        let ttl = if settings.always_verify { Some(Duration::ZERO) } else { settings.grant_ttl };
        Self { store, registry, ttl }
    }

    /// What `asker` knows of `reference`. `offline`: it has to be enough, however old it is.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn known(
        &self,
        asker: &Asker,
        reference: &Reference,
        offline: bool,
    ) -> Result<Option<Known>, StoreError> {
        let (reference, limit) = (reference.clone(), self.limit(offline));
        self.with(asker, move |store, asker, who| {
            let known = match reference.digest() {
                Some(digest) => Some((digest.clone(), Moment::default())),
                None => store.tags.get(&asker.tenant, who, &reference.target())?,
            };
            let Some((digest, at)) = known else { return Ok(None) };
            // What everybody may read in this repository needs no grant. That everybody may read it in another says nothing: who
            // has a grant may mount the blobs of this repository that the manifest lists, and anybody can write a manifest.
            let repository = &asker.source.repository;
            let public = limit != Some(Duration::ZERO)
                && store.blobs.get(&digest)?.is_some_and(|blob| {
                    blob.origins.iter().any(|origin| origin.anonymous && origin.repository == *repository)
                });
            // Content that the operator brought is everybody's under the name that it was given (KEP-2535, preloaded images).
            let preloaded =
                limit != Some(Duration::ZERO) && store.grants.is_preloaded(repository, &digest)?;
            let granted = public
                || preloaded
                || store.grants.holds(&asker.tenant, who, &of_manifest(&digest), limit)?;
            Ok(Some(Known { digest, granted, at }))
        })
        .await
    }

    /// Whether `asker` has shown a right to all blobs of the tree.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn holds_tree(&self, asker: &Asker, key: &TreeKey, offline: bool) -> Result<bool, StoreError> {
        let (key, limit) = (key.clone(), self.limit(offline));
        let holds = move |store: &Store, asker: &Asker, who: AccessKey<'_>| {
            store.grants.holds(&asker.tenant, who, &of_tree(&key), limit)
        };
        self.with(asker, holds).await
    }

    /// Notes what the registry has shown: that `asker` may read the manifest at `digest`, and that this is what `reference` is.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn grant_manifest(
        &self,
        asker: &Asker,
        reference: &Reference,
        digest: &Digest,
    ) -> Result<(), StoreError> {
        let (reference, digest) = (reference.clone(), digest.clone());
        self.with(asker, move |store, asker, who| {
            store.grants.give(&asker.tenant, who, &of_manifest(&digest))?;
            if reference.digest().is_none() {
                store.tags.set(&asker.tenant, who, &reference.target(), &digest)?;
            }
            Ok(())
        })
        .await
    }

    /// Notes that `asker` has shown a right to all blobs of the tree. It counts beside the right to its manifest.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn grant_tree(&self, asker: &Asker, key: &TreeKey) -> Result<(), StoreError> {
        let key = key.clone();
        let give = move |store: &Store, asker: &Asker, who: AccessKey<'_>| {
            store.grants.give(&asker.tenant, who, &of_tree(&key))
        };
        self.with(asker, give).await
    }

    /// Whether the registry's own word, without the content, shows something.
    ///
    /// # Errors
    /// As [`Registry::is_believed`].
    pub async fn believes_word_of(&self, asker: &Asker) -> Result<bool, registry::error::Error> {
        self.registry.is_believed(asker).await
    }

    fn limit(&self, offline: bool) -> Option<Duration> {
        if offline { None } else { self.ttl }
    }

    async fn with<T: Send + 'static>(
        &self,
        asker: &Asker,
        work: impl FnOnce(&Store, &Asker, AccessKey<'_>) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (store, asker) = (Arc::clone(&self.store), asker.clone());
        blocking::run(Lane::Store, move || {
            let credential = asker.source.credential.as_deref().map_or_else(Vec::new, |known| {
                if let Some(identity) = &known.identity {
                    return vec![identity.as_str()];
                }
                let token = known.identity_token.as_ref().map_or("", Secret::reveal);
                let mut parts = vec![known.user.as_str(), known.password.reveal(), token];
                // Not where there is none: what was noted before there were any is still found.
                parts.extend(known.registry_token.as_ref().map(Secret::reveal));
                parts
            });
            let who = AccessKey { repository: &asker.source.repository, credential: &credential };
            work(&store, &asker, who)
        })
        .await
    }
}
