//! The CachedArtifacts that there are, and what the reference of each is: their registries are asked once, and what is in the status counts.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;
use tokio::task::{Id, JoinSet};
use tokio::time::Instant;

use crate::kube::cluster::Cluster;
use crate::kube::watch::Seen;
use crate::oci::digest::Digest;
use crate::oci::reference::Reference;
use crate::prepull::artifact::{CachedArtifact, Wanted};
use crate::prepull::summary::Resolution;
use crate::pull::remote;
use crate::registry::client::Registry;
use crate::registry::credentials::keyring::Keyring;
use crate::tenant::Tenant;

/// All that there are.
pub(in crate::prepull) struct Artifacts {
    cluster: Cluster,
    registry: Registry,
    /// Whether registries are asked without credentials.
    anonymous: bool,
    all: BTreeMap<String, Artifact>,
    /// Names of those that are there and were never understood.
    unclear: BTreeSet<String>,
    asking: JoinSet<Result<Digest, String>>,
    /// What is asked by each of these tasks.
    asked: HashMap<Id, Question>,
}

/// A CachedArtifact, and what is known of it.
pub(in crate::prepull) struct Artifact {
    pub object: CachedArtifact,
    /// Its status as it is in the API.
    pub status: Value,
    pub resolution: Resolution,
    /// When its registry may be asked again, and how long after that.
    next: Instant,
    retry: Duration,
}

/// What a reference is, for the artifact of this name.
#[derive(PartialEq, Eq)]
struct Question {
    name: String,
    reference: String,
    pull_secret: Option<String>,
}

/// CachedArtifacts that are remembered.
const ARTIFACTS: usize = 1000;
/// Registries that are asked at a time.
const ASKED: usize = 8;
/// After a registry could not be asked; twice as long each time.
const FIRST_RETRY: Duration = Duration::from_secs(30);
const LAST_RETRY: Duration = Duration::from_secs(900);

impl Artifacts {
    pub fn new(cluster: Cluster, registry: Registry, anonymous: bool) -> Self {
        let (all, asking, asked) = (BTreeMap::new(), JoinSet::new(), HashMap::new());
        Self { cluster, registry, anonymous, all, unclear: BTreeSet::new(), asking, asked }
    }

    pub fn names(&self) -> Vec<String> {
        self.all.keys().cloned().collect()
    }

    pub fn iter(&self) -> impl Iterator<Item = (&String, &Artifact)> {
        self.all.iter()
    }

    /// The names of those of which nothing is known but that they are there.
    pub fn unclear(&self) -> &BTreeSet<String> {
        &self.unclear
    }

    pub fn get_mut(&mut self, name: &str) -> Option<&mut Artifact> {
        self.all.get_mut(name)
    }

    /// Notes what was seen. Whether more than what the controller writes was changed.
    pub fn see(&mut self, seen: Seen<Value>) -> bool {
        match seen {
            Seen::All(all) => {
                let mut before = std::mem::take(&mut self.all);
                self.unclear.clear();
                for object in all.into_iter().take(ARTIFACTS) {
                    let known = before.remove(&name_of(&object));
                    self.insert(object, known);
                }
                true
            }
            Seen::Set(object) => {
                let name = name_of(&object);
                if self.all.len() >= ARTIFACTS && !self.all.contains_key(&name) {
                    tracing::warn!(
                        name,
                        "there are more than {ARTIFACTS} CachedArtifacts: this one is not looked at"
                    );
                    return false;
                }
                self.unclear.remove(&name);
                let before = self.all.remove(&name);
                let what = |artifact: &Artifact| (artifact.object.clone(), artifact.resolution.clone());
                let was = before.as_ref().map(what);
                self.insert(object, before);
                self.all.get(&name).map(what) != was
            }
            Seen::Gone(name) => self.unclear.remove(&name) | self.all.remove(&name).is_some(),
        }
    }

    /// Of what is not understood, because a later version has written it, what was known before counts.
    fn insert(&mut self, mut object: Value, before: Option<Artifact>) {
        let name = name_of(&object);
        let status = object.as_object_mut().and_then(|fields| fields.remove("status")).unwrap_or_default();
        let artifact = match CachedArtifact::deserialize(object) {
            Ok(object) => Some(Artifact::seen(object, status, before)),
            Err(_) => before,
        };
        match artifact {
            Some(artifact) => drop(self.all.insert(name, artifact)),
            None => drop(self.unclear.insert(name)),
        }
    }

    /// Asks the registries of those whose digest is not known, when it is time.
    pub fn ask(&mut self) {
        let now = Instant::now();
        for artifact in self.all.values() {
            if self.asking.len() >= ASKED {
                return;
            }
            let is_due = !matches!(artifact.resolution, Resolution::Known(_)) && artifact.next <= now;
            if !is_due {
                continue;
            }
            let wanted = artifact.object.wanted();
            let question = Question::of(&wanted);
            if self.asked.values().any(|asked| *asked == question) {
                continue;
            }
            let (cluster, registry, anonymous) =
                (self.cluster.clone(), self.registry.clone(), self.anonymous);
            let task = self
                .asking
                .spawn(async move { Box::pin(resolve(&cluster, &registry, &wanted, anonymous)).await });
            self.asked.insert(task.id(), question);
        }
    }

    /// Waits for the next answer of a registry. The name of the artifact of which something is known then.
    pub async fn answered(&mut self) -> Option<String> {
        let (task, result) = match self.asking.join_next_with_id().await? {
            Ok(answer) => answer,
            Err(error) => {
                (error.id(), Err("asking its registry failed, of which the log says more".to_owned()))
            }
        };
        let question = self.asked.remove(&task)?;
        let artifact = self.all.get_mut(&question.name)?;
        if Question::of(&artifact.object.wanted()) != question {
            return None; // Something else is asked now.
        }
        if matches!(artifact.resolution, Resolution::Known(_)) {
            return None; // Somebody else was faster.
        }
        artifact.resolution = match result {
            Ok(digest) => Resolution::Known(digest),
            Err(reason) => {
                artifact.next = Instant::now() + artifact.retry;
                artifact.retry = (2 * artifact.retry).min(LAST_RETRY);
                Resolution::Failed(reason)
            }
        };
        Some(question.name)
    }

    pub fn are_asked(&self) -> bool {
        !self.asking.is_empty()
    }
}

impl Question {
    fn of(wanted: &Wanted) -> Self {
        let (name, reference) = (wanted.name.clone(), wanted.reference().to_owned());
        Self { name, reference, pull_secret: wanted.pull_secret.clone() }
    }
}

impl Artifact {
    /// What is known of an object that is seen now, and what was known of it `before`.
    fn seen(object: CachedArtifact, status: Value, before: Option<Self>) -> Self {
        let wanted = object.wanted();
        let reference = wanted.reference();
        let mut artifact = Self {
            object,
            status,
            resolution: Resolution::Pending,
            next: Instant::now(),
            retry: FIRST_RETRY,
        };
        // Another node selector is no other reference: what it was resolved to stays. Where it could not be, another secret may help.
        if let Some(Self { object, resolution, next, retry, .. }) = before {
            let was = object.wanted();
            let is_same = was.pull_secret == wanted.pull_secret;
            if was.reference() == reference && (is_same || matches!(resolution, Resolution::Known(_))) {
                artifact = Self { resolution, next, retry, ..artifact };
            }
        }
        // What the object says is so, whoever has written it: this process before a restart, or another one at the same time.
        let said = artifact.status["digest"].as_str().filter(|_| artifact.status["reference"] == reference);
        if let Some(digest) = said.and_then(|digest| digest.parse().ok()) {
            artifact.resolution = Resolution::Known(digest);
        }
        artifact
    }
}

fn name_of(object: &Value) -> String {
    object["metadata"]["name"].as_str().unwrap_or_default().to_owned()
}

/// What the reference is, of several platforms the index.
async fn resolve(
    cluster: &Cluster,
    registry: &Registry,
    wanted: &Wanted,
    anonymous: bool,
) -> Result<Digest, String> {
    let reference = wanted.reference().parse::<Reference>().map_err(|error| error.to_string())?;
    if let Some(digest) = reference.digest() {
        return Ok(digest.clone());
    }
    if reference.is_layout() {
        return Err("it lies on the nodes".to_owned());
    }
    let keyring = match &wanted.pull_secret {
        None => Keyring::default(),
        Some(name) => cluster.own_pull_secret(name).await.map_err(|error| crate::failure::chain(&error))?,
    };
    let found = remote::find(registry, &reference, &keyring, &Tenant::PrePull, anonymous).await;
    found.map(|(_, fetched)| fetched.digest).map_err(|failure| failure.message)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn object(spec: &Value) -> CachedArtifact {
        let object = json!({"metadata": {"name": "llama", "generation": 1}, "spec": spec});
        CachedArtifact::deserialize(object).expect("an artifact")
    }

    #[test]
    fn regression_what_another_controller_has_written_is_what_the_reference_is() {
        let seen = |reference: &str, of: &str, digest: Option<&Digest>, before| {
            let digest = digest.map(ToString::to_string);
            let status = json!({"reference": of, "digest": digest});
            let spec = json!({"reference": reference});
            Artifact::seen(object(&spec), status, before)
        };
        let (own, others) = (Digest::sha256(b"own"), Digest::sha256(b"others"));
        let tag = "r.example/m:v1";
        let mut artifact = seen(tag, "", None, None);
        assert_eq!(artifact.resolution, Resolution::Pending);
        // Its registry did not answer, and the other's did.
        artifact.resolution = Resolution::Failed("429".to_owned());
        let mut artifact = seen(tag, tag, Some(&others), Some(artifact));
        assert_eq!(artifact.resolution, Resolution::Known(others.clone()));
        // Both have asked, and the tag has moved meanwhile: who has written is right.
        artifact.resolution = Resolution::Known(own);
        let artifact = seen(tag, tag, Some(&others), Some(artifact));
        assert_eq!(artifact.resolution, Resolution::Known(others.clone()));
        // Another secret is tried at once, and what is known stays known.
        let secret = |name: &str, before| {
            let spec = json!({"reference": tag, "pullSecret": name});
            Artifact::seen(object(&spec), Value::Null, Some(before))
        };
        let known = secret("a", artifact);
        assert_eq!(known.resolution, Resolution::Known(others.clone()));
        let later = Instant::now() + LAST_RETRY;
        let failed = Artifact { resolution: Resolution::Failed("401".to_owned()), next: later, ..known };
        let failed = secret("a", failed);
        assert_eq!((&failed.resolution, failed.next), (&Resolution::Failed("401".to_owned()), later));
        let again = secret("b", failed);
        assert!(again.resolution == Resolution::Pending && again.next <= Instant::now());
        let artifact = Artifact { resolution: Resolution::Known(others.clone()), ..again };
        // That is of no other reference.
        let artifact = seen("r.example/m:v2", tag, Some(&others), Some(artifact));
        assert_eq!(artifact.resolution, Resolution::Pending);
    }
}
