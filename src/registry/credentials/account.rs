//! The service account of a pod, and what of it a credential provider is told (KEP-4412).

#![cfg_attr(not(test), deny(clippy::indexing_slicing))]

use std::collections::BTreeMap;

use crate::registry::credentials::provider_config::AccountConfig;
use crate::registry::credentials::secret::{Secret, ServiceAccount};

/// The service account that a pod runs as, and what the Kubernetes API says of it.
#[derive(Debug, Clone, Copy)]
pub struct Account<'a> {
    /// Its names and tokens.
    pub service_account: &'a ServiceAccount,
    /// Its UID; empty when it is not known. An account that is made anew with the name of an old one has another.
    pub uid: &'a str,
    /// Its annotations. Empty when no provider needs them:
    /// [`needs_account`](crate::registry::credentials::providers::Providers::needs_account) says so.
    pub annotations: &'a BTreeMap<String, String>,
}

/// kubelet passes no token of the account that is for the provider.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "there is no token of the service account {account} for the audience {audience:?}; name that audience in tokenRequests of \
     ocivol's CSIDriver object"
)]
pub struct NoToken {
    /// Namespace and name of the account.
    pub account: String,
    /// The audience.
    pub audience: String,
}

/// What a provider is told of a service account. All of it is empty where there is none.
#[derive(Default)]
pub(in crate::registry) struct Told<'a> {
    /// The token that is for the provider.
    pub token: Option<&'a Secret>,
    /// The annotations that it names.
    pub annotations: BTreeMap<&'a str, &'a str>,
    /// Whose an answer is that is kept, in parts.
    pub owner: Vec<&'a str>,
    /// The same for people.
    pub name: String,
}

impl<'a> Told<'a> {
    /// What a provider with this configuration is told of `account`; `None` when it is not asked at all.
    ///
    /// # Errors
    /// [`NoToken`] when there is an account and not its token.
    pub fn of(config: &'a AccountConfig, account: Option<&Account<'a>>) -> Result<Option<Self>, NoToken> {
        let Some(account) = account else {
            return Ok((!config.is_required).then(Self::default));
        };
        let value = |key: &'a String| Some((key.as_str(), account.annotations.get(key)?.as_str()));
        let required: Option<BTreeMap<_, _>> = config.required_annotations.iter().map(value).collect();
        let Some(mut annotations) = required else { return Ok(None) };
        annotations.extend(config.optional_annotations.iter().filter_map(value));

        let ServiceAccount { namespace, name, tokens } = account.service_account;
        let full_name = format!("{namespace}/{name}");
        // Without its token the account would be given what is for pods that have none.
        let token = tokens
            .get(&config.audience)
            .map(|found| &found.token)
            .ok_or_else(|| NoToken { account: full_name.clone(), audience: config.audience.clone() })?;
        let mut owner = vec!["account", namespace, name, account.uid];
        for (key, value) in &annotations {
            owner.extend(["annotation", key, value]);
        }
        if config.is_per_token {
            owner.extend(["token", token.reveal()]);
        }
        let name = format!("account {full_name} {}", account.uid).trim_end().to_owned();
        Ok(Some(Self { token: Some(token), annotations, owner, name }))
    }
}
