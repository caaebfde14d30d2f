//! Ends that nobody planned: kills, power cuts, SIGTERM; and what comes at the same time.

mod failpoints;
mod interleaved;
mod model;
mod restart;
mod shutdown;
mod soak;
