//! How a pull ended, in the few words that metrics have.

use crate::failure::Kind;
use crate::host::metric::{Labels, Pairs};
use crate::pull::error::Error;
use crate::registry::error::Error as RegistryError;
use crate::store::error::Error as StoreError;
use crate::transfer::error::Error as TransferError;

/// How a pull ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// Its tree is here.
    Done,
    /// Nobody wanted it any more, or the plugin ends.
    Cancelled,
    /// The registry does not have it.
    NotFound,
    /// Credentials are missing, or give no right to it.
    Denied,
    /// The registry answers with an error.
    Registry,
    /// The registry cannot be reached, or not be believed to be itself.
    Network,
    /// Nothing came for too long.
    Stalled,
    /// The disk is used up.
    NoSpace,
    /// A namespace has as much as it may have, whatever room there is.
    Quota,
    /// Content is not what its digest says.
    Verification,
    /// Content that ocivol does not mount.
    Unsupported,
    /// The operator, or the volume, does not allow it.
    Policy,
    /// A fault of this program, or of the node.
    Internal,
}

impl Labels for Outcome {
    const ALL: &'static [(Self, Pairs)] = &[
        (Self::Done, &[("result", "ok"), ("reason", "none")]),
        (Self::Cancelled, &[("result", "cancelled"), ("reason", "none")]),
        (Self::NotFound, &[("result", "error"), ("reason", "not_found")]),
        (Self::Denied, &[("result", "error"), ("reason", "denied")]),
        (Self::Registry, &[("result", "error"), ("reason", "registry")]),
        (Self::Network, &[("result", "error"), ("reason", "network")]),
        (Self::Stalled, &[("result", "error"), ("reason", "stalled")]),
        (Self::NoSpace, &[("result", "error"), ("reason", "no_space")]),
        (Self::Quota, &[("result", "error"), ("reason", "quota")]),
        (Self::Verification, &[("result", "error"), ("reason", "verification")]),
        (Self::Unsupported, &[("result", "error"), ("reason", "unsupported")]),
        (Self::Policy, &[("result", "error"), ("reason", "policy")]),
        (Self::Internal, &[("result", "error"), ("reason", "internal")]),
    ];
}

impl Outcome {
    /// Of a pull that failed.
    pub fn of(error: &Error) -> Self {
        match error {
            Error::Registry(error) => of_registry(error),
            Error::Transfer(error) => of_transfer(error),
            Error::Store(error) => of_store(error),
            Error::Layout(_)
            | Error::Manifest { .. }
            | Error::NoChild { .. }
            | Error::OtherPlatform { .. }
            | Error::TooDeep { .. } => Self::Unsupported,
            Error::NoCredentials { .. } => Self::Denied,
            Error::NotPresent { .. } => Self::Policy,
        }
    }
}

fn of_registry(error: &RegistryError) -> Outcome {
    use RegistryError as E;
    match error {
        E::NotFound { .. } => Outcome::NotFound,
        E::CredentialsNeeded { .. }
        | E::CredentialsRefused { .. }
        | E::NoLogin { .. }
        | E::Denied { .. }
        | E::ForeignRealm { .. } => Outcome::Denied,
        E::RateLimited { .. }
        | E::Status { .. }
        | E::Elsewhere { .. }
        | E::Protocol { .. }
        | E::MirrorOnly { .. }
        | E::Hosts(_) => Outcome::Registry,
        E::Unreachable { .. } | E::Certificate { .. } | E::NoTls { .. } => Outcome::Network,
        E::Stalled { .. } | E::TooSlow { .. } => Outcome::Stalled,
        E::Address { .. } | E::Layout { .. } => Outcome::Policy,
        E::Manifest { .. } => Outcome::Unsupported,
        E::WrongContent { .. } => Outcome::Verification,
        E::Tls { .. } => Outcome::Internal,
    }
}

fn of_transfer(error: &TransferError) -> Outcome {
    match error {
        TransferError::Registry(error) => of_registry(error),
        TransferError::Store(error) => of_store(error),
        error if error.breaks_promise() => Outcome::Verification,
        TransferError::Unpack { source, .. } => match source.kind() {
            Kind::FailedPrecondition => Outcome::Unsupported,
            Kind::ResourceExhausted => Outcome::NoSpace,
            _ => Outcome::Internal,
        },
        TransferError::Crowded { .. } => Outcome::Registry,
        TransferError::Thread(_) | TransferError::Fault => Outcome::Internal,
        TransferError::Shared(error) => of_transfer(error),
    }
}

fn of_store(error: &StoreError) -> Outcome {
    use StoreError as E;
    match error {
        E::NoSpace { .. } => Outcome::NoSpace,
        E::Variants { .. } | E::Quota { .. } => Outcome::Quota,
        E::Mismatch { .. } => Outcome::Verification,
        E::Refused { .. } | E::MergeMemory { .. } | E::Selection(_) => Outcome::Unsupported,
        E::Locked { .. }
        | E::Newer { .. }
        | E::Unusable { .. }
        | E::Io { .. }
        | E::Abandoned
        | E::Damaged(_) => Outcome::Internal,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn an_error_of_any_depth_has_its_reason() {
        let stalled = RegistryError::Stalled { host: "r".into(), after: Default::default() };
        let shared = TransferError::Shared(Arc::new(TransferError::Registry(stalled)));
        assert_eq!(Outcome::of(&Error::Transfer(shared)), Outcome::Stalled);
        let full = StoreError::NoSpace { store: "/x".into(), missing: None };
        assert_eq!(Outcome::of(&Error::Transfer(TransferError::Store(full))), Outcome::NoSpace);
        let quota = StoreError::Quota { tenant: "shop".into(), what: "bytes" };
        assert_eq!(Outcome::of(&Error::Store(quota)), Outcome::Quota, "there may be room for others");
    }
}
