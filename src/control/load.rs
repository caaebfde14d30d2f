//! What `ocivol load` asks: manifests of an image layout, into the store under their names.

use crate::control::content::described_as;
use crate::control::request::{Load, Pulled};
use crate::failure::{Failure, Kind};
use crate::oci::platform::Platform;
use crate::oci::reference::Reference;
use crate::pull::load::{LoadError, LoadRequest};
use crate::pull::progress::Snapshot;
use crate::volume::error::Error;
use crate::volume::volumes::Volumes;

/// Loads what `asked` says. `is_for_another`: the process that asks is not this one, and may see other files.
///
/// # Errors
/// [`Failure`], whatever failed.
pub(in crate::control) async fn load(
    volumes: &Volumes,
    asked: Load,
    is_for_another: bool,
    tell: &mut (dyn FnMut(Snapshot) + Send),
) -> Result<Vec<Pulled>, Failure> {
    let usage = |error: &dyn std::error::Error| Failure::new(Kind::InvalidArgument, error);
    let layout: Reference = format!("oci-layout:{}", asked.path).parse().map_err(|error| usage(&error))?;
    if layout.tag().is_some() || layout.digest().is_some() {
        let message =
            format!("{} has a ':' or '@' in its name, which begin a tag and a digest; rename it", asked.path);
        return Err(Failure::usage(&message));
    }
    let name = asked
        .name
        .as_deref()
        .map(str::parse)
        .transpose()
        .map_err(|error: crate::oci::reference::InvalidReference| usage(&error))?;
    let platform = asked.platform.as_deref().map_or_else(|| Ok(Platform::host()), str::parse);
    let request = LoadRequest { layout, name, platform: platform.map_err(|error| usage(&error))? };
    let puller = volumes.puller().await?;
    let loaded = tokio::select! {
        loaded = puller.load(&request, tell) => loaded,
        () = volumes.stopping() => return Err(Error::Stopping.into()),
    };
    let all = loaded.map_err(|error| failure(&error, is_for_another))?;
    Ok(all.iter().map(|one| described_as(one.reference.to_string(), &one.pulled, one.fetched)).collect())
}

fn failure(error: &LoadError, is_for_another: bool) -> Failure {
    let kind = match error {
        LoadError::Layout(error) => error.kind(),
        LoadError::Names { .. } => Kind::FailedPrecondition,
        LoadError::Pull { source, .. } => source.kind(),
        LoadError::Store(error) => error.kind(),
    };
    let mut failure = Failure::new(kind, error);
    if is_for_another
        && matches!(error, LoadError::Layout(_))
        && matches!(kind, Kind::NotFound | Kind::InvalidArgument)
    {
        failure.message.push_str("; the node plugin holds the store, and has to see the file itself: below a --oci-layout-dir of its own, in its own container");
    }
    failure
}
