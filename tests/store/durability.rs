//! What survives a killed process, a reboot and a damaged disk: I1, I8.

use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;

use axum::http::Method;
use ocivol::demo::push::Layer;
use ocivol::demo::tarball::Tarball;
use tonic::Code;

use crate::support::records::{change, is_durable, make_volatile, records};
use crate::support::{Node, Scripted, eventually, isolated, noise};

async fn published(content: &[u8]) -> (Scripted, Node, String) {
    let registry = Scripted::with_model(content.to_vec()).await;
    let node = Node::start(&["--plain-http", &registry.host()]).await;
    let reference = registry.reference("m:v1");
    let volume = node.volume("first");
    node.publish(&volume, &reference, &[]).await.expect("published");
    (registry, node, reference)
}

/// The same, with all of it durable, and the plugin killed.
async fn published_for_good(content: &[u8]) -> (Scripted, Node, String) {
    let (registry, mut node, reference) = published(content).await;
    become_durable(&node).await;
    node.kill();
    (registry, node, reference)
}

/// Waits until the manifest, the blob and the tree are on the disk.
async fn become_durable(node: &Node) {
    eventually("every record is durable", || {
        let records = records(&node.root);
        records.len() == 3 && records.iter().all(|path| is_durable(path))
    })
    .await;
}

fn blob_file(node: &Node, content: &[u8]) -> PathBuf {
    node.root.join("v1/blobs/sha256").join(ocivol::oci::digest::Digest::sha256(content).hex())
}

/// Publishes to another pod; returns how many blobs were fetched for it.
async fn publish_again(registry: &Scripted, node: &Node, reference: &str, content: &[u8]) -> usize {
    registry.forget();
    let volume = node.volume("again");
    node.publish(&volume, reference, &[]).await.expect("published");
    assert!(fs::read(volume.target.join("w")).expect("read") == content, "wrong bytes reached a pod");
    node.kubelet.unpublish(&volume).await.expect("unpublished");
    registry.count(&Method::GET, "/blobs/")
}

#[test]
fn everything_becomes_durable_in_the_background_and_is_then_trusted() {
    isolated(async {
        let content = noise(1, 2 << 20);
        let (registry, mut node, reference) = published_for_good(&content).await;
        for path in records(&node.root) {
            change(&path, "boot_id", &"another boot".into());
        }
        node.run().await;
        assert_eq!(publish_again(&registry, &node, &reference, &content).await, 0);
        node.kubelet.unpublish(&node.volume("first")).await.expect("unpublished");
    });
}

#[test]
fn what_was_not_durable_is_discarded_after_a_reboot() {
    isolated(async {
        let content = noise(2, 2 << 20);
        let (registry, mut node, reference) = published_for_good(&content).await;
        make_volatile(&node.root, true);
        // What a power cut leaves: the name, and nothing in it.
        let blob = blob_file(&node, &content);
        fs::remove_file(&blob).expect("removed");
        fs::write(&blob, "").expect("written");
        node.run().await;
        assert_eq!(publish_again(&registry, &node, &reference, &content).await, 1);
        node.kubelet.unpublish(&node.volume("first")).await.expect("unpublished");
    });
}

#[test]
fn what_was_not_durable_is_fetched_again_after_a_reboot_however_whole_it_looks() {
    isolated(async {
        let content = noise(15, 2 << 20);
        let (registry, mut node, reference) = published_for_good(&content).await;
        make_volatile(&node.root, false);
        node.run().await;
        // In the boot that it was written in its digest is enough; that the boot is another one is all that changes now.
        assert_eq!(publish_again(&registry, &node, &reference, &content).await, 0);
        become_durable(&node).await;
        node.kill();
        make_volatile(&node.root, true);
        let file = fs::read(blob_file(&node, &content)).expect("the blob is there");
        assert!(file == content, "and whole");
        node.run().await;
        assert_eq!(publish_again(&registry, &node, &reference, &content).await, 1);
        assert_eq!(registry.count(&Method::GET, "/manifests/"), 1, "a manifest is a blob as well");
        node.kubelet.unpublish(&node.volume("first")).await.expect("unpublished");
    });
}

#[test]
fn what_was_not_durable_is_checked_in_the_same_boot() {
    isolated(async {
        let content = noise(3, 2 << 20);
        let (registry, mut node, reference) = published_for_good(&content).await;
        make_volatile(&node.root, false);
        node.run().await;
        assert_eq!(publish_again(&registry, &node, &reference, &content).await, 0, "it is sound");
        node.kill();
        make_volatile(&node.root, false);
        // One bit flips on the disk; size and name stay.
        let blob = fs::OpenOptions::new().write(true).open(blob_file(&node, &content)).expect("open");
        blob.write_all_at(&[content[1_000_000] ^ 1], 1_000_000).expect("written");
        node.run().await;
        assert_eq!(publish_again(&registry, &node, &reference, &content).await, 1, "pulled again");
        let first = node.volume("first");
        assert_eq!(
            fs::read(first.target.join("w")).expect("a pod's files do not go away").len(),
            content.len()
        );
        node.kubelet.unpublish(&first).await.expect("unpublished");
    });
}

#[test]
fn a_damaged_tree_is_made_again_and_a_mounted_one_keeps_its_files() {
    isolated(async {
        let content = noise(4, 1000); // Small: copied into the tree, not linked.
        let (registry, mut node, reference) = published_for_good(&content).await;
        make_volatile(&node.root, false);
        let tree = fs::read_dir(node.root.join("v1/trees"))
            .expect("listed")
            .next()
            .expect("a tree")
            .expect("an entry");
        let file = tree.path().join("fs/w");
        let mut damaged = content.clone();
        damaged[500] ^= 1;
        fs::write(&file, &damaged).expect("written");
        node.run().await;
        assert_eq!(
            publish_again(&registry, &node, &reference, &content).await,
            0,
            "from the blob that is here"
        );
        let first = node.volume("first");
        assert!(fs::read(first.target.join("w")).is_ok(), "a pod's files do not go away");
        node.kubelet.unpublish(&first).await.expect("unpublished");
    });
}

#[test]
fn no_record_no_entry() {
    isolated(async {
        let content = noise(5, 2 << 20);
        let (registry, mut node, reference) = published(&content).await;
        for damage in ["", "{", "[]"] {
            node.kill();
            for path in records(&node.root) {
                fs::write(&path, damage).expect("written");
            }
            node.run().await;
            assert_eq!(publish_again(&registry, &node, &reference, &content).await, 1, "{damage:?}");
        }
        node.kubelet.unpublish(&node.volume("first")).await.expect("unpublished");
    });
}

/// `part` of a blob comes, and then nothing; the process is killed, and the next one goes on where that was. What is recorded of a
/// download is recorded every 4 MiB.
async fn goes_on_after_a_kill(registry: Scripted, content: &[u8], part: bytes::Bytes, flags: &[&str]) {
    registry.script(move |seen| {
        use futures_util::StreamExt as _;
        let blob = seen.path.contains("/blobs/") && seen.method == Method::GET;
        blob.then(|| {
            let pieces: Vec<_> = (0..part.len() >> 20)
                .map(|mib| Ok::<_, std::io::Error>(part.slice(mib << 20..(mib + 1) << 20)))
                .collect();
            let body = futures_util::stream::iter(pieces).chain(futures_util::stream::pending());
            axum::response::Response::new(axum::body::Body::from_stream(body))
        })
    });
    let mut node = Node::start(&[&["--plain-http", &registry.host()], flags].concat()).await;
    let volume = node.volume("pod");
    let reference = registry.reference("m:v1");
    let (kubelet, request) =
        (node.kubelet.clone(), node.kubelet.publish_request(&volume, &[("reference", &reference)], &[]));
    let publish = tokio::spawn(async move { kubelet.publish(request).await });
    let ingest = node.root.join("v1/ingest");
    // Up to where it goes on, as far as is known.
    let recorded = || {
        let records = fs::read_dir(&ingest).map(|entries| {
            entries
                .flatten()
                .filter_map(|entry| fs::read(entry.path().join("ranges.json")).ok())
                .collect::<Vec<_>>()
        });
        let of_one = |record: &Vec<u8>| {
            let record: serde_json::Value = serde_json::from_slice(record).ok()?;
            record["ranges"][0]["end"].as_u64()
        };
        records.unwrap_or_default().iter().filter_map(of_one).max().unwrap_or_default()
    };
    eventually("64 MiB are recorded", || recorded() >= 64 << 20).await;
    node.kill();
    assert!(publish.await.expect("no panic").is_err());
    registry.unscript();
    registry.forget();
    node.run().await;
    node.publish(&volume, &reference, &[]).await.expect("published");
    assert!(fs::read(volume.target.join("w")).expect("read") == content);
    let requests = registry.requests();
    let first = requests.iter().find(|seen| seen.path.contains("/blobs/")).expect("the rest is asked for");
    let range = first.headers.get("range").and_then(|range| range.to_str().ok()).unwrap_or("all");
    let start = range.strip_prefix("bytes=").and_then(|range| range.split_once('-')?.0.parse::<u64>().ok());
    assert!(start.is_some_and(|start| start >= 64 << 20), "{range}");
    node.kubelet.unpublish(&volume).await.expect("unpublished");
}

#[test]
fn a_download_resumes_after_the_process_was_killed() {
    isolated(async {
        let content = noise(6, 100 << 20);
        let registry = Scripted::with_model(content.clone()).await;
        let part = content[..90 << 20].to_vec().into();
        goes_on_after_a_kill(registry, &content, part, &[]).await;
    });
}

#[test]
fn a_spooled_archive_goes_on_where_it_was_after_a_restart() {
    isolated(async {
        let content = noise(6, 100 << 20);
        let registry = Scripted::start().await;
        let layer = Layer::archive(Tarball::new().file("w", &content).finish());
        let part = layer.content.slice(..90 << 20);
        registry.pusher("m").image("v1", &[layer], &[]).await.expect("pushed");
        goes_on_after_a_kill(registry, &content, part, &["--spool-above", "8MiB"]).await;
    });
}

#[test]
fn a_full_disk_is_told_before_it_is_tried_and_harms_nothing() {
    isolated(async {
        let registry = Scripted::start().await;
        let large = [Layer::model_file("weight", "w", noise(7, 24 << 20))];
        registry.pusher("large").model("v1", &large).await.expect("pushed");
        registry
            .pusher("small")
            .model("v1", &[Layer::model_file("weight", "w", noise(8, 1 << 20))])
            .await
            .expect("pushed");
        let mut node = Node::prepare(&["--plain-http", &registry.host()]);
        node.limit_store("16m");
        node.run().await;
        let volume = node.volume("pod");
        let status = node.publish(&volume, &registry.reference("large:v1"), &[]).await.expect_err("full");
        assert_eq!(status.code(), Code::ResourceExhausted, "{}", status.message());
        let logged = node.logged();
        assert!(logged.contains("no space left in the store") && logged.contains("25165824"), "{logged}");
        assert_eq!(registry.count(&Method::GET, "/blobs/"), 0, "nothing was tried");
        node.publish(&volume, &registry.reference("small:v1"), &[]).await.expect("small is fine");
        node.kubelet.unpublish(&volume).await.expect("unpublished");

        // The disk fills up while the blob comes.
        let ballast = node.root.join("ballast");
        let filler = ballast.clone();
        registry
            .pusher("late")
            .model("v1", &[Layer::model_file("weight", "w", noise(9, 8 << 20))])
            .await
            .expect("pushed");
        registry.script(move |seen| {
            if seen.path.contains("/blobs/") && seen.method == Method::GET {
                fs::write(&filler, vec![1_u8; 12 << 20]).expect("written");
            }
            None
        });
        let status = node.publish(&volume, &registry.reference("late:v1"), &[]).await.expect_err("full");
        assert_eq!(status.code(), Code::ResourceExhausted, "{}", status.message());
        fs::remove_file(&ballast).expect("removed");
        registry.unscript();
        node.publish(&volume, &registry.reference("late:v1"), &[]).await.expect("there is room again");
        node.kubelet.unpublish(&volume).await.expect("unpublished");
        node.stop().await;
        nix::mount::umount(&node.root).expect("unmounted");
    });
}

#[test]
fn regression_copies_of_small_files_leave_room_for_others() {
    isolated(async {
        let registry = Scripted::start().await;
        // One blob, of which each file is a copy, because each has a time of its own.
        let file = |number: u32| {
            let (path, time) =
                (format!("w-{number}"), format!("2025-01-01T00:{:02}:{:02}Z", number / 60, number % 60));
            let stated = serde_json::json!({"name": path, "mtime": time}).to_string();
            let annotations = serde_json::json!({"org.cncf.model.filepath": path, "org.cncf.model.file.metadata+json": stated});
            Layer { annotations, ..Layer::model_file("weight", &path, vec![1_u8; 1 << 20]) }
        };
        let layers: Vec<Layer> = (0..140).map(file).collect();
        registry.pusher("many").model("v1", &layers).await.expect("pushed");
        let mut node = Node::prepare(&["--plain-http", &registry.host()]);
        node.limit_store("128m");
        node.run().await;
        let volume = node.volume("pod");
        let status = node.publish(&volume, &registry.reference("many:v1"), &[]).await.expect_err("full");
        assert_eq!(status.code(), Code::ResourceExhausted, "{}", status.message());
        // It was noticed before the kernel had to say so.
        assert!(status.message().contains("no space left"), "{}", status.message());
        node.stop().await;
        nix::mount::umount(&node.root).expect("unmounted");
    });
}

/// A download of which `part` bytes came; the registry then fails until it is unscripted.
async fn interrupted(node: &Node, registry: &Scripted, reference: &str, content: &[u8], part: usize) {
    let sent = content[..part].to_vec();
    let length = content.len();
    let mut first = true;
    registry.script(move |seen| {
        if !seen.path.contains("/blobs/") || seen.method != Method::GET {
            return None;
        }
        if !std::mem::replace(&mut first, false) {
            return Some(ocivol::demo::registry::error(axum::http::StatusCode::BAD_GATEWAY, "DOWN"));
        }
        let parts = [Ok(bytes::Bytes::from(sent.clone())), Err(std::io::Error::other("cut"))];
        let body = axum::body::Body::from_stream(futures_util::stream::iter(parts));
        Some(axum::response::IntoResponse::into_response(([("content-length", length)], body)))
    });
    let status = node.publish(&node.volume("pod"), reference, &[]).await.expect_err("interrupted");
    assert_eq!(status.code(), Code::Unavailable, "{}", status.message());
    registry.unscript();
    registry.forget();
}

#[test]
fn regression_a_resumed_download_needs_only_room_for_the_rest() {
    isolated(async {
        let content = noise(10, 12 << 20);
        let registry = Scripted::with_model(content.clone()).await;
        let reference = registry.reference("m:v1");
        let mut node = Node::prepare(&["--plain-http", &registry.host()]);
        node.limit_store("16m");
        node.run().await;
        interrupted(&node, &registry, &reference, &content, 8 << 20).await;
        let volume = node.volume("pod");
        node.publish(&volume, &reference, &[]).await.expect("published");
        assert!(fs::read(volume.target.join("w")).expect("read") == content);
        node.kubelet.unpublish(&volume).await.expect("unpublished");
        node.stop().await;
        nix::mount::umount(&node.root).expect("unmounted");
    });
}

#[test]
fn regression_a_download_that_lost_data_starts_over() {
    isolated(async {
        let content = noise(11, 3 << 20);
        let registry = Scripted::with_model(content.clone()).await;
        let reference = registry.reference("m:v1");
        let node = Node::start(&["--plain-http", &registry.host()]).await;
        interrupted(&node, &registry, &reference, &content, 2 << 20).await;
        let ingest =
            fs::read_dir(node.root.join("v1/ingest")).expect("listed").map(|it| it.expect("an entry").path());
        let data = ingest.map(|path| path.join("data")).find(|path| path.exists()).expect("a download");
        fs::OpenOptions::new().write(true).open(data).and_then(|file| file.set_len(1000)).expect("cut");
        let volume = node.volume("pod");
        node.publish(&volume, &reference, &[]).await.expect("published");
        assert!(fs::read(volume.target.join("w")).expect("read") == content);
        assert!(registry.requests().iter().all(|seen| !seen.headers.contains_key("range")), "from the start");
        node.kubelet.unpublish(&volume).await.expect("unpublished");
    });
}

/// Runs a program of the system; fails the test when it fails.
fn run(program: &str, arguments: &[&str]) {
    let output = std::process::Command::new(program).args(arguments).output();
    let output = output.unwrap_or_else(|error| panic!("{program} cannot be started: {error}"));
    assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn a_file_system_that_shuts_down_under_the_store_costs_a_pull_and_never_a_wrong_byte() {
    isolated(async {
        let registry = Scripted::start().await;
        let contents = [noise(12, 8 << 20), noise(13, 8 << 20), noise(14, 8 << 20)];
        for (number, content) in contents.iter().enumerate() {
            let layer = Layer::model_file("weight", "w", content.clone());
            registry.pusher(&format!("m{number}")).model("v1", &[layer]).await.expect("pushed");
        }
        let mut node = Node::prepare(&["--plain-http", &registry.host()]);
        let image = node.directory.path().join("disk.img").display().to_string();
        let root = node.root.display().to_string();
        run("truncate", &["-s", "256M", &image]);
        run("mkfs.ext4", &["-q", &image]);
        run("mount", &["-o", "loop", &image, &root]);
        node.run().await;
        let volumes: Vec<_> = (0..3).map(|number| node.volume(&format!("pod-{number}"))).collect();
        let references: Vec<_> = (0..3).map(|number| registry.reference(&format!("m{number}:v1"))).collect();
        node.publish(&volumes[0], &references[0], &[]).await.expect("published");
        become_durable(&node).await;
        node.publish(&volumes[1], &references[1], &[]).await.expect("published");
        // FS_IOC_SHUTDOWN without flushing the log: from now on nothing reaches the disk (linux/fs.h).
        let script = "import fcntl,os,struct,sys\nfcntl.ioctl(os.open(sys.argv[1],os.O_RDONLY),0x8004587d,struct.pack('I',2))";
        run("python3", &["-c", script, &root]);
        let status = node.publish(&volumes[2], &references[2], &[]).await.expect_err("no disk");
        assert_eq!(status.code(), Code::Unavailable, "{}", status.message());
        for volume in &volumes[..2] {
            node.kubelet.unpublish(volume).await.expect("unpublish needs no store");
        }
        node.kill();
        run("umount", &[&root]);
        run("mount", &["-o", "loop", &image, &root]);
        node.run().await;
        registry.forget();
        for ((volume, reference), content) in volumes.iter().zip(&references).zip(&contents) {
            node.publish(volume, reference, &[]).await.expect("published");
            assert!(
                fs::read(volume.target.join("w")).expect("read") == *content,
                "wrong bytes reached a pod"
            );
        }
        assert!(registry.count(&Method::GET, "/blobs/") <= 2, "what was durable is still there");
        for volume in &volumes {
            node.kubelet.unpublish(volume).await.expect("unpublished");
        }
        node.stop().await;
        run("umount", &[&root]);
    });
}
