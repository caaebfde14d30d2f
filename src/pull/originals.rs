//! The blobs of an artifact as they are, for who writes them elsewhere: config and layers as files, whatever a volume would make of
//! them.

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;

use crate::host::blocking::{self, Lane};
use crate::oci::descriptor::Descriptor;
use crate::oci::digest::Digest;
use crate::pull::error::Error;
use crate::pull::progress::Progress;
use crate::pull::puller::Puller;
use crate::pull::request::PullRequest;
use crate::pull::resolve::Resolved;
use crate::store::error::Error as StoreError;
use crate::store::key::Name;
use crate::store::usage::holds::Hold;
use crate::transfer::needed::Needed;

/// A manifest and its blobs, all of which are files in the store. None is collected as long as this exists; afterwards they are as
/// other blobs that no tree needs.
#[derive(Debug)]
pub struct Originals {
    /// What the reference resolved to: an index, or the manifest itself.
    pub digest: Digest,
    /// The manifest's media type.
    pub media_type: String,
    /// The manifest, its config and its layers in its order, each once.
    pub files: Vec<Original>,
    /// Bytes that came over the network.
    pub fetched: u64,
    _hold: Arc<Hold>,
}

/// A blob as a file of the store.
#[derive(Debug, Clone)]
pub struct Original {
    /// Its digest, which its bytes were compared with when they came.
    pub digest: Digest,
    /// Its bytes.
    pub size: u64,
    /// Where the file is.
    pub path: PathBuf,
}

/// Blobs that are brought at a time: what is known of more takes memory.
const PART: usize = 2048;

impl Puller {
    /// Brings all blobs of the manifest that `request` means, as files. Of an index that is the manifest it chooses. Layers that are
    /// here unpacked are no files, and are fetched.
    ///
    /// # Errors
    /// As a pull; [`Error::NotPresent`] when the registry must not be asked, and something is missing.
    pub async fn originals(&self, request: &PullRequest, progress: &Progress) -> Result<Originals, Error> {
        let (resolved, manifest) = self.resolver.resolve(request).await?;
        let _room = self.planner.room_for_part(&resolved).await;
        let mut seen = HashSet::new();
        let descriptors = std::iter::once(&manifest.config).chain(&manifest.layers);
        let blobs: Vec<&Descriptor> = descriptors.filter(|blob| seen.insert(&blob.digest)).collect();
        let hold = {
            let names =
                std::iter::once(&resolved.manifest_digest).chain(blobs.iter().map(|blob| &blob.digest));
            let (holds, names) = (self.store.holds.clone(), names.map(Name::content).collect::<Vec<_>>());
            Arc::new(blocking::run(Lane::Store, move || holds.hold(names)).await)
        };
        // It may have been collected in the moment before it was held.
        if !self.manifests.holds(&resolved.manifest_digest).await? {
            self.resolver.read_again(&resolved, &request.reference).await?;
        }
        let total = blobs.iter().fold(0_u64, |sum, blob| sum.saturating_add(blob.size));
        progress.expect(blobs.len(), total);
        for part in blobs.chunks(PART) {
            self.bring_files(part, &resolved, request, progress).await?;
        }
        let digests: Vec<Digest> = std::iter::once(&resolved.manifest_digest)
            .chain(blobs.iter().map(|blob| &blob.digest))
            .cloned()
            .collect();
        let store = Arc::clone(&self.store);
        let look = move || {
            let original = |digest: Digest| {
                let blob = store.blobs.get(&digest)?;
                let blob = blob.ok_or_else(|| StoreError::Damaged(format!("blob {digest} is gone")))?;
                Ok(Original { digest, size: blob.size, path: blob.path })
            };
            digests.into_iter().map(original).collect::<Result<Vec<_>, StoreError>>()
        };
        let files = blocking::run(Lane::Work, look).await?;
        if resolved.asked {
            let asker = &resolved.asker;
            self.rights.grant_manifest(asker, &request.reference, &resolved.digest).await?;
        }
        let fetched = progress.snapshot().fetched;
        Ok(Originals {
            digest: resolved.digest,
            media_type: manifest.media_type,
            files,
            fetched,
            _hold: hold,
        })
    }

    /// Brings, as files, what the manifest lists and is not here for everybody: what the files of a volume were made of may be less.
    ///
    /// # Errors
    /// As [`Puller::originals`].
    pub(in crate::pull) async fn bring_rest(&self, request: &PullRequest) -> Result<(), Error> {
        let (resolved, manifest) = self.resolver.resolve(request).await?;
        let _room = self.planner.room_for_part(&resolved).await;
        let blobs: Vec<&Descriptor> = std::iter::once(&manifest.config).chain(&manifest.layers).collect();
        for part in blobs.chunks(PART) {
            let (store, part) =
                (Arc::clone(&self.store), part.iter().map(|blob| blob.bare()).collect::<Vec<_>>());
            let look = move || {
                let mut missing = Vec::new();
                for blob in part {
                    let mut is_here = false;
                    for needed in Needed::in_any_form(&blob) {
                        is_here |= needed.find(&store)?.is_some_and(|found| found.public());
                    }
                    if !is_here {
                        missing.push(blob);
                    }
                }
                Ok::<_, StoreError>(missing)
            };
            let missing = blocking::run(Lane::Work, look).await?;
            let missing: Vec<&Descriptor> = missing.iter().collect();
            self.bring_files(&missing, &resolved, request, &Progress::default()).await?;
        }
        Ok(())
    }

    async fn bring_files(
        &self,
        blobs: &[&Descriptor],
        resolved: &Resolved,
        request: &PullRequest,
        progress: &Progress,
    ) -> Result<(), Error> {
        let asker = &resolved.asker;
        for blob in blobs {
            self.manifests.keep_embedded(blob, &asker.source).await?;
        }
        let needed: Vec<Needed> = blobs.iter().map(|blob| Needed::file(&blob.bare())).collect();
        if resolved.offline {
            return match self.contents.are_here(&needed, asker).await? {
                true => Ok(()),
                false => Err(Error::NotPresent { reference: request.reference.to_string() }),
            };
        }
        let (needed, _reserved) = self.rooms.reserve(needed, asker).await?;
        self.contents.ensure_all(needed, asker, progress).await
    }
}
