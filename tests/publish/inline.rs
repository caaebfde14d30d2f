//! Publishing and unpublishing, with real mounts.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::http::Method;
use ocivol::demo::push::Layer;
use ocivol::oci::digest::Digest;
use tonic::Code;

use crate::support::namespace::separate_mounts;
use crate::support::node::{mount_at, mounts_below};
use crate::support::{Node, Scripted, eventually, isolated, noise};

const GET: Method = Method::GET;

/// The files of the model: what they are, their paths and their contents.
fn contents() -> [(&'static str, &'static str, Vec<u8>); 3] {
    [
        ("weight", "model.safetensors", noise(1, 3 << 20)),
        ("weight", "onnx/model.onnx", noise(2, 2 << 20)),
        ("weight.config", "config.json", br#"{"a":1}"#.to_vec()),
    ]
}

async fn model() -> (Scripted, Node, String) {
    model_with(&[]).await
}

/// The same with further flags for the plugin.
async fn model_with(flags: &[&str]) -> (Scripted, Node, String) {
    let registry = Scripted::start().await;
    let layers = contents().map(|(kind, path, content)| Layer::model_file(kind, path, content));
    registry.pusher("m").model("v1", &layers).await.expect("pushed");
    let node = Node::start(&[&["--plain-http", &registry.host()], flags].concat()).await;
    let reference = registry.reference("m:v1");
    (registry, node, reference)
}

#[test]
fn fifty_pods_share_one_download_and_one_tree() {
    isolated(async {
        let (registry, node, reference) = model().await;
        let volumes: Vec<_> = (0..50).map(|number| node.volume(&format!("pod-{number}"))).collect();
        let publishes = volumes.iter().map(|volume| node.publish(volume, &reference, &[]));
        for result in futures_util::future::join_all(publishes).await {
            result.expect("published");
        }
        let blobs: Vec<String> = registry
            .requests()
            .into_iter()
            .filter(|seen| seen.method == GET && seen.path.contains("/blobs/"))
            .map(|seen| seen.path)
            .collect();
        let distinct: std::collections::BTreeSet<_> = blobs.iter().collect();
        assert_eq!((blobs.len(), distinct.len()), (3, 3), "{blobs:?}");
        let inodes: std::collections::BTreeSet<_> = volumes
            .iter()
            .map(|volume| std::fs::metadata(volume.target.join("model.safetensors")).expect("a file").ino())
            .collect();
        assert_eq!(inodes.len(), 1);
        for volume in &volumes {
            node.kubelet.unpublish(volume).await.expect("unpublished");
        }
        assert!(mounts_below(&node.kubelet.directory).is_empty());
    });
}

#[test]
fn the_mount_is_read_only_and_restricted_in_the_mount_table() {
    isolated(async {
        let (_registry, node, reference) = model().await;
        let volume = node.volume("pod");
        node.publish(&volume, &reference, &[]).await.expect("published");
        let mount = mount_at(&volume.target).expect("mounted");
        for flag in ["ro", "nosuid", "nodev", "noexec"] {
            assert!(mount.has(flag), "{}", mount.options);
        }
        for (path, expected) in [("new", libc::EROFS), ("config.json", libc::EROFS)] {
            let error = std::fs::write(volume.target.join(path), "x").expect_err("read-only");
            assert_eq!(error.raw_os_error(), Some(expected));
        }
        let file = std::fs::metadata(volume.target.join("model.safetensors")).expect("a file");
        assert_eq!((file.mode() & 0o7777, file.uid(), file.mtime()), (0o444, 0, 0), "a shared blob");
        let small = std::fs::metadata(volume.target.join("config.json")).expect("a file");
        assert_eq!((small.mode() & 0o7777, small.mtime()), (0o644, 1_735_689_600), "its own metadata");
        let directory = std::fs::metadata(volume.target.join("onnx")).expect("a directory");
        assert_eq!((directory.mode() & 0o7777, directory.mtime()), (0o755, 0));
        node.kubelet.unpublish(&volume).await.expect("unpublished");
        assert!(!volume.target.exists() && volume.target.parent().expect("a parent").exists());

        node.publish(&volume, &reference, &[("exec", "true")]).await.expect("published");
        let mount = mount_at(&volume.target).expect("mounted");
        assert!(mount.has("ro") && mount.has("nosuid") && mount.has("nodev") && !mount.has("noexec"));
        node.kubelet.unpublish(&volume).await.expect("unpublished");
    });
}

#[test]
fn attributes_choose_a_part_and_only_that_part_is_pulled() {
    isolated(async {
        let (registry, node, reference) = model().await;
        let listing = |target: &std::path::Path| {
            let mut names: Vec<String> = std::fs::read_dir(target)
                .expect("listed")
                .map(|entry| entry.expect("an entry").file_name().into_string().expect("text"))
                .collect();
            names.sort();
            names
        };
        let publish = async |pod: &str, attributes: &[(&str, &str)]| {
            let volume = node.volume(pod);
            node.publish(&volume, &reference, attributes).await.expect(pod);
            let names = listing(&volume.target);
            node.kubelet.unpublish(&volume).await.expect("unpublished");
            names
        };
        assert_eq!(publish("include", &[("include", "*.json")]).await, ["config.json"]);
        assert_eq!(registry.count(&GET, "/blobs/"), 1, "the config alone was pulled");
        assert_eq!(publish("exclude", &[("exclude", "*.safetensors\n*.json")]).await, ["onnx"]);
        assert_eq!(registry.count(&GET, "/blobs/"), 2);
        assert_eq!(publish("path", &[("path", "/onnx"), ("include", "*.onnx")]).await, ["model.onnx"]);
        assert_eq!(registry.count(&GET, "/blobs/"), 2, "what is here is not pulled again");
        assert_eq!(publish("all", &[]).await, ["config.json", "model.safetensors", "onnx"]);
        assert_eq!(registry.count(&GET, "/blobs/"), 3);
    });
}

#[test]
fn t24_pull_policies_decide_when_the_registry_is_asked() {
    isolated(async {
        let (registry, node, reference) = model().await;
        let content = |volume: &ocivol::demo::kubelet::PodVolume| {
            std::fs::read_to_string(volume.target.join("config.json")).expect("read")
        };
        let (old, same, new) = (node.volume("old"), node.volume("same"), node.volume("new"));
        node.publish(&old, &reference, &[]).await.expect("published");
        let moved = [Layer::model_file("weight.config", "config.json", r#"{"a":2}"#)];
        registry.pusher("m").model("v1", &moved).await.expect("pushed");
        registry.forget();
        node.publish(&same, &reference, &[("pullPolicy", "IfNotPresent")]).await.expect("published");
        node.kubelet.unpublish(&same).await.expect("unpublished");
        node.publish(&same, &reference, &[("pullPolicy", "Never")]).await.expect("published");
        assert!(registry.requests().is_empty(), "{:?}", registry.requests());
        node.publish(&new, &reference, &[("pullPolicy", "Always")]).await.expect("published");
        assert!(!registry.requests().is_empty());
        assert_eq!(
            (content(&old), content(&same), content(&new)),
            (r#"{"a":1}"#.into(), r#"{"a":1}"#.into(), r#"{"a":2}"#.into())
        );
        registry.forget();
        let again = node.volume("again");
        node.publish(&again, &reference, &[("pullPolicy", "Always")]).await.expect("published");
        let requests: Vec<_> = registry.requests().into_iter().map(|seen| seen.method).collect();
        assert_eq!(requests, [Method::HEAD], "the tag is resolved, nothing is pulled");
        for volume in [&old, &same, &new, &again] {
            node.kubelet.unpublish(volume).await.expect("unpublished");
        }
    });
}

#[test]
fn a_published_volume_is_published_again_without_the_network() {
    isolated(async {
        let (registry, mut node, reference) = model().await;
        let volume = node.volume("pod");
        node.publish(&volume, &reference, &[("pullPolicy", "Always")]).await.expect("published");
        drop(registry);
        // As after a restart of kubelet, of the plugin, and of both.
        node.publish(&volume, &reference, &[("pullPolicy", "Always")]).await.expect("the same again");
        node.kill();
        node.run().await;
        node.publish(&volume, &reference, &[("pullPolicy", "Always")]).await.expect("the same again");
        assert_eq!(mounts_below(&volume.target).len(), 1, "not stacked");
        node.kubelet.unpublish(&volume).await.expect("unpublished");
    });
}

#[test]
fn everything_but_publish_works_without_the_store() {
    isolated(async {
        let (_registry, mut node, reference) = model().await;
        let volumes: Vec<_> = (0..3).map(|number| node.volume(&format!("pod-{number}"))).collect();
        for volume in &volumes {
            node.publish(volume, &reference, &[]).await.expect("published");
        }
        // Somebody else holds the store.
        node.kill();
        let lock = std::fs::File::open(node.root.join("lock")).expect("a lock");
        lock.lock().expect("locked");
        let opened = |node: &Node| node.logged().matches("store is open").count();
        let before = opened(&node);
        node.run().await;
        node.register().await;
        assert_eq!(node.kubelet.stats(&volumes[0]).await.expect("stats")[0].used, (5 << 20) + 7);
        node.publish(&volumes[0], &reference, &[]).await.expect("it is there");
        node.kubelet.unpublish(&volumes[0]).await.expect("unpublished");
        let status = node.publish(&volumes[0], &reference, &[]).await.expect_err("no store");
        assert_eq!(status.code(), Code::Unavailable);
        assert!(status.message().contains("in use by process"), "{}", status.message());
        eventually("it says so", || node.logged().contains("the store cannot be used")).await;
        assert_eq!(opened(&node), before, "{}", node.logged());
        drop(lock);

        // A later version wrote it.
        node.kill();
        std::fs::create_dir(node.root.join("v2")).expect("made");
        node.run().await;
        node.kubelet.unpublish(&volumes[1]).await.expect("unpublished");
        let status = node.publish(&volumes[1], &reference, &[]).await.expect_err("a newer store");
        assert_eq!(status.code(), Code::Unavailable);
        assert!(status.message().contains("newer ocivol"), "{}", status.message());
        std::fs::remove_dir(node.root.join("v2")).expect("removed");

        // It is gone, and cannot be made again.
        node.kill();
        let store = node.root.join("v1");
        std::fs::remove_dir_all(&store).expect("removed");
        std::fs::write(&store, "in the way").expect("written");
        node.run().await;
        node.kubelet.stats(&volumes[2]).await.expect("stats of what is left");
        node.kubelet.unpublish(&volumes[2]).await.expect("unpublished");
        let status = node.publish(&volumes[2], &reference, &[]).await.expect_err("no store");
        assert_eq!(status.code(), Code::Unavailable, "{}", status.message());
        assert!(mounts_below(&node.kubelet.directory).is_empty());
        std::fs::remove_file(&store).expect("removed");
        node.publish(&volumes[2], &reference, &[]).await.expect("a new store is made");
        node.kubelet.unpublish(&volumes[2]).await.expect("unpublished");
    });
}

#[test]
fn stacked_mounts_are_all_taken_away() {
    isolated(async {
        let (_registry, node, reference) = model().await;
        let volume = node.volume("pod");
        node.publish(&volume, &reference, &[]).await.expect("published");
        let tree = mount_at(&volume.target).expect("mounted");
        let none: Option<&str> = None;
        let source = node.root.join("v1/trees").join(tree.store_key().expect("a key")).join("fs");
        for _ in 0..2 {
            let bind = nix::mount::MsFlags::MS_BIND;
            nix::mount::mount(Some(&source), &volume.target, none, bind, none).expect("bound");
        }
        assert_eq!(mounts_below(&volume.target).len(), 3);
        node.kubelet.unpublish(&volume).await.expect("unpublished");
        assert!(mounts_below(&volume.target).is_empty() && !volume.target.exists());
    });
}

#[test]
fn an_unpublish_ends_a_waiting_publish_and_nothing_is_mounted_afterwards() {
    isolated(async {
        // Longer than anybody waits here: no download ends because its registry says nothing.
        let (registry, node, reference) = model_with(&["--stall-timeout", "600", "-v"]).await;
        /// Counts the bodies that the plugin does not read any more.
        struct Unread(Arc<AtomicUsize>);
        impl Drop for Unread {
            fn drop(&mut self) {
                self.0.fetch_add(1, Ordering::SeqCst);
            }
        }
        let unread = Arc::<AtomicUsize>::default();
        let (open, gate) = tokio::sync::watch::channel(false);
        let contents = contents().map(|(_, _, content)| (Digest::sha256(&content).to_string(), content));
        let count = Arc::clone(&unread);
        registry.script(move |seen| {
            let (_, content) = contents.iter().find(|(digest, _)| seen.path.ends_with(digest))?;
            let (mut gate, content) = (gate.clone(), bytes::Bytes::from(content.clone()));
            let body = Unread(Arc::clone(&count));
            let late = futures_util::stream::once(async move {
                let _body = body;
                let _ = gate.wait_for(|open| *open).await;
                Ok::<_, std::io::Error>(content)
            });
            Some(axum::response::Response::new(axum::body::Body::from_stream(late)))
        });
        let begin = |pod: &str| {
            let (kubelet, volume) = (node.kubelet.clone(), node.volume(pod));
            let request = kubelet.publish_request(&volume, &[("reference", &reference)], &[]);
            tokio::spawn(async move { kubelet.publish(request).await })
        };
        // Another pod wants the same.
        let (volume, other) = (node.volume("pod"), begin("other"));
        eventually("the blobs are asked for", || registry.count(&GET, "/blobs/") >= 3).await;
        let publishes: Vec<_> = (0..3).map(|_| begin("pod")).collect();
        let began = || node.logged().matches("\"message\":\"publish\"").count();
        eventually("all of them have begun", || began() == 4).await;
        node.kubelet.unpublish(&volume).await.expect("unpublished");
        assert_eq!(unread.load(Ordering::SeqCst), 0, "the pull goes on for the other");
        for publish in publishes {
            // Not that it waited long enough, as it says at its deadline.
            let status = publish.await.expect("no panic").expect_err("it gave way");
            assert_eq!(status.code(), Code::Aborted, "{}", status.message());
        }
        open.send_replace(true);
        other.await.expect("no panic").expect("the other is published");
        assert!(mount_at(&volume.target).is_none() && !volume.target.exists());
        node.kubelet.unpublish(&node.volume("other")).await.expect("unpublished");
    });
}

#[test]
fn a_pull_ends_when_the_last_volume_that_wants_it_is_unpublished() {
    isolated(async {
        let (registry, mut node, reference) = model().await;
        let (closed, mut ended) = tokio::sync::watch::channel(());
        let closed = std::sync::Mutex::new(Some(closed));
        let weights = noise(1, 3 << 20);
        let digest = ocivol::oci::digest::Digest::sha256(&weights).to_string();
        registry.script(move |seen| {
            // The weights never come whole, and the answer tells when nobody reads it any more.
            let is_it = seen.path.contains(&digest);
            let held = is_it.then(|| closed.lock().expect("a lock").take()).flatten()?;
            let body = futures_util::stream::unfold(Some(held), |held| async {
                let _held = held;
                std::future::pending::<Option<(Result<bytes::Bytes, std::io::Error>, _)>>().await
            });
            Some(axum::response::Response::new(axum::body::Body::from_stream(body)))
        });
        node.kubelet.deadline = Duration::from_secs(8);
        let (one, two) = (node.volume("one"), node.volume("two"));
        // Their calls end at their deadlines; kubelet is going to ask again for both.
        for volume in [&one, &two] {
            let status = node.publish(volume, &reference, &[]).await.expect_err("not yet");
            assert_eq!(status.code(), Code::DeadlineExceeded, "{status}");
        }
        node.kubelet.unpublish(&one).await.expect("unpublished");
        assert!(ended.has_changed().is_ok(), "another volume wants it");
        node.kubelet.unpublish(&two).await.expect("unpublished");
        let over = tokio::time::timeout(Duration::from_secs(10), ended.changed()).await;
        assert!(over.expect("it ends at once, not after ten minutes").is_err());
    });
}

#[test]
fn a_pull_outlives_its_call_and_the_next_one_joins_it() {
    isolated(async {
        let (registry, mut node, reference) = model().await;
        // The weights come in two halves; the second when the test says so.
        let (go, gate) = tokio::sync::watch::channel(false);
        let weights = noise(1, 3 << 20);
        registry.script(move |seen| {
            let digest = ocivol::oci::digest::Digest::sha256(&weights).to_string();
            if !seen.path.contains(&digest) {
                return None;
            }
            let (gate, weights) = (gate.clone(), weights.clone());
            let body =
                async_stream(vec![weights[..1 << 20].to_vec(), weights[1 << 20..].to_vec()], move || {
                    let mut gate = gate.clone();
                    async move {
                        let _ = gate.wait_for(|open| *open).await;
                    }
                });
            Some(axum::response::Response::new(body))
        });
        node.kubelet.deadline = Duration::from_secs(20);
        let volume = node.volume("pod");
        let status = node.publish(&volume, &reference, &[]).await.expect_err("not yet");
        assert_eq!(status.code(), Code::DeadlineExceeded, "{}", status.message());
        assert!(
            status.message().contains("layers, ")
                && status.message().contains(" of 5.00 MiB (")
                && status.message().contains(", now model.safetensors"),
            "{}",
            status.message()
        );
        assert!(mount_at(&volume.target).is_none());
        go.send_replace(true);
        node.kubelet.deadline = Duration::from_secs(60);
        node.publish(&volume, &reference, &[]).await.expect("published");
        assert_eq!(registry.count(&GET, "/blobs/"), 3, "nothing was started over");
        node.kubelet.unpublish(&volume).await.expect("unpublished");
    });
}

/// A body of `parts`, with `wait` between them.
fn async_stream<F: Future<Output = ()> + Send + 'static>(
    parts: Vec<Vec<u8>>,
    wait: impl Fn() -> F + Send + Sync + 'static,
) -> axum::body::Body {
    let stream = futures_util::stream::unfold((parts.into_iter(), true), move |(mut parts, first)| {
        let pause = (!first).then(&wait);
        async move {
            let part = parts.next()?;
            if let Some(pause) = pause {
                pause.await;
            }
            Some((Ok::<_, std::io::Error>(part), (parts, false)))
        }
    });
    axum::body::Body::from_stream(stream)
}

#[test]
fn a_second_incarnation_in_a_fresh_namespace_unpublishes_the_firsts_mounts() {
    isolated(async {
        let (_registry, mut node, reference) = model().await;
        let volume = node.volume("pod");
        node.publish(&volume, &reference, &[]).await.expect("published");
        assert!(mount_at(&volume.target).is_some(), "the host sees it");
        node.kill();
        assert!(mount_at(&volume.target).is_some(), "it outlives the plugin");
        assert!(std::fs::read(volume.target.join("config.json")).is_ok());
        node.run().await;
        node.publish(&volume, &reference, &[("pullPolicy", "IfNotPresent")])
            .await
            .expect_err("other arguments");
        node.publish(&volume, &reference, &[]).await.expect("the same again");
        node.kubelet.unpublish(&volume).await.expect("unpublished");
        assert!(mount_at(&volume.target).is_none(), "gone on the host as well");
    });
}

#[test]
fn a_volume_can_be_idmapped_as_for_pods_with_their_own_users() {
    isolated(async {
        use std::os::fd::AsFd as _;
        let (_registry, node, reference) = model().await;
        let volume = node.volume("pod");
        node.publish(&volume, &reference, &[]).await.expect("published");
        // What a container runtime does: a user namespace, a clone of the mount, an idmap on the clone.
        let mut holder = std::process::Command::new("unshare")
            .args(["--user", "sleep", "1000"])
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn()
            .expect("util-linux's unshare starts");
        let proc = std::path::PathBuf::from(format!("/proc/{}", holder.id()));
        let own = std::fs::read_link("/proc/self/ns/user").expect("a namespace");
        eventually("the user namespace", || {
            std::fs::read_link(proc.join("ns/user")).is_ok_and(|other| other != own)
        })
        .await;
        for map in ["uid_map", "gid_map"] {
            std::fs::write(proc.join(map), "0 100000 65536").expect("mapped");
        }
        let users = std::fs::File::open(proc.join("ns/user")).expect("a namespace");
        let flags =
            rustix::mount::OpenTreeFlags::OPEN_TREE_CLONE | rustix::mount::OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let clone = rustix::mount::open_tree(rustix::fs::CWD, &volume.target, flags).expect("cloned");
        let attributes = ocivol::host::sys::MountAttributes {
            set: libc::MOUNT_ATTR_IDMAP,
            user_namespace: Some(users.as_fd()),
            ..Default::default()
        };
        ocivol::host::sys::mount_setattr(clone.as_fd(), &attributes).expect("the volume can be idmapped");
        let place = node.directory.path().join("container");
        std::fs::create_dir(&place).expect("made");
        let moves = rustix::mount::MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
        rustix::mount::move_mount(&clone, c"", rustix::fs::CWD, &place, moves).expect("mounted");
        let file = std::fs::metadata(place.join("model.safetensors")).expect("a file");
        assert_eq!((file.uid(), file.gid()), (100_000, 100_000), "root of the pod owns it");
        assert_eq!(std::fs::read(place.join("config.json")).expect("read"), br#"{"a":1}"#);
        drop(clone);
        holder.kill().expect("ended");
        holder.wait().expect("ended");
        nix::mount::umount(&place).expect("unmounted");
        node.kubelet.unpublish(&volume).await.expect("unpublished");
    });
}

#[test]
fn kubelets_orphan_cleanup_finds_nothing_of_ours() {
    isolated(async {
        let (_registry, node, reference) = model().await;
        let volume = node.volume("pod");
        node.publish(&volume, &reference, &[]).await.expect("published");
        let parent = volume.target.parent().expect("a parent");
        let names: Vec<_> =
            std::fs::read_dir(parent).expect("listed").map(|it| it.expect("an entry").file_name()).collect();
        assert_eq!(names, ["mount"], "nothing but the mount");
        node.kubelet.unpublish(&volume).await.expect("unpublished");
        std::fs::remove_dir(parent).expect("rmdir is enough");
        let mode = std::fs::metadata(node.root.join("v1")).expect("the store").permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
    });
}

#[test]
fn a_namespace_of_its_own_isolates_a_test() {
    separate_mounts();
    assert!(!ocivol::mount::mountinfo::Table::read().expect("a table").iter().any(|mount| mount.shared));
}
