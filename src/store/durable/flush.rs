//! Durability in the background: one `syncfs` covers everything that was published before it.

use std::fs::File;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

use crate::host::failpoint;
use crate::store::disk::Disk;
use crate::store::durable::ledger::{Ledger, Message, Written};
use crate::store::error::{Error, io};

/// Entries made durable by one `syncfs`.
const BATCH: usize = 4096;
/// Until what could not be noted as durable is tried again, if nothing else is to be made durable before.
const AGAIN: Duration = Duration::from_secs(10);
/// Markers that cannot be made, one after the other, until the rest waits: the disk is full, or fails.
const FAILURES: usize = 8;
/// Entries that are tried again. Those beyond are left as they are: checked by the next process.
const MOST_UNMARKED: usize = 16 * 1024;

/// Starts the thread that makes entries durable. It ends when the ledger is closed. `give_up` discards everything that is not
/// durable.
///
/// # Errors
/// [`Error::Io`] when the directory cannot be opened, or there is no thread.
pub(in crate::store) fn start(
    receiver: Receiver<Message>,
    disk: &Disk,
    ledger: Arc<Ledger>,
    give_up: impl Fn() -> Result<(), Error> + Send + 'static,
) -> Result<(), Error> {
    // One descriptor for good: the kernel reports an error of writeback once to each.
    let directory = File::open(disk.directory()).map_err(io("open", disk.directory()))?;
    let markers = disk.directory().join("durable");
    let markers = File::open(&markers).map_err(io("open", &markers))?;
    std::thread::Builder::new()
        .name("store-flush".into())
        .spawn(move || run(&receiver, &ledger, &directory, &markers, &give_up))
        .map(drop)
        .map_err(io("start the flush thread of", disk.directory()))
}

fn run(
    receiver: &Receiver<Message>,
    ledger: &Ledger,
    directory: &File,
    markers: &File,
    give_up: &impl Fn() -> Result<(), Error>,
) {
    // What is on the disk and could not be noted as that: there was no room for it, or the disk failed.
    let mut unmarked: Vec<Written> = Vec::new();
    // Whether every marker so far has reached the disk.
    let mut noted = true;
    loop {
        let first = match unmarked.is_empty() {
            true => receiver.recv().map_err(RecvTimeoutError::from),
            false => receiver.recv_timeout(AGAIN),
        };
        if matches!(first, Err(RecvTimeoutError::Disconnected)) {
            return;
        }
        let mut entries = Vec::new();
        let mut waiting = Vec::new();
        for message in first.into_iter().chain(receiver.try_iter().take(BATCH)) {
            match message {
                Message::Entry(written) => entries.push(written),
                Message::Wait(done) => waiting.push(done),
            }
        }
        // What was written before something was lost may be lost with it.
        let losses = ledger.losses();
        entries.retain(|written| written.losses == losses);
        let synced = entries.is_empty() || sync(directory, give_up);
        if synced {
            unmarked.append(&mut entries);
        }
        unmarked.retain(|written| written.losses == ledger.losses());
        if mark(ledger, &mut unmarked) {
            // So that who waits can rely on it. Without, the entries are checked again.
            if let Err(error) = rustix::fs::fsync(markers) {
                tracing::warn!(%error, "cannot make durability durable");
                noted = false;
            }
        }
        let all_marked = unmarked.is_empty() && !ledger.has_overflowed();
        let durable = synced && noted && all_marked && ledger.losses() == 0;
        for done in waiting {
            let _ = done.send(durable); // Who no longer waits does not need it.
        }
    }
}

/// Notes that entries are on the disk; whether any was. Those that could not be noted stay in `written`, and are tried again.
fn mark(ledger: &Ledger, written: &mut Vec<Written>) -> bool {
    let all = written.len();
    let (mut failures, mut in_a_row, mut last) = (0, 0, None);
    written.retain(|next| {
        if in_a_row >= FAILURES {
            return true;
        }
        if let Err(error) = ledger.mark_durable(next) {
            (failures, in_a_row, last) = (failures + 1, in_a_row + 1, Some(error));
            return true;
        }
        in_a_row = 0;
        failpoint::reached("flush.recorded");
        false
    });
    if let Some(error) = last {
        let entries = written.len();
        tracing::warn!(%error, failures, entries, "cannot record durability; it is tried again");
    }
    if written.len() > MOST_UNMARKED {
        ledger.overflow();
        written.truncate(MOST_UNMARKED);
    }
    written.len() < all
}

/// After a failed `syncfs` nobody knows what reached the disk, and the kernel tells of an error once. So all that is not
/// durable goes.
fn sync(directory: &File, give_up: &impl Fn() -> Result<(), Error>) -> bool {
    match rustix::fs::syncfs(directory) {
        Ok(()) => {
            failpoint::reached("flush.synced");
            true
        }
        Err(error) => {
            tracing::error!(%error, "syncfs failed; everything that is not durable is discarded and pulled again");
            if let Err(error) = give_up() {
                tracing::error!(%error, "cannot discard what may be lost");
            }
            false
        }
    }
}
