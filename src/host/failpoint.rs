//! Named moments at which a test can end the process, as the power or the kernel's OOM killer would.
//!
//! They stand where the work would be half done if it ended there: between a name and its record, between a mount
//! and what remembers it. `tests/crash/failpoints.rs` kills the plugin at every one of them, and finds a new one by itself.

/// Ends the process at once when `OCIVOL_KILLED_AT` names this `moment`: `layer.named`, or `unpack.entry:3` for the
/// third time it is reached. Release builds hold nothing of this.
#[inline]
pub fn reached(moment: &str) {
    #[cfg(debug_assertions)]
    chosen::reached(moment);
    #[cfg(not(debug_assertions))]
    let _ = moment;
}

#[cfg(debug_assertions)]
mod chosen {
    use std::sync::LazyLock;
    use std::sync::atomic::{AtomicUsize, Ordering};

    struct Chosen {
        moment: String,
        /// Times it has to be reached still.
        left: AtomicUsize,
    }

    static CHOSEN: LazyLock<Option<Chosen>> = LazyLock::new(|| {
        let text = std::env::var("OCIVOL_KILLED_AT").ok()?;
        let (moment, times) = text.split_once(':').unwrap_or((&text, "1"));
        Some(Chosen { moment: moment.to_owned(), left: AtomicUsize::new(times.parse().ok()?) })
    });

    pub(super) fn reached(moment: &str) {
        let Some(chosen) = CHOSEN.as_ref().filter(|chosen| chosen.moment == moment) else { return };
        if chosen.left.fetch_sub(1, Ordering::SeqCst) == 1 {
            // Signal 9 is taken before the call returns.
            let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
        }
    }
}
