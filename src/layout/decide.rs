//! Which family an artifact belongs to, by which rule, and what its plan is.

use crate::layout::artifact::Artifact;
use crate::layout::error::Error;
use crate::layout::error::unsupported;
use crate::layout::families::{
    attachment, blobs, cog, docker_model, flux, helm, image, kernel_cache, kitops, modelpack, oci_layout,
    ollama, oras, skill, wasm,
};
use crate::layout::options::{Layout, Options};
use crate::layout::plan::Plan;
use crate::oci::manifest::Manifest;
use crate::oci::reference::Reference;

/// An artifact family whose layout ocivol knows.
#[derive(Debug)]
pub struct Family {
    /// The name people see.
    pub name: &'static str,
    /// Whether everybody may read what it holds, where a volume does not say: the pods that use artifacts seldom
    /// run as root, while an image's permissions are part of what it is.
    pub readable: bool,
    /// The rule by which a manifest is one of these, in words; `None` when it is none.
    recognise: fn(&Manifest) -> Option<String>,
    /// Where its files go.
    pub(super) plan: fn(&Artifact<'_>, &Options) -> Result<Plan, Error>,
}

/// A family and why it was chosen.
#[derive(Debug)]
pub struct Decision {
    /// The family.
    pub family: &'static Family,
    /// The rule that chose it, for people.
    pub rule: String,
}

/// The families. The first whose rule applies decides: config and artifact type come before layer types, because a
/// layer's media type alone says little (ORAS calls a plain file `…layer.v1.tar`), and Ollama comes before images,
/// whose config type it uses.
#[rustfmt::skip]
static FAMILIES: [Family; 13] = [
    Family { name: "attachment", readable: true, recognise: attachment::recognise, plan: attachment::plan },
    Family { name: "docker-model", readable: true, recognise: docker_model::recognise, plan: docker_model::plan },
    Family { name: "kitops", readable: true, recognise: kitops::recognise, plan: kitops::plan },
    Family { name: "cog", readable: true, recognise: cog::recognise, plan: cog::plan },
    Family { name: "skill", readable: true, recognise: skill::recognise, plan: skill::plan },
    Family { name: "kernel-cache", readable: true, recognise: kernel_cache::recognise, plan: kernel_cache::plan },
    Family { name: "modelpack", readable: true, recognise: modelpack::recognise, plan: modelpack::plan },
    Family { name: "ollama", readable: true, recognise: ollama::recognise, plan: ollama::plan },
    Family { name: image::NAME, readable: false, recognise: image::recognise, plan: image::plan },
    Family { name: "helm", readable: true, recognise: helm::recognise, plan: helm::plan },
    Family { name: "flux", readable: true, recognise: flux::recognise, plan: flux::plan },
    Family { name: "wasm", readable: true, recognise: wasm::recognise, plan: wasm::plan },
    Family { name: "files", readable: true, recognise: oras::recognise, plan: oras::plan },
];

/// What a volume can ask for whatever the family is.
#[rustfmt::skip]
static LAYOUTS: [Family; 3] = [
    Family { name: "blobs", readable: true, recognise: any, plan: blobs::plan },
    Family { name: "oci-layout", readable: true, recognise: any, plan: oci_layout::plan },
    Family { name: "ollama", readable: true, recognise: any, plan: ollama::plan_tree },
];

fn any(_: &Manifest) -> Option<String> {
    Some("asked for by layout".to_owned())
}

/// The family of `manifest`, or the layout that was asked for.
///
/// # Errors
/// [`Error::Unsupported`] with the media types seen, when no rule applies.
pub fn decide(manifest: &Manifest, layout: &Layout) -> Result<Decision, Error> {
    let candidates = match layout {
        Layout::Auto => &FAMILIES[..],
        Layout::Blobs => &LAYOUTS[..1],
        Layout::OciLayout { .. } => &LAYOUTS[1..2],
        Layout::Ollama { .. } => &LAYOUTS[2..],
    };
    let decided = candidates.iter().find_map(|family| {
        let rule = (family.recognise)(manifest)?;
        Some(Decision { family, rule })
    });
    decided.ok_or_else(|| unsupported(manifest, image::almost(manifest).unwrap_or("no layer has a title")))
}

/// The plan of what `artifact` holds, as `options` want it.
///
/// # Errors
/// When no family's rule applies, the family's rule refuses a layer, or nothing is selected;
/// [`Error::NeedsConfig`] when it has to be called again with the config.
pub fn plan(artifact: &Artifact<'_>, options: &Options) -> Result<Plan, Error> {
    let decision = decide(artifact.manifest, &options.layout)?;
    (decision.family.plan)(artifact, options)?.select(&options.selection)
}

/// The layout with this name, of what `reference` names. `None` when there is none of this name.
pub fn layout_named(name: &str, reference: &Reference) -> Option<Layout> {
    match name {
        "auto" => Some(Layout::Auto),
        "blobs" => Some(Layout::Blobs),
        "oci-layout" => Some(Layout::OciLayout { tag: reference.tag().map(str::to_owned) }),
        "ollama" => Some(Layout::Ollama { manifest: ollama::manifest_path(reference) }),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::plan::tests::manifest;
    use crate::oci::media_type;

    #[test]
    fn the_first_rule_that_applies_decides() {
        let title = &[("org.opencontainers.image.title", "a.bin")][..];
        let filepath = &[("org.cncf.model.filepath", "a.bin")][..];
        let legacy = &[("org.cnai.model.filepath", "a.bin")][..];
        let none = &[][..];
        let model = "application/vnd.cncf.model.manifest.v1+json";
        let model_config = "application/vnd.cncf.model.config.v1+json";
        let raw = "application/vnd.cncf.model.weight.v1.raw";
        let docker = "application/vnd.docker.ai.model.config.v0.2+json";
        let (image, docker_image) = (media_type::OCI_IMAGE_CONFIG, media_type::DOCKER_IMAGE_CONFIG);
        let (empty, tar) = (media_type::OCI_EMPTY, media_type::OCI_LAYER);
        let gguf = "application/vnd.ollama.image.model";
        let simple = "application/vnd.dev.cosign.simplesigning.v1+json";
        let table = [
            (model, model_config, raw, filepath, "modelpack"),
            ("", model_config, raw, filepath, "modelpack"),
            ("", empty, "a/b", filepath, "modelpack"),
            ("", empty, "a/b", legacy, "modelpack"),
            ("", docker, "application/vnd.docker.ai.gguf.v3", filepath, "docker-model"),
            ("a/b", empty, tar, title, "files"),
            ("", empty, "a/b", title, "files"),
            ("", image, tar, title, "image"),
            ("", docker_image, tar, none, "image"),
            ("", docker_image, gguf, none, "ollama"),
            ("", image, gguf, none, "ollama"),
            ("a/b", image, tar, title, "files"),
            ("a/b", empty, "a/b", none, ""),
            ("", image, "a/b", none, ""),
            ("", image, simple, none, "attachment"),
            ("", "application/vnd.cncf.helm.config.v1+json", "application/tar+gzip", none, "helm"),
            ("", "application/vnd.cncf.flux.config.v1+json", "a/b", none, "flux"),
            ("", "application/vnd.wasm.config.v0+json", "application/wasm", none, "wasm"),
            ("", "application/vnd.kitops.modelkit.config.v1+json", "a/b", filepath, "kitops"),
            ("application/vnd.kitops.modelkit.manifest.v1+json", empty, "a/b", none, "kitops"),
            ("application/vnd.cog.weight.v1", "application/vnd.cog.weight.config.v1+json", tar, none, "cog"),
            ("application/vnd.agentskills.skill.v1", empty, tar, none, "skill"),
            ("", image, "application/cache.triton.content.layer.v1+triton", none, "kernel-cache"),
            ("", image, "application/wasm", none, "wasm"),
        ];
        for (artifact_type, config, layer, annotations, expected) in table {
            let manifest = manifest(artifact_type, config, &[(layer, annotations)]);
            let family = decide(&manifest, &Layout::Auto).map_or("", |decision| decision.family.name);
            assert_eq!(family, expected, "{artifact_type} {config} {layer} {annotations:?}");
        }
    }

    #[test]
    fn what_is_not_supported_names_the_media_types() {
        let manifest = manifest("x/artifact", "x/config", &[("x/layer", &[])]);
        let error = decide(&manifest, &Layout::Auto).expect_err("no rule").to_string();
        assert!(
            error.contains("x/artifact, x/config, x/layer") && error.contains("layout: blobs"),
            "{error}"
        );
    }
}
