//! What tags were when they were last resolved, for each asker.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::oci::digest::Digest;
use crate::store::access::keyed::{AccessKey, NodeKey};
use crate::store::access::shelf::Shelf;
use crate::store::disk::Disk;
use crate::store::durable::record;
use crate::store::error::Error;
use crate::tenant::Tenant;

/// The owner of `tags/`.
#[derive(Debug)]
pub struct Tags {
    key: NodeKey,
    shelf: Shelf,
}

#[derive(Debug, Serialize, Deserialize)]
struct Resolved {
    digest: Digest,
}

impl Tags {
    pub(in crate::store) fn open(disk: Arc<Disk>, key: NodeKey) -> Result<Self, Error> {
        Ok(Self { key, shelf: Shelf::open(disk, "tags")? })
    }

    /// The digest that `tag` had when this asker last resolved it.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn get(&self, tenant: &Tenant, who: AccessKey<'_>, tag: &str) -> Result<Option<Digest>, Error> {
        let known: Option<Resolved> = self.shelf.read(tenant, &self.key.name(who, tag))?;
        Ok(known.map(|known| known.digest))
    }

    /// Forgets what tags were that nobody asked for within `limit`, where `is_here` says that it is no longer here.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(in crate::store) fn forget(
        &self,
        limit: Duration,
        is_here: &dyn Fn(&Digest) -> bool,
    ) -> Result<(), Error> {
        self.shelf.forget(limit, &|path| {
            record::read::<Resolved>(path)
                .is_ok_and(|known| known.is_none_or(|known| !is_here(&known.digest)))
        })
    }

    /// Remembers that `tag` is `digest` for this asker.
    ///
    /// # Errors
    /// [`Error::NoSpace`], [`Error::Io`].
    pub fn set(&self, tenant: &Tenant, who: AccessKey<'_>, tag: &str, digest: &Digest) -> Result<(), Error> {
        self.shelf.write(tenant, &self.key.name(who, tag), &Resolved { digest: digest.clone() })
    }
}
