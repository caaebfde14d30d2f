//! `layout: blobs`: every layer as it is, whatever the artifact is.
//!
//! A layer with a title is that file, any other is `sha256-<hex>`, as Ollama and cosign write digests in names: a colon
//! would end a path in many a list.

use std::collections::HashSet;

use crate::layout::artifact::Artifact;
use crate::layout::error::Error;
use crate::layout::naming::file;
use crate::layout::options::Options;
use crate::layout::plan::Plan;
use crate::oci::annotation::TITLE;
use crate::oci::digest::Digest;

pub(in crate::layout) fn plan(artifact: &Artifact<'_>, _: &Options) -> Result<Plan, Error> {
    let mut untitled = HashSet::new();
    let mut items = Vec::with_capacity(artifact.manifest.layers.len());
    for layer in &artifact.manifest.layers {
        match layer.annotation(TITLE).filter(|title| !title.is_empty()) {
            Some(title) => items.push(file(layer, title)?),
            None if untitled.insert(&layer.digest) => items.push(file(layer, &name(&layer.digest))?),
            None => {}
        }
    }
    Plan::artifact(items)
}

/// A digest as a file's name.
pub(in crate::layout) fn name(digest: &Digest) -> String {
    format!("{}-{}", digest.algorithm().as_str(), digest.hex())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::plan::tests::{manifest, paths};

    #[test]
    fn layers_are_named_by_title_or_digest_each_once() {
        let layers: [(&str, &[_]); 4] =
            [("a/0", &[(TITLE, "sub/a")]), ("a/1", &[]), ("a/1", &[]), ("a/2", &[])];
        let mut manifest = manifest("x/y", "x/y", &layers);
        manifest.layers[2].digest = manifest.layers[1].digest.clone();
        let digest = |number: usize| name(&manifest.layers[number].digest);
        assert_eq!(paths(plan, &manifest).expect("a plan"), ["sub/a".to_owned(), digest(1), digest(3)]);
        assert!(digest(1).starts_with("sha256-") && digest(1).len() == 71);
        let escaping = crate::layout::plan::tests::manifest("", "", &[("a/b", &[(TITLE, "../x")])]);
        assert!(matches!(paths(plan, &escaping), Err(Error::UnsafeName { .. })));
    }
}
