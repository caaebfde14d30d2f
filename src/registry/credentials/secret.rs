//! What proves who asks, and is never printed.

use std::collections::BTreeMap;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::time::SystemTime;

use serde::{Deserialize, Deserializer};
use zeroize::Zeroizing;

/// Text that is never printed: not by `Debug`, not by `Display`, not in an error. Its memory is overwritten when it is dropped.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Zeroizing<String>);

impl Secret {
    /// Wraps `text`.
    pub fn new(text: impl Into<String>) -> Self {
        Self(Zeroizing::new(text.into()))
    }

    /// The text itself, for the one place that sends it.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl Hash for Secret {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.reveal().hash(state);
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("***")
    }
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        String::deserialize(from).map(Self::new)
    }
}

/// What proves to a registry who is asking.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Credential {
    /// The user's name; may appear in errors.
    pub user: String,
    /// Password or access token.
    pub password: Secret,
    /// An OAuth2 refresh token, instead of a password (Docker's `identitytoken`).
    pub identity_token: Option<Secret>,
    /// A token for the registry itself, which needs no token server (Docker's `registrytoken`, or a service account's).
    pub registry_token: Option<Secret>,
    /// Whose it is, where that is known apart from its bytes: `secret 0b6f…`, or `provider ecr *.dkr.ecr.*.amazonaws.com`. What was
    /// shown with one is shown with whatever takes its place, as in kubelet (KEP-2535, "same secret coordinates").
    pub identity: Option<String>,
}

impl Credential {
    /// A user and a password.
    pub fn of_user(user: impl Into<String>, password: Secret) -> Self {
        Self { user: user.into(), password, identity_token: None, registry_token: None, identity: None }
    }
}

/// The service account of a pod, as far as kubelet tells of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceAccount {
    /// The pod's namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Tokens by their audience: those that the CSIDriver's `tokenRequests` name.
    pub tokens: BTreeMap<String, AccountToken>,
}

/// A token of a service account.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccountToken {
    /// The token: a JWT.
    pub token: Secret,
    /// When it stops to be good.
    pub expires: SystemTime,
}
