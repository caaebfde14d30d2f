//! Trees: directories of hard links into layers and blobs, which pods see.
//!
//! An image of one layer needs none: what is mounted is the layer itself.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::layer;
use crate::layer::format::{Dropped, ENTRY_LIMIT, MEMORY_LIMIT, Profile};
use crate::layer::index::{Kind, Place};
use crate::layer::merge::{Merge, Rename};
use crate::layer::name::Name;
use crate::layout::artifact::LAYOUT_VERSION;
use crate::layout::options::Options;
use crate::layout::plan::{Item, Plan};
use crate::oci::digest::Digest;
use crate::store::error::{Error, io};
use crate::store::layers::{Layer, LayerKey};
use crate::store::link::{How, Source};
use crate::store::{Entry, Store, link, now, record, remove};

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
    /// How many files and symlinks.
    pub files: usize,
    /// What of its layers was left out by rule.
    pub dropped: Dropped,
    /// The layers it is made of.
    pub layers: Vec<LayerKey>,
    /// The layer that is the tree, where there is no other.
    pub only_layer: Option<LayerKey>,
    /// Seconds since the epoch of the last publish.
    pub last_use: u64,
    boot_id: String,
    durable: bool,
}

/// What a tree is built from.
#[derive(Debug, Clone)]
pub struct Build {
    /// Its name.
    pub key: TreeKey,
    /// What it holds.
    pub plan: Plan,
    /// What of it is wanted.
    pub options: Options,
    /// Whether everybody may read it.
    pub readable: bool,
    /// The manifest it shows.
    pub manifest: Digest,
    /// The artifact family.
    pub family: String,
}

/// References remembered per tree.
const REFERENCES_LIMIT: usize = 32;

impl TreeKey {
    /// The key of what `manifest` shows when laid out with these attributes, and with checked diff IDs or not.
    pub fn new(manifest: &Digest, options: &Options, readable: bool, checked: bool) -> Self {
        let checked = if checked { " diff-ids" } else { "" };
        let text = format!("{manifest} {LAYOUT_VERSION} {readable} {}{checked}", options.normal_form());
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
        is_key(&text).then_some(Self(text)).ok_or("not a tree key")
    }
}

impl fmt::Display for TreeKey {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0)
    }
}

/// Whether `text` is a hash in lower-case hex.
pub(super) fn is_key(text: &str) -> bool {
    let hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    text.len() == 64 && text.bytes().all(hex)
}

impl Tree {
    /// The name in the store of what is mounted: the tree's, or its only layer's.
    pub fn mounted_key(&self) -> &str {
        self.image.only_layer.as_ref().map_or(self.key.as_str(), LayerKey::as_str)
    }
}

impl Store {
    /// The tree with `key`, if it is here and sound.
    ///
    /// A tree that is neither durable nor of this process counts as absent: linking it again costs less than to look
    /// at every file, and its layers and blobs are looked at then.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn tree(&self, key: &TreeKey) -> Result<Option<Tree>, Error> {
        let Some(image) = record::read::<Image>(&self.image_path(key))? else { return Ok(None) };
        let trusted = image.durable || self.verified().contains(&Entry::Tree(key.clone()));
        let here = match &image.only_layer {
            Some(layer) => self.layer(layer)?.is_some(),
            None => self.tree_directory(key).join("fs").is_dir(),
        };
        Ok((trusted && here).then(|| self.as_tree(key, image)))
    }

    /// All trees with a readable record.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn trees(&self) -> Result<Vec<Tree>, Error> {
        let mut trees = Vec::new();
        for path in crate::store::children(&self.directory.join("images"))? {
            let name = path.file_name().and_then(|name| name.to_str()?.strip_suffix(".json"));
            let Some(key) = name.and_then(|name| TreeKey::try_from(name.to_owned()).ok()) else { continue };
            let Some(image) = record::read::<Image>(&path)? else { continue };
            trees.push(self.as_tree(&key, image));
        }
        trees.sort_by(|one, two| one.image.references.cmp(&two.image.references));
        Ok(trees)
    }

    /// Builds a tree whose blobs and layers are all here. Its name appears when it is complete.
    ///
    /// # Errors
    /// [`Error::Refused`] when the layers cannot be applied, [`Error::Selection`] when nothing of them is wanted,
    /// [`Error::Damaged`] when one is missing, [`Error::NoSpace`], [`Error::Io`].
    pub fn build_tree(&self, build: &Build) -> Result<Tree, Error> {
        let losses = self.losses();
        let sources = self.sources(&build.plan)?;
        let only_layer = only_layer(build, &sources);
        let earlier = record::read::<Image>(&self.image_path(&build.key))?;
        let made = match &only_layer {
            Some(layer) => link::Made { files: layer.summary.files, bytes: layer.summary.bytes },
            None => {
                let staging = self.temporary();
                let result = self.link_tree(&staging.join("fs"), build, &sources).and_then(|made| {
                    crate::host::failpoint::reached("merge.finished");
                    let _one = self.publishing();
                    // An old record must not vouch for what is not on the disk yet.
                    self.forget_tree(&build.key)?;
                    self.retire_tree(&build.key)?;
                    let directory = self.tree_directory(&build.key);
                    fs::rename(&staging, &directory).map_err(io("publish", &directory))?;
                    crate::host::failpoint::reached("tree.named");
                    Ok(made)
                });
                if let Err(error) = &result {
                    remove(&staging)?;
                    if error.is_loss() {
                        self.give_up_lost(&sources)?;
                    }
                }
                result?
            }
        };
        let layers = || {
            sources.iter().filter_map(|source| match source {
                Source::Layer(layer) => Some(layer),
                Source::Blob(..) | Source::Text(_) => None,
            })
        };
        let mut image = Image {
            manifest: build.manifest.clone(),
            references: earlier.map_or_else(BTreeSet::new, |earlier| earlier.references),
            family: build.family.clone(),
            size: made.bytes,
            files: made.files,
            dropped: layers().fold(Dropped::default(), |sum, layer| sum.plus(layer.summary.dropped)),
            layers: layers().map(|layer| layer.key.clone()).collect(),
            only_layer: only_layer.map(|layer| layer.key),
            last_use: now(),
            boot_id: self.boot_id.clone(),
            durable: false,
        };
        {
            let _guard = self.lock_records();
            self.check_losses(losses, &format!("tree {}", build.key))?;
            if let Some(known) = record::read::<Image>(&self.image_path(&build.key))? {
                image.references.extend(known.references);
            }
            self.write_record(&self.image_path(&build.key), &image)?;
        }
        crate::host::failpoint::reached("tree.recorded");
        let entry = Entry::Tree(build.key.clone());
        self.verified().insert(entry.clone());
        self.flusher.add(entry);
        Ok(self.as_tree(&build.key, image))
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
        self.retire(&self.tree_directory(key))
    }

    fn update_tree(&self, key: &TreeKey, change: impl FnOnce(&mut Image) -> bool) -> Result<(), Error> {
        let path = self.image_path(key);
        let _guard = self.lock_records();
        let Some(mut image) = record::read::<Image>(&path)? else { return Ok(()) };
        if change(&mut image) { self.write_record(&path, &image) } else { Ok(()) }
    }

    /// Gives up the layers of which the disk has lost something.
    fn give_up_lost(&self, sources: &[Source]) -> Result<(), Error> {
        for source in sources {
            if let Source::Layer(layer) = source {
                self.give_up_if_lost(layer)?;
            }
        }
        Ok(())
    }

    /// What `plan` needs, in its order.
    pub(super) fn sources(&self, plan: &Plan) -> Result<Vec<Source>, Error> {
        let gone = |digest: &Digest| Error::Damaged(format!("blob {digest} is gone"));
        let source = |item: &Item| match item {
            Item::File(_, file) => {
                let digest = &file.blob.digest;
                let blob = self.blob(digest)?.ok_or_else(|| gone(digest))?;
                Ok(Source::Blob(blob, file.metadata))
            }
            Item::Text(_, text) => Ok(Source::Text(text.clone())),
            Item::Archive(archive) => {
                let digest = &archive.blob.digest;
                let layer =
                    self.layer(&LayerKey::new(digest, plan.profile()))?.ok_or_else(|| gone(digest))?;
                Ok(Source::Layer(layer))
            }
        };
        plan.items().iter().map(source).collect()
    }

    fn as_tree(&self, key: &TreeKey, image: Image) -> Tree {
        let root = match &image.only_layer {
            Some(layer) => self.directory.join("layers").join(layer.as_str()).join("fs"),
            None => self.tree_directory(key).join("fs"),
        };
        Tree { key: key.clone(), root, image }
    }

    fn tree_directory(&self, key: &TreeKey) -> PathBuf {
        self.directory.join("trees").join(key.as_str())
    }

    fn image_path(&self, key: &TreeKey) -> PathBuf {
        self.directory.join("images").join(format!("{key}.json"))
    }
}

/// The layer that can be mounted as it is.
fn only_layer(build: &Build, sources: &[Source]) -> Option<Layer> {
    let ([Item::Archive(archive)], [Source::Layer(layer)]) = (build.plan.items(), sources) else {
        return None;
    };
    let as_it_is = archive.rename == Rename::default()
        && build.options.selection.is_all()
        && build.plan.file_list().is_none();
    let summary = &layer.summary;
    let readable = summary.readable || build.readable == (build.plan.profile() == Profile::Archive);
    (as_it_is && readable && summary.regular).then(|| layer.clone())
}

impl Store {
    /// Merges, selects, and links the result at `root`.
    fn link_tree(&self, root: &Path, build: &Build, sources: &[Source]) -> Result<link::Made, Error> {
        let profile = build.plan.profile();
        check_bounds(&build.plan, sources)?;
        let indexes = indexes(&build.plan, sources)?;
        let mut merge = Merge::new(profile);
        for (item, source) in build.plan.items().iter().zip(sources) {
            let entries = indexes.get(&index_key(item, source)).map_or(&[][..], Vec::as_slice);
            let applied = match item {
                Item::File(..) | Item::Text(..) => merge.add_file(entries),
                Item::Archive(archive) => merge.apply(entries, &archive.rename),
            };
            applied.map_err(|source| Error::Refused { digest: item.digest(), source })?;
        }
        let selection = &build.options.selection;
        if !selection.is_all() {
            let mut walk = selection.walk();
            for path in build.plan.left_out() {
                walk.look_at(path.as_str().as_bytes());
            }
            merge.retain(walk.start(), &mut |path, above, leaf| {
                let verdict = walk.look(path.as_bytes(), above, leaf);
                (verdict, verdict.is_wanted())
            });
            walk.finish()?;
        }
        let how = How { profile, readable: build.readable, reflink: self.reflink };
        link::make(root, &merge, sources, how, &|needed| self.check_space(needed))
    }
}

/// An index is read once, however often a manifest names its layer.
fn index_key<'a>(item: &'a Item, source: &'a Source) -> &'a str {
    match (item, source) {
        (_, Source::Layer(layer)) => layer.key.as_str(),
        (Item::File(path, _) | Item::Text(path, _), _) => path.as_str(),
        (Item::Archive(_), _) => "",
    }
}

/// The entries of each item. A file is an archive of one entry.
fn indexes<'a>(
    plan: &'a Plan,
    sources: &'a [Source],
) -> Result<HashMap<&'a str, Vec<layer::index::Entry>>, Error> {
    let mut all: HashMap<&str, Vec<layer::index::Entry>> = HashMap::new();
    for (item, source) in plan.items().iter().zip(sources) {
        let key = index_key(item, source);
        match (item, source) {
            (_, Source::Layer(_)) if all.contains_key(key) => {}
            (_, Source::Layer(layer)) => drop(all.insert(key, layer.entries()?)),
            (Item::File(path, _) | Item::Text(path, _), source) => {
                let size = match source {
                    Source::Blob(blob, _) => blob.size,
                    Source::Text(text) => text.len() as u64,
                    Source::Layer(layer) => layer.size,
                };
                let checksum = layer::checksum::Checksum::of(b""); // Blobs have digests instead.
                let kind = Kind::File { size, checksum, place: Place::Named };
                let name = Name::below(path.as_str().as_bytes(), b"");
                all.insert(
                    key,
                    vec![layer::index::Entry { name, kind, metadata: layer::index::Metadata::default() }],
                );
            }
            (Item::Archive(_), _) => {}
        }
    }
    Ok(all)
}

/// Bounds time and memory of a merge, before any index is read.
fn check_bounds(plan: &Plan, sources: &[Source]) -> Result<(), Error> {
    let mut seen = HashSet::new();
    let (mut applied, mut memory) = (0_usize, 0_u64);
    for (item, source) in plan.items().iter().zip(sources) {
        let (Item::Archive(archive), Source::Layer(layer)) = (item, source) else { continue };
        applied += layer.summary.entries;
        if seen.insert(&layer.key) {
            memory += layer.summary.memory;
        }
        if applied > 2 * ENTRY_LIMIT || memory > MEMORY_LIMIT {
            let rule = "with the layers below it, it has more entries or names than one tree may have";
            let source = layer::merge::Refused { name: Name::default(), rule: rule.into() };
            return Err(Error::Refused { digest: archive.blob.digest.clone(), source });
        }
    }
    Ok(())
}
