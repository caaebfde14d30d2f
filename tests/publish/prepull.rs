//! Content that is on the node before its pods: CachedArtifacts of an API server, and what becomes of them.

use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::body::Body;
use axum::http::{Method, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use base64::Engine as _;
use ocivol::demo::push::Layer;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::api_server::ApiServer;
use crate::support::node::BINARY;
use crate::support::{Node, Scripted, eventually, isolated, noise};

/// A node that asks `api` what is wanted of it, and collects whatever may go when it is told to.
async fn node(registry: &Scripted, api: &ApiServer) -> Node {
    let mut node = Node::on_host(&["--plain-http", &registry.host(), "--gc-min-age", "0"]);
    api.serve(&mut node);
    node.run_registered().await;
    node
}

async fn until(api: &ApiServer, name: &str, phase: &str) {
    eventually(&format!("{name} is {phase:?}"), || api.phase(name) == phase).await;
}

/// The references of what is left of the store, after all has gone that may go.
async fn left(node: &Node) -> Vec<String> {
    let (done, report) = node.command(&["gc"]).await;
    assert!(done, "{report}");
    let (_, listing) = node.command(&["ls"]).await;
    let trees = listing.as_array().expect("trees").iter();
    trees.map(|tree| tree["references"][0].as_str().expect("a reference").to_owned()).collect()
}

fn blobs(registry: &Scripted) -> usize {
    registry.count(&Method::GET, "/blobs/")
}

#[test]
fn an_artifact_is_here_before_its_pod_and_goes_when_nobody_wants_it() {
    isolated(async {
        let content = noise(1, 3 << 20);
        let registry = Scripted::with_model(content.clone()).await;
        let api = ApiServer::start().await;
        api.label_node(&[("zone", "a")]);
        let reference = registry.reference("m:v1");
        let of =
            |zone: &str| json!({"reference": reference, "nodeSelector": {"matchLabels": {"zone": zone}}});
        api.apply("llama", &of("a"));
        api.apply("elsewhere", &of("b"));
        let node = node(&registry, &api).await;
        until(&api, "llama", "Ready").await;
        let said = api.said_of("llama").expect("said");
        assert!(said["digest"].as_str().is_some_and(|digest| digest.starts_with("sha256:")), "{said}");
        assert_eq!((&said["bytes"], &said["generation"]), (&json!(3 << 20), &json!(1)), "{said}");
        let own = api.of_node();
        assert_eq!(own["metadata"]["ownerReferences"][0]["uid"], "node-uid", "{own}");
        assert_eq!(
            (&own["status"]["ready"], &own["status"]["pinned"]),
            (&json!(1), &json!("3.00 MiB")),
            "{own}"
        );
        assert_eq!(api.phase("elsewhere"), "");

        // Its pod has it without a download.
        registry.forget();
        let volume = node.volume("pod");
        node.publish(&volume, &reference, &[]).await.expect("published");
        assert!(std::fs::read(volume.target.join("w")).expect("read") == content);
        assert_eq!(blobs(&registry), 0);

        // It stays when no pod has it, and goes when it is no longer for this node.
        node.kubelet.unpublish(&volume).await.expect("unpublished");
        assert_eq!(left(&node).await, [reference.as_str()]);
        api.label_node(&[("zone", "c")]);
        until(&api, "llama", "").await;
        assert!(left(&node).await.is_empty());

        // It comes again with its label, and goes with its object.
        api.label_node(&[("zone", "a")]);
        until(&api, "llama", "Ready").await;
        assert_eq!(left(&node).await, [reference.as_str()]);
        api.delete("llama");
        until(&api, "llama", "").await;
        assert!(left(&node).await.is_empty());
        assert!(api.writes() < 20, "{}", api.writes());
    });
}

#[test]
fn what_is_kept_outlives_the_plugin_without_registry_and_api_server() {
    isolated(async {
        let registry = Scripted::with_model(noise(1, 1 << 20)).await;
        let api = ApiServer::start().await;
        let reference = registry.reference("m:v1");
        api.apply("llama", &json!({"reference": reference, "spreadSeconds": 1}));
        let mut node = node(&registry, &api).await;
        until(&api, "llama", "Ready").await;
        node.stop().await;

        api.is_down(true);
        registry.script(|_| Some(StatusCode::SERVICE_UNAVAILABLE.into_response()));
        node.run_registered().await;
        assert_eq!(left(&node).await, [reference.as_str()], "nobody has said that it may go");
        node.stop().await;

        // Now it is known to be wanted, and the registry is not needed.
        api.is_down(false);
        registry.forget();
        let before = api.writes();
        node.run_registered().await;
        eventually("its status", || api.writes() > before && api.phase("llama") == "Ready").await;
        assert_eq!(registry.requests().len(), 0);

        // What a later version has written is not understood, and no reason to let it go.
        api.apply("llama", &json!({"reference": reference, "retention": "UntilTomorrow"}));
        api.apply("other", &json!({"reference": registry.reference("absent:v1")}));
        until(&api, "other", "Failed").await;
        assert_eq!(left(&node).await, [reference.as_str()]);
        node.stop().await;
        let before = api.writes();
        node.run_registered().await;
        eventually("its status", || api.writes() > before && api.phase("other") == "Failed").await;
        assert_eq!((left(&node).await, api.phase("llama").as_str()), (vec![reference.clone()], ""));

        // Nobody would let it go any more where this is turned off.
        node.stop().await;
        node.env.remove("OCIVOL_CACHED_ARTIFACTS");
        node.run_registered().await;
        assert!(left(&node).await.is_empty());
    });
}

#[test]
fn an_old_reference_is_kept_until_the_new_one_is_here() {
    isolated(async {
        let registry = Scripted::with_models(1, 2).await;
        let api = ApiServer::start().await;
        let [old, new] = [0, 1].map(|number| registry.reference(&format!("m{number}:v1")));
        api.apply("llama", &json!({"reference": old}));
        let node = node(&registry, &api).await;
        until(&api, "llama", "Ready").await;

        let is_held = Arc::new(AtomicBool::new(true));
        let holds = Arc::clone(&is_held);
        registry.script(move |seen| {
            let is_new = seen.path.starts_with("/v2/m1/") && holds.load(Ordering::SeqCst);
            is_new.then(|| (StatusCode::NOT_FOUND, "not yet").into_response())
        });
        api.apply("llama", &json!({"reference": new}));
        until(&api, "llama", "Failed").await;
        let said = api.said_of("llama").expect("said");
        assert_eq!((&said["reason"], &said["generation"]), (&json!("NotFound"), &json!(2)), "{said}");
        assert!(said["message"].as_str().is_some_and(|text| text.contains("m1")), "{said}");
        assert_eq!(left(&node).await, [old.as_str()]);

        // It is tried again by itself.
        is_held.store(false, Ordering::SeqCst);
        until(&api, "llama", "Ready").await;
        assert_eq!(left(&node).await, [new.as_str()]);

        // What is suspended stays, and nothing more is pulled; what is here is not said to be what it is not.
        registry.forget();
        let unlike = json!({"reference": new, "attributes": {"include": "w"}, "suspend": true});
        for (generation, spec, phase) in [
            (3, json!({"reference": old, "suspend": true}), "Waiting"),
            (4, json!({"reference": new, "suspend": true}), "Ready"),
            (5, unlike, "Waiting"),
        ] {
            api.apply("llama", &spec);
            let is_seen = || api.said_of("llama").is_some_and(|said| said["generation"] == generation);
            eventually("its next generation", is_seen).await;
            let said = api.said_of("llama").expect("said");
            assert_eq!(said["phase"], phase, "{said}");
            assert!(phase == "Ready" || said["reason"] == "Suspended", "{said}");
            assert_eq!(left(&node).await, [new.as_str()]);
        }
        assert_eq!(registry.requests().len(), 0);
    });
}

#[test]
fn what_does_not_fit_or_cannot_be_is_said_and_not_downloaded() {
    isolated(async {
        let registry = Scripted::with_models(40, 1).await;
        let api = ApiServer::start().await;
        let mut node = Node::on_host(&["--plain-http", &registry.host()]);
        api.serve(&mut node);
        std::fs::create_dir_all(&node.root).expect("a directory");
        node.limit_store("24m");
        api.apply("large", &json!({"reference": registry.reference("m0:v1")}));
        api.apply("wrong", &json!({"reference": registry.reference("M:v1")}));
        let attributes = json!({"inclued": "*"});
        api.apply("odd", &json!({"reference": registry.reference("m0:v1"), "attributes": attributes}));
        node.run_registered().await;
        until(&api, "large", "NoSpace").await;
        for (name, words) in [("wrong", "M"), ("odd", "inclued")] {
            until(&api, name, "Failed").await;
            let said = api.said_of(name).expect("said");
            assert_eq!(said["reason"], "InvalidSpec", "{said}");
            assert!(said["message"].as_str().is_some_and(|text| text.contains(words)), "{said}");
        }
        assert_eq!(blobs(&registry), 0);
        assert_eq!(api.of_node()["status"]["failed"], 3);
    });
}

#[test]
fn a_secret_of_the_plugins_namespace_is_shown_and_gives_pods_no_right() {
    isolated(async {
        let registry = Scripted::with_model(noise(1, 1000)).await;
        let accepted = format!("Basic {}", base64::engine::general_purpose::STANDARD.encode("user:hunter2"));
        registry.script(move |seen| {
            let shown = seen.headers.get(header::AUTHORIZATION).and_then(|shown| shown.to_str().ok());
            let refuse = || (StatusCode::UNAUTHORIZED, [(header::WWW_AUTHENTICATE, "Basic realm=\"r\"")]);
            (shown != Some(accepted.as_str())).then(|| refuse().into_response())
        });
        let api = ApiServer::start().await;
        let reference = registry.reference("m:v1");
        api.apply("llama", &json!({"reference": reference, "pullSecret": "regcred"}));
        let node = node(&registry, &api).await;
        until(&api, "llama", "Failed").await;
        let said = api.said_of("llama").expect("said");
        let message = said["message"].as_str().unwrap_or_default();
        assert!(message.contains("no secret regcred") && message.contains("namespace, ocivol"), "{said}");

        let config = json!({"auths": {registry.host(): {"username": "user", "password": "hunter2"}}});
        api.add_secret("regcred", &config);
        until(&api, "llama", "Ready").await;
        let own: Value = api.of_node();
        assert!(!own.to_string().contains("hunter2") && !node.logged().contains("hunter2"));

        let volume = node.volume("pod");
        node.publish(&volume, &reference, &[]).await.expect_err("it has no right of its own");
        registry.forget();
        node.publish_as(&volume, &reference, &[], ("user", "hunter2")).await.expect("it has shown its own");
        assert_eq!(blobs(&registry), 0);
    });
}

#[test]
fn a_pod_goes_before_what_nobody_waits_for() {
    isolated(async {
        let registry = Scripted::start().await;
        let large = Layer::model_file("weight", "w", noise(1, 24 << 20));
        for number in 0..8 {
            let pusher = registry.pusher(&format!("ahead/{number}"));
            pusher.model("v1", std::slice::from_ref(&large)).await.expect("pushed");
        }
        let small = Layer::model_file("weight", "w", noise(2, 1 << 20));
        registry.pusher("pod").model("v1", &[small]).await.expect("pushed");
        // What comes ahead does not end by itself.
        registry.script(|seen| {
            let is_held = seen.method == Method::GET
                && seen.path.starts_with("/v2/ahead/")
                && seen.path.contains("/blobs/");
            is_held.then(|| {
                Response::new(Body::from_stream(futures_util::stream::pending::<std::io::Result<String>>()))
            })
        });
        let api = ApiServer::start().await;
        for number in 0..8 {
            let reference = registry.reference(&format!("ahead/{number}:v1"));
            api.apply(&format!("m{number}"), &json!({"reference": reference}));
        }
        let node = node(&registry, &api).await;
        eventually("some are queued", || {
            (0..8).filter(|number| api.phase(&format!("m{number}")) == "Waiting").count() == 6
        })
        .await;
        let volume = node.volume("pod");
        node.publish(&volume, &registry.reference("pod:v1"), &[]).await.expect("published");
        // What runs ends when it is no longer wanted, so that the plugin can.
        for number in 0..8 {
            api.delete(&format!("m{number}"));
        }
        eventually("nothing is said any more", || api.of_node()["status"]["artifacts"] == json!([])).await;
    });
}

/// The controller's process.
struct Controller {
    process: Child,
    _directory: TempDir,
}

impl Controller {
    /// Starts it for the API server that `node` asks.
    fn start(registry: &Scripted, node: &Node, more: &[&str]) -> Self {
        let directory = tempfile::Builder::new().prefix("ocivol-c-").tempdir().expect("a directory");
        let socket = format!("unix://{}", directory.path().join("csi.sock").display());
        let process = Command::new(BINARY)
            .args([
                "controller",
                "--endpoint",
                &socket,
                "--health-addr",
                "",
                "--plain-http",
                &registry.host(),
            ])
            .args(more)
            .envs(&node.env)
            .stdin(Stdio::null())
            .spawn()
            .expect("it starts");
        Self { process, _directory: directory }
    }
}

impl Drop for Controller {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn a_controller_resolves_once_for_all_nodes_and_sums_up_what_they_have() {
    isolated(async {
        let registry = Scripted::with_model(noise(1, 2 << 20)).await;
        let api = ApiServer::start().await;
        let reference = registry.reference("m:v1");
        api.apply("llama", &json!({"reference": reference}));
        api.apply("absent", &json!({"reference": registry.reference("absent:v1")}));
        let mut node = Node::on_host(&["--plain-http", &registry.host()]);
        api.serve(&mut node);
        let _controller = Controller::start(&registry, &node, &[]);
        eventually("the digest", || api.status("llama")["digest"].is_string()).await;
        let resolved = api.status("llama");
        // No plugin has said anything yet.
        assert_eq!(
            resolved["nodes"],
            json!({"desired": 0, "ready": 0, "pulling": 0, "failed": 0}),
            "{resolved}"
        );

        // The tag moves, and the nodes pull what it was.
        let other = [Layer::model_file("weight", "w", noise(2, 1 << 20))];
        registry.pusher("m").model("v1", &other).await.expect("pushed");
        node.run_registered().await;
        until(&api, "llama", "Ready").await;
        let said = api.said_of("llama").expect("said");
        assert_eq!((&said["digest"], &said["bytes"]), (&resolved["digest"], &json!(2 << 20)), "{said}");

        let ready = |status: &Value| {
            let conditions = status["conditions"].as_array().cloned().unwrap_or_default();
            conditions.iter().any(|it| it["type"] == "Ready" && it["status"] == "True")
        };
        eventually("the sum", || ready(&api.status("llama"))).await;
        let sum = api.status("llama");
        assert_eq!((&sum["nodes"]["ready"], &sum["size"]), (&json!(1), &json!("2.00 MiB")), "{sum}");
        assert_eq!((&sum["digest"], &sum["observedGeneration"]), (&resolved["digest"], &json!(1)), "{sum}");

        // What is not there is said of the registry and of the node.
        eventually("what the node lacks", || api.status("absent")["nodes"]["failed"] == 1).await;
        let absent = api.status("absent");
        let condition =
            absent["conditions"].as_array().and_then(|all| all.iter().find(|it| it["type"] == "Resolved"));
        assert!(condition.is_some_and(|it| it["status"] == "False"), "{absent}");
        assert_eq!(
            (&absent["failing"][0]["node"], &absent["failing"][0]["reason"]),
            (&json!("node-1"), &json!("NotFound"))
        );
    });
}

#[test]
fn nodes_show_what_they_have_and_are_free_for_pods_when_they_have_it() {
    isolated(async {
        let registry = Scripted::with_model(noise(1, 2 << 20)).await;
        let is_held = Arc::new(AtomicBool::new(true));
        let holds = Arc::clone(&is_held);
        registry.script(move |seen| {
            let is_blob = seen.path.contains("/blobs/") && holds.load(Ordering::SeqCst);
            is_blob.then(|| (StatusCode::NOT_FOUND, "not yet").into_response())
        });
        let api = ApiServer::start().await;
        let (own, others) = ("csi.ocivol.dev/agent-not-ready", "example.com/other");
        api.label_node(&[("zone", "a"), ("artifact.ocivol.dev/gone", "000000000000")]);
        api.taint_node(&[own, others]);
        let reference = registry.reference("m:v1");
        api.apply("llama", &json!({"reference": reference, "nodeLabel": true}));
        api.apply("quiet", &json!({"reference": reference, "suspend": true}));
        let mut node = Node::on_host(&["--plain-http", &registry.host()]);
        api.serve(&mut node);
        let _controller = Controller::start(&registry, &node, &["--node-labels", "--startup-taint"]);
        node.run_registered().await;
        let labels = |key: &str| api.node()["metadata"]["labels"][key].as_str().map(str::to_owned);
        let taints = || api.node()["spec"]["taints"].clone();
        // A label of what nobody wants any more goes, and the taint stays until the model is there and the driver registered.
        eventually("the old label is gone", || labels("artifact.ocivol.dev/gone").is_none()).await;
        until(&api, "llama", "Failed").await;
        api.register(&["csi.ocivol.dev", "other.dev"]);
        is_held.store(false, Ordering::SeqCst);
        until(&api, "llama", "Ready").await;
        eventually("the label", || labels("artifact.ocivol.dev/llama").is_some()).await;
        let digest = api.said_of("llama").expect("said")["digest"].clone();
        let digits = labels("artifact.ocivol.dev/llama").expect("a label");
        assert_eq!(digest.as_str().map(|digest| &digest[7..19]), Some(digits.as_str()));
        eventually("the taint is gone", || taints() == json!([{"key": others, "effect": "NoSchedule"}]))
            .await;
        assert_eq!(labels("zone").as_deref(), Some("a"));
        assert_eq!(labels("artifact.ocivol.dev/quiet"), None);
        let condition = |status: &Value, kind: &str| {
            let all = status["conditions"].as_array().cloned().unwrap_or_default();
            all.into_iter().find(|it| it["type"] == kind).map(|it| it["status"].clone())
        };
        eventually("it is said", || condition(&api.status("llama"), "Labelled") == Some(json!("True"))).await;

        // The label goes with the object.
        api.delete("llama");
        eventually("the label is gone", || labels("artifact.ocivol.dev/llama").is_none()).await;
    });
}

#[test]
fn a_node_is_not_waited_for_for_ever_and_not_free_without_the_driver() {
    isolated(async {
        let registry = Scripted::with_model(noise(1, 1000)).await;
        let api = ApiServer::start().await;
        let own = "csi.ocivol.dev/agent-not-ready";
        api.taint_node(&[own]);
        api.apply("absent", &json!({"reference": registry.reference("absent:v1"), "nodeLabel": true}));
        let mut node = Node::on_host(&["--plain-http", &registry.host()]);
        api.serve(&mut node);
        let _controller =
            Controller::start(&registry, &node, &["--startup-taint", "--startup-taint-timeout", "0"]);
        let condition = |status: &Value| {
            let all = status["conditions"].as_array().cloned().unwrap_or_default();
            all.into_iter().find(|it| it["type"] == "Labelled").map(|it| it["reason"].clone())
        };
        eventually("it is said", || condition(&api.status("absent")) == Some(json!("NotAllowed"))).await;
        assert_eq!(api.node()["spec"]["taints"][0]["key"], own, "no driver is there");
        api.register(&["csi.ocivol.dev"]);
        eventually("the taint is gone", || api.node()["spec"]["taints"] == json!([])).await;
    });
}

#[test]
fn what_nobody_waits_for_is_held_back_until_a_pod_does() {
    isolated(async {
        let content = noise(1, 16 << 20);
        let registry = Scripted::with_model(content.clone()).await;
        let api = ApiServer::start().await;
        let reference = registry.reference("m:v1");
        api.apply("llama", &json!({"reference": reference}));
        // It would take 16 seconds.
        let mut node =
            Node::on_host(&["--plain-http", &registry.host(), "--prepull-bytes-per-second", "1MiB"]);
        api.serve(&mut node);
        node.run_registered().await;
        eventually("a part of it", || api.said_of("llama").is_some_and(|said| said["percent"] != json!(0)))
            .await;
        assert_eq!(api.phase("llama"), "Pulling");
        let began = std::time::Instant::now();
        let volume = node.volume("pod");
        node.publish(&volume, &reference, &[]).await.expect("published");
        // Seconds, where at that rate most of it would be left: what was sent already of a connection is not sent again.
        assert!(began.elapsed().as_secs() < 10, "{:?}", began.elapsed());
        assert!(std::fs::read(volume.target.join("w")).expect("read") == content);
        until(&api, "llama", "Ready").await;
    });
}

#[test]
fn what_is_not_kept_is_brought_once_and_what_is_here_needs_no_registry_to_be_said() {
    isolated(async {
        let registry = Scripted::with_models(1, 2).await;
        let api = ApiServer::start().await;
        let [gone, stays] = [0, 1].map(|number| registry.reference(&format!("m{number}:v1")));
        api.apply("gone", &json!({"reference": gone, "retention": "BestEffort"}));
        api.apply("stays", &json!({"reference": stays}));
        let mut node = node(&registry, &api).await;
        until(&api, "gone", "Ready").await;
        until(&api, "stays", "Ready").await;
        assert_eq!(api.of_node()["status"]["pinned"], "1.00 MiB");
        assert_eq!(left(&node).await, [stays.as_str()]);
        node.stop().await;

        // Nothing is asked of the registry, also for an object that was changed meanwhile.
        registry.forget();
        registry.script(|_| Some(StatusCode::SERVICE_UNAVAILABLE.into_response()));
        api.apply("stays", &json!({"reference": stays, "spreadSeconds": 3600}));
        let before = api.writes();
        node.run_registered().await;
        let is_said = |name: &str, generation: i64| {
            api.said_of(name).is_some_and(|said| said["generation"] == generation)
        };
        eventually("what is here", || api.writes() > before && is_said("stays", 2)).await;
        assert_eq!((api.phase("stays").as_str(), api.phase("gone").as_str()), ("Ready", "Waiting"));
        assert_eq!(api.said_of("gone").expect("said")["reason"], "Collected");
        assert_eq!(registry.requests().len(), 0);

        // Other attributes are other content.
        let attributes = json!({"include": "w"});
        api.apply("stays", &json!({"reference": stays, "attributes": attributes, "spreadSeconds": 3600}));
        eventually("its third generation", || is_said("stays", 3)).await;
        assert_eq!(api.said_of("stays").expect("said")["reason"], "Spread");
    });
}
