//! Printing: results on stdout, warnings and errors on stderr.

use std::io::{ErrorKind, Write as _};
use std::sync::Mutex;

use serde::Serialize;
use serde_json::json;

use crate::cli::args::{Common, Output};
use crate::cli::words;
use crate::failure::{Failure, Kind};

/// Why the standard output did not take what was printed.
static LOST: Mutex<Option<String>> = Mutex::new(None);

/// Prints a line of the result. A reader that went away is no error; a disk that is full is one, which [`lost`] tells.
pub fn line(text: &str) {
    let mut out = std::io::stdout();
    let written = writeln!(out, "{text}").and_then(|()| out.flush());
    if let Err(error) = written
        && error.kind() != ErrorKind::BrokenPipe
        && let Ok(mut lost) = LOST.lock()
    {
        lost.get_or_insert_with(|| error.to_string());
    }
}

/// Whether something that was printed did not arrive.
pub fn lost() -> Option<Failure> {
    let lost = LOST.lock().ok()?.take()?;
    Some(Failure { kind: Kind::Unavailable, message: format!("cannot write to the standard output: {lost}") })
}

/// Says something that is worth knowing, and does not keep the command from its end.
pub fn warn(message: &str) {
    let _ = writeln!(std::io::stderr(), "warning: {message}");
}

/// Says what goes on.
pub fn note(message: &str) {
    let _ = writeln!(std::io::stderr(), "{message}");
}

/// Prints the one line that says what failed, in the words of the command line.
pub fn fail(output: Output, failure: &Failure) {
    let message = words::on_the_command_line(&failure.message);
    match output {
        Output::Text => drop(writeln!(std::io::stderr(), "ocivol: {message}")),
        Output::Json => {
            let kind = serde_json::to_value(failure.kind).unwrap_or_default();
            fail_as_json(kind.as_str().unwrap_or("internal"), &message);
        }
    }
}

/// Prints an error for programs.
pub fn fail_as_json(kind: &str, message: &str) {
    let error = json!({ "error": { "kind": kind, "message": message } });
    let _ = writeln!(std::io::stderr(), "{error}");
}

/// Prints `value` as JSON where that is asked for, else `text`.
pub fn result(common: &Common, value: &impl Serialize, text: impl FnOnce() -> String) {
    match common.output {
        Output::Json => match serde_json::to_string_pretty(value) {
            Ok(json) => line(&json),
            Err(error) => fail(common.output, &Failure::internal(&error.to_string())),
        },
        Output::Text => {
            let text = text();
            if !text.is_empty() {
                line(&text);
            }
        }
    }
}

/// Rows in columns as wide as they need to be.
pub fn table<const COLUMNS: usize>(rows: &[[String; COLUMNS]]) -> String {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..COLUMNS).map(width).collect();
    let lines = rows.iter().map(|row| {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// `1 file`, `2 files`.
pub fn counted(number: u64, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}

/// A time that lies so many seconds back, in words.
pub fn ago(seconds: u64) -> String {
    format!("{} ago", indicatif::HumanDuration(std::time::Duration::from_secs(seconds)))
}

/// A digest, as much of it as tells it from others in a table.
pub fn short(digest: &str) -> &str {
    digest.get(.."sha256:".len() + 12).unwrap_or(digest)
}
