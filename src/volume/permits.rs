//! Which registries and repositories the pods of a namespace may use.

use std::sync::Arc;

use serde::Deserialize;

use crate::oci::reference::{DOCKER_HUB, Reference};
use crate::oci::repository::{Repository, host_identity};
use crate::registry::credentials::pattern::Pattern;
use crate::tenant::Tenant;
use crate::volume::error::Error;

/// Rules, of which the first that names a namespace decides. A namespace that none names may use everything.
#[derive(Debug, Clone, Default)]
pub struct Permits(Arc<[Rule]>);

/// What some namespaces may use.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Rule {
    /// Namespaces, as globs: `team-*`.
    namespaces: Vec<String>,
    /// Registries and repositories, as the keys of a Docker config: `*.example`, `registry.example/team`. None: all but `deny`.
    #[serde(default)]
    allow: Vec<String>,
    /// What they may not use, also of what is allowed.
    #[serde(default)]
    deny: Vec<String>,
}

/// Other names of Docker Hub's registry.
const HUB: [&str; 2] = ["registry-1.docker.io", "index.docker.io"];

impl Permits {
    /// Reads rules, as JSON.
    ///
    /// # Errors
    /// In words, where they cannot be used.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text.trim().is_empty() {
            return Ok(Self::default());
        }
        let rules: Vec<Rule> = serde_json::from_str(text)
            .map_err(|error| format!("it is no list of {{namespaces, allow, deny}} in JSON: {error}"))?;
        let keys = rules.iter().flat_map(|rule| rule.allow.iter().chain(&rule.deny));
        if let Some(key) = keys.into_iter().find(|key| *key != "*" && Pattern::of_images(key).is_none()) {
            return Err(format!("{key:?} names no registry or repository, as registry.example/team"));
        }
        for glob in rules.iter().flat_map(|rule| &rule.namespaces) {
            globset::Glob::new(glob).map_err(|error| format!("{glob:?} is no glob: {}", error.kind()))?;
        }
        if rules.iter().any(|rule| rule.namespaces.is_empty()) {
            return Err("a rule names no namespaces; \"*\" is all of them".to_owned());
        }
        Ok(Self(rules.into()))
    }

    /// The registries that are allowed by name, however they are named.
    pub fn registries(&self) -> Vec<String> {
        let keys = self.0.iter().flat_map(|rule| &rule.allow);
        let hosts = keys.filter_map(|key| key.split('/').next()).filter(|host| !host.contains('*'));
        hosts
            .map(host_identity)
            .map(|host| if HUB.contains(&host.as_str()) { DOCKER_HUB.into() } else { host })
            .collect()
    }

    /// Checks that pods of `tenant` may use `reference`. Who uses the command line on the node is not asked, and what an
    /// operator wants to be there before pods neither.
    ///
    /// # Errors
    /// [`Error::NotPermitted`].
    pub fn check(&self, tenant: &Tenant, reference: &Reference) -> Result<(), Error> {
        let namespace = match tenant {
            Tenant::CommandLine | Tenant::PrePull => return Ok(()),
            Tenant::Namespace(name) => name,
            Tenant::Unnamed => "",
        };
        let is_named = |rule: &&Rule| {
            let is_match = |glob: &String| {
                globset::Glob::new(glob).is_ok_and(|glob| glob.compile_matcher().is_match(namespace))
            };
            rule.namespaces.iter().any(is_match)
        };
        let Some(rule) = self.0.iter().find(is_named) else { return Ok(()) };
        let Repository { host, name } = Repository::of(reference);
        // However a registry is named, it is the same.
        let host = if HUB.contains(&host.as_str()) { DOCKER_HUB } else { &host };
        let is_for = |key: &String| {
            key == "*" || Pattern::new(key).matches_repository(host, name.trim_start_matches('/'))
        };
        let names = |list: &[String]| list.iter().any(is_for);
        if names(&rule.deny) || !(rule.allow.is_empty() || names(&rule.allow)) {
            let repository = format!("{}/{}", reference.host(), reference.repository());
            return Err(Error::NotPermitted { namespace: tenant.to_string(), repository });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_rule_that_names_a_namespace_decides() {
        let text = r#"[
            {"namespaces":["kube-system"]},
            {"namespaces":["team-*"],"allow":["r.example/team","*.trusted.example"],"deny":["r.example/team/secret"]},
            {"namespaces":["layouts"],"allow":["oci-layout/srv"]},
            {"namespaces":["nothing"],"deny":["*"]},
            {"namespaces":["*"],"deny":["docker.io"]}
        ]"#;
        let permits = Permits::parse(text).expect("valid");
        let may = |namespace: Option<&str>, reference: &str| {
            let reference = reference.parse().expect("a reference");
            permits.check(&Tenant::of_namespace(namespace), &reference).is_ok()
        };
        for (namespace, reference, expected) in [
            ("kube-system", "alpine", true),
            ("team-a", "r.example/team/m:v1", true),
            ("team-a", "r.example/team-evil/m", false),
            ("team-a", "r.example/team/secret/m", false),
            ("team-a", "a.trusted.example/x", true),
            ("team-a", "trusted.example/x", false),
            ("other", "alpine", false),
            ("other", "Registry-1.docker.io:443/library/alpine", false),
            ("team-a", "R.example:443/team/secret/m", false),
            ("team-a", "R.example:443/team/m", true),
            ("team-a", "oci-layout:/srv/x", false),
            ("layouts", "oci-layout:/srv/x", true),
            ("layouts", "oci-layout:/etc/x", false),
            ("other", "r.example/team/secret/m", true),
        ] {
            assert_eq!(may(Some(namespace), reference), expected, "{namespace} {reference}");
        }
        assert!(!may(Some("nothing"), "r.example:5000/x"));
        // A request that names no namespace is one that only the last rule names.
        assert!(!may(None, "alpine") && may(None, "r.example/x"));
        assert!(permits.check(&Tenant::CommandLine, &"alpine".parse().expect("one")).is_ok());
    }

    #[test]
    fn rules_that_cannot_be_used_are_refused() {
        assert!(Permits::parse("").is_ok() && Permits::parse("[]").is_ok());
        for text in [
            "{}",
            r#"[{"namespaces":[]}]"#,
            r#"[{"namespaces":["["]}]"#,
            r#"[{"namespaces":["a"],"alow":[]}]"#,
            r#"[{"namespaces":["a"],"deny":["https://x"]}]"#,
        ] {
            assert!(Permits::parse(text).is_err(), "{text}");
        }
    }
}
