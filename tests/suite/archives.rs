//! Images and archives inside artifacts, published by the real binary: what pods see, and what is fetched for it.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use axum::http::Method;
use axum::response::{IntoResponse as _, Response};
use bytes::Bytes;
use futures_util::StreamExt as _;
use ocivol::demo::push::{Layer, Pusher};
use ocivol::demo::tarball::{DIRECTORY, FILE, Header, Tarball, gzip, zstd};
use ocivol::oci::{Digest, media_type};
use serde_json::{Value, json};
use tonic::Code;

use crate::support::node::mount_at;
use crate::support::{Node, Scripted, isolated, noise};

async fn image(pusher: &Pusher, tag: &str, layers: &[Vec<u8>]) -> Digest {
    let layers: Vec<Layer> = layers.iter().map(|layer| Layer::archive(layer.clone())).collect();
    pusher.image(tag, &layers, &[]).await.expect("pushed")
}

fn model_archive(media_type: &str, content: Vec<u8>) -> Layer {
    let media_type = format!("application/vnd.cncf.model.{media_type}");
    Layer { media_type, content: content.into(), annotations: json!({}) }
}

fn directory_layer(title: &str, content: Vec<u8>, annotations: &Value) -> Layer {
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

/// All paths below a directory, sorted; directories end in a slash.
fn paths(root: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut waiting = vec![root.to_owned()];
    while let Some(directory) = waiting.pop() {
        for entry in fs::read_dir(directory).expect("a directory") {
            let path = entry.expect("an entry").path();
            let is_directory = fs::symlink_metadata(&path).expect("metadata").is_dir();
            let name = path.strip_prefix(root).expect("below").display().to_string();
            found.push(if is_directory { name + "/" } else { name });
            if is_directory {
                waiting.push(path);
            }
        }
    }
    found.sort();
    found
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
        let (exact, readable) = ([0o600, 0o700, 0o750], [0o644, 0o755, 0o754]);
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
            (("path", "l"), Code::InvalidArgument),
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

/// A blob whose first answer ends after `part` bytes.
fn cut_once(registry: &Scripted, blob: &[u8], part: usize) {
    let (start, length) = (Bytes::copy_from_slice(&blob[..part]), blob.len());
    let mut first = true;
    registry.script(move |seen| {
        if !seen.path.contains("/blobs/")
            || seen.method != Method::GET
            || !std::mem::replace(&mut first, false)
        {
            return None;
        }
        let parts = [Ok(start.clone()), Err(std::io::Error::other("cut"))];
        let body = axum::body::Body::from_stream(futures_util::stream::iter(parts));
        Some(([("content-length", length)], body).into_response())
    });
}

#[test]
fn a_broken_connection_does_not_start_a_layer_again() {
    isolated(async {
        let registry = Scripted::start().await;
        let content = noise(4, 8 << 20);
        let blob = zstd(&Tarball::new().file("big", &content).finish()).expect("zstd");
        image(&registry.pusher("image"), "v1", std::slice::from_ref(&blob)).await;
        let node = Node::start(&["--plain-http", &registry.host()]).await;
        cut_once(&registry, &blob, 5 << 20);
        let volume = node.volume("pod");
        node.publish(&volume, &registry.reference("image:v1"), &[]).await.expect("published");
        assert!(fs::read(volume.target.join("big")).expect("a file") == content);
        let ranges: Vec<_> =
            registry.requests().iter().filter_map(|seen| seen.headers.get("range").cloned()).collect();
        assert_eq!(ranges.len(), 1);
        let start = ranges[0]
            .to_str()
            .expect("text")
            .trim_start_matches("bytes=")
            .split('-')
            .next()
            .expect("a start")
            .to_owned();
        assert!(start.parse::<usize>().expect("a number") > 1 << 20, "{start}");
    });
}

#[test]
fn a_slow_connection_is_helped_and_order_is_kept() {
    isolated(async {
        let registry = Scripted::start().await;
        let content = noise(5, 72 << 20);
        let tar = Tarball::new().file("big", &content).finish();
        image(&registry.pusher("image"), "v1", std::slice::from_ref(&tar)).await;
        let node = Node::start(&["--plain-http", &registry.host()]).await;
        // The first connection gives 1 MiB, and then nothing until all the rest is there.
        let (start, length) = (Bytes::copy_from_slice(&tar[..1 << 20]), tar.len());
        let rest = Bytes::copy_from_slice(&tar[1 << 20..]);
        let mut first = true;
        registry.script(move |seen| {
            if !seen.path.contains("/blobs/")
                || seen.method != Method::GET
                || !std::mem::replace(&mut first, false)
            {
                return None;
            }
            let pieces: Vec<Bytes> = rest.chunks(1 << 20).map(Bytes::copy_from_slice).collect();
            let slow = futures_util::stream::iter(pieces).then(|piece| async {
                tokio::time::sleep(std::time::Duration::from_millis(40)).await;
                Ok::<_, std::io::Error>(piece)
            });
            let body = futures_util::stream::iter([Ok(start.clone())]).chain(slow);
            Some(([("content-length", length)], axum::body::Body::from_stream(body)).into_response())
        });
        let volume = node.volume("pod");
        node.publish(&volume, &registry.reference("image:v1"), &[]).await.expect("published");
        assert!(fs::read(volume.target.join("big")).expect("a file") == content);
        assert!(registry.count(&Method::GET, "/blobs/") > 1, "nobody helped");
        assert_eq!(
            fs::read_dir(node.root.join("v1/ingest")).expect("ingest").count(),
            1,
            "only the trash is left"
        );
    });
}

#[test]
fn content_that_is_not_the_right_one_is_told_from_a_bad_layer() {
    isolated(async {
        let registry = Scripted::start().await;
        let blob = gzip(&Tarball::new().file("a", &noise(6, 1 << 20)).finish()).expect("gzip");
        image(&registry.pusher("image"), "v1", std::slice::from_ref(&blob)).await;
        let node = Node::start(&["--plain-http", &registry.host()]).await;
        for at in [0, 100, blob.len() / 2, blob.len() - 1] {
            let mut damaged = blob.clone();
            damaged[at] ^= 0x55;
            registry.script(move |seen| {
                let get = seen.path.contains("/blobs/") && seen.method == Method::GET;
                get.then(|| Response::new(axum::body::Body::from(damaged.clone())))
            });
            let volume = node.volume("pod");
            let status =
                node.publish(&volume, &registry.reference("image:v1"), &[]).await.expect_err("damaged");
            assert!(status.message().contains("sent wrong content"), "byte {at}: {}", status.message());
            assert!(mount_at(&volume.target).is_none());
        }
        registry.unscript();
        node.publish(&node.volume("pod"), &registry.reference("image:v1"), &[]).await.expect("published");
    });
}

#[test]
fn layers_and_trees_survive_a_kill_and_damage_is_found() {
    isolated(async {
        let registry = Scripted::start().await;
        let base =
            Tarball::new().file("a", &noise(7, 1 << 20)).symlink("s", "a").hard_link("h", "a").finish();
        let top = Tarball::new().file("b", b"top").finish();
        let pusher = registry.pusher("image");
        image(&pusher, "one", std::slice::from_ref(&base)).await;
        image(&pusher, "two", &[base.clone(), top]).await;
        let mut node = Node::start(&["--plain-http", &registry.host()]).await;
        let references = ["one", "two"].map(|tag| registry.reference(&format!("image:{tag}")));
        let publish = async |node: &Node, name: &str| {
            for (number, reference) in references.iter().enumerate() {
                let volume = node.volume(&format!("{name}-{number}"));
                node.publish(&volume, reference, &[]).await.expect("published");
                assert!(fs::read(volume.target.join("h")).expect("a file") == noise(7, 1 << 20));
            }
        };
        publish(&node, "before").await;
        registry.forget();
        // As if nothing had reached the disk yet: what is here is compared with its index before it is used.
        for volatile in [false, true] {
            node.kill();
            if volatile {
                forget_durability(&node.root);
            }
            node.run().await;
            publish(&node, &format!("after-{volatile}")).await;
        }
        assert_eq!(registry.count(&Method::GET, "/blobs/"), 0, "all of it was still good");
        for damage in ["flip", "truncate", "mode", "index", "missing"] {
            node.kill();
            forget_durability(&node.root);
            let layer = layer_with(&node.root, "a");
            let file = layer.join("fs/a");
            match damage {
                "flip" => {
                    let mut content = fs::read(&file).expect("a file");
                    content[5] ^= 1;
                    let mtime = fs::metadata(&file).expect("a file").modified().expect("a time");
                    fs::write(&file, content).expect("written");
                    fs::File::open(&file).expect("a file").set_modified(mtime).expect("a time");
                }
                "truncate" => {
                    fs::File::options()
                        .write(true)
                        .open(&file)
                        .expect("a file")
                        .set_len(10)
                        .expect("shorter");
                }
                "mode" => fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o0))
                    .expect("a mode"),
                "index" => fs::write(layer.join("index"), b"").expect("written"),
                _ => fs::remove_file(&file).expect("removed"),
            }
            registry.forget();
            node.run().await;
            publish(&node, damage).await;
            assert_eq!(
                registry.count(&Method::GET, "/blobs/"),
                1,
                "{damage}: only the damaged layer is fetched again"
            );
        }
        // Another boot: nobody knows what reached the disk.
        node.kill();
        forget_durability(&node.root);
        rewrite_records(&node.root, |text| {
            let start = text.find("\"boot_id\":\"").expect("a boot") + 11;
            text.replacen(&text[start..start + 8], "00000000", 1)
        });
        registry.forget();
        node.run().await;
        publish(&node, "boot").await;
        assert_eq!(registry.count(&Method::GET, "/blobs/"), 2);
    });
}

/// The layer's directory in the store that holds `name`.
fn layer_with(root: &Path, name: &str) -> std::path::PathBuf {
    let layers = fs::read_dir(root.join("v1/layers")).expect("layers");
    let mut layers = layers.map(|entry| entry.expect("an entry").path());
    let current = |path: &std::path::PathBuf| {
        let retired = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("retired-"));
        !retired && path.join("fs").join(name).exists()
    };
    layers.find(current).expect("the layer")
}

fn forget_durability(root: &Path) {
    rewrite_records(root, |text| text.replace("\"durable\":true", "\"durable\":false"));
}

fn rewrite_records(root: &Path, change: impl Fn(&str) -> String) {
    for name in ["layers", "images"] {
        for entry in fs::read_dir(root.join("v1").join(name)).expect("records") {
            let path = entry.expect("an entry").path();
            if path.extension().is_some_and(|extension| extension == "json") {
                let text = fs::read_to_string(&path).expect("a record");
                fs::write(&path, change(&text)).expect("written");
            }
        }
    }
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

/// A frame whose decoder needs 32 MiB: `zstd --long=25`.
fn large_window(tar: &[u8]) -> Vec<u8> {
    use std::io::Write as _;
    let mut encoder = ::zstd::Encoder::new(Vec::new(), 3).expect("memory");
    encoder.window_log(25).expect("a window");
    encoder.write_all(tar).expect("memory");
    encoder.finish().expect("memory")
}

#[test]
fn regression_layers_that_need_much_memory_do_not_hold_up_others() {
    isolated(async {
        let registry = Scripted::start().await;
        let layer = |number: u64| {
            large_window(&Tarball::new().file(format!("f{number}"), &noise(20 + number, 3 << 20)).finish())
        };
        let layers: Vec<Vec<u8>> = (0..5).map(layer).collect();
        let stalled = layer(9);
        image(&registry.pusher("image"), "v1", &layers).await;
        image(&registry.pusher("stalled"), "v1", std::slice::from_ref(&stalled)).await;
        let node = Node::start(&["--plain-http", &registry.host()]).await;
        // One that comes so far and no further does not have the memory.
        let start = Bytes::copy_from_slice(&stalled[..1 << 20]);
        let length = stalled.len();
        registry.script(move |seen| {
            if !seen.path.contains("/stalled/blobs/") {
                return None;
            }
            let start = futures_util::stream::iter([Ok::<_, std::io::Error>(start.clone())]);
            let body = axum::body::Body::from_stream(start.chain(futures_util::stream::pending()));
            Some(([("content-length", length)], body).into_response())
        });
        let (kubelet, slow) = (node.kubelet.clone(), node.volume("slow"));
        let request =
            kubelet.publish_request(&slow, &[("reference", &registry.reference("stalled:v1"))], &[]);
        let waiting = tokio::spawn(async move { kubelet.publish(request).await });
        crate::support::eventually("the stalled layer is asked for", || {
            registry.count(&Method::GET, "/stalled/blobs/") > 0
        })
        .await;
        let volume = node.volume("pod");
        node.publish(&volume, &registry.reference("image:v1"), &[]).await.expect("published");
        for number in 0..5 {
            assert!(
                fs::read(volume.target.join(format!("f{number}"))).expect("a file")
                    == noise(20 + number, 3 << 20)
            );
        }
        waiting.abort();
    });
}

#[test]
fn regression_wrong_bytes_from_one_registry_do_not_fail_the_pull_from_another() {
    isolated(async {
        let (honest, hostile) = (Scripted::start().await, Scripted::start().await);
        let tar = Tarball::new().file("a", &noise(30, 2 << 20)).finish();
        for registry in [&honest, &hostile] {
            image(&registry.pusher("image"), "v1", std::slice::from_ref(&tar)).await;
        }
        // A file of 8 TiB: more than there is room for, and not what the digest names.
        let lie = Header { size: 8 << 40, ..Header::new("a", FILE) }.block();
        let mut wrong = lie.to_vec();
        wrong.resize(tar.len(), 0);
        let (joined, join) = (
            std::sync::Arc::new(tokio::sync::Notify::new()),
            std::sync::Arc::new(tokio::sync::Notify::new()),
        );
        let wait = std::sync::Arc::clone(&joined);
        hostile.script(move |seen| {
            if !seen.path.contains("/blobs/") || seen.method != Method::GET {
                return None;
            }
            let (wait, wrong) = (std::sync::Arc::clone(&wait), Bytes::from(wrong.clone()));
            let late = futures_util::stream::once(async move {
                wait.notified().await;
                Ok::<_, std::io::Error>(wrong)
            });
            Some(axum::body::Body::from_stream(late).into_response())
        });
        let seen = std::sync::Arc::clone(&join);
        honest.script(move |request| {
            if request.path.contains("/manifests/") {
                seen.notify_one();
            }
            None
        });
        let node = Node::start(&["--plain-http", &format!("{},{}", honest.host(), hostile.host())]).await;
        let publish = |name: &str, reference: String| {
            let (kubelet, volume) = (node.kubelet.clone(), node.volume(name));
            let request = kubelet.publish_request(&volume, &[("reference", &reference)], &[]);
            tokio::spawn(async move { kubelet.publish(request).await.map(|()| volume.target) })
        };
        let attacker = publish("attacker", hostile.reference("image:v1"));
        crate::support::eventually("the attack has begun", || hostile.count(&Method::GET, "/blobs/") > 0)
            .await;
        let victim = publish("victim", honest.reference("image:v1"));
        join.notified().await;
        joined.notify_one();
        let target = victim.await.expect("no panic").expect("the right bytes came from the own registry");
        assert!(fs::read(target.join("a")).expect("a file") == noise(30, 2 << 20));
        let _ = attacker.await.expect("no panic"); // Whatever became of it.
    });
}

#[test]
fn regression_promises_of_other_algorithms_do_not_contradict_each_other() {
    isolated(async {
        let registry = Scripted::start().await;
        let tar = Tarball::new().file("set/a", b"a").finish();
        let packed = gzip(&tar).expect("gzip");
        let pusher = registry.pusher("files");
        let long = Digest::of(ocivol::oci::digest::Algorithm::Sha512, &tar);
        let other = Digest::of(ocivol::oci::digest::Algorithm::Sha512, b"other");
        for (tag, promise) in [("long", long), ("short", Digest::sha256(&tar)), ("wrong", other)] {
            let promise = json!({ "io.deis.oras.content.digest": promise.to_string() });
            pusher.files(tag, &[directory_layer("set", packed.clone(), &promise)]).await.expect("pushed");
        }
        let node = Node::start(&["--plain-http", &registry.host()]).await;
        for tag in ["long", "short", "long", "short"] {
            let volume = node.volume(&format!("{tag}-{}", registry.requests().len()));
            node.publish(&volume, &registry.reference(&format!("files:{tag}")), &[]).await.expect(tag);
        }
        let status = node.publish(&node.volume("wrong"), &registry.reference("files:wrong"), &[]).await;
        assert_eq!(status.expect_err("another content").code(), Code::FailedPrecondition);
    });
}

#[test]
fn regression_a_layer_that_is_named_often_is_not_held_often() {
    isolated(async {
        let registry = Scripted::start().await;
        let block = Header::new("d", DIRECTORY).block();
        let layer = zstd(&block.repeat(400_000)).expect("zstd");
        image(&registry.pusher("image"), "v1", &vec![layer; 6]).await;
        let node = Node::start(&["--plain-http", &registry.host()]).await;
        let status = node.publish(&node.volume("pod"), &registry.reference("image:v1"), &[]).await;
        let status = status.expect_err("2.4 million entries");
        assert_eq!(status.code(), Code::FailedPrecondition);
        assert!(status.message().contains("more entries"), "{}", status.message());
    });
}

#[test]
fn regression_a_file_that_rotted_is_fetched_again_when_it_is_unpacked() {
    isolated(async {
        let registry = Scripted::start().await;
        let packed = gzip(&Tarball::new().file("a", &noise(40, 1 << 20)).finish()).expect("gzip");
        let pusher = registry.pusher("files");
        let layer = Layer::titled("data.tar.gz", packed.clone());
        pusher.files("v1", &[layer]).await.expect("pushed");
        let node = Node::start(&["--plain-http", &registry.host()]).await;
        let reference = registry.reference("files:v1");
        node.publish(&node.volume("file"), &reference, &[]).await.expect("published");
        let digest = Digest::sha256(&packed);
        let blob = node.root.join("v1/blobs/sha256").join(digest.hex());
        let mut rotten = packed.clone();
        rotten[1000] ^= 1;
        fs::write(&blob, &rotten).expect("written");
        let volume = node.volume("unpacked");
        node.publish(&volume, &reference, &[("unpack", "always")]).await.expect("published");
        assert!(fs::read(volume.target.join("a")).expect("a file") == noise(40, 1 << 20));
        assert_eq!(registry.count(&Method::GET, "/blobs/"), 2);
    });
}
