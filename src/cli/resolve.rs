//! `ocivol resolve`

use std::process::ExitCode;

use indicatif::BinaryBytes;
use serde::Serialize;

use crate::cli::args::Common;
use crate::cli::command_args::ResolveArgs;
use crate::cli::content_args::attributes;
use crate::cli::credentials::docker_config;
use crate::cli::inspect::{self, Depth};
use crate::cli::output;
use crate::failure::Failure;

/// What a reference is now.
#[derive(Serialize)]
struct Resolved {
    reference: String,
    /// An index, or the manifest itself.
    digest: String,
    /// The manifest; of an index, the one that was chosen.
    manifest: String,
    /// `None` when ocivol cannot mount it.
    family: Option<&'static str>,
    /// Bytes of its content, as the registry has it.
    size: u64,
}

/// Asks the registry and prints one line.
///
/// # Errors
/// Whatever failed.
pub async fn run(common: &Common, flags: &ResolveArgs) -> Result<ExitCode, Failure> {
    let attributes = attributes(&flags.reference, &flags.choice, None, None)?;
    let docker_config = docker_config(common, &flags.reference).await?;
    let found = inspect::ask(common, &attributes, docker_config.as_deref(), Depth::Reference).await?;
    if let Some(problem) = found.not_chosen {
        return Err(problem);
    }
    let resolved = Resolved {
        manifest: found.manifest.unwrap_or_else(|| found.digest.clone()),
        reference: found.reference,
        digest: found.digest,
        family: found.family,
        size: found.size,
    };
    output::result(common, &resolved, || {
        format!("{}  {}  {}", resolved.digest, resolved.family.unwrap_or("-"), BinaryBytes(resolved.size))
    });
    Ok(ExitCode::SUCCESS)
}
