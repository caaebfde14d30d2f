//! From a reference to a complete tree in the store: resolve, plan, fetch, link.
//!
//! A pull belongs to the node, not to who asked for it. [`puller::Puller`] runs one for all of a tenant who ask for the same with
//! the same credentials. It goes through the rooms of this directory in order: [`resolve`] finds the manifest, [`plan`] says what
//! files it means, [`room`] that they fit, [`content`] brings their blobs and sees that the asker has a right to them ([`rights`]), [`tree`] links them.

pub mod choose;
pub mod content;
pub mod error;
pub mod load;
pub mod manifests;
pub mod metrics;
pub mod originals;
pub mod outcome;
pub mod plan;
pub mod progress;
pub mod puller;
pub mod quotas;
pub mod remote;
pub mod request;
pub mod resolve;
pub mod rights;
pub mod room;
pub mod tree;
