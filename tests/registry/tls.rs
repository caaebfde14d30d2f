//! Registries that speak TLS: whom the plugin believes, and what it says to those whom it does not.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use ocivol::demo::push::Layer;
use ocivol::oci::digest::Digest;
use tonic::{Code, Status};

use crate::support::answers::is_blob;
use crate::support::node::{BINARY, mount_at};
use crate::support::tls::{CertificateAuthority, Identity};
use crate::support::wire::{Line, Secure};
use crate::support::{Node, Scripted, isolated, noise};

const HERE: &str = "IP:127.0.0.1";
const LOGIN: (&str, &str) = ("user", "hunter2");
/// The same as a Basic credential has it.
const ENCODED: &str = "dXNlcjpodW50ZXIy";

/// A registry without TLS, which has a model `m:v1` of one file `w`.
async fn registry_with(content: &[u8]) -> Scripted {
    let registry = Scripted::start().await;
    let layer = Layer::model_file("weight", "w", content.to_vec());
    registry.pusher("m").model("v1", &[layer]).await.expect("pushed");
    registry
}

/// A node that trusts this authority, and no other.
async fn node_that_trusts(authority: &CertificateAuthority, flags: &[&str]) -> Node {
    let mut node = Node::prepare(flags);
    node.trust(&authority.bundle());
    node.run().await;
    node
}

/// Publishes with credentials, which must fail and leave nothing.
async fn refused(node: &Node, reference: &str) -> Status {
    let volume = node.volume("pod");
    let status = node.publish_as(&volume, reference, &[], LOGIN).await.expect_err(reference);
    assert!(mount_at(&volume.target).is_none(), "something is mounted");
    status
}

fn assert_says(status: &Status, words: &[&str]) {
    for word in words {
        assert!(status.message().contains(word), "no {word:?} in {status}");
    }
}

fn asks_for_a_password() -> Response {
    (StatusCode::UNAUTHORIZED, [(header::WWW_AUTHENTICATE, "Basic realm=\"r\"")]).into_response()
}

fn redirect(to: &str) -> Response {
    (StatusCode::TEMPORARY_REDIRECT, [(header::LOCATION, to)]).into_response()
}

/// Whether anything in these headers is the user's secret, or a token that it was worth.
fn has_secret(headers: &HeaderMap) -> bool {
    let secrets = ["hunter2", ENCODED, "a-token"];
    headers.contains_key(header::AUTHORIZATION)
        || headers.values().any(|value| {
            let text = String::from_utf8_lossy(value.as_bytes());
            secrets.iter().any(|secret| text.contains(secret))
        })
}

/// Fails when anybody could read something in what a client sent: TLS begins with a handshake record, RFC 8446, 5.1.
fn assert_nothing_is_in_the_clear(heard: &[Vec<u8>]) {
    for bytes in heard {
        let text = String::from_utf8_lossy(bytes);
        assert_eq!(bytes.first(), Some(&0x16), "{text}");
        for word in ["GET ", "HEAD ", "HTTP/1.1", "uthorization", ENCODED] {
            assert!(!text.contains(word), "{word}: {text}");
        }
    }
}

/// Whether a file of this content is in the store, or a download of it.
fn is_in_store(node: &Node, content: &[u8]) -> bool {
    let hex = Digest::sha256(content).hex().to_owned();
    let in_blobs = node.root.join("v1/blobs/sha256").join(&hex).exists();
    let ingest = std::fs::read_dir(node.root.join("v1/ingest")).expect("a directory");
    let bytes = |path: &Path| std::fs::metadata(path.join("data")).map_or(0, |data| data.len());
    in_blobs || ingest.flatten().any(|entry| bytes(&entry.path()) > 0)
}

#[test]
fn an_authority_of_ones_own_is_believed_when_its_bundle_is_given() {
    isolated(async {
        let content = noise(1, 1_000_000);
        let registry = registry_with(&content).await;
        let authority = CertificateAuthority::new();
        let secure = Secure::start(&authority.sign(HERE), &registry.host()).await;
        registry.script(|seen| (!seen.headers.contains_key(header::AUTHORIZATION)).then(asks_for_a_password));
        let node = node_that_trusts(&authority, &[]).await;
        let (volume, reference) = (node.volume("pod"), secure.reference("m:v1"));
        node.publish_as(&volume, &reference, &[], LOGIN).await.expect("published");
        assert!(std::fs::read(volume.target.join("w")).expect("read") == content);
        assert!(secure.accepted() > 0, "it went over TLS");
        node.kubelet.unpublish(&volume).await.expect("unpublished");

        // On the command line the bundle is named by the same variable.
        registry.unscript();
        let store = tempfile::tempdir().expect("a directory");
        let pull = async |bundle: Option<&Path>| {
            let mut command = Command::new(BINARY);
            command.args(["--root".as_ref(), store.path().as_os_str()]).args(["pull", &reference]);
            command.env("DOCKER_CONFIG", "/nonexistent").env_remove("SSL_CERT_FILE");
            command.envs(bundle.map(|bundle| ("SSL_CERT_FILE", bundle)));
            // The registry is served meanwhile.
            tokio::task::spawn_blocking(move || command.output().expect("the binary starts"))
                .await
                .expect("no panic")
        };
        let output = pull(None).await;
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && told.contains("SSL_CERT_FILE"), "{told}");
        let output = pull(Some(&authority.bundle())).await;
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    });
}

#[test]
fn a_certificate_that_proves_nothing_is_refused_before_anything_is_said() {
    isolated(async {
        let registry = registry_with(b"content").await;
        let authority = CertificateAuthority::new();
        let (stranger, impostor) = (CertificateAuthority::named("a stranger"), CertificateAuthority::new());
        let table: [(&str, Identity, bool, &str); 7] = [
            // Those whom the image trusts do not know this one.
            ("self-signed", Identity::self_signed(HERE), false, "invalid peer certificate"),
            ("self-signed, beside a bundle", Identity::self_signed(HERE), true, "invalid peer certificate"),
            ("of another authority", stranger.sign(HERE), true, "UnknownIssuer"),
            ("of another authority of the same name", impostor.sign(HERE), true, "BadSignature"),
            ("of another name", authority.sign("DNS:registry.example"), true, "not valid for name"),
            (
                "expired",
                authority.sign_for(HERE, "20200101000000Z", "20200102000000Z"),
                true,
                "certificate expired",
            ),
            (
                "of the future",
                authority.sign_for(HERE, "21200101000000Z", "21200102000000Z"),
                true,
                "certificate not valid yet",
            ),
        ];
        for (name, identity, has_bundle, reason) in table {
            let secure = Secure::start(&identity, &registry.host()).await;
            let node =
                if has_bundle { node_that_trusts(&authority, &[]).await } else { Node::start(&[]).await };
            let status = refused(&node, &secure.reference("m:v1")).await;
            assert_eq!(status.code(), Code::Unavailable, "{name}: {status}");
            let whose = format!("cannot check the certificate of {}", secure.host());
            assert_says(&status, &[&whose, reason, "registry.caConfigMap", "SSL_CERT_FILE"]);
            assert!(!status.message().contains("DNS"), "{name}: {status}");
            // It is no different a moment later.
            assert_eq!((secure.connections(), secure.accepted()), (1, 0), "{name}");
        }
        assert!(registry.requests().is_empty(), "{:?}", registry.requests());
    });
}

#[test]
fn a_certificate_is_checked_wherever_a_registry_sends_one() {
    isolated(async {
        let content = noise(2, 1_000_000);
        let registry = registry_with(&content).await;
        let authority = CertificateAuthority::new();
        let secure = Secure::start(&authority.sign(HERE), &registry.host()).await;
        // Whoever this is has the right bytes, and gives tokens to everybody.
        let impostor = Scripted::start().await;
        let sent = content.clone();
        impostor.script(move |seen| {
            Some(match seen.path.as_str() {
                path if path.starts_with("/token") => r#"{"token":"a-token"}"#.into_response(),
                _ => sent.clone().into_response(),
            })
        });
        let elsewhere = Secure::start(&Identity::self_signed(HERE), &impostor.host()).await;
        let whose = format!("cannot check the certificate of {}", elsewhere.host());
        let (blob, realm) = (
            format!("https://{}/blob", elsewhere.host()),
            format!("Bearer realm=\"https://{}/token\"", elsewhere.host()),
        );
        let node = node_that_trusts(&authority, &[]).await;
        registry.script(move |seen| is_blob(seen).then(|| redirect(&blob)));
        let status = refused(&node, &secure.reference("m:v1")).await;
        assert_says(&status, &[&whose]);
        registry.script(move |_| {
            Some((StatusCode::UNAUTHORIZED, [(header::WWW_AUTHENTICATE, realm.clone())]).into_response())
        });
        let status = refused(&node, &secure.reference("m:v2")).await;
        assert_says(&status, &[&whose]);
        assert!(elsewhere.connections() >= 2 && elsewhere.accepted() == 0);
        assert!(impostor.requests().is_empty(), "{:?}", impostor.requests());
        assert!(!is_in_store(&node, &content));
    });
}

#[test]
fn t26_a_redirect_that_leaves_tls_is_refused() {
    isolated(async {
        let content = noise(3, 1_000_000);
        let registry = registry_with(&content).await;
        let authority = CertificateAuthority::new();
        let secure = Secure::start(&authority.sign(HERE), &registry.host()).await;
        // It has the right bytes: who followed would mount them.
        let plain = Scripted::start().await;
        let sent = content.clone();
        plain.script(move |_| Some(sent.clone().into_response()));
        let unsafe_place = format!("http://{}/blob", plain.host());
        let between = Scripted::start().await;
        let onwards = unsafe_place.clone();
        between.script(move |_| Some(redirect(&onwards)));
        let through = Secure::start(&authority.sign(HERE), &between.host()).await;
        let safe_place = format!("https://{}/blob", through.host());
        // That the place may be spoken to without TLS is said for references, not for redirects.
        let allowed = ["--plain-http", &plain.host()];
        for (place, flags) in [(&unsafe_place, &[][..]), (&unsafe_place, &allowed), (&safe_place, &allowed)] {
            let to = place.clone();
            registry.script(move |seen| is_blob(seen).then(|| redirect(&to)));
            let node = node_that_trusts(&authority, flags).await;
            let status = refused(&node, &secure.reference("m:v1")).await;
            assert_eq!(status.code(), Code::FailedPrecondition, "{status}");
            assert_says(&status, &[&secure.host(), "redirects from https to http"]);
            assert!(plain.requests().is_empty(), "{:?}", plain.requests());
            assert!(!is_in_store(&node, &content));
        }
        assert!(!between.requests().is_empty(), "the way over a host with TLS was taken");
    });
}

#[test]
fn nobody_is_spoken_to_without_tls_who_is_not_named_for_that() {
    isolated(async {
        let registry = registry_with(b"content").await;
        registry.script(|seen| (!seen.headers.contains_key(header::AUTHORIZATION)).then(asks_for_a_password));
        // At its own port.
        let line = Line::start(&registry.host()).await;
        let node = Node::start(&[]).await;
        let status = refused(&node, &line.reference("m:v1")).await;
        assert_says(&status, &[&format!("{} does not speak TLS", line.host()), "registry.plainHTTP"]);
        assert!(!line.heard().is_empty(), "it was asked");
        assert_nothing_is_in_the_clear(&line.heard());

        // At the port of HTTP, where some clients look for registries of this machine when nothing is at that of HTTPS.
        let plain = Line::start_at("127.0.0.1:80", &registry.host()).await;
        let status = refused(&node, "127.0.0.1/m:v1").await;
        assert_says(&status, &["cannot reach 127.0.0.1: "]);
        let secure = Secure::start_at("127.0.0.1:443", &Identity::self_signed(HERE), &registry.host()).await;
        let status = refused(&node, "127.0.0.1/m:v1").await;
        assert_says(&status, &["cannot check the certificate of 127.0.0.1"]);
        assert!(secure.connections() > 0 && plain.heard().is_empty(), "{:?}", plain.heard());
        assert!(registry.requests().is_empty(), "{:?}", registry.requests());

        // For this very registry it is fine when it is said.
        drop(node);
        let named = Node::start(&["--plain-http", &line.host()]).await;
        let volume = named.volume("pod");
        named.publish_as(&volume, &line.reference("m:v1"), &[], LOGIN).await.expect("published");
    });
}

#[test]
fn t28_a_registry_with_tls_has_no_token_server_without() {
    isolated(async {
        let registry = registry_with(b"content").await;
        let authority = CertificateAuthority::new();
        let secure = Secure::start(&authority.sign(HERE), &registry.host()).await;
        let tokens = Scripted::start().await;
        tokens.script(|_| Some(r#"{"token":"a-token"}"#.into_response()));
        let line = Line::start(&tokens.host()).await;
        let realm = format!("Bearer realm=\"http://{}/token\"", line.host());
        registry.script(move |_| {
            Some((StatusCode::UNAUTHORIZED, [(header::WWW_AUTHENTICATE, realm.clone())]).into_response())
        });
        let node = node_that_trusts(&authority, &["--plain-http", &line.host()]).await;
        let status = refused(&node, &secure.reference("m:v1")).await;
        assert_eq!(status.code(), Code::FailedPrecondition, "{status}");
        assert_says(&status, &[&secure.host(), "https is needed"]);
        assert!(line.heard().is_empty(), "{:?}", line.heard());
        assert!(!registry.requests().iter().any(|seen| has_secret(&seen.headers)), "a secret was shown");
    });
}

#[test]
fn t26_redirects_between_hosts_with_tls_carry_no_credentials() {
    isolated(async {
        let content = noise(4, 1_000_000);
        let registry = registry_with(&content).await;
        let authority = CertificateAuthority::new();
        let secure = Secure::start(&authority.sign(HERE), &registry.host()).await;
        let (tokens, storage) = (Scripted::start().await, Scripted::start().await);
        tokens.script(|_| Some(r#"{"token":"a-token","expires_in":300}"#.into_response()));
        let token_server = Secure::start(&authority.sign(HERE), &tokens.host()).await;
        let bearer = format!("Bearer realm=\"https://{}/token\"", token_server.host());
        // Another port is another origin, and so is another address.
        let other_port = Secure::start(&authority.sign(HERE), &storage.host()).await;
        let other_host =
            Secure::start_at("127.0.0.2:0", &authority.sign("IP:127.0.0.2"), &storage.host()).await;
        let sent = Arc::new(content.clone());
        for (challenge, shown) in [("Basic realm=\"r\"", "Basic "), (&bearer, "Bearer a-token")] {
            for elsewhere in [&other_port, &other_host] {
                let (challenge, place) = (challenge.to_owned(), format!("https://{}/b", elsewhere.host()));
                registry.script(move |seen| {
                    let value = seen.headers.get(header::AUTHORIZATION).and_then(|it| it.to_str().ok());
                    if !value.is_some_and(|value| value.starts_with(shown)) {
                        let asked = [(header::WWW_AUTHENTICATE, challenge.clone())];
                        return Some((StatusCode::UNAUTHORIZED, asked).into_response());
                    }
                    is_blob(seen).then(|| redirect(&place))
                });
                let (answer, node) = (Arc::clone(&sent), node_that_trusts(&authority, &[]).await);
                storage.script(move |_| Some(answer.as_ref().clone().into_response()));
                storage.forget();
                let (volume, reference) = (node.volume("pod"), secure.reference("m:v1"));
                node.publish_as(&volume, &reference, &[], LOGIN).await.expect("published");
                assert!(std::fs::read(volume.target.join("w")).expect("read") == content);
                assert!(!storage.requests().is_empty());
                for seen in storage.requests() {
                    assert!(!has_secret(&seen.headers), "{seen:?}");
                }
                node.kubelet.unpublish(&volume).await.expect("unpublished");

                // Nor when it asks for them.
                storage.script(|_| Some(asks_for_a_password()));
                storage.forget();
                drop(node);
                let node = node_that_trusts(&authority, &[]).await;
                let status = refused(&node, &reference).await;
                assert_says(&status, &[&format!("redirects to {}", elsewhere.host())]);
                assert!(!storage.requests().is_empty());
                for seen in storage.requests() {
                    assert!(!has_secret(&seen.headers), "{seen:?}");
                }
            }
        }
    });
}
