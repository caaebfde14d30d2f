//! `layout: oci-layout`: the whole artifact as an OCI image layout directory, for tools that read one (skopeo, umoci, crane).
//!
//! The index names the one manifest that was chosen, with the reference's tag; a Docker manifest in OCI's words, and the
//! original beside it. Source: image-spec image-layout.md.

use std::collections::HashSet;

use serde_json::json;

use crate::layout::artifact::Artifact;
use crate::layout::error::Error;
use crate::layout::naming::file;
use crate::layout::options::{Layout, Options};
use crate::layout::plan::{Item, Plan};
use crate::layout::tree_path::TreePath;
use crate::oci::descriptor::Descriptor;
use crate::oci::digest::Digest;
use crate::oci::manifest::Manifest;
use crate::oci::media_type;

/// The name of a manifest in an index.
const REF_NAME: &str = "org.opencontainers.image.ref.name";

pub(in crate::layout) fn plan(artifact: &Artifact<'_>, options: &Options) -> Result<Plan, Error> {
    let Artifact { manifest, digest, size, .. } = artifact;
    let converted = (manifest.media_type == media_type::DOCKER_MANIFEST).then(|| converted(manifest));
    let shown = converted.as_ref().map(|text| Digest::sha256(text));
    let mut entry = json!({
        "mediaType": media_type::OCI_MANIFEST,
        "digest": shown.as_ref().unwrap_or(digest).to_string(),
        "size": converted.as_ref().map_or(*size, |text| text.len() as u64),
    });
    if let Some(artifact_type) = &manifest.artifact_type {
        entry["artifactType"] = json!(artifact_type);
    }
    if let Layout::OciLayout { tag: Some(tag) } = &options.layout {
        entry["annotations"] = json!({ REF_NAME: tag });
    }
    let index = json!({ "schemaVersion": 2, "mediaType": media_type::OCI_INDEX, "manifests": [entry] });
    let mut items = vec![
        Item::Text(
            TreePath::known("oci-layout"),
            json!({ "imageLayoutVersion": "1.0.0" }).to_string().into(),
        ),
        Item::Text(TreePath::known("index.json"), index.to_string().into()),
        file(&artifact.as_blob(), &path(digest))?,
    ];
    if let (Some(text), Some(digest)) = (converted, &shown) {
        items.push(Item::Text(TreePath::known(&path(digest)), text));
    }
    let mut seen = HashSet::from([*digest]);
    for blob in std::iter::once(&manifest.config).chain(&manifest.layers) {
        if seen.insert(&blob.digest) {
            items.push(file(blob, &path(&blob.digest))?);
        }
    }
    Plan::artifact(items)
}

/// A Docker manifest in OCI's words; the blobs are the same. Tools that read image layouts read nothing else there.
/// Source: image-spec media-types.md#compatibility-matrix.
fn converted(manifest: &Manifest) -> Vec<u8> {
    let descriptor = |blob: &Descriptor, media_type: &str| {
        let mut found =
            json!({ "mediaType": media_type, "digest": blob.digest.to_string(), "size": blob.size });
        if !blob.annotations.is_empty() {
            found["annotations"] = json!(blob.annotations);
        }
        found
    };
    let layer = |layer: &Descriptor| {
        const DOCKER: &str = "application/vnd.docker.image.rootfs.";
        let of_oci = layer.media_type.strip_prefix(DOCKER).map(|kind| {
            let kind = kind.replace("foreign.diff.", "nondistributable.v1.").replace("diff.", "v1.");
            format!(
                "application/vnd.oci.image.layer.{}",
                kind.replace(".gzip", "+gzip").replace(".zstd", "+zstd")
            )
        });
        descriptor(layer, of_oci.as_ref().unwrap_or(&layer.media_type))
    };
    let config = match manifest.config.media_type.as_str() {
        media_type::DOCKER_IMAGE_CONFIG => media_type::OCI_IMAGE_CONFIG,
        other => other,
    };
    let layers: Vec<_> = manifest.layers.iter().map(layer).collect();
    let text = json!({
        "schemaVersion": 2, "mediaType": media_type::OCI_MANIFEST,
        "config": descriptor(&manifest.config, config), "layers": layers,
    });
    text.to_string().into()
}

fn path(digest: &Digest) -> String {
    format!("blobs/{}/{}", digest.algorithm().as_str(), digest.hex())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::plan::tests::{manifest, paths_with};

    #[test]
    fn everything_is_there_once_under_its_digest() {
        let layers: [(&str, &[_]); 3] =
            [("a/0", &[]), ("a/1", &[("org.opencontainers.image.title", "../x")]), ("a/1", &[])];
        let mut manifest = manifest("a/b", "a/c", &layers);
        manifest.layers[2].digest = manifest.layers[1].digest.clone();
        let found = paths_with(plan, &manifest, &Options::default()).expect("a plan");
        let blobs = [
            &Digest::sha256(b"{}"),
            &manifest.config.digest,
            &manifest.layers[0].digest,
            &manifest.layers[1].digest,
        ];
        assert_eq!(found[..2], ["oci-layout", "index.json"]);
        assert_eq!(found[2..], blobs.map(path));
    }

    #[test]
    fn docker_manifests_are_also_there_in_ocis_words() {
        let docker = "application/vnd.docker.image.rootfs";
        let types = ["diff.tar.gzip", "diff.tar", "foreign.diff.tar.gzip", "diff.tar.zstd"]
            .map(|kind| format!("{docker}.{kind}"));
        let layers: Vec<(&str, &[_])> = types.iter().map(|kind| (kind.as_str(), &[][..])).collect();
        let mut manifest = manifest("", media_type::DOCKER_IMAGE_CONFIG, &layers);
        manifest.media_type = media_type::DOCKER_MANIFEST.into();
        let text: serde_json::Value = serde_json::from_slice(&converted(&manifest)).expect("JSON");
        let found: Vec<&str> = text["layers"]
            .as_array()
            .expect("layers")
            .iter()
            .filter_map(|layer| layer["mediaType"].as_str())
            .collect();
        let oci = "application/vnd.oci.image.layer";
        assert_eq!(
            found,
            ["v1.tar+gzip", "v1.tar", "nondistributable.v1.tar+gzip", "v1.tar+zstd"]
                .map(|kind| format!("{oci}.{kind}"))
        );
        assert_eq!(text["config"]["mediaType"], media_type::OCI_IMAGE_CONFIG);
        let found = paths_with(plan, &manifest, &Options::default()).expect("a plan");
        assert_eq!(found[2..4], [path(&Digest::sha256(b"{}")), path(&Digest::sha256(&converted(&manifest)))]);
    }
}
