//! Credentials as people have them: what docker, podman, skopeo, buildah and oras have logged in to, with their helpers.
//!
//! A helper is a program that one of these files names, `docker-credential-NAME`, and that is in the user's `PATH`: it is the user's file,
//! and the user's program. Sources: Docker's `config.json`; containers-auth.json(5).

use std::collections::BTreeMap;
use std::io::Read as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use crate::cli::args::Common;
use crate::cli::output;
use crate::failure::Failure;
use crate::host::blocking::{self, Lane};
use crate::oci::reference::{DOCKER_HUB, Reference};
use crate::registry::credentials::helpers::{DOCKER_HUB_SERVER, Helpers};
use crate::registry::credentials::keyring::Keyring;
use crate::registry::credentials::pattern::Pattern;
use crate::registry::credentials::secret::{Credential, Secret};
use crate::tenant::Tenant;

/// Bytes of a file with credentials.
const LIMIT: u64 = 1024 * 1024;

/// A Docker config with the credentials that the user has for `reference`; `None` when there are none at all.
///
/// # Errors
/// When a file that was named cannot be read, or one says nothing.
pub async fn docker_config(common: &Common, reference: &str) -> Result<Option<String>, Failure> {
    Ok(Logins::of(common).await?.config(reference).await)
}

/// The same, as long as no helper has to be asked; `None` outside when one has to. Blocks.
///
/// # Errors
/// As [`docker_config`].
pub fn without_helpers(common: &Common, reference: &str) -> Result<Option<Option<String>>, Failure> {
    let logins = Logins::read(common)?;
    let Some(reference) = of_registry(reference) else { return Ok(Some(None)) };
    for file in &logins.files {
        if let Some(config) = file.entries(&reference) {
            return Ok(Some(Some(config)));
        }
        if file.keyring.unused_helper(&reference).is_some() {
            return Ok(None);
        }
    }
    Ok(Some(None))
}

/// What the user has logged in to.
pub struct Logins {
    /// The first to be believed first.
    files: Vec<Known>,
    /// What helpers have answered, by their file, their name, and the registry.
    asked: BTreeMap<(PathBuf, String, String), Option<Credential>>,
}

/// What a file says.
struct Known {
    path: PathBuf,
    auths: Map<String, Value>,
    keyring: Keyring,
}

impl Logins {
    /// What there is for who runs this.
    ///
    /// # Errors
    /// When a file that was named cannot be read, or one says nothing.
    pub async fn of(common: &Common) -> Result<Self, Failure> {
        let common = common.clone();
        blocking::run(Lane::Store, move || Self::read(&common)).await
    }

    fn read(common: &Common) -> Result<Self, Failure> {
        let mut found = Vec::new();
        for (path, is_named) in files(common) {
            let Some(text) = read(&path, is_named)? else { continue };
            let keyring = Keyring::from_docker_config(&text, &path.display().to_string())
                .map_err(|error| Failure::usage(&error.to_string()))?;
            let mut config: Value = serde_json::from_str(&text).unwrap_or_default();
            let auths = match config.get_mut("auths").map(Value::take) {
                Some(Value::Object(auths)) => auths,
                _ => Map::new(),
            };
            found.push(Known { path, auths, keyring });
        }
        Ok(Self { files: found, asked: BTreeMap::new() })
    }

    /// A Docker config with what the first file has that knows `reference`, in an entry or through its helper, and nothing else.
    pub async fn config(&mut self, reference: &str) -> Option<String> {
        let reference = of_registry(reference)?;
        for file in &self.files {
            if let Some(config) = file.entries(&reference) {
                return Some(config);
            }
            let Some(helper) = file.keyring.unused_helper(&reference) else { continue };
            let key = (file.path.clone(), helper.to_owned(), reference.host().to_owned());
            let answer = match self.asked.get(&key) {
                Some(answer) => answer.clone(),
                None => {
                    let answer = ask(helper, &reference, &file.path).await;
                    self.asked.insert(key, answer.clone());
                    answer
                }
            };
            if let Some(found) = answer {
                let server =
                    if reference.host() == DOCKER_HUB { DOCKER_HUB_SERVER } else { reference.host() };
                return Some(config_of(&Map::from_iter([(server.to_owned(), entry(&found))])));
            }
        }
        None
    }
}

impl Known {
    /// A config with the entries for `reference`, if there are any.
    fn entries(&self, reference: &Reference) -> Option<String> {
        let says_something = |value: &Value| value.as_object().is_some_and(|entry| !entry.is_empty());
        let own = self
            .auths
            .iter()
            .filter(|(key, value)| says_something(value) && Pattern::new(key).matches(reference))
            .map(|(key, value)| (key.clone(), value.clone()));
        let own: Map<String, Value> = own.collect();
        // An entry without a credential is none.
        let has_some = !own.is_empty() && !self.keyring.matching(reference).is_empty();
        has_some.then(|| config_of(&own))
    }
}

fn config_of(auths: &Map<String, Value>) -> String {
    json!({ "auths": auths }).to_string()
}

/// A reference to what a registry has: image layouts on this machine ask for no credentials.
fn of_registry(text: &str) -> Option<Reference> {
    text.parse::<Reference>().ok().filter(|reference| !reference.is_layout())
}

/// The files, the first to be believed first, and whether it was named. Docker's is `DOCKER_CONFIG` or in the home directory; podman,
/// skopeo and buildah have one that ends with the session, and one that stays. A variable that is empty is not set, and a relative path
/// in one of XDG's says nothing (XDG Base Directory Specification).
fn files(common: &Common) -> Vec<(PathBuf, bool)> {
    if let Some(path) = common.docker_config.as_ref().filter(|path| !path.as_os_str().is_empty()) {
        return vec![(path.clone(), true)];
    }
    let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let of_xdg = |name: &str| variable(name).filter(|path| path.is_absolute());
    let home = std::env::home_dir().filter(|home| !home.as_os_str().is_empty());
    let docker = variable("DOCKER_CONFIG").or_else(|| home.as_ref().map(|home| home.join(".docker")));
    let settings = of_xdg("XDG_CONFIG_HOME").or_else(|| home.map(|home| home.join(".config")));
    let of_podman = match variable("REGISTRY_AUTH_FILE") {
        Some(path) => vec![path],
        None => {
            let directories = [of_xdg("XDG_RUNTIME_DIR"), settings];
            directories
                .into_iter()
                .flatten()
                .map(|directory| directory.join("containers/auth.json"))
                .collect()
        }
    };
    let docker = docker.map(|directory| directory.join("config.json"));
    docker.into_iter().chain(of_podman).map(|path| (path, false)).collect()
}

/// The file's text. One that was not named may be absent, and is passed over with a warning when it cannot be read.
fn read(path: &Path, is_named: bool) -> Result<Option<String>, Failure> {
    let failed = |reason: &str| {
        let message = format!("cannot read {}: {reason}", path.display());
        if is_named {
            return Err(Failure::usage(&message));
        }
        output::warn(&crate::failure::one_line(&format!("{message}; going on without it")));
        Ok(None)
    };
    let mut options = std::fs::File::options();
    options.read(true);
    if !is_named {
        // Nobody may be about to write into what is no file, and somebody who names a pipe is.
        options.custom_flags(libc::O_NONBLOCK);
    }
    let file = match options.open(path) {
        Ok(file) => file,
        Err(error) if !is_named && is_absent(&error) => return Ok(None),
        Err(error) => return failed(&error.to_string()),
    };
    if !is_named && !file.metadata().is_ok_and(|found| found.is_file()) {
        return failed("it is no file");
    }
    let mut text = String::new();
    match file.take(LIMIT + 1).read_to_string(&mut text) {
        Ok(length) if length as u64 > LIMIT => failed(&format!("it has more than {LIMIT} bytes")),
        Ok(_) => Ok(Some(text)),
        Err(error) => failed(&error.to_string()),
    }
}

fn is_absent(error: &std::io::Error) -> bool {
    matches!(error.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory)
}

/// Asks the helper that `path` names; without an answer it is said why.
async fn ask(helper: &str, reference: &Reference, path: &Path) -> Option<Credential> {
    let says = |reason: &str| {
        let helper: String = helper.chars().take(60).collect();
        let message = format!(
            "{} leaves {} to the credential helper {helper:?}: {reason}",
            path.display(),
            reference.host()
        );
        output::warn(&crate::failure::one_line(&message));
    };
    let is_name = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    if !helper.bytes().all(is_name) {
        says("that is no name of one");
        return None;
    }
    let name = format!("docker-credential-{helper}");
    let Some(program) = program(&name) else {
        says(&format!("{name} is not in PATH"));
        return None;
    };
    let helpers = match Helpers::new(BTreeMap::from([(helper.to_owned(), program)])) {
        Ok(helpers) => helpers,
        Err(error) => {
            says(&error.to_string());
            return None;
        }
    };
    match helpers.credential(helper, reference, &Tenant::CommandLine).await {
        Ok(found) => found,
        Err(error) => {
            says(&crate::failure::chain(&error));
            None
        }
    }
}

/// An executable file in the user's `PATH`.
fn program(name: &str) -> Option<PathBuf> {
    use std::os::unix::fs::PermissionsExt as _;
    let path = std::env::var_os("PATH")?;
    let is_program = |path: &PathBuf| {
        std::fs::metadata(path).is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
    };
    std::env::split_paths(&path)
        .filter(|directory| directory.is_absolute())
        .map(|directory| directory.join(name))
        .find(is_program)
}

fn entry(credential: &Credential) -> Value {
    match &credential.identity_token {
        Some(token) => json!({ "identitytoken": Secret::reveal(token) }),
        None => json!({ "username": credential.user, "password": credential.password.reveal() }),
    }
}
