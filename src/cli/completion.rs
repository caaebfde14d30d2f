//! `ocivol completion` and `ocivol man`

use std::process::ExitCode;

use crate::cli::args::Common;
use crate::cli::command_args::{CompletionArgs, ManArgs};
use crate::cli::{output, syntax};
use crate::failure::Failure;

/// Prints a script for a shell.
pub fn completion(flags: &CompletionArgs) -> ExitCode {
    let mut script = Vec::new();
    clap_complete::generate(flags.shell, &mut syntax::command(), "ocivol", &mut script);
    output::line(String::from_utf8_lossy(&script).trim_end());
    ExitCode::SUCCESS
}

/// Writes a page for ocivol and one for each command.
///
/// # Errors
/// When a page cannot be written.
pub fn man(_: &Common, flags: &ManArgs) -> Result<ExitCode, Failure> {
    let failed = |error: std::io::Error| {
        Failure::usage(&format!("cannot write to {}: {error}", flags.directory.display()))
    };
    std::fs::create_dir_all(&flags.directory).map_err(failed)?;
    clap_mangen::generate_to(syntax::command(), &flags.directory).map_err(failed)?;
    Ok(ExitCode::SUCCESS)
}
