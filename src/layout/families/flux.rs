//! Flux artifacts: one layer, an archive of manifests at its root, or one file without a name.
//!
//! Source: fluxcd/pkg oci/push.go, oci/oci.go.

use crate::layout::artifact::Artifact;
use crate::layout::error::Error;
use crate::layout::naming::{at_root, file};
use crate::layout::options::{Options, Unpack};
use crate::layout::plan::Plan;
use crate::oci::annotation::TITLE;
use crate::oci::descriptor::Descriptor;
use crate::oci::manifest::Manifest;

const CONFIG: &str = "application/vnd.cncf.flux.config.";
const CONTENT: &str = "application/vnd.cncf.flux.content.v1";

pub(in crate::layout) fn recognise(manifest: &Manifest) -> Option<String> {
    let types = [
        ("config", Some(manifest.config.media_type.as_str())),
        ("artifactType", manifest.artifact_type.as_deref()),
    ];
    let (place, name) = types
        .into_iter()
        .find_map(|(place, name)| Some((place, name.filter(|name| name.starts_with(CONFIG))?)))?;
    Some(format!("{place} is {name}"))
}

pub(in crate::layout) fn plan(artifact: &Artifact<'_>, options: &Options) -> Result<Plan, Error> {
    let mut items = Vec::with_capacity(1);
    for layer in &artifact.manifest.layers {
        let archive = layer.media_type == "application/vnd.cncf.flux.content.v1.tar+gzip";
        items.push(if archive && options.unpack != Unpack::Never {
            at_root(layer, options)
        } else {
            let title = layer.annotation(TITLE).filter(|title| !title.is_empty());
            file(layer, &title.map_or_else(|| name(layer), str::to_owned))?
        });
    }
    Plan::artifact(items)
}

/// A layer without a title: the extension is in its media type.
fn name(layer: &Descriptor) -> String {
    let extension = layer.media_type.strip_prefix(CONTENT).unwrap_or_default();
    match extension {
        ".tar+gzip" => "content.tar.gz".to_owned(),
        _ => format!("content{}", extension.split(['+', ';', '/']).next().unwrap_or_default()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::plan::tests::{manifest, paths, paths_with};

    #[test]
    fn archives_and_static_files() {
        let config = "application/vnd.cncf.flux.config.v1+json";
        let of = |layer: &str, options: &Options| {
            let layer = format!("{CONTENT}{layer}");
            paths_with(plan, &manifest("", config, &[(&layer, &[])]), options).expect("a plan")
        };
        let auto = Options::default();
        let never = Options { unpack: Unpack::Never, ..Options::default() };
        assert_eq!(of(".tar+gzip", &auto), ["(archive)"]);
        assert_eq!(of(".tar+gzip", &never), ["content.tar.gz"]);
        assert_eq!(of(".yaml", &auto), ["content.yaml"]);
        assert_eq!(of("", &auto), ["content"]);
        let titled = manifest("", config, &[(CONTENT, &[(TITLE, "deploy.yaml")])]);
        assert_eq!(paths(plan, &titled).expect("a plan"), ["deploy.yaml"]);
    }
}
