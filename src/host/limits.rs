//! How much the plugin can be made to hold: the bound of every queue that is shared, and the memory of all of them together.
//!
//! The container has no memory limit: the page cache of what is pulled is charged to the container's cgroup, and a limit
//! would drop a model from memory before its pod has read it. So the bounds are the process's own, and this is the one place
//! where they are set. What is shared is divided between tenants ([`fair_queue`](crate::host::fair_queue)).

use rustix::process::{DumpableBehavior, Resource, Rlimit, getrlimit, set_dumpable_behavior, setrlimit};

const KIB: u64 = 1024;
const MIB: u64 = 1024 * KIB;

/// Blobs of at most this many bytes are small: they have a lane of their own, and never wait behind large ones.
pub const SMALL_BLOB: u64 = 4 * MIB;
/// Large blobs that are fetched at a time. One tenant has at most half of what is free, and so for all bounds here.
pub const LARGE_TRANSFERS: u64 = 32;
/// Small blobs that are fetched at a time.
pub const SMALL_TRANSFERS: u64 = 24;
/// Small blobs that a tenant fetches at a time from one registry, and manifests. Less when it uses one registry alone: half of its half.
pub const SMALL_PER_REGISTRY: u64 = 8;
/// Layers of large blobs that are unpacked while they come: as long as their registries take.
pub const LARGE_UNPACKS_WHILE_COMING: u64 = 5;
/// Layers of large blobs that are unpacked at a time when they are here, beside those.
pub const LARGE_UNPACKS: u64 = 2;
/// Layers of small blobs that are unpacked while they come.
pub const SMALL_UNPACKS_WHILE_COMING: u64 = 1;
/// Layers of small blobs that are unpacked at a time when they are here, beside those.
pub const SMALL_UNPACKS: u64 = 2;
/// Connections for one blob.
pub const CONNECTIONS: usize = 8;
/// Connections beside the first of each transfer.
pub const HELPERS: u64 = 16;
/// Bytes of a piece on its way from a connection to the writer: hyper's largest buffer. Cut smaller, a piece would cost as much
/// of the processor, and hold as much memory: all of the buffer it came in.
pub const PIECE: usize = 408 * 1024;
/// Bytes of a piece that is copied, at most, so that it holds no buffer that is much larger. A larger one counts as [`PIECE`].
pub const COPIED_PIECE: usize = 128 * 1024;
/// Bytes of all pieces of one large transfer that are in memory, from its connections on: on the way to the writer, written,
/// hashed, and unpacked.
pub const LARGE_PIECES: usize = 2 * PIECE;
/// The same of a small one.
pub const SMALL_PIECES: usize = PIECE;
/// Pieces of one transfer that wait for the writer, however small.
pub const QUEUE: usize = 8;
/// Bytes of a transfer that may wait in memory for what hashes or unpacks them, before the writer waits for that, too.
pub const RECENT_BYTES: usize = 64 * 1024;
/// Bytes of a transfer that are read back at a time, when that is behind.
pub const READ_BACK: usize = 128 * 1024;
/// Bytes of manifests on their way.
pub const MANIFEST_BYTES: u64 = 8 * MIB;
/// Bytes of the lists of files that are warmed: some 30 of models with a hundred shards. A namespace has as much of them as it leaves.
pub const WARM_NAMES: u64 = 384 * KIB;
/// Bytes of names while a tree is walked for such a list.
pub const WARM_WALK: u64 = 192 * KIB;
/// Files that are locked in memory; the kernel allows a process 65,530 mappings (`vm.max_map_count`). A namespace has as many as it
/// leaves.
pub const WARM_MAPPINGS: u64 = 4096;
/// Archives of image layouts on this node whose names are read at a time: some seconds each, where an archive has a million entries.
pub const ARCHIVE_READS: u64 = 4;
/// Requests for manifests and other small answers at a time.
pub const SMALL_REQUESTS: u64 = 24;
/// Bytes of memory for plans, which pulls have as long as they last.
pub const PLAN_BYTES: u64 = 8 * MIB;
/// Bytes of memory for small plans, in a lane of their own.
pub const SMALL_PLAN_BYTES: u64 = 4 * MIB;
/// Bytes of memory of a small plan, at most: of a manifest of some 25 KiB, as images have.
pub const SMALL_PLAN: u64 = MIB / 4;
/// Bytes of memory of a plan that is kept while a registry is waited for, at most: of a manifest of some 100 KiB.
pub const KEPT_PLAN: u64 = MIB;
/// Bytes of memory of the largest plan.
pub const LARGEST_PLAN: u64 = 40 * MIB;
/// Bytes of memory for what takes much of it and does not take long: merges, large plans, configs that are read, one large window
/// for decompression. The largest of them fit: [`MERGE_BYTES`], [`LARGE_UNPACK`].
pub const WORK_BYTES: u64 = 164 * MIB;
/// Bytes of memory for small work of that kind, and for reading manifests, in a lane of its own.
pub const SMALL_WORK_BYTES: u64 = 24 * MIB;
/// Bytes of memory that small work takes at most: the tree of an image of some 45,000 files, or the plan of a manifest of 400 KiB.
pub const SMALL_WORK: u64 = 8 * MIB;
/// Bytes of memory that one tree may take in a merge: of 1,000,000 entries with names of 50 bytes.
pub const MERGE_BYTES: u64 = WORK_BYTES;
const _: () = assert!(LARGE_UNPACK <= WORK_BYTES);
/// Bytes of memory for directories of layers that are unpacked, beyond what each layer has. A layer that finds none left is
/// unpacked when all of it is here, with memory of [`WORK_BYTES`].
pub const DIRECTORY_BYTES: u64 = 16 * MIB;
/// Bytes of memory for directories that one layer may have, beyond what each has.
pub const LAYER_DIRECTORY_BYTES: u64 = 15 * MIB;
/// Bytes of memory that unpacking takes which needs much of it: the largest window, and the most directories.
pub const LARGE_UNPACK: u64 = LARGE_WINDOW + UNPACK_BYTES + LAYER_DIRECTORY_BYTES;
/// Bytes of memory that decompressing takes with the largest window: it is taken from [`WORK_BYTES`].
pub const LARGE_WINDOW: u64 = 128 * MIB;
/// Bytes of memory that the window of a decompressor takes, without asking.
pub const COMMON_WINDOW: u64 = 8 * MIB;
/// Bytes of memory for directories that each layer has.
pub const OWN_DIRECTORY_BYTES: u64 = 512 * KIB;
/// Bytes of buffers between the threads that decompress and extract.
pub const RING_BYTES: u64 = MIB;
/// Bytes of the extended headers of an entry of an archive, and of the attributes of its directories.
pub const HEADER_BYTES: u64 = MIB;
/// Bytes of a file of a layer that is filled together with others, at most.
pub const SMALL_FILE: usize = 8 * 1024;
/// Bytes from which files are enough to be filled together.
pub const SMALL_FILE_BATCH: usize = 24 * 1024;
/// Bytes of all such files of a layer, with their names, for which there is as much room again: two batches wait, one is made, and one is filled by each of two threads.
pub const SMALL_FILE_BYTES: u64 = 5 * (2 * SMALL_FILE_BATCH + SMALL_FILE + 4 * 1024) as u64;
/// Spans that wait to be sent. More are dropped.
pub const SPANS: usize = 512;
/// Spans that are sent at once.
pub const SPANS_AT_ONCE: usize = 128;
/// Bytes of a span, which has three or four texts.
pub const SPAN_BYTES: usize = 4 * 1024;
/// Bytes of memory that one layer takes that is unpacked.
pub const UNPACK_BYTES: u64 =
    COMMON_WINDOW + RING_BYTES + OWN_DIRECTORY_BYTES + 2 * HEADER_BYTES + SMALL_FILE_BYTES + MIB / 2;
/// First looks at layers at a time, after a crash.
pub const FIRST_LOOKS: usize = 2;
/// Bytes of memory of a first look.
pub const FIRST_LOOK_BYTES: usize = 5 * 1024 * 1024;
/// Bytes of memory that a collection takes, of which one runs at a time.
pub const COLLECT_BYTES: u64 = 8 * MIB;
/// Bytes of memory that a look at all of the store takes, of which two run at a time: the one that never ends, and one that somebody
/// asks for.
pub const FSCK_BYTES: u64 = 2 * MIB;
/// Publishes that are worked on or wait.
pub const PUBLISHES: u64 = 1024;
/// The same of one pod: kubelet asks for a pod's volumes one after the other, or all again after a restart.
pub const PUBLISHES_OF_A_POD: u64 = 64;

/// Objects of the Kubernetes API that are read at a time.
pub const OBJECTS: u64 = 2;
/// Bytes of such an object: a secret holds 1 MiB, a third more as base64.
pub const OBJECT_BYTES: usize = 1536 * 1024;
/// Credential providers and helpers that may be configured.
pub const PROGRAMS: usize = 12;
/// Of each of them, so many run at a time.
pub const PROGRAM_TURNS: u64 = 3;
/// Bytes that one run may print. Real answers have some thousands.
pub const PROGRAM_OUTPUT: usize = 64 * 1024;
/// Bytes of answers that are kept of each.
pub const PROGRAM_KEPT: usize = 64 * 1024;

/// What the program has, idle, some 5 MiB, and what small things take that are bounded in number: tasks, stacks, tokens.
const BASE: u64 = 24 * MIB;

/// Every bound of memory, in bytes. The first column says what it is for.
pub fn table() -> [(&'static str, u64); 17] {
    let transfers = LARGE_TRANSFERS + SMALL_TRANSFERS;
    let large_unpacks = LARGE_UNPACKS_WHILE_COMING + LARGE_UNPACKS;
    let unpacks = large_unpacks + SMALL_UNPACKS_WHILE_COMING + SMALL_UNPACKS;
    let (piece, large, small) = (PIECE as u64, LARGE_PIECES as u64, SMALL_PIECES as u64);
    [
        ("the program", BASE),
        ("received, written, hashed, unpacked", LARGE_TRANSFERS * large + SMALL_TRANSFERS * small),
        ("read back", transfers * READ_BACK as u64),
        // One piece waits for room in the queue, and the next is read meanwhile.
        ("connections of transfers", (transfers + HELPERS) * 2 * piece),
        // What of an answer is more than that is counted with manifests.
        ("connections of other requests", SMALL_REQUESTS * piece),
        ("layers that are unpacked", unpacks * UNPACK_BYTES),
        ("their directories, beyond what each has", DIRECTORY_BYTES),
        ("manifests on their way", MANIFEST_BYTES),
        ("plans", PLAN_BYTES + SMALL_PLAN_BYTES),
        ("merges, large plans, configs, one large window", WORK_BYTES),
        ("small merges and configs, manifests that are read", SMALL_WORK_BYTES),
        ("a collection", COLLECT_BYTES),
        ("looks at all of the store", 2 * FSCK_BYTES),
        (
            "credentials that are read",
            OBJECTS * OBJECT_BYTES as u64
                + PROGRAMS as u64 * (PROGRAM_TURNS * PROGRAM_OUTPUT as u64 + PROGRAM_KEPT as u64),
        ),
        // What is sent is there twice: as it was recorded, and as it is sent.
        ("spans of traces", ((SPANS + 2 * SPANS_AT_ONCE) * SPAN_BYTES) as u64),
        ("lists of what is warmed", WARM_NAMES + WARM_WALK),
        ("first looks after a crash", (FIRST_LOOKS * FIRST_LOOK_BYTES) as u64),
    ]
}

/// The sum.
pub fn heap() -> u64 {
    table().iter().map(|(_, bytes)| bytes).sum()
}

/// What the allocator reserves beyond what is used, in steps, and the stacks of threads: address space, not memory.
const RESERVED: u64 = (1 << 30) + 512 * (2 << 20);

/// What [`enforce`] sets, in bytes, unless less is set already.
pub fn data_limit() -> u64 {
    heap() + RESERVED
}

/// Makes sure that no core of this process is written anywhere: it would have credentials in it. See `man 2 getrlimit`, RLIMIT_CORE, and
/// `man 2 PR_SET_DUMPABLE`, which counts for programs that take cores, too.
///
/// # Errors
/// The kernel's.
pub fn forbid_cores() -> rustix::io::Result<()> {
    setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })?;
    set_dumpable_behavior(DumpableBehavior::NotDumpable)
}

/// Makes the kernel refuse what exceeds the sum and what is only reserved: an error in this table ends the process, which is
/// started again, and not the node. See `man 2 getrlimit`, RLIMIT_DATA.
///
/// # Errors
/// The kernel's.
pub fn enforce() -> rustix::io::Result<()> {
    let Rlimit { current, maximum } = getrlimit(Resource::Data);
    let lowest = [Some(data_limit()), current, maximum].into_iter().flatten().min();
    setrlimit(Resource::Data, Rlimit { current: lowest, maximum })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documented_sum_is_the_sum_of_all_bounds() {
        for (what, bytes) in table() {
            println!("{:>7.1} MiB  {what}", bytes as f64 / MIB as f64);
        }
        let sum = heap().div_ceil(MIB);
        assert!(sum <= 512, "{sum} MiB");
        let documents = include_str!("../../docs/operations.md");
        assert!(
            documents.contains(&format!("at most {sum} MiB of memory")),
            "docs/operations.md does not say {sum} MiB"
        );
    }
}
