//! One HTTP exchange with a registry: authentication, redirects, bounds.

#![cfg_attr(not(test), deny(clippy::indexing_slicing))]

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use reqwest::header::{self, HeaderValue};
use reqwest::{Method, Response, StatusCode, Url};

use crate::host::fair_queue::FairQueue;
use crate::oci::reference::OCI_LAYOUT;
use crate::oci::repository::Repository;
use crate::registry::addresses::{Addresses, NamedBy};
use crate::registry::auth::{Asking, Slot, Token, Tokens};
use crate::registry::challenge::Challenge;
use crate::registry::clients::Clients;
use crate::registry::error::Error;
use crate::registry::exchange::Exchanges;
use crate::registry::hosts::directory::{Hosts, HostsSettings};
use crate::registry::hosts::tls::HostTls;
use crate::registry::http::{Asked, Body};
use crate::registry::local::layouts::{LayoutRequest, Layouts};
use crate::registry::local::places::Places;
use crate::registry::metrics::Metrics;
use crate::registry::place::Place;
use crate::registry::source::{Asker, Source};
use crate::registry::warnings::Warnings;
use crate::registry::{auth, challenge, http};

/// How registries are spoken to.
#[derive(Debug, Clone)]
pub struct RegistrySettings {
    /// Where registries are.
    pub hosts: HostsSettings,
    /// What may be connected to.
    pub addresses: Addresses,
    /// Where image layouts on this node may lie (`oci-layout:/path`).
    pub layouts: Places,
    /// Wait for a connection.
    pub connect_timeout: Duration,
    /// Wait for the first or the next byte of an answer; then the request counts as stalled. When it is asked again,
    /// the wait for the first byte is doubled: caches that fetch on demand are silent for as long as that takes.
    pub stall_timeout: Duration,
    /// Failures in a row after which a request is given up.
    pub attempts: u32,
    /// Hosts, with their ports, that metrics tell apart.
    pub told_apart: Vec<String>,
}

impl Default for RegistrySettings {
    fn default() -> Self {
        Self {
            hosts: HostsSettings::default(),
            addresses: Addresses::default(),
            layouts: Places::default(),
            connect_timeout: Duration::from_secs(10),
            stall_timeout: Duration::from_secs(30),
            attempts: 4,
            told_apart: Vec::new(),
        }
    }
}

/// The HTTP client and what it knows of registries. Cheap to clone.
#[derive(Clone)]
pub(super) struct Transport {
    pub(super) exchanges: Exchanges,
    clients: Clients,
    layouts: Layouts,
    settings: Arc<RegistrySettings>,
    tokens: Arc<Tokens>,
    hosts: Hosts,
    warnings: Warnings,
    metrics: Metrics,
}

/// What to ask for.
#[derive(Debug, Clone)]
pub(super) struct HttpRequest<'a> {
    pub method: Method,
    /// Below `/v2/<repository>/`.
    pub path: String,
    /// Media types, best first.
    pub accept: &'a [&'a str],
    pub range: Option<std::ops::Range<u64>>,
    /// In words, for errors.
    pub what: &'a str,
    /// Wait for the first byte.
    pub patience: Duration,
}

/// Redirects followed for one request.
const REDIRECT_LIMIT: usize = 5;
/// What an answer has to be before a registry is asked how to log in, although it did not say that one has to.
const HIDES: [StatusCode; 3] = [StatusCode::UNAUTHORIZED, StatusCode::FORBIDDEN, StatusCode::NOT_FOUND];
/// How registries refuse a token that is no longer good.
const REFUSED: [StatusCode; 3] = [StatusCode::BAD_REQUEST, StatusCode::UNAUTHORIZED, StatusCode::FORBIDDEN];

impl Transport {
    /// Indexes of image layouts count in `manifests`, in bytes.
    ///
    /// # Errors
    /// When no TLS configuration can be made.
    pub fn new(settings: RegistrySettings, manifests: FairQueue) -> Result<Self, reqwest::Error> {
        let clients = Clients::new(settings.addresses.clone(), settings.connect_timeout)?;
        let hosts = Hosts::new(settings.hosts.clone());
        let exchanges = Exchanges::new(clients.clone());
        let layouts = Layouts::new(settings.layouts.clone(), manifests);
        Ok(Self {
            layouts,
            exchanges,
            warnings: Warnings::default(),
            metrics: Metrics::new(&settings.told_apart),
            clients,
            settings: Arc::new(settings),
            tokens: Arc::default(),
            hosts,
        })
    }

    pub fn settings(&self) -> &RegistrySettings {
        &self.settings
    }

    /// What registries have warned those who asked of.
    pub fn warnings(&self) -> &Warnings {
        &self.warnings
    }

    /// What was answered so far.
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// Image layouts on this node.
    pub fn layouts(&self) -> &Layouts {
        &self.layouts
    }

    /// The places where the content of `asker`'s source is, in the order in which they are asked; the last is the registry itself. With
    /// whether the operator has named the registry.
    pub async fn places(&self, asker: &Asker) -> Result<(Vec<Place>, bool), Error> {
        let places = self.hosts.of(&asker.source.repository.host).await?;
        Ok((places.all.iter().map(|endpoint| Place::new(endpoint, asker)).collect(), places.is_named))
    }

    /// Asks `place` with what is known of it, and once more with what it then asks for.
    pub async fn send(&self, place: &Place, request: &HttpRequest<'_>) -> Result<Response, Error> {
        let source = &place.source;
        if source.repository.is_layout() {
            let (is_head, path, range) =
                (request.method == Method::HEAD, request.path.as_str(), request.range.clone());
            let url = url(place, "")?;
            let (layout, tenant) = (source.repository.name.as_str(), &place.tenant);
            let asked = LayoutRequest { layout, tenant, path, is_head, range, url };
            return self.bounded(OCI_LAYOUT, request.patience, self.layouts.answer(asked)).await;
        }
        let url = url(place, &format!("{}/{}", source.repository.name, request.path))?;
        let slot = self.tokens.slot(place).await;
        let cached = slot.lock().await.clone().filter(Token::is_fresh);
        let mut response = self.follow(place, request, &url, cached.as_ref()).await?;
        let mut shown = cached.is_some();
        // A token may be refused before its time: it is fetched anew, once.
        let refused = cached.filter(|_| is_from(&url, &response) && REFUSED.contains(&response.status()));
        let mut refusal = None;
        if refused.is_some() && challenge_of(&response).is_none() {
            // Without a token the registry says what it wants.
            let unshown = self.follow(place, request, &url, None).await?;
            refusal = Some(std::mem::replace(&mut response, unshown));
            shown = false;
        }
        if (refused.is_some() || !shown) && is_from(&url, &response) {
            let token = self.token_for(place, request, &slot, &response, refused.as_ref()).await?;
            let is_new = |token: &Token| refused.as_ref().is_none_or(|old| old.header != token.header);
            match (token, refusal) {
                (Some(token), _) if is_new(&token) => {
                    response = self.follow(place, request, &url, Some(&token)).await?;
                    shown = true;
                    if response.status() == StatusCode::UNAUTHORIZED {
                        *slot.lock().await = None;
                    }
                }
                // The same token would be refused again, for the same reason.
                (Some(_), Some(refusal)) => (response, shown) = (refusal, true),
                (Some(_), None) => shown = true,
                (None, _) => {}
            }
        }
        if is_from(&url, &response) {
            self.warnings.hear(place, response.headers());
        }
        if matches!(response.status(), StatusCode::OK | StatusCode::PARTIAL_CONTENT) {
            return Ok(response);
        }
        let own = is_from(&url, &response);
        let server = if own { source.repository.host.clone() } else { http::host_and_port(response.url()) };
        let asked = Asked {
            source,
            server: &server,
            what: request.what,
            shown: shown && source.credential.is_some(),
        };
        let refusal = async {
            Err(if own { asked.refusal(response).await } else { asked.refusal_elsewhere(response).await })
        };
        self.bounded(&source.repository.host, self.settings.stall_timeout, refusal).await
    }

    /// What answers the challenge in `response`, or the one that the registry has when it is asked for it: some hide what the
    /// anonymous may not see, and ask for no credentials.
    async fn token_for(
        &self,
        place: &Place,
        request: &HttpRequest<'_>,
        slot: &Slot,
        response: &Response,
        refused: Option<&Token>,
    ) -> Result<Option<Token>, Error> {
        let source = &place.source;
        if let Some(challenge) = challenge_of(response) {
            return self.token(place, slot, &challenge, refused).await;
        }
        if source.credential.is_none() || !HIDES.contains(&response.status()) {
            return Ok(None);
        }
        let Some(challenge) = self.ask_for_challenge(place, request).await else { return Ok(None) };
        match self.token(place, slot, &challenge, refused).await {
            // Nobody asked for it, and GET has the last word.
            Err(error) if request.method == Method::HEAD => {
                tracing::debug!(host = source.repository.host, %error, "no token for what may be hidden");
                Ok(None)
            }
            token => token,
        }
    }

    /// What the registry itself asks for, of whoever comes: distribution-spec v1.1, end-1.
    async fn ask_for_challenge(&self, place: &Place, request: &HttpRequest<'_>) -> Option<Challenge> {
        let url = url(place, "").ok()?;
        let ping = HttpRequest {
            method: Method::GET,
            path: String::new(),
            accept: &[],
            range: None,
            ..request.clone()
        };
        match self.follow(place, &ping, &url, None).await {
            Ok(response) if is_from(&url, &response) => challenge_of(&response),
            Ok(_) => None,
            Err(error) => {
                tracing::debug!(host = place.host(), %error, "cannot ask how to log in");
                None
            }
        }
    }

    /// The answer to `challenge`, which takes the place of `refused`. `None` when there is no credential for it.
    async fn token(
        &self,
        place: &Place,
        slot: &Slot,
        challenge: &Challenge,
        refused: Option<&Token>,
    ) -> Result<Option<Token>, Error> {
        let mut slot = slot.lock().await;
        // Another request may have fetched a new token while this one waited for the lock.
        let newer = slot
            .as_ref()
            .filter(|token| token.is_fresh() && refused.is_none_or(|refused| refused.header != token.header));
        if let Some(token) = newer {
            return Ok(Some(token.clone()));
        }
        let asking = Asking::of(place, challenge);
        let fetched = auth::respond(&self.clients, challenge, &asking);
        let fetched = self.bounded(place.host(), self.settings.stall_timeout, fetched).await;
        if matches!(challenge, Challenge::Bearer { .. }) {
            self.metrics.token(&fetched);
        }
        *slot = fetched?;
        Ok(slot.clone())
    }

    /// Sends the request to `origin` and follows redirects. The `Authorization` value is for that origin only.
    async fn follow(
        &self,
        place: &Place,
        request: &HttpRequest<'_>,
        origin: &Url,
        token: Option<&Token>,
    ) -> Result<Response, Error> {
        let source = &place.source;
        let protocol = |what: String| Error::Protocol { host: source.repository.host.clone(), what };
        let mut url = origin.clone();
        // A host that was redirected to may want a token of its own, which anybody gets.
        let mut guest: Option<(Url, Token)> = None;
        for _ in 0..=REDIRECT_LIMIT {
            let own = url.origin() == origin.origin();
            let shown = match &guest {
                _ if own => token,
                Some((other, token)) if other.origin() == url.origin() => Some(token),
                _ => None,
            };
            let sent = async {
                // Another port of the registry's host is no other host.
                let named_by = match url.host() == origin.host() {
                    _ if own => place.named_by(),
                    true => NamedBy::Reference,
                    false => NamedBy::Answer,
                };
                let tls = if own { place.endpoint.tls.clone() } else { HostTls::default() };
                let client = self.clients.of(named_by, &url, &tls).await?;
                let mut outgoing = outgoing(&client, request, &url, shown).map_err(protocol)?;
                if own {
                    outgoing = with_headers(outgoing, place, shown.is_some());
                }
                outgoing.send().await.map_err(|error| http::unreachable(&host_of(source, &url, own), error))
            };
            let began = Instant::now();
            let response = self.bounded(&source.repository.host, request.patience, sent).await;
            self.metrics.answered(&place.registry, began.elapsed(), &response);
            let response = response?;
            if response.status() == StatusCode::UNAUTHORIZED && !own && shown.is_none() {
                let Some(token) = self.guest_token(place, &url, &response).await? else {
                    return Ok(response);
                };
                guest = Some((url.clone(), token));
                continue;
            }
            if !response.status().is_redirection() {
                return Ok(response);
            }
            let location = response
                .headers()
                .get(header::LOCATION)
                .and_then(|value| value.to_str().ok())
                .and_then(|value| url.join(value).ok())
                .ok_or_else(|| protocol("sent a redirect without a usable Location".into()))?;
            let downgrade = url.scheme() == "https" && location.scheme() != "https";
            if downgrade || !matches!(location.scheme(), "https" | "http") {
                return Err(protocol(format!("redirects from https to {}", location.scheme())));
            }
            url = location;
        }
        Err(protocol(format!("redirects more than {REDIRECT_LIMIT} times")))
    }

    /// A token that the host of `url` gives to anybody, if that is what its 401 asks for.
    async fn guest_token(
        &self,
        place: &Place,
        url: &Url,
        response: &Response,
    ) -> Result<Option<Token>, Error> {
        let Some(challenge) = challenge_of(response) else { return Ok(None) };
        let Challenge::Bearer { scope, .. } = &challenge else { return Ok(None) };
        let name = place.source.repository.name.clone();
        let own_scope = || format!("repository:{name}:pull");
        let scope = scope.clone().unwrap_or_else(own_scope);
        let repository = Repository { host: http::host_and_port(url), name };
        let guest = Source { repository, credential: None };
        let asking = Asking { source: &guest, plain_http: url.scheme() == "http", scope, place };
        let fetched = auth::respond(&self.clients, &challenge, &asking);
        match self.bounded(&guest.repository.host, self.settings.stall_timeout, fetched).await {
            Ok(token) => Ok(token),
            Err(error @ Error::Address { .. }) => Err(error),
            Err(error) => {
                tracing::debug!(host = guest.repository.host, %error, "no token for the host that was redirected to");
                Ok(None)
            }
        }
    }

    /// Runs `work` for at most `after`.
    async fn bounded<T>(
        &self,
        host: &str,
        after: Duration,
        work: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        tokio::time::timeout(after, work)
            .await
            .unwrap_or_else(|_| Err(Error::Stalled { host: host.to_owned(), after }))
    }

    /// The body of `response`, to be read as it comes; its first byte may take as long as the answer might have.
    pub fn body(&self, place: &Place, request: &HttpRequest<'_>, response: Response) -> Body {
        Body {
            elsewhere: is_from_elsewhere(place, &response),
            response,
            host: place.host().to_owned(),
            meter: None,
            first_timeout: Some(request.patience),
            stall_timeout: self.settings.stall_timeout,
        }
    }

    /// The first bytes of a body, for which the request is as patient as for the headers.
    pub async fn first(
        &self,
        place: &Place,
        request: &HttpRequest<'_>,
        response: &mut Response,
    ) -> Result<Bytes, Error> {
        let first = async {
            let chunk = response.chunk().await.map_err(|error| http::unreachable(place.host(), error))?;
            Ok(chunk.unwrap_or_default())
        };
        self.bounded(place.host(), request.patience, first).await
    }

    /// The body of `response`, whole, which begins with `first`.
    pub async fn read(
        &self,
        place: &Place,
        first: Bytes,
        response: Response,
        limit: usize,
    ) -> Result<Bytes, Error> {
        let read = http::read_bounded(first, response, limit, place.host());
        self.bounded(place.host(), self.settings.stall_timeout, read).await
    }
}

fn outgoing(
    client: &reqwest::Client,
    request: &HttpRequest<'_>,
    url: &Url,
    token: Option<&Token>,
) -> Result<reqwest::RequestBuilder, String> {
    let mut outgoing = client.request(request.method.clone(), url.clone());
    // The digest is over the bytes as they are stored.
    outgoing = outgoing.header(header::ACCEPT_ENCODING, "identity");
    // A line for each: there are registries that look at the first line's first type, or do not split lines.
    for accepted in request.accept {
        outgoing = outgoing.header(header::ACCEPT, *accepted);
    }
    if let Some(range) = &request.range {
        outgoing = outgoing.header(header::RANGE, format!("bytes={}-{}", range.start, range.end - 1));
    }
    if let Some(token) = token {
        let mut value = HeaderValue::from_str(token.header.reveal())
            .map_err(|_| "sent a token that is no header value".to_owned())?;
        value.set_sensitive(true);
        outgoing = outgoing.header(header::AUTHORIZATION, value);
    }
    Ok(outgoing)
}

/// The URL of `path` at `place`.
fn url(place: &Place, path: &str) -> Result<Url, Error> {
    place.endpoint.url(path).map_err(|what| Error::Protocol { host: place.host().to_owned(), what })
}

/// Whether another host has answered than the one that was asked: one that it redirects to.
pub(super) fn is_from_elsewhere(place: &Place, response: &Response) -> bool {
    !is_from(&place.endpoint.base, response)
}

/// The headers that the operator wants to be sent to `place`. A token takes the place of the operator's `Authorization`.
fn with_headers(
    mut outgoing: reqwest::RequestBuilder,
    place: &Place,
    has_token: bool,
) -> reqwest::RequestBuilder {
    for (name, value) in &place.endpoint.headers {
        if !has_token || *name != header::AUTHORIZATION {
            outgoing = outgoing.header(name, value.clone());
        }
    }
    outgoing
}

/// Whether the origin of `url` answered itself. Nobody else may ask for our credentials, or say what they are worth.
fn is_from(url: &Url, response: &Response) -> bool {
    url.origin() == response.url().origin()
}

/// What a 401 asks for.
fn challenge_of(response: &Response) -> Option<Challenge> {
    if response.status() != StatusCode::UNAUTHORIZED {
        return None;
    }
    let values = response.headers().get_all(header::WWW_AUTHENTICATE);
    challenge::choose(values.iter().filter_map(|value| value.to_str().ok()))
}

/// Whom an error is about.
fn host_of(source: &Source, url: &Url, own: bool) -> String {
    if own { source.repository.host.clone() } else { http::host_and_port(url) }
}
