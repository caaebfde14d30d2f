//! Flags about credentials, about who may use what, and about what the Kubernetes API is asked for.

use std::collections::BTreeMap;
use std::path::PathBuf;

use crate::host::limits;
use crate::kube::cluster::Cluster;
use crate::node::bad_flag::BadFlag;
use crate::registry::credentials::account_tokens::parse_rules;
use crate::registry::credentials::helpers::Helpers;
use crate::registry::credentials::providers::Providers;
use crate::volume::credentials::{CredentialMetrics, CredentialSources};
use crate::volume::permits::Permits;

/// Flags as they were given.
#[derive(Debug, Clone)]
pub struct CredentialFlags {
    /// `--volume-secrets`
    pub volume_secrets: bool,
    /// `--service-account-tokens`
    pub service_account_tokens: String,
    /// `--image-pull-secrets`
    pub image_pull_secrets: bool,
    /// `--image-credential-provider-config`
    pub provider_config: Option<PathBuf>,
    /// `--image-credential-provider-bin-dir`
    pub provider_bin_dir: Option<PathBuf>,
    /// `--node-docker-config`
    pub node_docker_config: Option<PathBuf>,
    /// `--credential-helper`
    pub helpers: Vec<String>,
    /// `--anonymous`
    pub anonymous: bool,
    /// `--permits`
    pub permits: String,
    /// `--pod-events`
    pub pod_events: bool,
    /// `--cached-artifacts`
    pub cached_artifacts: bool,
}

impl Default for CredentialFlags {
    fn default() -> Self {
        Self {
            volume_secrets: true,
            service_account_tokens: String::new(),
            image_pull_secrets: false,
            provider_config: None,
            provider_bin_dir: None,
            node_docker_config: None,
            helpers: Vec::new(),
            anonymous: true,
            permits: String::new(),
            pod_events: false,
            cached_artifacts: false,
        }
    }
}

impl CredentialFlags {
    /// Checks every flag, and reads what it names.
    ///
    /// # Errors
    /// [`BadFlag`] names the first flag that cannot be used, and says why.
    pub fn check(self) -> Result<(CredentialSources, Permits), BadFlag> {
        let bad = |flag: &'static str, value: String, reason: String| BadFlag { flag, value, reason };
        let accounts = parse_rules(&self.service_account_tokens).map_err(|error| {
            bad("--service-account-tokens", self.service_account_tokens.clone(), error.to_string())
        })?;
        let permits =
            Permits::parse(&self.permits).map_err(|reason| bad("--permits", self.permits.clone(), reason))?;
        // Nobody who needs none has a client of the API in memory.
        let needs_cluster = self.image_pull_secrets
            || self.pod_events
            || self.cached_artifacts
            || self.provider_config.is_some();
        let cluster = match needs_cluster.then(Cluster::in_cluster) {
            None => None,
            Some(Ok(cluster)) => Some(cluster),
            Some(Err(error)) if self.image_pull_secrets => {
                return Err(bad("--image-pull-secrets", "true".to_owned(), error.to_string()));
            }
            Some(Err(error)) if self.pod_events => {
                return Err(bad("--pod-events", "true".to_owned(), error.to_string()));
            }
            Some(Err(error)) if self.cached_artifacts => {
                return Err(bad("--cached-artifacts", "true".to_owned(), error.to_string()));
            }
            // Providers may do without.
            Some(Err(_)) => None,
        };
        let providers = match (&self.provider_config, &self.provider_bin_dir) {
            (None, None) => None,
            (Some(config), Some(directory)) => {
                let flag = "--image-credential-provider-config";
                let loaded = Providers::load(config, directory);
                Some(loaded.map_err(|error| bad(flag, config.display().to_string(), error.to_string()))?)
            }
            (config, directory) => {
                let (flag, given) = match config.is_some() {
                    true => ("--image-credential-provider-bin-dir", config),
                    false => ("--image-credential-provider-config", directory),
                };
                let given = given.as_ref().map(|path| path.display().to_string()).unwrap_or_default();
                let reason = format!("it is missing beside {given}: both or neither are given");
                return Err(bad(flag, String::new(), reason));
            }
        };
        let mut allowed = BTreeMap::new();
        for helper in &self.helpers {
            let Some((name, path)) = helper.split_once('=') else {
                let reason =
                    "it is no NAME=PATH, as ecr-login=/usr/bin/docker-credential-ecr-login".to_owned();
                return Err(bad("--credential-helper", helper.clone(), reason));
            };
            allowed.insert(name.to_owned(), PathBuf::from(path));
        }
        let helpers = Helpers::new(allowed)
            .map_err(|error| bad("--credential-helper", self.helpers.join(","), error.to_string()))?;
        let programs = providers.as_ref().map_or(0, Providers::count) + helpers.count();
        if programs > limits::PROGRAMS {
            let reason =
                format!("of credential providers and helpers there may be {} in all", limits::PROGRAMS);
            return Err(bad("--image-credential-provider-config", programs.to_string(), reason));
        }
        let sources = CredentialSources {
            volume_secrets: self.volume_secrets,
            accounts,
            cluster,
            pull_secrets: self.image_pull_secrets,
            providers,
            docker_config: self.node_docker_config,
            helpers,
            anonymous: self.anonymous,
            metrics: CredentialMetrics::default(),
        };
        Ok((sources, permits))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_work_is_refused_with_the_flags_name() {
        let flags = CredentialFlags::default;
        for (flag, flags) in [
            ("--service-account-tokens", CredentialFlags { service_account_tokens: "x".into(), ..flags() }),
            ("--permits", CredentialFlags { permits: "{}".into(), ..flags() }),
            ("--credential-helper", CredentialFlags { helpers: vec!["x".into()], ..flags() }),
            ("--credential-helper", CredentialFlags { helpers: vec!["x=relative".into()], ..flags() }),
            ("--pod-events", CredentialFlags { pod_events: true, ..flags() }),
            ("--cached-artifacts", CredentialFlags { cached_artifacts: true, ..flags() }),
            (
                "--image-credential-provider-bin-dir",
                CredentialFlags { provider_config: Some("/x".into()), ..flags() },
            ),
            (
                "--image-credential-provider-config",
                CredentialFlags { provider_bin_dir: Some("/x".into()), ..flags() },
            ),
        ] {
            let error = flags.check().err().expect(flag);
            assert_eq!(error.flag, flag, "{error}");
        }
        let (sources, _) = CredentialFlags::default().check().expect("valid");
        assert!(sources.volume_secrets && sources.anonymous && sources.cluster.is_none());
    }
}
