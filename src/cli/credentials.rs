//! Credentials as people have them: what docker, podman, skopeo, buildah and oras have logged in to, with their helpers.
//!
//! A helper is a program that one of these files names, `docker-credential-NAME`, and that is in the user's `PATH`: it is the user's file,
//! and the user's program. Sources: Docker's `config.json`; containers-auth.json(5).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use crate::cli::args::Common;
use crate::cli::output;
use crate::failure::Failure;
use crate::oci::reference::{DOCKER_HUB, Reference};
use crate::registry::credentials::helpers::Helpers;
use crate::registry::credentials::keyring::Keyring;
use crate::registry::credentials::secret::{Credential, Secret};
use crate::tenant::Tenant;

/// Bytes of a file with credentials.
const LIMIT: u64 = 1024 * 1024;
/// The key of Docker Hub in these files.
const DOCKER_HUB_KEY: &str = "https://index.docker.io/v1/";

/// A Docker config with the credentials that the user has for `references`; `None` when there are none at all.
///
/// # Errors
/// When a file that was named cannot be read, or one says nothing.
pub async fn docker_config(common: &Common, references: &[String]) -> Result<Option<String>, Failure> {
    let mut known = Known::read(common)?;
    for reference in references.iter().filter_map(|text| text.parse::<Reference>().ok()) {
        for (path, keyring) in &known.keyrings {
            let Some(helper) = keyring.unused_helper(&reference) else { continue };
            let Some(found) = ask(helper, &reference, path).await else { continue };
            let key = if reference.host() == DOCKER_HUB { DOCKER_HUB_KEY } else { reference.host() };
            if !known.auths.contains_key(key) {
                known.auths.insert(key.to_owned(), entry(&found));
            }
        }
    }
    Ok(known.into_config())
}

/// The same, as long as no helper has to be asked; `None` inside when one has to.
///
/// # Errors
/// As [`docker_config`].
pub fn without_helpers(common: &Common, reference: &str) -> Result<Option<Option<String>>, Failure> {
    let known = Known::read(common)?;
    let needs_helper = reference.parse::<Reference>().is_ok_and(|reference| {
        known.keyrings.iter().any(|(_, keyring)| keyring.unused_helper(&reference).is_some())
    });
    Ok((!needs_helper).then(|| known.into_config()))
}

/// What the files say.
struct Known {
    auths: Map<String, Value>,
    keyrings: Vec<(PathBuf, Keyring)>,
}

impl Known {
    fn into_config(self) -> Option<String> {
        (!self.auths.is_empty()).then(|| json!({ "auths": self.auths }).to_string())
    }

    fn read(common: &Common) -> Result<Self, Failure> {
        let mut auths = Map::new();
        let mut keyrings = Vec::new();
        for (path, is_named) in files(common) {
            let Some(text) = read(&path, is_named)? else { continue };
            let keyring = Keyring::from_docker_config(&text, &path.display().to_string())
                .map_err(|error| Failure::usage(&error.to_string()))?;
            let found: Value = serde_json::from_str(&text).unwrap_or_default();
            for (registry, entry) in found["auths"].as_object().into_iter().flatten() {
                let says_something = entry.as_object().is_some_and(|entry| !entry.is_empty());
                if says_something && !auths.contains_key(registry) {
                    auths.insert(registry.clone(), entry.clone());
                }
            }
            keyrings.push((path, keyring));
        }
        Ok(Self { auths, keyrings })
    }
}

/// The files, the first to be believed first, and whether it was named. Docker's is `DOCKER_CONFIG` or in the home directory; podman,
/// skopeo and buildah have one that ends with the session, and one that stays.
fn files(common: &Common) -> Vec<(PathBuf, bool)> {
    if let Some(path) = &common.docker_config {
        return vec![(path.clone(), true)];
    }
    let variable = |name: &str| std::env::var_os(name).map(PathBuf::from);
    let home = std::env::home_dir();
    let docker = variable("DOCKER_CONFIG").or_else(|| home.as_ref().map(|home| home.join(".docker")));
    let settings = variable("XDG_CONFIG_HOME").or_else(|| home.map(|home| home.join(".config")));
    let of_podman = match variable("REGISTRY_AUTH_FILE") {
        Some(path) => vec![path],
        None => {
            let directories = [variable("XDG_RUNTIME_DIR"), settings];
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

fn read(path: &Path, is_named: bool) -> Result<Option<String>, Failure> {
    let failed = |reason: String| Failure::usage(&format!("cannot read {}: {reason}", path.display()));
    match std::fs::metadata(path) {
        Ok(found) if found.len() > LIMIT => {
            return Err(failed(format!("it has {} bytes, more than {LIMIT}", found.len())));
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && !is_named => return Ok(None),
        _ => {}
    }
    std::fs::read_to_string(path).map(Some).map_err(|error| failed(error.to_string()))
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
