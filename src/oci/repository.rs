//! Which repository of which registry: an identity, however it is reached.

#![cfg_attr(not(test), deny(clippy::indexing_slicing))]

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::oci::reference::{OCI_LAYOUT, Reference};

/// A repository of a registry; or an image layout on this node, whose host is [`OCI_LAYOUT`] and whose name is its path.
///
/// *Invariant:* the host is in lower case and without the port that is https' own, so that a registry has one name.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Repository {
    /// The registry's host, with its port if that is not 443.
    pub host: String,
    /// The name in the registry.
    #[serde(rename = "repository")]
    pub name: String,
}

impl Repository {
    /// The repository that `reference` names.
    pub fn of(reference: &Reference) -> Self {
        Self { host: host_identity(reference.host()), name: reference.repository().to_owned() }
    }

    /// Whether it is an image layout on this node.
    pub fn is_layout(&self) -> bool {
        self.host == OCI_LAYOUT && self.name.starts_with('/')
    }
}

/// The one name of a registry's host: DNS knows no case (RFC 4343), and 443 is what https means.
pub fn host_identity(host: &str) -> String {
    let host = host.to_ascii_lowercase();
    host.strip_suffix(":443").map(str::to_owned).unwrap_or(host)
}

impl fmt::Display for Repository {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let separator = if self.is_layout() { ':' } else { '/' };
        write!(out, "{}{separator}{}", self.host, self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_registry_has_one_name() {
        let of = |text: &str| Repository::of(&text.parse().expect("a reference"));
        assert_eq!(
            of("R.example:443/a/b:v1"),
            of("r.example/a/b@sha256:0000000000000000000000000000000000000000000000000000000000000000")
        );
        assert_ne!(of("r.example:5000/a"), of("r.example/a"));
        assert_eq!(of("localhost:4430/a").host, "localhost:4430");
        let layout = of("oci-layout:/srv/x.tar:v1");
        assert!(layout.is_layout() && layout.to_string() == "oci-layout:/srv/x.tar");
        assert!(!of("oci-layout:5000/srv").is_layout() && !of("oci-layout/srv").is_layout());
    }
}
