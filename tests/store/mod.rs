//! What the store holds: for whom, for how long, and in how much memory.

mod collection;
mod disk_errors;
mod disk_traffic;
mod durability;
mod file_systems;
pub mod fsck;
mod grants;
mod layer_durability;
mod memory;
mod old_stores;
mod power_cuts;
mod quotas;
mod rights;
