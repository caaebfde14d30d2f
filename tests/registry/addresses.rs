//! What a reference, a redirect and the realm of a token server may reach through the node. Whoever is attacked counts connections:
//! there are none (T28, T32).

use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::http::{Method, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use tokio::net::TcpListener;
use tonic::{Code, Status};

use crate::support::{Node, Scripted, isolated, noise};

/// A private and a link-local address, as those of a service of the cluster and of a cloud's metadata.
const SERVICE: &str = "10.9.9.9";
const METADATA: &str = "169.254.169.254";

/// Somebody on an address who only counts who comes.
struct Victim {
    /// `address:port`.
    host: String,
    connections: Arc<AtomicUsize>,
}

impl Victim {
    async fn on(address: &str) -> Self {
        let listener = TcpListener::bind((address.trim_matches(['[', ']']), 0)).await.expect("an address");
        let port = listener.local_addr().expect("bound").port();
        let connections = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&connections);
        tokio::spawn(async move {
            while listener.accept().await.is_ok() {
                count.fetch_add(1, Ordering::SeqCst);
            }
        });
        Self { host: format!("{address}:{port}"), connections }
    }

    fn nobody_came(&self, when: &str) {
        assert_eq!(self.connections.load(Ordering::SeqCst), 0, "{when}: {} was reached", self.host);
    }
}

/// A node as an operator has it who has allowed nothing but `flags`, and a registry with a model, `m:v1`.
async fn start(registry: &Scripted, flags: &[&str]) -> Node {
    for address in [SERVICE, METADATA] {
        let added = Command::new("ip").args(["address", "replace", address, "dev", "lo"]).status();
        assert!(added.is_ok_and(|status| status.success()), "{address}");
    }
    let mut node = Node::prepare(&[&["--plain-http", &registry.host()], flags].concat());
    node.env.remove("OCIVOL_ALLOW_HOSTS");
    node.run_registered().await;
    node
}

fn redirect(to: &str) -> Response {
    (StatusCode::TEMPORARY_REDIRECT, [(header::LOCATION, to.to_owned())]).into_response()
}

fn log_in_at(realm: &str) -> Response {
    let challenge = format!("Bearer realm=\"{realm}\",service=\"s\"");
    (StatusCode::UNAUTHORIZED, [(header::WWW_AUTHENTICATE, challenge)]).into_response()
}

fn assert_refused(status: &Status, words: &str, when: &str) {
    assert_eq!(status.code(), Code::PermissionDenied, "{when}: {status}");
    assert!(status.message().contains(words), "{when}: {status}");
    // What is never connected to cannot be allowed either.
    let is_advised = status.message().contains("registry.allowedHosts");
    assert_eq!(is_advised, !words.starts_with("never"), "{when}: {status}");
}

#[test]
fn t32_a_reference_does_not_reach_loopback_addresses() {
    isolated(async {
        let registry = Scripted::with_model(noise(1, 100)).await;
        let node = start(&registry, &[]).await;
        for (address, words) in [
            ("127.0.0.2", "a loopback address"),
            ("[::1]", "a loopback address"),
            (METADATA, "never connected to"),
        ] {
            let victim = Victim::on(address).await;
            let port = victim.host.rsplit(':').next().expect("a port");
            // Its name has its address as well.
            let names = if address == "[::1]" { vec![address, "localhost"] } else { vec![address] };
            for name in names {
                let reference = format!("{name}:{port}/x:v1");
                let volume = node.volume("pod");
                let status = node.publish(&volume, &reference, &[]).await.expect_err(&reference);
                assert_refused(&status, words, &reference);
                node.kubelet.unpublish(&volume).await.expect("unpublished");
            }
            victim.nobody_came("as a registry");
        }
    });
}

#[test]
fn t28_a_registry_does_not_send_the_node_to_what_only_the_node_reaches() {
    isolated(async {
        let registry = Scripted::with_model(noise(1, 100)).await;
        let node = start(&registry, &["--allow-hosts", "169.254.0.0/16"]).await;
        for (address, words) in [
            // Another port of the registry's own address.
            ("127.0.0.1", "a loopback address"),
            ("127.0.0.2", "a loopback address"),
            ("localhost", "a loopback address"),
            (SERVICE, "in a private network"),
            (METADATA, "never connected to"),
        ] {
            let victim = Victim::on(address).await;
            let url = format!("http://{}/secret", victim.host);
            type Answer = fn(&str) -> Response;
            for (what, path, answer) in [
                ("a blob", "/blobs/", redirect as Answer),
                ("a manifest", "/manifests/", redirect),
                ("a token server", "/manifests/", log_in_at),
            ] {
                let when = format!("{what} at {address}");
                let to = url.clone();
                registry.script(move |seen| seen.path.contains(path).then(|| answer(&to)));
                let volume = node.volume("pod");
                let reference = registry.reference("m:v1");
                let always = [("pullPolicy", "Always")];
                let status = node.publish(&volume, &reference, &always).await.expect_err(&when);
                assert_refused(&status, words, &when);
                // What a name's address is, is for the log.
                let told = status.message().replace(&registry.host(), "");
                assert!(address != "localhost" || !told.contains("127.0.0.1"), "{status}");
                node.kubelet.unpublish(&volume).await.expect("unpublished");
                victim.nobody_came(&when);
            }
        }
        // And a volume is as good as ever.
        registry.unscript();
        let volume = node.volume("pod");
        node.publish(&volume, &registry.reference("m:v1"), &[]).await.expect("published");
        node.kubelet.unpublish(&volume).await.expect("unpublished");
    });
}

#[test]
fn t28_credentials_are_for_token_servers_of_the_same_site() {
    isolated(async {
        let registry = Scripted::with_model(noise(1, 100)).await;
        let node = start(&registry, &[]).await;
        let victim = Victim::on("127.0.0.2").await;
        let realm = format!("http://{}/token", victim.host);
        registry.script(move |seen| seen.path.contains("/manifests/").then(|| log_in_at(&realm)));
        let volume = node.volume("pod");
        let reference = registry.reference("m:v1");
        let status = node.publish_as(&volume, &reference, &[], ("user", "hunter2")).await;
        let status = status.expect_err("it is another's token server");
        assert_refused(&status, "of another domain", "with credentials");
        assert!(!node.logged().contains("hunter2"));
        victim.nobody_came("as a token server");
        node.kubelet.unpublish(&volume).await.expect("unpublished");

        drop(node);
        // Where the operator has named it, and not only its network, it is asked.
        for (allowed, comes) in [("127.0.0.0/8", false), (victim.host.as_str(), true)] {
            // Without credentials it might be asked in any case.
            let flags = ["--allow-hosts", allowed, "--stall-timeout", "1", "--anonymous", "false"];
            let node = start(&registry, &flags).await;
            let volume = node.volume("pod");
            let published = node.publish_as(&volume, &reference, &[], ("user", "hunter2")).await;
            published.expect_err("it gives no token");
            assert_eq!(victim.connections.load(Ordering::SeqCst) > 0, comes, "{allowed}");
            node.kubelet.unpublish(&volume).await.expect("unpublished");
        }

        // As anybody one may ask where its network is allowed; and shows nothing.
        let tokens = Scripted::start_with_many_names().await;
        tokens.script(|_| Some(StatusCode::UNAUTHORIZED.into_response()));
        let realm = format!("http://{}/token", tokens.hosts(2)[1]);
        registry.script(move |seen| seen.path.contains("/manifests/").then(|| log_in_at(&realm)));
        let node = start(&registry, &["--allow-hosts", "127.0.0.0/8"]).await;
        let published = node.publish_as(&node.volume("pod"), &reference, &[], ("user", "hunter2")).await;
        assert_refused(&published.expect_err("it gives no token"), "of another domain", "with credentials");
        let asked = tokens.requests();
        assert!(!asked.is_empty(), "as anybody");
        assert!(asked.iter().all(|seen| !seen.headers.contains_key(header::AUTHORIZATION)), "{asked:?}");
    });
}

#[test]
fn what_an_operator_allows_is_reached() {
    isolated(async {
        let content = noise(1, 100_000);
        let registry = Scripted::with_model(content.clone()).await;
        let node = start(&registry, &["--allow-hosts", "10.9.9.0/24"]).await;
        let storage = TcpListener::bind((SERVICE, 0)).await.expect("an address");
        let url = format!("http://{SERVICE}:{}/blob", storage.local_addr().expect("bound").port());
        let blob = content.clone();
        let serve = axum::routing::get(move || async move { blob });
        tokio::spawn(async move {
            axum::serve(storage, axum::Router::new().route("/blob", serve)).await.expect("it serves");
        });
        let digest = ocivol::oci::digest::Digest::sha256(&content).to_string();
        registry.script(move |seen| {
            (seen.method == Method::GET && seen.path.ends_with(&digest)).then(|| redirect(&url))
        });
        let volume = node.volume("pod");
        node.publish(&volume, &registry.reference("m:v1"), &[]).await.expect("published");
        assert!(std::fs::read(volume.target.join("w")).expect("read") == content);
        node.kubelet.unpublish(&volume).await.expect("unpublished");
    });
}
