//! Mirrors, as containerd's `hosts.toml` names them: who is asked for what, who is believed, and whose right it is.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use ocivol::demo::push::Layer;
use ocivol::demo::registry::Seen;
use ocivol::oci::digest::Digest;
use tonic::{Code, Status};

use crate::support::answers::is_blob;
use crate::support::debian_registry::{DebianRegistry, LOGIN};
use crate::support::node::mount_at;
use crate::support::tls::CertificateAuthority;
use crate::support::wire::Secure;
use crate::support::{Node, Scripted, eventually, isolated, noise};

/// Where the file for a registry of this machine is.
fn own(host: &str) -> String {
    format!("{}_", host.replace(':', "_"))
}

/// A file with one mirror.
fn file(mirror: &str, capabilities: &str) -> String {
    format!("[host.\"http://{mirror}\"]\n  capabilities = [{capabilities}]\n")
}

const ALL: &str = "\"pull\", \"resolve\"";

/// A registry without TLS, a mirror that has the same, and a node that knows both.
async fn pair(content: &[u8], capabilities: &str, flags: &[&str]) -> (Scripted, Scripted, Node) {
    let (registry, mirror) =
        (Scripted::with_model(content.to_vec()).await, Scripted::with_model(content.to_vec()).await);
    let mut node = Node::prepare(&[&["--plain-http", &registry.host()], flags].concat());
    node.write_hosts(&own(&registry.host()), "hosts.toml", &file(&mirror.host(), capabilities));
    node.run().await;
    (registry, mirror, node)
}

async fn publishes(node: &Node, pod: &str, reference: &str, content: &[u8]) {
    let volume = node.volume(pod);
    node.publish(&volume, reference, &[]).await.expect("published");
    assert!(std::fs::read(volume.target.join("w")).expect("read") == content);
}

/// Publishes without credentials, which must fail and leave nothing.
async fn refused(node: &Node, pod: &str, reference: &str) -> Status {
    let volume = node.volume(pod);
    let status = node.publish(&volume, reference, &[]).await.expect_err(reference);
    assert!(mount_at(&volume.target).is_none(), "something is mounted");
    status
}

/// Bytes are asked for.
fn gets_content(seen: &Seen) -> bool {
    seen.method == Method::GET && seen.path.contains("/blobs/")
}

fn unauthorized() -> Response {
    (StatusCode::UNAUTHORIZED, [(header::WWW_AUTHENTICATE, "Basic realm=\"r\"")]).into_response()
}

/// What Basic credentials of `alice` look like.
fn is_alice(headers: &HeaderMap) -> bool {
    headers.get(header::AUTHORIZATION).is_some_and(|value| *value == "Basic YWxpY2U6d29uZGVybGFuZA==")
}

#[test]
fn content_comes_from_the_mirror_and_the_right_from_the_registry() {
    isolated(async {
        let content = noise(1, 9 << 20);
        let (registry, mirror, node) = pair(&content, ALL, &[]).await;
        publishes(&node, "pod", &registry.reference("m:v1"), &content).await;
        let namespace = format!("ns={}", registry.host().replace(':', "%3A"));
        let asked = mirror.requests();
        assert!(
            asked.iter().any(gets_content) && asked.iter().all(|seen| seen.path.contains(&namespace)),
            "{asked:?}"
        );
        let seen = registry.requests();
        assert!(!seen.is_empty(), "it says who may read");
        assert!(
            seen.iter().all(|seen| seen.method == Method::HEAD && !seen.path.contains("ns=")),
            "{seen:?}"
        );
    });
}

#[test]
fn a_mirror_without_resolve_is_not_asked_what_a_tag_is() {
    isolated(async {
        let content = noise(1, 100_000);
        let (registry, mirror, node) = pair(&content, "\"pull\"", &[]).await;
        // The mirror's tag is an old one.
        mirror.pusher("m").model("v1", &[Layer::model_file("weight", "w", "old")]).await.expect("pushed");
        publishes(&node, "pod", &registry.reference("m:v1"), &content).await;
        assert_eq!(
            mirror.count(&Method::GET, "manifests/v1") + mirror.count(&Method::HEAD, "manifests/v1"),
            0
        );
        assert!(mirror.requests().iter().any(gets_content) && !registry.requests().iter().any(gets_content));
    });
}

#[test]
fn a_mirror_that_lies_or_has_nothing_is_gone_around() {
    isolated(async {
        let content = noise(1, 9 << 20);
        let (registry, mirror, node) = pair(&content, ALL, &[]).await;
        let wrong = noise(2, content.len());
        mirror.script(move |seen| gets_content(seen).then(|| wrong.clone().into_response()));
        publishes(&node, "pod", &registry.reference("m:v1"), &content).await;
        assert!(mirror.requests().iter().any(gets_content), "it was asked");
        assert!(node.logged().contains("a mirror sends other bytes than the digest names"));
        // It does not have this one; and a mirror is asked for it once.
        let other = noise(3, 5 << 20);
        registry
            .pusher("other")
            .model("v1", &[Layer::model_file("weight", "w", other.clone())])
            .await
            .expect("pushed");
        mirror.unscript();
        publishes(&node, "other", &registry.reference("other:v1"), &other).await;
    });
}

#[test]
fn t25_wrong_bytes_of_a_mirror_that_is_alone_are_refused() {
    isolated(async {
        let content = noise(1, 100_000);
        let (registry, mirror, node) = pair(&content, ALL, &["--authoritative-mirrors", "*"]).await;
        let wrong = noise(2, content.len());
        mirror.script(move |seen| gets_content(seen).then(|| wrong.clone().into_response()));
        registry.script(|seen| is_blob(seen).then(|| StatusCode::NOT_FOUND.into_response()));
        let status = refused(&node, "pod", &registry.reference("m:v1")).await;
        assert!(matches!(status.code(), Code::NotFound | Code::FailedPrecondition), "{status}");
    });
}

#[test]
fn a_mirror_that_does_not_answer_is_raced_by_the_registry() {
    isolated(async {
        let content = noise(1, 9 << 20);
        let (registry, mirror, node) = pair(&content, "\"pull\"", &["--stall-timeout", "600"]).await;
        mirror.script(|seen| {
            gets_content(seen).then(|| {
                let never = futures_util::stream::pending::<Result<bytes::Bytes, std::io::Error>>();
                Response::new(axum::body::Body::from_stream(never))
            })
        });
        // Its answers do not even begin.
        let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let silent_host = silent.local_addr().expect("bound").to_string();
        node.write_hosts(&own(&registry.host()), "hosts.toml", &file(&silent_host, "\"pull\""));
        let mut node = node;
        node.kill();
        node.run().await;
        let began = std::time::Instant::now();
        publishes(&node, "pod", &registry.reference("m:v1"), &content).await;
        assert!(began.elapsed().as_secs() < 60, "nobody waited for the mirror");
        drop(silent);
    });
}

#[test]
fn t39_a_mirror_that_serves_everybody_gives_nobody_a_right() {
    isolated(async {
        let content = noise(1, 5 << 20);
        let (registry, mirror, node) = pair(&content, ALL, &[]).await;
        registry.script(|seen| (!is_alice(&seen.headers)).then(unauthorized));
        let reference = registry.reference("m:v1");
        let status = refused(&node, "stranger", &reference).await;
        assert_eq!(status.code(), Code::Unauthenticated, "{status}");
        let volume = node.volume("alice");
        node.publish_as(&volume, &reference, &[], LOGIN).await.expect("published");
        assert!(mirror.requests().iter().any(gets_content) && !registry.requests().iter().any(gets_content));
        // It is here now, and still not the stranger's.
        let status = refused(&node, "again", &reference).await;
        assert_eq!(status.code(), Code::Unauthenticated, "{status}");
        // A password is not for a mirror.
        assert!(mirror.requests().iter().all(|seen| !seen.headers.contains_key(header::AUTHORIZATION)));
        // If the operator says that it is as good as the registry, it is.
        drop(node);
        let mut node = Node::prepare(&["--authoritative-mirrors", &mirror.host()]);
        node.write_hosts(&own(&registry.host()), "hosts.toml", &file(&mirror.host(), ALL));
        node.run().await;
        registry.forget();
        publishes(&node, "stranger", &reference, &content).await;
        assert_eq!(registry.requests().len(), 0, "nobody asked it");
    });
}

#[test]
fn t39_a_mirror_for_all_registries_does_not_serve_one_that_may_be_anybodys() {
    isolated(async {
        let secret = noise(1, 5 << 20);
        // What a mirror has that looks at digests alone, as peers in a cluster do.
        let mirror = Scripted::with_model(secret.clone()).await;
        // Another's registry names the same content, and says that it has it.
        let liar = Scripted::with_model(secret.clone()).await;
        liar.script(|seen| {
            (is_blob(seen) && seen.method == Method::GET).then(|| StatusCode::NOT_FOUND.into_response())
        });
        let mut node = Node::prepare(&["--plain-http", &liar.host()]);
        node.write_hosts("_default", "hosts.toml", &file(&mirror.host(), ALL));
        node.run().await;
        let status = refused(&node, "pod", &liar.reference("m:v1")).await;
        assert_eq!(status.code(), Code::NotFound, "{status}");
        assert_eq!(mirror.requests().len(), 0, "nobody asked it");
    });
}

#[test]
fn without_the_registry_a_mirror_needs_the_operators_word() {
    isolated(async {
        let content = noise(1, 100_000);
        let (registry, mirror, node) = pair(&content, ALL, &["--stall-timeout", "1"]).await;
        let reference = registry.reference("m:v1");
        drop(registry);
        let status = refused(&node, "pod", &reference).await;
        assert_eq!(status.code(), Code::Unavailable, "{status}");
        for word in [mirror.host().as_str(), "registry.authoritativeMirrors"] {
            assert!(status.message().contains(word), "no {word:?} in {status}");
        }
        drop(node);
        let mut node = Node::prepare(&["--authoritative-mirrors", "*"]);
        let host = reference.split('/').next().expect("a host");
        node.write_hosts(&own(host), "hosts.toml", &file(&mirror.host(), ALL));
        node.run().await;
        publishes(&node, "pod", &reference, &content).await;
    });
}

#[test]
fn files_are_read_again_when_they_change_and_name_themselves_when_they_are_wrong() {
    isolated(async {
        let content = noise(1, 100_000);
        let (registry, mirror, node) = pair(&content, ALL, &[]).await;
        let directory = own(&registry.host());
        node.write_hosts(&directory, "hosts.toml", "[host.\"http://x\"]\ncapabilities = [\"fly\"]\n");
        let status = refused(&node, "pod", &registry.reference("m:v1")).await;
        assert_eq!(status.code(), Code::Unavailable);
        assert!(status.message().contains("hosts.toml cannot be used: capability \"fly\""), "{status}");
        node.write_hosts(&directory, "hosts.toml", &file(&mirror.host(), ALL));
        // kubelet asks again, too.
        let volume = node.volume("again");
        let (mut published, reference) = (false, registry.reference("m:v1"));
        for _ in 0..100 {
            published = node.publish(&volume, &reference, &[]).await.is_ok();
            if published {
                break;
            }
            tokio::time::sleep(std::time::Duration::from_millis(200)).await;
        }
        assert!(published && mirror.requests().iter().any(gets_content));
    });
}

#[test]
fn mirrors_have_authorities_clients_and_headers_of_their_own() {
    isolated(async {
        let content = noise(1, 100_000);
        let (registry, backend) =
            (Scripted::with_model(content.clone()).await, Scripted::with_model(content.clone()).await);
        let (servers, clients) = (CertificateAuthority::new(), CertificateAuthority::named("clients"));
        let mirror = Secure::asking(&servers.sign("IP:127.0.0.1"), &clients, &backend.host()).await;
        let client = clients.sign("DNS:node-1");
        let mut node = Node::prepare(&["--plain-http", &registry.host()]);
        let directory = own(&registry.host());
        let text = |more: &str| format!("[host.\"https://{}\"]\n{more}", mirror.host());
        let headers = format!("[host.\"https://{}\".header]\n  x-node = \"one\"\n", mirror.host());
        node.write_hosts(&directory, "ca.crt", &std::fs::read_to_string(servers.bundle()).expect("PEM"));
        node.write_hosts(&directory, "client.cert", &client.certificate_pem());
        node.write_hosts(&directory, "client.key", &client.key_pem());
        let pairs = "  client = [[\"client.cert\", \"client.key\"]]\n";
        let whole = text(&format!("  ca = \"ca.crt\"\n{pairs}{headers}"));
        node.write_hosts(&directory, "hosts.toml", &whole);
        node.run().await;
        publishes(&node, "pod", &registry.reference("m:v1"), &content).await;
        let seen = backend.requests();
        assert!(seen.iter().any(gets_content) && !registry.requests().iter().any(gets_content), "{seen:?}");
        assert!(
            seen.iter().all(|seen| seen.headers.get("x-node").is_some_and(|value| value == "one")),
            "{seen:?}"
        );
        assert!(registry.requests().iter().all(|seen| !seen.headers.contains_key("x-node")));
        // Without any of it the mirror cannot be asked, and the registry is.
        for (number, wrong) in [text(pairs), text("  ca = \"ca.crt\"\n"), text("")].into_iter().enumerate() {
            drop(node);
            node = Node::prepare(&["--plain-http", &registry.host()]);
            node.write_hosts(&directory, "ca.crt", &std::fs::read_to_string(servers.bundle()).expect("PEM"));
            node.write_hosts(&directory, "client.cert", &client.certificate_pem());
            node.write_hosts(&directory, "client.key", &client.key_pem());
            node.write_hosts(&directory, "hosts.toml", &wrong);
            node.run().await;
            backend.forget();
            publishes(&node, &format!("pod-{number}"), &registry.reference("m:v1"), &content).await;
            assert_eq!(backend.requests().len(), 0, "{wrong}");
        }
        // Nobody checks who it is, where the operator says so.
        drop(node);
        node = Node::prepare(&["--plain-http", &registry.host()]);
        node.write_hosts(&directory, "client.cert", &client.certificate_pem());
        node.write_hosts(&directory, "client.key", &client.key_pem());
        node.write_hosts(&directory, "hosts.toml", &text(&format!("  skip_verify = true\n{pairs}")));
        node.run().await;
        publishes(&node, "last", &registry.reference("m:v1"), &content).await;
        assert!(backend.requests().iter().any(gets_content));
    });
}

#[test]
fn a_registry_has_an_authority_and_a_client_certificate_in_dockers_files() {
    isolated(async {
        let content = noise(1, 100_000);
        let backend = Scripted::with_model(content.clone()).await;
        let (servers, clients) = (CertificateAuthority::new(), CertificateAuthority::named("clients"));
        let registry = Secure::asking(&servers.sign("IP:127.0.0.1"), &clients, &backend.host()).await;
        let client = clients.sign("DNS:node-1");
        let mut node = Node::prepare(&[]);
        let directory = own(&registry.host());
        node.write_hosts(&directory, "ca.crt", &std::fs::read_to_string(servers.bundle()).expect("PEM"));
        node.write_hosts(&directory, "client.cert", &client.certificate_pem());
        node.write_hosts(&directory, "client.key", &client.key_pem());
        node.run().await;
        publishes(&node, "pod", &registry.reference("m:v1"), &content).await;
    });
}

#[test]
fn a_real_pull_through_cache_is_filled_and_then_serves_without_its_registry() {
    isolated(async {
        let registry = DebianRegistry::start().await;
        let content = noise(1, 9 << 20);
        let layer = Layer::model_file("weight", "w", content.clone());
        registry.pusher("team/m").model("v1", &[layer]).await.expect("pushed");
        let cache = DebianRegistry::cache_of(&registry).await;
        let (reference, directory) = (registry.reference("team/m:v1"), own(&registry.host()));
        let mut node = Node::prepare(&["--plain-http", &registry.host()]);
        node.write_hosts(&directory, "hosts.toml", &file(&cache.host(), ALL));
        node.run().await;
        publishes(&node, "pod", &reference, &content).await;
        let digest = Digest::sha256(&content);
        eventually("the cache has it", || cache.holds("team/m", &digest)).await;
        drop((node, registry));
        let mut node = Node::prepare(&["--authoritative-mirrors", &cache.host()]);
        node.write_hosts(&directory, "hosts.toml", &file(&cache.host(), ALL));
        node.run().await;
        publishes(&node, "pod", &reference, &content).await;
    });
}

#[test]
fn a_slow_mirror_and_a_fast_one_share_a_large_model() {
    isolated(async {
        let content = noise(1, 40 << 20);
        let (registry, slow, fast) = (
            Scripted::with_model(content.clone()).await,
            Scripted::with_model(content.clone()).await,
            Scripted::with_model(content.clone()).await,
        );
        // The slow one has it no more after the first request for content.
        let was_asked = Arc::new(AtomicBool::new(false));
        let asked = Arc::clone(&was_asked);
        slow.script(move |seen| {
            (gets_content(seen) && asked.swap(true, Ordering::SeqCst))
                .then(|| StatusCode::NOT_FOUND.into_response())
        });
        let mut node = Node::prepare(&["--plain-http", &registry.host()]);
        let text = format!("{}{}", file(&slow.host(), ALL), file(&fast.host(), ALL));
        node.write_hosts(&own(&registry.host()), "hosts.toml", &text);
        node.run().await;
        publishes(&node, "pod", &registry.reference("m:v1"), &content).await;
        assert!(!registry.requests().iter().any(gets_content));
        assert!(was_asked.load(Ordering::SeqCst));
    });
}

#[test]
fn t28_what_a_mirror_asks_for_a_pods_credential_is_not_shown_to() {
    isolated(async {
        let content = noise(1, 100_000);
        let registry = Scripted::with_model(content.clone()).await;
        registry.script(|seen| (!is_alice(&seen.headers)).then(unauthorized));
        // In the domain of the registry, and without TLS.
        let tokens = Scripted::start().await;
        tokens.script(|_| Some(r#"{"token":"t"}"#.into_response()));
        let realm = format!(
            "Bearer realm=\"http://{}/token\",scope=\"repository:victim/secret:pull,push\"",
            tokens.host()
        );
        let mirror = Scripted::start_with_many_names().await;
        mirror.script(move |_| {
            Some((StatusCode::UNAUTHORIZED, [(header::WWW_AUTHENTICATE, realm.clone())]).into_response())
        });
        let mut node = Node::prepare(&["--plain-http", &registry.host()]);
        let host = &mirror.hosts(2)[1];
        node.write_hosts(&own(&registry.host()), "hosts.toml", &file(host, ALL));
        node.run().await;
        let volume = node.volume("alice");
        node.publish_as(&volume, &registry.reference("m:v1"), &[], LOGIN).await.expect("published");
        let asked = tokens.requests();
        assert!(!asked.is_empty(), "as anybody it may ask");
        assert!(asked.iter().all(|seen| !seen.headers.contains_key(header::AUTHORIZATION)), "{asked:?}");
    });
}

#[test]
fn what_is_for_all_registries_makes_no_pod_somebody_at_one_that_it_names() {
    isolated(async {
        let registry = Scripted::with_model(noise(1, 100_000)).await;
        registry.script(|seen| (!is_alice(&seen.headers)).then(unauthorized));
        let mut node = Node::prepare(&["--plain-http", &registry.host()]);
        // As a mirror of others, with its own password.
        let text = format!(
            "{}[host.\"http://{}\".header]\n  Authorization = \"Basic YWxpY2U6d29uZGVybGFuZA==\"\n",
            file(&registry.host(), ALL),
            registry.host()
        );
        node.write_hosts("_default", "hosts.toml", &text);
        node.run().await;
        let status = refused(&node, "pod", &registry.reference("m:v1")).await;
        assert_eq!(status.code(), Code::Unauthenticated, "{status}");
        assert!(registry.requests().iter().all(|seen| !is_alice(&seen.headers)));
    });
}

#[test]
fn a_mirror_that_breaks_off_is_not_the_only_one_that_is_asked() {
    isolated(async {
        let content = noise(1, 9 << 20);
        let (registry, mirror, node) = pair(&content, ALL, &["--stall-timeout", "1"]).await;
        let part = content.clone();
        // Each time a little comes, and then nothing more.
        mirror.script(move |seen| {
            gets_content(seen).then(|| crate::support::answers::broken(&part[..1000], part.len(), true))
        });
        publishes(&node, "pod", &registry.reference("m:v1"), &content).await;
        assert!(mirror.requests().iter().filter(|seen| gets_content(seen)).count() < 3);
    });
}
