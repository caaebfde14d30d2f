//! Ctrl-C: says what is kept, and has the status that shells know.

use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};

use indicatif::BinaryBytes;
use tokio::signal::unix::{SignalKind, signal};

use crate::failure::{Failure, Kind};

/// Bytes that are in the store of what is being pulled.
static KEPT: AtomicU64 = AtomicU64::new(0);
/// The signal that ended the command.
static CAUGHT: AtomicI32 = AtomicI32::new(0);

/// So many bytes of what is being pulled are in the store.
pub fn kept(bytes: u64) {
    KEPT.store(bytes, Ordering::Relaxed);
}

/// Ends when somebody wants the command to end.
pub async fn wanted() -> Failure {
    let (Ok(mut interrupt), Ok(mut terminate)) =
        (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
    else {
        return std::future::pending().await; // The signal then ends the process by itself.
    };
    let number = tokio::select! {
        _ = interrupt.recv() => SignalKind::interrupt().as_raw_value(),
        _ = terminate.recv() => SignalKind::terminate().as_raw_value(),
    };
    CAUGHT.store(number, Ordering::Relaxed);
    Failure { kind: Kind::Aborted, message: said(KEPT.load(Ordering::Relaxed)) }
}

/// Whether somebody wants the command to end: what blocks looks at it, and clears away what it made.
pub fn is_wanted() -> bool {
    CAUGHT.load(Ordering::Relaxed) != 0
}

/// An error where that is so.
///
/// # Errors
/// When somebody wants the command to end.
pub fn check() -> std::io::Result<()> {
    if is_wanted() { Err(std::io::Error::other("stopped")) } else { Ok(()) }
}

/// The exit status when a signal has ended the command.
pub fn status() -> Option<u8> {
    match CAUGHT.load(Ordering::Relaxed) {
        0 => None,
        number => u8::try_from(128 + number).ok(),
    }
}

fn said(kept: u64) -> String {
    match kept {
        0 => "stopped".to_owned(),
        kept => format!("stopped; {} are kept, pull again to go on", BinaryBytes(kept)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_said() {
        assert_eq!(said(0), "stopped");
        assert_eq!(said(789 << 20), "stopped; 789.00 MiB are kept, pull again to go on");
    }
}
