//! How much memory the plugin can be made to take: every bound, in one table.
//!
//! The container has no memory limit: the page cache of what is pulled is charged to the container's cgroup, and a limit
//! would drop a model from memory before its pod has read it. So the bounds are the process's own. Each is a constant where
//! it is kept; here they are added up, so that a new one cannot be forgotten in the documented sum.

use crate::layer::format::MEMORY_LIMIT;
use crate::layout::artifact::CONFIG_LIMIT;
use crate::pull::plan::{LARGE_MANIFEST, LARGE_MANIFESTS_KIB, PLAN_FACTOR};
use crate::pull::turns::HOSTS;
use crate::pull::{BUFFERED_BYTES, FILE_LISTS_AT_A_TIME, MERGES_AT_A_TIME, PLANS_AT_A_TIME};
use crate::registry::auth::{TOKEN_LIMIT, TOKENS_LIMIT};
use crate::registry::client::MANIFEST_BYTES;
use crate::store::{CHECKS_AT_A_TIME, file_list};
use crate::unpack::decompress::{COMMON_WINDOW, LARGEST_WINDOW};
use crate::unpack::extract::DIRECTORY_XATTRS_LIMIT;
use crate::unpack::extract::files::{OWN_MEMORY, SHARED_MEMORY};
use crate::unpack::{ring, sparse, tar};
use crate::volume::volumes::PUBLISHES_LIMIT;

/// What the program is, idle, and what small things take that are bounded in number: tasks, connections, stacks.
const BASE: u64 = 64 << 20;

/// Every bound of memory, in bytes, with `parallel_downloads` blobs at a time from one registry. The first column says what
/// it is for.
pub fn table(parallel_downloads: usize) -> Vec<(&'static str, u64)> {
    let layers = (parallel_downloads * HOSTS) as u64;
    let each = |bytes: u64| layers * bytes;
    vec![
        ("the program", BASE),
        ("received and not yet written", BUFFERED_BYTES as u64),
        ("layers: buffers between threads", each(ring::MEMORY as u64)),
        ("layers: windows of decompressors", each(COMMON_WINDOW)),
        ("layers: one large window", LARGEST_WINDOW),
        ("layers: directories, of each", each(OWN_MEMORY)),
        ("layers: directories, of all", SHARED_MEMORY),
        ("layers: maps of sparse files", each(sparse::MEMORY as u64)),
        ("layers: extended headers, attributes", each(tar::EXTENDED_LIMIT + DIRECTORY_XATTRS_LIMIT as u64)),
        ("names in merges", MERGES_AT_A_TIME as u64 * MEMORY_LIMIT),
        ("names in first looks after a crash", CHECKS_AT_A_TIME as u64 * MEMORY_LIMIT),
        ("lists of files that are compared", FILE_LISTS_AT_A_TIME as u64 * file_list::MEMORY),
        // Read, and taken apart.
        ("configs that names depend on", PLANS_AT_A_TIME as u64 * 4 * CONFIG_LIMIT as u64),
        ("manifests on their way", MANIFEST_BYTES as u64),
        ("plans of large manifests", LARGE_MANIFESTS_KIB as u64 * 1024 * PLAN_FACTOR),
        ("plans of other manifests", PUBLISHES_LIMIT as u64 * LARGE_MANIFEST * PLAN_FACTOR),
        ("tokens of registries", (TOKENS_LIMIT * TOKEN_LIMIT) as u64),
    ]
}

/// What the allocator reserves beyond what is used, in steps, and the stacks of threads: address space, not memory.
const RESERVED: u64 = (1 << 30) + 512 * (2 << 20);

/// Makes the kernel refuse what exceeds the sum and what is only reserved: an error in this table ends the process, which is
/// started again, and not the node. See `man 2 getrlimit`, RLIMIT_DATA.
///
/// # Errors
/// The kernel's.
pub fn enforce(parallel_downloads: usize) -> rustix::io::Result<()> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let bound = data_limit(parallel_downloads);
    let Rlimit { current, maximum } = getrlimit(Resource::Data);
    let lowest = [Some(bound), current, maximum].into_iter().flatten().min();
    setrlimit(Resource::Data, Rlimit { current: lowest, maximum })
}

/// What [`enforce`] sets, in bytes, unless less is set already.
pub fn data_limit(parallel_downloads: usize) -> u64 {
    heap(parallel_downloads) + RESERVED
}

/// The sum.
pub fn heap(parallel_downloads: usize) -> u64 {
    table(parallel_downloads).iter().map(|(_, bytes)| bytes).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What docs/operations.md says, for the default of four.
    const DOCUMENTED: &str = "4.8 GiB";

    #[test]
    fn the_documented_sum_is_the_sum_of_all_bounds() {
        for (what, bytes) in table(4) {
            println!("{:>7.1} MiB  {what}", bytes as f64 / (1 << 20) as f64);
        }
        let sum = format!("{:.1} GiB", heap(4) as f64 / (1 << 30) as f64);
        assert_eq!(sum, DOCUMENTED);
        let documents = include_str!("../../docs/operations.md");
        assert!(
            documents.contains(&format!("at most {sum} of memory")),
            "docs/operations.md does not say {sum}"
        );
    }
}
