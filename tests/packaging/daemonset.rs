//! The plugin in the shape of the rendered DaemonSet, driven as kubelet drives it.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use ocivol::demo::kubelet::PodVolume;
use ocivol::demo::push::Layer;
use ocivol::demo::tarball::Tarball;
use tonic::Code;

use crate::support::kubelet::Pods;
use crate::support::node::{DRIVER, mount_at};
use crate::support::{Node, PATIENCE, Scripted, isolated};

/// A registry with a model and an image, and a node that may use it.
async fn start() -> (Scripted, Node) {
    let registry = Scripted::start().await;
    let file = Layer::model_file("weight", "model.gguf", vec![7; 1 << 20]);
    registry.pusher("model").model("v1", &[file]).await.expect("pushed");
    let layers = [Tarball::new().file("a", b"1").finish(), Tarball::new().file("b", b"2").finish()];
    let layers = layers.map(Layer::archive);
    registry.pusher("image").image("v1", &layers, &[]).await.expect("pushed");
    let mut node = Node::prepare(&[]);
    node.env.insert("OCIVOL_PLAIN_HTTP".into(), registry.host());
    node.run_registered().await;
    (registry, node)
}

#[test]
fn a_volume_appears_on_the_node_and_goes_again() {
    isolated(async {
        let (registry, node) = start().await;
        let info = node.register().await;
        assert_eq!(
            (info.endpoint.as_str(), info.name.as_str()),
            (node.socket.to_str().expect("text"), DRIVER)
        );
        let mut pods = Pods::new(&node.kubelet);
        for (pod, reference, file) in [("one", "model:v1", "model.gguf"), ("two", "image:v1", "b")] {
            let volume = pods.add(pod, &registry.reference(reference));
            pods.sync(pod).await.expect("mounted");
            // The node sees it, though it was mounted in the container's namespace.
            let mounted = mount_at(&volume.target).expect("a mount on the node");
            assert!(
                ["ro", "nosuid", "nodev", "noexec"].iter().all(|flag| mounted.has(flag)),
                "{}",
                mounted.options
            );
            assert!(volume.target.join(file).is_file());
            let stats = node.kubelet.stats(&volume).await.expect("stats");
            assert!(stats[0].used > 0);
        }
        for pod in ["one", "two"] {
            pods.remove(pod).await.expect("unmounted");
        }
        pods.clean_orphans();
        assert_eq!(std::fs::read_dir("/var/lib/kubelet/pods").expect("pods").count(), 0, "nothing is left");
    });
}

#[test]
fn kubelets_restart_needs_no_registry_and_the_plugins_no_pods() {
    isolated(async {
        let (registry, mut node) = start().await;
        let mut pods = Pods::new(&node.kubelet);
        for pod in ["one", "two", "three"] {
            pods.add(pod, &registry.reference("model:v1"));
            pods.sync(pod).await.expect("mounted");
        }
        registry.script(|_| Some(ocivol::demo::registry::error(axum::http::StatusCode::BAD_GATEWAY, "DOWN")));
        let before = pods.volume("one").target.join("model.gguf");
        let inode =
            |path: &Path| std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(path).expect("a file"));
        let known = inode(&before);
        // kubelet starts: every volume that is there is set up again.
        pods.restart().await.expect("without the registry");
        // The plugin dies; pods go on reading.
        node.kill();
        assert_eq!(inode(&before), known);
        node.run_registered().await;
        pods.restart().await.expect("without the registry");
        for pod in ["one", "two", "three"] {
            pods.remove(pod).await.expect("unmounted");
        }
        pods.clean_orphans();
    });
}

#[test]
fn a_first_mount_that_fails_for_good_leaves_nothing_in_the_way() {
    isolated(async {
        let (registry, node) = start().await;
        let mut pods = Pods::new(&node.kubelet);
        pods.add("wrong", &registry.reference("absent:v1"));
        let status = pods.sync("wrong").await.expect_err("it does not exist");
        assert_eq!(status.code(), Code::NotFound);
        // kubelet has removed its directories without asking the plugin.
        assert!(!pods.volume("wrong").target.exists());
        pods.forget("wrong");
        pods.clean_orphans();
        // What may pass is uncertain: the pod goes away, and kubelet unpublishes what was never there.
        registry.script(|_| Some(ocivol::demo::registry::error(axum::http::StatusCode::BAD_GATEWAY, "DOWN")));
        pods.add("late", &registry.reference("model:v1"));
        let status = pods.sync("late").await.expect_err("the registry is down");
        assert_eq!(status.code(), Code::Unavailable);
        pods.remove("late").await.expect("nothing to unmount");
        // Another waits until it is back.
        pods.add("patient", &registry.reference("model:v1"));
        let mut left = 3;
        registry.script(move |seen| {
            if seen.path.contains("/manifests/") && left > 0 {
                left -= 1;
                return Some(ocivol::demo::registry::error(axum::http::StatusCode::NOT_FOUND, "NOT_YET"));
            }
            None
        });
        assert_eq!(pods.sync_until_mounted("patient", Duration::from_millis(10)).await, 4);
        pods.remove("patient").await.expect("unmounted");
        pods.clean_orphans();
        assert_eq!(std::fs::read_dir("/var/lib/kubelet/pods").expect("pods").count(), 0);
    });
}

#[test]
fn with_two_hundred_volumes_it_is_ready_within_a_second() {
    isolated(async {
        let (registry, mut node) = start().await;
        let mut pods = Pods::new(&node.kubelet);
        for number in 0..200 {
            let pod = format!("pod-{number}");
            pods.add(&pod, &registry.reference("model:v1"));
            pods.sync(&pod).await.expect("mounted");
        }
        let client = reqwest::Client::builder().no_proxy().build().expect("a client");
        let ready = || async {
            let answer = client.get("http://127.0.0.1:9808/readyz").send().await;
            answer.is_ok_and(|answer| answer.status().is_success())
        };
        // A machine that is busy with something else may need several attempts to show it.
        let mut fastest = Duration::MAX;
        for _ in 0..3 {
            node.kill();
            let began = Instant::now();
            node.run_registered().await;
            while !ready().await {
                assert!(began.elapsed() < PATIENCE, "{}", node.logged());
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            fastest = fastest.min(began.elapsed());
            if fastest < Duration::from_secs(1) {
                break;
            }
        }
        println!("ready after {fastest:?}");
        assert!(fastest < Duration::from_secs(1), "{fastest:?}");
        for number in 0..200 {
            let volume: PodVolume = pods.volume(&format!("pod-{number}")).clone();
            assert!(mount_at(&volume.target).is_some());
        }
        // Each port has what it is for: a NetworkPolicy opens one of them.
        for (address, found) in [
            ("127.0.0.1:9809/metrics", true),
            ("127.0.0.1:9809/readyz", false),
            ("127.0.0.1:9808/metrics", false),
        ] {
            let answer = client.get(format!("http://{address}")).send().await.expect(address);
            assert_eq!(answer.status().is_success(), found, "{address}");
        }
    });
}

#[test]
fn it_gives_up_what_it_does_not_need() {
    // `linux/capability.h`: CHOWN, DAC_OVERRIDE, FOWNER, SYS_CHROOT, SYS_ADMIN.
    let needed: u64 = [0, 1, 3, 18, 21].into_iter().map(|bit| 1 << bit).sum();
    isolated(async {
        let (registry, node) = start().await;
        let own = status(Path::new("/proc/self")).expect("this process");
        assert!(number(&own, "CapEff").count_ones() > needed.count_ones(), "this test needs all of root's");
        // Work of all kinds has been done, so all kinds of threads are there.
        let mut pods = Pods::new(&node.kubelet);
        for (pod, reference) in [("one", "model:v1"), ("two", "image:v1")] {
            pods.add(pod, &registry.reference(reference));
            pods.sync(pod).await.expect("mounted");
        }
        let tasks = std::fs::read_dir(format!("/proc/{}/task", node.pid())).expect("it runs");
        let mut threads = 0;
        for task in tasks {
            let path = task.expect("a thread").path();
            let Some(status) = status(&path) else { continue };
            let sets = ["CapEff", "CapPrm", "CapBnd", "CapInh", "CapAmb", "NoNewPrivs"];
            let found = sets.map(|name| number(&status, name));
            assert_eq!(found, [needed, needed, needed, 0, 0, 1], "{}", path.display());
            threads += 1;
        }
        assert!(threads > 2, "{threads} threads");
        for pod in ["one", "two"] {
            pods.remove(pod).await.expect("unmounted");
        }
    });
}

/// The lines of `status` of a process or thread, by name; nothing when it has ended.
fn status(path: &Path) -> Option<BTreeMap<String, String>> {
    let text = std::fs::read_to_string(path.join("status")).ok()?;
    let lines = text.lines().filter_map(|line| line.split_once(':'));
    Some(lines.map(|(name, value)| (name.to_owned(), value.trim().to_owned())).collect())
}

fn number(status: &BTreeMap<String, String>, name: &str) -> u64 {
    u64::from_str_radix(&status[name], 16).expect("a hexadecimal number")
}

#[test]
fn without_propagation_it_does_not_start() {
    isolated(async {
        let mut node = Node::prepare(&[]);
        // As on a node whose mounts are private.
        let none: Option<&str> = None;
        nix::mount::mount(none, "/var/lib", none, nix::mount::MsFlags::MS_PRIVATE, none).expect("private");
        node.launch();
        assert!(!node.wait().await, "it started");
        let logged = node.logged();
        assert!(logged.contains("Bidirectional") && logged.contains("/var/lib/kubelet/pods"), "{logged}");
    });
}
