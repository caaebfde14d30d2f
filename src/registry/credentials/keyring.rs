//! Credentials, and the choice of those that fit a reference.

use std::collections::BTreeMap;

use crate::oci::reference::Reference;
use crate::registry::credentials::docker_config::{DockerAuth, DockerConfig, InvalidCredentials, parse};
use crate::registry::credentials::pattern::Pattern;
use crate::registry::credentials::secret::{Credential, Secret};

/// Credentials by registry or repository, as in a Docker `config.json`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Keyring {
    /// Most specific first.
    entries: Vec<(Pattern, Credential)>,
    /// Programs that would have more, by registry; an empty one is every registry. They are not run.
    helpers: BTreeMap<String, String>,
}

/// Credentials that are tried of one keyring: each is a log-in at the registry, from the node's address.
const MATCHES: usize = 32;

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
                let credential = Credential::of_user(user.reveal(), password.clone());
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

    /// The same credentials, known to be of `identity`, whatever their bytes are.
    #[must_use]
    pub fn with_identity(mut self, identity: &str) -> Self {
        for (_, credential) in &mut self.entries {
            credential.identity = Some(format!("{identity} {}", credential.user));
        }
        self
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

    /// What is to know of the program that has credentials for `reference`'s registry and is not run.
    pub fn note_of_helper(&self, reference: &Reference) -> Option<String> {
        let helper = self.unused_helper(reference)?;
        let helper: String = helper.chars().take(60).collect();
        Some(format!(
            "config.json leaves this registry to the credential helper {helper:?}, which ocivol does not run: write the \
             credentials into its auths"
        ))
    }

    /// The credentials that may be shown to `reference`'s registry, most specific first; at most 32.
    pub fn matching(&self, reference: &Reference) -> Vec<Credential> {
        let mut found: Vec<Credential> = Vec::new();
        for (pattern, credential) in &self.entries {
            if pattern.matches(reference) && !found.contains(credential) {
                found.push(credential.clone());
            }
            if found.len() >= MATCHES {
                break;
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;

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
