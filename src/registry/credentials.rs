//! Credentials, and the choice of those that fit a reference.

use std::collections::BTreeMap;
use std::fmt;

use base64::Engine as _;
use serde::Deserialize;

use crate::oci::reference::{DOCKER_HUB, Reference};

/// Text that is never printed: not by `Debug`, not by `Display`, not in an error.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Secret(String);

impl Secret {
    /// Wraps `text`.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text itself, for the one place that sends it.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("***")
    }
}

/// What proves to a registry who is asking.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Credential {
    /// The user's name; may appear in errors.
    pub user: String,
    /// Password or access token.
    pub password: Secret,
    /// An OAuth2 refresh token, instead of a password (Docker's `identitytoken`).
    pub identity_token: Option<Secret>,
}

/// Credentials by registry or repository, as in a Docker `config.json`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Keyring {
    /// Most specific first.
    entries: Vec<(Pattern, Credential)>,
    /// Programs that would have more, by registry; an empty one is every registry. They are not run.
    helpers: BTreeMap<String, String>,
}

/// The secret or file holds no credentials that can be read. Says where, never what.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidCredentials {
    /// Not the JSON of a Docker config.
    #[error("{place} is not a Docker config: line {line}, column {column}")]
    Json {
        /// The secret's key, or the file.
        place: String,
        /// Line of the fault.
        line: usize,
        /// Column of the fault.
        column: usize,
    },
    /// An entry cannot be used.
    #[error("{place} has an entry for {registry:?} that cannot be used: {reason}")]
    Entry {
        /// The secret's key, or the file.
        place: String,
        /// The entry's key.
        registry: String,
        /// Why.
        reason: &'static str,
    },
    /// None of the keys that are read.
    #[error(
        "the volume's secret has none of the keys .dockerconfigjson, .dockercfg, or username and password"
    )]
    NoKnownKey,
    /// More than any real secret has.
    #[error("{place} is larger than {LIMIT} bytes")]
    TooLarge {
        /// The secret's key, or the file.
        place: String,
    },
}

/// Bytes of a Docker config: what a Kubernetes secret can hold.
const LIMIT: usize = 1024 * 1024;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct DockerConfig {
    #[serde(default)]
    auths: BTreeMap<String, DockerAuth>,
    cred_helpers: Option<BTreeMap<String, Option<String>>>,
    creds_store: Option<String>,
}

#[derive(Deserialize)]
struct DockerAuth {
    username: Option<String>,
    password: Option<String>,
    auth: Option<String>,
    identitytoken: Option<String>,
}

impl Keyring {
    /// Reads the secrets that kubelet passes for `nodePublishSecretRef`.
    ///
    /// # Errors
    /// [`InvalidCredentials`] when there are secrets, and none can be read.
    pub fn from_secrets(secrets: &BTreeMap<String, Secret>) -> Result<Self, InvalidCredentials> {
        if secrets.is_empty() {
            return Ok(Self::default());
        }
        if let Some(config) = secrets.get(".dockerconfigjson") {
            return Self::from_docker_config(config.reveal(), "the secret's .dockerconfigjson");
        }
        if let Some(auths) = secrets.get(".dockercfg") {
            let place = "the secret's .dockercfg";
            return Self::from_auths(parse(auths.reveal(), place)?, place);
        }
        match (secrets.get("username"), secrets.get("password")) {
            (Some(user), Some(password)) => {
                let credential = Credential {
                    user: user.reveal().to_owned(),
                    password: password.clone(),
                    identity_token: None,
                };
                Ok(Self { entries: vec![(Pattern::everything(), credential)], helpers: BTreeMap::new() })
            }
            _ => Err(InvalidCredentials::NoKnownKey),
        }
    }

    /// Reads the text of a Docker `config.json` that was found at `place`.
    ///
    /// # Errors
    /// [`InvalidCredentials`] when the text is no such file.
    pub fn from_docker_config(text: &str, place: &str) -> Result<Self, InvalidCredentials> {
        let config: DockerConfig = parse(text, place)?;
        let mut helpers = config.cred_helpers.unwrap_or_default();
        helpers.insert(String::new(), config.creds_store);
        let named = |(key, helper): (String, Option<String>)| {
            Some((key, helper.filter(|helper| !helper.is_empty())?))
        };
        let helpers = helpers.into_iter().filter_map(named).collect();
        Ok(Self { helpers, ..Self::from_auths(config.auths, place)? })
    }

    fn from_auths(auths: BTreeMap<String, DockerAuth>, place: &str) -> Result<Self, InvalidCredentials> {
        let mut entries = Vec::with_capacity(auths.len());
        for (key, auth) in auths {
            let invalid =
                |reason| InvalidCredentials::Entry { place: place.to_owned(), registry: key.clone(), reason };
            if let Some(credential) = auth.credential().map_err(invalid)? {
                entries.push((Pattern::new(&key), credential));
            }
        }
        entries.sort_by_key(|(pattern, _): &(Pattern, Credential)| std::cmp::Reverse(pattern.specificity()));
        Ok(Self { entries, helpers: BTreeMap::new() })
    }

    /// The program that has the credentials for `reference`'s registry, where these are not in the file themselves: Docker's
    /// `credHelpers` and `credsStore`. It is not run.
    pub fn unused_helper(&self, reference: &Reference) -> Option<&str> {
        if self.entries.iter().any(|(pattern, _)| pattern.matches(reference)) {
            return None;
        }
        let own =
            self.helpers.iter().find(|(key, _)| !key.is_empty() && Pattern::new(key).matches(reference));
        own.map(|(_, helper)| helper).or_else(|| self.helpers.get("")).map(String::as_str)
    }

    /// The credentials that may be shown to `reference`'s registry, most specific first.
    pub fn matching(&self, reference: &Reference) -> Vec<Credential> {
        let mut found: Vec<Credential> = Vec::new();
        for (pattern, credential) in &self.entries {
            if pattern.matches(reference) && !found.contains(credential) {
                found.push(credential.clone());
            }
        }
        found
    }
}

fn parse<T: serde::de::DeserializeOwned>(text: &str, place: &str) -> Result<T, InvalidCredentials> {
    if text.len() > LIMIT {
        return Err(InvalidCredentials::TooLarge { place: place.to_owned() });
    }
    // serde_json's own text can quote the input.
    serde_json::from_str(text).map_err(|error| InvalidCredentials::Json {
        place: place.to_owned(),
        line: error.line(),
        column: error.column(),
    })
}

impl DockerAuth {
    fn credential(self) -> Result<Option<Credential>, &'static str> {
        let (mut user, mut password) = (self.username.unwrap_or_default(), self.password.unwrap_or_default());
        if let Some(auth) = self.auth.filter(|auth| !auth.is_empty()) {
            let bytes = base64::engine::general_purpose::STANDARD
                .decode(auth.trim().trim_end_matches('\0'))
                .map_err(|_| "auth is not base64")?;
            let text = String::from_utf8(bytes).map_err(|_| "auth is not text")?;
            let (first, second) = text.split_once(':').ok_or("auth is not user:password")?;
            user = first.to_owned();
            password = second.trim_end_matches('\0').to_owned();
        }
        let identity_token = self.identitytoken.filter(|token| !token.is_empty()).map(Secret::new);
        if user.is_empty() && password.is_empty() && identity_token.is_none() {
            return Ok(None); // `credsStore` leaves such entries behind.
        }
        Ok(Some(Credential { user, password: Secret::new(password), identity_token }))
    }
}

/// The key of an entry: host globs per DNS label, an exact port, and a path prefix of whole segments.
///
/// kubelet compares paths as strings, so its `team` also matches `team-evil`; here segments are compared.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Pattern {
    host: Option<String>,
    port: Option<String>,
    path: Vec<String>,
}

impl Pattern {
    fn everything() -> Self {
        Self { host: None, port: None, path: Vec::new() }
    }

    fn new(key: &str) -> Self {
        let key = key.trim();
        let bare = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://")).unwrap_or(key);
        let (authority, path) = bare.split_once('/').unwrap_or((bare, ""));
        let path = path.trim_end_matches('/');
        let path = ["v1", "v2"]
            .iter()
            .find_map(|version| path.strip_prefix(version))
            .map_or(path, |rest| if rest.is_empty() || rest.starts_with('/') { rest } else { path });
        let (host, port) = split_port(authority);
        let host = match host {
            "index.docker.io" | "registry-1.docker.io" | "" => DOCKER_HUB,
            host => host,
        };
        Self {
            host: Some(host.to_owned()),
            port: port.map(str::to_owned),
            path: path.split('/').filter(|part| !part.is_empty()).map(str::to_owned).collect(),
        }
    }

    fn specificity(&self) -> (usize, bool, bool) {
        let exact = self.host.as_ref().is_some_and(|host| !host.contains(['*', '?', '[']));
        (self.path.len(), exact, self.port.is_some())
    }

    fn matches(&self, reference: &Reference) -> bool {
        let Some(pattern) = &self.host else { return true };
        let (host, port) = split_port(reference.host());
        if self.port.as_deref() != port {
            return false;
        }
        let labels: Vec<&str> = host.split('.').collect();
        let globs: Vec<&str> = pattern.split('.').collect();
        let label_matches = |(glob, label): (&&str, &&str)| {
            glob == label || globset::Glob::new(glob).is_ok_and(|glob| glob.compile_matcher().is_match(label))
        };
        globs.len() == labels.len()
            && globs.iter().zip(&labels).all(label_matches)
            && self.path.len() <= reference.repository().split('/').count()
            && self.path.iter().zip(reference.repository().split('/')).all(|(want, part)| want == part)
    }
}

fn split_port(authority: &str) -> (&str, Option<&str>) {
    match authority.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => (host, Some(port)),
        _ => (authority, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(entries: &[(&str, &str)]) -> Keyring {
        let entry =
            |(key, user): &(&str, &str)| format!(r#""{key}":{{"username":"{user}","password":"pw"}}"#);
        let auths: Vec<String> = entries.iter().map(entry).collect();
        Keyring::from_docker_config(&format!(r#"{{"auths":{{{}}}}}"#, auths.join(",")), "test")
            .expect("valid")
    }

    fn users(keyring: &Keyring, reference: &str) -> Vec<String> {
        let reference = reference.parse().expect("a reference");
        keyring.matching(&reference).into_iter().map(|credential| credential.user).collect()
    }

    #[test]
    fn the_most_specific_entry_comes_first() {
        let keyring = config(&[
            ("https://r.example/v2/", "host"),
            ("r.example/team", "team"),
            ("r.example/team/app", "app"),
            ("*.example", "glob"),
            ("r.example:5000", "port"),
            ("https://index.docker.io/v1/", "hub"),
        ]);
        assert_eq!(users(&keyring, "r.example/team/app:v1"), ["app", "team", "host", "glob"]);
        assert_eq!(users(&keyring, "r.example/team-evil/app"), ["host", "glob"]);
        assert_eq!(users(&keyring, "r.example:5000/x"), ["port"]);
        assert_eq!(users(&keyring, "a.b.example/x"), [""; 0]);
        assert_eq!(users(&keyring, "alpine"), ["hub"]);
    }

    #[test]
    fn every_way_to_write_a_credential() {
        let auth = base64::engine::general_purpose::STANDARD.encode("u:p:w");
        let text = format!(
            r#"{{"auths":{{"a.x":{{"auth":"{auth}"}},"b.x":{{"identitytoken":"t"}},"c.x":{{}}}},"credsStore":"d"}}"#
        );
        let keyring = Keyring::from_docker_config(&text, "test").expect("valid");
        let a = keyring.matching(&"a.x/y".parse().expect("a reference"));
        assert_eq!((a[0].user.as_str(), a[0].password.reveal()), ("u", "p:w"));
        let b = keyring.matching(&"b.x/y".parse().expect("a reference"));
        assert_eq!(b[0].identity_token.as_ref().map(Secret::reveal), Some("t"));
        assert!(keyring.matching(&"c.x/y".parse().expect("a reference")).is_empty());
    }

    #[test]
    fn regression_helpers_that_are_not_run_are_known() {
        let text = r#"{"auths":{"a.x":{"username":"u","password":"p"},"b.x":{}},"credHelpers":{"c.x":"ecr-login"},"credsStore":"desktop"}"#;
        let keyring = Keyring::from_docker_config(text, "test").expect("valid");
        let helper = |reference: &str| {
            keyring.unused_helper(&reference.parse().expect("a reference")).map(str::to_owned)
        };
        assert_eq!(helper("a.x/y"), None);
        assert_eq!(helper("b.x/y").as_deref(), Some("desktop"));
        assert_eq!(helper("c.x/y").as_deref(), Some("ecr-login"));
        let none = Keyring::from_docker_config(r#"{"auths":{},"credsStore":"","credHelpers":null}"#, "test")
            .expect("valid");
        assert_eq!(none.unused_helper(&"c.x/y".parse().expect("a reference")), None);
    }

    #[test]
    fn t41_nothing_secret_is_printed() {
        let keyring = config(&[("r.example", "user")]);
        assert!(!format!("{keyring:?}").contains("pw"));
        for text in [r#"{"auths":{"r":{"auth":"hunter2!"}}}"#, r#"{"auths":"hunter2"}"#, "hunter2"] {
            let error = Keyring::from_docker_config(text, "test").expect_err("invalid");
            assert!(!format!("{error} {error:?}").contains("hunter2"), "{error:?}");
        }
    }

    #[test]
    fn secrets_of_a_volume() {
        let secrets = |pairs: &[(&str, &str)]| {
            pairs.iter().map(|(key, value)| ((*key).to_owned(), Secret::new(*value))).collect()
        };
        let read = |pairs: &[(&str, &str)]| Keyring::from_secrets(&secrets(pairs));
        assert_eq!(read(&[]), Ok(Keyring::default()));
        assert_eq!(read(&[("token", "x")]), Err(InvalidCredentials::NoKnownKey));
        let plain = read(&[("username", "u"), ("password", "p")]).expect("valid");
        assert_eq!(users(&plain, "anything.example:1/x"), ["u"]);
        let old = read(&[(".dockercfg", r#"{"r.example":{"username":"u","password":"p"}}"#)]).expect("valid");
        assert_eq!(users(&old, "r.example/x"), ["u"]);
    }
}
