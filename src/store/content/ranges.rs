//! Sets of byte ranges: which parts of a blob are there.

use std::ops::Range;

use serde::{Deserialize, Serialize};

/// Disjoint, sorted, non-empty ranges that do not touch.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ranges(Vec<Range<u64>>);

impl Ranges {
    /// Adds `range`, joined with what it overlaps or touches.
    pub fn insert(&mut self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        let first = self.0.partition_point(|known| known.end < range.start);
        let last = self.0.partition_point(|known| known.start <= range.end);
        let mut joined = range;
        for known in &self.0[first..last] {
            joined.start = joined.start.min(known.start);
            joined.end = joined.end.max(known.end);
        }
        self.0.splice(first..last, [joined]);
    }

    /// The end of what is there without a gap from `start`; `start` itself when nothing is.
    pub fn contiguous_from(&self, start: u64) -> u64 {
        let holder = self.0.iter().find(|known| known.start <= start && start < known.end);
        holder.map_or(start, |known| known.end)
    }

    /// What is missing of `0..size`.
    pub fn missing(&self, size: u64) -> Vec<Range<u64>> {
        let mut gaps = Vec::new();
        let mut next = 0;
        for known in self.0.iter().take_while(|known| known.start < size) {
            if next < known.start {
                gaps.push(next..known.start);
            }
            next = known.end;
        }
        if next < size {
            gaps.push(next..size);
        }
        gaps
    }

    /// The end of the last range.
    pub fn end(&self) -> u64 {
        self.0.last().map_or(0, |last| last.end)
    }

    /// Bytes in the set.
    pub fn total(&self) -> u64 {
        self.0.iter().map(|known| known.end - known.start).sum()
    }

    /// Whether the set could have been made by [`Ranges::insert`] with ranges of `0..size`. A file says so only
    /// if it was not damaged.
    pub fn is_valid(&self, size: u64) -> bool {
        let gaps = self.0.windows(2).all(|pair| pair[0].end < pair[1].start);
        gaps && self.0.iter().all(|known| known.start < known.end && known.end <= size)
    }
}

impl FromIterator<Range<u64>> for Ranges {
    fn from_iter<I: IntoIterator<Item = Range<u64>>>(ranges: I) -> Self {
        let mut all = Self::default();
        ranges.into_iter().for_each(|range| all.insert(range));
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agrees_with_a_set_of_bytes() {
        let mut random = 12345_u32;
        let mut next = |limit: u32| {
            random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            u64::from((random >> 16) % limit)
        };
        for _ in 0..200 {
            let (mut ranges, mut model) = (Ranges::default(), [false; 64]);
            for _ in 0..8 {
                let start = next(60);
                let end = (start + next(10)).min(64);
                ranges.insert(start..end);
                model[start as usize..end as usize].fill(true);
                assert!(ranges.is_valid(64), "{ranges:?}");
            }
            let mut rebuilt = [true; 64];
            for gap in ranges.missing(64) {
                rebuilt[gap.start as usize..gap.end as usize].fill(false);
            }
            assert_eq!(rebuilt, model, "{ranges:?}");
            assert_eq!(ranges.total(), model.iter().filter(|there| **there).count() as u64);
            let first_gap = model.iter().position(|there| !there).unwrap_or(64) as u64;
            assert_eq!(ranges.contiguous_from(0), first_gap);
        }
    }
}
