//! On whose behalf work is done: the namespace of a pod, the command line, or the node itself.
//!
//! Everything that is shared is divided between tenants first (see [`fair_queue`](crate::host::fair_queue)): what one of them
//! asks for, and how slow the registries are that it names, does not hold up another.

use std::fmt;
use std::sync::Arc;

/// Who shared things are divided between.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Tenant {
    /// The namespace of a pod, as kubelet says it (`csi.storage.k8s.io/pod.namespace`, with `podInfoOnMount`). kubelet
    /// overwrites what a pod's author writes under that key.
    Namespace(Arc<str>),
    /// Who uses the command line on the node.
    CommandLine,
    /// The node, which brings what no pod waits for yet. All others go before it.
    PrePull,
    /// A caller that names no namespace: a kubelet whose CSIDriver object has no `podInfoOnMount`, or csi-sanity.
    Unnamed,
}

/// Bytes of a namespace's name that are looked at; Kubernetes' names have at most 63.
const NAME_LIMIT: usize = 253;

impl Tenant {
    /// The tenant that is the namespace `name`; [`Tenant::Unnamed`] for none.
    pub fn of_namespace(name: Option<&str>) -> Self {
        match name {
            Some(name) if !name.is_empty() => {
                let end = (0..=NAME_LIMIT.min(name.len())).rev().find(|end| name.is_char_boundary(*end));
                Self::Namespace(name[..end.unwrap_or(0)].into())
            }
            _ => Self::Unnamed,
        }
    }
}

impl Tenant {
    /// Whether nobody waits for what it asks for: it gets what others leave.
    pub fn is_last(&self) -> bool {
        matches!(self, Self::PrePull)
    }
}

impl fmt::Display for Tenant {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Namespace(name) => out.write_str(name),
            Self::CommandLine => out.write_str("(command line)"),
            Self::PrePull => out.write_str("(pre-pull)"),
            Self::Unnamed => out.write_str("(no namespace)"),
        }
    }
}
