//! Containers that try to write.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use ocivol::demo::push::{Layer, Pusher};
use ocivol::oci::digest::Digest;
use serde_json::{Value, json};

use super::Shared;
use super::inline::target_of;
use super::messages::assert_quoted;
use crate::pod::{claim, inline, inline_with, job, merge, pod, script};
use crate::registry::{REGISTRY, push_model};

pub async fn an_inline_volume_that_is_not_read_only_is_refused(node: Shared) {
    let pods = node.lock().await.cluster.namespace("refused", json!({})).await;
    let model = push_model("refused/model", "v1", vec![3; 4096]).await;
    for (name, read_only) in [("absent", Value::Null), ("false", json!(false))] {
        let mut volume = inline(&model);
        volume["csi"]["readOnly"] = read_only;
        // Also when the container promises not to write.
        let changes = json!({"containers": [{"volumeMounts": [{"readOnly": true}]}]});
        pods.create(pod(name, volume, &changes)).await;
        let message = pods.event(name, "readOnly").await;
        assert!(message.contains("code = InvalidArgument"), "{message}");
        assert_quoted(name, message.split(" desc = ").nth(1).unwrap_or_else(|| panic!("{message}")));
    }
    pods.clear().await;
}

/// A pod that tries in an init container, through a second mount, and through a sub-path.
fn tries(security: &Value) -> Value {
    let mut changes = job("attempts /m; attempts /again; attempts /sub model.safetensors; true");
    merge(
        &mut changes,
        &json!({
            "initContainers": [{
                "name": "early", "image": format!("{REGISTRY}/e2e/pod:v1"),
                // It fails when anything could be done.
                "command": ["attempts", "/m"],
                "volumeMounts": [{"name": "model", "mountPath": "/m"}], "securityContext": security,
            }],
            "containers": [{
                "securityContext": security,
                "volumeMounts": [
                    {"name": "model", "mountPath": "/m"},
                    {"name": "model", "mountPath": "/again"},
                    {"name": "model", "mountPath": "/sub", "subPath": "weights"},
                ],
            }],
        }),
    );
    changes
}

pub async fn every_way_to_write_works_where_it_may(node: Shared) {
    let pods = node.lock().await.cluster.namespace("control", json!({})).await;
    let mut changes = job("echo content > /m/config.json; attempts /m; true");
    merge(&mut changes, &json!({"containers": [{"securityContext": {"privileged": true}}]}));
    let memory = json!({"name": "model", "emptyDir": {"medium": "Memory"}});
    let (_, printed) = pods.outcome(pod("writable", memory, &changes)).await;
    let tried = printed.lines().find_map(|line| line.strip_prefix("attempts ")).expect("it ends");
    let done = printed.lines().filter(|line| line.ends_with(" done")).count();
    assert_eq!(done.to_string(), tried, "not all of them could ever work:\n{printed}");
    pods.clear().await;
}

/// Who tries: root with the capabilities that containers have by default, root with all of them, and the files' owner.
fn writers() -> Vec<(&'static str, Value)> {
    vec![
        ("root", json!({"runAsUser": 0})),
        (
            "admin",
            json!({"runAsUser": 0, "capabilities": {"add": ["SYS_ADMIN", "DAC_OVERRIDE", "LINUX_IMMUTABLE"]}}),
        ),
        ("privileged", json!({"privileged": true})),
        (
            "owner",
            json!({"runAsUser": 0, "capabilities": {"drop": ["ALL"]}, "allowPrivilegeEscalation": false}),
        ),
    ]
}

pub async fn no_container_can_change_an_inline_volume(node: Shared) {
    let pods = node.lock().await.cluster.namespace("writes", json!({})).await;
    let model = push_model("writes/model", "v1", vec![4; 100_000]).await;
    let witness = pods.run(pod("witness", inline(&model), &script("true"))).await;
    let before = bytes(&target_of(&witness));
    let mut unsaid = inline_with(&model, &json!({"readOnlyForWriters": "true"}));
    unsaid["csi"]["readOnly"] = Value::Null;
    for (how, volume) in [("said", inline(&model)), ("unsaid", unsaid)] {
        for (name, security) in writers() {
            let name = format!("{name}-{how}");
            let (_, printed) = pods.outcome(pod(&name, volume.clone(), &tries(&security))).await;
            assert_nothing_done(&name, &printed);
            assert_eq!(
                bytes(&target_of(&witness)),
                before,
                "{name} changed what the witness reads:\n{printed}"
            );
        }
    }
    // A pod that comes later reads what was pushed.
    let later = pods.run(pod("later", inline(&model), &script("true"))).await;
    assert_eq!(bytes(&target_of(&later)), before);
    assert_eq!(before[Path::new("weights/model.safetensors")], Digest::sha256(&vec![4; 100_000]).to_string());
    pods.clear().await;
}

pub async fn no_container_can_change_a_claim_whatever_it_says(node: Shared) {
    let cluster = node.lock().await.cluster.clone();
    let pods = cluster.namespace("claimed", json!({})).await;
    let model = push_model("claimed/model", "v1", vec![5; 100_000]).await;
    cluster.create::<PersistentVolume>(super::claims::volume("claimed", &model)).await;
    pods.create_other::<PersistentVolumeClaim>(super::claims::claim_of("claimed")).await;
    let witness = pods.run(pod("witness", claim("claimed", true), &script("true"))).await;
    let target = super::claims::target_of(&witness, "claimed");
    let before = bytes(&target);
    for read_only in [true, false] {
        for (name, security) in writers() {
            let name = format!("{name}-{read_only}");
            let (_, printed) = pods.outcome(pod(&name, claim("claimed", read_only), &tries(&security))).await;
            assert_nothing_done(&name, &printed);
            assert_eq!(bytes(&target), before, "{name} changed what the witness reads:\n{printed}");
        }
    }
    // Files of an image belong to whom its layers say, and a pod chooses its user.
    let mut archive = tar::Builder::new(Vec::new());
    for name in ["config.json", "weights/model.safetensors"] {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o644);
        header.set_uid(1000);
        header.set_size(3);
        archive.append_data(&mut header, name, &b"own"[..]).expect("an archive");
    }
    let layer = Layer::archive(archive.into_inner().expect("an archive"));
    let diff = Digest::sha256(&layer.content);
    Pusher::new(REGISTRY, "claimed/image").image("v1", &[layer], &[diff]).await.expect("pushed");
    cluster
        .create::<PersistentVolume>(super::claims::volume("owned", &format!("{REGISTRY}/claimed/image:v1")))
        .await;
    pods.create_other::<PersistentVolumeClaim>(super::claims::claim_of("owned")).await;
    let owner = json!({"runAsUser": 1000});
    let (_, printed) = pods.outcome(pod("owner-of-an-image", claim("owned", false), &tries(&owner))).await;
    assert_nothing_done("the owner of an image's files", &printed);
    pods.clear().await;
    for name in ["claimed", "owned"] {
        pods.delete_other::<PersistentVolumeClaim>(name).await;
        cluster.delete::<PersistentVolume>(name).await;
    }
}

/// Fails when one of the three runs of `attempts` could do anything, or did not try everything.
fn assert_nothing_done(who: &str, printed: &str) {
    let lines: Vec<&str> = printed.lines().collect();
    let done: Vec<&&str> = lines.iter().filter(|line| line.ends_with(" done")).collect();
    assert!(done.is_empty(), "{who} could {done:?}:\n{printed}");
    let runs: Vec<&&str> = lines.iter().filter(|line| line.starts_with("attempts ")).collect();
    assert_eq!(runs.len(), 3, "{who}:\n{printed}");
    let tried: usize = runs.iter().filter_map(|line| line.rsplit(' ').next()?.parse::<usize>().ok()).sum();
    // EPERM, EACCES, EROFS: anything else would be a broken attempt.
    let refusals = ["(os error 1)", "(os error 13)", "(os error 30)"];
    let refused = lines.iter().filter(|line| refusals.iter().any(|refusal| line.ends_with(refusal))).count();
    assert_eq!(refused, tried, "{who}:\n{printed}");
}

/// The digest of every file below `directory`.
fn bytes(directory: &Path) -> BTreeMap<PathBuf, String> {
    let mut found = BTreeMap::new();
    let mut waiting = vec![directory.to_owned()];
    while let Some(at) = waiting.pop() {
        for entry in fs::read_dir(&at).unwrap_or_else(|error| panic!("{}: {error}", at.display())).flatten() {
            if entry.file_type().is_ok_and(|it| it.is_dir()) {
                waiting.push(entry.path());
            } else {
                let content = fs::read(entry.path()).expect("a file");
                let name = entry.path().strip_prefix(directory).expect("below").to_owned();
                found.insert(name, Digest::sha256(&content).to_string());
            }
        }
    }
    found
}
