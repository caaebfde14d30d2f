//! Volumes that stay read-only whatever a container's runtime does to them; `make e2e` shows it with a real one.

use std::path::Path;
use std::process::Command;

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use ocivol::csi::v1::volume_capability::AccessMode;
use ocivol::csi::v1::volume_capability::access_mode::Mode;
use ocivol::demo::kubelet::PodVolume;
use ocivol::demo::push::Layer;
use tonic::{Code, Status};

use crate::support::node::{BINARY, mount_at};
use crate::support::{Node, Scripted, isolated};

const NONE: Option<&str> = None;

async fn start() -> (Scripted, Node) {
    let registry = Scripted::start().await;
    let file = Layer::model_file("weight", "model.gguf", &b"content"[..]);
    registry.pusher("model").model("v1", &[file]).await.expect("pushed");
    let mut node = Node::prepare(&[]);
    node.env.insert("OCIVOL_PLAIN_HTTP".into(), registry.host());
    node.run_registered().await;
    (registry, node)
}

/// Publishes as kubelet does for a claim that a pod uses with or without `readOnly`.
async fn publish_claim(
    node: &Node,
    volume: &PodVolume,
    reference: &str,
    read_only: bool,
) -> Result<(), Status> {
    publish_as(node, volume, reference, read_only, &[("csi.storage.k8s.io/ephemeral", "false")]).await
}

/// The same with what else kubelet says of the volume, or its author.
async fn publish_as(
    node: &Node,
    volume: &PodVolume,
    reference: &str,
    read_only: bool,
    said: &[(&str, &str)],
) -> Result<(), Status> {
    let mut request = node.kubelet.publish_request(volume, &[("reference", reference)], &[]);
    for (key, value) in said {
        request.volume_context.insert((*key).into(), (*value).into());
    }
    request.readonly = read_only;
    if let Some(capability) = &mut request.volume_capability {
        capability.access_mode = Some(AccessMode { mode: Mode::MultiNodeReaderOnly.into() });
    }
    node.kubelet.publish(request).await
}

fn write(target: &Path) -> Option<i32> {
    std::fs::write(target.join("model.gguf"), "changed").expect_err("it is read-only").raw_os_error()
}

#[test]
fn regression_t23_a_claim_used_without_read_only_starts_and_cannot_be_written() {
    isolated(async {
        let (registry, mut node) = start().await;
        let reference = registry.reference("model:v1");
        let volume = node.volume("pod");
        publish_claim(&node, &volume, &reference, false).await.expect("published");
        let mounted = mount_at(&volume.target).expect("on the node");
        assert!(
            mounted.is_overlay && ["ro", "nosuid", "nodev", "noexec"].iter().all(|flag| mounted.has(flag))
        );
        // What runc does for `rw`.
        mount(NONE, &volume.target, NONE, MsFlags::MS_REMOUNT | MsFlags::MS_BIND, NONE).expect("cleared");
        assert_eq!(write(&volume.target), Some(libc::EROFS));
        let whole = mount(NONE, &volume.target, NONE, MsFlags::MS_REMOUNT, NONE);
        assert_eq!(whole, Err(Errno::EROFS));
        // The same volume again, also for another plugin; it is known, counted and taken away like any other.
        node.kill();
        node.run_registered().await;
        publish_claim(&node, &volume, &reference, false).await.expect("it is there");
        let status = publish_claim(&node, &volume, &reference, true).await.expect_err("another volume");
        assert_eq!(status.code(), Code::AlreadyExists);
        assert_eq!(node.kubelet.stats(&volume).await.expect("stats")[0].used, 7);
        node.kubelet.unpublish(&volume).await.expect("unmounted");
        assert!(mount_at(&volume.target).is_none() && !volume.target.exists());
    });
}

#[test]
fn t23_an_inline_volume_that_does_not_say_read_only_is_mounted_as_such_a_claim() {
    isolated(async {
        let (registry, node) = start().await;
        let reference = registry.reference("model:v1");
        let volume = node.volume("pod");
        let inline = ("csi.storage.k8s.io/ephemeral", "true");
        let refused = publish_as(&node, &volume, &reference, false, &[inline]).await.expect_err("not said");
        assert_eq!(refused.code(), Code::InvalidArgument);
        let said = [inline, ("readOnlyForWriters", "true")];
        publish_as(&node, &volume, &reference, false, &said).await.expect("published");
        assert!(mount_at(&volume.target).expect("on the node").is_overlay);
        // What runc does for `rw`.
        mount(NONE, &volume.target, NONE, MsFlags::MS_REMOUNT | MsFlags::MS_BIND, NONE).expect("cleared");
        assert_eq!(write(&volume.target), Some(libc::EROFS));
        assert_eq!(mount(NONE, &volume.target, NONE, MsFlags::MS_REMOUNT, NONE), Err(Errno::EROFS));
        node.kubelet.unpublish(&volume).await.expect("unmounted");
    });
}

#[test]
fn regression_t23_the_flags_of_a_volume_are_locked_on_the_node() {
    isolated(async {
        let (registry, mut node) = start().await;
        let volume = node.volume("pod");
        node.publish(&volume, &registry.reference("model:v1"), &[]).await.expect("published");
        for flags in [MsFlags::empty(), MsFlags::MS_RDONLY] {
            let flags = flags | MsFlags::MS_REMOUNT | MsFlags::MS_BIND;
            assert_eq!(mount(NONE, &volume.target, NONE, flags, NONE), Err(Errno::EPERM), "{flags:?}");
        }
        assert_eq!(write(&volume.target), Some(libc::EROFS));
        // The namespace in which the store is mounted ends with the plugin, the lock does not.
        node.kill();
        assert_eq!(
            mount(NONE, &volume.target, NONE, MsFlags::MS_REMOUNT | MsFlags::MS_BIND, NONE),
            Err(Errno::EPERM)
        );
        node.run_registered().await;
        node.kubelet.unpublish(&volume).await.expect("unmounted");
    });
}

#[test]
fn with_lock_read_only_older_runtimes_can_set_their_flags() {
    isolated(async {
        let (registry, mut node) = start().await;
        node.kill();
        node.env.insert("OCIVOL_MOUNT_LOCK".into(), "readOnly".into());
        node.run_registered().await;
        let volume = node.volume("pod");
        node.publish(&volume, &registry.reference("model:v1"), &[]).await.expect("published");
        let mounted = mount_at(&volume.target).expect("on the node");
        assert!(
            ["ro", "nosuid", "nodev", "noexec"].iter().all(|flag| mounted.has(flag)),
            "{}",
            mounted.options
        );
        let remount = MsFlags::MS_REMOUNT | MsFlags::MS_BIND;
        mount(NONE, &volume.target, NONE, remount | MsFlags::MS_RDONLY, NONE).expect("as runc 1.1 does");
        assert_eq!(mount(NONE, &volume.target, NONE, remount, NONE), Err(Errno::EPERM));
        assert_eq!(write(&volume.target), Some(libc::EROFS));
        node.kubelet.unpublish(&volume).await.expect("unmounted");
    });
}

#[test]
fn a_mount_of_an_older_version_counts_and_can_be_taken_away() {
    isolated(async {
        let (registry, node) = start().await;
        let reference = registry.reference("model:v1");
        let (first, older) = (node.volume("first"), node.volume("older"));
        node.publish(&first, &reference, &[]).await.expect("published");
        let key = mount_at(&first.target).expect("on the node").store_key().expect("a tree").to_owned();
        // A bind of the tree whose flags are not locked, and no record.
        let tree = node.root.join("v1/trees").join(key).join("fs");
        std::fs::create_dir(&older.target).expect("a target");
        mount(Some(&tree), &older.target, NONE, MsFlags::MS_BIND, NONE).expect("bound");
        let read_only = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY;
        mount(NONE, &older.target, NONE, read_only, NONE).expect("read-only");
        node.publish(&older, &reference, &[]).await.expect("it is there");
        for volume in [first, older] {
            node.kubelet.unpublish(&volume).await.expect("unmounted");
            assert!(mount_at(&volume.target).is_none());
        }
    });
}

#[test]
fn where_user_namespaces_are_forbidden_a_volume_is_an_overlay() {
    isolated(async {
        let registry = Scripted::start().await;
        let file = Layer::model_file("weight", "model.gguf", &b"content"[..]);
        registry.pusher("model").model("v1", &[file]).await.expect("pushed");
        let directory = tempfile::tempdir().expect("a directory");
        let place = directory.path().canonicalize().expect("a path").join("m");
        // The limit is set in a user namespace of its own: other tests need theirs.
        let script = format!(
            "echo 0 > /proc/sys/user/max_user_namespaces && exec {BINARY} mount {} {} -- \
             sh -c 'cat {place}/model.gguf; grep {place} /proc/self/mountinfo; echo x > {place}/model.gguf'",
            registry.reference("model:v1"),
            place.display(),
            place = place.display(),
        );
        let output = Command::new("unshare")
            .args(["--user", "--map-root-user", "--mount", "sh", "-c", &script])
            .env("OCIVOL_ROOT", directory.path().join("store"))
            .env("OCIVOL_PLAIN_HTTP", registry.host())
            .output()
            .expect("unshare");
        let printed = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        assert!(printed.contains("content") && printed.contains(" - overlay ocivol:"), "{printed}");
        assert!(printed.contains("Read-only file system"), "{printed}");
    });
}
