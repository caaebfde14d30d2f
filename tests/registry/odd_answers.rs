//! Answers that are odd: late, encoded, a page instead of content, cut, redirected, described in unusual words.
//! `docs/registries.md` is the table of this.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::http::{Method, StatusCode, header};
use axum::response::IntoResponse;
use base64::Engine as _;
use ocivol::demo::push::Layer;
use ocivol::demo::registry::Seen;
use ocivol::oci::digest::Digest;
use ocivol::oci::media_type;
use serde_json::json;
use tonic::Code;

use crate::support::answers::{broken, first, is_blob, is_manifest, setup, setup_with};
use crate::support::{Node, Scripted, isolated, noise};

/// A body that begins after `wait`.
fn late(content: Vec<u8>, wait: Duration) -> axum::response::Response {
    let length = content.len();
    let body = futures_util::stream::once(async move {
        tokio::time::sleep(wait).await;
        Ok::<_, std::io::Error>(bytes::Bytes::from(content))
    });
    ([(header::CONTENT_LENGTH, length)], Body::from_stream(body)).into_response()
}

#[test]
fn regression_a_cache_that_fetches_on_demand_is_waited_for() {
    isolated(async {
        // Longer than the stall timeout, as long as the wait is when it is asked again.
        let content = noise(31, 100_000);
        let (registry, node, reference) = setup_with(&content, &["--stall-timeout", "1"]).await;
        let sent = content.clone();
        registry.script(move |seen| is_blob(seen).then(|| late(sent.clone(), Duration::from_millis(1500))));
        let volume = node.volume("pod");
        node.publish(&volume, &reference, &[]).await.expect("published");
        assert_eq!(std::fs::read(volume.target.join("w")).expect("read"), content);
        assert_eq!(registry.count(&Method::GET, "/blobs/"), 2, "the second try waits longer");
        node.kubelet.unpublish(&volume).await.expect("unpublished");
    });
}

#[test]
fn regression_the_rate_is_watched_from_the_first_byte_on() {
    isolated(async {
        let content = noise(32, 100_000);
        let (registry, node, reference) = setup_with(&content, &["--stall-timeout", "300"]).await;
        let sent = content.clone();
        // Longer than the time after which a source counts as dead that sends next to nothing.
        registry.script(move |seen| is_blob(seen).then(|| late(sent.clone(), Duration::from_secs(63))));
        let volume = node.volume("pod");
        let began = Instant::now();
        node.publish(&volume, &reference, &[]).await.expect("published");
        assert!(began.elapsed() >= Duration::from_secs(63));
        assert_eq!(std::fs::read(volume.target.join("w")).expect("read"), content);
        node.kubelet.unpublish(&volume).await.expect("unpublished");
    });
}

#[test]
fn regression_every_request_asks_for_content_as_it_is() {
    isolated(async {
        let (registry, node, reference) = setup(&noise(33, 1000)).await;
        let volume = node.volume("pod");
        node.publish(&volume, &reference, &[("pullPolicy", "Always")]).await.expect("published");
        for seen in registry.requests() {
            let all = |name| seen.headers.get_all(name).iter().map(|value| value.to_str().expect("text"));
            assert_eq!(all(header::ACCEPT_ENCODING).collect::<Vec<_>>(), ["identity"], "{seen:?}");
            if is_manifest(&seen) {
                assert_eq!(
                    all(header::ACCEPT).collect::<Vec<_>>(),
                    media_type::ACCEPTED_MANIFESTS,
                    "a line for each"
                );
            }
        }
        node.kubelet.unpublish(&volume).await.expect("unpublished");
    });
}

#[test]
fn regression_what_is_not_content_is_named() {
    isolated(async {
        let content = noise(34, 10_000);
        let page = "<!DOCTYPE html><html>log in</html>";
        type Fits = fn(&Seen) -> bool;
        let table: [(Fits, &str, &str, StatusCode, &str); 6] = [
            (
                is_manifest,
                "content-type",
                "text/html; charset=utf-8",
                StatusCode::OK,
                "text/html: a login or proxy page?",
            ),
            (is_blob, "content-type", "text/html", StatusCode::OK, "text/html: a login or proxy page?"),
            (is_blob, "content-encoding", "gzip", StatusCode::OK, "content encoded as gzip"),
            (is_manifest, "content-type", "text/plain", StatusCode::OK, "text/plain"),
            (is_manifest, "content-type", "text/html", StatusCode::FORBIDDEN, "a login or proxy page?"),
            (is_blob, "content-type", "text/html", StatusCode::NOT_FOUND, "a login or proxy page?"),
        ];
        for (fits, name, value, status, expected) in table {
            let (registry, node, reference) = setup(&content).await;
            registry.script(move |seen| fits(seen).then(|| (status, [(name, value)], page).into_response()));
            let refused = node.publish(&node.volume("pod"), &reference, &[]).await.expect_err(expected);
            assert!(refused.message().contains(expected), "{expected}: {refused}");
            assert_ne!(refused.code(), Code::Unavailable, "{refused}");
        }
        // A header is no content: bytes that are right are taken, whatever they are called.
        let (registry, node, reference) = setup(&content).await;
        let sent = content.clone();
        registry.script(move |seen| {
            let headers =
                [("content-encoding", "gzip"), ("content-type", "text/html"), ("etag", "\"sha256:0\"")];
            let file = is_blob(seen) && seen.path.contains(&Digest::sha256(&sent).to_string());
            file.then(|| (headers, sent.clone()).into_response())
        });
        let volume = node.volume("pod");
        node.publish(&volume, &reference, &[]).await.expect("the bytes are right");
        node.kubelet.unpublish(&volume).await.expect("unpublished");
    });
}

#[test]
fn regression_a_source_that_has_no_ranges_is_read_whole() {
    isolated(async {
        let content = noise(35, 3_000_000);
        let wrong_place = content[7..2_000_007].to_vec();
        type Answer = Box<dyn Fn() -> axum::response::Response + Send>;
        let answers: [(&str, Answer); 4] = [
            ("416", Box::new(|| StatusCode::RANGE_NOT_SATISFIABLE.into_response())),
            ("no Content-Range", Box::new(|| (StatusCode::PARTIAL_CONTENT, vec![0_u8; 100]).into_response())),
            ("the size of the part as that of the whole", {
                let part = content[1_000_000..].to_vec();
                Box::new(move || {
                    let headers = [(header::CONTENT_RANGE, "bytes 1000000-2999999/2000000")];
                    (StatusCode::PARTIAL_CONTENT, headers, part.clone()).into_response()
                })
            }),
            ("bytes from elsewhere under the right Content-Range", {
                Box::new(move || {
                    let headers = [(header::CONTENT_RANGE, "bytes 1000000-2999999/3000000")];
                    (StatusCode::PARTIAL_CONTENT, headers, wrong_place.clone()).into_response()
                })
            }),
        ];
        for (name, answer) in answers {
            // The registry itself, and a store that it redirects to.
            let answer = Arc::new(std::sync::Mutex::new(answer));
            for redirected in [false, true] {
                let (registry, node, reference) = setup(&content).await;
                let store = Scripted::start().await;
                let (part, whole, answer) =
                    (content[..1_000_000].to_vec(), content.clone(), Arc::clone(&answer));
                let mut cut = false;
                let script = move |seen: &Seen| {
                    if !std::mem::replace(&mut cut, true) {
                        return Some(broken(&part, 3_000_000, false));
                    }
                    let ranged = seen.headers.contains_key(header::RANGE);
                    Some(if ranged {
                        answer.lock().expect("no panic")()
                    } else {
                        whole.clone().into_response()
                    })
                };
                if redirected {
                    store.script(script);
                    let elsewhere = format!("http://{}/blob", store.host());
                    registry.script(move |seen| {
                        let location = [(header::LOCATION, elsewhere.clone())];
                        is_blob(seen).then(|| (StatusCode::TEMPORARY_REDIRECT, location).into_response())
                    });
                } else {
                    let mut script = script;
                    registry.script(move |seen| if is_blob(seen) { script(seen) } else { None });
                }
                let volume = node.volume("pod");
                let published = node.publish(&volume, &reference, &[]).await;
                published.unwrap_or_else(|error| panic!("{name}, redirected: {redirected}: {error}"));
                assert_eq!(std::fs::read(volume.target.join("w")).expect("read"), content, "{name}");
                node.kubelet.unpublish(&volume).await.expect("unpublished");
            }
        }
    });
}

#[test]
fn regression_a_date_in_retry_after_is_kept() {
    isolated(async {
        let (registry, node, reference) = setup(&noise(36, 1000)).await;
        let date = httpdate::fmt_http_date(std::time::SystemTime::now() + Duration::from_secs(3));
        registry.script(first(1, is_manifest, move |_| {
            (StatusCode::TOO_MANY_REQUESTS, [(header::RETRY_AFTER, date.clone())]).into_response()
        }));
        let began = Instant::now();
        let volume = node.volume("pod");
        node.publish(&volume, &reference, &[]).await.expect("published");
        assert!(began.elapsed() > Duration::from_millis(1500), "{:?}", began.elapsed());
        node.kubelet.unpublish(&volume).await.expect("unpublished");
    });
}

#[test]
fn regression_a_host_that_is_redirected_to_gives_guests_a_token() {
    isolated(async {
        let content = noise(37, 10_000);
        let (registry, node, reference) = setup(&content).await;
        let (mirror, tokens) = (Scripted::start().await, Scripted::start().await);
        let count = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&count);
        tokens.script(move |seen| {
            assert!(!seen.headers.contains_key(header::AUTHORIZATION), "{seen:?}");
            assert!(seen.path.contains("scope=repository%3Amirrored%2Fm%3Apull"), "{}", seen.path);
            counted.fetch_add(1, Ordering::SeqCst);
            Some(r#"{"token":"guest"}"#.into_response())
        });
        let challenge = format!(
            "Bearer realm=\"http://{}/token\",service=\"mirror\",scope=\"repository:mirrored/m:pull\"",
            tokens.host()
        );
        let sent = content.clone();
        mirror.script(move |seen| {
            Some(match seen.headers.get(header::AUTHORIZATION) {
                None => (StatusCode::UNAUTHORIZED, [(header::WWW_AUTHENTICATE, challenge.clone())])
                    .into_response(),
                Some(shown) => {
                    assert_eq!(shown, "Bearer guest", "our own credential is for nobody else");
                    sent.clone().into_response()
                }
            })
        });
        let file = Digest::sha256(&content).to_string();
        let elsewhere = format!("http://{}/v2/mirrored/m/blobs/{file}", mirror.host());
        registry.script(move |seen| {
            if !seen.headers.contains_key(header::AUTHORIZATION) {
                return Some(
                    (StatusCode::UNAUTHORIZED, [(header::WWW_AUTHENTICATE, "Basic realm=r")]).into_response(),
                );
            }
            let moved =
                || (StatusCode::TEMPORARY_REDIRECT, [(header::LOCATION, elsewhere.clone())]).into_response();
            seen.path.contains(&file).then(moved)
        });
        let volume = node.volume("pod");
        node.publish_as(&volume, &reference, &[], ("user", "hunter2")).await.expect("published");
        assert_eq!(std::fs::read(volume.target.join("w")).expect("read"), content);
        assert!(count.load(Ordering::SeqCst) > 0);
        node.kubelet.unpublish(&volume).await.expect("unpublished");
    });
}

#[test]
fn regression_a_manifest_that_only_its_header_types_is_read() {
    isolated(async {
        let registry = Scripted::start().await;
        let pusher = registry.pusher("m");
        let layer = Layer::titled("a.txt", "content");
        let (file, config) =
            (pusher.blob(layer.content.clone()).await, pusher.blob("{}".into()).await.expect("pushed"));
        file.expect("pushed");
        let manifest = json!({
            "config": { "mediaType": media_type::OCI_EMPTY, "digest": config.to_string(), "size": 2 },
            "layers": [layer.descriptor()],
        });
        pusher.manifest("v1", media_type::DOCKER_MANIFEST, &manifest.to_string()).await.expect("pushed");
        let node = Node::start(&["--plain-http", &registry.host()]).await;
        for pod in ["first", "second"] {
            let volume = node.volume(pod);
            node.publish(&volume, &registry.reference("m:v1"), &[]).await.expect("published");
            assert_eq!(std::fs::read_to_string(volume.target.join("a.txt")).expect("read"), "content");
            node.kubelet.unpublish(&volume).await.expect("unpublished");
        }
    });
}

#[test]
fn regression_data_in_a_descriptor_needs_no_request() {
    isolated(async {
        let registry = Scripted::start().await;
        let pusher = registry.pusher("m");
        let encode = |bytes: &[u8]| base64::engine::general_purpose::STANDARD.encode(bytes);
        let layer = Layer::titled("a.txt", "embedded");
        let mut described = layer.descriptor();
        described["data"] = json!(encode(b"embedded"));
        let wrong = Layer::titled("b.txt", "asked for");
        pusher.blob(wrong.content.clone()).await.expect("pushed");
        let mut other = wrong.descriptor();
        other["data"] = json!(encode(b"something"));
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": media_type::OCI_MANIFEST,
            "artifactType": "a/b",
            "config": { "mediaType": media_type::OCI_EMPTY, "digest": Digest::sha256(b"{}").to_string(), "size": 2, "data": "e30=" },
            "layers": [described, other],
        })
        .to_string();
        // The manifest is in the index, and the registry has neither it nor the first file.
        let index = json!({
            "schemaVersion": 2,
            "mediaType": media_type::OCI_INDEX,
            "manifests": [{
                "mediaType": media_type::OCI_MANIFEST,
                "digest": Digest::sha256(manifest.as_bytes()).to_string(),
                "size": manifest.len(),
                "data": encode(manifest.as_bytes()),
            }],
        });
        pusher.manifest("v1", media_type::OCI_INDEX, &index.to_string()).await.expect("pushed");
        let node = Node::start(&["--plain-http", &registry.host()]).await;
        let volume = node.volume("pod");
        node.publish(&volume, &registry.reference("m:v1"), &[]).await.expect("published");
        for (name, content) in [("a.txt", "embedded"), ("b.txt", "asked for")] {
            assert_eq!(std::fs::read_to_string(volume.target.join(name)).expect("read"), content);
        }
        let asked: Vec<String> = registry.requests().into_iter().map(|seen| seen.path).collect();
        assert_eq!(asked.len(), 2, "the index, and what the data did not fit: {asked:?}");
        node.kubelet.unpublish(&volume).await.expect("unpublished");
    });
}
