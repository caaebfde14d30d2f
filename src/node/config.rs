//! All validation of flags and environment, before anything is opened or bound.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use reqwest::Url;

use crate::csi::registration;
use crate::mount::locked::Lock;
use crate::mount::target::Policy;
use crate::node::bad_flag::BadFlag;
use crate::node::credential_flags::CredentialFlags;
use crate::node::disk_flags::DiskFlags;
use crate::node::flag_values::{
    check_absolute, check_driver_name, check_socket_length, listener_address, socket_path,
};
use crate::node::pull_flags::PullFlags;
use crate::node::warm_flags::WarmFlags;
use crate::oci::reference::{InvalidReference, Reference};
use crate::registry::addresses::Addresses;
use crate::store::space::budget::{Budget, Level};
use crate::volume::credentials::CredentialSources;
use crate::volume::permits::Permits;
use crate::warm::budget::WarmBudget;
use crate::{pull, registry};

/// Everything `ocivol node` needs to know.
#[derive(Clone)]
pub struct NodeConfig {
    /// The store.
    pub root: PathBuf,
    /// The CSI socket.
    pub socket: PathBuf,
    /// The node's name.
    pub node_id: String,
    /// The driver's name.
    pub driver_name: String,
    /// Which paths are targets.
    pub policy: Policy,
    /// How to register; `None`: not at all.
    pub registration: Option<registration::RegistrationSettings>,
    /// Where health is served, and metrics if they have no address of their own; `None`: nowhere.
    pub health: Option<SocketAddr>,
    /// Where metrics are served instead, so that a network policy can open one of them alone.
    pub metrics: Option<SocketAddr>,
    /// Whether the cluster runs a controller.
    pub with_controller: bool,
    /// Accept access modes for writing, and mount read-only anyway.
    pub allow_writers: bool,
    /// Which flags of mounts are locked.
    pub lock: Lock,
    /// How registries are spoken to.
    pub registry: registry::transport::RegistrySettings,
    /// Bounds of pulls.
    pub pulls: pull::request::PullSettings,
    /// How much of its disk the store may take.
    pub budget: Budget,
    /// What was in use within this time is not collected.
    pub min_age: Duration,
    /// In what time all of the store is looked at again; not at all if not said.
    pub scrub: Option<Duration>,
    /// What is pulled at the start, and kept.
    pub pins: Vec<Reference>,
    /// Where credentials come from.
    pub credentials: CredentialSources,
    /// Whether events of pods are written.
    pub pod_events: bool,
    /// Whether what CachedArtifacts want is brought.
    pub cached_artifacts: bool,
    /// Where traces go; nowhere if not said.
    pub otlp_endpoint: Option<String>,
    /// Which registries pods may use.
    pub permits: Permits,
    /// How much is read into memory before pods ask for it; nothing if not said.
    pub warm: Option<WarmBudget>,
}

/// Flags of `ocivol node`, as they were given.
#[derive(Debug, Clone)]
pub struct NodeFlags {
    /// `--root`
    pub root: PathBuf,
    /// `--endpoint`
    pub endpoint: String,
    /// `--node-id`
    pub node_id: String,
    /// `--driver-name`
    pub driver_name: String,
    /// `--kubelet-dir`
    pub kubelet_dir: PathBuf,
    /// `--registration-dir`; `None`: kubelet's.
    pub registration_dir: Option<String>,
    /// `--health-addr`
    pub health_addr: String,
    /// `--metrics-addr`
    pub metrics_addr: String,
    /// `--target-root`
    pub target_roots: Vec<PathBuf>,
    /// `--with-controller`
    pub with_controller: bool,
    /// `--allow-writer-modes`
    pub allow_writers: bool,
    /// `--mount-lock`
    pub lock: Lock,
    /// Flags about the disk.
    pub disk: DiskFlags,
    /// `--scrub-days`
    pub scrub_days: u32,
    /// `--pin`
    pub pins: Vec<String>,
    /// `--otlp-endpoint`
    pub otlp_endpoint: String,
    /// `--prepull-bytes-per-second`
    pub prepull_bytes_per_second: Option<String>,
    /// Flags about credentials.
    pub credentials: CredentialFlags,
    /// Flags about registries and pulls.
    pub pulls: PullFlags,
    /// Flags about the page cache.
    pub warm: WarmFlags,
}

/// Bytes of a node ID that every cluster accepts.
const NODE_ID_LIMIT: usize = 253;

impl NodeFlags {
    /// Checks every flag.
    ///
    /// # Errors
    /// [`BadFlag`] names the first flag that cannot be used, and says why.
    pub fn check(self) -> Result<NodeConfig, BadFlag> {
        let socket = socket_path(&self.endpoint)?;
        check_socket_length("--endpoint", &socket)?;
        if self.node_id.is_empty() || self.node_id.len() > NODE_ID_LIMIT {
            let reason = "it must be the node's name: set it, or KUBE_NODE_NAME (spec.nodeName)".to_owned();
            return Err(BadFlag { flag: "--node-id", value: self.node_id, reason });
        }
        check_driver_name(&self.driver_name)?;
        check_absolute("--root", &self.root)?;
        check_absolute("--kubelet-dir", &self.kubelet_dir)?;
        for root in &self.target_roots {
            check_absolute("--target-root", root)?;
        }
        let directory = match self.registration_dir.as_deref() {
            Some("") => None,
            Some(directory) => Some(PathBuf::from(directory)),
            None => Some(self.kubelet_dir.join("plugins_registry")),
        };
        let registration = match directory {
            Some(directory) => {
                check_absolute("--registration-dir", &directory)?;
                let endpoint = if socket.starts_with(&self.kubelet_dir) {
                    &socket
                } else {
                    // In a container the socket's directory is kubelet's, under another name.
                    &self
                        .kubelet_dir
                        .join("plugins")
                        .join(&self.driver_name)
                        .join(socket.file_name().unwrap_or_default())
                };
                check_socket_length("--kubelet-dir", endpoint)?;
                let settings = registration::RegistrationSettings {
                    directory,
                    driver_name: self.driver_name.clone(),
                    endpoint: endpoint.to_string_lossy().into_owned(),
                };
                check_socket_length("--registration-dir", &settings.socket())?;
                Some(settings)
            }
            None => None,
        };
        let (registry, mut pulls) = self.pulls.check(Addresses::default())?;
        pulls.quota = self.disk.quota()?;
        pulls.prepull_bytes_per_second =
            self.prepull_bytes_per_second.map(prepull_rate).transpose()?.flatten();
        let (pod_events, cached_artifacts) = (self.credentials.pod_events, self.credentials.cached_artifacts);
        let (credentials, permits) = self.credentials.check()?;
        let pins = self.pins.into_iter().map(check_pin).collect::<Result<_, _>>()?;
        Ok(NodeConfig {
            root: self.root,
            socket,
            node_id: self.node_id,
            driver_name: self.driver_name,
            policy: Policy { pods: Some(self.kubelet_dir.join("pods")), roots: self.target_roots },
            registration,
            health: listener_address("--health-addr", self.health_addr)?,
            metrics: listener_address("--metrics-addr", self.metrics_addr)?,
            with_controller: self.with_controller,
            allow_writers: self.allow_writers,
            lock: self.lock,
            registry,
            pulls,
            min_age: Duration::from_secs(self.disk.gc_min_age),
            budget: self.disk.check()?,
            scrub: (self.scrub_days > 0).then(|| Duration::from_secs(u64::from(self.scrub_days) * 24 * 3600)),
            pins,
            credentials,
            pod_events,
            cached_artifacts,
            otlp_endpoint: otlp_endpoint(self.otlp_endpoint)?,
            permits,
            warm: self.warm.check()?,
        })
    }
}

/// The address of a collector; none for an empty value.
fn otlp_endpoint(value: String) -> Result<Option<String>, BadFlag> {
    let has_user = |url: &Url| !url.username().is_empty() || url.password().is_some();
    let is_address = |url: &Url| url.scheme() == "http" && url.host().is_some() && !has_user(url);
    match Url::parse(&value) {
        _ if value.is_empty() => Ok(None),
        Ok(url) if is_address(&url) => Ok(Some(value)),
        _ => {
            let reason =
                "it is no address of a collector of OTLP over gRPC, as http://otel-collector.monitoring:4317"
                    .to_owned();
            Err(BadFlag { flag: "--otlp-endpoint", value, reason })
        }
    }
}

/// Less than this many bytes per second look like a registry that is dead.
const SLOWEST_PREPULL: u64 = 1_000_000;

/// Bytes per second; none for an empty value.
fn prepull_rate(value: String) -> Result<Option<u64>, BadFlag> {
    match value.parse() {
        _ if value.is_empty() => Ok(None),
        Ok(Level::Count(rate)) if rate >= SLOWEST_PREPULL => Ok(Some(rate)),
        _ => {
            let reason = "it is no number of bytes, as 100MiB, of at least 1MB".to_owned();
            Err(BadFlag { flag: "--prepull-bytes-per-second", value, reason })
        }
    }
}

fn check_pin(value: String) -> Result<Reference, BadFlag> {
    value.parse().map_err(|error: InvalidReference| {
        let reason = error.to_string();
        BadFlag { flag: "--pin", value, reason }
    })
}

#[cfg(test)]
mod tests {
    use std::net::Ipv6Addr;
    use std::path::Path;

    use super::*;

    fn flags() -> NodeFlags {
        NodeFlags {
            root: "/var/lib/ocivol".into(),
            endpoint: "unix:///csi/csi.sock".into(),
            node_id: "node-1".into(),
            driver_name: "csi.ocivol.dev".into(),
            kubelet_dir: "/var/lib/kubelet".into(),
            registration_dir: None,
            health_addr: ":9808".into(),
            metrics_addr: String::new(),
            target_roots: Vec::new(),
            with_controller: false,
            allow_writers: false,
            lock: Lock::All,
            disk: DiskFlags::default(),
            scrub_days: 30,
            pins: Vec::new(),
            otlp_endpoint: String::new(),
            prepull_bytes_per_second: None,
            credentials: CredentialFlags::default(),
            warm: WarmFlags::default(),
            pulls: PullFlags {
                hosts_dir: None,
                authoritative_mirrors: Vec::new(),
                plain_http: Vec::new(),
                allow_hosts: Vec::new(),
                oci_layout_dirs: Vec::new(),
                stall_timeout: 30,
                parallel_downloads: 4,
                verify_diff_ids: false,
                grant_ttl: 0,
                always_verify: false,
                spool_above: None,
            },
        }
    }

    #[test]
    fn traces_go_to_an_address() {
        let to = |value: &str| {
            NodeFlags { otlp_endpoint: value.to_owned(), ..flags() }
                .check()
                .map(|config| config.otlp_endpoint)
        };
        assert_eq!(to("").ok(), Some(None));
        let address = "http://otel-collector.monitoring:4317";
        assert_eq!(to(address).ok(), Some(Some(address.to_owned())));
        for wrong in [
            "otel-collector:4317",
            "https://collector:4317",
            "http://",
            "http://user@collector:4317",
            "http://user:secret@collector:4317",
        ] {
            assert_eq!(to(wrong).expect_err(wrong).flag, "--otlp-endpoint");
        }
    }

    #[test]
    fn a_rate_is_one_that_no_dead_registry_has() {
        let rate = |value: &str| {
            let flags = NodeFlags { prepull_bytes_per_second: Some(value.to_owned()), ..flags() };
            flags.check().map(|config| config.pulls.prepull_bytes_per_second)
        };
        assert_eq!(rate("").ok(), Some(None));
        assert_eq!(rate("100MiB").ok(), Some(Some(100 << 20)));
        assert_eq!(rate("1000000").ok(), Some(Some(1_000_000)));
        for wrong in ["999999", "900KiB", "50%", "fast", "0"] {
            assert_eq!(rate(wrong).expect_err(wrong).flag, "--prepull-bytes-per-second");
        }
    }

    #[test]
    fn defaults_are_kubelets_paths() {
        let config = flags().check().expect("valid");
        let registration = config.registration.expect("registers");
        assert_eq!(registration.endpoint, "/var/lib/kubelet/plugins/csi.ocivol.dev/csi.sock");
        let socket = "/var/lib/kubelet/plugins_registry/csi.ocivol.dev-reg.sock";
        assert_eq!(registration.socket(), Path::new(socket));
        assert_eq!(config.health, Some((Ipv6Addr::UNSPECIFIED, 9808).into()));
        assert_eq!(config.metrics, None);
    }

    #[test]
    fn listeners_have_addresses_of_both_families() {
        for (text, address) in [
            ("10.1.2.3:9809", "10.1.2.3:9809"),
            ("[10.1.2.3]:9809", "10.1.2.3:9809"),
            ("[fd00::1]:9809", "[fd00::1]:9809"),
            (":9809", "[::]:9809"),
        ] {
            let config = NodeFlags { metrics_addr: text.into(), ..flags() }.check().expect(text);
            assert_eq!(config.metrics.map(|it| it.to_string()).as_deref(), Some(address), "{text}");
        }
        for text in ["9809", "fd00::1:9809", "[]:9809", "[10.1.2.3]", "10.1.2.3:", "localhost:9809", ":65536"]
        {
            let error = NodeFlags { metrics_addr: text.into(), ..flags() }.check().err().expect(text);
            assert_eq!((error.flag, error.value.as_str()), ("--metrics-addr", text));
        }
    }

    #[test]
    fn a_socket_below_kubelets_directory_is_registered_as_it_is() {
        let endpoint = "unix:/var/lib/kubelet/plugins/x/csi.sock".to_owned();
        let config = NodeFlags { endpoint, ..flags() }.check().expect("valid");
        let registered = config.registration.expect("registers").endpoint;
        assert_eq!(registered, "/var/lib/kubelet/plugins/x/csi.sock");
    }

    #[test]
    fn what_cannot_work_is_refused_with_the_flags_name() {
        let disk = |change: fn(&mut DiskFlags)| {
            let mut disk = DiskFlags::default();
            change(&mut disk);
            NodeFlags { disk, ..flags() }
        };
        let table: [(&str, NodeFlags); 15] = [
            ("--gc-start", disk(|disk| disk.gc_start = "80 percent".into())),
            ("--gc-stop", disk(|disk| disk.gc_stop = "81%".into())),
            ("--keep-free", disk(|disk| disk.keep_free = "-1".into())),
            ("--endpoint", NodeFlags { endpoint: "tcp://0.0.0.0:1".into(), ..flags() }),
            ("--endpoint", NodeFlags { endpoint: "unix://csi.sock".into(), ..flags() }),
            ("--endpoint", NodeFlags { endpoint: "unix:///csi/socket".into(), ..flags() }),
            ("--endpoint", NodeFlags { endpoint: format!("unix:///{}.sock", "x".repeat(110)), ..flags() }),
            ("--node-id", NodeFlags { node_id: String::new(), ..flags() }),
            ("--driver-name", NodeFlags { driver_name: "9.example".into(), ..flags() }),
            ("--driver-name", NodeFlags { driver_name: "a".repeat(64), ..flags() }),
            ("--driver-name", NodeFlags { driver_name: "a/../b".into(), ..flags() }),
            ("--registration-dir", NodeFlags { registration_dir: Some("relative".into()), ..flags() }),
            ("--kubelet-dir", NodeFlags { kubelet_dir: format!("/{}", "k".repeat(90)).into(), ..flags() }),
            ("--health-addr", NodeFlags { health_addr: "localhost".into(), ..flags() }),
            ("--root", NodeFlags { root: "/var/../etc".into(), ..flags() }),
        ];
        for (flag, flags) in table {
            let error = flags.check().err().expect(flag);
            assert_eq!(error.flag, flag, "{error}");
        }
        let bad_host = PullFlags { plain_http: vec!["http://r:5000".into()], ..flags().pulls };
        assert!(bad_host.check(Addresses::default()).is_err());
        let bad_host = PullFlags { allow_hosts: vec!["https://s3.internal".into()], ..flags().pulls };
        assert!(bad_host.check(Addresses::default()).is_err());
        let unregistered = NodeFlags { registration_dir: Some(String::new()), ..flags() };
        assert!(unregistered.check().expect("valid").registration.is_none());
    }
}
