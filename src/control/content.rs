//! What people ask for, checked, and what they are told of it.

use std::time::Duration;

use crate::control::request::{Content, Pulled};
use crate::failure::Failure;
use crate::pull::request::Pulled as PulledTree;
use crate::registry::credentials::keyring::Keyring;
use crate::volume::attributes::Attributes;
use crate::volume::credentials::Wanting;
use crate::volume::error::Error;

/// How often progress is told.
pub(in crate::control) const PROGRESS_EVERY: Duration = Duration::from_millis(200);

/// The attributes of a volume, and credentials, of what is asked for.
///
/// # Errors
/// [`Failure`] when one of them cannot be read.
pub(in crate::control) fn check(content: &Content) -> Result<(Attributes, Wanting), Failure> {
    let attributes = Attributes::parse(&content.attributes).map_err(Error::from)?;
    let keyring = match &content.docker_config {
        Some(text) => Keyring::from_docker_config(text, "the Docker config").map_err(Error::from)?,
        None => Keyring::default(),
    };
    Ok((attributes, Wanting { keyring, ..Wanting::default() }))
}

/// What was pulled, for who asked with `attributes`.
pub(in crate::control) fn described(attributes: &Attributes, pulled: &PulledTree) -> Pulled {
    described_as(attributes.reference.to_string(), pulled, pulled.fetched)
}

/// What was pulled, for who asked for `reference`.
pub(in crate::control) fn described_as(reference: String, pulled: &PulledTree, fetched: u64) -> Pulled {
    let image = &pulled.tree.image;
    Pulled {
        reference,
        digest: pulled.digest.to_string(),
        manifest: image.manifest.to_string(),
        family: image.family.clone(),
        size: image.size,
        files: image.files,
        dropped: image.dropped,
        fetched,
        asked: pulled.asked,
        resolved_at: pulled.at.seconds,
        tree: pulled.tree.key.to_string(),
        path: pulled.tree.root.clone(),
    }
}
