//! Logs: key=value text or JSON, on stderr.

use std::io::IsTerminal as _;

use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{Layer as _, fmt};

/// How lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// For people.
    Text,
    /// One JSON object per line.
    Json,
}

/// Starts logging for the whole process: this program's own events from `level`, libraries' from warnings.
///
/// Libraries stay at warnings whatever is asked for: at lower levels HTTP clients log headers.
pub fn start(format: Format, level: LevelFilter) {
    let filter = Targets::new().with_default(LevelFilter::WARN.min(level)).with_target("ocivol", level);
    let layer = match format {
        Format::Text => {
            let ansi = std::io::stderr().is_terminal();
            fmt::layer().with_writer(std::io::stderr).with_ansi(ansi).with_target(false).boxed()
        }
        Format::Json => fmt::layer().json().flatten_event(true).with_writer(std::io::stderr).boxed(),
    };
    // Fails only when logging was started before, as in tests that run the node in their own process.
    let _ = tracing_subscriber::registry().with(layer.with_filter(filter)).try_init();
}
