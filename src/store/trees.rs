//! Trees: directories of hard links into the blobs, which pods see.

use std::collections::BTreeSet;
use std::fmt;
use std::fs::{self, File, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use super::blobs::hash_file;
use super::{Entry, Error, Store, create_private, error::io, now, record, remove};
use crate::layout::{LAYOUT_VERSION, Metadata, Plan, Selection, TreePath};
use crate::oci::Digest;

/// The name of a tree: a hash of everything that decides what it holds.
///
/// *Invariant:* 64 lower-case hex digits.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String")]
pub struct TreeKey(String);

/// A tree in the store.
#[derive(Debug, Clone)]
pub struct Tree {
    /// Its name.
    pub key: TreeKey,
    /// The directory that is mounted.
    pub root: PathBuf,
    /// Its record.
    pub image: Image,
}

/// The record of a tree: what it was made of, and what of it is known.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Image {
    /// Digest of the manifest it shows.
    pub manifest: Digest,
    /// References it was pulled as.
    pub references: BTreeSet<String>,
    /// The artifact family.
    pub family: String,
    /// Bytes of all files.
    pub size: u64,
    /// Every file.
    pub files: Vec<ImageFile>,
    /// Seconds since the epoch of the last publish.
    pub last_use: u64,
    boot_id: String,
    durable: bool,
}

/// One file of a tree.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageFile {
    /// Path in the tree.
    pub path: String,
    /// Digest of its content.
    pub digest: Digest,
    /// Bytes of content.
    pub size: u64,
}

/// Files up to this size are copied, not linked, to carry their own mode, owner and time.
const COPY_LIMIT: u64 = 1024 * 1024;
/// References remembered per tree.
const REFERENCES_LIMIT: usize = 32;

impl TreeKey {
    /// The key of what `manifest` shows when laid out with these attributes.
    pub fn new(manifest: &Digest, selection: &Selection, readable: bool) -> Self {
        let parts = (manifest, LAYOUT_VERSION, selection.normal_form(), readable);
        // Strings, numbers and lists of them always encode.
        let text = serde_json::to_string(&parts).unwrap_or_else(|error| error.to_string() + manifest.hex());
        Self(Digest::sha256(text.as_bytes()).hex().to_owned())
    }

    /// The key as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for TreeKey {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, &'static str> {
        let hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        if text.len() == 64 && text.bytes().all(hex) { Ok(Self(text)) } else { Err("not a tree key") }
    }
}

impl fmt::Display for TreeKey {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0)
    }
}

impl Store {
    /// The tree with `key`, if it is here and sound.
    ///
    /// # Errors
    /// [`Error::Io`]. A tree that did not survive is discarded and counts as absent.
    pub fn tree(&self, key: &TreeKey) -> Result<Option<Tree>, Error> {
        let Some(image) = record::read::<Image>(&self.image_path(key))? else { return Ok(None) };
        let root = self.tree_directory(key).join("fs");
        if !root.is_dir() {
            return Ok(None);
        }
        let tree = Tree { key: key.clone(), root, image };
        let entry = Entry::Tree(key.clone());
        let trusted = tree.image.durable || self.verified().contains(&entry);
        if !trusted {
            if tree.image.boot_id != self.boot_id || !self.is_sound(&tree)? {
                tracing::warn!(%key, "discarding a tree that did not survive");
                self.retire_tree(key)?;
                return Ok(None);
            }
            self.verified().insert(entry.clone());
            self.flusher.add(entry);
        }
        Ok(Some(tree))
    }

    /// All trees with a readable record.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn trees(&self) -> Result<Vec<Tree>, Error> {
        let mut trees = Vec::new();
        for path in super::children(&self.directory.join("images"))? {
            let name = path.file_name().and_then(|name| name.to_str()?.strip_suffix(".json"));
            let Some(key) = name.and_then(|name| TreeKey::try_from(name.to_owned()).ok()) else { continue };
            let Some(image) = record::read::<Image>(&path)? else { continue };
            let root = self.tree_directory(&key).join("fs");
            trees.push(Tree { key, root, image });
        }
        trees.sort_by(|one, two| one.image.references.cmp(&two.image.references));
        Ok(trees)
    }

    /// Builds the tree of `plan`, whose blobs are all here. Its name appears when it is complete.
    ///
    /// # Errors
    /// [`Error::Damaged`] when a blob is missing, [`Error::NoSpace`], [`Error::Io`].
    pub fn build_tree(
        &self,
        key: &TreeKey,
        plan: &Plan,
        manifest: &Digest,
        family: &str,
        readable: bool,
    ) -> Result<Tree, Error> {
        let losses = self.losses();
        let staging = self.temporary();
        let result = self.link_files(&staging.join("fs"), plan, readable).and_then(|()| {
            self.retire_tree(key)?;
            let directory = self.tree_directory(key);
            fs::rename(&staging, &directory).map_err(io("publish", &directory))
        });
        if let Err(error) = result {
            remove(&staging)?;
            return Err(error);
        }
        let files = plan.files().map(|(path, file)| ImageFile {
            path: path.to_string(),
            digest: file.blob.digest.clone(),
            size: file.blob.size,
        });
        let image = Image {
            manifest: manifest.clone(),
            references: BTreeSet::new(),
            family: family.to_owned(),
            size: plan.size(),
            files: files.collect(),
            last_use: now(),
            boot_id: self.boot_id.clone(),
            durable: false,
        };
        {
            let _guard = self.lock_records();
            self.check_losses(losses, &format!("tree {key}"))?;
            self.write_record(&self.image_path(key), &image)?;
        }
        let entry = Entry::Tree(key.clone());
        self.verified().insert(entry.clone());
        self.flusher.add(entry);
        Ok(Tree { key: key.clone(), root: self.tree_directory(key).join("fs"), image })
    }

    /// Notes that the tree was used now, as `reference`.
    ///
    /// # Errors
    /// [`Error::NoSpace`], [`Error::Io`].
    pub fn touch_tree(&self, key: &TreeKey, reference: &str) -> Result<(), Error> {
        self.update_tree(key, |image| {
            image.last_use = now();
            if image.references.len() < REFERENCES_LIMIT {
                image.references.insert(reference.to_owned());
            }
            true
        })
    }

    pub(super) fn mark_tree_durable(&self, key: &TreeKey) -> Result<(), Error> {
        self.update_tree(key, |image| !std::mem::replace(&mut image.durable, true))
    }

    /// Makes a tree invisible to new publishes; pods that have it mounted keep it.
    pub(super) fn forget_tree(&self, key: &TreeKey) -> Result<(), Error> {
        let _guard = self.lock_records();
        self.verified().remove(&Entry::Tree(key.clone()));
        remove(&self.image_path(key))
    }

    /// Forgets every tree that is not durable. Goes on after an error, and returns the first.
    pub(super) fn forget_volatile_trees(&self) -> Result<(), Error> {
        let mut result = Ok(());
        for tree in self.trees()?.into_iter().filter(|tree| !tree.image.durable) {
            result = result.and(self.forget_tree(&tree.key));
        }
        result
    }

    /// Moves a tree's directory aside. Its files stay: a pod may still have it mounted.
    fn retire_tree(&self, key: &TreeKey) -> Result<(), Error> {
        self.forget_tree(key)?;
        let directory = self.tree_directory(key);
        let aside = self.directory.join(format!("trees/retired-{key}-{:016x}", rand::random::<u64>()));
        match fs::rename(&directory, &aside) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(io("move", &directory)(error)),
            _ => Ok(()),
        }
    }

    fn update_tree(&self, key: &TreeKey, change: impl FnOnce(&mut Image) -> bool) -> Result<(), Error> {
        let path = self.image_path(key);
        let _guard = self.lock_records();
        let Some(mut image) = record::read::<Image>(&path)? else { return Ok(()) };
        if change(&mut image) { self.write_record(&path, &image) } else { Ok(()) }
    }

    fn link_files(&self, root: &Path, plan: &Plan, readable: bool) -> Result<(), Error> {
        create_private(root).map_err(io("create", root))?;
        let directories: BTreeSet<&str> = plan.files().flat_map(|(path, _)| path.ancestors()).collect();
        for directory in &directories {
            let path = root.join(directory);
            fs::create_dir(&path).map_err(io("create", &path))?;
        }
        for (path, file) in plan.files() {
            let blob = self
                .blob(&file.blob.digest)?
                .ok_or_else(|| Error::Damaged(format!("blob {} is gone", file.blob.digest)))?;
            place(&blob.path, blob.size, &root.join(path.as_str()), file.metadata, self.reflink, readable)?;
        }
        // Deepest first: giving a directory its time comes after everything in it.
        for directory in directories.into_iter().rev().map(|name| root.join(name)).chain([root.to_owned()]) {
            let file = File::open(&directory).map_err(io("open", &directory))?;
            file.set_permissions(Permissions::from_mode(0o755)).map_err(io("change mode of", &directory))?;
            file.set_modified(SystemTime::UNIX_EPOCH).map_err(io("touch", &directory))?;
        }
        Ok(())
    }

    /// Compares every file with its digest. A link to a sound blob is as sound as the blob.
    fn is_sound(&self, tree: &Tree) -> Result<bool, Error> {
        for file in &tree.image.files {
            let Ok(path) = TreePath::new(&file.path) else { return Ok(false) };
            let path = tree.root.join(path.as_str());
            let Ok(found) = fs::symlink_metadata(&path) else { return Ok(false) };
            if !found.is_file() || found.len() != file.size {
                return Ok(false);
            }
            let blob = self.blob(&file.digest)?.and_then(|blob| fs::symlink_metadata(blob.path).ok());
            let linked = blob.is_some_and(|blob| (blob.dev(), blob.ino()) == (found.dev(), found.ino()));
            if !linked && hash_file(&path, &file.digest)? != file.digest {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn tree_directory(&self, key: &TreeKey) -> PathBuf {
        self.directory.join("trees").join(key.as_str())
    }

    fn image_path(&self, key: &TreeKey) -> PathBuf {
        self.directory.join("images").join(format!("{key}.json"))
    }
}

/// Puts a blob's content at `target`: linked where its plain metadata will do, else copied.
fn place(
    blob: &Path,
    size: u64,
    target: &Path,
    metadata: Metadata,
    reflink: bool,
    readable: bool,
) -> Result<(), Error> {
    let executable = metadata.mode.is_some_and(|mode| mode & 0o111 != 0);
    let own_metadata = metadata != Metadata::default() && (size <= COPY_LIMIT || reflink);
    if !own_metadata && !executable {
        match fs::hard_link(blob, target) {
            Ok(()) => return Ok(()),
            // ext4 ends at 65,000 links of one file; another file system mounted in between cannot be linked to, and
            // some have no links at all.
            Err(error)
                if matches!(
                    error.raw_os_error(),
                    Some(libc::EMLINK | libc::EXDEV | libc::EPERM | libc::EOPNOTSUPP)
                ) => {}
            Err(error) => return Err(io("link", target)(error)),
        }
    }
    copy(blob, target)?;
    let mode = match (metadata.mode, readable) {
        _ if !own_metadata => 0o444 | if executable { 0o111 } else { 0 },
        (Some(mode), true) => mode | 0o444,
        (Some(mode), false) => mode,
        (None, _) => 0o444,
    };
    if own_metadata && rustix::process::geteuid().is_root() {
        match chown(target, Some(metadata.uid), Some(metadata.gid)) {
            // In a user namespace of one's own most users do not exist; files then belong to its root.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {}
            result => result.map_err(io("change owner of", target))?,
        }
    }
    let seconds = u64::try_from(metadata.mtime).unwrap_or(0);
    let time = SystemTime::UNIX_EPOCH + Duration::from_secs(if own_metadata { seconds } else { 0 });
    let file = File::open(target).map_err(io("open", target))?;
    file.set_modified(time).map_err(io("touch", target))?;
    file.set_permissions(Permissions::from_mode(mode & 0o777)).map_err(io("change mode of", target))
}

fn copy(from: &Path, to: &Path) -> Result<(), Error> {
    let source = File::open(from).map_err(io("open", from))?;
    let target = File::create_new(to).map_err(io("create", to))?;
    if rustix::fs::ioctl_ficlone(&target, &source).is_ok() {
        return Ok(());
    }
    std::io::copy(&mut &source, &mut &target).map(drop).map_err(io("write", to))
}
