//! One collection, from the first look to the last deletion.

use std::collections::HashSet;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::store::collect::in_use::{InUse, age};
use crate::store::collect::past::Past;
use crate::store::collect::references::Chosen;
use crate::store::collect::report::{Kind, Reason, Report};
use crate::store::collect::rules::{Rules, Wanted};
use crate::store::collect::trees::{self, Candidate};
use crate::store::error::{Error, io};
use crate::store::key::Name;
use crate::store::open::Store;
use crate::store::space::amount::Amount;

/// Times that trees are chosen and deleted. Each time frees something, or is the last.
const ROUNDS: usize = 64;

/// A collection that runs.
pub(in crate::store) struct Collection<'a> {
    pub(super) store: &'a Store,
    pub(super) is_dry_run: bool,
    pub(super) chosen: Chosen,
    pub(super) rules: &'a Rules<'a>,
    pub(super) wanted: &'a Wanted<'a>,
    /// Content that may go at all, where not all of it may.
    pub(super) only: Option<HashSet<Name>>,
    report: Report,
}

/// Collects what is wanted and may go. Others wait meanwhile, and find what is left to do.
///
/// # Errors
/// [`Error::Io`], [`Error::Unusable`] when the mount table cannot be read: then nothing goes.
pub fn run(store: &Store, rules: &Rules<'_>, wanted: &Wanted<'_>) -> Result<Report, Error> {
    let mut past = store.collections.lock().unwrap_or_else(PoisonError::into_inner);
    let collection = Collection {
        store,
        is_dry_run: rules.is_dry_run,
        chosen: Chosen::new(),
        rules,
        wanted,
        only: None,
        report: Report::default(),
    };
    let started = Instant::now();
    let report = collection.run(&mut past)?;
    if report.gone > 0 && !rules.is_dry_run {
        let Amount { bytes, inodes } = report.freed;
        tracing::info!(gone = report.gone, bytes, inodes, took = ?started.elapsed(), "collected what was unused");
    }
    Ok(report)
}

impl Collection<'_> {
    fn run(mut self, past: &mut Past) -> Result<Report, Error> {
        if self.missing()?.is_nothing() {
            return Ok(self.report);
        }
        let in_use = InUse::read(self.store, (self.rules.mounted)()?)?;
        let (is_everything, is_for_room) =
            (matches!(self.wanted, Wanted::Everything), matches!(self.wanted, Wanted::Room(_)));
        if is_for_room && !self.would_help(&in_use)? {
            return Ok(self.report);
        }
        if let Wanted::AllBut(kept) = *self.wanted {
            return self.collect_trees_but(&in_use, kept);
        }
        if matches!(self.wanted, Wanted::Named) {
            return self.collect_named(&in_use);
        }
        // For the sake of one namespace nothing of others goes.
        let is_for_all = !matches!(self.wanted, Wanted::Quota(_));
        if is_for_all && (is_everything || past.is_time_for_leftovers()) {
            self.collect_leftovers()?;
        }
        // Without anything being taken away, what trees refer to that go is only seen afterwards.
        if is_for_all && !self.is_dry_run {
            self.collect_content(self.rules.min_age)?;
        }
        let missing = self.still_missing()?;
        let mut candidates = trees::candidates(self.store, &in_use, self.rules, missing, &mut self.report)?;
        for _ in 0..ROUNDS {
            let chosen = trees::enough(&mut candidates, self.still_missing()?);
            if chosen.is_empty() || self.is_stopped() {
                break;
            }
            for candidate in chosen {
                self.collect_tree(&candidate)?;
            }
            self.collect_content(self.rules.min_age)?;
        }
        trees::spared(&candidates, &mut self.report);
        if is_for_room && !self.still_missing()?.is_nothing() {
            self.collect_content(Duration::ZERO)?;
        }
        Ok(self.report)
    }

    /// All trees that may go but those that go last, which were used last. What is in them stays for others.
    fn collect_trees_but(mut self, in_use: &InUse, kept: usize) -> Result<Report, Error> {
        let mut all = trees::candidates(self.store, in_use, self.rules, Amount::ALL, &mut self.report)?;
        let kept = all.split_off(all.len().saturating_sub(kept));
        trees::spared(&kept, &mut self.report);
        for candidate in all {
            self.collect_tree(&candidate)?;
        }
        Ok(self.report)
    }

    /// The trees that the filter names, and content that no other tree needs. What else there is without a tree stays.
    fn collect_named(mut self, in_use: &InUse) -> Result<Report, Error> {
        let mut of_them = HashSet::new();
        self.store.trees.each(&mut |tree| {
            if (self.rules.filter)(&tree) {
                of_them.insert(Name::content(&tree.image.manifest));
                of_them.extend(tree.image.blobs.iter().flatten().map(Name::content));
                of_them.extend(tree.usage.documents.iter().map(Name::content));
                for key in &tree.image.layers {
                    of_them.insert(Name::layer(key));
                    let layer = self.store.layers.recorded(key)?;
                    of_them.extend(layer.map(|layer| Name::content(&layer.digest)));
                }
            }
            Ok(())
        })?;
        for candidate in trees::candidates(self.store, in_use, self.rules, Amount::ALL, &mut self.report)? {
            self.collect_tree(&candidate)?;
        }
        self.only = Some(of_them);
        self.collect_content(Duration::ZERO)?;
        Ok(self.report)
    }

    /// Whether all that may go is enough. It is no use to empty the store for what does not fit all the same.
    fn would_help(&self, in_use: &InUse) -> Result<bool, Error> {
        let missing = self.missing()?;
        let rules = Rules { is_dry_run: true, ..*self.rules };
        let mut trial = Collection {
            store: self.store,
            is_dry_run: true,
            chosen: Chosen::new(),
            rules: &rules,
            wanted: &Wanted::Everything,
            only: None,
            report: Report::default(),
        };
        let all = trees::candidates(self.store, in_use, self.rules, Amount::ALL, &mut trial.report)?;
        trial.chosen.extend(all.into_iter().map(|candidate| candidate.key));
        trial.collect_content(Duration::ZERO)?;
        let (evictable, in_use) = (trial.report.freed, trial.report.in_use);
        let helps = evictable.covers(missing);
        let Amount { bytes: needed, inodes: needed_inodes } = missing;
        tracing::info!(
            needed,
            needed_inodes,
            evictable = evictable.bytes,
            evictable_inodes = evictable.inodes,
            in_use = in_use.bytes,
            helps,
            "there is too little room for a pull"
        );
        Ok(helps)
    }

    /// Takes a tree away, if it still may go.
    fn collect_tree(&mut self, candidate: &Candidate) -> Result<(), Error> {
        let Candidate { key, only_layer, shows, takes, own, unused, .. } = candidate;
        if self.is_stopped() {
            return Ok(());
        }
        if self.is_dry_run {
            self.chosen.insert(key.clone());
            self.report.freed = self.report.freed.plus(*own);
            self.report.goes(Kind::Tree, key.as_str(), shows, *takes, Reason::UnusedFor(*unused));
            return Ok(());
        }
        let Some(claim) = self.store.holds.claim(Name::tree(key)) else {
            self.report.stays(key.as_str(), shows, *takes, Reason::Pulled);
            return Ok(());
        };
        // A lease is given while the tree is held.
        if let Some(lease) = self.store.leases.current()?.iter().find(|lease| lease.tree == *key) {
            self.report.stays(key.as_str(), shows, *takes, Reason::Leased(lease.pid));
            return Ok(());
        }
        // Whoever used it since the first look has noted that before it let go.
        let used = age(self.store.trees.usage(key)?.last_use);
        if used < self.rules.min_age.as_secs() {
            self.report.stays(key.as_str(), shows, *takes, Reason::UsedAgo(used));
            return Ok(());
        }
        let (kind, name) =
            only_layer.as_ref().map_or(("trees", key.as_str()), |layer| ("layers", layer.as_str()));
        if self.is_mounted(kind, name)? {
            self.report.stays(key.as_str(), shows, *takes, Reason::Mounted);
            return Ok(());
        }
        let trash = self.store.trees.take_away(key)?;
        drop(claim);
        self.delete(Some(trash))?;
        self.report.freed = self.report.freed.plus(*own);
        self.report.goes(Kind::Tree, key.as_str(), shows, *takes, Reason::UnusedFor(*unused));
        tracing::info!(tree = %key, reference = shows, bytes = takes.bytes, unused, "collected a tree");
        Ok(())
    }

    /// Notes what went, or would.
    pub(super) fn gone(&mut self, kind: Kind, name: &str, shows: &str, takes: Amount, reason: Reason) {
        self.report.freed = self.report.freed.plus(takes);
        self.report.goes(kind, name, shows, takes, reason);
        if !self.is_dry_run {
            tracing::debug!(%kind, name, bytes = takes.bytes, "collected");
        }
    }

    /// What is still wanted, as the file system tells it.
    pub(super) fn missing(&self) -> Result<Amount, Error> {
        match self.wanted {
            Wanted::Everything | Wanted::AllBut(_) | Wanted::Named => Ok(Amount::ALL),
            Wanted::Room(missing) | Wanted::Excess(missing) | Wanted::Quota(missing) => missing(),
        }
    }

    /// The same after some was deleted: XFS and btrfs show that only when it has reached the disk.
    fn still_missing(&self) -> Result<Amount, Error> {
        let missing = self.missing()?;
        if missing.is_nothing() || missing == Amount::ALL || self.report.gone == 0 || self.is_dry_run {
            return Ok(missing);
        }
        let directory = self.store.disk.directory();
        let opened = std::fs::File::open(directory).map_err(io("open", directory))?;
        // That something else cannot be written is for who wrote it.
        if let Err(error) = rustix::fs::syncfs(&opened) {
            tracing::debug!(%error, "cannot flush what was deleted");
        }
        self.missing()
    }

    /// Whether a directory of the store is mounted at this moment.
    pub(super) fn is_mounted(&self, kind: &str, name: &str) -> Result<bool, Error> {
        Ok((self.rules.mounted)()?.contains(&format!("{kind}/{name}")))
    }

    pub(super) fn is_stopped(&self) -> bool {
        self.rules.stop.load(Ordering::Relaxed)
    }
}
