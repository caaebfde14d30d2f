//! The connections to one source of a blob: which part each fetches, how fast they are, and what to make of odd answers.
//!
//! A connection that is slow for this network gets [`help`](crate::transfer::help): the rest of its part is split and fetched by
//! another. What has arrived is kept when a connection breaks. Bytes go to the writer through a channel of the transfer's own, so that a writer that is
//! slow holds up nobody else.

#![cfg_attr(not(test), deny(clippy::indexing_slicing))]

use std::ops::Range;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use reqwest::{StatusCode, header};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::MissedTickBehavior;

use crate::host::fair_queue::Permit;
use crate::host::limits::{COPIED_PIECE, LARGE_PIECES, PIECE, SMALL_PIECES};
use crate::host::tenants::Tenants;
use crate::host::throttle::Throttle;
use crate::oci::descriptor::Descriptor;
use crate::registry;
use crate::registry::client::Registry;
use crate::registry::http::Body;
use crate::registry::place::Place;
use crate::registry::retry::Backoff;
use crate::registry::source::Asker;
use crate::transfer::counter::Counter;
use crate::transfer::error::Error;
use crate::transfer::help::{Advice, Help};
use crate::transfer::metrics::{self, Metrics, Stage};
use crate::transfer::parts::Parts;
use crate::transfer::queue::Queue;
use crate::transfer::rate::{Judgement, Rate};

/// Ranges in a row that may be answered with others until a source is asked for the whole blob.
const ODD_RANGES: usize = 2;
/// How often rates are looked at.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// A piece of the blob on its way to the writer, of at most [`PIECE`] bytes.
pub struct Piece {
    /// Where it belongs.
    pub offset: u64,
    /// Its bytes.
    pub bytes: Bytes,
}

/// Bytes with the room that they take, which is given back when nobody has any of them any more: not the writer, nor the follower,
/// nor who unpacks them.
struct WithRoom {
    bytes: Bytes,
    _room: OwnedSemaphorePermit,
}

impl AsRef<[u8]> for WithRoom {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// What is shared by all transfers.
#[derive(Clone, Copy)]
pub struct Means<'a> {
    /// Asks.
    pub registry: &'a Registry,
    /// Gives more connections.
    pub queue: &'a Queue,
    /// Counts.
    pub metrics: &'a Metrics,
    /// Holds back what nobody waits for.
    pub throttle: &'a Throttle,
}

/// What is wanted of a source.
pub struct Wanted<'a> {
    /// The blob.
    pub blob: &'a Descriptor,
    /// Who waits for it.
    pub tenants: &'a Tenants,
    /// What of it.
    pub missing: Vec<Range<u64>>,
    /// Bytes were there before, of which one cannot be sure that they belong to the same content.
    pub resumed: bool,
    /// The source is asked for the whole blob, not for ranges.
    pub whole: bool,
    /// Pieces may come in any order.
    pub in_parts: bool,
}

/// One fetch from one source.
pub struct Fetch<'a> {
    means: Means<'a>,
    blob: &'a Descriptor,
    asker: &'a Asker,
    tenants: &'a Tenants,
    parts: Mutex<Parts>,
    may_split: bool,
    /// The source is asked for the whole blob: it does not answer a range with that range.
    without_ranges: AtomicBool,
    /// Its connections are slow for a network.
    is_slow: AtomicBool,
    /// Connections that are to end: they bring nothing.
    surplus: AtomicUsize,
    /// Ranges that were answered with others.
    odd_ranges: AtomicUsize,
    /// Some of the bytes were not the next ones of one answer.
    in_parts: AtomicBool,
    /// The bytes come from another host than the registry.
    elsewhere: AtomicBool,
    /// What the source says its answer is, when that is not what was asked for.
    oddity: Mutex<Option<String>>,
    /// Mirrors of the source that sent bytes.
    mirrors: Mutex<Vec<Place>>,
    /// Connections that wait for the first byte of an answer, or until they may ask again.
    waiting: AtomicUsize,
    speed: &'a Speed,
    counter: &'a Counter,
    writer: mpsc::Sender<Piece>,
    /// Bytes of pieces that may be in memory.
    room: Arc<Semaphore>,
}

/// Why a connection does not go on with its part.
enum End {
    /// It is done with it, or somebody else is to fetch it.
    Done,
    /// There are more connections than help.
    Surplus,
}

/// How fast a fetch is, for those who compare it with another.
#[derive(Debug, Default)]
pub struct Speed {
    /// Bytes that came, also those that are not needed.
    received: AtomicU64,
    /// Once it is known.
    pace: Mutex<Option<Pace>>,
    /// Nothing more is to come.
    done: AtomicBool,
    given_up: tokio::sync::Notify,
}

/// How fast a source is at a time, and how much is missing then.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    /// Bytes per second, over about one.
    pub rate: f64,
    /// Bytes.
    pub missing: u64,
}

impl Pace {
    /// Seconds until all is here, if it goes on like that; infinite, when nothing comes.
    pub fn seconds_left(self) -> f64 {
        if self.missing == 0 { 0.0 } else { self.missing as f64 / self.rate }
    }
}

/// Why a source did not deliver the blob. `in_parts` when a wrong digest may be the fault of bytes that were there before, or of
/// ranges that are not what they were said to be; `by_mirror` when it may be a mirror's.
pub struct Failed {
    /// Why.
    pub error: Error,
    /// Whether to ask once more, for the whole blob.
    pub in_parts: bool,
    /// Whether to ask once more, without the mirrors that sent something.
    pub by_mirror: bool,
}

impl<E: Into<Error>> From<E> for Failed {
    fn from(error: E) -> Self {
        Self { error: error.into(), in_parts: false, by_mirror: false }
    }
}

impl Speed {
    /// How fast it is; `None` while that is not known, and while the disk is what is slow.
    pub fn pace(&self) -> Option<Pace> {
        *self.pace.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A source that is as fast as `pace`.
    #[cfg(test)]
    pub fn at(pace: Pace) -> Self {
        Self { pace: Mutex::new(Some(pace)), ..Self::default() }
    }

    /// Bytes that came.
    pub fn received(&self) -> u64 {
        self.received.load(Relaxed)
    }

    /// Ends the fetch: another one is faster.
    pub fn give_up(&self) {
        self.given_up.notify_one();
    }

    /// Ends when the fetch is given up.
    pub async fn given_up(&self) {
        self.given_up.notified().await;
    }

    /// Notes that nothing more is to come: how fast it was is no reason to give it up.
    pub fn end(&self) {
        self.done.store(true, Relaxed);
        self.set(None);
    }

    /// Whether nothing more is to come.
    pub fn has_ended(&self) -> bool {
        self.done.load(Relaxed)
    }

    fn set(&self, pace: Option<Pace>) {
        *self.pace.lock().unwrap_or_else(PoisonError::into_inner) = pace;
    }
}

impl<'a> Fetch<'a> {
    /// A fetch of what is `wanted` from the source of `asker`, whose pieces go to `writer`.
    pub fn new(
        means: Means<'a>,
        asker: &'a Asker,
        wanted: Wanted<'a>,
        speed: &'a Speed,
        counter: &'a Counter,
        writer: mpsc::Sender<Piece>,
    ) -> Self {
        let is_small = Queue::is_small(wanted.blob.size);
        Self {
            means,
            blob: wanted.blob,
            asker,
            tenants: wanted.tenants,
            parts: Mutex::new(Parts::new(wanted.missing)),
            may_split: wanted.in_parts,
            without_ranges: AtomicBool::new(wanted.whole),
            is_slow: AtomicBool::new(false),
            surplus: AtomicUsize::new(0),
            odd_ranges: AtomicUsize::new(0),
            in_parts: AtomicBool::new(wanted.resumed),
            elsewhere: AtomicBool::new(false),
            oddity: Mutex::default(),
            mirrors: Mutex::default(),
            waiting: AtomicUsize::new(0),
            speed,
            counter,
            writer,
            room: Arc::new(Semaphore::new(if is_small { SMALL_PIECES } else { LARGE_PIECES })),
        }
    }
}

impl Fetch<'_> {
    /// Fetches everything that is missing.
    ///
    /// # Errors
    /// [`Failed`], when the source cannot deliver.
    pub async fn run(&self) -> Result<(), Failed> {
        let mut connections = FuturesUnordered::new();
        connections.push(self.connection(None));
        let mut looks = tokio::time::interval_at((Instant::now() + LOOK_EVERY).into(), LOOK_EVERY);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        self.speed.done.store(false, Relaxed); // An earlier fetch of this attempt may have ended.
        let mut rate = Rate::new(Instant::now());
        rate.excuse(Instant::now(), self.speed.received()); // What an earlier fetch got does not count.
        let mut help = Help::new(Instant::now());
        let (before, mut has_begun) = (self.speed.received(), false);
        let (mut is_helped, mut is_refused_help) = (false, false);
        let mut silence = self.means.registry.longest_silence();
        loop {
            tokio::select! {
                ended = connections.next() => match ended {
                    Some(Ok(())) if connections.is_empty() && self.parts().has_waiting() => {
                        connections.push(self.connection(None));
                    }
                    Some(Ok(())) => {}
                    // Some registries allow a client few connections. What this one did not get waits for the others.
                    Some(Err(Failed { error: Error::Registry(error), .. }))
                        if !connections.is_empty() || (is_helped && !is_refused_help) =>
                    {
                        tracing::debug!(digest = %self.blob.digest, %error, "going on with fewer connections");
                        is_refused_help = true;
                        self.is_slow.store(false, Relaxed); // Nor do those that are left ask more often.
                        if connections.is_empty() {
                            connections.push(self.connection(None)); // The others were done with their parts.
                        }
                    }
                    Some(Err(failed)) => return Err(failed),
                    None => return Ok(()),
                },
                _ = looks.tick() => {
                    let (now, received) = (Instant::now(), self.speed.received());
                    // How long an answer may take to begin is not a matter of rates; for one that begins again and again
                    // there is an end to that.
                    let is_silent = self.waiting.load(Relaxed) >= connections.len() && !silence.is_zero();
                    if is_silent {
                        silence = silence.saturating_sub(LOOK_EVERY);
                        rate.excuse(now, received);
                        help.excuse();
                        self.speed.set(Some(self.pace(0.0)));
                        continue;
                    }
                    // No room for another piece says that the disk is what is slow.
                    if self.writer.capacity() == 0 || self.room.available_permits() < PIECE {
                        rate.excuse(now, received);
                        help.excuse();
                        self.speed.set(None);
                        continue;
                    }
                    // Rates are of what comes from the first byte on; of a source that sends none it is to be told.
                    if !has_begun && received > before {
                        has_begun = true;
                        rate.excuse(now, received);
                        continue;
                    }
                    match rate.judge(now, received) {
                        Judgement::Dead => {
                            let mirrors = self.mirrors();
                            mirrors.iter().for_each(|it| self.means.registry.avoid(it, &self.blob.digest));
                            let host = self.host();
                            return Err(registry::error::Error::TooSlow { host, over: Rate::DEAD_AFTER }.into());
                        }
                        // It is as slow as it shall be. A source that is dead is so all the same.
                        Judgement::BytesPerSecond(_) if self.is_held_back() => {
                            help.excuse();
                            self.speed.set(None);
                        }
                        Judgement::BytesPerSecond(rate) => {
                            self.speed.set(Some(self.pace(rate)));
                            if !self.may_split || self.without_ranges.load(Relaxed) {
                                continue;
                            }
                            let active = self.parts().active();
                            match help.advise(now, rate, active, self.waiting.load(Relaxed) > 0) {
                                Advice::Add(more) if !is_refused_help => {
                                    self.is_slow.store(true, Relaxed);
                                    self.surplus.store(0, Relaxed);
                                    let helpers: Vec<_> = (0..more).map_while(|given| self.helper(given)).collect();
                                    is_helped |= !helpers.is_empty();
                                    help.added(helpers.len());
                                    connections.extend(helpers.into_iter().map(|it| self.connection(Some(it))));
                                }
                                Advice::Keep | Advice::Add(_) => {}
                                Advice::Remove(less) => {
                                    tracing::debug!(digest = %self.blob.digest, less, "more connections are not faster");
                                    // Those that are left, and that were useful, go on to help each other.
                                    self.is_slow.store(active > less + 1 && !is_refused_help, Relaxed);
                                    self.surplus.store(less, Relaxed);
                                }
                            }
                        }
                        Judgement::Unknown => {}
                    }
                }
            }
        }
    }

    /// Whether there is a bound for it: as long as nobody waits for it.
    fn is_held_back(&self) -> bool {
        self.means.throttle.is_set() && self.tenants.are_last()
    }

    fn pace(&self, rate: f64) -> Pace {
        Pace { rate, missing: self.parts().missing() }
    }

    /// Whether the bytes come from another host than the registry, which is then nobody's to be told of.
    pub fn came_from_elsewhere(&self) -> bool {
        self.elsewhere.load(Relaxed)
    }

    /// Whether a wrong digest may be the fault of how the bytes came together.
    pub fn came_in_parts(&self) -> bool {
        self.in_parts.load(Relaxed)
    }

    /// What one more connection needs, when so many were `given` that have not begun: a place, and a part of its own.
    fn helper(&self, given: usize) -> Option<Permit> {
        self.means.queue.helper(self.asker).filter(|_| {
            let mut parts = self.parts();
            parts.waiting() > given || parts.split()
        })
    }

    /// Whether the connection of part `id` is to end, because more connections are not faster: those that are furthest ahead.
    fn is_surplus(&self, id: usize) -> bool {
        let surplus = self.surplus.load(Relaxed);
        surplus > 0
            && self.parts().is_among_last(id, surplus)
            && self.surplus.fetch_update(Relaxed, Relaxed, |surplus| surplus.checked_sub(1)).is_ok()
    }

    /// Fetches parts until none waits, and again after what may pass.
    async fn connection(&self, _helper: Option<Permit>) -> Result<(), Failed> {
        let mut backoff = Backoff::new(self.means.registry.attempts());
        loop {
            if self.without_ranges.load(Relaxed) && self.parts().active() > 0 {
                return Ok(());
            }
            let taken = self.parts().take();
            let Some((id, range)) = taken else {
                // Whoever is done with a part of a slow blob takes half of another's.
                if self.may_split && self.is_slow.load(Relaxed) && self.parts().split() {
                    continue;
                }
                return Ok(());
            };
            let before = range.start;
            let result = self.fetch_part(id, range, &backoff).await;
            let reached = {
                let mut parts = self.parts();
                let reached = parts.position(id).unwrap_or(before);
                parts.release(id);
                reached
            };
            match result {
                Ok(End::Done) => {}
                Ok(End::Surplus) => return Ok(()),
                Err(Failed { error: Error::Registry(error), .. }) => {
                    if reached > before {
                        backoff.reset();
                    }
                    // What has come of a layer is lost when its source is given up.
                    if self.speed.received() > 0 {
                        backoff.allow(2 * self.means.registry.attempts());
                    }
                    let Some(wait) = backoff.after(&error) else { return Err(error.into()) };
                    tracing::debug!(digest = %self.blob.digest, %error, ?wait, "retrying part of a blob");
                    let _waits = Waits::start(&self.waiting);
                    tokio::time::sleep(wait).await;
                }
                Err(end) => return Err(end),
            }
        }
    }

    /// Fetches a part, or learns that the source has to be asked without ranges.
    async fn fetch_part(&self, id: usize, range: Range<u64>, backoff: &Backoff) -> Result<End, Failed> {
        let whole = range == (0..self.blob.size) || self.without_ranges.load(Relaxed);
        let wanted = (!whole).then(|| range.clone());
        let first_byte = Waits::start(&self.waiting);
        let (busy, began) = (&self.means.metrics.busy, Instant::now());
        let answered = self.means.registry.blob(self.asker, self.blob, wanted, backoff).await;
        busy.add(Stage::Network, began.elapsed());
        let mut body = match answered {
            // It has less than it said, or does not take ranges.
            Err(
                registry::error::Error::Status { status: 416, .. }
                | registry::error::Error::Elsewhere { status: 416, .. },
            ) if !whole => {
                self.without_ranges.store(true, Relaxed);
                return Ok(End::Done);
            }
            answered => answered?,
        };
        self.elsewhere.fetch_or(body.is_from_elsewhere(), Relaxed);
        if let Some(mirror) = body.mirror() {
            self.note_mirror(mirror);
        }
        if let Some(oddity) = body.oddity() {
            *self.oddity.lock().unwrap_or_else(PoisonError::into_inner) = Some(oddity);
        }
        let mut position = match self.starts_at(&body, &range, whole) {
            // One answer may be odd: all that is here already would come again if that were all that the source can.
            Err(_) if !whole && self.odd_ranges.fetch_add(1, Relaxed) < ODD_RANGES => {
                let reason = "it answered a range with another".to_owned();
                return Err(registry::error::Error::Unreachable { host: self.host(), reason }.into());
            }
            Err(_) if !whole => {
                self.without_ranges.store(true, Relaxed);
                return Ok(End::Done);
            }
            position => position?,
        };
        self.odd_ranges.store(0, Relaxed);
        self.in_parts.fetch_or(position > 0, Relaxed);
        if position < range.start && self.parts().active() > 1 {
            return Ok(End::Done); // Left for the connection that reads from the start.
        }
        let from = match body.mirror() {
            Some(_) => metrics::Origin::Mirror,
            None if self.asker.source.repository.is_layout() => metrics::Origin::Local,
            None => metrics::Origin::Registry,
        };
        let fetched = self.means.metrics.fetched.counter(from);
        let mut first_byte = Some(first_byte);
        // A registry that ignores the range sends what is here already; it is read and dropped.
        loop {
            let began = Instant::now();
            let chunk = body.chunk().await;
            busy.add(Stage::Network, began.elapsed());
            let Some(mut bytes) = chunk? else { break };
            first_byte.take();
            if self.is_held_back() {
                self.means.throttle.pass(bytes.len()).await;
            }
            self.speed.received.fetch_add(bytes.len() as u64, Relaxed);
            if position < range.start {
                let known = usize::try_from(range.start - position).unwrap_or(usize::MAX).min(bytes.len());
                position += known as u64;
                drop(bytes.split_to(known));
            }
            let end = position + bytes.len() as u64;
            if end > self.blob.size {
                return Err(self.wrong(format!("more than {} bytes", self.blob.size)));
            }
            let accepted = self.parts().accept(id, bytes.len());
            bytes.truncate(accepted);
            if !bytes.is_empty() {
                fetched.inc_by(bytes.len() as u64);
                self.send(position, bytes).await?;
            }
            position = end;
            let complete = self.parts().is_complete(id);
            if complete && position < self.blob.size {
                return Ok(End::Done); // The rest is another connection's.
            }
            if !complete && self.is_surplus(id) {
                return Ok(End::Surplus);
            }
        }
        if self.parts().is_complete(id) {
            return Ok(End::Done);
        }
        body.broke_off();
        // How long an answer is that came from elsewhere is nobody's business.
        let reason = match self.came_from_elsewhere() {
            true => "the answer of where it redirects to ended too early".to_owned(),
            false => format!("the answer ended at byte {position} of {}", self.blob.size),
        };
        if self.oddity().is_some() {
            return Err(self.wrong(reason));
        }
        Err(registry::error::Error::Unreachable { host: self.host(), reason }.into())
    }

    /// The offset of a body's first byte; `whole` when it was asked for without a range.
    fn starts_at(&self, body: &Body, wanted: &Range<u64>, whole: bool) -> Result<u64, Failed> {
        let response = body.response();
        if response.status() == StatusCode::PARTIAL_CONTENT {
            let asked = if whole { 0 } else { wanted.start };
            let header = response.headers().get(header::CONTENT_RANGE).and_then(|value| value.to_str().ok());
            return match header.and_then(parse_content_range) {
                Some((_, Some(total))) if total != self.blob.size => {
                    Err(self.wrong(format!("{total} bytes where the manifest says {}", self.blob.size)))
                }
                Some((start, _)) if start == asked => Ok(start),
                _ => Err(registry::error::Error::Protocol {
                    host: self.host(),
                    what: match body.is_from_elsewhere() {
                        true => "redirects to a host that answered a range with another".to_owned(),
                        false => format!("answered a range with Content-Range {header:?}"),
                    },
                }
                .into()),
            };
        }
        if let Some(length) = response.content_length()
            && length != self.blob.size
        {
            return Err(self.wrong(format!("{length} bytes where the manifest says {}", self.blob.size)));
        }
        if wanted.start > 0 {
            self.without_ranges.store(true, Relaxed);
        }
        Ok(0)
    }

    async fn send(&self, mut offset: u64, mut bytes: Bytes) -> Result<(), Failed> {
        let length = bytes.len() as u64;
        self.counter.fetched.fetch_add(length, Relaxed);
        while !bytes.is_empty() {
            let mut piece = bytes.split_to(bytes.len().min(PIECE));
            let length = piece.len() as u64;
            let ended = || crate::store::error::Error::Abandoned;
            // What it takes of memory: all of the buffer that it came in, if it is not copied.
            let is_copied = piece.len() <= COPIED_PIECE;
            let takes = u32::try_from(if is_copied { piece.len() } else { PIECE }).unwrap_or(u32::MAX);
            let room = Arc::clone(&self.room).acquire_many_owned(takes).await.map_err(|_| ended())?;
            if is_copied {
                piece = Bytes::copy_from_slice(&piece);
            }
            let bytes = Bytes::from_owner(WithRoom { bytes: piece, _room: room });
            // When the writer ended, its own error says why.
            self.writer.send(Piece { offset, bytes }).await.map_err(|_| ended())?;
            offset += length;
        }
        Ok(())
    }

    fn wrong(&self, got: String) -> Failed {
        let got = self.oddity().unwrap_or(got);
        wrong_content(self.asker, self.blob, got, self.came_from_elsewhere()).into()
    }

    fn host(&self) -> String {
        self.asker.source.repository.host.clone()
    }

    /// What the source says its answer is, when that is not what was asked for.
    pub fn oddity(&self) -> Option<String> {
        self.oddity.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Mirrors of the source that sent bytes.
    pub fn mirrors(&self) -> Vec<Place> {
        self.mirrors.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn note_mirror(&self, mirror: &Place) {
        let mut mirrors = self.mirrors.lock().unwrap_or_else(PoisonError::into_inner);
        if mirrors.iter().all(|known| known.endpoint.base != mirror.endpoint.base) {
            mirrors.push(mirror.clone());
        }
    }

    fn parts(&self) -> MutexGuard<'_, Parts> {
        self.parts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The error for bytes that are not those of `blob`. Of bytes that another host sent than the registry it says nothing: a pod's
/// author could learn with it what answers at an address that only the node reaches.
pub fn wrong_content(
    asker: &Asker,
    blob: &Descriptor,
    got: String,
    from_elsewhere: bool,
) -> registry::error::Error {
    let host = asker.source.repository.host.clone();
    registry::error::Error::wrong_content(host, blob.digest.clone(), got, from_elsewhere)
}

/// Counts a connection among those that wait, as long as it lives.
struct Waits<'a>(&'a AtomicUsize);

impl<'a> Waits<'a> {
    fn start(waiting: &'a AtomicUsize) -> Self {
        waiting.fetch_add(1, Relaxed);
        Self(waiting)
    }
}

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

/// `bytes 0-99/1234`: where it starts, and the size of the whole if it is told. RFC 9110, 14.4.
fn parse_content_range(value: &str) -> Option<(u64, Option<u64>)> {
    let (range, total) = value.strip_prefix("bytes ")?.split_once('/')?;
    let (start, end) = range.split_once('-')?;
    let (start, end): (u64, u64) = (start.parse().ok()?, end.parse().ok()?);
    let total = if total == "*" { None } else { Some(total.parse().ok()?) };
    (start <= end).then_some((start, total))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn t45_content_ranges() {
        assert_eq!(parse_content_range("bytes 5-9/100"), Some((5, Some(100))));
        assert_eq!(parse_content_range("bytes 0-0/*"), Some((0, None)));
        for bad in ["", "bytes */100", "bytes 9-5/100", "bytes a-b/c", "items 0-1/2", "bytes 0-1"] {
            assert_eq!(parse_content_range(bad), None, "{bad}");
        }
    }
}
