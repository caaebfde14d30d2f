//! One blob for one asker: it is here, and the asker may read it.
//!
//! A manifest is no proof of its blobs: anybody can write down a digest. A blob that is here serves
//! - everybody, when it was once fetched without credentials;
//! - an asker that has shown its right to the repository the blob came from;
//! - an asker for which a HEAD of the blob succeeds at a host it came from;
//! - else an asker whose own repository sends the same bytes again.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{Error, Progress, Puller, origin};
use crate::oci::Descriptor;
use crate::registry;
use crate::registry::transport::Source;
use crate::store::Blob;

/// What the askers of a blob bring to its flight: places to fetch it from.
#[derive(Debug, Default)]
pub(super) struct Offers {
    sources: Mutex<Vec<Offer>>,
    /// Bytes fetched.
    pub counter: Arc<AtomicU64>,
}

#[derive(Debug)]
struct Offer {
    source: Source,
    tried: bool,
}

/// Sources of one flight; more do not help.
const OFFERS_LIMIT: usize = 16;
/// Flights of one blob that one asker waits for, before it gives up: each but the last was another's failure.
const ROUNDS: usize = 4;

impl Offers {
    fn add(&self, source: &Source) {
        let mut sources = self.lock();
        if sources.len() < OFFERS_LIMIT && !sources.iter().any(|known| known.source == *source) {
            sources.push(Offer { source: source.clone(), tried: false });
        }
    }

    /// The next source that was not tried.
    pub fn next(&self) -> Option<Source> {
        let mut sources = self.lock();
        let offer = sources.iter_mut().find(|offer| !offer.tried)?;
        offer.tried = true;
        Some(offer.source.clone())
    }

    /// Whether there is a source that was not tried.
    pub fn has_next(&self) -> bool {
        self.lock().iter().any(|offer| !offer.tried)
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Offer>> {
        self.sources.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Puller {
    /// Brings `blob` into the store, and makes sure that `source` may read it.
    pub(super) async fn obtain(
        self: &Arc<Self>,
        blob: &Descriptor,
        source: &Source,
        progress: &Progress,
    ) -> Result<(), Error> {
        let mut fetched_here = false;
        for _ in 0..ROUNDS {
            let digest = blob.digest.clone();
            if let Some(found) = self.with_store(move |store| store.blob(&digest)).await? {
                if found.size != blob.size {
                    return Err(registry::Error::WrongContent {
                        host: source.host.clone(),
                        wanted: blob.digest.clone(),
                        got: format!("{} bytes where the manifest says {}", found.size, blob.size),
                    }
                    .into());
                }
                if !is_rightful(&found, source) {
                    self.prove(blob, source, &found, progress).await?;
                }
                progress.blob_done(if fetched_here { 0 } else { blob.size });
                return Ok(());
            }
            let mut waiter = self.blobs.join(blob.digest.clone(), || {
                let offers = Arc::new(Offers::default());
                let (puller, blob, shared) = (Arc::clone(self), blob.clone(), Arc::clone(&offers));
                let work = async move { puller.download(&blob, &shared).await.map_err(Arc::new) };
                (offers, work)
            });
            waiter.state().add(source);
            progress.follow(&waiter.state().counter);
            fetched_here = true;
            match waiter.wait().await {
                Some(Ok(_)) | None => {}
                Some(Err(error)) => return Err(Error::Shared(error)),
            }
        }
        Err(Error::Stopped)
    }

    /// Shows that `source` may read a blob that came from elsewhere.
    async fn prove(
        &self,
        blob: &Descriptor,
        source: &Source,
        found: &Blob,
        progress: &Progress,
    ) -> Result<(), Error> {
        if found.origins.iter().any(|known| known.host == source.host) {
            self.registry.prove_blob(source, &blob.digest).await?;
        } else {
            let _turn = self.downloads.acquire().await.map_err(|_| Error::Stopped)?;
            let counter = Arc::new(AtomicU64::new(0));
            progress.follow(&counter);
            self.compare(blob, source, &counter).await?;
        }
        let (digest, from) = (blob.digest.clone(), origin(source));
        Ok(self.with_store(move |store| store.add_origin(&digest, from)).await?)
    }

    /// Fetches all of `blob` and compares it with its digest, without keeping it.
    async fn compare(&self, blob: &Descriptor, source: &Source, counter: &AtomicU64) -> Result<(), Error> {
        let wrong = |got: String| registry::Error::WrongContent {
            host: source.host.clone(),
            wanted: blob.digest.clone(),
            got,
        };
        let mut body = self.registry.blob(source, blob, None).await?;
        let mut hasher = blob.digest.algorithm().hasher();
        let mut received = 0_u64;
        while let Some(chunk) = body.chunk().await? {
            received += chunk.len() as u64;
            if received > blob.size {
                return Err(wrong(format!("more than {} bytes", blob.size)).into());
            }
            counter.fetch_add(chunk.len() as u64, Ordering::Relaxed);
            hasher = super::blocking(move || {
                hasher.update(&chunk);
                hasher
            })
            .await;
        }
        let got = hasher.finish();
        if got == blob.digest { Ok(()) } else { Err(wrong(got.to_string()).into()) }
    }
}

/// Whether `source` may read `blob` without asking anybody. Its right to the manifest in its own repository has
/// been shown before.
fn is_rightful(blob: &Blob, source: &Source) -> bool {
    let own = origin(source);
    blob.public || blob.origins.iter().any(|known| known.same_repository(&own))
}
