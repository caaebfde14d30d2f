//! `ocivol pull`

use std::process::ExitCode;

use indicatif::BinaryBytes;
use serde::Serialize;

use crate::cli::args::Common;
use crate::cli::command_args::PullArgs;
use crate::cli::content_args::{PolicyName, attributes, policy_of_pull};
use crate::cli::context::{Pulls, store};
use crate::cli::credentials::Logins;
use crate::cli::inspect;
use crate::cli::inspected::Inspected;
use crate::cli::output::{self, ago, counted, short};
use crate::cli::progress::Progress;
use crate::control::client;
use crate::control::request::{Content, ControlRequest, Pulled, Reply};
use crate::failure::Failure;
use crate::oci::reference::Reference;
use crate::store::disk::now;

/// What a pull would do.
#[derive(Serialize)]
struct Plan<'a> {
    reference: &'a str,
    digest: &'a str,
    manifest: &'a str,
    family: &'a str,
    /// How many blobs it is made of.
    layers: usize,
    /// Bytes of all of it, as the registry has it.
    size: u64,
    /// Bytes of it that are in the store.
    here: u64,
    /// Bytes that would come over the network.
    missing: u64,
}

/// Pulls one after the other and prints the digest of each; or says what would come.
///
/// # Errors
/// Whatever failed. What was pulled before stays.
pub async fn run(common: &Common, flags: &PullArgs) -> Result<ExitCode, Failure> {
    if flags.dry_run && flags.content.policy.pull_policy == Some(PolicyName::Never) {
        return Err(Failure::usage(
            "--dry-run asks the registry, and --pull-policy is Never; leave out one of them",
        ));
    }
    let mut logins = Logins::of(common).await?;
    for reference in &flags.references {
        let docker_config = logins.config(reference).await;
        let policy = policy_of_pull(reference, flags.content.policy.pull_policy);
        let attributes = attributes(reference, &flags.content.choice, Some(&flags.content.files), policy)?;
        if flags.dry_run {
            let found = inspect::look(common, &attributes, docker_config.as_deref()).await?;
            plan(common, found, flags.quiet)?;
            continue;
        }
        let content = Content { attributes, docker_config };
        let pulled = if flags.quiet {
            pull_showing(common, content, false, Progress::none()).await?
        } else {
            pull(common, reference, content, false).await?
        };
        output::result(common, &pulled, || if flags.quiet { pulled.digest.clone() } else { text(&pulled) });
    }
    Ok(ExitCode::SUCCESS)
}

fn text(pulled: &Pulled) -> String {
    let dropped = pulled.dropped.in_words().map(|words| format!("\nleft out by rule: {words}"));
    format!(
        "{}\n{}: {}, {}; {} were fetched{}",
        pulled.digest,
        pulled.reference,
        counted(pulled.files as u64, "file"),
        BinaryBytes(pulled.size),
        BinaryBytes(pulled.fetched),
        dropped.unwrap_or_default()
    )
}

fn plan(common: &Common, mut found: Inspected, quiet: bool) -> Result<(), Failure> {
    if let Some(failure) = found.not_planned.take() {
        return Err(failure);
    }
    let family = found.family.unwrap_or_default();
    let manifest = found.manifest.as_deref().unwrap_or(&found.digest);
    let (digest, reference) = (found.digest.as_str(), found.reference.as_str());
    let missing = found.size.saturating_sub(found.here);
    let (layers, size, here) = (found.files.len(), found.size, found.here);
    let plan = Plan { reference, digest, manifest, family, layers, size, here, missing };
    output::result(common, &plan, || {
        if quiet {
            return digest.to_owned();
        }
        format!(
            "{digest}\n{reference}: {} in {}; {} are here, {} would be fetched",
            BinaryBytes(size),
            counted(layers as u64, "layer"),
            BinaryBytes(here),
            BinaryBytes(missing)
        )
    });
    Ok(())
}

/// Pulls and shows progress. With a `lease` what was pulled is kept as long as this process lives.
///
/// # Errors
/// Whatever failed.
pub(super) async fn pull(
    common: &Common,
    reference: &str,
    content: Content,
    lease: bool,
) -> Result<Pulled, Failure> {
    let pulled = pull_showing(common, content, lease, Progress::new(common, reference)).await?;
    say_if_old(&pulled);
    Ok(pulled)
}

async fn pull_showing(
    common: &Common,
    content: Content,
    lease: bool,
    mut progress: Progress,
) -> Result<Pulled, Failure> {
    let volumes = store(common, Pulls::AsFlagged).await?;
    let request = ControlRequest::Pull { content, lease };
    match client::run(&volumes, request, |now| progress.show(&now)).await? {
        Reply::Pulled(pulled) => Ok(pulled),
        other => Err(Failure::internal(&format!("unexpected answer: {other:?}"))),
    }
}

/// Says that a tag may be something else by now.
pub(super) fn say_if_old(pulled: &Pulled) {
    let tag = pulled.reference.parse::<Reference>().ok().filter(|reference| reference.digest().is_none());
    if let Some(reference) = tag.filter(|_| !pulled.asked) {
        let tag = reference.tag().unwrap_or("latest");
        let when = match pulled.resolved_at {
            0 => "when it was asked for last".to_owned(),
            at => ago(now().saturating_sub(at)),
        };
        output::note(&format!("{tag} was {} {when}; --pull-policy Always asks again", short(&pulled.digest)));
    }
}
