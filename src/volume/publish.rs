//! Publish: the tree is pulled, then mounted, once.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::failure::one_line;
use crate::host::blocking::{self, Lane};
use crate::host::failpoint;
use crate::mount::attach::{MountSource, Mounter};
use crate::mount::lookup;
use crate::mount::target::{Policy, Target};
use crate::oci::digest::Digest;
use crate::oci::repository::Repository;
use crate::pull::progress::Snapshot;
use crate::pull::request::{PullRequest, Pulled};
use crate::store::open::Store;
use crate::store::usage::volumes::{Measured, VolumeRecord};
use crate::tenant::Tenant;
use crate::transfer::error::Error as TransferError;
use crate::volume::attributes;
use crate::volume::attributes::Attributes;
use crate::volume::credentials::{Found, Wanting};
use crate::volume::error::Error;
use crate::volume::order::Operation;
use crate::volume::store_mounts::StoreMounts;
use crate::volume::volumes::Volumes;
use crate::volume::warmed;

/// One request to publish.
pub struct Publish {
    /// On whose behalf.
    pub tenant: Tenant,
    /// The pod's UID, if it is told.
    pub pod: Option<String>,
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
    /// Who wants it, and the credentials that came with the request.
    pub wanting: Wanting,
    /// When the caller must have an answer.
    pub deadline: Instant,
}

/// How often progress is told to who wants to hear it.
const PROGRESS_EVERY: Duration = Duration::from_millis(200);

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
    pub async fn check_target(&self, path: &str) -> Result<Target, Error> {
        let (policy, path) = (self.policy.clone(), path.to_owned());
        Ok(blocking::run(Lane::Mounts, move || policy.check(&path)).await?)
    }

    /// Checks a target path that root gave on the command line: any will do.
    ///
    /// # Errors
    /// [`crate::mount::error::Error::BadTarget`].
    pub async fn check_any_target(&self, path: &str) -> Result<Target, Error> {
        let path = path.to_owned();
        Ok(blocking::run(Lane::Mounts, move || Policy::anywhere().check(&path)).await?)
    }

    /// Publishes a volume. Waits for its pull until the deadline, and tells `progress` of it meanwhile; the pull goes on without
    /// the caller.
    ///
    /// The mount is made only while the caller waits. What is mounted is never undone by a failing repetition.
    ///
    /// # Errors
    /// [`Error::NotPermitted`], [`Error::Occupied`] when something else is mounted there, [`Error::StillPulling`] at the deadline,
    /// [`Error::Preempted`] when an unpublish came, and what pulling and mounting can fail with.
    pub async fn publish(
        &self,
        request: Publish,
        progress: &mut (dyn FnMut(Snapshot) + Send),
    ) -> Result<Published, Error> {
        let operation = self.order.publish(request.target.path());
        let slot = self.slots.take(&request.tenant, request.pod.as_deref());
        let waiting = async {
            let guard = match &slot {
                Ok(_) => operation.guard().await.map_err(|_| Error::Preempted)?,
                // What is mounted already needs no slot: kubelet asks again after each of its restarts.
                Err(_) => match operation.try_guard() {
                    Some(guard) => guard,
                    None => return slot.map(|_| None),
                },
            };
            if self.what_is_there(&request).await? {
                return Ok(None);
            }
            // What is mounted stays, whatever its operator has said meanwhile.
            self.permits.check(&request.tenant, &request.attributes.reference)?;
            Ok(Some((guard, slot?)))
        };
        let busy = || Error::StillPulling {
            reference: request.attributes.reference.to_string(),
            progress: "an earlier request for the same target is not finished".into(),
        };
        let begun =
            tokio::time::timeout_at(request.deadline, waiting).await.unwrap_or_else(|_| Err(busy()))?;
        let Some((guard, _slot)) = begun else { return Ok(Published::AlreadyThere) };
        let (pulled, store) = self.wait_for_pull(&request, &operation, progress).await?;
        if operation.is_preempted() {
            return Err(Error::Preempted);
        }
        let began = std::time::Instant::now();
        let (mounted, mounter, root) =
            (Arc::clone(&pulled), Arc::clone(&self.mounter), self.store_root.clone());
        let warmer = Arc::clone(&self.warmer);
        let mount = move || {
            let record = mount(&store, &root, &mounter, &request, &mounted)?;
            warmed::begin(&warmer, &root, &request.tenant, &record);
            drop(guard);
            Ok::<_, Error>(())
        };
        blocking::run(Lane::Mounts, mount).await?;
        self.store_metrics.mounted(began);
        self.collector.changed.notify_one();
        Ok(Published::Mounted(pulled))
    }

    /// The pull that `attributes` ask for, on behalf of `tenant`.
    pub async fn pull_request(
        &self,
        attributes: &Attributes,
        wanting: &Wanting,
        tenant: &Tenant,
    ) -> PullRequest {
        let Found { credentials, notes } =
            Box::pin(self.credentials.find(&attributes.reference, wanting, tenant, &self.registry)).await;
        PullRequest {
            tenant: tenant.clone(),
            reference: attributes.reference.clone(),
            policy: attributes.pull_policy,
            choice: attributes.choice.clone(),
            options: attributes.options.clone(),
            readable: attributes.readable,
            exact_platform: attributes.platform_given && *tenant == Tenant::CommandLine,
            credentials,
            anonymous: self.credentials.anonymous,
            notes,
        }
    }

    /// Whether the very volume is mounted at the target.
    async fn what_is_there(&self, request: &Publish) -> Result<bool, Error> {
        let path = request.target.path().to_owned();
        let root = self.store_root.clone();
        let looked_up = path.clone();
        let found = blocking::run(Lane::Mounts, move || {
            let Some(mount) = lookup::at(&looked_up)? else { return Ok(None) };
            Ok::<_, Error>(Some((StoreMounts::find(&root)?.may_unmount(&mount), mount)))
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
                blocking::run(Lane::Store, move || store.volumes.get(&path)).await.unwrap_or(None)
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

    /// Waits for the store, and for the pull; each until the deadline, an unpublish, or the end of the process.
    async fn wait_for_pull(
        &self,
        request: &Publish,
        operation: &Operation,
        progress: &mut (dyn FnMut(Snapshot) + Send),
    ) -> Result<(Arc<Pulled>, Arc<Store>), Error> {
        let attributes = &request.attributes;
        let mut far = "the store is being opened".to_owned();
        let pulling = async {
            let puller = self.puller().await?;
            far = "credentials are looked for".to_owned();
            let asked = self.pull_request(attributes, &request.wanting, &request.tenant).await;
            let pull = puller.pull(asked);
            let pod = request.wanting.pod.as_ref();
            let mut pull = self.interests.waiting(request.target.path(), pod, pull);
            let mut announcer = self.announcements.of(pod, &request.volume_id, &attributes.reference);
            let mut ticks = tokio::time::interval(PROGRESS_EVERY);
            let outcome = loop {
                tokio::select! {
                    biased;
                    outcome = pull.wait() => break outcome,
                    _ = ticks.tick() => {
                        let snapshot = pull.snapshot();
                        far = snapshot.to_string();
                        if let Some(announcer) = &mut announcer {
                            announcer.progress(&snapshot);
                        }
                        progress(snapshot);
                    }
                }
            };
            let end = pull.snapshot();
            drop(pull);
            if let Some(announcer) = &announcer {
                let host = Repository::of(&attributes.reference).host;
                self.registry.tell_warnings(&request.tenant, &host, |text| announcer.warned(text));
                if let Some(Ok(pulled)) = &outcome {
                    announcer.pulled(&end, pulled);
                }
            }
            let pulled = outcome.unwrap_or_else(|| Err(Arc::new(TransferError::Fault.into())));
            // What came, or was begun in vain, may be too much.
            self.collector.nudge.notify_one();
            Ok((pulled.map_err(Error::Pull)?, Arc::clone(puller.store())))
        };
        tokio::select! {
            biased;
            () = operation.preempted() => return Err(Error::Preempted),
            pulled = pulling => return pulled,
            () = tokio::time::sleep_until(request.deadline) => {}
            () = self.stopping() => return Err(Error::Stopping),
        }
        Err(Error::StillPulling { reference: attributes.reference.to_string(), progress: far })
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
    root: &Path,
    mounter: &Mounter,
    request: &Publish,
    pulled: &Pulled,
) -> Result<VolumeRecord, Error> {
    let attributes = &request.attributes;
    let source = MountSource {
        tree: &pulled.tree.root,
        path: attributes.path.as_ref(),
        exec: attributes.exec,
        asked_read_only: request.read_only,
    };
    let attached = mounter.attach(source, &request.target)?;
    let image = &pulled.tree.image;
    let measured = image.inodes.map(|inodes| Measured { bytes: image.size, inodes });
    let record = VolumeRecord {
        target: request.target.path().to_owned(),
        volume_id: request.volume_id.clone(),
        arguments: request.arguments.clone(),
        reference: attributes.reference.to_string(),
        manifest: pulled.digest.clone(),
        tree: pulled.tree.key.clone(),
        made_target: attached.made_target,
        pod: request.wanting.pod.as_ref().map(|pod| one_line(&format!("{}/{}", pod.namespace, pod.name))),
        measured: measured.filter(|_| attributes.path.is_none()),
        warm: warmed::record(attributes.warm, root, &attached.directory, &image.family),
    };
    // The mount stands without it: it then counts as this volume, whatever is asked for.
    if let Err(error) = store.volumes.set(&record) {
        tracing::warn!(%error, target = %record.target.display(), "cannot record a published volume");
    }
    failpoint::reached("publish.recorded");
    Ok(record)
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
