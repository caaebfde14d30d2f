//! Where content is asked for, and on whose behalf.

use std::sync::Arc;

use crate::oci::reference::Reference;
use crate::oci::repository::Repository;
use crate::registry::credentials::secret::Credential;
use crate::tenant::Tenant;

/// A repository, asked with a credential.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Source {
    /// Where.
    pub repository: Repository,
    /// Who asks; `None` is anonymous.
    pub credential: Option<Arc<Credential>>,
}

/// A source, and the tenant whose work it is to ask there.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Asker {
    /// Where, and with which credential.
    pub source: Source,
    /// On whose behalf.
    pub tenant: Tenant,
}

impl Source {
    /// The repository of `reference`, asked as `credential`. An image layout on this node asks nobody for one, and what it holds is
    /// everybody's.
    pub fn new(reference: &Reference, credential: Option<Credential>) -> Self {
        let credential = credential.filter(|_| !reference.is_layout());
        Self { repository: Repository::of(reference), credential: credential.map(Arc::new) }
    }
}
