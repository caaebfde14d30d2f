//! Trees: directories of hard links into layers and blobs, which pods see.
//!
//! An image of one layer needs none: what is mounted is the layer itself.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};

use crate::host::failpoint;
use crate::layer::checksum::Checksum;
use crate::layer::format::{Dropped, FILES};
use crate::oci::digest::Digest;
use crate::store::content::blobs::Blobs;
use crate::store::content::build::{self, Build};
use crate::store::content::file_list;
use crate::store::content::layers::Layers;
use crate::store::content::link::{Made, TreeSource};
use crate::store::disk::{Disk, Moment, each_child, now, remove};
use crate::store::durable::facts::Facts;
use crate::store::durable::ledger::Ledger;
use crate::store::durable::record::{self, Stamp};
use crate::store::error::{Error, io};
use crate::store::key::{Entry, LayerKey, TreeKey};
use crate::tenant::Tenant;

/// The owner of `trees/` and `images/`.
#[derive(Debug)]
pub struct Trees {
    disk: Arc<Disk>,
    ledger: Arc<Ledger>,
    facts: Arc<Facts>,
    blobs: Arc<Blobs>,
    layers: Arc<Layers>,
    /// Held while a tree takes its name.
    naming: Mutex<()>,
    /// How often a tree was made, or something else came to refer to content.
    changes: AtomicU64,
    /// How many trees this process made of a manifest.
    made: Mutex<HashMap<Digest, usize>>,
}

/// A tree in the store.
#[derive(Debug, Clone)]
pub struct Tree {
    /// Its name.
    pub key: TreeKey,
    /// The directory that is mounted.
    pub root: PathBuf,
    /// What it was made of.
    pub image: Image,
    /// How it was used.
    pub usage: TreeFacts,
}

/// The record of a tree: what it was made of.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Image {
    /// Digest of the manifest it shows.
    pub manifest: Digest,
    /// The artifact family.
    pub family: String,
    /// What it runs on, where an index said so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<String>,
    /// What was wanted of the artifact, in words; empty for all, and in records of ocivol 0.1.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub filter: String,
    /// Bytes of all files.
    pub size: u64,
    /// How many files and symlinks.
    pub files: usize,
    /// Files and directories; not in records of ocivol 0.1.
    #[serde(default)]
    pub inodes: Option<u64>,
    /// The checksum of its index, which says what its directory holds; not in records of ocivol 0.1, nor where a layer is the tree.
    #[serde(default)]
    pub index: Option<Checksum>,
    /// What of its layers was left out by rule.
    pub dropped: Dropped,
    /// The blobs whose files it shows; not in records of ocivol 0.1.
    #[serde(default)]
    pub blobs: Option<Vec<Digest>>,
    /// The layers it is made of.
    pub layers: Vec<LayerKey>,
    /// The layer that is the tree, where there is no other.
    pub only_layer: Option<LayerKey>,
    /// The references that records of ocivol 0.1 have.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    references: BTreeSet<String>,
    /// The last use that records of ocivol 0.1 have, or when it was made.
    last_use: u64,
    #[serde(flatten)]
    stamp: Stamp,
}

/// How a tree was used, as far as that is known.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TreeFacts {
    /// References it was pulled as.
    #[serde(default)]
    pub references: BTreeSet<String>,
    /// Seconds since the epoch of the last publish or unpublish.
    #[serde(default)]
    pub last_use: u64,
    /// Manifests and indexes that led to it, and its config.
    #[serde(default)]
    pub documents: BTreeSet<Digest>,
    /// Tenants that used it, as text; not more than two: then it is nobody's.
    #[serde(default)]
    pub tenants: BTreeSet<String>,
    /// What references were, for those that are not digests.
    #[serde(default)]
    pub resolved: BTreeMap<String, Resolution>,
}

/// What a reference was at some time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resolution {
    /// The digest of the index or manifest.
    pub digest: Digest,
    /// When a registry said so last.
    #[serde(flatten)]
    pub at: Moment,
}

/// What is to be remembered of a use of a tree.
#[derive(Debug)]
pub struct Use<'a> {
    /// What it was pulled as.
    pub reference: &'a str,
    /// The digest of what that is, and when a registry said so last.
    pub digest: &'a Digest,
    /// That moment.
    pub at: Moment,
    /// Manifests and indexes that led to it, and its config.
    pub documents: &'a [Digest],
    /// Who used it.
    pub tenant: &'a Tenant,
}

/// References remembered of a tree.
const REFERENCES_LIMIT: usize = 32;
/// Manifests of which it is counted how many trees are made.
const MANIFESTS_LIMIT: usize = 16 * 1024;
/// Documents remembered of a tree.
const DOCUMENTS_LIMIT: usize = 64;
/// Tenants remembered of a tree.
const TENANTS_LIMIT: usize = 2;

impl Image {
    pub(in crate::store) fn stamp(&self) -> &Stamp {
        &self.stamp
    }
}

impl Tree {
    /// What has a record of its own: the tree, what it is made of, and what led to it.
    pub fn entries(&self) -> Vec<Entry> {
        let blobs =
            self.image.blobs.iter().flatten().chain(&self.usage.documents).chain([&self.image.manifest]);
        let blobs: BTreeSet<&Digest> = blobs.collect();
        let layers = self.image.layers.iter().cloned().map(Entry::Layer);
        let blobs = blobs.into_iter().cloned().map(Entry::Blob);
        std::iter::once(Entry::Tree(self.key.clone())).chain(layers).chain(blobs).collect()
    }

    /// The tree `key` of the store whose directory this is, with what is known of how it was used.
    pub(in crate::store) fn described(
        directory: &Path,
        key: TreeKey,
        image: Image,
        mut usage: TreeFacts,
    ) -> Self {
        let root = match &image.only_layer {
            Some(layer) => directory.join("layers").join(layer.as_str()),
            None => directory.join("trees").join(key.as_str()),
        };
        usage.references.extend(image.references.iter().cloned());
        usage.last_use = usage.last_use.max(image.last_use);
        Self { key, root: root.join(FILES), image, usage }
    }

    /// The name in the store of what is mounted: the tree's, or its only layer's.
    pub fn mounted_key(&self) -> &str {
        self.image.only_layer.as_ref().map_or(self.key.as_str(), LayerKey::as_str)
    }
}

impl Trees {
    pub(in crate::store) fn new(
        disk: Arc<Disk>,
        ledger: Arc<Ledger>,
        facts: Arc<Facts>,
        blobs: Arc<Blobs>,
        layers: Arc<Layers>,
    ) -> Self {
        let (naming, changes) = (Mutex::default(), AtomicU64::new(0));
        Self { disk, ledger, facts, blobs, layers, naming, changes, made: Mutex::default() }
    }

    /// The tree with `key`, if it is here and sound.
    ///
    /// A tree that is neither durable nor of this process counts as absent: linking it again costs less than to look
    /// at every file, and its layers and blobs are looked at then.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn get(&self, key: &TreeKey) -> Result<Option<Tree>, Error> {
        let Some(image) = record::read::<Image>(&self.record_path(key))? else { return Ok(None) };
        let trusted = self.ledger.is_trusted(&Entry::Tree(key.clone()), &image.stamp);
        let here = match &image.only_layer {
            Some(layer) => self.layers.get(layer)?.is_some(),
            None => self.directory(key).join(FILES).is_dir(),
        };
        if trusted && here { self.as_tree(key, image).map(Some) } else { Ok(None) }
    }

    /// All trees with a readable record.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn all(&self) -> Result<Vec<Tree>, Error> {
        let mut trees = Vec::new();
        self.each(&mut |tree| {
            trees.push(tree);
            Ok(())
        })?;
        trees.sort_by(|one, two| one.usage.references.cmp(&two.usage.references));
        Ok(trees)
    }

    /// Builds a tree whose blobs and layers are all here. Its name appears when it is complete.
    ///
    /// # Errors
    /// [`Error::Refused`] when the layers cannot be applied, [`Error::Selection`] when nothing of them is wanted,
    /// [`Error::Damaged`] when one is missing, [`Error::NoSpace`], [`Error::Io`].
    pub fn build(&self, build: &Build) -> Result<Tree, Error> {
        let losses = self.ledger.losses();
        let sources = build::sources(&self.blobs, &self.layers, &build.plan)?;
        let only_layer = build::only_layer(build, &sources);
        let made = match &only_layer {
            Some(layer) => build::measure(layer),
            None => self.link(build, &sources),
        };
        let made = self.or_give_up(&sources, made)?;
        let layers = || {
            sources.iter().filter_map(|source| match source {
                TreeSource::Layer(layer) => Some(layer),
                TreeSource::Blob(..) | TreeSource::Text(_) => None,
            })
        };
        let blobs = build.plan.files().map(|(_, file)| file.blob.digest.clone());
        let stamp = Stamp::now(&self.disk);
        let image = Image {
            manifest: build.manifest.clone(),
            family: build.family.clone(),
            platform: build.platform.clone(),
            filter: build.filter.clone(),
            size: made.bytes,
            files: made.files,
            inodes: Some(made.inodes),
            index: made.index,
            dropped: layers().fold(Dropped::default(), |sum, layer| sum.plus(layer.summary.dropped)),
            blobs: Some(blobs.collect()),
            layers: layers().map(|layer| layer.key.clone()).collect(),
            only_layer: only_layer.map(|layer| layer.key),
            references: BTreeSet::new(),
            last_use: now(),
            stamp: stamp.clone(),
        };
        {
            let guard = self.ledger.publishing();
            self.ledger.check_losses(losses, &format!("tree {}", build.key))?;
            if let Err(error) = record::write(&self.disk, &self.record_path(&build.key), &image) {
                // Without its record it is nothing; to delete it under the guard would take long.
                if image.only_layer.is_none() {
                    let (directory, away) = (self.directory(&build.key), self.disk.temporary());
                    fs::rename(&directory, &away).map_err(io("take back", &directory))?;
                    drop(guard);
                    remove(&away)?;
                }
                return Err(error);
            }
        }
        self.changes.fetch_add(1, Ordering::SeqCst);
        self.count(&build.manifest);
        failpoint::reached("tree.recorded");
        self.ledger.trust(Entry::Tree(build.key.clone()), &stamp);
        self.as_tree(&build.key, image)
    }

    /// How many trees this process made of `manifest`. Of very many manifests it is not known any more: then very many.
    pub fn made_of(&self, manifest: &Digest) -> usize {
        let made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        if made.len() >= MANIFESTS_LIMIT { usize::MAX } else { made.get(manifest).copied().unwrap_or(0) }
    }

    fn count(&self, manifest: &Digest) {
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        if made.len() < MANIFESTS_LIMIT {
            *made.entry(manifest.clone()).or_default() += 1;
        }
    }

    /// Links a tree and gives it its name.
    fn link(&self, build: &Build, sources: &[TreeSource]) -> Result<Made, Error> {
        let staging = self.disk.temporary();
        let linked = build::link_tree(&self.disk, &staging.join(FILES), build, sources).and_then(|made| {
            failpoint::reached("merge.finished");
            let _one = self.naming.lock().unwrap_or_else(PoisonError::into_inner);
            // An old record must not vouch for what is not on the disk yet.
            self.forget(&build.key)?;
            // The files of the one before stay: a pod may have it mounted.
            let directory = self.directory(&build.key);
            self.disk.retire(&directory)?;
            let named = failpoint::fails("tree.name").and_then(|()| fs::rename(&staging, &directory));
            named.map_err(io("publish", &directory))?;
            failpoint::reached("tree.named");
            Ok(made)
        });
        if linked.is_err() {
            remove(&staging)?;
        }
        linked
    }

    /// Gives up the layers of which the disk has lost something, if that may be why `result` is an error: they are pulled again.
    fn or_give_up<T>(&self, sources: &[TreeSource], result: Result<T, Error>) -> Result<T, Error> {
        if result.as_ref().is_err_and(Error::is_loss) {
            for source in sources {
                if let TreeSource::Layer(layer) = source {
                    self.layers.give_up_if_lost(layer)?;
                }
            }
        }
        result
    }

    /// Bytes of memory that [`Self::build`] takes, about.
    ///
    /// # Errors
    /// As [`Self::build`].
    pub fn merge_memory(&self, build: &Build) -> Result<u64, Error> {
        let sources = build::sources(&self.blobs, &self.layers, &build.plan)?;
        if build::only_layer(build, &sources).is_some() {
            return Ok(0);
        }
        Ok(build::memory(&build.plan, &sources))
    }

    /// Checks that the layers of a plan hold the files that its config lists, and no others. Without a list there is nothing
    /// to check.
    ///
    /// This reads each file once more, which may take minutes. *Caller:* bounds how many do.
    ///
    /// # Errors
    /// [`Error::Refused`] for the first file that is not as the list says, [`Error::Damaged`], [`Error::Io`].
    pub fn check_file_list(&self, build: &Build) -> Result<(), Error> {
        let sources = build::sources(&self.blobs, &self.layers, &build.plan)?;
        self.or_give_up(&sources, file_list::check(&self.blobs, &sources, build))
    }

    /// Notes that the tree was used now.
    ///
    /// # Errors
    /// [`Error::NoSpace`], [`Error::Io`].
    pub fn used(&self, key: &TreeKey, used: &Use<'_>) -> Result<(), Error> {
        let noted = self.facts.update(&Entry::Tree(key.clone()), |known: &mut TreeFacts| {
            known.last_use = now();
            if known.references.len() < REFERENCES_LIMIT {
                known.references.insert(used.reference.to_owned());
            }
            let is_newer = known.resolved.get(used.reference).is_none_or(|before| before.at < used.at);
            if is_newer && known.references.contains(used.reference) {
                let resolution = Resolution { digest: used.digest.clone(), at: used.at };
                known.resolved.insert(used.reference.to_owned(), resolution);
            }
            let room = DOCUMENTS_LIMIT.saturating_sub(known.documents.len());
            known.documents.extend(used.documents.iter().take(room).cloned());
            if known.tenants.len() < TENANTS_LIMIT {
                known.tenants.insert(used.tenant.to_string());
            }
            true
        });
        // Only now: who sees the change sees what is noted.
        self.changes.fetch_add(1, Ordering::SeqCst);
        noted
    }

    /// Notes that the tree was still in use until now. One that is not there is fine.
    ///
    /// # Errors
    /// [`Error::NoSpace`], [`Error::Io`].
    pub fn was_mounted(&self, key: &TreeKey) -> Result<(), Error> {
        if !self.record_path(key).exists() {
            return Ok(());
        }
        self.facts.update(&Entry::Tree(key.clone()), |known: &mut TreeFacts| {
            known.last_use = now();
            true
        })
    }

    /// Forgets that the tree was pulled as `reference`.
    ///
    /// # Errors
    /// [`Error::NoSpace`], [`Error::Io`].
    pub fn unname(&self, key: &TreeKey, reference: &str) -> Result<(), Error> {
        self.facts.update(&Entry::Tree(key.clone()), |known: &mut TreeFacts| {
            known.resolved.remove(reference);
            known.references.remove(reference)
        })
    }

    /// Makes a tree invisible to new publishes; pods that have it mounted keep it. How it was used stays known.
    fn forget(&self, key: &TreeKey) -> Result<(), Error> {
        let _guard = self.ledger.publishing();
        self.ledger.forget(&Entry::Tree(key.clone()), &self.record_path(key))
    }

    /// How often a tree was made, or something else came to refer to content.
    pub(in crate::store) fn changes(&self) -> u64 {
        self.changes.load(Ordering::SeqCst)
    }

    /// Calls `take` with one tree after the other. One that cannot be read is left out.
    ///
    /// # Errors
    /// [`Error::Io`] when there is no list of them; those of `take`.
    pub(in crate::store) fn each(
        &self,
        take: &mut dyn FnMut(Tree) -> Result<(), Error>,
    ) -> Result<(), Error> {
        self.each_record(&mut |key, path| {
            match record::read::<Image>(path) {
                Ok(Some(image)) => take(self.as_tree(&key, image)?)?,
                Ok(None) => {}
                Err(error) => tracing::warn!(%error, "a tree is left out"),
            }
            Ok(())
        })
    }

    /// How the tree was used, as that is known now.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(in crate::store) fn usage(&self, key: &TreeKey) -> Result<TreeFacts, Error> {
        self.facts.of(&Entry::Tree(key.clone()))
    }

    /// Gives a tree up that is not what it was: it is made again. Pods that have it mounted keep it.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(in crate::store) fn give_up(&self, key: &TreeKey) -> Result<(), Error> {
        let _one = self.naming.lock().unwrap_or_else(PoisonError::into_inner);
        self.forget(key)?;
        self.disk.retire(&self.directory(key))
    }

    /// Takes the directory with this name out of sight, unless a record belongs to it. *Caller:* has claimed it, so that none is
    /// about to.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(in crate::store) fn take_nameless(&self, name: &str) -> Result<Option<PathBuf>, Error> {
        let _one = self.naming.lock().unwrap_or_else(PoisonError::into_inner);
        let directory = self.disk.directory();
        match directory.join("images").join(format!("{name}.json")).exists() {
            true => Ok(None),
            false => self.disk.to_trash(&directory.join("trees").join(name)).map(Some),
        }
    }

    /// Takes a tree out of the store, its record first. Returns where its files wait to be deleted.
    ///
    /// *Caller:* has claimed it, and knows that nothing has it mounted.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(in crate::store) fn take_away(&self, key: &TreeKey) -> Result<PathBuf, Error> {
        let _one = self.naming.lock().unwrap_or_else(PoisonError::into_inner);
        self.forget(key)?;
        failpoint::reached("collect.tree_forgotten");
        let trash = self.disk.to_trash(&self.directory(key))?;
        failpoint::reached("collect.tree_gone");
        self.facts.forget(&Entry::Tree(key.clone()))?;
        Ok(trash)
    }

    /// Forgets every tree that is not durable. Goes on after an error, and returns the first.
    pub(in crate::store) fn forget_volatile(&self) -> Result<(), Error> {
        let mut result = Ok(());
        self.each_record(&mut |key, path| {
            let forgotten = match record::read::<Image>(path) {
                Ok(Some(known)) if !self.ledger.is_durable(&Entry::Tree(key.clone()), &known.stamp) => {
                    self.forget(&key)
                }
                Ok(_) => Ok(()),
                Err(error) => Err(error),
            };
            result = std::mem::replace(&mut result, Ok(())).and(forgotten);
            Ok(())
        })?;
        result
    }

    /// Calls `take` with the key of one tree after the other, and where its record is.
    fn each_record(&self, take: &mut dyn FnMut(TreeKey, &Path) -> Result<(), Error>) -> Result<(), Error> {
        each_child(&self.disk.directory().join("images"), &mut |path| {
            let name = path.file_name().and_then(|name| name.to_str()?.strip_suffix(".json"));
            name.and_then(TreeKey::parse).map_or(Ok(()), |key| take(key, path))
        })
    }

    fn as_tree(&self, key: &TreeKey, image: Image) -> Result<Tree, Error> {
        let usage = self.facts.of(&Entry::Tree(key.clone()))?;
        Ok(Tree::described(self.disk.directory(), key.clone(), image, usage))
    }

    fn directory(&self, key: &TreeKey) -> PathBuf {
        self.disk.directory().join("trees").join(key.as_str())
    }

    fn record_path(&self, key: &TreeKey) -> PathBuf {
        self.disk.directory().join("images").join(format!("{key}.json"))
    }
}
