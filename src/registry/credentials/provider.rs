//! One of kubelet's credential providers: a program that is asked for an image, and whose answers are kept as it says.
//!
//! Source: `pluginProvider` in `pkg/credentialprovider/plugin/plugin.go` of kubelet v1.36.

#![cfg_attr(not(test), deny(clippy::indexing_slicing))]

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::oci::reference::Reference;
use crate::registry::credentials::account::{Account, NoToken, Told};
use crate::registry::credentials::answers::{Answer, Answers, Key, Unasked};
use crate::registry::credentials::command::{Command, CommandError, Exit};
use crate::registry::credentials::pattern::Pattern;
use crate::registry::credentials::provider_config::{AccountConfig, ProviderConfig};
use crate::registry::credentials::provider_protocol::{BadResponse, Request, Response, Scope};
use crate::registry::credentials::secret::Credential;
use crate::tenant::Tenant;

/// A provider. Its answers are kept as long as it is there.
#[derive(Debug)]
pub(in crate::registry) struct Provider {
    /// Its name in the configuration.
    pub name: String,
    images: Vec<Pattern>,
    keep: Duration,
    protocol: String,
    /// What it is told of service accounts; `None` is nothing.
    pub account: Option<AccountConfig>,
    command: Command,
    answers: Arc<Answers<Arc<Response>, ProviderFault>>,
}

/// Why a provider gave nothing. What it printed is not in here: it may hold credentials.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProviderFault {
    /// It cannot be run, or breaks a bound.
    #[error(transparent)]
    Command(#[from] CommandError),
    /// It was not its turn.
    #[error(transparent)]
    Unasked(#[from] Unasked),
    /// It says itself that it failed.
    #[error(
        "{0}; run it by hand with a CredentialProviderRequest to see what it says, which is not shown here"
    )]
    Failed(Exit),
    /// Its answer cannot be used.
    #[error(transparent)]
    Response(#[from] BadResponse),
    /// There is no token that is for it.
    #[error(transparent)]
    NoToken(#[from] NoToken),
}

impl Provider {
    /// The provider that is configured so, with its program, which may take so long.
    pub fn new(config: ProviderConfig, program: PathBuf, limit: Duration) -> Self {
        let (arguments, environment) = (config.arguments, config.environment);
        Self {
            name: config.name,
            images: config.images,
            keep: config.keep,
            protocol: config.protocol,
            account: config.account,
            command: Command { program, arguments, environment, limit },
            answers: Answers::new(limit),
        }
    }

    /// Whether it is asked for `reference`.
    pub fn matches(&self, reference: &Reference) -> bool {
        self.images.iter().any(|images| images.matches(reference))
    }

    /// What it gives for `reference` to a pod of `account`, most specific first. Nothing where it is not to be asked.
    ///
    /// # Errors
    /// [`ProviderFault`] when it was to be asked and gave no answer.
    pub async fn credentials(
        &self,
        reference: &Reference,
        account: Option<&Account<'_>>,
        tenant: &Tenant,
    ) -> Result<Vec<Credential>, ProviderFault> {
        if !self.matches(reference) {
            return Ok(Vec::new());
        }
        let told = match &self.account {
            Some(config) => Told::of(config, account)?,
            None => Some(Told::default()),
        };
        let Some(told) = told else { return Ok(Vec::new()) };
        let response = self.ask(reference, &told, tenant).await?;
        let identity = |key: &str| {
            let separator = if told.name.is_empty() { "" } else { " " };
            Some(format!("provider {} {key}{separator}{}", self.name, told.name))
        };
        let credential =
            |(key, found): (&str, &Credential)| Credential { identity: identity(key), ..found.clone() };
        Ok(response.matching(reference).map(credential).collect())
    }

    /// The provider's answer for `reference`, as kubelet asks and keeps it.
    async fn ask(
        &self,
        reference: &Reference,
        told: &Told<'_>,
        tenant: &Tenant,
    ) -> Result<Arc<Response>, ProviderFault> {
        let image = format!("{}/{}", reference.host(), reference.repository());
        let key =
            |parts: &[&str], more: &[&str]| Key::of(parts.iter().chain(&told.owner).chain(more).copied());
        let [for_image, for_registry, for_all] =
            [&["image", image.as_str()][..], &["registry", reference.host()], &["global"]]
                .map(|parts| key(parts, &[]));
        // A pod's token may have rights of its own, so that an answer that is not to be kept is for that pod alone.
        let question = match told.token {
            Some(token) => key(&["image", &image], &["token", token.reveal()]),
            None => for_image,
        };
        let request = Request::new(&self.protocol, &image, told.token, &told.annotations);
        let input = request.text().unwrap_or_default();
        let (command, protocol, keep) = (self.command.clone(), self.protocol.clone(), self.keep);
        let is_per_token = self.account.as_ref().is_some_and(|account| account.is_per_token);
        let not_to_echo = told.token.filter(|_| !is_per_token).cloned();
        let ask = async move {
            let output = command.run(input).await?;
            if output.exit != Exit::Status(0) {
                return Err(ProviderFault::Failed(output.exit));
            }
            let response = Response::parse(&output.text, &protocol)?;
            if not_to_echo.is_some_and(|token| response.echoes(&token)) {
                return Err(BadResponse::Echo.into());
            }
            let key = match response.scope {
                Scope::Image => for_image,
                Scope::Registry => for_registry,
                Scope::Global => for_all,
            };
            let time = response.keep.unwrap_or(keep);
            let keep = (!time.is_zero()).then_some((key, time));
            Ok(Answer { value: Arc::new(response), bytes: output.text.len(), keep })
        };
        self.answers.get(tenant, question, vec![for_image, for_registry, for_all], ask).await
    }
}
