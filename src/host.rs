//! What the process and the kernel give: system calls, threads, sockets, metadata of files, limits.

pub mod accept;
pub mod blocking;
pub mod crew;
pub mod failpoint;
pub mod fair_queue;
pub mod file_metadata;
pub mod interleaving;
pub mod limits;
pub mod memory;
pub mod metric;
pub mod orphans;
pub mod repeats;
pub mod socket;
pub mod sys;
pub mod tenants;
pub mod throttle;
pub mod traces;
