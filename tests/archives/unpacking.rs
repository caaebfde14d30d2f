//! Archives in images and artifacts: what a volume shows of them, and who may read it.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use axum::http::Method;
use axum::response::IntoResponse as _;
use bytes::Bytes;
use ocivol::demo::push::{Layer, Pusher};
use ocivol::demo::tarball::{DIRECTORY, FILE, Header, Tarball, gzip, zstd};
use ocivol::oci::digest::Digest;
use ocivol::oci::media_type;
use serde_json::{Value, json};
use tonic::Code;

use crate::support::node::mount_at;
use crate::support::snapshot::paths;
use crate::support::{Node, Scripted, isolated, noise};

pub async fn image(pusher: &Pusher, tag: &str, layers: &[Vec<u8>]) -> Digest {
    let layers: Vec<Layer> = layers.iter().map(|layer| Layer::archive(layer.clone())).collect();
    pusher.image(tag, &layers, &[]).await.expect("pushed")
}

fn model_archive(media_type: &str, content: Vec<u8>) -> Layer {
    let media_type = format!("application/vnd.cncf.model.{media_type}");
    Layer { media_type, content: content.into(), annotations: json!({}) }
}

pub fn directory_layer(title: &str, content: Vec<u8>, annotations: &Value) -> Layer {
    let mut all = json!({ "org.opencontainers.image.title": title, "io.deis.oras.content.unpack": "true" });
    for (key, value) in annotations.as_object().expect("an object") {
        all[key] = value.clone();
    }
    Layer {
        media_type: "application/vnd.oci.image.layer.v1.tar+gzip".into(),
        content: content.into(),
        annotations: all,
    }
}

#[test]
fn images_of_one_layer_are_the_layer_and_layers_are_shared() {
    isolated(async {
        let registry = Scripted::start().await;
        let base = Tarball::new().file("a", b"base").file("d/b", b"base").finish();
        let top = Tarball::new().file("d/c", b"top").file("d/.wh.b", b"").finish();
        let pusher = registry.pusher("image");
        image(&pusher, "one", &[gzip(&base).expect("gzip")]).await;
        image(&pusher, "two", &[gzip(&base).expect("gzip"), zstd(&top).expect("zstd")]).await;
        let node = Node::start(&["--plain-http", &registry.host()]).await;
        let (one, two) = (node.volume("one"), node.volume("two"));
        node.publish(&one, &registry.reference("image:one"), &[]).await.expect("published");
        assert_eq!(paths(&one.target), ["a", "d/", "d/b"]);
        let mounted = mount_at(&one.target).expect("a mount");
        assert!(mounted.root.to_string_lossy().contains("/v1/layers/"), "{}", mounted.root.display());
        assert_eq!(registry.count(&Method::GET, "/blobs/"), 1);
        node.publish(&two, &registry.reference("image:two"), &[]).await.expect("published");
        assert_eq!(paths(&two.target), ["a", "d/", "d/c"]);
        assert_eq!(registry.count(&Method::GET, "/blobs/"), 2, "the base was fetched once");
        let inode = |volume: &Path| fs::metadata(volume.join("a")).expect("a file").ino();
        assert_eq!(inode(&one.target), inode(&two.target), "its files are there once");
        // Both again, on another pod: nothing is fetched, nothing is built.
        for tag in ["one", "two"] {
            let again = node.volume(&format!("again-{tag}"));
            node.publish(&again, &registry.reference(&format!("image:{tag}")), &[]).await.expect("published");
        }
        assert_eq!(registry.count(&Method::GET, "/blobs/"), 2);
        assert_eq!(fs::read_dir(node.root.join("v1/trees")).expect("trees").count(), 1);
    });
}

#[test]
fn an_image_keeps_its_permissions_and_an_artifact_is_for_everybody() {
    isolated(async {
        let registry = Scripted::start().await;
        let with = |name: &str, kind, mode| Header { mode, uid: 7, gid: 8, ..Header::new(name, kind) };
        let archive = Tarball::new()
            .entry(&with("private", FILE, 0o600), b"")
            .entry(&with("d", DIRECTORY, 0o700), b"")
            .entry(&with("d/run", FILE, 0o750), b"")
            .hard_link("d/same", "d/run")
            .finish();
        image(&registry.pusher("image"), "v1", std::slice::from_ref(&archive)).await;
        let layer = model_archive("weight.v1.tar", archive);
        registry.pusher("model").model("v1", &[layer]).await.expect("pushed");
        let node = Node::start(&["--plain-http", &registry.host()]).await;
        let modes = async |name: &str, attributes: &[(&str, &str)]| {
            let volume = node.volume(&format!(
                "{name}-{}",
                attributes.len() + attributes.iter().map(|it| it.1.len()).sum::<usize>()
            ));
            node.publish(&volume, &registry.reference(&format!("{name}:v1")), attributes)
                .await
                .expect("published");
            let found = |path: &str| fs::metadata(volume.target.join(path)).expect(path);
            assert_eq!(found("d/run").ino(), found("d/same").ino(), "they are one file");
            assert_eq!((found("private").uid(), found("d").gid()), (7, 8));
            ["private", "d", "d/run"].map(|path| found(path).mode() & 0o7777)
        };
        let (exact, readable) = ([0o600, 0o700, 0o750], [0o644, 0o755, 0o755]);
        assert_eq!(modes("image", &[]).await, exact);
        assert_eq!(modes("image", &[("readable", "true")]).await, readable);
        assert_eq!(modes("model", &[]).await, readable);
        assert_eq!(modes("model", &[("readable", "false")]).await, exact);
        assert_eq!(modes("image", &[("readable", "false")]).await, exact);
    });
}

#[test]
fn indexes_lead_to_the_image_for_the_platform() {
    isolated(async {
        let registry = Scripted::start().await;
        let pusher = registry.pusher("image");
        let mut children = Vec::new();
        for architecture in ["amd64", "arm64"] {
            let layer = Tarball::new().file("architecture", architecture.as_bytes()).finish();
            let digest = image(&pusher, architecture, &[gzip(&layer).expect("gzip")]).await;
            let size = registry_manifest_size(&registry, "image", architecture).await;
            children.push(json!({
                "mediaType": media_type::OCI_MANIFEST, "digest": digest.to_string(), "size": size,
                "platform": { "os": "linux", "architecture": architecture },
            }));
        }
        let index = json!({ "schemaVersion": 2, "mediaType": media_type::OCI_INDEX, "manifests": children });
        pusher.manifest("v1", media_type::OCI_INDEX, &index.to_string()).await.expect("pushed");
        // Docker's names for the same.
        let layer = Layer {
            media_type: "application/vnd.docker.image.rootfs.diff.tar.gzip".into(),
            ..Layer::archive(gzip(&Tarball::new().file("docker", b"x").finish()).expect("gzip"))
        };
        pusher.blob(Bytes::from_static(b"{}")).await.expect("pushed");
        pusher.blob(layer.content.clone()).await.expect("pushed");
        let manifest = json!({
            "schemaVersion": 2, "mediaType": media_type::DOCKER_MANIFEST,
            "config": { "mediaType": media_type::DOCKER_IMAGE_CONFIG, "digest": Digest::sha256(b"{}").to_string(), "size": 2 },
            "layers": [layer.descriptor()],
        });
        pusher.manifest("docker", media_type::DOCKER_MANIFEST, &manifest.to_string()).await.expect("pushed");
        let node = Node::start(&["--plain-http", &registry.host()]).await;
        for platform in ["linux/amd64", "linux/arm64"] {
            let volume = node.volume(&platform.replace('/', "-"));
            let reference = registry.reference("image:v1");
            node.publish(&volume, &reference, &[("platform", platform)]).await.expect("published");
            let found = fs::read_to_string(volume.target.join("architecture")).expect("a file");
            assert_eq!(format!("linux/{found}"), platform);
        }
        let volume = node.volume("docker");
        node.publish(&volume, &registry.reference("image:docker"), &[]).await.expect("published");
        assert_eq!(paths(&volume.target), ["docker"]);
    });
}

async fn registry_manifest_size(registry: &Scripted, name: &str, tag: &str) -> usize {
    let url = format!("http://{}/v2/{name}/manifests/{tag}", registry.host());
    reqwest::get(url).await.expect("an answer").bytes().await.expect("a manifest").len()
}

#[test]
fn modelpack_archives_are_unpacked_at_the_root() {
    isolated(async {
        let registry = Scripted::start().await;
        let weights = noise(3, 3 << 20);
        let archive =
            |name: &str, content: &[u8]| Tarball::new().directory("model").file(name, content).finish();
        let layers = [
            model_archive("weight.v1.tar", archive("model/a", &weights)),
            model_archive("weight.v1.tar+gzip", gzip(&archive("model/b", b"b")).expect("gzip")),
            model_archive("code.v1.tar+zstd", zstd(&archive("model/c", b"c")).expect("zstd")),
            // What the type says does not matter.
            model_archive("dataset.v1.tar+gzip", archive("model/d", b"d")),
            Layer::model_file("doc", "README.md", "text"),
        ];
        registry.pusher("model").model("v1", &layers).await.expect("pushed");
        let node = Node::start(&["--plain-http", &registry.host()]).await;
        let reference = registry.reference("model:v1");
        let all = node.volume("all");
        node.publish(&all, &reference, &[]).await.expect("published");
        assert_eq!(paths(&all.target), ["README.md", "model/", "model/a", "model/b", "model/c", "model/d"]);
        assert!(fs::read(all.target.join("model/a")).expect("a file") == weights);
        type Case = (&'static [(&'static str, &'static str)], &'static [&'static str]);
        let table: [Case; 5] = [
            (&[("stripComponents", "1")], &["README.md", "a", "b", "c", "d"]),
            (&[("include", "model/[ab]")], &["model/", "model/a", "model/b"]),
            (&[("exclude", "*.md,/model/b")], &["model/", "model/a", "model/c", "model/d"]),
            (&[("include", "/a"), ("stripComponents", "1")], &["a"]),
            (&[("path", "model"), ("exclude", "a")], &["b", "c", "d"]),
        ];
        for (number, (attributes, expected)) in table.into_iter().enumerate() {
            let volume = node.volume(&format!("pod-{number}"));
            node.publish(&volume, &reference, attributes).await.expect("published");
            assert_eq!(paths(&volume.target), expected, "{attributes:?}");
        }
        assert_eq!(registry.count(&Method::GET, "/blobs/"), 5, "every layer was fetched once");
        let missing = [("include", "model/a\n*.gguf")];
        let status = node.publish(&node.volume("missing"), &reference, &missing).await.expect_err("no gguf");
        assert_eq!(status.code(), Code::InvalidArgument);
        for word in ["*.gguf", "README.md", "model/a"] {
            assert!(status.message().contains(word), "{}", status.message());
        }
        // Without a name an archive cannot be kept as it is.
        let never = [("unpack", "never")];
        let status = node.publish(&node.volume("never"), &reference, &never).await.expect_err("no names");
        assert!(status.message().contains("org.cncf.model.filepath"), "{}", status.message());
    });
}

#[test]
fn oras_directories_are_unpacked_where_their_title_says() {
    isolated(async {
        let registry = Scripted::start().await;
        let tar =
            Tarball::new().directory("data/set").file("data/set/a", b"a").file("data/set/b/c", b"c").finish();
        let packed = gzip(&tar).expect("gzip");
        let digest = json!({ "io.deis.oras.content.digest": Digest::sha256(&tar).to_string() });
        let wrong = json!({ "io.deis.oras.content.digest": Digest::sha256(b"other").to_string() });
        let pusher = registry.pusher("files");
        let plain = Layer::titled("data/notes.txt", "text");
        let directory = directory_layer("data/set", packed.clone(), &digest);
        pusher.files("v1", &[directory, plain.clone()]).await.expect("pushed");
        pusher.files("wrong", &[directory_layer("data/set", packed.clone(), &wrong)]).await.expect("pushed");
        let archive = Layer {
            media_type: "application/x.tar+gzip".into(),
            ..Layer::titled("db/db.tar.gz", packed.clone())
        };
        pusher.files("file", &[archive, plain]).await.expect("pushed");
        let node = Node::start(&["--plain-http", &registry.host()]).await;
        let volume = async |name: &str, tag: &str, attributes: &[(&str, &str)]| {
            let volume = node.volume(name);
            node.publish(&volume, &registry.reference(&format!("files:{tag}")), attributes)
                .await
                .map(|()| volume.target)
        };
        let set = ["data/", "data/notes.txt", "data/set/", "data/set/a", "data/set/b/", "data/set/b/c"];
        assert_eq!(paths(&volume("auto", "v1", &[]).await.expect("published")), set);
        let stripped = volume("strip", "v1", &[("stripComponents", "2"), ("exclude", "data")]).await;
        assert_eq!(paths(&stripped.expect("published")), ["a", "b/", "b/c"]);
        let kept = volume("never", "v1", &[("unpack", "never")]).await.expect("published");
        assert_eq!(paths(&kept), ["data/", "data/notes.txt", "data/set"]);
        assert!(fs::read(kept.join("data/set")).expect("a file") == packed);
        // A file is a file whatever its type says, unless the volume wants otherwise; then it is not fetched again.
        let file = volume("file", "file", &[]).await.expect("published");
        assert_eq!(paths(&file), ["data/", "data/notes.txt", "db/", "db/db.tar.gz"]);
        registry.forget();
        let always = volume("always", "file", &[("unpack", "always"), ("stripComponents", "2")]).await;
        assert_eq!(
            paths(&always.expect("published")),
            ["data/", "data/notes.txt", "db/", "db/a", "db/b/", "db/b/c"]
        );
        assert_eq!(registry.count(&Method::GET, "/blobs/"), 0, "it was here as a file");
        let status = volume("wrong", "wrong", &[]).await.expect_err("another content");
        assert_eq!(status.code(), Code::FailedPrecondition);
        assert!(status.message().contains(&Digest::sha256(b"other").to_string()), "{}", status.message());
    });
}

#[test]
fn t40_regression_what_two_layers_both_want_to_be_is_refused() {
    isolated(async {
        let registry = Scripted::start().await;
        let packed = |files: &[&str]| {
            let tar = files.iter().fold(Tarball::new(), |tar, name| tar.file(name, name.as_bytes()));
            gzip(&tar.finish()).expect("gzip")
        };
        let nothing = json!({});
        let tree = |files: &[&str]| directory_layer("tree", packed(files), &nothing);
        let raw = |title: &str| Layer::titled(title, format!("raw {title}"));
        let table: Vec<(&str, Vec<Layer>, bool)> = vec![
            ("a file after the directory", vec![tree(&["tree/a"]), raw("tree")], false),
            ("a file before the directory", vec![raw("tree"), tree(&["tree/a"])], false),
            ("a file in it after", vec![tree(&["tree/a"]), raw("tree/a")], false),
            ("a file in it before", vec![raw("tree/a"), tree(&["tree/a"])], false),
            ("a file where one of it is a directory", vec![raw("tree/a/x"), tree(&["tree/a"])], false),
            ("the other way round", vec![tree(&["tree/a"]), raw("tree/a/x")], false),
            ("two directories of one title", vec![tree(&["tree/a"]), tree(&["tree/b"])], false),
            ("another file in it", vec![tree(&["tree/a"]), raw("tree/b")], true),
        ];
        let node = Node::start(&["--plain-http", &registry.host()]).await;
        for (number, (name, layers, works)) in table.into_iter().enumerate() {
            let repository = format!("files/{number}");
            registry.pusher(&repository).files("v1", &layers).await.expect("pushed");
            let volume = node.volume(&format!("pod-{number}"));
            let result = node.publish(&volume, &registry.reference(&format!("{repository}:v1")), &[]).await;
            if works {
                result.unwrap_or_else(|status| panic!("{name}: {status}"));
                assert_eq!(paths(&volume.target), ["tree/", "tree/a", "tree/b"]);
                continue;
            }
            let status = result.expect_err(name);
            assert_eq!(status.code(), Code::FailedPrecondition, "{name}: {}", status.message());
            let told = status.message();
            assert!(told.contains("tree") && told.contains("sha256:"), "{name}: {told}");
            println!("{name}: {told}");
            assert!(!volume.target.exists());
        }
        // ModelPack: a later archive may have a newer file, but not a file for a directory.
        let tar = "application/vnd.cncf.model.weight.v1.tar";
        let archive = |names: &[&str]| {
            let tar = names.iter().fold(Tarball::new(), |tar, name| tar.file(name, name.as_bytes()));
            tar.finish()
        };
        for (number, (later, works)) in
            [("w/a", true), ("w/a/b", false), ("w", false)].into_iter().enumerate()
        {
            let layers = [model_archive(tar, archive(&["w/a"])), model_archive(tar, archive(&[later]))];
            let repository = format!("model/{number}");
            registry.pusher(&repository).model("v1", &layers).await.expect("pushed");
            let volume = node.volume(&format!("model-{number}"));
            let result = node.publish(&volume, &registry.reference(&format!("{repository}:v1")), &[]).await;
            assert_eq!(result.is_ok(), works, "{later}: {result:?}");
        }
    });
}

#[test]
fn attributes_that_mean_nothing_for_an_image_are_refused() {
    isolated(async {
        let registry = Scripted::start().await;
        image(
            &registry.pusher("image"),
            "v1",
            &[Tarball::new().file("lib/a", b"x").symlink("l", "lib").finish()],
        )
        .await;
        image(&registry.pusher("image"), "empty", &[]).await;
        let node = Node::start(&["--plain-http", &registry.host()]).await;
        let reference = registry.reference("image:v1");
        for (attribute, code) in [
            (("stripComponents", "1"), Code::InvalidArgument),
            (("unpack", "never"), Code::FailedPrecondition),
            (("path", "nowhere"), Code::InvalidArgument),
            (("path", "l/a"), Code::InvalidArgument),
            (("include", "nothing"), Code::InvalidArgument),
        ] {
            let status =
                node.publish(&node.volume("pod"), &reference, &[attribute]).await.expect_err(attribute.0);
            assert_eq!(status.code(), code, "{}", status.message());
        }
        let empty = node.volume("empty");
        node.publish(&empty, &registry.reference("image:empty"), &[]).await.expect("an image without layers");
        assert_eq!(paths(&empty.target).len(), 0);
    });
}

#[test]
fn t39_private_layers_are_for_those_who_may_read_them() {
    isolated(async {
        let registry = Scripted::start().await;
        let layer = gzip(&Tarball::new().file("secret", &noise(8, 1 << 20)).finish()).expect("gzip");
        image(&registry.pusher("private"), "v1", std::slice::from_ref(&layer)).await;
        // Somebody else's manifest that names the layer, in a repository that does not have it.
        let stolen = Layer::archive(layer.clone());
        let attacker = registry.pusher("attacker");
        attacker.blob(Bytes::from_static(b"{}")).await.expect("pushed");
        let manifest = json!({
            "schemaVersion": 2, "mediaType": media_type::OCI_MANIFEST,
            "config": { "mediaType": media_type::OCI_IMAGE_CONFIG, "digest": Digest::sha256(b"{}").to_string(), "size": 2 },
            "layers": [stolen.descriptor()],
        });
        attacker.manifest("v1", media_type::OCI_MANIFEST, &manifest.to_string()).await.expect("pushed");
        use base64::Engine as _;
        let allowed = format!("Basic {}", base64::engine::general_purpose::STANDARD.encode("alice:pw"));
        registry.script(move |seen| {
            let known = seen.headers.get("authorization").is_some_and(|value| value == allowed.as_str());
            (seen.path.contains("/private/") && !known).then(|| {
                (axum::http::StatusCode::UNAUTHORIZED, [("www-authenticate", "Basic realm=\"r\"")])
                    .into_response()
            })
        });
        let node = Node::start(&["--plain-http", &registry.host()]).await;
        let private = registry.reference("private:v1");
        node.publish_as(&node.volume("alice"), &private, &[], ("alice", "pw")).await.expect("hers");
        let attributes: [&[(&str, &str)]; 3] = [&[], &[("pullPolicy", "Never")], &[("include", "secret")]];
        for attributes in attributes {
            let reference = registry.reference("attacker:v1");
            for reference in [&private, &reference] {
                let result = node.publish(&node.volume("mallory"), reference, attributes).await;
                assert!(result.is_err(), "{reference} {attributes:?}");
            }
        }
        node.publish_as(&node.volume("again"), &private, &[], ("alice", "pw")).await.expect("still hers");
    });
}
