//! A blob's transfer: once for all who need it, from the best of the sources that they bring.
//!
//! The transfer belongs to nobody. Whoever needs the blob joins it, and adds the source that it may ask itself. While the source
//! that runs is slow for this network, others are [raced](race) with it: so nobody's slow, or lying, registry holds up those who
//! know a better one for the same digest.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use tokio::sync::mpsc;

use crate::host::blocking::{self, DropAway, Lane};
use crate::host::fair_queue::Permit;
use crate::host::limits;
use crate::host::memory::Memory;
use crate::host::throttle::Throttle;
use crate::host::traces::Work;
use crate::oci::digest::Digest;
use crate::registry::client::Registry;
use crate::registry::source::{Asker, Source};
use crate::store::error::Error as StoreError;
use crate::store::open::Store;
use crate::transfer::archive::{Archive, Room};
use crate::transfer::counter::Counter;
use crate::transfer::error::Error;
use crate::transfer::fetch::{Failed, Fetch, Means, Pace, Speed, Wanted, wrong_content};
use crate::transfer::flight::{Flights, Waiter};
use crate::transfer::metrics::{Metrics, Wrong};
use crate::transfer::needed::{Form, Needed, Stored, origin};
use crate::transfer::queue::Queue;
use crate::transfer::race::{self, Attempt};
use crate::transfer::sink::{Finished, Sink, Turn as UnpackTurn};
use crate::transfer::sources::Sources;
use crate::transfer::verdicts::Verdicts;

/// The outcome of a transfer, shared by all who wait.
pub type Shared = Result<Stored, Arc<Error>>;

/// All transfers of the node.
pub struct Transfers {
    store: Arc<Store>,
    registry: Registry,
    queue: Queue,
    throttle: Throttle,
    memory: Memory,
    flights: Flights<Key, Sources, Shared>,
    /// What was learnt of sources and of content.
    pub verdicts: Verdicts,
    metrics: Metrics,
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

/// How often the sources that run are compared.
const COMPARE_EVERY: Duration = Duration::from_millis(250);

/// How a source is asked.
#[derive(Clone, Copy)]
struct How {
    /// For all of the blob at once: the parts may not belong together.
    whole: bool,
    /// A layer is not unpacked while it comes.
    as_archive: bool,
    /// How often it is asked for again because mirrors sent wrong bytes.
    mirrors_left: u32,
}

/// Mirrors of one registry that may send wrong bytes until its source is given up.
const MIRRORS: u32 = 8;

/// Ends with the outcome, or with none when it was given up for a faster one.
type Attempting<'a> = BoxFuture<'a, (Asker, Option<Result<Stored, Failed>>)>;
/// Ends with the next source, and the turn to fetch from it.
type Next<'a> = BoxFuture<'a, Option<(Asker, Permit)>>;

impl Transfers {
    /// Transfers into `store`, at most `per_registry` large ones of a tenant at a time from one registry, and those that nobody waits for
    /// no faster than `throttle`.
    pub fn new(
        store: Arc<Store>,
        registry: Registry,
        per_registry: usize,
        throttle: Throttle,
        memory: Memory,
        metrics: Metrics,
    ) -> Arc<Self> {
        Arc::new(Self {
            store,
            registry,
            queue: Queue::new(per_registry),
            throttle,
            memory,
            flights: Flights::new(Duration::ZERO),
            verdicts: Verdicts::default(),
            metrics,
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
            sources.tenants.add(&asker.tenant);
            if ask {
                sources.add(asker, self.verdicts.is_distrusted(&asker.source, &blob.digest));
            }
            let (transfers, needed) = (Arc::clone(self), needed.clone());
            let shared = Arc::clone(&sources);
            let mut traced = Work::begin("transfer");
            traced.set("oci.descriptor.digest", || needed.blob.digest.to_string());
            traced.set("oci.descriptor.size", || i64::try_from(needed.blob.size).unwrap_or(i64::MAX));
            let work = async move {
                let result = transfers.run(&needed, &shared).await.map_err(Arc::new);
                traced.end(result.as_ref().err());
                result
            };
            (sources, work)
        });
        waiter.state().tenants.add(&asker.tenant);
        if ask {
            waiter.state().add(asker, self.verdicts.is_distrusted(&asker.source, &blob.digest));
        }
        waiter
    }

    async fn run(&self, needed: &Needed, sources: &Sources) -> Result<Stored, Error> {
        if let Some(stored) = self.unpack_file(needed, sources).await? {
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
                // They would hold, unpolled, places and turns that the next one waits for: a challenger, and what was given up.
                challenger = None;
                futures.clear();
                sources.counter.here.store(0, Relaxed); // The next one counts what it has.
                let waits = self.metrics.waits();
                let Some((asker, turn)) = self.next(sources, needed, Sources::candidates).await else {
                    return Err(Error::Shared(last));
                };
                drop(waits);
                futures.push(self.attempt(needed, asker, turn, sources, &mut attempts));
            }
            // What nobody waits for is not brought twice.
            let is_held_back = self.throttle.is_set() && sources.tenants.are_last();
            let rivals = race::wants_another(&attempts).filter(|_| !is_held_back);
            let challengers = rivals.map(|rivals| {
                move |sources: &Sources| {
                    let mut all = sources.challengers(rivals.seconds_left);
                    all.retain(|asker| rivals.admit(asker));
                    all
                }
            });
            let challengers = challengers.filter(|challengers| !challengers(sources).is_empty());
            match challengers {
                Some(challengers) if challenger.is_none() => {
                    challenger = Some(Box::pin(self.next(sources, needed, challengers)));
                }
                Some(_) => {}
                None => challenger = None,
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
                            self.verdicts.refuse(needed, &asker, &error);
                            sources.failed(&asker, Arc::clone(&error)); // Who brought this source has seen it.
                            return Err(Error::Shared(error));
                        }
                        Some(Err(Failed { error, .. })) => {
                            let host = &asker.source.repository.host;
                            tracing::debug!(digest = %needed.blob.digest, host, %error, "source failed");
                            if error.is_wrong_content() {
                                self.verdicts.distrust(&asker, &needed.blob.digest);
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
                    attempts.iter_mut().for_each(Attempt::note);
                    if let Some(loser) = race::loser(&attempts) {
                        let Attempt { asker, speed, .. } = attempts.remove(loser);
                        let (host, pace) = (&asker.source.repository.host, speed.pace());
                        let rate = pace.map_or(0.0, |pace| pace.rate);
                        tracing::info!(digest = %needed.blob.digest, host, rate, "giving a slow source up for a faster one");
                        sources.was_slow(&asker, match needed.form {
                            Form::File => pace.map_or(f64::INFINITY, Pace::seconds_left),
                            // It would begin again.
                            Form::Layer { .. } | Form::Nothing => needed.blob.size as f64 / rate,
                        });
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
        which: impl Fn(&Sources) -> Vec<Asker>,
    ) -> Option<(Asker, Permit)> {
        loop {
            let candidates = which(sources);
            if candidates.is_empty() {
                return None;
            }
            let turns = candidates.into_iter().map(|asker| async {
                let turn = self.queue.transfer(&asker, needed.blob.size).await;
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
        turn: Permit,
        sources: &'a Sources,
        attempts: &mut Vec<Attempt>,
    ) -> Attempting<'a> {
        let speed = Arc::new(Speed::default());
        attempts.push(Attempt::new(asker.clone(), Arc::clone(&speed)));
        Box::pin(async move {
            let mut turn = Some(turn);
            let fetching = async {
                let mut how = How { whole: false, as_archive: false, mirrors_left: MIRRORS };
                loop {
                    let result = self.fetch(needed, &asker, sources, &speed, &mut turn, how).await;
                    if result.as_ref().is_err_and(|failed| failed.error.is_wrong_content()) {
                        self.metrics.wrong.inc(Wrong::Digest);
                    }
                    match result {
                        // Each time there is a mirror less to ask.
                        Err(Failed { in_parts, by_mirror: true, .. }) if how.mirrors_left > 0 => {
                            how.whole |= in_parts;
                            how.mirrors_left -= 1;
                        }
                        Err(Failed { in_parts: true, .. }) if !how.whole => how.whole = true,
                        // It finds room when all of it is here.
                        Err(Failed { error, .. }) if error.is_short_of_memory() && !how.as_archive => {
                            how.as_archive = true;
                        }
                        result => return result,
                    }
                    if turn.is_none() {
                        turn = Some(self.queue.transfer(&asker, needed.blob.size).await);
                    }
                }
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
        turn: &mut Option<Permit>,
        how: How,
    ) -> Result<Stored, Failed> {
        let (store, from, opened) = (Arc::clone(&self.store), origin(&asker.source), needed.clone());
        let unpack = match &needed.form {
            Form::Layer { .. } if !how.as_archive => self.queue.unpack_while_coming(asker, needed.blob.size),
            Form::Layer { .. } | Form::File | Form::Nothing => None,
        };
        let directories = self.queue.directories(&asker.tenant);
        let unpack = unpack.map(|permit| UnpackTurn { permit, directories });
        let busy = self.metrics.busy.clone();
        let open = move || Sink::open(&store, &opened, from, unpack, busy);
        let sink = blocking::run(Lane::Store, open).await?;
        let counter: &Arc<Counter> = &sources.counter;
        counter.here.fetch_max(sink.partial().present(), Relaxed);
        let (writer, pieces) = mpsc::channel(limits::QUEUE);
        let means = Means {
            registry: &self.registry,
            queue: &self.queue,
            metrics: &self.metrics,
            throttle: &self.throttle,
        };
        let wanted = Wanted {
            blob: &needed.blob,
            tenants: &sources.tenants,
            missing: sink.partial().missing(),
            resumed: sink.partial().present() > 0,
            whole: how.whole,
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
        speed.end();
        let (in_parts, oddity, elsewhere) =
            (fetch.came_in_parts(), fetch.oddity(), fetch.came_from_elsewhere());
        let mirrors = fetch.mirrors();
        let distrust_mirrors = || {
            mirrors.iter().for_each(|mirror| self.registry.distrust(mirror, &needed.blob.digest));
            !mirrors.is_empty()
        };
        drop(fetch);
        let written = writing.await.map_err(Error::Thread)?;
        let mut sink = match (fetched, written) {
            (Ok(()), written) => written?,
            // Why nobody reads any more is for who wrote to say.
            (Err(Failed { error: Error::Store(StoreError::Abandoned), .. }), Err(error)) => {
                return Err(error.into());
            }
            (Err(failed), written) => {
                drop(DropAway::new(written)); // What was unpacked in vain is removed.
                let by_mirror = failed.error.is_wrong_content() && distrust_mirrors();
                return Err(Failed { by_mirror, ..failed });
            }
        };
        if sink.needs_large_window() {
            turn.take(); // All bytes are here; who waits now keeps nobody from the network.
        }
        let finished = self.finish(sink, sources).await.map_err(|error| match error {
            Error::Store(StoreError::Mismatch { got, .. }) => {
                let got = oddity.unwrap_or_else(|| got.to_string());
                let error = wrong_content(asker, &needed.blob, got, elsewhere).into();
                Failed { error, in_parts, by_mirror: distrust_mirrors() }
            }
            error => error.into(),
        })?;
        match finished {
            Finished::Stored(stored) => Ok(stored),
            // It keeps its place in the queue: so not more wait for their turn to be unpacked than there are places.
            Finished::Archive(archive) => Ok(self.unpack(needed, archive, sources, turn.take()).await?),
        }
    }

    /// Checks and publishes what a sink has, when there is memory for it. The memory is given back when the work ends, which it does
    /// although nobody may wait for it any more.
    async fn finish(&self, mut sink: Sink, sources: &Sources) -> Result<Finished, Error> {
        let large = sink.needs_large_window();
        let sink = DropAway::new(sink);
        let memory = match large {
            true => Some(self.memory.acquire_for(&sources.tenants, limits::LARGE_WINDOW).await),
            false => None,
        };
        let finish = move || {
            let finished = sink.into_inner().map_or(Err(Error::Fault), Sink::finish);
            drop(memory);
            finished
        };
        blocking::on_own_thread("finish", finish).await.map_err(Error::Thread)?
    }

    /// Unpacks a layer that is here as a file. Who may read the file may read the layer.
    async fn unpack_file(&self, needed: &Needed, sources: &Sources) -> Result<Option<Stored>, Error> {
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
        match self.unpack(needed, Archive::published(&file), sources, None).await {
            Err(Error::Store(StoreError::Mismatch { expected, got })) => {
                tracing::warn!(%expected, %got, "discarding a blob that did not keep");
                let store = Arc::clone(&self.store);
                blocking::run(Lane::Store, move || store.blobs.discard(&expected)).await?;
                Ok(None)
            }
            result => result.map(Some),
        }
    }

    /// Unpacks what is here, in its turn. What turns out to need much memory is unpacked once more when there is that: it is for one
    /// at a time, so it needs no turn beside it. `place`, in the queue of downloads, is kept while it waits for either.
    async fn unpack(
        &self,
        needed: &Needed,
        archive: Archive,
        sources: &Sources,
        place: Option<Permit>,
    ) -> Result<Stored, Error> {
        let archive = Arc::new(DropAway::new(archive));
        let turn = self.queue.unpack(&sources.tenants, needed.blob.size).await;
        let directories = self.queue.directories(turn.tenant());
        if let Some(stored) = self.unpack_with(turn, Room::Common(directories), needed, &archive).await? {
            return Ok(stored);
        }
        let memory = self.memory.acquire_for(&sources.tenants, limits::LARGE_UNPACK).await;
        drop(place); // So not more wait than there are places.
        self.unpack_with(memory, Room::Large, needed, &archive).await?.ok_or(Error::Fault)
    }

    /// Unpacks on a thread that has `permit` until it ends, also when nobody waits any more.
    async fn unpack_with(
        &self,
        permit: Permit,
        room: Room,
        needed: &Needed,
        archive: &Arc<DropAway<Archive>>,
    ) -> Result<Option<Stored>, Error> {
        let (store, needed, archive) = (Arc::clone(&self.store), needed.clone(), Arc::clone(archive));
        let busy = self.metrics.busy.clone();
        let unpack = move || {
            let unpack = |archive: &Archive| archive.unpack(&store, &needed, room, busy);
            let unpacked = archive.get().map_or(Err(Error::Fault), unpack);
            drop(permit);
            unpacked
        };
        blocking::on_own_thread("unpack", unpack).await.map_err(Error::Thread)?
    }
}

/// Ends when `next` does; never where there is none.
async fn first_of(next: &mut Option<Next<'_>>) -> Option<(Asker, Permit)> {
    match next {
        Some(next) => next.await,
        None => std::future::pending().await,
    }
}
