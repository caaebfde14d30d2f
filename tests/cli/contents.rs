//! What commands say of content, and what they bring where.

use ocivol::demo::push::Layer;
use ocivol::demo::tarball::{Tarball, gzip};

use super::commands::{command, failure, json, model, ocivol, run, stderr, stdout};
use crate::support::debian_registry::DebianRegistry;
use crate::support::node::BINARY;
use crate::support::{Node, Scripted, isolated, noise};

#[test]
fn a_dry_run_says_what_is_here_and_what_would_come() {
    isolated(async {
        let (registry, reference) = model().await;
        let node = Node::on_host(&[]);
        let dry = ["pull", "--dry-run", &reference];
        let text = stdout(&ocivol(&node, &registry, &dry).await);
        assert!(
            text.ends_with(&format!(
                "{reference}: 3.00 MiB in 2 layers; 0 B are here, 3.00 MiB would be fetched\n"
            )),
            "{text}"
        );
        assert!(!node.root.exists());
        assert_eq!(registry.count(&axum::http::Method::GET, "/blobs/"), 0);
        stdout(&ocivol(&node, &registry, &["pull", &reference, "--include", "*.json"]).await);
        let plan = json(&ocivol(&node, &registry, &[&["--output", "json"], &dry[..]].concat()).await);
        assert_eq!(
            (plan["here"].as_u64(), plan["missing"].as_u64(), plan["family"].as_str()),
            (Some(2), Some(3 << 20), Some("modelpack"))
        );
        stdout(&ocivol(&node, &registry, &["pull", &reference]).await);
        let plan = json(&ocivol(&node, &registry, &[&["--output", "json"], &dry[..]].concat()).await);
        assert_eq!(plan["missing"], 0);
        assert_eq!(plan["layers"], 2);
        let never = [&dry[..], &["--pull-policy", "never"]].concat();
        let (code, text) = failure(&ocivol(&node, &registry, &never).await);
        assert!(code == 2 && text.contains("--dry-run asks the registry"), "{text}");
    });
}

#[test]
fn regression_after_a_pull_nothing_is_missing() {
    isolated(async {
        let registry = Scripted::start().await;
        let node = Node::on_host(&[]);
        // The same layer twice, as images have them that were built without a change.
        let layer =
            || Layer::archive(gzip(&Tarball::new().file("x", &noise(3, 9_000)).finish()).expect("memory"));
        registry.pusher("app").image("v1", &[layer(), layer()], &[]).await.expect("pushed");
        let twice = registry.reference("app:v1");
        let (other, model) = model().await;
        for (registry, reference, flags) in
            [(&registry, &twice, &[] as &[&str]), (&other, &model, &["--layout", "oci-layout"])]
        {
            let plan = async || {
                let words = [&["--output", "json", "pull", "--dry-run", reference], flags].concat();
                json(&ocivol(&node, registry, &words).await)
            };
            let before = plan().await;
            assert_eq!((&before["missing"], before["here"].as_u64()), (&before["size"], Some(0)), "{before}");
            stdout(&ocivol(&node, registry, &[&["pull", reference], flags].concat()).await);
            let after = plan().await;
            assert_eq!((&after["here"], after["missing"].as_u64()), (&before["size"], Some(0)), "{after}");
            let text = stdout(&ocivol(&node, registry, &[&["inspect", reference], flags].concat()).await);
            assert!(text.contains("in store   ") && !text.contains("; nothing of"), "{text}");
            let found = json(
                &ocivol(&node, registry, &[&["--output", "json", "inspect", reference], flags].concat())
                    .await,
            );
            assert_eq!(found["here"], found["size"], "{found}");
        }
    });
}

#[test]
fn a_dry_run_fails_as_the_pull_would() {
    isolated(async {
        let registry = Scripted::start().await;
        let node = Node::on_host(&[]);
        let layer = Layer {
            media_type: "application/y".into(),
            content: "1".into(),
            annotations: serde_json::json!({}),
        };
        registry.pusher("odd").artifact("v1", "", "application/x", "{}", &[layer]).await.expect("pushed");
        let reference = registry.reference("odd:v1");
        let said = async |flags: &[&str]| {
            let words = [&["--output", "json", "pull", &reference], flags].concat();
            let (code, text) = failure(&ocivol(&node, &registry, &words).await);
            let said: serde_json::Value =
                serde_json::from_str(text.lines().last().expect("a line")).expect("JSON");
            (code, said["error"]["kind"].as_str().map(str::to_owned))
        };
        assert_eq!(said(&["--dry-run"]).await, said(&[]).await);
        assert_eq!(said(&["--dry-run"]).await, (1, Some("failed-precondition".to_owned())));
    });
}

#[test]
fn a_reference_is_resolved_without_a_store() {
    isolated(async {
        let registry = DebianRegistry::start().await;
        let layers = [Layer::model_file("weight", "model.safetensors", noise(1, 3 << 20))];
        let digest = registry.pusher("m").model("v1", &layers).await.expect("pushed");
        let reference = registry.reference("m:v1");
        let home = tempfile::tempdir().expect("a directory");
        let resolve = async |flags: &[&str]| {
            let mut command = std::process::Command::new(BINARY);
            command.args(flags).args(["resolve", "--plain-http", &registry.host(), &reference]);
            command.env("HOME", home.path()).env("XDG_RUNTIME_DIR", home.path());
            run(command).await
        };
        assert_eq!(stdout(&resolve(&[]).await), format!("{digest}  modelpack  3.00 MiB\n"));
        let found = json(&resolve(&["--output", "json"]).await);
        let expected = serde_json::json!({
            "reference": reference, "digest": digest, "manifest": digest, "family": "modelpack", "size": 3 << 20,
        });
        assert_eq!(found, expected);
        assert!(std::fs::read_dir(home.path()).expect("a directory").next().is_none());
    });
}

#[test]
fn a_platform_without_an_index_is_compared_with_the_images_config() {
    isolated(async {
        let registry = Scripted::start().await;
        let node = Node::on_host(&[]);
        let layers = [Layer::archive(Tarball::new().file("x", b"x").finish())];
        registry.pusher("app").image("v1", &layers, &[]).await.expect("pushed");
        let reference = registry.reference("app:v1");
        let config = "linux/amd64";
        stdout(&ocivol(&node, &registry, &["pull", &reference, "--platform", config]).await);
        let (code, text) =
            failure(&ocivol(&node, &registry, &["pull", &reference, "--platform", "windows/amd64"]).await);
        assert_eq!(code, 1);
        let expected = format!(
            "ocivol: {reference} is an image for {config}, and not for windows/amd64; leave out --platform, or name another \
             reference\n"
        );
        assert_eq!(text, expected);
        // Volumes keep their rule.
        stdout(&ocivol(&node, &registry, &["pull", &reference]).await);
    });
}

#[test]
fn an_index_that_leaves_the_choice_is_shown_by_inspect() {
    isolated(async {
        let registry = Scripted::start().await;
        let node = Node::on_host(&[]);
        let pusher = registry.pusher("m");
        let mut children = Vec::new();
        for tag in ["q4", "q8"] {
            let layers = [Layer::model_file("weight", "w", tag)];
            children.push(pusher.model(tag, &layers).await.expect("pushed"));
        }
        let manifests: Vec<_> = children
            .iter()
            .map(|digest| {
                serde_json::json!({
                    "mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": digest, "size": 1,
                    "artifactType": "application/vnd.cncf.model.manifest.v1+json",
                })
            })
            .collect();
        let index = serde_json::json!({
            "schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": manifests,
        });
        pusher
            .manifest("all", "application/vnd.oci.image.index.v1+json", &index.to_string())
            .await
            .expect("pushed");
        let reference = registry.reference("m:all");
        let text = stdout(&ocivol(&node, &registry, &["inspect", &reference]).await);
        for digest in &children {
            assert!(text.contains(&format!("child      {digest}  ")), "{text}");
        }
        let found = json(&ocivol(&node, &registry, &["inspect", "--output", "json", &reference]).await);
        assert_eq!(
            (found["manifest"].is_null(), found["children"].as_array().map(Vec::len)),
            (true, Some(2))
        );
        let (code, text) = failure(&ocivol(&node, &registry, &["resolve", &reference]).await);
        assert!(code == 1 && text.contains("--artifact-type or --variant"), "{text}");
    });
}

#[test]
fn several_references_are_pulled_one_after_the_other() {
    isolated(async {
        let registry = Scripted::with_models(1, 2).await;
        let node = Node::on_host(&[]);
        let (one, two) = (registry.reference("m0:v1"), registry.reference("m1:v1"));
        let output = ocivol(&node, &registry, &["pull", "--output", "json", &one, &two]).await;
        let text = stdout(&output);
        let pulled = serde_json::Deserializer::from_str(&text).into_iter::<serde_json::Value>();
        let pulled: Vec<String> =
            pulled.map(|one| one.expect("JSON")["reference"].as_str().expect("a name").to_owned()).collect();
        assert_eq!(pulled, [one.clone(), two]);
        // What was pulled before one that fails is there.
        let absent = registry.reference("absent:v1");
        let output = run(command(&node, &registry, &["pull", &one, &absent])).await;
        assert_eq!(output.status.code(), Some(1));
        assert!(String::from_utf8_lossy(&output.stdout).contains(&one));
        assert!(stderr(&output).contains("absent:v1 does not exist"), "{}", stderr(&output));
    });
}
