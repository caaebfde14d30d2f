//! `ocivol save` and `ocivol load`: artifacts as archives, on nodes that reach no registry.

use std::path::{Path, PathBuf};
use std::process::Command;

use axum::http::StatusCode;
use ocivol::demo::kubelet::Pod;
use ocivol::demo::push::Layer;
use ocivol::demo::registry::error;
use ocivol::demo::tarball::{Tarball, gzip};
use ocivol::oci::digest::Digest;
use serde_json::Value;
use tonic::Code;

use super::commands::{failure, ocivol, stdout};
use super::users::node;
use crate::support::image_layout::ImageLayout;
use crate::support::{Scripted, isolated, noise};

fn image_layers() -> Vec<Layer> {
    let base = Tarball::new().file("etc/base", b"base").file("usr/x", &noise(5, 5_000_000)).finish();
    let top = Tarball::new().file("etc/.wh.base", b"").file("etc/top", b"top").finish();
    vec![Layer::archive(gzip(&base).expect("memory")), Layer::archive(top)]
}

/// Names in an archive, and the contents of its files, as the crate `tar` reads them.
fn entries(path: &Path) -> Vec<(String, u64, Vec<u8>)> {
    let mut archive = tar::Archive::new(std::fs::File::open(path).expect("a file"));
    let entries = archive.entries().expect("entries").map(|entry| {
        let mut entry = entry.expect("an entry");
        let mut content = Vec::new();
        std::io::Read::read_to_end(&mut entry, &mut content).expect("content");
        let name = entry.path().expect("a name").display().to_string();
        (name, entry.header().mtime().expect("a time"), content)
    });
    entries.collect()
}

fn names_in(directory: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(directory).expect("a directory");
    entries.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned()).collect()
}

#[test]
fn what_is_saved_is_what_the_registry_has_whoever_holds_the_store() {
    isolated(async {
        let registry = Scripted::start().await;
        let layers = image_layers();
        let digest = registry.pusher("app").image("v1", &layers, &[]).await.expect("pushed");
        let reference = registry.reference("app:v1");
        let mut written: Vec<Vec<u8>> = Vec::new();
        for with_plugin in [false, true] {
            registry.unscript();
            let node = node(&["--plain-http", &registry.host()], with_plugin).await;
            // Its layers are unpacked, and no files.
            stdout(&ocivol(&node, &registry, &["pull", &reference]).await);
            let out = tempfile::tempdir().expect("a directory");
            let file = out.path().join("app.tar");
            let place = file.to_str().expect("text");
            std::fs::write(&file, "what was there before").expect("written");
            let text = stdout(&ocivol(&node, &registry, &["save", &reference, place]).await);
            assert!(text.starts_with(&digest.to_string()) && text.contains("4 blobs, "), "{text}");
            assert_eq!(names_in(out.path()), ["app.tar"]);
            let entries = entries(&file);
            let blob = |digest: &Digest| format!("blobs/sha256/{}", digest.hex());
            let names: Vec<_> = entries.iter().map(|(name, ..)| name.clone()).collect();
            let (first, second) = (Digest::sha256(&layers[0].content), Digest::sha256(&layers[1].content));
            assert_eq!(names[..3], ["oci-layout".to_owned(), "index.json".to_owned(), blob(&digest)]);
            assert_eq!(names[4..], [blob(&first), blob(&second)]);
            for (name, time, content) in &entries {
                assert_eq!(*time, 0);
                let hex = name.strip_prefix("blobs/sha256/");
                assert!(hex.is_none_or(|hex| Digest::sha256(content).hex() == hex), "{name}");
            }
            let index: Value = serde_json::from_slice(&entries[1].2).expect("JSON");
            let annotations = &index["manifests"][0]["annotations"];
            assert_eq!(annotations["io.containerd.image.name"], reference);
            assert_eq!(annotations["org.opencontainers.image.ref.name"], "v1");
            written.push(std::fs::read(&file).expect("read"));

            // All of it is in the store now.
            registry.script(|_| Some(error(StatusCode::SERVICE_UNAVAILABLE, "UNKNOWN")));
            let again = ocivol(&node, &registry, &["save", &reference, "-", "--pull-policy", "Never"]).await;
            assert!(again.status.success(), "{}", String::from_utf8_lossy(&again.stderr));
            written.push(again.stdout);
            let inspect =
                Command::new("skopeo").args(["inspect", &format!("oci-archive:{place}:v1")]).output();
            let inspect = inspect.expect("skopeo runs");
            let inspected: Value = serde_json::from_slice(&inspect.stdout)
                .unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&inspect.stderr)));
            assert_eq!(inspected["Digest"], digest.to_string());
            // And the archive is a layout like any other.
            if !with_plugin {
                let text =
                    stdout(&ocivol(&node, &registry, &["inspect", &format!("oci-layout:{place}")]).await);
                assert!(text.contains(&digest.to_string()), "{text}");
                // What is damaged in the store is not written.
                let blob = node.root.join("v1").join(blob(&first));
                let mut content = std::fs::read(&blob).expect("read");
                content[9] ^= 1;
                std::fs::write(&blob, content).expect("written");
                let other = out.path().join("other.tar");
                let arguments = ["save", &reference, other.to_str().expect("text"), "--pull-policy", "Never"];
                let (code, text) = failure(&ocivol(&node, &registry, &arguments).await);
                assert!(code == 1 && text.contains(first.hex()) && text.contains("damaged"), "{text}");
                assert_eq!(names_in(out.path()), ["app.tar"]);
            }
        }
        assert!(written.iter().all(|other| *other == written[0]), "an archive is always the same");
        let node = node(&[], false).await;
        let out = tempfile::tempdir().expect("a directory");
        let file = out.path().join("app.tar");
        let save = ["save", &reference, file.to_str().expect("text"), "--pull-policy", "Never"];
        let (code, text) = failure(&ocivol(&node, &registry, &save).await);
        assert!(code == 1 && text.contains("not in this node's store"), "{text}");
        assert!(names_in(out.path()).is_empty());
        // Where it cannot be written to is said first.
        let (code, text) =
            failure(&ocivol(&node, &registry, &["save", &reference, "/tmp", "--pull-policy", "Never"]).await);
        assert!(code == 2 && text.contains("/tmp is a directory; name a file in it"), "{text}");
    });
}

/// An archive with an image and a model, which have names at `registry`.
fn seed(registry: &Scripted, directory: &Path) -> (PathBuf, Vec<u8>, Digest) {
    let weights = noise(1, 6_000_000);
    let mut layout = ImageLayout::default();
    layout.image(&registry.reference("app:v7"), &image_layers());
    let model = [
        Layer::model_file("weight", "model.gguf", weights.clone()),
        Layer::model_file("doc", "README", "read"),
    ];
    let digest = layout.model(&registry.reference("m:v1"), &model);
    let path = directory.join("seed.tar");
    layout.write_archive(&path);
    (path, weights, digest)
}

#[test]
fn what_is_loaded_is_every_namespaces_under_its_name() {
    isolated(async {
        let registry = Scripted::start().await;
        let directory = tempfile::tempdir().expect("a directory");
        let base = directory.path().canonicalize().expect("a path");
        let (path, weights, digest) = seed(&registry, &base);
        let place = path.to_str().expect("text");
        for with_plugin in [false, true] {
            registry.forget();
            let host = registry.host();
            let flags = ["--plain-http", &host, "--oci-layout-dir", base.to_str().expect("text")];
            let mut node = node(&flags, with_plugin).await;
            let text = stdout(&ocivol(&node, &registry, &["load", place]).await);
            for part in
                [&format!("{}: 2 files, ", registry.reference("app:v7")), &digest.to_string(), "everybody's"]
            {
                assert!(text.contains(part), "{text}");
            }
            let listed = stdout(&ocivol(&node, &registry, &["ls"]).await);
            assert!(listed.contains(&registry.reference("m:v1")), "{listed}");
            std::fs::rename(&path, base.join("away")).expect("renamed");
            if !with_plugin {
                node.run().await;
            }
            let (app, model) = (registry.reference("app:v7"), registry.reference("m:v1"));
            let by_digest = format!("{}@{digest}", registry.reference("m"));
            let policies: [&[(&str, &str)]; 3] =
                [&[], &[("pullPolicy", "Never")], &[("pullPolicy", "Never"), ("include", "*.gguf")]];
            for (number, attributes) in policies.iter().enumerate() {
                for namespace in ["one", "two"] {
                    let pod = Pod::new(namespace, &format!("{namespace}-{number}"));
                    for (name, reference) in [("m", &model), ("d", &by_digest)] {
                        let volume = node.volume_of(&pod, name);
                        node.publish(&volume, reference, attributes).await.expect("published");
                        assert!(std::fs::read(volume.target.join("model.gguf")).expect("read") == weights);
                    }
                }
            }
            let volume = node.volume("image");
            node.publish(&volume, &app, &[("pullPolicy", "Never")]).await.expect("published");
            assert_eq!(std::fs::read(volume.target.join("etc/top")).expect("read"), b"top");
            // Credentials make no difference.
            let volume = node.volume("as-user");
            node.publish_as(&volume, &model, &[], ("user", "password")).await.expect("published");
            // Another layout of it needs what its files were not made of.
            let volume = node.volume("layout");
            let attributes = [("pullPolicy", "Never"), ("layout", "oci-layout")];
            node.publish(&volume, &model, &attributes).await.expect("published");
            assert_eq!(names_in(&volume.target.join("blobs/sha256")).len(), 4);
            assert_eq!(registry.requests().len(), 0, "no registry was asked");
            // Only that name has it, and only that repository.
            for other in ["m:v2", "other:v1", &format!("other@{digest}")] {
                let volume = node.volume("other");
                let status =
                    node.publish(&volume, &registry.reference(other), &[("pullPolicy", "Never")]).await;
                assert_eq!(status.expect_err(other).code(), Code::NotFound, "{other}");
            }
            std::fs::rename(base.join("away"), &path).expect("renamed");
        }
    });
}

#[test]
fn what_one_tenant_is_told_by_the_registry_changes_nothing_for_others() {
    isolated(async {
        let registry = Scripted::start().await;
        let directory = tempfile::tempdir().expect("a directory");
        let base = directory.path().canonicalize().expect("a path");
        let (path, weights, _) = seed(&registry, &base);
        let host = registry.host();
        let flags = ["--plain-http", &host, "--oci-layout-dir", base.to_str().expect("text")];
        let node = node(&flags, true).await;
        stdout(&ocivol(&node, &registry, &["load", path.to_str().expect("text")]).await);
        // Records of tags tell the order of what happens by the second.
        tokio::time::sleep(std::time::Duration::from_millis(1100)).await;
        let newer = [Layer::model_file("weight", "model.gguf", "newer")];
        registry.pusher("m").model("v1", &newer).await.expect("pushed");
        let model = registry.reference("m:v1");
        let mut number = 0;
        let mut shown = async |namespace: &str, policy: &str| {
            number += 1;
            let volume = node.volume_of(&Pod::new(namespace, &format!("{namespace}-{number}")), "m");
            node.publish(&volume, &model, &[("pullPolicy", policy)]).await.expect("published");
            std::fs::read(volume.target.join("model.gguf")).expect("read")
        };
        assert_eq!(shown("asking", "Always").await, b"newer");
        assert_eq!(shown("asking", "IfNotPresent").await, b"newer");
        assert!(shown("other", "IfNotPresent").await == weights);
        assert!(shown("third", "Never").await == weights);
        // What the operator loads again is newer than what the registry has said.
        tokio::time::sleep(std::time::Duration::from_millis(1100)).await;
        stdout(&ocivol(&node, &registry, &["load", path.to_str().expect("text")]).await);
        assert!(shown("asking", "IfNotPresent").await == weights);
    });
}

#[test]
fn what_cannot_be_loaded_is_said() {
    isolated(async {
        let registry = Scripted::start().await;
        let directory = tempfile::tempdir().expect("a directory");
        let base = directory.path().canonicalize().expect("a path");
        let mut tagged = ImageLayout::default();
        tagged.image("v1", &image_layers());
        let path = base.join("dir");
        tagged.write_directory(&path);
        let place = path.to_str().expect("text");
        let alone = node(&[], false).await;
        let (code, text) = failure(&ocivol(&alone, &registry, &["load", place]).await);
        assert!(code == 1 && text.contains("only v1; give the name: ocivol load FILE REF"), "{text}");
        let text = stdout(&ocivol(&alone, &registry, &["load", place, "registry.example/app:v1"]).await);
        assert!(text.contains("registry.example/app:v1: 2 files"), "{text}");
        let (_, text) = failure(&ocivol(&alone, &registry, &["load", "-"]).await);
        assert!(text.contains("standard input"), "{text}");
        let colon = base.join("a:b");
        std::fs::create_dir(&colon).expect("made");
        let (code, text) =
            failure(&ocivol(&alone, &registry, &["load", colon.to_str().expect("text")]).await);
        assert!(code == 2 && text.contains("rename it"), "{text}");
        // What is not whole is not noted.
        let config = tagged
            .blobs
            .keys()
            .find(|name| tagged.blobs[*name].starts_with(b"{\"architecture"))
            .expect("a config");
        std::fs::remove_file(path.join(config)).expect("removed");
        let other = node(&[], false).await;
        let (code, text) =
            failure(&ocivol(&other, &registry, &["load", place, "registry.example/app:v1"]).await);
        assert!(code == 1 && text.contains("was it copied whole?"), "{text}");
        let arguments = ["pull", "registry.example/app:v1", "--pull-policy", "Never"];
        assert!(failure(&ocivol(&other, &registry, &arguments).await).1.contains("not in this node's store"));
        let plugin = node(&[], true).await;
        let (code, text) = failure(&ocivol(&plugin, &registry, &["load", place]).await);
        assert!(
            code == 2 && text.contains("--oci-layout-dir") && text.contains("has to see the file itself"),
            "{text}"
        );
    });
}
