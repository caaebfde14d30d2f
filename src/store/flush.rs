//! Durability in the background: one `syncfs` covers everything that was published before it.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread::JoinHandle;

use super::{Entry, Error, Store, error::io};

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
    /// Answered when everything before it is durable or discarded.
    Wait(SyncSender<()>),
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
        let thread = std::thread::Builder::new()
            .name("store-flush".into())
            .spawn(move || run(&receiver, &weak))
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
    /// Waits until everything published so far is durable.
    pub fn flush(&self) {
        let (done, wait) = sync_channel(1);
        let sender = lock(&self.flusher.sender).clone();
        if sender.is_some_and(|sender| sender.send(Message::Wait(done)).is_ok()) {
            let _ = wait.recv();
        }
    }
}

fn run(receiver: &Receiver<Message>, store: &Weak<Store>) {
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
        make_durable(&store, &entries);
        drop(waiting);
    }
}

fn make_durable(store: &Store, entries: &[Entry]) {
    if entries.is_empty() {
        return;
    }
    let synced = std::fs::File::open(&store.directory)
        .and_then(|directory| rustix::fs::syncfs(&directory).map_err(Into::into));
    if let Err(error) = &synced {
        tracing::error!(%error, entries = entries.len(), "syncfs failed; what it did not cover is discarded");
    }
    for entry in entries {
        let result = match (&synced, entry) {
            (Ok(()), Entry::Blob(digest)) => store.mark_blob_durable(digest),
            (Ok(()), Entry::Tree(key)) => store.mark_tree_durable(key),
            (Err(_), Entry::Blob(digest)) => store.discard_blob(digest),
            (Err(_), Entry::Tree(key)) => store.forget_tree(key),
        };
        if let Err(error) = result {
            tracing::warn!(%error, ?entry, "cannot record durability");
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
