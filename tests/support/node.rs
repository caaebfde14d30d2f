//! A node: temporary directories, the real binary as plugin, and a kubelet that drives it.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use ocivol::demo::kubelet::{Kubelet, PodVolume};
use ocivol::mount::{Mount, Table};
use tempfile::TempDir;
use tonic::Status;

use super::eventually;

pub const BINARY: &str = env!("CARGO_BIN_EXE_ocivol");
pub const DRIVER: &str = "csi.ocivol.dev";

/// A machine with a kubelet directory, a store, and at most one running plugin.
pub struct Node {
    pub directory: TempDir,
    pub root: PathBuf,
    pub socket: PathBuf,
    pub registry_dir: PathBuf,
    pub kubelet: Kubelet,
    flags: Vec<String>,
    plugin: Option<Child>,
}

impl Node {
    /// A node whose plugin runs with `flags` beside those that every test needs.
    pub async fn start(flags: &[&str]) -> Self {
        let mut node = Self::prepare(flags);
        node.run().await;
        node
    }

    /// A node whose plugin is not started yet.
    pub fn prepare(flags: &[&str]) -> Self {
        let directory = tempfile::Builder::new().prefix("ocivol-test-").tempdir().expect("a directory");
        let base = directory.path().canonicalize().expect("a path");
        let kubelet_dir = base.join("kubelet");
        let registry_dir = kubelet_dir.join("plugins_registry");
        std::fs::create_dir_all(&registry_dir).expect("directories");
        std::fs::create_dir_all(kubelet_dir.join("pods")).expect("directories");
        let socket = base.join("csi.sock");
        Self {
            root: base.join("store"),
            kubelet: Kubelet::new(&kubelet_dir, &socket),
            socket,
            registry_dir,
            directory,
            flags: flags.iter().map(|flag| (*flag).to_owned()).collect(),
            plugin: None,
        }
    }

    /// The command of the plugin, with all its flags.
    pub fn command(&self) -> Command {
        let mut command = Command::new(BINARY);
        command
            .arg("node")
            .args(["--endpoint", &format!("unix://{}", self.socket.display())])
            .args(["--node-id", "node-1", "--driver-name", DRIVER, "--health-addr", ""])
            .args(["--kubelet-dir".as_ref(), self.kubelet.directory.as_os_str()])
            .args(["--root".as_ref(), self.root.as_os_str()])
            .args(&self.flags)
            .env_remove("http_proxy")
            .stdin(Stdio::null());
        command
    }

    /// Starts the plugin and waits until it registers.
    pub async fn run(&mut self) {
        self.run_as(self.command()).await;
    }

    /// Starts the plugin with a command of the test's own.
    pub async fn run_as(&mut self, mut command: Command) {
        assert!(self.plugin.is_none(), "a plugin runs already");
        let _ = std::fs::remove_file(self.registration());
        let log = std::fs::OpenOptions::new().create(true).append(true).open(self.log()).expect("a log");
        self.plugin = Some(command.stderr(log).spawn().expect("the plugin starts"));
        let registration = self.registration();
        eventually("the registration socket", || registration.exists()).await;
    }

    /// Takes over a plugin that the test started itself.
    pub fn adopt(&mut self, child: Child) {
        assert!(self.plugin.is_none(), "a plugin runs already");
        self.plugin = Some(child);
    }

    /// What the plugins of this node have logged.
    pub fn logged(&self) -> String {
        std::fs::read_to_string(self.log()).unwrap_or_default()
    }

    fn log(&self) -> PathBuf {
        self.directory.path().join("plugin.log")
    }

    pub fn registration(&self) -> PathBuf {
        self.registry_dir.join(format!("{DRIVER}-reg.sock"))
    }

    pub fn pid(&self) -> u32 {
        self.plugin.as_ref().expect("a plugin runs").id()
    }

    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.pid() as i32), signal).expect("the plugin runs");
    }

    /// Asks the plugin to end and waits for it.
    pub async fn stop(&mut self) {
        self.signal(Signal::SIGTERM);
        let mut child = self.plugin.take().expect("a plugin runs");
        let status = tokio::task::spawn_blocking(move || child.wait()).await.expect("no panic");
        assert!(status.expect("a status").success(), "{}", self.logged());
    }

    /// Kills the plugin as a crash would.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.plugin.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// A volume of a pod that does not exist yet.
    pub fn volume(&self, pod: &str) -> PodVolume {
        self.kubelet.prepare(pod, "model").expect("directories")
    }

    /// Publishes `reference`, with further attributes, without credentials.
    pub async fn publish(
        &self,
        volume: &PodVolume,
        reference: &str,
        attributes: &[(&str, &str)],
    ) -> Result<(), Status> {
        let mut all = vec![("reference", reference)];
        all.extend_from_slice(attributes);
        self.kubelet.publish(self.kubelet.publish_request(volume, &all, &[])).await
    }

    /// Publishes `reference` with the credentials of `user`.
    pub async fn publish_as(
        &self,
        volume: &PodVolume,
        reference: &str,
        attributes: &[(&str, &str)],
        (user, password): (&str, &str),
    ) -> Result<(), Status> {
        let mut all = vec![("reference", reference)];
        all.extend_from_slice(attributes);
        let host = reference.split('/').next().expect("a host");
        let config = serde_json::json!({"auths": {host: {"username": user, "password": password}}});
        let config = config.to_string();
        let request = self.kubelet.publish_request(volume, &all, &[(".dockerconfigjson", &config)]);
        self.kubelet.publish(request).await
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            // Captured with the test's output, and shown because the test failed.
            println!("--- the plugin's log ---\n{}", self.logged());
        }
        // The directory cannot be removed while something is mounted in it.
        for mount in mounts_below(self.directory.path()).iter().rev() {
            let _ = nix::mount::umount2(&mount.mount_point, nix::mount::MntFlags::MNT_DETACH);
        }
    }
}

/// The mount at exactly `path`, in this test's namespace.
pub fn mount_at(path: &Path) -> Option<Mount> {
    Table::read().expect("a table").at(path).cloned()
}

/// All mounts below `path`.
pub fn mounts_below(path: &Path) -> Vec<Mount> {
    let table = Table::read().expect("a table");
    table.iter().filter(|mount| mount.mount_point.starts_with(path)).cloned().collect()
}
