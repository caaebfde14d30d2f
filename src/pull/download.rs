//! One blob over the network into the store: one pass from the socket through the hash to the file.
//!
//! The sources that askers offer are tried one after the other; each is a `Fetch`, whose pieces go over a bounded channel to
//! one thread, which hashes and writes. What has arrived is kept when a source is given up for one of the same repository, and
//! when the process ends.

use crate::host::blocking;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tokio::sync::{OwnedSemaphorePermit, mpsc};

use crate::pull::error::Error;
use crate::pull::fetch::{End, Fetch, Piece};
use crate::pull::offers::Offers;
use crate::pull::progress::Counter;
use crate::pull::turns::Permit;
use crate::pull::unpacking::Sink;
use crate::pull::wanted::{Form, Stored, Wanted};
use crate::pull::{Puller, origin};
use crate::registry::source::Source;
use crate::{registry, store};

/// Parts that wait for the writer.
const QUEUE: usize = 16;

impl Puller {
    /// Fetches a blob from the sources that `offers` has and gets, one after the other.
    pub(super) async fn download(&self, wanted: &Wanted, offers: &Offers) -> Result<Stored, Error> {
        let blob = &wanted.blob;
        if let Some(stored) = self.unpack_file(wanted).await? {
            return Ok(stored);
        }
        let mut last = Arc::new(Error::Stopped);
        while let Some((source, turn)) = self.pick(offers).await {
            let mut turn = Some(turn);
            let mut result = self.download_from(wanted, &source, offers, &mut turn, false).await;
            if let Err(End::Failed { in_parts: true, .. }) = result {
                result = self.download_from(wanted, &source, offers, &mut turn, true).await;
            }
            drop(turn);
            match result {
                Ok(stored) => return Ok(stored),
                Err(End::Slow(rate)) => {
                    tracing::info!(digest = %blob.digest, host = source.host, rate, "replacing a slow source");
                    offers.was_slow(&source, rate);
                }
                Err(End::Failed { error, .. }) if error.is_everybodys() => {
                    let error = Arc::new(error);
                    offers.failed(&source, Arc::clone(&error)); // Who brought this source has seen it.
                    return Err(Error::Shared(error));
                }
                Err(End::Failed { error, .. }) => {
                    tracing::debug!(digest = %blob.digest, host = source.host, %error, "source failed");
                    last = Arc::new(error);
                    offers.failed(&source, Arc::clone(&last));
                }
            }
        }
        Err(Error::Shared(last))
    }

    /// The first source whose registry has a turn; a registry that is busy does not hold up another.
    async fn pick(&self, offers: &Offers) -> Option<(Source, Permit)> {
        loop {
            let candidates = offers.candidates();
            if candidates.is_empty() {
                return None;
            }
            let turns = candidates.into_iter().map(|source| async {
                let turn = self.downloads.turn(&source.host).await;
                (source, turn)
            });
            let mut turns: FuturesUnordered<_> = turns.collect();
            tokio::select! {
                biased;
                Some((source, turn)) = turns.next() => {
                    offers.start(&source);
                    return Some((source, turn));
                }
                () = offers.changed() => {}
            }
        }
    }

    async fn download_from(
        &self,
        wanted: &Wanted,
        source: &Source,
        offers: &Offers,
        turn: &mut Option<Permit>,
        whole: bool,
    ) -> Result<Stored, End> {
        let (store, from, opened) = (Arc::clone(&self.store), origin(source), wanted.clone());
        let sink = blocking::run(move || Sink::open(&store, &opened, from)).await?;
        let counter = Arc::clone(&offers.counter);
        counter.here.store(sink.present(), Relaxed);
        let (writer, pieces) = mpsc::channel(QUEUE);
        let fetch = Fetch::new(self, wanted, source, offers, &sink, whole, writer);
        // It runs on a thread of its own, and ends when `fetch`, which has the sender, is dropped.
        let writing = blocking::run(move || write(sink, pieces, &counter));
        tokio::pin!(writing);
        let fetched = tokio::select! {
            biased;
            fetched = fetch.run() => fetched,
            written = &mut writing => {
                // It ends early only when it fails.
                written?;
                return Err(Error::Stopped.into());
            }
        };
        let (in_parts, oddity) = (fetch.came_in_parts(), fetch.oddity());
        drop(fetch);
        let sink = writing.await?;
        if let Err(end) = fetched {
            blocking::run(move || drop(sink)).await; // What was unpacked in vain is removed.
            return Err(end);
        }
        if sink.needs_large_window() {
            turn.take(); // All bytes are here; who waits for memory holds nothing that others need.
        }
        self.finish(sink, None).await.map_err(|error| match error {
            Error::Store(store::error::Error::Mismatch { expected, got }) => {
                let (host, got) = (source.host.clone(), oddity.unwrap_or_else(|| got.to_string()));
                let error = registry::error::Error::WrongContent { host, wanted: expected, got };
                End::Failed { error: error.into(), in_parts }
            }
            error => error.into(),
        })
    }
}

impl Puller {
    /// Checks and publishes what a sink has, when there is memory for it. The memory, and the turn, are given back when
    /// the work ends, which it does although nobody may wait for it any more.
    async fn finish(&self, sink: Sink, turn: Option<OwnedSemaphorePermit>) -> Result<Stored, Error> {
        let mut waiting = Waiting(Some(sink));
        let large = waiting.0.as_ref().is_some_and(Sink::needs_large_window);
        let memory = if large { Arc::clone(&self.large_windows).acquire_owned().await.ok() } else { None };
        let Some(sink) = waiting.0.take() else { return Err(Error::Stopped) };
        blocking::run(move || {
            let finished = sink.finish();
            drop((memory, turn));
            finished
        })
        .await
    }

    /// Unpacks a layer that is here as a file. Who may read the file may read the layer.
    async fn unpack_file(&self, wanted: &Wanted) -> Result<Option<Stored>, Error> {
        if wanted.form == Form::File {
            return Ok(None);
        }
        let looked = Wanted::file(&wanted.blob);
        let Some(Stored::Blob(file)) = self.with_store(move |store| looked.find(store)).await? else {
            return Ok(None);
        };
        if file.size != wanted.blob.size {
            return Ok(None);
        }
        let turn = Arc::clone(&self.local_unpacks).acquire_owned().await.map_err(|_| Error::Stopped)?;
        let opened = wanted.clone();
        let sink = self.with_store(move |store| Sink::from_file(store, &opened, file)).await?;
        match self.finish(sink, Some(turn)).await {
            Err(Error::Store(store::error::Error::Mismatch { expected, got })) => {
                tracing::warn!(%expected, %got, "discarding a blob that did not keep");
                self.with_store(move |store| store.discard_blob(&expected)).await?;
                Ok(None)
            }
            result => result.map(Some),
        }
    }
}

/// A sink in async code. Dropped, it removes what was unpacked in vain, maybe a million files, on a thread for that.
struct Waiting(Option<Sink>);

impl Drop for Waiting {
    fn drop(&mut self) {
        if let (Some(sink), Ok(runtime)) = (self.0.take(), tokio::runtime::Handle::try_current()) {
            runtime.spawn_blocking(move || drop(sink));
        }
    }
}

/// The writer's thread: until no more pieces can come.
fn write(mut sink: Sink, mut pieces: mpsc::Receiver<Piece>, counter: &Counter) -> Result<Sink, Error> {
    while let Some(piece) = pieces.blocking_recv() {
        let length = piece.bytes.len() as u64;
        sink.write(piece.offset, piece.bytes)?;
        counter.here.fetch_add(length, Relaxed);
    }
    Ok(sink)
}
