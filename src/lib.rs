//! ocivol mounts what an OCI registry holds into Kubernetes pods as read-only volumes.
//!
//! The rooms, lowest first. `tests/layering.rs` draws which may use which; a module says where it takes what from with a
//! path from `crate`, and nothing is re-exported.
//!
//! | room | what is in it |
//! |---|---|
//! | [`failure`] | the vocabulary that the errors of all rooms share |
//! | [`tenant`] | on whose behalf work is done |
//! | [`oci`] | references, digests, manifests, platforms: pure data |
//! | [`layer`] | what tar layers hold, and what several hold together: indexes and their merge: pure data |
//! | [`layout`] | from a manifest to a plan of files, one file for each artifact family: pure functions |
//! | [`host`] | what process and kernel give: the only unsafe code, threads that may block, sockets, metadata of files, limits |
//! | [`registry`] | the distribution client: authentication, retries, ranges (async) |
//! | [`kube`] | what is read from the Kubernetes API: pull secrets of pods, service accounts (async) |
//! | [`store`] | verified blobs, layers and trees on disk, durable in the background (sync) |
//! | [`unpack`] | bytes of a layer become files and an index, in one pass (sync) |
//! | [`mount`] | the mount table, checked targets, attach and detach (sync) |
//! | [`transfer`] | one blob from any of its sources into the store |
//! | [`pull`] | from a reference to a complete tree, once for all who ask |
//! | [`warm`] | cached models are read into memory before their pods read them (sync) |
//! | [`volume`] | publish, unpublish, usage: joins pulls and mounts, orders them for each target |
//! | [`prepull`] | what operators want to be on the node before its pods: brought, kept, told of (async) |
//! | [`provision`] | from a claim and its StorageClass to the attributes of a volume |
//! | [`csi`] | the CSI services and registration with kubelet |
//! | [`control`] | the command line's operations, here or in the plugin that holds the store |
//! | [`telemetry`] | logs, metrics, health |
//! | [`demo`] | a registry and a kubelet, for `ocivol demo` and the tests |
//! | [`node`] | the daemon: configuration, start, drain, shutdown |
//! | [`controller`] | the process that makes volumes of claims |
//! | [`cli`] | commands and their output |

#![cfg_attr(test, allow(clippy::cast_possible_truncation, clippy::cast_sign_loss))]

pub mod cli;
pub mod control;
pub mod controller;
pub mod csi;
pub mod demo;
pub mod failure;
pub mod host;
pub mod kube;
pub mod layer;
pub mod layout;
pub mod mount;
pub mod node;
pub mod oci;
pub mod prepull;
pub mod provision;
pub mod pull;
pub mod registry;
pub mod store;
pub mod telemetry;
pub mod tenant;
pub mod transfer;
pub mod unpack;
pub mod volume;
pub mod warm;
