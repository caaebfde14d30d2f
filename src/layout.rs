//! From a manifest to a [`Plan`]: which blob becomes which file of the volume. `docs/layouts.md` is this for users.
//!
//! One file per artifact family, each a pure function of manifest and config, and one row in the table of
//! [`family`], which decides whose rule applies. [`blobs`], [`oci_layout`] and [`ollama`] also lay out what any
//! family's artifact is made of, for volumes that ask for that.

pub mod attachment;
pub mod blobs;
pub mod cog;
pub mod docker_model;
pub mod error;
pub mod family;
pub mod flux;
pub mod helm;
pub mod image;
pub mod kernel_cache;
pub mod kitops;
pub mod modelpack;
pub mod oci_layout;
pub mod ollama;
pub mod oras;
pub mod plan;
pub mod select;
pub mod skill;
pub mod tree_path;
pub mod wasm;

pub use error::Error;
pub use family::{Decision, Family, decide};
pub use plan::{Archive, File, Item, Metadata, Plan};
pub use select::Selection;
pub use tree_path::TreePath;

use crate::layer::Rename;
use crate::layer::name::shown;
use crate::oci::{Descriptor, Digest, Manifest, Reference};

/// Changes whenever a manifest would be laid out differently than before: trees made by other versions of the
/// rules are then not reused.
pub const LAYOUT_VERSION: u32 = 6;

/// Bytes of a config: containerd's bound for everything that is read whole.
pub const CONFIG_LIMIT: usize = 8 * 1024 * 1024;

#[cfg(test)]
pub(crate) use plan::tests;

/// What is laid out.
#[derive(Debug, Clone, Copy)]
pub struct Artifact<'a> {
    /// The manifest.
    pub manifest: &'a Manifest,
    /// Its digest.
    pub digest: &'a Digest,
    /// Its bytes.
    pub size: u64,
    /// Its config; needed only after [`Error::NeedsConfig`].
    pub config: Option<&'a [u8]>,
}

/// What a volume's attributes want of a layout.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// `layout`
    pub layout: Layout,
    /// `include`, `exclude`
    pub selection: Selection,
    /// `unpack`
    pub unpack: Unpack,
    /// `stripComponents`
    pub strip: usize,
}

/// What is shown of an artifact.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Layout {
    /// Files, by the rule of the artifact's family.
    #[default]
    Auto,
    /// Every layer as it is, under its title or digest.
    Blobs,
    /// All of it, as an OCI image layout directory.
    OciLayout {
        /// What its index calls it.
        tag: Option<String>,
    },
    /// A model of Ollama, as a directory that `OLLAMA_MODELS` can name.
    Ollama {
        /// Where Ollama keeps the manifest of a model of this name.
        manifest: String,
    },
}

/// Which archives inside artifacts are unpacked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Unpack {
    /// Those that the family's rule unpacks.
    #[default]
    Auto,
    /// All.
    Always,
    /// None.
    Never,
}

impl Layout {
    /// The values of the attribute.
    pub const NAMES: &'static str = "auto, blobs, oci-layout, ollama";

    /// The layout with this name, of what `reference` names. `None` when there is none of this name.
    pub fn new(name: &str, reference: &Reference) -> Option<Self> {
        match name {
            "auto" => Some(Self::Auto),
            "blobs" => Some(Self::Blobs),
            "oci-layout" => Some(Self::OciLayout { tag: reference.tag().map(str::to_owned) }),
            "ollama" => Some(Self::Ollama { manifest: ollama::manifest_path(reference) }),
            _ => None,
        }
    }
}

impl Options {
    /// The options as text: equal when they ask for the same.
    pub fn normal_form(&self) -> String {
        let [include, exclude] = self.selection.normal_form();
        format!("{:?} {include:?} {exclude:?} {:?} {}", self.layout, self.unpack, self.strip)
    }
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

/// `name`, which an annotation of `layer` or a rule gave it, as a path of the volume.
fn path_of(layer: &Descriptor, name: &str) -> Result<TreePath, Error> {
    TreePath::new(name).map_err(|reason| Error::UnsafeName {
        digest: layer.digest.clone(),
        name: shown(name.as_bytes()),
        reason,
    })
}

impl Artifact<'_> {
    /// The manifest as content: it is in the store as it came.
    fn as_blob(&self) -> Descriptor {
        Descriptor {
            media_type: self.manifest.media_type.clone(),
            digest: self.digest.clone(),
            size: self.size,
            artifact_type: None,
            platform: None,
            annotations: Default::default(),
            data: None,
        }
    }
}

/// `layer` as it is, as the file `name`.
fn file(layer: &Descriptor, name: &str) -> Result<Item, Error> {
    Ok(Item::File(path_of(layer, name)?, File { blob: layer.bare(), metadata: Metadata::default() }))
}

/// `layer` as an archive that is unpacked at the root.
fn at_root(layer: &Descriptor, options: &Options) -> Item {
    let rename = Rename { strip: options.strip, ..Rename::default() };
    Item::Archive(Archive { blob: layer.bare(), rename, content: None })
}

/// `layer` has no name; `expected` would be one.
fn unnamed(layer: &Descriptor, expected: &'static str) -> Error {
    Error::Unnamed { digest: layer.digest.clone(), media_type: layer.media_type.clone(), expected }
}

/// The name of part `number` (from 0) of `total`, as models are sharded: `model.gguf`, `model-00001-of-00002.gguf`.
fn sharded(name: &str, extension: &str, number: usize, total: usize) -> String {
    match total {
        0 | 1 => format!("{name}.{extension}"),
        _ => format!("{name}-{:05}-of-{total:05}.{extension}", number + 1),
    }
}

/// The name of one of several texts: `license.txt`, `license-2.txt`.
fn numbered(name: &str, extension: &str, number: usize) -> String {
    match number {
        0 => format!("{name}.{extension}"),
        _ => format!("{name}-{}.{extension}", number + 1),
    }
}
