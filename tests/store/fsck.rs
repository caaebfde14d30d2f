//! `ocivol fsck` finds whatever happens to a file of the store, takes it out, and it is pulled again.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::support::disk::{Disk, FileSystem};
use crate::support::node::BINARY;
use crate::support::world::{World, assert_published};
use crate::support::{Node, Scripted, eventually, isolated, noise};

/// Exit status and report of `ocivol fsck`.
async fn fsck(node: &Node, flags: &[&str]) -> (bool, Value) {
    node.command(&[&["fsck"], flags].concat()).await
}

async fn start(world: &World) -> Node {
    let mut node =
        Node::prepare(&["--plain-http", &world.registry.host(), "--gc-min-age", "0", "--scrub-days", "0"]);
    node.run_registered().await;
    for name in ["image:one", "image:three", "model:v1"] {
        let volume = node.volume(&name.replace(':', "-"));
        node.publish(&volume, &world.reference(name), &[]).await.expect("published");
    }
    node
}

/// Every pod goes and comes again, and has what was pushed.
async fn publish_anew(node: &Node, world: &World, when: &str) {
    for name in ["image:one", "image:three", "model:v1"] {
        let volume = node.volume(&name.replace(':', "-"));
        node.kubelet.unpublish(&volume).await.expect("unpublished");
        node.publish(&volume, &world.reference(name), &[]).await.expect("published");
        assert_published(&volume, &world.artifacts[name], when);
    }
}

/// The regular files below a directory, in order.
fn files(root: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut waiting = vec![root.to_owned()];
    while let Some(directory) = waiting.pop() {
        for entry in fs::read_dir(directory).expect("a directory") {
            let path = entry.expect("an entry").path();
            let kind = fs::symlink_metadata(&path).expect("metadata");
            if kind.is_dir() {
                waiting.push(path);
            } else if kind.is_file() && path.extension().is_none_or(|extension| extension != "json") {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

/// Damages the file at a path.
type Damage = fn(&Path);

/// Ways to damage a file of the store. Each leaves its times as they were.
const DAMAGES: [(&str, Damage); 6] = [
    ("a bit", |path| {
        let mut content = fs::read(path).expect("read");
        let middle = content.len() / 2;
        content[middle] ^= 1;
        write(path, &content);
    }),
    ("its end", |path| {
        let content = fs::read(path).expect("read");
        write(path, &content[..content.len() - 1]);
    }),
    ("all of it", |path| fs::remove_file(path).expect("removed")),
    ("its mode", |path| {
        let mode = fs::metadata(path).expect("metadata").mode();
        fs::set_permissions(path, Permissions::from_mode(mode ^ 0o022)).expect("changed");
    }),
    ("its neighbour", |path| {
        fs::write(path.with_file_name("added"), "x").expect("written");
    }),
    ("its kind", |path| {
        fs::remove_file(path).expect("removed");
        fs::create_dir(path).expect("made");
    }),
];

/// Changes what a file holds, as a disk does: its time stays.
pub fn write(path: &Path, content: &[u8]) {
    let time = fs::metadata(path).expect("metadata").modified().expect("a time");
    fs::write(path, content).expect("written");
    fs::File::open(path).expect("opened").set_modified(time).expect("a time");
}

#[test]
fn every_damage_is_found_and_what_is_taken_out_is_pulled_again() {
    isolated(async {
        let world = World::start().await;
        let node = start(&world).await;
        let (sound, report) = fsck(&node, &[]).await;
        assert!(sound && report["damaged"] == 0, "{report}");
        let counts = ["blobs", "layers", "trees"].map(|key| report[key].as_u64().expect("a number"));
        assert_eq!(counts, [5, 3, 3], "{report}");

        for (what, damage) in DAMAGES {
            for kind in ["blobs/sha256", "layers", "trees"] {
                // What has bytes, and of trees what is no link to a blob or a layer as well.
                let all = files(&node.root.join("v1").join(kind));
                let has_bytes = |path: &&PathBuf| fs::metadata(path).is_ok_and(|found| found.len() > 2);
                let path = all.iter().find(has_bytes).expect("a file");
                if what == "its neighbour" && kind == "blobs/sha256" {
                    continue; // A blob without a record is nobody's: it is collected.
                }
                damage(path);
                let when = format!("{what} of {}", path.display());
                let (sound, report) = fsck(&node, &[]).await;
                assert!(!sound && report["damaged"].as_u64() > Some(0), "{when}: {report}");
                let (_, repaired) = fsck(&node, &["--repair"]).await;
                let findings = repaired["findings"].as_array().expect("findings");
                assert!(
                    !findings.is_empty() && findings.iter().all(|found| found["repaired"] == true),
                    "{when}"
                );
                let (sound, report) = fsck(&node, &[]).await;
                assert!(sound, "{when}: {report}");
                publish_anew(&node, &world, &when).await;
            }
        }
    });
}

#[test]
fn swapped_files_and_unreadable_records_are_found() {
    isolated(async {
        let world = World::start().await;
        let node = start(&world).await;
        // Two files of a tree that are links into layers change places.
        let trees = node.root.join("v1/trees");
        let all = files(&trees);
        let find = |end: &str| all.iter().find(|path| path.ends_with(end)).expect("a file");
        let (one, two) = (find("usr/lib/x"), find("usr/lib/y"));
        let place = trees.join("place");
        for (from, to) in [(one, &place), (two, one), (&place, two)] {
            fs::rename(from, to).expect("renamed");
        }
        let (sound, report) = fsck(&node, &[]).await;
        assert!(!sound, "{report}");
        assert_eq!(report["findings"][0]["problem"], "content", "{report}");
        assert_eq!(report["findings"][0]["kind"], "tree", "{report}");
        assert_eq!(report["findings"][0]["shows"], world.reference("image:three"), "{report}");

        let record = fs::read_dir(node.root.join("v1/layers")).expect("a directory").flatten();
        let record =
            record.map(|entry| entry.path()).find(|path| path.extension().is_some()).expect("a record");
        fs::write(record, "{").expect("written");
        let (_, report) = fsck(&node, &["--repair"]).await;
        let problems: Vec<_> = report["findings"].as_array().expect("findings").iter().collect();
        assert!(
            problems.iter().any(|found| found["problem"] == "record" && found["kind"] == "layer"),
            "{report}"
        );
        let (sound, report) = fsck(&node, &[]).await;
        assert!(sound, "{report}");
    });
}

#[test]
fn it_dies_while_it_repairs_and_repairs_the_rest() {
    isolated(async {
        let world = World::start().await;
        for moment in ["fsck.tree_given_up", "fsck.repaired"] {
            for times in 1..4 {
                let mut node = start(&world).await;
                for kind in ["blobs/sha256", "layers"] {
                    let all = files(&node.root.join("v1").join(kind));
                    let has_bytes =
                        |path: &&PathBuf| fs::metadata(path).is_ok_and(|found| found.len() > 1000);
                    (DAMAGES[0].1)(all.iter().find(has_bytes).expect("a file"));
                }
                node.kill();
                node.env.insert("OCIVOL_KILLED_AT".into(), format!("{moment}:{times}"));
                node.run_registered().await;
                let mut command = Command::new(BINARY);
                command.args(["fsck", "--repair", "--root"]).arg(&node.root);
                let output = tokio::task::spawn_blocking(move || command.output().expect("it runs"));
                output.await.expect("no panic");
                let when = format!("killed at {moment}:{times}");
                // The command may see that the other side is gone before the kernel has ended the process.
                if times == 1 {
                    eventually(&when, || node.was_killed()).await;
                }
                node.was_killed(); // If it has ended, then by that.
                node.kill();
                node.env.remove("OCIVOL_KILLED_AT");
                node.run_registered().await;
                fsck(&node, &["--repair"]).await;
                let (sound, report) = fsck(&node, &[]).await;
                assert!(sound, "{when}: {report}");
                publish_anew(&node, &world, &when).await;
            }
        }
    });
}

#[test]
fn a_pod_is_told_of_damage_that_is_found_in_the_background() {
    isolated(async {
        let world = World::start().await;
        let mut node = Node::prepare(&["--plain-http", &world.registry.host()]);
        node.run_registered().await;
        let volume = node.volume("pod");
        node.publish(&volume, &world.reference("model:v1"), &[]).await.expect("published");
        let condition = async |node: &Node| node.kubelet.condition(&volume).await.expect("stats");
        assert!(!condition(&node).await.abnormal);
        let weights = files(&node.root.join("v1/blobs/sha256"));
        let weights = weights.iter().find(|path| fs::metadata(path).expect("metadata").len() == 300_000);
        (DAMAGES[0].1)(weights.expect("the weights"));
        // It looks at the store when it starts, and then all the time.
        node.kill();
        node.run_registered().await;
        let registry = &world.registry;
        eventually("it is found", || node.logged().contains("the store is damaged")).await;
        let mut told = condition(&node).await;
        while !told.abnormal {
            told = condition(&node).await; // It is logged a moment before.
        }
        assert!(told.message.contains("other content"), "{told:?}");
        // The pod has what it has; another one gets it anew.
        registry.forget();
        let other = node.volume("other");
        node.publish(&other, &world.reference("model:v1"), &[]).await.expect("published");
        assert_published(&other, &world.artifacts["model:v1"], "after the damage");
        let told = node.kubelet.condition(&other).await.expect("stats");
        assert!(!told.abnormal, "it was made anew: {told:?}");
        assert!(condition(&node).await.abnormal, "the first still has what is damaged");
        assert_eq!(registry.count(&axum::http::Method::GET, "/blobs/"), 1, "only what was damaged");
        for volume in [&volume, &other] {
            node.kubelet.unpublish(volume).await.expect("unpublished");
        }
    });
}

/// Bytes of a file that are in the page cache.
fn cached(path: &Path) -> u64 {
    let output =
        Command::new("fincore").args(["--bytes", "--noheadings", "--output", "RES"]).arg(path).output();
    let output = output.unwrap_or_else(|error| panic!("fincore cannot be started: {error}; run `make test`"));
    String::from_utf8(output.stdout).expect("text").trim().parse().expect("a number")
}

#[test]
fn it_leaves_the_page_cache_as_it_was() {
    isolated(async {
        let registry = Scripted::with_models(8, 2).await;
        let mut node = Node::prepare(&["--plain-http", &registry.host(), "--scrub-days", "0"]);
        let disk = Disk::for_store(&node, FileSystem::Ext4, 256);
        node.run_registered().await;
        for number in 0..2 {
            let volume = node.volume(&format!("pod-{number}"));
            node.publish(&volume, &registry.reference(&format!("m{number}:v1")), &[])
                .await
                .expect("published");
        }
        disk.sync();
        let blob = |number: u64| {
            let digest = ocivol::oci::digest::Digest::sha256(&noise(number, 8 << 20));
            node.root.join("v1/blobs/sha256").join(digest.hex())
        };
        let (cold, hot) = (blob(0), blob(1));
        let file = fs::File::open(&cold).expect("opened");
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).expect("dropped");
        const SIZE: u64 = 8 << 20;
        assert_eq!((cached(&cold), cached(&hot)), (0, SIZE));
        let (sound, report) = fsck(&node, &[]).await;
        assert!(sound && report["bytes"].as_u64() >= Some(16 << 20), "{report}");
        assert_eq!(cached(&cold), 0, "what was not in memory came to stay");
        assert_eq!(cached(&hot), SIZE, "what was in memory was pushed out");
    });
}
