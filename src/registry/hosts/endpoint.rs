//! One place where content of a registry is asked for: the registry's own server, or a mirror.

#![cfg_attr(not(test), deny(clippy::indexing_slicing))]

use reqwest::Url;
use reqwest::header::HeaderMap;

use crate::registry::hosts::tls::HostTls;

/// A place, and how it is asked.
#[derive(Debug, Clone)]
pub struct Endpoint {
    /// Its host, with port: what errors call it.
    pub name: String,
    /// The root of its API, `https://registry.example/v2/`; always with the slash.
    pub base: Url,
    /// What it is for the registry.
    pub role: Role,
    /// Whether manifests are asked for by digest here, and blobs.
    pub pulls: bool,
    /// Whether it is asked what a tag is.
    pub resolves: bool,
    /// The registry's name, for a place that serves several: `?ns=`.
    pub namespace: Option<String>,
    /// Sent with each request to it, and nowhere else.
    pub headers: HeaderMap,
    /// How it is connected to.
    pub tls: HostTls,
    /// Whether the operator has named its host, which may then have a loopback address.
    pub is_named: bool,
}

/// What a place is for a registry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The registry itself.
    Server,
    /// Has content of the registry, and proves no right to it unless it is authoritative: whoever asks a cache gets what others
    /// brought there.
    Mirror {
        /// The operator says that whoever may ask it may have what it sends.
        authoritative: bool,
    },
}

impl Endpoint {
    /// Whether what it gives to an asker is the asker's right.
    pub fn proves_rights(&self) -> bool {
        matches!(self.role, Role::Server | Role::Mirror { authoritative: true })
    }

    /// Whether it is a mirror.
    pub fn is_mirror(&self) -> bool {
        self.role != Role::Server
    }

    /// Drops what says who asks: headers, and the client's certificate.
    pub fn forget_identity(&mut self) {
        self.headers.clear();
        self.tls = self.tls.without_identity();
    }

    /// The URL of what is at `path`, below the API's root.
    ///
    /// # Errors
    /// When `path` makes no URL.
    pub fn url(&self, path: &str) -> Result<Url, String> {
        let mut url = self.base.join(path).map_err(|error| format!("is no host for a URL: {error}"))?;
        if let Some(namespace) = &self.namespace {
            url.query_pairs_mut().append_pair("ns", namespace);
        }
        Ok(url)
    }
}
