//! Which content trees refer to.

use std::collections::HashSet;

use crate::host::limits;
use crate::store::content::trees::Tree;
use crate::store::error::Error;
use crate::store::key::{Name, TreeKey};
use crate::store::open::Store;

/// Names of content that are in memory at a time. Where trees refer to more, it is looked at in several passes.
const AT_A_TIME: u64 = 128 * 1024;
/// Bytes of a set of so many names, which may be half empty.
const MEMORY: u64 = 4 * AT_A_TIME * size_of::<Name>() as u64;
const _: () = assert!(MEMORY <= limits::COLLECT_BYTES / 2);

/// Trees that go.
pub(in crate::store) type Chosen = HashSet<TreeKey>;

/// What the trees of the store refer to, or the part of it that a pass looks at.
#[derive(Debug)]
pub(in crate::store) struct References {
    names: HashSet<Name>,
    pass: Pass,
    /// [`changes`](crate::store::content::trees::Trees::changes) when it was read.
    changes: u64,
}

/// A part of all content, by its name.
#[derive(Debug, Clone, Copy)]
pub(in crate::store) struct Pass {
    number: u64,
    of: u64,
}

impl Pass {
    /// The passes that it takes to look at all.
    pub(in crate::store) fn all(store: &Store) -> Result<impl Iterator<Item = Self> + use<>, Error> {
        let mut count = 0_u64;
        store.trees.each(&mut |tree| {
            count += names(&tree).count() as u64;
            Ok(())
        })?;
        let of = count / AT_A_TIME + 1;
        Ok((0..of).map(move |number| Self { number, of }))
    }

    /// Whether it is the first of them.
    pub(in crate::store) fn is_first(self) -> bool {
        self.number == 0
    }

    /// Whether this pass looks at the content with this name.
    pub(in crate::store) fn has(self, name: Name) -> bool {
        name.is_in_part(self.number, self.of)
    }
}

impl References {
    /// What all trees refer to but those that are `gone`.
    pub(in crate::store) fn read(store: &Store, pass: Pass, gone: &Chosen) -> Result<Self, Error> {
        let changes = store.trees.changes();
        let mut found = HashSet::new();
        store.trees.each(&mut |tree| {
            if !gone.contains(&tree.key) {
                found.extend(names(&tree).filter(|name| pass.has(*name)));
            }
            Ok(())
        })?;
        Ok(Self { names: found, pass, changes })
    }

    /// The same as it is now, if trees were made since it was read.
    pub(in crate::store) fn renew(&mut self, store: &Store, gone: &Chosen) -> Result<(), Error> {
        if self.changes != store.trees.changes() {
            *self = Self::read(store, self.pass, gone)?;
        }
        Ok(())
    }

    /// Whether a tree refers to it.
    pub(in crate::store) fn has(&self, name: Name) -> bool {
        self.names.contains(&name)
    }
}

/// What a tree refers to: the layers and blobs it is made of, and the documents that lead to it.
pub(in crate::store) fn names(tree: &Tree) -> impl Iterator<Item = Name> {
    let blobs = tree.image.blobs.iter().flatten().chain(&tree.usage.documents);
    let contents = blobs.chain(std::iter::once(&tree.image.manifest)).map(Name::content);
    contents.chain(tree.image.layers.iter().map(Name::layer))
}
