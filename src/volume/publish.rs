//! Publish: the tree is pulled, then mounted, once.

use crate::host::blocking;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::mount::attach::{Mounter, Source};
use crate::mount::mountinfo::Table;
use crate::mount::target::{Policy, Target};
use crate::oci::digest::Digest;
use crate::pull;
use crate::pull::Pulled;
use crate::registry::credentials::Keyring;
use crate::store::Store;
use crate::store::volumes::VolumeRecord;
use crate::volume::attributes;
use crate::volume::attributes::Attributes;
use crate::volume::error::Error;
use crate::volume::store_mounts::StoreMounts;
use crate::volume::turn::{Place, Turn};
use crate::volume::volumes::{PUBLISHES_LIMIT, Volumes};

/// One request to publish.
pub struct Publish {
    /// Opaque.
    pub volume_id: String,
    /// Where to.
    pub target: Target,
    /// What.
    pub attributes: Attributes,
    /// Hash of everything that makes two publishes the same.
    pub arguments: String,
    /// Whether whoever uses the volume says that it is read-only. It is in any case.
    pub read_only: bool,
    /// Credentials, of which those for the reference's registry are used.
    pub keyring: Keyring,
    /// When the caller must have an answer.
    pub deadline: Instant,
}

/// What a publish did.
#[derive(Debug)]
pub enum Published {
    /// The same volume was there already.
    AlreadyThere,
    /// It was mounted.
    Mounted(Arc<Pulled>),
}

/// The hash of what makes two publishes the same: the volume, what the user wrote, and how it is accessed.
///
/// Secrets and the cluster's keys are not part of it; they change while the volume does not.
pub fn arguments(volume_id: &str, map: &BTreeMap<String, String>, access: &str) -> String {
    let users: BTreeMap<_, _> = map.iter().filter(|(key, _)| !attributes::is_ignored(key)).collect();
    // Strings always encode.
    let text = serde_json::to_vec(&(volume_id, users, access)).unwrap_or_default();
    Digest::sha256(&text).to_string()
}

impl Volumes {
    /// Checks a target path that came with a request.
    ///
    /// # Errors
    /// [`crate::mount::error::Error::BadTarget`].
    pub fn check_target(&self, path: &str) -> Result<Target, Error> {
        Ok(self.policy.check(path)?)
    }

    /// Checks a target path that root gave on the command line: any will do.
    ///
    /// # Errors
    /// [`crate::mount::error::Error::BadTarget`].
    pub fn check_any_target(&self, path: &str) -> Result<Target, Error> {
        Ok(Policy::anywhere().check(path)?)
    }

    /// Publishes a volume. Waits for its pull until the deadline; the pull goes on without the caller.
    ///
    /// The mount is made only while the caller waits. What is mounted is never undone by a failing repetition.
    ///
    /// # Errors
    /// [`Error::Occupied`] when something else is mounted there, [`Error::StillPulling`] at the deadline,
    /// [`Error::Preempted`] when an unpublish came, and what pulling and mounting can fail with.
    pub async fn publish(&self, request: Publish) -> Result<Published, Error> {
        let _slot = self.publishes.try_acquire().map_err(|_| Error::TooMany { limit: PUBLISHES_LIMIT })?;
        let place = self.turns.publish(request.target.path());
        let waiting = async {
            let turn = place.turn().await.map_err(|_| Error::Preempted)?;
            let here = self.what_is_there(&request).await?;
            Ok::<_, Error>((turn, here))
        };
        let busy = || Error::StillPulling {
            reference: request.attributes.reference.to_string(),
            progress: "an earlier request for the same target is not finished".into(),
        };
        let (turn, there) =
            tokio::time::timeout_at(request.deadline, waiting).await.unwrap_or_else(|_| Err(busy()))?;
        if there {
            return Ok(Published::AlreadyThere);
        }
        let pulled = self.wait_for_pull(&request, &place).await?;
        let store = Arc::clone(self.puller().await?.store());
        if place.is_preempted() {
            return Err(Error::Preempted);
        }
        let (mounted, mounter) = (Arc::clone(&pulled), Arc::clone(&self.mounter));
        blocking::run(move || mount(&store, &mounter, &request, &mounted, turn)).await?;
        Ok(Published::Mounted(pulled))
    }

    /// Whether the very volume is mounted at the target.
    async fn what_is_there(&self, request: &Publish) -> Result<bool, Error> {
        let path = request.target.path().to_owned();
        let root = self.store_root.clone();
        let looked_up = path.clone();
        let found = blocking::run(move || {
            let table = Table::read()?;
            let ours = StoreMounts::locate(&table, &root);
            Ok::<_, Error>(table.at(&looked_up).map(|mount| (ours.may_unmount(mount), mount.clone())))
        })
        .await?;
        let Some((ours, mount)) = found else { return Ok(false) };
        if !ours {
            let there = format!("a mount that is not ocivol's ({} {})", mount.fs_type, mount.root.display());
            return Err(Error::Occupied { path, there });
        }
        let record = match self.store_if_usable().await {
            Some(store) => {
                let path = path.clone();
                // A record that cannot be read is as good as none.
                blocking::run(move || store.volume(&path)).await.unwrap_or(None)
            }
            None => None,
        };
        match record {
            Some(record) if record.arguments != request.arguments => Err(Error::Occupied {
                path,
                there: format!("volume {:?} of {} with other arguments", record.volume_id, record.reference),
            }),
            _ => Ok(true),
        }
    }

    async fn wait_for_pull(&self, request: &Publish, place: &Arc<Place>) -> Result<Arc<Pulled>, Error> {
        let puller = self.puller().await?;
        let attributes = &request.attributes;
        let mut pull = puller.pull(pull_request(attributes, &request.keyring));
        tokio::select! {
            biased;
            () = place.preempted() => Err(Error::Preempted),
            outcome = pull.wait() => match outcome {
                Some(result) => result.map_err(Error::Pull),
                None => Err(Error::Pull(Arc::new(pull::error::Error::Stopped))),
            },
            () = tokio::time::sleep_until(request.deadline) => Err(Error::StillPulling {
                reference: attributes.reference.to_string(),
                progress: pull.state().snapshot().to_string(),
            }),
            () = self.stopping() => Err(Error::Stopping),
        }
    }
}

/// The pull that `attributes` ask for.
pub fn pull_request(attributes: &Attributes, keyring: &Keyring) -> pull::Request {
    pull::Request {
        reference: attributes.reference.clone(),
        policy: attributes.pull_policy,
        choice: attributes.choice.clone(),
        options: attributes.options.clone(),
        readable: attributes.readable,
        credentials: keyring.matching(&attributes.reference),
        unused_helper: keyring.unused_helper(&attributes.reference).map(str::to_owned),
    }
}

/// How long to hold a call whose caller waits for `timeout`: five seconds less, and at most 110 seconds, which
/// is kubelet's two minutes less a margin. Answering early would drive kubelet's backoff up to two minutes.
pub fn hold_time(timeout: Option<Duration>) -> Duration {
    const LONGEST: Duration = Duration::from_secs(110);
    const MARGIN: Duration = Duration::from_secs(5);
    let timeout = timeout.unwrap_or(LONGEST + MARGIN);
    timeout.saturating_sub(MARGIN.min(timeout / 4)).min(LONGEST)
}

fn mount(
    store: &Store,
    mounter: &Mounter,
    request: &Publish,
    pulled: &Pulled,
    turn: Turn,
) -> Result<(), Error> {
    let attributes = &request.attributes;
    let source = Source {
        tree: &pulled.tree.root,
        path: attributes.path.as_ref(),
        exec: attributes.exec,
        asked_read_only: request.read_only,
    };
    let attached = mounter.attach(source, &request.target)?;
    let record = VolumeRecord {
        target: request.target.path().to_owned(),
        volume_id: request.volume_id.clone(),
        arguments: request.arguments.clone(),
        reference: attributes.reference.to_string(),
        manifest: pulled.digest.clone(),
        tree: pulled.tree.key.clone(),
        made_target: attached.made_target,
    };
    // The mount stands without it: it then counts as this volume, whatever is asked for.
    if let Err(error) = store.set_volume(&record) {
        tracing::warn!(%error, target = %record.target.display(), "cannot record a published volume");
    }
    crate::host::failpoint::reached("publish.recorded");
    drop(turn);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_held_until_shortly_before_their_deadline() {
        let hold = |seconds: Option<u64>| hold_time(seconds.map(Duration::from_secs)).as_secs_f64();
        assert_eq!(hold(None), 110.0);
        assert_eq!(hold(Some(120)), 110.0);
        assert_eq!(hold(Some(60)), 55.0);
        assert_eq!(hold(Some(8)), 6.0);
        assert_eq!(hold(Some(3600)), 110.0);
    }

    #[test]
    fn the_clusters_keys_do_not_make_another_volume() {
        let map = |pairs: &[(&str, &str)]| {
            pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
        };
        let one = map(&[("reference", "r/x"), ("csi.storage.k8s.io/serviceAccount.tokens", "1")]);
        let two = map(&[("reference", "r/x"), ("csi.storage.k8s.io/serviceAccount.tokens", "2")]);
        assert_eq!(arguments("v", &one, "ro"), arguments("v", &two, "ro"));
        assert_ne!(arguments("v", &one, "ro"), arguments("w", &one, "ro"));
        assert_ne!(arguments("v", &one, "ro"), arguments("v", &one, "rw"));
        assert_ne!(arguments("v", &one, "ro"), arguments("v", &map(&[("reference", "r/y")]), "ro"));
    }
}
