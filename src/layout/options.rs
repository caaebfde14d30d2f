//! What a volume's attributes want of a layout.

use crate::layout::select::Selection;

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
}

impl Options {
    /// The options as text: equal when they ask for the same.
    pub fn normal_form(&self) -> String {
        let [include, exclude] = self.selection.normal_form();
        format!("{:?} {include:?} {exclude:?} {:?} {}", self.layout, self.unpack, self.strip)
    }

    /// What is asked for beside the usual, in words, each attribute once.
    pub fn in_words(&self) -> Vec<String> {
        let [include, exclude] = self.selection.normal_form();
        let mut words = Vec::new();
        for (name, globs) in [("include", include), ("exclude", exclude)] {
            if !globs.is_empty() {
                words.push(format!("{name} {}", globs.into_iter().collect::<Vec<_>>().join(" ")));
            }
        }
        words.extend(match self.layout {
            Layout::Auto => None,
            Layout::Blobs => Some("layout blobs".to_owned()),
            Layout::OciLayout { .. } => Some("layout oci-layout".to_owned()),
            Layout::Ollama { .. } => Some("layout ollama".to_owned()),
        });
        words.extend(match self.unpack {
            Unpack::Auto => None,
            Unpack::Always => Some("unpack always".to_owned()),
            Unpack::Never => Some("unpack never".to_owned()),
        });
        if self.strip > 0 {
            words.push(format!("strip {}", self.strip));
        }
        words
    }
}
