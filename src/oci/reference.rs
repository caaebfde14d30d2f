//! References: `host[:port]/name[:tag][@digest]`, read as Docker reads them, and `oci-layout:/path[:tag][@digest]`, an image layout on
//! this node.

#![cfg_attr(not(test), deny(clippy::indexing_slicing))]

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::oci::digest::Digest;

/// Docker Hub's name in references. Its registry answers at another host, which `registry` knows.
pub const DOCKER_HUB: &str = "docker.io";
/// What stands for a host where an image layout on this node is meant. No registry has this name: a host has a dot or a port, or is
/// `localhost`.
pub const OCI_LAYOUT: &str = "oci-layout";
/// What an image layout is asked for where the reference has neither tag nor digest: the only manifest, or the one named `latest`. It
/// is no tag.
pub const ONLY: &str = "*";

/// Where a manifest is: a registry, a repository, and a tag or digest. Or an image layout on this node: then the host is
/// [`OCI_LAYOUT`], and the repository is the path of a directory or archive, which begins with `/` and has no `.` or `..` in it.
///
/// *Invariant:* every part obeys the grammar of distribution-spec v1.1, so it is safe in a URL path. At registries that tell
/// upper case from lower (`MIXED_CASE`) names may have capital letters, too.
///
/// When both tag and digest are given the digest decides and the tag only informs.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Reference {
    host: String,
    repository: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

/// The text is not a reference.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a reference: {text:?}: {reason}; expected {}[:tag][@digest]", if .text.starts_with(LAYOUT_PREFIX) { "oci-layout:/path" } else { "host[:port]/name" })]
pub struct InvalidReference {
    text: String,
    reason: String,
}

/// Registries whose repositories have the names of their users, as these write them: Hugging Face's and Ollama's.
const MIXED_CASE: [&str; 4] = ["hf.co", "huggingface.co", "registry.ollama.ai", "ollama.com"];
/// What references to image layouts begin with, but for the path's own slash.
const LAYOUT_PREFIX: &str = "oci-layout:";
/// Bytes of the path of an image layout: a fourth of what Linux allows (`man 3 realpath`, PATH_MAX), so that errors that name one
/// have room for more.
const PATH_LIMIT: usize = 1024;
/// Bytes of `host/repository`, as in distribution's reference grammar.
const NAME_LIMIT: usize = 255;
/// Characters of a tag: distribution-spec v1.1, "Pulling manifests".
const TAG_LIMIT: usize = 128;

impl Reference {
    /// The registry's host, with its port if one was given; `docker.io` for Docker Hub.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The repository's name within the registry.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The tag as given.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest as given.
    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// Whether an image layout on this node is meant, and not a registry.
    pub fn is_layout(&self) -> bool {
        self.host == OCI_LAYOUT
    }

    /// What to ask the registry for: the digest if there is one, else the tag, else `latest`; of an image layout [`ONLY`].
    pub fn target(&self) -> String {
        let default = if self.is_layout() { ONLY } else { "latest" };
        match &self.digest {
            Some(digest) => digest.to_string(),
            None => self.tag.as_deref().unwrap_or(default).to_owned(),
        }
    }

    /// The manifest at `digest` in the same repository.
    #[must_use]
    pub fn at(&self, digest: Digest) -> Self {
        Self { digest: Some(digest), tag: None, ..self.clone() }
    }
}

impl FromStr for Reference {
    type Err = InvalidReference;

    fn from_str(text: &str) -> Result<Self, InvalidReference> {
        let invalid = |reason: String| InvalidReference { text: text.chars().take(300).collect(), reason };
        if text.contains("://") {
            return Err(invalid("a reference has no scheme".into()));
        }
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => {
                (rest, Some(digest.parse::<Digest>().map_err(|error| invalid(error.to_string()))?))
            }
            None => (text, None),
        };
        // A colon after the last slash starts a tag; one before it belongs to the port.
        let name_start = rest.rfind('/').map_or(0, |slash| slash + 1);
        let (name, tag) = match rest[name_start..].find(':') {
            Some(colon) => (&rest[..name_start + colon], Some(&rest[name_start + colon + 1..])),
            None => (rest, None),
        };
        if let Some(tag) = tag {
            check_tag(tag).map_err(invalid)?;
        }
        if let Some(path) = name.strip_prefix(LAYOUT_PREFIX).filter(|path| path.starts_with('/')) {
            let path = path.trim_end_matches('/');
            check_path(path).map_err(invalid)?;
            // Only a slash after it could tell such a name from one with a tag, and slashes at the end are not kept.
            if path.rsplit('/').next().is_some_and(|last| last.contains(':')) {
                return Err(invalid(
                    "the last part of the path has a colon, after which a tag would be".into(),
                ));
            }
            let (host, tag) = (OCI_LAYOUT.to_owned(), tag.map(str::to_owned));
            return Ok(Self { host, repository: path.to_owned(), tag, digest });
        }
        let (host, repository) = split_host(name);
        check_host(host).map_err(invalid)?;
        check_repository(host, &repository).map_err(invalid)?;
        if host.len() + repository.len() > NAME_LIMIT {
            return Err(invalid(format!("host and name are longer than {NAME_LIMIT} bytes")));
        }
        Ok(Self { host: host.to_owned(), repository, tag: tag.map(str::to_owned), digest })
    }
}

/// The first component is a host if it looks like one; else the name is Docker Hub's.
fn split_host(name: &str) -> (&str, String) {
    match name.split_once('/') {
        Some((first, rest)) if first.contains(['.', ':', '[']) || first == "localhost" => match first {
            "index.docker.io" | "registry-1.docker.io" | DOCKER_HUB => (DOCKER_HUB, hub_repository(rest)),
            _ => (first, rest.to_owned()),
        },
        _ => (DOCKER_HUB, hub_repository(name)),
    }
}

fn hub_repository(name: &str) -> String {
    if name.contains('/') { name.to_owned() } else { format!("library/{name}") }
}

fn check_host(host: &str) -> Result<(), String> {
    let (name, port) = match host.strip_prefix('[') {
        Some(rest) => {
            let (address, after) = rest.split_once(']').ok_or("the host's bracket is not closed")?;
            if address.parse::<std::net::Ipv6Addr>().is_err() {
                return Err(format!("{address:?} is not an IPv6 address"));
            }
            match (after, after.strip_prefix(':')) {
                ("", _) => (None, None),
                (_, Some(port)) => (None, Some(port)),
                _ => return Err("text between the host's bracket and its port".into()),
            }
        }
        None => match host.split_once(':') {
            Some((name, port)) => (Some(name), Some(port)),
            None => (Some(host), None),
        },
    };
    if let Some(port) = port
        && (port.is_empty()
            || !port.bytes().all(|byte| byte.is_ascii_digit())
            || port.parse::<u16>().map_or(true, |port| port == 0))
    {
        return Err(format!("{port:?} is not a port"));
    }
    if let Some(name) = name {
        let label = |label: &str| {
            !label.is_empty()
                && label.len() <= 63
                && !label.starts_with('-')
                && !label.ends_with('-')
                && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
        };
        if !name.split('.').all(label) {
            return Err(format!("{name:?} is not a host name"));
        }
    }
    Ok(())
}

fn check_repository(host: &str, repository: &str) -> Result<(), String> {
    let mixed_case = MIXED_CASE.contains(&host.split(':').next().unwrap_or(host));
    for component in repository.split('/') {
        let lower = component.to_ascii_lowercase();
        if is_path_component(if mixed_case { &lower } else { component }) {
            continue;
        }
        if is_path_component(&lower) {
            return Err(format!(
                "{component:?} has capital letters, which names of repositories have only at {}; elsewhere it is {lower:?}",
                MIXED_CASE.join(", ")
            ));
        }
        return Err(format!(
            "{component:?} is not a part of a name: lower-case letters and digits, separated by one '.', \
             one or two '_', or '-'"
        ));
    }
    Ok(())
}

/// The absolute path of an image layout. What it leads to is for who opens it to look at.
fn check_path(path: &str) -> Result<(), String> {
    if path.len() > PATH_LIMIT {
        return Err(format!("the path is longer than {PATH_LIMIT} bytes"));
    }
    let Some(parts) = path.strip_prefix('/') else {
        return Err("the path is that of no directory or archive".into());
    };
    match parts.split('/').find(|part| matches!(*part, "" | "." | "..") || part.chars().any(char::is_control))
    {
        Some(part) => Err(format!("the path has the part {part:?}")),
        None => Ok(()),
    }
}

/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`, distribution-spec v1.1.
fn is_path_component(component: &str) -> bool {
    let alphanumeric = |byte: &u8| byte.is_ascii_digit() || byte.is_ascii_lowercase();
    let bytes = component.as_bytes();
    if !bytes.first().is_some_and(alphanumeric) || !bytes.last().is_some_and(alphanumeric) {
        return false;
    }
    bytes.split(alphanumeric).all(|separator| {
        matches!(separator, b"" | b"." | b"_" | b"__") || separator.iter().all(|&byte| byte == b'-')
    })
}

/// `[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}`, distribution-spec v1.1.
fn check_tag(tag: &str) -> Result<(), String> {
    let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    let fits = !tag.is_empty()
        && tag.len() <= TAG_LIMIT
        && tag.bytes().take(1).all(word)
        && tag.bytes().all(|byte| word(byte) || byte == b'.' || byte == b'-');
    if fits {
        return Ok(());
    }
    // Semantic versions have build metadata, and Helm pushes them under another name.
    let pushed = tag.replace('+', "_");
    match pushed != tag && check_tag(&pushed).is_ok() {
        true => Err(format!("{tag:?} is not a tag; Helm makes the tag {pushed:?} of it")),
        false => Err(format!("{tag:?} is not a tag")),
    }
}

impl TryFrom<String> for Reference {
    type Error = InvalidReference;

    fn try_from(text: String) -> Result<Self, InvalidReference> {
        text.parse()
    }
}

impl From<Reference> for String {
    fn from(reference: Reference) -> Self {
        reference.to_string()
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let separator = if self.is_layout() { ':' } else { '/' };
        write!(out, "{}{separator}{}", self.host, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(out, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(out, "@{digest}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn read_as_docker_reads_them() {
        let digest = format!("sha256:{}", "0".repeat(64));
        let table = [
            ("alpine".to_owned(), "docker.io", "library/alpine", None),
            ("alpine:3".into(), "docker.io", "library/alpine", Some("3")),
            ("ai/smollm2".into(), "docker.io", "ai/smollm2", None),
            ("index.docker.io/alpine".into(), "docker.io", "library/alpine", None),
            ("localhost/x".into(), "localhost", "x", None),
            ("localhost:5000/a/b:v1".into(), "localhost:5000", "a/b", Some("v1")),
            ("[::1]:5000/a".into(), "[::1]:5000", "a", None),
            ("ghcr.io/a__b/c-d.e/f---g:V_1.0-x".into(), "ghcr.io", "a__b/c-d.e/f---g", Some("V_1.0-x")),
            (format!("r.example/x:t@{digest}"), "r.example", "x", Some("t")),
        ];
        for (text, host, repository, tag) in table {
            let reference: Reference = text.parse().expect(&text);
            assert_eq!((reference.host(), reference.repository(), reference.tag()), (host, repository, tag));
            assert_eq!(reference.to_string().parse::<Reference>(), Ok(reference));
        }
    }

    #[test]
    fn image_layouts_have_a_path_and_a_tag_after_the_last_slash() {
        let digest = format!("sha256:{}", "0".repeat(64));
        let table = [
            ("oci-layout:/srv/Models/a b.tar".to_owned(), "/srv/Models/a b.tar", None, "*".to_owned()),
            ("oci-layout:/srv/a:b/x:v1".into(), "/srv/a:b/x", Some("v1"), "v1".into()),
            (format!("oci-layout:/x:v1@{digest}"), "/x", Some("v1"), digest.clone()),
            (format!("oci-layout:/x@{digest}"), "/x", None, digest),
        ];
        for (text, path, tag, target) in table {
            let reference: Reference = text.parse().expect(&text);
            assert!(reference.is_layout(), "{text}");
            assert_eq!((reference.repository(), reference.tag()), (path, tag), "{text}");
            assert_eq!((reference.target(), reference.to_string()), (target, text));
            assert_eq!(reference.to_string().parse::<Reference>(), Ok(reference));
        }
        for text in ["oci-layout:/srv/a:b/", "oci-layout:/srv/a:/", "oci-layout:/srv/a:b/:v1"] {
            let error = text.parse::<Reference>().expect_err(text).to_string(); // regression: was read as another when written
            assert!(error.contains("has a colon"), "{error}");
        }
        let slash: Reference = "oci-layout:/srv/x/".parse().expect("a path");
        assert_eq!(slash.to_string(), "oci-layout:/srv/x");
        let long = format!("oci-layout:/{}", "a".repeat(1024));
        for bad in [
            "oci-layout:/",
            "oci-layout:/srv/../etc",
            "oci-layout:/srv/./x",
            "oci-layout://x",
            "oci-layout:/a\nb",
            "oci-layout:/x:",
            "oci-layout:/x:a:b",
            "oci-layout:/x@y",
            "oci-layout:./x",
            &long,
        ] {
            let error = bad.parse::<Reference>().expect_err(bad).to_string();
            assert!(error.contains("expected oci-layout:/path[:tag][@digest]"), "{error}");
        }
        for other in ["oci-layout:v1", "oci-layout:5000/x", "oci-layout/x"] {
            assert!(!other.parse::<Reference>().expect(other).is_layout(), "{other}");
        }
    }

    #[test]
    fn regression_capital_letters_where_the_registry_has_them() {
        let text = "hf.co/Org/Name_2.5-GGUF:Q4_K_M";
        let reference: Reference = text.parse().expect(text);
        assert_eq!((reference.repository(), reference.to_string().as_str()), ("Org/Name_2.5-GGUF", text));
        assert!("hf.co:8443/Org/x".parse::<Reference>().is_ok());
        for bad in ["hf.co/Org/../x", "hf.co/Org/a..B", "hf.co/Org/-B", "hf.co/Örg/x", "hf.co.example/Org/x"]
        {
            assert!(bad.parse::<Reference>().is_err(), "{bad} was accepted");
        }
        let error = "ghcr.io/Org/Name:v1".parse::<Reference>().expect_err("capitals").to_string();
        assert!(error.contains("hf.co") && error.contains(r#"elsewhere it is "org""#), "{error}");
    }

    #[test]
    fn regression_a_version_with_build_metadata_is_told_its_tag() {
        let error = "r.example/chart:1.2.3+up1".parse::<Reference>().expect_err("a plus").to_string();
        assert!(error.contains(r#"Helm makes the tag "1.2.3_up1" of it"#), "{error}");
        let error = "r.example/chart:+".parse::<Reference>().expect_err("a plus").to_string();
        assert!(error.contains(r#"Helm makes the tag "_" of it"#), "{error}");
        let error = "r.example/chart:1+ 2".parse::<Reference>().expect_err("a space").to_string();
        assert!(!error.contains("Helm"), "{error}");
    }

    #[test]
    fn t36_nothing_else_is_a_reference() {
        let long = format!("r.example/{}", "a".repeat(260));
        let bad = [
            "",
            ":v1",
            "https://r.example/x",
            "r.example/",
            "r.example//x",
            "r.example/X",
            "r.example/../x",
            "r.example/a/./b",
            "r.example/a___b",
            "r.example/a..b",
            "r.example/x:",
            "r.example/x:.v",
            "r.example/x:v 1",
            "r.example:port/x",
            "r.example:70000/x",
            "r.example:0/x",
            "user@r.example/x",
            "r.example/x@sha256:abc",
            "r.example/x?y",
            "r.example/x#y",
            "r.example/x\ny",
            "[::1/x",
            "[::g]:1/x",
            "-r.example/x",
            "a,rw,suid",
            &long,
        ];
        for text in bad {
            assert!(text.parse::<Reference>().is_err(), "{text:?} was accepted");
        }
    }
}
