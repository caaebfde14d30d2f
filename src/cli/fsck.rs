//! `ocivol fsck`

use std::process::ExitCode;
use std::sync::Mutex;

use indicatif::BinaryBytes;

use crate::cli::args::Common;
use crate::cli::command_args::FsckArgs;
use crate::cli::context::{Pulls, store};
use crate::cli::output::{self, counted};
use crate::cli::progress::Bytes;
use crate::control::client;
use crate::control::request::{ControlRequest, Reply};
use crate::failure::Failure;
use crate::host::blocking;
use crate::store::collect::report::Kind;
use crate::store::fsck::report::{Finding, Report};
use crate::volume::error::Error;
use crate::volume::fsck;

/// Compares the store with what is recorded of it; takes out what is bad where that is asked for.
///
/// # Errors
/// Whatever failed. That something is damaged is no failure of the command: it is its exit status.
pub async fn run(common: &Common, flags: &FsckArgs) -> Result<ExitCode, Failure> {
    let report = if flags.repair {
        match client::run(&store(common, Pulls::None).await?, ControlRequest::Fsck, |_| {}).await? {
            Reply::Checked(report) => report,
            other => return Err(Failure::internal(&format!("unexpected answer: {other:?}"))),
        }
    } else {
        let root = common.root()?;
        if !root.is_dir() {
            return Err(Failure::usage(&format!("there is no store at {}", root.display())));
        }
        let progress = Mutex::new(Bytes::new("read"));
        let look = move || {
            fsck::look(&root, &|bytes| {
                if let Ok(mut progress) = progress.lock() {
                    progress.show(bytes);
                }
            })
        };
        let looked = blocking::on_own_thread("fsck", look).await;
        let looked = looked.map_err(|error| Failure::internal(&format!("cannot start a thread: {error}")))?;
        looked.map_err(Error::from)?
    };
    output::result(common, &report, || text(&report));
    Ok(status(&report))
}

/// The exit status: something is damaged, or it is not known whether it is.
pub(super) fn status(report: &Report) -> ExitCode {
    let is_damaged = report.findings.iter().any(|finding| !finding.repaired);
    if is_damaged || report.skipped > 0 { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

/// What was found, in words.
pub(super) fn text(report: &Report) -> String {
    let mut lines: Vec<String> = report.findings.iter().map(line).collect();
    if let Some(more @ 1..) = report.damaged.checked_sub(report.findings.len() as u64) {
        lines.push(format!("and {more} more"));
    }
    let Report { blobs, layers, trees, bytes, damaged, .. } = report;
    lines.push(format!(
        "{}, {} and {}, {}: {}",
        counted(*blobs, "blob"),
        counted(*layers, "layer"),
        counted(*trees, "tree"),
        BinaryBytes(*bytes),
        match damaged {
            0 => "all is as it was recorded".to_owned(),
            1 => "1 is damaged".to_owned(),
            many => format!("{many} are damaged"),
        }
    ));
    if report.skipped > 0 {
        lines.push(format!(
            "{} could not be looked at; run it as the store's owner, and see -v",
            report.skipped
        ));
    }
    if report.findings.iter().any(|finding| !finding.repaired) {
        lines.push("`ocivol fsck --repair` takes out what is damaged; it is pulled again".to_owned());
    }
    lines.join("\n")
}

fn line(finding: &Finding) -> String {
    let Finding { kind, name, shows, problem, path, trees, references, repaired } = finding;
    let file = path.as_ref().map(|path| format!(", {path}")).unwrap_or_default();
    let name = if name == shows { name.clone() } else { format!("{name} ({shows})") };
    let repaired = if *repaired { "; taken out, it is pulled again" } else { "" };
    let shown = match (references.as_slice(), trees.len()) {
        (_, 0) => String::new(),
        ([], _) => format!(", in {}", counted(trees.len() as u64, "tree")),
        (references, _) if *kind == Kind::Tree && references.contains(shows) => String::new(),
        (references, _) => format!(", in {}", references.join(", ")),
    };
    format!("{kind} {name}{file}: {problem}{shown}{repaired}")
}
