//! `ocivol rm`

use std::process::ExitCode;

use indicatif::BinaryBytes;

use crate::cli::args::Common;
use crate::cli::command_args::RmArgs;
use crate::cli::context::{Pulls, store};
use crate::cli::output;
use crate::control::client;
use crate::control::request::{ControlRequest, Reply};
use crate::failure::Failure;
use crate::volume::remove::Removed;

/// Removes one after the other.
///
/// # Errors
/// Whatever failed. What was removed before is gone.
pub async fn run(common: &Common, flags: &RmArgs) -> Result<ExitCode, Failure> {
    let volumes = store(common, Pulls::None).await?;
    for name in &flags.names {
        let request = ControlRequest::Remove { name: name.clone() };
        match client::run(&volumes, request, |_| {}).await? {
            Reply::Removed(removed) => output::result(common, &removed, || text(&removed)),
            other => return Err(Failure::internal(&format!("unexpected answer: {other:?}"))),
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn text(removed: &Removed) -> String {
    let untagged = removed.untagged.iter().map(|name| format!("untagged {name}; its tree has other names"));
    let gone = removed.removed.iter().map(|digest| format!("removed {digest}"));
    let mut lines: Vec<String> = untagged.chain(gone).collect();
    if !removed.removed.is_empty() {
        lines.push(format!("{} freed", BinaryBytes(removed.freed)));
    }
    lines.join("\n")
}
