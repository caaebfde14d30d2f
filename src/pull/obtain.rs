//! One blob for one asker: it is here, and the asker may read it.
//!
//! A manifest is no proof of its blobs: anybody can write down a digest. A blob that is here serves
//! - everybody, when it was once fetched without credentials;
//! - an asker that has shown its right to the repository the blob came from;
//! - an asker to which a host it came from says, by HEAD, that the blob is in the asker's repository;
//! - else an asker whose own repository sends the same bytes again.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use crate::oci::descriptor::Descriptor;
use crate::pull::error::Error;
use crate::pull::offers::Offers;
use crate::pull::progress::{Counter, Progress};
use crate::pull::wanted::{Form, Stored, Wanted};
use crate::pull::watch::{Pace, Watch};
use crate::pull::{Puller, origin};
use crate::registry;
use crate::registry::retry::Backoff;
use crate::registry::source::Source;

/// Downloads of one blob that one asker waits for: each but the last ended without its own source being tried.
const ROUNDS: usize = 4;

impl Puller {
    /// Brings a blob into the store, in the form that is wanted, and makes sure that `source` may read it.
    pub(super) async fn obtain(
        self: &Arc<Self>,
        wanted: &Wanted,
        source: &Source,
        progress: &Progress,
    ) -> Result<(), Error> {
        let blob = &wanted.blob;
        let mut own_error = None;
        let mut fetched_here = false;
        for round in 0..=ROUNDS {
            let looked = wanted.clone();
            let found = self.with_store(move |store| looked.find(store)).await?;
            let found = found.and_then(|found| Some((wanted.keeps_promise(&found)?, found)));
            if let Some((promise, found)) = found {
                if !is_rightful(&found, source) {
                    self.prove(wanted, source, &found, progress).await?;
                }
                if found.size() != blob.size {
                    let got = "content of another size than the manifest says".to_owned();
                    return Err(wrong(blob, source, got).into());
                }
                promise?;
                progress.blob_done(if fetched_here { 0 } else { blob.size });
                return Ok(());
            }
            if let Some(error) = own_error {
                return Err(Error::Shared(error));
            }
            if round == ROUNDS {
                break;
            }
            let mut waiter = self.join(wanted, Offers::new(source));
            waiter.state().add(source);
            progress.follow(&waiter.state().counter);
            fetched_here = true;
            if let Some(Err(error)) = waiter.wait().await {
                // Another's failure is no answer for this one: it may name their registry, and their right.
                own_error = waiter.state().error(source);
                // The next download counts what is here itself.
                waiter.state().counter.here.store(0, Ordering::Relaxed);
                if own_error.is_none() && error.is_everybodys() {
                    // Names in a layer are for those who may read it.
                    if error.tells_content() && !self.may_read_file(blob, source).await? {
                        let _turn = self.downloads.turn(&source.host).await;
                        self.compare(blob, source, &Arc::new(Counter::default())).await?;
                    }
                    return Err(Error::Shared(error));
                }
            }
        }
        Err(Error::Stopped)
    }

    /// Whether `blob` is here as a file, and for `source`.
    async fn may_read_file(&self, blob: &Descriptor, source: &Source) -> Result<bool, Error> {
        let file = Wanted::file(blob);
        let found = self.with_store(move |store| file.find(store)).await?;
        Ok(found.is_some_and(|found| is_rightful(&found, source)))
    }

    /// Joins the flight that brings `wanted`, or starts it with `offers`.
    fn join(
        self: &Arc<Self>,
        wanted: &Wanted,
        offers: Offers,
    ) -> crate::pull::flight::Waiter<Offers, crate::pull::Shared<crate::pull::wanted::Stored>> {
        // A manifest that lies about the size must not spoil the download of one that does not.
        let key = (wanted.blob.digest.clone(), wanted.blob.size, wanted.form.clone());
        self.blobs.join(key, || {
            let offers = Arc::new(offers);
            let (puller, wanted, shared) = (Arc::clone(self), wanted.clone(), Arc::clone(&offers));
            let work = async move { puller.download(&wanted, &shared).await.map_err(Arc::new) };
            (offers, work)
        })
    }

    /// Whether `wanted` is here for `source`, without asking anybody.
    pub(super) async fn is_here(self: &Arc<Self>, wanted: &Wanted, source: &Source) -> Result<bool, Error> {
        let looked = wanted.clone();
        let (found, file) = self
            .with_store(move |store| {
                Ok::<_, Error>((looked.find(store)?, Wanted::file(&looked.blob).find(store)?))
            })
            .await?;
        let here = found.filter(|found| is_rightful(found, source));
        if let Some(promise) = here.and_then(|found| wanted.keeps_promise(&found)) {
            return promise.map(|()| true);
        }
        // What is here as a file can be unpacked without asking.
        if wanted.form == Form::File || !file.is_some_and(|file| is_rightful(&file, source)) {
            return Ok(false);
        }
        match self.join(wanted, Offers::default()).wait().await {
            Some(Ok(stored)) => Ok(is_rightful(&stored, source)),
            Some(Err(error)) if error.is_everybodys() => Err(Error::Shared(error)),
            _ => Ok(false),
        }
    }

    /// Shows that `source` may read a blob that came from elsewhere.
    async fn prove(
        &self,
        wanted: &Wanted,
        source: &Source,
        found: &Stored,
        progress: &Progress,
    ) -> Result<(), Error> {
        let blob = &wanted.blob;
        let is_known_there = found.origins().iter().any(|known| known.host == source.host);
        if !is_known_there || !self.registry.confirms_blob(source, blob).await? {
            let _turn = self.downloads.turn(&source.host).await;
            let counter = Arc::new(Counter::default());
            progress.follow(&counter);
            self.compare(blob, source, &counter).await?;
        }
        let (wanted, from) = (wanted.clone(), origin(source));
        Ok(self.with_store(move |store| wanted.add_origin(store, from)).await?)
    }

    /// Fetches all of `blob` and compares it with its digest, without keeping it.
    async fn compare(&self, blob: &Descriptor, source: &Source, counter: &Counter) -> Result<(), Error> {
        let mut body = self.registry.blob(source, blob, None, &Backoff::new(1)).await?;
        let oddity = body.oddity();
        let wrong = |got: String| wrong(blob, source, oddity.clone().unwrap_or(got));
        let mut hasher = blob.digest.algorithm().hasher();
        let mut received = 0_u64;
        let mut watch: Option<Watch> = None;
        while let Some(chunk) = body.chunk().await? {
            received += chunk.len() as u64;
            // The wait for the first byte says nothing about the rate.
            let watch = watch.get_or_insert_with(|| Watch::new(Instant::now()));
            if watch.look(Instant::now(), received) == Pace::Dead {
                let host = source.host.clone();
                return Err(registry::error::Error::TooSlow { host, over: Watch::DEAD_AFTER }.into());
            }
            if received > blob.size {
                return Err(wrong(format!("more than {} bytes", blob.size)).into());
            }
            counter.fetched.fetch_add(chunk.len() as u64, Ordering::Relaxed);
            hasher = crate::host::blocking::run(move || {
                hasher.update(&chunk);
                hasher
            })
            .await;
        }
        let got = hasher.finish();
        if got == blob.digest { Ok(()) } else { Err(wrong(got.to_string()).into()) }
    }
}

fn wrong(blob: &Descriptor, source: &Source, got: String) -> registry::error::Error {
    registry::error::Error::WrongContent { host: source.host.clone(), wanted: blob.digest.clone(), got }
}

/// Whether `source` may read `blob` without asking anybody. Its right to the manifest in its own repository has
/// been shown before.
pub(super) fn is_rightful(found: &Stored, source: &Source) -> bool {
    let own = origin(source);
    found.public() || found.origins().iter().any(|known| known.same_repository(&own))
}
