//! A node: its kubelet, its store, and the real binary as plugin, in the container that the DaemonSet describes.

use std::collections::BTreeMap;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use nix::mount::{MsFlags, mount};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use ocivol::csi::pluginregistration::PluginInfo;
use ocivol::demo::kubelet::{Kubelet, Pod, PodVolume};
use ocivol::mount::mountinfo::{Mount, Table};
use rustix::process::{Resource, Rlimit, getrlimit, prlimit, setrlimit};
use tempfile::TempDir;
use tonic::{Code, Status};

use super::{PATIENCE, container, eventually};

pub const BINARY: &str = env!("CARGO_BIN_EXE_ocivol");
pub const DRIVER: &str = "csi.ocivol.dev";
const NONE: Option<&str> = None;

/// A machine with a kubelet directory, a store, and at most one running plugin.
pub struct Node {
    /// The machine's disk, and what only the test knows of.
    pub directory: TempDir,
    pub root: PathBuf,
    pub socket: PathBuf,
    pub registry_dir: PathBuf,
    pub kubelet: Kubelet,
    /// Environment beside the container's, as the chart's `extraEnv` adds it.
    pub env: BTreeMap<String, String>,
    /// Arguments beside the container's, as the chart's `extraArgs` adds them.
    flags: Vec<String>,
    /// ConfigMaps that are mounted beside the container's volumes: where they are on the node, and in the container.
    config_maps: Vec<(PathBuf, PathBuf)>,
    in_container: bool,
    plugin: Option<Child>,
}

impl Node {
    /// A node whose plugin runs with `flags` beside those of the DaemonSet.
    pub async fn start(flags: &[&str]) -> Self {
        let mut node = Self::prepare(flags);
        node.run().await;
        node
    }

    /// A node whose plugin is not started yet.
    ///
    /// `/var/lib` of this mount namespace becomes the node's, shared as systemd shares everything. A second node of a
    /// test takes the place of the first.
    pub fn prepare(flags: &[&str]) -> Self {
        let directory = temporary();
        assert!(!BINARY.starts_with("/var/lib"), "a checkout in /var/lib is hidden by the tests: move it");
        while mount_at(Path::new("/var/lib")).is_some_and(|mount| mount.fs_type == "tmpfs") {
            nix::mount::umount2("/var/lib", nix::mount::MntFlags::MNT_DETACH).expect("the node before");
        }
        let size = Some("size=256m,mode=0755");
        mount(Some("node"), "/var/lib", Some("tmpfs"), MsFlags::empty(), size).expect("a node's /var/lib");
        mount(NONE, "/var/lib", NONE, MsFlags::MS_SHARED, NONE).expect("shared");
        let root = PathBuf::from("/var/lib/ocivol");
        let disk = directory.path().join("store");
        for path in [&root, &disk] {
            std::fs::create_dir(path).expect("a directory");
        }
        mount(Some(&disk), &root, NONE, MsFlags::MS_BIND, NONE).expect("a store on a disk");
        let kubelet_dir = Path::new("/var/lib/kubelet");
        let socket = kubelet_dir.join("plugins").join(DRIVER).join("csi.sock");
        Self::new(directory, kubelet_dir, root, socket, flags, true)
    }

    /// A node whose plugin runs as a process of the host, without a container: for what the command line does beside
    /// it, in directories of the host.
    pub fn on_host(flags: &[&str]) -> Self {
        let directory = temporary();
        let base = directory.path().canonicalize().expect("a path");
        Self::new(directory, &base.join("kubelet"), base.join("store"), base.join("csi.sock"), flags, false)
    }

    fn new(
        directory: TempDir,
        kubelet_dir: &Path,
        root: PathBuf,
        socket: PathBuf,
        flags: &[&str],
        in_container: bool,
    ) -> Self {
        // What kubelet makes; the rest is for whoever starts the container.
        for name in ["pods", "plugins", "plugins_registry"] {
            std::fs::create_dir_all(kubelet_dir.join(name)).expect("directories");
        }
        Self {
            root,
            kubelet: Kubelet::new(kubelet_dir, &socket),
            socket,
            registry_dir: kubelet_dir.join("plugins_registry"),
            directory,
            // On whatever disk the tests run, and however full that is. What a test is about it says with flags.
            env: [
                // Registries of tests, their token servers and storage are on this machine.
                ("OCIVOL_ALLOW_HOSTS", "127.0.0.0/8,::1"),
                ("OCIVOL_GC_START", "100%"),
                ("OCIVOL_GC_STOP", "100%"),
                ("OCIVOL_KEEP_FREE", "5%"),
                ("OCIVOL_KEEP_FREE_INODES", "2%"),
            ]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into(),
            flags: flags.iter().map(|flag| (*flag).to_owned()).collect(),
            config_maps: Vec::new(),
            in_container,
            plugin: None,
        }
    }

    /// Gives the store a file system of its own, of this size, in memory and without reflinks.
    pub fn limit_store(&self, size: &str) {
        let options = format!("size={size},mode=700");
        mount(Some("store"), &self.root, Some("tmpfs"), MsFlags::empty(), Some(options.as_str()))
            .expect("a store's file system");
    }

    /// Does what the chart does with `registry.caConfigMap`; the ConfigMap holds this bundle, `ca.crt`.
    pub fn trust(&mut self, bundle: &Path) {
        let (directory, file) = ("/etc/ocivol/ca", "/etc/ocivol/ca/ca.crt");
        let chart = include_str!("../../charts/ocivol/templates/daemonset.yaml");
        for line in ["- name: SSL_CERT_FILE", &format!("value: {file}"), &format!("mountPath: {directory}")] {
            assert!(chart.lines().any(|known| known.trim() == line), "the chart has no {line:?} any more");
        }
        let host = bundle.parent().expect("a directory").to_owned();
        self.config_maps.push((host, PathBuf::from(directory)));
        self.env.insert("SSL_CERT_FILE".to_owned(), file.to_owned());
    }

    /// Writes `<directory>/hosts.toml`, or another file, where the node's container runtime has it.
    pub fn write_hosts(&self, directory: &str, file: &str, text: &str) {
        let place = container::etc_of(&self.directory.path().join("rootfs"))
            .join("containerd/certs.d")
            .join(directory);
        std::fs::create_dir_all(&place).expect("a directory");
        std::fs::write(place.join(file), text).expect("written");
    }

    /// Starts the plugin and waits until it wants to register.
    pub async fn run(&mut self) {
        self.launch();
        self.serves_or_ends().await;
        assert!(!self.has_ended(), "it ended: {}", self.logged());
    }

    /// As [`Node::run_registered`], with this soft limit of open files.
    ///
    /// A process starts with the limits of the one that starts it: this test, which is alone in its process.
    pub async fn run_with_open_files(&mut self, soft: u64) {
        let own = getrlimit(Resource::Nofile);
        setrlimit(Resource::Nofile, Rlimit { current: Some(soft), ..own }).expect("a lower limit");
        self.launch();
        setrlimit(Resource::Nofile, own).expect("the limit before");
        self.serves_or_ends().await;
        assert!(!self.has_ended(), "it ended: {}", self.logged());
        self.settle().await;
    }

    /// Takes from the plugin that runs the right to have more than this many open files.
    pub fn limit_open_files(&self, most: u64) {
        let pid = rustix::process::Pid::from_raw(self.pid() as i32);
        let limit = Rlimit { current: Some(most), maximum: Some(most) };
        prlimit(pid, Resource::Nofile, limit).expect("a lower limit");
    }

    /// Waits until it wants to register, or has ended.
    pub async fn serves_or_ends(&mut self) {
        let registration = self.registration();
        eventually("the registration socket", || registration.exists() || self.has_ended()).await;
    }

    /// Starts the plugin, registers it, and waits until the command line finds it.
    pub async fn run_registered(&mut self) {
        self.run().await;
        self.settle().await;
    }

    async fn settle(&self) {
        // Without it the command line would work on the store itself.
        let control = self.root.join("control.sock");
        eventually("the control socket", || std::os::unix::net::UnixStream::connect(&control).is_ok()).await;
        self.register().await;
    }

    /// Registers the plugin; again when it did not answer within kubelet's second, as kubelet does.
    pub async fn register(&self) -> PluginInfo {
        let began = std::time::Instant::now();
        loop {
            match self.kubelet.register(&self.registration()).await {
                Ok(info) => return info,
                Err(status) => assert!(began.elapsed() < PATIENCE, "{status}: {}", self.logged()),
            }
        }
    }

    /// Starts the plugin.
    pub fn launch(&mut self) {
        assert!(self.plugin.is_none(), "a plugin runs already");
        for socket in [self.registration(), self.socket.clone()] {
            let _ = std::fs::remove_file(socket);
        }
        let log = std::fs::OpenOptions::new().create(true).append(true).open(self.log()).expect("a log");
        self.plugin = Some(if self.in_container {
            let root = self.directory.path().join("rootfs");
            container::start(&root, &self.flags, &self.env, &self.config_maps, log)
        } else {
            self.on_host_command().stderr(log).spawn().expect("the plugin starts")
        });
    }

    fn on_host_command(&self) -> Command {
        let mut command = Command::new(BINARY);
        command
            .arg("node")
            .args(["--endpoint", &format!("unix://{}", self.socket.display())])
            .args(["--node-id", "node-1", "--driver-name", DRIVER, "--health-addr", ""])
            .args(["--kubelet-dir".as_ref(), self.kubelet.directory.as_os_str()])
            .args(["--root".as_ref(), self.root.as_os_str()])
            .args(&self.flags)
            .envs(&self.env)
            .stdin(Stdio::null());
        command
    }

    /// CPU time that the plugin and those of its children that have ended have used, of the kernel too.
    pub fn cpu_time(&self) -> Duration {
        super::processor_time(self.pid())
    }

    /// Bytes that the plugin has read from files, on a disk or in memory.
    pub fn bytes_read(&self) -> u64 {
        self.io("rchar")
    }

    /// A value of `/proc/<pid>/io`, in bytes: see `man 5 proc_pid_io`.
    pub fn io(&self, key: &str) -> u64 {
        let text = std::fs::read_to_string(format!("/proc/{}/io", self.pid())).expect("it runs");
        let value = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(": "));
        value.and_then(|value| value.parse().ok()).expect("a number")
    }

    /// A value of `/proc/<pid>/status`, in bytes.
    pub fn memory(&self, key: &str) -> u64 {
        memory_of(self.pid(), key)
    }

    /// Waits until nothing is left of downloads; records of what is good may be on their way for a moment.
    pub async fn nothing_is_left_in_ingest(&self) {
        let ingest = self.root.join("v1/ingest");
        let names = |path: &Path| -> Vec<String> {
            let entries = std::fs::read_dir(path).expect("a directory");
            entries.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned()).collect()
        };
        let mut left = Vec::new();
        let what = || {
            left = names(&ingest);
            left.retain(|name| name != "trash");
            left.extend(names(&ingest.join("trash")));
            left.is_empty()
        };
        eventually("an empty directory of downloads", what).await;
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

    /// Whether the plugin has ended by itself.
    pub fn has_ended(&mut self) -> bool {
        self.status().is_some()
    }

    /// Whether the plugin was killed, and not by this test; fails when it ended in another way.
    pub fn was_killed(&mut self) -> bool {
        let status = self.status();
        if let Some(status) = status {
            assert_eq!(status.signal(), Some(9), "{status}: {}", self.logged());
        }
        status.is_some()
    }

    fn status(&mut self) -> Option<ExitStatus> {
        self.plugin.as_mut().and_then(|child| child.try_wait().expect("a child"))
    }

    /// Asks the plugin to end and waits for it.
    pub async fn stop(&mut self) {
        self.signal(Signal::SIGTERM);
        assert!(self.wait().await, "{}", self.logged());
    }

    /// Waits for the plugin to end by itself; whether it was content.
    pub async fn wait(&mut self) -> bool {
        let began = std::time::Instant::now();
        while !self.has_ended() {
            assert!(began.elapsed() < PATIENCE, "it does not end: {}", self.logged());
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
        let status = self.status().expect("it has ended");
        self.plugin = None;
        status.success()
    }

    /// Kills the plugin as a crash would.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.plugin.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Runs `ocivol` with this node's store and these arguments; whether it succeeded, and the JSON that it printed.
    pub async fn command(&self, arguments: &[&str]) -> (bool, serde_json::Value) {
        let mut command = Command::new(BINARY);
        command.args(["--output", "json", "--root"]).arg(&self.root).args(arguments);
        let output = tokio::task::spawn_blocking(move || command.output().expect("it runs"));
        let output = output.await.expect("no panic");
        let json = serde_json::from_slice(&output.stdout);
        let json =
            json.unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&output.stderr)));
        (output.status.success(), json)
    }

    /// A volume of a pod that does not exist yet.
    pub fn volume(&self, pod: &str) -> PodVolume {
        self.kubelet.prepare(pod, "model").expect("directories")
    }

    /// The volume `name` of `pod`.
    pub fn volume_of(&self, pod: &Pod, name: &str) -> PodVolume {
        self.kubelet.prepare_for(pod, name).expect("directories")
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

    /// Publishes as kubelet does: once more whenever the answer is that it goes on. For what is large, and disks that
    /// are slow.
    pub async fn publish_in_the_end(&self, volume: &PodVolume, reference: &str) -> Result<(), Status> {
        for _ in 0..10 {
            match self.publish(volume, reference, &[]).await {
                Err(status) if status.code() == Code::DeadlineExceeded => {}
                answer => return answer,
            }
        }
        self.publish(volume, reference, &[]).await
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
        // The directory cannot be removed while something is mounted in it, or on what is bound from it.
        if self.in_container {
            while nix::mount::umount2(&self.root, nix::mount::MntFlags::MNT_DETACH).is_ok() {}
        }
        for mount in mounts_below(self.directory.path()).iter().rev() {
            let _ = nix::mount::umount2(&mount.mount_point, nix::mount::MntFlags::MNT_DETACH);
        }
    }
}

/// A value of `/proc/<pid>/status`, in bytes.
pub fn memory_of(pid: u32, key: &str) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':')).expect("a line");
    line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") * 1024
}

fn temporary() -> TempDir {
    tempfile::Builder::new().prefix("ocivol-test-").tempdir().expect("a directory")
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
