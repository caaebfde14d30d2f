//! StorageClasses: volumes that external-provisioner has ocivol's controller make, and Kubernetes' own tests of storage.

use std::fs;
use std::path::Path;

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use serde_json::{Value, json};

use super::Shared;
use crate::cluster::{Pods, eventually};
use crate::machine::{directory, target};
use crate::node::run;
use crate::pod::{DRIVER, claim, pod, script};
use crate::registry::{REGISTRY, push_image, push_model, push_program, push_shell};

/// As the chart has it, but for the registry.
const PROVISIONER: &str = "sig-storage/csi-provisioner";

/// Settings of a node with a controller; claims of the class `models` get the model of their name.
pub async fn with_controller() -> Vec<String> {
    let program = fs::read(target().join("tools/provisioner/csi-provisioner")).expect("make e2e builds it");
    push_program(PROVISIONER, "v6.4.0", "csi-provisioner", &program).await;
    vec![
        "controller.enabled=true".to_owned(),
        format!("controller.provisioner.image.repository={REGISTRY}/{PROVISIONER}"),
        "storageClasses[0].name=models".to_owned(),
        format!("storageClasses[0].parameters.reference={REGISTRY}/classes/${{pvc.metadata.name}}:v1"),
        "storageClasses[1].name=for-writers".to_owned(),
        format!("storageClasses[1].parameters.reference={REGISTRY}/classes/llama:v1"),
        "storageClasses[1].parameters.include=*.json".to_owned(),
        "storageClasses[1].parameters.readOnlyForWriters=\"true\"".to_owned(),
    ]
}

fn claim_of_class(name: &str, class: &str, mode: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": name},
        "spec": {"accessModes": [mode], "storageClassName": class, "resources": {"requests": {"storage": "1Gi"}}},
    })
}

/// Waits until a claim has a volume.
async fn bound(node: &Shared, pods: &Pods, name: &str) -> PersistentVolume {
    let cluster = node.lock().await.cluster.clone();
    eventually(&format!("a volume for {name}"), || async {
        let claim = pods.get_other::<PersistentVolumeClaim>(name).await?;
        let volume = claim.spec?.volume_name?;
        cluster.get::<PersistentVolume>(&volume).await
    })
    .await
}

pub async fn claims_of_a_class_get_volumes_that_stay_what_they_were(node: Shared) {
    let values = with_controller().await;
    let values: Vec<&str> = values.iter().map(String::as_str).collect();
    let cluster = node.lock().await.cluster.clone();
    node.lock().await.install(&values).await;
    let pods = cluster.namespace("classes", json!({})).await;
    push_model("classes/llama", "v1", vec![7; 1 << 20]).await;

    pods.create_other::<PersistentVolumeClaim>(claim_of_class("llama", "models", "ReadOnlyMany")).await;
    let volume = bound(&node, &pods, "llama").await;
    let spec = serde_json::to_value(volume.spec.expect("a spec")).expect("JSON");
    let reference = spec["csi"]["volumeAttributes"]["reference"].as_str().expect("a reference");
    assert!(reference.starts_with(&format!("{REGISTRY}/classes/llama:v1@sha256:")), "{spec}");
    assert_eq!(spec["capacity"]["storage"], "1Gi", "{spec}");

    // The tag moves, and who mounts the volume does not see it.
    push_model("classes/llama", "v1", vec![8; 1 << 20]).await;
    let look = "cut -c1 /m/weights/model.safetensors | sha256sum; (echo x > /m/config.json) 2>&1; ls /m; echo looked";
    pods.run(pod("reader", claim("llama", true), &script(look))).await;
    let printed = pods.printed("reader", "looked").await;
    assert!(printed.contains("Read-only file system") && printed.contains("weights"), "{printed}");
    let sum = |byte: u8| ocivol::oci::digest::Digest::sha256(&[byte, b'\n']).hex().to_owned();
    assert!(printed.contains(&sum(7)) && !printed.contains(&sum(8)), "{printed}");

    // Charts that know only ReadWriteOnce.
    let writers = claim_of_class("writers", "for-writers", "ReadWriteOnce");
    pods.create_other::<PersistentVolumeClaim>(writers).await;
    bound(&node, &pods, "writers").await;
    pods.run(pod("writer", claim("writers", false), &script("(echo x > /m/x) 2>&1; ls /m; echo looked")))
        .await;
    let printed = pods.printed("writer", "looked").await;
    assert!(printed.contains("Read-only file system") && !printed.contains("weights"), "{printed}");

    // What cannot be is told with the cure.
    for (name, class, mode, cure) in [
        (
            "shared",
            "models",
            "ReadWriteMany",
            "readOnlyForWriters: \"true\" in the parameters of its StorageClass",
        ),
        ("absent", "models", "ReadOnlyMany", "classes/absent:v1 does not exist"),
    ] {
        pods.create_other::<PersistentVolumeClaim>(claim_of_class(name, class, mode)).await;
        let message = pods.event(name, cure).await;
        assert!(message.contains("rpc error: code = "), "{message}");
    }

    // The volume goes with its claim.
    let name = volume.metadata.name.expect("a name");
    pods.clear().await;
    for claim in ["llama", "writers", "shared", "absent"] {
        pods.delete_other::<PersistentVolumeClaim>(claim).await;
    }
    eventually("the end of the volume", || async {
        cluster.get::<PersistentVolume>(&name).await.is_none().then_some(())
    })
    .await;
}

/// What a driver that can be read only has of Kubernetes' tests: the rest writes, and no capability of a driver leaves it out.
const SKIPPED: &str = "subPath|volumeIO|store data|exec of files|retain data|single volume from|any volume data source|read/write inline|Generic Ephemeral.*(two pods|expansion)|Feature:|disruptive";
/// Tests that have to be there and pass.
const AT_LEAST: usize = 12;

pub async fn kubernetes_own_tests_of_storage_pass(node: Shared) {
    let values = with_controller().await;
    let values: Vec<&str> = values.iter().map(String::as_str).collect();
    node.lock().await.install(&values).await;
    // The images that its pods are of, as far as they use them.
    for (name, tag) in [("busybox", "1.37.0-1"), ("glibc-dns-testing", "2.0.0"), ("agnhost", "2.63.0")] {
        push_shell(&format!("e2e-test-images/{name}"), tag).await;
    }
    push_image("classes/content", "v1", &["data/"], &["sh"]).await;
    let place = directory().join("storage-tests");
    fs::create_dir_all(&place).expect("a directory");
    let write = |name: &str, value: &Value| {
        let path = place.join(name);
        fs::write(&path, value.to_string()).expect("a file");
        path.display().to_string()
    };
    let reference = format!("{REGISTRY}/classes/content:v1");
    let class = write(
        "class.json",
        &json!({
            "apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "metadata": {"name": "content"},
            "provisioner": DRIVER, "parameters": {"reference": reference, "readOnlyForWriters": "true"},
        }),
    );
    // Its inline volumes never say readOnly.
    let attributes = json!({"reference": reference, "readOnlyForWriters": "true"});
    let driver = |class: Option<&str>, inline: Value| {
        let mut driver = json!({
            "DriverInfo": {
                "Name": DRIVER,
                "RequiredAccessModes": ["ReadOnlyMany"],
                "SupportedFsType": {"": {}},
                "SupportedSizeRange": {"Min": "1Gi"},
                "Capabilities": {"multipods": true, "capReadOnlyMany": true, "multiplePVsSameID": true},
                "StressTestOptions": {"NumPods": 5, "NumRestarts": 5},
                "PerformanceTestOptions": {
                    "ProvisioningOptions": {"VolumeSize": "1Gi", "Count": 20, "ExpectedMetrics": {"AvgLatency": 120_000_000_000_u64, "Throughput": 0.1}},
                },
            },
            "InlineVolumes": [inline],
        });
        if let Some(class) = class {
            driver["StorageClass"] = json!({"FromFile": class});
        }
        driver
    };
    let one = write("one.json", &driver(Some(&class), json!({"ReadOnly": true, "Attributes": attributes})));
    // Some of its tests leave themselves out where a driver says that inline volumes are read-only.
    let two = write("two.json", &driver(None, json!({"Shared": true, "Attributes": attributes})));
    let images = write("images.json", &json!({"promoterE2eRegistry": format!("{REGISTRY}/e2e-test-images")}));
    let mut passed = Vec::new();
    for (name, file) in [("one", one), ("two", two)] {
        let report = place.join(format!("{name}.xml"));
        let mut tests =
            node.lock().await.as_admin(&target().join("tools/kubernetes/e2e.test").display().to_string());
        tests
            .env("KUBE_TEST_REPO_LIST", &images)
            .arg(format!("--storage.testdriver={file}"))
            .arg(format!("--kubeconfig={}", directory().join("kubeconfig").display()))
            .args(["--provider=local", "--num-nodes=1", "--minStartupPods=0", "--disable-log-dump=true"])
            .args([
                "--ginkgo.focus=External.Storage",
                &format!("--ginkgo.skip={SKIPPED}"),
                "--ginkgo.no-color",
            ])
            .arg(format!("--ginkgo.junit-report={}", report.display()));
        let printed = tokio::task::spawn_blocking(move || run(&mut tests)).await.expect("they pass");
        fs::write(place.join(format!("{name}.log")), printed).expect("a file");
        passed.extend(passed_of(&report));
    }
    passed.sort();
    passed.dedup();
    for name in &passed {
        println!("            {name}");
    }
    assert!(passed.len() >= AT_LEAST, "only {} tests ran", passed.len());
}

/// The names of the tests that a report says have passed.
fn passed_of(report: &Path) -> Vec<String> {
    let text = fs::read_to_string(report).expect("a report");
    text.split("<testcase ")
        .filter(|case| case.contains("status=\"passed\"") && case.contains("External Storage"))
        .filter_map(|case| Some(case.split_once("name=\"")?.1.split_once('"')?.0.replace("&#39;", "'")))
        .collect()
}
