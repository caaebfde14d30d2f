//! KitOps ModelKits: a model, its code, datasets and docs, a layer each, and a Kitfile that describes them as config.
//!
//! Kits of KitOps 0.5 and later say in the Kitfile which layer an entry is; their archives are unpacked at the root. In
//! older ones the layers of a kind come in the order of the Kitfile's entries, and an archive's names begin with the last
//! part of its entry's path. Source: kitops-ml/kitops pkg/lib/kitfile, pkg/lib/filesystem, pkg/cmd/unpack (`core.go`,
//! `legacy.go`).

use crate::layout::error::unsupported;
use std::collections::HashMap;

use serde::Deserialize;

use crate::layer::name::Name;
use crate::layer::rename::Rename;
use crate::layout::artifact::Artifact;

use crate::layout::error::Error;
use crate::layout::families::modelpack::file_metadata;
use crate::layout::naming::{numbered, path_of, unnamed};
use crate::layout::options::{Options, Unpack};
use crate::layout::plan::{Archive, File, Item, Plan, StatedMetadata};
use crate::layout::tree_path::TreePath;
use crate::oci::annotation::FILEPATH;
use crate::oci::descriptor::Descriptor;
use crate::oci::manifest::Manifest;
use crate::oci::reference::Reference;

const CONFIG: &str = "application/vnd.kitops.modelkit.config.v1+json";
const ARTIFACT: &str = "application/vnd.kitops.modelkit.manifest.v1+json";
const LAYER: &str = "application/vnd.kitops.modelkit.";
/// Where `kit unpack` writes the Kitfile. Here it is the config itself: JSON, which every reader of YAML takes.
const KITFILE: &str = "Kitfile";

/// Bytes of a Kitfile: a hundred entries take a tenth. Its paths become part of the plan, whose memory is counted by the manifest.
const KITFILE_LIMIT: usize = 256 * 1024;

/// What is read of a Kitfile.
#[derive(Deserialize, Default)]
#[serde(default)]
struct Kitfile {
    model: Option<Model>,
    code: Option<Vec<Entry>>,
    datasets: Option<Vec<Entry>>,
    docs: Option<Vec<Entry>>,
    prompts: Option<Vec<Entry>>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Model {
    #[serde(flatten)]
    entry: Entry,
    parts: Option<Vec<Entry>>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Entry {
    path: Option<String>,
    digest: Option<String>,
}

/// A layer's media type: what it holds, and how.
struct Kind<'a> {
    content: &'a str,
    /// The ending of its name, where it is kept as a file; `None` for a file.
    archive: Option<&'static str>,
}

pub(in crate::layout) fn recognise(manifest: &Manifest) -> Option<String> {
    if manifest.config.media_type == CONFIG {
        return Some(format!("config is {CONFIG}"));
    }
    (manifest.artifact_type.as_deref() == Some(ARTIFACT)).then(|| format!("artifactType is {ARTIFACT}"))
}

pub(in crate::layout) fn plan(artifact: &Artifact<'_>, options: &Options) -> Result<Plan, Error> {
    let size = artifact.manifest.config.size;
    if size > KITFILE_LIMIT as u64 {
        return Err(Error::LargeConfig { size, limit: KITFILE_LIMIT });
    }
    let config = artifact.config.ok_or(Error::NeedsConfig)?;
    let kitfile: Kitfile = serde_json::from_slice(config).map_err(Error::Config)?;
    if let Some(elsewhere) = kitfile.elsewhere() {
        let what = format!(
            "a ModelKit whose model is in another one, {elsewhere}: mount that one as well, and this one"
        );
        return Err(unsupported(artifact.manifest, &what));
    }
    let mut items = Vec::with_capacity(artifact.manifest.layers.len() + 1);
    let named = kitfile.by_digest();
    let mut old = named.is_empty().then(|| Old::new(&kitfile));
    let mut kept = 0;
    for layer in &artifact.manifest.layers {
        let Some(kind) = kind(layer) else {
            return Err(unsupported(artifact.manifest, "a ModelKit with layers that KitOps does not have"));
        };
        let entry = match &mut old {
            Some(old) => old.next(kind.content),
            None => named.get(layer.digest.to_string().as_str()).copied(),
        };
        let path = entry.and_then(|entry| entry.path.as_deref()).filter(|path| !path.is_empty());
        items.push(match kind.archive {
            Some(_) if options.unpack != Unpack::Never => {
                let above = if old.is_some() { above(layer, path)? } else { Name::default() };
                let rename = Rename { strip: options.strip, prefix: above, within: Name::default() };
                Item::Archive(Archive { blob: layer.bare(), rename, content: None })
            }
            Some(ending) => {
                kept += 1;
                let name = TreePath::known(&numbered(kind.content, ending, kept - 1));
                Item::File(name, File { blob: layer.bare(), metadata: StatedMetadata::default() })
            }
            None => {
                let own = layer.annotation(FILEPATH).filter(|name| !name.is_empty());
                let name = own.or(path).ok_or_else(|| unnamed(layer, FILEPATH))?;
                let metadata = file_metadata(layer)?;
                Item::File(path_of(layer, name)?, File { blob: layer.bare(), metadata })
            }
        });
    }
    let described = File { blob: artifact.manifest.config.bare(), metadata: StatedMetadata::default() };
    items.push(Item::File(TreePath::known(KITFILE), described));
    Plan::artifact(items)
}

/// What a layer is. Types end in `.v1.tar` or `.v1.raw`, with a compression.
fn kind(layer: &Descriptor) -> Option<Kind<'_>> {
    let (content, form) = layer.media_type.strip_prefix(LAYER)?.split_once(".v1.")?;
    let archive = match form {
        "raw" => None,
        "tar" => Some("tar"),
        "tar+gzip" => Some("tar.gz"),
        "tar+zstd" => Some("tar.zst"),
        // A file that is compressed would be shown as it is.
        _ => return None,
    };
    let is_word = !content.is_empty() && content.bytes().all(|byte| byte.is_ascii_alphanumeric());
    is_word.then_some(Kind { content, archive })
}

/// The directory that an entry's path is in, which the names of an old archive leave out.
fn above(layer: &Descriptor, path: Option<&str>) -> Result<Name, Error> {
    let Some(path) = path.filter(|path| !matches!(path.trim_end_matches('/'), "" | ".")) else {
        return Ok(Name::default());
    };
    let path = path_of(layer, path)?;
    Ok(Name::below(path.ancestors().last().unwrap_or_default().as_bytes(), b""))
}

impl Kitfile {
    fn entries(&self) -> impl Iterator<Item = &Entry> {
        let model = self.model.iter();
        let models =
            model.flat_map(|model| std::iter::once(&model.entry).chain(model.parts.iter().flatten()));
        models.chain([&self.code, &self.datasets, &self.docs, &self.prompts].into_iter().flatten().flatten())
    }

    /// The entries that say which layer they are. Old kits have none.
    fn by_digest(&self) -> HashMap<&str, &Entry> {
        self.entries().filter_map(|entry| Some((entry.digest.as_deref()?, entry))).collect()
    }

    /// Another ModelKit that has the model: KitOps takes a path for a reference that has a tag or digest and is one.
    fn elsewhere(&self) -> Option<&str> {
        let path = self.model.as_ref()?.entry.path.as_deref()?;
        (path.contains([':', '@']) && path.parse::<Reference>().is_ok()).then_some(path)
    }
}

/// The entries of an old Kitfile, as the layers of each kind come.
struct Old<'a> {
    queues: [(&'static str, std::vec::IntoIter<&'a Entry>); 5],
}

impl<'a> Old<'a> {
    fn new(kitfile: &'a Kitfile) -> Self {
        let all = |entries: &'a Option<Vec<Entry>>| entries.iter().flatten().collect::<Vec<_>>().into_iter();
        let model: Vec<&Entry> = kitfile.model.iter().map(|model| &model.entry).collect();
        let parts = kitfile.model.iter().flat_map(|model| model.parts.iter().flatten()).collect::<Vec<_>>();
        Self {
            queues: [
                ("model", model.into_iter()),
                ("modelpart", parts.into_iter()),
                ("code", all(&kitfile.code)),
                ("dataset", all(&kitfile.datasets)),
                ("docs", all(&kitfile.docs)),
            ],
        }
    }

    /// The entry of the next layer of this kind. A second model is a part.
    fn next(&mut self, kind: &str) -> Option<&'a Entry> {
        let queue = |name: &str, queues: &mut [(&'static str, std::vec::IntoIter<&'a Entry>)]| {
            queues.iter_mut().find(|(known, _)| *known == name).and_then(|(_, entries)| entries.next())
        };
        let found = queue(kind, &mut self.queues);
        if kind == "model" { found.or_else(|| queue("modelpart", &mut self.queues)) } else { found }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::plan::tests::{artifact, manifest};

    type Layers<'a> = &'a [(&'a str, &'a [(&'a str, &'a str)])];

    /// Paths of files, and where archives go.
    fn planned(layers: Layers<'_>, config: &str, options: &Options) -> Result<Vec<String>, Error> {
        let layers: Vec<(String, _)> =
            layers.iter().map(|(name, annotations)| (format!("{LAYER}{name}"), *annotations)).collect();
        let layers: Vec<(&str, &[(&str, &str)])> =
            layers.iter().map(|(name, annotations)| (name.as_str(), *annotations)).collect();
        let manifest = manifest("", CONFIG, &layers);
        let config = config.replace("DIGEST", &manifest.layers[0].digest.to_string());
        let artifact = Artifact { config: Some(config.as_bytes()), ..artifact(&manifest) };
        let item = |item: &Item| match item {
            Item::Archive(archive) => format!("({}/)", archive.rename.prefix),
            other => other.path().map(ToString::to_string).unwrap_or_default(),
        };
        Ok(plan(&artifact, options)?.items().iter().map(item).collect())
    }

    #[test]
    fn new_kits_are_at_the_root_and_old_ones_where_their_paths_are() {
        let layers: Layers<'_> = &[
            ("model.v1.tar", &[]),
            ("modelpart.v1.tar+gzip", &[]),
            ("code.v1.tar", &[]),
            ("code.v1.tar+zstd", &[]),
            ("dataset.v1.tar", &[]),
            ("docs.v1.tar", &[]),
        ];
        let paths = |digest: &str| {
            format!(
                r#"{{"manifestVersion":"1.0.0","model":{{"name":"m","path":"./models/m.gguf"{digest},"parts":[{{"path":"models/lora/a"}}]}},
                "code":[{{"path":"src/app/"}},{{"path":"."}}],"datasets":[{{"path":"data.csv"}}],"docs":[{{"path":"README.md"}}]}}"#
            )
        };
        let auto = Options::default();
        let new = planned(layers, &paths(r#","digest":"DIGEST""#), &auto).expect("a plan");
        assert_eq!(new, ["(/)", "(/)", "(/)", "(/)", "(/)", "(/)", "Kitfile"]);
        let old = planned(layers, &paths(""), &auto).expect("a plan");
        assert_eq!(old, ["(models/)", "(models/lora/)", "(src/)", "(/)", "(/)", "(/)", "Kitfile"]);
        let never = Options { unpack: Unpack::Never, ..Options::default() };
        let kept = planned(layers, &paths(""), &never).expect("a plan");
        assert_eq!(kept[..2], ["model.tar", "modelpart-2.tar.gz"]);
        let second =
            planned(&[("model.v1.tar", &[]), ("model.v1.tar", &[])], &paths(""), &auto).expect("a plan");
        assert_eq!(second, ["(models/)", "(models/lora/)", "Kitfile"]);
    }

    #[test]
    fn files_have_the_names_that_layer_or_kitfile_gives() {
        let auto = Options::default();
        let raw: Layers<'_> = &[("model.v1.raw", &[]), ("mcpb.v1.raw", &[(FILEPATH, "tools/a.mcpb")])];
        let config = r#"{"model":{"path":"m.gguf","digest":"DIGEST"}}"#;
        assert_eq!(planned(raw, config, &auto).expect("a plan"), ["m.gguf", "tools/a.mcpb", "Kitfile"]);
        assert!(matches!(planned(&[("docs.v1.raw", &[])], "{}", &auto), Err(Error::Unnamed { .. })));
        for kind in ["model.v1.raw+gzip", "model.v2.tar", "model", "../x.v1.tar"] {
            assert!(matches!(planned(&[(kind, &[])], "{}", &auto), Err(Error::Unsupported { .. })), "{kind}");
        }
        let other = r#"{"model":{"path":"r.example/base/model:v1"}}"#;
        let error = planned(&[("code.v1.tar", &[])], other, &auto).expect_err("elsewhere").to_string();
        assert!(error.contains("r.example/base/model:v1"), "{error}");
        let unsafe_path = r#"{"code":[{"path":"../../etc/x"}]}"#;
        assert!(matches!(
            planned(&[("code.v1.tar", &[])], unsafe_path, &auto),
            Err(Error::UnsafeName { .. })
        ));
        assert!(matches!(planned(&[("code.v1.tar", &[])], "[", &auto), Err(Error::Config(_))));
        let mut large = manifest("", CONFIG, &[(&format!("{LAYER}code.v1.tar"), &[])]);
        large.config.size = KITFILE_LIMIT as u64 + 1;
        assert!(matches!(plan(&artifact(&large), &auto), Err(Error::LargeConfig { .. })));
    }
}
