//! Printing: results on stdout, progress and errors on stderr.

use std::io::{IsTerminal as _, Write as _};
use std::time::{Duration, Instant};

use indicatif::{BinaryBytes, ProgressBar, ProgressStyle};
use serde::Serialize;

use crate::cli::args::{Common, Output};
use crate::pull::progress::Snapshot;

/// Prints a line of the result. A reader that went away is no error.
pub fn line(text: &str) {
    let _ = writeln!(std::io::stdout(), "{text}");
}

/// Prints the one line that says what failed.
pub fn fail(message: &str) {
    let _ = writeln!(std::io::stderr(), "ocivol: {message}");
}

/// Prints `value` as JSON where that is asked for, else `text`.
pub fn result(common: &Common, value: &impl Serialize, text: impl FnOnce() -> String) {
    match common.output {
        Output::Json => match serde_json::to_string_pretty(value) {
            Ok(json) => line(&json),
            Err(error) => fail(&error.to_string()),
        },
        Output::Text => line(&text()),
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

/// Shows how far a pull is: a bar on a terminal, else a line now and then.
pub struct Progress {
    bar: Option<ProgressBar>,
    next_line: Instant,
}

/// How often a line is printed where there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(5);

impl Progress {
    /// Nothing is shown yet.
    pub fn new(common: &Common) -> Self {
        let terminal = std::io::stderr().is_terminal() && common.output == Output::Text;
        let bar = terminal.then(|| {
            let style = "{bar:30} {binary_bytes:>11} of {binary_total_bytes:<11} {binary_bytes_per_sec:>13}  {eta} left";
            let bar = ProgressBar::new(0);
            bar.set_style(ProgressStyle::with_template(style).unwrap_or_else(|_| ProgressStyle::default_bar()));
            bar
        });
        Self { bar, next_line: Instant::now() + LINE_EVERY }
    }

    /// Shows `snapshot`.
    pub fn show(&mut self, snapshot: &Snapshot) {
        match &self.bar {
            // Until the manifest is read there is nothing to measure against.
            Some(_) if snapshot.blobs == 0 => {}
            Some(bar) => {
                bar.set_length(snapshot.total);
                bar.set_position(snapshot.done);
            }
            None if Instant::now() >= self.next_line => {
                self.next_line = Instant::now() + LINE_EVERY;
                let _ = writeln!(std::io::stderr(), "{snapshot}");
            }
            None => {}
        }
    }
}

/// Says now and then how many bytes something has come to.
pub struct Bytes {
    what: &'static str,
    next_line: Instant,
}

impl Bytes {
    /// Nothing is said for the first seconds.
    pub fn new(what: &'static str) -> Self {
        Self { what, next_line: Instant::now() + LINE_EVERY }
    }

    /// It has come to so many.
    pub fn show(&mut self, bytes: u64) {
        if Instant::now() >= self.next_line {
            self.next_line = Instant::now() + LINE_EVERY;
            let _ = writeln!(std::io::stderr(), "{} {}", BinaryBytes(bytes), self.what);
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
