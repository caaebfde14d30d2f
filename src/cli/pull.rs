//! `ocivol pull`

use std::process::ExitCode;

use indicatif::BinaryBytes;

use crate::cli::args::{Common, ContentArgs};
use crate::cli::context::volumes;
use crate::cli::output;
use crate::cli::output::Progress;
use crate::control::client;
use crate::control::request::{Content, ControlRequest, Pulled, Reply};
use crate::failure::Failure;

/// Pulls and prints the digest.
///
/// # Errors
/// Whatever failed.
pub async fn run(common: &Common, flags: &ContentArgs) -> Result<ExitCode, Failure> {
    let content = Content { attributes: flags.attributes(), docker_config: common.docker_config()? };
    let pulled = pull(common, content, false).await?;
    output::result(common, &pulled, || {
        let dropped = pulled.dropped.in_words().map(|words| format!("\nleft out by rule: {words}"));
        format!(
            "{}\n{}@{}: {} files, {}; {} were fetched{}",
            pulled.digest,
            pulled.reference.split('@').next().unwrap_or(&pulled.reference),
            pulled.digest,
            pulled.files,
            BinaryBytes(pulled.size),
            BinaryBytes(pulled.fetched),
            dropped.unwrap_or_default()
        )
    });
    Ok(ExitCode::SUCCESS)
}

/// Pulls and shows progress. With a `lease` what was pulled is kept as long as this process lives.
///
/// # Errors
/// Whatever failed.
pub(super) async fn pull(common: &Common, content: Content, lease: bool) -> Result<Pulled, Failure> {
    let mut progress = Progress::new(common);
    let reply =
        client::run(&volumes(common)?, ControlRequest::Pull { content, lease }, |now| progress.show(&now))
            .await?;
    match reply {
        Reply::Pulled(pulled) => Ok(pulled),
        other => Err(Failure::internal(&format!("unexpected answer: {other:?}"))),
    }
}
