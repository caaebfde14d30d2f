//! The connections to one source of a blob: which part each fetches, how fast they are, and what to make of odd answers.
//!
//! The bytes on the way to the writer are bounded for the whole node (`BUFFERED_BYTES`). A connection that is slow for this
//! network gets help: the rest of its part is split and fetched by another. What has arrived is kept when a connection breaks.

use std::ops::Range;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use reqwest::{StatusCode, header};
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::time::MissedTickBehavior;

use crate::oci::descriptor::Descriptor;
use crate::pull::error::Error;
use crate::pull::offers::Offers;
use crate::pull::segments::Segments;
use crate::pull::unpacking::Sink;
use crate::pull::wanted::{Form, Wanted};
use crate::pull::watch::{Pace, Watch};
use crate::pull::{BUFFERED_BYTES, Puller};
use crate::registry;
use crate::registry::http::Body;
use crate::registry::retry::Backoff;
use crate::registry::source::Source;

/// Connections for one blob.
const CONNECTIONS: usize = 6;
/// A connection below this rate (bytes per second) is helped by another. Object stores give 50 to 90 MB/s to a
/// connection, a local registry ten times as much.
const HELP_BELOW: f64 = 100e6;
/// How often rates are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// A source below this rate (bytes per second) is replaced when another is offered.
const REPLACE_BELOW: f64 = 1e6;
/// Times that the download of a layer starts again for an untried source, and for one that was given up before.
const LAYER_REPLACEMENTS: usize = 16;
const LAYER_RETURNS: usize = 3;
/// A piece of the blob on its way to the file. The permit bounds the memory of all pieces together.
pub(super) struct Piece {
    pub offset: u64,
    pub bytes: Bytes,
    _permit: OwnedSemaphorePermit,
}

/// One download from one source.
pub(super) struct Fetch<'a> {
    puller: &'a Puller,
    blob: &'a Descriptor,
    source: &'a Source,
    offers: &'a Offers,
    segments: Mutex<Segments>,
    /// What came is there for the next source of the same repository.
    keeps_what_came: bool,
    /// The source is asked for the whole blob: it does not answer a range with that range.
    without_ranges: AtomicBool,
    /// Some of the bytes were not the next ones of one answer.
    in_parts: AtomicBool,
    /// What the source says its answer is, when that is not what was asked for.
    oddity: Mutex<Option<String>>,
    /// Bytes that came, also those that are not needed.
    received: AtomicU64,
    /// Connections that wait for the first byte of an answer, or until they may ask again.
    waiting: AtomicUsize,
    writer: mpsc::Sender<Piece>,
}

/// Why a source did not deliver the blob.
pub(super) enum End {
    /// It is slow, at this many bytes per second, and another one is offered.
    Slow(f64),
    /// It cannot. `in_parts` when a wrong digest may be the fault of bytes that were there before, or of ranges that are
    /// not what they were said to be.
    Failed { error: Error, in_parts: bool },
}

impl<E: Into<Error>> From<E> for End {
    fn from(error: E) -> Self {
        Self::Failed { error: error.into(), in_parts: false }
    }
}

impl<'a> Fetch<'a> {
    /// A fetch of what `sink` misses, whose pieces go to `writer`. When `whole`, the source is not asked for ranges.
    pub fn new(
        puller: &'a Puller,
        wanted: &'a Wanted,
        source: &'a Source,
        offers: &'a Offers,
        sink: &Sink,
        whole: bool,
        writer: mpsc::Sender<Piece>,
    ) -> Self {
        Self {
            puller,
            blob: &wanted.blob,
            source,
            offers,
            segments: Mutex::new(Segments::new(sink.missing())),
            keeps_what_came: wanted.form == Form::File,
            without_ranges: AtomicBool::new(whole),
            in_parts: AtomicBool::new(sink.present() > 0),
            oddity: Mutex::default(),
            received: AtomicU64::new(0),
            waiting: AtomicUsize::new(0),
            writer,
        }
    }
}

impl Fetch<'_> {
    /// Fetches everything that is missing.
    pub async fn run(&self) -> Result<(), End> {
        let mut connections = FuturesUnordered::new();
        connections.push(self.connection());
        let mut looks = tokio::time::interval_at((Instant::now() + LOOK_EVERY).into(), LOOK_EVERY);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut watch = Watch::new(Instant::now());
        let mut before = (Instant::now(), 0);
        let (mut is_helped, mut is_refused_help) = (false, false);
        let mut silence = self.puller.registry.longest_silence();
        loop {
            tokio::select! {
                ended = connections.next() => match ended {
                    Some(Ok(())) if connections.is_empty() && self.segments().has_waiting() => {
                        connections.push(self.connection());
                    }
                    Some(Ok(())) => {}
                    // Some registries allow a client few connections. What this one did not get waits for the others.
                    Some(Err(End::Failed { error: Error::Registry(error), .. }))
                        if !connections.is_empty() || (is_helped && !is_refused_help) =>
                    {
                        tracing::debug!(digest = %self.blob.digest, %error, "going on with fewer connections");
                        is_refused_help = true;
                        if connections.is_empty() {
                            connections.push(self.connection()); // The others were done with their parts.
                        }
                    }
                    Some(Err(end)) => return Err(end),
                    None => return Ok(()),
                },
                _ = looks.tick() => {
                    let now = (Instant::now(), self.received.load(Relaxed));
                    let rate = (now.1 - before.1) as f64 / (now.0 - before.0).as_secs_f64().max(0.1);
                    before = now;
                    // How long an answer may take to begin is not a matter of rates; for one that begins again and again
                    // there is an end to that.
                    let is_silent = self.waiting.load(Relaxed) >= connections.len() && !silence.is_zero();
                    if is_silent {
                        silence = silence.saturating_sub(LOOK_EVERY);
                    }
                    // A full queue says that the disk is what is slow.
                    if is_silent || self.writer.capacity() == 0 {
                        watch.excuse(now.0, now.1);
                        continue;
                    }
                    match watch.look(now.0, now.1) {
                        Pace::Dead => {
                            let host = self.source.host.clone();
                            return Err(registry::error::Error::TooSlow { host, over: Watch::DEAD_AFTER }.into());
                        }
                        Pace::Rate(rate)
                            if rate < REPLACE_BELOW
                                && self.offers.has_better_than(rate)
                                && self.may_be_replaced() =>
                        {
                            return Err(End::Slow(rate));
                        }
                        Pace::Rate(_) | Pace::Unknown => {}
                    }
                    if !is_refused_help && self.wants_help(rate) {
                        is_helped = true;
                        connections.push(self.connection());
                    }
                }
            }
        }
    }

    /// Whether a wrong digest may be the fault of how the bytes came together.
    pub fn came_in_parts(&self) -> bool {
        self.in_parts.load(Relaxed)
    }

    /// A layer starts again with another source: each is tried once, and returned to not without end.
    fn may_be_replaced(&self) -> bool {
        self.keeps_what_came
            || (self.offers.has_untried() && self.offers.replaced() < LAYER_REPLACEMENTS)
            || self.offers.returns() < LAYER_RETURNS
    }

    /// Splits a part for another connection, when those that run are slow for a network.
    fn wants_help(&self, rate: f64) -> bool {
        let mut segments = self.segments();
        let active = segments.active();
        active > 0
            && active < CONNECTIONS
            && rate < HELP_BELOW * active as f64
            && !self.without_ranges.load(Relaxed)
            && segments.split()
    }

    /// Fetches parts until none waits, and again after what may pass.
    async fn connection(&self) -> Result<(), End> {
        let mut backoff = Backoff::new(self.puller.registry.attempts());
        loop {
            if self.without_ranges.load(Relaxed) && self.segments().active() > 0 {
                return Ok(());
            }
            let Some((id, range)) = self.segments().take() else { return Ok(()) };
            let before = range.start;
            let result = self.fetch_part(id, range, &backoff).await;
            let reached = {
                let mut segments = self.segments();
                let reached = segments.position(id).unwrap_or(before);
                segments.release(id);
                reached
            };
            match result {
                Ok(()) => {}
                Err(End::Failed { error: Error::Registry(error), .. }) => {
                    if reached > before {
                        backoff.reset();
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
    async fn fetch_part(&self, id: usize, range: Range<u64>, backoff: &Backoff) -> Result<(), End> {
        let whole = range == (0..self.blob.size) || self.without_ranges.load(Relaxed);
        let wanted = (!whole).then(|| range.clone());
        let first_byte = Waits::start(&self.waiting);
        let mut body = match self.puller.registry.blob(self.source, self.blob, wanted, backoff).await {
            // It has less than it said, or does not take ranges.
            Err(
                registry::error::Error::Status { status: 416, .. }
                | registry::error::Error::Elsewhere { status: 416, .. },
            ) if !whole => {
                self.without_ranges.store(true, Relaxed);
                return Ok(());
            }
            answered => answered?,
        };
        if let Some(oddity) = body.oddity() {
            *self.oddity.lock().unwrap_or_else(PoisonError::into_inner) = Some(oddity);
        }
        let mut position = match self.starts_at(&body, &range, whole) {
            Err(_) if !whole => {
                self.without_ranges.store(true, Relaxed);
                return Ok(());
            }
            position => position?,
        };
        self.in_parts.fetch_or(position > 0, Relaxed);
        if position < range.start && self.segments().active() > 1 {
            return Ok(()); // Left for the connection that reads from the start.
        }
        let mut first_byte = Some(first_byte);
        // A registry that ignores the range sends what is here already; it is read and dropped.
        while let Some(mut bytes) = body.chunk().await? {
            first_byte.take();
            self.received.fetch_add(bytes.len() as u64, Relaxed);
            if position < range.start {
                let known = usize::try_from(range.start - position).unwrap_or(usize::MAX).min(bytes.len());
                position += known as u64;
                drop(bytes.split_to(known));
            }
            let end = position + bytes.len() as u64;
            if end > self.blob.size {
                return Err(self.wrong(format!("more than {} bytes", self.blob.size)));
            }
            let accepted = self.segments().accept(id, bytes.len());
            bytes.truncate(accepted);
            if !bytes.is_empty() {
                self.send(position, bytes).await?;
            }
            position = end;
            let complete = self.segments().is_complete(id);
            if complete && position < self.blob.size {
                return Ok(()); // The rest is another connection's.
            }
        }
        if self.segments().is_complete(id) {
            return Ok(());
        }
        let reason = format!("the answer ended at byte {position} of {}", self.blob.size);
        if self.oddity().is_some() {
            return Err(self.wrong(reason));
        }
        Err(registry::error::Error::Unreachable { host: self.source.host.clone(), reason }.into())
    }

    /// The offset of a body's first byte; `whole` when it was asked for without a range.
    fn starts_at(&self, body: &Body, wanted: &Range<u64>, whole: bool) -> Result<u64, End> {
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
                    host: self.source.host.clone(),
                    what: format!("answered a range with Content-Range {header:?}"),
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

    async fn send(&self, offset: u64, bytes: Bytes) -> Result<(), End> {
        let length = bytes.len() as u64;
        self.offers.counter.fetched.fetch_add(length, Relaxed);
        self.puller.metrics.fetched.inc_by(length);
        let permits = u32::try_from(bytes.len().min(BUFFERED_BYTES)).unwrap_or(u32::MAX);
        let permit = Arc::clone(&self.puller.buffers).acquire_many_owned(permits).await;
        let permit = permit.map_err(|_| Error::Stopped)?;
        let piece = Piece { offset, bytes, _permit: permit };
        // The writer ended; its own error says why.
        self.writer.send(piece).await.map_err(|_| Error::Stopped.into())
    }

    fn wrong(&self, got: String) -> End {
        registry::error::Error::WrongContent {
            host: self.source.host.clone(),
            wanted: self.blob.digest.clone(),
            got: self.oddity().unwrap_or(got),
        }
        .into()
    }

    /// What the source says its answer is, when that is not what was asked for.
    pub fn oddity(&self) -> Option<String> {
        self.oddity.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn segments(&self) -> MutexGuard<'_, Segments> {
        self.segments.lock().unwrap_or_else(PoisonError::into_inner)
    }
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
