//! From a reference to the manifest to lay out, and who has shown a right to it.

use crate::oci::digest::Digest;
use crate::oci::manifest::{Document, Manifest};
use crate::oci::platform::Platform;
use crate::oci::reference::Reference;
use crate::pull::error::Error;
use crate::pull::manifests::{Manifests, Readable};
use crate::pull::request::{PullPolicy, PullRequest};
use crate::pull::rights::{Known, Rights};
use crate::registry::source::{Asker, Source};
use crate::store::disk::Moment;
use crate::store::error::Error as StoreError;

/// A reference that was resolved.
#[derive(Debug)]
pub struct Resolved {
    /// What the tag is now, or the digest that was given.
    pub digest: Digest,
    /// The manifest to lay out; another one when `digest` is an index.
    pub manifest_digest: Digest,
    /// Its bytes.
    pub manifest_size: u64,
    /// What it runs on, as the index says that it was chosen from.
    pub platform: Option<Platform>,
    /// The manifests and indexes that were read on the way to it, and itself.
    pub documents: Vec<Digest>,
    /// Who has shown a right to it.
    pub asker: Asker,
    /// The registry must not be asked.
    pub offline: bool,
    /// The registry was asked, and has shown that `asker` may read the manifest.
    pub asked: bool,
    /// When a registry said last that the reference is this, the epoch where that is not known.
    pub at: Moment,
}

/// Resolves references.
#[derive(Clone)]
pub struct Resolver {
    manifests: Manifests,
    rights: Rights,
}

impl Resolver {
    /// Reads `manifests`, and believes what `rights` says.
    pub fn new(manifests: Manifests, rights: Rights) -> Self {
        Self { manifests, rights }
    }

    /// Resolves as the first credential that the registry accepts.
    ///
    /// # Errors
    /// What the first credential failed with.
    pub async fn resolve(&self, request: &PullRequest) -> Result<(Resolved, Manifest), Error> {
        let as_credential = |credential| Asker {
            source: Source::new(&request.reference, credential),
            tenant: request.tenant.clone(),
        };
        let mut askers: Vec<Asker> =
            request.credentials.iter().cloned().map(|credential| as_credential(Some(credential))).collect();
        askers.push(as_credential(None));
        let mut first: Option<Error> = None;
        for asker in askers {
            // What an operator has loaded, or has on the node, needs no credentials; nobody else is asked without, if that is so.
            let may_ask =
                request.anonymous || asker.source.credential.is_some() || request.reference.is_layout();
            let policy = if may_ask { request.policy } else { PullPolicy::Never };
            match self.resolve_as(request, policy, asker).await {
                Ok(resolved) => return Ok(resolved),
                Err(Error::NotPresent { .. }) if !may_ask && request.policy != PullPolicy::Never => {}
                Err(error) => {
                    let next_may_help = error.is_about_access() || matches!(&error, Error::NotPresent { .. });
                    let first = first.get_or_insert(error);
                    if !next_may_help {
                        break;
                    }
                    tracing::debug!(reference = %request.reference, error = %first, "trying other credentials");
                }
            }
        }
        let no_credentials = || Error::NoCredentials { reference: request.reference.to_string() };
        Err(first.unwrap_or_else(no_credentials).with_notes(&request.notes))
    }

    async fn resolve_as(
        &self,
        request: &PullRequest,
        policy: PullPolicy,
        asker: Asker,
    ) -> Result<(Resolved, Manifest), Error> {
        let reference = &request.reference;
        let offline = policy == PullPolicy::Never;
        let known = self.rights.known(&asker, reference, offline).await?;
        // A tag is not asked for again while what it was is here; what is gone, the registry may have forgotten as well.
        let is_lost = match &known {
            Some(Known { digest, granted: true, .. })
                if policy == PullPolicy::IfNotPresent && reference.digest().is_none() =>
            {
                !self.manifests.holds(digest).await?
            }
            _ => false,
        };
        let known_at = known.as_ref().map_or_else(Moment::default, |known| known.at);
        let (digest, asked) = match known {
            Some(Known { digest, granted: true, .. }) if policy != PullPolicy::Always && !is_lost => {
                (digest, false)
            }
            _ if offline => return Err(Error::NotPresent { reference: reference.to_string() }),
            known => (self.ask(reference, &asker, known).await?, true),
        };
        let mut documents = Readable::new(&self.manifests, reference, &asker, offline);
        let (digest, asked, found) = match request.choice.follow(reference, &digest, &mut documents).await {
            // It is here, but no longer known to be this asker's; and the registry knows the tag, but not what it was.
            Err(error) if !asked && !offline && reference.digest().is_none() && error.is_not_there() => {
                let digest = self.ask(reference, &asker, None).await?;
                let found = request.choice.follow(reference, &digest, &mut documents).await?;
                (digest, true, found)
            }
            found => (digest, asked, found?),
        };
        let at = if asked { Moment::now() } else { known_at };
        let resolved = Resolved {
            digest,
            manifest_digest: found.digest,
            manifest_size: found.size,
            platform: found.platform,
            documents: documents.into_read(),
            asker,
            offline,
            asked,
            at,
        };
        Ok((resolved, found.manifest))
    }

    /// What `reference` is now, from the registry, which thereby shows that `asker` may read it.
    async fn ask(&self, reference: &Reference, asker: &Asker, known: Option<Known>) -> Result<Digest, Error> {
        let target = reference.target();
        // With a manifest at hand a HEAD tells whether it is still the right one. That is all it is believed, and that only
        // where nobody else can answer.
        if let Some(Known { digest, .. }) = known
            && self.rights.believes_word_of(asker).await?
            && self.manifests.holds(&digest).await?
            && self.manifests.is_confirmed(asker, &target, &digest).await?
        {
            return Ok(digest);
        }
        self.manifests.fetch(asker, &target).await
    }

    /// The manifest that was resolved to, once more, from the store alone. *Caller:* has memory for reading it.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] when it is gone, since the disk failed meanwhile; those of the store.
    pub async fn read_here(&self, resolved: &Resolved, reference: &Reference) -> Result<Manifest, Error> {
        let Resolved { asker, manifest_digest, .. } = resolved;
        match self.manifests.read_here(reference, asker, manifest_digest).await? {
            Some((Document::Manifest(manifest), _)) => Ok(manifest),
            _ => Err(StoreError::Damaged(format!("manifest {manifest_digest} is gone")).into()),
        }
    }

    /// The manifest that was resolved to, once more.
    ///
    /// # Errors
    /// As [`Manifests::read`].
    pub async fn read_again(&self, resolved: &Resolved, reference: &Reference) -> Result<Manifest, Error> {
        let Resolved { asker, manifest_digest, offline, .. } = resolved;
        match self.manifests.read(reference, asker, manifest_digest, *offline).await? {
            (Document::Manifest(manifest), _) => Ok(manifest),
            (Document::Index(_), _) => Err(Error::NotPresent { reference: reference.to_string() }),
        }
    }
}
