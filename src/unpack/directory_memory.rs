//! Memory for the directories of a layer that is unpacked: it has to remember them all until its end.

use crate::host::fair_queue::FairQueue;
use crate::host::limits;
use crate::tenant::Tenant;

/// Where memory for directories comes from, beyond [what every layer has](limits::OWN_DIRECTORY_BYTES).
#[derive(Debug, Clone)]
pub enum DirectoryMemory {
    /// From what all share, on behalf of a tenant.
    Shared(FairQueue, Tenant),
    /// [All that a layer may have](limits::LAYER_DIRECTORY_BYTES): who says so has made room for it.
    Own,
}

impl DirectoryMemory {
    /// Bytes that come at a time.
    pub const STEP: u64 = limits::OWN_DIRECTORY_BYTES;
}
