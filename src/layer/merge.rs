//! Several layers as one tree: what unpacking them one after the other gives, without doing it.
//!
//! Parents of entries and of whiteouts resolve inside the root, against what the layers before and the entries
//! before left there. An explicit directory replaces a symlink or file of its name; one that is only implied by a
//! name below it takes what is there. Whiteouts hide what lower layers have, never what their own layer has; a
//! directory that its own layer also fills keeps what the lower one said of it. Source: image-spec layer.md#applying-changesets, and how umoci reads it.

use std::collections::HashSet;

use crate::layer::entries::{At, Entries};
use crate::layer::format::Profile;
use crate::layer::index::{ENTRY_LIMIT, Entry, EntryKind, EntryMetadata, LINK_MEMORY, NODE_MEMORY};
use crate::layer::name;
use crate::layer::name::{DEPTH_LIMIT, Name};
use crate::layer::nodes::{Content, Nodes, ROOT};
use crate::layer::rename::{Path, Rename, renamed, split_path};

/// A tree that layers are applied to, lowest first. It takes [`NODE_MEMORY`] bytes at most for each file and directory that there
/// ever was in it.
#[derive(Debug)]
pub struct Merge<'a> {
    nodes: Nodes<'a>,
    layers: Vec<&'a Entries>,
    /// The layers that are one file each.
    files: HashSet<u32>,
    /// The files that hard links lead to.
    linked: HashSet<At>,
    /// Whether parents may be symlinks.
    profile: Profile,
    /// Bytes of memory that it may take with its layers, and those that the layers take.
    memory: u64,
    of_layers: u64,
    /// The parent that was made last: mostly that of the next entry, too. Until something on the way to it may have been replaced.
    last: Option<Parent<'a>>,
}

/// A directory that a layer found or made at a path.
#[derive(Debug)]
struct Parent<'a> {
    layer: u32,
    path: Path<'a>,
    node: u32,
}

/// An entry cannot be applied.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("entry {name:?}: {rule}")]
pub struct Refused {
    /// The entry's name.
    pub name: Name,
    /// The rule it breaks, in words.
    pub rule: String,
}

/// Why a layer cannot be applied.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// One of its entries breaks a rule.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// With it the tree would take more memory than it may.
    #[error("its tree takes more than {0} bytes of memory")]
    Memory(u64),
}

/// One step of a walk over the tree. Names are in byte order.
#[derive(Debug)]
pub enum Visit<'w, 'a> {
    /// A directory; what follows is in it, until it is left. The root comes first, with an empty name.
    Enter {
        /// Its path.
        path: &'w Name,
        /// What the archives say of it.
        metadata: Option<EntryMetadata<&'a [u8]>>,
    },
    /// The end of a directory.
    Leave,
    /// A file or symlink.
    Leaf {
        /// Its path.
        path: &'w Name,
        /// Its content and metadata.
        at: At,
    },
}

/// Symlinks on the way to one parent. As in the kernel, `man 7 path_resolution`.
const SYMLINK_LIMIT: usize = 40;
/// Parts looked at on the way to one parent.
const STEP_LIMIT: usize = 512;

type Rule = std::borrow::Cow<'static, str>;
/// Names from the root to somewhere, with what is there.
type Way<'a> = Vec<(&'a [u8], Option<u32>)>;

impl<'a> Merge<'a> {
    /// An empty tree.
    pub fn new(profile: Profile) -> Self {
        Self {
            nodes: Nodes::new(),
            layers: Vec::new(),
            files: HashSet::new(),
            linked: HashSet::new(),
            profile,
            memory: u64::MAX,
            of_layers: 0,
            last: None,
        }
    }

    /// The same with a bound of its memory, in bytes: of what is in it, and of the entries of its layers, as often as they are applied.
    pub fn within(self, memory: u64) -> Self {
        Self { memory, ..self }
    }

    /// Applies a layer that is one file.
    ///
    /// # Errors
    /// As [`Merge::apply`].
    pub fn add_file(&mut self, file: &'a Entries) -> Result<(), Error> {
        self.files.insert(u32::try_from(self.layers.len()).unwrap_or(u32::MAX));
        self.apply(file, None)
    }

    /// Applies the entries of the next layer, at the names that they have or become.
    ///
    /// # Errors
    /// When one of them cannot be, or there is too little memory; the tree is then good for nothing.
    pub fn apply(&mut self, entries: &'a Entries, rename: Option<&'a Rename>) -> Result<(), Error> {
        let layer = u32::try_from(self.layers.len()).unwrap_or(u32::MAX);
        self.layers.push(entries);
        self.of_layers += entries.memory();
        for (number, entry) in entries.iter() {
            let refused = |rule: Rule| Refused { name: entry.name.to_owned(), rule: rule.into_owned() };
            let Some(path) = renamed(rename, entry.name).map_err(|rule| refused(rule.into()))? else {
                continue;
            };
            let at = At { layer, entry: number };
            self.add(path, &entry.kind, at, rename).map_err(refused)?;
            if self.nodes.len() > ENTRY_LIMIT {
                let rule = format!("the tree has more than {ENTRY_LIMIT} files and directories");
                return Err(refused(rule.into()).into());
            }
            if self.taken() > self.memory {
                return Err(Error::Memory(self.memory));
            }
        }
        if self.profile == Profile::Image
            && let Some(links) = self.nodes.child(ROOT, name::AUFS_LINKS)
        {
            self.remove(links);
        }
        Ok(())
    }

    /// Bytes of memory that it takes, at most, with what who links it has to remember.
    fn taken(&self) -> u64 {
        self.of_layers + (self.nodes.len() * NODE_MEMORY + self.linked.len() * LINK_MEMORY) as u64
    }

    /// The entry at `at`, which came from a walk.
    pub fn entry(&self, at: At) -> Entry<&'a [u8]> {
        let entry = self.layers.get(at.layer as usize).and_then(|entries| entries.get(at.entry));
        // A walk says none that there is not.
        entry.unwrap_or(Entry {
            name: Name::default(),
            kind: EntryKind::Dropped,
            metadata: EntryMetadata::default(),
        })
    }

    /// Whether the file at `at` may have several names.
    pub fn is_linked(&self, at: At) -> bool {
        self.linked.contains(&at)
    }

    /// Keeps what `judge` wants, and the directories it is in. Of each file, symlink and directory, from the root down,
    /// `judge` says whether it is wanted, and what those below it are looked at with.
    pub fn retain<V: Copy>(&mut self, start: V, judge: &mut dyn FnMut(&Name, V, bool) -> (V, bool)) {
        self.last = None;
        retain_in(&mut self.nodes, ROOT, &mut Name::default(), start, judge);
    }

    /// Walks over the tree.
    ///
    /// # Errors
    /// The first of `visit`, which ends the walk.
    pub fn walk<E>(&self, visit: &mut dyn FnMut(Visit<'_, 'a>) -> Result<(), E>) -> Result<(), E> {
        self.walk_in(ROOT, &mut Name::default(), visit)
    }

    fn add(
        &mut self,
        path: Path<'a>,
        kind: &EntryKind<&'a [u8]>,
        at: At,
        rename: Option<&'a Rename>,
    ) -> Result<(), Rule> {
        let layer = at.layer;
        let Some((parent, part)) = split_path(path) else {
            return match kind {
                EntryKind::Directory => {
                    self.nodes.describe(ROOT, at);
                    Ok(())
                }
                EntryKind::Opaque => {
                    self.clear(ROOT, layer);
                    Ok(())
                }
                _ => Err("the root is no directory".into()),
            };
        };
        match kind {
            EntryKind::Directory => {
                let parent = self.make_parent(parent, layer)?;
                let there = self.nodes.child(parent, part).filter(|there| self.nodes.is_directory(*there));
                let directory = match there {
                    Some(there) => there,
                    None => self.put(parent, part, layer, Content::EMPTY)?,
                };
                self.nodes.describe(directory, at);
            }
            EntryKind::File { .. } | EntryKind::Symlink { .. } => {
                let parent = self.make_parent(parent, layer)?;
                self.put(parent, part, layer, Content::Leaf(at))?;
            }
            EntryKind::Dropped => {
                let parent = self.make_parent(parent, layer)?;
                self.put(parent, part, layer, Content::Dropped)?;
            }
            EntryKind::HardLink { target } => {
                let (content, way) = self.link_target(*target, rename)?;
                let parent = self.make_parent(parent, layer)?;
                let there = self.nodes.child(parent, part);
                // Packed from a list that has a file twice, it is a link to itself.
                if self.profile == Profile::Archive && there.is_some() && there == way.last().copied() {
                    return Ok(());
                }
                if there.is_some_and(|there| way.contains(&there)) {
                    return Err(format!("it is a hard link to {target:?}, and would take its place").into());
                }
                self.put(parent, part, layer, content)?;
                if let Content::Leaf(at) = content {
                    self.linked.insert(at);
                }
            }
            EntryKind::Whiteout => {
                if let Some(parent) = self.find_directory(parent)?
                    && let Some(hidden) = self.nodes.child(parent, part)
                    && self.hide(hidden, layer)
                {
                    self.remove(hidden);
                }
            }
            EntryKind::Opaque => {
                if let Some(directory) = self.find_directory(path)? {
                    self.clear(directory, layer);
                }
            }
        }
        Ok(())
    }

    /// What a hard link leads to, and the nodes on the way there.
    fn link_target(
        &self,
        target: Name<&'a [u8]>,
        rename: Option<&'a Rename>,
    ) -> Result<(Content, Vec<u32>), Rule> {
        let missing = || Rule::from(format!("it is a hard link to {target:?}, which is not there"));
        let path = renamed(rename, target)?.ok_or_else(missing)?;
        let (parent, part) = split_path(path).ok_or("it is a hard link to the root")?;
        let way = self.resolve(parent)?;
        let parent = way.last().map_or(Some(ROOT), |(_, node)| *node);
        let found = parent.and_then(|parent| self.nodes.child(parent, part));
        let way = way.into_iter().filter_map(|(_, node)| node).chain(found).collect();
        match found.map(|found| self.nodes.content(found)) {
            Some(content @ (Content::Leaf(_) | Content::Dropped)) => Ok((content, way)),
            Some(Content::Directory(_)) => {
                Err(format!("it is a hard link to {target:?}, which is a directory").into())
            }
            Some(Content::Gone) | None => Err(missing()),
        }
    }

    /// Hides what lower layers have of a node; true when nothing is left of it.
    fn hide(&mut self, node: u32, layer: u32) -> bool {
        self.last = None;
        hide(&mut self.nodes, node, layer)
    }

    /// Hides what lower layers have in a directory.
    fn clear(&mut self, node: u32, layer: u32) {
        self.last = None;
        clear(&mut self.nodes, node, layer);
    }

    fn put(&mut self, parent: u32, part: &'a [u8], layer: u32, content: Content) -> Result<u32, Rule> {
        let Some(there) = self.nodes.child(parent, part) else {
            return Ok(self.nodes.insert(parent, part, layer, content));
        };
        self.check_replacing(there, layer, content)?;
        // A file was on the way to nothing.
        if self.nodes.is_directory(there) || self.symlink(there).is_some() {
            self.last = None;
        }
        Ok(self.nodes.replace(there, layer, content))
    }

    /// In an artifact a later archive may have a newer version of a file. Anything else of two layers that has the same
    /// name is a mistake, and would go unseen.
    fn check_replacing(&self, there: u32, layer: u32, content: Content) -> Result<(), Rule> {
        let made = self.nodes.made(there);
        if self.profile == Profile::Image || made == layer {
            return Ok(());
        }
        if self.nodes.is_directory(there) {
            return Err("another layer has a directory of this name".into());
        }
        let is_directory = matches!(content, Content::Directory(_));
        if is_directory || self.files.contains(&made) || self.files.contains(&layer) {
            return Err("another layer has a file of this name".into());
        }
        Ok(())
    }

    fn remove(&mut self, node: u32) {
        self.last = None;
        self.nodes.remove(node);
    }

    fn symlink(&self, node: u32) -> Option<&'a [u8]> {
        let Content::Leaf(at) = self.nodes.content(node) else { return None };
        match self.entry(at).kind {
            EntryKind::Symlink { target, .. } => Some(target),
            _ => None,
        }
    }

    /// The directory at `path`, which is created where it is missing, and touched with all above it.
    fn make_parent(&mut self, path: Path<'a>, layer: u32) -> Result<u32, Rule> {
        if let Some(last) = self.last.as_ref().filter(|last| last.layer == layer && last.path == path) {
            return Ok(last.node);
        }
        let way = self.resolve(path)?;
        let mut node = ROOT;
        self.nodes.touch(ROOT, layer);
        for (part, known) in way {
            node = match known {
                Some(known) if self.nodes.is_directory(known) => known,
                Some(_) => {
                    return Err(format!("its parent {:?} is not a directory", name::shown(part)).into());
                }
                None => self.put(node, part, layer, Content::EMPTY)?,
            };
            self.nodes.touch(node, layer);
        }
        self.last = Some(Parent { layer, path, node });
        Ok(node)
    }

    /// The directory at `path`, if there is one.
    fn find_directory(&self, path: Path<'a>) -> Result<Option<u32>, Rule> {
        let way = self.resolve(path)?;
        let node = way.last().map_or(Some(ROOT), |(_, node)| *node);
        Ok(node.filter(|node| self.nodes.is_directory(*node)))
    }

    /// The way from the root to `path`, without symlinks. What is not there is taken as it is written, and `..`
    /// at the root stays there: as `RESOLVE_IN_ROOT` of `man 2 openat2` does, and securejoin of the Go tools.
    fn resolve(&self, path: Path<'a>) -> Result<Way<'a>, Rule> {
        let mut way: Way<'a> = Vec::new();
        let mut ahead: Vec<&'a [u8]> = Vec::new();
        for piece in path.into_iter().rev() {
            ahead.extend(piece.split(|byte| *byte == b'/').rev().filter(|part| !part.is_empty()));
        }
        let (mut symlinks, mut steps, mut length) = (0, 0, 0);
        while let Some(part) = ahead.pop() {
            steps += 1;
            match part {
                b"" | b"." => continue,
                b".." => {
                    if let Some((part, _)) = way.pop() {
                        length -= part.len() + 1;
                    }
                    continue;
                }
                _ => {}
            }
            let parent = way.last().map_or(Some(ROOT), |(_, node)| *node);
            let found = parent.and_then(|parent| self.nodes.child(parent, part));
            if let Some(target) = found.and_then(|found| self.symlink(found)) {
                if self.profile == Profile::Archive {
                    return Err(format!("its parent {:?} is a symbolic link", name::shown(part)).into());
                }
                symlinks += 1;
                if target.starts_with(b"/") {
                    way.clear();
                    length = 0;
                }
                ahead.extend(target.split(|byte| *byte == b'/').rev());
            } else {
                length += part.len() + 1;
                way.push((part, found));
            }
            if symlinks > SYMLINK_LIMIT || steps > STEP_LIMIT {
                return Err("its parent leads through too many symbolic links".into());
            }
            if way.len() > DEPTH_LIMIT || length > name::LIMIT {
                return Err("its parent leads too deep".into());
            }
        }
        Ok(way)
    }

    fn walk_in<E>(
        &self,
        node: u32,
        path: &mut Name,
        visit: &mut dyn FnMut(Visit<'_, 'a>) -> Result<(), E>,
    ) -> Result<(), E> {
        match self.nodes.content(node) {
            Content::Dropped | Content::Gone => Ok(()),
            Content::Leaf(at) => visit(Visit::Leaf { path, at }),
            Content::Directory(directory) => {
                let metadata = directory.described.map(|at| self.entry(at).metadata);
                visit(Visit::Enter { path, metadata })?;
                for child in self.nodes.children(node) {
                    let above = path.enter(self.nodes.part(child));
                    self.walk_in(child, path, visit)?;
                    path.leave(above);
                }
                visit(Visit::Leave)
            }
        }
    }
}

fn hide(nodes: &mut Nodes<'_>, node: u32, layer: u32) -> bool {
    if nodes.touched(node) != layer {
        return true;
    }
    clear(nodes, node, layer);
    false
}

fn clear(nodes: &mut Nodes<'_>, node: u32, layer: u32) {
    if nodes.begin_clearing(node, layer) {
        nodes.retain(node, |nodes, child| !hide(nodes, child, layer));
    }
}

/// Whether something is left.
fn retain_in<V: Copy>(
    nodes: &mut Nodes<'_>,
    node: u32,
    path: &mut Name,
    above: V,
    judge: &mut dyn FnMut(&Name, V, bool) -> (V, bool),
) -> bool {
    let mut any = false;
    nodes.retain(node, |nodes, child| {
        if nodes.content(child) == Content::Dropped {
            return false;
        }
        let length = path.enter(nodes.part(child));
        let (here, wanted) = judge(path, above, !nodes.is_directory(child));
        let kept = retain_in(nodes, child, path, here, judge) || wanted;
        path.leave(length);
        any |= kept;
        kept
    });
    any
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layer::checksum::Checksum;
    use crate::layer::index::Place;

    fn entry(name: &str, kind: EntryKind) -> Entry {
        let name = Name::parse(name.as_bytes()).expect("safe");
        Entry { name, kind, metadata: EntryMetadata::default() }
    }

    fn file(name: &str) -> Entry {
        entry(name, EntryKind::File { size: 0, checksum: Checksum::of(b""), place: Place::Named })
    }

    fn link(name: &str, target: &str) -> Entry {
        entry(name, EntryKind::Symlink { target: target.into(), place: Place::Named })
    }

    /// The names of the leaves of a tree of these layers.
    fn leaves(layers: &[Vec<Entry>]) -> Vec<String> {
        let layers: Vec<Entries> = layers.iter().map(|layer| Entries::of(layer).expect("memory")).collect();
        let mut merge = Merge::new(Profile::Image);
        for layer in &layers {
            merge.apply(layer, None).expect("applied");
        }
        let mut found = Vec::new();
        let walked: Result<(), ()> = merge.walk(&mut |visit| {
            if let Visit::Leaf { path, .. } = visit {
                found.push(path.to_string());
            }
            Ok(())
        });
        walked.expect("no error");
        found
    }

    #[test]
    fn a_parent_is_looked_up_again_once_it_may_be_another() {
        // The directory becomes a link, the link a directory, and what is on the way to the parent as well.
        let layer = vec![file("a/x"), link("a", "b"), file("a/y"), file("a/z")];
        assert_eq!(leaves(&[layer]), ["a", "b/y", "b/z"]);
        let layer = vec![link("a", "b"), file("a/x"), entry("a", EntryKind::Directory), file("a/y")];
        assert_eq!(leaves(&[layer]), ["a/y", "b/x"]);
        let layer = vec![file("a/b/c/x"), link("a/b", "/d"), file("a/b/c/y")];
        assert_eq!(leaves(&[layer]), ["a/b", "d/c/y"]);
        // What a layer above hides is made anew there, and what it has itself stays.
        let below = vec![file("a/b/x"), file("c/x")];
        let hide = |name| entry(name, EntryKind::Whiteout);
        let above = vec![file("a/b/y"), hide("a/b"), file("a/b/z"), hide("c"), file("c/y")];
        assert_eq!(leaves(&[below.clone(), above]), ["a/b/y", "a/b/z", "c/y"]);
        let above = vec![file("a/b/y"), entry("a", EntryKind::Opaque), file("a/b/z")];
        assert_eq!(leaves(&[below.clone(), above]), ["a/b/y", "a/b/z", "c/x"]);
        // The last parent of one layer is none of the next one: it has to be touched by that as well.
        let above = vec![file("c/y"), hide("c"), file("c/z")];
        assert_eq!(leaves(&[below, above]), ["a/b/x", "c/y", "c/z"]);
    }
    #[test]
    fn regression_a_bound_of_memory_holds_whatever_an_archive_does() {
        // Each time the directory has become a file, all below it is made anew.
        let deep = "d/".to_owned() + &"1/".repeat(120);
        let layer: Vec<Entry> = (0..100)
            .flat_map(|_| [file(&format!("{deep}y")), file("d"), entry("d", EntryKind::Directory)])
            .collect();
        let layer = Entries::of(&layer).expect("memory");
        let needed = layer.memory() + 100 * 121 * NODE_MEMORY as u64;
        let apply = |memory| Merge::new(Profile::Image).within(memory).apply(&layer, None);
        assert_eq!(apply(needed / 2), Err(Error::Memory(needed / 2)));
        assert_eq!(apply(2 * needed), Ok(()));
    }

    #[test]
    fn parents_of_many_steps_are_counted_as_they_are_written() {
        let steps = |count: usize| {
            let layer = vec![link("a", &("./".repeat(count) + "b")), file("a/x")];
            let layer = Entries::of(&layer).expect("memory");
            Merge::new(Profile::Image).apply(&layer, None).is_ok()
        };
        // One for the link, and one for what it leads to.
        assert_eq!((steps(STEP_LIMIT - 2), steps(STEP_LIMIT - 1)), (true, false));
    }
}
