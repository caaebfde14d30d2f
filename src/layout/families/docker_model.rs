//! Docker Model Runner: a layer for each file, or with archives of files; no compression.
//!
//! The names are those that Docker Model Runner gives in its bundle's `model` directory. Its v0.2 names every layer by
//! `org.cncf.model.filepath`; v0.1 goes by media type. What it does not write (licenses, LoRA adapters) has names here
//! as well. Source: docker/model-spec spec.md; docker/model-runner pkg/distribution/internal/bundle/unpack.go.

use crate::layout::artifact::Artifact;
use crate::layout::error::Error;
use crate::layout::families::modelpack::file_metadata;
use crate::layout::naming::{at_root, numbered, path_of, sharded, unnamed};
use crate::layout::options::{Options, Unpack};
use crate::layout::plan::{File, Item, Plan, StatedMetadata};
use crate::oci::annotation::FILEPATH;
use crate::oci::descriptor::Descriptor;
use crate::oci::manifest::Manifest;

const CONFIG: &str = "application/vnd.docker.ai.model.config.";
const LAYERS: &str = "application/vnd.docker.ai.";

/// What a layer is, by its media type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Gguf,
    Lora,
    Projector,
    Safetensors,
    Template,
    License,
    Dduf,
    Archive,
    /// A file that has its own name.
    File,
}

pub(in crate::layout) fn recognise(manifest: &Manifest) -> Option<String> {
    let config = &manifest.config.media_type;
    config.starts_with(CONFIG).then(|| format!("config is {config}"))
}

pub(in crate::layout) fn plan(artifact: &Artifact<'_>, options: &Options) -> Result<Plan, Error> {
    let manifest = artifact.manifest;
    let one_by_one = manifest.config.media_type.starts_with("application/vnd.docker.ai.model.config.v0.2");
    let total = |wanted: Kind| manifest.layers.iter().filter(|layer| kind(layer) == wanted).count();
    let (weights, tensors) = (total(Kind::Gguf), total(Kind::Safetensors));
    let mut numbers = [0_usize; Kind::File as usize + 1];
    let mut next = |kind: Kind| {
        let number = &mut numbers[kind as usize];
        *number += 1;
        *number - 1
    };
    let mut items = Vec::with_capacity(manifest.layers.len());
    for layer in &manifest.layers {
        let kind = kind(layer);
        let own = layer.annotation(FILEPATH).filter(|name| !name.is_empty());
        // v0.2 takes a layer that has a name as that file, whatever it is.
        let unpacked = match options.unpack {
            Unpack::Never => false,
            Unpack::Auto => !(one_by_one && own.is_some()),
            Unpack::Always => true,
        };
        if kind == Kind::Archive && unpacked {
            items.push(at_root(layer, options));
            continue;
        }
        let by_type = match kind {
            Kind::Gguf => Some(sharded("model", "gguf", next(kind), weights)),
            Kind::Safetensors => {
                let by_type = sharded("model", "safetensors", next(kind), tensors);
                Some(own.map_or(by_type, str::to_owned))
            }
            Kind::Lora => Some(numbered("adapter", "gguf", next(kind))),
            Kind::Projector => Some(numbered("model", "mmproj", next(kind))),
            Kind::Template => Some("template.jinja".to_owned()),
            Kind::License => Some(numbered("license", "txt", next(kind))),
            // Docker Model Runner takes the name of the blob's file in its store.
            Kind::Dduf => Some(format!("{}.dduf", layer.digest.hex())),
            Kind::File | Kind::Archive => own.map(str::to_owned),
        };
        let name = match (one_by_one, own) {
            (true, Some(own)) => Some(own.to_owned()),
            _ => by_type,
        };
        let path = path_of(layer, &name.ok_or_else(|| unnamed(layer, FILEPATH))?)?;
        let metadata = if kind == Kind::Archive { StatedMetadata::default() } else { file_metadata(layer)? };
        items.push(Item::File(path, File { blob: layer.bare(), metadata }));
    }
    Plan::artifact(items)
}

fn kind(layer: &Descriptor) -> Kind {
    match layer.media_type.strip_prefix(LAYERS) {
        Some("gguf.v3") => Kind::Gguf,
        Some("gguf.v3.lora") => Kind::Lora,
        Some("gguf.v3.mmproj" | "mmproj") => Kind::Projector,
        Some("safetensors") => Kind::Safetensors,
        Some("chat.template.jinja") => Kind::Template,
        Some("license") => Kind::License,
        Some("dduf") => Kind::Dduf,
        Some("vllm.config.tar" | "dir.tar") => Kind::Archive,
        _ => Kind::File,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::plan::tests::{manifest, paths};

    type Layers<'a> = [(&'a str, &'a [(&'a str, &'a str)])];

    fn plan_of(version: &str, layers: &Layers<'_>) -> Result<Vec<String>, Error> {
        let types: Vec<String> = layers.iter().map(|(kind, _)| format!("{LAYERS}{kind}")).collect();
        let layers = types.iter().zip(layers).map(|(kind, (_, annotations))| (kind.as_str(), *annotations));
        let manifest = manifest("", &format!("{CONFIG}{version}+json"), &layers.collect::<Vec<_>>());
        paths(plan, &manifest)
    }

    #[test]
    fn the_first_version_goes_by_type() {
        let path = &[(FILEPATH, "text_encoder/model.safetensors")][..];
        let table: [(&Layers<'_>, &[&str]); 6] = [
            (
                &[("gguf.v3", path), ("license", &[]), ("license", &[]), ("chat.template.jinja", &[])],
                &["model.gguf", "license.txt", "license-2.txt", "template.jinja"],
            ),
            (
                &[("gguf.v3", &[]), ("gguf.v3", &[])],
                &["model-00001-of-00002.gguf", "model-00002-of-00002.gguf"],
            ),
            (
                &[("gguf.v3", &[]), ("mmproj", &[]), ("gguf.v3.lora", &[])],
                &["model.gguf", "model.mmproj", "adapter.gguf"],
            ),
            (&[("safetensors", &[]), ("vllm.config.tar", &[])], &["model.safetensors", "(archive)"]),
            (
                &[("safetensors", path), ("safetensors", &[])],
                &["text_encoder/model.safetensors", "model-00002-of-00002.safetensors"],
            ),
            (&[("model.file", &[(FILEPATH, "a/b.json")]), ("dir.tar", &[])], &["a/b.json", "(archive)"]),
        ];
        for (layers, expected) in table {
            assert_eq!(plan_of("v0.1", layers).expect("a plan"), expected, "{layers:?}");
        }
        let dduf = plan_of("v0.1", &[("dduf", &[])]).expect("a plan");
        assert!(dduf[0].len() == 69 && dduf[0].ends_with(".dduf"), "{dduf:?}");
    }

    #[test]
    fn the_second_version_goes_by_annotation() {
        let layers: &Layers<'_> = &[
            ("gguf.v3", &[(FILEPATH, "w/model.gguf")]),
            ("license", &[(FILEPATH, "LICENSE")]),
            ("chat.template.jinja", &[]),
            ("dir.tar", &[(FILEPATH, "extra.tar")]),
            ("dir.tar", &[]),
        ];
        let expected = ["w/model.gguf", "LICENSE", "template.jinja", "extra.tar", "(archive)"];
        assert_eq!(plan_of("v0.2", layers).expect("a plan"), expected);
        for (layers, expected) in [
            (&[("model.file", &[][..])], "has no file name"),
            (&[("model.file", &[(FILEPATH, "../x")])], "'..'"),
            (&[("model.file", &[(FILEPATH, "/etc/passwd")])], "absolute"),
        ] {
            let error = plan_of("v0.2", layers).expect_err(expected).to_string();
            assert!(error.contains(expected) && error.contains("sha256:"), "{error}");
        }
    }
}
