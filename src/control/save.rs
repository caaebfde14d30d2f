//! What `ocivol save` writes: the blobs of an artifact, by whoever holds the store made files that the command reads itself.

use std::sync::Arc;

use tokio::time::interval;

use crate::control::content::{PROGRESS_EVERY, check};
use crate::control::request::{Blob, Content, Saved};
use crate::failure::Failure;
use crate::pull::originals::Originals;
use crate::pull::progress::{Progress, Snapshot};
use crate::tenant::Tenant;
use crate::volume::error::Error;
use crate::volume::volumes::Volumes;

/// Brings the blobs of `content` into the store as files. They stay as long as what is returned beside their list.
///
/// # Errors
/// [`Failure`], whatever failed.
pub(in crate::control) async fn gather(
    volumes: &Volumes,
    content: &Content,
    tell: &mut (dyn FnMut(Snapshot) + Send),
) -> Result<(Saved, Originals), Failure> {
    let (attributes, wanting) = check(content)?;
    let request = volumes.pull_request(&attributes, &wanting, &Tenant::CommandLine).await;
    let puller = volumes.puller().await?;
    let progress = Progress::default();
    let mut gathering = std::pin::pin!(puller.originals(&request, &progress));
    let mut ticks = interval(PROGRESS_EVERY);
    let originals = loop {
        tokio::select! {
            originals = &mut gathering => break originals,
            () = volumes.stopping() => return Err(Error::Stopping.into()),
            _ = ticks.tick() => tell(progress.snapshot()),
        }
    };
    let originals = originals.map_err(|error| Error::Pull(Arc::new(error)))?;
    let root = volumes.store_root();
    let blobs = originals.files.iter().map(|file| Blob {
        digest: file.digest.clone(),
        size: file.size,
        // Whoever reads it may have the store under another path.
        path: file.path.strip_prefix(root).unwrap_or(&file.path).to_owned(),
    });
    let saved = Saved {
        reference: attributes.reference.to_string(),
        digest: originals.digest.clone(),
        media_type: originals.media_type.clone(),
        blobs: blobs.collect(),
        fetched: originals.fetched,
    };
    Ok((saved, originals))
}
