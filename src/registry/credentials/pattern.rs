//! Which registries and repositories an entry of a Docker config is for.

#![cfg_attr(not(test), deny(clippy::indexing_slicing))]

use crate::oci::reference::{DOCKER_HUB, Reference};

/// The key of an entry: host globs per DNS label, an exact port, and a path prefix of whole segments.
///
/// kubelet compares paths as strings, so its `team` also matches `team-evil`; here segments are compared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern {
    host: Option<String>,
    port: Option<String>,
    path: Vec<String>,
}

impl Pattern {
    /// The pattern that everything matches.
    pub fn everything() -> Self {
        Self { host: None, port: None, path: Vec::new() }
    }

    /// The pattern that `key` says, with or without a scheme and `/v1/` or `/v2/`.
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

    /// The pattern of images in kubelet's `matchImages`; `None` when it is empty or no pattern. A first part of the path that is `v1`
    /// or `v2` is a repository's here, and not the API's version.
    pub fn of_images(text: &str) -> Option<Self> {
        let is_odd = |letter: char| letter.is_whitespace() || letter.is_control();
        let (authority, path) = text.split_once('/').unwrap_or((text, ""));
        if authority.is_empty() || text.contains("//") || text.contains(is_odd) {
            return None;
        }
        let path = path.split('/').filter(|part| !part.is_empty()).map(str::to_owned).collect();
        let pattern = Self { path, ..Self::new(authority) };
        let mut globs = pattern.host.iter().flat_map(|host| host.split('.'));
        globs.all(|glob| globset::Glob::new(glob).is_ok()).then_some(pattern)
    }

    /// Larger for what matches less.
    pub fn specificity(&self) -> (usize, bool, bool) {
        let exact = self.host.as_ref().is_some_and(|host| !host.contains(['*', '?', '[']));
        (self.path.len(), exact, self.port.is_some())
    }

    /// Whether it is for the repository of `reference`.
    pub fn matches(&self, reference: &Reference) -> bool {
        self.matches_repository(reference.host(), reference.repository())
    }

    /// Whether it is for a repository of a registry.
    pub fn matches_repository(&self, host: &str, repository: &str) -> bool {
        let Some(pattern) = &self.host else { return true };
        let (host, port) = split_port(host);
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
            && self.path.len() <= repository.split('/').count()
            && self.path.iter().zip(repository.split('/')).all(|(want, part)| want == part)
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

    /// kubelet's own examples, in `matchImages` of kubelet-config.k8s.io/v1, and what differs here.
    #[test]
    fn images_match_by_labels_port_and_whole_segments() {
        for (pattern, reference, expected) in [
            (
                "123456789.dkr.ecr.us-east-1.amazonaws.com",
                "123456789.dkr.ecr.us-east-1.amazonaws.com/a",
                true,
            ),
            ("*.dkr.ecr.*.amazonaws.com", "123456789.dkr.ecr.us-east-1.amazonaws.com/a", true),
            ("*.dkr.ecr.*.amazonaws.com", "1.2.dkr.ecr.us-east-1.amazonaws.com/a", false),
            ("app*.k8s.io", "app7.k8s.io/a", true),
            ("*.io", "k8s.io/a", true),
            ("*.io", "registry.k8s.io/a", false),
            ("*.k8s.io", "k8s.io/a", false),
            ("registry.io:8080/path", "registry.io:8080/path/a", true),
            ("registry.io:8080/path", "registry.io/path/a", false),
            ("registry.io", "registry.io:8080/path/a", false),
            ("registry.io/path", "registry.io/path", true),
            ("registry.io/path/", "registry.io/path/a", true),
            ("registry.io/path", "registry.io/path-evil", false),
            ("registry.io/v2", "registry.io/a", false),
            ("registry.io/v2", "registry.io/v2/a", true),
            ("docker.io", "nginx", true),
            ("docker.io/library", "nginx", true),
            ("registry-1.docker.io", "team/app", true),
        ] {
            let reference = reference.parse().expect("a reference");
            let found = Pattern::of_images(pattern).expect(pattern).matches(&reference);
            assert_eq!(found, expected, "{pattern} {reference:?}");
        }
        for text in ["", "/path", "a.io/b//c", "https://a.io", "a b.io", "a.io\n", "[.io"] {
            assert_eq!(Pattern::of_images(text), None, "{text:?}");
        }
    }
}
