//! What can go wrong with the Kubernetes API, by what the caller does about it.

use std::time::Duration;

use crate::failure::Kind;
use crate::kube::object::{InvalidName, Object, Resource};
use crate::registry::credentials::docker_config::InvalidCredentials;

/// Why something was not read from the Kubernetes API. Objects are named; nothing of what a secret holds is.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// This process is in no pod, or its pod has no token.
    #[error(
        "cannot use the Kubernetes API as a pod does: {reason}; in the chart set what needs it, which mounts the token of the \
         service account: credentials.imagePullSecrets.enabled, credentials.providers.annotations, events.enabled, prepull.enabled"
    )]
    NotInCluster {
        /// What is missing.
        reason: String,
    },
    /// A kubeconfig that cannot be used.
    #[error("cannot use the kubeconfig {path}: {reason}")]
    Kubeconfig {
        /// The file.
        path: String,
        /// Why.
        reason: String,
    },
    /// TLS or the token cannot be set up.
    #[error(
        "cannot set up the connection to the Kubernetes API: {reason}; check the token and the certificates of the service account"
    )]
    Setup {
        /// Why.
        reason: String,
    },
    /// No connection, or it broke.
    #[error(
        "cannot reach the Kubernetes API to read {what}: {reason}; check the network of the node, and networkPolicy.egress in the chart"
    )]
    Unreachable {
        /// What was asked for.
        what: Object,
        /// The innermost cause.
        reason: String,
    },
    /// No answer within the limit.
    #[error(
        "the Kubernetes API did not answer within {limit:.1?} when it was asked for {what}; it is tried again later"
    )]
    Timeout {
        /// What was asked for.
        what: Object,
        /// The limit of that attempt.
        limit: Duration,
    },
    /// 429 or 5xx.
    #[error("the Kubernetes API answered with status {status} when it was asked for {what}{detail}")]
    Status {
        /// What was asked for.
        what: Object,
        /// The HTTP status.
        status: u16,
        /// When the API server wants to be asked again.
        retry_after: Option<Duration>,
        /// What the API server said, in brackets.
        detail: String,
    },
    /// 401.
    #[error(
        "the Kubernetes API does not accept the token of ocivol's service account, and so {what} is not read; check that the service \
         account of its DaemonSet exists, and that the clock of the node is right"
    )]
    Unauthorized {
        /// What was asked for.
        what: Object,
    },
    /// 403.
    #[error("the Kubernetes API does not let ocivol read {what}; {}{detail}", advice(what))]
    Forbidden {
        /// What was asked for.
        what: Object,
        /// What the API server said, in brackets.
        detail: String,
    },
    /// 404.
    #[error("{what} does not exist; {}", origin(what))]
    NotFound {
        /// What was asked for.
        what: Object,
    },
    /// The pod of that name is not the one that kubelet told of. Nothing was read for it.
    #[error(
        "{pod} is not the pod that the volume is for: kubelet says that it has the UID {told}, and the Kubernetes API {found}; its \
         pull secrets were not read"
    )]
    WrongPod {
        /// The pod.
        pod: Object,
        /// The UID that kubelet told.
        told: String,
        /// The UID of the pod of that name.
        found: String,
    },
    /// The API server's answer breaks a rule of its own.
    #[error("the Kubernetes API's answer for {what} {fault}")]
    Protocol {
        /// What was asked for.
        what: Object,
        /// What is wrong with it. Nothing of it is quoted.
        fault: String,
    },
    /// The answer is larger than any object.
    #[error("the Kubernetes API's answer for {what} has more than {limit} bytes, more than any object has")]
    TooLarge {
        /// What was asked for.
        what: Object,
        /// In bytes.
        limit: usize,
    },
    /// 409: it was made already, or somebody else has changed it meanwhile.
    #[error("the Kubernetes API has {what} already, or another one than was read")]
    Conflict {
        /// What was to be made.
        what: Object,
    },
    /// 410: what was seen last is no longer known, and all is read again.
    #[error("the Kubernetes API no longer knows what has changed of {what}; it is read again")]
    Expired {
        /// What was followed.
        what: Object,
    },
    /// Names that no object can have.
    #[error(transparent)]
    Name(#[from] InvalidName),
    /// A pull secret that is of another type than pull secrets are.
    #[error(
        "{secret} is in imagePullSecrets and is of type {found:?}; it has to be kubernetes.io/dockerconfigjson or \
         kubernetes.io/dockercfg"
    )]
    WrongType {
        /// The secret.
        secret: Object,
        /// Its type.
        found: String,
    },
    /// A pull secret whose key is missing, or no text.
    #[error("{secret} is in imagePullSecrets and cannot be used: its {key} {fault}")]
    Unusable {
        /// The secret.
        secret: Object,
        /// The key that its type wants.
        key: &'static str,
        /// What is wrong with it.
        fault: &'static str,
    },
    /// A pull secret that is no Docker config.
    #[error("{secret} is in imagePullSecrets and cannot be used: {source}")]
    Credentials {
        /// The secret.
        secret: Object,
        /// Why.
        source: InvalidCredentials,
    },
    /// More pull secrets than are read.
    #[error("{pod} has {count} imagePullSecrets, of which only the first {limit} are read")]
    TooMany {
        /// The pod.
        pod: Object,
        /// How many it has.
        count: usize,
        /// How many are read.
        limit: usize,
    },
}

impl Error {
    /// What the caller can do.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Unreachable { .. }
            | Self::Timeout { .. }
            | Self::Status { .. }
            | Self::Expired { .. }
            | Self::Unauthorized { .. } => Kind::Unavailable,
            Self::Forbidden { .. } => Kind::PermissionDenied,
            Self::NotFound { .. } => Kind::NotFound,
            Self::NotInCluster { .. }
            | Self::WrongPod { .. }
            | Self::Protocol { .. }
            | Self::TooLarge { .. } => Kind::FailedPrecondition,
            Self::Conflict { .. } => Kind::AlreadyExists,
            Self::Kubeconfig { .. }
            | Self::Name(_)
            | Self::WrongType { .. }
            | Self::Unusable { .. }
            | Self::Credentials { .. } => Kind::InvalidArgument,
            Self::TooMany { .. } => Kind::ResourceExhausted,
            Self::Setup { .. } => Kind::Internal,
        }
    }

    /// Whether the same request may succeed a little later, without that anybody does something.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Unreachable { .. } | Self::Timeout { .. } | Self::Status { .. })
    }
}

/// What lets the plugin read `what`.
fn advice(what: &Object) -> String {
    match what.resource {
        Resource::Pod | Resource::Secret => format!(
            "let it get pods and secrets there: credentials.imagePullSecrets in the chart, whose list of namespaces has to have {:?} \
             unless it is empty",
            what.namespace
        ),
        Resource::ServiceAccount => "let its service account get serviceaccounts there".to_owned(),
        Resource::Event => "let it create and patch events there: events.enabled in the chart".to_owned(),
        Resource::Node | Resource::WholeNode => "let it read and watch nodes, prepull.enabled in the chart; and the controller patch them, prepull.nodeLabels \
                           and prepull.startupTaint"
            .to_owned(),
        Resource::CsiNode => "let it list and watch csinodes: prepull.startupTaint in the chart".to_owned(),
        Resource::CachedArtifact => {
            "let it get, list and watch cachedartifacts: prepull.enabled in the chart".to_owned()
        }
        Resource::NodeArtifacts => {
            "let it create nodeartifacts and patch nodeartifacts/status: prepull.enabled in the chart"
                .to_owned()
        }
    }
}

/// Where the name of what does not exist is from.
fn origin(what: &Object) -> &'static str {
    match what.resource {
        Resource::Pod | Resource::ServiceAccount => "it was deleted after kubelet told of it",
        Resource::Event => "it, or its namespace, was deleted",
        Resource::Node | Resource::WholeNode => "--node-id (KUBE_NODE_NAME) has to be the node's name",
        Resource::CsiNode => "kubelet makes it",
        Resource::CachedArtifact | Resource::NodeArtifacts => {
            "the chart makes this kind of objects: prepull.enabled"
        }
        Resource::Secret => {
            "create it, or take it out of imagePullSecrets of the pod and its service account"
        }
    }
}
