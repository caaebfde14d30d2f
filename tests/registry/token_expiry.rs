//! What is good for a time only, and ends while a large blob comes: tokens, and the signed places of object stores.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::body::Body;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::StreamExt as _;
use ocivol::demo::push::Layer;
use ocivol::demo::registry::{Seen, parse_range};

use crate::support::answers::is_blob;
use crate::support::wire::Line;
use crate::support::{Node, Scripted, eventually, isolated, noise};

const MIB: usize = 1 << 20;
/// Bytes of a body that are sent at a time.
const PIECE: usize = 64 * 1024;

/// A token server: the tokens are t1, t2, t3, and say that they live for an hour.
struct Tokens {
    server: Scripted,
    given: Arc<AtomicUsize>,
}

impl Tokens {
    async fn start() -> Self {
        let server = Scripted::start().await;
        let given = Arc::<AtomicUsize>::default();
        let count = Arc::clone(&given);
        server.script(move |_| {
            let number = count.fetch_add(1, Ordering::SeqCst) + 1;
            Some(format!(r#"{{"token":"t{number}","expires_in":3600}}"#).into_response())
        });
        Self { server, given }
    }

    fn given(&self) -> usize {
        self.given.load(Ordering::SeqCst)
    }

    /// What makes a client ask for another token.
    fn refusal(&self) -> impl Fn() -> Response + Send + 'static {
        let challenge = format!("Bearer realm=\"http://{}/token\"", self.server.host());
        move || (StatusCode::UNAUTHORIZED, [(header::WWW_AUTHENTICATE, challenge.clone())]).into_response()
    }
}

/// The token that a request shows.
fn token(seen: &Seen) -> Option<String> {
    let value = seen.headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    value.strip_prefix("Bearer ").map(str::to_owned)
}

/// The range that is asked for, if it is not all.
fn range(seen: &Seen, length: usize) -> Option<std::ops::Range<usize>> {
    let value = seen.headers.get(header::RANGE)?.to_str().expect("text");
    Some(parse_range(value, length).unwrap_or_else(|| panic!("{value}")))
}

/// What is asked for of `content`, in pieces that `pace` lets through, until the connection breaks after `most` bytes.
fn part_of<F: Future<Output = ()> + Send + 'static>(
    content: &Bytes,
    seen: &Seen,
    most: usize,
    pace: fn() -> F,
) -> Response {
    let size = content.len();
    let wanted = range(seen, size);
    let asked = wanted.clone().unwrap_or(0..size);
    let part = content.slice(asked.start..asked.end.min(asked.start.saturating_add(most)));
    let breaks = part.len() < asked.len();
    let pieces = futures_util::stream::unfold(part, move |mut rest| async move {
        if rest.is_empty() {
            return None;
        }
        pace().await;
        let next = rest.split_to(rest.len().min(PIECE));
        Some((Ok(next), rest))
    });
    let end = breaks.then(|| Err(std::io::Error::other("cut")));
    let body = Body::from_stream(pieces.chain(futures_util::stream::iter(end)));
    let length = [(header::CONTENT_LENGTH, asked.len())];
    match wanted {
        None => (length, body).into_response(),
        Some(range) => {
            let value = format!("bytes {}-{}/{size}", range.start, range.end - 1);
            (StatusCode::PARTIAL_CONTENT, length, [(header::CONTENT_RANGE, value)], body).into_response()
        }
    }
}

async fn pushed(name: &str, content: &[u8]) -> Scripted {
    let registry = Scripted::start().await;
    let layer = Layer::model_file("weight", "w", content.to_vec());
    registry.pusher(name).model("v1", &[layer]).await.expect("pushed");
    registry
}

async fn assert_published(node: &Node, reference: &str, content: &[u8]) {
    let volume = node.volume("pod");
    node.publish(&volume, reference, &[]).await.expect("published");
    assert!(std::fs::read(volume.target.join("w")).expect("read") == content, "parts were mixed up");
    node.kubelet.unpublish(&volume).await.expect("unpublished");
}

#[test]
fn a_blob_outlives_many_tokens_and_goes_on_where_it_was() {
    isolated(async {
        /// Requests for the blob that a token is good for.
        const LIFE: usize = 2;
        let content = Bytes::from(noise(1, 30 * MIB));
        for status in [StatusCode::UNAUTHORIZED, StatusCode::FORBIDDEN] {
            let registry = pushed("m", &content).await;
            let tokens = Tokens::start().await;
            let refusal = tokens.refusal();
            // How often each token served, and how often each was refused.
            let served = Arc::new(Mutex::new(BTreeMap::<String, usize>::new()));
            let refused = Arc::new(Mutex::new(BTreeMap::<String, usize>::new()));
            let (good, bad, sent) = (Arc::clone(&served), Arc::clone(&refused), content.clone());
            registry.script(move |seen| {
                let Some(token) = token(seen) else { return Some(refusal()) };
                let mut good = good.lock().expect("no panic");
                let count = good.entry(token.clone()).or_default();
                if *count >= LIFE {
                    *bad.lock().expect("no panic").entry(token).or_default() += 1;
                    // Some registries do not say with it how to get another one.
                    return Some(match status {
                        StatusCode::UNAUTHORIZED => refusal(),
                        status => status.into_response(),
                    });
                }
                is_blob(seen).then(|| {
                    *count += 1;
                    part_of(&sent, seen, 4 * MIB, || std::future::ready(()))
                })
            });
            let node = Node::start(&["--plain-http", &registry.host()]).await;
            assert_published(&node, &registry.reference("m:v1"), &content).await;
            let (served, refused) = (served.lock().expect("no panic"), refused.lock().expect("no panic"));
            assert!(tokens.given() >= 4, "{served:?}");
            // Each is fetched because the one before is spent, and used up.
            assert_eq!(tokens.given(), served.len(), "{served:?}, {refused:?}");
            assert!(served.values().filter(|times| **times < LIFE).count() <= 1, "{served:?}");
            assert!(refused.len() == served.len() - 1, "{served:?}, {refused:?}");
            assert!(refused.values().all(|times| *times == 1), "{refused:?}");
            // No byte comes twice: a blob that started over would be asked for as a whole again.
            let requests = registry.requests();
            let starts: BTreeSet<usize> = requests
                .iter()
                .filter(|seen| is_blob(seen))
                .map(|seen| range(seen, content.len()).map_or(0, |range| range.start))
                .collect();
            assert_eq!(starts.len(), served.values().sum::<usize>(), "{status}: {starts:?}");
        }
    });
}

#[test]
fn a_token_that_ends_beside_several_connections_is_fetched_anew_once() {
    isolated(async {
        let content = Bytes::from(noise(2, 96 * MIB));
        let registry = pushed("m", &content).await;
        let tokens = Tokens::start().await;
        let refusal = tokens.refusal();
        // The first token opens one connection, and is good for nothing more once it is open.
        let (sent, mut is_open) = (content.clone(), false);
        let refused = Arc::<AtomicUsize>::default();
        let count = Arc::clone(&refused);
        registry.script(move |seen| {
            match token(seen).as_deref() {
                None => return Some(refusal()),
                Some("t1") if is_open => {
                    count.fetch_add(1, Ordering::SeqCst);
                    return Some(refusal());
                }
                Some(_) => {}
            }
            is_blob(seen).then(|| {
                is_open = true;
                // So slow that others are asked to help: the rate is what matters, so time has to pass.
                part_of(&sent, seen, usize::MAX, || tokio::time::sleep(Duration::from_millis(3)))
            })
        });
        let node = Node::start(&["--plain-http", &registry.host()]).await;
        assert_published(&node, &registry.reference("m:v1"), &content).await;
        let parts = registry.requests().iter().filter(|seen| is_blob(seen)).count();
        let refused = refused.load(Ordering::SeqCst);
        assert!(refused >= 1 && parts >= refused + 2, "{parts} requests, {refused} of them refused");
        assert_eq!(tokens.given(), 2, "{parts} requests, {refused} of them refused");
    });
}

#[test]
fn one_new_token_is_for_all_who_wait() {
    isolated(async {
        const BLOBS: usize = 12;
        let registry = Scripted::start().await;
        let layers: Vec<Layer> = (0..BLOBS)
            .map(|number| Layer::model_file("weight", &format!("w{number}"), noise(number as u64, MIB)))
            .collect();
        registry.pusher("m").model("v1", &layers).await.expect("pushed");
        let tokens = Tokens::start().await;
        let refusal = tokens.refusal();
        let line = Arc::new(Line::start(&registry.host()).await);
        // The first token is spent with the manifest. Nobody hears so before all have shown it.
        let refused = Arc::<AtomicUsize>::default();
        let (count, held) = (Arc::clone(&refused), Arc::clone(&line));
        registry.script(move |seen| match token(seen).as_deref() {
            Some("t1") if is_blob(seen) => {
                held.hold();
                count.fetch_add(1, Ordering::SeqCst);
                Some(refusal())
            }
            None => Some(refusal()),
            Some(_) => None,
        });
        let flags = ["--plain-http", &line.host(), "--parallel-downloads", &BLOBS.to_string()];
        let node = Node::start(&flags).await;
        let (kubelet, volume, reference) = (node.kubelet.clone(), node.volume("pod"), line.reference("m:v1"));
        let request = kubelet.publish_request(&volume, &[("reference", &reference)], &[]);
        let publish = tokio::spawn(async move { kubelet.publish(request).await });
        eventually("all have shown the old token", || refused.load(Ordering::SeqCst) == BLOBS).await;
        assert_eq!(tokens.given(), 1, "nobody knows yet");
        line.release();
        publish.await.expect("no panic").expect("published");
        for number in 0..BLOBS {
            let content = std::fs::read(volume.target.join(format!("w{number}"))).expect("read");
            assert!(content == noise(number as u64, MIB), "w{number}");
        }
        assert_eq!(tokens.given(), 2, "one for all");
        assert_eq!(refused.load(Ordering::SeqCst), BLOBS, "who waited does not show the old one again");
        node.kubelet.unpublish(&volume).await.expect("unpublished");
    });
}

#[test]
fn a_signed_place_that_is_not_good_any_more_is_asked_for_anew() {
    isolated(async {
        let content = Bytes::from(noise(3, 30 * MIB));
        let registry = pushed("m", &content).await;
        let storage = Scripted::start().await;
        let place = format!("http://{}/signed/", storage.host());
        let signed = Arc::<AtomicUsize>::default();
        let count = Arc::clone(&signed);
        registry.script(move |seen| {
            is_blob(seen).then(|| {
                let to = format!("{place}{}", count.fetch_add(1, Ordering::SeqCst));
                (StatusCode::TEMPORARY_REDIRECT, [(header::LOCATION, to)]).into_response()
            })
        });
        // A place is good for one request; every third has ended before anybody comes.
        let (sent, used) = (content.clone(), Arc::new(Mutex::new(BTreeSet::new())));
        let known = Arc::clone(&used);
        storage.script(move |seen| {
            let number: usize =
                seen.path.rsplit('/').next().and_then(|it| it.parse().ok()).expect("a number");
            let is_new = known.lock().expect("no panic").insert(number);
            Some(if is_new && number % 3 != 1 {
                part_of(&sent, seen, 4 * MIB, || std::future::ready(()))
            } else {
                (StatusCode::FORBIDDEN, "Request has expired").into_response()
            })
        });
        let node = Node::start(&["--plain-http", &registry.host()]).await;
        assert_published(&node, &registry.reference("m:v1"), &content).await;
        let (signed, asked) = (signed.load(Ordering::SeqCst), storage.requests().len());
        assert!(signed > 8, "{signed}: it was cut, and refused");
        assert_eq!(asked, used.lock().expect("no panic").len(), "nobody comes twice with the same place");
        assert_eq!(asked, signed);
    });
}
