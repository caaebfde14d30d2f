//! Debian's `docker-registry`, started by the test on a port of its own.

use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use ocivol::demo::push::Pusher;
use ocivol::oci::digest::Digest;
use tempfile::TempDir;

use super::PATIENCE;

/// User and password that [`DebianRegistry::with_login`] accepts.
pub const LOGIN: (&str, &str) = ("alice", "wonderland");
/// bcrypt of the password above.
const HTPASSWD: &str = "alice:$2b$05$r55D3P2KXKbooEGo2CnxM.5/i9DC9gz7KOr1BYW39TpMO7Jr7lFtm\n";

/// The registry, running until dropped.
pub struct DebianRegistry {
    process: Child,
    port: u16,
    directory: TempDir,
    login: Option<(String, String)>,
}

impl DebianRegistry {
    /// Without authentication.
    pub async fn start() -> Self {
        Self::launch(None, "").await
    }

    /// With Basic authentication, for [`LOGIN`].
    pub async fn with_login() -> Self {
        Self::launch(Some((LOGIN.0.to_owned(), LOGIN.1.to_owned())), "").await
    }

    /// A pull-through cache of another one, for whoever asks.
    pub async fn cache_of(other: &Self) -> Self {
        Self::launch(None, &format!("proxy:\n  remoteurl: http://{}\n", other.host())).await
    }

    /// Whether it has a blob of a repository.
    pub fn holds(&self, repository: &str, digest: &Digest) -> bool {
        let repositories = self.directory.path().join("data/docker/registry/v2/repositories");
        repositories.join(repository).join("_layers/sha256").join(digest.hex()).is_dir()
    }

    async fn launch(login: Option<(String, String)>, more: &str) -> Self {
        let directory = tempfile::Builder::new().prefix("ocivol-registry-").tempdir().expect("a directory");
        let base = directory.path();
        // Bound once to learn a free port; the registry binds it again at once.
        let port = TcpListener::bind(("127.0.0.1", 0)).and_then(|it| it.local_addr()).expect("a port").port();
        let auth = match &login {
            Some(_) => {
                std::fs::write(base.join("htpasswd"), HTPASSWD).expect("a file");
                format!(
                    "auth:\n  htpasswd:\n    realm: test\n    path: {}\n",
                    base.join("htpasswd").display()
                )
            }
            None => String::new(),
        };
        let config = format!(
            "version: 0.1\nlog:\n  level: error\n  accesslog:\n    disabled: true\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: 127.0.0.1:{port}\n{auth}{more}",
            base.join("data").display()
        );
        std::fs::write(base.join("config.yml"), config).expect("a file");
        let mut registry = Self { process: start(base), port, directory, login };
        registry.serves().await;
        registry
    }

    /// Ends it at once, and starts it again where it was.
    pub async fn restart(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        self.process = start(self.directory.path());
        self.serves().await;
    }

    async fn serves(&mut self) {
        let began = Instant::now();
        while std::net::TcpStream::connect(("127.0.0.1", self.port)).is_err() {
            assert!(began.elapsed() < PATIENCE, "docker-registry does not listen");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// CPU time that it has used, of the kernel too.
    #[allow(dead_code)] // Benches ask for it.
    pub fn cpu_time(&self) -> Duration {
        super::processor_time(self.process.id())
    }

    pub fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    pub fn reference(&self, rest: &str) -> String {
        format!("{}/{rest}", self.host())
    }

    pub fn pusher(&self, repository: &str) -> Pusher {
        let mut pusher = Pusher::new(&self.host(), repository);
        pusher.login.clone_from(&self.login);
        pusher
    }
}

fn start(base: &Path) -> Child {
    let mut command = Command::new("docker-registry");
    command.arg("serve").arg(base.join("config.yml"));
    let started = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
    started.unwrap_or_else(|error| {
        panic!("docker-registry cannot be started: {error}; run `apt-get install docker-registry`, or `make test`")
    })
}

impl Drop for DebianRegistry {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
