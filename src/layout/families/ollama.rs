//! Models of Ollama: a Docker manifest whose layers are `application/vnd.ollama.image.*`, each a file without a name.
//!
//! Ollama itself has no names either: its store has blobs by digest, and a manifest by name. So there are two layouts:
//! names that other programs can use, and with `layout: ollama` the store itself, which `OLLAMA_MODELS` can point to.
//! Source: ollama manifest/layer.go, manifest/paths.go, types/model/name.go.

use crate::layout::error::media_types;
use std::collections::{HashMap, HashSet};

use crate::layer::name::shown;
use crate::layout::artifact::Artifact;

use crate::layout::error::Error;
use crate::layout::families::blobs;
use crate::layout::naming::{file, numbered, sharded, unnamed};
use crate::layout::options::{Layout, Options};
use crate::layout::plan::{File, Item, Plan, StatedMetadata};
use crate::layout::tree_path::TreePath;
use crate::oci::manifest::Manifest;
use crate::oci::reference::Reference;

const PREFIX: &str = "application/vnd.ollama.image.";
/// Kinds of layers, and the files they become: name and extension.
const NAMES: [(&str, &str, &str); 9] = [
    ("model", "model", "gguf"),
    ("projector", "mmproj", "gguf"),
    ("adapter", "adapter", "gguf"),
    ("draft", "draft", "gguf"),
    ("template", "template", "txt"),
    ("system", "system", "txt"),
    ("params", "params", "json"),
    ("license", "license", "txt"),
    ("messages", "messages", "json"),
];

/// Characters of each part of a name.
const NAME_LIMIT: usize = 80;

pub(in crate::layout) fn recognise(manifest: &Manifest) -> Option<String> {
    let layer = manifest.layers.iter().find(|layer| layer.media_type.starts_with(PREFIX))?;
    Some(format!("layer {} is {}", layer.digest, layer.media_type))
}

pub(in crate::layout) fn plan(artifact: &Artifact<'_>, _: &Options) -> Result<Plan, Error> {
    let layers = &artifact.manifest.layers;
    // What follows a semicolon are parameters of the type.
    let kind = |media_type: &str| {
        let kind = media_type.strip_prefix(PREFIX)?.split(';').next()?.trim();
        NAMES.iter().find(|(known, ..)| *known == kind)
    };
    let total = layers.iter().filter(|layer| kind(&layer.media_type) == Some(&NAMES[0])).count();
    let mut seen: HashMap<&str, usize> = HashMap::new();
    let mut items = Vec::with_capacity(layers.len());
    for layer in layers {
        let Some((kind, name, extension)) = kind(&layer.media_type) else {
            return Err(unnamed(layer, "a kind of layer that has one (layout: ollama has it by its digest)"));
        };
        let number = seen.entry(kind).or_default();
        let name = match *kind {
            "model" => sharded(name, extension, *number, total),
            _ => numbered(name, extension, *number),
        };
        *number += 1;
        items.push(file(layer, &name)?);
    }
    Plan::artifact(items)
}

/// The store of an Ollama that has this one model.
pub(in crate::layout) fn plan_tree(artifact: &Artifact<'_>, options: &Options) -> Result<Plan, Error> {
    let manifest = artifact.manifest;
    let Layout::Ollama { manifest: name } = &options.layout else { return Err(Error::Empty) };
    if recognise(manifest).is_none() {
        return Err(Error::NotOllama { media_types: media_types(manifest) });
    }
    let refuse = |reason| Error::OllamaName { name: shown(name.as_bytes()), reason };
    check_name(name).map_err(refuse)?;
    let name = TreePath::new(name).map_err(refuse)?;
    let metadata = StatedMetadata::default();
    let mut items = vec![Item::File(name, File { blob: artifact.as_blob(), metadata })];
    let mut seen = HashSet::new();
    for blob in std::iter::once(&manifest.config).chain(&manifest.layers) {
        if seen.insert(&blob.digest) {
            items.push(file(blob, &format!("blobs/{}", blobs::name(&blob.digest)))?);
        }
    }
    Plan::artifact(items)
}

/// Ollama lists only what it can name: types/model/name.go.
fn check_name(path: &str) -> Result<(), &'static str> {
    let mut parts = path.split('/').skip(1);
    let mut next = || parts.next().unwrap_or_default();
    let (host, namespace, model, tag) = (next(), next(), next(), next());
    if host.contains('[') {
        return Err("no host is an IPv6 address");
    }
    if namespace.contains('.') {
        return Err("no namespace has a dot");
    }
    if [namespace, model, tag].iter().any(|part| part.len() > NAME_LIMIT) {
        return Err("no namespace, model or tag has more than 80 characters");
    }
    Ok(())
}

/// Where Ollama looks for the manifest of `reference`: its names have a host, one namespace and a model. Of a longer
/// repository the last two parts count; one without a namespace is in `library`.
pub(in crate::layout) fn manifest_path(reference: &Reference) -> String {
    let mut parts = reference.repository().rsplit('/');
    let model = parts.next().unwrap_or_default();
    let namespace = parts.next().unwrap_or("library");
    let tag = reference.tag().unwrap_or("latest");
    format!("manifests/{}/{namespace}/{model}/{tag}", reference.host())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::plan::tests::{manifest, paths, paths_with};
    use crate::oci::media_type::DOCKER_IMAGE_CONFIG;

    fn model(kinds: &[&str]) -> Manifest {
        let types: Vec<String> = kinds.iter().map(|kind| format!("{PREFIX}{kind}")).collect();
        let layers: Vec<(&str, &[(&str, &str)])> =
            types.iter().map(|name| (name.as_str(), &[][..])).collect();
        manifest("", DOCKER_IMAGE_CONFIG, &layers)
    }

    #[test]
    fn kinds_have_names_and_several_have_numbers() {
        let kinds = [
            "model",
            "template",
            "license",
            "license",
            "license",
            "params",
            "system",
            "projector",
            "adapter",
        ];
        let expected = [
            "model.gguf",
            "template.txt",
            "license.txt",
            "license-2.txt",
            "license-3.txt",
            "params.json",
            "system.txt",
            "mmproj.gguf",
            "adapter.gguf",
        ];
        assert_eq!(paths(plan, &model(&kinds)).expect("a plan"), expected);
        let shards = paths(plan, &model(&["model; name=x", "model"])).expect("a plan");
        assert_eq!(shards, ["model-00001-of-00002.gguf", "model-00002-of-00002.gguf"]);
        let error = paths(plan, &model(&["model", "tensor"])).expect_err("no name").to_string();
        assert!(error.contains("layout: ollama") && error.contains("image.tensor"), "{error}");
    }

    #[test]
    fn a_store_has_blobs_by_digest_and_the_manifest_by_name() {
        let reference: Reference = "registry.ollama.ai/library/llama3.2:1b".parse().expect("a reference");
        let layout = crate::layout::decide::layout_named("ollama", &reference).expect("a layout");
        let options = Options { layout, ..Options::default() };
        let model = model(&["model", "license"]);
        let found = paths_with(plan_tree, &model, &options).expect("a plan");
        assert_eq!(found[0], "manifests/registry.ollama.ai/library/llama3.2/1b");
        let blobs: Vec<String> = std::iter::once(&model.config)
            .chain(&model.layers)
            .map(|blob| format!("blobs/{}", blobs::name(&blob.digest)))
            .collect();
        assert_eq!(found[1..], blobs);
        let image = manifest("", DOCKER_IMAGE_CONFIG, &[("a/b", &[])]);
        assert!(matches!(paths_with(plan_tree, &image, &options), Err(Error::NotOllama { .. })));
    }

    #[test]
    fn what_ollama_cannot_name_is_refused() {
        let long = format!("r.example/a/m:{}", "x".repeat(81));
        for (reference, fits) in [
            ("127.0.0.1:5000/a/m.x:v1", true),
            ("r.example/a.b/m:v1", false),
            ("r.example/a.b/c/m:v1", true),
            (long.as_str(), false),
        ] {
            let name = manifest_path(&reference.parse().expect(reference));
            assert_eq!(check_name(&name).is_ok(), fits, "{reference}");
        }
        assert!(check_name("manifests/[::1]:5000/a/m/v1").is_err());
    }

    #[test]
    fn names_of_any_depth_become_names_of_ollama() {
        for (reference, expected) in [
            ("r.example:5000/a/b/c/m:v1", "manifests/r.example:5000/c/m/v1"),
            ("r.example/m", "manifests/r.example/library/m/latest"),
        ] {
            assert_eq!(manifest_path(&reference.parse().expect(reference)), expected);
        }
    }
}
