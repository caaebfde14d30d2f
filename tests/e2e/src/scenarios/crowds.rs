//! Many pods at once.

use std::fs::{self, File};

use serde_json::json;

use super::Shared;
use super::restarts::run_many;
use crate::cluster::eventually;
use crate::node::log_of;
use crate::pod::{inline, merge, pod, script};
use crate::registry::{fetched, push_model};

pub async fn sixty_pods_at_once_share_every_download(node: Shared) {
    let node = node.lock().await;
    let pods = node.cluster.namespace("crowd", json!({})).await;
    let size = 8 << 20;
    let mut references = Vec::new();
    for number in 0..12_u8 {
        references.push(push_model(&format!("crowd/model-{number}"), "v1", vec![number; size]).await);
    }
    run_many(&pods, 60, &references).await;
    let weights: Vec<u64> = fetched("crowd/").into_values().filter(|bytes| *bytes >= size as u64).collect();
    assert_eq!(weights, vec![size as u64; 12], "a blob was fetched more than once, or in part");
    pods.clear().await;
}

/// Hundredths of the node's disk that are used, as kubelet counts it.
fn used() -> u64 {
    let found = rustix::fs::statvfs("/var/lib").expect("a disk");
    100 - found.f_bavail * 100 / found.f_blocks
}

/// Makes a file so large that so many hundredths of the disk are used.
fn fill(path: &str, percent: u64) {
    let found = rustix::fs::statvfs("/var/lib").expect("a disk");
    let left = found.f_blocks * found.f_frsize * (100 - percent) / 100;
    let length = (found.f_bavail * found.f_frsize).saturating_sub(left).max(1);
    let file = File::create(path).expect("a file");
    rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, length).expect("room");
}

/// kubelet has its default thresholds here, and ocivol its default watermark. What was used ten minutes ago may go; the pods of this
/// scenario do not take so long, so it is some seconds.
pub async fn a_node_at_its_watermark_runs_pod_after_pod_without_disk_pressure(node: Shared) {
    const PODS: usize = 30;
    const REFERENCES: usize = 60;
    let node = node.lock().await;
    node.install(&["store.gcMinAge=5"]).await;
    let pods = node.cluster.namespace("watermark", json!({})).await;
    let mut references = Vec::new();
    for number in 0..REFERENCES {
        let weights = vec![u8::try_from(number).expect("few") + 100; 32 << 20];
        references.push(push_model(&format!("watermark/model-{number}"), "v1", weights).await);
    }
    // Something else takes what is free, up to the watermark; what earlier pods have left goes, and it takes that, too.
    fill("/var/lib/ballast-1", 81);
    eventually("what is unused is collected", || async { (used() < 80).then_some(()) }).await;
    fill("/var/lib/ballast-2", 76);
    let before = used();
    assert!((75..=77).contains(&before), "{before} % used");

    run_many(&pods, PODS, &references).await;
    let mut most = used();
    for (number, reference) in references.iter().enumerate().skip(PODS) {
        pods.delete(&format!("pod-{}", number - PODS)).await;
        let name = format!("pod-{number}");
        let mut changes = script("true");
        merge(&mut changes, &json!({"hostNetwork": true}));
        pods.create(pod(&name, inline(reference), &changes)).await;
        pods.running(&name).await;
        most = most.max(used());
    }
    println!("            {before} % of the disk were used before, {most} % at most");
    // The pods that run have six hundredths of it.
    assert!((80..86).contains(&most), "{most} % used");
    let log = fs::read_to_string(log_of("kubelet")).expect("a log");
    for word in ["DiskPressure", "attempting to reclaim"] {
        let line = log.lines().find(|line| line.contains(word) && !line.contains("NodeHasNoDiskPressure"));
        assert!(line.is_none(), "{line:?}");
    }
    assert!(!node.cluster.has_condition("DiskPressure").await);
    pods.clear().await;
    for number in 1..=2 {
        fs::remove_file(format!("/var/lib/ballast-{number}")).expect("removed");
    }
    node.install(&[]).await;
}
