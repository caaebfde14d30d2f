//! What is known to be damaged on the disk, and who is told.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use crate::kube::events::{About, Event, Events, Reason};
use crate::kube::pull_secrets::Pod;
use crate::store::fsck::report::Finding;
use crate::store::key::TreeKey;
use crate::store::open::Store;
use crate::store::usage::volumes::VolumeRecord;

/// What was found to be damaged, by the trees that show it, as long as the process runs.
#[derive(Debug, Default)]
pub(in crate::volume) struct Damages {
    known: Mutex<HashMap<TreeKey, String>>,
    events: Option<Events>,
}

/// Damaged trees that are remembered.
const DAMAGES: usize = 4096;

impl Damages {
    /// Tells pods of it by `events`, where there are some.
    pub(in crate::volume) fn new(events: Option<Events>) -> Self {
        Self { known: Mutex::default(), events }
    }

    /// Remembers what was found in `store`, and tells the pods that have it mounted. *Caller:* may block.
    pub(in crate::volume) fn add(&self, finding: &Finding, store: &Store) {
        let file = finding.path.as_deref().unwrap_or("its content");
        let text =
            format!("{file}: {} (found on the node's disk; delete the pod to get it again)", finding.problem);
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        for tree in &finding.trees {
            if known.len() < DAMAGES {
                known.insert(tree.clone(), text.clone());
            }
        }
        drop(known);
        let Some(events) = self.events.as_ref().filter(|_| !finding.trees.is_empty()) else { return };
        // Which records cannot be read, the log says elsewhere.
        let volumes = store.volumes.all().unwrap_or_default();
        for volume in volumes.iter().filter(|volume| finding.trees.contains(&volume.tree)) {
            if let Some(pod) = pod_of(volume) {
                let (about, subject) = (About::Pod(pod), volume.volume_id.clone());
                let message = format!("{}: {text}", volume.reference);
                events.tell(Event { about, subject, reason: Reason::ContentDamaged, message });
            }
        }
    }

    /// Whether nothing is known to be damaged, as mostly.
    pub(in crate::volume) fn is_nothing(&self) -> bool {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    /// What is wrong with `tree`, if something is.
    pub(in crate::volume) fn of(&self, tree: &TreeKey) -> Option<String> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).get(tree).cloned()
    }
}

/// The pod that has a volume: its UID is part of what kubelet calls the target.
fn pod_of(volume: &VolumeRecord) -> Option<Pod> {
    let (namespace, name) = volume.pod.as_deref()?.split_once('/')?;
    let uid = uid_of(&volume.target)?;
    Some(Pod { namespace: namespace.to_owned(), name: name.to_owned(), uid: uid.to_owned() })
}

/// Of `<pods>/<uid>/volumes/kubernetes.io~csi/<name>/mount` the UID.
fn uid_of(target: &Path) -> Option<&str> {
    let mut parts = target.iter().rev().skip(2);
    let is_volume = parts.next()? == "kubernetes.io~csi" && parts.next()? == "volumes";
    parts.next().filter(|_| is_volume)?.to_str()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pod_is_known_by_its_target() {
        let of = |path: &'static str| uid_of(Path::new(path));
        let target = "/var/lib/kubelet/pods/7d0e/volumes/kubernetes.io~csi/model/mount";
        assert_eq!(of(target), Some("7d0e"));
        for other in ["/mnt/model", "/", "volumes/kubernetes.io~csi/model/mount", "/a/b/c/d/e/f"] {
            assert_eq!(of(other), None, "{other}");
        }
    }
}
