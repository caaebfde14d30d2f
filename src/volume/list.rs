//! What the store holds, where it is mounted, and by whom.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::host::blocking::{self, Lane};
use crate::layer::format::Dropped;
use crate::layout::plan::{Item, Plan};
use crate::mount::mountinfo::Table;
use crate::oci::digest::Digest;
use crate::store::collect::report::process;
use crate::store::content::trees::{Resolution, Tree};
use crate::store::inventory::{Inventory, missing};
use crate::volume::error::Error;
use crate::volume::store_mounts::StoreMounts;
use crate::volume::volumes::Volumes;
use crate::warm::resident::resident_below;

/// What a store holds.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listing {
    /// Its trees.
    pub trees: Vec<Listed>,
    /// Bytes of the content of all of them, each counted once.
    #[serde(default)]
    pub content: u64,
    /// Bytes of downloads that are not finished.
    #[serde(default)]
    pub unfinished: u64,
    /// Bytes that are free on its disk; `None` where there is no store.
    pub free: Option<u64>,
}

/// One tree of the store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listed {
    /// References it was pulled as.
    pub references: Vec<String>,
    /// Those of them that were something else when a registry was asked last.
    #[serde(default)]
    pub moved: Vec<String>,
    /// What the references resolved to: an index, or the manifest itself.
    pub digest: String,
    /// Digest of the manifest it shows.
    #[serde(default)]
    pub manifest: String,
    /// The artifact family.
    pub family: String,
    /// What it runs on, where an index said so.
    #[serde(default)]
    pub platform: Option<String>,
    /// What was wanted of it, in words; empty for all.
    #[serde(default)]
    pub filter: String,
    /// Bytes of all files.
    pub size: u64,
    /// How many files.
    pub files: usize,
    /// Bytes of them that are in memory; `None` of a tree of many files, at which nobody looks for that.
    #[serde(default)]
    pub resident: Option<u64>,
    /// What of its archives was left out by rule.
    pub dropped: Dropped,
    /// Seconds since the epoch of the last publish or pull.
    pub last_use: u64,
    /// The tree's name in the store.
    pub tree: String,
    /// Targets where it is mounted, as this mount namespace sees them.
    pub mounted_at: Vec<PathBuf>,
    /// Who has it mounted: pods as `namespace/name`, processes, and targets of which no more is known.
    #[serde(default)]
    pub mounted_by: Vec<String>,
}

/// Files of a tree at which is looked for what is in memory, at most: models have fewer, and images more.
const FEW_FILES: usize = 1000;
/// Names of all trees at which is looked for that.
const LOOKED_AT: usize = 20_000;

/// Lists the store at `root`, which may be open in another process. What is in memory of its trees is not looked at.
///
/// # Errors
/// When the store or the mount table cannot be read.
pub fn look(root: &Path) -> Result<Listing, Error> {
    list(root, |_| None)
}

/// The same, with what is in memory of each tree of few files.
fn look_at_memory(root: &Path) -> Result<Listing, Error> {
    let mut names_left = LOOKED_AT;
    list(root, |tree| {
        if tree.image.files > FEW_FILES {
            return None;
        }
        // Directories are names as well, of which a tree with few files may have many.
        let most = names_left.min(2 * FEW_FILES);
        let mut left = most;
        let here = resident_below(&tree.root, &mut left);
        names_left -= most - left;
        here.unwrap_or(None)
    })
}

fn list(root: &Path, mut resident: impl FnMut(&Tree) -> Option<u64>) -> Result<Listing, Error> {
    let Inventory { trees, volumes, leases, content, unfinished, free } = Inventory::read(root)?;
    let table = Table::read()?;
    let ours = StoreMounts::locate(&table, root);
    let newest = newest(&trees);
    let pods: BTreeMap<&Path, &str> =
        volumes.iter().filter_map(|volume| Some((volume.target.as_path(), volume.pod.as_deref()?))).collect();
    let listed = trees.iter().map(|tree| {
        let mounted = table
            .iter()
            .filter(|mount| ours.holds(mount) && mount.store_key() == Some(tree.mounted_key()))
            .map(|mount| mount.mount_point.clone());
        let mounted_at: Vec<PathBuf> = mounted.collect();
        let by_target = mounted_at.iter().map(|target| match pods.get(target.as_path()) {
            Some(pod) => (*pod).to_owned(),
            None => target.display().to_string(),
        });
        let by_process = leases.iter().filter(|lease| lease.tree == tree.key);
        let mounted_by = by_target.chain(by_process.map(|lease| process(lease.pid))).collect();
        describe(tree, &newest, resident(tree), mounted_at, mounted_by)
    });
    let mut trees: Vec<Listed> = listed.collect();
    trees.sort_by(|one, other| {
        (&one.references, &one.filter, &one.tree).cmp(&(&other.references, &other.filter, &other.tree))
    });
    Ok(Listing { trees, content, unfinished, free })
}

/// Bytes of the blobs that `plan` needs, each counted once, and how many of them are in the store at `root`, in one form or another. What
/// is written out of the plan itself comes from no registry, and counts as nothing.
pub fn needed(root: Option<&Path>, plan: &Plan) -> (u64, u64) {
    let blobs = plan.items().iter().filter_map(|item| match item {
        Item::File(_, file) => Some(&file.blob),
        Item::Archive(archive) => Some(&archive.blob),
        Item::Text(..) => None,
    });
    let needed: BTreeMap<String, (&Digest, u64)> =
        blobs.map(|blob| (blob.digest.to_string(), (&blob.digest, blob.size))).collect();
    let sum = |bytes: u64, size: u64| bytes.saturating_add(size);
    let all = needed.values().map(|(_, size)| *size).fold(0, sum);
    let Some(root) = root else { return (all, 0) };
    let missing = missing(root, plan.profile(), needed.values().map(|(digest, _)| *digest));
    let missing = missing.iter().filter_map(|digest| needed.get(&digest.to_string()));
    (all, all - missing.map(|(_, size)| *size).fold(0, sum))
}

fn describe(
    tree: &Tree,
    newest: &BTreeMap<&str, &Resolution>,
    resident: Option<u64>,
    mounted_at: Vec<PathBuf>,
    mounted_by: Vec<String>,
) -> Listed {
    let resolved = &tree.usage.resolved;
    let has_moved = |reference: &&String| {
        let (own, now) = (resolved.get(*reference), newest.get(reference.as_str()));
        own.zip(now).is_some_and(|(own, now)| own.digest != now.digest)
    };
    let names = names(tree);
    let latest = resolved.values().max_by_key(|known| known.at);
    Listed {
        moved: names.iter().copied().filter(has_moved).cloned().collect(),
        references: names.into_iter().cloned().collect(),
        digest: latest.map_or_else(|| tree.image.manifest.to_string(), |known| known.digest.to_string()),
        manifest: tree.image.manifest.to_string(),
        family: tree.image.family.clone(),
        platform: tree.image.platform.clone(),
        filter: tree.image.filter.clone(),
        size: tree.image.size,
        files: tree.image.files,
        resident,
        dropped: tree.image.dropped,
        last_use: tree.usage.last_use,
        tree: tree.key.to_string(),
        mounted_at,
        mounted_by,
    }
}

/// What a tree is called: without the place in an image layout that `ocivol load` read it from, where it has a name.
pub(in crate::volume) fn names(tree: &Tree) -> Vec<&String> {
    let all = &tree.usage.references;
    let is_place = |name: &&String| name.starts_with("oci-layout:") && name.contains('@');
    let named: Vec<&String> = all.iter().filter(|name| !is_place(name)).collect();
    if named.is_empty() { all.iter().collect() } else { named }
}

/// What each reference was when a registry was asked last.
fn newest(trees: &[Tree]) -> BTreeMap<&str, &Resolution> {
    let mut newest: BTreeMap<&str, &Resolution> = BTreeMap::new();
    for (reference, known) in trees.iter().flat_map(|tree| &tree.usage.resolved) {
        let latest = newest.entry(reference).or_insert(known);
        if known.at > latest.at {
            *latest = known;
        }
    }
    newest
}

impl Volumes {
    /// Lists every tree.
    ///
    /// # Errors
    /// When the store or the mount table cannot be read.
    pub async fn list(&self) -> Result<Listing, Error> {
        let root = self.store_root().to_owned();
        blocking::run(Lane::Store, move || look_at_memory(&root)).await
    }
}
