//! One blob for one asker: it is here, and the asker may read it.
//!
//! A manifest is no proof of its blobs: anybody can write down a digest. A blob that is here serves
//! - everybody, when it was once fetched without credentials;
//! - an asker that has shown its right to the repository the blob came from;
//! - an asker for which a HEAD of the blob succeeds at a host it came from;
//! - else an asker whose own repository sends the same bytes again.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use super::offers::Offers;
use super::progress::Counter;
use super::watch::{Pace, Watch};
use super::{Error, Progress, Puller, origin};
use crate::oci::Descriptor;
use crate::registry;
use crate::registry::transport::Source;
use crate::store::Blob;

/// Downloads of one blob that one asker waits for: each but the last ended without its own source being tried.
const ROUNDS: usize = 4;

impl Puller {
    /// Brings `blob` into the store, and makes sure that `source` may read it.
    pub(super) async fn obtain(
        self: &Arc<Self>,
        blob: &Descriptor,
        source: &Source,
        progress: &Progress,
    ) -> Result<(), Error> {
        let mut own_error = None;
        let mut fetched_here = false;
        for round in 0..=ROUNDS {
            let digest = blob.digest.clone();
            if let Some(found) = self.with_store(move |store| store.blob(&digest)).await? {
                if !is_rightful(&found, source) {
                    self.prove(blob, source, &found, progress).await?;
                }
                if found.size != blob.size {
                    let got = "content of another size than the manifest says".to_owned();
                    return Err(wrong(blob, source, got).into());
                }
                progress.blob_done(if fetched_here { 0 } else { blob.size });
                return Ok(());
            }
            if let Some(error) = own_error {
                return Err(Error::Shared(error));
            }
            if round == ROUNDS {
                break;
            }
            // A manifest that lies about the size must not spoil the download of one that does not.
            let key = (blob.digest.clone(), blob.size);
            let mut waiter = self.blobs.join(key, || {
                let offers = Arc::new(Offers::new(source));
                let (puller, blob, shared) = (Arc::clone(self), blob.clone(), Arc::clone(&offers));
                let work = async move { puller.download(&blob, &shared).await.map_err(Arc::new) };
                (offers, work)
            });
            waiter.state().add(source);
            progress.follow(&waiter.state().counter);
            fetched_here = true;
            if let Some(Err(error)) = waiter.wait().await {
                // Another's failure is no answer for this one: it may name their registry, and their right.
                own_error = waiter.state().error(source);
                // The next download counts what is here itself.
                waiter.state().counter.here.store(0, Ordering::Relaxed);
                if own_error.is_none() && matches!(*error, Error::Store(_)) {
                    return Err(Error::Shared(error));
                }
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
            let _turn = self.downloads.turn(&source.host).await;
            let counter = Arc::new(Counter::default());
            progress.follow(&counter);
            self.compare(blob, source, &counter).await?;
        }
        let (digest, from) = (blob.digest.clone(), origin(source));
        Ok(self.with_store(move |store| store.add_origin(&digest, from)).await?)
    }

    /// Fetches all of `blob` and compares it with its digest, without keeping it.
    async fn compare(&self, blob: &Descriptor, source: &Source, counter: &Counter) -> Result<(), Error> {
        let mut body = self.registry.blob(source, blob, None).await?;
        let mut hasher = blob.digest.algorithm().hasher();
        let mut received = 0_u64;
        let mut watch = Watch::new(Instant::now());
        while let Some(chunk) = body.chunk().await? {
            received += chunk.len() as u64;
            if watch.look(Instant::now(), received) == Pace::Dead {
                let host = source.host.clone();
                return Err(registry::Error::TooSlow { host, over: Watch::DEAD_AFTER }.into());
            }
            if received > blob.size {
                return Err(wrong(blob, source, format!("more than {} bytes", blob.size)).into());
            }
            counter.fetched.fetch_add(chunk.len() as u64, Ordering::Relaxed);
            hasher = super::blocking(move || {
                hasher.update(&chunk);
                hasher
            })
            .await;
        }
        let got = hasher.finish();
        if got == blob.digest { Ok(()) } else { Err(wrong(blob, source, got.to_string()).into()) }
    }
}

fn wrong(blob: &Descriptor, source: &Source, got: String) -> registry::Error {
    registry::Error::WrongContent { host: source.host.clone(), wanted: blob.digest.clone(), got }
}

/// Whether `source` may read `blob` without asking anybody. Its right to the manifest in its own repository has
/// been shown before.
pub(super) fn is_rightful(blob: &Blob, source: &Source) -> bool {
    let own = origin(source);
    blob.public || blob.origins.iter().any(|known| known.same_repository(&own))
}
