//! Does what the command line asks; the same in the plugin that holds the store and in the command itself.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::control::request::{Content, ControlRequest, Pulled, Reply};
use crate::failure::{Failure, Kind};
use crate::host::blocking::{self, Lane};
use crate::pull::progress::Snapshot;
use crate::pull::request::Pulled as PulledTree;
use crate::registry::credentials::keyring::Keyring;
use crate::tenant::Tenant;
use crate::transfer::error::Error as TransferError;
use crate::volume::attributes::Attributes;
use crate::volume::credentials::Wanting;
use crate::volume::error::Error;
use crate::volume::publish::{Publish, Published, arguments};
use crate::volume::volumes::Volumes;

/// How often progress is told.
const PROGRESS_EVERY: Duration = Duration::from_millis(200);
/// A person waits as long as it takes; this only bounds it.
const PATIENCE: Duration = Duration::from_secs(7 * 24 * 3600);

/// Does what the process `pid` asks with `request`, and tells `progress` of it meanwhile.
///
/// # Errors
/// [`Failure`], whatever failed.
pub async fn execute(
    volumes: &Volumes,
    request: ControlRequest,
    pid: Option<u32>,
    mut progress: impl FnMut(Snapshot) + Send,
) -> Result<Reply, Failure> {
    match request {
        ControlRequest::Pull { content, lease } => {
            let (attributes, keyring) = check(&content)?;
            let pulled = pull(volumes, &attributes, &keyring, &mut progress).await?;
            if let Some(pid) = pid.filter(|_| lease) {
                let (store, tree) = (Arc::clone(volumes.puller().await?.store()), pulled.tree.key.clone());
                let give = move || store.leases.give(&tree, pid);
                blocking::run(Lane::Store, give).await.map_err(Error::from)?;
            }
            Ok(Reply::Pulled(described(&attributes, &pulled)))
        }
        ControlRequest::Mount { content, target } => {
            let (attributes, keyring) = check(&content)?;
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
                wanting: Wanting { keyring, ..Wanting::default() },
                deadline: Instant::now() + PATIENCE,
            };
            match volumes.publish(publish, &mut progress).await? {
                Published::Mounted(pulled) => Ok(Reply::Mounted(described(&attributes, &pulled))),
                Published::AlreadyThere => Err(Failure {
                    kind: Kind::AlreadyExists,
                    message: "it is mounted there already; unmount it first to get what the tag is now"
                        .into(),
                }),
            }
        }
        ControlRequest::Unmount { target } => {
            let target = volumes.check_any_target(&target).await?;
            volumes.unmount(target).await?;
            Ok(Reply::Unmounted)
        }
        ControlRequest::List => Ok(Reply::List(volumes.list().await?)),
        ControlRequest::Fsck => Ok(Reply::Checked(volumes.repair().await?)),
        ControlRequest::Collect { dry_run } => Ok(Reply::Collected(volumes.collect(dry_run).await?)),
    }
}

fn check(content: &Content) -> Result<(Attributes, Keyring), Failure> {
    let attributes = Attributes::parse(&content.attributes).map_err(Error::from)?;
    let keyring = match &content.docker_config {
        Some(text) => Keyring::from_docker_config(text, "the Docker config").map_err(Error::from)?,
        None => Keyring::default(),
    };
    Ok((attributes, keyring))
}

async fn pull(
    volumes: &Volumes,
    attributes: &Attributes,
    keyring: &Keyring,
    progress: &mut (dyn FnMut(Snapshot) + Send),
) -> Result<Arc<PulledTree>, Failure> {
    let wanting = Wanting { keyring: keyring.clone(), ..Wanting::default() };
    let request = volumes.pull_request(attributes, &wanting, &Tenant::CommandLine).await;
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

fn described(attributes: &Attributes, pulled: &PulledTree) -> Pulled {
    let image = &pulled.tree.image;
    Pulled {
        reference: attributes.reference.to_string(),
        digest: pulled.digest.to_string(),
        size: image.size,
        files: image.files,
        dropped: image.dropped,
        fetched: pulled.fetched,
        tree: pulled.tree.root.clone(),
    }
}
