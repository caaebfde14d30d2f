//! Commands and flags.

use std::path::PathBuf;

use clap::ArgAction::SetTrue;
use clap::builder::FalseyValueParser;
use clap::{Args, Parser, Subcommand, ValueEnum};
use tracing::level_filters::LevelFilter;

use crate::cli::command_args::{
    CompletionArgs, ExportArgs, FsckArgs, GcArgs, InspectArgs, LoadArgs, ManArgs, MountArgs, PullArgs,
    ResolveArgs, RmArgs, SaveArgs, UmountArgs, VerifyArgs,
};
use crate::failure::Failure;
use crate::mount::locked::Lock;
use crate::node::config::{NodeConfig, NodeFlags, PARALLEL_DOWNLOADS, PullFlags, STALL_TIMEOUT};
use crate::node::credential_flags::CredentialFlags;
use crate::node::disk_flags::DiskFlags;
use crate::node::warm_flags::WarmFlags;
use crate::telemetry::logs::Format;

/// Mounts what an OCI registry holds (models, images, files) as read-only directories.
#[derive(Debug, Parser)]
#[command(name = "ocivol", version, max_term_width = 100)]
pub struct Cli {
    /// Flags of all commands.
    #[command(flatten)]
    pub common: Common,
    /// The command.
    #[command(subcommand)]
    pub command: Command,
}

/// Flags of all commands.
#[derive(Debug, Clone, Args)]
pub struct Common {
    /// The store [default: /var/lib/ocivol; without root ~/.local/share/ocivol]
    #[arg(long, global = true, env = "OCIVOL_ROOT", value_name = "DIR")]
    pub root: Option<PathBuf>,
    /// Mirrors, authorities and client certificates of registries, as containerd has them: DIR/REGISTRY/hosts.toml [default:
    /// /etc/containerd/certs.d, where it exists]; empty: none
    #[arg(long, global = true, env = "OCIVOL_HOSTS_DIR", value_name = "DIR")]
    pub hosts_dir: Option<PathBuf>,
    /// Mirrors in the hosts directory, with port, whose content may be read by everybody who may use this node: their registry is not
    /// asked whether it may; * is every mirror
    #[arg(
        long,
        global = true,
        env = "OCIVOL_AUTHORITATIVE_MIRRORS",
        value_name = "HOST[,HOST]",
        value_delimiter = ','
    )]
    pub authoritative_mirrors: Vec<String>,
    /// Registries that are spoken to without TLS
    #[arg(long, global = true, env = "OCIVOL_PLAIN_HTTP", value_name = "HOST[,HOST]", value_delimiter = ',')]
    pub plain_http: Vec<String>,
    /// Hosts, domains (*.example.com) and networks (10.1.0.0/16) that a node plugin connects to although their addresses are loopback
    /// ones, or private and named by a registry; and token servers of another domain than their registry, which get credentials
    #[arg(
        long,
        global = true,
        env = "OCIVOL_ALLOW_HOSTS",
        value_name = "HOST[,HOST]",
        value_delimiter = ','
    )]
    pub allow_hosts: Vec<String>,
    /// Directories below which image layouts on this node may lie, for references as oci-layout:/path; everybody may mount what is
    /// there [default: none for the node plugin, any for commands]
    #[arg(
        long = "oci-layout-dir",
        global = true,
        env = "OCIVOL_OCI_LAYOUT_DIRS",
        value_name = "DIR[,DIR]",
        value_delimiter = ','
    )]
    pub oci_layout_dirs: Vec<PathBuf>,
    /// Seconds without a byte after which a request counts as stalled
    #[arg(long, global = true, env = "OCIVOL_STALL_TIMEOUT", value_name = "SECONDS", default_value_t = STALL_TIMEOUT)]
    pub stall_timeout: u64,
    /// Blobs above 4 MiB downloaded at the same time from one registry, for each namespace
    #[arg(long, global = true, env = "OCIVOL_PARALLEL_DOWNLOADS", value_name = "N", default_value_t = PARALLEL_DOWNLOADS)]
    pub parallel_downloads: usize,
    /// Check that the uncompressed layers of images are what their configs promise
    #[arg(
        long,
        global = true,
        env = "OCIVOL_VERIFY_DIFF_IDS",
        value_parser = FalseyValueParser::new(),
        action = SetTrue
    )]
    pub verify_diff_ids: bool,
    /// Seconds after which a right to private content has to be shown to its registry again; 0: never
    #[arg(long, global = true, env = "OCIVOL_GRANT_TTL", value_name = "SECONDS", default_value_t = 0)]
    pub grant_ttl: u64,
    /// Ask the registry for each volume, also for what is public, whether it may be read
    #[arg(
        long,
        global = true,
        env = "OCIVOL_ALWAYS_VERIFY",
        value_parser = FalseyValueParser::new(),
        action = SetTrue
    )]
    pub always_verify: bool,
    /// Archives above this size are files before they are unpacked: they are resumed after a restart, and take the space of both
    /// meanwhile, as 4GiB [default: none]
    #[arg(long, global = true, env = "OCIVOL_SPOOL_ABOVE", value_name = "SIZE")]
    pub spool_above: Option<String>,
    /// Docker config with credentials [default: ~/.docker/config.json, and what podman, skopeo and buildah log in to]
    #[arg(long, global = true, env = "OCIVOL_DOCKER_CONFIG", value_name = "FILE")]
    pub docker_config: Option<PathBuf>,
    /// Do not wait for another command that has the store: fail
    #[arg(long, global = true, env = "OCIVOL_NO_WAIT", value_parser = FalseyValueParser::new(), action = SetTrue)]
    pub no_wait: bool,
    /// What is printed: text for people, JSON for programs
    #[arg(long, global = true, env = "OCIVOL_OUTPUT", value_enum, default_value_t = Output::Text)]
    pub output: Output,
    /// How log lines look
    #[arg(long, global = true, env = "OCIVOL_LOG_FORMAT", value_enum, default_value_t = Format::Text)]
    pub log_format: Format,
    /// Log more; twice for everything
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
    /// Flags about registries and pulls that are on the command line itself.
    #[arg(skip)]
    pub given: Vec<String>,
}

/// containerd's directory of hosts.
const HOSTS_DIR: &str = "/etc/containerd/certs.d";

/// How results are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people.
    Text,
    /// For programs; stable.
    Json,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Pull into the store and print the digest
    Pull(PullArgs),
    /// Pull, and mount read-only on a directory; with a command, only for that command
    Mount(MountArgs),
    /// Unmount what mount or the plugin mounted
    Umount(UmountArgs),
    /// Pull, and copy into a directory; needs no root
    Export(ExportArgs),
    /// Show manifest, family and files, and what of it is in the store; pulls no layer
    Inspect(InspectArgs),
    /// Print digest, family and size of what a reference is now; needs no store
    Resolve(ResolveArgs),
    /// List what the store holds
    Ls,
    /// Remove a name or a tree from the store, unless it is in use
    Rm(RmArgs),
    /// Take away what nothing needs
    Gc(GcArgs),
    /// Compare a reference in the store with its digests
    Verify(VerifyArgs),
    /// Compare the store with what is recorded of it
    Fsck(FsckArgs),
    /// Bring what an OCI archive, or an image layout in a directory, holds into the store, under its names and for everybody on the node
    Load(LoadArgs),
    /// Write an artifact as an OCI archive, byte by byte as its registry has it; of an index the manifest for one platform
    Save(SaveArgs),
    /// Show what the node plugin that holds the store does: its checks, its disk, its pulls; fails when it is not ready
    Status,
    /// Show the whole path: registry, plugin, kubelet, mount; in a temporary directory
    Demo,
    /// The CSI node plugin: what the DaemonSet runs
    Node(Box<NodeArgs>),
    /// Print a script that completes ocivol's commands and flags in a shell
    Completion(CompletionArgs),
    /// Write manual pages
    Man(ManArgs),
}

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
    /// Also allow targets below this directory that do not have kubelet's shape; for tests
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
        action = clap::ArgAction::Set
    )]
    pub anonymous: bool,
    /// Which registries and repositories pods may use: a list of {namespaces, allow, deny} in JSON [default: all]
    #[arg(long, env = "OCIVOL_PERMITS", value_name = "JSON", default_value = "")]
    pub permits: String,
    /// Tell pods in their events of pulls that take long, and of what registries warn of
    #[arg(long, env = "OCIVOL_POD_EVENTS", value_parser = FalseyValueParser::new(), action = SetTrue)]
    pub pod_events: bool,
    /// Accept access modes for writing and mount read-only anyway; for csi-sanity
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

impl Common {
    /// What is logged: the plugin tells what it does, commands only what is wrong.
    pub fn level(&self, is_node: bool) -> LevelFilter {
        match (self.verbose, is_node) {
            (0, false) => LevelFilter::ERROR,
            (0, true) => LevelFilter::INFO,
            (1, _) => LevelFilter::DEBUG,
            _ => LevelFilter::TRACE,
        }
    }

    /// The store's directory.
    ///
    /// # Errors
    /// When there is neither a flag nor a home directory, or the path is not absolute.
    pub fn root(&self) -> Result<PathBuf, Failure> {
        if let Some(root) = &self.root {
            return std::path::absolute(root).map_err(|error| Failure::usage(&format!("--root: {error}")));
        }
        if rustix::process::geteuid().is_root() && crate::cli::namespace::is_initial_user() {
            return Ok("/var/lib/ocivol".into());
        }
        std::env::home_dir()
            .map(|home| home.join(".local/share/ocivol"))
            .ok_or_else(|| Failure::usage("--root is needed: there is no home directory"))
    }

    /// The flags about registries and pulls.
    pub fn pulls(&self) -> PullFlags {
        PullFlags {
            hosts_dir: match &self.hosts_dir {
                None => Some(PathBuf::from(HOSTS_DIR)),
                Some(directory) => {
                    Some(directory.clone()).filter(|directory| !directory.as_os_str().is_empty())
                }
            },
            authoritative_mirrors: self.authoritative_mirrors.clone(),
            plain_http: self.plain_http.clone(),
            allow_hosts: self.allow_hosts.clone(),
            oci_layout_dirs: self.oci_layout_dirs.clone(),
            stall_timeout: self.stall_timeout,
            parallel_downloads: self.parallel_downloads,
            verify_diff_ids: self.verify_diff_ids,
            grant_ttl: self.grant_ttl,
            always_verify: self.always_verify,
            spool_above: self.spool_above.clone(),
        }
    }
}

impl NodeArgs {
    /// Checks all flags of the node plugin.
    ///
    /// # Errors
    /// The first flag that cannot be used.
    pub fn check(self, common: &Common) -> Result<NodeConfig, Failure> {
        let flags = NodeFlags {
            root: common.root()?,
            endpoint: self.endpoint,
            node_id: self.node_id,
            driver_name: self.driver_name,
            kubelet_dir: self.kubelet_dir,
            registration_dir: self.registration_dir,
            health_addr: self.health_addr,
            metrics_addr: self.metrics_addr,
            target_roots: self.target_root,
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
            },
            pulls: common.pulls(),
            warm: WarmFlags { budget: self.warm_budget, pin_budget: self.warm_pin_budget },
        };
        flags.check().map_err(|error| Failure::usage(&error.to_string()))
    }
}
