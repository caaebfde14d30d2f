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

    /// Makes a new waiting part from the second half of the largest one being fetched.
    pub fn split(&mut self) -> bool {
        let largest = self.active.iter_mut().max_by_key(|(_, range)| range.end - range.start);
        match largest {
            Some((_, range)) if range.end - range.start >= 2 * SMALLEST => {
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

    /// Whether no part before `id` is being fetched.
    pub fn is_first(&self, id: usize) -> bool {
        self.active.iter().min_by_key(|(_, range)| range.start).is_some_and(|(first, _)| *first == id)
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
        let mut parts = Parts::new(vec![0..10 * MIB, 20 * MIB..200 * MIB]);
        let mut fetched = Vec::new();
        let (first, range) = parts.take().expect("a part");
        assert_eq!(range, 0..10 * MIB);
        assert!(!parts.split(), "too small to split");
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
        assert!(parts.is_first(large) && !parts.is_first(half));
        assert!(parts.take().is_none() && parts.is_complete(large) && parts.is_complete(half));
    }
}
