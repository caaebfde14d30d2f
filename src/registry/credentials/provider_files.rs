//! The files in which kubelet's credential providers are configured: one file, or a directory of them.
//!
//! Source: `readCredentialProviderConfig` in `pkg/credentialprovider/plugin/config.go` of kubelet v1.36; directories since v1.34.

#![cfg_attr(not(test), deny(clippy::indexing_slicing))]

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::registry::credentials::provider_config::{ProviderConfig, ProviderText};

/// Bytes of all files together. A provider takes some hundreds.
const LIMIT: usize = 1024 * 1024;

/// Versions of the configuration.
const VERSIONS: [&str; 3] =
    ["kubelet.config.k8s.io/v1", "kubelet.config.k8s.io/v1beta1", "kubelet.config.k8s.io/v1alpha1"];

/// The credential providers cannot be used as they are configured. No value of a variable is in here.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadProviders {
    /// The file, or the directory of files, cannot be read.
    #[error("cannot read the configuration of the credential providers, {}: {reason}", path.display())]
    Unreadable {
        /// The file or directory.
        path: PathBuf,
        /// The kernel's word.
        reason: String,
    },
    /// A directory without configuration.
    #[error("{} has no *.json, *.yaml or *.yml file; put a CredentialProviderConfig there, or name no directory", path.display())]
    NoFile {
        /// The directory.
        path: PathBuf,
    },
    /// More than any real configuration.
    #[error("the configuration of the credential providers, {}, is larger than {LIMIT} bytes", path.display())]
    TooLarge {
        /// The file with which it is too much.
        path: PathBuf,
    },
    /// A file that is not a configuration.
    #[error("{} is not a CredentialProviderConfig: {reason}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// What is wrong, and where.
        reason: String,
    },
    /// A configuration without providers.
    #[error("{} has no providers; there has to be one at least", path.display())]
    NoProvider {
        /// The file or directory.
        path: PathBuf,
    },
    /// A provider with a field that cannot be.
    #[error("{}: the credential provider {provider:?} cannot be used: {reason}", path.display())]
    Provider {
        /// The file.
        path: PathBuf,
        /// The provider's name.
        provider: String,
        /// The field, and what is wrong with it.
        reason: String,
    },
    /// There is no program for a provider.
    #[error(
        "the credential provider {provider:?} cannot be run as {}: {reason}; put its program there, or take the provider out of the \
         configuration", program.display()
    )]
    Program {
        /// The provider's name.
        provider: String,
        /// Where its program should be.
        program: PathBuf,
        /// Why it cannot be run.
        reason: String,
    },
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Type {
    #[serde(default)]
    kind: String,
    #[serde(default)]
    api_version: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct FileText {
    #[serde(rename = "kind")]
    _kind: String,
    #[serde(rename = "apiVersion")]
    _api_version: String,
    providers: Option<Vec<ProviderText>>,
}

/// Reads the providers of a file, or of the `*.json`, `*.yaml` and `*.yml` files of a directory in the order of their names. Blocks.
///
/// # Errors
/// [`BadProviders`], of whatever is wrong first. Whether there are programs is not looked at.
pub(in crate::registry) fn read(path: &Path) -> Result<Vec<ProviderConfig>, BadProviders> {
    let mut providers = Vec::new();
    let (mut names, mut left) = (BTreeSet::new(), LIMIT);
    for file in files(path)? {
        let text = read_file(&file, left)?;
        left -= text.len();
        for provider in parse(&file, &text)? {
            let name = provider.name.clone();
            let wrong =
                |reason| BadProviders::Provider { path: file.clone(), provider: name.clone(), reason };
            let provider = provider.check().map_err(wrong)?;
            if !names.insert(name.clone()) {
                return Err(wrong("there is another of the same name".to_owned()));
            }
            providers.push(provider);
        }
    }
    if providers.is_empty() {
        return Err(BadProviders::NoProvider { path: path.to_owned() });
    }
    Ok(providers)
}

fn unreadable(path: &Path, error: &std::io::Error) -> BadProviders {
    BadProviders::Unreadable { path: path.to_owned(), reason: error.to_string() }
}

fn files(path: &Path) -> Result<Vec<PathBuf>, BadProviders> {
    let unreadable = |error: std::io::Error| unreadable(path, &error);
    if !std::fs::metadata(path).map_err(unreadable)?.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let mut found = Vec::new();
    for entry in std::fs::read_dir(path).map_err(unreadable)? {
        let entry = entry.map_err(unreadable)?;
        let name = entry.file_name();
        let is_one =
            [".json", ".yaml", ".yml"].iter().any(|end| name.as_encoded_bytes().ends_with(end.as_bytes()));
        // A volume of a ConfigMap has links to files, which are read; and directories beside them, which are not.
        if is_one && !entry.file_type().map_err(unreadable)?.is_dir() {
            found.push(entry.path());
        }
    }
    found.sort();
    if found.is_empty() { Err(BadProviders::NoFile { path: path.to_owned() }) } else { Ok(found) }
}

fn read_file(path: &Path, limit: usize) -> Result<String, BadProviders> {
    let mut text = String::new();
    let file = File::open(path).map_err(|error| unreadable(path, &error))?;
    file.take(limit as u64 + 1).read_to_string(&mut text).map_err(|error| unreadable(path, &error))?;
    if text.len() > limit { Err(BadProviders::TooLarge { path: path.to_owned() }) } else { Ok(text) }
}

fn parse(path: &Path, text: &str) -> Result<Vec<ProviderText>, BadProviders> {
    let syntax = |reason| BadProviders::Syntax { path: path.to_owned(), reason };
    let Type { kind, api_version } = deserialize(text).map_err(syntax)?;
    if kind != "CredentialProviderConfig" {
        return Err(syntax(format!("its kind is {kind:?}")));
    }
    if !VERSIONS.contains(&api_version.as_str()) {
        return Err(syntax(format!(
            "its apiVersion is {api_version:?}, and not one of {}",
            VERSIONS.join(", ")
        )));
    }
    let file: FileText = deserialize(text).map_err(syntax)?;
    Ok(file.providers.unwrap_or_default())
}

/// Reads JSON or YAML, whichever it is: what begins with a brace is JSON, as for kubelet.
fn deserialize<T: serde::de::DeserializeOwned>(text: &str) -> Result<T, String> {
    if text.trim_start().starts_with('{') {
        return serde_json::from_str(text)
            .map_err(|error| without_values(&error.to_string(), error.line(), error.column()));
    }
    serde_yaml_ng::from_str(text).map_err(|error| {
        let (line, column) = error.location().map_or((0, 0), |place| (place.line(), place.column()));
        without_values(&error.to_string(), line, column)
    })
}

/// What a parser says, without the values that it quotes: they may be those of variables.
fn without_values(text: &str, line: usize, column: usize) -> String {
    let names_a_field =
        ["unknown field", "missing field", "duplicate field"].iter().any(|what| text.contains(what));
    let quotes = ["invalid type: ", "invalid value: ", "invalid length "]
        .iter()
        .find_map(|what| text.split_once(what));
    match (quotes, text.rsplit_once(", expected ")) {
        (Some((place, _)), Some((_, expected))) => format!("{place}expected {expected}"),
        (None, _) if names_a_field => text.to_owned(),
        _ => format!("it is neither JSON nor YAML at line {line}, column {column}"),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::registry::credentials::secret::Secret;

    const PROVIDER: &str = "  - name: ecr
    matchImages: [\"*.dkr.ecr.*.amazonaws.com\", registry.io:8080/path]
    defaultCacheDuration: 12h0m0s
    apiVersion: credentialprovider.kubelet.k8s.io/v1
";
    const HEAD: &str = "apiVersion: kubelet.config.k8s.io/v1\nkind: CredentialProviderConfig\nproviders:\n";
    const ACCOUNT: &str = "    tokenAttributes:
      serviceAccountTokenAudience: sts.amazonaws.com
      cacheType: ServiceAccount
      requireServiceAccount: true
      requiredServiceAccountAnnotationKeys: [eks.amazonaws.com/role-arn]
      optionalServiceAccountAnnotationKeys: [eks.amazonaws.com/region]
";

    fn read_text(text: &str) -> Result<Vec<ProviderConfig>, BadProviders> {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("config.yaml");
        std::fs::write(&path, text).expect("written");
        read(&path)
    }

    #[test]
    fn every_field_is_read() {
        let more = "    args: [get, \"$(x)\"]\n    env:\n    - {name: A, value: hunter2}\n";
        let found = read_text(&format!("{HEAD}{PROVIDER}{more}{ACCOUNT}")).expect("valid");
        let [ecr] = &found[..] else { panic!("{found:?}") };
        assert_eq!((ecr.name.as_str(), ecr.images.len(), ecr.keep.as_secs()), ("ecr", 2, 12 * 3600));
        assert_eq!((ecr.protocol.as_str(), ecr.arguments.len()), ("credentialprovider.kubelet.k8s.io/v1", 2));
        assert_eq!(ecr.environment, [("A".to_owned(), Secret::new("hunter2"))]);
        let account = ecr.account.as_ref().expect("tokenAttributes");
        assert_eq!(
            (account.audience.as_str(), account.is_per_token, account.is_required),
            ("sts.amazonaws.com", false, true)
        );
        assert_eq!(account.required_annotations, ["eks.amazonaws.com/role-arn"]);
        assert_eq!(account.optional_annotations, ["eks.amazonaws.com/region"]);
        assert!(!format!("{found:?}").contains("hunter2"));
    }

    #[test]
    fn json_and_older_versions_are_read() {
        for version in ["v1", "v1beta1", "v1alpha1"] {
            let text = format!(
                r#"
                {{"kind":"CredentialProviderConfig","apiVersion":"kubelet.config.k8s.io/{version}","providers":[
                \t{{"name":"acr","matchImages":["*.azurecr.io"],"defaultCacheDuration":"0s","args":null,"env":null,
                "apiVersion":"credentialprovider.kubelet.k8s.io/{version}"}}]}}"#
            )
            .replace("\\t", "\t");
            let found = read_text(&text).expect("valid");
            assert_eq!((found[0].name.as_str(), found[0].keep), ("acr", Duration::ZERO));
            assert!(found[0].account.is_none());
        }
    }

    #[test]
    fn the_files_of_a_directory_are_merged_in_the_order_of_their_names() {
        let directory = tempfile::tempdir().expect("a directory");
        assert_eq!(
            read(directory.path()).err(),
            Some(BadProviders::NoFile { path: directory.path().to_owned() })
        );
        let write = |name: &str, provider: &str| {
            let text = format!("{HEAD}{}", PROVIDER.replace("ecr\n", &format!("{provider}\n")));
            std::fs::write(directory.path().join(name), text).expect("written");
        };
        write("20.yml", "c");
        write("10.json", "b");
        write("05.yaml", "a");
        write("00.yaml.bak", "z");
        std::fs::create_dir(directory.path().join("directory.yaml")).expect("created");
        let found = read(directory.path()).expect("valid");
        assert_eq!(found.iter().map(|found| found.name.as_str()).collect::<Vec<_>>(), ["a", "b", "c"]);
        write("30.yaml", "a");
        let error = read(directory.path()).expect_err("twice").to_string();
        assert!(error.contains("30.yaml") && error.contains("another of the same name"), "{error}");
    }

    #[test]
    fn what_kubelet_refuses_is_refused_and_told() {
        let with = |from: &str, to: &str| {
            let all = format!("{HEAD}{PROVIDER}    env: []\n{ACCOUNT}");
            assert!(all.contains(from), "{from}");
            all.replace(from, to)
        };
        for (text, expected) in [
            (with("CredentialProviderConfig", "Pod"), r#"its kind is "Pod""#),
            (
                with("kubelet.config.k8s.io/v1", "kubelet.config.k8s.io/v2"),
                "and not one of kubelet.config.k8s.io/v1,",
            ),
            (HEAD.to_owned(), "has no providers"),
            (with("name: ecr", "name: ../sh"), "no '/'"),
            (with("name: ecr", "name: .."), "not . or .."),
            (with("name: ecr", "name: a b"), "no space"),
            (with("name: ecr", "name: ''"), "not empty"),
            (with("    apiVersion: credentialprovider.kubelet.k8s.io/v1\n", ""), "apiVersion is missing"),
            (
                with("credentialprovider.kubelet.k8s.io/v1\n", "credentialprovider.kubelet.k8s.io/v3\n"),
                "and not one of credential",
            ),
            (
                with("credentialprovider.kubelet.k8s.io/v1\n", "credentialprovider.kubelet.k8s.io/v1beta1\n"),
                "needs the apiVersion",
            ),
            (with("\"*.dkr.ecr.*.amazonaws.com\", registry.io:8080/path", ""), "matchImages is empty"),
            (with("registry.io:8080/path", "\"a b\""), r#"matchImages has "a b""#),
            (with("    defaultCacheDuration: 12h0m0s\n", ""), "defaultCacheDuration is missing"),
            (with("12h0m0s", "12 hours"), r#""12 hours", and not a length of time such as 12h0m0s"#),
            (with("12h0m0s", "-1s"), "from 0 on"),
            (with("env: []", "env: [{name: 'A=B', value: x}]"), r#"env has "A=B""#),
            (with("sts.amazonaws.com", "''"), "serviceAccountTokenAudience is missing"),
            (with("      cacheType: ServiceAccount\n", ""), "cacheType is missing"),
            (with("cacheType: ServiceAccount", "cacheType: Pod"), r#"cacheType is "Pod""#),
            (with("      requireServiceAccount: true\n", ""), "requireServiceAccount is missing"),
            (
                with("requireServiceAccount: true", "requireServiceAccount: false"),
                "need requireServiceAccount: true",
            ),
            (with("eks.amazonaws.com/region", "eks.amazonaws.com/role-arn"), "twice"),
            (with("matchImages", "matchImage"), "unknown field `matchImage`"),
            (with("cacheType", "cachetype"), "unknown field `cachetype`"),
            (with("name: ecr", "args: []"), "missing field `name`"),
        ] {
            let error = read_text(&text).expect_err(&text).to_string();
            assert!(error.contains(expected) && error.contains("config.yaml"), "{error}\n{text}");
        }
        let missing = read(Path::new("/nowhere/config.yaml")).expect_err("missing").to_string();
        assert!(missing.contains("/nowhere/config.yaml: No such file"), "{missing}");
        let large = format!("{HEAD}{PROVIDER}#{}", "x".repeat(LIMIT));
        assert!(matches!(read_text(&large), Err(BadProviders::TooLarge { .. })));
    }

    #[test]
    fn t41_no_value_of_a_variable_is_in_an_error() {
        let json = r#"{"kind":"CredentialProviderConfig","apiVersion":"kubelet.config.k8s.io/v1","providers":[{"name":"a","env":"hunter2"}]}"#;
        for (text, place) in [
            (
                format!("{HEAD}{PROVIDER}    env: hunter2, expected hunter3\n"),
                "providers[0].env: expected a sequence at line 8",
            ),
            (format!("{HEAD}{PROVIDER}    env: [hunter2]\n"), "expected struct VariableText at line 8"),
            (
                format!("{HEAD}{PROVIDER}    env: [{{name: A, value: [hunter2]}}]\n"),
                "env[0].value: expected a string at line 8",
            ),
            (
                format!("{HEAD}{PROVIDER}    env: [{{name: A, value: 'hunter2]\n"),
                "neither JSON nor YAML at line",
            ),
            (json.to_owned(), "expected a sequence at line 1 column"),
            ("hunter2".to_owned(), "expected struct Type"),
        ] {
            let error = read_text(&text).expect_err("invalid");
            let printed = format!("{error} {error:?}");
            assert!(!printed.contains("hunter") && printed.contains(place), "{printed}");
        }
    }
}
