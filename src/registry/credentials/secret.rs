//! What proves who asks, and is never printed.

use std::fmt;

/// Text that is never printed: not by `Debug`, not by `Display`, not in an error.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Secret(String);

impl Secret {
    /// Wraps `text`.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text itself, for the one place that sends it.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("***")
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
}
