//! What can go wrong with a registry, by what the caller does about it.

use std::time::Duration;

use crate::failure::Kind;
use crate::oci::digest::Digest;
use crate::oci::manifest::InvalidManifest;
use crate::registry::addresses::Refused;
use crate::registry::hosts::file::BadHosts;

/// Why a registry did not deliver. Hosts and repositories are named; URLs are not, their queries may be signed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// 404, or a code that means it.
    #[error("{what} does not exist in {host}; check the name and the tag in `reference`{detail}")]
    NotFound {
        /// The registry.
        host: String,
        /// Repository and tag or digest.
        what: String,
        /// What the registry said, in brackets.
        detail: String,
    },
    /// 401 without credentials.
    #[error(
        "{host} asks for credentials to read {repository} and none match; give a kubernetes.io/dockerconfigjson secret \
         for {host} as nodePublishSecretRef{detail}"
    )]
    CredentialsNeeded {
        /// The registry.
        host: String,
        /// The repository.
        repository: String,
        /// What the registry said, in brackets.
        detail: String,
    },
    /// 401 with credentials.
    #[error(
        "{host} did not accept the credentials of user {user:?} for {repository}; check user name and password in the \
         volume's secret{detail}"
    )]
    CredentialsRefused {
        /// The registry.
        host: String,
        /// The repository.
        repository: String,
        /// Whose credentials.
        user: String,
        /// What the registry said, in brackets.
        detail: String,
    },
    /// 401 that does not say how to log in, not even when it is asked for that.
    #[error(
        "{host} does not let the anonymous read {repository}, and does not say how to log in: it asks for neither Basic nor \
         Bearer{detail}"
    )]
    NoLogin {
        /// The registry.
        host: String,
        /// The repository.
        repository: String,
        /// What the registry said, in brackets.
        detail: String,
    },
    /// 403.
    #[error("{host} denies {who} the right to read {repository}{detail}")]
    Denied {
        /// The registry.
        host: String,
        /// The repository.
        repository: String,
        /// The user whose credentials were shown, or `anonymous`.
        who: String,
        /// What the registry said, in brackets.
        detail: String,
    },
    /// 429.
    #[error("{host} limits the rate of requests (429); it is tried again later{detail}")]
    RateLimited {
        /// The registry.
        host: String,
        /// When the registry wants to be asked again.
        retry_after: Option<Duration>,
        /// What the registry said, in brackets.
        detail: String,
    },
    /// 5xx, or a status that makes no sense.
    #[error("{host} answered with status {status}{detail}")]
    Status {
        /// The registry.
        host: String,
        /// The HTTP status.
        status: u16,
        /// When the registry wants to be asked again.
        retry_after: Option<Duration>,
        /// What the registry said, in brackets.
        detail: String,
    },
    /// No success at a host that the registry redirected to: a signature that is over, for example.
    #[error("{host} redirects to {server}, which answered with status {status}")]
    Elsewhere {
        /// The registry.
        host: String,
        /// The other host.
        server: String,
        /// The HTTP status. What the host said is for the log: it may be one that only the node reaches.
        status: u16,
    },
    /// No connection, or it broke.
    #[error(
        "cannot reach {host}: {reason}; check the registry's name in `reference`, and network and DNS of the node"
    )]
    Unreachable {
        /// The registry.
        host: String,
        /// The innermost cause.
        reason: String,
    },
    /// It has an address that is not connected to.
    #[error("ocivol does not connect to {host}: {reason}{}", reason.advice())]
    Address {
        /// The registry, or the host that it names.
        host: String,
        /// Why.
        reason: Refused,
    },
    /// A mirror may have it, and the registry does not say whether it may be read.
    #[error(
        "the mirror {mirror} is not used, because {host} does not say whether this pod may read it: {reason}; if whatever the mirror has \
         may be read by everybody who uses this node, name it in --authoritative-mirrors (registry.authoritativeMirrors in the \
         chart)"
    )]
    MirrorOnly {
        /// The registry.
        host: String,
        /// The mirror.
        mirror: String,
        /// What became of asking the registry.
        reason: String,
    },
    /// The operator's file for the registry cannot be used.
    #[error(transparent)]
    Hosts(#[from] BadHosts),
    /// A token server that is somebody else's would be shown the credentials for the registry.
    #[error(
        "{host} names {server} as its token server, which is of another domain, and so is not shown the credentials for {host}; if \
         that is meant, name {server} in --allow-hosts (registry.allowedHosts in the chart)"
    )]
    ForeignRealm {
        /// The registry.
        host: String,
        /// The token server.
        server: String,
    },
    /// Nobody that is trusted says that the host is who it should be.
    #[error(
        "cannot check the certificate of {host}: {reason}; if an authority of your own signed it, name its bundle: \
         registry.caConfigMap in the chart, SSL_CERT_FILE on the command line"
    )]
    Certificate {
        /// The registry, or its token server.
        host: String,
        /// What is wrong with it.
        reason: String,
    },
    /// What answers at the port speaks no TLS.
    #[error(
        "{host} does not speak TLS; if it is a registry for which that is meant, name it in --plain-http: registry.plainHTTP in \
         the chart"
    )]
    NoTls {
        /// The registry, or its token server.
        host: String,
    },
    /// No byte came for longer than the limit.
    #[error("{host} sent nothing for {} s", after.as_secs())]
    Stalled {
        /// The registry.
        host: String,
        /// The limit.
        after: Duration,
    },
    /// Bytes come, but so few that they only hold others up.
    #[error("{host} sent next to nothing for {} s; the pull continues where it was when it is tried again", over.as_secs())]
    TooSlow {
        /// The registry.
        host: String,
        /// The time it was watched.
        over: Duration,
    },
    /// The registry breaks the protocol or a bound.
    #[error("{host} {what}")]
    Protocol {
        /// The registry.
        host: String,
        /// What it did.
        what: String,
    },
    /// A manifest that cannot be read.
    #[error("{what} from {host} cannot be used: {source}")]
    Manifest {
        /// The registry.
        host: String,
        /// Repository and tag or digest.
        what: String,
        /// Why.
        source: InvalidManifest,
    },
    /// A path that this process does not read as an image layout, because nobody allowed it to.
    #[error("oci-layout:{path} is not read: {reason}")]
    Layout {
        /// The path.
        path: String,
        /// Why, and what can be done about it.
        reason: String,
    },
    /// This machine has no certificates to check registries with.
    #[error("cannot set up TLS: {reason}; install ca-certificates, or name a bundle in SSL_CERT_FILE")]
    Tls {
        /// Why.
        reason: String,
    },
    /// Bytes that are not those the digest names.
    #[error("{host} sent wrong content for {wanted}: got {got}; nothing was stored or mounted")]
    WrongContent {
        /// The registry.
        host: String,
        /// The digest asked for.
        wanted: Digest,
        /// The digest of what came, or its size.
        got: String,
    },
}

impl Error {
    /// What the caller can do.
    pub fn kind(&self) -> Kind {
        match self {
            Self::NotFound { .. } => Kind::NotFound,
            Self::CredentialsNeeded { .. } | Self::CredentialsRefused { .. } | Self::NoLogin { .. } => {
                Kind::Unauthenticated
            }
            Self::Denied { .. } | Self::Address { .. } | Self::ForeignRealm { .. } => Kind::PermissionDenied,
            Self::RateLimited { .. }
            | Self::Status { .. }
            | Self::Elsewhere { .. }
            | Self::Certificate { .. }
            | Self::NoTls { .. }
            | Self::Unreachable { .. }
            | Self::Stalled { .. }
            | Self::MirrorOnly { .. }
            | Self::Hosts(_)
            | Self::TooSlow { .. } => Kind::Unavailable,
            Self::Layout { .. } => Kind::InvalidArgument,
            Self::Tls { .. } => Kind::Internal,
            Self::Protocol { .. } | Self::Manifest { .. } | Self::WrongContent { .. } => {
                Kind::FailedPrecondition
            }
        }
    }

    /// Other bytes than those of `wanted`, which are `got`. Of those that a registry redirects to, which may be anything that this
    /// node reaches, only the log tells.
    pub fn wrong_content(host: String, wanted: Digest, got: String, from_elsewhere: bool) -> Self {
        if !from_elsewhere {
            return Self::WrongContent { host, wanted, got };
        }
        tracing::warn!(host, %wanted, got, "a host that the registry redirects to sends other bytes");
        let got = "other content from where it redirects to; the node's log says more".to_owned();
        Self::WrongContent { host, wanted, got }
    }

    /// The same, with what is to know of credentials that could not be had, if they could have made a difference.
    #[must_use]
    pub fn with_notes(mut self, notes: &[String]) -> Self {
        if let Self::CredentialsNeeded { detail, .. }
        | Self::CredentialsRefused { detail, .. }
        | Self::NotFound { detail, .. }
        | Self::Denied { detail, .. } = &mut self
            && !notes.is_empty()
        {
            detail.push_str(&format!(" ({})", crate::failure::one_line(&notes.join("; "))));
        }
        self
    }

    /// Whether the same request may succeed a little later.
    pub fn is_transient(&self) -> bool {
        let is_for_the_operator =
            matches!(self, Self::Certificate { .. } | Self::NoTls { .. } | Self::Hosts(_));
        self.kind() == Kind::Unavailable && !is_for_the_operator
    }

    /// Whether other credentials could make a difference.
    pub fn is_about_access(&self) -> bool {
        let is_access =
            matches!(self.kind(), Kind::Unauthenticated | Kind::PermissionDenied | Kind::NotFound);
        is_access && !matches!(self, Self::Address { .. })
    }
}
