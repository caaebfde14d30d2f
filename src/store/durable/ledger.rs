//! Which entries can be trusted: those that this process wrote or checked, and those that are on the disk.
//!
//! That an entry is durable is an empty file in `durable/`, named after the entry and the generation of its record. It is made
//! after a `syncfs` that covers the entry, so it is never there too early; it may be lost, and then the entry is checked again.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::Deserialize;

use crate::host::failpoint;
use crate::store::disk::{Disk, remove};
use crate::store::durable::record::{self, Stamp};
use crate::store::error::{Error, io};
use crate::store::key::Entry;

/// What is known of entries, for the whole store.
#[derive(Debug)]
pub struct Ledger {
    disk: Arc<Disk>,
    /// Entries that this process wrote or checked, or knows to be durable, with their generation.
    trusted: Mutex<HashMap<Entry, u64>>,
    /// How often what was not durable had to be given up.
    losses: AtomicU64,
    /// Whether more waited to become durable than there is room for: some of it will not be noted as that by this process.
    overflowed: AtomicBool,
    /// Held while an entry comes into being or is given up.
    publishing: Mutex<()>,
    /// To the thread that makes entries durable; `None` when the store is closed.
    queue: Mutex<Option<SyncSender<Message>>>,
}

/// What the thread that makes entries durable is told.
#[derive(Debug)]
pub(in crate::store) enum Message {
    /// An entry came into being.
    Entry(Written),
    /// Answered when everything before it is durable, or lost.
    Wait(SyncSender<bool>),
}

/// An entry of a generation.
#[derive(Debug)]
pub(in crate::store) struct Written {
    entry: Entry,
    generation: u64,
    /// How often something had been lost when it came into being.
    pub(in crate::store) losses: u64,
}

/// What is read of a record.
#[derive(Deserialize)]
struct Stamped {
    #[serde(flatten)]
    stamp: Stamp,
}

/// Entries that may wait to become durable. Beyond it an entry is left as it is: checked by the next process.
const QUEUE: usize = 16 * 1024;

impl Ledger {
    pub(in crate::store) fn new(disk: Arc<Disk>) -> (Self, Receiver<Message>) {
        let (sender, receiver) = sync_channel(QUEUE);
        let ledger = Self {
            disk,
            trusted: Mutex::default(),
            losses: AtomicU64::new(0),
            overflowed: AtomicBool::new(false),
            publishing: Mutex::default(),
            queue: Mutex::new(Some(sender)),
        };
        (ledger, receiver)
    }

    /// Whether the entry with this stamp can be used without being looked at.
    pub(in crate::store) fn is_trusted(&self, entry: &Entry, stamp: &Stamp) -> bool {
        if lock(&self.trusted).get(entry) == Some(&stamp.generation) {
            return true;
        }
        let durable = stamp.durable || self.marker(entry, stamp.generation).exists();
        if durable {
            lock(&self.trusted).insert(entry.clone(), stamp.generation);
        }
        durable
    }

    /// Whether the entry with this stamp is on the disk.
    pub(in crate::store) fn is_durable(&self, entry: &Entry, stamp: &Stamp) -> bool {
        stamp.durable || self.marker(entry, stamp.generation).exists()
    }

    /// The entry was written or checked by this process, and is to become durable.
    pub(in crate::store) fn trust(&self, entry: Entry, stamp: &Stamp) {
        let (generation, losses) = (stamp.generation, self.losses());
        lock(&self.trusted).insert(entry.clone(), generation);
        if let Some(queue) = lock(&self.queue).as_ref() {
            // A full queue only means that this entry is checked by the next process.
            if queue.try_send(Message::Entry(Written { entry, generation, losses })).is_err() {
                self.overflow();
            }
        }
    }

    /// Removes the record of an entry, and all that says of it that it can be trusted.
    ///
    /// # Errors
    /// [`Error::Io`] when the record cannot be removed.
    pub(in crate::store) fn forget(&self, entry: &Entry, record: &Path) -> Result<(), Error> {
        let known = lock(&self.trusted).remove(entry);
        let generation = match known {
            Some(generation) => Some(generation),
            // A record that cannot be read is removed all the same.
            None => record::read::<Stamped>(record).ok().flatten().map(|known| known.stamp.generation),
        };
        remove(record)?;
        if let Some(generation) = generation {
            self.unmark(entry, generation);
        }
        Ok(())
    }

    /// Removes the marker of an entry that is no more. One that stays is only in the way.
    fn unmark(&self, entry: &Entry, generation: u64) {
        if let Err(error) = remove(&self.marker(entry, generation)) {
            tracing::debug!(%error, "a marker of what is gone stays");
        }
    }

    /// Notes that what was written is on the disk, after a `syncfs` that covered it; unless it is no more.
    pub(in crate::store) fn mark_durable(&self, written: &Written) -> Result<(), Error> {
        let Written { entry, generation, .. } = written;
        let is_still_there = || lock(&self.trusted).get(entry) == Some(generation);
        if !is_still_there() {
            return Ok(());
        }
        let path = self.marker(entry, *generation);
        let mut options = fs::OpenOptions::new();
        options.write(true).create(true).truncate(false).mode(0o600);
        let marked = failpoint::fails("durable.mark").and_then(|()| options.open(&path).map(drop));
        marked.map_err(io("create", &path))?;
        // Who has taken it away meanwhile may not have seen the marker.
        if !is_still_there() {
            self.unmark(entry, *generation);
        }
        Ok(())
    }

    /// Something that waited to be noted as durable no longer does.
    pub(in crate::store) fn overflow(&self) {
        self.overflowed.store(true, Ordering::SeqCst);
    }

    /// Whether something will not be noted as durable by this process, although it may be.
    pub(in crate::store) fn has_overflowed(&self) -> bool {
        self.overflowed.load(Ordering::SeqCst)
    }

    /// Held while an entry comes into being or is given up: each is seen by who gives up, or sees that somebody did.
    pub(in crate::store) fn publishing(&self) -> MutexGuard<'_, ()> {
        lock(&self.publishing)
    }

    /// How often what was not durable had to be given up. Who began before must not publish after.
    pub(in crate::store) fn losses(&self) -> u64 {
        self.losses.load(Ordering::SeqCst)
    }

    /// Fails when something was given up since `losses` were counted.
    pub(in crate::store) fn check_losses(&self, losses: u64, what: &str) -> Result<(), Error> {
        if self.losses() == losses {
            return Ok(());
        }
        Err(Error::Damaged(format!("the disk failed while {what} was written")))
    }

    /// Nothing that is not durable is trusted any more.
    pub(in crate::store) fn lose(&self) {
        let _one = self.publishing();
        self.losses.fetch_add(1, Ordering::SeqCst);
        lock(&self.trusted).clear();
    }

    /// Waits until everything published so far is durable. False when this process ever lost something, or could not note that
    /// it is durable.
    pub(in crate::store) fn flush(&self) -> bool {
        let (done, wait) = sync_channel(1);
        let queue = lock(&self.queue).clone();
        queue.is_some_and(|queue| queue.send(Message::Wait(done)).is_ok()) && wait.recv().unwrap_or(false)
    }

    /// Ends the thread that makes entries durable, after the batch it works on.
    pub(in crate::store) fn close(&self) {
        lock(&self.queue).take();
    }

    fn marker(&self, entry: &Entry, generation: u64) -> PathBuf {
        self.disk.directory().join("durable").join(marker_name(entry, generation))
    }
}

/// The name in `durable/` of the file that says that an entry of this generation is on the disk.
pub(in crate::store) fn marker_name(entry: &Entry, generation: u64) -> String {
    format!("{}-{generation:016x}", entry.file_name())
}

/// The entry that a file in `durable/` is about.
pub(in crate::store) fn entry_of_marker(name: &str) -> Option<Entry> {
    Entry::parse(name.rsplit_once('-')?.0)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
