//! Pulls that break off again and again: what came is kept, and next to nothing comes twice.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use axum::body::Body;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use bytes::Bytes;
use futures_util::StreamExt as _;
use ocivol::demo::push::Layer;
use ocivol::demo::registry::{Seen, parse_range};
use ocivol::demo::tarball::Tarball;
use ocivol::oci::digest::Digest;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use tonic::Code;

use crate::support::debian_registry::DebianRegistry;
use crate::support::{Node, Scripted, eventually, isolated, noise};

/// How an answer breaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Break {
    Reset,
    Stall,
    ServerError,
    WrongRange,
    ExpiredUrl,
    /// The plugin is killed while it reads.
    Kill,
}

const BREAKS: usize = 50;
const SIZE: usize = 320 << 20;
const SEED: u64 = 20_261_127;

/// What sends a blob, and breaks.
struct Sender {
    content: Bytes,
    digest: String,
    kinds: &'static [Break],
    /// A signed URL at an object store, that is over.
    expired: String,
    random: StdRng,
    left: usize,
    sent: Arc<AtomicUsize>,
    /// Kills that are wanted, and those that were done.
    kills: Arc<(AtomicUsize, AtomicUsize)>,
}

impl Sender {
    fn answer(&mut self, seen: &Seen) -> Option<Response> {
        if seen.method != axum::http::Method::GET || !seen.path.ends_with(&self.digest) {
            return None;
        }
        let asked = seen.headers.get(header::RANGE).and_then(|value| value.to_str().ok());
        let range = asked.and_then(|value| parse_range(value, SIZE));
        let all = range.clone().unwrap_or(0..SIZE);
        // So that the breaks are all over the blob.
        let until = all.start + self.random.random_range(0..=2 * SIZE / BREAKS);
        if self.left == 0 || until >= all.end {
            return Some(self.send(all.clone(), all, range.is_some(), Break::Reset));
        }
        self.left -= 1;
        let kind = self.kinds[self.random.random_range(0..self.kinds.len())];
        Some(match kind {
            Break::ServerError => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
            Break::ExpiredUrl => {
                (StatusCode::TEMPORARY_REDIRECT, [(header::LOCATION, self.expired.clone())]).into_response()
            }
            // To whoever asks for all, there is no other.
            Break::WrongRange if range.is_some() => {
                let value = format!("bytes {}-{}/{SIZE}", all.start + 1, all.end - 1);
                (StatusCode::PARTIAL_CONTENT, [(header::CONTENT_RANGE, value)], Body::empty()).into_response()
            }
            kind => self.send(all.start..until, all, range.is_some(), kind),
        })
    }

    /// Sends `part` of `all`, and then breaks as `kind` says.
    fn send(
        &self,
        part: std::ops::Range<usize>,
        all: std::ops::Range<usize>,
        is_range: bool,
        kind: Break,
    ) -> Response {
        let (sent, kills) = (Arc::clone(&self.sent), Arc::clone(&self.kills));
        let pieces: Vec<Bytes> = part
            .clone()
            .step_by(64 << 10)
            .map(|at| self.content.slice(at..part.end.min(at + (64 << 10))))
            .collect();
        let pieces = futures_util::stream::iter(pieces).map(move |piece| {
            sent.fetch_add(piece.len(), Ordering::SeqCst);
            Ok(piece)
        });
        let is_whole = part.end == all.end;
        let end = futures_util::stream::once(async move {
            match kind {
                _ if is_whole => return Ok(Bytes::new()),
                Break::Stall => std::future::pending().await,
                Break::Kill => {
                    kills.0.fetch_add(1, Ordering::SeqCst);
                    std::future::pending::<()>().await;
                }
                _ => {}
            }
            Err(std::io::Error::other("reset"))
        });
        let body = Body::from_stream(pieces.chain(end));
        let length = [(header::CONTENT_LENGTH, all.len())];
        match is_range {
            true => {
                let value = format!("bytes {}-{}/{SIZE}", all.start, all.end - 1);
                (StatusCode::PARTIAL_CONTENT, length, [(header::CONTENT_RANGE, value)], body).into_response()
            }
            false => (length, body).into_response(),
        }
    }
}

/// Publishes `reference` as kubelet does, again and again, while its blob breaks in these ways; returns the bytes that were sent.
async fn publish_broken(
    registry: &Scripted,
    reference: &str,
    content: Bytes,
    kinds: &'static [Break],
    look: impl Fn(&std::path::Path),
) -> usize {
    bound_what_is_under_way();
    let digest = Digest::sha256(&content).to_string();
    let (sent, kills): (Arc<AtomicUsize>, Arc<(AtomicUsize, AtomicUsize)>) = Default::default();
    let storage = Scripted::start().await;
    storage.script(|_| Some(StatusCode::FORBIDDEN.into_response()));
    let sender = Arc::new(Mutex::new(Sender {
        expired: format!("http://{}/signed?until=yesterday", storage.host()),
        content,
        digest,
        kinds,
        random: StdRng::seed_from_u64(SEED),
        left: BREAKS,
        sent: Arc::clone(&sent),
        kills: Arc::clone(&kills),
    }));
    let script = Arc::clone(&sender);
    registry.script(move |seen| script.lock().expect("no panic").answer(seen));
    let mut node = Node::start(&["--plain-http", &registry.host(), "--stall-timeout", "1"]).await;
    let volume = node.volume("pod");
    for attempt in 0.. {
        assert!(attempt < 2 * BREAKS, "it does not come to an end: {}", node.logged());
        let is_killed = || kills.0.load(Ordering::SeqCst) > kills.1.load(Ordering::SeqCst);
        let published = tokio::select! {
            published = node.publish(&volume, reference, &[]) => published,
            () = eventually("a kill", is_killed) => {
                kills.1.store(kills.0.load(Ordering::SeqCst), Ordering::SeqCst);
                node.kill();
                node.run().await;
                continue;
            }
        };
        match published {
            Ok(()) => break,
            // kubelet asks again.
            Err(status) => {
                assert!(matches!(status.code(), Code::Unavailable | Code::DeadlineExceeded), "{status}");
            }
        }
    }
    assert_eq!(sender.lock().expect("no panic").left, 0, "it broke {BREAKS} times");
    look(&volume.target);
    sent.load(Ordering::SeqCst)
}

/// Bounds what is sent and not read yet when a connection breaks, in the network namespace of this test. It is lost with the
/// connection, whatever the plugin does, and a busy machine would have 10 MB of it.
fn bound_what_is_under_way() {
    for name in ["tcp_rmem", "tcp_wmem"] {
        let written = std::fs::write(format!("/proc/sys/net/ipv4/{name}"), "4096 131072 262144");
        written.unwrap_or_else(|error| panic!("{name} cannot be set: {error}; run `sudo make test`"));
    }
}

#[test]
fn a_raw_blob_that_breaks_fifty_times_comes_once() {
    isolated(async {
        use Break::{ExpiredUrl, Kill, Reset, ServerError, Stall, WrongRange};
        let content = Bytes::from(noise(1, SIZE));
        let registry = Scripted::with_model(content.clone()).await;
        let kinds = &[
            Reset,
            Reset,
            Reset,
            Reset,
            Reset,
            Reset,
            Stall,
            ServerError,
            ServerError,
            WrongRange,
            ExpiredUrl,
            Kill,
        ];
        let wanted = content.clone();
        let look = move |target: &std::path::Path| {
            assert!(std::fs::read(target.join("w")).expect("read") == wanted);
        };
        let sent = publish_broken(&registry, &registry.reference("m:v1"), content, kinds, look).await;
        let ratio = sent as f64 / SIZE as f64;
        println!("{ratio:.3} of the blob's bytes were sent");
        assert!(ratio < 1.2, "{ratio:.3} of the blob's bytes were sent");
    });
}

#[test]
fn a_layer_that_breaks_fifty_times_comes_once() {
    isolated(async {
        use Break::{ExpiredUrl, Reset, ServerError, Stall, WrongRange};
        // A header, the content, and the end make it as large as the raw blob.
        let file = noise(2, SIZE - 512 - 1024);
        let archive = Tarball::new().file("w", &file).finish();
        let mut archive = archive;
        archive.resize(SIZE, 0);
        let registry = Scripted::start().await;
        registry.pusher("i").image("v1", &[Layer::archive(archive.clone())], &[]).await.expect("pushed");
        let kinds = &[Reset, Reset, Reset, Stall, ServerError, WrongRange, ExpiredUrl];
        let look =
            move |target: &std::path::Path| assert!(std::fs::read(target.join("w")).expect("read") == file);
        let sent = publish_broken(&registry, &registry.reference("i:v1"), archive.into(), kinds, look).await;
        let ratio = sent as f64 / SIZE as f64;
        println!("{ratio:.3} of the layer's bytes were sent");
        assert!(ratio < 1.2, "{ratio:.3} of the layer's bytes were sent");
    });
}

#[test]
fn a_registry_that_restarts_is_waited_for() {
    isolated(async {
        let mut registry = DebianRegistry::start().await;
        let content = noise(3, 256 << 20);
        let layer = Layer::model_file("weight", "w", content.clone());
        registry.pusher("m").model("v1", &[layer]).await.expect("pushed");
        let node = Node::start(&["--plain-http", &registry.host()]).await;
        let volume = node.volume("pod");
        let reference = registry.reference("m:v1");
        let ingest = node.root.join("v1/ingest");
        let has_begun = || blocks_below(&ingest) * 512 > 8 << 20;
        let restarts = async {
            eventually("a part of it", has_begun).await;
            registry.restart().await;
        };
        let (published, ()) = tokio::join!(node.publish(&volume, &reference, &[]), restarts);
        published.expect("published");
        assert!(std::fs::read(volume.target.join("w")).expect("read") == content);
    });
}

/// Blocks of all files below `path`.
fn blocks_below(path: &std::path::Path) -> u64 {
    use std::os::unix::fs::MetadataExt as _;
    let entries = std::fs::read_dir(path).map(|entries| entries.flatten().collect::<Vec<_>>());
    let blocks = entries.unwrap_or_default().into_iter().map(|entry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => blocks_below(&entry.path()),
        Ok(metadata) => metadata.blocks(),
        Err(_) => 0,
    });
    blocks.sum()
}
