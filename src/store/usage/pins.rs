//! Pins: trees that this process is about to mount, or that somebody waits for. What is pinned is not collected.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::store::key::TreeKey;

/// The pins of this process.
#[derive(Debug, Clone, Default)]
pub struct Pins {
    held: Arc<Mutex<HashMap<TreeKey, usize>>>,
}

/// Holds a tree, whether it is here already or not, until dropped.
#[derive(Debug)]
pub struct Pin {
    pins: Pins,
    key: TreeKey,
}

impl Pins {
    /// Pins the tree that has, or will have, this name.
    pub fn pin(&self, key: &TreeKey) -> Pin {
        *self.lock().entry(key.clone()).or_default() += 1;
        Pin { pins: self.clone(), key: key.clone() }
    }

    /// Whether somebody holds the tree.
    pub fn holds(&self, key: &TreeKey) -> bool {
        self.lock().contains_key(key)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<TreeKey, usize>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        let mut held = self.pins.lock();
        if let Some(count) = held.get_mut(&self.key) {
            *count -= 1;
            if *count == 0 {
                held.remove(&self.key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::options::Options;
    use crate::oci::digest::Digest;

    #[test]
    fn a_tree_is_held_until_the_last_pin_is_dropped() {
        let key = TreeKey::new(&Digest::sha256(b"x"), &Options::default(), false, false);
        let pins = Pins::default();
        let (one, two) = (pins.pin(&key), pins.pin(&key));
        drop(one);
        assert!(pins.holds(&key));
        drop(two);
        assert!(!pins.holds(&key));
    }
}
