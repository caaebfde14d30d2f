//! What is known to be damaged on the disk, and who is told.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::kube::events::{About, Event, Events, Reason};
use crate::kube::pull_secrets::Pod;
use crate::store::fsck::report::Finding;
use crate::store::key::TreeKey;
use crate::store::open::Store;
use crate::store::usage::volumes::VolumeRecord;

/// What was found to be damaged, by the trees that show it, as long as the process runs.
#[derive(Debug, Default)]
pub(in crate::volume) struct Damages {
    known: Mutex<HashMap<TreeKey, Damage>>,
    events: Option<Events>,
}

#[derive(Debug)]
struct Damage {
    text: String,
    /// When pods that have the tree mounted were told.
    told: Instant,
}

/// Damaged trees that are remembered.
const DAMAGES: usize = 4096;
/// Of one tree, as of one file after the other that is damaged, pods are told once in this time.
const APART: Duration = Duration::from_secs(3600);

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
        let news = self.remember(&finding.trees, &text, Instant::now());
        let Some(events) = self.events.as_ref().filter(|_| !news.is_empty()) else { return };
        // Which records cannot be read, the log says elsewhere.
        let volumes = store.volumes.all().unwrap_or_default();
        for volume in volumes.iter().filter(|volume| news.contains(&&volume.tree)) {
            if let Some(pod) = pod_of(volume) {
                let (about, subject) = (About::Pod(pod), volume.volume_id.clone());
                let message = format!("{}: {text}", volume.reference);
                events.tell(Event { about, subject, reason: Reason::ContentDamaged, message });
            }
        }
    }

    /// Remembers that `trees` are damaged. Those of which pods are to be told now.
    fn remember<'a>(&self, trees: &'a [TreeKey], text: &str, now: Instant) -> Vec<&'a TreeKey> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let mut news = Vec::new();
        for tree in trees {
            let told = known.get(tree).map(|damage| damage.told);
            let recently = told.filter(|told| now.saturating_duration_since(*told) < APART);
            if recently.is_none() {
                news.push(tree);
            }
            if told.is_some() || known.len() < DAMAGES {
                known.insert(tree.clone(), Damage { text: text.to_owned(), told: recently.unwrap_or(now) });
            }
        }
        news
    }

    /// Whether nothing is known to be damaged, as mostly.
    pub(in crate::volume) fn is_nothing(&self) -> bool {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    /// What is wrong with `tree`, if something is.
    pub(in crate::volume) fn of(&self, tree: &TreeKey) -> Option<String> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).get(tree).map(|damage| damage.text.clone())
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
    fn of_a_tree_with_many_damaged_files_pods_are_told_once_an_hour() {
        let (damages, now) = (Damages::new(None), Instant::now());
        let [one, two] = ["1", "2"].map(|digit| TreeKey::parse(&digit.repeat(64)).expect("a key"));
        let at = |seconds| now + Duration::from_secs(seconds);
        let both = [one.clone(), two.clone()];
        assert_eq!(damages.remember(&both[..1], "a", at(0)), [&one]);
        assert_eq!(damages.remember(&both[..1], "b", at(1)), [] as [&TreeKey; 0]);
        assert_eq!(damages.remember(&both, "c", at(2)), [&two], "it was not told of");
        assert_eq!(damages.of(&one).as_deref(), Some("c"), "what was found last");
        assert_eq!(
            damages.remember(&both, "d", at(3601)),
            [&one],
            "it was pulled again, and is damaged again"
        );
    }

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
