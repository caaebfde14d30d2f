//! How far a command is: one line on a terminal, however wide it is, else a line now and then.

use std::io::{IsTerminal as _, Write as _};
use std::time::{Duration, Instant};

use indicatif::{BinaryBytes, HumanDuration, ProgressBar, ProgressStyle};

use crate::cli::args::{Common, Output};
use crate::cli::interrupt;
use crate::pull::progress::Snapshot;

/// Shows how far a pull is.
pub struct Progress {
    name: String,
    bar: Option<ProgressBar>,
    /// `None` where nothing is shown.
    next_line: Option<Instant>,
}

/// How often a line is printed where there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(5);
/// Characters of the bar.
const BAR: usize = 20;

impl Progress {
    /// Nothing is shown yet. `reference` is what is pulled.
    pub fn new(common: &Common, reference: &str) -> Self {
        let terminal = std::io::stderr().is_terminal() && common.output == Output::Text;
        let bar = terminal.then(|| {
            let bar = ProgressBar::new(0);
            // What does not fit is cut off.
            bar.set_style(
                ProgressStyle::with_template("{wide_msg}").unwrap_or_else(|_| ProgressStyle::default_bar()),
            );
            bar
        });
        let name = reference.rsplit('/').next().unwrap_or(reference);
        let name = name.split('@').next().unwrap_or(name).to_owned();
        Self { name, bar, next_line: Some(Instant::now() + LINE_EVERY) }
    }

    /// Nothing is ever shown.
    pub fn none() -> Self {
        Self { name: String::new(), bar: None, next_line: None }
    }

    /// Shows `snapshot`.
    pub fn show(&mut self, snapshot: &Snapshot) {
        interrupt::kept(snapshot.done);
        match &self.bar {
            // Until the manifest is read there is nothing to measure against.
            Some(_) if snapshot.blobs == 0 => {}
            Some(bar) => {
                bar.set_length(snapshot.total);
                bar.set_position(snapshot.done);
                bar.set_message(line(&self.name, snapshot));
            }
            None if self.next_line.is_some_and(|next| Instant::now() >= next) => {
                self.next_line = Some(Instant::now() + LINE_EVERY);
                let _ = writeln!(std::io::stderr(), "{}: {snapshot}", self.name);
            }
            None => {}
        }
    }
}

/// What matters most comes first.
fn line(name: &str, snapshot: &Snapshot) -> String {
    let Snapshot { total, done, blobs, blobs_done, .. } = snapshot;
    let filled = usize::try_from(done.saturating_mul(BAR as u64) / (*total).max(1)).unwrap_or(BAR).min(BAR);
    let bar = format!("{}{}", "█".repeat(filled), "░".repeat(BAR - filled));
    let (percent, rate) = (done.saturating_mul(100) / (*total).max(1), snapshot.rate());
    let left = total.saturating_sub(*done).checked_div(rate);
    let left = left.map(|seconds| format!(" {} left", HumanDuration(Duration::from_secs(seconds))));
    format!(
        "{name} {percent:>3}% {bar} {} of {} {blobs_done} of {blobs} {}/s{}",
        BinaryBytes(*done),
        BinaryBytes(*total),
        BinaryBytes(rate),
        left.unwrap_or_default()
    )
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_says_the_name_and_how_far_it_is_first() {
        let snapshot = Snapshot {
            total: 4 << 30,
            done: 1 << 30,
            fetched: 1 << 30,
            blobs: 9,
            blobs_done: 2,
            elapsed_ms: 1024,
            current: None,
        };
        assert_eq!(
            line("big:v1", &snapshot),
            "big:v1  25% █████░░░░░░░░░░░░░░░ 1.00 GiB of 4.00 GiB 2 of 9 1000.00 MiB/s 3 seconds left"
        );
    }
}
