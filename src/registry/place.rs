//! An endpoint of a registry, and who asks there.

#![cfg_attr(not(test), deny(clippy::indexing_slicing))]

use std::sync::Arc;

use crate::registry::addresses::NamedBy;
use crate::registry::hosts::endpoint::Endpoint;
use crate::registry::source::{Asker, Source};
use crate::tenant::Tenant;

/// Where requests for a source's content go.
#[derive(Debug, Clone)]
pub struct Place {
    /// Where.
    pub endpoint: Arc<Endpoint>,
    /// The source as it is there: of a mirror the repository's host is the mirror.
    pub source: Source,
    /// The registry's name, as the reference has it.
    pub registry: String,
    /// On whose behalf it is asked.
    pub tenant: Tenant,
}

impl Place {
    /// `endpoint`, where `asker` asks.
    pub fn new(endpoint: &Arc<Endpoint>, asker: &Asker) -> Self {
        let Asker { source, tenant } = asker;
        let (registry, mut there) = (source.repository.host.clone(), source.clone());
        if endpoint.is_mirror() {
            there.repository.host.clone_from(&endpoint.name);
        }
        Self { endpoint: Arc::clone(endpoint), source: there, registry, tenant: tenant.clone() }
    }

    /// The host, with port, that errors are about.
    pub fn host(&self) -> &str {
        &self.source.repository.host
    }

    /// Whether it is spoken to without TLS.
    pub fn is_plain_http(&self) -> bool {
        self.endpoint.base.scheme() == "http"
    }

    /// Who names its host.
    pub(super) fn named_by(&self) -> NamedBy {
        if self.endpoint.is_named { NamedBy::Operator } else { NamedBy::Reference }
    }

    /// Whether a user and a password may be shown to it, or to a token server in its own domain. Of a mirror only if its operator
    /// says that it is as good as the registry.
    pub fn is_trusted_with_credentials(&self) -> bool {
        self.endpoint.proves_rights()
    }
}
