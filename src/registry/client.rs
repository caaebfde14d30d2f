//! Manifests and blobs by name.

#![cfg_attr(not(test), deny(clippy::indexing_slicing))]

use std::net::IpAddr;
use std::ops::Range;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use reqwest::{Method, Response, Url, header};

use crate::failure::Kind;
use crate::host::fair_queue::{FairQueue, Permit};
use crate::host::limits;
use crate::oci::descriptor::Descriptor;
use crate::oci::digest::Digest;
use crate::oci::{manifest, media_type};
use crate::registry::credentials::secret::Secret;
use crate::registry::error::Error;
use crate::registry::http;
use crate::registry::http::Body;
use crate::registry::local::tags::Named;
use crate::registry::mirrors::Mirrors;
use crate::registry::place::Place;
use crate::registry::retry::{Backoff, retry};
use crate::registry::source::{Asker, Source};
use crate::registry::transport::{HttpRequest, RegistrySettings, Transport, is_from_elsewhere};
use crate::tenant::Tenant;

/// A client for every registry. Cheap to clone; connections and tokens are shared.
#[derive(Clone)]
pub struct Registry {
    transport: Transport,
    mirrors: Mirrors,
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
        let no_roots = |error: reqwest::Error| Error::Tls { reason: crate::failure::chain(&error) };
        let (requests, manifests) = (
            FairQueue::with_registries(limits::SMALL_REQUESTS, limits::SMALL_PER_REGISTRY),
            FairQueue::new(limits::MANIFEST_BYTES),
        );
        let transport = Transport::new(settings, manifests.clone()).map_err(no_roots)?;
        Ok(Self { transport, mirrors: Mirrors::default(), requests, manifests })
    }

    /// Makes what registries answer part of what is served.
    pub fn register(&self, registry: &mut prometheus_client::registry::Registry) {
        self.transport.metrics().register(registry);
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

    /// The first `limit` manifests that the image layout at `path` on this node names, and how many there are.
    ///
    /// # Errors
    /// When the path is not for this process to read, or is no image layout.
    pub async fn names_in_layout(
        &self,
        path: &str,
        tenant: &Tenant,
        limit: usize,
    ) -> Result<(Vec<Named>, usize), Error> {
        self.transport.layouts().names(path, tenant, limit).await
    }

    /// The manifest or index at `target`, a tag or digest: from a mirror, if the registry confirms that it may be read, else from the
    /// registry.
    ///
    /// # Errors
    /// When the registry refuses, cannot be reached, or sends bytes that are not those of a digest in `target`.
    pub async fn manifest(&self, asker: &Asker, target: &str) -> Result<Fetched, Error> {
        let wanted = target.parse::<Digest>().ok();
        let (places, unused) = self.places(asker).await?;
        let is_asked = |place: &Place| match wanted {
            Some(_) => place.endpoint.pulls,
            None => place.endpoint.resolves,
        };
        let places: Vec<Place> = places.into_iter().filter(is_asked).collect();
        let places = self.mirrors.order(places, wanted.as_ref(), 0);
        let mut unconfirmed = unused;
        let mut failed = None;
        for place in &places {
            let is_mirror = place.endpoint.is_mirror();
            // Who has others to ask asks a mirror once.
            let attempts = if is_mirror { 1 } else { self.attempts() };
            // Who has bytes of a manifest waits for no turn: others wait for bytes with theirs.
            let turn = self.requests.acquire(&asker.tenant, place.host(), 1).await;
            match self.manifest_at(place, asker, target, attempts).await {
                Ok(fetched) if place.endpoint.proves_rights() => return Ok(fetched),
                Ok(fetched) => {
                    let target = fetched.digest.to_string();
                    let confirmed = self.has_manifest(asker, &target, &fetched.digest, Some(turn));
                    if confirmed.await? {
                        return Ok(fetched);
                    }
                    unconfirmed.get_or_insert_with(|| place.host().to_owned());
                }
                Err(error) => {
                    // Not for whom: anybody can ask for the manifest that a layer's digest would be.
                    self.mirrors.failed(place, None, &error);
                    if !is_mirror || failed.is_none() {
                        failed = Some(error);
                    }
                }
            }
        }
        match (failed, unconfirmed) {
            (Some(error), Some(mirror)) if error.is_transient() => Err(Error::MirrorOnly {
                host: asker.source.repository.host.clone(),
                mirror,
                reason: error.to_string(),
            }),
            (Some(error), _) => Err(error),
            (None, _) => Err(no_place(&asker.source)),
        }
    }

    async fn manifest_at(
        &self,
        place: &Place,
        asker: &Asker,
        target: &str,
        attempts: u32,
    ) -> Result<Fetched, Error> {
        let Asker { source, tenant } = asker;
        let host = place.host();
        let what = name(source, target);
        retry(attempts, self.transport.settings().stall_timeout, |patience| {
            let request = manifest_request(Method::GET, target, &what, patience);
            async move {
                let mut response = self.transport.send(place, &request).await?;
                let content_type = header_text(&response, header::CONTENT_TYPE);
                let oddity = http::oddity(response.headers());
                let from_elsewhere = is_from_elsewhere(place, &response);
                // Before anything of it is read: later it is only what is left.
                let length = response.content_length().unwrap_or(manifest::SIZE_LIMIT as u64);
                // The first byte may take long, and holds nothing that others need.
                let first = self.transport.first(place, &request, &mut response).await?;
                // All at once and before more is read: readers never wait for each other half-way. The time it takes to
                // read is bounded, so is the time that others of this tenant wait.
                let permit =
                    self.manifests.acquire(tenant, host, length.min(manifest::SIZE_LIMIT as u64)).await;
                let bytes = self.transport.read(place, first, response, manifest::SIZE_LIMIT).await?;
                if !bytes.trim_ascii_start().starts_with(b"{") {
                    let kind = oddity.or_else(|| content_type.as_deref().map(crate::failure::one_line));
                    let kind =
                        kind.filter(|_| !from_elsewhere).unwrap_or_else(|| "something else".to_owned());
                    return Err(Error::Protocol {
                        host: host.to_owned(),
                        what: format!("sent no manifest for {}, but {kind}", request.what),
                    });
                }
                let digest = check(host, target, &bytes, oddity, from_elsewhere)?;
                Ok(Fetched { bytes, digest, content_type, from_elsewhere, _permit: permit })
            }
        })
        .await
    }

    /// Whether the word of the registry that `asker` asks shows something, without the content. Over TLS nobody else can give it; without,
    /// anybody on the network between can, but for what does not leave this machine.
    ///
    /// # Errors
    /// When the operator's file for the registry cannot be used.
    pub async fn is_believed(&self, asker: &Asker) -> Result<bool, Error> {
        let (places, _) = self.transport.places(asker).await?;
        Ok(places.iter().any(is_witness))
    }

    /// Whether the registry says, without sending it, that `digest` is what is at `target`.
    ///
    /// `true` also shows that `source` may read the manifest. `false` says nothing: a header is no content, some registries
    /// answer HEAD with the digest of something else, and some do not answer it at all.
    ///
    /// # Errors
    /// When the registry wants other credentials, or to be left alone for some time.
    pub async fn confirms(&self, asker: &Asker, target: &str, digest: &Digest) -> Result<bool, Error> {
        self.has_manifest(asker, target, digest, None).await
    }

    /// The same, in the `turn` that somebody has.
    async fn has_manifest(
        &self,
        asker: &Asker,
        target: &str,
        digest: &Digest,
        turn: Option<Permit>,
    ) -> Result<bool, Error> {
        let what = name(&asker.source, target);
        let is_tag = target.parse::<Digest>().is_err();
        let request = |patience| manifest_request(Method::HEAD, target, &what, patience);
        let Some(response) =
            self.head(asker, |place| !is_tag || place.endpoint.resolves, request, turn).await?
        else {
            return Ok(false);
        };
        let stated = header_text(&response, "docker-content-digest").and_then(|text| text.parse().ok());
        Ok(stated.as_ref() == Some(digest))
    }

    /// Whether the registry says, without sending it, that `source` may read `blob` in its repository.
    ///
    /// # Errors
    /// As [`Registry::confirms`].
    pub async fn confirms_blob(&self, asker: &Asker, blob: &Descriptor) -> Result<bool, Error> {
        let what = name(&asker.source, &blob.digest.to_string());
        let request = |patience| blob_request(Method::HEAD, blob, None, &what, patience);
        let Some(response) = self.head(asker, |_| true, request, None).await? else { return Ok(false) };
        // What does not speak of this blob, a page to log in for example, says nothing of it.
        let length = header_text(&response, header::CONTENT_LENGTH).map(|text| text.parse() == Ok(blob.size));
        let digest = header_text(&response, "docker-content-digest")
            .map(|text| text.parse::<Digest>().is_ok_and(|stated| stated == blob.digest));
        let said = [length, digest];
        Ok(said.contains(&Some(true))
            && !said.contains(&Some(false))
            && http::oddity(response.headers()).is_none())
    }

    /// Starts to read `range` of a blob, from the first of its places that answers. It may ignore the range: look at the answer's
    /// status.
    ///
    /// `backoff` has seen how earlier requests ended.
    ///
    /// # Errors
    /// As [`Registry::manifest`], without retry: the caller knows how far it got.
    pub async fn blob(
        &self,
        asker: &Asker,
        blob: &Descriptor,
        range: Option<Range<u64>>,
        backoff: &Backoff,
    ) -> Result<Body, Error> {
        let size = range.as_ref().map_or(blob.size, |range| range.end - range.start);
        let places = self.places_of_blob(asker, blob, size).await?;
        let what = name(&asker.source, &blob.digest.to_string());
        let patience = backoff.patience(self.transport.settings().stall_timeout);
        let request = blob_request(Method::GET, blob, range, &what, patience);
        let (place, response) = self.first_to_answer(&asker.source, &places, blob, &request).await?;
        let body = self.transport.body(place, &request, response);
        let meter = (places.len() > 1).then(|| self.mirrors.meter(place, &blob.digest));
        Ok(Body { meter, ..body })
    }

    /// Has `tell` tell `tenant` what `registry` warned it of, once an hour: text of the registry, fit for one line. What `tell` says
    /// it has not told is told the next time.
    pub fn tell_warnings(&self, tenant: &Tenant, registry: &str, tell: impl FnMut(&str) -> bool) {
        self.transport.warnings().tell(tenant, registry, tell);
    }

    /// What the token server at `url`, which the operator names, gives for a service account's `token`.
    ///
    /// # Errors
    /// When it cannot be reached, refuses, or sends no token.
    pub async fn exchange(&self, url: &Url, token: &Secret) -> Result<Secret, Error> {
        self.transport.exchanges.exchange(url, token, self.transport.settings().stall_timeout).await
    }

    /// Notes that `mirror` has sent something else than `digest` names: it is not asked for that for some time.
    pub fn distrust(&self, mirror: &Place, digest: &Digest) {
        tracing::warn!(mirror = mirror.host(), registry = mirror.registry, %digest, "a mirror sends other bytes than the digest names");
        self.mirrors.is_wrong(mirror, digest);
    }

    /// Notes that `mirror` sends next to nothing of `digest`: other places are asked before it for some time.
    pub fn avoid(&self, mirror: &Place, digest: &Digest) {
        self.mirrors.lacks(mirror, digest);
    }

    /// Reads a small blob whole, and checks its digest.
    ///
    /// # Errors
    /// As [`Registry::manifest`]; [`Error::WrongContent`] when it is something else.
    pub async fn small_blob(&self, asker: &Asker, blob: &Descriptor, limit: usize) -> Result<Bytes, Error> {
        let what = name(&asker.source, &blob.digest.to_string());
        let settings = self.transport.settings();
        let bytes = retry(settings.attempts, settings.stall_timeout, |patience| {
            let request = blob_request(Method::GET, blob, None, &what, patience);
            async move {
                let places = self.places_of_blob(asker, blob, blob.size).await?;
                let (place, mut response) =
                    self.first_to_answer(&asker.source, &places, blob, &request).await?;
                let oddity = http::oddity(response.headers());
                let from_elsewhere = is_from_elsewhere(place, &response);
                let first = self.transport.first(place, &request, &mut response).await?;
                let bytes = self.transport.read(place, first, response, limit).await?;
                let checked = check(place.host(), &blob.digest.to_string(), &bytes, oddity, from_elsewhere);
                match checked {
                    Err(error) if place.endpoint.is_mirror() => {
                        self.distrust(place, &blob.digest);
                        // Others are asked then.
                        Err(Error::Unreachable { host: place.host().to_owned(), reason: error.to_string() })
                    }
                    checked => checked.map(|_| bytes),
                }
            }
        })
        .await?;
        if bytes.len() as u64 != blob.size {
            let (wanted, got) =
                (blob.digest.clone(), format!("{} bytes instead of {}", bytes.len(), blob.size));
            return Err(Error::WrongContent { host: asker.source.repository.host.clone(), wanted, got });
        }
        Ok(bytes)
    }

    pub(super) fn transport(&self) -> &Transport {
        &self.transport
    }

    /// The registry itself.
    pub(super) async fn server(&self, asker: &Asker) -> Result<Place, Error> {
        let (places, _) = self.transport.places(asker).await?;
        places.into_iter().find(|place| !place.endpoint.is_mirror()).ok_or_else(|| no_place(&asker.source))
    }

    /// The places that `asker` may ask. A mirror that proves no right is one only if the registry can say who may read, and is
    /// one that the operator has named: anybody's may lie. With the name of one that may not be asked.
    async fn places(&self, asker: &Asker) -> Result<(Vec<Place>, Option<String>), Error> {
        let (mut places, is_named) = self.transport.places(asker).await?;
        let is_vouched = is_named && places.iter().any(is_witness);
        let may_be_asked = |place: &Place| place.endpoint.proves_rights() || is_vouched;
        let unused = places.iter().find(|place| !may_be_asked(place)).map(|place| place.host().to_owned());
        places.retain(may_be_asked);
        Ok((places, unused))
    }

    /// The places that are asked for `size` bytes of `blob`, best first. Mirrors that prove no right are asked when the registry has
    /// said that `asker` may read it.
    async fn places_of_blob(&self, asker: &Asker, blob: &Descriptor, size: u64) -> Result<Vec<Place>, Error> {
        let source = &asker.source;
        let (mut places, _) = self.places(asker).await?;
        places.retain(|place| place.endpoint.pulls);
        let mut places = self.mirrors.order(places, Some(&blob.digest), size);
        let proves_nothing = |place: &Place| !place.endpoint.proves_rights();
        if places.iter().any(proves_nothing) && !self.mirrors.is_confirmed(source, &blob.digest) {
            // What it says when it refuses is for the request to itself to tell.
            if self.confirms_blob(asker, blob).await.unwrap_or(false) {
                self.mirrors.confirm(source, &blob.digest);
            } else {
                places.retain(|place| place.endpoint.proves_rights());
            }
        }
        if places.is_empty() { Err(no_place(source)) } else { Ok(places) }
    }

    /// Asks `places` one after the other, and the next one as well when one takes longer than it usually does.
    async fn first_to_answer<'a>(
        &self,
        source: &Source,
        places: &'a [Place],
        blob: &Descriptor,
        request: &HttpRequest<'_>,
    ) -> Result<(&'a Place, Response), Error> {
        let ask = |place: &'a Place| async move {
            let began = Instant::now();
            (place, self.transport.send(place, request).await, began.elapsed())
        };
        let mut waiting = places.iter();
        let mut running = FuturesUnordered::new();
        let (mut failed, mut patience) = (None, Duration::ZERO);
        loop {
            if running.is_empty() || patience.is_zero() {
                match waiting.next() {
                    Some(place) => {
                        patience = self.mirrors.patience(place);
                        running.push(ask(place));
                    }
                    None if running.is_empty() => return Err(failed.unwrap_or_else(|| no_place(source))),
                    None => patience = Duration::MAX,
                }
            }
            tokio::select! {
                Some((place, outcome, wait)) = running.next() => match outcome {
                    Ok(response) => {
                        self.mirrors.answered(place, wait);
                        return Ok((place, response));
                    }
                    Err(error) => {
                        self.mirrors.failed(place, Some(&blob.digest), &error);
                        if !place.endpoint.is_mirror() || failed.is_none() {
                            failed = Some(error);
                        }
                        patience = Duration::ZERO;
                    }
                },
                () = tokio::time::sleep(patience), if waiting.len() > 0 => {
                    tracing::debug!(digest = %blob.digest, "a place is slow to answer; the next is asked as well");
                    patience = Duration::ZERO;
                }
            }
        }
    }

    /// The headers of what `request` names, from a place whose word counts. `None` when there is no success: not every registry, and
    /// not every URL that one redirects to, answers HEAD, so that proves nothing, and GET has the last word.
    async fn head<'a>(
        &self,
        asker: &Asker,
        is_asked: impl Fn(&Place) -> bool,
        request: impl Fn(Duration) -> HttpRequest<'a>,
        turn: Option<Permit>,
    ) -> Result<Option<Response>, Error> {
        let settings = self.transport.settings();
        let (places, _) = self.transport.places(asker).await?;
        for place in places.iter().filter(|place| is_witness(place) && is_asked(place)) {
            let _turn = match &turn {
                Some(_) => None,
                None => Some(self.requests.acquire(&asker.tenant, place.host(), 1).await),
            };
            let answered = retry(settings.attempts, settings.stall_timeout, |_| async {
                match self.transport.send(place, &request(settings.stall_timeout)).await {
                    Ok(response) => Ok(Some(response)),
                    Err(error @ Error::RateLimited { .. }) => Err(error),
                    Err(error) if error.kind() == Kind::Unauthenticated => Err(error),
                    Err(error) => {
                        tracing::debug!(%error, "HEAD proves nothing");
                        Ok(None)
                    }
                }
            })
            .await;
            match answered {
                Ok(None) => {}
                // Another place may know more.
                Err(error) if place.endpoint.is_mirror() => self.mirrors.failed(place, None, &error),
                answered => return answered,
            }
        }
        Ok(None)
    }
}

/// Whether the word of a place shows something, without the content.
fn is_witness(place: &Place) -> bool {
    let is_here = place.endpoint.base.host_str().is_some_and(is_on_this_machine);
    place.endpoint.proves_rights() && (!place.is_plain_http() || is_here)
}

/// Whether a host, as URLs have it, is this machine's own loopback address.
fn is_on_this_machine(host: &str) -> bool {
    let address = host.trim_matches(['[', ']']).parse::<IpAddr>();
    host == "localhost" || address.is_ok_and(|address| address.is_loopback())
}

/// The operator's file leaves nobody to ask.
fn no_place(source: &Source) -> Error {
    let host = source.repository.host.clone();
    Error::Protocol {
        host,
        what: "has no place to pull from: its hosts.toml gives none the capability, or what its mirrors send is wrong".to_owned(),
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
    host: &str,
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
    Err(Error::wrong_content(host.to_owned(), wanted, got, from_elsewhere))
}

fn header_text(response: &Response, name: impl header::AsHeaderName) -> Option<String> {
    response.headers().get(name).and_then(|value| value.to_str().ok()).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loopback_is_this_machine() {
        for host in ["localhost", "127.0.0.1", "127.8.9.1", "[::1]"] {
            assert!(is_on_this_machine(host), "{host}");
        }
        for host in ["registry.example", "10.0.0.1", "localhost.example", "127.0.0.1.example", "[fe80::1]"] {
            assert!(!is_on_this_machine(host), "{host}");
        }
    }
}
