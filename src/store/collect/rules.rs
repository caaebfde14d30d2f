//! How a collection is done.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use crate::store::collect::report::Report;
use crate::store::content::trees::Tree;
use crate::store::error::Error;
use crate::store::key::TreeKey;
use crate::store::space::room::Missing;

/// The directories of the store that are mounted somewhere, each as `trees/<name>` or `layers/<name>`.
pub type Mounted = HashSet<String>;

/// How a collection is done.
#[derive(Clone, Copy)]
pub struct Rules<'a> {
    /// Reads what is mounted now.
    pub mounted: &'a dyn Fn() -> Result<Mounted, Error>,
    /// Which trees may go at all.
    pub filter: &'a Filter<'a>,
    /// What is kept.
    pub pinned: &'a Pinned,
    /// What was in use within this time stays: another mount namespace may have a mount that this process no longer sees, and
    /// who has just failed to pull something tries again.
    pub min_age: Duration,
    /// Nothing is taken away.
    pub is_dry_run: bool,
    /// Ends it early when it becomes true.
    pub stop: &'a AtomicBool,
}

/// What the configuration keeps.
#[derive(Debug, Clone, Default)]
pub struct Pinned {
    /// References that were not pulled yet: what was pulled as one of them before is kept until then.
    pub references: BTreeSet<String>,
    /// Trees of those that were, and the references.
    pub trees: BTreeMap<TreeKey, String>,
}

impl Pinned {
    /// The reference for whose sake `tree` is kept, if it is.
    pub(in crate::store) fn reference<'a>(&'a self, tree: &'a Tree) -> Option<&'a String> {
        let known = || tree.usage.references.iter().find(|reference| self.references.contains(*reference));
        self.trees.get(&tree.key).or_else(known)
    }
}

/// What a collection is for.
#[derive(Clone, Copy)]
pub enum Wanted<'a> {
    /// All that may go.
    Everything,
    /// So much as this says is still missing; what was begun a moment ago goes only for this.
    Room(&'a Missing<'a>),
    /// So much as this says is too much.
    Excess(&'a Missing<'a>),
    /// So much as this says is too much for who has the trees that may go: nothing of others goes for it.
    Quota(&'a Missing<'a>),
    /// All that may go but so many trees, the ones that were used last.
    AllBut(usize),
    /// The trees that somebody names, however lately they were used, and what only they need.
    Named,
}

/// Which trees may go.
pub type Filter<'a> = dyn Fn(&Tree) -> bool + 'a;

/// Collects in the store that it was made for; says what went and what stays of what the filter names.
pub struct Keeper(Box<Collect>);

type Collect = dyn Fn(&Wanted<'_>, &Filter<'_>) -> Result<Report, Error> + Send + Sync;

impl Keeper {
    /// One that does `collect`.
    pub fn new(
        collect: impl Fn(&Wanted<'_>, &Filter<'_>) -> Result<Report, Error> + Send + Sync + 'static,
    ) -> Self {
        Self(Box::new(collect))
    }

    /// Collects.
    ///
    /// # Errors
    /// Those of a collection.
    pub fn collect(&self, wanted: &Wanted<'_>, filter: &Filter<'_>) -> Result<Report, Error> {
        (self.0)(wanted, filter)
    }
}

impl std::fmt::Debug for Keeper {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("Keeper")
    }
}
