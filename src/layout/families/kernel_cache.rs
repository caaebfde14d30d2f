//! Caches of compiled GPU kernels (GKM, MCV), in the form that is no container image: one layer of a type of its own, which
//! is an archive all the same.
//!
//! The volume shows `io.<triton|vllm>.cache/…` and `io.<…>.manifest/manifest.json`, as container images of these caches
//! do; `path: io.triton.cache` is what `TRITON_CACHE_DIR` wants. Source: redhat-et/GKM mcv/docs/spec-compat.md,
//! mcv/pkg/fetcher/imgfetcher.go.

use crate::layout::artifact::Artifact;
use crate::layout::error::unsupported;

use crate::layout::error::Error;
use crate::layout::naming::at_root;
use crate::layout::options::{Options, Unpack};
use crate::layout::plan::Plan;
use crate::oci::descriptor::Descriptor;
use crate::oci::manifest::Manifest;

/// `application/cache.triton.content.layer.v1+triton`
fn is_cache(layer: &Descriptor) -> bool {
    let rest = layer.media_type.strip_prefix("application/cache.");
    rest.is_some_and(|rest| rest.contains(".content.layer.v1+"))
}

pub(in crate::layout) fn recognise(manifest: &Manifest) -> Option<String> {
    let all = !manifest.layers.is_empty() && manifest.layers.iter().all(is_cache);
    all.then(|| format!("layers are {}", manifest.layers[0].media_type))
}

pub(in crate::layout) fn plan(artifact: &Artifact<'_>, options: &Options) -> Result<Plan, Error> {
    let manifest = artifact.manifest;
    if options.unpack == Unpack::Never {
        return Err(unsupported(manifest, "a cache of kernels, of which unpack: never leaves no file"));
    }
    Plan::artifact(manifest.layers.iter().map(|layer| at_root(layer, options)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::plan::tests::{manifest, paths};
    use crate::oci::media_type::OCI_IMAGE_CONFIG;

    #[test]
    fn both_caches_are_known_and_nothing_else() {
        let none: &[(&str, &str)] = &[];
        for kind in ["triton", "vllm"] {
            let layer = format!("application/cache.{kind}.content.layer.v1+{kind}");
            let cache = manifest("", OCI_IMAGE_CONFIG, &[(&layer, none)]);
            assert!(recognise(&cache).is_some());
            assert_eq!(paths(plan, &cache).expect("a plan"), ["(archive)"]);
        }
        assert_eq!(recognise(&manifest("", OCI_IMAGE_CONFIG, &[("application/cache.x", none)])), None);
        assert_eq!(recognise(&manifest("", OCI_IMAGE_CONFIG, &[])), None);
    }
}
