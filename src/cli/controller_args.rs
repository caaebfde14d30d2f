//! Flags of the controller.

use clap::ArgAction::SetTrue;
use clap::Args;
use clap::builder::FalseyValueParser;

use crate::controller::config::{ControllerConfig, ControllerFlags};
use crate::failure::Failure;
use crate::node::pull_flags::PullFlags;

/// Flags of `controller`.
#[derive(Debug, Args)]
pub struct ControllerArgs {
    /// The CSI socket, which external-provisioner has as its --csi-address
    #[arg(long, env = "CSI_ENDPOINT", default_value = "unix:///csi/csi.sock")]
    pub endpoint: String,
    /// The driver's name; equal to the CSIDriver object's
    #[arg(long, env = "OCIVOL_DRIVER_NAME", default_value = "csi.ocivol.dev")]
    pub driver_name: String,
    /// Where /healthz, /readyz and /metrics are served; empty: nowhere
    #[arg(long, env = "OCIVOL_HEALTH_ADDR", default_value = ":9810")]
    pub health_addr: String,
    /// Which registries and repositories claims may use: a list of {namespaces, allow, deny} in JSON [default: all]
    #[arg(long, env = "OCIVOL_PERMITS", value_name = "JSON", default_value = "")]
    pub permits: String,
    /// Ask registries without credentials where the class's secret does not help
    #[arg(
        long,
        env = "OCIVOL_ANONYMOUS",
        value_name = "BOOL",
        default_value_t = true,
        num_args = 0..=1,
        default_missing_value = "true",
        require_equals = true,
        action = clap::ArgAction::Set
    )]
    pub anonymous: bool,
    /// Resolve CachedArtifacts, once for all nodes, and sum up what the nodes have of them
    #[arg(long, env = "OCIVOL_CACHED_ARTIFACTS", value_parser = FalseyValueParser::new(), action = SetTrue)]
    pub cached_artifacts: bool,
    /// Label nodes that have a CachedArtifact with nodeLabel: artifact.ocivol.dev/NAME, with the first digits of its digest
    #[arg(long, env = "OCIVOL_NODE_LABELS", value_parser = FalseyValueParser::new(), action = SetTrue)]
    pub node_labels: bool,
    /// Take the taint DRIVER/agent-not-ready from nodes on which the driver is registered, and that have what has nodeLabel
    #[arg(long, env = "OCIVOL_STARTUP_TAINT", value_parser = FalseyValueParser::new(), action = SetTrue)]
    pub startup_taint: bool,
    /// For how many seconds it waits for these CachedArtifacts
    #[arg(long, env = "OCIVOL_STARTUP_TAINT_TIMEOUT", value_name = "SECONDS", default_value_t = 600)]
    pub startup_taint_timeout: u64,
}

impl ControllerArgs {
    /// Checks all flags of the controller, which asks registries as `pulls` say.
    ///
    /// # Errors
    /// The first flag that cannot be used.
    pub fn check(self, pulls: PullFlags) -> Result<ControllerConfig, Failure> {
        let flags = ControllerFlags {
            endpoint: self.endpoint,
            driver_name: self.driver_name,
            health_addr: self.health_addr,
            permits: self.permits,
            anonymous: self.anonymous,
            cached_artifacts: self.cached_artifacts,
            node_labels: self.node_labels,
            startup_taint: self.startup_taint,
            startup_taint_timeout: self.startup_taint_timeout,
            pulls,
        };
        flags.check().map_err(|error| Failure::usage(&error.to_string()))
    }
}
