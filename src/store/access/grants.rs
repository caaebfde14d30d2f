//! Grants: who has shown a right to what. A grant is kept until its tenant has too many, or there are too many tenants, and it
//! was of no use for longest; how old one may be that is believed is for who asks to say.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::oci::digest::Digest;
use crate::oci::repository::Repository;
use crate::store::access::keyed::{AccessKey, NodeKey};
use crate::store::access::shelf::Shelf;
use crate::store::disk::{Disk, now};
use crate::store::error::Error;
use crate::tenant::Tenant;

/// The owner of `proofs/`.
#[derive(Debug)]
pub struct Grants {
    key: NodeKey,
    shelf: Shelf,
}

#[derive(Debug, Serialize, Deserialize)]
struct Grant {
    /// Seconds since the epoch.
    shown: u64,
}

impl Grants {
    pub(in crate::store) fn open(disk: Arc<Disk>, key: NodeKey) -> Result<Self, Error> {
        Ok(Self { key, shelf: Shelf::open(disk, "proofs")? })
    }

    /// Whether this asker has shown that it may read `what`: a manifest, or all blobs of a tree; not longer than `limit` ago.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn holds(
        &self,
        tenant: &Tenant,
        who: AccessKey<'_>,
        what: &str,
        limit: Option<Duration>,
    ) -> Result<bool, Error> {
        let known: Option<Grant> = self.shelf.read(tenant, &self.key.name(who, what))?;
        let is_young =
            |grant: &Grant| limit.is_none_or(|limit| now().saturating_sub(grant.shown) < limit.as_secs());
        Ok(known.as_ref().is_some_and(is_young))
    }

    /// Whether the operator has said that everybody may read the manifest at `digest` in `repository`. That does not age.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn is_preloaded(&self, repository: &Repository, digest: &Digest) -> Result<bool, Error> {
        let name = self.preloaded(repository, digest);
        Ok(self.shelf.read_of::<Grant>(&Tenant::CommandLine, &name)?.is_some())
    }

    /// Remembers that everybody may read the manifest at `digest` in `repository`, because the operator says so.
    ///
    /// # Errors
    /// [`Error::NoSpace`], [`Error::Io`].
    pub(in crate::store) fn preload(&self, repository: &Repository, digest: &Digest) -> Result<(), Error> {
        self.shelf.write(&Tenant::CommandLine, &self.preloaded(repository, digest), &Grant { shown: now() })
    }

    /// The name of that. What askers have shown is of a manifest or a tree, by these words.
    fn preloaded(&self, repository: &Repository, digest: &Digest) -> String {
        self.key.name(AccessKey { repository, credential: &[] }, &format!("preloaded {digest}"))
    }

    /// Remembers that this asker may read `what`.
    ///
    /// # Errors
    /// [`Error::NoSpace`], [`Error::Io`].
    pub fn give(&self, tenant: &Tenant, who: AccessKey<'_>, what: &str) -> Result<(), Error> {
        self.shelf.write(tenant, &self.key.name(who, what), &Grant { shown: now() })
    }
}
