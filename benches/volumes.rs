//! What one more volume costs on a node that has many: publish, publish again, stats and unpublish, over the plugin's own socket, and the
//! memory that the plugin takes meanwhile.
//!
//! `make bench` runs it, as root. With `BASELINE`, the path of another ocivol, that one is measured as well. `VOLUMES` (`10 100 1000`) says
//! how many there are.

#![allow(clippy::print_stdout)]

#[path = "../tests/support/mod.rs"]
#[allow(dead_code, unused_imports)]
mod support;

use std::time::{Duration, Instant};

use nix::mount::{MsFlags, mount, umount};
use ocivol::demo::kubelet::PodVolume;
use support::namespace::separate_mounts;
use support::node::BINARY;
use support::{Node, Scripted};

/// Volumes that are measured, one after the other.
const MEASURED: usize = 100;
/// What is measured of each: publish, publish again, stats, unpublish.
type Costs = [Vec<Duration>; 4];

fn main() {
    separate_mounts();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.expect("a runtime");
    let volumes = std::env::var("VOLUMES").unwrap_or_else(|_| "10 100 1000".to_owned());
    let volumes: Vec<usize> =
        volumes.split_whitespace().map(|text| text.parse().expect("a number")).collect();
    println!(
        "Milliseconds of a call, median and 95th percentile of {MEASURED}, with so many volumes published:\n"
    );
    println!("| ocivol | volumes | publish | again | stats | unpublish | memory, MB | without its code |");
    println!("|---|---|---|---|---|---|---|---|");
    let baseline = std::env::var_os("BASELINE");
    if let Some(other) = &baseline {
        let none: Option<&str> = None;
        mount(Some(other.as_os_str()), BINARY, none, MsFlags::MS_BIND, none).expect("the other ocivol");
        runtime.block_on(measure("baseline", &volumes));
        umount(BINARY).expect("unmounted");
    }
    runtime.block_on(measure("this", &volumes));
}

async fn measure(name: &str, volumes: &[usize]) {
    let registry = Scripted::with_model("content").await;
    let reference = registry.reference("m:v1");
    let node = Node::start(&["--plain-http", &registry.host()]).await;
    let mut published: Vec<PodVolume> = Vec::new();
    println!("| {name} | 0 | | | | | {} |", memory(&node));
    for count in volumes {
        for number in published.len()..*count {
            let volume = node.volume(&format!("pod-{number}"));
            node.publish(&volume, &reference, &[]).await.expect("published");
            published.push(volume);
        }
        let mut costs = Costs::default();
        for number in 0..MEASURED {
            let volume = node.volume(&format!("measured-{number}"));
            let began = Instant::now();
            node.publish(&volume, &reference, &[]).await.expect("published");
            costs[0].push(began.elapsed());
            let began = Instant::now();
            node.publish(&volume, &reference, &[]).await.expect("published");
            costs[1].push(began.elapsed());
            let began = Instant::now();
            node.kubelet.stats(&volume).await.expect("measured");
            costs[2].push(began.elapsed());
            let began = Instant::now();
            node.kubelet.unpublish(&volume).await.expect("unpublished");
            costs[3].push(began.elapsed());
        }
        let costs = costs.map(|mut all| {
            all.sort();
            let at = |part: usize| all[all.len() * part / 100].as_secs_f64() * 1e3;
            format!("{:.2} ({:.2})", at(50), at(95))
        });
        println!("| {name} | {count} | {} | {} |", costs.join(" | "), memory(&node));
    }
    for volume in &published {
        node.kubelet.unpublish(volume).await.expect("unpublished");
    }
}

/// What is resident, and how much of it is not the program's file, which the page cache has anyway.
fn memory(node: &Node) -> String {
    ["VmRSS", "RssAnon"].map(|key| format!("{:.1}", node.memory(key) as f64 / 1e6)).join(" | ")
}
