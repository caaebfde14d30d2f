//! How a tree is made: the layers of a plan are merged, what is wanted is chosen, and the result is linked.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use crate::host::limits;
use crate::layer::checksum::Checksum;
use crate::layer::entries::Entries;
use crate::layer::format::Profile;
use crate::layer::format::place_of;
use crate::layer::index::{ENTRY_LIMIT, Entry, EntryKind, EntryMetadata, NODE_MEMORY, Place};
use crate::layer::merge;
use crate::layer::merge::{Merge, Refused};
use crate::layer::name::Name;
use crate::layer::rename::Rename;
use crate::layout::options::Options;
use crate::layout::plan::{Item, Plan};
use crate::oci::digest::Digest;
use crate::store::content::blobs::Blobs;
use crate::store::content::layer::Layer;
use crate::store::content::layers::Layers;
use crate::store::content::link::{self, How, Made, TreeSource};
use crate::store::disk::Disk;
use crate::store::error::Error;
use crate::store::key::{LayerKey, TreeKey};

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
    /// What it runs on, where an index says so.
    pub platform: Option<String>,
    /// What is wanted of it, in words; empty for all.
    pub filter: String,
    /// Bytes of memory that its merge may take.
    pub merge_bytes: u64,
}

/// What `plan` needs, in its order.
pub(in crate::store) fn sources(
    blobs: &Blobs,
    layers: &Layers,
    plan: &Plan,
) -> Result<Vec<TreeSource>, Error> {
    let gone = |digest: &Digest| Error::Damaged(format!("blob {digest} is gone"));
    let source = |item: &Item| match item {
        Item::File(_, file) => {
            let digest = &file.blob.digest;
            let blob = blobs.get(digest)?.ok_or_else(|| gone(digest))?;
            Ok(TreeSource::Blob(blob, file.metadata))
        }
        Item::Text(_, text) => Ok(TreeSource::Text(text.clone())),
        Item::Archive(archive) => {
            let digest = &archive.blob.digest;
            let layer = layers.get(&LayerKey::new(digest, plan.profile()))?.ok_or_else(|| gone(digest))?;
            Ok(TreeSource::Layer(layer))
        }
    };
    plan.items().iter().map(source).collect()
}

/// Merges, selects, and links the result at `root`.
pub(in crate::store) fn link_tree(
    disk: &Disk,
    root: &Path,
    build: &Build,
    sources: &[TreeSource],
) -> Result<Made, Error> {
    let profile = build.plan.profile();
    check_bounds(build, sources)?;
    let indexes = indexes(&build.plan, sources)?;
    let mut merge = Merge::new(profile).within(build.merge_bytes);
    for (item, source) in build.plan.items().iter().zip(sources) {
        // Who reads the tree finds what it is made of by the number of the item.
        let entries = indexes.get(&index_key(item, source));
        let entries = entries.ok_or_else(|| Error::Damaged("a layer has no index".into()))?;
        let applied = match item {
            Item::File(..) | Item::Text(..) => merge.add_file(entries),
            Item::Archive(archive) => merge.apply(entries, Some(&archive.rename)),
        };
        applied.map_err(|error| match error {
            merge::Error::Refused(source) => Error::Refused { digest: item.digest(), source },
            merge::Error::Memory(bytes) => Error::MergeMemory { digest: item.digest(), bytes },
        })?;
    }
    let selection = &build.options.selection;
    if !selection.is_all() {
        let mut walk = selection.walk();
        for path in build.plan.left_out() {
            walk.judge_alone(path.as_str().as_bytes());
        }
        merge.retain(walk.start(), &mut |path, above, leaf| {
            let verdict = walk.judge(path.as_bytes(), above, leaf);
            (verdict, verdict.is_wanted())
        });
        walk.finish()?;
    }
    let how = How { profile, readable: build.readable, reflink: disk.reflink };
    link::make(root, &merge, sources, how, &|needed| disk.room.ensure(None, needed))
}

/// The layer that can be mounted as it is.
pub(in crate::store) fn only_layer(build: &Build, sources: &[TreeSource]) -> Option<Layer> {
    let ([Item::Archive(archive)], [TreeSource::Layer(layer)]) = (build.plan.items(), sources) else {
        return None;
    };
    let as_it_is = archive.rename == Rename::default()
        && build.options.selection.is_all()
        && build.plan.file_list().is_none();
    let summary = &layer.summary;
    let readable = summary.readable || build.readable == (build.plan.profile() == Profile::Archive);
    (as_it_is && readable && summary.regular).then(|| layer.clone())
}

/// An index is read once, however often a manifest names its layer.
fn index_key<'a>(item: &'a Item, source: &'a TreeSource) -> &'a str {
    match (item, source) {
        (_, TreeSource::Layer(layer)) => layer.key.as_str(),
        (Item::File(path, _) | Item::Text(path, _), _) => path.as_str(),
        (Item::Archive(_), _) => "",
    }
}

/// The entries of each item. A file is an archive of one entry.
fn indexes<'a>(plan: &'a Plan, sources: &'a [TreeSource]) -> Result<HashMap<&'a str, Entries>, Error> {
    let mut all: HashMap<&str, Entries> = HashMap::new();
    for (item, source) in plan.items().iter().zip(sources) {
        let key = index_key(item, source);
        match (item, source) {
            (_, TreeSource::Layer(_)) if all.contains_key(key) => {}
            (_, TreeSource::Layer(layer)) => drop(all.insert(key, layer.entries()?)),
            (Item::File(path, _) | Item::Text(path, _), source) => {
                let size = match source {
                    TreeSource::Blob(blob, _) => blob.size,
                    TreeSource::Text(text) => text.len() as u64,
                    TreeSource::Layer(layer) => layer.size,
                };
                let checksum = Checksum::of(b""); // Blobs have digests instead.
                let kind = EntryKind::File { size, checksum, place: Place::Named };
                let name = Name::below(path.as_str().as_bytes(), b"");
                let entry = Entry { name, kind, metadata: EntryMetadata::default() };
                let entries = Entries::of(&[entry]).map_err(|error| Error::Damaged(error.to_string()))?;
                all.insert(key, entries);
            }
            (Item::Archive(_), _) => {}
        }
    }
    Ok(all)
}

/// Bounds time and memory of a merge, before any index is read.
fn check_bounds(build: &Build, sources: &[TreeSource]) -> Result<(), Error> {
    let both = || build.plan.items().iter().zip(sources);
    let mut applied = 0_usize;
    for (item, source) in both() {
        let (Item::Archive(archive), TreeSource::Layer(layer)) = (item, source) else { continue };
        applied += layer.summary.entries;
        if applied > 2 * ENTRY_LIMIT {
            let rule = "with the layers below it, it has more entries or names than one tree may have";
            let source = Refused { name: Name::default(), rule: rule.into() };
            return Err(Error::Refused { digest: archive.blob.digest.clone(), source });
        }
    }
    let mut memory = 0_u64;
    for (item, source) in both() {
        memory += declared_memory_of(item, source);
        if memory > build.merge_bytes {
            return Err(Error::MergeMemory { digest: item.digest(), bytes: build.merge_bytes });
        }
    }
    Ok(())
}

/// Bytes of memory that a merge takes whose layers are as they usually are, with an eighth more than is known before: symbolic links can
/// lead to directories that no layer names. One that takes more is begun once more, with as much as there may be.
pub(in crate::store) fn memory(plan: &Plan, sources: &[TreeSource]) -> u64 {
    const MORE: u64 = 64 * 1024;
    let declared: u64 =
        plan.items().iter().zip(sources).map(|(item, source)| declared_memory_of(item, source)).sum();
    declared.max((declared + declared / 8 + MORE).min(limits::MERGE_BYTES))
}

/// What is known of it before, of one item.
fn declared_memory_of(item: &Item, source: &TreeSource) -> u64 {
    /// Of the entry that a file is, and of what finds it.
    const FILE: usize = 256;
    let directories = |path: &[u8]| NODE_MEMORY * path.split(|byte| *byte == b'/').count();
    match (item, source) {
        (Item::Archive(archive), TreeSource::Layer(layer)) => {
            layer.summary.memory + directories(archive.rename.prefix.as_bytes()) as u64
        }
        (Item::Archive(_), _) => 0,
        (Item::File(path, _) | Item::Text(path, _), _) => {
            let path = path.as_str().as_bytes();
            (FILE + path.len() + directories(path)) as u64
        }
    }
}

/// What a layer holds that is a tree by itself: by all names, as a walk would count it.
pub(in crate::store) fn measure(layer: &Layer) -> Result<Made, Error> {
    let mut directories = HashSet::new();
    let (files, bytes) = (layer.summary.files, layer.summary.bytes);
    let mut made = Made { files, bytes, ..Made::default() };
    for entry in layer.read_entries()? {
        let entry = entry.map_err(|error| Error::Damaged(format!("layer {}: {error}", layer.key)))?;
        let mut above = match entry.kind {
            EntryKind::Directory => Some(entry.name.as_bytes()),
            EntryKind::File { .. } | EntryKind::Symlink { .. } | EntryKind::HardLink { .. } => {
                made.inodes += 1;
                parent(entry.name.as_bytes())
            }
            EntryKind::Whiteout | EntryKind::Opaque | EntryKind::Dropped => None,
        };
        if let EntryKind::HardLink { .. } = entry.kind {
            let path = layer.directory.join(place_of(&entry.name, Place::Named, 0));
            made.bytes += std::fs::symlink_metadata(path).map_or(0, |found| found.len());
        }
        // A directory that is known has parents that are known.
        while let Some(name) = above.filter(|name| directories.insert(xxhash_rust::xxh3::xxh3_64(name))) {
            above = parent(name);
        }
    }
    directories.insert(xxhash_rust::xxh3::xxh3_64(b""));
    made.inodes += directories.len() as u64;
    Ok(made)
}

fn parent(name: &[u8]) -> Option<&[u8]> {
    if name.is_empty() {
        return None;
    }
    Some(name.iter().rposition(|byte| *byte == b'/').map_or(&b""[..], |slash| &name[..slash]))
}
