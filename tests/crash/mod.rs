//! Ends that nobody planned: kills, power cuts, SIGTERM.

mod failpoints;
mod model;
mod restart;
mod shutdown;
mod soak;
