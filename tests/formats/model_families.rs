//! Families that pack models and what belongs to them in their own way: ModelKits, Cog's weights, skills, caches of GPU
//! kernels. In the shapes that are published, pushed to a real registry, mounted, and read back.

use ocivol::demo::push::{Layer, Pusher};
use ocivol::demo::tarball::{Tarball, gzip, zstd};
use ocivol::oci::digest::Digest;
use ocivol::oci::media_type;
use serde_json::{Value, json};
use tonic::Code;

use crate::support::debian_registry::DebianRegistry;
use crate::support::listing::{Case, assert_shown};
use crate::support::{Node, isolated};

const FILEPATH: &str = "org.cncf.model.filepath";

fn with_registry(test: impl AsyncFnOnce(DebianRegistry, Node)) {
    isolated(async {
        let registry = DebianRegistry::start().await;
        let node = Node::start(&["--plain-http", &registry.host()]).await;
        test(registry, node).await;
    });
}

fn layer(media_type: &str, content: impl Into<bytes::Bytes>, annotations: Value) -> Layer {
    Layer { media_type: format!("application/{media_type}"), content: content.into(), annotations }
}

fn digest(layer: &Layer) -> String {
    Digest::sha256(&layer.content).to_string()
}

#[test]
fn kitops_model_kits() {
    with_registry(async |registry, node| {
        let pusher = registry.pusher("kit");
        let push = async |tag: &str, kitfile: &Value, layers: &[Layer]| {
            let (artifact_type, config_type) = (
                "application/vnd.kitops.modelkit.manifest.v1+json",
                "application/vnd.kitops.modelkit.config.v1+json",
            );
            pusher.artifact(tag, artifact_type, config_type, &kitfile.to_string(), layers).await.expect(tag);
        };
        // Names from the root, with the directories above.
        let model = Tarball::new().directory("models/").file("models/m.gguf", b"GGUF").finish();
        let new = [
            layer("vnd.kitops.modelkit.model.v1.tar", model, json!({FILEPATH: "models/m.gguf"})),
            layer(
                "vnd.kitops.modelkit.code.v1.tar+gzip",
                gzip(&Tarball::new().directory("src/").file("src/run.py", b"print").finish()).expect("gzip"),
                json!({}),
            ),
            layer("vnd.kitops.modelkit.docs.v1.raw", "# Model", json!({FILEPATH: "README.md"})),
        ];
        let kitfile = json!({
            "manifestVersion": "1.0.0",
            "package": {"name": "demo"},
            "model": {"name": "m", "path": "models/m.gguf", "digest": digest(&new[0])},
            "code": [{"path": "src", "digest": digest(&new[1])}],
            "docs": [{"path": "README.md", "digest": digest(&new[2])}],
        });
        push("new", &kitfile, &new).await;
        // Names from the directory that the entry's path is in.
        let old = [
            layer(
                "vnd.kitops.modelkit.model.v1.tar",
                Tarball::new().file("m.gguf", b"GGUF").finish(),
                json!({}),
            ),
            layer(
                "vnd.kitops.modelkit.modelpart.v1.tar+gzip",
                gzip(&Tarball::new().directory("lora/").file("lora/a", b"part").finish()).expect("gzip"),
                json!({}),
            ),
            layer(
                "vnd.kitops.modelkit.dataset.v1.tar+zstd",
                zstd(&Tarball::new().directory("train/").file("train/1.csv", b"1,2").finish()).expect("zstd"),
                json!({}),
            ),
        ];
        let kitfile = json!({
            "manifestVersion": "v1.0.0",
            "model": {"path": "./models/m.gguf", "parts": [{"path": "models/adapters/lora/"}]},
            "datasets": [{"path": "data/train"}],
        });
        push("old", &kitfile, &old).await;
        let elsewhere = json!({"model": {"path": "registry.example.com/base/llama:v1"}});
        push("elsewhere", &elsewhere, &new[1..2]).await;

        let case = |tag: &str| registry.reference(&format!("kit:{tag}"));
        let cases: [Case<'_>; 3] = [
            (
                case("new"),
                &[("exclude", "Kitfile")],
                &["README.md=# Model", "models/m.gguf=GGUF", "src/run.py=print"],
            ),
            (
                case("old"),
                &[("exclude", "Kitfile")],
                &["data/train/1.csv=1,2", "models/adapters/lora/a=part", "models/m.gguf=GGUF"],
            ),
            (case("new"), &[("include", "docs,README.md")], &["README.md=# Model"]),
        ];
        assert_shown(&node, &cases[..2]).await;
        let volume = node.volume("kitfile");
        node.publish(&volume, &case("old"), &[]).await.expect("published");
        let kitfile = std::fs::read(volume.target.join("Kitfile")).expect("a Kitfile");
        let kitfile: serde_yaml_ng::Value = serde_yaml_ng::from_slice(&kitfile).expect("JSON is YAML");
        assert_eq!(kitfile["model"]["path"].as_str(), Some("./models/m.gguf"));
        let status =
            node.publish(&node.volume("other"), &case("elsewhere"), &[]).await.expect_err("elsewhere");
        assert!(status.message().contains("registry.example.com/base/llama:v1"), "{status}");
    });
}

/// Pushes weights of Cog.
pub async fn weights(pusher: &Pusher, tag: &str, files: &Value, layers: &[Layer]) -> Digest {
    let config = json!({"name": "z", "target": "/src/weights", "files": files}).to_string();
    let (artifact_type, config_type) =
        ("application/vnd.cog.weight.v1", "application/vnd.cog.weight.config.v1+json");
    pusher.artifact(tag, artifact_type, config_type, &config, layers).await.expect(tag)
}

#[test]
fn cog_weights_and_each_of_their_files() {
    with_registry(async |registry, node| {
        let pusher = registry.pusher("cog");
        let small = Tarball::new()
            .directory("tokenizer/")
            .file("config.json", b"{}")
            .file("tokenizer/vocab", b"a b")
            .finish();
        let layers = [
            Layer::archive(gzip(&small).expect("gzip")),
            Layer::archive(Tarball::new().file("model.safetensors", b"weights").finish()),
        ];
        let listed = |path: &str, content: &str, layer: usize| {
            json!({
                "path": path, "layer": digest(&layers[layer]), "size": content.len(),
                "digest": Digest::sha256(content.as_bytes()).to_string(),
            })
        };
        let good = json!([
            listed("config.json", "{}", 0),
            listed("model.safetensors", "weights", 1),
            listed("tokenizer/vocab", "a b", 0)
        ]);
        let digest = weights(&pusher, "v1", &good, &layers).await;
        // Beside the image, as `cog push` leaves them.
        let image =
            pusher.image("image", &[Layer::archive(Tarball::new().file("cog", b"x").finish())], &[]).await;
        let size = async |target: &str| {
            let url = format!("http://{}/v2/cog/manifests/{target}", registry.host());
            let request = reqwest::Client::new().get(url).header("accept", media_type::OCI_MANIFEST);
            request.send().await.expect("got").bytes().await.expect("a body").len()
        };
        let index = json!({
            "schemaVersion": 2, "mediaType": media_type::OCI_INDEX,
            "manifests": [
                {
                    "mediaType": media_type::OCI_MANIFEST, "digest": image.expect("pushed").to_string(),
                    "size": size("image").await, "platform": {"os": "linux", "architecture": "amd64"},
                },
                {
                    "mediaType": media_type::OCI_MANIFEST, "digest": digest.to_string(), "size": size("v1").await,
                    "artifactType": "application/vnd.cog.weight.v1",
                    "platform": {"os": "unknown", "architecture": "unknown"},
                    "annotations": {"run.cog.weight.name": "z"},
                },
            ],
        });
        pusher.manifest("all", media_type::OCI_INDEX, &index.to_string()).await.expect("pushed");
        let case = |tag: &str| registry.reference(&format!("cog:{tag}"));
        let all: &[&str] = &["config.json={}", "model.safetensors=weights", "tokenizer/vocab=a b"];
        let cases: [Case<'_>; 4] = [
            (case("v1"), &[], all),
            (case("v1"), &[("include", "*.safetensors")], &["model.safetensors=weights"]),
            (case("all"), &[("artifactType", "application/vnd.cog.weight.v1")], all),
            (case("all"), &[("platform", "linux/amd64")], &["cog=x"]),
        ];
        assert_shown(&node, &cases).await;

        let with = |change: &dyn Fn(&mut Value)| {
            let mut files = good.clone();
            change(&mut files);
            files
        };
        let wrong = Digest::sha256(b"something else").to_string();
        let table: [(&str, Value, &str); 4] = [
            ("digest", with(&|files| files[1]["digest"] = json!(wrong.clone())), "its digest is"),
            ("size", with(&|files| files[1]["size"] = json!(8)), "where the artifact's config says 8"),
            (
                "unlisted",
                with(&|files| drop(files.as_array_mut().expect("a list").pop())),
                "does not list it",
            ),
            (
                "missing",
                with(&|files| files.as_array_mut().expect("a list").push(listed("gone", "x", 0))),
                "no layer has it",
            ),
        ];
        for (tag, files, rule) in table {
            weights(&pusher, tag, &files, &layers).await;
            let volume = node.volume(tag);
            let status = node.publish(&volume, &case(tag), &[]).await.expect_err(tag);
            assert_eq!(status.code(), Code::FailedPrecondition, "{tag}: {status}");
            assert!(status.message().contains(rule), "{tag}: {status}");
            assert!(!volume.target.exists());
        }
    });
}

#[test]
fn skills_and_kernel_caches() {
    with_registry(async |registry, node| {
        let pusher = registry.pusher("other");
        let skill = Tarball::new().directory("pdf/").file("pdf/SKILL.md", b"# PDF").finish();
        let content = "vnd.agentskills.skill.content.v1.tar+gzip";
        let skill = [layer(content, gzip(&skill).expect("gzip"), json!({}))];
        let (artifact_type, config_type) =
            ("application/vnd.agentskills.skill.v1", "application/vnd.agentskills.skill.config.v1+json");
        pusher.artifact("skill", artifact_type, config_type, "{}", &skill).await.expect("pushed");
        // ToolHive's are images.
        let image = Tarball::new().file("SKILL.md", b"# PDF").finish();
        let toolhive = [Layer::archive(gzip(&image).expect("gzip"))];
        pusher.image("image", &toolhive, &[]).await.expect("pushed");
        let cache = Tarball::new()
            .file("io.triton.cache/ABC/add_kernel.cubin", b"ELF")
            .file("io.triton.manifest/manifest.json", b"{}")
            .finish();
        let cache = [layer("cache.triton.content.layer.v1+triton", gzip(&cache).expect("gzip"), json!({}))];
        pusher.artifact("cache", "", media_type::OCI_IMAGE_CONFIG, "{}", &cache).await.expect("pushed");
        let case = |tag: &str| registry.reference(&format!("other:{tag}"));
        let cases: [Case<'_>; 4] = [
            (case("skill"), &[], &["pdf/SKILL.md=# PDF"]),
            (case("image"), &[], &["SKILL.md=# PDF"]),
            (
                case("cache"),
                &[],
                &["io.triton.cache/ABC/add_kernel.cubin=ELF", "io.triton.manifest/manifest.json={}"],
            ),
            (case("cache"), &[("path", "io.triton.cache")], &["ABC/add_kernel.cubin=ELF"]),
        ];
        assert_shown(&node, &cases).await;
    });
}
