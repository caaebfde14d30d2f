//! kubelet's credential providers: programs that have credentials for images, as clouds and registries bring them.
//!
//! They are configured and asked as kubelet does (KEP-2133), also for a pod's service account (KEP-4412). What is different: paths of
//! images match by whole segments, several providers are asked at the same time, and what one could not give is told to the caller.

#![cfg_attr(not(test), deny(clippy::indexing_slicing))]

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::oci::reference::Reference;
use crate::registry::credentials::account::Account;
use crate::registry::credentials::command::objection;
use crate::registry::credentials::provider::{Provider, ProviderFault};
use crate::registry::credentials::provider_config::{AccountConfig, ProviderConfig};
use crate::registry::credentials::provider_files::{BadProviders, read};
use crate::registry::credentials::secret::Credential;
use crate::tenant::Tenant;

/// How long a provider may take: kubelet's own limit, `ExecPlugin` in plugin.go.
const LIMIT: Duration = Duration::from_secs(60);

/// The providers of a node. Cheap to clone; clones share what the providers have answered.
#[derive(Debug, Clone)]
pub struct Providers {
    all: Arc<[Provider]>,
}

/// What has to be known of a pod's service account before the providers are asked for an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccountNeeds {
    /// The audiences of the tokens.
    pub audiences: BTreeSet<String>,
    /// Whether its annotations are needed, which only the Kubernetes API has.
    pub annotations: bool,
}

/// A provider did not give what it may have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the credential provider {provider:?} gave no credentials: {fault}")]
pub struct ProviderError {
    /// The provider's name.
    pub provider: String,
    /// Why.
    pub fault: ProviderFault,
}

impl Providers {
    /// Reads the providers' configuration at `config`, a file or a directory of files, and looks whether `directory` has their
    /// programs. Blocks; called at the start.
    ///
    /// # Errors
    /// [`BadProviders`] when the configuration cannot be read or used, or a program is not there, is not executable, or `directory`
    /// is not absolute.
    pub fn load(config: &Path, directory: &Path) -> Result<Self, BadProviders> {
        Self::load_with_limit(config, directory, LIMIT)
    }

    fn load_with_limit(config: &Path, directory: &Path, limit: Duration) -> Result<Self, BadProviders> {
        let provider = |config: ProviderConfig| {
            let program = directory.join(&config.name);
            if let Some(reason) = objection(&program) {
                return Err(BadProviders::Program { provider: config.name, program, reason });
            }
            Ok(Provider::new(config, program, limit))
        };
        let all = read(config)?.into_iter().map(provider).collect::<Result<_, _>>()?;
        Ok(Self { all })
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.all.len()
    }

    /// The audiences of all tokens that any provider needs: what `tokenRequests` of the CSIDriver object have to name.
    pub fn audiences(&self) -> BTreeSet<&str> {
        self.all.iter().filter_map(|provider| Some(provider.account.as_ref()?.audience.as_str())).collect()
    }

    /// What the providers for `reference` need of the pod's service account; `None` when it need not be known.
    pub fn needs_account(&self, reference: &Reference) -> Option<AccountNeeds> {
        let matching = self.all.iter().filter(|provider| provider.matches(reference));
        let accounts: Vec<&AccountConfig> =
            matching.filter_map(|provider| provider.account.as_ref()).collect();
        let has_annotations = |account: &&AccountConfig| {
            !(account.required_annotations.is_empty() && account.optional_annotations.is_empty())
        };
        (!accounts.is_empty()).then(|| AccountNeeds {
            audiences: accounts.iter().map(|account| account.audience.clone()).collect(),
            annotations: accounts.iter().any(has_annotations),
        })
    }

    /// Every credential that the providers for `reference` give to a pod of `account`, in the order of the configuration, and those of
    /// each provider most specific first; and what failed. It is asked on behalf of `tenant`. A provider that takes long holds up the answer: up to two minutes, of
    /// which one is for its turn.
    ///
    /// A provider without `tokenAttributes` knows nothing of the account. One with them is not asked when it requires an account and
    /// there is none, or requires an annotation that the account does not have; that is no failure.
    pub async fn credentials(
        &self,
        reference: &Reference,
        account: Option<&Account<'_>>,
        tenant: &Tenant,
    ) -> (Vec<Credential>, Vec<ProviderError>) {
        let asked = self.all.iter().map(|provider| provider.credentials(reference, account, tenant));
        let (mut found, mut failed) = (Vec::new(), Vec::new());
        for (provider, answer) in self.all.iter().zip(futures_util::future::join_all(asked).await) {
            match answer {
                Ok(credentials) => found.extend(credentials),
                Err(fault) => failed.push(ProviderError { provider: provider.name.clone(), fault }),
            }
        }
        (found, failed)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::SystemTime;

    use tempfile::TempDir;

    use super::*;
    use crate::registry::credentials::command::tests::{LONG, script};
    use crate::registry::credentials::command::{CommandError, Exit};
    use crate::registry::credentials::provider_protocol::BadResponse;
    use crate::registry::credentials::secret::{AccountToken, Secret, ServiceAccount};

    /// Providers in a directory of their own.
    struct Node {
        directory: TempDir,
        config: String,
    }

    impl Node {
        fn new() -> Self {
            let config = "apiVersion: kubelet.config.k8s.io/v1\nkind: CredentialProviderConfig\nproviders:\n";
            Self { directory: tempfile::tempdir().expect("a directory"), config: config.to_owned() }
        }

        /// Adds a provider for r.io, which keeps what it is asked, and then does what `text` says.
        fn with(mut self, name: &str, text: &str, more: &str) -> Self {
            let asked = self.directory.path().join(format!("{name}.asked"));
            let text = format!("cat >>'{0}'; echo >>'{0}'\n{text}", asked.display());
            script(self.directory.path(), name, &text);
            self.config += &format!(
                "- name: {name}\n  matchImages: [r.io, '*.r.io', docker.io]\n  defaultCacheDuration: 1h\n  \
                 apiVersion: credentialprovider.kubelet.k8s.io/v1\n{more}"
            );
            self
        }

        fn load_with(&self, limit: Duration) -> Result<Providers, BadProviders> {
            let config = self.directory.path().join("config.yaml");
            std::fs::write(&config, &self.config).expect("written");
            Providers::load_with_limit(&config, self.directory.path(), limit)
        }

        fn load(&self) -> Providers {
            self.load_with(LONG).expect("valid")
        }

        /// What the provider was asked, each time.
        fn asked(&self, name: &str) -> Vec<serde_json::Value> {
            let asked = self.directory.path().join(format!("{name}.asked"));
            let text = std::fs::read_to_string(asked).unwrap_or_default();
            text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
        }
    }

    const R_IO: &str = r#""auth":{"r.io":{"username":"u","password":"hunter2"}}"#;

    /// A script that answers with these fields.
    fn answer(fields: &str) -> String {
        format!(
            "cat <<'E'\n{{\"kind\":\"CredentialProviderResponse\",\
             \"apiVersion\":\"credentialprovider.kubelet.k8s.io/v1\",{fields}}}\nE\n"
        )
    }

    fn tokens(cache_type: &str, more: &str) -> String {
        format!("  tokenAttributes: {{serviceAccountTokenAudience: aud, cacheType: {cache_type}, {more}}}\n")
    }

    fn reference(text: &str) -> Reference {
        text.parse().expect("a reference")
    }

    fn service_account(name: &str, audience: &str, token: &str) -> ServiceAccount {
        let token = AccountToken { token: Secret::new(token), expires: SystemTime::now() + LONG };
        let tokens = BTreeMap::from([(audience.to_owned(), token)]);
        ServiceAccount { namespace: "ns".to_owned(), name: name.to_owned(), tokens }
    }

    async fn users(providers: &Providers, image: &str, account: Option<&Account<'_>>) -> Vec<String> {
        let (found, failed) = providers.credentials(&reference(image), account, &Tenant::CommandLine).await;
        assert_eq!(failed, []);
        found.into_iter().map(|credential| credential.user).collect()
    }

    #[tokio::test]
    async fn providers_answer_in_the_order_of_the_configuration() {
        let two = r#""cacheKeyType":"Image","auth":{"r.io":{"username":"a-host","password":"p"},
            "r.io/team":{"username":"a-team","password":"p"},"other.io":{"username":"x","password":"p"}}"#;
        let node = Node::new()
            .with("a", &format!("sleep 0.1; {}", answer(two)), "")
            .with("b", &answer(&format!(r#""cacheKeyType":"Image",{R_IO}"#)), "")
            .with("c", "exit 3", "");
        let providers = node.load();
        let (found, failed) =
            providers.credentials(&reference("r.io/team/app:v1"), None, &Tenant::CommandLine).await;
        let users: Vec<_> =
            found.iter().map(|found| (found.user.as_str(), found.identity.as_deref())).collect();
        let expected = [
            ("a-team", Some("provider a r.io/team")),
            ("a-host", Some("provider a r.io")),
            ("u", Some("provider b r.io")),
        ];
        assert_eq!(users, expected);
        let fault = ProviderFault::Failed(Exit::Status(3));
        assert_eq!(failed, [ProviderError { provider: "c".to_owned(), fault }]);
        assert!(
            failed[0].to_string().contains(r#"provider "c" gave no credentials: it exited with status 3;"#)
        );
        assert!(!format!("{found:?} {providers:?}").contains("hunter2"));
        assert_eq!(
            providers.credentials(&reference("elsewhere.io/x"), None, &Tenant::CommandLine).await,
            (Vec::new(), Vec::new())
        );
    }

    #[tokio::test]
    async fn t53_a_provider_is_asked_for_the_image_and_nothing_else() {
        let text = format!(
            r#"printf '%s|' "$#" "$1" "$2" "$A" "${{HOME-x}}" >"$0.seen"; {}"#,
            answer(r#""cacheKeyType":"Image""#)
        );
        let more = "  args: [get, '$(touch x);*']\n  env: [{name: A, value: '`id`'}]\n";
        let node = Node::new().with("a", &text, more);
        let account = service_account("sa", "aud", "jwt");
        let annotations = BTreeMap::from([("k".to_owned(), "v".to_owned())]);
        let account = Account { service_account: &account, uid: "uid", annotations: &annotations };
        assert!(users(&node.load(), "nginx:1.2", Some(&account)).await.is_empty());
        let home = std::env::var("HOME").unwrap_or_else(|_| "x".to_owned());
        let seen = std::fs::read_to_string(node.directory.path().join("a.seen")).expect("written");
        assert_eq!(seen, format!("2|get|$(touch x);*|`id`|{home}|"));
        let expected = serde_json::json!({
            "kind": "CredentialProviderRequest",
            "apiVersion": "credentialprovider.kubelet.k8s.io/v1",
            "image": "docker.io/library/nginx",
        });
        assert_eq!(node.asked("a"), [expected]);
    }

    #[tokio::test]
    async fn answers_are_kept_for_an_image_a_registry_or_all() {
        for (scope, duration, expected) in [
            ("Image", "", ["r.io/a", "r.io/b", "x.r.io/a"].as_slice()),
            ("Registry", r#""cacheDuration":"5m","#, &["r.io/a", "x.r.io/a"]),
            ("Global", "", &["r.io/a"]),
            ("Global", r#""cacheDuration":"0s","#, &["r.io/a", "r.io/b", "x.r.io/a", "r.io/a", "x.r.io/a"]),
        ] {
            let node =
                Node::new().with("a", &answer(&format!(r#""cacheKeyType":"{scope}",{duration}{R_IO}"#)), "");
            let providers = node.load();
            for image in ["r.io/a:v1", "r.io/b", "x.r.io/a", "r.io/a:v2", "x.r.io/a"] {
                // What is kept for all is still for its own key alone.
                let expected: &[&str] = if image.starts_with('x') { &[] } else { &["u"] };
                assert_eq!(users(&providers, image, None).await, expected);
            }
            let asked = node.asked("a");
            let images: Vec<_> = asked.iter().filter_map(|asked| asked["image"].as_str()).collect();
            assert_eq!(images, expected, "{scope} {duration}");
        }
    }

    #[tokio::test]
    async fn an_answer_ends_and_a_default_of_zero_keeps_nothing() {
        let soon = Node::new().with(
            "a",
            &answer(&format!(r#""cacheKeyType":"Global","cacheDuration":"30ms",{R_IO}"#)),
            "",
        );
        let mut zero = Node::new().with("a", &answer(&format!(r#""cacheKeyType":"Global",{R_IO}"#)), "");
        zero.config = zero.config.replace("1h", "0");
        for node in [soon, zero] {
            let providers = node.load();
            assert_eq!(users(&providers, "r.io/a", None).await, ["u"]);
            tokio::time::sleep(Duration::from_millis(40)).await;
            assert_eq!(users(&providers, "r.io/a", None).await, ["u"]);
            assert_eq!(node.asked("a").len(), 2);
        }
    }

    #[tokio::test]
    async fn who_asks_at_the_same_time_shares_one_run() {
        let text = format!(
            "sleep 0.2; {}",
            answer(&format!(r#""cacheKeyType":"Image","cacheDuration":"0",{R_IO}"#))
        );
        let node = Node::new().with("a", &text, "");
        let providers = node.load();
        let clone = providers.clone();
        let asked =
            (0..20).map(|number| users(if number % 2 == 0 { &providers } else { &clone }, "r.io/a", None));
        let found = futures_util::future::join_all(asked).await;
        assert!(found.iter().all(|users| *users == ["u"]));
        assert_eq!(node.asked("a").len(), 1);
    }

    #[tokio::test]
    async fn a_provider_with_token_attributes_gets_the_token_for_its_audience() {
        let more = "requireServiceAccount: true, requiredServiceAccountAnnotationKeys: [role], \
                    optionalServiceAccountAnnotationKeys: [region, zone]";
        let text = answer(&format!(r#""cacheKeyType":"Registry",{R_IO}"#));
        let node = Node::new().with("a", &text, &tokens("ServiceAccount", more)).with("b", &text, "");
        let providers = node.load();
        let image = reference("r.io/a");
        let needs = AccountNeeds { audiences: ["aud".to_owned()].into(), annotations: true };
        assert_eq!(providers.needs_account(&image), Some(needs));
        assert_eq!(providers.needs_account(&reference("elsewhere.io/a")), None);
        assert_eq!(providers.audiences(), ["aud"].into());

        let none = BTreeMap::new();
        let annotations: BTreeMap<_, _> = [("role", "r"), ("region", "e"), ("other", "o")]
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .into();
        let service_account = service_account("sa", "aud", "jwt");
        let account = Account { service_account: &service_account, uid: "uid", annotations: &none };
        // Neither an account, nor the annotation that is required: only the other is asked.
        for account in [None, Some(&account)] {
            assert_eq!(users(&providers, "r.io/a", account).await, ["u"]);
        }
        assert!(node.asked("a").is_empty());
        let account = Account { annotations: &annotations, ..account };
        let (found, failed) = providers.credentials(&image, Some(&account), &Tenant::CommandLine).await;
        let identities: Vec<_> = found.iter().filter_map(|found| found.identity.as_deref()).collect();
        assert_eq!(
            (identities, failed),
            (vec!["provider a r.io account ns/sa uid", "provider b r.io"], Vec::new())
        );
        let asked = node.asked("a");
        assert_eq!(asked[0]["serviceAccountToken"], "jwt");
        assert_eq!(asked[0]["serviceAccountAnnotations"], serde_json::json!({"role": "r", "region": "e"}));
        assert_eq!(node.asked("b").len(), 1);
        assert_eq!(node.asked("b")[0].get("serviceAccountToken"), None);
    }

    #[tokio::test]
    async fn an_account_that_need_not_be_there_may_be_missing_but_not_its_token() {
        let text = answer(&format!(r#""cacheKeyType":"Registry",{R_IO}"#));
        let node = Node::new().with("a", &text, &tokens("Token", "requireServiceAccount: false"));
        let providers = node.load();
        let needs = AccountNeeds { audiences: ["aud".to_owned()].into(), annotations: false };
        assert_eq!(providers.needs_account(&reference("r.io/a")), Some(needs));
        let (found, _) = providers.credentials(&reference("r.io/a"), None, &Tenant::CommandLine).await;
        assert_eq!(found[0].identity.as_deref(), Some("provider a r.io"));
        let (service_account, none) = (service_account("sa", "another", "hunter2"), BTreeMap::new());
        let account = Account { service_account: &service_account, uid: "", annotations: &none };
        let (found, failed) =
            providers.credentials(&reference("r.io/a"), Some(&account), &Tenant::CommandLine).await;
        assert_eq!((found.len(), node.asked("a").len()), (0, 1));
        let text = format!("{} {failed:?}", failed[0]);
        assert!(text.contains(r#"service account ns/sa for the audience "aud"; name"#), "{text}");
        assert!(!text.contains("hunter2"));
    }

    #[tokio::test]
    async fn what_is_kept_is_an_accounts_or_a_tokens() {
        let text = answer(&format!(r#""cacheKeyType":"Global",{R_IO}"#));
        for (cache_type, expected) in
            [("ServiceAccount", ["1", "4", "5", "6"].as_slice()), ("Token", &["1", "2", "4", "5", "6"])]
        {
            let more = "requireServiceAccount: true, optionalServiceAccountAnnotationKeys: [role]";
            let node = Node::new().with("a", &text, &tokens(cache_type, more));
            let providers = node.load();
            for (name, uid, role, token) in [
                ("sa", "uid", "r", "1"),
                ("sa", "uid", "r", "2"),
                ("sa", "uid", "r", "1"),
                ("other", "uid", "r", "4"),
                ("sa", "made anew", "r", "5"),
                ("sa", "uid", "another", "6"),
            ] {
                let service_account = service_account(name, "aud", token);
                let annotations = BTreeMap::from([("role".to_owned(), role.to_owned())]);
                let account = Account { service_account: &service_account, uid, annotations: &annotations };
                assert_eq!(users(&providers, "r.io/a", Some(&account)).await, ["u"]);
            }
            let asked = node.asked("a");
            let tokens: Vec<_> =
                asked.iter().filter_map(|asked| asked["serviceAccountToken"].as_str()).collect();
            assert_eq!(tokens, expected, "{cache_type}");
        }
    }

    #[tokio::test]
    async fn a_token_is_a_password_only_where_it_is_kept_for_itself() {
        let text = answer(r#""cacheKeyType":"Global","auth":{"r.io":{"username":"u","password":"jwt"}}"#);
        let (service_account, none) = (service_account("sa", "aud", "jwt"), BTreeMap::new());
        let account = Account { service_account: &service_account, uid: "uid", annotations: &none };
        for (cache_type, expected) in [("Token", vec![]), ("ServiceAccount", vec![BadResponse::Echo.into()])]
        {
            let node = Node::new().with("a", &text, &tokens(cache_type, "requireServiceAccount: true"));
            let (found, failed) =
                node.load().credentials(&reference("r.io/a"), Some(&account), &Tenant::CommandLine).await;
            let failed: Vec<ProviderFault> = failed.into_iter().map(|error| error.fault).collect();
            assert_eq!((found.len(), failed), (1 - expected.len(), expected));
        }
    }

    #[tokio::test]
    async fn t41_what_a_provider_prints_is_in_no_error() {
        for text in ["echo hunter2; echo hunter2 >&2; exit 1", "echo hunter2", "yes hunter2", "kill -9 $$"] {
            let node = Node::new().with("a", text, "");
            let (found, failed) =
                node.load().credentials(&reference("r.io/a"), None, &Tenant::CommandLine).await;
            let printed = format!("{} {failed:?}", failed[0]);
            assert!(found.is_empty() && !printed.contains("hunter2"), "{printed}");
            // An error is not kept.
            let _ = node.load().credentials(&reference("r.io/a"), None, &Tenant::CommandLine).await;
            assert_eq!(node.asked("a").len(), 2);
        }
    }

    #[tokio::test]
    async fn a_provider_that_hangs_is_killed() {
        let node = Node::new().with("a", "sleep 1000", "");
        let after = Duration::from_millis(300);
        let providers = node.load_with(after).expect("valid");
        let (_, failed) = providers.credentials(&reference("r.io/a"), None, &Tenant::CommandLine).await;
        assert_eq!(failed[0].fault, CommandError::TooSlow { after }.into());
    }

    #[test]
    fn each_provider_has_to_have_its_program() {
        let node = Node::new().with("a", "", "").with("b", "", "");
        let program = node.directory.path().join("b");
        std::fs::remove_file(&program).expect("there");
        let error = node.load_with(LIMIT).expect_err("no program").to_string();
        assert!(
            error.contains(&format!(r#"provider "b" cannot be run as {}: No such file"#, program.display()))
        );
        let config = node.directory.path().join("config.yaml");
        let error = Providers::load(&config, Path::new("relative")).expect_err("relative").to_string();
        assert!(error.contains("relative/a: the path is not absolute"), "{error}");
    }
}
