//! Tokens of pods' service accounts as credentials: nothing has to be stored or rotated, and a registry that trusts the cluster's
//! issuer knows which namespace's account is asking.

#![cfg_attr(not(test), deny(clippy::indexing_slicing))]

use std::collections::BTreeMap;
use std::time::SystemTime;

use base64::Engine as _;
use reqwest::Url;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer};

use crate::oci::reference::Reference;
use crate::registry::credentials::pattern::Pattern;
use crate::registry::credentials::secret::{AccountToken, Credential, Secret, ServiceAccount};

/// Where tokens of service accounts are shown, and how.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AccountRule {
    /// Registries and repositories, as the keys of a Docker config: `registry.example/team`.
    registries: Vec<String>,
    /// The audience of the token: one of the CSIDriver's `tokenRequests`.
    pub audience: String,
    /// The user whose password the token is. Without, it is a bearer token for the registry itself.
    user: Option<String>,
    /// Where the token is exchanged for one that the registry takes (RFC 8693).
    #[serde(rename = "exchangeURL", default, deserialize_with = "url")]
    pub exchange_url: Option<Url>,
}

fn url<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Url>, D::Error> {
    let text = Option::<String>::deserialize(from)?;
    text.map(|text| Url::parse(&text).map_err(D::Error::custom)).transpose()
}

/// Why rules cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadRules {
    /// They are not the JSON of a list of rules.
    #[error(
        "they are no list of {{registries, audience, user, exchangeURL}} in JSON: line {line}, column {column}"
    )]
    Json {
        /// Line of the fault.
        line: usize,
        /// Column of the fault.
        column: usize,
    },
    /// A rule says nothing.
    #[error("the rule for audience {audience:?} needs an audience and at least one of registries")]
    Empty {
        /// The audience.
        audience: String,
    },
    /// A token would go over the network in the clear.
    #[error("exchangeURL {url} has to begin with https://")]
    PlainHttp {
        /// The URL's host.
        url: String,
    },
}

/// Reads rules, as JSON.
///
/// # Errors
/// [`BadRules`].
pub fn parse_rules(text: &str) -> Result<Vec<AccountRule>, BadRules> {
    if text.trim().is_empty() {
        return Ok(Vec::new());
    }
    let rules: Vec<AccountRule> = serde_json::from_str(text)
        .map_err(|error| BadRules::Json { line: error.line(), column: error.column() })?;
    for rule in &rules {
        if rule.audience.is_empty() || rule.registries.is_empty() {
            return Err(BadRules::Empty { audience: rule.audience.clone() });
        }
        let is_here = |url: &Url| matches!(url.host_str(), Some("127.0.0.1" | "localhost" | "[::1]"));
        if let Some(url) = rule.exchange_url.as_ref().filter(|url| url.scheme() != "https" && !is_here(url)) {
            return Err(BadRules::PlainHttp { url: url.host_str().unwrap_or_default().to_owned() });
        }
    }
    Ok(rules)
}

/// The tokens that kubelet passes with a request, by audience: CSIDriver `tokenRequests` with `serviceAccountTokenInSecrets`.
///
/// # Errors
/// Where the text is not what kubelet sends; never what it is.
pub fn parse_tokens(text: &str) -> Result<BTreeMap<String, AccountToken>, &'static str> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Sent {
        token: String,
        expiration_timestamp: String,
    }
    let sent: BTreeMap<String, Sent> = serde_json::from_str(text)
        .map_err(|_| "the service account's tokens are not those that kubelet sends")?;
    let token = |sent: Sent| {
        let expires = expiration(&sent.token)
            .unwrap_or_else(|| SystemTime::now() + std::time::Duration::from_secs(600));
        let _ = sent.expiration_timestamp; // The token itself says the same.
        AccountToken { token: Secret::new(sent.token), expires }
    };
    Ok(sent.into_iter().map(|(audience, sent)| (audience, token(sent))).collect())
}

impl AccountRule {
    /// Whether the rule is for `reference`.
    pub fn matches(&self, reference: &Reference) -> bool {
        self.registries.iter().any(|registry| Pattern::new(registry).matches(reference))
    }

    /// The credential that `token` is, or what it was exchanged for, for `account`.
    pub fn credential(&self, account: &ServiceAccount, own: &AccountToken, token: Secret) -> Credential {
        let identity = account_uid(own.token.reveal()).map(|uid| {
            let ServiceAccount { namespace, name, .. } = account;
            format!("account {namespace}/{name} {uid} {} {}", self.audience, self.registries.join(","))
        });
        match &self.user {
            Some(user) => Credential { identity, ..Credential::of_user(user, token) },
            None => {
                let user = format!("{}/{}", account.namespace, account.name);
                let bearer = Credential::of_user(user, Secret::new(""));
                Credential { registry_token: Some(token), identity, ..bearer }
            }
        }
    }
}

/// The UID of a pod's service account, as any of its tokens says it.
pub fn uid_of(account: &ServiceAccount) -> Option<String> {
    account.tokens.values().find_map(|token| account_uid(token.token.reveal()))
}

/// The claims in a token that are looked at. kubelet brings it, so nobody else can have written it.
#[derive(Deserialize)]
struct Claims {
    #[serde(rename = "exp")]
    expires: Option<u64>,
    #[serde(rename = "kubernetes.io")]
    kubernetes: Option<Kubernetes>,
}

#[derive(Deserialize)]
struct Kubernetes {
    serviceaccount: Option<Account>,
}

#[derive(Deserialize)]
struct Account {
    uid: String,
}

fn claims(token: &str) -> Option<Claims> {
    let payload = token.split('.').nth(1)?;
    let bytes = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(payload).ok()?;
    serde_json::from_slice(&bytes).ok()
}

fn expiration(token: &str) -> Option<SystemTime> {
    let expires = claims(token)?.expires?;
    SystemTime::UNIX_EPOCH.checked_add(std::time::Duration::from_secs(expires))
}

/// The UID of the account: one that is made anew under the same name is another.
fn account_uid(token: &str) -> Option<String> {
    Some(claims(token)?.kubernetes?.serviceaccount?.uid).filter(|uid| !uid.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(claims: &str) -> String {
        let part = |text: &str| base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(text);
        format!("{}.{}.{}", part("{}"), part(claims), part("signature"))
    }

    fn account(token: &str) -> ServiceAccount {
        let text = format!(r#"{{"r":{{"token":"{token}","expirationTimestamp":"2030-01-01T00:00:00Z"}}}}"#);
        let tokens = parse_tokens(&text).expect("as kubelet sends them");
        ServiceAccount { namespace: "team".into(), name: "server".into(), tokens }
    }

    #[test]
    fn a_token_is_a_password_or_a_bearer_token() {
        let text = r#"[{"registries":["r.example/team"],"audience":"r"},
            {"registries":["*.example"],"audience":"r","user":"oidc"}]"#;
        let rules = parse_rules(text).expect("valid");
        let claims = r#"{"exp":4102444800,"kubernetes.io":{"serviceaccount":{"name":"server","uid":"u-1"}}}"#;
        let jwt = token(claims);
        let account = account(&jwt);
        let own = &account.tokens["r"];
        assert_eq!(
            own.expires.duration_since(SystemTime::UNIX_EPOCH).expect("later").as_secs(),
            4_102_444_800
        );
        let bearer = rules[0].credential(&account, own, own.token.clone());
        assert_eq!(bearer.registry_token.as_ref().map(Secret::reveal), Some(jwt.as_str()));
        assert_eq!(bearer.identity.as_deref(), Some("account team/server u-1 r r.example/team"));
        let password = rules[1].credential(&account, own, own.token.clone());
        assert_eq!((password.user.as_str(), password.password.reveal()), ("oidc", jwt.as_str()));
        let matches = |reference: &str| {
            let reference = reference.parse().expect("a reference");
            rules.iter().map(|rule| rule.matches(&reference)).collect::<Vec<_>>()
        };
        assert_eq!(matches("r.example/team/x"), [true, true]);
        assert_eq!(matches("r.example/team-evil/x"), [false, true]);
        assert_eq!(matches("other/x/y"), [false, false]);
    }

    #[test]
    fn one_that_is_no_jwt_is_known_by_its_bytes() {
        let account = account("opaque");
        let rule = &parse_rules(r#"[{"registries":["r"],"audience":"r"}]"#).expect("valid")[0];
        assert_eq!(rule.credential(&account, &account.tokens["r"], Secret::new("t")).identity, None);
    }

    #[test]
    fn t41_what_cannot_be_read_is_not_shown() {
        for text in ["hunter2", r#"{"a":"hunter2"}"#, r#"{"a":{"token":7}}"#] {
            assert!(!parse_tokens(text).expect_err(text).contains("hunter2"));
        }
        assert_eq!(parse_rules(" "), Ok(Vec::new()));
        for text in [
            "{}",
            r#"[{"registries":[],"audience":"a"}]"#,
            r#"[{"registries":["r"],"audience":""}]"#,
            r#"[{"registries":["r"],"audience":"a","exchangeURL":"http://sts.example/"}]"#,
            r#"[{"registries":["r"],"audience":"a","exchangeURL":"no"}]"#,
            r#"[{"registries":["r"],"audience":"a","password":"x"}]"#,
        ] {
            assert!(parse_rules(text).is_err(), "{text}");
        }
    }
}
