//! Stores of earlier versions: what is in them goes on being used, and no pod notices.
//!
//! `tests/fixtures/stores/` has one of each format: `v1.tar.gz` was written by ocivol 0.1 before records and facts were apart.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, SystemTime};

use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::support::{Node, isolated};

/// Nobody listens there any more.
const REGISTRY: &str = "127.0.0.1:5990";

/// Unpacks a store, as it was left a month ago.
fn restore(name: &str, root: &Path) {
    let archive = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/stores").join(name);
    let unpacked = Command::new("tar").arg("-xzf").arg(archive).arg("-C").arg(root).status().expect("tar");
    assert!(unpacked.success());
    let then = SystemTime::now() - Duration::from_secs(30 * 24 * 3600);
    for directory in ["v1/tags", "v1/proofs"] {
        for entry in std::fs::read_dir(root.join(directory)).expect("a directory") {
            let file = std::fs::File::open(entry.expect("an entry").path()).expect("a file");
            file.set_modified(then).expect("touched");
        }
    }
}

/// The directory of the tree that shows `file`.
fn tree_with(root: &Path, file: &str) -> std::path::PathBuf {
    let trees = std::fs::read_dir(root.join("v1/trees")).expect("trees");
    let mut trees = trees.map(|entry| entry.expect("an entry").path().join("fs"));
    trees.find(|tree| tree.join(file).exists()).expect("the tree")
}

#[test]
fn a_store_of_the_first_version_is_used_as_it_is() {
    isolated(async {
        let mut node = Node::prepare(&["--plain-http", REGISTRY]);
        restore("v1.tar.gz", &node.root);
        // A pod of before has a tree mounted.
        let mounted = node.directory.path().join("pod");
        std::fs::create_dir(&mounted).expect("a directory");
        let tree = tree_with(&node.root, "hello.txt");
        mount(Some(&tree), &mounted, None::<&str>, MsFlags::MS_BIND, None::<&str>).expect("mounted");
        node.run().await;
        let table = [
            ("buildah:image", "app/one.txt"),
            ("buildah:zstd", "zstd"),
            ("oras:files", "hello.txt"),
            ("oras:directory", "tree/readme.txt"),
            ("model:raw", "model.safetensors"),
        ];
        for restarted in [false, true] {
            if restarted {
                node.kill();
                node.run().await;
            }
            for (reference, file) in table {
                let volume = node.volume(&format!("{reference}-{restarted}").replace(':', "-"));
                let reference = format!("{REGISTRY}/{reference}");
                for policy in ["Never", "IfNotPresent"] {
                    let attributes = [("pullPolicy", policy)];
                    node.publish(&volume, &reference, &attributes).await.expect(&reference);
                    assert!(volume.target.join(file).symlink_metadata().is_ok(), "{reference} has no {file}");
                    let usage = node.kubelet.stats(&volume).await.expect("stats");
                    assert!(usage.iter().all(|usage| usage.used > 0), "{usage:?}");
                    node.kubelet.unpublish(&volume).await.expect("unpublished");
                }
            }
            assert_eq!(std::fs::read(mounted.join("hello.txt")).expect("the pod's file"), b"hello\n");
        }
        // Part of what is here already is another tree.
        let volume = node.volume("part");
        let attributes = [("pullPolicy", "Never"), ("include", "hello.txt")];
        node.publish(&volume, &format!("{REGISTRY}/oras:files"), &attributes).await.expect("a part");
        node.kubelet.unpublish(&volume).await.expect("unpublished");
        umount2(&mounted, MntFlags::empty()).expect("unmounted");
    });
}

/// Nothing that is right looks damaged because it has no index, what is damaged is found, and nothing is left when all may go.
#[test]
fn a_store_of_the_first_version_is_checked_and_collected() {
    isolated(async {
        let mut node = Node::prepare(&["--plain-http", REGISTRY, "--gc-min-age", "0", "--scrub-days", "0"]);
        restore("v1.tar.gz", &node.root);
        node.run_registered().await;
        let (sound, report) = node.command(&["fsck"]).await;
        assert!(sound, "{report}");
        let damaged = tree_with(&node.root, "hello.txt").join("hello.txt");
        let times = std::fs::metadata(&damaged).expect("metadata").modified().expect("a time");
        std::fs::write(&damaged, b"jello\n").expect("damaged");
        std::fs::File::open(&damaged).expect("a file").set_modified(times).expect("its time");
        let (sound, report) = node.command(&["fsck"]).await;
        assert!(!sound, "{report}");
        let (succeeded, report) = node.command(&["gc"]).await;
        assert!(succeeded, "{report}");
        for directory in ["images", "trees", "layers", "blobs/sha256"] {
            let left = std::fs::read_dir(node.root.join("v1").join(directory)).expect("a directory");
            let left: Vec<_> = left.map(|entry| entry.expect("an entry").file_name()).collect();
            assert!(left.is_empty(), "{directory} has {left:?}");
        }
    });
}
