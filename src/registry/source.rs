//! Where content is asked for, and as whom.

use std::sync::Arc;

use crate::oci::reference::Reference;
use crate::registry::credentials::Credential;

/// Where content is asked for, and as whom.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Source {
    /// The registry's host, with port, as references name it.
    pub host: String,
    /// The repository.
    pub repository: String,
    /// Who asks; `None` is anonymous.
    pub credential: Option<Arc<Credential>>,
}

impl Source {
    /// The repository of `reference`, asked as `credential`.
    pub fn new(reference: &Reference, credential: Option<Credential>) -> Self {
        Self {
            host: reference.host().to_owned(),
            repository: reference.repository().to_owned(),
            credential: credential.map(Arc::new),
        }
    }
}
