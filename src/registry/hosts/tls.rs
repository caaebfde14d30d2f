//! What an operator says of TLS for one host, beyond what holds for all.

#![cfg_attr(not(test), deny(clippy::indexing_slicing))]

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use reqwest::{Certificate, ClientBuilder, Identity};
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

use crate::registry::hosts::file::BadHosts;

/// How connections to one host are made. Equal ones share their connections.
#[derive(Clone, Default)]
pub struct HostTls {
    /// Certificate authorities to trust beside the system's, as PEM.
    authorities: Arc<Vec<u8>>,
    /// The client's certificate and its key, as PEM.
    identity: Option<Arc<Zeroizing<Vec<u8>>>>,
    skip_verify: bool,
    dial_timeout: Option<Duration>,
    /// Hash of all that; nothing when there is nothing.
    key: Option<[u8; 32]>,
}

impl fmt::Debug for HostTls {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let has = (!self.authorities.is_empty(), self.identity.is_some(), self.skip_verify);
        write!(out, "HostTls {{ authorities, identity, skip_verify: {has:?} }}")
    }
}

/// Bytes of a file with certificates or a key.
const FILE_LIMIT: u64 = 4 << 20;

impl HostTls {
    /// Reads the files that are named: authorities, and pairs of a certificate and its key, which may be in one file.
    ///
    /// # Errors
    /// [`BadHosts`] when a file cannot be read, or has no such thing in it.
    pub fn read(
        authorities: &[PathBuf],
        pairs: &[(PathBuf, Option<PathBuf>)],
        skip_verify: bool,
        dial_timeout: Option<Duration>,
    ) -> Result<Self, BadHosts> {
        let mut pem = Vec::new();
        for path in authorities {
            let bytes = read(path)?;
            let found = Certificate::from_pem_bundle(&bytes).map_err(|error| BadHosts::of(path, &error))?;
            if found.is_empty() {
                return Err(BadHosts::of(path, "it has no certificate in PEM"));
            }
            pem.extend_from_slice(&bytes);
            pem.push(b'\n');
        }
        if let [first, _, ..] = pairs {
            tracing::warn!(used = %first.0.display(), "of several client certificates for one host the first is used");
        }
        let identity = match pairs.first() {
            None => None,
            Some((certificate, key)) => {
                let mut bytes = Zeroizing::new(read(certificate)?);
                if let Some(key) = key {
                    bytes.push(b'\n');
                    bytes.extend_from_slice(&Zeroizing::new(read(key)?));
                }
                Identity::from_pem(&bytes).map_err(|_| {
                    BadHosts::of(
                        certificate,
                        "it is no certificate with a private key, in PEM without a password",
                    )
                })?;
                Some(Arc::new(bytes))
            }
        };
        let mut tls = Self { authorities: Arc::new(pem), identity, skip_verify, dial_timeout, key: None };
        tls.key = tls.hash();
        Ok(tls)
    }

    /// The same without a client's certificate.
    #[must_use]
    pub fn without_identity(&self) -> Self {
        let mut tls = Self { identity: None, ..self.clone() };
        tls.key = tls.hash();
        tls
    }

    /// What tells it from others; nothing when nothing is said.
    pub fn key(&self) -> Option<[u8; 32]> {
        self.key
    }

    fn hash(&self) -> Option<[u8; 32]> {
        if self.authorities.is_empty()
            && self.identity.is_none()
            && !self.skip_verify
            && self.dial_timeout.is_none()
        {
            return None;
        }
        let mut hash = Sha256::new();
        hash.update((self.authorities.len() as u64).to_le_bytes());
        hash.update(self.authorities.as_slice());
        hash.update([u8::from(self.skip_verify), u8::from(self.identity.is_some())]);
        hash.update(self.dial_timeout.unwrap_or_default().as_nanos().to_le_bytes());
        if let Some(identity) = &self.identity {
            hash.update(identity.as_slice());
        }
        Some(hash.finalize().into())
    }

    /// A client that is made like that.
    ///
    /// # Errors
    /// When what was read cannot be used after all.
    pub fn apply(&self, mut client: ClientBuilder) -> Result<ClientBuilder, reqwest::Error> {
        if !self.authorities.is_empty() {
            client = client.tls_certs_merge(Certificate::from_pem_bundle(&self.authorities)?);
        }
        if let Some(identity) = &self.identity {
            client = client.identity(Identity::from_pem(identity)?);
        }
        if let Some(timeout) = self.dial_timeout {
            client = client.connect_timeout(timeout);
        }
        Ok(client.tls_danger_accept_invalid_certs(self.skip_verify))
    }
}

fn read(path: &Path) -> Result<Vec<u8>, BadHosts> {
    let size = std::fs::metadata(path).map_err(|error| BadHosts::of(path, &error))?.len();
    if size > FILE_LIMIT {
        return Err(BadHosts::of(path, &format!("it has {size} bytes, more than {FILE_LIMIT}")));
    }
    std::fs::read(path).map_err(|error| BadHosts::of(path, &error))
}
