//! `ocivol verify`

use std::process::ExitCode;
use std::sync::Mutex;

use crate::cli::args::Common;
use crate::cli::command_args::VerifyArgs;
use crate::cli::fsck;
use crate::cli::output;
use crate::cli::progress::Bytes;
use crate::failure::Failure;
use crate::host::blocking;
use crate::volume::error::Error;
use crate::volume::fsck::{look, look_at};

/// Compares what a reference is in the store, or all of the store, with its digests.
///
/// # Errors
/// Whatever failed. That something is damaged is no failure of the command: it is its exit status.
pub async fn run(common: &Common, flags: &VerifyArgs) -> Result<ExitCode, Failure> {
    let root = common.root()?;
    let reference = flags.reference.clone();
    let progress = Mutex::new(Bytes::new("read"));
    let look = move || {
        let told = |bytes| {
            if let Ok(mut progress) = progress.lock() {
                progress.show(bytes);
            }
        };
        match reference {
            Some(name) => look_at(&root, &name, &told),
            None => look(&root, &told).map_err(Error::from),
        }
    };
    let looked = blocking::on_own_thread("verify", look).await;
    let report = looked.map_err(|error| Failure::internal(&format!("cannot start a thread: {error}")))??;
    output::result(common, &report, || fsck::text(&report));
    let is_sound = report.findings.is_empty() && report.skipped == 0;
    Ok(if is_sound { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
