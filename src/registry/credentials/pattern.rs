//! Which registries and repositories an entry of a Docker config is for.

#![cfg_attr(not(test), deny(clippy::indexing_slicing))]

use crate::oci::reference::{DOCKER_HUB, Reference};

/// The key of an entry: host globs per DNS label, an exact port, and a path prefix of whole segments.
///
/// kubelet compares paths as strings, so its `team` also matches `team-evil`; here segments are compared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::registry) struct Pattern {
    host: Option<String>,
    port: Option<String>,
    path: Vec<String>,
}

impl Pattern {
    pub fn everything() -> Self {
        Self { host: None, port: None, path: Vec::new() }
    }

    pub fn new(key: &str) -> Self {
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

    pub fn specificity(&self) -> (usize, bool, bool) {
        let exact = self.host.as_ref().is_some_and(|host| !host.contains(['*', '?', '[']));
        (self.path.len(), exact, self.port.is_some())
    }

    pub fn matches(&self, reference: &Reference) -> bool {
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
