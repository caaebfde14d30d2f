//! Cached models are in memory before their pods read them.

use std::fs::File;
use std::path::Path;

use ocivol::demo::kubelet::{Pod, PodVolume};
use ocivol::demo::push::Layer;
use ocivol::warm::resident::resident;
use rustix::fs::{Advice, fadvise};

use crate::support::disk::{Disk, FileSystem};
use crate::support::{Node, Scripted, eventually, isolated, noise};

const MIB: usize = 1 << 20;
/// Bytes of the weights of each model.
const WEIGHTS: usize = 24 * MIB;
/// What else the model has.
const CONFIG: &str = "{}";

/// A model of one file with weights and a configuration, `m<seed>:v1`; returns its reference.
async fn push_model(registry: &Scripted, seed: u64) -> String {
    let layers = [
        Layer::model_file("weight", "model.safetensors", noise(seed, WEIGHTS)),
        Layer::model_file("weight.config", "config.json", CONFIG),
    ];
    registry.pusher(&format!("m{seed}")).model("v1", &layers).await.expect("pushed");
    registry.reference(&format!("m{seed}:v1"))
}

/// A node with a disk of its own, whose plugin runs with `flags`, and a registry.
async fn start(flags: &[&str]) -> (Scripted, Node, Disk) {
    let registry = Scripted::start().await;
    let host = registry.host();
    let mut all = vec!["--plain-http", host.as_str()];
    all.extend_from_slice(flags);
    let mut node = Node::prepare(&all);
    let disk = Disk::for_store(&node, FileSystem::Ext4, 512);
    node.run().await;
    (registry, node, disk)
}

/// Publishes a volume of a pod in `namespace`, with the attribute `warm`.
async fn publish(node: &Node, namespace: &str, pod: &str, reference: &str, warm: &str) -> PodVolume {
    let pod = Pod::new(namespace, pod);
    let volume = node.volume_of(&pod, "model");
    let attributes: &[(&str, &str)] = if warm.is_empty() { &[] } else { &[("warm", warm)] };
    node.publish(&volume, reference, attributes).await.expect("published");
    volume
}

/// Pulls `reference` for a pod that is then gone, and makes the kernel drop what it has of it.
async fn cache_and_forget(node: &Node, disk: &Disk, namespace: &str, reference: &str) {
    let volume = publish(node, namespace, "first", reference, "never").await;
    disk.sync();
    for entry in std::fs::read_dir(&volume.target).expect("mounted") {
        let file = File::open(entry.expect("an entry").path()).expect("a file");
        fadvise(&file, 0, None, Advice::DontNeed).expect("dropped");
    }
    assert_eq!(in_memory(&volume.target), 0);
    node.kubelet.unpublish(&volume).await.expect("unpublished");
}

/// Bytes of the weights that are in memory.
fn in_memory(target: &Path) -> u64 {
    let file = File::open(target.join("model.safetensors")).expect("weights");
    resident(&file, 0..WEIGHTS as u64).expect("counted")
}

#[test]
fn a_cached_model_is_read_into_memory_after_its_publish() {
    isolated(async {
        let (registry, node, disk) = start(&[]).await;
        let references = [push_model(&registry, 1).await, push_model(&registry, 2).await];
        for reference in &references {
            cache_and_forget(&node, &disk, "shop", reference).await;
        }
        let never = publish(&node, "shop", "never", &references[0], "never").await;
        let asked = registry.requests().len();
        let auto = publish(&node, "shop", "auto", &references[1], "").await;
        assert_eq!(registry.requests().len(), asked, "it comes from the disk");
        eventually("the weights are in memory", || in_memory(&auto.target) == WEIGHTS as u64).await;
        eventually("it is told", || node.logged().contains("all is in memory")).await;
        assert_eq!(in_memory(&never.target), 0, "nobody asked for these");
        let config = File::open(auto.target.join("config.json")).expect("a file");
        assert!(resident(&config, 0..CONFIG.len() as u64).expect("counted") > 0);
    });
}

#[test]
fn an_operator_who_wants_nothing_warmed_gets_that() {
    isolated(async {
        let (registry, node, disk) = start(&["--warm-budget", "0"]).await;
        let reference = push_model(&registry, 1).await;
        cache_and_forget(&node, &disk, "shop", &reference).await;
        let volume = publish(&node, "shop", "auto", &reference, "pinned").await;
        // A thread that warms is started by the publish, and would do this in a tenth of the time that others take.
        for round in 0..20 {
            let other = publish(&node, "shop", &format!("pod-{round}"), &reference, "").await;
            node.kubelet.unpublish(&other).await.expect("unpublished");
            assert!(!threads(&node).contains(&"warm".to_owned()), "round {round}");
        }
        assert_eq!(in_memory(&volume.target), 0);
    });
}

#[test]
fn a_namespaces_share_is_what_others_leave_to_it() {
    isolated(async {
        let budget = (WEIGHTS + 8 * MIB).to_string();
        let (registry, node, disk) = start(&["--warm-budget", &budget]).await;
        let (one, two) = (push_model(&registry, 1).await, push_model(&registry, 2).await);
        cache_and_forget(&node, &disk, "shop", &one).await;
        cache_and_forget(&node, &disk, "bank", &two).await;
        let first = publish(&node, "shop", "a", &one, "").await;
        eventually("all of the first", || in_memory(&first.target) == WEIGHTS as u64).await;
        let second = publish(&node, "bank", "b", &two, "").await;
        eventually("the share is used up", || node.logged().contains("share of warm.budget is used up"))
            .await;
        let (share, warmed) = ((WEIGHTS + 8 * MIB) as u64 / 2, in_memory(&second.target));
        assert!(warmed > 0 && warmed <= share, "{warmed} of {share}");
    });
}

#[test]
fn pinned_volumes_are_locked_in_memory_until_they_are_unpublished() {
    isolated(async {
        let budget = (3 * WEIGHTS).to_string();
        let (registry, mut node, disk) = start(&["--warm-pin-budget", &budget]).await;
        let (one, two) = (push_model(&registry, 1).await, push_model(&registry, 2).await);
        cache_and_forget(&node, &disk, "shop", &one).await;
        cache_and_forget(&node, &disk, "shop", &two).await;
        let first = publish(&node, "shop", "a", &one, "pinned").await;
        eventually("it is locked", || locked(&node) >= WEIGHTS as u64).await;
        // A namespace leaves as much to others as it takes.
        let second = publish(&node, "shop", "b", &two, "pinned").await;
        eventually("both were warmed", || node.logged().matches("all is in memory").count() == 2).await;
        assert!(node.logged().contains("warm.pinBudget has no room for more"), "{}", node.logged());
        assert!(locked(&node) < 2 * WEIGHTS as u64);
        drop_all(&first.target);
        drop_all(&second.target);
        assert_eq!(in_memory(&first.target), WEIGHTS as u64, "it cannot be dropped");
        assert!(in_memory(&second.target) < WEIGHTS as u64, "it can");
        // The lock is the process's: the next one locks it again.
        node.stop().await;
        node.run().await;
        eventually("it is locked again", || locked(&node) >= WEIGHTS as u64).await;
        node.kubelet.unpublish(&first).await.expect("unpublished");
        node.kubelet.unpublish(&second).await.expect("unpublished");
        eventually("nothing is locked", || locked(&node) == 0).await;
    });
}

#[test]
fn without_memory_for_it_pinned_is_auto() {
    isolated(async {
        let (registry, node, disk) = start(&[]).await;
        let reference = push_model(&registry, 1).await;
        cache_and_forget(&node, &disk, "shop", &reference).await;
        let volume = publish(&node, "shop", "a", &reference, "pinned").await;
        eventually("it is in memory", || in_memory(&volume.target) == WEIGHTS as u64).await;
        assert!(node.logged().contains("warm: pinned is taken as auto"), "{}", node.logged());
        assert_eq!(locked(&node), 0);
    });
}

#[test]
fn a_volume_that_is_being_warmed_goes_like_any_other() {
    isolated(async {
        let (registry, node, disk) = start(&[]).await;
        let reference = push_model(&registry, 1).await;
        cache_and_forget(&node, &disk, "shop", &reference).await;
        for round in 0..20 {
            let volume = publish(&node, "shop", &format!("pod-{round}"), &reference, "").await;
            drop_all(&volume.target);
            node.kubelet.unpublish(&volume).await.expect("unpublished");
            assert!(!volume.target.exists(), "round {round}");
        }
        eventually("the thread ends", || !threads(&node).contains(&"warm".to_owned())).await;
    });
}

/// Bytes that the plugin has locked.
fn locked(node: &Node) -> u64 {
    node.memory("VmLck")
}

/// Asks the kernel to drop the weights.
fn drop_all(target: &Path) {
    let file = File::open(target.join("model.safetensors")).expect("weights");
    fadvise(&file, 0, None, Advice::DontNeed).expect("asked");
}

/// The names of the plugin's threads.
fn threads(node: &Node) -> Vec<String> {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", node.pid())).expect("it runs");
    let name = |task: std::io::Result<std::fs::DirEntry>| {
        // It may have ended.
        std::fs::read_to_string(task.ok()?.path().join("comm")).ok().map(|name| name.trim().to_owned())
    };
    tasks.filter_map(name).collect()
}
