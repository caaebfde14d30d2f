//! Answers to `WWW-Authenticate`: Basic, and Bearer tokens from the realm the registry names.
//!
//! A token belongs to one (registry, repository, credential): it is never shown to another repository, and
//! never used for a request that came with another credential.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::Engine as _;
use reqwest::Url;
use serde::Deserialize;

use super::transport::Source;
use super::{Credential, Error, Secret};

/// `Authorization` values that worked, so that the next request needs no 401.
#[derive(Default)]
pub struct Tokens {
    known: tokio::sync::Mutex<HashMap<Source, Slot>>,
}

/// One answer. Its lock is held while a token is fetched, so that many requests fetch it once.
pub type Slot = Arc<tokio::sync::Mutex<Option<Token>>>;

/// An `Authorization` value and when to stop using it.
#[derive(Debug, Clone)]
pub struct Token {
    /// The header's value.
    pub header: Secret,
    expires: Option<Instant>,
}

/// What a registry asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Challenge {
    /// User and password with every request.
    Basic,
    /// A token from `realm`.
    Bearer {
        /// The token server's URL.
        realm: String,
        /// The registry's name for itself.
        service: Option<String>,
    },
}

#[derive(Deserialize)]
struct TokenResponse {
    token: Option<String>,
    access_token: Option<String>,
    expires_in: Option<u64>,
}

/// Entries kept; more are dropped and fetched again.
pub const TOKENS_LIMIT: usize = 1024;
/// Bytes of a token: no registry takes a larger header.
pub const TOKEN_LIMIT: usize = 16 * 1024;
/// Bytes of a token server's answer.
const RESPONSE_LIMIT: usize = 256 * 1024;
/// Lifetime of a token that does not say: distribution's token specification.
const DEFAULT_LIFETIME: u64 = 60;
/// Bytes of a realm or service.
const PARAMETER_LIMIT: usize = 2048;

impl Tokens {
    /// The slot of `source`.
    pub async fn slot(&self, source: &Source) -> Slot {
        let mut known = self.known.lock().await;
        if known.len() >= TOKENS_LIMIT && !known.contains_key(source) {
            known.clear();
        }
        known.entry(source.clone()).or_default().clone()
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

/// The challenge to answer among the `WWW-Authenticate` values of a 401: Bearer before Basic.
pub fn choose<'a>(values: impl Iterator<Item = &'a str>) -> Option<Challenge> {
    let mut basic = false;
    for value in values {
        let Ok(challenges) = http_auth::parse_challenges(value) else { continue };
        for challenge in challenges {
            let parameter = |name: &str| {
                let found = challenge.params.iter().find(|(key, _)| key.eq_ignore_ascii_case(name));
                found.map(|(_, value)| value.to_unescaped()).filter(|value| value.len() <= PARAMETER_LIMIT)
            };
            if challenge.scheme.eq_ignore_ascii_case("bearer") {
                if let Some(realm) = parameter("realm") {
                    return Some(Challenge::Bearer { realm, service: parameter("service") });
                }
            } else if challenge.scheme.eq_ignore_ascii_case("basic") {
                basic = true;
            }
        }
    }
    basic.then_some(Challenge::Basic)
}

/// Obtains what answers `challenge` for `source`; `None` when a Basic challenge meets no credential.
///
/// `plain_http` says whether the registry itself is spoken to without TLS; only then may the realm be.
///
/// # Errors
/// When the token server cannot be reached, refuses, or breaks a bound.
pub async fn answer(
    http: &reqwest::Client,
    challenge: &Challenge,
    source: &Source,
    plain_http: bool,
) -> Result<Option<Token>, Error> {
    match challenge {
        Challenge::Basic => Ok(source.credential.as_deref().map(Token::basic)),
        Challenge::Bearer { realm, service } => {
            let realm = check_realm(realm, plain_http)
                .map_err(|what| Error::Protocol { host: source.host.clone(), what })?;
            fetch(http, realm, service.as_deref(), source).await.map(Some)
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

/// Asks the token server. Source: distribution's "Token Authentication" and "OAuth2 Token Authentication".
async fn fetch(
    http: &reqwest::Client,
    realm: Url,
    service: Option<&str>,
    source: &Source,
) -> Result<Token, Error> {
    let server = realm.authority().to_owned();
    let scope = format!("repository:{}:pull", source.repository);
    let identity = source.credential.as_deref().and_then(|credential| credential.identity_token.as_ref());
    let request = match (identity, source.credential.as_deref()) {
        (Some(token), _) => {
            let mut form = vec![
                ("grant_type", "refresh_token"),
                ("client_id", "ocivol"),
                ("scope", &scope),
                ("refresh_token", token.reveal()),
            ];
            form.extend(service.map(|service| ("service", service)));
            http.post(realm).form(&form)
        }
        (None, credential) => {
            let mut query = vec![("scope", scope.as_str())];
            query.extend(service.map(|service| ("service", service)));
            let request = http.get(realm).query(&query);
            match credential {
                Some(credential) => request.basic_auth(&credential.user, Some(credential.password.reveal())),
                None => request,
            }
        }
    };
    let response = request.send().await.map_err(|error| super::transport::unreachable(&server, error))?;
    let status = response.status();
    if !status.is_success() {
        return Err(super::transport::refusal(source, &server, response, "a token").await);
    }
    let body = super::transport::read_bounded(response, RESPONSE_LIMIT, &server).await?;
    let invalid = |what: &str| Error::Protocol { host: server.clone(), what: what.to_owned() };
    // The parser's own text could quote the token.
    let answer: TokenResponse =
        serde_json::from_slice(&body).map_err(|_| invalid("sent a token response that is not valid JSON"))?;
    let token = answer
        .token
        .filter(|token| !token.is_empty())
        .or(answer.access_token)
        .ok_or_else(|| invalid("sent a token response without a token"))?;
    if token.len() > TOKEN_LIMIT {
        return Err(invalid(&format!("sent a token of {} bytes, more than {TOKEN_LIMIT}", token.len())));
    }
    // A tenth is kept as margin for the time the request takes.
    let lifetime = answer.expires_in.unwrap_or(DEFAULT_LIFETIME).clamp(1, 24 * 3600);
    let expires = Instant::now() + Duration::from_secs(lifetime) * 9 / 10;
    Ok(Token { header: Secret::new(format!("Bearer {token}")), expires: Some(expires) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenges() {
        let bearer = |realm: &str, service: Option<&str>| {
            Some(Challenge::Bearer { realm: realm.into(), service: service.map(str::to_owned) })
        };
        let table: [(&[&str], _); 6] = [
            (&[r#"Basic realm="x""#], Some(Challenge::Basic)),
            (&[r#"Bearer realm="https://a/t",service="s""#], bearer("https://a/t", Some("s"))),
            (&[r#"bearer realm="https://a/t""#], bearer("https://a/t", None)),
            (&[r#"Basic realm="x""#, r#"Bearer realm="https://a/t""#], bearer("https://a/t", None)),
            (&["Negotiate"], None),
            (&["Bearer realm=\"unclosed"], None),
        ];
        for (values, expected) in table {
            assert_eq!(choose(values.iter().copied()), expected, "{values:?}");
        }
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
