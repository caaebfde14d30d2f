//! Several layers as one tree: what unpacking them one after the other gives, without doing it.
//!
//! Parents of entries and of whiteouts resolve inside the root, against what the layers before and the entries
//! before left there. An explicit directory replaces a symlink or file of its name; one that is only implied by a
//! name below it takes what is there. Whiteouts hide what lower layers have, never what their own layer has; a
//! directory that its own layer also fills keeps what the lower one said of it. Source: image-spec layer.md#applying-changesets, and how umoci reads it.

use std::collections::{BTreeMap, HashSet};

use crate::layer::format::Profile;
use crate::layer::index::ENTRY_LIMIT;
use crate::layer::index::{Entry, EntryKind, EntryMetadata};
use crate::layer::name;
use crate::layer::name::{DEPTH_LIMIT, Name};

/// A tree that layers are applied to, lowest first.
#[derive(Debug)]
pub struct Merge<'a> {
    nodes: Vec<Node>,
    layers: Vec<&'a [Entry]>,
    /// The layers that are one file each.
    files: HashSet<u32>,
    /// Whether parents may be symlinks.
    profile: Profile,
    /// The parent that was made last: mostly that of the next entry, too. Until something on the way to it may have been replaced.
    last: Option<Parent>,
}

/// A directory that a layer found or made at a path.
#[derive(Debug)]
struct Parent {
    layer: u32,
    path: Vec<u8>,
    node: u32,
}

/// Where an entry stands: in which layer, and its number there. Two names of the tree that stand for the same
/// entry are hard links of each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct At {
    /// Number of the layer, in the order they were applied.
    pub layer: u32,
    /// Number of the entry.
    pub entry: u32,
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

/// How the names of a layer become names of the tree.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rename {
    /// The directory that every name has to be in, before anything is removed.
    pub within: Name,
    /// Leading parts that are removed; what has no more is left out.
    pub strip: usize,
    /// The directory everything goes to.
    pub prefix: Name,
}

/// One step of a walk over the tree. Names are in byte order.
#[derive(Debug)]
pub enum Visit<'a> {
    /// A directory; what follows is in it, until it is left. The root comes first, with an empty name.
    Enter {
        /// Its path.
        path: &'a Name,
        /// What the archives say of it.
        metadata: Option<&'a EntryMetadata>,
    },
    /// The end of a directory.
    Leave,
    /// A file or symlink.
    Leaf {
        /// Its path.
        path: &'a Name,
        /// Its content and metadata.
        at: At,
    },
}

#[derive(Debug)]
struct Node {
    /// The layer that made it.
    made: u32,
    /// The last layer that had something to do with it.
    touched: u32,
    content: Content,
}

#[derive(Debug)]
enum Content {
    Directory {
        children: BTreeMap<Box<[u8]>, u32>,
        /// The entry that describes it.
        described: Option<At>,
        /// The last layer that hid everything older here; doing it again would find nothing.
        cleared: u32,
    },
    Leaf(At),
    /// A device or the like, and what is linked to it.
    Dropped,
}

const ROOT: u32 = 0;
/// Symlinks on the way to one parent. As in the kernel, `man 7 path_resolution`.
const SYMLINK_LIMIT: usize = 40;
/// Parts looked at on the way to one parent.
const STEP_LIMIT: usize = 512;

type Rule = std::borrow::Cow<'static, str>;
/// Names from the root to somewhere, with what is there.
type Way = Vec<(Box<[u8]>, Option<u32>)>;

impl Node {
    fn directory(layer: u32) -> Self {
        Self::new(layer, Content::Directory { children: BTreeMap::new(), described: None, cleared: 0 })
    }

    fn new(layer: u32, content: Content) -> Self {
        Self { made: layer, touched: layer, content }
    }
}

impl<'a> Merge<'a> {
    /// An empty tree.
    pub fn new(profile: Profile) -> Self {
        Self {
            nodes: vec![Node::directory(0)],
            layers: Vec::new(),
            files: HashSet::new(),
            profile,
            last: None,
        }
    }

    /// Applies a layer that is one file.
    ///
    /// # Errors
    /// As [`Merge::apply`].
    pub fn add_file(&mut self, file: &'a [Entry]) -> Result<(), Refused> {
        self.files.insert(u32::try_from(self.layers.len()).unwrap_or(u32::MAX));
        self.apply(file, &Rename::default())
    }

    /// Applies the entries of the next layer.
    ///
    /// # Errors
    /// [`Refused`] when one of them cannot be; the tree is then good for nothing.
    pub fn apply(&mut self, entries: &'a [Entry], rename: &Rename) -> Result<(), Refused> {
        let layer = u32::try_from(self.layers.len()).unwrap_or(u32::MAX);
        self.layers.push(entries);
        for (number, entry) in (0_u32..).zip(entries) {
            let renamed;
            let name = if *rename == Rename::default() {
                &entry.name
            } else {
                match rename.apply(&entry.name) {
                    Ok(Some(name)) => renamed = name,
                    Ok(None) => continue,
                    Err(rule) => return Err(Refused { name: entry.name.clone(), rule }),
                }
                &renamed
            };
            let at = At { layer, entry: number };
            self.add(name, &entry.kind, at, rename)
                .map_err(|rule| Refused { name: entry.name.clone(), rule: rule.into_owned() })?;
            if self.nodes.len() > ENTRY_LIMIT {
                let rule = format!("the tree has more than {ENTRY_LIMIT} files and directories");
                return Err(Refused { name: entry.name.clone(), rule });
            }
        }
        if self.profile == Profile::Image {
            self.remove(ROOT, name::AUFS_LINKS);
        }
        Ok(())
    }

    /// The entry at `at`.
    pub fn entry(&self, at: At) -> &'a Entry {
        &self.layers[at.layer as usize][at.entry as usize]
    }

    /// Keeps what `look` wants, and the directories it is in. Of each file, symlink and directory, from the root down,
    /// `look` says whether it is wanted, and what those below it are looked at with.
    pub fn retain<V: Copy>(&mut self, start: V, judge: &mut dyn FnMut(&Name, V, bool) -> (V, bool)) {
        self.last = None;
        self.retain_in(ROOT, &Name::default(), start, judge);
    }

    /// Walks over the tree.
    ///
    /// # Errors
    /// The first of `visit`, which ends the walk.
    pub fn walk<E>(&self, visit: &mut dyn FnMut(Visit<'_>) -> Result<(), E>) -> Result<(), E> {
        self.walk_in(ROOT, &Name::default(), visit)
    }

    fn add(&mut self, name: &Name, kind: &EntryKind, at: At, rename: &Rename) -> Result<(), Rule> {
        let layer = at.layer;
        let Some((parent, part)) = name.split() else {
            return match kind {
                EntryKind::Directory => {
                    self.describe(ROOT, at);
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
                let there = self.child(parent, part).filter(|there| self.is_directory(*there));
                let directory = match there {
                    Some(there) => there,
                    None => self.put(parent, part, Node::directory(layer))?,
                };
                self.describe(directory, at);
            }
            EntryKind::File { .. } | EntryKind::Symlink { .. } => {
                let parent = self.make_parent(parent, layer)?;
                self.put(parent, part, Node::new(layer, Content::Leaf(at)))?;
            }
            EntryKind::Dropped => {
                let parent = self.make_parent(parent, layer)?;
                self.put(parent, part, Node::new(layer, Content::Dropped))?;
            }
            EntryKind::HardLink { target } => {
                let (content, way) = self.link_target(target, rename)?;
                let parent = self.make_parent(parent, layer)?;
                let there = self.child(parent, part);
                // Packed from a list that has a file twice, it is a link to itself.
                if self.profile == Profile::Archive && there.is_some() && there == way.last().copied() {
                    return Ok(());
                }
                if there.is_some_and(|there| way.contains(&there)) {
                    return Err(format!("it is a hard link to {target:?}, and would take its place").into());
                }
                self.put(parent, part, Node::new(layer, content))?;
            }
            EntryKind::Whiteout => {
                if let Some(parent) = self.find_directory(parent)?
                    && let Some(hidden) = self.child(parent, part)
                    && self.hide(hidden, layer)
                {
                    self.remove(parent, part);
                }
            }
            EntryKind::Opaque => {
                if let Some(directory) = self.find_directory(name.as_bytes())? {
                    self.clear(directory, layer);
                }
            }
        }
        Ok(())
    }

    /// What a hard link leads to, and the nodes on the way there.
    fn link_target(&self, target: &Name, rename: &Rename) -> Result<(Content, Vec<u32>), Rule> {
        let renamed =
            if *rename == Rename::default() { Some(target.clone()) } else { rename.apply(target)? };
        let missing = || Rule::from(format!("it is a hard link to {target:?}, which is not there"));
        let renamed = renamed.ok_or_else(missing)?;
        let (parent, part) = renamed.split().ok_or("it is a hard link to the root")?;
        let way = self.resolve(parent)?;
        let parent = way.last().map_or(Some(ROOT), |(_, node)| *node);
        let found = parent.and_then(|parent| self.child(parent, part));
        let way = way.into_iter().filter_map(|(_, node)| node).chain(found).collect();
        match found.map(|found| &self.nodes[found as usize].content) {
            Some(Content::Leaf(at)) => Ok((Content::Leaf(*at), way)),
            Some(Content::Dropped) => Ok((Content::Dropped, way)),
            Some(Content::Directory { .. }) => {
                Err(format!("it is a hard link to {target:?}, which is a directory").into())
            }
            None => Err(missing()),
        }
    }

    /// Hides what lower layers have of a node; true when nothing is left of it.
    fn hide(&mut self, node: u32, layer: u32) -> bool {
        if self.nodes[node as usize].touched != layer {
            return true;
        }
        self.clear(node, layer);
        false
    }

    /// Hides what lower layers have in a directory.
    fn clear(&mut self, node: u32, layer: u32) {
        let Content::Directory { children, cleared, .. } = &mut self.nodes[node as usize].content else {
            return;
        };
        // Layers count from 0, and nothing is below the first.
        if *cleared == layer {
            return;
        }
        *cleared = layer;
        self.last = None;
        let mut children = std::mem::take(children);
        children.retain(|_, child| !self.hide(*child, layer));
        if let Content::Directory { children: place, .. } = &mut self.nodes[node as usize].content {
            *place = children;
        }
    }

    fn describe(&mut self, node: u32, at: At) {
        self.nodes[node as usize].touched = at.layer;
        if let Content::Directory { described, .. } = &mut self.nodes[node as usize].content {
            *described = Some(at);
        }
    }

    fn put(&mut self, parent: u32, part: &[u8], node: Node) -> Result<u32, Rule> {
        if let Some(there) = self.child(parent, part) {
            self.check_replacing(&self.nodes[there as usize], &node)?;
            // A file was on the way to nothing.
            if self.is_directory(there) || self.symlink(there).is_some() {
                self.last = None;
            }
            self.nodes[there as usize] = node;
            return Ok(there);
        }
        let number = u32::try_from(self.nodes.len()).unwrap_or(u32::MAX);
        self.nodes.push(node);
        if let Content::Directory { children, .. } = &mut self.nodes[parent as usize].content {
            children.insert(part.into(), number);
        }
        Ok(number)
    }

    /// In an artifact a later archive may have a newer version of a file. Anything else of two layers that has the same
    /// name is a mistake, and would go unseen.
    fn check_replacing(&self, there: &Node, node: &Node) -> Result<(), Rule> {
        if self.profile == Profile::Image || there.made == node.made {
            return Ok(());
        }
        let is_directory = |node: &Node| matches!(node.content, Content::Directory { .. });
        if is_directory(there) {
            return Err("another layer has a directory of this name".into());
        }
        if is_directory(node) || self.files.contains(&there.made) || self.files.contains(&node.made) {
            return Err("another layer has a file of this name".into());
        }
        Ok(())
    }

    fn remove(&mut self, parent: u32, part: &[u8]) {
        self.last = None;
        if let Content::Directory { children, .. } = &mut self.nodes[parent as usize].content {
            children.remove(part);
        }
    }

    fn child(&self, parent: u32, part: &[u8]) -> Option<u32> {
        match &self.nodes[parent as usize].content {
            Content::Directory { children, .. } => children.get(part).copied(),
            _ => None,
        }
    }

    fn is_directory(&self, node: u32) -> bool {
        matches!(self.nodes[node as usize].content, Content::Directory { .. })
    }

    fn symlink(&self, node: u32) -> Option<&'a [u8]> {
        match self.nodes[node as usize].content {
            Content::Leaf(at) => match &self.entry(at).kind {
                EntryKind::Symlink { target, .. } => Some(target),
                _ => None,
            },
            _ => None,
        }
    }

    /// The directory at `path`, which is created where it is missing, and touched with all above it.
    fn make_parent(&mut self, path: &[u8], layer: u32) -> Result<u32, Rule> {
        if let Some(last) = self.last.as_ref().filter(|last| last.layer == layer && last.path == path) {
            return Ok(last.node);
        }
        let way = self.resolve(path)?;
        let mut node = ROOT;
        self.nodes[ROOT as usize].touched = layer;
        for (part, known) in way {
            node = match known {
                Some(known) if self.is_directory(known) => known,
                Some(_) => {
                    return Err(format!("its parent {:?} is not a directory", name::shown(&part)).into());
                }
                None => self.put(node, &part, Node::directory(layer))?,
            };
            self.nodes[node as usize].touched = layer;
        }
        self.last = Some(Parent { layer, path: path.to_vec(), node });
        Ok(node)
    }

    /// The directory at `path`, if there is one.
    fn find_directory(&self, path: &[u8]) -> Result<Option<u32>, Rule> {
        let way = self.resolve(path)?;
        let node = way.last().map_or(Some(ROOT), |(_, node)| *node);
        Ok(node.filter(|node| self.is_directory(*node)))
    }

    /// The way from the root to `path`, without symlinks. What is not there is taken as it is written, and `..`
    /// at the root stays there: as `RESOLVE_IN_ROOT` of `man 2 openat2` does, and securejoin of the Go tools.
    fn resolve(&self, path: &[u8]) -> Result<Way, Rule> {
        let mut way: Way = Vec::new();
        let mut ahead: Vec<&[u8]> = path.split(|byte| *byte == b'/').rev().collect();
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
            let found = parent.and_then(|parent| self.child(parent, part));
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
                way.push((part.into(), found));
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

    /// Whether something is left.
    fn retain_in<V: Copy>(
        &mut self,
        node: u32,
        path: &Name,
        above: V,
        judge: &mut dyn FnMut(&Name, V, bool) -> (V, bool),
    ) -> bool {
        let Content::Directory { children, .. } = &mut self.nodes[node as usize].content else {
            return false;
        };
        let mut kept = std::mem::take(children);
        kept.retain(|part, child| {
            if matches!(self.nodes[*child as usize].content, Content::Dropped) {
                return false;
            }
            let path = Name::below(path.as_bytes(), part);
            let (here, wanted) = judge(&path, above, !self.is_directory(*child));
            self.retain_in(*child, &path, here, judge) || wanted
        });
        let any = !kept.is_empty();
        if let Content::Directory { children, .. } = &mut self.nodes[node as usize].content {
            *children = kept;
        }
        any
    }

    fn walk_in<E>(
        &self,
        node: u32,
        path: &Name,
        visit: &mut dyn FnMut(Visit<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        match &self.nodes[node as usize].content {
            Content::Dropped => Ok(()),
            Content::Leaf(at) => visit(Visit::Leaf { path, at: *at }),
            Content::Directory { children, described, .. } => {
                let metadata = described.map(|at| &self.entry(at).metadata);
                visit(Visit::Enter { path, metadata })?;
                for (part, child) in children {
                    self.walk_in(*child, &Name::below(path.as_bytes(), part), visit)?;
                }
                visit(Visit::Leave)
            }
        }
    }
}

impl Rename {
    /// The name in the tree; `None` when it is left out.
    fn apply(&self, name: &Name) -> Result<Option<Name>, String> {
        if !name.is_within(&self.within) {
            return Err(format!("it is not in {:?}, which the layer's title names", self.within));
        }
        if name.is_root() {
            // What an archive says of its own root is not said of a directory further down.
            return Ok((self.strip == 0).then(|| self.prefix.clone()));
        }
        let below = |stripped: Name| Name::below(self.prefix.as_bytes(), stripped.as_bytes());
        Ok(name.strip(self.strip).map(below))
    }
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
        let mut merge = Merge::new(Profile::Image);
        for layer in layers {
            merge.apply(layer, &Rename::default()).expect("applied");
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
}
