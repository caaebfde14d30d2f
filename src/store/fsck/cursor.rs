//! Where a look at the whole store is: one that takes weeks goes on after a restart.

use serde::{Deserialize, Serialize};

/// The next entry to look at. Entries are looked at in the order of their names, kind by kind.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Cursor {
    /// The number of the kind of entries, in the order in which they are looked at.
    pub(in crate::store) kind: u8,
    /// The last one that was looked at.
    pub(in crate::store) after: String,
}
