//! Agent skills: directories with a `SKILL.md`, packed.
//!
//! Archives are unpacked at the volume's root. The Agent Skills specification packs `<name>/SKILL.md`, so that the volume
//! is what agents call their skills directory; Red Hat's skillctl packs the directory's content. ToolHive's skills and
//! skillctl's default are container images, and shown as such. Source: arconia-io/arconia-cli SkillPublisher, liatrio/skills-oci
//! pkg/oci, redhat-et/skillimage pkg/oci.

use crate::layout::artifact::Artifact;
use crate::layout::error::Error;
use crate::layout::families::modelpack::file_metadata;
use crate::layout::naming::{at_root, path_of, unnamed};
use crate::layout::options::{Options, Unpack};
use crate::layout::plan::{File, Item, Plan};
use crate::oci::annotation::FILEPATH;
use crate::oci::annotation::TITLE;
use crate::oci::manifest::Manifest;

/// What types of artifact or config begin with.
const TYPES: [&str; 3] =
    ["application/vnd.agentskills.", "application/vnd.cncf.skill.", "application/vnd.redhat.agentskill."];
/// What types of packed layers end in.
const ARCHIVES: [&str; 3] = [".tar", ".tar+gzip", ".tar+zstd"];

pub(in crate::layout) fn recognise(manifest: &Manifest) -> Option<String> {
    let types =
        [("artifactType", manifest.artifact_type.as_deref()), ("config", Some(&*manifest.config.media_type))];
    let is_skill = |name: &str| TYPES.iter().any(|prefix| name.starts_with(prefix));
    let (place, name) =
        types.into_iter().find_map(|(place, name)| Some((place, name.filter(|name| is_skill(name))?)))?;
    Some(format!("{place} is {name}"))
}

pub(in crate::layout) fn plan(artifact: &Artifact<'_>, options: &Options) -> Result<Plan, Error> {
    let mut items = Vec::with_capacity(1);
    for layer in &artifact.manifest.layers {
        let kind = layer.media_type.as_str();
        let packed = ARCHIVES.iter().any(|ending| kind.ends_with(ending)) || kind.ends_with("+tar+gzip");
        if packed && options.unpack != Unpack::Never {
            items.push(at_root(layer, options));
            continue;
        }
        let named = |key| layer.annotation(key).filter(|name| !name.is_empty());
        let name = named(FILEPATH).or_else(|| named(TITLE));
        let name = match name {
            None if packed => "skill.tar.gz",
            name => name.ok_or_else(|| unnamed(layer, TITLE))?,
        };
        let metadata = if packed { Default::default() } else { file_metadata(layer)? };
        items.push(Item::File(path_of(layer, name)?, File { blob: layer.bare(), metadata }));
    }
    Plan::artifact(items)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::plan::tests::{manifest, paths, paths_with};

    #[test]
    fn skills_of_all_publishers() {
        let none: &[(&str, &str)] = &[];
        let agent = "application/vnd.agentskills.skill.content.v1.tar+gzip";
        let never = Options { unpack: Unpack::Never, ..Options::default() };
        for (artifact_type, config, layer) in [
            (
                "application/vnd.agentskills.skill.v1",
                "application/vnd.agentskills.skill.config.v1+json",
                agent,
            ),
            (
                "",
                "application/vnd.agentskills.config.v1+json",
                "application/vnd.agentskills.skill.layer.v1+tar+gzip",
            ),
            (
                "application/vnd.cncf.skill.manifest.v1+json",
                "a/b",
                "application/vnd.cncf.skill.content.v1.tar+zstd",
            ),
            (
                "",
                "application/vnd.redhat.agentskill.config.v1+json",
                "application/vnd.redhat.agentskill.layer.v1.tar+gzip",
            ),
        ] {
            let manifest = manifest(artifact_type, config, &[(layer, none)]);
            assert!(recognise(&manifest).is_some(), "{artifact_type} {config}");
            assert_eq!(paths(plan, &manifest).expect(layer), ["(archive)"]);
            assert_eq!(paths_with(plan, &manifest, &never).expect(layer), ["skill.tar.gz"]);
        }
        let card = ("application/vnd.docsclaw.skill.card.v1+yaml", &[(TITLE, "card.yaml")][..]);
        let mixed = manifest("application/vnd.agentskills.skill.v1", "a/b", &[card, (agent, none)]);
        assert_eq!(paths(plan, &mixed).expect("a plan"), ["card.yaml", "(archive)"]);
        let unnamed = manifest("application/vnd.agentskills.skill.v1", "a/b", &[("text/plain", none)]);
        assert!(matches!(paths(plan, &unnamed), Err(Error::Unnamed { .. })));
    }
}
