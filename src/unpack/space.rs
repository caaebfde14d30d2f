//! Room on the disk for what is unpacked, which nobody knows the size of before.

use std::fmt;
use std::sync::Arc;

/// Says whether there is room. It is asked every some megabytes and thousand entries.
#[derive(Clone, Default)]
pub struct Space(Option<Arc<Ask>>);

type Ask = dyn Fn(Growth) -> bool + Send + Sync;

/// How what is unpacked grows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Growth {
    /// Bytes that were written since the last time.
    pub written: u64,
    /// Bytes that are written until the next time, at most.
    pub more: u64,
}

impl Space {
    /// As much as there is.
    pub const ALL: Self = Self(None);

    /// As much as `ask` allows, which may wait.
    pub fn asking(ask: impl Fn(Growth) -> bool + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(ask)))
    }

    /// Whether there is room.
    pub fn is_enough(&self, growth: Growth) -> bool {
        self.0.as_ref().is_none_or(|ask| ask(growth))
    }
}

impl fmt::Debug for Space {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("Space")
    }
}
