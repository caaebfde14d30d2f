//! The cluster's API, as the plugin sees it.

use std::path::Path;
use std::sync::Arc;

use ::kube::Config;
use ::kube::config::{Kubeconfig, KubeconfigError};
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;

use crate::kube::accounts::{AccountFacts, Accounts};
use crate::kube::connection::{Connection, Limits, innermost};
use crate::kube::error::Error;
use crate::kube::object::{Change, Object};
use crate::kube::pull_secrets::{self, Pod, PullSecrets};
use crate::kube::watch::{self, Pace, Seen};
use crate::registry::credentials::keyring::Keyring;

/// The cluster's API, as the plugin's own service account sees it. Cheap to clone; connects when it is first asked.
///
/// It needs the rights to get what it reads and to write what it writes. Nothing is listed and watched but what [`Cluster::follow`] is
/// called for.
#[derive(Clone)]
pub struct Cluster(Arc<Inner>);

struct Inner {
    connection: Connection,
    accounts: Accounts,
}

/// What was seen and not taken yet.
const SEEN: usize = 16;

impl Cluster {
    /// The cluster whose pod this process is in: `KUBERNETES_SERVICE_HOST` and `KUBERNETES_SERVICE_PORT` say where, and the token
    /// and the certificate authority are in `/var/run/secrets/kubernetes.io/serviceaccount`. Both are read again about once a
    /// minute, as kubelet replaces them. Proxies of the environment are not used. *Caller:* may block; three small files are read.
    ///
    /// # Errors
    /// [`Error::NotInCluster`] when one of these is missing, as it is in a pod without `automountServiceAccountToken`.
    pub fn in_cluster() -> Result<Self, Error> {
        let config = Config::incluster_env();
        let config = config.map_err(|error| Error::NotInCluster { reason: missing(&error) })?;
        Ok(Self::of(config, Limits::DEFAULT))
    }

    /// The cluster that is the current context of a kubeconfig, for tests and unusual installations: with a token, a token file,
    /// a password or a client certificate. *Caller:* may block, and trusts the file; it and those that it names are read.
    ///
    /// # Errors
    /// [`Error::Kubeconfig`] when it cannot be read, or wants a program to be run (`exec`, `auth-provider`): none is.
    pub fn of_kubeconfig(path: &Path) -> Result<Self, Error> {
        let refuse = |reason: String| Error::Kubeconfig { path: path.display().to_string(), reason };
        let told = |error: KubeconfigError| match error {
            // Its text can quote the file.
            KubeconfigError::Parse(_) => refuse("it is not the YAML of a kubeconfig".to_owned()),
            error => refuse(innermost(&error)),
        };
        let config = Config::try_from(Kubeconfig::read_from(path).map_err(told)?).map_err(told)?;
        if config.auth_info.exec.is_some() || config.auth_info.auth_provider.is_some() {
            return Err(refuse(
                "its user is known by a program, which ocivol does not run: use a token or a client certificate".to_owned(),
            ));
        }
        Ok(Self::of(config, Limits::DEFAULT))
    }

    /// Makes the number of requests that failed part of what is served; of no cluster there are none.
    pub fn register(cluster: Option<&Self>, registry: &mut prometheus_client::registry::Registry) {
        let errors = cluster.map(|cluster| cluster.0.connection.errors().clone()).unwrap_or_default();
        registry.register(
            "ocivol_api_errors",
            "Requests to the Kubernetes API that failed; an answer that the object is not there, or there already, is no failure",
            errors,
        );
    }

    /// Writes `object`, which is part of `body`. Takes at most 4 seconds.
    ///
    /// # Errors
    /// As for the pod in [`Cluster::pull_secrets`], after one attempt. The right to create and to patch is needed.
    pub async fn change(
        &self,
        object: &Object,
        change: Change,
        body: &serde_json::Value,
    ) -> Result<(), Error> {
        self.0.connection.change(object, change, body).await
    }

    /// Follows `what`, one object or all of a kind, until the result is dropped.
    pub fn follow<T: DeserializeOwned + Send + 'static>(&self, what: Object) -> mpsc::Receiver<Seen<T>> {
        let (sender, receiver) = mpsc::channel(SEEN);
        let cluster = self.clone();
        tokio::spawn(async move { watch::follow(&cluster.0.connection, &what, Pace::DEFAULT, sender).await });
        receiver
    }

    /// The namespace of this process.
    pub fn namespace(&self) -> &str {
        self.0.connection.namespace()
    }

    /// The credentials in the pull secret `name` of this process' own namespace, as those of pods are read.
    ///
    /// # Errors
    /// When there is no such secret, it may not be read, or it is no pull secret; and as for the pod in [`Cluster::pull_secrets`].
    pub async fn own_pull_secret(&self, name: &str) -> Result<Keyring, Error> {
        let connection = &self.0.connection;
        pull_secrets::keyring(connection, connection.namespace(), name, connection.deadline()).await
    }

    /// For tests of what uses it.
    #[cfg(test)]
    pub(in crate::kube) fn for_tests(config: Config, limits: Limits) -> Self {
        Self::of(config, limits)
    }

    fn of(config: Config, limits: Limits) -> Self {
        Self(Arc::new(Inner { connection: Connection::new(config, limits), accounts: Accounts::default() }))
    }

    /// The credentials in the `imagePullSecrets` of `pod`, each with the identity `secret`, the secret's UID and the user. Those of
    /// its service account are among them: the API server writes them into the pod when it has none of its own.
    ///
    /// They are read anew each time and not kept, so a secret that was changed counts at once, and one that was deleted is gone: to be
    /// called for a publish that needs a pull, or has to show a right. At most 32 secrets are read, within 10 seconds in all.
    ///
    /// # Errors
    /// - [`Error::WrongPod`] when the pod of that name has another UID than `pod`: no secret is asked for;
    /// - [`Error::NotFound`] and [`Error::Forbidden`] for the pod itself;
    /// - [`Error::Unreachable`], [`Error::Timeout`] and [`Error::Status`] when the API server cannot be asked now, for the pod or a
    ///   secret, after three attempts.
    ///
    /// A secret that is missing, that may not be read, or that is no pull secret is in [`PullSecrets::problems`], as kubelet passes
    /// over those of images (`FailedToRetrieveImagePullSecret`).
    pub async fn pull_secrets(&self, pod: &Pod) -> Result<PullSecrets, Error> {
        let connection = &self.0.connection;
        pull_secrets::read(connection, pod, connection.deadline()).await
    }

    /// What the API says of a service account, or said within the last minute. Takes at most 10 seconds.
    ///
    /// # Errors
    /// As for the pod in [`Cluster::pull_secrets`]. The right to get serviceaccounts is needed.
    pub async fn service_account(&self, namespace: &str, name: &str) -> Result<AccountFacts, Error> {
        let connection = &self.0.connection;
        self.0.accounts.facts(connection, namespace, name, connection.deadline()).await
    }
}

/// What a pod lacks to use the API.
fn missing(error: &::kube::config::InClusterError) -> String {
    crate::failure::chain(error)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use base64::Engine as _;
    use serde_json::{Value, json};

    use super::*;
    use crate::failure::Kind;
    use crate::kube::connection::tests::{Fake, Reply, SHORT};
    use crate::oci::reference::Reference;

    const CONFIG: &str = r#"{"auths":{"r.example":{"username":"u","password":"hunter2"}}}"#;

    fn pod() -> Pod {
        Pod { namespace: "shop".into(), name: "web".into(), uid: "pod-uid".into() }
    }

    /// The pod, with these pull secrets.
    fn pod_with(secrets: &[&str]) -> Reply {
        let secrets: Vec<Value> = secrets.iter().map(|name| json!({"name": name})).collect();
        Reply::Object(json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "web", "uid": "pod-uid"},
            "spec": {"containers": [{"name": "c"}], "imagePullSecrets": secrets},
        }))
    }

    fn secret(kind: &str, key: &str, value: &[u8]) -> Reply {
        let value = base64::engine::general_purpose::STANDARD.encode(value);
        Reply::Object(json!({"metadata": {"uid": "secret-uid"}, "type": kind, "data": {key: value}}))
    }

    fn good() -> Reply {
        secret("kubernetes.io/dockerconfigjson", ".dockerconfigjson", CONFIG.as_bytes())
    }

    async fn read(fake: &Fake) -> Result<PullSecrets, Error> {
        Cluster::of(fake.config(), Limits::DEFAULT).pull_secrets(&pod()).await
    }

    /// What is read when the pod has one pull secret, and the API answers so when it is asked for it.
    async fn read_one(reply: impl Fn() -> Reply + Send + Sync + 'static) -> PullSecrets {
        let script = move |path: &str, _| if path.contains("/pods/") { pod_with(&["pull"]) } else { reply() };
        read(&Fake::start(script).await).await.expect("the pod is read")
    }

    #[tokio::test]
    async fn secrets_are_read_in_the_order_of_the_pod() {
        let fake = Fake::start(|path, _| match path {
            "/api/v1/namespaces/shop/pods/web" => pod_with(&["one", "", "two", "one"]),
            "/api/v1/namespaces/shop/secrets/one" => good(),
            "/api/v1/namespaces/shop/secrets/two" => {
                let auths = br#"{"r.example":{"username":"old","password":"hunter2"}}"#;
                secret("kubernetes.io/dockercfg", ".dockercfg", auths)
            }
            other => panic!("asked for {other}"),
        });
        let fake = fake.await;
        let cluster = Cluster::of(fake.config(), Limits::DEFAULT);
        for _ in 0..2 {
            let secrets = cluster.pull_secrets(&pod()).await.expect("read");
            assert!(secrets.problems.is_empty(), "{:?}", secrets.problems);
            let reference: Reference = "r.example/x".parse().expect("a reference");
            let found: Vec<_> = secrets.keyrings.iter().flat_map(|ring| ring.matching(&reference)).collect();
            assert_eq!(found.iter().map(|found| found.user.as_str()).collect::<Vec<_>>(), ["u", "old"]);
            assert_eq!(found[0].password.reveal(), "hunter2");
            let identities: Vec<_> = found.iter().map(|found| found.identity.as_deref()).collect();
            assert_eq!(identities, [Some("secret secret-uid u"), Some("secret secret-uid old")]);
        }
        // Nothing is kept.
        assert_eq!(fake.paths().len(), 6);
    }

    #[tokio::test]
    async fn for_another_pod_of_that_name_no_secret_is_asked_for() {
        let fake = Fake::start(|_, _| pod_with(&["pull"])).await;
        let cluster = Cluster::of(fake.config(), Limits::DEFAULT);
        for uid in ["another", ""] {
            let error =
                cluster.pull_secrets(&Pod { uid: uid.into(), ..pod() }).await.expect_err("another pod");
            assert!(matches!(error, Error::WrongPod { .. }), "{error}");
            assert_eq!(error.kind(), Kind::FailedPrecondition);
        }
        assert_eq!(fake.paths(), ["/api/v1/namespaces/shop/pods/web"; 2]);
        // Nor for one that is gone.
        let fake = Fake::start(|_, _| Reply::Status(404)).await;
        assert_eq!(read(&fake).await.expect_err("gone").kind(), Kind::NotFound);
        let fake = Fake::start(|_, _| Reply::Object(json!({"metadata": {}}))).await;
        assert!(matches!(read(&fake).await, Err(Error::WrongPod { .. })));
    }

    #[tokio::test]
    async fn names_are_checked_before_anything_is_asked() {
        let fake = Fake::start(|_, _| pod_with(&["../pods/web"])).await;
        let cluster = Cluster::of(fake.config(), Limits::DEFAULT);
        let wrong = Pod { namespace: "shop/pods/web?x=".into(), ..pod() };
        assert!(matches!(cluster.pull_secrets(&wrong).await, Err(Error::Name(_))));
        assert!(fake.paths().is_empty());
        let secrets = cluster.pull_secrets(&pod()).await.expect("the pod is read");
        assert!(matches!(secrets.problems[..], [Error::Name(_)]), "{:?}", secrets.problems);
        assert_eq!(fake.paths().len(), 1);
    }

    #[tokio::test]
    async fn a_secret_that_cannot_be_read_is_a_problem_of_its_own() {
        let fake = Fake::start(|path, _| match path.rsplit('/').next() {
            Some("web") => pod_with(&["missing", "forbidden", "other", "good"]),
            Some("missing") => Reply::Status(404),
            Some("forbidden") => Reply::Status(403),
            Some("other") => secret("Opaque", ".dockerconfigjson", CONFIG.as_bytes()),
            _ => good(),
        });
        let secrets = read(&fake.await).await.expect("the pod is read");
        assert_eq!(secrets.keyrings.len(), 1);
        let texts: Vec<String> = secrets.problems.iter().map(Error::to_string).collect();
        assert!(texts[0].contains("secret shop/missing does not exist; create it"), "{texts:?}");
        assert!(texts[1].contains("secret shop/forbidden; let it get pods and secrets there"), "{texts:?}");
        assert!(texts[1].contains("credentials.imagePullSecrets in the chart"), "{texts:?}");
        assert!(texts[2].contains("secret shop/other") && texts[2].contains("\"Opaque\""), "{texts:?}");
        let kinds: Vec<Kind> = secrets.problems.iter().map(Error::kind).collect();
        assert_eq!(kinds, [Kind::NotFound, Kind::PermissionDenied, Kind::InvalidArgument]);
    }

    #[tokio::test]
    async fn t41_what_a_secret_holds_is_not_printed() {
        let json = "kubernetes.io/dockerconfigjson";
        let faults: [fn() -> Reply; 6] = [
            || secret("kubernetes.io/dockerconfigjson", ".dockerconfigjson", b"hunter2"),
            || {
                let entry = br#"{"auths":{"r":{"auth":"hunter2!"}}}"#;
                secret("kubernetes.io/dockerconfigjson", ".dockerconfigjson", entry)
            },
            || secret("kubernetes.io/dockerconfigjson", ".dockerconfigjson", b"hunter2\xff"),
            || secret("kubernetes.io/dockercfg", ".dockercfg", br#"{"r":"hunter2"}"#),
            || {
                let data = json!({".dockerconfigjson": "hunter2!"});
                let kind = "kubernetes.io/dockerconfigjson";
                Reply::Object(json!({"metadata": {"uid": "u"}, "type": kind, "data": data}))
            },
            || Reply::Object(json!({"metadata": {"uid": "u"}, "data": "hunter2"})),
        ];
        for fault in faults {
            let secrets = read_one(fault).await;
            assert!(secrets.keyrings.is_empty());
            let text = format!("{} {:?}", secrets.problems[0], secrets.problems);
            assert!(text.contains("shop/pull") || text.contains("pull"), "{text}");
            assert!(!text.contains("hunter2") && !text.contains("aHVudGVyMg"), "{text}");
        }
        let secrets = read_one(good).await;
        assert!(!format!("{secrets:?}").contains("hunter2"));
        for (kind, key, value) in [(json, ".dockercfg", &b"{}"[..]), (json, ".dockerconfigjson", &b""[..])] {
            let secrets = read_one(move || secret(kind, key, value)).await;
            assert!(matches!(secrets.problems[..], [Error::Unusable { .. }]), "{:?}", secrets.problems);
        }
    }

    #[tokio::test]
    async fn no_more_secrets_are_read_than_the_bound() {
        let names: Vec<String> = (0..40).map(|number| format!("s{number}")).collect();
        let fake = Fake::start(move |path, _| {
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            if path.contains("/pods/") { pod_with(&names) } else { good() }
        });
        let fake = fake.await;
        let secrets = read(&fake).await.expect("read");
        assert_eq!((secrets.keyrings.len(), fake.paths().len()), (32, 33));
        assert!(matches!(secrets.problems[..], [Error::TooMany { count: 40, .. }]), "{:?}", secrets.problems);
    }

    #[tokio::test]
    async fn what_may_pass_fails_the_whole() {
        let script = |path: &str, _| match path.contains("/pods/") {
            true => pod_with(&["pull", "other"]),
            false => Reply::Silence,
        };
        let fake = Fake::start(script).await;
        let began = std::time::Instant::now();
        let error = Cluster::of(fake.config(), SHORT).pull_secrets(&pod()).await.expect_err("too slow");
        assert!(matches!(error, Error::Timeout { .. }), "{error}");
        assert_eq!(error.kind(), Kind::Unavailable);
        assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
        assert!(!fake.paths().iter().any(|path| path.ends_with("/other")));
    }

    fn kubeconfig(server: &str, user: &Value) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "c",
            "clusters": [{"name": "c", "cluster": {"server": server}}],
            "users": [{"name": "u", "user": user}],
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        });
        std::fs::write(file.path(), config.to_string()).expect("written");
        file
    }

    #[tokio::test]
    async fn the_token_of_a_file_is_shown() {
        let fake = Fake::start(|_, _| pod_with(&[])).await;
        let token = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(token.path(), "t0ken").expect("written");
        let file = kubeconfig(&format!("http://{}", fake.address), &json!({"tokenFile": token.path()}));
        let cluster = Cluster::of_kubeconfig(file.path()).expect("valid");
        assert!(fake.paths().is_empty(), "it connects when it is first asked");
        assert!(cluster.pull_secrets(&pod()).await.expect("read").keyrings.is_empty());
        assert_eq!(fake.tokens(), [Some("Bearer t0ken".to_owned())]);
    }

    fn openssl(directory: &Path, arguments: &[&[&str]]) {
        let made =
            std::process::Command::new("openssl").args(arguments.concat()).current_dir(directory).output();
        let made = made.unwrap_or_else(|error| panic!("openssl cannot be started: {error}; run `make test`"));
        assert!(made.status.success(), "openssl: {}", String::from_utf8_lossy(&made.stderr));
    }

    /// Makes an authority, `ca.crt`, and a server that it signed for the loopback address.
    fn certificates(directory: &Path) {
        let new = [
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:prime256v1",
            "-nodes",
            "-days",
            "2",
        ];
        let authority = ["-subj", "/CN=authority", "-addext", "basicConstraints=critical,CA:TRUE"];
        openssl(directory, &[&new, &authority, &["-keyout", "ca.key", "-out", "ca.crt"]]);
        let signed = ["-CA", "ca.crt", "-CAkey", "ca.key", "-subj", "/CN=server"];
        let server =
            ["-addext", "basicConstraints=critical,CA:FALSE", "-addext", "subjectAltName=IP:127.0.0.1"];
        openssl(directory, &[&new, &signed, &server, &["-keyout", "server.key", "-out", "server.crt"]]);
    }

    /// Passes on to `fake` what comes over TLS; returns the port.
    async fn with_tls(fake: &Fake, directory: &Path) -> u16 {
        use tokio_rustls::rustls::crypto::aws_lc_rs::default_provider;
        use tokio_rustls::rustls::pki_types::pem::PemObject as _;
        use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
        let certificate = CertificateDer::from_pem_file(directory.join("server.crt")).expect("made");
        let key = PrivateKeyDer::from_pem_file(directory.join("server.key")).expect("made");
        let config = tokio_rustls::rustls::ServerConfig::builder_with_provider(default_provider().into());
        let config = config.with_safe_default_protocol_versions().expect("versions").with_no_client_auth();
        let config = config.with_single_cert(vec![certificate], key).expect("a pair");
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let (port, behind) = (listener.local_addr().expect("an address").port(), fake.address);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let acceptor = acceptor.clone();
                tokio::spawn(async move {
                    let Ok(mut front) = acceptor.accept(stream).await else { return };
                    let mut back = tokio::net::TcpStream::connect(behind).await.expect("the fake");
                    let _ = tokio::io::copy_bidirectional(&mut front, &mut back).await;
                });
            }
        });
        port
    }

    #[tokio::test]
    async fn only_a_server_that_the_authority_signed_is_shown_the_token() {
        let (known, unknown) =
            (tempfile::tempdir().expect("a directory"), tempfile::tempdir().expect("a directory"));
        certificates(known.path());
        certificates(unknown.path());
        let fake = Fake::start(|_, _| pod_with(&[])).await;
        for (directory, is_trusted) in [(&known, true), (&unknown, false)] {
            let port = with_tls(&fake, directory.path()).await;
            let mut config = fake.config();
            config.cluster_url = format!("https://127.0.0.1:{port}").parse().expect("a URL");
            // As `in_cluster` has it: a file that is read again.
            config.root_cert_file = Some(known.path().join("ca.crt"));
            config.auth_info.token = Some("t0ken".to_owned().into());
            let read = Cluster::of(config, Limits::DEFAULT).pull_secrets(&pod()).await;
            match read {
                Ok(_) => assert!(is_trusted),
                Err(Error::Unreachable { reason, .. }) => {
                    assert!(!is_trusted && reason.contains("certificate"), "{reason}");
                }
                Err(error) => panic!("{error}"),
            }
        }
        assert_eq!(fake.tokens(), [Some("Bearer t0ken".to_owned())]);
    }

    #[test]
    fn kubeconfigs_run_no_programs_and_are_not_quoted() {
        let run = json!({"exec": {"apiVersion": "client.authentication.k8s.io/v1", "command": "/bin/false"}});
        let file = kubeconfig("http://127.0.0.1:1", &run);
        let error = Cluster::of_kubeconfig(file.path()).err().expect("refused");
        assert!(error.to_string().contains("does not run"), "{error}");
        std::fs::write(file.path(), "users: [{name: u, user: {token: [hunter2]}}]").expect("written");
        let error = Cluster::of_kubeconfig(file.path()).err().expect("refused");
        assert!(!format!("{error} {error:?}").contains("hunter2"), "{error:?}");
        let error = Cluster::of_kubeconfig(Path::new("/does/not/exist")).err().expect("missing");
        assert!(error.to_string().contains("/does/not/exist"), "{error}");
    }

    #[test]
    fn outside_of_a_pod_is_said() {
        if std::env::var_os("KUBERNETES_SERVICE_HOST").is_some() {
            return;
        }
        let error = Cluster::in_cluster().err().expect("no pod");
        assert!(error.to_string().contains("credentials.imagePullSecrets.enabled"), "{error}");
    }
}
