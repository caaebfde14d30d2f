//! Named moments at which a test can end the process, as the power or the kernel's OOM killer would; named writes that it can make
//! fail, as a disk would; and all of them, and every piece of work that blocks, as moments at which it can have the process wait,
//! so that whatever runs beside it gets in between. What a kernel may lack a test can have it lack.
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

/// The error that `OCIVOL_FAILS_AT` wants of this `write`, once: `record.write:EIO`. Release builds hold nothing of this.
///
/// # Errors
/// The one that is wanted.
#[inline]
pub fn fails(write: &str) -> std::io::Result<()> {
    #[cfg(debug_assertions)]
    return chosen::fails(write);
    #[cfg(not(debug_assertions))]
    {
        let _ = write;
        Ok(())
    }
}

/// Whether this kernel shall be taken for one without `what`, because `OCIVOL_LACKS` names it: `statmount`. Release builds hold
/// nothing of this.
#[inline]
pub fn is_lacking(what: &str) -> bool {
    #[cfg(debug_assertions)]
    return std::env::var_os("OCIVOL_LACKS").is_some_and(|lacking| lacking == what);
    #[cfg(not(debug_assertions))]
    {
        let _ = what;
        false
    }
}

/// Waits for a random time, of at most as many milliseconds as `OCIVOL_DELAYS` says; mostly not at all. Release builds hold
/// nothing of this.
#[inline]
pub fn delay() {
    #[cfg(debug_assertions)]
    chosen::delay();
}

#[cfg(debug_assertions)]
mod chosen {
    use std::sync::LazyLock;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    /// The longest delay, in microseconds.
    static DELAYS: LazyLock<Option<u64>> =
        LazyLock::new(|| Some(std::env::var("OCIVOL_DELAYS").ok()?.parse::<u64>().ok()? * 1000));

    #[expect(clippy::disallowed_methods, reason = "waiting is what it is for")]
    pub(super) fn delay() {
        if let Some(longest) = *DELAYS
            && rand::random_ratio(1, 4)
        {
            std::thread::sleep(Duration::from_micros(rand::random_range(0..=longest)));
        }
    }

    struct Chosen {
        moment: String,
        /// Times it has to be reached still.
        left: AtomicUsize,
    }

    /// A write that fails, and the kernel's answer.
    static FAILING: LazyLock<Option<(String, i32)>> = LazyLock::new(|| {
        let text = std::env::var("OCIVOL_FAILS_AT").ok()?;
        let (write, error) = text.split_once(':')?;
        let errors = [libc::ENOSPC, libc::EDQUOT, libc::EIO, libc::EROFS, libc::EMFILE];
        let names = ["ENOSPC", "EDQUOT", "EIO", "EROFS", "EMFILE"];
        let at = names.iter().position(|name| *name == error)?;
        Some((write.to_owned(), *errors.get(at)?))
    });
    static FAILED: AtomicUsize = AtomicUsize::new(0);

    pub(super) fn fails(write: &str) -> std::io::Result<()> {
        delay();
        match FAILING.as_ref().filter(|(failing, _)| failing == write) {
            Some((_, error)) if FAILED.fetch_add(1, Ordering::SeqCst) == 0 => {
                let error = std::io::Error::from_raw_os_error(*error);
                tracing::warn!(write, %error, "OCIVOL_FAILS_AT");
                Err(error)
            }
            _ => Ok(()),
        }
    }

    static CHOSEN: LazyLock<Option<Chosen>> = LazyLock::new(|| {
        let text = std::env::var("OCIVOL_KILLED_AT").ok()?;
        let (moment, times) = text.split_once(':').unwrap_or((&text, "1"));
        Some(Chosen { moment: moment.to_owned(), left: AtomicUsize::new(times.parse().ok()?) })
    });

    pub(super) fn reached(moment: &str) {
        delay();
        let Some(chosen) = CHOSEN.as_ref().filter(|chosen| chosen.moment == moment) else { return };
        if chosen.left.fetch_sub(1, Ordering::SeqCst) == 1 {
            // Signal 9 is taken before the call returns.
            let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
        }
    }
}
