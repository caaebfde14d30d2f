//! Where the bytes of a transfer go: the writer that takes them from the network, and the follower that hashes and unpacks them.
//!
//! The writer is a thread that only puts pieces where they belong. A large blob has a second one, the follower; a small one is
//! followed by the writer itself, between the pieces.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::thread::JoinHandle;
use std::time::Instant;

use bytes::Bytes;
use tokio::sync::mpsc;

use crate::host::fair_queue::Permit;
use crate::host::metric::Seconds;
use crate::oci::descriptor::Descriptor;
use crate::oci::digest::Digest;
use crate::store::access::origin::Origin;
use crate::store::content::ingest::Ingest;
use crate::store::content::layers::LayerIngest;
use crate::store::content::partial::Partial;
use crate::store::content::ranges::Ranges;
use crate::store::error::Error as StoreError;
use crate::store::open::Store;
use crate::transfer::archive::Archive;
use crate::transfer::counter::Counter;
use crate::transfer::error::Error;
use crate::transfer::fetch::Piece;
use crate::transfer::follower::Follower;
use crate::transfer::metrics::Stage;
use crate::transfer::needed::{Form, Needed, Stored};
use crate::transfer::queue::Queue;
use crate::unpack::directory_memory::DirectoryMemory;
use crate::unpack::pipeline::yield_to_others;

/// Where the bytes of one transfer go.
///
/// *Invariant:* fields are dropped in their order: the follower is told to end, has ended, and then its directory goes.
pub struct Sink {
    blob: Descriptor,
    abandon: Abandon,
    follower: Following,
    target: Target,
    busy: Seconds<Stage>,
}

/// To unpack while it comes.
pub struct Turn {
    /// Held until all is unpacked, or nothing is left of it.
    pub permit: Permit,
    /// Memory for many directories.
    pub directories: DirectoryMemory,
}

/// Ends the follower of a sink that is given up.
struct Abandon(Handle);

impl Drop for Abandon {
    fn drop(&mut self) {
        self.0.partial().abandon();
    }
}

/// What is made of the bytes.
enum Target {
    File(Arc<Ingest>),
    /// They are unpacked while they come.
    Layer {
        ingest: Box<LayerIngest>,
        partial: Arc<Partial>,
        content: Option<Digest>,
        permit: Permit,
    },
    /// They are kept until all are here, and unpacked then.
    Archive {
        ingest: Box<LayerIngest>,
        partial: Arc<Partial>,
    },
    /// They are only hashed.
    Nothing {
        partial: Arc<Partial>,
    },
}

/// What has become of the bytes.
pub enum Finished {
    /// They are in the store.
    Stored(Stored),
    /// They are to be unpacked.
    Archive(Archive),
}

/// Who follows the writer.
enum Following {
    /// The writer itself.
    Here(Follower),
    Thread(FollowerThread),
    /// All was followed.
    Done(Follower),
}

impl Sink {
    /// Opens a sink for what `origin` will send. A layer is unpacked while it comes, if there is a `turn` for that; else it is a
    /// file until all of it is here. What it takes its time for is added to `busy`.
    ///
    /// # Errors
    /// Those of the store; [`Error::Thread`].
    pub fn open(
        store: &Store,
        needed: &Needed,
        origin: Origin,
        turn: Option<Turn>,
        busy: Seconds<Stage>,
    ) -> Result<Self, Error> {
        let blob = needed.blob.clone();
        let mut follower = Follower::hashing(blob.digest.clone(), busy.clone());
        let target = match (&needed.form, turn) {
            (Form::File, _) => Target::File(Arc::new(store.ingests.open(&blob, origin)?)),
            (Form::Layer { profile, content }, Some(Turn { permit, directories })) => {
                let ingest = Box::new(store.layers.ingest(&blob, *profile, vec![origin])?);
                let (digest, content) = (blob.digest.clone(), content.clone());
                let (of_follower, busy) = (content.clone(), busy.clone());
                follower = Follower::unpacking(store, digest, &ingest, of_follower, directories, busy)?;
                let partial = Arc::new(Partial::streamed(ingest.early(), blob.size));
                Target::Layer { ingest, partial, content, permit }
            }
            (Form::Layer { profile, .. }, None) => {
                let ingest = Box::new(store.layers.ingest(&blob, *profile, vec![origin])?);
                let partial = Partial::spooled(ingest.early(), blob.size, Ranges::default());
                Target::Archive { ingest, partial: Arc::new(partial) }
            }
            (Form::Nothing, _) => {
                let partial = Partial::streamed(PathBuf::new(), blob.size);
                Target::Nothing { partial: Arc::new(partial) }
            }
        };
        let follower = if Queue::is_small(blob.size) {
            Following::Here(follower)
        } else {
            Following::Thread(FollowerThread::start(follower, target.handle())?)
        };
        let abandon = Abandon(target.handle());
        Ok(Self { blob, abandon, follower, target, busy })
    }

    /// What is there, and what is missing.
    pub fn partial(&self) -> &Partial {
        self.target.partial()
    }

    /// Whether its bytes may come in any order. A layer's may too: what comes early is kept.
    pub fn takes_parts(&self) -> bool {
        !matches!(self.target, Target::Nothing { .. })
    }

    /// The writer's thread: takes pieces until no more can come, then waits for the follower, if all have come.
    ///
    /// # Errors
    /// Those of the store, of the disk and of unpacking.
    pub fn run(mut self, mut pieces: mpsc::Receiver<Piece>, counter: &Counter) -> Result<Self, Error> {
        let mut written = Ok(());
        while let Some(piece) = pieces.blocking_recv() {
            written = self.write(piece);
            if written.is_err() {
                break;
            }
            // Of sources that are raced the one that is ahead counts.
            counter.here.fetch_max(self.partial().present(), Relaxed);
        }
        if written.is_ok() && self.partial().is_complete() {
            self.partial().close();
        } else {
            self.partial().abandon();
        }
        self.follower = match self.follower {
            // The follower's own error says more than the writer's, which it ended.
            Following::Thread(thread) => Following::Done(thread.end()?),
            Following::Here(mut follower) => {
                // A blob that was all here when it was resumed has had no piece that it was followed after.
                let partial = self.target.partial();
                while written.is_ok()
                    && let Some(bytes) = partial.follow_what_is_there()?
                {
                    take(&mut follower, bytes, partial)?;
                }
                Following::Done(follower)
            }
            done @ Following::Done(_) => done,
        };
        written.map(|()| self)
    }

    fn write(&mut self, Piece { offset, bytes }: Piece) -> Result<(), Error> {
        let (began, waited) = (Instant::now(), self.partial().waited());
        match &self.target {
            Target::File(ingest) => ingest.write(offset, bytes)?,
            Target::Layer { ingest, partial, .. } | Target::Archive { ingest, partial } => {
                ingest.write(partial, offset, bytes)?;
            }
            Target::Nothing { partial } => partial.write(offset, bytes)?,
        }
        // What follows may be behind: that is no time of the disk's.
        let waited = self.partial().waited().saturating_sub(waited);
        self.busy.add(Stage::Write, began.elapsed().saturating_sub(waited));
        if let Following::Here(follower) = &mut self.follower {
            let partial = self.target.partial();
            while let Some(bytes) = partial.follow_what_is_there()? {
                take(follower, bytes, partial)?;
            }
        }
        Ok(())
    }

    /// Whether [`Self::finish`] takes 128 MiB of memory; who calls it bounds how many do. Not for what has the wrong digest: that is
    /// told at once, so that another source is asked.
    pub fn needs_large_window(&mut self) -> bool {
        let Following::Done(follower) = &mut self.follower else { return false };
        follower.needs_large_window() && follower.digest() == self.blob.digest
    }

    /// Whether what is finished is to be unpacked still.
    pub fn is_archive(&self) -> bool {
        matches!(self.target, Target::Archive { .. })
    }

    /// Checks the digest and publishes.
    ///
    /// # Errors
    /// [`StoreError::Mismatch`] when the content is not what the digest names, [`Error::Unpack`] when it is and
    /// cannot be unpacked, and those of the store.
    pub fn finish(self) -> Result<Finished, Error> {
        let Self { blob, abandon, follower, target, .. } = self;
        drop(abandon);
        let Following::Done(mut follower) = follower else { return Err(Error::Fault) };
        let expected = blob.digest;
        let got = follower.digest();
        let stored = match target {
            Target::File(ingest) => {
                let ingest = Arc::into_inner(ingest).ok_or(Error::Fault)?;
                Stored::Blob(ingest.publish(&got)?)
            }
            _ if got != expected => {
                drop(follower); // Before its directory.
                return Err(StoreError::Mismatch { expected, got }.into());
            }
            Target::Archive { ingest, partial } => {
                return Ok(Finished::Archive(Archive::downloaded(ingest, partial)));
            }
            Target::Nothing { .. } => Stored::Nothing,
            Target::Layer { ingest, partial, content, permit } => {
                let summary = follower.finish(&partial)?;
                drop(permit);
                Stored::Layer(ingest.publish(summary, content)?)
            }
        };
        Ok(Finished::Stored(stored))
    }
}

/// The thread of a follower; it has ended when this is dropped.
struct FollowerThread(Option<JoinHandle<Result<Follower, Error>>>);

impl FollowerThread {
    /// Starts the thread that follows the writer of `partial`.
    fn start(mut follower: Follower, partial: Handle) -> Result<Self, Error> {
        let work = move || {
            if follower.unpacks() {
                yield_to_others();
            }
            // Dropped, also by a panic, it ends a writer that would wait for a follower that is no more.
            let partial = Abandon(partial);
            while let Some(bytes) = partial.0.partial().follow()? {
                take(&mut follower, bytes, partial.0.partial())?;
            }
            Ok(follower)
        };
        let thread = std::thread::Builder::new().name("follow".into()).spawn(work);
        Ok(Self(Some(thread.map_err(Error::Thread)?)))
    }

    /// Waits for its end.
    fn end(mut self) -> Result<Follower, Error> {
        match self.0.take().map(JoinHandle::join) {
            Some(Ok(followed)) => followed,
            Some(Err(panic)) => std::panic::resume_unwind(panic),
            None => Err(Error::Fault),
        }
    }
}

impl Drop for FollowerThread {
    fn drop(&mut self) {
        if let Some(thread) = self.0.take() {
            let _ = thread.join(); // It was told to end, and what it has is not wanted.
        }
    }
}

/// Has `follower` take the next bytes of `partial`, which becomes a file when they are needed again.
fn take(follower: &mut Follower, bytes: Bytes, partial: &Partial) -> Result<(), Error> {
    if let Some(rest) = follower.take(bytes)? {
        partial.spool(&rest)?;
    }
    Ok(())
}

/// Something that has a partial, for the follower's thread.
enum Handle {
    File(Arc<Ingest>),
    Other(Arc<Partial>),
}

impl Handle {
    fn partial(&self) -> &Partial {
        match self {
            Self::File(ingest) => ingest.partial(),
            Self::Other(partial) => partial,
        }
    }
}

impl Target {
    fn partial(&self) -> &Partial {
        match self {
            Self::File(ingest) => ingest.partial(),
            Self::Layer { partial, .. } | Self::Archive { partial, .. } | Self::Nothing { partial } => {
                partial
            }
        }
    }

    fn handle(&self) -> Handle {
        match self {
            Self::File(ingest) => Handle::File(Arc::clone(ingest)),
            Self::Layer { partial, .. } | Self::Archive { partial, .. } | Self::Nothing { partial } => {
                Handle::Other(Arc::clone(partial))
            }
        }
    }
}
