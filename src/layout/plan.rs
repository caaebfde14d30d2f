//! The plan of a tree: what layouts produce and the store builds.

use std::collections::BTreeSet;

use crate::layer::format::Profile;
use crate::layer::name::shown;
use crate::layer::rename::Rename;
use crate::layout::error::Error;
use crate::layout::select::Selection;
use crate::layout::tree_path::TreePath;
use crate::oci::descriptor::Descriptor;
use crate::oci::digest::Digest;

/// What a volume will hold.
///
/// *Invariant:* no two files have the same path, and no file's path is another one's directory. What archives hold
/// is known only when they are unpacked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    items: Vec<Item>,
    profile: Profile,
    /// Files that are not wanted; they are there to be named.
    left_out: Vec<TreePath>,
    /// The config that says what the files of the archives have to be, where one does.
    file_list: Option<Digest>,
}

/// One layer's part of the volume. The order is the manifest's: later archives replace what earlier ones have.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(clippy::large_enum_variant)] // Most plans have few items.
pub enum Item {
    /// A blob that is a file.
    File(TreePath, File),
    /// A file that the layout itself writes.
    Text(TreePath, Vec<u8>),
    /// A blob that is unpacked.
    Archive(Archive),
}

/// One file of the volume: a whole blob under a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct File {
    /// The blob that is the file's content.
    pub blob: Descriptor,
    /// What the artifact says of the file.
    pub metadata: StatedMetadata,
}

/// An archive of files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Archive {
    /// The blob.
    pub blob: Descriptor,
    /// How its names become names of the volume.
    pub rename: Rename,
    /// The digest its uncompressed content has to have, where that is promised and to be checked.
    pub content: Option<Digest>,
}

/// Permissions, owner and time, where the artifact knows them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct StatedMetadata {
    /// Permission bits; at most `0o777` (setuid, setgid and sticky are dropped by rule).
    pub mode: Option<u16>,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Seconds since the epoch of the last modification.
    pub mtime: i64,
}

impl Plan {
    /// A container image: `layers`, lowest first.
    pub fn image(layers: impl IntoIterator<Item = Archive>) -> Self {
        Self {
            items: layers.into_iter().map(Item::Archive).collect(),
            profile: Profile::Image,
            left_out: Vec::new(),
            file_list: None,
        }
    }

    /// An artifact: `items` in the order of its layers.
    ///
    /// # Errors
    /// [`Error::Collision`] when two files want one path, [`Error::Empty`] when there is nothing.
    pub fn artifact(items: Vec<Item>) -> Result<Self, Error> {
        check_paths(&items)?;
        if items.is_empty() {
            return Err(Error::Empty);
        }
        Ok(Self { items, profile: Profile::Archive, left_out: Vec::new(), file_list: None })
    }

    /// The same, with archives that have to hold what this config [lists](crate::layout::families::cog::files). It is read when the tree is built:
    /// it may be large, and plans are many.
    pub fn with_file_list(self, config: Digest) -> Self {
        Self { file_list: Some(config), ..self }
    }

    /// The config that lists the files of the archives.
    pub fn file_list(&self) -> Option<&Digest> {
        self.file_list.as_ref()
    }

    /// The items, in the order of the layers.
    pub fn items(&self) -> &[Item] {
        &self.items
    }

    /// How archives are read.
    pub fn profile(&self) -> Profile {
        self.profile
    }

    /// The files, in the order of the layers.
    pub fn files(&self) -> impl Iterator<Item = (&TreePath, &File)> {
        self.items.iter().filter_map(|item| match item {
            Item::File(path, file) => Some((path, file)),
            Item::Text(..) | Item::Archive(_) => None,
        })
    }

    /// Files that the artifact has and that are not wanted.
    pub fn left_out(&self) -> &[TreePath] {
        &self.left_out
    }

    /// The archives, in the order of the layers.
    pub fn archives(&self) -> impl Iterator<Item = &Archive> {
        self.items.iter().filter_map(|item| match item {
            Item::File(..) | Item::Text(..) => None,
            Item::Archive(archive) => Some(archive),
        })
    }

    /// Says of each archive what its uncompressed content has to be.
    ///
    /// # Errors
    /// [`Error::DiffIds`] when there are not as many as archives.
    pub fn promise(&mut self, contents: Vec<Digest>) -> Result<(), Error> {
        let archives = self.archives().count();
        if archives != contents.len() {
            return Err(Error::DiffIds { layers: archives, diff_ids: contents.len() });
        }
        let mut contents = contents.into_iter();
        for item in &mut self.items {
            if let Item::Archive(archive) = item {
                archive.content = contents.next();
            }
        }
        Ok(())
    }

    /// Leaves out the files that `selection` does not want. What archives hold is selected when the tree is built,
    /// and only then it is known whether every pattern matches something.
    ///
    /// # Errors
    /// [`Error::NothingSelected`] when a pattern matches nothing or nothing is left.
    pub fn select(mut self, selection: &Selection) -> Result<Self, Error> {
        if self.archives().next().is_none() {
            let mut walk = selection.walk();
            for path in self.items.iter().filter_map(Item::path) {
                walk.judge_alone(path.as_str().as_bytes());
            }
            walk.finish()?;
        }
        let left_out = &mut self.left_out;
        let mut walk = selection.walk();
        self.items.retain(|item| match item.path() {
            Some(path) if !walk.judge_alone(path.as_str().as_bytes()).is_wanted() => {
                left_out.push(path.clone());
                false
            }
            _ => true,
        });
        Ok(self)
    }
}

impl Item {
    /// The path of what is one file.
    pub fn path(&self) -> Option<&TreePath> {
        match self {
            Self::File(path, _) | Self::Text(path, _) => Some(path),
            Self::Archive(_) => None,
        }
    }

    /// The digest of the content.
    pub fn digest(&self) -> Digest {
        match self {
            Self::File(_, file) => file.blob.digest.clone(),
            Self::Text(_, text) => Digest::sha256(text),
            Self::Archive(archive) => archive.blob.digest.clone(),
        }
    }
}

fn check_paths(items: &[Item]) -> Result<(), Error> {
    // Borrowed: thousands of long names have a hundred directories each.
    let mut placed: BTreeSet<&str> = BTreeSet::new();
    let mut directories: BTreeSet<&str> = BTreeSet::new();
    let mut packed: BTreeSet<&[u8]> = BTreeSet::new();
    for item in items {
        if let Item::Archive(archive) = item
            && !archive.rename.within.is_root()
            && !packed.insert(archive.rename.within.as_bytes())
        {
            let name = shown(archive.rename.within.as_bytes());
            return Err(Error::Collision { digest: item.digest(), name, there: "a directory" });
        }
        let Some(path) = item.path() else { continue };
        let collision = |there| {
            let name = shown(path.as_str().as_bytes());
            Error::Collision { digest: item.digest(), name, there }
        };
        if directories.contains(path.as_str()) {
            return Err(collision("a directory"));
        }
        for above in path.ancestors() {
            if placed.contains(above) {
                return Err(collision("below a file"));
            }
            directories.insert(above);
        }
        if !placed.insert(path.as_str()) {
            return Err(collision("a file"));
        }
    }
    Ok(())
}

#[cfg(test)]
pub(crate) mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::layout::artifact::Artifact;
    use crate::layout::options::Options;
    use crate::oci::manifest::Manifest;
    use crate::oci::media_type;

    /// A manifest of layers with these types and annotations.
    pub fn manifest(artifact_type: &str, config: &str, layers: &[(&str, &[(&str, &str)])]) -> Manifest {
        let descriptor = |number: usize, media_type: &str, annotations: &[(&str, &str)]| Descriptor {
            media_type: media_type.to_owned(),
            digest: Digest::sha256(format!("{number} {media_type}").as_bytes()),
            size: 1,
            artifact_type: None,
            platform: None,
            annotations: annotations.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect(),
            data: None,
        };
        let layers = layers.iter().enumerate();
        Manifest {
            media_type: media_type::OCI_MANIFEST.into(),
            artifact_type: Some(artifact_type.to_owned()).filter(|name| !name.is_empty()),
            config: descriptor(0, config, &[]),
            layers: layers.map(|(at, (name, annotations))| descriptor(at + 1, name, annotations)).collect(),
            annotations: BTreeMap::new(),
            has_subject: false,
        }
    }

    pub fn artifact(manifest: &Manifest) -> Artifact<'_> {
        static DIGEST: std::sync::LazyLock<Digest> = std::sync::LazyLock::new(|| Digest::sha256(b"{}"));
        Artifact { manifest, digest: &DIGEST, size: 2, config: None }
    }

    type Rule = fn(&Artifact<'_>, &Options) -> Result<Plan, Error>;

    /// The paths of a plan, in the order of the layers.
    pub fn paths(rule: Rule, manifest: &Manifest) -> Result<Vec<String>, Error> {
        paths_with(rule, manifest, &Options::default())
    }

    pub fn paths_with(rule: Rule, manifest: &Manifest, options: &Options) -> Result<Vec<String>, Error> {
        let plan = rule(&artifact(manifest), options)?;
        let path = |item: &Item| item.path().map_or_else(|| "(archive)".to_owned(), TreePath::to_string);
        Ok(plan.items().iter().map(path).collect())
    }

    fn file(content: &str) -> File {
        let blob = Descriptor {
            media_type: "application/octet-stream".into(),
            digest: Digest::sha256(content.as_bytes()),
            size: content.len() as u64,
            artifact_type: None,
            platform: None,
            annotations: BTreeMap::new(),
            data: None,
        };
        File { blob, metadata: StatedMetadata::default() }
    }

    fn plan(paths: &[&str]) -> Result<Plan, Error> {
        let item = |path: &&str| Item::File(TreePath::new(path).expect("safe"), file(path));
        Plan::artifact(paths.iter().map(item).collect())
    }

    #[test]
    fn t40_paths_that_exclude_each_other_are_refused() {
        for paths in [&["a", "a"][..], &["a", "a/b"], &["a/b", "a"], &["a/b/c", "a/b"], &["./a", "a/"]] {
            assert!(matches!(plan(paths), Err(Error::Collision { .. })), "{paths:?}");
        }
        assert!(plan(&["a/b", "a/c", "ab"]).is_ok());
        assert!(matches!(plan(&[]), Err(Error::Empty)));
    }

    #[test]
    fn t16_there_is_one_diff_id_for_each_layer() {
        let archive = Archive { blob: file("x").blob, rename: Rename::default(), content: None };
        let digest = Digest::sha256(b"content");
        let mut image = Plan::image([archive]);
        assert!(image.promise(vec![]).is_err());
        assert!(image.promise(vec![digest.clone(); 2]).is_err());
        image.promise(vec![digest.clone()]).expect("as many");
        assert_eq!(image.archives().next().and_then(|archive| archive.content.clone()), Some(digest));
    }
}
