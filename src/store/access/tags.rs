//! What tags were when they were last resolved, for each asker.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::oci::digest::Digest;
use crate::store::access::keyed::{AccessKey, NodeKey};
use crate::store::access::shelf::Shelf;
use crate::store::disk::Disk;
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

    /// Remembers that `tag` is `digest` for this asker.
    ///
    /// # Errors
    /// [`Error::NoSpace`], [`Error::Io`].
    pub fn set(&self, tenant: &Tenant, who: AccessKey<'_>, tag: &str, digest: &Digest) -> Result<(), Error> {
        self.shelf.write(tenant, &self.key.name(who, tag), &Resolved { digest: digest.clone() })
    }
}
