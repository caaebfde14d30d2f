//! Proxies, as the chart's `registry.httpProxy`, `.httpsProxy` and `.noProxy` name them: who goes through one, and what
//! it gets to see.

use std::process::Command;

use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use ocivol::demo::push::Layer;
use tonic::Status;

use crate::support::answers::is_blob;
use crate::support::tls::CertificateAuthority;
use crate::support::wire::{Proxy, Secure};
use crate::support::{Node, Scripted, isolated, noise};

/// Addresses of a private network, on the loopback interface of the test: what is on the machine itself is asked without a proxy.
const HOST: &str = "10.9.9.1";
const OTHER: &str = "10.9.9.2";
const HERE: &str = "IP:10.9.9.1";
const LOGIN: (&str, &str) = ("user", "hunter2");
/// The same as a Basic credential has it.
const ENCODED: &str = "dXNlcjpodW50ZXIy";
const PROXY_LOGIN: &str = "proxy-user:proxy-word";
/// The same as a Basic credential has it.
const PROXY_ENCODED: &str = "cHJveHktdXNlcjpwcm94eS13b3Jk";

/// A registry without TLS, which has a model `m:v1` of one file `w`.
async fn registry_with(content: &[u8]) -> Scripted {
    for address in [HOST, OTHER] {
        let added = Command::new("ip").args(["address", "replace", address, "dev", "lo"]).status();
        assert!(added.is_ok_and(|status| status.success()), "{address}");
    }
    let registry = Scripted::start_with_many_names().await;
    let layer = Layer::model_file("weight", "w", content.to_vec());
    registry.pusher("m").model("v1", &[layer]).await.expect("pushed");
    registry
}

/// A node with these variables, which are the chart's, and maybe an authority that it trusts.
async fn node_with(
    variables: &[(&str, &str)],
    authority: Option<&CertificateAuthority>,
    flags: &[&str],
) -> Node {
    let chart = include_str!("../../charts/ocivol/templates/_helpers.tpl");
    let mut node = Node::prepare(flags);
    for (name, value) in variables {
        assert!(chart.contains(&format!("{name:?} .Values.registry.")), "the chart does not set {name}");
        node.env.insert((*name).to_owned(), (*value).to_owned());
    }
    if let Some(authority) = authority {
        node.trust(&authority.bundle());
    }
    node.env.insert("OCIVOL_ALLOW_HOSTS".to_owned(), "10.9.9.0/30".to_owned());
    node.run().await;
    node
}

/// The registry's address that is not the machine's own.
fn named(registry: &Scripted) -> String {
    registry.host().replace("127.0.0.1", HOST)
}

async fn publishes(node: &Node, reference: &str, content: &[u8]) {
    let volume = node.volume("pod");
    node.publish_as(&volume, reference, &[], LOGIN).await.expect("published");
    assert!(std::fs::read(volume.target.join("w")).expect("read") == content);
    node.kubelet.unpublish(&volume).await.expect("unpublished");
}

async fn fails(node: &Node, reference: &str) -> Status {
    node.publish_as(&node.volume("pod"), reference, &[], LOGIN).await.expect_err(reference)
}

#[test]
fn a_proxy_sees_of_tls_only_where_it_goes() {
    isolated(async {
        let content = noise(1, 1_000_000);
        let registry = registry_with(&content).await;
        let authority = CertificateAuthority::new();
        let (tokens, storage) = (Scripted::start().await, Scripted::start().await);
        let secure = Secure::start_at(&format!("{HOST}:0"), &authority.sign(HERE), &registry.host()).await;
        let token_server =
            Secure::start_at(&format!("{HOST}:0"), &authority.sign(HERE), &tokens.host()).await;
        let elsewhere = Secure::start_at(&format!("{HOST}:0"), &authority.sign(HERE), &storage.host()).await;
        tokens.script(|seen| {
            let basic = format!("Basic {ENCODED}");
            let good = seen.headers.get(header::AUTHORIZATION).is_some_and(|value| *value == *basic);
            Some(if good {
                r#"{"token":"a-token","expires_in":300}"#.into_response()
            } else {
                StatusCode::UNAUTHORIZED.into_response()
            })
        });
        let realm = format!("Bearer realm=\"https://{}/token\"", token_server.host());
        let place = format!("https://{}/signed?signature=a-signature", elsewhere.host());
        registry.script(move |seen| {
            if seen.headers.get(header::AUTHORIZATION).is_none_or(|value| value != "Bearer a-token") {
                let asked = [(header::WWW_AUTHENTICATE, realm.clone())];
                return Some((StatusCode::UNAUTHORIZED, asked).into_response());
            }
            is_blob(seen).then(|| {
                (StatusCode::TEMPORARY_REDIRECT, [(header::LOCATION, place.clone())]).into_response()
            })
        });
        let sent = content.clone();
        storage.script(move |_| Some(sent.clone().into_response()));
        let proxy = Proxy::start(&[]).await;
        // With a password, which is for the proxy alone.
        let url = format!("http://{PROXY_LOGIN}@{}", proxy.host());
        let node = node_with(&[("HTTPS_PROXY", &url)], Some(&authority), &[]).await;
        publishes(&node, &secure.reference("m:v1"), &content).await;
        for host in [&secure, &token_server, &elsewhere] {
            let asked = format!("CONNECT {} HTTP/1.1", host.host());
            let through = proxy.asked().iter().filter(|line| **line == asked).count();
            assert!(through > 0, "{asked}: {:?}", proxy.asked());
            assert_eq!(through, host.connections(), "nobody goes past the proxy: {:?}", proxy.asked());
        }
        for bytes in proxy.heard() {
            let text = String::from_utf8_lossy(&bytes);
            let head = text.split("\r\n\r\n").next().expect("a head");
            let is_own = |line: &&str| line.to_ascii_lowercase().starts_with("proxy-authorization:");
            let (own, others): (Vec<&str>, Vec<&str>) = head.lines().partition(is_own);
            assert!(own.len() == 1 && own[0].ends_with(&format!(" Basic {PROXY_ENCODED}")), "{head}");
            let head = others.join("\n");
            for secret in ["uthorization", "/v2/", "token", "signature"] {
                assert!(!head.contains(secret), "{secret}: {head}");
            }
            for secret in ["a-token", "GET ", "hunter2", ENCODED, "a-signature"] {
                assert!(!text.contains(secret), "{secret}: {text}");
            }
        }
        for seen in [registry.requests(), tokens.requests(), storage.requests()].concat() {
            assert!(!seen.headers.contains_key(header::PROXY_AUTHORIZATION), "{seen:?}");
        }
    });
}

#[test]
fn no_proxy_names_who_is_asked_without() {
    isolated(async {
        let content = noise(2, 100_000);
        let registry = registry_with(&content).await;
        let authority = CertificateAuthority::new();
        let secure = Secure::start_at(&format!("{HOST}:0"), &authority.sign(HERE), &registry.host()).await;
        let other =
            Secure::start_at(&format!("{OTHER}:0"), &authority.sign("IP:10.9.9.2"), &registry.host()).await;
        // The address of this one is known to the proxy alone.
        let named = Secure::start(&authority.sign("DNS:registry.example"), &registry.host()).await;
        let proxy = Proxy::start(&[("registry.example:443", &named.host())]).await;
        let url = format!("http://{}", proxy.host());
        for (no_proxy, first, second) in [
            ("", true, true),
            ("10.9.9.1", false, true),
            ("10.9.9.2,registry.other", true, false),
            ("192.168.0.0/16, 10.9.9.0/30", false, false),
            ("10.9.9.1:443", true, true),
        ] {
            let variables = [("HTTPS_PROXY", url.as_str()), ("NO_PROXY", no_proxy)];
            let node = node_with(&variables, Some(&authority), &[]).await;
            for (registry, through) in [(&secure, first), (&other, second)] {
                let (before, directly) = (proxy.asked().len(), registry.connections());
                publishes(&node, &registry.reference("m:v1"), &content).await;
                assert!(registry.connections() > directly);
                assert_eq!(proxy.asked().len() > before, through, "{no_proxy:?}: {}", registry.host());
            }
            publishes(&node, "registry.example/m:v1", &content).await;
        }
        for name in ["registry.example", "*.example", ".example", "example:443", "*"] {
            let variables = [("HTTPS_PROXY", url.as_str()), ("NO_PROXY", name)];
            let node = node_with(&variables, Some(&authority), &[]).await;
            let before = proxy.asked().len();
            let status = fails(&node, "registry.example/m:v1").await;
            assert!(status.message().contains("cannot reach registry.example: "), "{name}: {status}");
            assert_eq!(proxy.asked().len(), before, "{name}: {:?}", proxy.asked());
        }
    });
}

#[test]
fn each_scheme_has_its_own_proxy() {
    isolated(async {
        let content = noise(3, 100_000);
        let registry = registry_with(&content).await;
        let authority = CertificateAuthority::new();
        let secure = Secure::start_at(&format!("{HOST}:0"), &authority.sign(HERE), &registry.host()).await;
        let (plain, tls) = (Proxy::start(&[]).await, Proxy::start(&[]).await);
        let urls = [&plain, &tls].map(|proxy| format!("http://{}", proxy.host()));
        let variables = [("HTTP_PROXY", urls[0].as_str()), ("HTTPS_PROXY", urls[1].as_str())];
        let host = named(&registry);
        for which in [0, 1] {
            let node = node_with(&variables[which..=which], Some(&authority), &["--plain-http", &host]).await;
            publishes(&node, &format!("{host}/m:v1"), &content).await;
            publishes(&node, &secure.reference("m:v1"), &content).await;
        }
        let (asked, asked_for_tls) = (plain.asked(), tls.asked());
        let url = format!("GET http://{host}/v2/");
        assert!(!asked.is_empty() && asked.iter().all(|line| line.starts_with(&url)), "{asked:?}");
        let tunnel = format!("CONNECT {} HTTP/1.1", secure.host());
        assert!(!asked_for_tls.is_empty(), "{asked_for_tls:?}");
        assert!(asked_for_tls.iter().all(|line| *line == tunnel), "{asked_for_tls:?}");
    });
}

/// What a proxy can answer, and what nobody does at a port where there is none.
const REFUSALS: [Option<&str>; 4] = [
    Some("407 Proxy Authentication Required\r\nProxy-Authenticate: Basic realm=\"p\""),
    Some("403 Forbidden"),
    Some("502 Bad Gateway"),
    None,
];

/// A proxy's `host:port`, and the proxy, if there is one.
async fn refusing(answer: Option<&'static str>) -> (String, Option<Proxy>) {
    match answer {
        Some(answer) => {
            let proxy = Proxy::refusing(answer).await;
            (proxy.host(), Some(proxy))
        }
        // Nothing listens there.
        None => ("127.0.0.3:3128".to_owned(), None),
    }
}

#[test]
fn a_proxys_password_is_in_no_error_and_no_log() {
    isolated(async {
        let authority = CertificateAuthority::new();
        let registry = registry_with(b"content").await;
        let secure = Secure::start_at(&format!("{HOST}:0"), &authority.sign(HERE), &registry.host()).await;
        let references = [secure.reference("m:v1"), format!("{}/m:v1", named(&registry))];
        for answer in REFUSALS {
            let (host, proxy) = refusing(answer).await;
            let url = format!("http://{PROXY_LOGIN}@{host}");
            let variables = [("HTTPS_PROXY", url.as_str()), ("HTTP_PROXY", &url)];
            let flags = ["-vv", "--plain-http", &named(&registry)];
            let node = node_with(&variables, Some(&authority), &flags).await;
            for reference in &references {
                let status = fails(&node, reference).await;
                let log = node.logged();
                for secret in ["proxy-word", PROXY_ENCODED] {
                    assert!(!status.message().contains(secret), "{status}");
                    assert!(!log.contains(secret), "{log}");
                }
            }
            assert!(proxy.is_none_or(|proxy| proxy.asked().len() >= 2), "{answer:?}: it was asked");
        }
        assert_eq!((secure.connections(), registry.requests().len()), (0, 0), "nobody goes past a proxy");
    });
}
