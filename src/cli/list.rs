//! `ocivol ls`

use std::process::ExitCode;

use indicatif::BinaryBytes;

use crate::cli::args::Common;
use crate::cli::context::{Pulls, volumes};
use crate::cli::output::{self, ago, counted, short};
use crate::control::client;
use crate::control::request::{ControlRequest, Reply};
use crate::failure::{Failure, one_line};
use crate::store::disk::now;
use crate::volume::list::{Listed, Listing};

/// Lists the store: a plugin's as the plugin sees it, any other one as it lies there, whoever writes to it.
///
/// # Errors
/// Whatever failed.
pub async fn run(common: &Common) -> Result<ExitCode, Failure> {
    let volumes = volumes(common, Pulls::None)?;
    let listing = if client::is_served(volumes.store_root()).await? {
        match client::run(&volumes, ControlRequest::List, |_| {}).await? {
            Reply::List(listing) => listing,
            other => return Err(Failure::internal(&format!("unexpected answer: {other:?}"))),
        }
    } else {
        volumes.list().await?
    };
    output::result(common, &listing.trees, || table(&listing));
    Ok(ExitCode::SUCCESS)
}

fn table(listing: &Listing) -> String {
    let head =
        ["REFERENCE", "DIGEST", "FILTER", "PLATFORM", "SIZE", "FILES", "IN MEMORY", "LAST USE", "MOUNTED BY"];
    let mut rows = vec![head.map(str::to_owned)];
    rows.extend(listing.trees.iter().flat_map(rows_of));
    let trees = counted(listing.trees.len() as u64, "tree");
    let Some(free) = listing.free else {
        return format!("{}\n{trees}; there is no store yet", output::table(&rows));
    };
    let unfinished = match listing.unfinished {
        0 => String::new(),
        bytes => format!("{} unfinished, ", BinaryBytes(bytes)),
    };
    let (content, free) = (BinaryBytes(listing.content), BinaryBytes(free));
    format!("{}\n{trees}, {content} on disk, {unfinished}{free} free", output::table(&rows))
}

/// Characters of a filter that are shown.
const FILTER: usize = 60;

/// A row for each reference of a tree.
fn rows_of(tree: &Listed) -> Vec<[String; 9]> {
    let row = |reference: String| {
        [
            reference,
            short(&tree.digest).to_owned(),
            or_none(&of_tenant(&tree.filter)),
            or_none(tree.platform.as_deref().unwrap_or_default()),
            BinaryBytes(tree.size).to_string(),
            tree.files.to_string(),
            share(tree.resident, tree.size),
            ago(now().saturating_sub(tree.last_use)),
            mounted(&tree.mounted_by),
        ]
    };
    if tree.references.is_empty() {
        return vec![row("-".to_owned())];
    }
    let rows = tree.references.iter().map(|reference| {
        let is_older = if tree.moved.contains(reference) { " (older)" } else { "" };
        row(format!("{}{is_older}", one_line(reference)))
    });
    rows.collect()
}

/// What a tenant wrote, for a table: on one line, and not much of it.
fn of_tenant(text: &str) -> String {
    let line = one_line(text);
    match line.char_indices().nth(FILTER) {
        Some((end, _)) => format!("{}…", line.get(..end).unwrap_or_default()),
        None => line,
    }
}

/// What part of `all` is in memory.
fn share(resident: Option<u64>, all: u64) -> String {
    match resident {
        Some(here) if all > 0 => format!("{}%", here.min(all).saturating_mul(100) / all),
        _ => "-".to_owned(),
    }
}

fn or_none(text: &str) -> String {
    if text.is_empty() { "-".to_owned() } else { text.to_owned() }
}

fn mounted(by: &[String]) -> String {
    match by {
        [] => "-".to_owned(),
        [only] => only.clone(),
        [first, more @ ..] => format!("{first} +{}", more.len()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(references: &[&str], moved: &[&str]) -> Listed {
        let all = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        Listed {
            references: all(references),
            moved: all(moved),
            digest: format!("sha256:{}", "a".repeat(64)),
            manifest: format!("sha256:{}", "b".repeat(64)),
            family: "modelpack".into(),
            platform: None,
            filter: "include *.json".into(),
            size: 3 << 20,
            files: 2,
            resident: Some(1 << 20),
            dropped: Default::default(),
            last_use: now(),
            tree: "0".repeat(64),
            mounted_at: Vec::new(),
            mounted_by: all(&["default/llama-0", "default/llama-1", "/mnt"]),
        }
    }

    #[test]
    fn each_reference_has_a_row_and_the_sums_are_last() {
        let trees = vec![tree(&["r/m:v1", "r/m:v2"], &["r/m:v1"])];
        let listing = Listing { trees, content: 3 << 20, unfinished: 1 << 30, free: Some(49 << 30) };
        let text = table(&listing);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 4, "{text}");
        assert!(lines[1].starts_with("r/m:v1 (older)  sha256:aaaaaaaaaaaa  include *.json  -"), "{text}");
        assert!(lines[1].ends_with("default/llama-0 +2") && lines[1].contains("  33%  "), "{text}");
        assert!(lines[2].starts_with("r/m:v2          sha256:aaaaaaaaaaaa"), "{text}");
        assert_eq!(lines[3], "1 tree, 3.00 MiB on disk, 1.00 GiB unfinished, 49.00 GiB free");
        let mut long = tree(&["r/m:v1"], &[]);
        long.filter = format!("include \n\u{1b}[2J{}", "x".repeat(100));
        let text = table(&Listing { trees: vec![long], ..Listing::default() });
        let shown = format!("include \\n\\u{{1b}}[2J{}…  -", "x".repeat(60 - 19));
        assert!(text.contains(&shown) && text.lines().count() == 3, "{text}");
        assert_eq!(table(&Listing::default()).lines().nth(1), Some("0 trees; there is no store yet"));
    }
}
