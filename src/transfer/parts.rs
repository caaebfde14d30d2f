//! Who fetches which part of a blob: one connection at first, more when it is slow.

#![cfg_attr(not(test), deny(clippy::indexing_slicing))]

use std::ops::Range;

/// The parts of a blob that are not here, waiting or being fetched.
#[derive(Debug, Default)]
pub struct Parts {
    /// The lowest is the last, and is taken first: what follows goes in order.
    waiting: Vec<Range<u64>>,
    active: Vec<(usize, Range<u64>)>,
    next_id: usize,
}

/// A part smaller than twice this is not split: a new connection would not pay, and what is on its way beyond the new end is lost.
const SMALLEST: u64 = 16 * 1024 * 1024;

impl Parts {
    /// What is missing.
    pub fn new(mut missing: Vec<Range<u64>>) -> Self {
        missing.reverse();
        Self { waiting: missing, ..Self::default() }
    }

    /// Bytes that are missing.
    pub fn missing(&self) -> u64 {
        let fetched = self.active.iter().map(|(_, range)| range);
        self.waiting.iter().chain(fetched).map(|range| range.end - range.start).sum()
    }

    /// The next part to fetch.
    pub fn take(&mut self) -> Option<(usize, Range<u64>)> {
        let range = self.waiting.pop()?;
        let id = self.next_id;
        self.next_id += 1;
        self.active.push((id, range.clone()));
        Some((id, range))
    }

    /// `length` bytes came for part `id`: how many of them it still wants. It may have been split since.
    pub fn accept(&mut self, id: usize, length: usize) -> usize {
        let Some((_, range)) = self.active.iter_mut().find(|(known, _)| *known == id) else { return 0 };
        let wanted = usize::try_from(range.end - range.start).unwrap_or(usize::MAX).min(length);
        range.start += wanted as u64;
        wanted
    }

    /// The next byte that part `id` wants.
    pub fn position(&self, id: usize) -> Option<u64> {
        self.active.iter().find(|(known, _)| *known == id).map(|(_, range)| range.start)
    }

    /// Whether part `id` is complete.
    pub fn is_complete(&self, id: usize) -> bool {
        self.active.iter().all(|(known, range)| *known != id || range.is_empty())
    }

    /// Part `id` is not being fetched any more; what is missing of it waits again.
    pub fn release(&mut self, id: usize) {
        if let Some(position) = self.active.iter().position(|(known, _)| *known == id) {
            let (_, range) = self.active.swap_remove(position);
            if !range.is_empty() {
                self.wait(range);
            }
        }
    }

    /// Makes a new waiting part from the second half of the largest one that is waiting or being fetched.
    pub fn split(&mut self) -> bool {
        let all = self.waiting.iter_mut().chain(self.active.iter_mut().map(|(_, range)| range));
        match all.max_by_key(|range| range.end - range.start) {
            Some(range) if range.end - range.start >= 2 * SMALLEST => {
                let middle = range.start + (range.end - range.start) / 2;
                let second = middle..range.end;
                range.end = middle;
                self.wait(second);
                true
            }
            _ => false,
        }
    }

    /// Whether something waits to be fetched.
    pub fn has_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// How many parts wait to be fetched.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Whether `id` is one of the last `count` parts that are being fetched, and not the first.
    pub fn is_among_last(&self, id: usize, count: usize) -> bool {
        let Some(start) = self.position(id) else { return false };
        let behind = self.active.iter().filter(|(_, range)| range.start > start).count();
        behind < count.min(self.active.len().saturating_sub(1))
    }

    fn wait(&mut self, range: Range<u64>) {
        let at = self.waiting.partition_point(|waiting| waiting.start > range.start);
        self.waiting.insert(at, range);
    }

    /// How many parts are being fetched.
    pub fn active(&self) -> usize {
        self.active.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1024 * 1024;

    #[test]
    fn every_byte_is_fetched_once_whatever_is_split_or_released() {
        let mut small = Parts::new(vec![0..MIB, 2 * MIB..33 * MIB]);
        assert!(small.take().is_some() && !small.split(), "too small to split");
        let mut parts = Parts::new(vec![0..10 * MIB, 20 * MIB..200 * MIB]);
        let mut fetched = Vec::new();
        let (first, range) = parts.take().expect("a part");
        assert_eq!(range, 0..10 * MIB);
        assert_eq!(parts.accept(first, 4 * MIB as usize), 4 * MIB as usize);
        fetched.push(0..4 * MIB);
        parts.release(first);
        let (again, range) = parts.take().expect("the rest");
        assert_eq!(range, 4 * MIB..10 * MIB);
        assert_eq!(parts.accept(again, 20 * MIB as usize), 6 * MIB as usize);
        assert!(parts.is_complete(again));
        parts.release(again);
        let (large, range) = parts.take().expect("a part");
        assert_eq!(range, 20 * MIB..200 * MIB);
        assert!(parts.split());
        assert!(parts.split());
        let (quarter, range) = parts.take().expect("the lowest that waits");
        assert_eq!(range, 65 * MIB..110 * MIB);
        parts.release(large);
        let (large, range) = parts.take().expect("what was given back comes before what is behind it");
        assert_eq!(range, 20 * MIB..65 * MIB);
        let (half, range) = parts.take().expect("the second half");
        assert_eq!(range, 110 * MIB..200 * MIB);
        assert_eq!(parts.accept(quarter, usize::MAX), 45 * MIB as usize);
        assert_eq!(parts.accept(large, usize::MAX), 45 * MIB as usize);
        assert_eq!(parts.accept(half, usize::MAX), 90 * MIB as usize);
        assert!(parts.is_among_last(half, 1) && !parts.is_among_last(quarter, 1));
        assert!(parts.is_among_last(quarter, 2) && !parts.is_among_last(large, 9));
        assert!(parts.take().is_none() && parts.is_complete(large) && parts.is_complete(half));
    }
}
