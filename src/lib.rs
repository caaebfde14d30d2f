//! ocivol mounts what an OCI registry holds into Kubernetes pods as read-only volumes.
//!
//! The modules, lowest layer first. A module uses those above it in this list, as `tests/layering.rs` checks:
//!
//! | layer | module | what it does |
//! |---|---|---|
//! | 0 | [`oci`] | references, digests, manifests, platforms: pure data |
//! | 0 | [`layer`] | what tar layers hold, and what several hold together: indexes and their merge |
//! | 0 | [`layout`] | from a manifest to a plan of files, one file per artifact family: pure functions |
//! | 1 | [`registry`] | the distribution client: authentication, retries, ranges (async) |
//! | 1 | [`store`] | verified blobs and trees on disk, durable in the background (sync) |
//! | 1 | [`unpack`] | bytes of a layer become files and an index, in one pass (sync) |
//! | 1 | [`mount`] | the mount table, checked targets, attach and detach (sync) |
//! | 2 | [`pull`] | from a reference to a complete tree, once for all who ask |
//! | 3 | [`volume`] | publish, unpublish, usage: joins pulls and mounts, orders them per target |
//! | 4 | [`csi`] | the CSI services and registration with kubelet |
//! | 4 | [`control`] | the command line's operations, here or in the plugin that holds the store |
//! | 5 | [`cli`] | commands and their output |
//!
//! Beside them: [`failure`] (the vocabulary errors share), [`moment`] (where tests end the process), [`config`] (checks
//! of flags), [`limits`] (the sum of all bounds of memory), [`accept`] (connections to a listener), [`telemetry`], [`sys`]
//! (the only unsafe code), [`inode`] (metadata of files), and [`demo`] (a registry and a kubelet, for the demo and the
//! tests).

#![cfg_attr(test, allow(clippy::cast_possible_truncation, clippy::cast_sign_loss))]

pub mod accept;
pub mod cli;
pub mod config;
pub mod control;
pub mod csi;
pub mod demo;
pub mod failure;
pub mod inode;
pub mod layer;
pub mod layout;
pub mod limits;
pub mod moment;
pub mod mount;
pub mod oci;
pub mod pull;
pub mod registry;
pub mod store;
pub mod sys;
pub mod telemetry;
pub mod unpack;
pub mod volume;
