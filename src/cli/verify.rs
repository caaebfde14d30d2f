//! `ocivol verify`

use std::process::ExitCode;
use std::sync::Mutex;

use crate::cli::args::Common;
use crate::cli::command_args::{FsckArgs, VerifyArgs};
use crate::cli::fsck;
use crate::cli::output;
use crate::cli::progress::Bytes;
use crate::failure::Failure;
use crate::host::blocking;
use crate::volume::fsck::look_at;

/// Compares what a reference is in the store, or all of the store, with its digests.
///
/// # Errors
/// Whatever failed. That something is damaged is no failure of the command: it is its exit status.
pub async fn run(common: &Common, flags: &VerifyArgs) -> Result<ExitCode, Failure> {
    let Some(name) = flags.reference.clone() else {
        return fsck::run(common, &FsckArgs { repair: false }).await;
    };
    let root = common.root()?;
    let progress = Mutex::new(Bytes::new("read"));
    let look = move || {
        let told = |bytes| {
            if let Ok(mut progress) = progress.lock() {
                progress.show(bytes);
            }
        };
        look_at(&root, &name, &told)
    };
    let looked = blocking::on_own_thread("verify", look).await;
    let report = looked.map_err(|error| Failure::internal(&format!("cannot start a thread: {error}")))??;
    output::result(common, &report, || fsck::text(&report));
    Ok(fsck::status(&report))
}
