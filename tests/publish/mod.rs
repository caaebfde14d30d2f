//! What kubelet asks, and what a pod then has.

mod authority;
mod calls;
mod claims;
mod events;
mod inline;
mod layers_of_tenants;
mod listeners;
mod metrics;
mod old_kernel;
mod plans;
mod prepull;
mod read_only;
mod registration;
mod stats;
mod targets;
mod tenants;
mod traces;
mod warm;
