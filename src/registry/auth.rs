//! Answers to `WWW-Authenticate`: Basic, and Bearer tokens from the realm the registry names.
//!
//! A token belongs to one (registry, repository, credential): it is never shown to another repository, and
//! never used for a request that came with another credential.

#![cfg_attr(not(test), deny(clippy::indexing_slicing))]

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::Engine as _;
use bytes::Bytes;
use reqwest::{StatusCode, Url, header};
use serde::Deserialize;

use crate::registry::addresses::NamedBy;
use crate::registry::challenge::Challenge;
use crate::registry::clients::Clients;
use crate::registry::credentials::secret::{Credential, Secret};
use crate::registry::error::Error;
use crate::registry::hosts::tls::HostTls;
use crate::registry::http;
use crate::registry::http::Asked;
use crate::registry::place::Place;
use crate::registry::source::Source;

/// `Authorization` values that worked, so that the next request needs no 401.
#[derive(Default)]
pub struct Tokens {
    known: tokio::sync::Mutex<HashMap<Key, Slot>>,
}

/// The API's root, the registry's name, and the source: what a token is for, and by which rules it was got.
type Key = (String, String, Source);

/// One answer. Its lock is held while a token is fetched, so that many requests fetch it once.
pub type Slot = Arc<tokio::sync::Mutex<Option<Token>>>;

/// An `Authorization` value and when to stop using it.
#[derive(Debug, Clone)]
pub struct Token {
    /// The header's value.
    pub header: Secret,
    expires: Option<Instant>,
}

#[derive(Deserialize)]
struct TokenResponse {
    token: Option<String>,
    access_token: Option<String>,
    /// Seconds; some servers write -1, text, or a fraction.
    #[serde(default)]
    expires_in: serde_json::Value,
}

/// Entries kept; more are dropped and fetched again.
pub const TOKENS_LIMIT: usize = 1024;
/// Bytes of a token: no registry takes a larger header.
pub const TOKEN_LIMIT: usize = 16 * 1024;
/// Bytes of a token server's answer.
const RESPONSE_LIMIT: usize = 256 * 1024;
/// Lifetime of a token that does not say: distribution's token specification.
const DEFAULT_LIFETIME: u64 = 60;
/// Seconds that a token is believed to live at most.
const LONGEST_LIFETIME: u64 = 24 * 3600;

impl Tokens {
    /// The slot of `place`.
    pub async fn slot(&self, place: &Place) -> Slot {
        let key = (place.endpoint.base.to_string(), place.registry.clone(), place.source.clone());
        let mut known = self.known.lock().await;
        if known.len() >= TOKENS_LIMIT && !known.contains_key(&key) {
            known.clear();
        }
        known.entry(key).or_default().clone()
    }
}

impl Token {
    /// Whether it can still be used.
    pub fn is_fresh(&self) -> bool {
        self.expires.is_none_or(|expires| Instant::now() < expires)
    }

    fn basic(credential: &Credential) -> Self {
        let pair = format!("{}:{}", credential.user, credential.password.reveal());
        let text = base64::engine::general_purpose::STANDARD.encode(pair);
        Self { header: Secret::new(format!("Basic {text}")), expires: None }
    }
}

/// Who asks for a token, and what for.
pub(super) struct Asking<'a> {
    /// Whose challenge it is, and the credential for it.
    pub source: &'a Source,
    /// Whether the one that asks is spoken to without TLS; only then may the token server be.
    pub plain_http: bool,
    /// What a token has to be good for.
    pub scope: String,
    /// Where the request went: the one that asks, or one that redirected to it.
    pub place: &'a Place,
}

impl<'a> Asking<'a> {
    /// Who asks `place`. What a token of a mirror has to be good for is for the mirror to say: it may keep the repository under
    /// another name.
    pub fn of(place: &'a Place, challenge: &Challenge) -> Self {
        let own = || format!("repository:{}:pull", place.source.repository.name);
        let stated = match challenge {
            Challenge::Bearer { scope: Some(scope), .. } if place.endpoint.is_mirror() => Some(scope.clone()),
            _ => None,
        };
        let scope = stated.unwrap_or_else(own);
        Self { source: &place.source, plain_http: place.is_plain_http(), scope, place }
    }

    /// The credential, if it may be shown to the token server `realm`. A mirror gets none that is not for it.
    fn credential_for(&self, realm: &Url, clients: &Clients) -> Result<Option<&'a Credential>, Error> {
        let Some(credential) = self.source.credential.as_deref() else { return Ok(None) };
        let host = realm.host_str().unwrap_or_default();
        let is_trusted = self.place.is_trusted_with_credentials();
        let is_ours = clients.names(realm)
            || is_same_site(&name_of(&self.place.registry), host)
            || (is_trusted && is_same_site(&name_of(&self.source.repository.host), host))
            || (is_trusted && is_same_site(self.own_host(), host));
        match (is_ours, self.place.endpoint.is_mirror()) {
            (true, _) => Ok(Some(credential)),
            (false, true) => Ok(None),
            (false, false) => Err(Error::ForeignRealm {
                host: self.source.repository.host.clone(),
                server: http::host_and_port(realm),
            }),
        }
    }

    fn own_host(&self) -> &str {
        self.place.endpoint.base.host_str().unwrap_or_default()
    }
}

/// Obtains what answers `challenge`; `None` when a Basic challenge meets no credential that may be shown.
///
/// # Errors
/// When the token server may not be connected to or not be shown the credential, cannot be reached, refuses, or breaks a bound.
pub(super) async fn respond(
    clients: &Clients,
    challenge: &Challenge,
    asking: &Asking<'_>,
) -> Result<Option<Token>, Error> {
    let Asking { source, place, .. } = asking;
    let shown = source.credential.as_deref().filter(|_| place.is_trusted_with_credentials());
    if let Some(token) = shown.and_then(|known| known.registry_token.as_ref()) {
        // It is for the registry itself.
        return Ok(Some(Token { header: Secret::new(format!("Bearer {}", token.reveal())), expires: None }));
    }
    match challenge {
        Challenge::Basic => Ok(shown.map(Token::basic)),
        Challenge::Bearer { realm, service, .. } => {
            let realm = check_realm(realm, asking.plain_http)
                .map_err(|what| Error::Protocol { host: source.repository.host.clone(), what })?;
            let mut credential = asking.credential_for(&realm, clients)?;
            let is_own = realm.host_str() == Some(asking.own_host());
            let named_by = match realm.origin() == place.endpoint.base.origin() {
                true => place.named_by(),
                false if is_own => NamedBy::Reference,
                false => NamedBy::Answer,
            };
            if !is_own && place.endpoint.is_mirror() && realm.scheme() != "https" {
                // A mirror without TLS, or who is on the way to it, could have it sent in the clear.
                credential = None;
            }
            let is_site = is_same_site(asking.own_host(), realm.host_str().unwrap_or_default());
            let is_passed_on = credential.is_some() && !place.is_trusted_with_credentials();
            let tls = if is_site && !is_passed_on { place.endpoint.tls.clone() } else { HostTls::default() };
            // What a mirror wants a token for is not what it gets one for, with a pod's credential.
            let own_scope = format!("repository:{}:pull", source.repository.name);
            let scope = if is_passed_on { &own_scope } else { &asking.scope };
            let http = clients.of(named_by, &realm, &tls).await?;
            let source = Source {
                repository: source.repository.clone(),
                credential: credential.cloned().map(Arc::new),
            };
            fetch(&http, realm, service.as_deref(), &source, scope).await.map(Some)
        }
    }
}

fn check_realm(realm: &str, plain_http: bool) -> Result<Url, String> {
    let url = Url::parse(realm).map_err(|_| "names a token server that is no URL".to_owned())?;
    match url.scheme() {
        "https" => {}
        "http" if plain_http => {}
        scheme => return Err(format!("names a token server with scheme {scheme:?}; https is needed")),
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err("names a token server with credentials in its URL".to_owned());
    }
    Ok(url)
}

/// Registries and their token servers that are one owner's, by their registrable domains: those of Scaleway, of Docker Hub by
/// its other name, and of Ollama.
const SAME_OWNER: [(&str, &str); 3] =
    [("scw.cloud", "scaleway.com"), ("docker.com", "docker.io"), ("ollama.ai", "ollama.com")];

/// The name of a registry's host, as URLs have it.
pub(super) fn name_of(registry: &str) -> String {
    let url = Url::parse(&format!("http://{registry}"));
    url.ok().and_then(|url| url.host_str().map(str::to_owned)).unwrap_or_default()
}

/// Whether a registry and a token server are one host, or of one registrable domain: whoever has it says what is at all its names.
fn is_same_site(registry: &str, realm: &str) -> bool {
    fn domain(host: &str) -> Option<&str> {
        psl::domain_str(host).filter(|_| host.parse::<std::net::IpAddr>().is_err())
    }
    let are_one_owners = |registry, realm| registry == realm || SAME_OWNER.contains(&(registry, realm));
    let domains = domain(registry).zip(domain(realm));
    registry == realm || domains.is_some_and(|(registry, realm)| are_one_owners(registry, realm))
}

/// Asks the token server. Source: distribution's "Token Authentication" and "OAuth2 Token Authentication".
async fn fetch(
    http: &reqwest::Client,
    realm: Url,
    service: Option<&str>,
    source: &Source,
    scope: &str,
) -> Result<Token, Error> {
    let server = http::host_and_port(&realm);
    let send = async |request: reqwest::RequestBuilder| {
        let request = request.header(header::ACCEPT_ENCODING, "identity");
        request.send().await.map_err(|error| http::unreachable(&server, error))
    };
    let post = |grant: &[(&str, &str)]| {
        let mut form = vec![("client_id", "ocivol"), ("scope", scope)];
        form.extend(service.map(|service| ("service", service)));
        form.extend(grant);
        http.post(realm.clone()).form(&form)
    };
    let mut query = vec![("scope", scope)];
    query.extend(service.map(|service| ("service", service)));
    let get = http.get(realm.clone()).query(&query);
    let response = match source.credential.as_deref() {
        None => send(get).await?,
        Some(Credential { identity_token: Some(token), .. }) => {
            send(post(&[("grant_type", "refresh_token"), ("refresh_token", token.reveal())])).await?
        }
        Some(Credential { user, password, .. }) => {
            let response = send(get.basic_auth(user, Some(password.reveal()))).await?;
            match response.status() {
                // It has the newer of the two ways alone, as containerd asks first.
                StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED => {
                    let password = password.reveal();
                    let grant = [("grant_type", "password"), ("username", user), ("password", password)];
                    let posted = send(post(&grant)).await?;
                    // Who knows neither way is told of the first.
                    if posted.status() == StatusCode::NOT_FOUND
                        || posted.status() == StatusCode::METHOD_NOT_ALLOWED
                    {
                        response
                    } else {
                        posted
                    }
                }
                _ => response,
            }
        }
    };
    if !response.status().is_success() {
        let asked = Asked { source, server: &server, what: "a token", shown: source.credential.is_some() };
        // A token has no name that somebody could have got wrong.
        return Err(match asked.refusal(response).await {
            Error::NotFound { host, detail, .. } => {
                Error::Status { host, status: 404, retry_after: None, detail }
            }
            refusal => refusal,
        });
    }
    let (token, lifetime) = read_token(response, &server).await?;
    let expires = Instant::now() + lifetime;
    Ok(Token { header: Secret::new(format!("Bearer {}", token.reveal())), expires: Some(expires) })
}

/// The token in the answer of `server`, and how long it may be used.
pub(super) async fn read_token(
    response: reqwest::Response,
    server: &str,
) -> Result<(Secret, Duration), Error> {
    let oddity = http::oddity(response.headers());
    let body = http::read_bounded(Bytes::new(), response, RESPONSE_LIMIT, server).await?;
    let invalid = |what: String| Error::Protocol { host: server.to_owned(), what };
    // The parser's own text could quote the token.
    let found: TokenResponse = serde_json::from_slice(&body).map_err(|_| {
        let text = "sent a token response that is not valid JSON".to_owned();
        invalid(oddity.map_or(text, |oddity| format!("sent no token, but {oddity}")))
    })?;
    let token = found
        .token
        .filter(|token| !token.is_empty())
        .or(found.access_token.filter(|token| !token.is_empty()))
        .ok_or_else(|| invalid("sent a token response without a token".into()))?;
    if token.len() > TOKEN_LIMIT {
        return Err(invalid(format!("sent a token of {} bytes, more than {TOKEN_LIMIT}", token.len())));
    }
    if header::HeaderValue::from_str(&token).is_err() {
        return Err(invalid("sent a token that is no header value".into()));
    }
    // A tenth is kept as margin for the time the request takes. No clock but this machine's is looked at.
    let lifetime = Duration::from_secs(lifetime(&found.expires_in)) * 9 / 10;
    Ok((Secret::new(token), lifetime))
}

/// The seconds in `expires_in`; what is no positive number is the same as none.
fn lifetime(stated: &serde_json::Value) -> u64 {
    // Saturates, so no number is too large.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    let seconds = stated.as_f64().map_or(0, |seconds| seconds as u64);
    if seconds == 0 { DEFAULT_LIFETIME } else { seconds.min(LONGEST_LIFETIME) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regression_what_is_no_positive_number_is_the_default_lifetime() {
        let table = [
            ("300", 300),
            ("1", 1),
            ("299.5", 299),
            ("1e30", LONGEST_LIFETIME),
            ("0", DEFAULT_LIFETIME),
            ("-1", DEFAULT_LIFETIME),
            ("0.5", DEFAULT_LIFETIME),
            ("\"300\"", DEFAULT_LIFETIME),
            ("null", DEFAULT_LIFETIME),
            ("{}", DEFAULT_LIFETIME),
        ];
        for (text, expected) in table {
            let body = format!(r#"{{"access_token":"t","expires_in":{text}}}"#);
            let found: TokenResponse = serde_json::from_str(&body).expect(text);
            assert_eq!(lifetime(&found.expires_in), expected, "{text}");
        }
        let found: TokenResponse =
            serde_json::from_str(r#"{"token":null,"access_token":"t"}"#).expect("valid");
        assert_eq!((lifetime(&found.expires_in), found.token), (DEFAULT_LIFETIME, None));
    }

    #[test]
    fn t28_a_site_is_one_host_or_one_registrable_domain() {
        for (registry, realm, expected) in [
            ("docker.io", "auth.docker.io", true),
            ("registry.gitlab.com", "gitlab.com", true),
            ("127.0.0.1", "127.0.0.1", true),
            ("registry.example.co.uk", "other.co.uk", false),
            ("127.0.0.1", "127.0.0.2", false),
            ("10.0.0.1", "11.0.0.1", false),
            ("rg.fr-par.scw.cloud", "api.scaleway.com", true),
            ("api.scaleway.com", "rg.fr-par.scw.cloud", false),
            ("registry", "registry", true),
            ("registry", "auth", false),
            ("a.github.io", "b.github.io", false),
            ("[::1]", "[::2]", false),
        ] {
            assert_eq!(is_same_site(&name_of(registry), realm), expected, "{registry}, {realm}");
        }
        assert_eq!(name_of("Registry.Example:5000"), "registry.example");
        assert_eq!(name_of("[::1]:5000"), "[::1]");
    }

    #[test]
    fn t28_realms_need_tls_unless_the_registry_has_none() {
        assert!(check_realm("https://auth.example/token", false).is_ok());
        assert!(check_realm("http://auth.example/token", true).is_ok());
        for (realm, plain_http) in [
            ("http://auth.example/token", false),
            ("file:///etc/passwd", true),
            ("https://user:pw@auth.example/", false),
            ("not a url", true),
        ] {
            assert!(check_realm(realm, plain_http).is_err(), "{realm} was accepted");
        }
    }
}
