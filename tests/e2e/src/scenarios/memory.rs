//! What is in memory when an engine reads its model.

use std::fs::File;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use rustix::fs::{Advice, fadvise};
use serde_json::json;

use super::Shared;
use super::inline::target_of;
use crate::cluster::eventually;
use crate::node::run;
use crate::pod::{inline_with, pod, script};
use crate::registry::push_model;

const GIB: usize = 2;

/// An engine: it does nothing for two seconds, and then reads all of its weights. It says how long that took.
const ENGINE: &str = "sleep 2; cut -d' ' -f1 /proc/uptime; cat /m/weights/model.safetensors > /dev/null; \
                      cut -d' ' -f1 /proc/uptime; echo read";

pub async fn a_cached_model_is_read_into_memory_while_its_engine_starts(node: Shared) {
    let pods = node.lock().await.cluster.namespace("warmed", json!({})).await;
    let model = push_model("warmed/model", "v1", vec![9; GIB << 30]).await;
    // It has the model mounted, and never reads it.
    let first = pods.run(pod("first", inline_with(&model, &json!({"warm": "never"})), &script("true"))).await;
    let file = target_of(&first).join("weights/model.safetensors");
    for warm in ["never", "auto"] {
        drop_from_memory(&file);
        let began = Instant::now();
        pods.run(pod(warm, inline_with(&model, &json!({"warm": warm})), &script(ENGINE))).await;
        let printed = pods.printed(warm, "read").await;
        let whole = began.elapsed().as_secs_f64();
        let times: Vec<f64> = printed.lines().filter_map(|line| line.parse().ok()).collect();
        println!(
            "            warm: {warm}: {GIB} GiB were read {whole:.2} s after the pod was created, in {:.2} s",
            times[1] - times[0]
        );
    }
    // Without anybody who reads it.
    drop_from_memory(&file);
    pods.run(pod("waits", inline_with(&model, &json!({})), &script("true"))).await;
    eventually("all of the model in memory", || async { (resident(&file) >= 0.99).then_some(()) }).await;
    pods.clear().await;
    // It is an eighth of the disk, which others fill with care.
    node.lock().await.kubectl(&["-n", "ocivol", "exec", "ds/ocivol", "--", "/ocivol", "rm", &model]);
}

fn drop_from_memory(file: &Path) {
    let opened = File::open(file).expect("weights");
    opened.sync_all().expect("on the disk");
    fadvise(&opened, 0, None, Advice::DontNeed).expect("dropped");
    let resident = resident(file);
    assert!(resident < 0.01, "{resident}");
}

/// The part of `file` that is in memory.
fn resident(file: &Path) -> f64 {
    let cached = run(Command::new("fincore").args(["--bytes", "--noheadings", "--output", "RES"]).arg(file));
    let size = file.metadata().expect("weights").len();
    cached.trim().parse::<f64>().expect("a number") / size as f64
}
