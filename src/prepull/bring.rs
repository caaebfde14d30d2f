//! One artifact on this node: waits for its moment and its turn, pulls, keeps, and looks now and then whether it is still there.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Semaphore, watch};
use tokio::task::JoinHandle;
use tokio::time::sleep;

use crate::failure;
use crate::kube::cluster::Cluster;
use crate::kube::error::Error as KubeError;
use crate::prepull::artifact::Wanted;
use crate::prepull::board::{Board, Present, State};
use crate::pull::error::Error as PullError;
use crate::pull::outcome::Outcome;
use crate::pull::progress::Snapshot;
use crate::pull::request::{PullPolicy, Pulled};
use crate::registry::credentials::keyring::Keyring;
use crate::store::key::TreeKey;
use crate::store::usage::pins::Pin;
use crate::tenant::Tenant;
use crate::volume::attributes::Attributes;
use crate::volume::credentials::Wanting;
use crate::volume::volumes::Volumes;

/// What all artifacts of a node share.
#[derive(Clone)]
pub(in crate::prepull) struct Shared {
    pub volumes: Arc<Volumes>,
    pub cluster: Cluster,
    /// The node's name.
    pub node: String,
    pub board: Board,
    /// Whose turn it is.
    pub turns: Arc<Semaphore>,
}

/// An artifact that is brought, until that is ended.
pub(in crate::prepull) struct Bringing {
    pub wanted: Wanted,
    end: watch::Sender<bool>,
    task: JoinHandle<()>,
}

/// Artifacts that are pulled at a time.
pub(in crate::prepull) const PULLS: usize = 2;
/// After a failure; twice as long each time, and a part of it is random.
const FIRST_RETRY: Duration = Duration::from_secs(10);
const LAST_RETRY: Duration = Duration::from_secs(900);
/// Until room is looked for again.
const ROOM_RETRY: Duration = Duration::from_secs(600);
/// How often it is looked at how far a pull is.
const LOOK: Duration = Duration::from_secs(1);
/// How often it is looked whether what was brought is there.
const STILL_THERE: Duration = Duration::from_secs(600);

/// Why it did not come.
struct Fault {
    state: State,
    retry: Option<Duration>,
}

/// Somebody ended it.
struct Ended;

/// What was found of what is wanted before anything was done.
enum Found {
    /// It is here, and noted as it is wanted.
    Here(TreeKey),
    /// It was brought once, and has gone since, as what is not kept may.
    Gone,
    /// It is not here, or that cannot be told, or it has to be noted otherwise.
    Nothing,
}

impl Bringing {
    /// Begins to bring what is `wanted`, for which `pin` is what was noted last. What of it is here is said when this returns.
    pub async fn start(shared: &Shared, wanted: Wanted, pin: Option<Pin>) -> Self {
        let (end, ends) = watch::channel(false);
        let mut one = One { shared: shared.clone(), wanted: wanted.clone(), pin: None, ends };
        one.pin = pin.filter(|pin| one.is_wanted(pin));
        let found = one.look().await;
        let task = tokio::spawn(async move {
            // Nobody is told: who ended it knows.
            let _: Result<(), Ended> = one.run(found).await;
        });
        Self { wanted, end, task }
    }

    /// Ends it: nothing is pulled, kept or noted by it afterwards.
    pub async fn end(self) {
        self.end.send_replace(true);
        let _ = self.task.await;
    }
}

struct One {
    shared: Shared,
    wanted: Wanted,
    /// What was noted last, if it is of what is wanted.
    pin: Option<Pin>,
    ends: watch::Receiver<bool>,
}

impl One {
    /// Looks at what is here already, and says so: for that neither a turn nor a secret, a registry or an API server is needed.
    async fn look(&self) -> Found {
        let Some(pin) = &self.pin else { return Found::Nothing };
        match self.shared.volumes.has(&pin.tree).await {
            Ok(true) => {
                self.note(State::Ready(present(pin)));
                match (pin.is_kept, self.wanted.is_pinned) {
                    // What was not kept may go in this moment: it is pulled again, without a download.
                    (false, true) if !self.wanted.is_suspended => Found::Nothing,
                    (true, false) if !self.let_go(pin).await => Found::Nothing,
                    _ => Found::Here(pin.tree.clone()),
                }
            }
            Ok(false) if !self.wanted.is_pinned => {
                self.note(State::Waiting("Collected"));
                Found::Gone
            }
            Ok(false) => Found::Nothing,
            Err(error) => {
                // A store that cannot be used says so when it is pulled.
                tracing::debug!(%error, "cannot look whether an artifact is there");
                Found::Nothing
            }
        }
    }

    /// Keeps it no longer. Whether that is noted: a store that cannot be used says so when it is pulled.
    async fn let_go(&self, pin: &Pin) -> bool {
        let loose = Pin { is_kept: false, ..pin.clone() };
        let present = present(&loose);
        let noted = self.shared.volumes.keep(loose).await;
        if noted.is_ok() {
            self.note(State::Ready(present));
        }
        noted.is_ok()
    }

    /// Whether `pin` is of what is wanted: pulled as the same, with the same attributes, and no other than a digest that is known since.
    fn is_wanted(&self, pin: &Pin) -> bool {
        let wanted = self.wanted.reference();
        let digest = wanted.split_once('@').map(|(_, digest)| digest);
        is_same(&pin.reference, wanted)
            && digest.is_none_or(|digest| digest == pin.digest.to_string())
            && pin.attributes == self.wanted.further_attributes()
    }

    async fn run(&self, found: Found) -> Result<(), Ended> {
        if self.wanted.is_suspended {
            if let Found::Here(tree) = &found {
                self.gone(tree).await?;
            }
            // What is kept of another generation stays, and is not what is wanted.
            self.note(State::Waiting("Suspended"));
            return Ok(());
        }
        let mut here = match found {
            Found::Here(tree) => Some(tree),
            Found::Gone => return Ok(()),
            Found::Nothing => None,
        };
        let attributes = match self.attributes() {
            Ok(attributes) => attributes,
            Err(text) => {
                self.note(State::Failed("InvalidSpec", text));
                return Ok(()); // Another spec is another of these.
            }
        };
        // Where only what it was resolved to has changed, its moment may have come already. Else all of it counts anew: nodes learn of
        // that at the same time.
        let has_begun = |state: &State| !matches!(state, State::Waiting(reason) if *reason != "Queued");
        if self.pin.is_none() && !self.is_noted(has_begun) {
            let delay = self.wanted.delay(&self.shared.node);
            if !delay.is_zero() {
                self.note(State::Waiting("Spread"));
                self.unless_ended(sleep(delay)).await?;
            }
        }
        let mut retry = FIRST_RETRY;
        loop {
            let brought = match here.take() {
                Some(tree) => Ok(tree),
                None => self.attempt(&attributes).await?,
            };
            match brought {
                Ok(tree) => {
                    retry = FIRST_RETRY;
                    if !self.is_lost(&tree).await? {
                        return Ok(());
                    }
                }
                Err(Fault { state, retry: own }) => {
                    self.note(state);
                    let pause = own.unwrap_or(retry).mul_f64(rand::random_range(0.75..1.25));
                    self.unless_ended(sleep(pause)).await?;
                    retry = (2 * retry).min(LAST_RETRY);
                }
            }
        }
    }

    /// Pulls it, and keeps it or notes that it was brought, when it is its turn.
    async fn attempt(&self, attributes: &Attributes) -> Result<Result<TreeKey, Fault>, Ended> {
        let turns = &self.shared.turns;
        let _turn = match turns.try_acquire() {
            Ok(turn) => turn,
            Err(_) => {
                if !self.is_noted_already() {
                    self.note(State::Waiting("Queued"));
                }
                match self.unless_ended(turns.acquire()).await? {
                    Ok(turn) => turn,
                    Err(_) => return Err(Ended), // Nobody closes them.
                }
            }
        };
        if !self.is_noted_already() {
            self.note(State::Pulling(0));
        }
        let pulled = match self.pull(attributes).await? {
            Ok(pulled) => pulled,
            Err(fault) => return Ok(Err(fault)),
        };
        // Not given up in between: who ends this knows then what is kept.
        Ok(self.keep(&pulled).await.map(|()| {
            let present = Present {
                digest: pulled.digest.to_string(),
                bytes: pulled.tree.image.size,
                is_pinned: self.wanted.is_pinned,
            };
            self.note(State::Ready(present));
            pulled.tree.key.clone()
        }))
    }

    async fn pull(&self, attributes: &Attributes) -> Result<Result<Arc<Pulled>, Fault>, Ended> {
        let volumes = &self.shared.volumes;
        let asking = async {
            let keyring = self.keyring().await?;
            let wanting = Wanting { keyring, ..Wanting::default() };
            let mut request = volumes.pull_request(attributes, &wanting, &Tenant::PrePull).await;
            if self.pin.is_some() {
                // It was resolved before this process was started. Its registry need not be there.
                request.policy = PullPolicy::IfNotPresent;
            }
            let puller = volumes.puller().await.map_err(|error| Fault::of_store(&error))?;
            Ok::<_, Fault>(puller.pull(request))
        };
        let mut waiter = match Box::pin(self.unless_ended(asking)).await? {
            Ok(waiter) => waiter,
            Err(fault) => return Ok(Err(fault)),
        };
        let progress = Arc::clone(waiter.state());
        let watching = async {
            loop {
                tokio::select! {
                    outcome = waiter.wait() => return outcome,
                    () = sleep(LOOK) => self.note_progress(&progress.snapshot()),
                }
            }
        };
        let Ok(outcome) = self.unless_ended(watching).await else {
            waiter.leave().give_up();
            return Err(Ended);
        };
        match outcome {
            Some(Ok(pulled)) => Ok(Ok(pulled)),
            Some(Err(error)) => Ok(Err(Fault::of_pull(&error))),
            // The plugin ends.
            None => Err(Ended),
        }
    }

    async fn keep(&self, pulled: &Pulled) -> Result<(), Fault> {
        let pin = Pin {
            artifact: self.wanted.name.clone(),
            reference: self.wanted.reference().to_owned(),
            attributes: self.wanted.further_attributes(),
            is_kept: self.wanted.is_pinned,
            digest: pulled.digest.clone(),
            bytes: pulled.tree.image.size,
            tree: pulled.tree.key.clone(),
        };
        let kept = self.shared.volumes.keep(pin).await;
        kept.map_err(|error| Fault::of_store(&error))
    }

    /// Waits until what was brought is lost: then it is brought again. What was not to be kept is not.
    async fn is_lost(&self, tree: &TreeKey) -> Result<bool, Ended> {
        self.gone(tree).await?;
        if !self.wanted.is_pinned {
            self.note(State::Waiting("Collected"));
        }
        Ok(self.wanted.is_pinned)
    }

    /// Waits until the tree is there no longer.
    async fn gone(&self, tree: &TreeKey) -> Result<(), Ended> {
        loop {
            self.unless_ended(sleep(STILL_THERE)).await?;
            match self.shared.volumes.has(tree).await {
                Ok(false) => return Ok(()),
                Ok(true) => {}
                Err(error) => tracing::debug!(%error, "cannot look whether an artifact is there"),
            }
        }
    }

    fn attributes(&self) -> Result<Attributes, String> {
        Attributes::parse(&self.wanted.attributes).map_err(|error| error.to_string())
    }

    async fn keyring(&self) -> Result<Keyring, Fault> {
        let Some(name) = &self.wanted.pull_secret else { return Ok(Keyring::default()) };
        let namespace = self.shared.cluster.namespace();
        let of_secret = |error: KubeError| {
            let text = match &error {
                KubeError::Forbidden { .. } => format!(
                    "secret {namespace}/{name} may not be read: name it in prepull.pullSecrets of the chart"
                ),
                KubeError::NotFound { .. } => {
                    format!(
                        "there is no secret {name} in the plugin's namespace, {namespace}: create it there"
                    )
                }
                error => failure::chain(error),
            };
            Fault { state: State::Failed("PullSecret", text), retry: None }
        };
        self.shared.cluster.own_pull_secret(name).await.map_err(of_secret)
    }

    /// Notes how far it is, once bytes come. Until then it is what it was: a pull that is tried again and again is one that failed.
    fn note_progress(&self, snapshot: &Snapshot) {
        if snapshot.fetched > 0 {
            self.note(State::Pulling(percent(snapshot)));
        }
    }

    /// Whether it says already what is so until more is known: it is here, or its last pull failed.
    fn is_noted_already(&self) -> bool {
        self.is_noted(|state| matches!(state, State::Ready(_) | State::Failed(..) | State::NoSpace(_)))
    }

    /// Whether what was noted last is of this generation and `such`.
    fn is_noted(&self, such: impl Fn(&State) -> bool) -> bool {
        let noted = self.shared.board.get(&self.wanted.name);
        noted.is_some_and(|noted| noted.generation == self.wanted.generation && such(&noted.state))
    }

    fn note(&self, state: State) {
        self.shared.board.set(&self.wanted.name, self.wanted.generation, state);
    }

    async fn unless_ended<T>(&self, work: impl Future<Output = T>) -> Result<T, Ended> {
        let mut ends = self.ends.clone();
        tokio::select! {
            biased;
            _ = ends.wait_for(|ends| *ends) => Err(Ended),
            () = self.shared.volumes.stopping() => Err(Ended),
            done = work => Ok(done),
        }
    }
}

impl Fault {
    fn of_pull(error: &PullError) -> Self {
        let text = failure::chain(error);
        match Outcome::of(error) {
            Outcome::NoSpace => Self { state: State::NoSpace(text), retry: Some(ROOM_RETRY) },
            outcome => Self { state: State::Failed(word(outcome), text), retry: None },
        }
    }

    fn of_store(error: &crate::volume::error::Error) -> Self {
        Self { state: State::Failed("Store", failure::chain(error)), retry: None }
    }
}

/// Whether what was pulled as `kept` is what `wanted` names, but for a digest that somebody resolved it to since.
fn is_same(kept: &str, wanted: &str) -> bool {
    wanted.strip_prefix(kept).is_some_and(|rest| rest.is_empty() || rest.starts_with('@'))
}

/// The reason in the status.
fn word(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Done | Outcome::Internal => "Internal",
        Outcome::Cancelled => "Cancelled",
        Outcome::NotFound => "NotFound",
        Outcome::Denied => "Denied",
        Outcome::Registry => "Registry",
        Outcome::Network => "Network",
        Outcome::Stalled => "Stalled",
        Outcome::NoSpace => "NoSpace",
        Outcome::Quota => "Quota",
        Outcome::Verification => "Verification",
        Outcome::Unsupported => "Unsupported",
        Outcome::Policy => "Policy",
    }
}

/// In steps of ten; not all of it before it is so.
fn percent(snapshot: &Snapshot) -> u8 {
    let hundredths = snapshot.done.saturating_mul(100) / snapshot.total.max(1);
    u8::try_from(hundredths / 10 * 10).unwrap_or(90).min(90)
}

/// What a pin says is here.
fn present(pin: &Pin) -> Present {
    Present { digest: pin.digest.to_string(), bytes: pin.bytes, is_pinned: pin.is_kept }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_makes_no_other_reference() {
        assert!(is_same("r/m:v1", "r/m:v1") && is_same("r/m:v1", "r/m:v1@sha256:00"));
        assert!(!is_same("r/m:v1", "r/m:v10") && !is_same("r/m:v1@sha256:00", "r/m:v1"));
    }

    #[test]
    fn progress_is_told_in_steps_of_ten() {
        let of = |done, total| percent(&Snapshot { done, total, ..Snapshot::default() });
        let all = [of(0, 0), of(9, 100), of(10, 100), of(59, 100), of(99, 100), of(100, 100)];
        assert_eq!(all, [0, 0, 10, 50, 90, 90]);
    }
}
