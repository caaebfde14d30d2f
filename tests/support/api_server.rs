//! A Kubernetes API server, as far as a node's plugin uses it: one Node, CachedArtifacts, the NodeArtifacts of the node, secrets.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::Request;
use axum::http::{Method, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use nix::mount::{MsFlags, mount};
use serde_json::{Value, json};
use tokio::sync::watch;

use super::node::Node;
use super::tls::CertificateAuthority;
use super::wire::Secure;

/// Where a pod has what it needs to use the API.
const SECRETS: &str = "/run/secrets/kubernetes.io/serviceaccount";
/// The node that there is.
const NODE: &str = "node-1";
const OWN: &str = "/apis/ocivol.dev/v1alpha1";

/// The API server, which remembers what it was asked.
pub struct ApiServer {
    objects: Objects,
    /// Nobody is answered while this is true.
    is_down: Arc<Mutex<bool>>,
    authority: CertificateAuthority,
    front: Secure,
}

#[derive(Clone)]
struct Objects(Arc<watch::Sender<Kept>>);

#[derive(Clone, Default)]
struct Kept {
    version: u64,
    artifacts: BTreeMap<String, Value>,
    node: Value,
    /// Drivers that are registered on it.
    drivers: Vec<String>,
    of_node: Option<Value>,
    secrets: BTreeMap<String, Value>,
    /// What happened, by its version: in which collection, and the line of a watch.
    events: Vec<(u64, &'static str, Value)>,
    /// Statuses that were written.
    writes: usize,
}

impl ApiServer {
    pub async fn start() -> Self {
        let objects = Objects(Arc::new(watch::Sender::new(Kept::default())));
        let is_down: Arc<Mutex<bool>> = Arc::default();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let plain = listener.local_addr().expect("an address").to_string();
        let (answering, down) = (objects.clone(), Arc::clone(&is_down));
        let router = Router::new().fallback(move |request: Request| {
            let (objects, down) = (answering.clone(), Arc::clone(&down));
            async move {
                if *down.lock().expect("no panic") {
                    return StatusCode::SERVICE_UNAVAILABLE.into_response();
                }
                answer(&objects, request).await
            }
        });
        tokio::spawn(async move { axum::serve(listener, router).await });
        let authority = CertificateAuthority::new();
        let front = Secure::start(&authority.sign("IP:127.0.0.1"), &plain).await;
        let server = Self { objects, is_down, authority, front };
        server.label_node(&[]);
        server
    }

    /// Lets the plugin of `node` find it, and sets what the chart sets with `prepull.enabled`.
    pub fn serve(&self, node: &mut Node) {
        let none: Option<&str> = None;
        mount(Some("run"), "/run", Some("tmpfs"), MsFlags::empty(), none).expect("a /run of the test's own");
        let place = Path::new(SECRETS);
        std::fs::create_dir_all(place).expect("a directory");
        std::fs::copy(self.authority.bundle(), place.join("ca.crt")).expect("a file");
        std::fs::write(place.join("token"), "token").expect("a file");
        std::fs::write(place.join("namespace"), "ocivol").expect("a file");
        let (host, port) = self
            .front
            .host()
            .rsplit_once(':')
            .map(|(host, port)| (host.to_owned(), port.to_owned()))
            .expect("a port");
        for (name, value) in [
            ("KUBERNETES_SERVICE_HOST", host.as_str()),
            ("KUBERNETES_SERVICE_PORT", port.as_str()),
            ("OCIVOL_CACHED_ARTIFACTS", "true"),
        ] {
            node.env.insert(name.to_owned(), value.to_owned());
        }
    }

    /// Answers nobody from now on, or everybody again.
    pub fn is_down(&self, is_down: bool) {
        *self.is_down.lock().expect("no panic") = is_down;
        // Watches that run end.
        self.objects.change(|_| {});
    }

    /// Makes the CachedArtifact `name`, or changes it.
    pub fn apply(&self, name: &str, spec: &Value) {
        self.objects.change(|kept| {
            let (kind, generation) = match kept.artifacts.get(name) {
                Some(before) => {
                    ("MODIFIED", before["metadata"]["generation"].as_i64().unwrap_or_default() + 1)
                }
                None => ("ADDED", 1),
            };
            let metadata = json!({
                "name": name, "generation": generation, "resourceVersion": kept.version.to_string(),
            });
            let mut object = json!({"metadata": metadata, "spec": spec});
            let status = kept.artifacts.get(name).and_then(|before| before.get("status")).cloned();
            if let Some(status) = status.filter(Value::is_object) {
                object["status"] = status;
            }
            kept.artifacts.insert(name.to_owned(), object.clone());
            kept.events.push((kept.version, "cachedartifacts", json!({"type": kind, "object": object})));
        });
    }

    pub fn delete(&self, name: &str) {
        self.objects.change(|kept| {
            let mut object = kept.artifacts.remove(name).expect("it is there");
            object["metadata"]["resourceVersion"] = kept.version.to_string().into();
            kept.events.push((kept.version, "cachedartifacts", json!({"type": "DELETED", "object": object})));
        });
    }

    /// Gives the node these labels, and no others.
    pub fn label_node(&self, labels: &[(&str, &str)]) {
        let labels: BTreeMap<&str, &str> = labels.iter().copied().collect();
        self.objects.change(|kept| {
            let taints = kept.node["spec"]["taints"].clone();
            kept.node = json!({
                "metadata": {"name": NODE, "uid": "node-uid", "labels": labels},
                "spec": {"taints": taints.as_array().cloned().unwrap_or_default()},
            });
            kept.tell_of("nodes");
        });
    }

    /// Gives the node these taints, and no others.
    pub fn taint_node(&self, keys: &[&str]) {
        let taints: Vec<Value> = keys.iter().map(|key| json!({"key": key, "effect": "NoSchedule"})).collect();
        self.objects.change(|kept| {
            kept.node["spec"]["taints"] = taints.into();
            kept.tell_of("nodes");
        });
    }

    /// The node.
    pub fn node(&self) -> Value {
        self.objects.0.borrow().node.clone()
    }

    /// Has kubelet register these drivers, and no others.
    pub fn register(&self, drivers: &[&str]) {
        self.objects.change(|kept| {
            kept.drivers = drivers.iter().map(|&name| name.to_owned()).collect();
            let event = json!({"type": "MODIFIED", "object": kept.csi_node()});
            kept.events.push((kept.version, "csinodes", event));
        });
    }

    /// Makes a pull secret in the plugin's namespace.
    pub fn add_secret(&self, name: &str, docker_config: &Value) {
        use base64::Engine as _;
        let text = base64::engine::general_purpose::STANDARD.encode(docker_config.to_string());
        let secret = json!({
            "metadata": {"uid": name}, "type": "kubernetes.io/dockerconfigjson", "data": {".dockerconfigjson": text},
        });
        self.objects.change(|kept| drop(kept.secrets.insert(name.to_owned(), secret)));
    }

    /// What the controller says of an artifact.
    pub fn status(&self, name: &str) -> Value {
        let kept = self.objects.0.borrow();
        kept.artifacts.get(name).map_or(Value::Null, |artifact| artifact["status"].clone())
    }

    /// What the node says of an artifact.
    pub fn said_of(&self, name: &str) -> Option<Value> {
        let kept = self.objects.0.borrow();
        let all = kept.of_node.as_ref()?["status"]["artifacts"].as_array()?.clone();
        all.into_iter().find(|artifact| artifact["name"] == name)
    }

    /// The phase that the node says an artifact is in; nothing of one that it does not speak of.
    pub fn phase(&self, name: &str) -> String {
        self.said_of(name).map_or_else(String::new, |said| said["phase"].as_str().expect("a word").to_owned())
    }

    /// The node's object.
    pub fn of_node(&self) -> Value {
        self.objects.0.borrow().of_node.clone().unwrap_or_default()
    }

    /// How often the node has written.
    pub fn writes(&self) -> usize {
        self.objects.0.borrow().writes
    }
}

impl Kept {
    /// Has who watches see that the node, or what it says (`nodeartifacts`), is another.
    fn tell_of(&mut self, collection: &'static str) {
        let object = match collection {
            "nodes" => &mut self.node,
            _ => self.of_node.get_or_insert_default(),
        };
        object["metadata"]["resourceVersion"] = self.version.to_string().into();
        let event = json!({"type": "MODIFIED", "object": object});
        self.events.push((self.version, collection, event));
    }

    fn csi_node(&self) -> Value {
        let own = |name: &String| json!({"name": name, "nodeID": NODE, "topologyKeys": null});
        let drivers: Vec<Value> = self.drivers.iter().map(own).collect();
        let owner = json!({"apiVersion": "v1", "kind": "Node", "name": NODE, "uid": "node-uid"});
        json!({
            "metadata": {
                "name": NODE, "resourceVersion": self.version.to_string(), "ownerReferences": [owner],
            },
            // As kubelet makes it.
            "spec": {"drivers": if drivers.is_empty() { Value::Null } else { drivers.into() }},
        })
    }
}

fn list<'a>(version: u64, items: impl IntoIterator<Item = &'a Value>) -> Value {
    let items: Vec<&Value> = items.into_iter().collect();
    json!({"metadata": {"resourceVersion": version.to_string()}, "items": items})
}

/// Of an object what the API server sends who asks for PartialObjectMetadata.
fn partial(object: &Value) -> Value {
    json!({"metadata": object["metadata"]})
}

/// Changes `object` as a merge patch does (RFC 7386).
fn merge(object: &mut Value, patch: &Value) {
    let Some(fields) = patch.as_object() else {
        *object = patch.clone();
        return;
    };
    for (key, value) in fields {
        if !value.is_null() {
            merge(&mut object[key], value);
        } else if let Some(object) = object.as_object_mut() {
            object.remove(key);
        }
    }
}

impl Objects {
    fn change(&self, change: impl FnOnce(&mut Kept)) {
        self.0.send_modify(|kept| {
            kept.version += 1;
            change(kept);
        });
    }

    /// Events of a collection after `version`, as they come.
    fn watch(&self, collection: &'static str, mut version: u64, is_partial: bool) -> Response {
        let mut changes = self.0.subscribe();
        let (sender, receiver) = tokio::sync::mpsc::channel::<Bytes>(1);
        tokio::spawn(async move {
            loop {
                let events = changes.borrow_and_update().events.clone();
                let from = version;
                for (at, of, mut event) in events.into_iter().filter(|(at, ..)| *at > from) {
                    version = at;
                    if is_partial {
                        event["object"] = partial(&event["object"]);
                    }
                    if of == collection && sender.send(format!("{event}\n").into()).await.is_err() {
                        return;
                    }
                }
                tokio::select! {
                    changed = changes.changed() => if changed.is_err() { return },
                    () = sender.closed() => return,
                }
            }
        });
        let lines = futures_util::stream::unfold(receiver, |mut receiver| async move {
            receiver.recv().await.map(|line| (Ok::<_, std::io::Error>(line), receiver))
        });
        Body::from_stream(lines).into_response()
    }
}

async fn answer(objects: &Objects, request: Request) -> Response {
    let (path, query) =
        (request.uri().path().to_owned(), request.uri().query().unwrap_or_default().to_owned());
    let asks = |key: &str| {
        query.split('&').find_map(|part| part.strip_prefix(&format!("{key}="))).map(str::to_owned)
    };
    let method = request.method().clone();
    let accepts = request.headers().get(header::ACCEPT).and_then(|accepts| accepts.to_str().ok());
    let is_partial = accepts.is_some_and(|accepts| accepts.contains("as=PartialObjectMetadata"));
    let body = axum::body::to_bytes(request.into_body(), 1 << 20).await.expect("a body");
    let from = asks("resourceVersion").map_or(0, |version| version.parse().expect("a version"));
    let found = |object: Option<Value>| match object {
        Some(object) => object.to_string().into_response(),
        None => StatusCode::NOT_FOUND.into_response(),
    };
    let kept = objects.0.borrow().clone();
    let own = format!("{OWN}/nodeartifacts");
    if method == Method::GET && asks("watch").is_some() {
        let collections = ["nodes", "csinodes", "cachedartifacts", "nodeartifacts"];
        let asked = collections.into_iter().find(|name| path.rsplit('/').next() == Some(*name));
        return objects.watch(asked.expect("a collection"), from, is_partial);
    }
    let node = if is_partial { partial(&kept.node) } else { kept.node.clone() };
    if method == Method::GET && path == format!("/api/v1/nodes/{NODE}") {
        return found(Some(node));
    }
    if method == Method::GET && path == format!("{OWN}/cachedartifacts") {
        return found(Some(list(kept.version, kept.artifacts.values())));
    }
    if method == Method::GET && path == "/api/v1/nodes" {
        return found(Some(list(kept.version, [&node])));
    }
    if method == Method::GET && path == "/apis/storage.k8s.io/v1/csinodes" {
        return found(Some(list(kept.version, [&kept.csi_node()])));
    }
    if method == Method::PATCH && path == format!("/api/v1/nodes/{NODE}") {
        let mut patch: Value = serde_json::from_slice(&body).expect("JSON");
        // As optimistic locking has it.
        if patch["metadata"]["resourceVersion"] != kept.node["metadata"]["resourceVersion"] {
            return StatusCode::CONFLICT.into_response();
        }
        patch["metadata"]["resourceVersion"].take();
        objects.change(|kept| {
            merge(&mut kept.node, &patch);
            kept.tell_of("nodes");
        });
        return "{}".into_response();
    }
    if method == Method::GET && path == own {
        return found(Some(list(kept.version, &kept.of_node)));
    }
    let artifact =
        path.strip_prefix(&format!("{OWN}/cachedartifacts/")).and_then(|rest| rest.strip_suffix("/status"));
    if let (&Method::PATCH, Some(name)) = (&method, artifact) {
        let patch: Value = serde_json::from_slice(&body).expect("JSON");
        objects.change(|kept| {
            let object = kept.artifacts.get_mut(name).expect("it is there");
            merge(&mut object["status"], &patch["status"]);
            object["metadata"]["resourceVersion"] = kept.version.to_string().into();
            let event = json!({"type": "MODIFIED", "object": object});
            kept.events.push((kept.version, "cachedartifacts", event));
        });
        return "{}".into_response();
    }
    if let Some(name) = path.strip_prefix("/api/v1/namespaces/ocivol/secrets/") {
        return found(kept.secrets.get(name).cloned());
    }
    if method == Method::POST && path == own {
        let object = serde_json::from_slice(&body).expect("JSON");
        objects.change(|kept| {
            kept.of_node = Some(object);
            kept.tell_of("nodeartifacts");
        });
        return StatusCode::CREATED.into_response();
    }
    if method == Method::PATCH && path == format!("{own}/{NODE}/status") {
        if kept.of_node.is_none() {
            return StatusCode::NOT_FOUND.into_response();
        }
        let patch: Value = serde_json::from_slice(&body).expect("JSON");
        objects.change(|kept| {
            kept.writes += 1;
            kept.of_node.get_or_insert_default()["status"] = patch["status"].clone();
            kept.tell_of("nodeartifacts");
        });
        return "{}".into_response();
    }
    panic!("the plugin has no right to {method} {path}");
}
