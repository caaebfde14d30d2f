//! The files and secrets in which credentials are kept: Docker's `config.json`.

#![cfg_attr(not(test), deny(clippy::indexing_slicing))]

use std::collections::BTreeMap;

use base64::Engine as _;
use serde::Deserialize;

use crate::registry::credentials::secret::{Credential, Secret};

/// The secret or file holds no credentials that can be read. Says where, never what.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidCredentials {
    /// Not the JSON of a Docker config.
    #[error("{place} is not a Docker config: line {line}, column {column}")]
    Json {
        /// The secret's key, or the file.
        place: String,
        /// Line of the fault.
        line: usize,
        /// Column of the fault.
        column: usize,
    },
    /// An entry cannot be used.
    #[error("{place} has an entry for {registry:?} that cannot be used: {reason}")]
    Entry {
        /// The secret's key, or the file.
        place: String,
        /// The entry's key.
        registry: String,
        /// Why.
        reason: &'static str,
    },
    /// None of the keys that are read.
    #[error(
        "the volume's secret has none of the keys .dockerconfigjson, .dockercfg, or username and password"
    )]
    NoKnownKey,
    /// More than any real secret has.
    #[error("{place} is larger than {LIMIT} bytes")]
    TooLarge {
        /// The secret's key, or the file.
        place: String,
    },
}

/// Bytes of a Docker config: what a Kubernetes secret can hold.
const LIMIT: usize = 1024 * 1024;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(in crate::registry) struct DockerConfig {
    #[serde(default)]
    pub auths: BTreeMap<String, DockerAuth>,
    pub cred_helpers: Option<BTreeMap<String, Option<String>>>,
    pub creds_store: Option<String>,
}

#[derive(Deserialize)]
pub(in crate::registry) struct DockerAuth {
    username: Option<String>,
    password: Option<String>,
    auth: Option<String>,
    identitytoken: Option<String>,
    registrytoken: Option<String>,
}

pub(in crate::registry) fn parse<T: serde::de::DeserializeOwned>(
    text: &str,
    place: &str,
) -> Result<T, InvalidCredentials> {
    if text.len() > LIMIT {
        return Err(InvalidCredentials::TooLarge { place: place.to_owned() });
    }
    // serde_json's own text can quote the input.
    serde_json::from_str(text).map_err(|error| InvalidCredentials::Json {
        place: place.to_owned(),
        line: error.line(),
        column: error.column(),
    })
}

impl DockerAuth {
    pub fn credential(self) -> Result<Option<Credential>, &'static str> {
        let (mut user, mut password) = (self.username.unwrap_or_default(), self.password.unwrap_or_default());
        if let Some(auth) = self.auth.filter(|auth| !auth.is_empty()) {
            let bytes = base64::engine::general_purpose::STANDARD
                .decode(auth.trim().trim_end_matches('\0'))
                .map_err(|_| "auth is not base64")?;
            let text = String::from_utf8(bytes).map_err(|_| "auth is not text")?;
            let (first, second) = text.split_once(':').ok_or("auth is not user:password")?;
            user = first.to_owned();
            password = second.trim_end_matches('\0').to_owned();
        }
        let token = |text: Option<String>| text.filter(|token| !token.is_empty()).map(Secret::new);
        let (identity_token, registry_token) = (token(self.identitytoken), token(self.registrytoken));
        if user.is_empty() && password.is_empty() && identity_token.is_none() && registry_token.is_none() {
            return Ok(None); // `credsStore` leaves such entries behind.
        }
        Ok(Some(Credential {
            identity_token,
            registry_token,
            ..Credential::of_user(user, Secret::new(password))
        }))
    }
}
