//! Blobs that nobody has in memory, and lines that are as slow as a test wants.

use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::body::Body;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::StreamExt as _;
use ocivol::demo::push::Pusher;
use ocivol::demo::registry::{Seen, parse_range};
use ocivol::oci::digest::{Algorithm, Digest};
use ocivol::oci::media_type;
use serde_json::json;
use tokio::time::Instant;

/// Bytes that come at a time over a line without a rate.
const PIECE: usize = 256 << 10;
/// How often something comes over a line with a rate.
const TICK: Duration = Duration::from_millis(50);
/// How late a timer may be without a loss of bytes: it is on a machine that is busy.
const LATE: Duration = Duration::from_millis(200);

/// One block again and again.
#[derive(Debug, Clone)]
pub struct Blob {
    block: Bytes,
    size: usize,
}

/// What answers come over: so many bytes per second, of all answers together that share it.
#[derive(Debug, Clone)]
pub struct Line {
    rate: Option<usize>,
    /// When what was sent before has come.
    free_at: Arc<Mutex<Instant>>,
}

impl Line {
    /// A line for `rate` bytes per second.
    pub fn of(rate: usize) -> Self {
        Self { rate: Some(rate), free_at: Arc::new(Mutex::new(Instant::now())) }
    }

    /// A line that holds nothing up.
    pub fn fast() -> Self {
        Self { rate: None, ..Self::of(0) }
    }

    fn piece(&self) -> usize {
        let of_a_tick = |rate: usize| (rate * TICK.as_millis() as usize / 1_000).clamp(1, PIECE);
        self.rate.map_or(PIECE, of_a_tick)
    }

    /// Waits until `length` bytes more have come. The rate is what is tested, so time has to pass.
    async fn carry(&self, length: usize) {
        let Some(rate) = self.rate else { return };
        let come = {
            let mut free_at = self.free_at.lock().expect("no panic");
            let earliest = Instant::now().checked_sub(LATE).unwrap_or_else(Instant::now);
            *free_at = earliest.max(*free_at) + Duration::from_secs_f64(length as f64 / rate as f64);
            *free_at
        };
        tokio::time::sleep_until(come).await;
    }
}

impl Blob {
    /// `size` bytes: `block` as often as it takes.
    pub fn new(block: impl Into<Bytes>, size: usize) -> Self {
        Self { block: block.into(), size }
    }

    /// Zeros, which are the wrong bytes of every digest that a test makes up.
    pub fn zeros(size: usize) -> Self {
        Self::new(vec![0; PIECE], size)
    }

    pub fn size(&self) -> usize {
        self.size
    }

    pub fn digest(&self) -> Digest {
        let mut hasher = Algorithm::Sha256.hasher();
        let mut at = 0;
        while at < self.size {
            let part = self.part(at, self.size, self.block.len());
            hasher.update(&part);
            at += part.len();
        }
        hasher.finish()
    }

    /// Answers a request for the blob, or for a range of it, over `line`.
    pub fn answer(&self, seen: &Seen, line: &Line) -> Response {
        self.answer_until(self.size, seen, line)
    }

    /// The same, of which nothing comes from the byte `end` on, however long one waits.
    pub fn answer_until(&self, end: usize, seen: &Seen, line: &Line) -> Response {
        let range = seen.headers.get(header::RANGE);
        let range = range.and_then(|value| parse_range(value.to_str().ok()?, self.size));
        let asked = range.clone().unwrap_or(0..self.size);
        let (stop, blob, line) = (asked.end.min(end), self.clone(), line.clone());
        let parts = futures_util::stream::unfold(asked.start, move |at| {
            let (blob, line) = (blob.clone(), line.clone());
            async move {
                if at >= stop {
                    return None;
                }
                let part = blob.part(at, stop, line.piece());
                line.carry(part.len()).await;
                let next = at + part.len();
                Some((Ok::<_, Infallible>(part), next))
            }
        });
        let body = if stop < asked.end {
            Body::from_stream(parts.chain(futures_util::stream::pending()))
        } else {
            Body::from_stream(parts)
        };
        let length = [(header::CONTENT_LENGTH, asked.len())];
        match range {
            Some(range) => {
                let value = format!("bytes {}-{}/{}", range.start, range.end - 1, self.size);
                let range = [(header::CONTENT_RANGE, value)];
                (StatusCode::PARTIAL_CONTENT, length, range, body).into_response()
            }
            None => (length, body).into_response(),
        }
    }

    /// Some of the bytes from `at` on, at most `most`, and none from `stop` on.
    fn part(&self, at: usize, stop: usize, most: usize) -> Bytes {
        let within = at % self.block.len();
        let length = most.min(stop - at).min(self.block.len() - within);
        self.block.slice(within..within + length)
    }
}

/// Pushes a model of files that the registry need not have: a script may answer for them. Returns the manifest.
pub async fn push_promises(pusher: &Pusher, tag: &str, blobs: &[(Digest, usize)]) -> String {
    let config = pusher.blob(Bytes::from_static(b"{}")).await.expect("pushed");
    let layer = |(number, (digest, size)): (usize, &(Digest, usize))| {
        json!({
            "mediaType": "application/vnd.cncf.model.weight.v1.raw",
            "digest": digest.to_string(), "size": size,
            "annotations": { "org.cncf.model.filepath": format!("weights-{number}") },
        })
    };
    let manifest = json!({
        "schemaVersion": 2, "mediaType": media_type::OCI_MANIFEST,
        "config": { "mediaType": media_type::OCI_EMPTY, "digest": config.to_string(), "size": 2 },
        "layers": blobs.iter().enumerate().map(layer).collect::<Vec<_>>(),
    })
    .to_string();
    pusher.manifest(tag, media_type::OCI_MANIFEST, &manifest).await.expect("pushed");
    manifest
}
