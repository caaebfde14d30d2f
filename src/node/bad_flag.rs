//! What is wrong with a flag.

/// A flag has a value that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{flag} {value:?}: {reason}")]
pub struct BadFlag {
    /// Which.
    pub flag: &'static str,
    /// What was given.
    pub value: String,
    /// Why not.
    pub reason: String,
}
