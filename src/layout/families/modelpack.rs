//! CNCF ModelPack (model-spec v1): model weights, configs, docs, code and datasets, a layer each.
//!
//! A raw layer is a file at `org.cncf.model.filepath`, with mode and time in
//! `org.cncf.model.file.metadata+json`. A tar layer, plain or compressed, holds files with their directories, and is
//! unpacked at the volume's root. Artifacts from before the rename say `org.cnai.model` and
//! `vnd.cnai.model`. Docker Model Runner's `weight.v1.gguf` and `weight.v1.safetensors` are raw as well.
//! Source: modelpack/model-spec docs/spec.md, specs-go/v1/annotations.go.

use serde::Deserialize;

use crate::layer::name::shown;
use crate::layout::artifact::Artifact;
use crate::layout::error::Error;
use crate::layout::naming::{at_root, path_of, unnamed};
use crate::layout::options::{Options, Unpack};
use crate::layout::plan::{File, Item, Plan, StatedMetadata};
use crate::oci::annotation::FILEPATH;
use crate::oci::descriptor::Descriptor;
use crate::oci::manifest::Manifest;

const LEGACY_FILEPATH: &str = "org.cnai.model.filepath";
const METADATA: &str = "org.cncf.model.file.metadata+json";
const LEGACY_METADATA: &str = "org.cnai.model.file.metadata+json";
const TYPE_PREFIXES: [&str; 2] = ["application/vnd.cncf.model.", "application/vnd.cnai.model."];

/// What `file.metadata+json` says of a file; other keys are not needed.
#[derive(Deserialize)]
struct FileMetadata {
    #[serde(default)]
    name: String,
    mode: Option<u32>,
    #[serde(default)]
    uid: u32,
    #[serde(default)]
    gid: u32,
    size: Option<i64>,
    mtime: Option<String>,
}

pub(in crate::layout) fn recognise(manifest: &Manifest) -> Option<String> {
    let is_model = |name: &str| TYPE_PREFIXES.iter().any(|prefix| name.starts_with(prefix));
    if let Some(name) = manifest.artifact_type.as_deref().filter(|name| is_model(name)) {
        return Some(format!("artifactType is {name}"));
    }
    if is_model(&manifest.config.media_type) {
        return Some(format!("config is {}", manifest.config.media_type));
    }
    let named = |layer: &&Descriptor| filepath(layer).is_some();
    manifest.layers.iter().find(named).map(|layer| format!("layer {} has a model filepath", layer.digest))
}

pub(in crate::layout) fn plan(artifact: &Artifact<'_>, options: &Options) -> Result<Plan, Error> {
    let layers = &artifact.manifest.layers;
    let mut items = Vec::with_capacity(layers.len());
    for layer in layers {
        let archive = is_archive(&layer.media_type);
        if archive && options.unpack != Unpack::Never {
            // The diff IDs of its config are not used: modctl writes the digests of the layers there.
            items.push(at_root(layer, options));
            continue;
        }
        let stated = if archive { None } else { stated(layer)? };
        let fallback = stated.as_ref().map(|stated| stated.name.as_str()).filter(|name| !name.is_empty());
        let name = filepath(layer).or(fallback).ok_or_else(|| unnamed(layer, FILEPATH))?;
        let metadata = stated.as_ref().map(FileMetadata::known).unwrap_or_default();
        items.push(Item::File(path_of(layer, name)?, File { blob: layer.bare(), metadata }));
    }
    Plan::artifact(items)
}

/// What a layer's annotation says of its file.
pub(in crate::layout) fn file_metadata(layer: &Descriptor) -> Result<StatedMetadata, Error> {
    Ok(stated(layer)?.as_ref().map(FileMetadata::known).unwrap_or_default())
}

impl FileMetadata {
    fn known(&self) -> StatedMetadata {
        StatedMetadata {
            mode: self.mode.and_then(|mode| u16::try_from(mode & 0o777).ok()),
            uid: self.uid,
            gid: self.gid,
            mtime: self.mtime.as_deref().and_then(seconds_since_epoch).unwrap_or(0),
        }
    }
}

fn filepath(layer: &Descriptor) -> Option<&str> {
    let named = |key| layer.annotation(key).filter(|name| !name.is_empty());
    named(FILEPATH).or_else(|| named(LEGACY_FILEPATH))
}

/// Whether a layer is packed. Its metadata is then about what was packed, and not about the layer. Types of others say
/// nothing: ORAS gives every file that of a tar archive.
fn is_archive(media_type: &str) -> bool {
    if !TYPE_PREFIXES.iter().any(|prefix| media_type.starts_with(prefix)) {
        return false;
    }
    media_type.ends_with(".tar") || media_type.ends_with(".tar+gzip") || media_type.ends_with(".tar+zstd")
}

fn stated(layer: &Descriptor) -> Result<Option<FileMetadata>, Error> {
    let Some((annotation, text)) = [METADATA, LEGACY_METADATA]
        .into_iter()
        .find_map(|annotation| Some((annotation, layer.annotation(annotation)?)))
    else {
        return Ok(None);
    };
    let name = filepath(layer).unwrap_or_default();
    let invalid = |reason: String| {
        let (digest, name) = (layer.digest.clone(), shown(name.as_bytes()));
        Error::Metadata { digest, name, annotation, reason }
    };
    let stated: FileMetadata = serde_json::from_str(text).map_err(|error| invalid(error.to_string()))?;
    if let Some(size) = stated.size
        && u64::try_from(size) != Ok(layer.size)
    {
        return Err(invalid(format!("it says {size} bytes, the layer has {}", layer.size)));
    }
    Ok(Some(stated))
}

/// Reads RFC 3339 (`2025-01-01T00:00:00.5+02:00`), to whole seconds. `None` when it is no such time.
fn seconds_since_epoch(text: &str) -> Option<i64> {
    text.parse::<prost_types::Timestamp>().ok().map(|time| time.seconds)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layer::rename::Rename;
    use crate::layout::plan::tests::{artifact, manifest};

    fn plan_of(layers: &[(&str, &[(&str, &str)])], options: &Options) -> Result<Plan, Error> {
        let artifact_type = "application/vnd.cncf.model.manifest.v1+json";
        let manifest = manifest(artifact_type, "application/vnd.cncf.model.config.v1+json", layers);
        plan(&artifact(&manifest), options)
    }

    #[test]
    fn current_and_legacy_names() {
        let raw = "application/vnd.cncf.model.weight.v1.raw";
        let stated = r#"{"name":"w","mode":33261,"uid":7,"gid":8,"size":1,"mtime":"2025-01-01T00:00:00Z"}"#;
        let layers: [(&str, &[_]); 3] = [
            (raw, &[(FILEPATH, "sub/w"), (METADATA, stated)]),
            ("application/vnd.cnai.model.doc.v1.raw", &[(LEGACY_FILEPATH, "README.md")]),
            ("application/vnd.cncf.model.weight.v1.gguf", &[(METADATA, r#"{"name":"m.gguf"}"#)]),
        ];
        let plan = plan_of(&layers, &Options::default()).expect("a plan");
        let files: Vec<_> = plan.files().map(|(path, file)| (path.to_string(), file.metadata)).collect();
        let exact = StatedMetadata { mode: Some(0o755), uid: 7, gid: 8, mtime: 1_735_689_600 };
        let plain = StatedMetadata::default();
        let expected = [("sub/w", exact), ("README.md", plain), ("m.gguf", plain)];
        assert_eq!(files, expected.map(|(path, metadata)| (path.to_owned(), metadata)));
    }

    #[test]
    fn t40_bad_layers_are_refused_by_name() {
        let raw = "application/vnd.cncf.model.weight.v1.raw";
        let table: [(&[(&str, &str)], &str); 5] = [
            (&[], FILEPATH),
            (&[(FILEPATH, "../x")], "'..'"),
            (&[(FILEPATH, "/etc/x")], "absolute"),
            (&[(FILEPATH, "x"), (METADATA, r#"{"size":2}"#)], "2 bytes"),
            (&[(FILEPATH, "x"), (METADATA, "{")], METADATA),
        ];
        for (annotations, expected) in table {
            let error = plan_of(&[(raw, annotations)], &Options::default()).expect_err(expected).to_string();
            assert!(error.contains(expected) && error.contains("sha256:"), "{error}");
        }
    }

    #[test]
    fn archives_are_unpacked_at_the_root_unless_told_otherwise() {
        let of = |unpack, annotations: &[(&str, &str)]| {
            let archive = ("application/vnd.cncf.model.weight.v1.tar+zstd", annotations);
            plan_of(&[archive], &Options { unpack, strip: 2, ..Options::default() })
        };
        let unpacked = of(Unpack::Auto, &[(FILEPATH, "w.tar.zst")]).expect("a plan");
        let renames: Vec<_> = unpacked.archives().map(|archive| archive.rename.clone()).collect();
        assert_eq!(renames, [Rename { strip: 2, ..Rename::default() }]);
        // Its metadata is about the directory that was packed.
        let packed =
            [(FILEPATH, "w.tar.zst"), (METADATA, r#"{"name":"w","mode":493,"size":4096,"typeflag":53}"#)];
        let kept = of(Unpack::Never, &packed).expect("a plan");
        assert_eq!(kept.files().map(|(path, _)| path.as_str()).collect::<Vec<_>>(), ["w.tar.zst"]);
        assert!(matches!(of(Unpack::Never, &[]), Err(Error::Unnamed { .. })));
        let oras = ("application/vnd.oci.image.layer.v1.tar", &[(FILEPATH, "w.bin")][..]);
        let plain = plan_of(&[oras], &Options::default()).expect("a plan");
        assert_eq!(plain.files().map(|(path, _)| path.as_str()).collect::<Vec<_>>(), ["w.bin"]);
    }

    #[test]
    fn times() {
        let table = [
            ("1970-01-01T00:00:00Z", Some(0)),
            ("2024-02-29T12:30:15.123456789Z", Some(1_709_209_815)),
            ("2025-01-01T02:00:00+02:00", Some(1_735_689_600)),
            ("1969-12-31T23:59:59Z", Some(-1)),
            ("2025-13-01T00:00:00Z", None),
            ("yesterday", None),
            ("", None),
        ];
        for (text, expected) in table {
            assert_eq!(seconds_since_epoch(text), expected, "{text}");
        }
    }
}
