//! The objects that are read and written: where each is in the API, how it is changed, and how it is named to people.

#![cfg_attr(not(test), deny(clippy::indexing_slicing))]

use std::fmt;

use crate::failure::one_line;

/// Kinds of objects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resource {
    /// A pod.
    Pod,
    /// A secret.
    Secret,
    /// A service account.
    ServiceAccount,
    /// An event, which is written.
    Event,
    /// A node, of which only the metadata is read.
    Node,
    /// A node, all of it: also what runs there, and its images.
    WholeNode,
    /// What CSI drivers there are on a node.
    CsiNode,
    /// What an operator wants to be on nodes before their pods.
    CachedArtifact,
    /// What a node has of these, which is written.
    NodeArtifacts,
}

/// An object by its names, which are safe to be part of a path, or all objects of a kind. Displayed as `secret shop/pull`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Object {
    /// What it is.
    pub resource: Resource,
    /// Its namespace; empty for what is in none.
    pub namespace: String,
    /// Its name; empty for all of the kind.
    pub name: String,
}

/// How an object is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// It is made.
    Create,
    /// These of its fields are set (RFC 7386).
    Merge,
    /// The same, of its status.
    MergeStatus,
}

/// Names that no object can have. Displays both, cut and without control characters.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "there is no {resource} {:?} in a namespace {:?}: these are no names of Kubernetes",
    short(name),
    short(namespace)
)]
pub struct InvalidName {
    /// What was to be named.
    pub resource: Resource,
    /// The namespace.
    pub namespace: String,
    /// The name.
    pub name: String,
}

/// Where the API has Kubernetes' own objects.
const CORE: &str = "/api/v1";
/// Where it has those of storage.
const STORAGE: &str = "/apis/storage.k8s.io/v1";
/// Where it has those of the chart's definitions.
const OWN: &str = "/apis/ocivol.dev/v1alpha1";
/// Bytes of a name: of a DNS subdomain.
const NAME_LIMIT: usize = 253;
/// Characters of a name that is wrong that are shown.
const SHOWN: usize = 60;

impl Object {
    /// The object of these names.
    ///
    /// # Errors
    /// [`InvalidName`] unless both are DNS subdomains, as Kubernetes wants them: letters, digits, `-` and `.`, the first and the last
    /// a letter or digit. So neither can lead out of its place in a path.
    pub fn new(resource: Resource, namespace: &str, name: &str) -> Result<Self, InvalidName> {
        let (namespace, name) = (namespace.to_owned(), name.to_owned());
        if is_name(&namespace) && is_name(&name) {
            Ok(Self { resource, namespace, name })
        } else {
            Err(InvalidName { resource, namespace, name })
        }
    }

    /// The object of this name that is in no namespace.
    ///
    /// # Errors
    /// [`InvalidName`] unless it is a DNS subdomain.
    pub fn of_cluster(resource: Resource, name: &str) -> Result<Self, InvalidName> {
        let (namespace, name) = (String::new(), name.to_owned());
        if is_name(&name) {
            Ok(Self { resource, namespace, name })
        } else {
            Err(InvalidName { resource, namespace, name })
        }
    }

    /// All objects of a kind that is in no namespace.
    pub fn all(resource: Resource) -> Self {
        Self { resource, namespace: String::new(), name: String::new() }
    }

    /// Where the API has it.
    pub fn path(&self) -> String {
        format!("{}/{}", self.collection(), self.name)
    }

    /// Where the API has all of its kind and namespace.
    pub fn collection(&self) -> String {
        let (api, plural) = match self.resource {
            Resource::Pod => (CORE, "pods"),
            Resource::Secret => (CORE, "secrets"),
            Resource::ServiceAccount => (CORE, "serviceaccounts"),
            Resource::Event => (CORE, "events"),
            Resource::Node | Resource::WholeNode => (CORE, "nodes"),
            Resource::CsiNode => (STORAGE, "csinodes"),
            Resource::CachedArtifact => (OWN, "cachedartifacts"),
            Resource::NodeArtifacts => (OWN, "nodeartifacts"),
        };
        match self.namespace.as_str() {
            "" => format!("{api}/{plural}"),
            namespace => format!("{api}/namespaces/{namespace}/{plural}"),
        }
    }
}

/// Whether `text` is a DNS subdomain. Source: RFC 1123, and "Object Names and IDs" in the documentation of Kubernetes.
fn is_name(text: &str) -> bool {
    let is_inner =
        |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'.');
    let is_end =
        |byte: Option<u8>| byte.is_some_and(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
    text.len() <= NAME_LIMIT
        && text.bytes().all(is_inner)
        && is_end(text.bytes().next())
        && is_end(text.bytes().last())
}

/// The beginning of `text`, fit for one line.
pub(in crate::kube) fn short(text: &str) -> String {
    one_line(&text.chars().take(SHOWN).collect::<String>())
}

impl fmt::Display for Resource {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Pod => "pod",
            Self::Secret => "secret",
            Self::ServiceAccount => "service account",
            Self::Event => "event",
            Self::Node | Self::WholeNode => "node",
            Self::CsiNode => "CSINode",
            Self::CachedArtifact => "CachedArtifact",
            Self::NodeArtifacts => "NodeArtifacts",
        })
    }
}

impl fmt::Display for Object {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.namespace.as_str(), self.name.as_str()) {
            ("", "") => match self.resource {
                Resource::NodeArtifacts => write!(out, "the list of {}", self.resource),
                one => write!(out, "the list of {one}s"),
            },
            ("", name) => write!(out, "{} {name}", self.resource),
            (namespace, name) => write!(out, "{} {namespace}/{name}", self.resource),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_have_a_path_and_a_name() {
        let object = Object::new(Resource::Secret, "shop", "pull.2-a").expect("valid");
        assert_eq!(object.path(), "/api/v1/namespaces/shop/secrets/pull.2-a");
        assert_eq!(object.to_string(), "secret shop/pull.2-a");
        let node = Object::of_cluster(Resource::Node, "node-a").expect("valid");
        assert_eq!(
            (node.path().as_str(), node.to_string().as_str()),
            ("/api/v1/nodes/node-a", "node node-a")
        );
        let all = Object::all(Resource::CachedArtifact);
        assert_eq!(all.collection(), "/apis/ocivol.dev/v1alpha1/cachedartifacts");
        assert_eq!(all.to_string(), "the list of CachedArtifacts");
        assert_eq!(Object::all(Resource::NodeArtifacts).to_string(), "the list of NodeArtifacts");
    }

    #[test]
    fn names_cannot_lead_elsewhere() {
        for name in ["", ".", "..", "../pods/x", "a/b", "a?b", "a#b", "a%2fb", "A", "a\n", "-a", "a.", "ä"] {
            assert!(Object::new(Resource::Secret, "shop", name).is_err(), "{name:?}");
            assert!(Object::new(Resource::Secret, name, "pull").is_err(), "{name:?}");
            assert!(Object::of_cluster(Resource::Node, name).is_err(), "{name:?}");
        }
        assert!(Object::new(Resource::Pod, "shop", &"x".repeat(NAME_LIMIT)).is_ok());
        let error = Object::new(Resource::Pod, "shop", &"x".repeat(NAME_LIMIT + 1)).expect_err("too long");
        assert!(error.to_string().len() < 200, "{error}");
    }
}
