//! Which trees go first.

use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;

use crate::host::limits;
use crate::store::collect::in_use::{InUse, age};
use crate::store::collect::report::{RECORD, Reason, Report};
use crate::store::collect::rules::Rules;
use crate::store::content::trees::Tree;
use crate::store::error::Error;
use crate::store::key::{LayerKey, TreeKey};
use crate::store::open::Store;
use crate::store::space::amount::Amount;

/// A tree that may go.
#[derive(Debug, Clone)]
pub(in crate::store) struct Candidate {
    pub key: TreeKey,
    pub only_layer: Option<LayerKey>,
    /// What it shows.
    pub shows: String,
    /// What it takes with everything in it, also what others have in common with it.
    pub takes: Amount,
    /// What only the tree has: its directories, and its record.
    pub own: Amount,
    /// Seconds for which it was not used.
    pub unused: u64,
    /// The higher, the sooner it goes.
    score: f64,
}

/// Trees that are in memory to choose from. Of more, these are the first to go. The help of `ocivol_store_bytes` has the number.
const CANDIDATES: usize = 8 * 1024;
/// Bytes of each: names of 64 digits, a reference, numbers.
const EACH: usize = size_of::<Candidate>() + 2 * 64 + 128;
const _: () = assert!((CANDIDATES * EACH) as u64 <= limits::COLLECT_BYTES / 2);
/// To pull a tree again takes as long as it takes to fetch so many bytes, and its own.
const REPULL_BYTES: u64 = 64 << 20;
/// Bytes of a small directory.
const BLOCK: u64 = 4096;

/// The trees that may go, the first to go first; and what stays, and why, in `report`.
///
/// # Errors
/// [`Error::Io`].
pub(in crate::store) fn candidates(
    store: &Store,
    in_use: &InUse,
    rules: &Rules<'_>,
    wanted: Amount,
    report: &mut Report,
) -> Result<Vec<Candidate>, Error> {
    let mut first: BinaryHeap<Reverse<Candidate>> = BinaryHeap::new();
    store.trees.each(&mut |tree| {
        if !(rules.filter)(&tree) {
            return Ok(());
        }
        let takes = takes(&tree);
        if let Some(reason) = in_use.keeps(store, &tree, rules) {
            report.stays(tree.key.as_str(), &shows(&tree), takes, reason);
            return Ok(());
        }
        let unused = age(tree.usage.last_use);
        let score = score(unused, takes, wanted);
        let (shows, own, only_layer) = (shows(&tree), own(&tree), tree.image.only_layer);
        first.push(Reverse(Candidate { key: tree.key, only_layer, shows, takes, own, unused, score }));
        if first.len() > CANDIDATES {
            first.pop();
        }
        Ok(())
    })?;
    // Reversed, the highest score is the smallest.
    Ok(first.into_sorted_vec().into_iter().map(|Reverse(candidate)| candidate).collect())
}

/// As many of `candidates` as it takes to free what is wanted, if nothing else needs what is in them.
pub(in crate::store) fn enough(candidates: &mut Vec<Candidate>, wanted: Amount) -> Vec<Candidate> {
    let mut sum = Amount::default();
    let count = candidates
        .iter()
        .take_while(|candidate| {
            let before = sum;
            sum = sum.plus(candidate.takes);
            !before.covers(wanted)
        })
        .count();
    candidates.drain(..count).collect()
}

/// Says of those that need not go that they stay.
pub(in crate::store) fn spared(candidates: &[Candidate], report: &mut Report) {
    for Candidate { key, shows, takes, .. } in candidates {
        report.stays(key.as_str(), shows, *takes, Reason::Enough);
    }
}

/// Old trees go first, but rather one that frees what is wanted than several that do not, and rather a large one, of which each
/// byte costs little to fetch again, than a small one, which takes a pull as well.
fn score(unused: u64, takes: Amount, wanted: Amount) -> f64 {
    let share = |has: u64, wanted: u64| if wanted == 0 { 0.0 } else { (has as f64 / wanted as f64).min(1.0) };
    let gain = share(takes.bytes, wanted.bytes) + share(takes.inodes, wanted.inodes);
    unused as f64 * gain / takes.bytes.saturating_add(REPULL_BYTES) as f64
}

fn takes(tree: &Tree) -> Amount {
    let image = &tree.image;
    Amount { bytes: image.size, inodes: image.inodes.unwrap_or(image.files as u64) }
}

/// Files are links to those of layers and blobs.
pub(in crate::store) fn own(tree: &Tree) -> Amount {
    let inodes = takes(tree).inodes.saturating_sub(tree.image.files as u64);
    let directories = if tree.image.only_layer.is_some() { 0 } else { inodes };
    Amount { bytes: BLOCK * directories, inodes: directories }.plus(RECORD)
}

fn shows(tree: &Tree) -> String {
    tree.usage.references.first().cloned().unwrap_or_else(|| tree.image.manifest.to_string())
}

impl PartialEq for Candidate {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Candidate {}

impl PartialOrd for Candidate {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Candidate {
    fn cmp(&self, other: &Self) -> Ordering {
        self.score.total_cmp(&other.score).then_with(|| self.key.cmp(&other.key))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    fn first_of(trees: &[(&'static str, u64, u64)], wanted: u64) -> &'static str {
        let wanted = Amount::bytes(wanted);
        let of = |&(_, hours, bytes): &(&str, u64, u64)| score(hours * 3600, Amount::bytes(bytes), wanted);
        trees.iter().max_by(|one, two| of(one).total_cmp(&of(two))).map_or("", |tree| tree.0)
    }

    #[test]
    fn the_least_recently_used_goes_first_and_of_equals_the_one_that_fits() {
        assert_eq!(first_of(&[("old", 48, 10 * GIB), ("new", 1, 10 * GIB)], GIB), "old");
        // Very small ones cost a pull each, and free nothing.
        assert_eq!(first_of(&[("small", 48, GIB / 1024), ("large", 24, 10 * GIB)], 5 * GIB), "large");
        assert_eq!(first_of(&[("fits", 24, 10 * GIB), ("huge", 24, 200 * GIB)], 10 * GIB), "fits");
        // What is much older goes although it is small.
        assert_eq!(first_of(&[("small", 24 * 365, GIB / 16), ("large", 1, 10 * GIB)], GIB / 16), "small");
    }

    #[test]
    fn no_more_are_taken_than_it_takes() {
        let candidate = |number: u64| Candidate {
            key: TreeKey::parse(&format!("{number:064x}")).expect("a key"),
            only_layer: None,
            shows: String::new(),
            takes: Amount { bytes: GIB, inodes: 10 },
            own: RECORD,
            unused: 0,
            score: 0.0,
        };
        let all = || (0..5).map(candidate).collect::<Vec<_>>();
        for (wanted, count) in [
            (Amount::default(), 0),
            (Amount::bytes(1), 1),
            (Amount::bytes(2 * GIB), 2),
            (Amount { bytes: 0, inodes: 31 }, 4),
            (Amount::ALL, 5),
        ] {
            let mut left = all();
            assert_eq!(enough(&mut left, wanted).len(), count, "{wanted:?}");
            assert_eq!(left.len(), 5 - count);
        }
    }
}
