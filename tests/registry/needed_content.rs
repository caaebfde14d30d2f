//! Choosing a part: files by pattern, children of an index, layouts; and names that are refused.

use std::process::Command;

use axum::http::Method;
use ocivol::demo::push::{Layer, Pusher};
use ocivol::demo::tarball::{Tarball, gzip};
use ocivol::oci::digest::Digest;
use ocivol::oci::media_type;
use serde_json::{Value, json};
use tonic::Code;

use crate::support::debian_registry::DebianRegistry;
use crate::support::listing::{Case, assert_shown, listing};
use crate::support::{Node, Scripted, fixtures, isolated};

const TITLE: &str = "org.opencontainers.image.title";

#[test]
fn what_no_pattern_wants_is_not_downloaded() {
    isolated(async {
        let registry = Scripted::start().await;
        let pusher = registry.pusher("m");
        let names = ["config.json", "model-1.safetensors", "model-2.safetensors", "onnx/model.onnx"];
        let mut layers: Vec<Layer> =
            names.iter().map(|name| Layer::model_file("weight", name, *name)).collect();
        let archive = Tarball::new().file("docs/a.md", b"a").file("docs/b.md", b"b").finish();
        layers.push(Layer {
            media_type: "application/vnd.cncf.model.doc.v1.tar".into(),
            content: archive.into(),
            annotations: json!({}),
        });
        pusher.model("v1", &layers).await.expect("pushed");
        let node = Node::start(&["--plain-http", &registry.host()]).await;
        let reference = registry.reference("m:v1");
        let asked = || -> Vec<String> {
            let requests = registry.requests();
            let blobs =
                requests.iter().filter(|seen| seen.method == Method::GET && seen.path.contains("/blobs/"));
            blobs.map(|seen| seen.path.rsplit('/').next().unwrap_or_default().to_owned()).collect()
        };
        let digest = |content: &[u8]| Digest::sha256(content).to_string();
        let docs = digest(&layers[4].content);
        let cases: [Case<'_>; 3] = [
            (
                reference.clone(),
                &[("include", "config.json,*.onnx,a.md")],
                &["config.json=config.json", "docs/a.md=a", "onnx/model.onnx=onnx/model.onnx"],
            ),
            // Archives in the store are whole: the other file needs no request.
            (reference.clone(), &[("include", "docs/b.md")], &["docs/b.md=b"]),
            (
                reference.clone(),
                &[("exclude", "*.safetensors"), ("path", "onnx")],
                &["model.onnx=onnx/model.onnx"],
            ),
        ];
        assert_shown(&node, &cases).await;
        let mut asked = asked();
        asked.sort();
        let mut expected = vec![digest(b"config.json"), digest(b"onnx/model.onnx"), docs];
        expected.sort();
        assert_eq!(asked, expected);

        let volume = node.volume("none");
        let status =
            node.publish(&volume, &reference, &[("include", "*.gguf")]).await.expect_err("nothing matches");
        assert_eq!(status.code(), Code::InvalidArgument);
        for word in ["*.gguf", "model-1.safetensors", "docs/a.md"] {
            assert!(status.message().contains(word), "{word}: {}", status.message());
        }
    });
}

#[test]
fn regression_a_config_that_comes_slowly_holds_up_nobody() {
    isolated(async {
        let registry = Scripted::start().await;
        let content = Layer {
            media_type: "application/vnd.cncf.helm.chart.content.v1.tar+gzip".into(),
            content: "tgz".into(),
            annotations: json!({}),
        };
        let kind = "application/vnd.cncf.helm.config.v1+json";
        let mut configs = Vec::new();
        for number in 0..8 {
            let config = format!(r#"{{"name":"chart","version":"{number}"}}"#);
            let pusher = registry.pusher(&format!("charts/{number}"));
            pusher.artifact("v1", "", kind, &config, std::slice::from_ref(&content)).await.expect("pushed");
            configs.push(Digest::sha256(config.as_bytes()).to_string());
        }
        let other = Scripted::start().await;
        other.pusher("m").model("v1", &[Layer::model_file("weight", "w", "1")]).await.expect("pushed");
        registry.script(move |seen| {
            configs.iter().any(|digest| seen.path.ends_with(digest)).then(|| {
                let never = futures_util::stream::pending::<Result<bytes::Bytes, std::io::Error>>();
                axum::response::Response::new(axum::body::Body::from_stream(never))
            })
        });
        let node = Node::start(&["--plain-http", &format!("{},{}", registry.host(), other.host())]).await;
        let mut waiting = Vec::new();
        for number in 0..8 {
            let volume = node.volume(&format!("chart-{number}"));
            let reference = registry.reference(&format!("charts/{number}:v1"));
            let attributes = [("reference", reference.as_str()), ("unpack", "never")];
            let request = node.kubelet.publish_request(&volume, &attributes, &[]);
            let kubelet = node.kubelet.clone();
            waiting.push(tokio::spawn(async move { kubelet.publish(request).await }));
        }
        let asked = || {
            registry
                .requests()
                .iter()
                .filter(|seen| seen.path.contains("/charts/") && seen.path.contains("/blobs/"))
                .count()
        };
        crate::support::eventually("configs are asked for", || asked() >= 4).await;
        let volume = node.volume("other");
        node.publish(&volume, &other.reference("m:v1"), &[]).await.expect("nobody is in its way");
        for task in waiting {
            task.abort();
        }
    });
}

#[test]
fn regression_weights_that_are_called_executable_are_links() {
    use std::os::unix::fs::MetadataExt as _;
    isolated(async {
        let registry = Scripted::start().await;
        let file = |path: &str, size: usize| {
            let metadata = json!({"name": path, "mode": 0o755, "size": size}).to_string();
            Layer {
                annotations: json!({"org.cncf.model.filepath": path, "org.cncf.model.file.metadata+json": metadata}),
                ..Layer::model_file("weight", path, vec![1_u8; size])
            }
        };
        registry
            .pusher("m")
            .model(
                "v1",
                &[
                    file("weights", 65 << 20),
                    file("program", 3 << 20),
                    file("again", 3 << 20),
                    file("small", 10),
                ],
            )
            .await
            .expect("pushed");
        let mut node = Node::prepare(&["--plain-http", &registry.host()]);
        // A file system without reflinks, wherever the test runs.
        node.limit_store("512m");
        node.run().await;
        let volume = node.volume("pod");
        node.publish(&volume, &registry.reference("m:v1"), &[]).await.expect("published");
        let found = |name: &str| std::fs::metadata(volume.target.join(name)).expect(name);
        assert_eq!((found("weights").nlink(), found("weights").mode() & 0o777), (2, 0o444));
        assert_eq!((found("program").nlink(), found("program").mode() & 0o777), (2, 0o555));
        assert_eq!(found("program").ino(), found("again").ino(), "one copy for both names");
        assert_eq!((found("small").nlink(), found("small").mode() & 0o777), (1, 0o755));
    });
}

/// Pushes an index of these children.
async fn push_index(pusher: &Pusher, tag: &str, children: &[Value]) {
    let index = json!({"schemaVersion": 2, "mediaType": media_type::OCI_INDEX, "manifests": children});
    pusher.manifest(tag, media_type::OCI_INDEX, &index.to_string()).await.expect("pushed");
}

/// Pushes one file, and describes it as a child of an index.
async fn push_child(pusher: &Pusher, content: &str, more: Value) -> Value {
    let digest = pusher.files(content, &[Layer::titled("file", content.to_owned())]).await.expect("pushed");
    let url = format!("http://{}/v2/{}/manifests/{digest}", pusher.host, pusher.repository);
    let size = reqwest::get(url).await.expect("an answer").bytes().await.expect("a body").len();
    let mut child =
        json!({"mediaType": media_type::OCI_MANIFEST, "digest": digest.to_string(), "size": size});
    for (key, value) in more.as_object().expect("an object") {
        child[key] = value.clone();
    }
    child
}

#[test]
fn children_of_an_index_are_chosen_by_what_they_are() {
    isolated(async {
        let registry = Scripted::start().await;
        let pusher = registry.pusher("index");
        let variant =
            |value: &str| json!({"artifactType": "a/model", "annotations": {"quantization": value}});
        let children = [
            push_child(&pusher, "q4", variant("q4")).await,
            push_child(&pusher, "q8", variant("q8")).await,
            push_child(&pusher, "sbom", json!({"artifactType": "a/sbom"})).await,
        ];
        push_index(&pusher, "all", &children).await;
        push_index(&pusher, "one", &children[2..]).await;
        let node = Node::start(&["--plain-http", &registry.host()]).await;
        let (all, one) = (registry.reference("index:all"), registry.reference("index:one"));
        let cases: [Case<'_>; 5] = [
            (all.clone(), &[("artifactType", "a/sbom")], &["file=sbom"]),
            (all.clone(), &[("variant", "quantization=q4")], &["file=q4"]),
            (all.clone(), &[("artifactType", "a/model"), ("variant", "quantization=q8")], &["file=q8"]),
            (one.clone(), &[], &["file=sbom"]),
            // What is no index has to be what is wanted, too.
            (
                registry.reference("index:q4"),
                &[("artifactType", "application/vnd.unknown.artifact.v1")],
                &["file=q4"],
            ),
        ];
        assert_shown(&node, &cases).await;
        type Refused<'a> = (&'a str, &'a [(&'a str, &'a str)], &'a [&'a str]);
        let table: [Refused<'_>; 5] = [
            (
                &all,
                &[],
                &["an index of 3 artifacts", "a/model quantization=q4", "a/sbom", "artifactType or variant"],
            ),
            (&all, &[("artifactType", "a/model")], &["has 2 for artifactType a/model", "quantization=q8"]),
            (&all, &[("artifactType", "a/other")], &["has nothing for artifactType a/other", "a/sbom"]),
            (&one, &[("variant", "quantization=q4")], &["has nothing for variant quantization=q4"]),
            (
                &registry.reference("index:q4"),
                &[("artifactType", "a/sbom")],
                &["is not what is wanted", "vnd.unknown.artifact"],
            ),
        ];
        for (number, (reference, attributes, words)) in table.into_iter().enumerate() {
            let volume = node.volume(&format!("refused-{number}"));
            let status = node.publish(&volume, reference, attributes).await.expect_err("ambiguous");
            assert_eq!(status.code(), Code::FailedPrecondition, "{}", status.message());
            for word in words {
                assert!(status.message().contains(word), "no {word:?} in {}", status.message());
            }
        }
    });
}

fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output();
    let output =
        output.unwrap_or_else(|error| panic!("{program} cannot be started: {error}; run `make test`"));
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

#[test]
fn an_image_layout_is_read_by_skopeo_and_umoci() {
    isolated(async {
        let registry = DebianRegistry::start().await;
        let lower =
            gzip(&Tarball::new().directory("d").file("d/a", b"1").file("b", b"2").finish()).expect("gzip");
        let upper = Tarball::new().file("d/.wh.a", b"").file("c", b"3").finish();
        let diff_ids = [
            Digest::sha256(&Tarball::new().directory("d").file("d/a", b"1").file("b", b"2").finish()),
            Digest::sha256(&upper),
        ];
        let layers = [Layer::archive(lower), Layer::archive(upper)];
        let image = registry.pusher("image").image("v1", &layers, &diff_ids).await.expect("pushed");
        let files = [Layer::titled("a.txt", "a"), Layer::titled("b.txt", "b")];
        let artifact = registry.pusher("files").files("v2", &files).await.expect("pushed");
        let node = Node::start(&["--plain-http", &registry.host()]).await;
        let mount = async |name: &str, attributes: &[(&str, &str)]| {
            let volume = node.volume(&name.replace([':', '/'], "-"));
            node.publish(&volume, &registry.reference(name), attributes).await.expect(name);
            volume.target
        };
        let layout = mount("image:v1", &[("layout", "oci-layout")]).await;
        let source = format!("oci:{}:v1", layout.display());
        let inspected: Value = serde_json::from_str(&run("skopeo", &["inspect", &source])).expect("JSON");
        assert_eq!(inspected["Digest"], image.to_string());
        let work = tempfile::tempdir().expect("a directory");
        let copied = work.path().join("copied").display().to_string();
        run("skopeo", &["copy", "--quiet", &source, &format!("dir:{copied}")]);
        let unpacked = work.path().join("unpacked");
        let place = unpacked.display().to_string();
        run("umoci", &["raw", "unpack", "--image", &format!("{}:v1", layout.display()), &place]);
        assert_eq!(listing(&unpacked), ["b=2", "c=3", "d/"]);

        let layout = mount("files:v2", &[("layout", "oci-layout")]).await;
        let raw = run("skopeo", &["inspect", "--raw", &format!("oci:{}:v2", layout.display())]);
        assert_eq!(Digest::sha256(raw.as_bytes()), artifact);
        // Every blob is there under its digest, and nothing else.
        let blobs = std::fs::read_dir(layout.join("blobs/sha256")).expect("blobs");
        let mut names = Vec::new();
        for entry in blobs {
            let entry = entry.expect("an entry");
            let content = std::fs::read(entry.path()).expect("content");
            assert_eq!(Digest::sha256(&content).hex(), entry.file_name().to_string_lossy());
            names.push(content.len());
        }
        assert_eq!(names.len(), 4, "manifest, config and two layers");
    });
}

#[test]
fn whatever_tools_push_can_be_had_as_an_image_layout() {
    isolated(async {
        let registry = DebianRegistry::start().await;
        let node = Node::start(&["--plain-http", &registry.host()]).await;
        let (mut number, mut mounted) = (0, 0);
        for tool in
            ["oras", "oras-py", "modelpack", "helm", "flux", "buildah", "skopeo", "cosign", "notation", "tkn"]
        {
            fixtures::push(tool, &registry.pusher(tool)).await;
            // By digest, so that indexes lead to what is for this machine, and referrers are had one by one.
            for (digest, _) in fixtures::references(tool) {
                number += 1;
                let volume = node.volume(&format!("pod-{number}"));
                let reference = registry.reference(&format!("{tool}:v1@{digest}"));
                match node.publish(&volume, &reference, &[("layout", "oci-layout")]).await {
                    Ok(()) => {}
                    Err(status) => {
                        let ambiguous = status.message().contains("is an index of");
                        assert!(ambiguous, "{reference}: {}", status.message());
                        continue;
                    }
                }
                mounted += 1;
                let layout = volume.target.display().to_string();
                let raw = run("skopeo", &["inspect", "--raw", &format!("oci:{layout}:v1")]);
                if ["skopeo", "tkn"].contains(&tool) {
                    // Docker's manifests, which umoci reads in OCI's words only.
                    let place = tempfile::tempdir().expect("a directory");
                    let place = place.path().join("unpacked").display().to_string();
                    run("umoci", &["raw", "unpack", "--image", &format!("{layout}:v1"), &place]);
                }
                let manifest: Value = serde_json::from_str(&raw).expect("JSON");
                let named = Digest::sha256(raw.as_bytes());
                let layers = manifest["layers"].as_array().expect("layers").iter();
                let blobs = layers.chain([&manifest["config"]]).map(|blob| blob["digest"].clone());
                for digest in blobs.chain([named.to_string().into()]) {
                    let digest: Digest = digest.as_str().expect("a digest").parse().expect("a digest");
                    let content = std::fs::read(volume.target.join("blobs/sha256").join(digest.hex()));
                    assert_eq!(Digest::sha256(&content.expect("a blob")), digest, "{reference}");
                }
                node.kubelet.unpublish(&volume).await.expect("unpublished");
            }
        }
        // All but three indexes, of whose children nothing tells one from the other.
        assert_eq!(number - mounted, 3, "{mounted} of {number} could be mounted");
        assert!(mounted > 40, "{mounted}");
    });
}

#[test]
fn t40_names_that_are_no_safe_path_are_refused() {
    isolated(async {
        let registry = Scripted::start().await;
        let node = Node::start(&["--plain-http", &registry.host()]).await;
        let titled = |names: &[&str]| -> Vec<Layer> {
            names.iter().enumerate().map(|(number, name)| Layer::titled(name, number.to_string())).collect()
        };
        let long = "x".repeat(256);
        let directory = |title: &str, entry: &str| {
            let content = gzip(&Tarball::new().file(entry, b"x").finish()).expect("gzip");
            vec![Layer {
                media_type: "application/vnd.oci.image.layer.v1.tar+gzip".into(),
                content: content.into(),
                annotations: json!({TITLE: title, "io.deis.oras.content.unpack": "true"}),
            }]
        };
        let model = |path: &str, stated: &str| {
            vec![Layer {
                media_type: "application/vnd.cncf.model.weight.v1.raw".into(),
                content: "1".into(),
                annotations: json!({"org.cncf.model.filepath": path, "org.cncf.model.file.metadata+json": stated}),
            }]
        };
        let table: Vec<(Vec<Layer>, &str)> = vec![
            (titled(&["../escape"]), "../escape"),
            (titled(&["a/../../escape"]), "a/../../escape"),
            (titled(&["/etc/cron.d/x"]), "/etc/cron.d/x"),
            (titled(&["nul\0byte"]), "nul"),
            (titled(&[&long]), "longer than 255"),
            (titled(&["same", "same"]), "same"),
            (titled(&["a", "a/b"]), "a/b"),
            (titled(&["a/b", "a"]), "already a directory"),
            (directory("../escape", "../escape/file"), "../escape"),
            (directory("/abs", "/abs/file"), "/abs"),
            (directory("dir", "other/file"), "other/file"),
            (directory("dir", "dir/../../file"), "dir/../../file"),
            (model("weights", r#"{"name":"weights","size":2}"#), "weights"),
            (model("weights", "{"), "weights"),
            (model("../weights", "{}"), "../weights"),
        ];
        for (number, (layers, word)) in table.into_iter().enumerate() {
            let repository = format!("bad/{number}");
            let pusher = registry.pusher(&repository);
            let config = if word.contains("weights") {
                "application/vnd.cncf.model.config.v1+json"
            } else {
                media_type::OCI_EMPTY
            };
            pusher.artifact("v1", "", config, "{}", &layers).await.expect("pushed");
            let volume = node.volume(&format!("pod-{number}"));
            let reference = registry.reference(&format!("{repository}:v1"));
            let status = node.publish(&volume, &reference, &[]).await.expect_err(word);
            assert_eq!(status.code(), Code::FailedPrecondition, "{word}: {}", status.message());
            let layer = Digest::sha256(&layers.last().expect("a layer").content).to_string();
            for word in [word, &layer] {
                assert!(status.message().contains(word), "no {word:?} in {}", status.message());
            }
            assert!(crate::support::node::mount_at(&volume.target).is_none(), "{word}");
        }
    });
}
