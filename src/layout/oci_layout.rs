//! `layout: oci-layout`: the whole artifact as an OCI image layout directory, for tools that read one (skopeo, umoci, crane).
//!
//! The index names the one manifest that was chosen, with the reference's tag. Source: image-spec image-layout.md.

use std::collections::HashSet;

use serde_json::json;

use super::{Artifact, Error, Item, Layout, Options, Plan, TreePath, file};
use crate::oci::{Digest, media_type};

/// The name of a manifest in an index.
const REF_NAME: &str = "org.opencontainers.image.ref.name";

pub(super) fn plan(artifact: &Artifact<'_>, options: &Options) -> Result<Plan, Error> {
    let Artifact { manifest, digest, size, .. } = artifact;
    let mut entry = json!({
        "mediaType": manifest.media_type, "digest": digest.to_string(), "size": size,
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
    let mut seen = HashSet::from([*digest]);
    for blob in std::iter::once(&manifest.config).chain(&manifest.layers) {
        if seen.insert(&blob.digest) {
            items.push(file(blob, &path(&blob.digest))?);
        }
    }
    Plan::artifact(items)
}

fn path(digest: &Digest) -> String {
    format!("blobs/{}/{}", digest.algorithm().as_str(), digest.hex())
}

#[cfg(test)]
mod tests {
    use super::super::plan::tests::{manifest, paths_with};
    use super::*;

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
}
