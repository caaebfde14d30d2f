//! Registries that people really have: what they send is odd, not hostile, and other tools work with them.
//! `docs/registries.md` is the table of this.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::http::{Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use ocivol::demo::push::Layer;
use ocivol::demo::registry::{Seen, error};
use ocivol::oci::digest::Digest;
use ocivol::oci::media_type;
use serde_json::json;
use tonic::Code;

use crate::support::answers::{is_blob, is_manifest, setup};
use crate::support::{Node, Scripted, isolated, noise};

const HEAD: Method = Method::HEAD;
/// `user:hunter2`
const BASIC: &str = "Basic dXNlcjpodW50ZXIy";

fn shows(seen: &Seen, value: &str) -> bool {
    seen.headers.get(header::AUTHORIZATION).is_some_and(|shown| shown == value)
}

fn asks_for(challenges: &[&str]) -> Response {
    let mut response = StatusCode::UNAUTHORIZED.into_response();
    for challenge in challenges {
        response.headers_mut().append(header::WWW_AUTHENTICATE, challenge.parse().expect("a value"));
    }
    response
}

/// A registry with one raw layer of `content` as `m:v1`, and the model's reference.
async fn with_model(content: &[u8]) -> (Scripted, String) {
    let registry = Scripted::start().await;
    let layer = Layer::model_file("weight", "w", content.to_vec());
    registry.pusher("m").model("v1", &[layer]).await.expect("pushed");
    let reference = registry.reference("m:v1");
    (registry, reference)
}

/// Pushes a model of one file `w` with this content; returns its descriptor.
async fn pushed(registry: &Scripted, tag: &str, content: &str) -> serde_json::Value {
    let layer = Layer::model_file("weight", "w", content.to_owned());
    let digest = registry.pusher("m").model(tag, &[layer]).await.expect("pushed");
    let url = format!("http://{}/v2/m/manifests/{digest}", registry.host());
    let size = reqwest::get(url).await.expect("got").bytes().await.expect("a body").len();
    json!({ "mediaType": media_type::OCI_MANIFEST, "digest": digest.to_string(), "size": size })
}

#[test]
fn regression_the_digest_in_a_head_is_only_a_hint() {
    isolated(async {
        let registry = Scripted::start().await;
        let mut children = Vec::new();
        for architecture in ["amd64", "arm64"] {
            let mut child = pushed(&registry, architecture, architecture).await;
            child["platform"] = json!({ "os": "linux", "architecture": architecture });
            children.push(child);
        }
        let amd64 = children[0]["digest"].as_str().expect("a digest").to_owned();
        let index = json!({ "schemaVersion": 2, "mediaType": media_type::OCI_INDEX, "manifests": children });
        registry.pusher("m").manifest("v1", media_type::OCI_INDEX, &index.to_string()).await.expect("pushed");
        let node = Node::start(&["--plain-http", &registry.host()]).await;
        let reference = registry.reference("m:v1");
        let arm = [("platform", "linux/arm64"), ("pullPolicy", "Always")];
        let nobodys = Digest::sha256(b"nobody has this").to_string();
        // The child is in the store, so that nothing but the index says that it is the wrong one.
        let volume = node.volume("amd");
        node.publish(&volume, &reference, &[("platform", "linux/amd64")]).await.expect("published");
        for lie in [amd64, nobodys, "sha256:what?".to_owned()] {
            registry.script(move |seen| {
                let asked = seen.method == HEAD && is_manifest(seen);
                asked.then(|| [("docker-content-digest", lie.clone())].into_response())
            });
            for pod in ["first", "second"] {
                let volume = node.volume(pod);
                node.publish(&volume, &reference, &arm).await.expect("published");
                assert_eq!(std::fs::read_to_string(volume.target.join("w")).expect("read"), "arm64");
                node.kubelet.unpublish(&volume).await.expect("unpublished");
            }
        }
        // Nothing changed, and the registry says so: then nothing is fetched.
        registry.unscript();
        registry.forget();
        let volume = node.volume("third");
        node.publish(&volume, &reference, &arm).await.expect("published");
        assert_eq!((registry.count(&HEAD, "/manifests/v1"), registry.count(&Method::GET, "")), (1, 0));
    });
}

#[test]
fn regression_a_head_that_fails_proves_nothing() {
    isolated(async {
        let content = noise(21, 100_000);
        let (registry, reference) = with_model(&content).await;
        // A repository that has the same blob, and may not know it without being asked.
        let layers = [Layer::model_file("weight", "w", content.clone())];
        registry.pusher("other").model("v1", &layers).await.expect("pushed");
        let other = registry.reference("other:v1");
        let signed = format!("http://{}/signed", registry.host());
        for status in [400, 403, 404, 405, 500, 501, 307] {
            let signed = signed.clone();
            registry.script(move |seen| {
                let status = StatusCode::from_u16(status).expect("a status");
                (seen.method == HEAD).then(|| match status {
                    _ if seen.path == "/signed" => StatusCode::FORBIDDEN.into_response(),
                    StatusCode::TEMPORARY_REDIRECT => {
                        (status, [(header::LOCATION, signed.clone())]).into_response()
                    }
                    status => status.into_response(),
                })
            });
            let node = Node::start(&["--plain-http", &registry.host()]).await;
            let login = ("user", "hunter2");
            for (pod, name) in [("one", &reference), ("two", &other)] {
                // Asked with a login, so that no blob is everybody's.
                for pod in [pod.to_owned(), format!("{pod}-again")] {
                    let volume = node.volume(&pod);
                    let published = node.publish_as(&volume, name, &[("pullPolicy", "Always")], login).await;
                    published.unwrap_or_else(|error| panic!("{status} {pod}: {error}"));
                    assert_eq!(std::fs::read(volume.target.join("w")).expect("read"), content);
                    node.kubelet.unpublish(&volume).await.expect("unpublished");
                }
            }
        }
        // What GET says is reported.
        let node = Node::start(&["--plain-http", &registry.host()]).await;
        registry.unscript();
        let volume = node.volume("pod");
        node.publish(&volume, &reference, &[]).await.expect("published");
        node.kubelet.unpublish(&volume).await.expect("unpublished");
        registry.script(|seen| {
            let status =
                if seen.method == HEAD { StatusCode::METHOD_NOT_ALLOWED } else { StatusCode::NOT_FOUND };
            is_manifest(seen).then(|| error(status, "MANIFEST_UNKNOWN"))
        });
        let volume = node.volume("gone");
        let always = [("pullPolicy", "Always")];
        let status = node.publish(&volume, &reference, &always).await.expect_err("gone");
        assert!(status.code() == Code::NotFound && !status.message().contains("405"), "{status}");
        // 429 keeps its meaning.
        registry.script(|seen| {
            let answer = || (StatusCode::TOO_MANY_REQUESTS, [(header::RETRY_AFTER, "600")]).into_response();
            (seen.method == HEAD).then(answer)
        });
        let status = node.publish(&volume, &reference, &always).await.expect_err("limited");
        assert!(status.code() == Code::Unavailable && status.message().contains("429"), "{status}");
    });
}

#[test]
fn regression_a_registry_that_hides_is_asked_how_to_log_in() {
    isolated(async {
        let content = noise(22, 10_000);
        let (registry, reference) = with_model(&content).await;
        type Hide = fn() -> Response;
        let hidden: [(&str, Hide); 4] = [
            ("404", || error(StatusCode::NOT_FOUND, "NAME_UNKNOWN")),
            ("403", || error(StatusCode::FORBIDDEN, "DENIED")),
            ("401 without a challenge", || StatusCode::UNAUTHORIZED.into_response()),
            ("401 with one of no use", || asks_for(&["Negotiate"])),
        ];
        for (name, hide) in hidden {
            for challenges in
                [&["Basic realm=/"][..], &["basic"], &["Negotiate, BASIC realm=x"], &["Negotiate", "Basic"]]
            {
                registry.script(move |seen| {
                    if shows(seen, BASIC) {
                        return None;
                    }
                    Some(if seen.path == "/v2/" { asks_for(challenges) } else { hide() })
                });
                let node = Node::start(&["--plain-http", &registry.host()]).await;
                let volume = node.volume("pod");
                let published = node.publish_as(&volume, &reference, &[], ("user", "hunter2")).await;
                published.unwrap_or_else(|error| panic!("{name} {challenges:?}: {error}"));
                node.kubelet.unpublish(&volume).await.expect("unpublished");
                let status = node
                    .publish_as(&volume, &reference, &[("pullPolicy", "Always")], ("user", "wrong"))
                    .await;
                let status = status.expect_err("a wrong password");
                assert!(
                    status.message().contains("user") || status.code() == Code::NotFound,
                    "{name}: {status}"
                );
                let status = node.publish(&volume, &reference, &[]).await.expect_err("anonymous");
                assert!(
                    !status.message().contains("hunter2") && !status.message().contains("\"user\""),
                    "{status}"
                );
            }
            // Where nobody says how to log in, no credential is shown, and no user is named.
            registry.script(move |seen| {
                Some(if seen.path == "/v2/" { StatusCode::OK.into_response() } else { hide() })
            });
            registry.forget();
            let node = Node::start(&["--plain-http", &registry.host()]).await;
            let volume = node.volume("pod");
            let status =
                node.publish_as(&volume, &reference, &[], ("user", "hunter2")).await.expect_err(name);
            assert!(!status.message().contains("user"), "{name}: {status}");
            let shown = |seen: &Seen| seen.headers.contains_key(header::AUTHORIZATION);
            assert!(!registry.requests().iter().any(shown), "{name}: a credential was shown unasked");
        }
    });
}

#[test]
fn regression_a_head_that_speaks_of_no_blob_proves_no_right_to_it() {
    isolated(async {
        let content = noise(25, 100_000);
        let (registry, reference) = with_model(&content).await;
        // A manifest that names the blob, in a repository that does not have it.
        let layer = Layer::model_file("weight", "w", content.clone());
        let url = format!("http://{}/v2/m/manifests/v1", registry.host());
        let manifest = reqwest::get(url).await.expect("got").text().await.expect("a body");
        registry.pusher("stolen").manifest("v1", media_type::OCI_MANIFEST, &manifest).await.expect("pushed");
        registry.script(|seen| {
            let page = || {
                let body = axum::body::Body::from_stream(futures_util::stream::empty::<
                    Result<bytes::Bytes, std::io::Error>,
                >());
                ([(header::CONTENT_TYPE, "text/html")], body).into_response()
            };
            if !shows(seen, BASIC) {
                return Some(asks_for(&["Basic realm=r"]));
            }
            (seen.method == HEAD && is_blob(seen)).then(page)
        });
        let node = Node::start(&["--plain-http", &registry.host()]).await;
        let login = ("user", "hunter2");
        let volume = node.volume("owner");
        node.publish_as(&volume, &reference, &[], login).await.expect("published");
        let volume = node.volume("thief");
        let stolen = registry.reference("stolen:v1");
        let status = node.publish_as(&volume, &stolen, &[], login).await.expect_err("no right");
        assert_eq!(status.code(), Code::NotFound, "{status}");
        assert!(!volume.target.exists(), "{:?}", layer.annotations);
    });
}

#[test]
fn regression_a_refusal_is_reported_as_what_it_was() {
    isolated(async {
        let content = noise(26, 10_000);
        let (registry, reference) = with_model(&content).await;
        let other = registry.reference("other:v1");
        registry.script(|seen| match seen.headers.get(header::AUTHORIZATION) {
            None => Some(asks_for(&["Basic realm=r"])),
            // The password is right, and this repository is somebody else's.
            Some(_) if seen.path.contains("/other/") => Some(error(StatusCode::FORBIDDEN, "DENIED")),
            Some(_) => None,
        });
        let node = Node::start(&["--plain-http", &registry.host()]).await;
        for _ in 0..3 {
            let volume = node.volume("pod");
            let status =
                node.publish_as(&volume, &other, &[], ("user", "hunter2")).await.expect_err("denied");
            assert_eq!(status.code(), Code::PermissionDenied, "{status}");
            assert!(status.message().contains("denies user"), "{status}");
        }
        // A public registry that answers no HEAD, and a password that is not good any more.
        let tokens = Scripted::start().await;
        tokens.script(|_| Some(StatusCode::UNAUTHORIZED.into_response()));
        let challenge = format!("Bearer realm=\"http://{}/token\"", tokens.host());
        registry.script(move |seen| match &seen.method {
            _ if seen.path == "/v2/" => Some(asks_for(&[&challenge])),
            method if *method == HEAD => Some(StatusCode::NOT_FOUND.into_response()),
            _ => None,
        });
        for pod in ["one", "two"] {
            let volume = node.volume(pod);
            let always = [("pullPolicy", "Always")];
            node.publish_as(&volume, &reference, &always, ("user", "stale")).await.expect("it is public");
            node.kubelet.unpublish(&volume).await.expect("unpublished");
        }
    });
}

#[test]
fn regression_token_answers_of_all_kinds() {
    isolated(async {
        let content = noise(23, 10_000);
        let (registry, reference) = with_model(&content).await;
        for answer in [
            r#"{"token":"good"}"#,
            r#"{"access_token":"good","expires_in":-1}"#,
            r#"{"token":"","access_token":"good","expires_in":"3600"}"#,
            r#"{"token":"good","expires_in":0.5,"issued_at":"yesterday"}"#,
            r#"{"token":"good","expires_in":null}"#,
        ] {
            let tokens = Scripted::start().await;
            tokens.script(move |seen| {
                assert!(seen.headers.get(header::ACCEPT_ENCODING).is_some_and(|value| value == "identity"));
                Some(answer.into_response())
            });
            let challenge = format!("Bearer realm=http://{}/token,service=registry", tokens.host());
            registry.script(move |seen| (!shows(seen, "Bearer good")).then(|| asks_for(&[&challenge])));
            let node = Node::start(&["--plain-http", &registry.host()]).await;
            let volume = node.volume("pod");
            let published = node.publish(&volume, &reference, &[]).await;
            published.unwrap_or_else(|error| panic!("{answer}: {error}"));
            assert_eq!(tokens.requests().len(), 1, "{answer}: it counts for its default lifetime");
            node.kubelet.unpublish(&volume).await.expect("unpublished");
        }
        // What is no token is kept by nobody.
        for (answer, expected) in
            [(r#"{"token":"a\nb"}"#, "no header value"), (r#"{"access_token":""}"#, "without a token")]
        {
            let tokens = Scripted::start().await;
            tokens.script(move |_| Some(answer.into_response()));
            let challenge = format!("Bearer realm=\"http://{}/token\"", tokens.host());
            registry.script(move |_| Some(asks_for(&[&challenge])));
            let node = Node::start(&["--plain-http", &registry.host()]).await;
            for _ in 0..2 {
                let status = node.publish(&node.volume("pod"), &reference, &[]).await.expect_err(expected);
                assert!(status.message().contains(expected), "{status}");
            }
            assert_eq!(tokens.requests().len(), 2, "{answer}");
        }
        // A page is named, not quoted.
        let tokens = Scripted::start().await;
        tokens.script(|_| Some(([(header::CONTENT_TYPE, "text/html")], "<html>").into_response()));
        let challenge = format!("Bearer realm=\"http://{}/token\"", tokens.host());
        registry.script(move |_| Some(asks_for(&[&challenge])));
        let node = Node::start(&["--plain-http", &registry.host()]).await;
        let status = node.publish(&node.volume("pod"), &reference, &[]).await.expect_err("a page");
        assert!(status.message().contains("text/html: a login or proxy page?"), "{status}");
    });
}

#[test]
fn regression_a_cached_token_that_is_refused_is_fetched_anew_once() {
    isolated(async {
        let content = noise(24, 10_000);
        for refusal in [StatusCode::BAD_REQUEST, StatusCode::UNAUTHORIZED, StatusCode::FORBIDDEN] {
            let (registry, node, reference) = setup(&content).await;
            let tokens = Scripted::start().await;
            let number = Arc::new(AtomicUsize::new(0));
            let count = Arc::clone(&number);
            tokens.script(move |_| {
                let number = count.fetch_add(1, Ordering::SeqCst) + 1;
                Some(format!(r#"{{"token":"t{number}","expires_in":3600}}"#).into_response())
            });
            let challenge = format!("Bearer realm=\"http://{}/token\"", tokens.host());
            let (wanted, asks) = (Arc::clone(&number), challenge.clone());
            // Every token is good for the manifest that it was fetched for, and for nothing else.
            registry.script(move |seen| {
                let current = format!("Bearer t{}", wanted.load(Ordering::SeqCst));
                let spent = is_blob(seen) && shows(seen, "Bearer t1");
                match seen.headers.get(header::AUTHORIZATION) {
                    None => Some(asks_for(&[&asks])),
                    Some(_) if spent => Some(refusal.into_response()),
                    Some(shown) => (*shown != *current).then(|| refusal.into_response()),
                }
            });
            let volume = node.volume("pod");
            let published = node.publish(&volume, &reference, &[]).await;
            published.unwrap_or_else(|error| panic!("{refusal}: {error}"));
            assert_eq!(number.load(Ordering::SeqCst), 2, "{refusal}");
            node.kubelet.unpublish(&volume).await.expect("unpublished");

            // Once: a registry that refuses whatever comes is not asked without end.
            registry.script(move |seen| {
                Some(if seen.headers.contains_key(header::AUTHORIZATION) {
                    refusal.into_response()
                } else {
                    asks_for(&[&challenge])
                })
            });
            registry.forget();
            node.publish(&volume, &registry.reference("m:v2"), &[]).await.expect_err("refused");
            let asked = registry.requests().len();
            // A 400 may pass, and is asked for again, as any status that makes no sense.
            let most = if refusal == StatusCode::BAD_REQUEST { 16 } else { 4 };
            assert!(asked <= most, "{refusal}: {asked} requests");
        }
    });
}
