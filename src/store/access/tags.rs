//! What tags were when they were last resolved, for each asker; and what the operator said that they are, for everybody.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::oci::digest::Digest;
use crate::oci::repository::Repository;
use crate::store::access::keyed::{AccessKey, NodeKey};
use crate::store::access::shelf::Shelf;
use crate::store::disk::{Disk, Moment};
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
    #[serde(flatten)]
    at: Moment,
}

impl Resolved {
    fn now(digest: &Digest) -> Self {
        Self { digest: digest.clone(), at: Moment::now() }
    }
}

/// The name of what is preloaded as `tag`. No tag has a space.
fn preloaded(tag: &str) -> String {
    format!("preloaded {tag}")
}

/// The name of when somebody removed `tag` on this node. No tag has a space.
fn removed(tag: &str) -> String {
    format!("removed {tag}")
}

impl Tags {
    pub(in crate::store) fn open(disk: Arc<Disk>, key: NodeKey) -> Result<Self, Error> {
        Ok(Self { key, shelf: Shelf::open(disk, "tags")? })
    }

    /// The digest that `tag` had when this asker last resolved it, and when that was. What was preloaded counts until the tenant itself
    /// has asked the registry since; what other tenants were told changes it for nobody else. What was known when the tag was removed on
    /// this node is known no more.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn get(
        &self,
        tenant: &Tenant,
        who: AccessKey<'_>,
        tag: &str,
    ) -> Result<Option<(Digest, Moment)>, Error> {
        let everybodys = AccessKey { repository: who.repository, credential: &[] };
        let preloaded = self.key.name(everybodys, &preloaded(tag));
        let (preloaded, name): (Option<Resolved>, _) =
            (self.shelf.read_of(&Tenant::CommandLine, &preloaded)?, self.key.name(who, tag));
        let known: Option<Resolved> = match preloaded {
            None => self.shelf.read(tenant, &name)?,
            Some(loaded) => match self.shelf.read_of::<Resolved>(tenant, &name)? {
                Some(own) if own.at > loaded.at => Some(own),
                _ => Some(loaded),
            },
        };
        let removed = self.key.name(everybodys, &removed(tag));
        let removed: Option<Resolved> = self.shelf.read_of(&Tenant::CommandLine, &removed)?;
        let is_known = |known: &Resolved| removed.is_none_or(|removed| removed.at < known.at);
        Ok(known.filter(is_known).map(|known| (known.digest, known.at)))
    }

    /// Makes everybody forget what `tag` of `repository` was until now, which is the name of `digest`: who asked with which credential is
    /// not known, and so the moment is noted.
    ///
    /// # Errors
    /// [`Error::NoSpace`], [`Error::Io`].
    pub(in crate::store) fn remove(
        &self,
        repository: &Repository,
        tag: &str,
        digest: &Digest,
    ) -> Result<(), Error> {
        let name = self.key.name(AccessKey { repository, credential: &[] }, &removed(tag));
        self.shelf.write(&Tenant::CommandLine, &name, &Resolved::now(digest))
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
        self.shelf.write(tenant, &self.key.name(who, tag), &Resolved::now(digest))
    }

    /// Remembers that `tag` of `repository` is `digest`, for every asker, because the operator says so.
    ///
    /// # Errors
    /// [`Error::NoSpace`], [`Error::Io`].
    pub(in crate::store) fn preload(
        &self,
        repository: &Repository,
        tag: &str,
        digest: &Digest,
    ) -> Result<(), Error> {
        let name = self.key.name(AccessKey { repository, credential: &[] }, &preloaded(tag));
        self.shelf.write(&Tenant::CommandLine, &name, &Resolved::now(digest))
    }
}
