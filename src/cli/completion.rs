//! `ocivol completion` and `ocivol man`

use std::io::ErrorKind;
use std::process::ExitCode;

use crate::cli::command_args::{CompletionArgs, ManArgs};
use crate::cli::{output, syntax};
use crate::failure::{Failure, Kind};

/// Prints a script for a shell.
pub fn completion(flags: &CompletionArgs) -> ExitCode {
    let mut script = Vec::new();
    clap_complete::generate(flags.shell, &mut syntax::command(), "ocivol", &mut script);
    output::line(String::from_utf8_lossy(&script).trim_end());
    ExitCode::SUCCESS
}

/// Writes a page for ocivol and one for each command, for whom the caller's `umask` lets read them.
///
/// # Errors
/// When a page cannot be written.
pub fn man(flags: &ManArgs, umask: rustix::fs::Mode) -> Result<ExitCode, Failure> {
    rustix::process::umask(umask);
    let failed = |error: std::io::Error| {
        let kind = match error.kind() {
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded => Kind::ResourceExhausted,
            ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => Kind::PermissionDenied,
            ErrorKind::NotADirectory | ErrorKind::AlreadyExists => Kind::InvalidArgument,
            _ => Kind::Unavailable,
        };
        Failure { kind, message: format!("cannot write to {}: {error}", flags.directory.display()) }
    };
    std::fs::create_dir_all(&flags.directory).map_err(failed)?;
    clap_mangen::generate_to(syntax::command(), &flags.directory).map_err(failed)?;
    Ok(ExitCode::SUCCESS)
}
