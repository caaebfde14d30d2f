//! Registries that are reached, and credentials that are found, with what the node and the cluster have.

use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::{Arc, Mutex};

use axum::http::{StatusCode, header};
use axum::response::IntoResponse as _;
use base64::Engine as _;
use k8s_openapi::api::admissionregistration::v1::{
    ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding,
};
use k8s_openapi::api::core::v1::Secret;
use ocivol::demo::push::{Layer, Pusher};
use ocivol::demo::registry::{Registry, Seen};
use serde_json::{Value, json};

use super::Shared;
use crate::cluster::Pods;
use crate::machine::directory;
use crate::node::ADDRESS;
use crate::pod::{inline, pod, script};
use crate::registry::{DOWN, HOSTS, LOGIN, MIRROR, PRIVATE};

/// The account whose token opens the registry of tokens.
const ACCOUNT: &str = "system:serviceaccount:pulls:default";

pub async fn what_the_node_and_the_cluster_have_pulls_what_it_may_and_nothing_else(node: Shared) {
    let node = node.lock().await;
    let pods = node.cluster.namespace("pulls", json!({})).await;
    let others = node.cluster.namespace("elsewhere", json!({})).await;
    for (repository, host, login) in [
        ("team/model", PRIVATE, Some(LOGIN)),
        ("provided/model", PRIVATE, Some(LOGIN)),
        ("mirrored/model", MIRROR, None),
    ] {
        let mut pusher = Pusher::new(host, repository);
        pusher.login = login.map(|(user, password)| (user.to_owned(), password.to_owned()));
        let layers = [Layer::model_file("weight", "model.gguf", repository.as_bytes().to_vec())];
        pusher.model("v1", &layers).await.expect("pushed");
    }
    for pods in [&pods, &others] {
        let config = json!({"auths": {PRIVATE: {"username": LOGIN.0, "password": LOGIN.1}}}).to_string();
        pods.create_other::<Secret>(json!({
            "apiVersion": "v1", "kind": "Secret", "metadata": {"name": "regcred"},
            "type": "kubernetes.io/dockerconfigjson", "stringData": {".dockerconfigjson": config},
        }))
        .await;
    }
    provider();
    let hosts = directory().join("certs.d");
    // One is only there through its mirror; of the other the registry would have to say who may read.
    for name in ["models.example", "strict.example"] {
        let mirror = if name == "models.example" {
            MIRROR.to_owned()
        } else {
            MIRROR.replace("127.0.0.1", "localhost")
        };
        let text = format!(
            "server = \"https://{DOWN}\"\n[host.\"http://{mirror}\"]\ncapabilities = [\"pull\", \"resolve\"]\n"
        );
        fs::create_dir_all(hosts.join(name)).expect("a directory");
        fs::write(hosts.join(name).join("hosts.toml"), text).expect("a file");
    }
    let (tokens, shown) = registry_of_tokens().await;
    let plain = format!("registry.plainHTTP={{{},{tokens}}}", HOSTS.join(","));
    let hosts_dir = format!("registry.hostsDir={}", hosts.display());
    let mirrors = format!("registry.authoritativeMirrors={{{MIRROR}}}");
    let rule = format!("credentials.serviceAccountTokens[0].registries={{{tokens}}}");
    node.install(&[
        "hostNetwork=true",
        &plain,
        &hosts_dir,
        &mirrors,
        "credentials.imagePullSecrets.enabled=true",
        "credentials.imagePullSecrets.namespaces={pulls}",
        "credentials.providers.config=/var/lib/providers/config.yaml",
        "credentials.providers.binDir=/var/lib/providers/bin",
        "credentials.serviceAccountTokens[0].audience=models",
        &rule,
    ])
    .await;
    let secret = json!({"imagePullSecrets": [{"name": "regcred"}]});
    let (team, provided) = (format!("{PRIVATE}/team/model:v1"), format!("{PRIVATE}/provided/model:v1"));
    let by_token = format!("{tokens}/m:v1");
    for (name, reference, changes) in [
        ("by-secret", team.as_str(), &secret),
        ("by-provider", &provided, &json!({})),
        ("by-mirror", "models.example/mirrored/model:v1", &json!({})),
        ("by-token", &by_token, &json!({})),
    ] {
        create(&pods, name, reference, changes).await;
    }
    for name in ["by-secret", "by-provider", "by-mirror", "by-token"] {
        pods.running(name).await;
    }
    // Everything is in the store now, and still not theirs.
    create(&pods, "no-secret", &team, &json!({})).await;
    create(&others, "no-role", &team, &secret).await;
    create(&pods, "unconfirmed", "strict.example/mirrored/model:v1", &json!({})).await;
    create(&others, "other-account", &by_token, &json!({})).await;
    let message = pods.event("no-secret", "asks for credentials to read team/model and none match").await;
    assert!(!message.contains(LOGIN.1), "{message}");
    let message = others.event("no-role", "asks for credentials to read team/model").await;
    assert!(message.contains("credentials.imagePullSecrets"), "it says what is missing: {message}");
    pods.event("unconfirmed", "does not say whether this pod may read it").await;
    others.event("other-account", "code = Unauthenticated").await;
    // The token that was shown is good, for this audience, and another's was shown as well.
    let shown = shown.lock().expect("no panic").clone();
    assert!(shown.iter().any(|subject| subject == ACCOUNT), "{shown:?}");
    assert!(shown.iter().any(|subject| subject == "system:serviceaccount:elsewhere:default"), "{shown:?}");
    pods.clear().await;
    others.clear().await;
    node.install(&[]).await;
}

pub async fn the_sample_of_an_admission_policy_refuses_pods(node: Shared) {
    let cluster = node.lock().await.cluster.clone();
    let pods = cluster.namespace("policy", json!({"example.com/ocivol-references": "checked"})).await;
    let text = fs::read_to_string(crate::machine::target().join("../manifests/admission-policy.yaml"))
        .expect("a file");
    let [policy, binding]: [Value; 2] = serde_yaml_ng::Deserializer::from_str(&text)
        .map(|document| serde::Deserialize::deserialize(document).expect("YAML"))
        .collect::<Vec<_>>()
        .try_into()
        .expect("a policy and its binding");
    cluster.create::<ValidatingAdmissionPolicy>(policy).await;
    cluster.create::<ValidatingAdmissionPolicyBinding>(binding).await;
    let digest = "sha256:0000000000000000000000000000000000000000000000000000000000000000";
    // It takes a moment until the API server goes by it.
    for (name, reference, word) in [
        ("elsewhere", format!("registry.other/x@{digest}"), "registry.example.com only"),
        ("by-tag", "registry.example.com/x:v1".to_owned(), "by digest"),
    ] {
        crate::cluster::eventually("the policy holds", || async {
            let wanted = pod(name, inline(&reference), &script("true"));
            match pods.try_create(wanted).await {
                Ok(()) => {
                    pods.delete_by_force(name).await;
                    None
                }
                Err(error) => error.to_string().contains(word).then_some(()),
            }
        })
        .await;
    }
    let good = pod("good", inline(&format!("registry.example.com/x@{digest}")), &script("true"));
    pods.try_create(good).await.expect("it is allowed");
    pods.clear().await;
    cluster.delete::<ValidatingAdmissionPolicyBinding>("ocivol-references").await;
    cluster.delete::<ValidatingAdmissionPolicy>("ocivol-references").await;
}

async fn create(pods: &Pods, name: &str, reference: &str, changes: &Value) {
    let mut changes = changes.clone();
    crate::pod::merge(&mut changes, &script("true"));
    pods.create(pod(name, inline(reference), &changes)).await;
}

/// A credential provider, as kubelet's are: `echo`, which says the same whatever it is asked. It knows one repository.
fn provider() {
    let directory = Path::new("/var/lib/providers");
    let program = directory.join("bin/echo");
    fs::create_dir_all(directory.join("bin")).expect("a directory");
    fs::copy("/bin/busybox", &program).expect("busybox-static");
    fs::set_permissions(&program, PermissionsExt::from_mode(0o755)).expect("a program");
    let answer = json!({
        "apiVersion": "credentialprovider.kubelet.k8s.io/v1", "kind": "CredentialProviderResponse",
        "cacheKeyType": "Image", "auth": {PRIVATE: {"username": LOGIN.0, "password": LOGIN.1}},
    });
    let config = json!({
        "apiVersion": "kubelet.config.k8s.io/v1", "kind": "CredentialProviderConfig",
        "providers": [{
            "name": "echo", "apiVersion": "credentialprovider.kubelet.k8s.io/v1", "args": [answer.to_string()],
            "matchImages": [format!("{PRIVATE}/provided")], "defaultCacheDuration": "1m",
        }],
    });
    fs::write(directory.join("config.yaml"), config.to_string()).expect("a file");
}

/// A registry that lets in who shows a token of [`ACCOUNT`] for the audience `models`; its host, and the subjects of all tokens
/// that were shown.
async fn registry_of_tokens() -> (String, Arc<Mutex<Vec<String>>>) {
    let shown: Arc<Mutex<Vec<String>>> = Arc::default();
    let seen_tokens = Arc::clone(&shown);
    let hook = move |seen: &Seen| {
        if !matches!(seen.method.as_str(), "GET" | "HEAD") {
            return None;
        }
        let value = seen.headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        let subject = value.and_then(|value| subject(value.strip_prefix("Bearer ")?));
        seen_tokens.lock().expect("no panic").extend(subject.clone());
        if subject.as_deref() == Some(ACCOUNT) {
            return None;
        }
        let challenge = [(header::WWW_AUTHENTICATE, "Bearer realm=\"https://nowhere.invalid/token\"")];
        Some((StatusCode::UNAUTHORIZED, challenge).into_response())
    };
    let address: IpAddr = ADDRESS.parse().expect("an address");
    let registry = Registry::start_at(address, Some(Box::new(hook))).await.expect("a registry");
    let host = format!("{ADDRESS}:{}", registry.port());
    let layers = [Layer::model_file("weight", "model.gguf", b"by token".to_vec())];
    Pusher::new(&host, "m").model("v1", &layers).await.expect("pushed");
    // It serves until the machine ends.
    std::mem::forget(registry);
    (host, shown)
}

/// The subject of a token for the audience `models`. Its signature is the API server's business.
fn subject(token: &str) -> Option<String> {
    let payload = token.split('.').nth(1)?;
    let claims = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(payload).ok()?;
    let claims: Value = serde_json::from_slice(&claims).ok()?;
    let is_for_models = claims["aud"] == json!(["models"]);
    is_for_models.then(|| claims["sub"].as_str().map(str::to_owned))?
}
