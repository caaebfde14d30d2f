//! Warming: cached models are read into the page cache before anybody asks for them.
//!
//! After a pull the weights are in memory. After a reboot, or when the kernel has dropped them, they are not, and an inference
//! server would read them at the disk's pace only after it has imported its libraries and started its device. A publish of
//! such a model is answered at once, and one thread fills the page cache meanwhile: of one file at a time, a slice of
//! each namespace's volumes in turn.
//!
//! Pages that the plugin has read are charged to its cgroup and not to the pod's, so that a pod's memory limit does not hold
//! for them: what is warm is bounded for the node ([`budget`]).

pub mod budget;
pub mod fill;
pub mod order;
pub mod pins;
pub mod resident;
pub mod volume;
pub mod warmer;
