//! Helm charts: an archive whose one top directory is the chart, and maybe its provenance.
//!
//! Unpacked they are `<chart>/…`, as `helm pull --untar` leaves them. With `unpack: never` they are the files that
//! `helm pull --prov` leaves: `<chart>-<version>.tgz` and `.tgz.prov`, whose signature is about the archive. The order of
//! the layers says nothing. Source: Helm HIP 6 and 17, pkg/registry.

use serde::Deserialize;

use crate::layer::name::shown;
use crate::layout::artifact::Artifact;
use crate::layout::error::Error;
use crate::layout::naming::{at_root, file, unnamed};
use crate::layout::options::{Options, Unpack};
use crate::layout::plan::Plan;
use crate::oci::annotation::TITLE;
use crate::oci::manifest::Manifest;

const CONFIG: &str = "application/vnd.cncf.helm.config.v1+json";
/// The archive; the second is what Helm wrote before its type was registered.
const CONTENT: [&str; 2] = ["application/vnd.cncf.helm.chart.content.v1.tar+gzip", "application/tar+gzip"];
const PROVENANCE: &str = "application/vnd.cncf.helm.chart.provenance.v1.prov";
const VERSION: &str = "org.opencontainers.image.version";

/// What the config, `Chart.yaml` as JSON, says.
#[derive(Deserialize)]
struct Chart {
    name: String,
    version: String,
}

pub(in crate::layout) fn recognise(manifest: &Manifest) -> Option<String> {
    let types = [
        ("config", Some(manifest.config.media_type.as_str())),
        ("artifactType", manifest.artifact_type.as_deref()),
    ];
    let (place, _) = types.into_iter().find(|(_, name)| *name == Some(CONFIG))?;
    Some(format!("{place} is {CONFIG}"))
}

pub(in crate::layout) fn plan(artifact: &Artifact<'_>, options: &Options) -> Result<Plan, Error> {
    let unpacked = options.unpack != Unpack::Never;
    let archive = if unpacked { String::new() } else { archive_name(artifact)? };
    let mut items = Vec::with_capacity(2);
    for layer in &artifact.manifest.layers {
        let content = CONTENT.contains(&layer.media_type.as_str());
        if content && unpacked {
            items.push(at_root(layer, options));
        } else if content {
            items.push(file(layer, &archive)?);
        } else if layer.media_type == PROVENANCE {
            // It signs the archive, and says nothing about unpacked files.
            if !unpacked {
                items.push(file(layer, &format!("{archive}.prov"))?);
            }
        } else {
            let title = layer.annotation(TITLE).filter(|title| !title.is_empty());
            items.push(file(layer, title.ok_or_else(|| unnamed(layer, TITLE))?)?);
        }
    }
    Plan::artifact(items)
}

/// The chart's name and version, from the annotations that Helm sets, else from the config.
fn archive_name(artifact: &Artifact<'_>) -> Result<String, Error> {
    let annotation = |key| artifact.manifest.annotations.get(key).filter(|value| !value.is_empty());
    let (name, version) = match (annotation(TITLE), annotation(VERSION)) {
        (Some(name), Some(version)) => (name.clone(), version.clone()),
        _ => {
            let config = artifact.config.ok_or(Error::NeedsConfig)?;
            let chart: Chart = serde_json::from_slice(config).map_err(Error::Config)?;
            (chart.name, chart.version)
        }
    };
    if name.contains('/') || version.contains('/') {
        let reason = "a chart's name and version are one file's name";
        let name = shown(format!("{name}-{version}.tgz").as_bytes());
        return Err(Error::UnsafeName { digest: artifact.manifest.config.digest.clone(), name, reason });
    }
    Ok(format!("{name}-{version}.tgz"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::plan::tests::{artifact, manifest, paths, paths_with};

    #[test]
    fn layers_in_either_order_and_of_either_type() {
        let never = Options { unpack: Unpack::Never, ..Options::default() };
        for content in CONTENT {
            for layers in [[(content, &[][..]), (PROVENANCE, &[][..])], [(PROVENANCE, &[]), (content, &[])]] {
                let mut chart = manifest("", CONFIG, &layers);
                assert_eq!(paths(plan, &chart).expect("a plan"), ["(archive)"]);
                assert!(matches!(paths_with(plan, &chart, &never), Err(Error::NeedsConfig)));
                chart.annotations.insert(TITLE.into(), "app".into());
                chart.annotations.insert(VERSION.into(), "1.0.0+build".into());
                let mut found = paths_with(plan, &chart, &never).expect("a plan");
                found.sort();
                assert_eq!(found, ["app-1.0.0+build.tgz", "app-1.0.0+build.tgz.prov"]);
            }
        }
    }

    #[test]
    fn the_config_names_a_chart_without_annotations() {
        let never = Options { unpack: Unpack::Never, ..Options::default() };
        let chart = manifest("", CONFIG, &[(CONTENT[0], &[])]);
        let named = |config: &str| {
            let with_config = Artifact { config: Some(config.as_bytes()), ..artifact(&chart) };
            plan(&with_config, &never).map(|plan| plan.files().next().map(|(path, _)| path.to_string()))
        };
        assert_eq!(named(r#"{"name":"a","version":"1.2"}"#).expect("a plan").as_deref(), Some("a-1.2.tgz"));
        for bad in
            ["{", r#"{"name":"a"}"#, r#"{"name":"../a","version":"1"}"#, r#"{"name":"a","version":"1/2"}"#]
        {
            assert!(named(bad).is_err(), "{bad}");
        }
    }
}
