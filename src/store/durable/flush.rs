//! Durability in the background: one `syncfs` covers everything that was published before it.

use std::fs::File;
use std::sync::Arc;
use std::sync::mpsc::Receiver;

use crate::host::failpoint;
use crate::store::disk::Disk;
use crate::store::durable::ledger::{Ledger, Message};
use crate::store::error::{Error, io};

/// Entries made durable by one `syncfs`.
const BATCH: usize = 4096;

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
    // Whether every marker so far has reached the disk.
    let mut noted = true;
    while let Ok(first) = receiver.recv() {
        let mut entries = Vec::new();
        let mut waiting = Vec::new();
        for message in std::iter::once(first).chain(receiver.try_iter().take(BATCH)) {
            match message {
                // What was written before something was lost may be lost with it.
                Message::Entry { losses, .. } if losses != ledger.losses() => {}
                Message::Entry { entry, generation, .. } => entries.push((entry, generation)),
                Message::Wait(done) => waiting.push(done),
            }
        }
        let synced = entries.is_empty() || sync(directory, give_up);
        if synced {
            for (entry, generation) in &entries {
                if let Err(error) = ledger.mark_durable(entry, *generation) {
                    tracing::warn!(%error, ?entry, "cannot record durability");
                }
                failpoint::reached("flush.recorded");
            }
            // So that who waits can rely on it. Without, the entries are checked again.
            if let Err(error) = rustix::fs::fsync(markers) {
                tracing::warn!(%error, "cannot make durability durable");
                noted = false;
            }
        }
        let durable = synced && noted && ledger.losses() == 0 && ledger.is_all_marked();
        for done in waiting {
            let _ = done.send(durable); // Who no longer waits does not need it.
        }
    }
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
