//! Where the bytes of a transfer go: the writer that takes them from the network, and the follower that hashes and unpacks them.
//!
//! The writer is a thread that only puts pieces where they belong. A large blob has a second one, the follower; a small one is
//! followed by the writer itself, between the pieces.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::thread::JoinHandle;

use bytes::Bytes;
use tokio::sync::mpsc;

use crate::layer::format::Profile;
use crate::oci::descriptor::Descriptor;
use crate::oci::digest::{Digest, Hasher};
use crate::store::access::origin::Origin;
use crate::store::content::blobs::Blob;
use crate::store::content::ingest::Ingest;
use crate::store::content::layers::LayerIngest;
use crate::store::content::partial::Partial;
use crate::store::error::Error as StoreError;
use crate::store::open::Store;
use crate::transfer::counter::Counter;
use crate::transfer::error::Error;
use crate::transfer::fetch::Piece;
use crate::transfer::needed::{Form, Needed, Stored};
use crate::transfer::queue::Queue;
use crate::unpack::error::Error as UnpackError;
use crate::unpack::extract::Limits;
use crate::unpack::pipeline::{Unpack, yield_to_others};

/// Where the bytes of one transfer go.
pub struct Sink {
    blob: Descriptor,
    target: Target,
    follower: Following,
    abandon: Abandon,
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
    Layer {
        ingest: Box<LayerIngest>,
        partial: Arc<Partial>,
        content: Option<Digest>,
    },
    /// They are only hashed.
    Nothing {
        partial: Arc<Partial>,
    },
}

/// Who follows the writer.
enum Following {
    /// The writer itself.
    Here(Follower),
    Thread(JoinHandle<Result<Follower, Error>>),
    /// All was followed.
    Done(Follower),
}

/// Hashes, and unpacks, the bytes one after the other.
struct Follower {
    hasher: Hasher,
    digest: Digest,
    unpack: Option<Unpack>,
    /// The content is bad; the rest is only hashed, to know whether it is the right one.
    refused: Option<UnpackError>,
    /// Where unpacking stopped, because it needs a large window; what follows is in the partial's file.
    stopped_at: Option<u64>,
}

/// Bytes of the files of one layer; a bound for hostile ones, far above the largest models.
const LAYER_LIMIT: u64 = 16 << 40;
/// Bytes read back at a time.
const READ_BACK: u64 = 256 * 1024;

impl Sink {
    /// Opens a sink for what `origin` will send.
    ///
    /// # Errors
    /// Those of the store; [`Error::Thread`].
    pub fn open(store: &Store, needed: &Needed, origin: Origin) -> Result<Self, Error> {
        let blob = needed.blob.clone();
        let target = match &needed.form {
            Form::File => Target::File(Arc::new(store.ingests.open(&blob, origin)?)),
            Form::Layer { profile, content } => {
                Self::layer(store, &blob, *profile, content.clone(), vec![origin])?
            }
            Form::Nothing => {
                let partial = Partial::streamed(std::path::PathBuf::new(), blob.size);
                Target::Nothing { partial: Arc::new(partial) }
            }
        };
        Self::new(store, blob, target)
    }

    /// A sink with all of a layer that the store has as a file.
    ///
    /// # Errors
    /// Those of the store and of unpacking.
    pub fn from_file(store: &Store, needed: &Needed, file: &Blob) -> Result<Self, Error> {
        let Form::Layer { profile, content } = &needed.form else { return Err(Error::Fault) };
        let mut target = Self::layer(store, &needed.blob, *profile, content.clone(), file.origins.clone())?;
        let mut follower = Follower::new(store, &needed.blob, &target)?;
        let source = Arc::new(Partial::published(file.path.clone(), file.size));
        while let Some(bytes) = source.follow()? {
            follower.take(bytes, &source)?;
        }
        // What needs a large window is read from there once more.
        if let Target::Layer { partial, .. } = &mut target {
            *partial = source;
        }
        let abandon = Abandon(target.handle());
        Ok(Self { blob: needed.blob.clone(), target, follower: Following::Done(follower), abandon })
    }

    fn layer(
        store: &Store,
        blob: &Descriptor,
        profile: Profile,
        content: Option<Digest>,
        origins: Vec<Origin>,
    ) -> Result<Target, Error> {
        let ingest = Box::new(store.layers.ingest(blob, profile, origins)?);
        let partial = Arc::new(Partial::streamed(ingest.early(), blob.size));
        Ok(Target::Layer { ingest, partial, content })
    }

    fn new(store: &Store, blob: Descriptor, target: Target) -> Result<Self, Error> {
        let follower = Follower::new(store, &blob, &target)?;
        let follower = if Queue::is_small(blob.size) {
            Following::Here(follower)
        } else {
            let (partial, unpacks) = (target.handle(), follower.unpack.is_some());
            let thread = std::thread::Builder::new().name("follow".into());
            Following::Thread(
                thread
                    .spawn(move || {
                        if unpacks {
                            yield_to_others();
                        }
                        // Dropped, also by a panic, it ends a writer that would wait for a follower that is no more.
                        let partial = Abandon(partial);
                        follower.follow(partial.0.partial())
                    })
                    .map_err(Error::Thread)?,
            )
        };
        let abandon = Abandon(target.handle());
        Ok(Self { blob, target, follower, abandon })
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
            Following::Thread(thread) => match thread.join() {
                // The follower's own error says more than the writer's, which it ended.
                Ok(followed) => Following::Done(followed?),
                Err(panic) => std::panic::resume_unwind(panic),
            },
            Following::Here(mut follower) => {
                // A blob that was all here when it was resumed has had no piece that it was followed after.
                let partial = self.target.partial();
                while written.is_ok()
                    && let Some(bytes) = partial.follow_what_is_there()?
                {
                    follower.take(bytes, partial)?;
                }
                Following::Done(follower)
            }
            done @ Following::Done(_) => done,
        };
        written.map(|()| self)
    }

    fn write(&mut self, piece: Piece) -> Result<(), Error> {
        match &self.target {
            Target::File(ingest) => ingest.write(piece.offset, piece.bytes)?,
            Target::Layer { partial, .. } | Target::Nothing { partial } => {
                partial.write(piece.offset, piece.bytes)?;
            }
        }
        if let Following::Here(follower) = &mut self.follower {
            let partial = self.target.partial();
            while let Some(bytes) = partial.follow_what_is_there()? {
                follower.take(bytes, partial)?;
            }
        }
        Ok(())
    }

    /// Whether [`Self::finish`] takes 128 MiB of memory; who calls it bounds how many do.
    pub fn needs_large_window(&self) -> bool {
        matches!(&self.follower, Following::Done(follower) if follower.needs_large_window())
    }

    /// Checks the digest and publishes.
    ///
    /// # Errors
    /// [`StoreError::Mismatch`] when the content is not what the digest names, [`Error::Unpack`] when it is and
    /// cannot be unpacked, and those of the store.
    pub fn finish(self) -> Result<Stored, Error> {
        let Self { blob, target, follower, abandon } = self;
        drop(abandon);
        let Following::Done(mut follower) = follower else { return Err(Error::Fault) };
        let expected = blob.digest;
        let got = follower.hasher_of(&expected).finish();
        match target {
            Target::File(ingest) => {
                let ingest = Arc::into_inner(ingest).ok_or(Error::Fault)?;
                Ok(Stored::Blob(ingest.publish(&got)?))
            }
            _ if got != expected => Err(StoreError::Mismatch { expected, got }.into()),
            Target::Nothing { .. } => Ok(Stored::Nothing),
            Target::Layer { ingest, partial, content } => {
                let summary = follower.unpacked(&partial)?;
                Ok(Stored::Layer(ingest.publish(summary, content)?))
            }
        }
    }
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
            Self::Layer { partial, .. } | Self::Nothing { partial } => partial,
        }
    }

    fn handle(&self) -> Handle {
        match self {
            Self::File(ingest) => Handle::File(Arc::clone(ingest)),
            Self::Layer { partial, .. } | Self::Nothing { partial } => Handle::Other(Arc::clone(partial)),
        }
    }
}

impl Follower {
    fn new(store: &Store, blob: &Descriptor, target: &Target) -> Result<Self, Error> {
        let digest = blob.digest.clone();
        let unpack = match target {
            Target::Layer { ingest, content, .. } => {
                let limits = Limits { bytes: LAYER_LIMIT, reserve: store.disk.reserve()? };
                let started = Unpack::start(ingest.directory(), ingest.profile(), limits, content.clone());
                Some(started.map_err(|source| Error::Unpack { digest: digest.clone(), source })?)
            }
            Target::File(_) | Target::Nothing { .. } => None,
        };
        let hasher = digest.algorithm().hasher();
        Ok(Self { hasher, digest, unpack, refused: None, stopped_at: None })
    }

    /// Takes everything that comes.
    fn follow(mut self, partial: &Partial) -> Result<Self, Error> {
        while let Some(bytes) = partial.follow()? {
            self.take(bytes, partial)?;
        }
        Ok(self)
    }

    /// Hashes and unpacks the next bytes of `partial`.
    fn take(&mut self, bytes: Bytes, partial: &Partial) -> Result<(), Error> {
        self.hasher.update(&bytes);
        if self.stopped_at.is_none()
            && let Some(rest) = self.unpack(bytes)?
        {
            partial.spool(&rest)?;
            self.stopped_at = Some(partial.followed() - rest.len() as u64);
        }
        Ok(())
    }

    /// Bad content is only bad if it is the content that was asked for: a broken mirror is no reason to refuse an
    /// image. So the digest decides, at the end.
    fn unpack(&mut self, bytes: Bytes) -> Result<Option<Bytes>, Error> {
        let Some(unpack) = &mut self.unpack else { return Ok(None) };
        match unpack.push(bytes) {
            Ok(rest) => Ok(rest),
            Err(source) => {
                self.unpack = None;
                if !source.is_about_content() {
                    return Err(Error::Unpack { digest: self.digest.clone(), source });
                }
                self.refused = Some(source);
                Ok(None)
            }
        }
    }

    fn needs_large_window(&self) -> bool {
        self.stopped_at.is_some() && self.unpack.is_some()
    }

    fn hasher_of(&mut self, digest: &Digest) -> Hasher {
        std::mem::replace(&mut self.hasher, digest.algorithm().hasher())
    }

    /// What was unpacked, when all has come.
    fn unpacked(mut self, partial: &Partial) -> Result<crate::layer::format::Summary, Error> {
        if let (Some(mut at), Some(unpack)) = (self.stopped_at, &mut self.unpack) {
            unpack.allow_large_window();
            while self.unpack.is_some() && at < partial.size() {
                let end = (at + READ_BACK).min(partial.size());
                let bytes = partial.read_at(at..end)?;
                at = end;
                self.unpack(bytes)?;
            }
        }
        let summary = match (self.unpack.take(), self.refused) {
            (Some(unpack), None) => unpack.finish(),
            (_, Some(refused)) => Err(refused),
            (None, None) => return Err(Error::Fault),
        };
        summary.map_err(|source| Error::Unpack { digest: self.digest, source })
    }
}
