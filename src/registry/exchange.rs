//! Tokens that are exchanged for others: RFC 8693, with a token of a service account as the subject.

#![cfg_attr(not(test), deny(clippy::indexing_slicing))]

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use reqwest::{Url, header};
use sha2::{Digest as _, Sha256};

use crate::registry::addresses::NamedBy;
use crate::registry::auth;
use crate::registry::clients::Clients;
use crate::registry::credentials::secret::Secret;
use crate::registry::error::Error;
use crate::registry::hosts::tls::HostTls;
use crate::registry::http;

/// Exchanges tokens, and keeps what it got as long as that is good. Cheap to clone.
#[derive(Clone)]
pub(super) struct Exchanges {
    clients: Clients,
    known: Arc<Mutex<Known>>,
}

/// What was got, and until when it is good, by the server and a hash of what it was got for.
type Known = HashMap<(Url, [u8; 32]), (Instant, Secret)>;

/// Tokens that are kept; beyond, they are asked for again.
const LIMIT: usize = 1024;

impl Exchanges {
    pub fn new(clients: Clients) -> Self {
        Self { clients, known: Arc::default() }
    }

    /// What the server at `url`, which the operator names, gives for `token`, within `patience`.
    ///
    /// # Errors
    /// When it cannot be reached, refuses, or sends no token.
    pub async fn exchange(&self, url: &Url, token: &Secret, patience: Duration) -> Result<Secret, Error> {
        let key = (url.clone(), Sha256::digest(token.reveal()).into());
        let lock = || self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((until, known)) = lock().get(&key)
            && Instant::now() < *until
        {
            return Ok(known.clone());
        }
        let host = http::host_and_port(url);
        let asked = tokio::time::timeout(patience, self.ask(url, token, &host)).await;
        let (found, until) = asked.unwrap_or(Err(Error::Stalled { host, after: patience }))?;
        let mut known = lock();
        let now = Instant::now();
        known.retain(|_, (until, _)| now < *until);
        if known.len() >= LIMIT {
            known.clear();
        }
        known.insert(key, (until, found.clone()));
        Ok(found)
    }

    async fn ask(&self, url: &Url, token: &Secret, host: &str) -> Result<(Secret, Instant), Error> {
        let client = self.clients.of(NamedBy::Operator, url, &HostTls::default()).await?;
        let form = [
            ("grant_type", "urn:ietf:params:oauth:grant-type:token-exchange"),
            ("subject_token_type", "urn:ietf:params:oauth:token-type:jwt"),
            ("requested_token_type", "urn:ietf:params:oauth:token-type:access_token"),
            ("subject_token", token.reveal()),
        ];
        let request = client.post(url.clone()).header(header::ACCEPT_ENCODING, "identity").form(&form);
        let response = request.send().await.map_err(|error| http::unreachable(host, error))?;
        let status = response.status();
        if !status.is_success() {
            let detail = " (it does not exchange the token of the pod's service account)".to_owned();
            let status = status.as_u16();
            return Err(Error::Status { host: host.to_owned(), status, retry_after: None, detail });
        }
        let (token, lifetime) = auth::read_token(response, host).await?;
        Ok((token, Instant::now() + lifetime))
    }
}
