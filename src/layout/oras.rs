//! Files with titles: what `oras push` makes, and any artifact whose layers carry
//! `org.opencontainers.image.title`.
//!
//! A layer is written under its title as it is, whatever its media type says: ORAS gives plain files the media
//! type of a tar archive. Only the annotation `io.deis.oras.content.unpack: "true"` marks a packed directory.
//! Source: oras-go v2 content/file.

use super::{Error, File, Metadata, Plan, TreePath, family};
use crate::oci::Manifest;

/// A layer's file name.
pub const TITLE: &str = "org.opencontainers.image.title";
/// `"true"`: the layer is a directory, packed as a gzipped tar archive.
const UNPACK: &str = "io.deis.oras.content.unpack";

pub(super) fn recognise(manifest: &Manifest) -> Option<String> {
    let titled = manifest.layers.iter().filter(|layer| layer.annotation(TITLE).is_some()).count();
    (titled > 0).then(|| format!("{titled} of {} layers have a title", manifest.layers.len()))
}

pub(super) fn plan(manifest: &Manifest) -> Result<Plan, Error> {
    let mut files = Vec::with_capacity(manifest.layers.len());
    for layer in &manifest.layers {
        let title =
            layer.annotation(TITLE).filter(|title| !title.is_empty()).ok_or_else(|| Error::Unnamed {
                digest: layer.digest.clone(),
                media_type: layer.media_type.clone(),
                expected: TITLE,
            })?;
        if layer.annotation(UNPACK) == Some("true") {
            return Err(family::unsupported(manifest, &format!("layer {title:?} is a packed directory")));
        }
        let path = TreePath::new(title).map_err(|reason| Error::UnsafeName {
            digest: layer.digest.clone(),
            name: title.to_owned(),
            reason,
        })?;
        files.push((path, File { blob: layer.bare(), metadata: Metadata::default() }));
    }
    Plan::new(files)
}
