//! Layers and trees that were damaged, or not yet on disk.

use std::fs;
use std::path::Path;

use axum::http::Method;
use ocivol::demo::push::Layer;
use ocivol::demo::tarball::{Tarball, gzip};
use ocivol::oci::digest::Digest;
use tonic::Code;

use crate::archives::unpacking::image;
use crate::support::{Node, Scripted, isolated, noise};

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
        crate::support::records::make_volatile(&node.root, true);
        registry.forget();
        node.run().await;
        publish(&node, "boot").await;
        assert_eq!(registry.count(&Method::GET, "/blobs/"), 2);
    });
}

#[test]
fn regression_what_the_disk_lost_of_a_durable_layer_is_pulled_again() {
    isolated(async {
        let registry = Scripted::start().await;
        let base = Tarball::new().file("a", &noise(50, 100_000)).file("b", b"b").finish();
        image(&registry.pusher("image"), "v1", std::slice::from_ref(&base)).await;
        let node = Node::start(&["--plain-http", &registry.host()]).await;
        let reference = registry.reference("image:v1");
        node.publish(&node.volume("whole"), &reference, &[]).await.expect("published");
        // Another part is another tree, and is built from what the layer has. All of it, readable as it is, is another one too: the
        // layer itself.
        let parts =
            [("index", ("include", "a")), ("fs/a", ("exclude", "b")), ("index", ("readable", "true"))];
        for (number, (damage, attribute)) in parts.into_iter().enumerate() {
            fs::remove_file(layer_with(&node.root, "b").join(damage)).expect("removed");
            registry.forget();
            let volume = node.volume(&format!("part-{number}"));
            let status = node.publish(&volume, &reference, &[attribute]).await.expect_err("it is lost");
            assert_eq!(status.code(), Code::Unavailable, "{damage}: {}", status.message());
            node.publish(&volume, &reference, &[attribute]).await.expect("pulled again");
            assert!(fs::read(volume.target.join("a")).expect("a file") == noise(50, 100_000), "{damage}");
            assert_eq!(registry.count(&Method::GET, "/blobs/"), 1, "{damage}");
        }
    });
}

#[test]
fn regression_what_a_power_cut_cost_is_freed() {
    isolated(async {
        let registry = Scripted::start().await;
        let layers =
            [1, 2].map(|seed| Tarball::new().file(format!("{seed}"), &noise(seed, 100_000)).finish());
        image(&registry.pusher("image"), "v1", &layers).await;
        let model = Layer::model_file("weight", "w", noise(3, 100_000));
        registry.pusher("model").model("v1", &[model]).await.expect("pushed");
        let mut node = Node::start(&["--plain-http", &registry.host()]).await;
        let references = [registry.reference("image:v1"), registry.reference("model:v1")];
        let store = node.root.join("v1");
        let count = |name: &str| fs::read_dir(store.join(name)).expect("a directory").count();
        let all = || ["layers", "trees", "images", "blobs/sha256"].map(count);
        let publish = async |node: &Node| {
            for reference in &references {
                let volume = node.volume("pod");
                node.publish(&volume, reference, &[]).await.expect("published");
                node.kubelet.unpublish(&volume).await.expect("unpublished");
            }
        };
        publish(&node).await;
        let whole = all();
        for turn in 0..3 {
            // Nothing had reached the disk; a layer was just named; a tree had to be retired before.
            node.kill();
            crate::support::records::make_volatile(&node.root, true);
            fs::write(store.join("boot"), "00000000-0000-0000-0000-000000000000").expect("another boot");
            fs::create_dir_all(store.join("layers").join("a".repeat(64)).join("fs")).expect("made");
            fs::create_dir_all(store.join("trees/retired-x-1/fs")).expect("made");
            node.run_registered().await; // The store is open.
            assert_eq!(all(), [0; 4], "turn {turn}: nothing of it can be trusted");
            publish(&node).await;
            assert_eq!(all(), whole, "turn {turn}");
            node.nothing_is_left_in_ingest().await;
        }
        // In the same boot something may be mounted.
        node.kill();
        fs::create_dir_all(store.join("trees/retired-x-1/fs")).expect("made");
        for boot in [None, Some("")] {
            let path = store.join("boot");
            match boot {
                None => fs::remove_file(&path).expect("removed"),
                Some(text) => fs::write(&path, text).expect("written"),
            }
            node.run_registered().await;
            assert!(store.join("trees/retired-x-1").exists(), "{boot:?}: it is not known to be another boot");
            node.kill();
        }
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
    crate::support::records::make_volatile(root, false);
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
