//! The node: its daemons, what they are configured with, and ocivol installed on it.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

use crate::cluster::{Cluster, eventually};
use crate::machine::{directory, target, wait_until};
use crate::registry::{self, REGISTRY};

/// Where containerd serves.
pub const CONTAINERD_SOCKET: &str = "/run/containerd/containerd.sock";
/// The machine's address on the bridge.
pub const ADDRESS: &str = "10.99.0.1";
/// Where the service `kubernetes` is, too, because no kube-proxy leads elsewhere: see [`SERVICE`].
const API: &str = "https://127.0.0.1";
/// The address of the service `kubernetes`, which is the node's own.
const SERVICE: &str = "10.96.0.1/32";

/// A machine's daemons.
pub struct Node {
    daemons: Vec<(&'static str, Child)>,
    pub cluster: Cluster,
}

/// Starts a node with ocivol, says that it is ready, and waits for its end.
pub async fn keep() -> std::process::ExitCode {
    let node = Node::start().await;
    registry::push_ocivol("0.1.0", |_| {}).await;
    node.install(&[]).await;
    fs::write(directory().join("ready"), "").expect("a file");
    std::future::pending::<()>().await;
    drop(node);
    std::process::ExitCode::SUCCESS
}

impl Node {
    /// Starts every daemon, and returns when the node is ready for pods.
    pub async fn start() -> Self {
        let state = directory();
        let lib = Path::new("/var/lib");
        for name in ["etcd", "registry", "kubelet", "containerd", "pki"] {
            fs::create_dir_all(lib.join(name)).expect("a directory");
        }
        let mut daemons = registry::start();
        let etcd = [
            "--data-dir=/var/lib/etcd",
            "--listen-client-urls=http://127.0.0.1:2379",
            "--advertise-client-urls=http://127.0.0.1:2379",
            "--listen-peer-urls=http://127.0.0.1:2380",
            // What it holds ends with the machine.
            "--unsafe-no-fsync",
        ];
        daemons.push(spawn("etcd", Path::new("etcd"), &etcd));
        daemons.push(containerd());
        let key = lib.join("pki/service-accounts.key");
        let made = Command::new("openssl")
            .args(["genrsa", "-out"])
            .arg(&key)
            .arg("2048")
            .stderr(Stdio::null())
            .status();
        assert!(made.is_ok_and(|status| status.success()), "openssl");
        run(Command::new("ip").args(["address", "add", SERVICE, "dev", "lo"]));
        fs::write(lib.join("pki/tokens"), "admin,admin,1,\"system:masters\"\n").expect("a file");
        let api = [
            "--etcd-servers=http://127.0.0.1:2379",
            "--bind-address=0.0.0.0",
            "--advertise-address=10.99.0.1",
            "--secure-port=443",
            "--cert-dir=/var/lib/pki",
            "--token-auth-file=/var/lib/pki/tokens",
            "--authorization-mode=RBAC",
            "--service-account-issuer=https://kubernetes.default.svc",
            "--service-account-key-file=/var/lib/pki/service-accounts.key",
            "--service-account-signing-key-file=/var/lib/pki/service-accounts.key",
            "--service-cluster-ip-range=10.96.0.0/24",
            "--allow-privileged=true",
            "--disable-admission-plugins=TaintNodesByCondition",
            "--kubelet-preferred-address-types=InternalIP",
        ];
        daemons.push(spawn("kube-apiserver", &kubernetes("kube-apiserver"), &api));
        let kubeconfig = state.join("kubeconfig");
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "e2e",
            "clusters": [{"name": "e2e", "cluster": {"server": API, "insecure-skip-tls-verify": true}}],
            "users": [{"name": "admin", "user": {"token": "admin"}}],
            "contexts": [{"name": "e2e", "context": {"cluster": "e2e", "user": "admin"}}],
        });
        fs::write(&kubeconfig, config.to_string()).expect("a file");
        let cluster = Cluster::connect(API, "admin");
        cluster.serves().await;
        let as_admin = format!("--kubeconfig={}", kubeconfig.display());
        let manager = [
            &as_admin,
            "--service-account-private-key-file=/var/lib/pki/service-accounts.key",
            "--root-ca-file=/var/lib/pki/apiserver.crt",
            "--leader-elect=false",
            "--secure-port=0",
            "--flex-volume-plugin-dir=/var/lib/kubelet/volume-plugins",
        ];
        daemons.push(spawn("kube-controller-manager", &kubernetes("kube-controller-manager"), &manager));
        let scheduler = [as_admin.as_str(), "--leader-elect=false", "--secure-port=0"];
        daemons.push(spawn("kube-scheduler", &kubernetes("kube-scheduler"), &scheduler));
        registry::push_images().await;
        containerd_serves().await;
        daemons.push(kubelet());
        cluster.node_is_ready().await;
        Self { daemons, cluster }
    }

    /// Installs ocivol with helm, or upgrades it, with further `--set` values; returns when its pod is ready.
    pub async fn install(&self, values: &[&str]) {
        self.upgrade(values).await;
        self.cluster.plugin_is_ready().await;
    }

    /// Installs ocivol with helm, or upgrades it, and does not wait.
    pub async fn upgrade(&self, values: &[&str]) {
        let repository = format!("image.repository={REGISTRY}/ocivol/ocivol");
        let plain = format!("registry.plainHTTP={{{}}}", registry::HOSTS.join(","));
        let chart = target().join("../charts/ocivol");
        let mut helm = self.helm();
        helm.args(["upgrade", "--install", "ocivol"]).arg(chart).args(["--namespace", "ocivol"]);
        helm.args(["--set", &repository, "--set", &plain]);
        for value in values {
            // A word that would be taken for something else than text is in quotes.
            helm.args([if value.ends_with('"') { "--set-json" } else { "--set" }, value]);
        }
        let namespace = json!({
            "apiVersion": "v1", "kind": "Namespace",
            "metadata": {"name": "ocivol", "labels": {"pod-security.kubernetes.io/enforce": "privileged"}},
        });
        self.cluster.apply_namespace(namespace).await;
        run(&mut helm);
    }

    /// Removes ocivol with helm.
    pub fn uninstall(&self) {
        run(self.helm().args(["uninstall", "ocivol", "--namespace", "ocivol", "--wait"]));
    }

    /// The same, where there may be nothing to remove.
    pub fn uninstall_if_there(&self) {
        let words = ["uninstall", "ocivol", "--namespace", "ocivol", "--wait", "--ignore-not-found"];
        run(self.helm().args(words));
    }

    /// Runs `kubectl` with these arguments; what it prints.
    pub fn kubectl(&self, arguments: &[&str]) -> String {
        let mut command = Command::new(kubernetes("kubectl"));
        command.env("KUBECONFIG", directory().join("kubeconfig")).env("HOME", directory());
        run(command.args(arguments))
    }

    fn helm(&self) -> Command {
        self.as_admin(&target().join("tools/bin/helm").display().to_string())
    }

    /// A program, as an administrator starts it who has kubectl and helm.
    pub fn as_admin(&self, program: &str) -> Command {
        let tools = target().join("tools");
        let path = format!("{0}/kubernetes:{0}/bin:/usr/bin:/bin", tools.display());
        let mut command = Command::new(program);
        command.env("KUBECONFIG", directory().join("kubeconfig")).env("HOME", directory()).env("PATH", path);
        command
    }

    /// Ends a daemon and waits for its end.
    pub fn stop(&mut self, name: &str) {
        let at = self.daemons.iter().position(|(known, _)| *known == name).expect("it runs");
        let (_, mut child) = self.daemons.remove(at);
        let pid = Pid::from_raw(child.id().cast_signed());
        kill(pid, Signal::SIGTERM).expect("it runs");
        wait_until("the end of a daemon", || child.try_wait().expect("a child").is_some());
    }

    /// Starts kubelet again, as systemd would.
    pub async fn start_kubelet(&mut self) {
        self.daemons.push(kubelet());
        self.cluster.node_is_ready().await;
    }

    /// What a power button does to kubelet, the runtime, all containers and all mounts of pods; then starts the node's
    /// daemons again. `/run` is empty after a boot.
    pub async fn reboot(&mut self) {
        for name in ["kubelet", "containerd"] {
            let at = self.daemons.iter().position(|(known, _)| *known == name).expect("it runs");
            let (_, mut child) = self.daemons.remove(at);
            let _ = child.kill();
            let _ = child.wait();
        }
        // Every process of a container, and the shims: what is in a cgroup below this machine's.
        wait_until("the end of all containers", || {
            let containers = processes_of_containers();
            for pid in &containers {
                let _ = kill(*pid, Signal::SIGKILL);
            }
            containers.is_empty()
        });
        let table = fs::read_to_string("/proc/self/mountinfo").expect("mounts");
        let places: Vec<&str> = table.lines().filter_map(|line| line.split(' ').nth(4)).collect();
        for place in places.iter().rev() {
            let of_pods = ["/var/lib/kubelet/", "/run/containerd/", "/run/netns/"];
            if of_pods.iter().any(|prefix| place.starts_with(prefix)) {
                let _ = nix::mount::umount2(*place, nix::mount::MntFlags::MNT_DETACH);
            }
        }
        for place in ["/run/containerd", "/run/netns", "/var/lib/cni"] {
            let _ = fs::remove_dir_all(place);
        }
        self.daemons.push(containerd());
        containerd_serves().await;
        self.daemons.push(kubelet());
        self.cluster.node_is_ready().await;
    }
}

/// Shims and what runs in containers: everything that is not a daemon of ours.
fn processes_of_containers() -> Vec<Pid> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").expect("/proc").flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<i32>() else { continue };
        let name = fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
        let groups = fs::read_to_string(entry.path().join("cgroup")).unwrap_or_default();
        let contained = groups.lines().any(|line| {
            let path = line.splitn(3, ':').nth(2).unwrap_or("/");
            path.len() > 1 && path != "/daemons" && !path.starts_with("/..")
        });
        let dead = fs::read_to_string(entry.path().join("stat")).is_ok_and(|stat| stat.contains(") Z "));
        if !dead && (contained || name.starts_with("containerd-shim")) {
            found.push(Pid::from_raw(pid));
        }
    }
    found
}

/// Runs a command to its end; fails the scenario with what it printed.
pub fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let printed = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(output.status.success(), "{command:?}: {}\n{printed}", output.status);
    printed
}

/// Starts a daemon that logs to a file of its name.
pub fn spawn(name: &'static str, program: &Path, arguments: &[&str]) -> (&'static str, Child) {
    let log = File::options().create(true).append(true).open(log_of(name)).expect("a log");
    let tools = target().join("tools/runtime");
    let mut command = Command::new(program);
    command
        .args(arguments)
        .env("PATH", format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", tools.display()))
        .env("OTEL_TRACES_EXPORTER", "none")
        .stdin(Stdio::null())
        .stdout(log.try_clone().expect("a log"))
        .stderr(log);
    let child = command.spawn().unwrap_or_else(|error| panic!("{}: {error}", program.display()));
    (name, child)
}

/// The log of a daemon.
pub fn log_of(name: &str) -> PathBuf {
    directory().join("logs").join(format!("{name}.log"))
}

fn kubernetes(name: &str) -> PathBuf {
    target().join("tools/kubernetes").join(name)
}

fn containerd() -> (&'static str, Child) {
    let hosts = directory().join("certs.d");
    for host in registry::HOSTS {
        fs::create_dir_all(hosts.join(host)).expect("a directory");
        let text = format!(
            "server = \"http://{host}\"\n[host.\"http://{host}\"]\ncapabilities = [\"pull\", \"resolve\"]\n"
        );
        fs::write(hosts.join(host).join("hosts.toml"), text).expect("a file");
    }
    let network = directory().join("net.d");
    fs::create_dir_all(&network).expect("a directory");
    let bridge = json!({"cniVersion": "1.0.0", "name": "e2e", "plugins": [{
        "type": "bridge", "bridge": "cni0", "isGateway": false, "ipMasq": false,
        "ipam": {
            "type": "host-local",
            "ranges": [[{"subnet": "10.99.0.0/24", "rangeStart": "10.99.0.10"}]],
            "routes": [{"dst": "0.0.0.0/0", "gw": ADDRESS}],
        },
    }]});
    fs::write(network.join("10-e2e.conflist"), bridge.to_string()).expect("a file");
    let config = format!(
        r#"version = 3
root = "/var/lib/containerd"
state = "/run/containerd"
[grpc]
address = "{CONTAINERD_SOCKET}"
[plugins.'io.containerd.cri.v1.images'.pinned_images]
sandbox = "{REGISTRY}/e2e/pause:v1"
[plugins.'io.containerd.cri.v1.images'.registry]
config_path = "{hosts}"
[plugins.'io.containerd.cri.v1.runtime']
# This machine's root may not lower anybody's.
restrict_oom_score_adj = true
[plugins.'io.containerd.cri.v1.runtime'.cni]
bin_dirs = ["/usr/lib/cni"]
conf_dir = "{network}"
"#,
        hosts = hosts.display(),
        network = network.display(),
    );
    let file = directory().join("containerd.toml");
    fs::write(&file, config).expect("a file");
    let program = target().join("tools/runtime/containerd");
    spawn("containerd", &program, &["--config", &file.display().to_string()])
}

/// Without a runtime kubelet ends; systemd would start it again.
async fn containerd_serves() {
    eventually("containerd's socket", || async {
        tokio::net::UnixStream::connect(CONTAINERD_SOCKET).await.ok()
    })
    .await;
}

fn kubelet() -> (&'static str, Child) {
    let config = json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1", "kind": "KubeletConfiguration",
        "authentication": {"anonymous": {"enabled": true}, "webhook": {"enabled": false}},
        "authorization": {"mode": "AlwaysAllow"},
        "cgroupDriver": "cgroupfs",
        // Machines of CI still have version 1.
        "failCgroupV1": false,
        "cgroupsPerQOS": false,
        "enforceNodeAllocatable": [],
        "failSwapOn": false,
        // Its default is made in /usr.
        "volumePluginDir": "/var/lib/kubelet/volume-plugins",
        "containerRuntimeEndpoint": format!("unix://{CONTAINERD_SOCKET}"),
        "syncFrequency": "10s",
        "nodeStatusReportFrequency": "10s",
    });
    let file = directory().join("kubelet.json");
    fs::write(&file, config.to_string()).expect("a file");
    let arguments = [
        format!("--config={}", file.display()),
        format!("--kubeconfig={}", directory().join("kubeconfig").display()),
        "--hostname-override=node-a".to_owned(),
        format!("--node-ip={ADDRESS}"),
        "--v=2".to_owned(),
    ];
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    spawn("kubelet", &kubernetes("kubelet"), &arguments)
}

/// A directory for what is made once.
pub fn directory_of(name: &str) -> PathBuf {
    directory().join(name)
}
