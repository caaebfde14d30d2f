//! What is unused goes when there is too little room, and nothing else ever does.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::http::Method;
use axum::response::Response;
use ocivol::demo::kubelet::{Pod, PodVolume};
use ocivol::demo::push::Layer;
use ocivol::demo::tarball::{Tarball, gzip};
use serde_json::Value;
use tonic::{Code, Status};

use crate::support::disk::{Disk, FileSystem};
use crate::support::node::BINARY;
use crate::support::records::{change, is_durable, records};
use crate::support::world::{World, assert_published, assert_store_is_sound};
use crate::support::{Node, Scripted, eventually, isolated, noise};

const MIB: usize = 1 << 20;

/// A node of which nothing is collected by itself, and everything unused on command.
async fn node(world: &World, flags: &[&str]) -> Node {
    let host = world.registry.host();
    let mut node = Node::prepare(&[&["--plain-http", &host, "--gc-min-age", "0"], flags].concat());
    node.run_registered().await;
    node
}

/// What `ocivol gc` answers.
async fn gc(node: &Node, flags: &[&str]) -> Value {
    let (done, report) = node.command(&[&["gc"], flags].concat()).await;
    assert!(done, "{report}");
    report
}

/// What goes and what stays of it, by kind.
fn items(report: &Value, goes: bool) -> Vec<(String, String)> {
    let items = report["items"].as_array().expect("items").iter().filter(|item| item["goes"] == goes);
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    items.map(|item| (text(&item["kind"]), text(&item["reason"]))).collect()
}

fn entries(node: &Node, directory: &str) -> BTreeSet<String> {
    let listed = fs::read_dir(node.root.join("v1").join(directory)).expect("a directory");
    listed.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned()).collect()
}

#[test]
fn what_nothing_needs_goes_and_the_rest_stays() {
    isolated(async {
        let world = World::start().await;
        let node = node(&world, &[]).await;
        let volume = |name: &str| node.volume(&name.replace(':', "-"));
        let names = ["image:one", "image:three", "model:v1"];
        for name in names {
            node.publish(&volume(name), &world.reference(name), &[]).await.expect("published");
        }
        let nothing = gc(&node, &[]).await;
        assert_eq!((nothing["gone"].as_u64(), nothing["stays"].as_u64()), (Some(0), Some(3)), "{nothing}");
        assert!(items(&nothing, false).iter().all(|(_, reason)| reason == "mounted"), "{nothing}");

        for name in ["image:three", "model:v1"] {
            node.kubelet.unpublish(&volume(name)).await.expect("unpublished");
        }
        let directories = ["blobs/sha256", "layers", "trees", "images", "facts", "durable"];
        let before = directories.map(|directory| entries(&node, directory));
        let trial = gc(&node, &["--dry-run"]).await;
        assert_eq!(before, directories.map(|directory| entries(&node, directory)), "nothing was taken away");
        let count = |kind: &str| items(&trial, true).iter().filter(|(found, _)| found == kind).count();
        // Of three layers the first is that of the image that is mounted; its blob is not kept as a file.
        assert_eq!((count("tree"), count("layer")), (2, 2), "{trial}");

        let done = gc(&node, &[]).await;
        for key in ["gone", "stays", "freed"] {
            assert_eq!(done[key], trial[key], "{key}: {done} {trial}");
        }
        assert_published(&volume("image:one"), &world.artifacts["image:one"], "after the collection");
        assert_eq!(entries(&node, "trees"), BTreeSet::new());
        let left = |directory: &str| entries(&node, directory).len();
        // The layer and its record, and so the manifest; the config was not needed.
        assert_eq!((left("layers"), left("images"), left("blobs/sha256")), (2, 1, 2));
        assert_eq!(entries(&node, "ingest/trash"), BTreeSet::new());
        // Facts and markers of what is gone are gone by the next time.
        gc(&node, &[]).await;
        assert_eq!(left("facts"), 1);
        assert_eq!(left("durable"), 3);

        world.registry.forget();
        for name in ["image:three", "model:v1"] {
            node.publish(&volume(name), &world.reference(name), &[]).await.expect("published");
            assert_published(&volume(name), &world.artifacts[name], "again");
        }
        // What was shared was not taken away: two layers come, and two files of the model.
        assert_eq!(world.registry.count(&Method::GET, "/blobs/"), 4);
    });
}

#[test]
fn what_was_in_use_a_moment_ago_stays() {
    isolated(async {
        let world = World::start().await;
        let mut node = Node::prepare(&["--plain-http", &world.registry.host()]);
        node.run_registered().await;
        let volume = node.volume("pod");
        node.publish(&volume, &world.reference("model:v1"), &[]).await.expect("published");
        // So long ago that only the unpublish is recent.
        let age = |node: &Node| {
            let name = entries(node, "facts").into_iter().find(|name| name.starts_with("tree-"));
            let name = name.expect("facts of the tree");
            change(&node.root.join("v1/facts").join(&name), "last_use", &1.into());
            let record = name.strip_prefix("tree-").expect("a tree");
            change(&node.root.join("v1/images").join(record), "last_use", &1.into());
        };
        age(&node);
        node.kubelet.unpublish(&volume).await.expect("unpublished");
        let report = gc(&node, &[]).await;
        assert_eq!(report["gone"], 0, "{report}");
        assert!(report["items"][0]["reason"]["used-ago"].is_u64(), "{report}");

        // Unmounted while nobody looked: the next process notes that it was in use until then.
        node.publish(&volume, &world.reference("model:v1"), &[]).await.expect("published");
        node.kill();
        age(&node);
        nix::mount::umount(&volume.target).expect("unmounted");
        node.run_registered().await;
        let report = gc(&node, &[]).await;
        assert!(report["items"][0]["reason"]["used-ago"].is_u64(), "{report}");

        // And long ago is long ago.
        age(&node);
        let report = gc(&node, &[]).await;
        assert!(report["items"][0]["reason"]["unused-for"].is_u64(), "{report}");
        assert_eq!(entries(&node, "images"), BTreeSet::new());
        node.kubelet.unpublish(&volume).await.expect("unpublished");
    });
}

#[test]
fn what_a_command_has_mounted_elsewhere_stays() {
    isolated(async {
        let world = World::start().await;
        let node = node(&world, &[]).await;
        let directory = tempfile::tempdir().expect("a directory");
        let (at, ready) = (directory.path().join("at"), directory.path().join("ready"));
        fs::create_dir(&at).expect("a directory");
        let mut command = Command::new(BINARY);
        command
            .args(["--root".as_ref(), node.root.as_os_str()])
            .args(["mount", &world.reference("model:v1")]);
        let script = format!("touch {}; read line; cat {}/a/README", ready.display(), at.display());
        command.arg(&at).args(["--", "sh", "-c", &script]);
        command.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped());
        let mut child = command.env("DOCKER_CONFIG", "/nonexistent").spawn().expect("it runs");
        eventually("it is mounted", || ready.exists()).await;
        let report = gc(&node, &[]).await;
        assert_eq!(report["gone"], 0, "{report}");
        assert_eq!(report["items"][0]["reason"]["leased"], child.id(), "{report}");
        drop(child.stdin.take());
        let output = tokio::task::spawn_blocking(move || child.wait_with_output().expect("an output"));
        assert_eq!(output.await.expect("no panic").stdout, b"text");
        let report = gc(&node, &[]).await;
        assert_ne!(report["gone"], 0, "{report}");
        assert_eq!(entries(&node, "images"), BTreeSet::new());
    });
}

#[test]
fn what_is_pinned_is_pulled_at_the_start_and_stays() {
    isolated(async {
        let world = World::start().await;
        let reference = world.reference("image:three");
        let node = node(&world, &["--pin", &reference]).await;
        let is_there = || entries(&node, "images").len() == 1;
        eventually("the pinned image is here", is_there).await;
        let volume = node.volume("pod");
        node.publish(&volume, &world.reference("model:v1"), &[]).await.expect("published");
        node.kubelet.unpublish(&volume).await.expect("unpublished");
        let report = gc(&node, &[]).await;
        assert!(report["gone"].as_u64() > Some(0), "{report}");
        let stays = report["items"].as_array().expect("items").iter().find(|item| item["goes"] == false);
        assert_eq!(stays.expect("one stays")["reason"]["pinned"], reference, "{report}");
        world.registry.forget();
        node.publish(&volume, &reference, &[]).await.expect("published");
        assert_eq!(world.registry.count(&Method::GET, "/blobs/"), 0);
        node.kubelet.unpublish(&volume).await.expect("unpublished");
    });
}

/// A node whose store has a small disk of its own.
async fn small_node(registry: &Scripted, size: &str, flags: &[&str]) -> Node {
    let host = registry.host();
    let mut node = Node::prepare(&[&["--plain-http", &host, "--gc-min-age", "0"], flags].concat());
    node.limit_store(size);
    node.run_registered().await;
    node
}

async fn publish(node: &Node, registry: &Scripted, number: u64) -> Result<PodVolume, Status> {
    let volume = node.volume(&format!("pod-{number}"));
    node.publish(&volume, &registry.reference(&format!("m{number}:v1")), &[]).await.map(|()| volume)
}

#[test]
fn room_is_made_for_a_pull_from_what_was_used_longest_ago() {
    isolated(async {
        let registry = Scripted::with_models(13, 6).await;
        let node = small_node(&registry, "64m", &[]).await;
        // Of 64 MiB, 60 may be taken: four models fit. The first stays mounted.
        let kept = publish(&node, &registry, 0).await.expect("published");
        for number in 1..4 {
            let volume = publish(&node, &registry, number).await.expect("published");
            node.kubelet.unpublish(&volume).await.expect("unpublished");
            // Of what happens within a second, nobody knows what was first.
            for name in entries(&node, "facts").iter().filter(|name| name.starts_with("tree-")) {
                let path = node.root.join("v1/facts").join(name);
                let known: Value = serde_json::from_slice(&fs::read(&path).expect("read")).expect("JSON");
                change(&path, "last_use", &(known["last_use"].as_u64().expect("a time") - 100).into());
            }
        }
        registry.forget();
        publish(&node, &registry, 4).await.expect("room is made");
        let blob = |number: u64| {
            let digest = ocivol::oci::digest::Digest::sha256(&noise(number, 13 * MIB));
            node.root.join("v1/blobs/sha256").join(digest.hex()).exists()
        };
        assert_eq!(
            [0, 1, 2, 3, 4].map(blob),
            [true, false, true, true, true],
            "the oldest went, and no more"
        );
        assert_eq!(fs::read(kept.target.join("w")).expect("read"), noise(0, 13 * MIB));
        assert_store_is_sound(&node.root, "after room was made");
        for number in [0, 4] {
            node.kubelet.unpublish(&node.volume(&format!("pod-{number}"))).await.expect("unpublished");
        }
    });
}

#[test]
fn what_does_not_fit_all_the_same_costs_nobody_anything() {
    isolated(async {
        let registry = Scripted::with_models(12, 3).await;
        let layer = Layer::model_file("weight", "w", noise(9, 40 * MIB));
        registry.pusher("large").model("v1", &[layer]).await.expect("pushed");
        let node = small_node(&registry, "64m", &[]).await;
        publish(&node, &registry, 0).await.expect("published");
        publish(&node, &registry, 1).await.expect("published");
        let unused = publish(&node, &registry, 2).await.expect("published");
        node.kubelet.unpublish(&unused).await.expect("unpublished");
        let status = node.publish(&node.volume("large"), &registry.reference("large:v1"), &[]).await;
        let status = status.expect_err("two are mounted");
        assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
        // What the node has is for its operator alone.
        assert!(!status.message().chars().any(|letter| letter.is_ascii_digit() && letter != '1'), "{status}");
        let logged = node.logged();
        for word in ["\"needed\":41943040", "\"evictable\":", "\"in_use\":", "\"free\":"] {
            assert!(logged.contains(word), "no {word} in {logged}");
        }
        registry.forget();
        publish(&node, &registry, 2).await.expect("published");
        assert_eq!(registry.count(&Method::GET, "/blobs/"), 0, "it was not taken away in vain");
        for number in 0..3 {
            node.kubelet.unpublish(&node.volume(&format!("pod-{number}"))).await.expect("unpublished");
        }
    });
}

/// All names below a directory.
fn all_below(root: &Path) -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::new();
    let mut waiting = vec![root.to_owned()];
    while let Some(directory) = waiting.pop() {
        for entry in fs::read_dir(&directory).expect("a directory") {
            let entry = entry.expect("an entry");
            if entry.file_type().expect("a type").is_dir() {
                waiting.push(entry.path());
            }
            found.insert(entry.path());
        }
    }
    found
}

/// It stayed until the next start if the same came back: a plugin that ran for long had ever more of them.
#[test]
fn regression_what_goes_takes_the_word_that_it_is_durable_with_it() {
    isolated(async {
        let world = World::start().await;
        let node = node(&world, &[]).await;
        let mut left = BTreeSet::new();
        for _ in 0..3 {
            for name in ["image:three", "model:v1"] {
                let volume = node.volume(&name.replace(':', "-"));
                node.publish(&volume, &world.reference(name), &[]).await.expect("published");
                node.kubelet.unpublish(&volume).await.expect("unpublished");
            }
            eventually("all is durable", || records(&node.root).iter().all(|record| is_durable(record)))
                .await;
            assert_eq!(entries(&node, "durable").len(), records(&node.root).len());
            assert!(node.command(&["gc"]).await.0);
            assert!(entries(&node, "durable").is_empty(), "{:?}", entries(&node, "durable"));
            node.nothing_is_left_in_ingest().await;
            left.insert(all_below(&node.root.join("v1")));
        }
        assert_eq!(left.len(), 1, "each time the same is left: {left:#?}");
    });
}

/// Headers, and then nothing.
fn never() -> Response {
    let nothing = futures_util::stream::pending::<Result<bytes::Bytes, std::io::Error>>();
    Response::new(Body::from_stream(nothing))
}

#[test]
fn pulls_that_begin_together_share_what_is_free() {
    isolated(async {
        let registry = Scripted::with_models(40, 2).await;
        let node = small_node(&registry, "64m", &["--stall-timeout", "2"]).await;
        registry.script(|seen| (seen.method == Method::GET && seen.path.contains("/blobs/")).then(never));
        let begin = |namespace: &str, number: u64| {
            let volume = node.volume_of(&Pod::new(namespace, &format!("{namespace}-{number}")), "model");
            let reference = registry.reference(&format!("m{number}:v1"));
            let (kubelet, request) = (
                node.kubelet.clone(),
                node.kubelet.publish_request(&volume, &[("reference", &reference)], &[]),
            );
            tokio::spawn(async move { kubelet.publish(request).await })
        };
        let first = begin("one", 0);
        eventually("its blob is asked for", || registry.count(&Method::GET, "/blobs/") > 0).await;
        // Nothing of it has come, and yet there is no room for another.
        let refused = begin("two", 1).await.expect("no panic").expect_err("there is no room");
        assert_eq!(refused.code(), Code::ResourceExhausted, "{refused}");
        // For another who wants the same there is.
        let same = begin("two", 0);
        registry.unscript();
        drop(node.publish(&node.volume("x"), &registry.reference("m0:v1"), &[]).await);
        for publish in [first, same] {
            let answer = tokio::time::timeout(Duration::from_secs(60), publish).await.expect("in time");
            answer.expect("no panic").expect("published");
        }
    });
}

/// A manifest may say what it likes of sizes, and a registry may bring as little as it likes of that.
#[test]
fn regression_t42_who_declares_all_of_the_disk_leaves_others_half_of_it() {
    isolated(async {
        let registry = Scripted::start().await;
        for (name, megabytes) in [("all", 58), ("some", 25)] {
            let layer = Layer::model_file(
                "weight",
                "w",
                noise(megabytes, usize::try_from(megabytes).expect("few") * MIB),
            );
            registry.pusher(name).model("v1", &[layer]).await.expect("pushed");
        }
        let node = small_node(&registry, "64m", &["--stall-timeout", "600"]).await;
        let all = ocivol::oci::digest::Digest::sha256(&noise(58, 58 * MIB)).to_string();
        registry.script(move |seen| (seen.method == Method::GET && seen.path.contains(&all)).then(never));
        let begin = |namespace: &str, name: &str| {
            let volume = node.volume_of(&Pod::new(namespace, namespace), "model");
            let reference = registry.reference(&format!("{name}:v1"));
            let (kubelet, request) = (
                node.kubelet.clone(),
                node.kubelet.publish_request(&volume, &[("reference", &reference)], &[]),
            );
            tokio::spawn(async move { kubelet.publish(request).await })
        };
        let hostile = begin("hostile", "all");
        eventually("its blob is asked for", || registry.count(&Method::GET, "/all/blobs/") > 0).await;
        begin("victim", "some").await.expect("no panic").expect("published beside it");
        assert!(!hostile.is_finished());
        let volume = node.volume_of(&Pod::new("victim", "victim"), "model");
        assert_eq!(fs::read(volume.target.join("w")).expect("read"), noise(25, 25 * MIB));
        for pod in ["victim", "hostile"] {
            let volume = node.volume_of(&Pod::new(pod, pod), "model");
            node.kubelet.unpublish(&volume).await.expect("unpublished");
        }
    });
}

#[test]
fn a_disk_stays_below_its_watermark_whatever_is_pulled() {
    isolated(async {
        let registry = Scripted::with_models(6, 24).await;
        let flags = ["--gc-start", "60%", "--gc-stop", "40%", "--keep-free", "15%"];
        let node = small_node(&registry, "64m", &flags).await;
        let used = || {
            let found = rustix::fs::statvfs(&node.root).expect("a disk");
            100 - 100 * found.f_bavail / found.f_blocks
        };
        let mut most = 0;
        for number in 0..24 {
            let volume = publish(&node, &registry, number).await.expect("published");
            most = most.max(used());
            node.kubelet.unpublish(&volume).await.expect("unpublished");
        }
        assert!(most <= 85, "{most} % used");
        eventually("what is too much went", || used() < 60).await;
        assert!(used() > 20, "and no more than that: {} %", used());
        assert_store_is_sound(&node.root, "at the end");
    });
}

#[test]
fn what_has_no_record_goes_unless_it_is_mounted() {
    isolated(async {
        let world = World::start().await;
        let mut node = node(&world, &[]).await;
        let volume = node.volume("pod");
        node.publish(&volume, &world.reference("image:three"), &[]).await.expect("published");
        node.kill();
        // As a process leaves it that ends between the two, and as a tree is moved that the disk has lost.
        for record in entries(&node, "images") {
            fs::remove_file(node.root.join("v1/images").join(record)).expect("removed");
        }
        let tree = entries(&node, "trees").into_iter().next().expect("a tree");
        let trees = node.root.join("v1/trees");
        let retired = trees.join(format!("retired-{tree}-0123456789abcdef"));
        fs::create_dir_all(retired.join("fs")).expect("made");
        fs::write(node.root.join("v1/blobs/sha256").join("0".repeat(64)), "x").expect("written");
        node.run_registered().await;
        let report = gc(&node, &[]).await;
        assert!(!retired.exists() && trees.join(&tree).exists(), "{report}");
        assert!(!entries(&node, "blobs/sha256").contains(&"0".repeat(64)));
        assert_published(&volume, &world.artifacts["image:three"], "although its record is lost");
        node.kubelet.unpublish(&volume).await.expect("unpublished");
        gc(&node, &[]).await;
        assert_eq!(entries(&node, "trees"), BTreeSet::new());
    });
}

/// Publish, unpublish and collection at once, in whatever order it happens.
#[test]
fn a_collection_takes_nothing_from_a_pod() {
    isolated(async {
        let world = World::start().await;
        let node = node(&world, &[]).await;
        let until = Instant::now() + Duration::from_secs(6);
        let collecting = async {
            let mut collections = 0;
            while Instant::now() < until {
                gc(&node, &[]).await;
                collections += 1;
            }
            collections
        };
        let pod = async |name: &'static str, pod: &str| {
            let volume = node.volume(pod);
            let mut times = 0;
            while Instant::now() < until {
                node.publish(&volume, &world.reference(name), &[]).await.expect("published");
                assert_published(&volume, &world.artifacts[name], "while others collect");
                node.kubelet.unpublish(&volume).await.expect("unpublished");
                times += 1;
            }
            times
        };
        let pods = futures_util::future::join_all([
            pod("image:one", "a"),
            pod("image:three", "b"),
            pod("image:three", "c"),
            pod("model:v1", "d"),
        ]);
        let (collections, times) = tokio::join!(collecting, pods);
        assert!(collections > 5 && times.iter().all(|times| *times > 5), "{collections} {times:?}");
        assert_store_is_sound(&node.root, "at the end");
    });
}

#[test]
fn a_collection_of_many_files_delays_no_publish() {
    isolated(async {
        let registry = Scripted::start().await;
        let many = (0..60_000)
            .fold(Tarball::new(), |tar, number| tar.file(format!("{}/{number}", number % 97), b"1"));
        let layers = [Layer::archive(gzip(&many.finish()).expect("gzip"))];
        registry.pusher("many").image("v1", &layers, &[]).await.expect("pushed");
        let layer = Layer::model_file("weight", "w", noise(1, MIB));
        registry.pusher("small").model("v1", &[layer]).await.expect("pushed");
        let mut node = Node::prepare(&["--plain-http", &registry.host(), "--gc-min-age", "0"]);
        let _disk = Disk::for_store(&node, FileSystem::Ext4, 1024);
        node.run_registered().await;
        let volume = node.volume("many");
        // The tree is one of links to the layer: twice as many files.
        let (reference, attributes) = (registry.reference("many:v1"), [("exclude", "96/**")]);
        node.publish(&volume, &reference, &attributes).await.expect("published");
        node.kubelet.unpublish(&volume).await.expect("unpublished");
        let publish = async || {
            let (started, volume) = (Instant::now(), node.volume("small"));
            node.publish(&volume, &registry.reference("small:v1"), &[]).await.expect("published");
            let took = started.elapsed();
            node.kubelet.unpublish(&volume).await.expect("unpublished");
            took
        };
        publish().await;
        let collecting = async {
            let (started, report) = (Instant::now(), gc(&node, &[]).await);
            (started.elapsed(), report)
        };
        tokio::pin!(collecting);
        let mut times = Vec::new();
        let (took, report) = loop {
            tokio::select! {
                done = &mut collecting => break done,
                time = publish() => times.push(time),
            }
        };
        times.sort_unstable();
        let middle = times.get(times.len() / 2).copied().unwrap_or_default();
        println!(
            "{} publishes beside a collection of {took:?}, {middle:?} in the middle, {:?} at most: {}",
            times.len(),
            times.last(),
            report["freed"]
        );
        assert!(report["freed"]["inodes"].as_u64() > Some(60_000), "{report}");
        assert!(middle < took.max(Duration::from_millis(500)) / 2, "they waited for it");
    });
}
