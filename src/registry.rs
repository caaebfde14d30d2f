//! The distribution client: manifests and blobs from registries, with authentication.
//!
//! Async, and without a store: it returns bytes and says who sent them. Trusts no registry: every body,
//! header, redirect, token and wait has a bound, and content is for the caller to check against its digest.

pub mod addresses;
pub mod auth;
pub mod challenge;
pub mod client;
mod clients;
pub mod credentials;
pub mod error;
mod exchange;
pub mod hosts;
pub mod http;
pub mod local;
pub mod metrics;
mod mirrors;
pub mod place;
mod proxy;
pub mod referrers;
mod resolver;
pub mod retry;
pub mod source;
pub mod transport;
mod warnings;
