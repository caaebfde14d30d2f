//! All validation of the controller's flags, before anything is bound.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use crate::kube::cluster::Cluster;
use crate::node::bad_flag::BadFlag;
use crate::node::flag_values::{check_driver_name, check_socket_length, listener_address, socket_path};
use crate::node::pull_flags::PullFlags;
use crate::prepull::nodes::{NodeMarks, StartupTaint};
use crate::registry::addresses::Addresses;
use crate::registry::transport::RegistrySettings;
use crate::volume::permits::Permits;

/// Seconds without a byte after which a request counts as stalled, at most: a claim is worked on for 25.
const STALL_TIMEOUT: u64 = 8;

/// Everything `ocivol controller` needs to know.
#[derive(Clone)]
pub struct ControllerConfig {
    /// The CSI socket.
    pub socket: PathBuf,
    /// The driver's name.
    pub driver_name: String,
    /// Where health and metrics are served; `None`: nowhere.
    pub health: Option<SocketAddr>,
    /// How registries are spoken to.
    pub registry: RegistrySettings,
    /// Which registries claims may use.
    pub permits: Permits,
    /// Whether registries are asked without credentials.
    pub anonymous: bool,
    /// The cluster whose CachedArtifacts are resolved and summed up; of none if not said.
    pub cached_artifacts: Option<Cluster>,
    /// What is changed of its nodes.
    pub marks: NodeMarks,
}

/// Flags of `ocivol controller`, as they were given.
#[derive(Debug, Clone)]
pub struct ControllerFlags {
    /// `--endpoint`
    pub endpoint: String,
    /// `--driver-name`
    pub driver_name: String,
    /// `--health-addr`
    pub health_addr: String,
    /// `--permits`
    pub permits: String,
    /// `--anonymous`
    pub anonymous: bool,
    /// `--cached-artifacts`
    pub cached_artifacts: bool,
    /// `--node-labels`
    pub node_labels: bool,
    /// `--startup-taint`
    pub startup_taint: bool,
    /// `--startup-taint-timeout`
    pub startup_taint_timeout: u64,
    /// Flags about registries.
    pub pulls: PullFlags,
}

impl ControllerFlags {
    /// Checks every flag.
    ///
    /// # Errors
    /// [`BadFlag`] names the first flag that cannot be used, and says why.
    pub fn check(self) -> Result<ControllerConfig, BadFlag> {
        let socket = socket_path(&self.endpoint)?;
        check_socket_length("--endpoint", &socket)?;
        check_driver_name(&self.driver_name)?;
        let permits = Permits::parse(&self.permits);
        let permits =
            permits.map_err(|reason| BadFlag { flag: "--permits", value: self.permits.clone(), reason })?;
        // A mirror that says nothing is given up while there is time for the next.
        let stall_timeout = self.pulls.stall_timeout.min(STALL_TIMEOUT);
        let pulls = PullFlags { stall_timeout, ..self.pulls };
        let cluster = self.cached_artifacts.then(Cluster::in_cluster).transpose().map_err(|error| {
            BadFlag { flag: "--cached-artifacts", value: "true".to_owned(), reason: error.to_string() }
        })?;
        for (flag, is_set) in [("--node-labels", self.node_labels), ("--startup-taint", self.startup_taint)] {
            if is_set && cluster.is_none() {
                let reason = "it is about CachedArtifacts: set --cached-artifacts, too".to_owned();
                return Err(BadFlag { flag, value: "true".to_owned(), reason });
            }
        }
        let taint = self.startup_taint.then(|| StartupTaint {
            driver: self.driver_name.clone(),
            longest: Duration::from_secs(self.startup_taint_timeout),
        });
        Ok(ControllerConfig {
            socket,
            driver_name: self.driver_name,
            health: listener_address("--health-addr", self.health_addr)?,
            // As the plugin on a node, and not as a command: who writes a claim may have a part in the reference.
            registry: pulls.check(Addresses::default())?.0,
            permits,
            anonymous: self.anonymous,
            cached_artifacts: cluster,
            marks: NodeMarks { labels: self.node_labels, taint },
        })
    }
}
