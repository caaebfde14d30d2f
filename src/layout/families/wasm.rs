//! Wasm modules and components that are no container images: one layer, which is the module.
//!
//! It appears under its title, else as `module.wasm`. Several layers without titles are refused, as the specification
//! advises. Source: CNCF TAG Runtime wasm-oci-artifact; wasm-to-oci and oci-distribution wrote the `v1` types.

use crate::layout::artifact::Artifact;
use crate::layout::error::Error;
use crate::layout::naming::{file, unnamed};
use crate::layout::options::Options;
use crate::layout::plan::Plan;
use crate::oci::annotation::TITLE;
use crate::oci::manifest::Manifest;

const CONFIG: &str = "application/vnd.wasm.config.";
const LAYERS: [&str; 3] = [
    "application/wasm",
    "application/vnd.wasm.content.layer.v1+wasm",
    "application/vnd.module.wasm.content.layer.v1+wasm",
];

pub(in crate::layout) fn recognise(manifest: &Manifest) -> Option<String> {
    let config = &manifest.config.media_type;
    if config.starts_with(CONFIG) {
        return Some(format!("config is {config}"));
    }
    let mut layers = manifest.layers.iter().map(|layer| layer.media_type.as_str());
    let first = layers.next().filter(|first| LAYERS.contains(first))?;
    layers.all(|layer| LAYERS.contains(&layer)).then(|| format!("the layers are {first}"))
}

pub(in crate::layout) fn plan(artifact: &Artifact<'_>, _: &Options) -> Result<Plan, Error> {
    let layers = &artifact.manifest.layers;
    let mut items = Vec::with_capacity(layers.len());
    for layer in layers {
        let title = layer.annotation(TITLE).filter(|title| !title.is_empty());
        let name = title.or_else(|| (layers.len() == 1).then_some("module.wasm"));
        items.push(file(layer, name.ok_or_else(|| unnamed(layer, TITLE))?)?);
    }
    Plan::artifact(items)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::plan::tests::{manifest, paths};

    #[test]
    fn a_module_has_its_title_or_a_name() {
        for layer in LAYERS {
            for config in ["application/vnd.wasm.config.v0+json", "application/vnd.wasm.config.v1+json"] {
                let of = |layers: &[(&str, &[(&str, &str)])]| paths(plan, &manifest("", config, layers));
                assert_eq!(of(&[(layer, &[])]).expect("a plan"), ["module.wasm"]);
                let titled: &[(&str, &str)] = &[(TITLE, "plugin.wasm")];
                assert_eq!(of(&[(layer, titled)]).expect("a plan"), ["plugin.wasm"]);
                assert!(matches!(of(&[(layer, &[]), (layer, titled)]), Err(Error::Unnamed { .. })));
            }
        }
    }
}
