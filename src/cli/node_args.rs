//! Flags of the node plugin.

use std::path::PathBuf;

use clap::ArgAction::SetTrue;
use clap::builder::FalseyValueParser;
use clap::{Args, ValueEnum};

use crate::failure::Failure;
use crate::mount::locked::Lock;
use crate::node::config::{NodeConfig, NodeFlags};
use crate::node::credential_flags::CredentialFlags;
use crate::node::disk_flags::DiskFlags;
use crate::node::pull_flags::PullFlags;
use crate::node::warm_flags::WarmFlags;

/// Flags of `node`.
#[derive(Debug, Args)]
pub struct NodeArgs {
    /// The CSI socket
    #[arg(long, env = "CSI_ENDPOINT", default_value = "unix:///csi/csi.sock")]
    pub endpoint: String,
    /// The node's name, as the cluster knows it
    #[arg(long, env = "KUBE_NODE_NAME", default_value = "")]
    pub node_id: String,
    /// The driver's name; equal to the CSIDriver object's
    #[arg(long, env = "OCIVOL_DRIVER_NAME", default_value = "csi.ocivol.dev")]
    pub driver_name: String,
    /// kubelet's directory
    #[arg(long, env = "OCIVOL_KUBELET_DIR", default_value = "/var/lib/kubelet")]
    pub kubelet_dir: PathBuf,
    /// Where to register with kubelet.
    #[arg(
        long,
        env = "OCIVOL_REGISTRATION_DIR",
        value_name = "DIR",
        help = "Where to register with kubelet; empty: do not [default: <kubelet-dir>/plugins_registry]"
    )]
    pub registration_dir: Option<String>,
    /// Where /healthz and /readyz are served; empty: nowhere
    #[arg(long, env = "OCIVOL_HEALTH_ADDR", default_value = ":9808")]
    pub health_addr: String,
    /// Where /metrics is served, as :9809 or 10.1.2.3:9809; empty: beside /healthz
    #[arg(long, env = "OCIVOL_METRICS_ADDR", default_value = "")]
    pub metrics_addr: String,
    /// Also allow targets below this directory that do not have kubelet's shape
    #[arg(long, env = "OCIVOL_TARGET_ROOT", value_name = "DIR")]
    pub target_root: Vec<PathBuf>,
    /// Flags of a volume's mount that no container can clear; readOnly is for nodes whose runc is older than 1.2
    #[arg(long, env = "OCIVOL_MOUNT_LOCK", value_enum, default_value_t = MountLock::All)]
    pub mount_lock: MountLock,
    /// Collect what is unused when so much of the store's disk is used: a percentage, or bytes as 80GiB
    #[arg(long, env = "OCIVOL_GC_START", value_name = "LEVEL", default_value = "80%")]
    pub gc_start: String,
    /// Collect until no more than this is used
    #[arg(long, env = "OCIVOL_GC_STOP", value_name = "LEVEL", default_value = "75%")]
    pub gc_stop: String,
    /// Bytes of the disk that pulls leave free
    #[arg(long, env = "OCIVOL_KEEP_FREE", value_name = "LEVEL", default_value = "15%")]
    pub keep_free: String,
    /// Inodes of the disk that pulls leave free: a percentage, or a number
    #[arg(long, env = "OCIVOL_KEEP_FREE_INODES", value_name = "LEVEL", default_value = "8%")]
    pub keep_free_inodes: String,
    /// Seconds for which what was in use is not collected: other mount namespaces may still have it mounted
    #[arg(long, env = "OCIVOL_GC_MIN_AGE", value_name = "SECONDS", default_value_t = 600)]
    pub gc_min_age: u64,
    /// Bytes of content that one namespace may have on the node and no other uses, as 40GiB [default: no bound]
    #[arg(long, env = "OCIVOL_QUOTA_BYTES", value_name = "SIZE")]
    pub quota_bytes: Option<String>,
    /// The same in files and directories
    #[arg(long, env = "OCIVOL_QUOTA_INODES", value_name = "N")]
    pub quota_inodes: Option<u64>,
    /// The same in trees: each manifest, and each other choice of its files, is one
    #[arg(long, env = "OCIVOL_QUOTA_TREES", value_name = "N")]
    pub quota_trees: Option<u64>,
    /// Memory that is filled with cached models before their pods read them: a percentage of the node's, or bytes; 0: none
    #[arg(long, env = "OCIVOL_WARM_BUDGET", value_name = "LEVEL", default_value = "80%")]
    pub warm_budget: String,
    /// Memory in which volumes with warm: pinned are locked; a namespace may lock as much of it as it leaves
    #[arg(long, env = "OCIVOL_WARM_PIN_BUDGET", value_name = "LEVEL", default_value = "0")]
    pub warm_pin_budget: String,
    /// Days in which all of the store is compared with what is recorded of it, slowly; 0: never
    #[arg(long, env = "OCIVOL_SCRUB_DAYS", value_name = "DAYS", default_value_t = 30)]
    pub scrub_days: u32,
    /// Pull this reference at the start, and keep it; may be given several times
    #[arg(long, env = "OCIVOL_PINS", value_name = "REF", value_delimiter = ',')]
    pub pin: Vec<String>,
    /// Use the credentials in a volume's nodePublishSecretRef
    #[arg(
        long,
        env = "OCIVOL_VOLUME_SECRETS",
        value_name = "BOOL",
        default_value_t = true,
        num_args = 0..=1,
        default_missing_value = "true",
        require_equals = true,
        action = clap::ArgAction::Set
    )]
    pub volume_secrets: bool,
    /// Show tokens of pods' service accounts to registries: a list of {registries, audience, user, exchangeURL} in JSON
    #[arg(long, env = "OCIVOL_SERVICE_ACCOUNT_TOKENS", value_name = "JSON", default_value = "")]
    pub service_account_tokens: String,
    /// Use pods' imagePullSecrets, read through the Kubernetes API
    #[arg(long, env = "OCIVOL_IMAGE_PULL_SECRETS", value_parser = FalseyValueParser::new(), action = SetTrue)]
    pub image_pull_secrets: bool,
    /// kubelet's CredentialProviderConfig, a file or a directory
    #[arg(long, env = "OCIVOL_IMAGE_CREDENTIAL_PROVIDER_CONFIG", value_name = "PATH")]
    pub image_credential_provider_config: Option<PathBuf>,
    /// Where the programs are that it names
    #[arg(long, env = "OCIVOL_IMAGE_CREDENTIAL_PROVIDER_BIN_DIR", value_name = "DIR")]
    pub image_credential_provider_bin_dir: Option<PathBuf>,
    /// A Docker config whose credentials every pod of the node may use
    #[arg(long, env = "OCIVOL_NODE_DOCKER_CONFIG", value_name = "FILE")]
    pub node_docker_config: Option<PathBuf>,
    /// A credential helper that the node's Docker config may name, with its program; may be given several times
    #[arg(long, env = "OCIVOL_CREDENTIAL_HELPERS", value_name = "NAME=PATH", value_delimiter = ',')]
    pub credential_helper: Vec<String>,
    /// Ask registries without credentials where no others help
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
    /// Which registries and repositories pods may use: a list of {namespaces, allow, deny} in JSON [default: all]
    #[arg(long, env = "OCIVOL_PERMITS", value_name = "JSON", default_value = "")]
    pub permits: String,
    /// Tell pods in their events of pulls that take long, and of what registries warn of
    #[arg(long, env = "OCIVOL_POD_EVENTS", value_parser = FalseyValueParser::new(), action = SetTrue)]
    pub pod_events: bool,
    /// Pull what CachedArtifacts want to be on this node, keep it, and say so in the node's NodeArtifacts
    #[arg(long, env = "OCIVOL_CACHED_ARTIFACTS", value_parser = FalseyValueParser::new(), action = SetTrue)]
    pub cached_artifacts: bool,
    /// Send traces to this collector (OTLP over gRPC, without TLS); empty: to none
    #[arg(long, env = "OCIVOL_OTLP_ENDPOINT", value_name = "URL", default_value = "")]
    pub otlp_endpoint: String,
    /// Bytes per second with which all CachedArtifacts together are pulled, as 100MiB; a pod that waits for one is not held back
    #[arg(long, env = "OCIVOL_PREPULL_BYTES_PER_SECOND", value_name = "BYTES")]
    pub prepull_bytes_per_second: Option<String>,
    /// Say that the cluster runs ocivol controller, as all instances of a driver have to
    #[arg(long, env = "OCIVOL_WITH_CONTROLLER", value_parser = FalseyValueParser::new(), action = SetTrue)]
    pub with_controller: bool,
    /// Accept access modes for writing and mount read-only anyway: csi-sanity asks for them
    #[arg(long, env = "OCIVOL_ALLOW_WRITER_MODES", value_parser = FalseyValueParser::new(), action = SetTrue)]
    pub allow_writer_modes: bool,
}

/// Which flags of mounts are locked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum MountLock {
    /// ro, nosuid, nodev, and noexec unless the volume has exec
    All,
    /// Only ro
    #[value(name = "readOnly")]
    ReadOnly,
}

impl NodeArgs {
    /// Checks all flags of the node plugin, whose store is at `root` and which pulls as `pulls` say.
    ///
    /// # Errors
    /// The first flag that cannot be used.
    pub fn check(self, root: PathBuf, pulls: PullFlags) -> Result<NodeConfig, Failure> {
        let flags = NodeFlags {
            root,
            endpoint: self.endpoint,
            node_id: self.node_id,
            driver_name: self.driver_name,
            kubelet_dir: self.kubelet_dir,
            registration_dir: self.registration_dir,
            health_addr: self.health_addr,
            metrics_addr: self.metrics_addr,
            warm: WarmFlags { budget: self.warm_budget, pin_budget: self.warm_pin_budget },
            target_roots: self.target_root,
            with_controller: self.with_controller,
            allow_writers: self.allow_writer_modes,
            lock: match self.mount_lock {
                MountLock::All => Lock::All,
                MountLock::ReadOnly => Lock::ReadOnly,
            },
            disk: DiskFlags {
                gc_start: self.gc_start,
                gc_stop: self.gc_stop,
                keep_free: self.keep_free,
                keep_free_inodes: self.keep_free_inodes,
                gc_min_age: self.gc_min_age,
                quota_bytes: self.quota_bytes,
                quota_inodes: self.quota_inodes,
                quota_trees: self.quota_trees,
            },
            scrub_days: self.scrub_days,
            pins: self.pin,
            otlp_endpoint: self.otlp_endpoint,
            prepull_bytes_per_second: self.prepull_bytes_per_second,
            credentials: CredentialFlags {
                volume_secrets: self.volume_secrets,
                service_account_tokens: self.service_account_tokens,
                image_pull_secrets: self.image_pull_secrets,
                provider_config: self.image_credential_provider_config,
                provider_bin_dir: self.image_credential_provider_bin_dir,
                node_docker_config: self.node_docker_config,
                helpers: self.credential_helper,
                anonymous: self.anonymous,
                permits: self.permits,
                pod_events: self.pod_events,
                cached_artifacts: self.cached_artifacts,
            },
            pulls,
        };
        flags.check().map_err(|error| Failure::usage(&error.to_string()))
    }
}
