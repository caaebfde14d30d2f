//! Checksums of what a disk holds.

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::Xxh3;

/// XXH3-128: finds what a disk lost; it is no defence against an attacker who can write to the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checksum(u128);

impl Checksum {
    /// Of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        Self(xxhash_rust::xxh3::xxh3_128(bytes))
    }

    /// Of everything that `hasher` was given.
    pub fn finish(hasher: &Xxh3) -> Self {
        Self(hasher.digest128())
    }
}
