//! What stops and starts while pods have volumes.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};

use super::Shared;
use super::inline::target_of;
use crate::cluster::{Pods, eventually, restarts};
use crate::pod::{DRIVER, inline, merge, pod, script};
use crate::registry::{push_model, push_ocivol, requests};

/// Pods `pod-0`, `pod-1` … that take turns with the references.
pub async fn run_many(pods: &Pods, count: usize, references: &[String]) -> Vec<Pod> {
    for number in 0..count {
        let mut changes = script("true");
        // Without a network of their own: it is not what is tried, and it takes time.
        merge(&mut changes, &json!({"hostNetwork": true}));
        pods.create(pod(&format!("pod-{number}"), inline(&references[number % references.len()]), &changes))
            .await;
    }
    let mut running = Vec::new();
    for number in 0..count {
        running.push(pods.running(&format!("pod-{number}")).await);
    }
    running
}

/// The mounts of volumes that there are.
fn volumes() -> Vec<PathBuf> {
    let table = fs::read_to_string("/proc/self/mountinfo").expect("mounts");
    let places = table.lines().filter_map(|line| line.split(' ').nth(4)).map(PathBuf::from);
    places.filter(|place| place.to_string_lossy().contains("/volumes/kubernetes.io~csi/")).collect()
}

/// What identifies a running container, and how often its pod was started again.
async fn identities(pods: &Pods) -> BTreeMap<String, (String, i32)> {
    let listed = pods.list().await.into_iter().map(|pod| {
        let status =
            pod.status.as_ref().and_then(|it| it.container_statuses.as_ref()?.first()?.container_id.clone());
        (pod.metadata.name.clone().expect("a name"), (status.expect("a container"), restarts(&pod)))
    });
    listed.collect()
}

pub async fn kubelets_restart_disturbs_no_pod_and_asks_no_registry(node: Shared) {
    let mut node = node.lock().await;
    let pods = node.cluster.namespace("kubelet", json!({})).await;
    let model = push_model("kubelet/model", "v1", vec![1; 1 << 20]).await;
    let running = run_many(&pods, 20, &[model]).await;
    let (before, asked) = (identities(&pods).await, requests().len());
    let published = published();
    node.stop("kubelet");
    node.start_kubelet().await;
    node.cluster.plugin_is_ready().await;
    // kubelet publishes every volume again.
    eventually("20 volumes published again", || async {
        (self::published() >= published + 20).then_some(())
    })
    .await;
    assert_eq!(identities(&pods).await, before);
    assert_eq!(requests().len(), asked, "{:?}", &requests()[asked..]);
    let mounted = volumes();
    for pod in &running {
        let target = target_of(pod);
        assert_eq!(mounted.iter().filter(|place| **place == target).count(), 1, "{}", target.display());
    }
    pods.clear().await;
}

/// How many calls to publish the plugin has answered, from its log.
fn published() -> usize {
    let answered = r#""method":"/csi.v1.Node/NodePublishVolume","code":"OK""#;
    plugin_log().lines().filter(|line| line.contains(answered)).count()
}

/// The logs of the plugin's pods that are there.
fn plugin_log() -> String {
    let mut all = String::new();
    for pod in fs::read_dir("/var/log/pods").expect("logs").flatten() {
        if !pod.file_name().to_string_lossy().starts_with("ocivol_") {
            continue;
        }
        for file in fs::read_dir(pod.path().join("ocivol")).into_iter().flatten().flatten() {
            all.push_str(&fs::read_to_string(file.path()).unwrap_or_default());
        }
    }
    all
}

pub async fn volumes_outlive_a_plugin_that_is_killed_and_one_that_is_upgraded(node: Shared) {
    let node = node.lock().await;
    let pods = node.cluster.namespace("plugin", json!({})).await;
    let model = push_model("plugin/model", "v1", vec![2; 1 << 20]).await;
    let running = run_many(&pods, 3, std::slice::from_ref(&model)).await;
    let before = identities(&pods).await;
    let ocivol = node.cluster.pods("ocivol");
    let plugin = ocivol.list().await.remove(0).metadata;
    ocivol.delete_by_force(plugin.name.as_deref().expect("a name")).await;
    eventually("another plugin", || async {
        ocivol.list().await.iter().any(|pod| pod.metadata.uid != plugin.uid).then_some(())
    })
    .await;
    node.cluster.plugin_is_ready().await;
    for pod in &running {
        assert!(fs::read(target_of(pod).join("config.json")).is_ok(), "a volume is gone");
    }
    // Another image under another tag, as a release is.
    push_ocivol("0.1.1", |config| config["config"]["Labels"] = json!({"release": "0.1.1"})).await;
    node.install(&["image.tag=0.1.1"]).await;
    let image = ocivol.list().await.remove(0).spec.expect("a spec").containers.remove(0).image;
    assert!(image.is_some_and(|image| image.ends_with(":0.1.1")));
    assert_eq!(identities(&pods).await, before);
    for pod in &running {
        assert!(fs::read(target_of(pod).join("config.json")).is_ok(), "a volume is gone");
    }
    // The new plugin publishes, and takes away what the old one mounted.
    pods.run(pod("later", inline(&model), &script("true"))).await;
    pods.clear().await;
    nothing_is_left_of_pods(&running).await;
}

pub async fn pods_that_go_while_no_plugin_runs_are_cleaned_up_afterwards(node: Shared) {
    let node = node.lock().await;
    let pods = node.cluster.namespace("absent", json!({})).await;
    let model = push_model("absent/model", "v1", vec![3; 1 << 20]).await;
    let running = run_many(&pods, 3, &[model]).await;
    let selector = |value: Value| json!({"spec": {"template": {"spec": {"nodeSelector": {"e2e": value}}}}});
    node.cluster.patch_plugin(selector(json!("nowhere"))).await;
    node.cluster.pods("ocivol").gone().await;
    for pod in &running {
        pods.delete(pod.metadata.name.as_deref().expect("a name")).await;
    }
    // Without the plugin kubelet cannot unmount: the pods stay.
    pods.event("pod-0", "Stopping container").await;
    assert!(!volumes().is_empty());
    node.cluster.patch_plugin(selector(Value::Null)).await;
    node.cluster.plugin_is_ready().await;
    pods.gone().await;
    nothing_is_left_of_pods(&running).await;
}

/// Waits until kubelet has removed the directories of pods that are gone, and fails when a mount is left.
async fn nothing_is_left_of_pods(gone: &[Pod]) {
    for pod in gone {
        let target = target_of(pod);
        let directory = Path::new("/var/lib/kubelet/pods").join(pod.metadata.uid.as_deref().expect("a UID"));
        eventually("kubelet cleans up", || async { (!directory.exists()).then_some(()) }).await;
        assert!(!volumes().contains(&target), "{} is still mounted", target.display());
    }
}

pub async fn a_node_that_was_rebooted_starts_its_pods_without_a_download(node: Shared) {
    let mut node = node.lock().await;
    let pods = node.cluster.namespace("reboot", json!({})).await;
    let model = push_model("reboot/model", "v1", vec![4; 1 << 20]).await;
    for number in 0..3 {
        let mut changes = script("cat /m/config.json; echo; echo looked");
        merge(&mut changes, &json!({"hostNetwork": true, "restartPolicy": "Always"}));
        pods.run(pod(&format!("pod-{number}"), inline(&model), &changes)).await;
    }
    let before = identities(&pods).await;
    let fetched = crate::registry::fetched("reboot/");
    node.reboot().await;
    for number in 0..3 {
        let name = format!("pod-{number}");
        eventually("another container", || async {
            let now = pods.list().await.into_iter().find(|pod| pod.metadata.name.as_ref() == Some(&name))?;
            let status = now.status?.container_statuses?.into_iter().next()?;
            (status.state?.running.is_some() && status.container_id? != before[&name].0).then_some(())
        })
        .await;
        assert!(pods.printed(&name, "looked").await.contains("model_type"));
    }
    node.cluster.plugin_is_ready().await;
    assert_eq!(crate::registry::fetched("reboot/"), fetched);
    pods.clear().await;
}

pub async fn uninstalling_leaves_nothing(node: Shared) {
    let node = node.lock().await;
    let pods = node.cluster.namespace("uninstall", json!({})).await;
    let model = push_model("uninstall/model", "v1", vec![5; 1 << 20]).await;
    pods.run(pod("last", inline(&model), &script("true"))).await;
    pods.clear().await;
    eventually("the last unmount", || async { volumes().is_empty().then_some(()) }).await;
    node.uninstall();
    node.cluster.pods("ocivol").gone().await;
    eventually("kubelet forgets the driver", || async {
        (!node.cluster.drivers().await.contains(&DRIVER.to_owned())).then_some(())
    })
    .await;
    let sockets = Path::new("/var/lib/kubelet/plugins_registry").join(format!("{DRIVER}-reg.sock"));
    assert!(!sockets.exists(), "{} is left", sockets.display());
    let table = fs::read_to_string("/proc/self/mountinfo").expect("mounts");
    let left: Vec<&str> =
        table.lines().filter(|line| line.contains("/v1/trees/") || line.contains("ocivol:")).collect();
    assert!(left.is_empty(), "{left:#?}");
}
