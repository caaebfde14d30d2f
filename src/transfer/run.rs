//! A blob's transfer: once for all who need it, from the best of the sources that they bring.
//!
//! The transfer belongs to nobody. Whoever needs the blob joins it, and adds the source that it may ask itself. While the source
//! that runs is slow for this network, one that was not tried is raced with it, and the faster one goes on: so nobody's slow, or
//! lying, registry holds up those who know a better one for the same digest.

use std::collections::HashMap;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use tokio::sync::mpsc;

use crate::host::blocking::{self, Lane};
use crate::host::fair_queue::{FairQueue, Permit};
use crate::host::limits;
use crate::oci::digest::Digest;
use crate::oci::repository::Repository;
use crate::registry::client::Registry;
use crate::registry::source::{Asker, Source};
use crate::store::error::Error as StoreError;
use crate::store::open::Store;
use crate::transfer::counter::{Counter, Fetched};
use crate::transfer::error::Error;
use crate::transfer::fetch::{Failed, Fetch, HELP_BELOW, Means, Speed, Wanted, wrong_content};
use crate::transfer::flight::{Flights, Waiter};
use crate::transfer::needed::{Form, Needed, Stored, origin};
use crate::transfer::queue::{Queue, Turn};
use crate::transfer::sink::Sink;
use crate::transfer::sources::Sources;

/// The outcome of a transfer, shared by all who wait.
pub type Shared = Result<Stored, Arc<Error>>;

/// All transfers of the node.
pub struct Transfers {
    store: Arc<Store>,
    registry: Registry,
    queue: Queue,
    /// Bytes of memory for what takes much of it and does not take long.
    memory: FairQueue,
    flights: Flights<Key, Sources, Shared>,
    /// Repositories that sent other bytes than those of a digest, and when.
    liars: Mutex<HashMap<(Repository, Digest), Instant>>,
    /// Content that is what its digest names and cannot be used, whoever sends it.
    refused: Mutex<HashMap<(Digest, Form), Refused>>,
    fetched: Fetched,
}

/// Why content cannot be used, and the repositories that sent it.
struct Refused {
    error: Arc<Error>,
    origins: Vec<Repository>,
    since: Instant,
}

/// What makes two transfers one. A manifest that lies about the size must not spoil the transfer of one that does not.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Key {
    digest: Digest,
    size: u64,
    form: Form,
    /// Where a blob that is only read has to come from.
    source: Option<Source>,
}

/// Pieces on the way to the writer.
const QUEUE: usize = limits::QUEUE_BYTES / limits::PIECE;
/// How long a source that sent wrong bytes of a digest is asked for it only when no other is left.
const DISTRUST: Duration = Duration::from_secs(600);
/// Repositories and digests of which that is remembered.
const LIARS_LIMIT: usize = 1024;
/// How long content that cannot be used is not fetched again. It would be no better; the version of ocivol may be.
const REFUSED_FOR: Duration = Duration::from_secs(600);
/// How much of it is remembered.
const REFUSED_LIMIT: usize = 256;
/// How often the sources that run are compared.
const COMPARE_EVERY: Duration = Duration::from_millis(250);
/// How long a source may show what it can before it is compared.
const TRIAL: Duration = Duration::from_secs(2);
/// How much faster another source has to be.
const FASTER: f64 = 1.2;

/// One source that is being fetched from.
struct Attempt {
    asker: Asker,
    speed: Arc<Speed>,
    began: Instant,
}

/// Ends with the outcome, or with none when it was given up for a faster one.
type Attempting<'a> = BoxFuture<'a, (Asker, Option<Result<Stored, Failed>>)>;
/// Ends with the next source, and the turn to fetch from it.
type Next<'a> = BoxFuture<'a, Option<(Asker, Turn)>>;

impl Transfers {
    /// Transfers into `store`, at most `per_registry` large ones of a tenant at a time from one registry.
    pub fn new(
        store: Arc<Store>,
        registry: Registry,
        per_registry: usize,
        memory: FairQueue,
        fetched: Fetched,
    ) -> Arc<Self> {
        Arc::new(Self {
            store,
            registry,
            queue: Queue::new(per_registry),
            memory,
            flights: Flights::new(Duration::ZERO),
            liars: Mutex::default(),
            refused: Mutex::default(),
            fetched,
        })
    }

    /// Joins the transfer that brings `needed`, or starts it, and adds the source of `asker` to it. Without one it uses what is
    /// on the node alone.
    pub fn join(self: &Arc<Self>, needed: &Needed, asker: &Asker, ask: bool) -> Waiter<Sources, Shared> {
        let source = (needed.form == Form::Nothing).then(|| asker.source.clone());
        let blob = &needed.blob;
        let key = Key { digest: blob.digest.clone(), size: blob.size, form: needed.form.clone(), source };
        let waiter = self.flights.join(key, || {
            let sources = Arc::new(Sources::default());
            if ask {
                sources.add(asker, self.is_distrusted(asker, &blob.digest));
            }
            let (transfers, needed, asker) = (Arc::clone(self), needed.clone(), asker.clone());
            let shared = Arc::clone(&sources);
            let work = async move { transfers.run(&needed, &asker, &shared).await.map_err(Arc::new) };
            (sources, work)
        });
        if ask {
            waiter.state().add(asker, self.is_distrusted(asker, &blob.digest));
        }
        waiter
    }

    async fn run(&self, needed: &Needed, first: &Asker, sources: &Sources) -> Result<Stored, Error> {
        if let Some(stored) = self.unpack_file(needed, first).await? {
            return Ok(stored);
        }
        let mut last = Arc::new(Error::Fault);
        let mut futures: FuturesUnordered<Attempting<'_>> = FuturesUnordered::new();
        let mut attempts: Vec<Attempt> = Vec::new();
        // It keeps its place in the queue while the loop goes round.
        let mut challenger: Option<Next<'_>> = None;
        let mut compares = tokio::time::interval(COMPARE_EVERY);
        loop {
            if attempts.is_empty() {
                challenger = None; // It would wait, unpolled, before the next one in the same queue.
                let Some((asker, turn)) = self.next(sources, needed, Sources::candidates).await else {
                    return Err(Error::Shared(last));
                };
                futures.push(self.attempt(needed, asker, turn, sources, &mut attempts));
            }
            let wants_another = attempts.len() == 1 && is_slow(&attempts) && sources.has_challenger();
            if !wants_another {
                challenger = None;
            } else if challenger.is_none() {
                challenger = Some(Box::pin(self.next(sources, needed, Sources::challengers)));
            }
            tokio::select! {
                biased;
                Some((asker, outcome)) = futures.next() => {
                    attempts.retain(|attempt| outcome.is_none() || attempt.asker != asker);
                    match outcome {
                        None => {}
                        Some(Ok(stored)) => return Ok(stored),
                        Some(Err(Failed { error, .. })) if error.is_everybodys() => {
                            let error = Arc::new(error);
                            self.remember(needed, &asker, &error);
                            sources.failed(&asker, Arc::clone(&error)); // Who brought this source has seen it.
                            return Err(Error::Shared(error));
                        }
                        Some(Err(Failed { error, .. })) => {
                            let host = &asker.source.repository.host;
                            tracing::debug!(digest = %needed.blob.digest, host, %error, "source failed");
                            if error.is_wrong_content() {
                                self.distrust(&asker, &needed.blob.digest);
                            }
                            last = Arc::new(error);
                            sources.failed(&asker, Arc::clone(&last));
                        }
                    }
                }
                next = first_of(&mut challenger) => {
                    challenger = None;
                    if let Some((asker, turn)) = next {
                        let host = &asker.source.repository.host;
                        tracing::info!(digest = %needed.blob.digest, host, "racing a slow source with another");
                        futures.push(self.attempt(needed, asker, turn, sources, &mut attempts));
                    }
                }
                _ = compares.tick() => {
                    if let Some(slower) = slower(&attempts) {
                        let Attempt { asker, speed, .. } = attempts.remove(slower);
                        let (host, rate) = (&asker.source.repository.host, speed.rate().unwrap_or_default());
                        tracing::info!(digest = %needed.blob.digest, host, rate, "giving a slow source up for a faster one");
                        sources.was_slow(&asker, rate);
                        speed.give_up();
                    }
                }
            }
        }
    }

    /// The first of the sources that `which` names whose turn comes; a registry that is busy does not hold up another.
    async fn next(
        &self,
        sources: &Sources,
        needed: &Needed,
        which: fn(&Sources) -> Vec<Asker>,
    ) -> Option<(Asker, Turn)> {
        let (size, unpacks) = (needed.blob.size, matches!(needed.form, Form::Layer { .. }));
        loop {
            let candidates = which(sources);
            if candidates.is_empty() {
                return None;
            }
            let turns = candidates.into_iter().map(|asker| async {
                let turn = self.queue.turn(&asker, size, unpacks).await;
                (asker, turn)
            });
            let mut turns: FuturesUnordered<_> = turns.collect();
            tokio::select! {
                biased;
                Some((asker, turn)) = turns.next() => {
                    sources.start(&asker);
                    return Some((asker, turn));
                }
                () = sources.changed() => {}
            }
        }
    }

    /// Fetches from one source; once more and whole, when the parts may not belong together.
    fn attempt<'a>(
        &'a self,
        needed: &'a Needed,
        asker: Asker,
        turn: Turn,
        sources: &'a Sources,
        attempts: &mut Vec<Attempt>,
    ) -> Attempting<'a> {
        let speed = Arc::new(Speed::default());
        attempts.push(Attempt { asker: asker.clone(), speed: Arc::clone(&speed), began: Instant::now() });
        Box::pin(async move {
            let mut turn = Some(turn);
            let fetching = async {
                let mut result = self.fetch(needed, &asker, sources, &speed, &mut turn, false).await;
                if let Err(Failed { in_parts: true, .. }) = result {
                    if turn.is_none() {
                        let unpacks = matches!(needed.form, Form::Layer { .. });
                        turn = Some(self.queue.turn(&asker, needed.blob.size, unpacks).await);
                    }
                    result = self.fetch(needed, &asker, sources, &speed, &mut turn, true).await;
                }
                result
            };
            let outcome = tokio::select! {
                result = fetching => Some(result),
                () = speed.given_up() => None,
            };
            (asker, outcome)
        })
    }

    async fn fetch(
        &self,
        needed: &Needed,
        asker: &Asker,
        sources: &Sources,
        speed: &Speed,
        turn: &mut Option<Turn>,
        whole: bool,
    ) -> Result<Stored, Failed> {
        let (store, from, opened) = (Arc::clone(&self.store), origin(&asker.source), needed.clone());
        let sink = blocking::run(Lane::Store, move || Sink::open(&store, &opened, from)).await?;
        let counter: &Arc<Counter> = &sources.counter;
        counter.here.fetch_max(sink.partial().present(), Relaxed);
        let (writer, pieces) = mpsc::channel(QUEUE);
        let means = Means { registry: &self.registry, queue: &self.queue, fetched: &self.fetched };
        let wanted = Wanted {
            blob: &needed.blob,
            missing: sink.partial().missing(),
            resumed: sink.partial().present() > 0,
            whole,
            in_parts: sink.takes_parts(),
        };
        let fetch = Fetch::new(means, asker, wanted, speed, counter, writer);
        // The writer ends when `fetch`, which has the sender, is dropped.
        let counted = Arc::clone(counter);
        let writing = blocking::on_own_thread("write", move || sink.run(pieces, &counted));
        tokio::pin!(writing);
        let fetched = tokio::select! {
            biased;
            fetched = fetch.run() => fetched,
            written = &mut writing => {
                // It ends early only when it fails.
                written.map_err(Error::Thread)??;
                return Err(Error::Fault.into());
            }
        };
        speed.is_done();
        let (in_parts, oddity, elsewhere) =
            (fetch.came_in_parts(), fetch.oddity(), fetch.came_from_elsewhere());
        drop(fetch);
        let written = writing.await.map_err(Error::Thread)?;
        let sink = match (fetched, written) {
            (Ok(()), written) => written?,
            // Why nobody reads any more is for who wrote to say.
            (Err(Failed { error: Error::Store(StoreError::Abandoned), .. }), Err(error)) => {
                return Err(error.into());
            }
            (Err(failed), written) => {
                blocking::run(Lane::Work, move || drop(written)).await; // What was unpacked in vain is removed.
                return Err(failed);
            }
        };
        if sink.needs_large_window() {
            turn.take(); // All bytes are here; who waits for memory holds nothing that others need.
        }
        self.finish(sink, asker, None).await.map_err(|error| match error {
            Error::Store(StoreError::Mismatch { got, .. }) => {
                let got = oddity.unwrap_or_else(|| got.to_string());
                let error = wrong_content(asker, &needed.blob, got, elsewhere).into();
                Failed { error, in_parts }
            }
            error => error.into(),
        })
    }

    /// Checks and publishes what a sink has, when there is memory for it. The memory, and the turn, are given back when
    /// the work ends, which it does although nobody may wait for it any more.
    async fn finish(&self, sink: Sink, asker: &Asker, turn: Option<Permit>) -> Result<Stored, Error> {
        let mut waiting = Waiting(Some(sink));
        let large = waiting.0.as_ref().is_some_and(Sink::needs_large_window);
        let memory = match large {
            true => Some(self.memory.acquire(&asker.tenant, "", limits::LARGE_WINDOW).await),
            false => None,
        };
        let Some(sink) = waiting.0.take() else { return Err(Error::Fault) };
        let finish = move || {
            let finished = sink.finish();
            drop((memory, turn));
            finished
        };
        blocking::on_own_thread("finish", finish).await.map_err(Error::Thread)?
    }

    /// Unpacks a layer that is here as a file. Who may read the file may read the layer.
    async fn unpack_file(&self, needed: &Needed, asker: &Asker) -> Result<Option<Stored>, Error> {
        if !matches!(needed.form, Form::Layer { .. }) {
            return Ok(None);
        }
        let (store, looked) = (Arc::clone(&self.store), Needed::file(&needed.blob));
        let Some(Stored::Blob(file)) = blocking::run(Lane::Work, move || looked.find(&store)).await? else {
            return Ok(None);
        };
        if file.size != needed.blob.size {
            return Ok(None);
        }
        let turn = self.queue.local(asker, file.size).await;
        let (store, opened) = (Arc::clone(&self.store), needed.clone());
        let read = move || Sink::from_file(&store, &opened, &file);
        let sink = blocking::on_own_thread("unpack", read).await.map_err(Error::Thread)??;
        match self.finish(sink, asker, Some(turn)).await {
            Err(Error::Store(StoreError::Mismatch { expected, got })) => {
                tracing::warn!(%expected, %got, "discarding a blob that did not keep");
                let store = Arc::clone(&self.store);
                blocking::run(Lane::Store, move || store.blobs.discard(&expected)).await?;
                Ok(None)
            }
            result => result.map(Some),
        }
    }

    /// Why `needed` cannot be used, if the repository of `source` sent it not long ago: who knows only its digest is told nothing.
    pub fn refusal(&self, needed: &Needed, source: &Source) -> Option<Arc<Error>> {
        let refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        let known = refused.get(&(needed.blob.digest.clone(), needed.form.clone()))?;
        let is_theirs = known.origins.contains(&source.repository) && known.since.elapsed() < REFUSED_FOR;
        is_theirs.then(|| Arc::clone(&known.error))
    }

    fn remember(&self, needed: &Needed, asker: &Asker, error: &Arc<Error>) {
        if !matches!(**error, Error::Unpack { .. }) {
            return;
        }
        let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        refused.retain(|_, known| known.since.elapsed() < REFUSED_FOR);
        if refused.len() >= REFUSED_LIMIT {
            return;
        }
        let key = (needed.blob.digest.clone(), needed.form.clone());
        let known = refused.entry(key).or_insert_with(|| Refused {
            error: Arc::clone(error),
            origins: Vec::new(),
            since: Instant::now(),
        });
        if known.origins.len() < REFUSED_LIMIT {
            known.origins.push(asker.source.repository.clone());
        }
    }

    /// Whether the source of `asker` sent wrong bytes of `digest` not long ago.
    fn is_distrusted(&self, asker: &Asker, digest: &Digest) -> bool {
        let liars = self.liars.lock().unwrap_or_else(PoisonError::into_inner);
        let known = liars.get(&(asker.source.repository.clone(), digest.clone()));
        known.is_some_and(|when| when.elapsed() < DISTRUST)
    }

    fn distrust(&self, asker: &Asker, digest: &Digest) {
        let mut liars = self.liars.lock().unwrap_or_else(PoisonError::into_inner);
        if liars.len() >= LIARS_LIMIT {
            liars.retain(|_, when| when.elapsed() < DISTRUST);
        }
        if liars.len() < LIARS_LIMIT {
            liars.insert((asker.source.repository.clone(), digest.clone()), Instant::now());
        }
    }
}

/// Ends when `next` does; never where there is none.
async fn first_of(next: &mut Option<Next<'_>>) -> Option<(Asker, Turn)> {
    match next {
        Some(next) => next.await,
        None => std::future::pending().await,
    }
}

/// Whether the only source that runs is slow for this network.
fn is_slow(attempts: &[Attempt]) -> bool {
    attempts.first().is_some_and(|attempt| attempt.speed.rate().is_some_and(|rate| rate < HELP_BELOW))
}

/// Which of two sources that run is to be given up, once both had time to show what they can.
fn slower(attempts: &[Attempt]) -> Option<usize> {
    let [first, second] = attempts else { return None };
    let is_tried = |attempt: &Attempt| attempt.began.elapsed() >= TRIAL;
    if !is_tried(first) || !is_tried(second) {
        return None;
    }
    let (one, two) = (first.speed.rate()?, second.speed.rate()?);
    // The one that runs goes on unless the other is clearly faster: else two would take turns.
    Some(if two > FASTER * one { 0 } else { 1 })
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
