//! `ocivol ls`

use std::process::ExitCode;
use std::time::Duration;

use indicatif::{BinaryBytes, HumanDuration};

use crate::cli::args::Common;
use crate::cli::context::volumes;
use crate::cli::output;
use crate::control::client;
use crate::control::request::{ControlRequest, Reply};
use crate::failure::Failure;
use crate::volume::list::Listed;

/// Lists the store.
///
/// # Errors
/// Whatever failed.
pub async fn run(common: &Common) -> Result<ExitCode, Failure> {
    match client::run(&volumes(common)?, ControlRequest::List, |_| {}).await? {
        Reply::List(listed) => {
            output::result(common, &listed, || table(&listed));
            Ok(ExitCode::SUCCESS)
        }
        other => Err(Failure::internal(&format!("unexpected answer: {other:?}"))),
    }
}

fn table(listed: &[Listed]) -> String {
    let head = ["REFERENCE", "DIGEST", "SIZE", "FILES", "LAST USE", "MOUNTED BY"].map(str::to_owned);
    let mut rows = vec![head];
    rows.extend(listed.iter().map(row));
    output::table(&rows)
}

fn row(tree: &Listed) -> [String; 6] {
    let digest: String = tree.digest.chars().take("sha256:".len() + 12).collect();
    let unused = crate::store::disk::now().saturating_sub(tree.last_use);
    let mounted = match tree.mounted_at.as_slice() {
        [] => "-".to_owned(),
        [only] => pod(only).unwrap_or_else(|| only.display().to_string()),
        many => format!("{} targets", many.len()),
    };
    [
        tree.references.first().cloned().unwrap_or_else(|| "-".to_owned()),
        digest,
        BinaryBytes(tree.size).to_string(),
        tree.files.to_string(),
        format!("{} ago", HumanDuration(Duration::from_secs(unused))),
        mounted,
    ]
}

/// The pod's UID in a target of kubelet's shape.
fn pod(target: &std::path::Path) -> Option<String> {
    let parts: Vec<_> = target.components().map(|part| part.as_os_str()).collect();
    let plugin = parts.iter().position(|part| *part == "kubernetes.io~csi")?;
    Some(format!("pod {}", parts.get(plugin.checked_sub(2)?)?.to_str()?))
}
