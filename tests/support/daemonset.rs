//! The plugin as the rendered DaemonSet runs it: its arguments, its environment, and a mount namespace made of its
//! volume mounts, on a node whose `/var/lib` is the test's own.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{Container, PodSpec};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use ocivol::demo::kubelet::{Kubelet, PodVolume};
use tempfile::TempDir;
use tonic::Status;

use super::eventually;
use super::node::BINARY;

const NONE: Option<&str> = None;

/// A node on which the DaemonSet's pod runs, or not.
pub struct DaemonNode {
    pub kubelet: Kubelet,
    /// Beside those of the DaemonSet, as `extraEnv` would add them.
    pub env: BTreeMap<String, String>,
    directory: TempDir,
    plugin: Option<Child>,
    /// The system call, and which one of its kind, at which the next start ends.
    kill_at: Option<(String, usize)>,
}

/// What a volume mount of the container is.
struct Bind {
    host: PathBuf,
    container: PathBuf,
    bidirectional: bool,
}

/// The store, on the node and in the container.
pub const STORE: &str = "/var/lib/ocivol";
/// Where the node's plugin registers, and serves, as kubelet sees it.
pub const REGISTRATION: &str = "/var/lib/kubelet/plugins_registry/csi.ocivol.dev-reg.sock";
pub const SOCKET: &str = "/var/lib/kubelet/plugins/csi.ocivol.dev/csi.sock";

fn rendered() -> DaemonSet {
    let text = include_str!("../../manifests/install.yaml");
    serde_yaml_ng::Deserializer::from_str(text)
        .map(|document| <serde_json::Value as serde::Deserialize>::deserialize(document).expect("YAML"))
        .find(|object| object["kind"] == "DaemonSet")
        .map(|object| serde_json::from_value(object).expect("a DaemonSet"))
        .expect("a DaemonSet")
}

fn pod() -> PodSpec {
    rendered().spec.expect("a spec").template.spec.expect("a pod")
}

impl DaemonNode {
    /// Makes this mount namespace's `/var/lib` that of a node, shared as systemd shares everything.
    pub fn prepare() -> Self {
        let directory = tempfile::Builder::new().prefix("ocivol-daemonset-").tempdir().expect("a directory");
        // One after the other in the same namespace: what the one before had is below, and not seen.
        let size = Some("size=256m,mode=0755");
        mount(Some("node"), "/var/lib", Some("tmpfs"), MsFlags::empty(), size).expect("a node's /var/lib");
        mount(NONE, "/var/lib", NONE, MsFlags::MS_SHARED, NONE).expect("shared");
        // What kubelet makes; the rest is for whoever starts the container.
        for name in ["pods", "plugins", "plugins_registry"] {
            std::fs::create_dir_all(Path::new("/var/lib/kubelet").join(name)).expect("directories");
        }
        Self {
            kubelet: Kubelet::new(Path::new("/var/lib/kubelet"), Path::new(SOCKET)),
            env: BTreeMap::new(),
            directory,
            plugin: None,
            kill_at: None,
        }
    }

    /// Starts the container, and waits until it wants to register.
    pub async fn run(&mut self) {
        self.start();
        eventually("the registration socket", || Path::new(REGISTRATION).exists()).await;
        // The command line goes through it, and would else work on the store itself.
        let control = Path::new(STORE).join("control.sock");
        eventually("the control socket", || std::os::unix::net::UnixStream::connect(&control).is_ok()).await;
        self.kubelet.register(Path::new(REGISTRATION)).await.expect("registered");
    }

    /// Starts the container.
    pub fn start(&mut self) {
        assert!(self.plugin.is_none(), "it runs already");
        for socket in [REGISTRATION, SOCKET] {
            let _ = std::fs::remove_file(socket);
        }
        let pod = pod();
        let container = pod.containers[0].clone();
        let binds = binds(&pod, &container);
        let root = self.directory.path().join("rootfs");
        std::fs::create_dir_all(&root).expect("a directory");
        let log = std::fs::OpenOptions::new().create(true).append(true).open(self.log()).expect("a log");
        let mut command = match self.kill_at.take() {
            // The process is gone before the kernel does what it is asked.
            Some((syscall, number)) => {
                let mut strace = Command::new("strace");
                // -D: the plugin is our child, and strace is beside it.
                strace.args(["-D", "-f", "-qq", "--output=/dev/null"]);
                strace.arg(format!("--trace={syscall}"));
                strace.arg(format!("--inject={syscall}:signal=KILL:when={number}")).arg("/ocivol");
                strace
            }
            None => Command::new("/ocivol"),
        };
        command.args(container.args.clone().unwrap_or_default()).env_clear().env("PATH", "/usr/bin");
        command.envs(environment(&container)).envs(&self.env);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        // The thread's namespace and root are what the process gets.
        let child = std::thread::spawn(move || {
            enter(&root, &binds);
            command.spawn().expect("the container starts")
        });
        self.plugin = Some(child.join().expect("no panic"));
    }

    /// The next start ends when one of its threads makes its `number`th call of `syscall`.
    pub fn kill_at(&mut self, syscall: &str, number: usize) {
        self.kill_at = Some((syscall.to_owned(), number));
    }

    /// Waits until it serves, or has ended.
    pub fn wait_until_it_serves(&mut self) {
        let began = std::time::Instant::now();
        while !Path::new(REGISTRATION).exists() && !self.has_ended() {
            assert!(began.elapsed().as_secs() < 20, "it neither serves nor ends");
            std::thread::yield_now();
        }
    }

    /// Whether it has ended by itself.
    pub fn has_ended(&mut self) -> bool {
        self.plugin.as_mut().is_none_or(|child| child.try_wait().expect("a child").is_some())
    }

    /// Whether it was killed, and not by the test; fails when it ended in another way.
    pub fn was_killed(&mut self) -> bool {
        use std::os::unix::process::ExitStatusExt as _;
        let status = self.plugin.as_mut().and_then(|child| child.try_wait().expect("a child"));
        if let Some(status) = status {
            assert_eq!(status.signal(), Some(9), "{status}: {}", self.logged());
        }
        status.is_some()
    }

    pub fn pid(&self) -> u32 {
        self.plugin.as_ref().expect("it runs").id()
    }

    /// Asks the container to end, and waits for it.
    pub async fn stop(&mut self) {
        let pid = nix::unistd::Pid::from_raw(self.pid().cast_signed());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).expect("it runs");
        let mut child = self.plugin.take().expect("it runs");
        let status = tokio::task::spawn_blocking(move || child.wait()).await.expect("no panic");
        assert!(status.expect("a status").success(), "{}", self.logged());
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

    /// Ends the container as a crash would.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.plugin.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Waits for the container to end by itself; whether it was content.
    pub async fn wait(&mut self) -> bool {
        eventually("its end", || self.has_ended()).await;
        self.plugin.take().expect("it was started").wait().expect("a status").success()
    }

    pub fn logged(&self) -> String {
        std::fs::read_to_string(self.log()).unwrap_or_default()
    }

    fn log(&self) -> PathBuf {
        self.directory.path().join("plugin.log")
    }
}

impl Drop for DaemonNode {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            println!("--- the plugin's log ---\n{}", self.logged());
        }
        // Everything mounted goes with the test's namespace; the directory is then empty but for the log.
    }
}

fn environment(container: &Container) -> BTreeMap<String, String> {
    let variables = container.env.iter().flatten().map(|variable| {
        let field = variable.value_from.as_ref().and_then(|from| from.field_ref.as_ref());
        let value = match (&variable.value, field.map(|field| field.field_path.as_str())) {
            (Some(value), None) => value.clone(),
            (None, Some("spec.nodeName")) => "node-1".to_owned(),
            other => panic!("{}: {other:?} is not known here", variable.name),
        };
        (variable.name.clone(), value)
    });
    variables.collect()
}

fn binds(pod: &PodSpec, container: &Container) -> Vec<Bind> {
    let volumes = pod.volumes.as_ref().expect("volumes");
    let mounts = container.volume_mounts.as_ref().expect("mounts").iter();
    mounts
        .map(|mount| {
            let volume = volumes.iter().find(|volume| volume.name == mount.name).expect("its volume");
            let host = volume.host_path.as_ref().expect("a host path");
            let path = PathBuf::from(&host.path);
            match host.type_.as_deref() {
                Some("DirectoryOrCreate") => std::fs::create_dir_all(&path).expect("a directory"),
                Some("Directory") => assert!(path.is_dir(), "{} is not there", path.display()),
                other => panic!("{other:?} is not known here"),
            }
            let bidirectional = match mount.mount_propagation.as_deref() {
                None | Some("None") => false,
                Some("Bidirectional") => true,
                other => panic!("{other:?} is not known here"),
            };
            Bind { host: path, container: PathBuf::from(&mount.mount_path), bidirectional }
        })
        .collect()
}

/// Moves this thread into a mount namespace and a root of the container's own.
fn enter(root: &Path, binds: &[Bind]) {
    unshare(CloneFlags::CLONE_NEWNS).expect("root");
    mount(Some("root"), root, Some("tmpfs"), MsFlags::empty(), Some("mode=0755")).expect("a root");
    let inside = |path: &Path| root.join(path.strip_prefix("/").expect("absolute"));
    // With all that is mounted below, as container runtimes do: volumes of pods that run are there.
    let bind = |from: &Path, to: &Path| {
        std::fs::create_dir_all(to).expect("a directory");
        mount(Some(from), to, NONE, MsFlags::MS_BIND | MsFlags::MS_REC, NONE)
            .unwrap_or_else(|error| panic!("{} on {}: {error}", from.display(), to.display()));
    };
    for it in binds {
        let to = inside(&it.container);
        bind(&it.host, &to);
        if !it.bidirectional {
            mount(NONE, &to, NONE, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NONE).expect("private");
        }
    }
    std::fs::File::create(root.join("ocivol")).expect("a file");
    mount(Some(BINARY), &root.join("ocivol"), NONE, MsFlags::MS_BIND, NONE).expect("the binary");
    // The image holds a static binary and certificates; this one is linked to the machine's libraries,
    // and some tests run it under strace.
    for path in ["/lib", "/lib64", "/usr/lib", "/etc/ssl", "/proc", "/dev", "/usr/bin"] {
        if Path::new(path).is_dir() {
            bind(Path::new(path), &inside(Path::new(path)));
        }
    }
    let read_only = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY;
    mount(NONE, root, NONE, read_only, NONE).expect("a read-only root");
    std::os::unix::fs::chroot(root).expect("root");
    std::env::set_current_dir("/").expect("a directory");
}
