//! The files and directories of a merge. Each takes the same memory, however an archive arranges them: one table finds
//! all of them by the directory that they are in, and a directory has its children as a list through them.

use std::hash::{BuildHasher as _, RandomState};

use hashbrown::HashTable;

use crate::layer::entries::At;
use crate::layer::index::NODE_MEMORY;

/// Number of the root.
pub(in crate::layer) const ROOT: u32 = 0;

/// All of them, by their numbers. A number is never given to another.
#[derive(Debug)]
pub(in crate::layer) struct Nodes<'a> {
    /// In pieces of [`PIECE`]: what is there is never moved, which would take twice the memory.
    pieces: Vec<Vec<Node<'a>>>,
    /// All that can be looked up. What is below something that was removed stays in it, and nothing leads there.
    names: HashTable<u32>,
    hasher: RandomState,
}

/// A file or directory.
#[derive(Debug)]
struct Node<'a> {
    part: &'a [u8],
    parent: u32,
    /// The next child of the same directory.
    next: u32,
    /// The layer that made it.
    made: u32,
    /// The last layer that had something to do with it.
    touched: u32,
    content: Content,
}

/// What a node is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::layer) enum Content {
    Directory(Directory),
    /// A file or symlink.
    Leaf(At),
    /// A device or the like, and what is linked to it.
    Dropped,
    /// It was removed.
    Gone,
}

/// What is known of a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::layer) struct Directory {
    /// The first of its children, of which some may be gone.
    first: u32,
    /// The entry that describes it.
    pub described: Option<At>,
    /// The last layer that hid everything older here; doing it again would find nothing.
    cleared: u32,
}

/// The end of a list.
const NONE: u32 = u32::MAX;
const PIECE: usize = 4096;
/// While the table grows there are two: one at least 7/16 full, the other half as large. Children are sorted in a list of their own.
const NODE: usize = size_of::<Node<'_>>() + (size_of::<u32>() + 1) * 3 / 2 * 16 / 7 + size_of::<u32>();
const _: () = assert!(NODE <= NODE_MEMORY);

impl Content {
    /// A directory with nothing in it.
    pub(in crate::layer) const EMPTY: Self =
        Self::Directory(Directory { first: NONE, described: None, cleared: 0 });
}

impl<'a> Nodes<'a> {
    /// The root alone.
    pub(in crate::layer) fn new() -> Self {
        let mut nodes = Self { pieces: Vec::new(), names: HashTable::new(), hasher: RandomState::new() };
        nodes.push(Node {
            part: b"",
            parent: ROOT,
            next: NONE,
            made: 0,
            touched: 0,
            content: Content::EMPTY,
        });
        nodes
    }

    /// How many there were ever.
    pub(in crate::layer) fn len(&self) -> usize {
        self.pieces.last().map_or(0, |last| (self.pieces.len() - 1) * PIECE + last.len())
    }

    pub(in crate::layer) fn content(&self, node: u32) -> Content {
        self.node(node).content
    }

    pub(in crate::layer) fn is_directory(&self, node: u32) -> bool {
        matches!(self.content(node), Content::Directory(_))
    }

    /// Its name in its directory.
    pub(in crate::layer) fn part(&self, node: u32) -> &'a [u8] {
        self.node(node).part
    }

    /// The layer that made it.
    pub(in crate::layer) fn made(&self, node: u32) -> u32 {
        self.node(node).made
    }

    /// The last layer that had something to do with it.
    pub(in crate::layer) fn touched(&self, node: u32) -> u32 {
        self.node(node).touched
    }

    pub(in crate::layer) fn touch(&mut self, node: u32, layer: u32) {
        self.node_mut(node).touched = layer;
    }

    /// What is at a name in a directory.
    pub(in crate::layer) fn child(&self, directory: u32, part: &[u8]) -> Option<u32> {
        let is = |node: &u32| {
            let node = self.node(*node);
            node.parent == directory && node.part == part
        };
        self.names.find(self.hash(directory, part), is).copied()
    }

    /// Puts what a layer has at a name in a directory, where nothing is.
    pub(in crate::layer) fn insert(
        &mut self,
        directory: u32,
        part: &'a [u8],
        layer: u32,
        content: Content,
    ) -> u32 {
        let node = Node { part, parent: directory, next: NONE, made: layer, touched: layer, content };
        let number = self.push(node);
        let hash = self.hash(directory, part);
        let Self { pieces, names, hasher } = self;
        names.insert_unique(hash, number, |other| {
            let other = &pieces[*other as usize / PIECE][*other as usize % PIECE];
            hasher.hash_one((other.parent, other.part))
        });
        if let Content::Directory(above) = &mut self.node_mut(directory).content {
            let next = std::mem::replace(&mut above.first, number);
            self.node_mut(number).next = next;
        }
        number
    }

    /// Puts what a layer has in the place of another.
    pub(in crate::layer) fn replace(&mut self, number: u32, layer: u32, content: Content) -> u32 {
        let node = self.node_mut(number);
        if let Content::Directory(_) = node.content {
            // What was in it would be found under its number.
            let (directory, part) = (node.parent, node.part);
            self.remove(number);
            return self.insert(directory, part, layer, content);
        }
        (node.made, node.touched, node.content) = (layer, layer, content);
        number
    }

    /// Removes it, with all that is in it. It stays in the list of its directory, until that is [swept](Self::retain).
    pub(in crate::layer) fn remove(&mut self, number: u32) {
        let node = self.node(number);
        let hash = self.hash(node.parent, node.part);
        if let Ok(found) = self.names.find_entry(hash, |other| *other == number) {
            found.remove();
        }
        self.node_mut(number).content = Content::Gone;
    }

    /// The children of a directory, by their names.
    pub(in crate::layer) fn children(&self, directory: u32) -> Vec<u32> {
        let mut children = Vec::new();
        if let Content::Directory(Directory { first, .. }) = self.content(directory) {
            let mut next = first;
            while next != NONE {
                let node = self.node(next);
                if node.content != Content::Gone {
                    children.push(next);
                }
                next = node.next;
            }
        }
        children.sort_unstable_by_key(|child| self.part(*child));
        children
    }

    /// Keeps those children of a directory that are wanted, and takes those out of its list that are gone.
    pub(in crate::layer) fn retain(
        &mut self,
        directory: u32,
        mut is_wanted: impl FnMut(&mut Self, u32) -> bool,
    ) {
        let mut children = self.children(directory);
        children.retain(|child| {
            let wanted = is_wanted(self, *child);
            if !wanted {
                self.remove(*child);
            }
            wanted
        });
        let mut first = NONE;
        for child in children.into_iter().rev() {
            self.node_mut(child).next = first;
            first = child;
        }
        if let Content::Directory(directory) = &mut self.node_mut(directory).content {
            directory.first = first;
        }
    }

    /// Says that a layer hides what is older in a directory; false when it did so before, or when it is none.
    pub(in crate::layer) fn begin_clearing(&mut self, node: u32, layer: u32) -> bool {
        let Content::Directory(directory) = &mut self.node_mut(node).content else { return false };
        // Layers count from 0, and nothing is below the first.
        std::mem::replace(&mut directory.cleared, layer) != layer
    }

    /// Says what describes a directory.
    pub(in crate::layer) fn describe(&mut self, node: u32, at: At) {
        self.touch(node, at.layer);
        if let Content::Directory(directory) = &mut self.node_mut(node).content {
            directory.described = Some(at);
        }
    }

    fn push(&mut self, node: Node<'a>) -> u32 {
        // A merge ends long before numbers do, at `ENTRY_LIMIT`.
        let number = u32::try_from(self.len()).unwrap_or(NONE);
        if self.pieces.last().is_none_or(|last| last.len() == PIECE) {
            self.pieces.push(Vec::with_capacity(PIECE));
        }
        if let Some(last) = self.pieces.last_mut() {
            last.push(node);
        }
        number
    }

    fn node(&self, number: u32) -> &Node<'a> {
        &self.pieces[number as usize / PIECE][number as usize % PIECE]
    }

    fn node_mut(&mut self, number: u32) -> &mut Node<'a> {
        &mut self.pieces[number as usize / PIECE][number as usize % PIECE]
    }

    fn hash(&self, parent: u32, part: &[u8]) -> u64 {
        self.hasher.hash_one((parent, part))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(nodes: &Nodes<'_>, directory: u32) -> Vec<String> {
        let part = |child: &u32| String::from_utf8_lossy(nodes.part(*child)).into_owned();
        nodes.children(directory).iter().map(part).collect()
    }

    #[test]
    fn what_is_gone_is_not_found() {
        let leaf = |entry| Content::Leaf(At { layer: 0, entry });
        let mut nodes = Nodes::new();
        let directory = nodes.insert(ROOT, b"d", 0, Content::EMPTY);
        for (entry, part) in (0..).zip([&b"c"[..], b"a", b"b"]) {
            nodes.insert(directory, part, 0, leaf(entry));
        }
        assert_eq!(names(&nodes, directory), ["a", "b", "c"]);
        let b = nodes.child(directory, b"b").expect("it is there");
        nodes.remove(b);
        assert_eq!(nodes.child(directory, b"b"), None);
        assert_eq!(names(&nodes, directory), ["a", "c"]);
        // What takes its name is another.
        assert_ne!(nodes.insert(directory, b"b", 1, leaf(7)), b);
        nodes.retain(directory, |nodes, child| nodes.part(child) != b"a");
        assert_eq!(names(&nodes, directory), ["b", "c"]);
        // A directory that takes the place of another has nothing of it, and a file keeps its number.
        let c = nodes.child(directory, b"c").expect("it is there");
        assert_eq!(nodes.replace(c, 1, leaf(8)), c);
        assert_eq!((nodes.content(c), nodes.made(c), nodes.touched(c)), (leaf(8), 1, 1));
        let file = nodes.replace(directory, 1, leaf(9));
        assert_eq!(nodes.child(ROOT, b"d"), Some(file));
        let again = nodes.replace(file, 2, Content::EMPTY);
        assert_eq!((names(&nodes, again), nodes.child(again, b"c")), (Vec::new(), None));
        assert_eq!(names(&nodes, ROOT), ["d"]);
    }

    #[test]
    fn a_list_is_as_long_as_what_is_there_once_it_is_swept() {
        let mut nodes = Nodes::new();
        for layer in 0..20 {
            for number in 0..PIECE {
                let part: &[u8] = number.to_string().leak().as_bytes();
                nodes.insert(ROOT, part, layer, Content::Dropped);
            }
            nodes.retain(ROOT, |_, _| false);
            let Content::Directory(root) = nodes.content(ROOT) else { panic!("it is the root") };
            assert_eq!(root.first, NONE);
        }
        assert_eq!(nodes.len(), 20 * PIECE + 1);
    }
}
