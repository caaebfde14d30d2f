//! A credential provider as it is configured, and what a configuration may say.
//!
//! What kubelet v1.36 accepts is accepted, and what it refuses is refused, and so are images that match nothing there, such as URLs: a
//! configuration that does its work in a node's kubelet does it here, too. Source: `CredentialProviderConfig` of
//! kubelet.config.k8s.io/v1, `pkg/credentialprovider/plugin/config.go`, KEP-2133, and KEP-4412 for service accounts.

#![cfg_attr(not(test), deny(clippy::indexing_slicing))]

use std::collections::BTreeSet;
use std::time::Duration;

use serde::Deserialize;

use crate::registry::credentials::go_duration;
use crate::registry::credentials::pattern::Pattern;
use crate::registry::credentials::secret::Secret;

/// The version of what is said between kubelet and a provider that knows of service accounts.
const ACCOUNT_PROTOCOL: &str = "credentialprovider.kubelet.k8s.io/v1";

/// All versions of that.
const PROTOCOLS: [&str; 3] = [
    ACCOUNT_PROTOCOL,
    "credentialprovider.kubelet.k8s.io/v1beta1",
    "credentialprovider.kubelet.k8s.io/v1alpha1",
];

/// A provider, as it is configured.
#[derive(Debug)]
pub(in crate::registry) struct ProviderConfig {
    /// Its name, which is that of its program in the directory of the programs.
    pub name: String,
    /// The images that it is asked for: those that one of these matches.
    pub images: Vec<Pattern>,
    /// How long an answer is kept that does not say.
    pub keep: Duration,
    /// The version of what is said with it.
    pub protocol: String,
    /// What follows its name.
    pub arguments: Vec<String>,
    /// What is added to its environment.
    pub environment: Vec<(String, Secret)>,
    /// What it is told of the pod's service account; `None` is nothing.
    pub account: Option<AccountConfig>,
}

/// What a provider is told of service accounts (KEP-4412).
#[derive(Debug)]
pub(in crate::registry) struct AccountConfig {
    /// The audience of the token that it gets.
    pub audience: String,
    /// Whether what it answers is for one token alone, and not for all of the account's.
    pub is_per_token: bool,
    /// Whether it is asked only for pods with a service account.
    pub is_required: bool,
    /// Annotations without which it is not asked.
    pub required_annotations: Vec<String>,
    /// Annotations that it gets where they are there.
    pub optional_annotations: Vec<String>,
}

/// A provider as it is written.
// As kubelet's decoder is strict, so is this: a field that is not known may be one that restricts.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(in crate::registry) struct ProviderText {
    /// Its name.
    pub name: String,
    match_images: Option<Vec<String>>,
    default_cache_duration: Option<String>,
    api_version: Option<String>,
    args: Option<Vec<String>>,
    env: Option<Vec<VariableText>>,
    token_attributes: Option<AccountText>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct VariableText {
    name: String,
    value: Secret,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct AccountText {
    service_account_token_audience: Option<String>,
    cache_type: Option<String>,
    require_service_account: Option<bool>,
    required_service_account_annotation_keys: Option<Vec<String>>,
    optional_service_account_annotation_keys: Option<Vec<String>>,
}

impl ProviderText {
    /// What the text says.
    ///
    /// # Errors
    /// The field that cannot be, and what is wrong with it. No value of a variable is in it.
    pub fn check(self) -> Result<ProviderConfig, String> {
        let is_odd = |letter: char| letter == '/' || letter.is_whitespace() || letter.is_control();
        if self.name.is_empty() || self.name == "." || self.name == ".." || self.name.contains(is_odd) {
            return Err("its name has to be that of a file in the directory of the programs: not empty, no '/', no space, not . or .."
                .to_owned());
        }
        let protocol = self.api_version.ok_or("apiVersion is missing")?;
        if !PROTOCOLS.contains(&protocol.as_str()) {
            return Err(format!("its apiVersion is {protocol:?}, and not one of {}", PROTOCOLS.join(", ")));
        }
        let images = self.match_images.unwrap_or_default();
        if images.is_empty() {
            return Err("matchImages is empty; there has to be one image at least".to_owned());
        }
        let image = |text: String| {
            Pattern::of_images(&text)
                .ok_or_else(|| format!("matchImages has {text:?}, which is not host[:port][/path]"))
        };
        let images = images.into_iter().map(image).collect::<Result<_, _>>()?;
        let keep = self.default_cache_duration.ok_or("defaultCacheDuration is missing")?;
        let nanoseconds = go_duration::nanoseconds(&keep).and_then(|length| u64::try_from(length).ok());
        let keep = nanoseconds.map(Duration::from_nanos).ok_or_else(|| {
            format!(
                "its defaultCacheDuration is {keep:?}, and not a length of time such as 12h0m0s, from 0 on"
            )
        })?;
        let variable = |VariableText { name, value }| {
            if name.is_empty() || name.contains(['=', '\0']) || value.reveal().contains('\0') {
                return Err(format!("env has {name:?}, which cannot be a variable"));
            }
            Ok((name, value))
        };
        let environment = self.env.unwrap_or_default().into_iter().map(variable).collect::<Result<_, _>>()?;
        let arguments = self.args.unwrap_or_default();
        if arguments.iter().any(|argument| argument.contains('\0')) {
            return Err("args has one with a zero byte".to_owned());
        }
        let account = self.token_attributes.map(AccountText::check).transpose()?;
        if account.is_some() && protocol != ACCOUNT_PROTOCOL {
            return Err(format!("it has tokenAttributes, which needs the apiVersion {ACCOUNT_PROTOCOL}"));
        }
        Ok(ProviderConfig { name: self.name, images, keep, protocol, arguments, environment, account })
    }
}

impl AccountText {
    fn check(self) -> Result<AccountConfig, String> {
        let audience = self.service_account_token_audience.filter(|audience| !audience.is_empty());
        let audience = audience.ok_or("tokenAttributes.serviceAccountTokenAudience is missing")?;
        let is_per_token = match self.cache_type.as_deref() {
            Some("Token") => true,
            Some("ServiceAccount") => false,
            None => return Err("tokenAttributes.cacheType is missing: Token or ServiceAccount".to_owned()),
            Some(other) => {
                return Err(format!(
                    "its tokenAttributes.cacheType is {other:?}, and neither Token nor ServiceAccount"
                ));
            }
        };
        let is_required =
            self.require_service_account.ok_or("tokenAttributes.requireServiceAccount is missing")?;
        let required_annotations = self.required_service_account_annotation_keys.unwrap_or_default();
        let optional_annotations = self.optional_service_account_annotation_keys.unwrap_or_default();
        let mut seen = BTreeSet::new();
        for key in required_annotations.iter().chain(&optional_annotations) {
            if key.is_empty() || !seen.insert(key) {
                return Err(format!("tokenAttributes has the annotation {key:?} twice, or it is empty"));
            }
        }
        if !is_required && !required_annotations.is_empty() {
            return Err("tokenAttributes has requiredServiceAccountAnnotationKeys, which need requireServiceAccount: true".to_owned());
        }
        Ok(AccountConfig { audience, is_per_token, is_required, required_annotations, optional_annotations })
    }
}
