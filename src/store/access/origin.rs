//! Where content came from.

use serde::{Deserialize, Serialize};

use crate::oci::repository::Repository;

/// A repository that delivered a blob, or that was shown to have it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// Which.
    #[serde(flatten)]
    pub repository: Repository,
    /// Whether it was read without credentials.
    pub anonymous: bool,
}

/// Origins that are learnt of an entry; the oldest go first. The ones that are recorded with it stay.
const ORIGINS_LIMIT: usize = 64;

/// Adds `origin`; false when it is known already.
pub(in crate::store) fn note_origin(origins: &mut Vec<Origin>, origin: Origin) -> bool {
    if origins.contains(&origin) {
        return false;
    }
    if origins.len() >= ORIGINS_LIMIT {
        origins.remove(0);
    }
    origins.push(origin);
    true
}
