//! Docker's credential helpers: programs to which a `config.json` leaves the credentials for registries.
//!
//! A `config.json` says only a helper's name. What is run is the program that the operator allows for that name, and no other.
//! Source: docker-credential-helpers, `client/client.go` and `credentials/error.go`.

#![cfg_attr(not(test), deny(clippy::indexing_slicing))]

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use zeroize::Zeroizing;

use crate::oci::reference::{DOCKER_HUB, Reference};
use crate::registry::credentials::answers::{Answer, Answers, Key, Unasked};
use crate::registry::credentials::command::{Command, CommandError, Exit, objection};
use crate::registry::credentials::secret::{Credential, Secret};
use crate::tenant::Tenant;

/// How long a helper may take. It looks into a store of the node, or asks its cloud once.
const LIMIT: Duration = Duration::from_secs(30);
/// How long a credential is kept. Helpers do not say; the credentials of clouds are good for an hour at least.
const KEPT: Duration = Duration::from_secs(5 * 60);
/// How long it is remembered that there is none: shorter, for somebody may be about to log in.
const NONE_KEPT: Duration = Duration::from_secs(30);

/// The key of Docker Hub, which is older than its host names.
pub const DOCKER_HUB_SERVER: &str = "https://index.docker.io/v1/";
/// What a helper prints when it has nothing for a server.
const NOT_FOUND: &str = "credentials not found in native keychain";
/// The user whose password is an identity token.
const TOKEN_USER: &str = "<token>";

/// The helpers that the operator allows. Cheap to clone; clones share what the helpers have answered.
///
/// *Caller:* asks a helper only for a `config.json` that is the operator's. What a helper has is the node's, and whoever can write a
/// volume's secret could name it there.
#[derive(Debug, Clone, Default)]
pub struct Helpers {
    all: Arc<BTreeMap<String, Helper>>,
}

#[derive(Debug)]
struct Helper {
    command: Command,
    answers: Arc<Answers<Option<Credential>, HelperFault>>,
}

/// A program that is allowed cannot be a helper.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "the credential helper {name:?} cannot be run as {}: {reason}; give its program's absolute path, or allow it no more",
    program.display()
)]
pub struct BadHelper {
    name: String,
    program: PathBuf,
    reason: String,
}

/// A helper did not say whether it has a credential.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the credential helper {helper:?} gave no credential for {server}: {fault}")]
pub struct HelperError {
    /// The helper's name in the `config.json`.
    pub helper: String,
    /// The server that it was asked for.
    pub server: String,
    /// Why.
    pub fault: HelperFault,
}

/// Why a helper did not answer. What it printed is not in here: it may hold the credential.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HelperFault {
    /// The operator has not named a program for it.
    #[error("it is not allowed; name its program's absolute path in ocivol's configuration")]
    NotAllowed,
    /// It cannot be run, or breaks a bound.
    #[error(transparent)]
    Command(#[from] CommandError),
    /// It was not its turn.
    #[error(transparent)]
    Unasked(#[from] Unasked),
    /// It says itself that it failed.
    #[error("{0}; run `docker-credential-… get` by hand to see what it says, which is not shown here")]
    Failed(Exit),
    /// It printed something else.
    #[error("what it printed is not the JSON of a credential, at line {line}, column {column}")]
    Json {
        /// Line of the fault.
        line: usize,
        /// Column of the fault.
        column: usize,
    },
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Found {
    #[serde(default)]
    username: String,
    secret: Option<Secret>,
}

impl Helpers {
    /// Helpers by their names in a `config.json`: `ecr-login`, whose program is called `docker-credential-ecr-login`. Blocks; called at
    /// the start.
    ///
    /// # Errors
    /// [`BadHelper`] when a program's path is not absolute, or no executable file is there.
    pub fn new(allowed: BTreeMap<String, PathBuf>) -> Result<Self, BadHelper> {
        Self::with_limit(allowed, LIMIT)
    }

    fn with_limit(allowed: BTreeMap<String, PathBuf>, limit: Duration) -> Result<Self, BadHelper> {
        let helper = |(name, program): (String, PathBuf)| {
            if let Some(reason) = objection(&program) {
                return Err(BadHelper { name, program, reason });
            }
            let command =
                Command { program, arguments: vec!["get".to_owned()], environment: Vec::new(), limit };
            Ok((name, Helper { command, answers: Answers::new(limit) }))
        };
        Ok(Self { all: Arc::new(allowed.into_iter().map(helper).collect::<Result<_, _>>()?) })
    }

    /// How many are allowed.
    pub fn count(&self) -> usize {
        self.all.len()
    }

    /// Whether the helper of this name may be run.
    pub fn allows(&self, name: &str) -> bool {
        self.all.contains_key(name)
    }

    /// The credential that the helper `name` has for the registry of `reference`; `None` when it has none. The name is what
    /// [`Keyring::unused_helper`](crate::registry::credentials::keyring::Keyring::unused_helper) says. Takes a minute at most, of
    /// which a half is for its turn.
    ///
    /// # Errors
    /// [`HelperError`] when the helper is not allowed, cannot be run, fails, or breaks a bound.
    pub async fn credential(
        &self,
        name: &str,
        reference: &Reference,
        tenant: &Tenant,
    ) -> Result<Option<Credential>, HelperError> {
        let server = if reference.host() == DOCKER_HUB { DOCKER_HUB_SERVER } else { reference.host() };
        let found = match self.all.get(name) {
            Some(helper) => helper.ask(name, server, tenant).await,
            None => Err(HelperFault::NotAllowed),
        };
        // The name is a text of whoever wrote the config.json.
        let helper = || name.chars().take(60).collect();
        found.map_err(|fault| HelperError { helper: helper(), server: server.to_owned(), fault })
    }
}

impl Helper {
    async fn ask(
        &self,
        name: &str,
        server: &str,
        tenant: &Tenant,
    ) -> Result<Option<Credential>, HelperFault> {
        let (command, key) = (self.command.clone(), Key::of([server]));
        let input = Zeroizing::new(server.as_bytes().to_vec());
        let identity = format!("helper {name} {server}");
        let ask = async move {
            let output = command.run(input).await?;
            let value = match output.exit {
                Exit::Status(0) => parse(&output.text, identity)?,
                _ if output.text.trim_ascii() == NOT_FOUND.as_bytes() => None,
                exit => return Err(HelperFault::Failed(exit)),
            };
            let time = if value.is_some() { KEPT } else { NONE_KEPT };
            Ok(Answer { value, bytes: output.text.len(), keep: Some((key, time)) })
        };
        self.answers.get(tenant, key, vec![key], ask).await
    }
}

fn parse(text: &[u8], identity: String) -> Result<Option<Credential>, HelperFault> {
    // serde_json's own text can quote the input.
    let found: Found = serde_json::from_slice(text)
        .map_err(|error| HelperFault::Json { line: error.line(), column: error.column() })?;
    let Some(secret) = found.secret.filter(|secret| !secret.reveal().is_empty()) else { return Ok(None) };
    let credential = if found.username == TOKEN_USER {
        Credential { identity_token: Some(secret), ..Credential::of_user(TOKEN_USER, Secret::new("")) }
    } else {
        Credential::of_user(found.username, secret)
    };
    Ok(Some(Credential { identity: Some(identity), ..credential }))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::registry::credentials::command::tests::{LONG, script};
    use crate::registry::credentials::keyring::Keyring;

    /// A helper `test` that keeps what it is asked, and then does what `text` says.
    fn helpers(directory: &Path, text: &str, limit: Duration) -> Helpers {
        let text = format!("(printf '%s ' \"$@\"; cat; echo) >>'{}/asked'\n{text}", directory.display());
        let program = script(directory, "docker-credential-test", &text);
        Helpers::with_limit(BTreeMap::from([("test".to_owned(), program)]), limit).expect("valid")
    }

    fn asked(directory: &Path) -> Vec<String> {
        let text = std::fs::read_to_string(directory.join("asked")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    async fn ask(text: &str, image: &str) -> (Result<Option<Credential>, HelperError>, Vec<String>) {
        let directory = tempfile::tempdir().expect("a directory");
        let helpers = helpers(directory.path(), text, LONG);
        let reference = image.parse().expect("a reference");
        let found = helpers.credential("test", &reference, &Tenant::CommandLine).await;
        // The second time it is kept, if it may be.
        assert_eq!(helpers.clone().credential("test", &reference, &Tenant::CommandLine).await, found);
        (found, asked(directory.path()))
    }

    #[tokio::test]
    async fn a_helper_is_asked_for_the_registry() {
        let answer = r#"echo '{"ServerURL":"r.io:5000","Username":"u","Secret":"hunter2"}'"#;
        let (found, asked) = ask(answer, "r.io:5000/team/app:v1").await;
        let found = found.expect("an answer").expect("a credential");
        assert_eq!((found.user.as_str(), found.password.reveal()), ("u", "hunter2"));
        assert_eq!(found.identity.as_deref(), Some("helper test r.io:5000"));
        assert!(!format!("{found:?}").contains("hunter2"));
        assert_eq!(asked, ["get r.io:5000"]);
        assert_eq!(ask(answer, "nginx").await.1, ["get https://index.docker.io/v1/"]);
    }

    #[tokio::test]
    async fn a_secret_may_be_an_identity_token() {
        let (found, _) = ask(r#"echo '{"Username":"<token>","Secret":"t"}'"#, "r.io/a").await;
        let found = found.expect("an answer").expect("a credential");
        assert_eq!(found.identity_token.as_ref().map(Secret::reveal), Some("t"));
        assert_eq!(found.password.reveal(), "");
    }

    #[tokio::test]
    async fn what_is_not_found_is_no_error() {
        for none in [
            "echo 'credentials not found in native keychain'; exit 1",
            r#"echo '{"Username":"","Secret":""}'"#,
        ] {
            assert_eq!(ask(none, "r.io/a").await, (Ok(None), vec!["get r.io".to_owned()]), "{none}");
        }
    }

    #[tokio::test]
    async fn t41_what_a_helper_prints_is_in_no_error_and_errors_are_not_kept() {
        for (text, expected) in [
            ("echo hunter2; echo hunter2 >&2; exit 1", "it exited with status 1"),
            ("echo hunter2", "line 1, column 1"),
            ("echo '{\"Secret\":[\"hunter2\"]}'", "line 1, column"),
            ("yes hunter2", "printed more than"),
        ] {
            let (found, asked) = ask(text, "r.io/a").await;
            let error = found.expect_err(text);
            let printed = format!("{error} {error:?}");
            assert!(printed.contains(expected) && !printed.contains("hunter2"), "{printed}");
            assert!(printed.contains(r#"helper "test" gave no credential for r.io: "#), "{printed}");
            assert_eq!(asked.len(), 2);
        }
    }

    #[tokio::test]
    async fn who_asks_at_the_same_time_shares_one_run() {
        let directory = tempfile::tempdir().expect("a directory");
        let text = r#"sleep 0.2; echo '{"Username":"u","Secret":"s"}'"#;
        let helpers = helpers(directory.path(), text, LONG);
        let references = ["r.io/a", "r.io/b"].map(|text| text.parse().expect("a reference"));
        let asks =
            (0..20).map(|number| helpers.credential("test", &references[number % 2], &Tenant::CommandLine));
        let found = futures_util::future::join_all(asks).await;
        assert!(found.iter().all(|found| matches!(found, Ok(Some(_)))), "{found:?}");
        assert_eq!(asked(directory.path()), ["get r.io"]);
    }

    #[tokio::test]
    async fn a_helper_that_hangs_is_killed() {
        let directory = tempfile::tempdir().expect("a directory");
        let after = Duration::from_millis(300);
        let helpers = helpers(directory.path(), "sleep 1000", after);
        let found =
            helpers.credential("test", &"r.io/a".parse().expect("a reference"), &Tenant::CommandLine).await;
        assert_eq!(found.expect_err("killed").fault, CommandError::TooSlow { after }.into());
    }

    #[tokio::test]
    async fn t53_only_what_is_allowed_is_run() {
        let directory = tempfile::tempdir().expect("a directory");
        let helpers = helpers(directory.path(), "", LONG);
        let image = "r.io/a".parse().expect("a reference");
        for name in ["other", "../test", "/bin/sh", "test; id", ""] {
            let config = serde_json::json!({"auths": {}, "credHelpers": {"r.io": name}}).to_string();
            let keyring = Keyring::from_docker_config(&config, "test").expect("valid");
            let Some(wanted) = keyring.unused_helper(&image) else {
                assert_eq!(name, "");
                continue;
            };
            assert!(!helpers.allows(wanted));
            let error =
                helpers.credential(wanted, &image, &Tenant::CommandLine).await.expect_err("not allowed");
            assert_eq!(error.fault, HelperFault::NotAllowed);
        }
        assert!(helpers.allows("test") && asked(directory.path()).is_empty());
    }

    #[test]
    fn each_helper_has_to_have_its_program() {
        let new = |program: &str| Helpers::new(BTreeMap::from([("a".to_owned(), PathBuf::from(program))]));
        let error = new("docker-credential-a").expect_err("relative").to_string();
        assert!(
            error.contains(r#"helper "a" cannot be run as docker-credential-a: the path is not absolute"#),
            "{error}"
        );
        assert!(new("/nowhere/docker-credential-a").is_err());
        assert!(new("/bin/sh").is_ok());
    }
}
