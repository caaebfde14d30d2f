//! PersistentVolumes and claims.

use std::path::PathBuf;

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod};
use serde_json::{Value, json};

use super::Shared;
use crate::pod::{DRIVER, claim, merge, pod, script};
use crate::registry::push_model;

/// A volume of a model, as the README's example has it.
pub fn volume(name: &str, reference: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": name},
        "spec": {
            "capacity": {"storage": "1Gi"}, "accessModes": ["ReadOnlyMany"], "storageClassName": "",
            "persistentVolumeReclaimPolicy": "Retain",
            "csi": {"driver": DRIVER, "volumeHandle": name, "readOnly": true, "volumeAttributes": {"reference": reference}},
        },
    })
}

pub fn claim_of(volume: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": volume},
        "spec": {
            "accessModes": ["ReadOnlyMany"], "storageClassName": "", "volumeName": volume,
            "resources": {"requests": {"storage": "1Gi"}},
        },
    })
}

/// Where kubelet has a pod's volume of a PersistentVolume.
pub fn target_of(pod: &Pod, volume: &str) -> PathBuf {
    let uid = pod.metadata.uid.as_deref().expect("a UID");
    PathBuf::from(format!("/var/lib/kubelet/pods/{uid}/volumes/kubernetes.io~csi/{volume}/mount"))
}

pub async fn a_claim_is_shared_by_pods_that_say_read_only_and_that_do_not(node: Shared) {
    let cluster = node.lock().await.cluster.clone();
    let pods = cluster.namespace("claims", json!({})).await;
    let model = push_model("claims/model", "v1", vec![6; 1 << 20]).await;
    cluster.create::<PersistentVolume>(volume("shared", &model)).await;
    pods.create_other::<PersistentVolumeClaim>(claim_of("shared")).await;
    let look = "cat /m/config.json; echo; (echo x > /m/config.json) 2>&1; grep ' /m ' /proc/self/mountinfo; echo looked";
    // KServe's way is the last: the claim without readOnly, the container's mount with it.
    let kserve = json!({"containers": [{"volumeMounts": [{"readOnly": true}]}]});
    let ways = [("read-only", true, json!({})), ("writable", false, json!({})), ("kserve", false, kserve)];
    for (name, read_only, further) in ways {
        let mut changes = script(look);
        merge(&mut changes, &further);
        pods.run(pod(name, claim("shared", read_only), &changes)).await;
        let printed = pods.printed(name, "looked").await;
        assert!(printed.contains("model_type"), "{name}: {printed}");
        assert!(printed.contains("Read-only file system"), "{name}: {printed}");
    }
    pods.clear().await;
    pods.delete_other::<PersistentVolumeClaim>("shared").await;
    cluster.delete::<PersistentVolume>("shared").await;
}
