//! What is said between kubelet and a credential provider: `CredentialProviderRequest` and `CredentialProviderResponse`.
//!
//! Source: credentialprovider.kubelet.k8s.io/v1 and `pkg/credentialprovider/plugin/plugin.go` of kubelet v1.36; KEP-2133, and KEP-4412
//! for what is about service accounts.

#![cfg_attr(not(test), deny(clippy::indexing_slicing))]

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::oci::reference::Reference;
use crate::registry::credentials::go_duration;
use crate::registry::credentials::pattern::Pattern;
use crate::registry::credentials::secret::{Credential, Secret};

/// What a provider is asked.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(in crate::registry) struct Request<'a> {
    kind: &'static str,
    api_version: &'a str,
    image: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    service_account_token: Option<&'a str>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    service_account_annotations: &'a BTreeMap<&'a str, &'a str>,
}

impl<'a> Request<'a> {
    /// Asks for `image`, which has no tag and no digest, in the version `protocol`.
    pub fn new(
        protocol: &'a str,
        image: &'a str,
        token: Option<&'a Secret>,
        annotations: &'a BTreeMap<&'a str, &'a str>,
    ) -> Self {
        Self {
            kind: "CredentialProviderRequest",
            api_version: protocol,
            image,
            service_account_token: token.map(Secret::reveal),
            service_account_annotations: annotations,
        }
    }

    /// The JSON of it, which may hold a token; `None` cannot be.
    pub fn text(&self) -> Option<Zeroizing<Vec<u8>>> {
        // With room for all of it, so that no copy of the token is left behind while it grows.
        let annotations =
            self.service_account_annotations.iter().map(|(key, value)| key.len() + value.len() + 8);
        let room = 1024
            + self.image.len()
            + self.service_account_token.map_or(0, str::len)
            + annotations.sum::<usize>();
        let mut text = Zeroizing::new(Vec::with_capacity(room * 2));
        serde_json::to_writer(&mut *text, self).ok()?;
        Some(text)
    }
}

/// For what an answer holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::registry) enum Scope {
    /// The image that was asked for.
    Image,
    /// All of its registry.
    Registry,
    /// Every image.
    Global,
}

/// What a provider answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::registry) struct Response {
    /// For what it holds.
    pub scope: Scope,
    /// How long it is kept; `None` when it does not say.
    pub keep: Option<Duration>,
    /// The key of each credential, as it is written and as it is read. Most specific first.
    pub credentials: Vec<(String, Pattern, Credential)>,
}

/// An answer that cannot be used. Nothing of it is in here, for it may hold credentials.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadResponse {
    /// Not the JSON of an answer.
    #[error(
        "what it printed is not the JSON of a CredentialProviderResponse, at line {line}, column {column}; standard output is for the \
         answer alone"
    )]
    Json {
        /// Line of the fault.
        line: usize,
        /// Column of the fault.
        column: usize,
    },
    /// Another version than that of the configuration, or another kind.
    #[error(
        "it answered with another {field} than {expected}; set the provider's apiVersion in the configuration to one that it speaks"
    )]
    Type {
        /// `kind` or `apiVersion`.
        field: &'static str,
        /// What it has to be.
        expected: String,
    },
    /// A field that cannot be.
    #[error("it answered with a {field} that is not {expected}; that is a fault of the provider")]
    Field {
        /// The field.
        field: &'static str,
        /// What it has to be.
        expected: &'static str,
    },
    /// The token of a pod would be shown for other pods.
    #[error(
        "it answered with the service account's token as the password, which is allowed only with the cacheType Token; set that in \
         the provider's tokenAttributes"
    )]
    Echo,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ResponseText {
    #[serde(default)]
    kind: String,
    #[serde(default)]
    api_version: String,
    #[serde(default)]
    cache_key_type: String,
    cache_duration: Option<String>,
    auth: Option<BTreeMap<String, AuthText>>,
}

#[derive(Deserialize)]
struct AuthText {
    #[serde(default)]
    username: String,
    password: Option<Secret>,
}

impl Response {
    /// Reads what a provider printed, in the version `protocol`. A duration that is not positive is 0: not kept.
    ///
    /// # Errors
    /// [`BadResponse`] when it is no answer that kubelet would take.
    pub fn parse(text: &[u8], protocol: &str) -> Result<Self, BadResponse> {
        // serde_json's own text can quote the input.
        let found: ResponseText = serde_json::from_slice(text)
            .map_err(|error| BadResponse::Json { line: error.line(), column: error.column() })?;
        for (field, found, expected) in [
            ("kind", &*found.kind, "CredentialProviderResponse"),
            ("apiVersion", &*found.api_version, protocol),
        ] {
            if found != expected {
                return Err(BadResponse::Type { field, expected: expected.to_owned() });
            }
        }
        let scope = match found.cache_key_type.as_str() {
            "Image" => Scope::Image,
            "Registry" => Scope::Registry,
            "Global" => Scope::Global,
            _ => {
                return Err(BadResponse::Field {
                    field: "cacheKeyType",
                    expected: "Image, Registry or Global",
                });
            }
        };
        let duration = |text: String| {
            let nanoseconds = go_duration::nanoseconds(&text).ok_or(BadResponse::Field {
                field: "cacheDuration",
                expected: "a length of time such as 12h0m0s",
            })?;
            Ok(u64::try_from(nanoseconds).map_or(Duration::ZERO, Duration::from_nanos))
        };
        let keep = found.cache_duration.map(duration).transpose()?;
        let credential = |(key, auth): (String, AuthText)| {
            let password = auth.password.unwrap_or_else(|| Secret::new(""));
            let says_something = !(auth.username.is_empty() && password.reveal().is_empty());
            says_something
                .then(|| (key.clone(), Pattern::new(&key), Credential::of_user(auth.username, password)))
        };
        let mut credentials: Vec<_> =
            found.auth.unwrap_or_default().into_iter().filter_map(credential).collect();
        credentials.sort_by_key(|(_, pattern, _)| std::cmp::Reverse(pattern.specificity()));
        Ok(Self { scope, keep, credentials })
    }

    /// The keys and credentials for `reference`, most specific first.
    pub fn matching<'a>(
        &'a self,
        reference: &'a Reference,
    ) -> impl Iterator<Item = (&'a str, &'a Credential)> {
        let matching = self.credentials.iter().filter(|(_, pattern, _)| pattern.matches(reference));
        matching.map(|(key, _, credential)| (key.as_str(), credential))
    }

    /// Whether one of the passwords is `token`.
    pub fn echoes(&self, token: &Secret) -> bool {
        self.credentials.iter().any(|(_, _, credential)| credential.password == *token)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const V1: &str = "credentialprovider.kubelet.k8s.io/v1";

    fn answer(rest: &str) -> String {
        format!(r#"{{"kind":"CredentialProviderResponse","apiVersion":"{V1}"{rest}}}"#)
    }

    #[test]
    fn a_request_says_no_more_than_it_has_to() {
        let none = BTreeMap::new();
        let text =
            |request: Request<'_>| String::from_utf8(request.text().expect("JSON").to_vec()).expect("UTF-8");
        assert_eq!(
            text(Request::new(V1, "docker.io/library/nginx", None, &none)),
            format!(
                r#"{{"kind":"CredentialProviderRequest","apiVersion":"{V1}","image":"docker.io/library/nginx"}}"#
            )
        );
        let (token, annotations) = (Secret::new("jwt"), BTreeMap::from([("a/b", "\"c")]));
        assert_eq!(
            text(Request::new(V1, "r.io/x", Some(&token), &annotations)),
            format!(
                r#"{{"kind":"CredentialProviderRequest","apiVersion":"{V1}","image":"r.io/x","serviceAccountToken":"jwt","serviceAccountAnnotations":{{"a/b":"\"c"}}}}"#
            )
        );
    }

    #[test]
    fn an_answer_is_read() {
        let text = answer(
            r#","cacheKeyType":"Registry","cacheDuration":"6h0m0s","auth":{"r.io":{"username":"host","password":"p"},
            "*.io":{"username":"glob","password":"p"},"r.io/team":{"username":"team","password":"p"},
            "r.io/other":{"username":"other","password":"p"},"r.io/team/none":{"username":"","password":""}},"later":1"#,
        );
        let found = Response::parse(text.as_bytes(), V1).expect("valid");
        assert_eq!((found.scope, found.keep), (Scope::Registry, Some(Duration::from_secs(6 * 3600))));
        let reference = "r.io/team/none:v1".parse().expect("a reference");
        let matching: Vec<_> =
            found.matching(&reference).map(|(key, found)| (key, found.user.as_str())).collect();
        assert_eq!(matching, [("r.io/team", "team"), ("r.io", "host"), ("*.io", "glob")]);
        assert!(found.echoes(&Secret::new("p")) && !found.echoes(&Secret::new("q")));
    }

    #[test]
    fn scopes_and_durations() {
        let keep =
            |rest: &str| Response::parse(answer(rest).as_bytes(), V1).map(|found| (found.scope, found.keep));
        let second = Duration::from_secs(1);
        assert_eq!(keep(r#","cacheKeyType":"Image""#), Ok((Scope::Image, None)));
        assert_eq!(
            keep(r#","cacheKeyType":"Image","cacheDuration":null,"auth":null"#),
            Ok((Scope::Image, None))
        );
        assert_eq!(
            keep(r#","cacheKeyType":"Global","cacheDuration":"1s""#),
            Ok((Scope::Global, Some(second)))
        );
        for none in ["0", "0s", "-5m"] {
            let rest = format!(r#","cacheKeyType":"Registry","cacheDuration":"{none}""#);
            assert_eq!(keep(&rest), Ok((Scope::Registry, Some(Duration::ZERO))), "{none}");
        }
    }

    #[test]
    fn t41_what_is_wrong_with_an_answer_is_told_without_it() {
        let auth = r#""auth":{"r.io":{"username":"u","password":"hunter2"}}"#;
        let good = answer(&format!(r#","cacheKeyType":"Image",{auth}"#));
        assert!(!format!("{:?}", Response::parse(good.as_bytes(), V1).expect("valid")).contains("hunter2"));
        for (text, expected) in [
            ("hunter2".to_owned(), "line 1, column 1"),
            (String::new(), "line 1, column 0"),
            (answer(r#","auth":"hunter2""#), "line 1"),
            (good.replace("Image", "hunter2"), "a cacheKeyType that is not Image, Registry or Global"),
            (answer(&format!(",{auth}")), "a cacheKeyType that is not"),
            (good.replace("Response", "hunter2"), "another kind than CredentialProviderResponse"),
            (
                good.replace("k8s.io/v1", "k8s.io/v1beta1"),
                "another apiVersion than credentialprovider.kubelet.k8s.io/v1;",
            ),
            (
                answer(r#","cacheKeyType":"Image","cacheDuration":"hunter2""#),
                "a cacheDuration that is not a length of time",
            ),
        ] {
            let error = Response::parse(text.as_bytes(), V1).expect_err(&text);
            let printed = format!("{error} {error:?}");
            assert!(printed.contains(expected) && !printed.contains("hunter2"), "{printed}");
        }
    }
}
