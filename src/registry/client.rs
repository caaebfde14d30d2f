//! Manifests and blobs by name.

#![cfg_attr(not(test), deny(clippy::indexing_slicing))]

use std::ops::Range;
use std::time::Duration;

use bytes::Bytes;
use reqwest::{Method, Response, header};

use crate::failure::Kind;
use crate::host::fair_queue::{FairQueue, Permit};
use crate::host::limits;
use crate::oci::descriptor::Descriptor;
use crate::oci::digest::Digest;
use crate::oci::{manifest, media_type};
use crate::registry::error::Error;
use crate::registry::http;
use crate::registry::http::Body;
use crate::registry::retry::{Backoff, retry};
use crate::registry::source::{Asker, Source};
use crate::registry::transport::{HttpRequest, RegistrySettings, Transport};

/// A client for every registry. Cheap to clone; connections and tokens are shared.
#[derive(Clone)]
pub struct Registry {
    transport: Transport,
    /// Requests for what is small.
    requests: FairQueue,
    /// Bytes of manifests that came and are not dealt with yet.
    manifests: FairQueue,
}

/// A manifest as a registry sent it.
#[derive(Debug)]
pub struct Fetched {
    /// Its bytes.
    pub bytes: Bytes,
    /// Their digest, computed here.
    pub digest: Digest,
    /// What the registry says it is.
    pub content_type: Option<String>,
    /// Whether another host sent it than the registry itself: one that it redirects to.
    pub from_elsewhere: bool,
    _permit: Permit,
}

impl Registry {
    /// # Errors
    /// When the HTTP client cannot be made: no usable TLS roots, for example.
    pub fn new(settings: RegistrySettings) -> Result<Self, Error> {
        let transport = Transport::new(settings);
        let no_roots = |error: reqwest::Error| Error::Tls { reason: crate::failure::chain(&error) };
        let (requests, manifests) = (
            FairQueue::with_registries(limits::SMALL_REQUESTS, limits::SMALL_PER_REGISTRY),
            FairQueue::new(limits::MANIFEST_BYTES),
        );
        Ok(Self { transport: transport.map_err(no_roots)?, requests, manifests })
    }

    /// Failures in a row after which a caller should give a source up.
    pub fn attempts(&self) -> u32 {
        self.transport.settings().attempts
    }

    /// How long a registry may say nothing at all until it is given up.
    pub fn longest_silence(&self) -> Duration {
        let settings = self.transport.settings();
        settings.stall_timeout.saturating_mul(1 << settings.attempts.min(8))
    }

    /// Whether `host` is spoken to without TLS.
    pub fn is_plain_http(&self, host: &str) -> bool {
        self.transport.settings().plain_http.contains(host)
    }

    /// The manifest or index at `target`, a tag or digest.
    ///
    /// # Errors
    /// When the registry refuses, cannot be reached, or sends bytes that are not those of a digest in `target`.
    pub async fn manifest(&self, asker: &Asker, target: &str) -> Result<Fetched, Error> {
        let Asker { source, tenant } = asker;
        let host = &source.repository.host;
        let _turn = self.requests.acquire(tenant, host, 1).await;
        let what = name(source, target);
        let settings = self.transport.settings();
        retry(settings.attempts, settings.stall_timeout, |patience| {
            let request = manifest_request(Method::GET, target, &what, patience);
            async move {
                let mut response = self.transport.send(source, &request).await?;
                let content_type = header_text(&response, header::CONTENT_TYPE);
                let oddity = http::oddity(response.headers());
                let from_elsewhere = self.transport.is_from_elsewhere(source, &response);
                // Before anything of it is read: later it is only what is left.
                let length = response.content_length().unwrap_or(manifest::SIZE_LIMIT as u64);
                // The first byte may take long, and holds nothing that others need.
                let first = self.transport.first(source, &request, &mut response).await?;
                // All at once and before more is read: readers never wait for each other half-way. The time it takes to
                // read is bounded, so is the time that others of this tenant wait.
                let permit =
                    self.manifests.acquire(tenant, host, length.min(manifest::SIZE_LIMIT as u64)).await;
                let bytes = self.transport.read(source, first, response, manifest::SIZE_LIMIT).await?;
                if !bytes.trim_ascii_start().starts_with(b"{") {
                    let kind = oddity.or_else(|| content_type.as_deref().map(crate::failure::one_line));
                    let kind =
                        kind.filter(|_| !from_elsewhere).unwrap_or_else(|| "something else".to_owned());
                    return Err(Error::Protocol {
                        host: source.repository.host.clone(),
                        what: format!("sent no manifest for {}, but {kind}", request.what),
                    });
                }
                let digest = check(source, target, &bytes, oddity, from_elsewhere)?;
                Ok(Fetched { bytes, digest, content_type, from_elsewhere, _permit: permit })
            }
        })
        .await
    }

    /// Whether the registry says, without sending it, that `digest` is what is at `target`.
    ///
    /// `true` also shows that `source` may read the manifest. `false` says nothing: a header is no content, some registries
    /// answer HEAD with the digest of something else, and some do not answer it at all.
    ///
    /// # Errors
    /// When the registry wants other credentials, or to be left alone for some time.
    pub async fn confirms(&self, asker: &Asker, target: &str, digest: &Digest) -> Result<bool, Error> {
        let source = &asker.source;
        let _turn = self.requests.acquire(&asker.tenant, &source.repository.host, 1).await;
        let what = name(source, target);
        let answered = self.head(source, |patience| manifest_request(Method::HEAD, target, &what, patience));
        let Some(response) = answered.await? else { return Ok(false) };
        let stated = header_text(&response, "docker-content-digest").and_then(|text| text.parse().ok());
        Ok(stated.as_ref() == Some(digest))
    }

    /// Whether the registry says, without sending it, that `source` may read `blob` in its repository.
    ///
    /// # Errors
    /// As [`Registry::confirms`].
    pub async fn confirms_blob(&self, asker: &Asker, blob: &Descriptor) -> Result<bool, Error> {
        let source = &asker.source;
        let _turn = self.requests.acquire(&asker.tenant, &source.repository.host, 1).await;
        let what = name(source, &blob.digest.to_string());
        let answered = self.head(source, |patience| blob_request(Method::HEAD, blob, None, &what, patience));
        let Some(response) = answered.await? else { return Ok(false) };
        // What does not speak of this blob, a page to log in for example, says nothing of it.
        let length = header_text(&response, header::CONTENT_LENGTH).map(|text| text.parse() == Ok(blob.size));
        let digest = header_text(&response, "docker-content-digest")
            .map(|text| text.parse::<Digest>().is_ok_and(|stated| stated == blob.digest));
        let said = [length, digest];
        Ok(said.contains(&Some(true))
            && !said.contains(&Some(false))
            && http::oddity(response.headers()).is_none())
    }

    /// Starts to read `range` of a blob. The registry may ignore the range: look at the answer's status.
    ///
    /// `backoff` has seen how earlier requests ended.
    ///
    /// # Errors
    /// As [`Registry::manifest`], without retry: the caller knows how far it got.
    pub async fn blob(
        &self,
        source: &Source,
        blob: &Descriptor,
        range: Option<Range<u64>>,
        backoff: &Backoff,
    ) -> Result<Body, Error> {
        let what = name(source, &blob.digest.to_string());
        let patience = backoff.patience(self.transport.settings().stall_timeout);
        let request = blob_request(Method::GET, blob, range, &what, patience);
        let response = self.transport.send(source, &request).await?;
        Ok(self.transport.body(source, &request, response))
    }

    /// Reads a small blob whole, and checks its digest.
    ///
    /// # Errors
    /// As [`Registry::manifest`]; [`Error::WrongContent`] when it is something else.
    pub async fn small_blob(&self, source: &Source, blob: &Descriptor, limit: usize) -> Result<Bytes, Error> {
        let what = name(source, &blob.digest.to_string());
        let settings = self.transport.settings();
        let bytes = retry(settings.attempts, settings.stall_timeout, |patience| {
            let request = blob_request(Method::GET, blob, None, &what, patience);
            async move {
                let mut response = self.transport.send(source, &request).await?;
                let oddity = http::oddity(response.headers());
                let from_elsewhere = self.transport.is_from_elsewhere(source, &response);
                let first = self.transport.first(source, &request, &mut response).await?;
                let bytes = self.transport.read(source, first, response, limit).await?;
                check(source, &blob.digest.to_string(), &bytes, oddity, from_elsewhere)?;
                Ok(bytes)
            }
        })
        .await?;
        if bytes.len() as u64 != blob.size {
            let (wanted, got) =
                (blob.digest.clone(), format!("{} bytes instead of {}", bytes.len(), blob.size));
            return Err(Error::WrongContent { host: source.repository.host.clone(), wanted, got });
        }
        Ok(bytes)
    }

    /// The headers of what `request` names. `None` when there is no success: not every registry, and not every URL that one
    /// redirects to, answers HEAD, so that proves nothing, and GET has the last word.
    async fn head<'a>(
        &self,
        source: &Source,
        request: impl Fn(Duration) -> HttpRequest<'a>,
    ) -> Result<Option<Response>, Error> {
        let settings = self.transport.settings();
        retry(settings.attempts, settings.stall_timeout, |_| async {
            match self.transport.send(source, &request(settings.stall_timeout)).await {
                Ok(response) => Ok(Some(response)),
                Err(error @ Error::RateLimited { .. }) => Err(error),
                Err(error) if error.kind() == Kind::Unauthenticated => Err(error),
                Err(error) => {
                    tracing::debug!(%error, "HEAD proves nothing");
                    Ok(None)
                }
            }
        })
        .await
    }
}

fn manifest_request<'a>(method: Method, target: &str, what: &'a str, patience: Duration) -> HttpRequest<'a> {
    let path = format!("manifests/{target}");
    HttpRequest { method, path, accept: &media_type::ACCEPTED_MANIFESTS, range: None, what, patience }
}

fn blob_request<'a>(
    method: Method,
    blob: &Descriptor,
    range: Option<Range<u64>>,
    what: &'a str,
    patience: Duration,
) -> HttpRequest<'a> {
    HttpRequest { method, path: format!("blobs/{}", blob.digest), accept: &[], range, what, patience }
}

/// `repository:tag` or `repository@digest`.
fn name(source: &Source, target: &str) -> String {
    let separator = if target.contains(':') { '@' } else { ':' };
    format!("{}{separator}{target}", source.repository.name)
}

/// The digest of `bytes`. One in `target` must match; what the registry's headers claim is not looked at.
fn check(
    source: &Source,
    target: &str,
    bytes: &[u8],
    oddity: Option<String>,
    from_elsewhere: bool,
) -> Result<Digest, Error> {
    let Ok(wanted) = target.parse::<Digest>() else { return Ok(Digest::sha256(bytes)) };
    let got = Digest::of(wanted.algorithm(), bytes);
    if got == wanted {
        return Ok(wanted);
    }
    let got = oddity.unwrap_or_else(|| got.to_string());
    Err(Error::wrong_content(source.repository.host.clone(), wanted, got, from_elsewhere))
}

fn header_text(response: &Response, name: impl header::AsHeaderName) -> Option<String> {
    response.headers().get(name).and_then(|value| value.to_str().ok()).map(str::to_owned)
}
