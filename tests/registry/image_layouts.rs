//! Image layouts on the node, mounted without a registry.

use std::path::{Path, PathBuf};
use std::process::Command;

use ocivol::demo::push::Layer;
use ocivol::demo::tarball::{Tarball, gzip};
use ocivol::oci::digest::Digest;
use tonic::Code;

use crate::support::image_layout::{ImageLayout, blob_name};
use crate::support::{Node, isolated, noise};

/// A node whose plugin reads layouts in one directory.
struct Seeded {
    node: Node,
    seeds: PathBuf,
    _directory: tempfile::TempDir,
}

async fn seeded() -> Seeded {
    let directory = tempfile::tempdir().expect("a directory");
    let seeds = directory.path().canonicalize().expect("a path").join("seeds");
    std::fs::create_dir(&seeds).expect("made");
    let mut node = Node::on_host(&["--oci-layout-dir", seeds.to_str().expect("text")]);
    node.run().await;
    Seeded { node, seeds, _directory: directory }
}

fn image_layers() -> Vec<Layer> {
    let base = Tarball::new().file("etc/base", b"base").file("usr/x", &noise(5, 400_000)).finish();
    let top = Tarball::new().file("etc/.wh.base", b"").file("etc/top", b"top").finish();
    vec![Layer::archive(gzip(&base).expect("memory")), Layer::archive(top)]
}

fn layout(weights: &[u8]) -> ImageLayout {
    let mut layout = ImageLayout::default();
    layout.image("docker.io/library/app:3", &image_layers());
    let model = [
        Layer::model_file("weight", "model.gguf", weights.to_vec()),
        Layer::model_file("doc", "README", "read"),
    ];
    layout.model("m1", &model);
    layout
}

fn reference(path: &Path, rest: &str) -> String {
    format!("oci-layout:{}{rest}", path.display())
}

fn read(path: &Path) -> Vec<u8> {
    std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

#[test]
fn an_image_and_a_model_are_mounted_from_a_directory_and_from_an_archive() {
    isolated(async {
        let weights = noise(1, 9_000_000);
        let layout = layout(&weights);
        for is_archive in [false, true] {
            let Seeded { node, seeds, _directory } = seeded().await;
            let path = seeds.join("Models").join("one.tar");
            std::fs::create_dir(seeds.join("Models")).expect("made");
            if is_archive {
                layout.write_archive(&path);
            } else {
                layout.write_directory(&path);
            }
            let image = node.volume("image");
            node.publish(&image, &reference(&path, ":3"), &[]).await.expect("an image");
            assert_eq!(read(&image.target.join("etc/top")), b"top");
            assert_eq!(read(&image.target.join("usr/x")), noise(5, 400_000));
            assert!(!image.target.join("etc/base").exists());
            let model = node.volume("model");
            // Credentials that would fit every host are nothing to a layout.
            node.publish_as(&model, &reference(&path, ":m1"), &[], ("user", "password"))
                .await
                .expect("a model");
            assert!(read(&model.target.join("model.gguf")) == weights);
            // It is in the store: without the layout, what was resolved is known.
            if is_archive {
                std::fs::remove_file(&path).expect("removed");
            } else {
                std::fs::remove_dir_all(&path).expect("removed");
            }
            let again = node.volume("again");
            node.publish(&again, &reference(&path, ":m1"), &[("pullPolicy", "IfNotPresent")])
                .await
                .expect("kept");
            let status = node.publish(&node.volume("gone"), &reference(&path, ""), &[]).await;
            let status = status.expect_err("it is gone");
            assert_eq!(status.code(), Code::NotFound, "{status}");
            assert!(status.message().contains("does not exist in oci-layout:/"), "{status}");
        }
    });
}

#[test]
fn wrong_bytes_in_a_layout_are_refused() {
    isolated(async {
        let weights = noise(2, 6_000_000);
        let layout = layout(&weights);
        let blob = blob_name(&Digest::sha256(&weights));
        let with = |content: Option<Vec<u8>>| {
            let mut layout = layout.clone();
            match content {
                Some(content) => layout.blobs.insert(blob.clone(), content),
                None => layout.blobs.remove(&blob),
            };
            layout
        };
        let mut flipped = weights.clone();
        flipped[3_000_000] ^= 1;
        let table = [
            ("flipped", Some(flipped), Code::FailedPrecondition, "wrong content"),
            (
                "short",
                Some(weights[..5_000_000].to_vec()),
                Code::FailedPrecondition,
                "5000000 bytes where the manifest says",
            ),
            (
                "long",
                Some([weights.clone(), vec![0]].concat()),
                Code::FailedPrecondition,
                "6000001 bytes where the manifest says",
            ),
            ("missing", None, Code::NotFound, "was it copied whole?"),
        ];
        let Seeded { node, seeds, _directory } = seeded().await;
        for (name, content, code, words) in table {
            let layout = with(content);
            layout.write_directory(&seeds.join(name));
            layout.write_archive(&seeds.join(format!("{name}.tar")));
            for name in [name.to_owned(), format!("{name}.tar")] {
                let volume = node.volume(&name.replace('.', "-"));
                let status = node.publish(&volume, &reference(&seeds.join(&name), ":m1"), &[]).await;
                let status = status.expect_err(&name);
                assert!(status.code() == code && status.message().contains(words), "{name}: {status}");
            }
        }
        layout.write_directory(&seeds.join("right"));
        let volume = node.volume("right");
        node.publish(&volume, &reference(&seeds.join("right"), ":m1"), &[]).await.expect("published");
        assert!(read(&volume.target.join("model.gguf")) == weights);
    });
}

#[test]
fn only_configured_directories_are_read() {
    isolated(async {
        let Seeded { node, seeds, _directory } = seeded().await;
        let outside = seeds.with_file_name("outside");
        layout(b"weights").write_directory(&outside);
        std::os::unix::fs::symlink(&outside, seeds.join("link")).expect("linked");
        for path in [&outside, &seeds.join("link"), &PathBuf::from("/etc/passwd")] {
            let status = node.publish(&node.volume("pod"), &reference(path, ":m1"), &[]).await;
            let status = status.expect_err("a refusal");
            assert_eq!(status.code(), Code::InvalidArgument, "{status}");
            assert!(
                status.message().contains("where image layouts may lie")
                    || status.message().contains("--oci-layout-dir"),
                "{status}"
            );
        }
        let dots = format!("oci-layout:{}/../outside:m1", seeds.display());
        let status = node.publish(&node.volume("pod"), &dots, &[]).await.expect_err("a refusal");
        assert!(status.code() == Code::InvalidArgument && status.message().contains("\"..\""), "{status}");

        let mut plain = Node::on_host(&[]);
        plain.run().await;
        let status = plain.publish(&plain.volume("pod"), &reference(&seeds, ":m1"), &[]).await;
        let status = status.expect_err("a refusal");
        assert_eq!(status.code(), Code::InvalidArgument, "{status}");
        assert!(status.message().contains("name one in --oci-layout-dir"), "{status}");
    });
}

#[test]
fn archives_of_skopeo_are_read() {
    isolated(async {
        let Seeded { node, seeds, _directory } = seeded().await;
        let mut layout = ImageLayout::default();
        layout.image("v1", &image_layers());
        layout.write_directory(&seeds.join("dir"));
        let (from, to) = (format!("oci:{}:v1", seeds.join("dir").display()), seeds.join("one.tar"));
        let to_archive = format!("oci-archive:{}:registry.example/app:v7", to.display());
        let done = Command::new("skopeo")
            .args(["copy", "--quiet", "--insecure-policy", &from, &to_archive])
            .output();
        let done = done.expect("skopeo runs");
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        for rest in ["", ":v7"] {
            let volume = node.volume(&format!("pod{}", rest.len()));
            node.publish(&volume, &reference(&to, rest), &[]).await.expect("published");
            assert_eq!(read(&volume.target.join("etc/top")), b"top");
        }
    });
}
