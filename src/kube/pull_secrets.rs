//! The credentials that a pod names in `imagePullSecrets`.
//!
//! What kubelet does for the images of containers is done for volumes: a secret that cannot be read, or that is none of pull
//! secrets, is passed over and told of. The secrets are for the pod that kubelet told of, by its UID, and for no other of its name.

#![cfg_attr(not(test), deny(clippy::indexing_slicing))]

use std::collections::BTreeMap;

use base64::Engine as _;
use serde::{Deserialize, Deserializer};
use tokio::time::Instant;
use zeroize::Zeroizing;

use crate::kube::connection::Connection;
use crate::kube::error::Error;
use crate::kube::object::{Object, Resource, short};
use crate::registry::credentials::keyring::Keyring;
use crate::registry::credentials::secret::Secret;

/// A pod, as kubelet tells of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pod {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its UID: tells it from another pod of that name.
    pub uid: String,
}

/// What the `imagePullSecrets` of a pod hold.
#[derive(Debug, Default)]
pub struct PullSecrets {
    /// The credentials of each secret that could be read, in the order of the pod. Their identities are `secret` and its UID.
    pub keyrings: Vec<Keyring>,
    /// Why others were passed over.
    pub problems: Vec<Error>,
}

/// Secrets that are read for one pod.
const SECRETS: usize = 32;
/// Bytes of a UID; Kubernetes' have 36.
const UID_LIMIT: usize = 64;

/// Of `metadata`, what is looked at.
#[derive(Deserialize)]
struct Metadata {
    #[serde(default)]
    uid: String,
}

/// Of a pod, what is looked at.
#[derive(Deserialize)]
struct PodObject {
    metadata: Metadata,
    #[serde(default)]
    spec: PodSpec,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase")]
struct PodSpec {
    image_pull_secrets: Option<Vec<LocalReference>>,
}

#[derive(Deserialize)]
struct LocalReference {
    #[serde(default)]
    name: String,
}

/// Of a secret, what is looked at: its other keys are not decoded.
#[derive(Deserialize)]
struct SecretObject {
    metadata: Metadata,
    #[serde(rename = "type", default)]
    kind: String,
    data: Option<SecretData>,
}

#[derive(Deserialize)]
struct SecretData {
    #[serde(rename = ".dockerconfigjson")]
    config: Option<Encoded>,
    #[serde(rename = ".dockercfg")]
    auths: Option<Encoded>,
}

/// A value of a secret, in base64.
struct Encoded(Secret);

impl<'de> Deserialize<'de> for Encoded {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Self(Secret::new(String::deserialize(deserializer)?)))
    }
}

impl Encoded {
    fn decode(&self) -> Result<Secret, &'static str> {
        let bytes = base64::engine::general_purpose::STANDARD.decode(self.0.reveal());
        let bytes = Zeroizing::new(bytes.map_err(|_| "is not base64")?);
        let text = std::str::from_utf8(&bytes).map_err(|_| "is not text")?;
        if text.is_empty() { Err("is empty") } else { Ok(Secret::new(text)) }
    }
}

/// Reads the pull secrets of `pod`, each once and in the pod's order, until `deadline`. Nothing is kept.
///
/// # Errors
/// When the pod cannot be read, or is another; and when the API server cannot be asked for one of the secrets now, so that nobody
/// knows what it holds. What is wrong with a secret itself is a problem among the results.
pub(in crate::kube) async fn read(
    connection: &Connection,
    pod: &Pod,
    deadline: Instant,
) -> Result<PullSecrets, Error> {
    let object = Object::new(Resource::Pod, &pod.namespace, &pod.name)?;
    let found: PodObject = connection.get(&object, deadline).await?;
    if pod.uid.is_empty() || found.metadata.uid != pod.uid {
        let (told, found) = (short(&pod.uid), short(&found.metadata.uid));
        return Err(Error::WrongPod { pod: object, told, found });
    }
    let names = names(found.spec.image_pull_secrets.unwrap_or_default());
    let mut secrets = PullSecrets::default();
    if names.len() > SECRETS {
        secrets.problems.push(Error::TooMany { pod: object, count: names.len(), limit: SECRETS });
    }
    for name in names.iter().take(SECRETS) {
        match keyring(connection, &pod.namespace, name, deadline).await {
            Ok(keyring) => secrets.keyrings.push(keyring),
            Err(error) if error.is_transient() => return Err(error),
            Err(error) => secrets.problems.push(error),
        }
    }
    Ok(secrets)
}

/// The names of secrets, each once. An empty one is passed over, as kubelet does.
fn names(references: Vec<LocalReference>) -> Vec<String> {
    let mut names = Vec::new();
    for LocalReference { name } in references {
        if !name.is_empty() && !names.contains(&name) {
            names.push(name);
        }
    }
    names
}

/// The credentials in one secret.
pub(in crate::kube) async fn keyring(
    connection: &Connection,
    namespace: &str,
    name: &str,
    deadline: Instant,
) -> Result<Keyring, Error> {
    let object = Object::new(Resource::Secret, namespace, name)?;
    let found: SecretObject = connection.get(&object, deadline).await?;
    if !(1..=UID_LIMIT).contains(&found.metadata.uid.len()) {
        return Err(Error::Protocol { what: object, fault: "has no UID".to_owned() });
    }
    let (config, auths) = found.data.map_or((None, None), |data| (data.config, data.auths));
    let (key, value) = match found.kind.as_str() {
        "kubernetes.io/dockerconfigjson" => (".dockerconfigjson", config),
        "kubernetes.io/dockercfg" => (".dockercfg", auths),
        other => return Err(Error::WrongType { secret: object, found: short(other) }),
    };
    let text = match value.ok_or("is missing").and_then(|value| value.decode()) {
        Ok(text) => text,
        Err(fault) => return Err(Error::Unusable { secret: object, key, fault }),
    };
    match Keyring::from_secrets(&BTreeMap::from([(key.to_owned(), text)])) {
        Ok(keyring) => Ok(keyring.with_identity(&format!("secret {}", found.metadata.uid))),
        Err(source) => Err(Error::Credentials { secret: object, source }),
    }
}
