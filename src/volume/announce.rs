//! What the events of a pod say of the pull that it waits for.
//!
//! Failures are not told here: kubelet's own event (`FailedMount`) has the same words.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use indicatif::{BinaryBytes, HumanDuration};

use crate::kube::events::{About, Event, EventMetrics, Events, Reason};
use crate::kube::pull_secrets::Pod;
use crate::oci::digest::Digest;
use crate::oci::reference::Reference;
use crate::pull::progress::Snapshot;
use crate::pull::request::Pulled;

/// Milliseconds that a pull takes before its pod is told of it.
const LONG: u64 = 5_000;
/// After so many milliseconds it is told how far it is; and then each time that the last of them has passed again.
const STEPS: [u64; 4] = [LONG, 30_000, 60_000, 120_000];
/// Milliseconds between two texts, at least: kubelet asks again and again.
const APART: u64 = 25_000;
/// Volumes of pods that were told of a pull that has not ended.
const OPEN: usize = 1024;

/// Tells pods of their pulls, where events are to be written.
#[derive(Debug, Default)]
pub struct Announcements {
    events: Option<Events>,
    open: Mutex<VecDeque<(String, String)>>,
}

/// Tells one pod of one pull, as long as a request of kubelet waits for it.
pub(in crate::volume) struct Announcer<'a> {
    all: &'a Announcements,
    events: &'a Events,
    pod: &'a Pod,
    volume: &'a str,
    reference: &'a Reference,
    /// The milliseconds of the pull after which this request began to wait for it.
    began: Option<u64>,
    /// The milliseconds of the pull after which it is told again.
    next: u64,
}

impl Announcements {
    /// Writes `events`, or tells nobody.
    pub fn new(events: Option<Events>) -> Self {
        Self { events, open: Mutex::default() }
    }

    /// Makes what became of events part of what is served, also where there are none.
    pub fn register(&self, registry: &mut prometheus_client::registry::Registry) {
        let none = EventMetrics::default();
        self.events.as_ref().map_or(&none, Events::metrics).register(registry);
    }

    /// Tells the node's operator of the store. Whether it is told.
    pub(in crate::volume) fn of_store(&self, reason: Reason, message: String) -> bool {
        self.events.as_ref().is_some_and(|events| {
            events.tell(Event { about: About::Node, subject: "store".to_owned(), reason, message })
        })
    }

    /// For a request to publish `volume` for `pod`. None where nobody is told.
    pub(in crate::volume) fn of<'a>(
        &'a self,
        pod: Option<&'a Pod>,
        volume: &'a str,
        reference: &'a Reference,
    ) -> Option<Announcer<'a>> {
        let (events, pod) = (self.events.as_ref()?, pod?);
        Some(Announcer { all: self, events, pod, volume, reference, began: None, next: 0 })
    }
}

impl Announcer<'_> {
    /// The pull is so far.
    pub fn progress(&mut self, snapshot: &Snapshot) {
        let elapsed = snapshot.elapsed_ms;
        // A pull that was begun for others is not news for a pod that has just come.
        if self.began.is_none() {
            self.began = Some(elapsed);
            self.next = if elapsed < LONG { LONG } else { elapsed + LONG };
        }
        if elapsed < self.next {
            return;
        }
        self.next = after(elapsed);
        self.remember();
        self.tell(Reason::Pulling, self.volume, format!("{}: {snapshot}", self.reference));
    }

    /// The pull has ended, and this is what it gave.
    pub fn pulled(&self, snapshot: &Snapshot, pulled: &Pulled) {
        let waited = snapshot.elapsed_ms.saturating_sub(self.began.unwrap_or(snapshot.elapsed_ms));
        if self.forget() || waited >= LONG {
            self.tell(
                Reason::Pulled,
                self.volume,
                sentence(self.reference, &pulled.digest, pulled.tree.image.size, snapshot),
            );
        }
    }

    /// The registry has said this. Whether it is told.
    pub fn warned(&self, text: &str) -> bool {
        self.tell(Reason::RegistryWarning, text, text.to_owned())
    }

    fn tell(&self, reason: Reason, subject: &str, message: String) -> bool {
        let (about, subject) = (About::Pod(self.pod.clone()), subject.to_owned());
        self.events.tell(Event { about, subject, reason, message })
    }

    fn remember(&self) {
        self.forget();
        let mut open = self.all.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.truncate(OPEN - 1);
        open.push_front((self.pod.uid.clone(), self.volume.to_owned()));
    }

    /// Whether the pod was told of a pull that goes on.
    fn forget(&self) -> bool {
        let mut open = self.all.open.lock().unwrap_or_else(PoisonError::into_inner);
        let before = open.len();
        open.retain(|(pod, volume)| *pod != self.pod.uid || volume != self.volume);
        open.len() < before
    }
}

/// When a pull that was told of after `elapsed` milliseconds is told of again.
fn after(elapsed: u64) -> u64 {
    let [.., last] = STEPS;
    let step = STEPS.into_iter().find(|step| *step > elapsed);
    let step = step.unwrap_or_else(|| (elapsed / last + 1) * last);
    step.max(elapsed + APART)
}

fn sentence(reference: &Reference, digest: &Digest, size: u64, snapshot: &Snapshot) -> String {
    let name = match reference.digest() {
        Some(_) => reference.to_string(),
        None => format!("{reference}@{digest}"),
    };
    // Of a pull whose end nobody has seen there is no time to tell.
    let time = (snapshot.elapsed_ms >= LONG).then(|| {
        let time = HumanDuration(std::time::Duration::from_millis(snapshot.elapsed_ms));
        let (fetched, rate) = (BinaryBytes(snapshot.fetched), BinaryBytes(snapshot.rate()));
        format!(" in {time}; {fetched} were fetched, {rate}/s")
    });
    format!("{name}: {}{}", BinaryBytes(size), time.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pull_is_told_of_at_first_often_and_then_every_two_minutes() {
        let mut times = vec![LONG];
        while times[times.len() - 1] < 600_000 {
            times.push(after(times[times.len() - 1]));
        }
        assert_eq!(times, [5_000, 30_000, 60_000, 120_000, 240_000, 360_000, 480_000, 600_000]);
        // kubelet has asked again.
        assert_eq!(after(117_000), 142_000);
    }

    #[test]
    fn what_was_pulled_is_named_by_its_digest() {
        let digest = Digest::sha256(b"x");
        let reference: Reference = "r.example/m:v1".parse().expect("a reference");
        let long = Snapshot { fetched: 41 << 30, elapsed_ms: 41_000, ..Snapshot::default() };
        assert_eq!(
            sentence(&reference, &digest, 41 << 30, &long),
            format!("r.example/m:v1@{digest}: 41.00 GiB in 41 seconds; 41.00 GiB were fetched, 1.00 GiB/s")
        );
        let reference: Reference = format!("r.example/m@{digest}").parse().expect("a reference");
        let text = sentence(&reference, &digest, 1 << 20, &Snapshot::default());
        assert_eq!(text, format!("r.example/m@{digest}: 1.00 MiB"));
    }
}
