//! The chart's objects and the examples, read by the types of several versions of Kubernetes: no unknown field, and
//! the values that the driver depends on.
//!
//! `manifests/install.yaml` is the rendered chart, and `tests/packaging/rendered` has it with other values; `make check` holds
//! them equal.

#![allow(clippy::print_stdout)]

use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// All objects of a file of YAML documents.
fn objects(text: &str) -> Vec<Value> {
    serde_yaml_ng::Deserializer::from_str(text)
        .map(|document| serde::Deserialize::deserialize(document).expect("YAML"))
        .filter(|object: &Value| !object.is_null())
        .collect()
}

fn install() -> Vec<Value> {
    objects(include_str!("../manifests/install.yaml"))
}

/// With `credentials.imagePullSecrets`.
fn pull_secrets() -> Vec<Value> {
    objects(include_str!("packaging/rendered/pull-secrets.yaml"))
}

/// With `credentials.imagePullSecrets` for the namespaces `shop` and `bank`.
fn pull_secrets_of_two() -> Vec<Value> {
    objects(include_str!("packaging/rendered/pull-secrets-of-two.yaml"))
}

/// With `events.enabled`.
fn events() -> Vec<Value> {
    objects(include_str!("packaging/rendered/events.yaml"))
}

/// With `controller.enabled`, two replicas, and a StorageClass whose registry is asked with a secret.
fn controller() -> Vec<Value> {
    objects(include_str!("packaging/rendered/controller.yaml"))
}

/// With `prepull.enabled`, and a secret that CachedArtifacts may name.
fn prepull() -> Vec<Value> {
    objects(include_str!("packaging/rendered/prepull.yaml"))
}

/// The same, with the controller.
fn prepull_controller() -> Vec<Value> {
    objects(include_str!("packaging/rendered/prepull-controller.yaml"))
}

fn one_of(objects: &[Value], kind: &str) -> Value {
    objects.iter().find(|object| object["kind"] == kind).cloned().unwrap_or_else(|| panic!("no {kind}"))
}

fn of_kind(kind: &str) -> Value {
    one_of(&install(), kind)
}

/// The objects about rights, by kind and namespace.
fn rights(objects: &[Value]) -> Vec<(String, Option<&str>, &Value)> {
    let about_rights = objects.iter().filter(|object| {
        let (version, kind) = (object["apiVersion"].as_str(), object["kind"].as_str().unwrap_or_default());
        version.is_none_or(|version| version.starts_with("rbac")) || kind.contains("Role")
    });
    let with_names = about_rights.map(|object| {
        let kind = object["kind"].as_str().expect("a kind").to_owned();
        (kind, object["metadata"]["namespace"].as_str(), object)
    });
    with_names.collect()
}

/// Without what is null or empty, which the types leave out.
fn normal(value: &Value) -> Value {
    match value {
        Value::Object(map) => {
            let kept = map.iter().map(|(key, value)| (key.clone(), normal(value)));
            Value::Object(kept.filter(|(_, value)| !is_empty(value)).collect())
        }
        Value::Array(list) => Value::Array(list.iter().map(normal).collect()),
        // A schema's numbers come back as fractions.
        Value::Number(number) => number.as_f64().map_or(Value::Null, Value::from),
        other => other.clone(),
    }
}

fn is_empty(value: &Value) -> bool {
    value.is_null()
        || value.as_object().is_some_and(serde_json::Map::is_empty)
        || value.as_array().is_some_and(Vec::is_empty)
}

/// Reads `object` as `T`, and fails when a field got lost on the way: the type does not know it.
fn read<T: DeserializeOwned + Serialize>(object: &Value) {
    let what = format!("{} {}", object["kind"], object["metadata"]["name"]);
    let typed: T = serde_json::from_value(object.clone()).unwrap_or_else(|error| panic!("{what}: {error}"));
    let again = serde_json::to_value(&typed).expect("JSON");
    assert_eq!(normal(&again), normal(object), "{what} has fields that Kubernetes does not know");
}

macro_rules! readers {
    ($version:ident, $api:ident) => {
        fn $version(object: &Value) {
            use $api::api::{apps, core, networking, rbac, storage};
            use $api::apiextensions_apiserver::pkg::apis::apiextensions;
            match object["kind"].as_str().expect("a kind") {
                "Namespace" => read::<core::v1::Namespace>(object),
                "ConfigMap" => read::<core::v1::ConfigMap>(object),
                "ServiceAccount" => read::<core::v1::ServiceAccount>(object),
                "Pod" => read::<core::v1::Pod>(object),
                "PersistentVolume" => read::<core::v1::PersistentVolume>(object),
                "PersistentVolumeClaim" => read::<core::v1::PersistentVolumeClaim>(object),
                "DaemonSet" => read::<apps::v1::DaemonSet>(object),
                "Deployment" => read::<apps::v1::Deployment>(object),
                // Its type is not Kubernetes' own; below it is looked at what it names.
                "InferenceService" => {}
                "StorageClass" => read::<storage::v1::StorageClass>(object),
                "CSIDriver" => read::<storage::v1::CSIDriver>(object),
                "NetworkPolicy" => read::<networking::v1::NetworkPolicy>(object),
                "ClusterRole" => read::<rbac::v1::ClusterRole>(object),
                "ClusterRoleBinding" => read::<rbac::v1::ClusterRoleBinding>(object),
                "Role" => read::<rbac::v1::Role>(object),
                "RoleBinding" => read::<rbac::v1::RoleBinding>(object),
                "CustomResourceDefinition" => {
                    read::<apiextensions::v1::CustomResourceDefinition>(object);
                }
                // Not of every version; they are looked at below.
                "ValidatingAdmissionPolicy" | "ValidatingAdmissionPolicyBinding" => {}
                other => panic!("an object of kind {other}"),
            }
        }
    };
}

readers!(kubernetes_1_29, k8s_openapi_1_29);
readers!(kubernetes_1_33, k8s_openapi_1_33);
readers!(kubernetes_1_36, k8s_openapi);

#[test]
fn every_object_is_known_to_every_version() {
    let mut all = install();
    assert_eq!(all.len(), 6);
    all.extend(pull_secrets());
    all.extend(pull_secrets_of_two());
    all.extend(events());
    all.extend(controller());
    all.extend(prepull());
    all.extend(prepull_controller());
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("manifests/examples");
    for entry in std::fs::read_dir(examples).expect("examples") {
        let text = std::fs::read_to_string(entry.expect("an entry").path()).expect("text");
        all.extend(objects(&text));
    }
    assert!(all.len() > 15);
    for object in &all {
        kubernetes_1_29(object);
        kubernetes_1_33(object);
        kubernetes_1_36(object);
    }
}

/// All that the examples ask of the driver is what the driver knows.
#[test]
fn examples_have_attributes_that_there_are() {
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("manifests/examples");
    let mut volumes = 0;
    for entry in std::fs::read_dir(examples).expect("examples") {
        let path = entry.expect("an entry").path();
        let objects = objects(&std::fs::read_to_string(&path).expect("text"));
        let mut found = Vec::new();
        for object in &objects {
            csi_volumes(object, &mut found);
            if object["kind"] == "InferenceService" {
                let claim = object["spec"]["predictor"]["model"]["storageUri"].as_str().expect("a claim");
                let named = |other: &Value| {
                    other["kind"] == "PersistentVolumeClaim"
                        && claim == format!("pvc://{}/", other["metadata"]["name"].as_str().expect("a name"))
                };
                assert!(objects.iter().any(named), "{}: {claim}", path.display());
            }
        }
        assert!(!found.is_empty(), "{} has no volume", path.display());
        for csi in found {
            assert_eq!((&csi["driver"], &csi["readOnly"]), (&"csi.ocivol.dev".into(), &true.into()));
            let attributes = serde_json::from_value(csi["volumeAttributes"].clone()).expect("strings");
            ocivol::volume::attributes::Attributes::parse(&attributes)
                .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            volumes += 1;
        }
    }
    assert!(volumes >= 12, "{volumes}");
}

/// Every `csi` of volumes below `value`.
fn csi_volumes(value: &Value, found: &mut Vec<Value>) {
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                if key == "csi" {
                    found.push(value.clone());
                }
                csi_volumes(value, found);
            }
        }
        Value::Array(list) => list.iter().for_each(|value| csi_volumes(value, found)),
        _ => {}
    }
}

/// Kubernetes has them since 1.30.
#[test]
fn the_policies_are_known_to_the_versions_that_have_them() {
    use k8s_openapi::api::admissionregistration::v1 as newest;
    use k8s_openapi_1_33::api::admissionregistration::v1 as older;
    let sample = objects(include_str!("../manifests/admission-policy.yaml"));
    for all in [sample, prepull()] {
        let policy = one_of(&all, "ValidatingAdmissionPolicy");
        let binding = one_of(&all, "ValidatingAdmissionPolicyBinding");
        read::<newest::ValidatingAdmissionPolicy>(&policy);
        read::<older::ValidatingAdmissionPolicy>(&policy);
        read::<newest::ValidatingAdmissionPolicyBinding>(&binding);
        read::<older::ValidatingAdmissionPolicyBinding>(&binding);
        assert_eq!(binding["spec"]["policyName"], policy["metadata"]["name"]);
    }
}

/// Its fields are those of the other policy; make chart-real shows both to an API server.
#[test]
fn the_policy_for_kyverno_says_the_same() {
    let [policy, binding] = &objects(include_str!("../manifests/admission-policy.yaml"))[..] else {
        panic!("a policy and its binding");
    };
    let [kyverno] = &objects(include_str!("../manifests/kyverno-policy.yaml"))[..] else {
        panic!("a policy");
    };
    let (own, other) = (&policy["spec"], &kyverno["spec"]);
    for field in ["failurePolicy", "variables", "validations"] {
        assert!(own[field] == other[field] && !own[field].is_null(), "{field}");
    }
    assert_eq!(own["matchConstraints"]["resourceRules"], other["matchConstraints"]["resourceRules"]);
    let bound = &binding["spec"];
    assert_eq!(bound["matchResources"]["namespaceSelector"], other["matchConstraints"]["namespaceSelector"]);
    assert_eq!(bound["validationActions"], other["validationActions"]);
}

#[test]
fn renovate_finds_every_reference_of_the_examples() {
    let preset: Value = serde_json::from_str(include_str!("../manifests/renovate.json")).expect("JSON");
    let text = preset["customManagers"][0]["matchStrings"][0].as_str().expect("an expression");
    let expression = regex::Regex::new(text).expect("an expression of RE2");
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("manifests/examples");
    for entry in std::fs::read_dir(examples).expect("examples") {
        let text = std::fs::read_to_string(entry.expect("an entry").path()).expect("text");
        let found: Vec<String> = expression
            .captures_iter(&text)
            .map(|found| {
                let part = |name, before: &str| {
                    found.name(name).map(|it| format!("{before}{}", it.as_str())).unwrap_or_default()
                };
                [part("depName", ""), part("currentValue", ":"), part("currentDigest", "@")].concat()
            })
            .collect();
        let mut volumes = Vec::new();
        objects(&text).iter().for_each(|object| csi_volumes(object, &mut volumes));
        let references: Vec<_> =
            volumes.iter().map(|csi| csi["volumeAttributes"]["reference"].as_str().expect("one")).collect();
        assert!(found == references && !found.is_empty(), "{found:?} and {references:?}");
    }
    let digest = format!("sha256:{}", "0".repeat(64));
    let flow =
        |reference: &str| format!("{{driver: csi.ocivol.dev, volumeAttributes: {{reference: {reference}}}}}");
    let pinned = flow(&format!("\"a.b:5000/c:v1@{digest}\""));
    let found = expression.captures(&pinned).expect("found");
    assert_eq!((&found["depName"], &found["currentValue"]), ("a.b:5000/c", "v1"));
    assert_eq!(found["currentDigest"], digest);
    // A number after a name is a tag, and after a host a port.
    let short = flow("alpine:3");
    let found = expression.captures(&short).expect("found");
    assert_eq!((&found["depName"], &found["currentValue"]), ("alpine", "3"));
    assert!(!expression.is_match("driver: other.example.com\nreference: a/b:v1"));
}

/// The schema of the chart's values.
fn schema() -> Value {
    serde_json::from_str(include_str!("../charts/ocivol/values.schema.json")).expect("JSON")
}

/// Each value's description is what editors show, and a value that is no property of the schema could not be set.
#[test]
fn every_value_is_in_the_schema_and_described() {
    fn compare(path: &str, value: &Value, described: &Value) {
        let description = described["description"].as_str().unwrap_or_default();
        assert!(!description.is_empty(), "{path} is not described in values.schema.json");
        let Some(properties) = described["properties"].as_object() else { return };
        for (name, described) in properties {
            compare(&format!("{path}.{name}"), &value[name], described);
        }
        // What has a default has a property.
        for name in value.as_object().into_iter().flatten().map(|(name, _)| name) {
            assert!(properties.contains_key(name), "{path}.{name} is not in values.schema.json");
        }
    }
    let values: Value = serde_yaml_ng::from_str(include_str!("../charts/ocivol/values.yaml")).expect("YAML");
    let schema = schema();
    let properties = schema["properties"].as_object().expect("properties");
    let names =
        |map: &serde_json::Map<String, Value>| map.keys().cloned().collect::<std::collections::BTreeSet<_>>();
    assert_eq!(names(values.as_object().expect("values")), names(properties));
    for (name, described) in properties {
        compare(name, &values[name], described);
    }
}

#[test]
fn the_controller_has_no_privilege_and_the_rights_of_a_provisioner() {
    let objects = controller();
    let pod = &one_of(&objects, "Deployment")["spec"]["template"]["spec"];
    // It reads mirrors from its node; what would be more than reading, root cannot do without capabilities.
    assert_eq!((&pod["securityContext"]["runAsUser"], &pod["hostNetwork"]), (&0.into(), &Value::Null));
    assert_eq!(pod["automountServiceAccountToken"], false);
    for volume in pod["volumes"].as_array().expect("volumes").iter().filter(|it| !it["hostPath"].is_null()) {
        let read_only = |mount: &&Value| mount["name"] == volume["name"] && mount["readOnly"] == true;
        let mounts = pod["containers"][0]["volumeMounts"].as_array().expect("mounts");
        assert!(mounts.iter().any(|mount| read_only(&mount)), "{volume}");
    }
    let tokens = |container: &Value| container["volumeMounts"].to_string().contains("serviceaccount");
    assert_eq!((tokens(&pod["containers"][0]), tokens(&pod["containers"][1])), (false, true));
    let containers = pod["containers"].as_array().expect("containers");
    for container in containers {
        let context = &container["securityContext"];
        assert_eq!(context["allowPrivilegeEscalation"], false, "{container}");
        assert_eq!(context["capabilities"]["drop"], serde_json::json!(["ALL"]), "{container}");
    }
    // Secrets: the one that the class names, and no other.
    let of_controller =
        |object: &&Value| object["metadata"]["labels"]["app.kubernetes.io/name"] == "ocivol-controller";
    let own: Vec<Value> = objects.iter().filter(of_controller).cloned().collect();
    let roles: Vec<&Value> = own
        .iter()
        .filter(|object| ["Role", "ClusterRole"].contains(&object["kind"].as_str().expect("a kind")))
        .collect();
    let mut about_secrets = Vec::new();
    for role in &roles {
        for rule in role["rules"].as_array().expect("rules") {
            if rule["resources"].as_array().expect("resources").contains(&"secrets".into()) {
                about_secrets.push((&role["metadata"]["namespace"], &rule["resourceNames"], &rule["verbs"]));
            }
            let verbs = rule["verbs"].as_array().expect("verbs");
            assert!(!verbs.contains(&"*".into()), "{rule}");
        }
    }
    let expected = (&"shop".into(), &serde_json::json!(["regcred"]), &serde_json::json!(["get"]));
    assert_eq!(about_secrets, [expected]);
    assert_eq!(roles.len(), 3, "of the cluster, of leases, of the secret");
    // No selector of the plugin finds its pods.
    let labels = &one_of(&objects, "Deployment")["spec"]["template"]["metadata"]["labels"];
    let plugin = &one_of(&objects, "DaemonSet")["spec"]["selector"]["matchLabels"];
    assert_ne!(labels["app.kubernetes.io/name"], plugin["app.kubernetes.io/name"]);
    // Every instance of the driver says that there is a controller.
    let settings =
        objects.iter().find(|object| object["metadata"]["name"] == "ocivol-config").expect("settings");
    assert_eq!(settings["data"]["OCIVOL_WITH_CONTROLLER"], "true");
    // The class's parameters are read by the code that reads them in the cluster.
    let class = one_of(&objects, "StorageClass");
    let mut parameters: std::collections::BTreeMap<String, String> =
        serde_json::from_value(class["parameters"].clone()).expect("strings");
    parameters.insert("csi.storage.k8s.io/pvc/name".to_owned(), "llama".to_owned());
    let class = ocivol::provision::class::Class::parse(parameters).expect("a class");
    assert_eq!(class.given["reference"], "registry.example.com/models/llama:v1");
}

#[test]
fn an_unknown_field_is_seen() {
    let mut object = of_kind("CSIDriver");
    object["spec"]["attachRequird"] = false.into();
    assert!(std::panic::catch_unwind(|| kubernetes_1_36(&object)).is_err());
}

#[test]
fn the_driver_object_says_what_the_driver_does() {
    let driver = of_kind("CSIDriver");
    assert_eq!(driver["metadata"]["name"], "csi.ocivol.dev");
    let spec = &driver["spec"];
    for (key, value) in [
        ("attachRequired", Value::from(false)),
        ("podInfoOnMount", true.into()),
        ("fsGroupPolicy", "None".into()),
        ("requiresRepublish", false.into()),
        ("storageCapacity", false.into()),
        ("seLinuxMount", false.into()),
        ("volumeLifecycleModes", vec!["Ephemeral", "Persistent"].into()),
    ] {
        assert_eq!(spec[key], value, "{key}");
    }
}

#[test]
fn the_network_policy_lets_monitoring_to_the_metrics_port_and_nobody_anywhere_else() {
    let spec = &of_kind("NetworkPolicy")["spec"];
    let set = of_kind("DaemonSet");
    let pod = &set["spec"]["template"];
    // It is about the plugin's pods: of their labels it names those that stay over an upgrade.
    let selected = spec["podSelector"]["matchLabels"].as_object().expect("labels");
    assert!(!selected.is_empty());
    for (label, value) in selected {
        assert_eq!(&pod["metadata"]["labels"][label], value, "{label}");
    }
    assert_eq!(spec["podSelector"]["matchLabels"], set["spec"]["selector"]["matchLabels"]);
    assert_eq!(spec["policyTypes"], serde_json::json!(["Ingress"]));
    let ports = pod["spec"]["containers"][0]["ports"].as_array().expect("ports");
    let port = &ports.iter().find(|port| port["name"] == "metrics").expect("one")["containerPort"];
    let monitoring = serde_json::json!({"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}});
    let rules = serde_json::json!([{
        "from": [{"namespaceSelector": monitoring}],
        "ports": [{"port": port, "protocol": "TCP"}],
    }]);
    assert_eq!(spec["ingress"], rules);
    assert!(spec["egress"].is_null());
}

#[test]
fn without_pull_secrets_there_are_no_rights_and_no_token() {
    assert!(rights(&install()).is_empty());
    let account = of_kind("ServiceAccount");
    assert_eq!(account["automountServiceAccountToken"], false);
    assert_eq!(of_kind("DaemonSet")["spec"]["template"]["spec"]["automountServiceAccountToken"], false);
    assert!(of_kind("ConfigMap")["data"]["OCIVOL_IMAGE_PULL_SECRETS"].is_null());
}

#[test]
fn pull_secrets_need_the_right_to_get_pods_and_secrets_and_no_other() {
    for (objects, expected) in [
        (pull_secrets(), vec![("ClusterRole", None), ("ClusterRoleBinding", None)]),
        (
            pull_secrets_of_two(),
            vec![
                ("Role", Some("shop")),
                ("Role", Some("bank")),
                ("RoleBinding", Some("shop")),
                ("RoleBinding", Some("bank")),
            ],
        ),
    ] {
        let rights = rights(&objects);
        let found: Vec<_> = rights.iter().map(|(kind, namespace, _)| (kind.as_str(), *namespace)).collect();
        assert_eq!(found, expected);
        let pod = &one_of(&objects, "DaemonSet")["spec"]["template"]["spec"];
        let role_kind = expected[0].0;
        for (kind, _, object) in rights {
            if kind == role_kind {
                let rules = serde_json::json!([
                    {"apiGroups": [""], "resources": ["pods", "secrets"], "verbs": ["get"]},
                ]);
                assert_eq!(object["rules"], rules);
                assert!(object["aggregationRule"].is_null());
                continue;
            }
            let api = "rbac.authorization.k8s.io";
            let name = &object["metadata"]["name"];
            assert_eq!(
                object["roleRef"],
                serde_json::json!({"apiGroup": api, "kind": role_kind, "name": name})
            );
            let account = &pod["serviceAccountName"];
            let subject =
                serde_json::json!({"kind": "ServiceAccount", "name": account, "namespace": "ocivol"});
            assert_eq!(object["subjects"], serde_json::json!([subject]));
        }
        // The token is for the plugin's pods alone, not for whatever uses the account.
        assert_eq!(pod["automountServiceAccountToken"], true);
        assert_eq!(one_of(&objects, "ServiceAccount")["automountServiceAccountToken"], false);
        assert_eq!(one_of(&objects, "ConfigMap")["data"]["OCIVOL_IMAGE_PULL_SECRETS"], "true");
    }
}

#[test]
fn events_need_the_right_to_create_and_patch_events_and_no_other() {
    let objects = events();
    let rights = rights(&objects);
    let kinds: Vec<_> = rights.iter().map(|(kind, namespace, _)| (kind.as_str(), *namespace)).collect();
    assert_eq!(kinds, [("ClusterRole", None), ("ClusterRoleBinding", None)]);
    let rules =
        serde_json::json!([{"apiGroups": [""], "resources": ["events"], "verbs": ["create", "patch"]}]);
    assert_eq!(rights[0].2["rules"], rules);
    assert_eq!(rights[1].2["roleRef"]["name"], rights[0].2["metadata"]["name"]);
    let pod = &one_of(&objects, "DaemonSet")["spec"]["template"]["spec"];
    assert_eq!(rights[1].2["subjects"][0]["name"], pod["serviceAccountName"]);
    assert_eq!(pod["automountServiceAccountToken"], true);
    assert_eq!(one_of(&objects, "ConfigMap")["data"]["OCIVOL_POD_EVENTS"], "true");
}

#[test]
fn what_is_pulled_ahead_needs_the_rights_to_read_it_and_to_write_the_nodes_own() {
    let objects = prepull();
    let rights = rights(&objects);
    let kinds: Vec<_> = rights.iter().map(|(kind, namespace, _)| (kind.as_str(), *namespace)).collect();
    let expected = [
        ("ClusterRole", None),
        ("ClusterRoleBinding", None),
        ("Role", Some("ocivol")),
        ("RoleBinding", Some("ocivol")),
    ];
    assert_eq!(kinds, expected);
    let rules = serde_json::json!([
        {"apiGroups": ["ocivol.dev"], "resources": ["cachedartifacts"], "verbs": ["get", "list", "watch"]},
        {"apiGroups": ["ocivol.dev"], "resources": ["nodeartifacts"], "verbs": ["create"]},
        {"apiGroups": ["ocivol.dev"], "resources": ["nodeartifacts/status"], "verbs": ["patch"]},
        {"apiGroups": [""], "resources": ["nodes"], "verbs": ["get", "watch"]},
    ]);
    assert_eq!(rights[0].2["rules"], rules);
    let secrets = serde_json::json!([
        {"apiGroups": [""], "resources": ["secrets"], "resourceNames": ["regcred"], "verbs": ["get"]},
    ]);
    assert_eq!(rights[2].2["rules"], secrets);
    let pod = &one_of(&objects, "DaemonSet")["spec"]["template"]["spec"];
    for binding in [rights[1].2, rights[3].2] {
        assert_eq!(binding["roleRef"]["name"], rights[0].2["metadata"]["name"]);
        assert_eq!(binding["subjects"][0]["name"], pod["serviceAccountName"]);
    }
    assert_eq!(pod["automountServiceAccountToken"], true);
    assert_eq!(one_of(&objects, "ConfigMap")["data"]["OCIVOL_CACHED_ARTIFACTS"], "true");
    // The policy is about the plugin's own account.
    let policy = one_of(&objects, "ValidatingAdmissionPolicy");
    let condition = policy["spec"]["matchConditions"][0]["expression"].as_str().expect("an expression");
    let account = pod["serviceAccountName"].as_str().expect("a name");
    assert!(condition.contains(&format!("'system:serviceaccount:ocivol:{account}'")), "{condition}");
}

#[test]
fn the_controller_reads_what_nodes_say_and_writes_the_sum() {
    let objects = prepull_controller();
    let deployment = one_of(&objects, "Deployment");
    let pod = &deployment["spec"]["template"]["spec"];
    let arguments = pod["containers"][0]["args"].as_array().expect("arguments");
    for flag in ["--cached-artifacts", "--node-labels", "--startup-taint", "--startup-taint-timeout=600"] {
        assert!(arguments.contains(&flag.into()), "{flag}: {arguments:?}");
    }
    let settings =
        objects.iter().find(|object| object["metadata"]["name"] == "ocivol-config").expect("settings");
    assert_eq!(settings["data"]["OCIVOL_PREPULL_BYTES_PER_SECOND"], "200MiB");
    // It uses the API, and is where it takes a taint away.
    let mounts = pod["containers"][0]["volumeMounts"].as_array().expect("mounts");
    assert!(mounts.iter().any(|mount| mount["name"] == "token"), "{mounts:?}");
    let key = "csi.ocivol.dev/agent-not-ready";
    assert_eq!(pod["tolerations"], serde_json::json!([{"key": key, "operator": "Exists"}]));
    // What it may change of nodes is bounded by a policy about its own account.
    let policies = objects.iter().filter(|object| object["kind"] == "ValidatingAdmissionPolicy");
    let policy =
        policies.map(|policy| policy["spec"].to_string()).find(|policy| policy.contains("\"nodes\""));
    let policy = policy.expect("a policy of nodes");
    let account_of =
        format!("system:serviceaccount:ocivol:{}", pod["serviceAccountName"].as_str().expect("a name"));
    assert!(policy.contains(&account_of) && policy.contains(key), "{policy}");
    let rights = rights(&objects);
    let account = pod["serviceAccountName"].as_str().expect("a name");
    let of_controller = |object: &Value| {
        object["subjects"].as_array().is_some_and(|all| all.iter().any(|it| it["name"] == account))
    };
    let bound: Vec<&Value> = rights.iter().filter(|(.., it)| of_controller(it)).map(|(.., it)| *it).collect();
    let mut own = Vec::new();
    for binding in bound {
        let role = rights.iter().find(|(kind, _, it)| {
            *kind == binding["roleRef"]["kind"] && it["metadata"]["name"] == binding["roleRef"]["name"]
        });
        for rule in role.expect("a role").2["rules"].as_array().expect("rules") {
            let words = ["cachedartifacts", "cachedartifacts/status", "csinodes", "nodes", "secrets"];
            if rule["resources"]
                .as_array()
                .expect("resources")
                .iter()
                .any(|it| words.iter().any(|word| it == word))
            {
                own.push((rule["resources"].clone(), rule["resourceNames"].clone(), rule["verbs"].clone()));
            }
        }
    }
    let expected = [
        (
            serde_json::json!(["cachedartifacts", "nodeartifacts"]),
            Value::Null,
            serde_json::json!(["list", "watch"]),
        ),
        (serde_json::json!(["cachedartifacts/status"]), Value::Null, serde_json::json!(["patch"])),
        (serde_json::json!(["nodes"]), Value::Null, serde_json::json!(["list", "watch", "patch"])),
        (serde_json::json!(["csinodes"]), Value::Null, serde_json::json!(["list", "watch"])),
        (serde_json::json!(["secrets"]), serde_json::json!(["regcred"]), serde_json::json!(["get"])),
    ];
    assert_eq!(own, expected);
}

#[test]
fn what_an_operator_wrote_outlives_the_release() {
    let definitions: Vec<Value> =
        prepull().into_iter().filter(|object| object["kind"] == "CustomResourceDefinition").collect();
    assert_eq!(definitions.len(), 2);
    for definition in definitions {
        assert_eq!(definition["metadata"]["annotations"]["helm.sh/resource-policy"], "keep");
        assert!(!definition["spec"]["versions"][0]["subresources"]["status"].is_null());
    }
}

/// Page cache is charged to the container that writes it: a limit drops a model from memory before its pod reads it.
#[test]
fn the_plugin_has_no_limit_of_memory() {
    let set = of_kind("DaemonSet");
    let resources = &set["spec"]["template"]["spec"]["containers"][0]["resources"];
    assert!(resources["limits"].is_null() && !resources["requests"]["memory"].is_null(), "{resources}");
}

#[test]
fn the_daemon_set_is_one_privileged_container_that_shares_only_the_pods() {
    let set = of_kind("DaemonSet");
    let pod = &set["spec"]["template"]["spec"];
    assert!(pod["hostNetwork"].is_null() && pod["hostPID"].is_null() && pod["initContainers"].is_null());
    assert_eq!(pod["automountServiceAccountToken"], false);
    assert_eq!(pod["priorityClassName"], "system-node-critical");
    // A second plugin with the same name could not register: kubelet refuses it.
    assert!(set["spec"]["updateStrategy"]["rollingUpdate"]["maxSurge"].is_null());
    let containers = pod["containers"].as_array().expect("containers");
    assert_eq!(containers.len(), 1);
    assert_eq!(containers[0]["securityContext"]["readOnlyRootFilesystem"], true);
    let mounts = containers[0]["volumeMounts"].as_array().expect("mounts");
    let shared: Vec<&Value> = mounts.iter().filter(|mount| !mount["mountPropagation"].is_null()).collect();
    assert_eq!(shared.len(), 1);
    assert_eq!(shared[0]["mountPath"], "/var/lib/kubelet/pods");
    assert_eq!(shared[0]["mountPropagation"], "Bidirectional");
}
