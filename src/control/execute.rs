//! Does what the command line asks; the same in the plugin that holds the store and in the command itself.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::control::content::{PROGRESS_EVERY, check, described};
use crate::control::load;
use crate::control::request::{ControlRequest, Reply};
use crate::control::save;
use crate::control::status::{self, AboutNode};
use crate::failure::{Failure, Kind};
use crate::host::blocking::{self, Lane};
use crate::pull::originals::Originals;
use crate::pull::progress::Snapshot;
use crate::pull::request::Pulled as PulledTree;
use crate::tenant::Tenant;
use crate::transfer::error::Error as TransferError;
use crate::volume::attributes::Attributes;
use crate::volume::credentials::Wanting;
use crate::volume::error::Error;
use crate::volume::publish::{Publish, Published, arguments};
use crate::volume::volumes::Volumes;

/// A person waits as long as it takes; this only bounds it.
const PATIENCE: Duration = Duration::from_secs(7 * 24 * 3600);

/// An answer, and what it speaks of: that stays in the store as long as this exists.
pub struct Done {
    /// The answer.
    pub reply: Reply,
    /// What is kept for who asked.
    pub kept: Option<Originals>,
}

/// Does what the process `pid` asks with `request`, and tells `progress` of it meanwhile. `about` is the plugin that does it, if one
/// does.
///
/// # Errors
/// [`Failure`], whatever failed.
pub async fn execute(
    volumes: &Volumes,
    request: ControlRequest,
    pid: Option<u32>,
    about: Option<&AboutNode>,
    mut progress: impl FnMut(Snapshot) + Send,
) -> Result<Done, Failure> {
    let is_for_another = pid != Some(std::process::id());
    let reply = match request {
        ControlRequest::Load(asked) => {
            Reply::Loaded(load::load(volumes, asked, is_for_another, &mut progress).await?)
        }
        ControlRequest::Save { content } => {
            let (saved, originals) = save::gather(volumes, &content, &mut progress).await?;
            return Ok(Done { reply: Reply::Saved(saved), kept: Some(originals) });
        }
        ControlRequest::Pull { content, lease } => {
            let (attributes, wanting) = check(&content)?;
            let pulled = pull(volumes, &attributes, &wanting, &mut progress).await?;
            if lease {
                let (store, tree) = (Arc::clone(volumes.puller().await?.store()), pulled.tree.key.clone());
                let time = volumes.min_age();
                let give = move || match pid {
                    Some(pid) => store.leases.give(&tree, pid),
                    None => store.leases.give_unseen(&tree, time),
                };
                blocking::run(Lane::Store, give).await.map_err(Error::from)?;
            }
            Reply::Pulled(described(&attributes, &pulled))
        }
        ControlRequest::Mount { content, target } => {
            let (attributes, wanting) = check(&content)?;
            let target = volumes.check_any_target(&target).await?;
            let volume_id = format!("command line {}", target.path().display());
            let publish = Publish {
                tenant: Tenant::CommandLine,
                pod: None,
                arguments: arguments(&volume_id, &content.attributes, "command line"),
                volume_id,
                target,
                attributes: attributes.clone(),
                read_only: true,
                wanting,
                deadline: Instant::now() + PATIENCE,
            };
            match volumes.publish(publish, &mut progress).await? {
                Published::Mounted(pulled) => Reply::Mounted(described(&attributes, &pulled)),
                Published::AlreadyThere => {
                    return Err(Failure {
                        kind: Kind::AlreadyExists,
                        message: "it is mounted there already; unmount it first to get what the tag is now"
                            .into(),
                    });
                }
            }
        }
        ControlRequest::Unmount { target } => {
            let target = volumes.check_any_target(&target).await?;
            volumes.unmount(target).await?;
            Reply::Unmounted
        }
        ControlRequest::List => Reply::List(volumes.list().await?),
        ControlRequest::Remove { name } => Reply::Removed(volumes.remove(&name).await?),
        ControlRequest::Fsck => Reply::Checked(volumes.repair().await?),
        ControlRequest::Status => match about {
            Some(about) => Reply::Status(Box::new(status::look(volumes, about).await?)),
            None => {
                let message = format!(
                    "no node plugin holds {}; see whether it runs and can use its store: its log says more",
                    volumes.store_root().display()
                );
                return Err(Failure { kind: Kind::Unavailable, message });
            }
        },
        ControlRequest::Collect { dry_run } => Reply::Collected(volumes.collect(dry_run).await?),
    };
    Ok(Done { reply, kept: None })
}

async fn pull(
    volumes: &Volumes,
    attributes: &Attributes,
    wanting: &Wanting,
    progress: &mut (dyn FnMut(Snapshot) + Send),
) -> Result<Arc<PulledTree>, Failure> {
    let request = volumes.pull_request(attributes, wanting, &Tenant::CommandLine).await;
    let mut pull = volumes.puller().await?.pull(request);
    let state = Arc::clone(pull.state());
    let mut ticks = tokio::time::interval(PROGRESS_EVERY);
    let outcome = loop {
        tokio::select! {
            outcome = pull.wait() => break outcome,
            () = volumes.stopping() => return Err(Error::Stopping.into()),
            _ = ticks.tick() => progress(state.snapshot()),
        }
    };
    let pulled = outcome.unwrap_or_else(|| Err(Arc::new(TransferError::Fault.into())));
    Ok(pulled.map_err(Error::Pull)?)
}
