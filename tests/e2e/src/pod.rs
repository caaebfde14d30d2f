//! What pods look like here.

use serde_json::{Value, json};

use crate::registry::REGISTRY;

pub const DRIVER: &str = "csi.ocivol.dev";

/// A pod with one volume `model` at `/m`, whose container sleeps. `changes` are merged into its spec.
pub fn pod(name: &str, volume: Value, changes: &Value) -> Value {
    let mut pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
        "spec": {
            "restartPolicy": "Never", "terminationGracePeriodSeconds": 1, "automountServiceAccountToken": false,
            "containers": [{
                "name": "main", "image": format!("{REGISTRY}/e2e/pod:v1"),
                "volumeMounts": [{"name": "model", "mountPath": "/m"}],
            }],
        },
    });
    pod["spec"]["volumes"] = Value::Array(vec![volume]);
    merge(&mut pod["spec"], changes);
    pod
}

/// An inline volume as the README shows it.
pub fn inline(reference: &str) -> Value {
    inline_with(reference, &json!({}))
}

/// The same with further attributes.
pub fn inline_with(reference: &str, attributes: &Value) -> Value {
    let mut volume = json!({"name": "model", "csi": {
        "driver": DRIVER, "readOnly": true, "volumeAttributes": {"reference": reference},
    }});
    merge(&mut volume["csi"]["volumeAttributes"], attributes);
    volume
}

/// A volume of a claim.
pub fn claim(name: &str, read_only: bool) -> Value {
    json!({"name": "model", "persistentVolumeClaim": {"claimName": name, "readOnly": read_only}})
}

/// A container that runs `script` and then sleeps.
pub fn script(script: &str) -> Value {
    json!({"containers": [{"command": ["sh", "-c", format!("{script}\nsleep 86400")]}]})
}

/// A container that runs `script` and ends.
pub fn job(script: &str) -> Value {
    json!({"containers": [{"command": ["sh", "-c", script]}]})
}

/// Merges objects by key, lists by position; anything else is replaced.
pub fn merge(into: &mut Value, from: &Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            for (key, value) in from {
                merge(into.entry(key.clone()).or_insert(Value::Null), value);
            }
        }
        (Value::Array(into), Value::Array(from)) => {
            for (at, value) in from.iter().enumerate() {
                if at < into.len() {
                    merge(&mut into[at], value);
                } else {
                    into.push(value.clone());
                }
            }
        }
        (into, from) => *into = from.clone(),
    }
}
