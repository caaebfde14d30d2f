//! The plan of a tree: what layouts produce and the store builds.

use std::collections::BTreeMap;

use super::{Error, Selection, TreePath};
use crate::oci::Descriptor;

/// What a volume will hold.
///
/// *Invariant:* no two entries have the same path, and no file's path is another entry's directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    files: BTreeMap<TreePath, File>,
}

/// One file of the volume: a whole blob under a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct File {
    /// The blob that is the file's content.
    pub blob: Descriptor,
    /// What the artifact says of the file.
    pub metadata: Metadata,
}

/// Permissions, owner and time, where the artifact knows them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Metadata {
    /// Permission bits; at most `0o777` (setuid, setgid and sticky are dropped by rule).
    pub mode: Option<u32>,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Seconds since the epoch of the last modification.
    pub mtime: i64,
}

impl Plan {
    /// Adds `files` in order.
    ///
    /// # Errors
    /// [`Error::Collision`] when two want one path, [`Error::Empty`] when there are none.
    pub fn new(files: impl IntoIterator<Item = (TreePath, File)>) -> Result<Self, Error> {
        let mut placed: BTreeMap<TreePath, File> = BTreeMap::new();
        let mut directories = std::collections::BTreeSet::new();
        for (path, file) in files {
            let collision =
                |there| Error::Collision { digest: file.blob.digest.clone(), name: path.to_string(), there };
            if directories.contains(path.as_str()) {
                return Err(collision("a directory"));
            }
            for above in path.ancestors() {
                let above = TreePath::new(above).map_err(|_| collision("unsafe"))?;
                if placed.contains_key(&above) {
                    return Err(collision("below a file"));
                }
                directories.insert(above.to_string());
            }
            if placed.contains_key(&path) {
                return Err(collision("a file"));
            }
            placed.insert(path, file);
        }
        if placed.is_empty() { Err(Error::Empty) } else { Ok(Self { files: placed }) }
    }

    /// The files, by path.
    pub fn files(&self) -> impl ExactSizeIterator<Item = (&TreePath, &File)> {
        self.files.iter()
    }

    /// The blobs needed, each once, larger first: the largest decides how long the pull takes.
    pub fn blobs(&self) -> Vec<&Descriptor> {
        let mut blobs: Vec<&Descriptor> = self.files.values().map(|file| &file.blob).collect();
        blobs.sort_by(|one, two| two.size.cmp(&one.size).then_with(|| one.digest.cmp(&two.digest)));
        blobs.dedup_by(|one, two| one.digest == two.digest);
        blobs
    }

    /// Bytes of all files.
    pub fn size(&self) -> u64 {
        self.files.values().fold(0, |sum, file| sum.saturating_add(file.blob.size))
    }

    /// Only the files that `selection` wants.
    ///
    /// # Errors
    /// [`Error::NothingSelected`] when a pattern matches nothing or nothing is left.
    pub fn select(self, selection: &Selection) -> Result<Self, Error> {
        let kept = selection.apply(&self.files.keys())?;
        let files = self.files.into_iter().filter(|(path, _)| kept.contains(path.as_str())).collect();
        Ok(Self { files })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::Digest;

    fn file(content: &str) -> File {
        let blob = Descriptor {
            media_type: "application/octet-stream".into(),
            digest: Digest::sha256(content.as_bytes()),
            size: content.len() as u64,
            artifact_type: None,
            platform: None,
            annotations: BTreeMap::new(),
        };
        File { blob, metadata: Metadata::default() }
    }

    fn plan(paths: &[&str]) -> Result<Plan, Error> {
        Plan::new(paths.iter().map(|path| (TreePath::new(path).expect("safe"), file(path))))
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
    fn a_blob_under_two_names_is_needed_once() {
        let two = [("a", file("x")), ("b", file("x")), ("c", file("longer"))]
            .map(|(path, file)| (TreePath::new(path).expect("safe"), file));
        let plan = Plan::new(two).expect("no collision");
        assert_eq!(plan.blobs().iter().map(|blob| blob.size).collect::<Vec<_>>(), [6, 1]);
        assert_eq!(plan.size(), 8);
    }
}
