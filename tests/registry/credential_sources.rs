//! Where credentials come from beside a volume's own secret, and what is said when they do not help.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::{Arc, Mutex};

use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use base64::Engine as _;
use serde_json::json;
use tonic::{Code, Status};

use crate::support::node::mount_at;
use crate::support::{Node, Scripted, isolated, noise};

/// A registry that lets in who shows one of these, as `Authorization` has it.
async fn private(content: &[u8], accepted: &[&str]) -> (Scripted, Arc<Mutex<Vec<String>>>) {
    let registry = Scripted::with_model(content.to_vec()).await;
    let accepted: Vec<String> = accepted.iter().map(|it| (*it).to_owned()).collect();
    let accepted = Arc::new(Mutex::new(accepted));
    let lets_in = Arc::clone(&accepted);
    registry.script(move |seen| {
        let shown = shown(&seen.headers);
        (!lets_in.lock().expect("no panic").contains(&shown)).then(unauthorized)
    });
    (registry, accepted)
}

fn shown(headers: &HeaderMap) -> String {
    headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned()
}

fn unauthorized() -> Response {
    (StatusCode::UNAUTHORIZED, [(header::WWW_AUTHENTICATE, "Basic realm=\"r\"")]).into_response()
}

fn basic(user: &str, password: &str) -> String {
    format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}")))
}

/// A program of the node.
fn program(directory: &Path, name: &str, script: &str) {
    let path = directory.join(name);
    std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).expect("written");
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).expect("executable");
}

/// A node whose kubelet has one provider, for all of 127.0.0.1 at this port, which does what `script` says.
async fn node_with_provider(registry: &Scripted, script: &str, more: &str) -> Node {
    let mut node = Node::on_host(&[]);
    let directory = node.directory.path().to_owned();
    program(&directory, "own", script);
    let config = format!(
        "apiVersion: kubelet.config.k8s.io/v1\nkind: CredentialProviderConfig\nproviders:\n- name: own\n  matchImages: [\"{}\"]\n  \
         defaultCacheDuration: 0s\n  apiVersion: credentialprovider.kubelet.k8s.io/v1\n{more}",
        registry.host()
    );
    std::fs::write(directory.join("providers.yaml"), config).expect("written");
    let mut set = |name: &str, value: String| node.env.insert(name.to_owned(), value);
    set("OCIVOL_PLAIN_HTTP", registry.host());
    set("OCIVOL_IMAGE_CREDENTIAL_PROVIDER_CONFIG", directory.join("providers.yaml").display().to_string());
    set("OCIVOL_IMAGE_CREDENTIAL_PROVIDER_BIN_DIR", directory.display().to_string());
    node.run().await;
    node
}

/// What a provider answers, as a script.
fn answers(registry: &Scripted, user: &str, password: &str) -> String {
    let answer = json!({
        "apiVersion": "credentialprovider.kubelet.k8s.io/v1", "kind": "CredentialProviderResponse",
        "cacheKeyType": "Registry", "auth": {registry.host(): {"username": user, "password": password}},
    });
    format!("cat > /dev/null\necho '{answer}'")
}

async fn publishes(node: &Node, pod: &str, reference: &str, content: &[u8]) {
    let volume = node.volume(pod);
    node.publish(&volume, reference, &[]).await.expect("published");
    assert!(std::fs::read(volume.target.join("w")).expect("read") == content);
}

async fn refused(node: &Node, pod: &str, reference: &str) -> Status {
    let volume = node.volume(pod);
    let status = node.publish(&volume, reference, &[]).await.expect_err(reference);
    assert!(mount_at(&volume.target).is_none(), "something is mounted");
    assert!(!status.message().contains("hunter2"), "{status}");
    status
}

#[test]
fn a_provider_has_the_credentials_and_keeps_a_right_when_its_password_changes() {
    isolated(async {
        let content = noise(1, 100_000);
        let (registry, accepted) = private(&content, &[&basic("node", "hunter2")]).await;
        let node = node_with_provider(&registry, &answers(&registry, "node", "hunter2"), "").await;
        let reference = registry.reference("m:v1");
        publishes(&node, "pod", &reference, &content).await;
        // Everything is here; the new password is the same provider's.
        *accepted.lock().expect("no panic") = vec![basic("node", "hunter2-new")];
        program(node.directory.path(), "own", &answers(&registry, "node", "hunter2-new"));
        registry.forget();
        publishes(&node, "again", &reference, &content).await;
        assert_eq!(registry.requests().len(), 0, "nobody is asked");
        assert!(!node.logged().contains("hunter2"));
    });
}

#[test]
fn what_a_provider_cannot_give_is_told_and_a_wrong_secret_is_not_the_end() {
    isolated(async {
        let content = noise(1, 100_000);
        let (registry, _) = private(&content, &[&basic("node", "hunter2")]).await;
        let reference = registry.reference("m:v1");
        let node = node_with_provider(&registry, "echo hunter2 >&2; exit 3", "").await;
        let status = refused(&node, "pod", &reference).await;
        assert_eq!(status.code(), Code::Unauthenticated, "{status}");
        for word in ["credential provider \"own\"", "status 3"] {
            assert!(status.message().contains(word), "no {word:?} in {status}");
        }
        drop(node);
        let node = node_with_provider(&registry, &answers(&registry, "node", "wrong"), "").await;
        let status = refused(&node, "pod", &reference).await;
        assert!(status.message().contains("did not accept the credentials of user \"node\""), "{status}");
        drop(node);
        // The volume's secret is tried first, and then the provider's.
        let node = node_with_provider(&registry, &answers(&registry, "node", "hunter2"), "").await;
        let volume = node.volume("wrong-secret");
        node.publish_as(&volume, &reference, &[], ("alice", "wrong")).await.expect("published");
        let tried: Vec<String> = registry.requests().iter().map(|seen| shown(&seen.headers)).collect();
        let at = |wanted: String| tried.iter().position(|shown| *shown == wanted);
        assert!(at(basic("alice", "wrong")) < at(basic("node", "hunter2")), "{tried:?}");
    });
}

#[test]
fn a_docker_config_of_the_node_has_credentials_and_helpers_that_are_allowed() {
    isolated(async {
        let content = noise(1, 100_000);
        let (registry, _) = private(&content, &[&basic("node", "hunter2")]).await;
        let reference = registry.reference("m:v1");
        let config_with = |node: &Node, config: &serde_json::Value| {
            let path = node.directory.path().join("config.json");
            std::fs::write(&path, config.to_string()).expect("written");
            path.display().to_string()
        };
        let mut node = Node::on_host(&["--plain-http", &registry.host()]);
        let own = json!({"auths": {registry.host(): {"username": "node", "password": "hunter2"}}});
        let path = config_with(&node, &own);
        node.env.insert("OCIVOL_NODE_DOCKER_CONFIG".into(), path);
        node.run().await;
        publishes(&node, "pod", &reference, &content).await;
        // The file is read each time.
        let helper = json!({"credHelpers": {registry.host(): "mine"}});
        config_with(&node, &helper);
        let status = refused(&node, "helper", &reference.replace("m:v1", "m:v2")).await;
        assert!(
            status.message().contains("credential helper \"mine\", which ocivol does not run"),
            "{status}"
        );
        drop(node);
        let mut node = Node::on_host(&["--plain-http", &registry.host()]);
        let path = config_with(&node, &helper);
        let answer = r#"echo '{"ServerURL":"","Username":"node","Secret":"hunter2"}'"#;
        program(node.directory.path(), "docker-credential-mine", &format!("cat > /dev/null\n{answer}"));
        let program = node.directory.path().join("docker-credential-mine").display().to_string();
        node.env.insert("OCIVOL_NODE_DOCKER_CONFIG".into(), path);
        node.env.insert("OCIVOL_CREDENTIAL_HELPERS".into(), format!("mine={program}"));
        node.run().await;
        publishes(&node, "pod", &reference, &content).await;
    });
}

/// A service account's token with these claims; nobody here checks the signature.
fn token(account: &str) -> String {
    let part = |text: &str| base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(text);
    let claims = json!({"exp": 4_102_444_800_u64, "kubernetes.io": {"serviceaccount": {"name": account, "uid": account}}});
    format!("{}.{}.{}", part("{}"), part(&claims.to_string()), part("hunter2"))
}

/// Publishes with tokens where kubelet puts them, with `serviceAccountTokenInSecrets` or without.
async fn publish_with_token(
    node: &Node,
    pod: &str,
    reference: &str,
    token: &str,
    in_secrets: bool,
) -> Result<(), Status> {
    const KEY: &str = "csi.storage.k8s.io/serviceAccount.tokens";
    let tokens =
        json!({"models": {"token": token, "expirationTimestamp": "2100-01-01T00:00:00Z"}}).to_string();
    let volume = node.volume(pod);
    let (mut attributes, mut secrets) = (vec![("reference", reference)], Vec::new());
    match in_secrets {
        true => secrets.push((KEY, tokens.as_str())),
        false => attributes.push((KEY, tokens.as_str())),
    }
    node.kubelet.publish(node.kubelet.publish_request(&volume, &attributes, &secrets)).await
}

#[test]
fn a_service_accounts_token_is_shown_as_the_rule_says_and_only_where_kubelet_put_it() {
    isolated(async {
        let content = noise(1, 100_000);
        let jwt = token("server");
        let (bearer, password) = (format!("Bearer {jwt}"), basic("oidc", &jwt));
        let (registry, _) = private(&content, &[&bearer]).await;
        let (other, _) = private(&content, &[&password]).await;
        let rules = json!([
            {"registries": [registry.host()], "audience": "models"},
            {"registries": [other.host()], "audience": "models", "user": "oidc"},
        ]);
        let hosts = format!("{},{}", registry.host(), other.host());
        let node =
            Node::start(&["--plain-http", &hosts, "--service-account-tokens", &rules.to_string()]).await;
        for (pod, registry) in [("bearer", &registry), ("password", &other)] {
            let reference = registry.reference("m:v1");
            publish_with_token(&node, pod, &reference, &jwt, true).await.expect("published");
        }
        let reference = registry.reference("m:v1");
        // A pod's author can write it there.
        let status = publish_with_token(&node, "forged", &reference, &jwt, false).await.expect_err("forged");
        assert_eq!(status.code(), Code::Unauthenticated, "{status}");
        assert!(status.message().contains("no token of service account"), "{status}");
        // Another account is another.
        let status =
            publish_with_token(&node, "other", &reference, &token("other"), true).await.expect_err("other");
        assert_eq!(status.code(), Code::Unauthenticated, "{status}");
        assert!(!node.logged().contains(&jwt));
    });
}

#[test]
fn a_service_accounts_token_is_exchanged_for_one_that_the_registry_takes() {
    isolated(async {
        let content = noise(1, 100_000);
        let jwt = token("server");
        let (registry, _) = private(&content, &["Bearer exchanged"]).await;
        let exchange = TokenServer::start(jwt.clone()).await;
        let rules =
            json!([{"registries": [registry.host()], "audience": "models", "exchangeURL": exchange.url()}]);
        let node =
            Node::start(&["--plain-http", &registry.host(), "--service-account-tokens", &rules.to_string()])
                .await;
        for pod in ["one", "two"] {
            let reference = registry.reference("m:v1");
            publish_with_token(&node, pod, &reference, &jwt, true).await.expect("published");
        }
        assert_eq!(exchange.count(), 1, "it is kept as long as it is good");
        let reference = registry.reference("m:v1");
        let status =
            publish_with_token(&node, "other", &reference, &token("other"), true).await.expect_err("other");
        assert!(status.message().contains("does not exchange the token"), "{status}");
    });
}

/// A server that exchanges one token.
struct TokenServer {
    host: String,
    count: Arc<std::sync::atomic::AtomicUsize>,
}

impl TokenServer {
    async fn start(token: String) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let host = listener.local_addr().expect("bound").to_string();
        let count: Arc<std::sync::atomic::AtomicUsize> = Arc::default();
        let counted = Arc::clone(&count);
        let answer = move |body: String| async move {
            let is_known = body.contains(&format!("subject_token={token}"))
                && body.contains("grant_type=urn%3Aietf%3Aparams%3Aoauth%3Agrant-type%3Atoken-exchange");
            if !is_known {
                return (StatusCode::BAD_REQUEST, "{}".to_owned());
            }
            counted.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
            (StatusCode::OK, r#"{"access_token":"exchanged","expires_in":300}"#.to_owned())
        };
        let router = axum::Router::new().route("/token", axum::routing::post(answer));
        tokio::spawn(async move { axum::serve(listener, router).await });
        Self { host, count }
    }

    fn url(&self) -> String {
        format!("http://{}/token", self.host)
    }

    fn count(&self) -> usize {
        self.count.load(std::sync::atomic::Ordering::SeqCst)
    }
}

#[test]
fn sources_can_be_switched_off() {
    isolated(async {
        let content = noise(1, 100_000);
        let (registry, _) = private(&content, &["", &basic("alice", "hunter2")]).await;
        let reference = registry.reference("m:v1");
        let node = Node::start(&["--plain-http", &registry.host(), "--anonymous", "false"]).await;
        let status = refused(&node, "pod", &reference).await;
        assert_eq!(status.code(), Code::Unauthenticated);
        assert!(status.message().contains("there are no credentials for"), "{status}");
        assert_eq!(registry.requests().len(), 0);
        let volume = node.volume("alice");
        node.publish_as(&volume, &reference, &[], ("alice", "hunter2")).await.expect("published");
        drop(node);
        let node = Node::start(&["--plain-http", &registry.host(), "--volume-secrets", "false"]).await;
        registry.forget();
        node.publish_as(&node.volume("alice"), &reference, &[], ("alice", "hunter2"))
            .await
            .expect("published");
        assert!(registry.requests().iter().all(|seen| shown(&seen.headers).is_empty()));
    });
}

#[test]
fn t41_no_core_of_the_plugin_is_written() {
    isolated(async {
        let node = Node::start(&[]).await;
        let limits = std::fs::read_to_string(format!("/proc/{}/limits", node.pid())).expect("it runs");
        let core = limits.lines().find(|line| line.starts_with("Max core file size")).expect("a line");
        assert_eq!(core.split_whitespace().skip(4).take(2).collect::<Vec<_>>(), ["0", "0"], "{core}");
    });
}

#[test]
fn a_namespace_uses_what_its_operator_permits() {
    isolated(async {
        let content = noise(1, 100_000);
        let registry = Scripted::with_model(content.clone()).await;
        let layers = [ocivol::demo::push::Layer::model_file("weight", "w", content.clone())];
        registry.pusher("team/m").model("v1", &layers).await.expect("pushed");
        let rules = json!([{"namespaces": ["default"], "allow": [format!("{}/team", registry.host())]}]);
        let node = Node::start(&["--plain-http", &registry.host(), "--permits", &rules.to_string()]).await;
        publishes(&node, "pod", &registry.reference("team/m:v1"), &content).await;
        registry.forget();
        let status = refused(&node, "other", &registry.reference("m:v1")).await;
        assert_eq!(status.code(), Code::PermissionDenied, "{status}");
        for word in ["pods of namespace default may not use", "registry.permits"] {
            assert!(status.message().contains(word), "no {word:?} in {status}");
        }
        assert_eq!(registry.requests().len(), 0, "nobody is asked");
    });
}
