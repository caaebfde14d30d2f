//! From a reference to the manifest to lay out, and a proof that the asker may read it.

use std::collections::HashMap;
use std::sync::Arc;

use crate::failure::Kind;
use crate::oci::descriptor::Descriptor;
use crate::oci::digest::Digest;
use crate::oci::manifest::{Document, Manifest, SIZE_LIMIT, parse, parse_kept};
use crate::oci::reference::Reference;
use crate::pull::choose::Documents;
use crate::pull::error::Error;
use crate::pull::{PullPolicy, Puller, Request, access_key, origin};
use crate::registry;
use crate::registry::source::Source;
use crate::store::Store;

/// A reference that was resolved.
#[derive(Debug)]
pub(super) struct Resolved {
    /// What the tag is now, or the digest that was given.
    pub digest: Digest,
    /// The manifest to lay out; another one when `digest` is an index.
    pub manifest_digest: Digest,
    /// Its bytes.
    pub manifest_size: u64,
    /// Who showed a right to it.
    pub source: Source,
    /// The registry must not be asked.
    pub offline: bool,
    /// The registry was asked, and has shown that `source` may read the manifest.
    pub asked: bool,
}

/// The name of the proof that an asker may read the manifest at `digest`.
pub(super) fn manifest_proof(digest: &Digest) -> String {
    format!("manifest {digest}")
}

/// The manifests that an asker may read.
struct Readable<'a> {
    puller: &'a Puller,
    reference: &'a Reference,
    source: &'a Source,
    offline: bool,
    carried: Carried,
}

/// Descriptors that carry their content themselves.
#[derive(Default)]
pub(super) struct Carried(HashMap<Digest, Descriptor>);

impl Carried {
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

    pub fn get(&self, digest: &Digest) -> Option<&Descriptor> {
        self.0.get(digest)
    }
}

impl Documents for Readable<'_> {
    type Error = Error;

    async fn load(&mut self, digest: &Digest) -> Result<(Document, u64), Error> {
        if let Some(carrying) = self.carried.get(digest) {
            self.puller.keep_embedded(carrying, self.source).await?;
        }
        let (document, size) =
            self.puller.read_manifest(self.reference, self.source, digest, self.offline).await?;
        if let Document::Index(index) = &document {
            self.carried.add(&index.manifests);
        }
        Ok((document, size))
    }

    fn is_final(error: &Error) -> bool {
        matches!(error.kind(), Kind::NotFound | Kind::FailedPrecondition)
    }
}

impl Puller {
    /// Resolves as the first credential that the registry accepts.
    pub(super) async fn resolve(self: &Arc<Self>, request: &Request) -> Result<(Resolved, Manifest), Error> {
        let mut sources: Vec<Source> = request
            .credentials
            .iter()
            .map(|credential| Source::new(&request.reference, Some(credential.clone())))
            .collect();
        if sources.is_empty() {
            sources.push(Source::new(&request.reference, None));
        }
        let mut first: Option<Error> = None;
        for source in sources {
            match self.resolve_as(request, source).await {
                Ok(resolved) => return Ok(resolved),
                Err(error) => {
                    let next_may_help = matches!(&error, Error::Registry(cause) if cause.is_about_access())
                        || matches!(&error, Error::NotPresent { .. });
                    let first = first.get_or_insert(error);
                    if !next_may_help {
                        break;
                    }
                    tracing::debug!(reference = %request.reference, error = %first, "trying other credentials");
                }
            }
        }
        Err(match first {
            Some(Error::Registry(error)) => error.with_unused_helper(request.unused_helper.as_deref()).into(),
            Some(error) => error,
            None => Error::Stopped,
        })
    }

    async fn resolve_as(
        self: &Arc<Self>,
        request: &Request,
        source: Source,
    ) -> Result<(Resolved, Manifest), Error> {
        let reference = &request.reference;
        let offline = request.policy == PullPolicy::Never;
        let known = self.known_digest(reference, &source, offline).await?;
        let (digest, asked) = match known {
            Some((digest, true)) if request.policy != PullPolicy::Always => (digest, false),
            _ if offline => return Err(Error::NotPresent { reference: reference.to_string() }),
            known => (self.ask(reference, &source, known.map(|(digest, _)| digest)).await?, true),
        };
        let mut documents =
            Readable { puller: self, reference, source: &source, offline, carried: Carried::default() };
        let found = request.choice.follow(reference, &digest, &mut documents).await?;
        let (manifest_digest, manifest_size) = (found.digest, found.size);
        let resolved = Resolved { digest, manifest_digest, manifest_size, source, offline, asked };
        Ok((resolved, found.manifest))
    }

    /// The manifest that was resolved to, once more.
    pub(super) async fn read_again(
        &self,
        resolved: &Resolved,
        reference: &Reference,
    ) -> Result<Manifest, Error> {
        let Resolved { source, manifest_digest, offline, .. } = resolved;
        match self.read_manifest(reference, source, manifest_digest, *offline).await? {
            (Document::Manifest(manifest), _) => Ok(manifest),
            (Document::Index(_), _) => Err(Error::NotPresent { reference: reference.to_string() }),
        }
    }

    /// What `reference` is now, from the registry, which thereby shows that `source` may read it.
    async fn ask(
        &self,
        reference: &Reference,
        source: &Source,
        known: Option<Digest>,
    ) -> Result<Digest, Error> {
        let target = reference.target();
        // With a manifest at hand a HEAD tells whether it is still the right one. That is all it is believed.
        if let Some(known) = known
            && self.holds_manifest(&known).await?
            && self.registry.confirms(source, &target, &known).await?
        {
            return Ok(known);
        }
        self.fetch_manifest(source, &target).await
    }

    /// What `reference` was when `source` last asked, and whether that right is still believed.
    async fn known_digest(
        &self,
        reference: &Reference,
        source: &Source,
        offline: bool,
    ) -> Result<Option<(Digest, bool)>, Error> {
        let (reference, source) = (reference.clone(), source.clone());
        let ttl = self.ttl(offline);
        let found = self.with_store(move |store| {
            let asker = access_key(&source);
            let known = match reference.digest() {
                Some(digest) => Some(digest.clone()),
                None => store.tag(asker.as_key(), &reference.target())?,
            };
            let Some(digest) = known else { return Ok(None) };
            let proven = store.is_proven(asker.as_key(), &manifest_proof(&digest), ttl)?;
            Ok::<_, crate::store::error::Error>(Some((digest, proven)))
        });
        Ok(found.await?)
    }

    async fn holds_manifest(&self, digest: &Digest) -> Result<bool, Error> {
        let digest = digest.clone();
        Ok(self.with_store(move |store| store.blob(&digest)).await?.is_some())
    }

    /// Keeps the content that a descriptor carries itself: it needs no request, and who may read the descriptor has it.
    pub(super) async fn keep_embedded(&self, carrying: &Descriptor, source: &Source) -> Result<(), Error> {
        if carrying.data.is_none() {
            return Ok(());
        }
        let (carrying, from) = (carrying.clone(), origin(source));
        let keep = move |store: &Arc<Store>| match carrying.embedded() {
            Some(data) => store.add_blob(&carrying.digest, data, from).map(drop),
            None => Ok(()),
        };
        Ok(self.with_store::<(), crate::store::error::Error>(keep).await?)
    }

    /// Fetches the manifest at `target` into the store.
    async fn fetch_manifest(&self, source: &Source, target: &str) -> Result<Digest, Error> {
        let fetched = self.registry.manifest(source, target).await?;
        let _turn = self.plans.acquire().await.map_err(|_| Error::Stopped)?;
        let (digest, from) = (fetched.digest.clone(), origin(source));
        let (host, what) = (source.host.clone(), format!("manifest {}:{target}", source.repository));
        self.with_store(move |store| {
            // Parsed before it is stored: a manifest that cannot be used is not kept.
            parse(&fetched.bytes, fetched.content_type.as_deref())
                .map_err(|source| registry::error::Error::Manifest { host, what, source })?;
            store.add_blob(&fetched.digest, &fetched.bytes, from)?;
            Ok::<_, Error>(())
        })
        .await?;
        Ok(digest)
    }

    /// The manifest at `digest`: from the store if it came from this very repository or is public, else from the
    /// registry. What another repository holds is not shown to one who only knows its digest.
    async fn read_manifest(
        &self,
        reference: &Reference,
        source: &Source,
        digest: &Digest,
        offline: bool,
    ) -> Result<(Document, u64), Error> {
        let load = async || {
            let _turn = self.plans.acquire().await.map_err(|_| Error::Stopped)?;
            let (digest, from, name) = (digest.clone(), origin(source), reference.to_string());
            let read = move |store: &Arc<Store>| {
                let rightful = store.blob(&digest)?.is_some_and(|blob| {
                    blob.public || blob.origins.iter().any(|origin| origin.same_repository(&from))
                });
                // What is too large to be a manifest is some other blob, that somebody calls one.
                let bytes = if rightful { store.read_blob(&digest, SIZE_LIMIT)? } else { None };
                let read = |bytes: Vec<u8>| Ok((parse_kept(&bytes)?, bytes.len() as u64));
                let document = bytes.map(read).transpose();
                document.map_err(|source| Error::Manifest { reference: name, source })
            };
            self.with_store(read).await
        };
        match load().await? {
            Some(document) => Ok(document),
            None if offline => Err(Error::NotPresent { reference: reference.to_string() }),
            None => {
                self.fetch_manifest(source, &digest.to_string()).await?;
                load().await?.ok_or_else(|| Error::NotPresent { reference: reference.to_string() })
            }
        }
    }
}
