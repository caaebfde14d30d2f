//! Flags of single commands.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::Args;

use crate::cli::content_args::{ChoiceArgs, ContentArgs, FilesArgs, PolicyArgs};

/// Help for a reference.
const REF: &str = "host[:port]/name[:tag][@digest], or oci-layout:/path[:tag][@digest]";

/// Flags of `pull`.
#[derive(Debug, Clone, Args)]
pub struct PullArgs {
    /// What to pull.
    #[arg(value_name = "REF", required = true, help = REF)]
    pub references: Vec<String>,
    /// Only say what is here already, and what would be fetched
    #[arg(long)]
    pub dry_run: bool,
    /// Print digests alone, and no progress
    #[arg(short, long)]
    pub quiet: bool,
    /// What of it.
    #[command(flatten)]
    pub content: ContentArgs,
}

/// Flags of `mount`.
#[derive(Debug, Clone, Args)]
pub struct MountArgs {
    /// What to mount.
    #[arg(value_name = "REF", help = REF)]
    pub reference: String,
    /// Where
    #[arg(value_name = "DIR")]
    pub directory: PathBuf,
    /// What of it.
    #[command(flatten)]
    pub content: ContentArgs,
    /// Only this directory of the tree
    #[arg(long, value_name = "DIR")]
    pub path: Option<String>,
    /// Allow to execute files
    #[arg(long)]
    pub exec: bool,
    /// Run this with the mount in place, which nobody else sees; works without root. Its exit status is that of ocivol; 127 when there is
    /// no such command, 126 when it cannot be run
    #[arg(last = true, value_name = "COMMAND")]
    pub command: Vec<OsString>,
}

/// Flags of `inspect`.
#[derive(Debug, Clone, Args)]
pub struct InspectArgs {
    /// What to look at.
    #[arg(value_name = "REF", help = REF)]
    pub reference: String,
    /// What of an index.
    #[command(flatten)]
    pub choice: ChoiceArgs,
    /// Which files.
    #[command(flatten)]
    pub files: FilesArgs,
}

/// Flags of `resolve`.
#[derive(Debug, Clone, Args)]
pub struct ResolveArgs {
    /// What to ask for.
    #[arg(value_name = "REF", help = REF)]
    pub reference: String,
    /// What of an index.
    #[command(flatten)]
    pub choice: ChoiceArgs,
}

/// Flags of `export`.
#[derive(Debug, Clone, Args)]
pub struct ExportArgs {
    /// What to write.
    #[arg(value_name = "REF", help = REF)]
    pub reference: String,
    /// Where to: a directory that is empty, or is made
    #[arg(value_name = "DIR")]
    pub directory: PathBuf,
    /// What of it.
    #[command(flatten)]
    pub content: ContentArgs,
}

/// Flags of `save`.
#[derive(Debug, Clone, Args)]
pub struct SaveArgs {
    /// What to write.
    #[arg(value_name = "REF", help = REF)]
    pub reference: String,
    /// Where to; - is the standard output
    pub file: PathBuf,
    /// What of an index.
    #[command(flatten)]
    pub choice: ChoiceArgs,
    /// Whether to ask.
    #[command(flatten)]
    pub policy: PolicyArgs,
}

/// Flags of `load`.
#[derive(Debug, Clone, Args)]
pub struct LoadArgs {
    /// A tar archive, or a directory, in OCI image layout
    pub file: PathBuf,
    /// The name of the only manifest in it [default: the names that it has there]
    #[arg(value_name = "REF")]
    pub name: Option<String>,
    /// os/arch[/variant], for an index [default: this machine's]
    #[arg(long, value_name = "OS/ARCH")]
    pub platform: Option<String>,
}

/// Flags of `umount`.
#[derive(Debug, Args)]
pub struct UmountArgs {
    /// Where it is mounted
    #[arg(value_name = "DIR")]
    pub directory: PathBuf,
}

/// Flags of `rm`.
#[derive(Debug, Args)]
pub struct RmArgs {
    /// A reference as `ocivol ls` shows it, or a digest, whole or as `ocivol ls` shows it
    #[arg(value_name = "REF|DIGEST", required = true)]
    pub names: Vec<String>,
}

/// Flags of `verify`.
#[derive(Debug, Args)]
pub struct VerifyArgs {
    /// A reference as `ocivol ls` shows it [default: all of the store, as `ocivol fsck`]
    #[arg(value_name = "REF")]
    pub reference: Option<String>,
}

/// Flags of `fsck`.
#[derive(Debug, Args)]
pub struct FsckArgs {
    /// Take out what is damaged, so that it is pulled again
    #[arg(long)]
    pub repair: bool,
}

/// Flags of `gc`.
#[derive(Debug, Args)]
pub struct GcArgs {
    /// Only say what would go, and why the rest stays
    #[arg(long)]
    pub dry_run: bool,
}

/// Flags of `completion`.
#[derive(Debug, Args)]
pub struct CompletionArgs {
    /// The shell
    #[arg(value_enum)]
    pub shell: clap_complete::Shell,
}

/// Flags of `man`.
#[derive(Debug, Args)]
pub struct ManArgs {
    /// Where the pages are written to: ocivol.1, ocivol-pull.1 …
    #[arg(value_name = "DIR")]
    pub directory: PathBuf,
}
