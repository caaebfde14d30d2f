//! What a volume shows of every artifact family: artifacts in the shape that is published, pushed to a real registry,
//! mounted, and read back. What tools push themselves is in `tools.rs`.

use ocivol::demo::push::{Layer, Pusher};
use ocivol::demo::tarball::{Tarball, gzip, zstd};
use ocivol::oci::digest::Digest;
use ocivol::oci::media_type;
use serde_json::{Value, json};
use tonic::Code;

use crate::support::debian_registry::DebianRegistry;
use crate::support::listing::{Case, assert_shown};
use crate::support::{Node, isolated};

const TITLE: &str = "org.opencontainers.image.title";
const FILEPATH: &str = "org.cncf.model.filepath";

fn layer(media_type: &str, content: impl Into<bytes::Bytes>, annotations: Value) -> Layer {
    Layer { media_type: format!("application/{media_type}"), content: content.into(), annotations }
}

/// A layer without annotations.
fn plain(media_type: &str, content: &'static str) -> Layer {
    layer(media_type, content, json!({}))
}

/// Pushes an artifact without a type of its own.
async fn push(pusher: &Pusher, tag: &str, config_type: &str, config: &str, layers: &[Layer]) {
    let config_type = format!("application/{config_type}");
    pusher.artifact(tag, "", &config_type, config, layers).await.expect(tag);
}

/// Runs `test` with a registry, and a node that may use it.
fn with_registry(test: impl AsyncFnOnce(DebianRegistry, Node)) {
    isolated(async {
        let registry = DebianRegistry::start().await;
        let node = Node::start(&["--plain-http", &registry.host()]).await;
        test(registry, node).await;
    });
}

#[test]
fn modelpack() {
    with_registry(async |registry, node| {
        let pusher = registry.pusher("model");
        let tar = |name: &str| Tarball::new().file(name, b"content").finish();
        let config = "vnd.cncf.model.config.v1+json";
        let archives = [
            layer("vnd.cncf.model.weight.v1.tar", tar("w/a"), json!({})),
            layer(
                "vnd.cncf.model.code.v1.tar+gzip",
                gzip(&tar("c/b")).expect("gzip"),
                json!({FILEPATH: "ignored"}),
            ),
            layer("vnd.cncf.model.dataset.v1.tar+zstd", zstd(&tar("d")).expect("zstd"), json!({})),
            layer("vnd.cncf.model.doc.v1.raw", "text", json!({FILEPATH: "docs/README.md"})),
        ];
        push(&pusher, "archives", config, "{}", &archives).await;
        let legacy = [
            layer("vnd.cnai.model.weight.v1.raw", "1", json!({"org.cnai.model.filepath": "weights"})),
            layer("vnd.cnai.model.doc.v1.tar", tar("README"), json!({})),
        ];
        push(&pusher, "legacy", "vnd.cnai.model.config.v1+json", "{}", &legacy).await;
        let wild = [
            layer("vnd.cncf.model.weight.v1.gguf", "GGUF", json!({FILEPATH: "m.gguf"})),
            layer("vnd.cncf.model.weight.v1.safetensors", "st", json!({FILEPATH: "m.safetensors"})),
        ];
        push(&pusher, "wild", config, "{}", &wild).await;
        let cases: [Case<'_>; 4] = [
            (
                registry.reference("model:archives"),
                &[],
                &["c/b=content", "d=content", "docs/README.md=text", "w/a=content"],
            ),
            (
                registry.reference("model:archives"),
                &[("include", "docs,/w"), ("stripComponents", "0")],
                &["docs/README.md=text", "w/a=content"],
            ),
            (registry.reference("model:legacy"), &[], &["README=content", "weights=1"]),
            (registry.reference("model:wild"), &[], &["m.gguf=GGUF", "m.safetensors=st"]),
        ];
        assert_shown(&node, &cases).await;
    });
}

#[test]
fn docker_model_runner() {
    with_registry(async |registry, node| {
        let pusher = registry.pusher("ai");
        let config = json!({
            "config": {"format": "gguf", "quantization": "Q4_K_M", "parameters": "361.82 M", "architecture": "llama"},
            "descriptor": {"created": "2025-01-01T00:00:00Z"},
            "rootfs": {"type": "rootfs", "diff_ids": []},
        })
        .to_string();
        let old = "vnd.docker.ai.model.config.v0.1+json";
        let at = |path: &str| json!({ FILEPATH: path });
        let gguf = [
            plain("vnd.docker.ai.gguf.v3", "GGUF"),
            plain("vnd.docker.ai.mmproj", "projector"),
            plain("vnd.docker.ai.gguf.v3.lora", "adapter"),
            plain("vnd.docker.ai.chat.template.jinja", "{{ x }}"),
            plain("vnd.docker.ai.license", "MIT"),
            plain("vnd.docker.ai.license", "Apache"),
        ];
        push(&pusher, "gguf", old, &config, &gguf).await;
        let shards = [plain("vnd.docker.ai.gguf.v3", "1"), plain("vnd.docker.ai.gguf.v3", "2")];
        push(&pusher, "shards", old, &config, &shards).await;
        let vllm = Tarball::new().file("config.json", b"{}").file("tokenizer/vocab.txt", b"a").finish();
        let directory = Tarball::new().directory("extra").file("extra/file", b"x").finish();
        let safetensors = [
            plain("vnd.docker.ai.safetensors", "1"),
            plain("vnd.docker.ai.safetensors", "2"),
            layer("vnd.docker.ai.vllm.config.tar", vllm, json!({})),
            layer("vnd.docker.ai.dir.tar", directory, json!({})),
            layer("vnd.docker.ai.model.file", "m", at("merges.txt")),
        ];
        push(&pusher, "safetensors", old, &config, &safetensors).await;
        let dduf = plain("vnd.docker.ai.dduf", "DDUF");
        let dduf_name = format!("{}.dduf=DDUF", Digest::sha256(b"DDUF").hex());
        push(&pusher, "dduf", old, &config, &[dduf]).await;
        let new = [
            layer("vnd.docker.ai.safetensors", "1", at("text_encoder/model.safetensors")),
            layer("vnd.docker.ai.model.file", "{}", at("config.json")),
            layer("vnd.docker.ai.license", "MIT", at("LICENSE")),
        ];
        push(&pusher, "new", "vnd.docker.ai.model.config.v0.2+json", &config, &new).await;
        let case = |tag: &str| registry.reference(&format!("ai:{tag}"));
        let cases: [Case<'_>; 6] = [
            (
                case("gguf"),
                &[],
                &[
                    "adapter.gguf=adapter",
                    "license-2.txt=Apache",
                    "license.txt=MIT",
                    "model.gguf=GGUF",
                    "model.mmproj=projector",
                    "template.jinja={{ x }}",
                ],
            ),
            (case("shards"), &[], &["model-00001-of-00002.gguf=1", "model-00002-of-00002.gguf=2"]),
            (
                case("safetensors"),
                &[],
                &[
                    "config.json={}",
                    "extra/file=x",
                    "merges.txt=m",
                    "model-00001-of-00002.safetensors=1",
                    "model-00002-of-00002.safetensors=2",
                    "tokenizer/vocab.txt=a",
                ],
            ),
            (case("dduf"), &[], &[&dduf_name]),
            (case("new"), &[], &["LICENSE=MIT", "config.json={}", "text_encoder/model.safetensors=1"]),
            (case("gguf"), &[("include", "*.gguf"), ("exclude", "adapter.*")], &["model.gguf=GGUF"]),
        ];
        assert_shown(&node, &cases).await;
    });
}

/// Pushes a model as Ollama does: a Docker manifest, whose layers have nothing but a type.
pub async fn push_ollama(
    pusher: &Pusher,
    tag: &str,
    kinds: &[(&str, &'static str)],
) -> (Vec<Digest>, String) {
    let config = json!({
        "model_format": "gguf", "model_family": "llama", "model_families": ["llama"], "model_type": "1.2B",
        "file_type": "Q8_0", "architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": []},
    })
    .to_string();
    let descriptor = |media_type: &str, content: &str| {
        let digest = Digest::sha256(content.as_bytes()).to_string();
        json!({"mediaType": media_type, "digest": digest, "size": content.len()})
    };
    let mut digests = vec![pusher.blob(config.clone().into()).await.expect("pushed")];
    let mut layers = Vec::new();
    for (kind, content) in kinds {
        digests.push(pusher.blob((*content).into()).await.expect("pushed"));
        layers.push(descriptor(&format!("application/vnd.ollama.image.{kind}"), content));
    }
    let manifest = json!({
        "schemaVersion": 2, "mediaType": media_type::DOCKER_MANIFEST,
        "config": descriptor(media_type::DOCKER_IMAGE_CONFIG, &config), "layers": layers,
    })
    .to_string();
    pusher.manifest(tag, media_type::DOCKER_MANIFEST, &manifest).await.expect("pushed");
    (digests, manifest)
}

#[test]
fn ollama() {
    with_registry(async |registry, node| {
        let kinds = [
            ("model", "GGUF"),
            ("projector", "mmproj"),
            ("adapter", "lora"),
            ("template", "{{ .Prompt }}"),
            ("system", "be kind"),
            ("params", "{\"stop\":[\"x\"]}"),
            ("license", "MIT"),
            ("license", "Llama"),
        ];
        let (digests, manifest) = push_ollama(&registry.pusher("library/tiny"), "1b", &kinds).await;
        let reference = registry.reference("library/tiny:1b");
        let cases: [Case<'_>; 2] = [
            (
                reference.clone(),
                &[],
                &[
                    "adapter.gguf=lora",
                    "license-2.txt=Llama",
                    "license.txt=MIT",
                    "mmproj.gguf=mmproj",
                    "model.gguf=GGUF",
                    "params.json={\"stop\":[\"x\"]}",
                    "system.txt=be kind",
                    "template.txt={{ .Prompt }}",
                ],
            ),
            (reference.clone(), &[("include", "model.gguf")], &["model.gguf=GGUF"]),
        ];
        assert_shown(&node, &cases).await;

        // The directory that OLLAMA_MODELS names: Ollama finds the manifest by name, and every blob by digest.
        let volume = node.volume("ollama");
        node.publish(&volume, &reference, &[("layout", "ollama")]).await.expect("published");
        let named = volume.target.join("manifests").join(registry.host()).join("library/tiny/1b");
        assert_eq!(std::fs::read_to_string(named).expect("the manifest"), manifest);
        for digest in &digests {
            let blob = volume.target.join("blobs").join(format!("sha256-{}", digest.hex()));
            assert_eq!(Digest::sha256(&std::fs::read(blob).expect("a blob")), *digest);
        }
        assert_eq!(std::fs::read_dir(volume.target.join("blobs")).expect("blobs").count(), digests.len());
        node.kubelet.unpublish(&volume).await.expect("unpublished");

        registry.pusher("files").files("v1", &[Layer::titled("a", "a")]).await.expect("pushed");
        let files = registry.reference("files:v1");
        let status = node.publish(&volume, &files, &[("layout", "ollama")]).await.expect_err("no model");
        assert!(status.message().contains("for models of Ollama"), "{}", status.message());
        assert_eq!(status.code(), Code::InvalidArgument);
    });
}

#[test]
fn helm_in_older_shapes() {
    with_registry(async |registry, node| {
        let pusher = registry.pusher("charts/app");
        let chart = gzip(&Tarball::new().file("app/Chart.yaml", b"name: app").finish()).expect("gzip");
        let config = r#"{"name":"app","version":"2.7.0","apiVersion":"v2"}"#;
        let kind = "vnd.cncf.helm.config.v1+json";
        let provenance = plain("vnd.cncf.helm.chart.provenance.v1.prov", "signed");
        let content = |name: &str| layer(name, chart.clone(), json!({}));
        // Without annotations the config names the files.
        let current = content("vnd.cncf.helm.chart.content.v1.tar+gzip");
        push(&pusher, "first", kind, config, &[current.clone(), provenance.clone()]).await;
        push(&pusher, "last", kind, config, &[provenance, current]).await;
        push(&pusher, "legacy", kind, config, &[content("tar+gzip")]).await;
        let packed = format!("app-2.7.0.tgz ({})", chart.len());
        let unpacked: &[&str] = &["app/Chart.yaml=name: app"];
        let both: &[&str] = &[&packed, "app-2.7.0.tgz.prov=signed"];
        let never: &[(&str, &str)] = &[("unpack", "never")];
        let case = |tag: &str| registry.reference(&format!("charts/app:{tag}"));
        let cases: [Case<'_>; 6] = [
            (case("first"), &[], unpacked),
            (case("last"), &[], unpacked),
            (case("legacy"), &[], unpacked),
            (case("first"), never, both),
            (case("last"), never, both),
            (case("legacy"), never, &[&packed]),
        ];
        assert_shown(&node, &cases).await;
    });
}

#[test]
fn wasm() {
    with_registry(async |registry, node| {
        let pusher = registry.pusher("wasm");
        let config =
            r#"{"created":"2025-01-01T00:00:00Z","architecture":"wasm","os":"wasip1","layerDigests":[]}"#;
        let titled = |kind: &str| layer(kind, "\0asm", json!({TITLE: "plugin.wasm"}));
        push(&pusher, "cncf", "vnd.wasm.config.v0+json", config, &[plain("wasm", "\0asm")]).await;
        push(&pusher, "cncf-titled", "vnd.wasm.config.v0+json", config, &[titled("wasm")]).await;
        let old = "vnd.wasm.content.layer.v1+wasm";
        push(&pusher, "old", "vnd.wasm.config.v1+json", "{}", &[plain(old, "\0asm")]).await;
        push(&pusher, "old-titled", "vnd.wasm.config.v1+json", "{}", &[titled(old)]).await;
        // A "compat" image is an image.
        let image = Layer::archive(Tarball::new().file("plugin.wasm", b"\0asm").finish());
        pusher.image("compat", &[image], &[]).await.expect("pushed");
        let case = |tag: &str| registry.reference(&format!("wasm:{tag}"));
        let cases: [Case<'_>; 5] = [
            (case("cncf"), &[], &["module.wasm=\0asm"]),
            (case("cncf-titled"), &[], &["plugin.wasm=\0asm"]),
            (case("old"), &[], &["module.wasm=\0asm"]),
            (case("old-titled"), &[], &["plugin.wasm=\0asm"]),
            (case("compat"), &[], &["plugin.wasm=\0asm"]),
        ];
        assert_shown(&node, &cases).await;
    });
}

#[test]
fn trivy_onnx_and_kserve() {
    with_registry(async |registry, node| {
        let pusher = registry.pusher("files");
        let db = gzip(&Tarball::new().file("metadata.json", b"{}").file("trivy.db", b"bolt").finish());
        let java =
            gzip(&Tarball::new().file("metadata.json", b"{}").file("trivy-java.db", b"sqlite").finish());
        let (db, java) = (db.expect("gzip"), java.expect("gzip"));
        let kind = "vnd.aquasec.trivy.config.v1+json";
        let db_layer =
            layer("vnd.aquasec.trivy.db.layer.v1.tar+gzip", db.clone(), json!({TITLE: "db.tar.gz"}));
        let java_layer =
            layer("vnd.aquasec.trivy.javadb.layer.v1.tar+gzip", java, json!({TITLE: "javadb.tar.gz"}));
        push(&pusher, "db-old", kind, "{}", std::slice::from_ref(&db_layer)).await;
        let artifact_type = format!("application/{kind}");
        pusher
            .artifact("db", &artifact_type, media_type::OCI_EMPTY, "{}", &[db_layer])
            .await
            .expect("pushed");
        pusher
            .artifact("java", &artifact_type, media_type::OCI_EMPTY, "{}", &[java_layer])
            .await
            .expect("pushed");
        let onnx = layer("vnd.oci.image.layer.v1.tar", "onnx", json!({TITLE: "model.onnx"}));
        push(&pusher, "onnx", "vnd.oci.empty.v1+json", "{}", &[onnx]).await;
        let case = |tag: &str| registry.reference(&format!("files:{tag}"));
        let packed = format!("db.tar.gz ({})", db.len());
        let always: &[(&str, &str)] = &[("unpack", "always")];
        let cases: [Case<'_>; 6] = [
            (case("db-old"), &[], &[&packed]),
            (case("db"), &[], &[&packed]),
            (case("db-old"), always, &["metadata.json={}", "trivy.db=bolt"]),
            (case("db"), always, &["metadata.json={}", "trivy.db=bolt"]),
            (case("java"), always, &["metadata.json={}", "trivy-java.db=sqlite"]),
            (case("onnx"), &[], &["model.onnx=onnx"]),
        ];
        assert_shown(&node, &cases).await;
    });
}

#[test]
fn statements_and_what_has_no_name() {
    with_registry(async |registry, node| {
        let pusher = registry.pusher("other");
        let image = media_type::OCI_IMAGE_CONFIG.strip_prefix("application/").expect("a type");
        let subject = |kind: &str| {
            let text = json!({"mediaType": media_type::OCI_MANIFEST, "digest": Digest::sha256(b"x").to_string(), "size": 1});
            (kind.to_owned(), text)
        };
        push(&pusher, "sig", image, "{}", &[plain("vnd.dev.cosign.simplesigning.v1+json", "{}")]).await;
        push(&pusher, "cyclonedx", image, "{}", &[plain("vnd.cyclonedx+json", "{}")]).await;
        // An SBOM that refers to an image, with a title, as `oras attach` makes it.
        let (kind, subject) = subject("application/spdx+json");
        let blob = pusher.blob("spdx".into()).await.expect("pushed").to_string();
        let empty = pusher.blob("{}".into()).await.expect("pushed").to_string();
        let attached = json!({
            "schemaVersion": 2, "mediaType": media_type::OCI_MANIFEST, "artifactType": kind, "subject": subject,
            "config": {"mediaType": media_type::OCI_EMPTY, "digest": empty, "size": 2},
            "layers": [{"mediaType": kind, "digest": blob, "size": 4, "annotations": {TITLE: "sbom.json"}}],
        });
        pusher.manifest("spdx", media_type::OCI_MANIFEST, &attached.to_string()).await.expect("pushed");
        push(&pusher, "untitled", "x.config", "{}", &[plain("x.one", "1"), plain("x.two", "2")]).await;
        let half = [layer("x.one", "1", json!({TITLE: "one"})), plain("x.two", "2")];
        push(&pusher, "half", "x.config", "{}", &half).await;
        let modules = [plain("wasm", "1"), plain("wasm", "2")];
        push(&pusher, "modules", "vnd.wasm.config.v0+json", "{}", &modules).await;
        let tensors = [plain("vnd.ollama.image.tensor", "1")];
        push(&pusher, "tensors", "vnd.docker.container.image.v1+json", "{}", &tensors).await;

        let case = |tag: &str| registry.reference(&format!("other:{tag}"));
        for (tag, words) in [
            ("sig", &["a cosign signature", "layout: blobs"][..]),
            ("cyclonedx", &["an SBOM (CycloneDX)"]),
            ("spdx", &["an SBOM (SPDX)"]),
            ("untitled", &["application/x.config, application/x.one, application/x.two", "layout: blobs"]),
            ("half", &["application/x.two", "has no file name", "layout: blobs"]),
            ("modules", &["application/wasm", "has no file name"]),
            ("tensors", &["application/vnd.ollama.image.tensor", "layout: ollama"]),
        ] {
            let volume = node.volume(tag);
            let status = node.publish(&volume, &case(tag), &[]).await.expect_err(tag);
            assert_eq!(status.code(), Code::FailedPrecondition, "{tag}: {}", status.message());
            for word in words {
                assert!(status.message().contains(word), "{tag}: no {word:?} in {}", status.message());
            }
        }
        let blobs: &[(&str, &str)] = &[("layout", "blobs")];
        let named = |content: &str| format!("sha256-{}={content}", Digest::sha256(content.as_bytes()).hex());
        let (one, two) = (named("1"), named("2"));
        let cases: [Case<'_>; 4] = [
            (case("untitled"), blobs, &[&one, &two]),
            (case("half"), blobs, &["one=1", &two]),
            (case("spdx"), blobs, &["sbom.json=spdx"]),
            (case("tensors"), blobs, &[&one]),
        ];
        assert_shown(&node, &cases).await;
    });
}
