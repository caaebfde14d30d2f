//! Whole-process comparison: a model of raw layers from a registry on this machine to files on this disk.
//!
//! `make bench` runs it and the README quotes its table. Every tool starts with nothing, in turns, and the order
//! changes each round; the medians are compared. Two times count: until the tool returns, and until a `sync`
//! after it returns, because some tools wait for the disk and some do not.

#![allow(clippy::print_stdout, clippy::print_stderr, clippy::cast_possible_truncation)]

#[path = "../tests/support/mod.rs"]
#[allow(dead_code, unused_imports)]
mod support;

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::resource::{UsageWho, getrusage};
use ocivol::demo::push::Layer;
use ocivol::oci::Digest;
use support::debian_registry::DebianRegistry;
use support::noise;

/// Weight files, and bytes of each.
const WEIGHTS: usize = 4;
const WEIGHT_SIZE: usize = 512 * 1024 * 1024;

/// One tool: its name, and how it gets the model into a directory.
struct Tool {
    name: &'static str,
    /// A shell script; `$DIR` is an empty directory.
    script: String,
}

#[derive(Clone, Copy)]
struct Measured {
    wall: Duration,
    synced: Duration,
    cpu: Duration,
}

fn main() {
    let rounds: usize = std::env::var("ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(5);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    let (registry, digests) = runtime.block_on(prepare());
    let base = tempfile::Builder::new().prefix("ocivol-bench-").tempdir().expect("a directory");
    let tools = tools(&registry.host(), &digests);
    let mut results: Vec<Vec<Measured>> = vec![Vec::new(); tools.len()];
    for round in 0..rounds {
        for turn in 0..tools.len() {
            let number = (round + turn) % tools.len();
            let measured = measure(&tools[number], &base.path().join("run"));
            results[number].push(measured);
            eprintln!("round {round}: {}: {:.2} s", tools[number].name, measured.wall.as_secs_f64());
        }
    }
    print_table(&tools, &results);
}

async fn prepare() -> (DebianRegistry, Vec<Digest>) {
    let registry = DebianRegistry::start().await;
    let mut layers: Vec<Layer> = (0..WEIGHTS)
        .map(|number| {
            let path = format!("model-{:05}-of-{WEIGHTS:05}.safetensors", number + 1);
            Layer::model_file("weight", &path, noise(number as u64 + 1, WEIGHT_SIZE))
        })
        .collect();
    layers.push(Layer::model_file("weight.config", "config.json", "{}"));
    layers.push(Layer::model_file("weight.config", "tokenizer.json", noise(9, 2 << 20)));
    layers.push(Layer::model_file("doc", "README.md", "# model\n"));
    registry.pusher("model").model("v1", &layers).await.expect("pushed");
    let digests = layers.iter().map(|layer| Digest::sha256(&layer.content)).collect();
    (registry, digests)
}

fn tools(host: &str, digests: &[Digest]) -> Vec<Tool> {
    let ocivol = env!("CARGO_BIN_EXE_ocivol");
    let urls: String =
        digests.iter().map(|digest| format!("http://{host}/v2/model/blobs/{digest}\n")).collect();
    // `$0` is the URL, `${0##*:}` its digest.
    let parallel = |command: &str| format!("printf '%s' '{urls}' | xargs -P 4 -I{{}} sh -c '{command}' {{}}");
    vec![
        Tool {
            name: "ocivol pull",
            script: format!("{ocivol} pull --root $DIR --plain-http {host} {host}/model:v1"),
        },
        Tool {
            name: "curl, 4 at a time, nothing verified",
            script: parallel("curl -sf -o $DIR/${0##*:} $0"),
        },
        Tool {
            name: "curl and openssl sha256, 4 at a time",
            script: parallel("curl -sf $0 | tee $DIR/${0##*:} | openssl dgst -sha256 -r | grep -q ^${0##*:}"),
        },
        Tool {
            name: "curl and sha256sum, 4 at a time",
            script: parallel("curl -sf $0 | tee $DIR/${0##*:} | sha256sum | grep -q ^${0##*:}"),
        },
        Tool {
            name: "skopeo copy to dir:",
            script: format!("skopeo copy -q --src-tls-verify=false docker://{host}/model:v1 dir:$DIR/image"),
        },
    ]
}

fn measure(tool: &Tool, directory: &Path) -> Measured {
    let _ = fs::remove_dir_all(directory);
    fs::create_dir_all(directory).expect("a directory");
    sync();
    let before = children_cpu();
    let began = Instant::now();
    let status = Command::new("sh")
        .args(["-ec", &tool.script])
        .env("DIR", directory)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .status()
        .expect("sh starts");
    let wall = began.elapsed();
    assert!(status.success(), "{} failed: {}", tool.name, tool.script);
    let cpu = children_cpu() - before;
    sync();
    let synced = began.elapsed();
    Measured { wall, synced, cpu }
}

fn sync() {
    assert!(Command::new("sync").status().expect("sync starts").success());
}

fn children_cpu() -> Duration {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN).expect("usage");
    let time = |value: nix::sys::time::TimeVal| {
        Duration::from_micros((value.tv_sec() * 1_000_000 + value.tv_usec()).unsigned_abs())
    };
    time(usage.user_time()) + time(usage.system_time())
}

fn print_table(tools: &[Tool], results: &[Vec<Measured>]) {
    let median = |values: &[Measured], of: fn(&Measured) -> Duration| {
        let mut seconds: Vec<f64> = values.iter().map(|value| of(value).as_secs_f64()).collect();
        seconds.sort_by(f64::total_cmp);
        seconds[seconds.len() / 2]
    };
    let ours = median(&results[0], |it| it.wall);
    let ours_synced = median(&results[0], |it| it.synced);
    println!("| tool | seconds | of ocivol's | until synced | of ocivol's | CPU seconds |");
    println!("|---|---|---|---|---|---|");
    for (tool, values) in tools.iter().zip(results) {
        let (wall, synced) = (median(values, |it| it.wall), median(values, |it| it.synced));
        println!(
            "| {} | {wall:.2} | {:.1}x | {synced:.2} | {:.1}x | {:.1} |",
            tool.name,
            wall / ours,
            synced / ours_synced,
            median(values, |it| it.cpu)
        );
    }
}
