//! How long a pod waits for a model that its node does not have, as a volume of ocivol and as an image volume of containerd: from when it
//! is created until its container has read all of it. On one node, from one registry, one after the other.

use std::fs;
use std::process::Command;

use ocivol::demo::push::{Layer, Pusher};
use ocivol::demo::tarball::{Tarball, gzip};
use ocivol::oci::digest::Digest;
use serde_json::{Value, json};

use crate::cluster::Pods;
use crate::machine::target;
use crate::node::{Node, run};
use crate::noise::noise;
use crate::pod::{inline, job, pod};
use crate::registry::{REGISTRY, fetched, push_ocivol};

/// Files of the model, and bytes of each.
const FILES: usize = 4;
const FILE: usize = 512 << 20;
/// Each way is measured so often, in turn.
const ROUNDS: usize = 3;
/// Reads everything, and says when that was.
const ENGINE: &str = "busybox find /m -type f -exec cat {} + > /dev/null && cut -d' ' -f1 /proc/uptime";

/// A way to have the model in a pod.
struct Way {
    name: &'static str,
    repository: &'static str,
    volume: fn(&str) -> Value,
    is_ours: bool,
}

const WAYS: [Way; 5] = [
    Way { name: "ocivol, files as they are", repository: "peers/model", volume: inline, is_ours: true },
    Way { name: "ocivol, image with a tar", repository: "peers/tar", volume: inline, is_ours: true },
    Way { name: "image volume, the same", repository: "peers/tar", volume: image_volume, is_ours: false },
    Way { name: "ocivol, image with a tar, gzip", repository: "peers/gzip", volume: inline, is_ours: true },
    Way { name: "image volume, the same", repository: "peers/gzip", volume: image_volume, is_ours: false },
];

/// Starts a node with ocivol, measures, and prints a table.
pub async fn measure() -> std::process::ExitCode {
    let node = Node::start().await;
    push_ocivol("0.1.0", |_| {}).await;
    node.install(&[]).await;
    push_models().await;
    let pods = node.cluster.namespace("peers", json!({})).await;
    // Its image is not what is measured.
    pods.outcome(pod("first", json!({"name": "model", "emptyDir": {}}), &job("true"))).await;
    pods.clear().await;
    let mut took = WAYS.map(|_| Vec::new());
    for round in 0..ROUNDS {
        for (way, took) in WAYS.iter().zip(&mut took) {
            took.push(measured(&node, &pods, way, round).await);
        }
    }
    let size = (FILES * FILE) as f64 / 1e9;
    println!("\n{size:.2} GB, from the creation of the pod until its container has read all, in seconds:\n");
    println!("| | median | least and most |\n|---|---|---|");
    for (way, mut took) in WAYS.iter().zip(took) {
        took.sort_by(f64::total_cmp);
        println!("| {} | {:.2} | {:.2}–{:.2} |", way.name, took[ROUNDS / 2], took[0], took[ROUNDS - 1]);
    }
    std::process::ExitCode::SUCCESS
}

/// Seconds of one pod. Afterwards the node has nothing of the model any more.
async fn measured(node: &Node, pods: &Pods, way: &Way, round: usize) -> f64 {
    let reference = format!("{REGISTRY}/{}:v1", way.repository);
    let sent = || fetched(way.repository).values().sum::<u64>();
    let before = sent();
    let began = uptime();
    let (status, printed) = pods.outcome(pod("engine", (way.volume)(&reference), &job(ENGINE))).await;
    assert_eq!(status, 0, "{printed}");
    let took = printed.trim().parse::<f64>().expect("a time") - began;
    println!("{:>7.2} s  {}, round {}", took, way.name, round + 1);
    pods.clear().await;
    if way.is_ours {
        assert!(sent() - before > (FILE * FILES / 2) as u64, "it was there already");
        for what in [&["rm", reference.as_str()][..], &["gc"]] {
            let command = ["-n", "ocivol", "exec", "ds/ocivol", "--", "/ocivol"];
            node.kubectl(&[&command[..], what].concat());
        }
    } else {
        remove_image(&reference);
    }
    rustix::fs::sync();
    took
}

/// Removes an image under all of its names, of which kubelet's runtime has three, and waits until its content is gone.
fn remove_image(reference: &str) {
    let images = |arguments: &[&str]| {
        let mut command = Command::new(target().join("tools/runtime/ctr"));
        command.env("CONTAINERD_ADDRESS", crate::node::CONTAINERD_SOCKET);
        run(command.args(["--namespace", "k8s.io", "images"]).args(arguments))
    };
    let listed = images(&["ls"]);
    let rows: Vec<Vec<&str>> = listed.lines().map(|line| line.split_whitespace().collect()).collect();
    let digest = rows.iter().find(|row| row[0] == reference).expect("an image")[2];
    let names = rows.iter().filter(|row| row.get(2) == Some(&digest)).map(|row| row[0]);
    images(&["rm", "--sync"].into_iter().chain(names).collect::<Vec<_>>());
}

fn image_volume(reference: &str) -> Value {
    json!({"name": "model", "image": {"reference": reference, "pullPolicy": "Always"}})
}

fn uptime() -> f64 {
    let text = fs::read_to_string("/proc/uptime").expect("/proc");
    text.split(' ').next().and_then(|seconds| seconds.parse().ok()).expect("seconds")
}

/// Weights of bfloat16, of which gzip makes a seventh less: as files, and in a tar of an image.
async fn push_models() {
    let files: Vec<Vec<u8>> = (0..FILES)
        .map(|number| {
            let mut content = noise(number as u64 + 1, FILE);
            content.iter_mut().skip(1).step_by(2).for_each(|high| *high = 0x38 | (*high & 0x87));
            content
        })
        .collect();
    let name = |number: usize| format!("model-{number:05}.safetensors");
    let weights = files.iter().enumerate();
    let layers: Vec<Layer> =
        weights.map(|(number, file)| Layer::model_file("weight", &name(number), file.clone())).collect();
    Pusher::new(REGISTRY, "peers/model").model("v1", &layers).await.expect("pushed");
    drop(layers);
    let weights = files.iter().enumerate();
    let tar = weights.fold(Tarball::new(), |tar, (number, file)| tar.file(name(number), file)).finish();
    drop(files);
    let diff_id = Digest::sha256(&tar).to_string();
    let compressed = Layer::archive(gzip(&tar).expect("memory"));
    for (repository, layer) in [("peers/tar", Layer::archive(tar)), ("peers/gzip", compressed)] {
        let config = json!({
            "architecture": "amd64", "os": "linux", "config": {},
            "rootfs": {"type": "layers", "diff_ids": [diff_id]},
        });
        let config_type = "application/vnd.oci.image.config.v1+json";
        let pusher = Pusher::new(REGISTRY, repository);
        pusher.artifact("v1", "", config_type, &config.to_string(), &[layer]).await.expect("pushed");
    }
}
