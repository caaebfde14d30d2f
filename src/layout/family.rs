//! Which family an artifact belongs to, and by which rule.
//!
//! The order of the rules matters: the first that applies decides. Config and artifact type come before layer
//! types, because a layer's media type alone says little (ORAS calls a plain file `…layer.v1.tar`).

use super::{Error, Options, Plan, image, modelpack, oras};
use crate::oci::{Manifest, media_type};

/// An artifact family whose layout ocivol knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// Container images, OCI and Docker.
    Image,
    /// CNCF ModelPack, current and legacy (`cnai`) names.
    ModelPack,
    /// Files with titles, as `oras push` makes them, and everything else of that shape.
    Files,
}

/// A family and why it was chosen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// The family.
    pub family: Family,
    /// The rule that chose it, for people.
    pub rule: String,
}

impl Family {
    /// Whether everybody may read what it holds, where a volume does not say: the pods that use artifacts seldom
    /// run as root, while an image's permissions are part of what it is.
    pub fn is_readable(self) -> bool {
        self != Self::Image
    }

    /// The name people see.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Image => "image",
            Self::ModelPack => "modelpack",
            Self::Files => "files",
        }
    }
}

/// The family of `manifest`.
///
/// # Errors
/// [`Error::Unsupported`] with the media types seen, when no rule applies.
pub fn decide(manifest: &Manifest) -> Result<Decision, Error> {
    if let Some(rule) = modelpack::recognise(manifest) {
        return Ok(Decision { family: Family::ModelPack, rule });
    }
    if let Some(rule) = image::recognise(manifest) {
        return Ok(Decision { family: Family::Image, rule });
    }
    let image_config = [media_type::OCI_IMAGE_CONFIG, media_type::DOCKER_IMAGE_CONFIG]
        .contains(&&*manifest.config.media_type);
    if image_config && manifest.artifact_type.is_none() {
        return Err(unsupported(
            manifest,
            "it has the config of a container image, and layers that are none",
        ));
    }
    if let Some(rule) = oras::recognise(manifest) {
        return Ok(Decision { family: Family::Files, rule });
    }
    Err(unsupported(manifest, "no layer has a title"))
}

/// The plan of what `manifest` holds, as `options` want it.
///
/// # Errors
/// When no family's rule applies, the family's rule refuses a layer, or nothing is selected.
pub fn plan(manifest: &Manifest, options: &Options) -> Result<Plan, Error> {
    let plan = match decide(manifest)?.family {
        Family::Image => image::plan(manifest, options),
        Family::ModelPack => modelpack::plan(manifest, options),
        Family::Files => oras::plan(manifest, options),
    }?;
    plan.select(&options.selection)
}

/// The error that tells a reader of the artifact what it is made of.
pub(super) fn unsupported(manifest: &Manifest, what: &str) -> Error {
    let mut seen: Vec<&str> = Vec::new();
    let layers = manifest.layers.iter().map(|layer| layer.media_type.as_str());
    let artifact = manifest.artifact_type.as_deref();
    for name in artifact.into_iter().chain([manifest.config.media_type.as_str()]).chain(layers) {
        if !name.is_empty() && !seen.contains(&name) {
            seen.push(name);
        }
    }
    if seen.len() > 8 {
        seen.truncate(8);
        seen.push("…");
    }
    Error::Unsupported { what: what.to_owned(), media_types: seen.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::manifest::{Document, parse};

    fn manifest(body: &str) -> Manifest {
        match parse(body.as_bytes(), None) {
            Ok(Document::Manifest(manifest)) => manifest,
            other => panic!("{other:?}"),
        }
    }

    fn body(artifact_type: &str, config: &str, layer: &str, annotations: &str) -> String {
        let digest = format!("sha256:{}", "0".repeat(64));
        format!(
            r#"{{"schemaVersion":2,"artifactType":"{artifact_type}",
            "config":{{"mediaType":"{config}","digest":"{digest}","size":2}},
            "layers":[{{"mediaType":"{layer}","digest":"{digest}","size":1,"annotations":{annotations}}}]}}"#
        )
    }

    #[test]
    fn the_first_rule_that_applies_decides() {
        let title = r#"{"org.opencontainers.image.title":"a.bin"}"#;
        let filepath = r#"{"org.cncf.model.filepath":"a.bin"}"#;
        let legacy = r#"{"org.cnai.model.filepath":"a.bin"}"#;
        let model = "application/vnd.cncf.model.manifest.v1+json";
        let model_config = "application/vnd.cncf.model.config.v1+json";
        let raw = "application/vnd.cncf.model.weight.v1.raw";
        let image = media_type::OCI_IMAGE_CONFIG;
        let empty = media_type::OCI_EMPTY;
        let table = [
            (body(model, model_config, raw, filepath), Some(Family::ModelPack)),
            (body("", model_config, raw, filepath), Some(Family::ModelPack)),
            (body("", empty, "a/b", filepath), Some(Family::ModelPack)),
            (body("", empty, "a/b", legacy), Some(Family::ModelPack)),
            (body("a/b", empty, media_type::OCI_LAYER, title), Some(Family::Files)),
            (body("", empty, "a/b", title), Some(Family::Files)),
            (body("", image, media_type::OCI_LAYER, title), Some(Family::Image)),
            (body("", media_type::DOCKER_IMAGE_CONFIG, media_type::OCI_LAYER, "{}"), Some(Family::Image)),
            (body("", image, "application/vnd.ollama.image.model", "{}"), None),
            (body("a/b", image, media_type::OCI_LAYER, title), Some(Family::Files)),
            (body("a/b", empty, "a/b", "{}"), None),
        ];
        for (body, expected) in table {
            assert_eq!(decide(&manifest(&body)).ok().map(|decision| decision.family), expected, "{body}");
        }
    }

    #[test]
    fn what_is_not_supported_names_the_media_types() {
        let text = body("x/artifact", "x/config", "x/layer", "{}");
        let error = plan(&manifest(&text), &Options::default()).expect_err("no rule").to_string();
        assert!(error.contains("x/artifact, x/config, x/layer"), "{error}");
    }
}
