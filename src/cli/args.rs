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
use crate::cli::controller_args::ControllerArgs;
use crate::cli::node_args::NodeArgs;
use crate::failure::Failure;
use crate::node::pull_flags::{PARALLEL_DOWNLOADS, PullFlags, STALL_TIMEOUT};
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
    /// The CSI controller: makes volumes of claims, beside external-provisioner
    Controller(ControllerArgs),
    /// Print a script that completes ocivol's commands and flags in a shell
    Completion(CompletionArgs),
    /// Write manual pages
    Man(ManArgs),
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
