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
/// Reads everything, and says when it began and when it ended.
const ENGINE: &str = "cut -d' ' -f1 /proc/uptime; \
                      busybox find /m -type f -exec cat {} + > /dev/null && cut -d' ' -f1 /proc/uptime";

/// A way to have the model in a pod.
struct Way {
    name: &'static str,
    repository: &'static str,
    by: By,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum By {
    /// There is none: what kubelet and the runtime need for a pod.
    Nobody,
    /// By ocivol, which has it already.
    OcivolAgain,
    Ocivol,
    ImageVolume,
}

const WAYS: [Way; 7] = [
    Way { name: "a pod without a model", repository: "", by: By::Nobody },
    Way { name: "ocivol, the node has it already", repository: "peers/model", by: By::OcivolAgain },
    Way { name: "ocivol, files as they are", repository: "peers/model", by: By::Ocivol },
    Way { name: "ocivol, image with a tar", repository: "peers/tar", by: By::Ocivol },
    Way { name: "image volume, the same", repository: "peers/tar", by: By::ImageVolume },
    Way { name: "ocivol, image with a tar, gzip", repository: "peers/gzip", by: By::Ocivol },
    Way { name: "image volume, the same", repository: "peers/gzip", by: By::ImageVolume },
];

/// Seconds of one pod.
#[derive(Debug, Clone, Copy)]
struct Took {
    /// From its creation until all is read.
    whole: f64,
    /// From its creation until its container runs.
    start: f64,
    /// Of that, the call to ocivol.
    publish: f64,
    /// Until all is read, from then on.
    reading: f64,
}

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
    println!(
        "\n{size:.2} GB, from the creation of the pod until its container has read all, in seconds; medians of {ROUNDS}:\n"
    );
    println!(
        "| | all | least and most | until its container runs | of it the publish | reading |\n|---|---|---|---|---|---|"
    );
    for (way, took) in WAYS.iter().zip(took) {
        let sorted = |part: fn(&Took) -> f64| {
            let mut all: Vec<f64> = took.iter().map(part).collect();
            all.sort_by(f64::total_cmp);
            all
        };
        let median = |part| sorted(part)[ROUNDS / 2];
        let whole = sorted(|took| took.whole);
        let publish = match way.by {
            By::Nobody | By::ImageVolume => String::new(),
            By::OcivolAgain | By::Ocivol => format!("{:.2}", median(|took| took.publish)),
        };
        println!(
            "| {} | {:.2} | {:.2}–{:.2} | {:.2} | {publish} | {:.2} |",
            way.name,
            whole[ROUNDS / 2],
            whole[0],
            whole[ROUNDS - 1],
            median(|took| took.start),
            median(|took| took.reading),
        );
    }
    std::process::ExitCode::SUCCESS
}

/// What one pod took. Afterwards the node has nothing of the model any more.
async fn measured(node: &Node, pods: &Pods, way: &Way, round: usize) -> Took {
    let reference = format!("{REGISTRY}/{}:v1", way.repository);
    let volume = || match way.by {
        By::Nobody => json!({"name": "model", "emptyDir": {}}),
        By::OcivolAgain | By::Ocivol => inline(&reference),
        By::ImageVolume => image_volume(&reference),
    };
    if way.by == By::OcivolAgain {
        pods.outcome(pod("before", volume(), &job("true"))).await;
    }
    let sent = || fetched(way.repository).values().sum::<u64>();
    let before = sent();
    let began = uptime();
    let (status, printed) = pods.outcome(pod("engine", volume(), &job(ENGINE))).await;
    assert_eq!(status, 0, "{printed}");
    let times: Vec<f64> = printed.lines().map(|line| line.parse().expect("a time")).collect();
    let mut took =
        Took { whole: times[1] - began, start: times[0] - began, publish: 0.0, reading: times[1] - times[0] };
    println!("{:>7.2} s  {}, round {}", took.whole, way.name, round + 1);
    let came = sent() - before;
    match way.by {
        By::Nobody | By::ImageVolume => {}
        By::OcivolAgain => assert!(came < FILE as u64, "{came} bytes came once more"),
        By::Ocivol => assert!(came > (FILE * FILES / 2) as u64, "it was there already"),
    }
    if let By::OcivolAgain | By::Ocivol = way.by {
        took.publish = last_publish(node);
    }
    pods.clear().await;
    match way.by {
        By::Nobody => {}
        By::ImageVolume => remove_image(&reference),
        By::OcivolAgain | By::Ocivol => {
            for what in [&["rm", reference.as_str()][..], &["gc"]] {
                let command = ["-n", "ocivol", "exec", "ds/ocivol", "--", "/ocivol"];
                node.kubectl(&[&command[..], what].concat());
            }
        }
    }
    rustix::fs::sync();
    took
}

/// Seconds of the last publish, as the plugin logs them.
fn last_publish(node: &Node) -> f64 {
    let log = node.kubectl(&["-n", "ocivol", "logs", "ds/ocivol", "--tail=200"]);
    let calls = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let mut publishes =
        calls.filter(|call| call["method"] == "/csi.v1.Node/NodePublishVolume" && call["code"] == "OK");
    publishes.next_back().and_then(|call| call["seconds"].as_f64()).expect("a publish")
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
