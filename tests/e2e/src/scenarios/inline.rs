//! Inline volumes in pods of every kind.

use std::path::PathBuf;
use std::process::Command;

use k8s_openapi::api::core::v1::Pod;
use ocivol::demo::push::{Layer, Pusher};
use serde_json::json;

use super::Shared;
use crate::node::run;
use crate::pod::{inline, inline_with, job, merge, pod, script};
use crate::registry::{REGISTRY, push_model};

/// Where kubelet has the volume of a pod.
pub fn target_of(pod: &Pod) -> PathBuf {
    let uid = pod.metadata.uid.as_deref().expect("a UID");
    PathBuf::from(format!("/var/lib/kubelet/pods/{uid}/volumes/kubernetes.io~csi/model/mount"))
}

/// Shows the content, and the flags of the mount in the container.
const LOOK: &str = "cat /m/config.json; echo; grep ' /m ' /proc/self/mountinfo; echo looked";

pub async fn an_inline_model_and_an_image_are_mounted_read_only(node: Shared) {
    let pods = node.lock().await.cluster.namespace("inline", json!({})).await;
    let model = push_model("inline/model", "v1", vec![7; 1 << 20]).await;
    pods.run(pod("model", inline(&model), &script(LOOK))).await;
    let printed = pods.printed("model", "looked").await;
    assert!(printed.contains(r#"{"model_type": "e2e"}"#), "{printed}");
    assert_flags(&printed, &["ro", "nosuid", "nodev", "noexec"]);

    let mut archive = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_mode(0o755);
    header.set_size(8);
    archive.append_data(&mut header, "app/run", &b"content\n"[..]).expect("an archive");
    let layer = Layer::archive(archive.into_inner().expect("an archive"));
    let diff = ocivol::oci::digest::Digest::sha256(&layer.content);
    Pusher::new(REGISTRY, "inline/image").image("v1", &[layer], &[diff]).await.expect("pushed");
    let image = format!("{REGISTRY}/inline/image:v1");
    let look = "cat /m/app/run; grep ' /m ' /proc/self/mountinfo; echo looked";
    let volume = inline_with(&image, &json!({"exec": "true"}));
    pods.run(pod("image", volume, &script(look))).await;
    let printed = pods.printed("image", "looked").await;
    assert!(printed.starts_with("content\n"), "{printed}");
    assert_flags(&printed, &["ro", "nosuid", "nodev"]);
    pods.clear().await;
}

fn assert_flags(printed: &str, flags: &[&str]) {
    let line = printed.lines().find(|line| line.contains(" /m ")).unwrap_or_else(|| panic!("{printed}"));
    let options = line.split(' ').nth(5).expect("options");
    let found: Vec<&str> = options.split(',').collect();
    assert!(flags.iter().all(|flag| found.contains(flag)), "{line}");
}

pub async fn a_pod_with_its_own_users_reads_the_files(node: Shared) {
    let pods = node.lock().await.cluster.namespace("users", json!({})).await;
    let model = push_model("users/model", "v1", vec![8; 1 << 20]).await;
    let look =
        "stat -c '%u %n' /m/config.json; cat /proc/self/uid_map; cat /m/config.json; echo; echo looked";
    let mut changes = script(look);
    merge(&mut changes, &json!({"hostUsers": false}));
    pods.run(pod("mapped", inline(&model), &changes)).await;
    let printed = pods.printed("mapped", "looked").await;
    assert!(printed.starts_with("0 /m/config.json\n"), "the owner is not root in the pod: {printed}");
    let map: Vec<&str> = printed.lines().nth(1).expect("a map").split_whitespace().collect();
    assert!(map[0] == "0" && map[1] != "0", "the pod has no users of its own: {printed}");
    assert!(printed.contains("model_type"), "{printed}");
    pods.clear().await;
}

pub async fn a_restricted_pod_that_is_not_root_reads_the_files(node: Shared) {
    let labels = json!({"pod-security.kubernetes.io/enforce": "restricted"});
    let pods = node.lock().await.cluster.namespace("restricted", labels).await;
    let model = push_model("restricted/model", "v1", vec![9; 1 << 20]).await;
    let mut changes =
        script("id -u; cat /m/config.json; echo; wc -c < /m/weights/model.safetensors; echo looked");
    merge(
        &mut changes,
        &json!({
            "securityContext": {
                "runAsNonRoot": true, "runAsUser": 65534, "fsGroup": 65534,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [{"securityContext": {
                "allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}, "readOnlyRootFilesystem": true,
            }}],
        }),
    );
    pods.run(pod("nobody", inline(&model), &changes)).await;
    let printed = pods.printed("nobody", "looked").await;
    assert!(printed.starts_with("65534\n{\"model_type\""), "{printed}");
    assert!(printed.contains("1048576"), "{printed}");
    pods.clear().await;
}

pub async fn sub_paths_and_read_only_mounts_work_as_kubelet_documents(node: Shared) {
    let pods = node.lock().await.cluster.namespace("paths", json!({})).await;
    let model = push_model("paths/model", "v1", vec![1; 4096]).await;
    let write = "for d in /directory /again /recursive; do (echo x > $d/new) 2>&1; done; (echo x > /file.json) 2>&1; ";
    let look = "wc -c < /directory/model.safetensors; cat /file.json; echo; \
                grep -E ' /(directory|file.json|again|recursive) ' /proc/self/mountinfo; echo looked";
    let mut changes = script(&format!("{write}{look}"));
    changes["containers"][0]["volumeMounts"] = json!([
        {"name": "model", "mountPath": "/directory", "subPath": "weights"},
        {"name": "model", "mountPath": "/file.json", "subPath": "config.json", "readOnly": false},
        {"name": "model", "mountPath": "/again", "readOnly": true},
        {"name": "model", "mountPath": "/recursive", "readOnly": true, "recursiveReadOnly": "Enabled"},
    ]);
    pods.run(pod("paths", inline(&model), &changes)).await;
    let printed = pods.printed("paths", "looked").await;
    assert!(printed.contains("\n4096\n{\"model_type\""), "{printed}");
    assert_eq!(printed.matches("Read-only file system").count(), 4, "{printed}");
    let mounts: Vec<&str> = printed.lines().filter(|line| line.contains(" - ")).collect();
    assert_eq!(mounts.len(), 4, "{printed}");
    for mount in mounts {
        assert!(
            mount.split(' ').nth(5).is_some_and(|options| options.split(',').any(|it| it == "ro")),
            "{mount}"
        );
    }
    // A path that is not there is kubelet's error, not a broken volume.
    let mut changes = job("true");
    changes["containers"][0]["volumeMounts"] =
        json!([{"name": "model", "mountPath": "/m", "subPath": "absent/directory"}]);
    pods.create(pod("absent", inline(&model), &changes)).await;
    pods.event("absent", "failed to create subPath directory").await;
    pods.clear().await;
}

pub async fn a_model_is_in_memory_when_its_pod_starts(node: Shared) {
    const GIB: usize = 3;
    let pods = node.lock().await.cluster.namespace("warm", json!({})).await;
    let mut weights = vec![0_u8; GIB << 30];
    for (number, page) in weights.chunks_mut(4096).enumerate() {
        page[..8].copy_from_slice(&(number as u64).to_le_bytes());
    }
    let size = weights.len();
    let model = push_model("warm/model", "v1", weights).await;
    // It reads when it is told to: what is in memory is looked at before. Its second read is what any read can cost.
    let read = "cut -d' ' -f1 /proc/uptime; cat /m/weights/model.safetensors > /dev/null";
    let mut changes =
        script(&format!("until [ -e /go/now ]; do true; done; {read}; {read}; {read}; echo read"));
    changes["volumes"] = json!([{}, {"name": "go", "emptyDir": {}}]);
    let mounts = json!([{"name": "model", "mountPath": "/m"}, {"name": "go", "mountPath": "/go"}]);
    changes["containers"][0]["volumeMounts"] = mounts;
    let running = pods.run(pod("warm", inline(&model), &changes)).await;
    let target = target_of(&running);
    let file = target.join("weights/model.safetensors");
    let cached = run(Command::new("fincore").args(["--bytes", "--noheadings", "--output", "RES"]).arg(file));
    let volumes = target.ancestors().nth(3).expect("the pod's volumes");
    std::fs::write(volumes.join("kubernetes.io~empty-dir/go/now"), "").expect("a file");
    let resident = cached.trim().parse::<f64>().expect("a number") / size as f64;
    let printed = pods.printed("warm", "read").await;
    let times: Vec<f64> = printed.lines().filter_map(|line| line.parse().ok()).collect();
    let (first, second) = (times[1] - times[0], times[2] - times[1]);
    println!(
        "            {:.1} % of {GIB} GiB is in the page cache when the pod starts; it reads them in {first:.2} s, then in {second:.2} s",
        resident * 100.0
    );
    assert!(resident >= 0.95, "only {:.1} % is resident", resident * 100.0);
    pods.clear().await;
}
