//! Durability in the background: one `syncfs` covers everything that was published before it.

use std::fs::File;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread::JoinHandle;

use crate::store::error::{Error, io};
use crate::store::{Entry, Store};

/// Hands entries to the thread that makes them durable.
#[derive(Debug)]
pub struct Flusher {
    sender: Mutex<Option<SyncSender<Message>>>,
    receiver: Mutex<Option<Receiver<Message>>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Debug)]
enum Message {
    Entry(Entry),
    /// Answered when everything before it is durable, or lost.
    Wait(SyncSender<bool>),
}

/// Entries that may wait. Beyond it an entry is left as it is: not durable, and checked after a restart.
const QUEUE: usize = 16 * 1024;
/// Entries made durable by one `syncfs`.
const BATCH: usize = 4096;

impl Flusher {
    pub(super) fn new() -> Self {
        let (sender, receiver) = sync_channel(QUEUE);
        Self {
            sender: Mutex::new(Some(sender)),
            receiver: Mutex::new(Some(receiver)),
            thread: Mutex::default(),
        }
    }

    /// Starts the thread. It holds no reference to the store while it waits.
    pub(super) fn start(&self, store: &Arc<Store>) -> Result<(), Error> {
        let Some(receiver) = lock(&self.receiver).take() else { return Ok(()) };
        let weak = Arc::downgrade(store);
        // One descriptor for good: the kernel reports an error of writeback once to each.
        let directory = File::open(&store.directory).map_err(io("open", &store.directory))?;
        let thread = std::thread::Builder::new()
            .name("store-flush".into())
            .spawn(move || run(&receiver, &weak, &directory))
            .map_err(io("start the flush thread of", &store.directory))?;
        *lock(&self.thread) = Some(thread);
        Ok(())
    }

    pub(super) fn add(&self, entry: Entry) {
        if let Some(sender) = lock(&self.sender).as_ref() {
            // A full queue only means that this entry is checked by the next process.
            let _ = sender.try_send(Message::Entry(entry));
        }
    }

    /// Ends the thread after the batch it works on.
    pub(super) fn stop(&self) {
        lock(&self.sender).take();
        let Some(thread) = lock(&self.thread).take() else { return };
        // The last reference to the store may be dropped by the flush thread itself.
        if thread.thread().id() != std::thread::current().id() {
            let _ = thread.join();
        }
    }
}

impl Store {
    /// Waits until everything published so far is durable. False when this process ever lost something.
    pub fn flush(&self) -> bool {
        let (done, wait) = sync_channel(1);
        let sender = lock(&self.flusher.sender).clone();
        sender.is_some_and(|sender| sender.send(Message::Wait(done)).is_ok()) && wait.recv().unwrap_or(false)
    }

    /// After a failed `syncfs` nobody knows what reached the disk, and the kernel tells of an error once. So all
    /// that is not durable goes: entries, and downloads that are resumable or still running.
    fn discard_volatile(&self) -> Result<(), Error> {
        {
            // Under this lock entries come into being: each is seen below, or sees this.
            let _guard = self.lock_records();
            self.losses.fetch_add(1, Ordering::SeqCst);
        }
        self.verified().clear();
        let mut result = self.discard_volatile_blobs();
        result = result.and(self.forget_volatile_layers()).and(self.forget_volatile_trees());
        for directory in crate::store::children(&self.directory.join("ingest"))? {
            result = result.and(crate::store::remove(&directory.join("ranges.json")));
        }
        result
    }
}

fn run(receiver: &Receiver<Message>, store: &Weak<Store>, directory: &File) {
    while let Ok(first) = receiver.recv() {
        let mut entries = Vec::new();
        let mut waiting = Vec::new();
        for message in std::iter::once(first).chain(receiver.try_iter().take(BATCH)) {
            match message {
                Message::Entry(entry) => entries.push(entry),
                Message::Wait(done) => waiting.push(done),
            }
        }
        let Some(store) = store.upgrade() else { return };
        let durable = entries.is_empty() || make_durable(&store, &entries, directory);
        let durable = durable && store.losses() == 0;
        for done in waiting {
            let _ = done.send(durable); // Who no longer waits does not need it.
        }
    }
}

fn make_durable(store: &Store, entries: &[Entry], directory: &File) -> bool {
    if let Err(error) = rustix::fs::syncfs(directory) {
        tracing::error!(%error, "syncfs failed; everything that is not durable is discarded and pulled again");
        if let Err(error) = store.discard_volatile() {
            tracing::error!(%error, "cannot discard what may be lost");
        }
        return false;
    }
    crate::host::failpoint::reached("flush.synced");
    for entry in entries {
        let result = match entry {
            Entry::Blob(digest) => store.mark_blob_durable(digest),
            Entry::Layer(key) => store.mark_layer_durable(key),
            Entry::Tree(key) => store.mark_tree_durable(key),
        };
        if let Err(error) = result {
            tracing::warn!(%error, ?entry, "cannot record durability");
        }
        crate::host::failpoint::reached("flush.recorded");
    }
    true
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
