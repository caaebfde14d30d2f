//! `ocivol load`

use std::process::ExitCode;

use indicatif::BinaryBytes;

use crate::cli::args::Common;
use crate::cli::command_args::LoadArgs;
use crate::cli::context::{Pulls, absolute, store};
use crate::cli::output::{self, counted};
use crate::cli::progress::Progress;
use crate::control::client;
use crate::control::request::{ControlRequest, Load, Pulled, Reply};
use crate::failure::Failure;

/// Loads, and prints a line for each name.
///
/// # Errors
/// Whatever failed.
pub async fn run(common: &Common, flags: &LoadArgs) -> Result<ExitCode, Failure> {
    if flags.file.as_os_str() == "-" {
        return Err(Failure::usage(
            "an archive is not read from the standard input: name a file or a directory",
        ));
    }
    let path = absolute(&flags.file)?;
    let load = Load { path, name: flags.name.clone(), platform: flags.platform.clone() };
    let volumes = store(common, Pulls::AsFlagged).await?;
    let mut progress = Progress::new(common, &load.path);
    let reply = client::run(&volumes, ControlRequest::Load(load), |now| progress.show(&now)).await?;
    drop(progress);
    let Reply::Loaded(loaded) = reply else {
        return Err(Failure::internal(&format!("unexpected answer: {reply:?}")));
    };
    output::result(common, &loaded, || loaded.iter().map(line).collect::<Vec<_>>().join("\n"));
    Ok(ExitCode::SUCCESS)
}

fn line(loaded: &Pulled) -> String {
    let Pulled { reference, digest, files, size, .. } = loaded;
    format!(
        "{digest}\n{reference}: {}, {}; it is everybody's on this node",
        counted(*files as u64, "file"),
        BinaryBytes(*size)
    )
}
