//! The distribution client: manifests and blobs from registries, with authentication.
//!
//! Async, and without a store: it returns bytes and says who sent them. Trusts no registry: every body,
//! header, redirect, token and wait has a bound, and content is for the caller to check against its digest.

pub mod answer;
pub mod auth;
pub mod challenge;
pub mod client;
pub mod credentials;
pub mod error;
pub mod retry;
pub mod transport;

pub use answer::Body;
pub use client::{Fetched, Registry};
pub use credentials::{Credential, Keyring, Secret};
pub use error::Error;
pub use transport::{Settings, Source};
