//! Manifests and indexes: from the store where the asker may read them there, else from the registry.

use std::collections::HashMap;
use std::sync::Arc;

use crate::failure::Kind;
use crate::host::blocking::{self, Lane};
use crate::host::memory::Memory;
use crate::oci::descriptor::Descriptor;
use crate::oci::digest::Digest;
use crate::oci::manifest::{Document, SIZE_LIMIT, parse, parse_kept};
use crate::oci::reference::Reference;
use crate::pull::choose::Documents;
use crate::pull::error::Error;
use crate::registry;
use crate::registry::client::Registry;
use crate::registry::source::{Asker, Source};
use crate::store::error::Error as StoreError;
use crate::store::key::Name;
use crate::store::open::Store;
use crate::transfer::needed::origin;

/// Reads manifests, into the store.
#[derive(Clone)]
pub struct Manifests {
    store: Arc<Store>,
    registry: Registry,
    memory: Memory,
}

/// What is made of a manifest while it is read takes so many times its size.
const PARSE_FACTOR: u64 = 8;

impl Manifests {
    /// Parsing takes memory from `memory`.
    pub fn new(store: Arc<Store>, registry: Registry, memory: Memory) -> Self {
        Self { store, registry, memory }
    }

    /// Whether the store has the manifest.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn holds(&self, digest: &Digest) -> Result<bool, Error> {
        let (store, digest) = (Arc::clone(&self.store), digest.clone());
        Ok(blocking::run(Lane::Store, move || store.blobs.get(&digest)).await?.is_some())
    }

    /// Whether the registry says that `digest` is what is at `target`.
    ///
    /// # Errors
    /// Those of the registry.
    pub async fn is_confirmed(&self, asker: &Asker, target: &str, digest: &Digest) -> Result<bool, Error> {
        Ok(self.registry.confirms(asker, target, digest).await?)
    }

    /// Keeps the content that a descriptor carries itself: it needs no request, and who may read the descriptor has it.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn keep_embedded(&self, carrying: &Descriptor, source: &Source) -> Result<(), Error> {
        if carrying.data.is_none() {
            return Ok(());
        }
        let (store, carrying, from) = (Arc::clone(&self.store), carrying.clone(), origin(source));
        let keep = move || {
            let _hold = store.holds.hold([Name::content(&carrying.digest)]);
            match carrying.embedded() {
                Some(data) => store.blobs.add(&carrying.digest, data, from).map(drop),
                None => Ok(()),
            }
        };
        Ok(blocking::run::<Result<(), StoreError>>(Lane::Store, keep).await?)
    }

    /// Fetches the manifest at `target` into the store.
    ///
    /// # Errors
    /// Those of the registry and of the store.
    pub async fn fetch(&self, asker: &Asker, target: &str) -> Result<Digest, Error> {
        let fetched = self.registry.manifest(asker, target).await?;
        let memory =
            self.memory.acquire_for_a_moment(&asker.tenant, PARSE_FACTOR * fetched.bytes.len() as u64).await;
        let (store, digest, from) = (Arc::clone(&self.store), fetched.digest.clone(), origin(&asker.source));
        let (host, name) = (from.repository.host.clone(), from.repository.name.clone());
        let what = format!("manifest {name}:{target}");
        blocking::run(Lane::Work, move || {
            let _memory = memory;
            // Parsed before it is stored: a manifest that cannot be used is not kept.
            parse(&fetched.bytes, fetched.content_type.as_deref()).map_err(|source| {
                if !fetched.from_elsewhere {
                    return registry::error::Error::Manifest { host, what, source };
                }
                // It may be anything that this node reaches.
                tracing::warn!(host, what, error = %source, "a host that the registry redirects to sends no manifest");
                let what = format!("sent no {what}, but something else");
                registry::error::Error::Protocol { host, what }
            })?;
            // It is not collected while it comes into being.
            let _hold = store.holds.hold([Name::content(&fetched.digest)]);
            store.blobs.add(&fetched.digest, &fetched.bytes, from)?;
            Ok::<_, Error>(())
        })
        .await?;
        Ok(digest)
    }

    /// The manifest at `digest`, and its size: from the store if it came from this very repository or is public, else from the
    /// registry. What another repository holds is not shown to one who only knows its digest.
    ///
    /// # Errors
    /// [`Error::NotPresent`] when it is not here and `offline`; else those of the registry and of the store.
    pub async fn read(
        &self,
        reference: &Reference,
        asker: &Asker,
        digest: &Digest,
        offline: bool,
    ) -> Result<(Document, u64), Error> {
        let not_present = || Error::NotPresent { reference: reference.to_string() };
        match self.load(reference, asker, digest, true).await? {
            Some(document) => Ok(document),
            None if offline => Err(not_present()),
            None => {
                // What comes is not collected before it is read.
                let (holds, name) = (self.store.holds.clone(), Name::content(digest));
                let _hold = blocking::run(Lane::Store, move || holds.hold([name])).await;
                self.fetch(asker, &digest.to_string()).await?;
                self.load(reference, asker, digest, true).await?.ok_or_else(not_present)
            }
        }
    }

    /// The same from the store alone. *Caller:* has memory for reading it.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn read_here(
        &self,
        reference: &Reference,
        asker: &Asker,
        digest: &Digest,
    ) -> Result<Option<(Document, u64)>, Error> {
        self.load(reference, asker, digest, false).await
    }

    async fn load(
        &self,
        reference: &Reference,
        asker: &Asker,
        digest: &Digest,
        takes_memory: bool,
    ) -> Result<Option<(Document, u64)>, Error> {
        let (store, digest, from) = (Arc::clone(&self.store), digest.clone(), origin(&asker.source));
        let readable = {
            let (store, digest) = (Arc::clone(&store), digest.clone());
            let look = move || store.blobs.get(&digest);
            let found = blocking::run(Lane::Store, look).await?;
            // What is too large to be a manifest is some other blob, that somebody calls one.
            found.filter(|blob| blob.size <= SIZE_LIMIT as u64).filter(|blob| {
                blob.public || blob.origins.iter().any(|known| known.repository == from.repository)
            })
        };
        let Some(blob) = readable else { return Ok(None) };
        let memory = match takes_memory {
            true => Some(self.memory.acquire_for_a_moment(&asker.tenant, PARSE_FACTOR * blob.size).await),
            false => None,
        };
        let name = reference.to_string();
        blocking::run(Lane::Work, move || {
            let _memory = memory;
            let Some(bytes) = store.blobs.read(&digest, SIZE_LIMIT)? else { return Ok(None) };
            let document =
                parse_kept(&bytes).map_err(|source| Error::Manifest { reference: name, source })?;
            Ok(Some((document, bytes.len() as u64)))
        })
        .await
    }
}

/// Descriptors that carry their content themselves.
#[derive(Default)]
pub struct Carried(HashMap<Digest, Descriptor>);

impl Carried {
    /// Those of `descriptors` that do.
    pub fn of<'a>(descriptors: impl IntoIterator<Item = &'a Descriptor>) -> Self {
        let mut carried = Self::default();
        carried.add(descriptors);
        carried
    }

    fn add<'a>(&mut self, descriptors: impl IntoIterator<Item = &'a Descriptor>) {
        let carrying = descriptors.into_iter().filter(|descriptor| descriptor.data.is_some());
        self.0.extend(carrying.map(|descriptor| {
            let data = descriptor.data.clone();
            (descriptor.digest.clone(), Descriptor { data, ..descriptor.bare() })
        }));
    }

    /// The one with this digest.
    pub fn get(&self, digest: &Digest) -> Option<&Descriptor> {
        self.0.get(digest)
    }
}

/// The manifests that an asker may read.
pub struct Readable<'a> {
    manifests: &'a Manifests,
    reference: &'a Reference,
    asker: &'a Asker,
    offline: bool,
    carried: Carried,
    read: Vec<Digest>,
}

impl<'a> Readable<'a> {
    /// `reference` is for errors. When `offline`, the registry must not be asked.
    pub fn new(manifests: &'a Manifests, reference: &'a Reference, asker: &'a Asker, offline: bool) -> Self {
        Self { manifests, reference, asker, offline, carried: Carried::default(), read: Vec::new() }
    }

    /// What was read so far.
    pub fn into_read(self) -> Vec<Digest> {
        self.read
    }
}

impl Documents for Readable<'_> {
    type Error = Error;

    async fn load(&mut self, digest: &Digest) -> Result<(Document, u64), Error> {
        if let Some(carrying) = self.carried.get(digest) {
            self.manifests.keep_embedded(carrying, &self.asker.source).await?;
        }
        let (document, size) = self.manifests.read(self.reference, self.asker, digest, self.offline).await?;
        if let Document::Index(index) = &document {
            self.carried.add(&index.manifests);
        }
        self.read.push(digest.clone());
        Ok((document, size))
    }

    fn is_final(error: &Error) -> bool {
        matches!(error.kind(), Kind::NotFound | Kind::FailedPrecondition)
    }
}
