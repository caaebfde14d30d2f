//! The plugin's container as the rendered DaemonSet describes it: arguments, environment, and a mount namespace made of
//! its volume mounts.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{ConfigMap, Container, PodSpec};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use serde::de::DeserializeOwned;

use super::node::BINARY;

const NONE: Option<&str> = None;

/// What kubelet mounts at /etc/hosts of a pod, but for the pod's own line (pkg/kubelet/kubelet_pods.go).
const HOSTS: &str =
    "# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n";

/// Where that is.
fn hosts_of(root: &Path) -> PathBuf {
    root.with_file_name("hosts")
}

/// What is /etc on the node. The machine's own is left alone.
pub fn etc_of(root: &Path) -> PathBuf {
    root.with_file_name("etc")
}

/// What a volume mount of the container is.
struct Bind {
    host: PathBuf,
    container: PathBuf,
    bidirectional: bool,
}

/// The object of `kind` in the rendered manifests.
pub fn rendered<T: DeserializeOwned>(kind: &str) -> T {
    let text = include_str!("../../manifests/install.yaml");
    serde_yaml_ng::Deserializer::from_str(text)
        .map(|document| <serde_json::Value as serde::Deserialize>::deserialize(document).expect("YAML"))
        .find(|object| object["kind"] == kind)
        .map(|object| serde_json::from_value(object).expect(kind))
        .expect(kind)
}

/// Starts the container on this mount namespace's node. `root` is a directory for its root, `arguments` and `env` are
/// what the chart's `extraArgs` and `extraEnv` would add, `config_maps` further volumes: a directory of the node that
/// holds what is in the ConfigMap, and where the container has it.
pub fn start(
    root: &Path,
    arguments: &[String],
    env: &BTreeMap<String, String>,
    config_maps: &[(PathBuf, PathBuf)],
    log: std::fs::File,
) -> Child {
    let pod = rendered::<DaemonSet>("DaemonSet").spec.expect("a spec").template.spec.expect("a pod");
    let container = pod.containers[0].clone();
    let mut binds = binds(&pod, &container, &etc_of(root));
    binds.extend(config_maps.iter().map(|(host, container)| Bind {
        host: host.clone(),
        container: container.clone(),
        bidirectional: false,
    }));
    std::fs::create_dir_all(root).expect("a directory");
    std::fs::write(hosts_of(root), HOSTS).expect("a file");
    let mut command = Command::new("/ocivol");
    command.args(container.args.clone().unwrap_or_default()).args(arguments);
    command.env_clear().env("PATH", "/usr/bin").envs(environment(&container)).envs(env);
    command.stdin(std::process::Stdio::null()).stdout(std::process::Stdio::null()).stderr(log);
    // The thread's namespace and root are what the process gets.
    let root = root.to_owned();
    let child = std::thread::spawn(move || {
        enter(&root, &binds);
        command.spawn().expect("the container starts")
    });
    child.join().expect("no panic")
}

fn environment(container: &Container) -> BTreeMap<String, String> {
    let maps = container.env_from.iter().flatten().map(|source| {
        let name = &source.config_map_ref.as_ref().expect("a ConfigMap").name;
        let map: ConfigMap = rendered("ConfigMap");
        assert_eq!(map.metadata.name.as_ref(), Some(name), "there is one");
        map.data.unwrap_or_default()
    });
    let variables = container.env.iter().flatten().map(|variable| {
        let field = variable.value_from.as_ref().and_then(|from| from.field_ref.as_ref());
        let value = match (&variable.value, field.map(|field| field.field_path.as_str())) {
            (Some(value), None) => value.clone(),
            (None, Some("spec.nodeName")) => "node-1".to_owned(),
            other => panic!("{}: {other:?} is not known here", variable.name),
        };
        (variable.name.clone(), value)
    });
    // What the container says itself wins.
    maps.flatten().chain(variables).collect()
}

fn binds(pod: &PodSpec, container: &Container, etc: &Path) -> Vec<Bind> {
    let volumes = pod.volumes.as_ref().expect("volumes");
    let mounts = container.volume_mounts.as_ref().expect("mounts").iter();
    mounts
        .map(|mount| {
            let volume = volumes.iter().find(|volume| volume.name == mount.name).expect("its volume");
            let host = volume.host_path.as_ref().expect("a host path");
            let path = PathBuf::from(&host.path);
            let path = path.strip_prefix("/etc").map_or_else(|_| path.clone(), |rest| etc.join(rest));
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
    // Never opened: another test that forks now would hold it open for writing, and the root could not become read-only.
    let bind_file = |from: &Path, to: &Path| {
        let regular = rustix::fs::FileType::RegularFile;
        rustix::fs::mknodat(rustix::fs::CWD, to, regular, rustix::fs::Mode::RUSR, 0).expect("a file");
        mount(Some(from), to, NONE, MsFlags::MS_BIND, NONE).expect("a file of the container");
    };
    bind_file(Path::new(BINARY), &root.join("ocivol"));
    std::fs::create_dir_all(root.join("etc")).expect("a directory");
    bind_file(&hosts_of(root), &root.join("etc/hosts"));
    // The image holds a static binary and certificates; this one is linked to the machine's libraries.
    for path in ["/lib", "/lib64", "/usr/lib", "/etc/ssl", "/proc", "/dev"] {
        if Path::new(path).is_dir() {
            bind(Path::new(path), &inside(Path::new(path)));
        }
    }
    let read_only = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY;
    mount(NONE, root, NONE, read_only, NONE).expect("a read-only root");
    std::os::unix::fs::chroot(root).expect("root");
    std::env::set_current_dir("/").expect("a directory");
}
