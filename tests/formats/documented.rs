//! `docs/layouts.md` by the letter: the artifact of each example is pushed, its PodSpec is read as Kubernetes reads it,
//! and the volume holds the files that the example prints.

use std::path::Path;

use k8s_openapi::api::core::v1::PodSpec;
use ocivol::demo::push::Layer;
use ocivol::demo::tarball::{Tarball, gzip};
use ocivol::oci::media_type;
use serde_json::json;

use crate::formats::families::push_ollama;
use crate::formats::model_families::weights;
use crate::support::debian_registry::DebianRegistry;
use crate::support::{Node, fixtures, isolated};

/// The registry of the examples.
const EXAMPLE: &str = "registry.example.com";

/// A volume of the document, and the files that it is said to show.
struct Example {
    pod: PodSpec,
    files: Vec<String>,
}

/// Every PodSpec that is followed by a list of files.
fn examples() -> Vec<Example> {
    let text = include_str!("../../docs/layouts.md");
    let blocks: Vec<&str> = text.split("\n```").collect();
    // Between fences: what opens a block begins with its language.
    let mut found = Vec::new();
    for (number, block) in blocks.iter().enumerate() {
        let Some(yaml) = block.strip_prefix("yaml\nspec:") else { continue };
        let yaml: serde_json::Value = serde_yaml_ng::from_str(&format!("spec:{yaml}")).expect("YAML");
        let pod: PodSpec = serde_json::from_value(yaml["spec"].clone()).expect("a PodSpec");
        let again = serde_json::to_value(&pod).expect("JSON");
        assert_eq!(again, yaml["spec"], "a field that Kubernetes does not know");
        let listed = blocks[number + 2].strip_prefix("\n$ cd ").expect("the list of files");
        let files = listed.lines().filter_map(|line| line.strip_prefix("./")).map(str::to_owned).collect();
        found.push(Example { pod, files });
    }
    found
}

/// Pushes what the document's references name.
async fn push_all(registry: &DebianRegistry) {
    for (tool, made_as, repository, tag) in [
        ("buildah", "image", "images/app", "v1"),
        ("tkn", "bundle", "tekton/bundle", "v1"),
        ("modelpack", "raw", "models/tiny", "v1"),
        ("modelpack", "tar", "models/tiny-archives", "v1"),
        ("oras", "directory", "files/tree", "v1"),
        ("oras", "files", "files/several", "v1"),
        ("helm", "demo-0.2.0", "charts/demo", "0.2.0"),
        ("flux", "directory", "flux/manifests", "v1"),
        ("oras", "wasm", "wasm/hello", "v1"),
        ("oras", "empty", "other/note", "v1"),
    ] {
        fixtures::push_one(tool, made_as, &registry.pusher(repository), tag).await;
    }
    let signature = "sha256-ec8d8f81e141febdb8905545eab28a4be98dcd295498ec336d7e3a4e413822d9.sig";
    fixtures::push_one("cosign", &format!("legacy-{signature}"), &registry.pusher("images/app"), signature)
        .await;
    let layer = |kind: &str, content: &'static str| Layer {
        media_type: format!("application/vnd.docker.ai.{kind}"),
        content: content.into(),
        annotations: json!({}),
    };
    let layers = [layer("gguf.v3", "GGUF"), layer("license", "MIT"), layer("chat.template.jinja", "{{ x }}")];
    let config = "application/vnd.docker.ai.model.config.v0.1+json";
    registry.pusher("ai/tiny").artifact("v1", "", config, "{}", &layers).await.expect("pushed");
    push_ollama(&registry.pusher("library/tiny"), "1b", &[("model", "GGUF")]).await;
    let db = gzip(&Tarball::new().file("metadata.json", b"{}").file("trivy.db", b"bolt").finish());
    let db = Layer {
        media_type: "application/vnd.aquasec.trivy.db.layer.v1.tar+gzip".into(),
        ..Layer::titled("db.tar.gz", db.expect("gzip"))
    };
    let config = "application/vnd.aquasec.trivy.config.v1+json";
    registry.pusher("trivy/db").artifact("2", "", config, "{}", &[db]).await.expect("pushed");
    push_packed(registry).await;
}

/// The archives of those that pack models and what belongs to them in their own way.
async fn push_packed(registry: &DebianRegistry) {
    let packed = |kind: &str, archive: Tarball| Layer {
        media_type: format!("application/{kind}"),
        content: archive.finish().into(),
        annotations: json!({}),
    };
    let kit = "vnd.kitops.modelkit";
    let layers = [
        packed(&format!("{kit}.model.v1.tar"), Tarball::new().file("models/tiny.gguf", b"GGUF")),
        packed(&format!("{kit}.code.v1.tar"), Tarball::new().file("src/run.py", b"")),
        packed(&format!("{kit}.dataset.v1.tar"), Tarball::new().file("data/train.csv", b"")),
        packed(&format!("{kit}.docs.v1.tar"), Tarball::new().file("README.md", b"")),
    ];
    let digest = |layer: &Layer| ocivol::oci::digest::Digest::sha256(&layer.content).to_string();
    let kitfile = json!({
        "model": {"path": "models/tiny.gguf", "digest": digest(&layers[0])},
        "code": [{"path": "src", "digest": digest(&layers[1])}],
        "datasets": [{"path": "data", "digest": digest(&layers[2])}],
        "docs": [{"path": "README.md", "digest": digest(&layers[3])}],
    });
    let config = format!("application/{kit}.config.v1+json");
    let pusher = registry.pusher("kits/tiny");
    pusher.artifact("v1", "", &config, &kitfile.to_string(), &layers).await.expect("pushed");

    let files = Tarball::new().file("config.json", b"{}").file("model.safetensors", b"w");
    push_cog(registry, "cog/tiny", files).await;
    let skill =
        [packed("vnd.agentskills.skill.content.v1.tar+gzip", Tarball::new().file("pdf/SKILL.md", b"#"))];
    let (artifact_type, config) = ("application/vnd.agentskills.skill.v1", media_type::OCI_EMPTY);
    registry.pusher("skills/pdf").artifact("v1", artifact_type, config, "{}", &skill).await.expect("pushed");
    let cache = Tarball::new()
        .file("io.triton.cache/ABCDEF/add_kernel.cubin", b"ELF")
        .file("io.triton.manifest/manifest.json", b"{}");
    let cache = [packed("cache.triton.content.layer.v1+triton", cache)];
    let config = media_type::OCI_IMAGE_CONFIG;
    registry.pusher("caches/tiny").artifact("v1", "", config, "{}", &cache).await.expect("pushed");
}

/// Weights beside an image.
async fn push_cog(registry: &DebianRegistry, repository: &str, archive: Tarball) {
    let layer = Layer::archive(archive.finish());
    let listed = |path: &str, content: &str| {
        let digest = ocivol::oci::digest::Digest::sha256(content.as_bytes()).to_string();
        json!({"path": path, "size": content.len(), "digest": digest})
    };
    let files = json!([listed("config.json", "{}"), listed("model.safetensors", "w")]);
    let pusher = registry.pusher(repository);
    let weights = weights(&pusher, "weights", &files, std::slice::from_ref(&layer)).await;
    let image = pusher.image("image", &[layer], &[]).await.expect("pushed");
    let child = async |digest: &ocivol::oci::digest::Digest, more: serde_json::Value| {
        let url = format!("http://{}/v2/{repository}/manifests/{digest}", registry.host());
        let request = reqwest::Client::new().get(url).header("accept", media_type::OCI_MANIFEST);
        let size = request.send().await.expect("got").bytes().await.expect("a body").len();
        let mut child =
            json!({"mediaType": media_type::OCI_MANIFEST, "digest": digest.to_string(), "size": size});
        child.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
        child
    };
    let children = [
        child(&image, json!({"platform": {"os": "linux", "architecture": "amd64"}})).await,
        child(
            &weights,
            json!({
                "artifactType": "application/vnd.cog.weight.v1",
                "platform": {"os": "unknown", "architecture": "unknown"},
            }),
        )
        .await,
    ];
    let index = json!({"schemaVersion": 2, "mediaType": media_type::OCI_INDEX, "manifests": children});
    pusher.manifest("v1", media_type::OCI_INDEX, &index.to_string()).await.expect("pushed");
}

/// Files and symlinks below a directory, with the host of the registry as the document has it.
fn files(root: &Path, host: &str) -> Vec<String> {
    let nodes = crate::support::snapshot::snapshot(root);
    nodes.iter().filter(|(_, node)| node.kind != 'd').map(|(name, _)| name.replace(host, EXAMPLE)).collect()
}

#[test]
fn every_example_shows_what_it_says() {
    let examples = examples();
    assert!(examples.len() >= 21, "{} examples were found", examples.len());
    isolated(async {
        let registry = DebianRegistry::start().await;
        push_all(&registry).await;
        let node = Node::start(&["--plain-http", &registry.host()]).await;
        let mut wrong = Vec::new();
        for (number, Example { pod, files: expected }) in examples.into_iter().enumerate() {
            let volumes = pod.volumes.expect("volumes");
            let csi = volumes[0].csi.as_ref().expect("a volume of ocivol");
            let (container, mounts) = (&pod.containers[0], pod.containers[0].volume_mounts.as_ref());
            assert_eq!(mounts.expect("mounts")[0].name, volumes[0].name, "{}", container.name);
            assert_eq!((csi.driver.as_str(), csi.read_only), ("csi.ocivol.dev", Some(true)));
            let attributes = csi.volume_attributes.clone().expect("attributes");
            let reference = attributes["reference"].replace(EXAMPLE, &registry.host());
            let more: Vec<(&str, &str)> = attributes
                .iter()
                .filter(|(key, _)| *key != "reference")
                .map(|(key, value)| (key.as_str(), value.as_str()))
                .collect();
            let volume = node.volume(&format!("pod-{number}"));
            let published = node.publish(&volume, &reference, &more).await;
            published.unwrap_or_else(|status| panic!("{reference} {more:?}: {status}"));
            let found = files(&volume.target, &registry.host());
            if found != expected {
                wrong.push(format!("{reference} {more:?}\n  shows {found:#?}\n  and not {expected:#?}"));
            }
            node.kubelet.unpublish(&volume).await.expect("unpublished");
        }
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    });
}
