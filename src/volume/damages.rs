//! What is known to be damaged on the disk.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use crate::store::fsck::report::Finding;
use crate::store::key::TreeKey;

/// What was found to be damaged, by the trees that show it, as long as the process runs.
#[derive(Debug, Default)]
pub(in crate::volume) struct Damages(Mutex<HashMap<TreeKey, String>>);

/// Damaged trees that are remembered.
const DAMAGES: usize = 4096;

impl Damages {
    pub(in crate::volume) fn add(&self, finding: &Finding) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for tree in &finding.trees {
            if known.len() < DAMAGES {
                let file = finding.path.as_deref().unwrap_or("its content");
                let text = format!(
                    "{file}: {} (found on the node's disk; delete the pod to get it again)",
                    finding.problem
                );
                known.insert(tree.clone(), text);
            }
        }
    }

    /// Whether nothing is known to be damaged, as mostly.
    pub(in crate::volume) fn is_nothing(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    /// What is wrong with `tree`, if something is.
    pub(in crate::volume) fn of(&self, tree: &TreeKey) -> Option<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(tree).cloned()
    }
}
