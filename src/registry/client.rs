//! Manifests and blobs by name.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use reqwest::{Method, header};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::Error;
use super::retry::Backoff;
use super::transport::{Body, Request, Settings, Source, Transport};
use crate::oci::{Descriptor, Digest, manifest, media_type};

/// A client for every registry. Cheap to clone; connections and tokens are shared.
#[derive(Clone)]
pub struct Registry {
    transport: Transport,
    /// Permits are bytes: of manifests that came and are not dealt with yet.
    manifests: Arc<Semaphore>,
}

/// Bytes of manifests in memory, of all requests together.
pub const MANIFEST_BYTES: usize = 16 * manifest::SIZE_LIMIT;

/// A manifest as a registry sent it.
#[derive(Debug)]
pub struct Fetched {
    /// Its bytes.
    pub bytes: Bytes,
    /// Their digest, computed here.
    pub digest: Digest,
    /// What the registry says it is.
    pub content_type: Option<String>,
    _permit: Option<OwnedSemaphorePermit>,
}

impl Registry {
    /// # Errors
    /// When the HTTP client cannot be made: no usable TLS roots, for example.
    pub fn new(settings: Settings) -> Result<Self, Error> {
        let transport = Transport::new(settings);
        let no_roots = |error: reqwest::Error| Error::Tls { reason: crate::failure::chain(&error) };
        let manifests = Arc::new(Semaphore::new(MANIFEST_BYTES));
        Ok(Self { transport: transport.map_err(no_roots)?, manifests })
    }

    /// Failures in a row after which a caller should give a source up.
    pub fn attempts(&self) -> u32 {
        self.transport.settings().attempts
    }

    /// The manifest or index at `target`, a tag or digest.
    ///
    /// # Errors
    /// When the registry refuses, cannot be reached, or sends bytes that are not those of a digest in `target`.
    pub async fn manifest(&self, source: &Source, target: &str) -> Result<Fetched, Error> {
        let accept = media_type::ACCEPTED_MANIFESTS.join(", ");
        let what = name(source, target);
        let request = Request {
            method: Method::GET,
            path: format!("manifests/{target}"),
            accept: Some(&accept),
            range: None,
            what: &what,
        };
        let mut backoff = Backoff::new(self.attempts());
        loop {
            let result = async {
                let response = self.transport.send(source, &request).await?;
                let content_type = header_text(&response, header::CONTENT_TYPE);
                // All at once and before the first byte: readers never wait for each other half-way. The time it
                // takes to read is bounded, so is the time that others wait.
                let length = response.content_length().and_then(|length| usize::try_from(length).ok());
                let length = length.unwrap_or(manifest::SIZE_LIMIT).min(manifest::SIZE_LIMIT);
                let permits = u32::try_from(length).unwrap_or(u32::MAX);
                let permit = Arc::clone(&self.manifests).acquire_many_owned(permits).await.ok();
                let bytes = self.transport.read(source, response, manifest::SIZE_LIMIT).await?;
                Ok((bytes, content_type, permit))
            };
            match result.await {
                Ok((bytes, content_type, permit)) => {
                    let digest = check(source, target, &bytes)?;
                    return Ok(Fetched { bytes, digest, content_type, _permit: permit });
                }
                Err(error) => match backoff.after(&error) {
                    Some(wait) => {
                        tracing::debug!(%error, ?wait, "retrying manifest");
                        tokio::time::sleep(wait).await;
                    }
                    None => return Err(error),
                },
            }
        }
    }

    /// The digest that `target` has now, if the registry tells it without sending the manifest.
    ///
    /// Success also proves that `source` may read the manifest.
    ///
    /// # Errors
    /// As [`Registry::manifest`].
    pub async fn resolve(&self, source: &Source, target: &str) -> Result<Option<Digest>, Error> {
        let accept = media_type::ACCEPTED_MANIFESTS.join(", ");
        let what = name(source, target);
        let response = self.head(source, format!("manifests/{target}"), Some(&accept), &what).await?;
        Ok(header_text(&response, "docker-content-digest").and_then(|text| text.parse().ok()))
    }

    /// Succeeds when `source` may read blob `digest` in its repository.
    ///
    /// # Errors
    /// As [`Registry::manifest`].
    pub async fn prove_blob(&self, source: &Source, digest: &Digest) -> Result<(), Error> {
        let what = name(source, &digest.to_string());
        self.head(source, format!("blobs/{digest}"), None, &what).await.map(drop)
    }

    /// Starts to read `range` of a blob. The registry may ignore the range: look at the answer's status.
    ///
    /// # Errors
    /// As [`Registry::manifest`], without retry: the caller knows how far it got.
    pub async fn blob(
        &self,
        source: &Source,
        blob: &Descriptor,
        range: Option<Range<u64>>,
    ) -> Result<Body, Error> {
        let what = name(source, &blob.digest.to_string());
        let path = format!("blobs/{}", blob.digest);
        let request = Request { method: Method::GET, path, accept: None, range, what: &what };
        let response = self.transport.send(source, &request).await?;
        Ok(self.transport.body(source, response))
    }

    /// Reads a small blob whole, and checks its digest.
    ///
    /// # Errors
    /// As [`Registry::manifest`]; [`Error::WrongContent`] when it is something else.
    pub async fn small_blob(&self, source: &Source, blob: &Descriptor, limit: usize) -> Result<Bytes, Error> {
        let what = name(source, &blob.digest.to_string());
        let path = format!("blobs/{}", blob.digest);
        let request = Request { method: Method::GET, path, accept: None, range: None, what: &what };
        let mut backoff = Backoff::new(self.attempts());
        let bytes = loop {
            let read = async {
                let response = self.transport.send(source, &request).await?;
                self.transport.read(source, response, limit).await
            };
            match read.await {
                Ok(bytes) => break bytes,
                Err(error) => match backoff.after(&error) {
                    Some(wait) => tokio::time::sleep(wait).await,
                    None => return Err(error),
                },
            }
        };
        check(source, &blob.digest.to_string(), &bytes)?;
        if bytes.len() as u64 != blob.size {
            let (wanted, got) =
                (blob.digest.clone(), format!("{} bytes instead of {}", bytes.len(), blob.size));
            return Err(Error::WrongContent { host: source.host.clone(), wanted, got });
        }
        Ok(bytes)
    }

    async fn head(
        &self,
        source: &Source,
        path: String,
        accept: Option<&str>,
        what: &str,
    ) -> Result<reqwest::Response, Error> {
        let request = Request { method: Method::HEAD, path, accept, range: None, what };
        let mut backoff = Backoff::new(self.attempts());
        loop {
            match self.transport.send(source, &request).await {
                Ok(response) => return Ok(response),
                Err(error) => match backoff.after(&error) {
                    Some(wait) => tokio::time::sleep(wait).await,
                    None => return Err(error),
                },
            }
        }
    }
}

/// `repository:tag` or `repository@digest`.
fn name(source: &Source, target: &str) -> String {
    let separator = if target.contains(':') { '@' } else { ':' };
    format!("{}{separator}{target}", source.repository)
}

/// The digest of `bytes`. One in `target` must match; what the registry's headers claim is not looked at.
fn check(source: &Source, target: &str, bytes: &[u8]) -> Result<Digest, Error> {
    let Ok(wanted) = target.parse::<Digest>() else { return Ok(Digest::sha256(bytes)) };
    let got = Digest::of(wanted.algorithm(), bytes);
    if got == wanted {
        return Ok(wanted);
    }
    Err(Error::WrongContent { host: source.host.clone(), wanted, got: got.to_string() })
}

fn header_text(response: &reqwest::Response, name: impl header::AsHeaderName) -> Option<String> {
    response.headers().get(name).and_then(|value| value.to_str().ok()).map(str::to_owned)
}
