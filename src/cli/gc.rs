//! `ocivol gc`

use std::process::ExitCode;

use indicatif::BinaryBytes;

use crate::cli::args::Common;
use crate::cli::command_args::GcArgs;
use crate::cli::context::{Pulls, store};
use crate::cli::output;
use crate::control::client;
use crate::control::request::{ControlRequest, Reply};
use crate::failure::{Failure, one_line};
use crate::store::collect::report::{Item, Kind, Report};

/// Takes away what nothing needs, or says what that is.
///
/// # Errors
/// Whatever failed.
pub async fn run(common: &Common, flags: &GcArgs) -> Result<ExitCode, Failure> {
    let request = ControlRequest::Collect { dry_run: flags.dry_run };
    match client::run(&store(common, Pulls::None).await?, request, |_| {}).await? {
        Reply::Collected(report) => {
            output::result(common, &report, || text(&report, flags.dry_run));
            Ok(ExitCode::SUCCESS)
        }
        other => Err(Failure::internal(&format!("unexpected answer: {other:?}"))),
    }
}

fn text(report: &Report, is_dry_run: bool) -> String {
    let mut lines = Vec::new();
    if !report.items.is_empty() {
        let head = ["", "KIND", "SIZE", "WHY", "WHAT"].map(str::to_owned);
        let rows: Vec<_> =
            std::iter::once(head).chain(report.items.iter().map(|item| row(item, is_dry_run))).collect();
        lines.push(output::table(&rows));
    }
    let listed = report.items.len() as u64;
    if let Some(more @ 1..) = (report.gone + report.stays).checked_sub(listed) {
        lines.push(format!("and {more} more"));
    }
    let verb = if is_dry_run { "would be freed" } else { "freed" };
    let (freed, stays) = (BinaryBytes(report.freed.bytes), report.stays);
    let trees = if stays == 1 { "tree stays" } else { "trees stay" };
    lines.push(format!("{freed} and {} inodes {verb}; {stays} {trees}", report.freed.inodes));
    lines.join("\n")
}

fn row(item: &Item, is_dry_run: bool) -> [String; 5] {
    // A digest is long, and the table is for people.
    let shows = match (item.kind, item.shows.split_once(':')) {
        (Kind::Blob | Kind::Layer | Kind::Download, Some((algorithm, hex))) => {
            format!("{algorithm}:{}", hex.get(..12).unwrap_or(hex))
        }
        _ => one_line(&item.shows),
    };
    let goes = match (item.goes, is_dry_run) {
        (false, _) => "stays",
        (true, true) => "goes",
        (true, false) => "gone",
    };
    let size = BinaryBytes(item.takes.bytes).to_string();
    [goes.to_owned(), item.kind.to_string(), size, item.reason.to_string(), shows]
}
