//! The credentials for a volume, from all places that the operator allows, in the order in which they are tried.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::SystemTime;

use crate::failure;
use crate::host::blocking::{self, Lane};
use crate::host::metric::{Counts, Labels, Pairs};
use crate::kube::cluster::Cluster;
use crate::kube::pull_secrets::Pod;
use crate::oci::reference::Reference;
use crate::registry::client::Registry;
use crate::registry::credentials::account::Account;
use crate::registry::credentials::account_tokens::{AccountRule, uid_of};
use crate::registry::credentials::helpers::Helpers;
use crate::registry::credentials::keyring::Keyring;
use crate::registry::credentials::providers::Providers;
use crate::registry::credentials::secret::{Credential, ServiceAccount};
use crate::tenant::Tenant;

/// Where credentials come from, beside the volume itself.
#[derive(Clone)]
pub struct CredentialSources {
    /// Whether those in the volume's secret are used.
    pub volume_secrets: bool,
    /// How tokens of pods' service accounts are shown to registries.
    pub accounts: Vec<AccountRule>,
    /// The cluster's API, where it may be asked.
    pub cluster: Option<Cluster>,
    /// Whether pods' `imagePullSecrets` are used.
    pub pull_secrets: bool,
    /// kubelet's credential providers.
    pub providers: Option<Providers>,
    /// The node's Docker config: every pod may use what is in it.
    pub docker_config: Option<PathBuf>,
    /// The programs that the node's Docker config may name.
    pub helpers: Helpers,
    /// Whether registries are asked without credentials.
    pub anonymous: bool,
    /// How looking for them ended.
    pub metrics: CredentialMetrics,
}

/// Who wants a volume, and what came with the wish.
#[derive(Debug, Clone, Default)]
pub struct Wanting {
    /// Credentials that came with it.
    pub keyring: Keyring,
    /// The pod, if there is one.
    pub pod: Option<Pod>,
    /// Its service account.
    pub account: Option<ServiceAccount>,
}

/// Credentials, and why there are no more.
#[derive(Debug, Default)]
pub struct Found {
    /// In the order in which they are tried.
    pub credentials: Vec<Credential>,
    /// What failed, a sentence for each source; without secrets.
    pub notes: Vec<String>,
}

/// Counters of where credentials came from. Clones count together.
#[derive(Debug, Clone, Default)]
pub struct CredentialMetrics(Counts<(Place, IsFound)>);

/// Where credentials were looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Volume,
    Account,
    PullSecret,
    Provider,
    Node,
}

/// Whether some were found for the reference, or it failed.
type IsFound = bool;

impl Labels for (Place, IsFound) {
    const ALL: &'static [(Self, Pairs)] = &[
        ((Place::Volume, true), &[("source", "volume"), ("result", "found")]),
        ((Place::Volume, false), &[("source", "volume"), ("result", "failed")]),
        ((Place::Account, true), &[("source", "service_account"), ("result", "found")]),
        ((Place::Account, false), &[("source", "service_account"), ("result", "failed")]),
        ((Place::PullSecret, true), &[("source", "pull_secret"), ("result", "found")]),
        ((Place::PullSecret, false), &[("source", "pull_secret"), ("result", "failed")]),
        ((Place::Provider, true), &[("source", "provider"), ("result", "found")]),
        ((Place::Provider, false), &[("source", "provider"), ("result", "failed")]),
        ((Place::Node, true), &[("source", "node"), ("result", "found")]),
        ((Place::Node, false), &[("source", "node"), ("result", "failed")]),
    ];
}

impl CredentialMetrics {
    fn looked(&self, place: Place, found: &[Credential], has_failed: bool) {
        if has_failed {
            self.0.inc((place, false));
        }
        if !found.is_empty() {
            self.0.inc((place, true));
        }
    }

    /// Makes them part of what is served.
    pub fn register(&self, registry: &mut prometheus_client::registry::Registry) {
        registry.register(
            "ocivol_credentials",
            "Searches for credentials that found some for the reference, or failed, by source",
            self.0.clone(),
        );
    }
}

/// Credentials that are tried for one volume.
const CREDENTIALS: usize = 64;
/// Bytes of a Docker config.
const CONFIG_LIMIT: u64 = 1 << 20;

impl Default for CredentialSources {
    fn default() -> Self {
        Self {
            volume_secrets: true,
            accounts: Vec::new(),
            cluster: None,
            pull_secrets: false,
            providers: None,
            docker_config: None,
            helpers: Helpers::default(),
            anonymous: true,
            metrics: CredentialMetrics::default(),
        }
    }
}

impl CredentialSources {
    /// All credentials for `reference`. Sources are asked at the same time, each within a time limit of its own; one that fails is told
    /// of, and does not keep the others from being used.
    pub async fn find(
        &self,
        reference: &Reference,
        wanting: &Wanting,
        tenant: &Tenant,
        registry: &Registry,
    ) -> Found {
        let mut found = Found::default();
        // What an operator names is used whatever pods may.
        if self.volume_secrets || *tenant == Tenant::PrePull {
            // Ten thousand entries, each a pattern, are work.
            let (keyring, reference) = (wanting.keyring.clone(), reference.clone());
            let matching = move || (keyring.matching(&reference), keyring.note_of_helper(&reference));
            let (credentials, note) = blocking::run(Lane::Store, matching).await;
            self.metrics.looked(Place::Volume, &credentials, note.is_some());
            found.add(credentials, note);
        }
        let (accounts, pull_secrets, providers, node) = tokio::join!(
            self.of_account(reference, wanting, registry),
            self.of_pull_secrets(reference, wanting),
            self.of_providers(reference, wanting, tenant),
            self.of_node(reference, tenant),
        );
        let all = [
            (Place::Account, accounts),
            (Place::PullSecret, pull_secrets),
            (Place::Provider, providers),
            (Place::Node, node),
        ];
        for (place, (credentials, notes)) in all {
            self.metrics.looked(place, &credentials, !notes.is_empty());
            found.add(credentials, notes);
        }
        found
    }

    async fn of_account(
        &self,
        reference: &Reference,
        wanting: &Wanting,
        registry: &Registry,
    ) -> (Vec<Credential>, Vec<String>) {
        let (mut credentials, mut notes) = (Vec::new(), Vec::new());
        let Some(account) = &wanting.account else { return (credentials, notes) };
        for rule in self.accounts.iter().filter(|rule| rule.matches(reference)) {
            let Some(own) = account.tokens.get(&rule.audience) else {
                notes.push(format!(
                    "there is no token of service account {} for audience {:?}: it is missing in tokenRequests of the CSIDriver",
                    account.name, rule.audience
                ));
                continue;
            };
            if own.expires <= SystemTime::now() {
                notes.push(format!(
                    "the token of service account {} for {:?} is over",
                    account.name, rule.audience
                ));
                continue;
            }
            let token = match &rule.exchange_url {
                None => Ok(own.token.clone()),
                Some(url) => registry.exchange(url, &own.token).await,
            };
            match token {
                Ok(token) => credentials.push(rule.credential(account, own, token)),
                Err(error) => {
                    notes.push(format!(
                        "the token of service account {}: {}",
                        account.name,
                        failure::chain(&error)
                    ));
                }
            }
        }
        (credentials, notes)
    }

    async fn of_pull_secrets(
        &self,
        reference: &Reference,
        wanting: &Wanting,
    ) -> (Vec<Credential>, Vec<String>) {
        let (true, Some(cluster), Some(pod)) = (self.pull_secrets, &self.cluster, &wanting.pod) else {
            return Default::default();
        };
        match cluster.pull_secrets(pod).await {
            Ok(secrets) => {
                let reference = reference.clone();
                let matching = move || {
                    let all =
                        secrets.keyrings.iter().flat_map(|keyring| keyring.matching(&reference)).collect();
                    (all, secrets.problems.iter().map(|problem| failure::chain(problem)).collect())
                };
                blocking::run(Lane::Store, matching).await
            }
            Err(error) => (Vec::new(), vec![failure::chain(&error)]),
        }
    }

    async fn of_providers(
        &self,
        reference: &Reference,
        wanting: &Wanting,
        tenant: &Tenant,
    ) -> (Vec<Credential>, Vec<String>) {
        let Some(providers) = &self.providers else { return Default::default() };
        let mut notes = Vec::new();
        let (mut uid, mut annotations) = (String::new(), BTreeMap::new());
        if let (Some(needs), Some(account)) = (providers.needs_account(reference), &wanting.account)
            && needs.annotations
        {
            match &self.cluster {
                Some(cluster) => match cluster.service_account(&account.namespace, &account.name).await {
                    Ok(facts) => (uid, annotations) = (facts.uid, facts.annotations),
                    // Without what is there, it would be another account's credentials that a provider gives, or the node's.
                    Err(error) => return (Vec::new(), vec![failure::chain(&error)]),
                },
                None => notes.push(
                    "a credential provider wants annotations of service accounts: set credentials.providers.annotations in the \
                     chart"
                        .to_owned(),
                ),
            }
        }
        if uid.is_empty() {
            uid = wanting.account.as_ref().and_then(uid_of).unwrap_or_default();
        }
        let account = wanting.account.as_ref();
        let account =
            account.map(|service_account| Account { service_account, uid: &uid, annotations: &annotations });
        let (credentials, failed) = providers.credentials(reference, account.as_ref(), tenant).await;
        notes.extend(failed.iter().map(|error| failure::chain(error)));
        (credentials, notes)
    }

    async fn of_node(&self, reference: &Reference, tenant: &Tenant) -> (Vec<Credential>, Vec<String>) {
        let Some(path) = self.docker_config.clone() else { return Default::default() };
        let read = {
            let (path, reference) = (path.clone(), reference.clone());
            move || -> Result<_, String> {
                let size = std::fs::metadata(&path).map_err(|error| error.to_string())?.len();
                if size > CONFIG_LIMIT {
                    return Err(format!("it has {size} bytes, more than {CONFIG_LIMIT}"));
                }
                let text = zeroize::Zeroizing::new(
                    std::fs::read_to_string(&path).map_err(|error| error.to_string())?,
                );
                let keyring = Keyring::from_docker_config(&text, "it").map_err(|error| error.to_string())?;
                // Whoever may use the node may use it: the file is the identity.
                let keyring = keyring.with_identity("node");
                let helper = keyring.unused_helper(&reference).map(str::to_owned);
                Ok((keyring.matching(&reference), helper, keyring.note_of_helper(&reference)))
            }
        };
        match blocking::run(Lane::Store, read).await {
            Ok((credentials, None, _)) => (credentials, Vec::new()),
            Ok((mut credentials, Some(helper), note)) => {
                if !self.helpers.allows(&helper) {
                    return (credentials, note.into_iter().collect());
                }
                match self.helpers.credential(&helper, reference, tenant).await {
                    Ok(found) => {
                        credentials.extend(found);
                        (credentials, Vec::new())
                    }
                    Err(error) => (credentials, vec![failure::chain(&error)]),
                }
            }
            Err(reason) => (
                Vec::new(),
                vec![format!("the node's Docker config {} cannot be used: {reason}", path.display())],
            ),
        }
    }
}

impl Found {
    fn add(&mut self, credentials: Vec<Credential>, notes: impl IntoIterator<Item = String>) {
        for credential in credentials {
            if self.credentials.len() < CREDENTIALS && !self.credentials.contains(&credential) {
                self.credentials.push(credential);
            }
        }
        self.notes.extend(notes);
    }
}
