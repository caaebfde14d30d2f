//! Hostile volume IDs and targets: T33 to T36.

use std::fs;
use std::os::unix::fs::symlink;

use nix::mount::{MsFlags, mount};
use ocivol::csi::v1::NodeUnpublishVolumeRequest;
use ocivol::demo::push::Layer;
use tonic::Code;

use crate::support::node::{mount_at, mounts_below};
use crate::support::{Node, Scripted, isolated};

async fn node_with_a_model() -> (Node, Scripted, String) {
    let registry = Scripted::with_model("content").await;
    let node = Node::start(&["--plain-http", &registry.host()]).await;
    let reference = registry.reference("m:v1");
    (node, registry, reference)
}

async fn unpublish(node: &Node, target: &str) -> Code {
    let request = NodeUnpublishVolumeRequest { volume_id: "v".into(), target_path: target.into() };
    let mut client = node.kubelet.node().await.expect("connected");
    client.node_unpublish_volume(request).await.map_or_else(|status| status.code(), |_| Code::Ok)
}

#[test]
fn t33_a_volume_id_never_becomes_a_path() {
    isolated(async {
        let (node, _registry, reference) = node_with_a_model().await;
        let sentinel = node.kubelet.directory.join("pods/sentinel");
        fs::write(&sentinel, "untouched").expect("written");
        for (number, id) in
            ["../../sentinel", "/etc/passwd", ".", "a\0b", "ü\u{202e}", &"x".repeat(1024)].iter().enumerate()
        {
            let volume = node.volume(&format!("pod-{number}"));
            let mut request = node.kubelet.publish_request(&volume, &[("reference", &reference)], &[]);
            request.volume_id = (*id).to_owned();
            node.kubelet.publish(request).await.expect(id);
            let volume = ocivol::demo::kubelet::PodVolume { volume_id: (*id).to_owned(), ..volume };
            node.kubelet.stats(&volume).await.expect(id);
            node.kubelet.unpublish(&volume).await.expect(id);
            assert!(!volume.target.exists());
        }
        assert_eq!(fs::read_to_string(&sentinel).expect("read"), "untouched");
    });
}

#[test]
fn t34_targets_that_lead_astray_are_refused() {
    isolated(async {
        let (node, _registry, reference) = node_with_a_model().await;
        let outside = node.kubelet.directory.join("pods/outside");
        fs::create_dir_all(outside.join("mount")).expect("directories");
        let publish = async |pod: &str, prepare: &dyn Fn(&std::path::Path)| {
            let volume = node.volume(pod);
            prepare(&volume.target);
            node.publish(&volume, &reference, &[]).await.expect_err(pod).code()
        };
        // A symlink as the last component, and as one on the way.
        let last = |target: &std::path::Path| symlink(&outside, target).expect("linked");
        assert_eq!(publish("last", &last).await, Code::InvalidArgument);
        let way = |target: &std::path::Path| {
            let parent = target.parent().expect("a parent");
            fs::remove_dir(parent).expect("removed");
            symlink(&outside, parent).expect("linked");
        };
        assert_eq!(publish("way", &way).await, Code::InvalidArgument);
        let file = |target: &std::path::Path| fs::write(target, "x").expect("written");
        assert_eq!(publish("file", &file).await, Code::InvalidArgument);
        let full = |target: &std::path::Path| fs::create_dir_all(target.join("inner")).expect("made");
        assert_eq!(publish("full", &full).await, Code::InvalidArgument);
        let gone = |target: &std::path::Path| {
            fs::remove_dir(target.parent().expect("a parent")).expect("removed");
        };
        assert_eq!(publish("gone", &gone).await, Code::InvalidArgument);
        assert!(mounts_below(&outside).is_empty() && mounts_below(&node.kubelet.directory).is_empty());
        assert!(fs::read_dir(outside.join("mount")).expect("listed").next().is_none());
    });
}

#[test]
fn t34_a_target_that_is_swapped_while_it_is_published_leads_nowhere_else() {
    isolated(async {
        let (node, _registry, reference) = node_with_a_model().await;
        let outside = node.kubelet.directory.join("pods/outside");
        fs::create_dir_all(outside.join("mount")).expect("directories");
        let volume = node.volume("pod");
        let parent = volume.target.parent().expect("a parent").to_owned();
        let aside = parent.with_file_name("aside");
        let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
        let swapper = {
            let (stop, parent, aside, outside) =
                (std::sync::Arc::clone(&stop), parent.clone(), aside.clone(), outside.clone());
            std::thread::spawn(move || {
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    if fs::rename(&parent, &aside).is_ok() {
                        let _ = symlink(&outside, &parent);
                        let _ = fs::remove_file(&parent);
                        let _ = fs::rename(&aside, &parent);
                    }
                }
            })
        };
        for _ in 0..200 {
            let _ = node.publish(&volume, &reference, &[]).await;
            let _ = node.kubelet.unpublish(&volume).await;
            assert!(mounts_below(&outside).is_empty(), "mounted outside");
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        swapper.join().expect("no panic");
        assert!(outside.join("mount").is_dir());
    });
}

#[test]
fn t35_unpublish_deletes_no_content() {
    isolated(async {
        let (node, _registry, reference) = node_with_a_model().await;
        let volume = node.volume("pod");
        fs::create_dir_all(volume.target.join("data")).expect("made");
        fs::write(volume.target.join("data/file"), "precious").expect("written");
        let target = volume.target.display().to_string();
        assert_eq!(unpublish(&node, &target).await, Code::FailedPrecondition);
        for path in ["/", "/etc", "/var/lib/kubelet", "relative", "/proc/self"] {
            assert_eq!(unpublish(&node, path).await, Code::InvalidArgument, "{path}");
        }
        assert_eq!(fs::read_to_string(volume.target.join("data/file")).expect("read"), "precious");

        // A foreign mount is neither published over nor unmounted.
        let foreign = node.volume("foreign");
        fs::create_dir(&foreign.target).expect("made");
        mount(Some("x"), &foreign.target, Some("tmpfs"), MsFlags::empty(), None::<&str>).expect("mounted");
        fs::write(foreign.target.join("file"), "theirs").expect("written");
        let status = node.publish(&foreign, &reference, &[]).await.expect_err("something is there");
        assert_eq!(status.code(), Code::AlreadyExists, "{}", status.message());
        assert_eq!(unpublish(&node, &foreign.target.display().to_string()).await, Code::FailedPrecondition);
        assert_eq!(fs::read_to_string(foreign.target.join("file")).expect("read"), "theirs");

        // A busy volume stays until it is free, and its content in any case.
        let busy = node.volume("busy");
        node.publish(&busy, &reference, &[]).await.expect("published");
        let open = fs::File::open(busy.target.join("w")).expect("open");
        assert_eq!(unpublish(&node, &busy.target.display().to_string()).await, Code::Unavailable);
        assert!(mount_at(&busy.target).is_some());
        drop(open);
        assert_eq!(unpublish(&node, &busy.target.display().to_string()).await, Code::Ok);
        let again = node.volume("again");
        node.publish(&again, &reference, &[("pullPolicy", "Never")]).await.expect("all is still there");
        node.kubelet.unpublish(&again).await.expect("unpublished");
    });
}

#[test]
fn t36_names_with_separators_stay_names() {
    isolated(async {
        let registry = Scripted::start().await;
        let names = ["a,rw,suid", "b:c", "d\\040e", "f=g", "h i"];
        let layers: Vec<Layer> = names.iter().map(|name| Layer::titled(name, *name)).collect();
        registry.pusher("m").files("v1", &layers).await.expect("pushed");
        let node = Node::start(&["--plain-http", &registry.host()]).await;
        let volume = node.kubelet.prepare("pod", "name, with:separators\\").expect("prepared");
        node.publish(&volume, &registry.reference("m:v1"), &[]).await.expect("published");
        for name in names {
            assert_eq!(fs::read_to_string(volume.target.join(name)).expect(name), name);
        }
        let mounted = mount_at(&volume.target).expect("in the table");
        assert!(mounted.has("ro") && mounted.has("nosuid") && mounted.has("nodev") && mounted.has("noexec"));
        node.kubelet.unpublish(&volume).await.expect("unpublished");
    });
}
