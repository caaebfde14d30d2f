//! Hashing, and unpacking, the bytes of a blob one after the other.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;

use crate::host::limits::READ_BACK;
use crate::host::metric::Seconds;
use crate::layer::format::Summary;
use crate::oci::digest::{Digest, Hasher};
use crate::store::content::layers::LayerIngest;
use crate::store::content::partial::Partial;
use crate::store::key::Name;
use crate::store::open::Store;
use crate::transfer::error::Error;
use crate::transfer::metrics::Stage;
use crate::unpack::directory_memory::DirectoryMemory;
use crate::unpack::error::Error as UnpackError;
use crate::unpack::extract::Limits;
use crate::unpack::pipeline::Unpack;
use crate::unpack::space::Space;

/// Takes all bytes of a blob, in their order.
pub struct Follower {
    /// Nothing, when the content is known to be that of the digest.
    hasher: Option<Hasher>,
    digest: Digest,
    taken: u64,
    /// Of all that was taken, once that is known.
    got: Option<Digest>,
    unpack: Option<Unpack>,
    /// The content is bad; the rest is only hashed, to know whether it is the right one.
    refused: Option<UnpackError>,
    /// Where unpacking stopped, because it needs a large window.
    stopped_at: Option<u64>,
    busy: Seconds<Stage>,
}

/// Bytes of the files of one layer; a bound for hostile ones, far above the largest models.
const LAYER_LIMIT: u64 = 16 << 40;

impl Follower {
    /// Only hashes, to compare with `digest`. How long that takes is added to `busy`.
    pub fn hashing(digest: Digest, busy: Seconds<Stage>) -> Self {
        let hasher = Some(digest.algorithm().hasher());
        Self { hasher, digest, taken: 0, got: None, unpack: None, refused: None, stopped_at: None, busy }
    }

    /// Unpacks into the directory of `ingest` as well. `content` is what the uncompressed archive has to be, `directories` where
    /// memory for many of them comes from.
    ///
    /// # Errors
    /// Those of the store and of unpacking.
    pub fn unpacking(
        store: &Store,
        digest: Digest,
        ingest: &LayerIngest,
        content: Option<Digest>,
        directories: DirectoryMemory,
        busy: Seconds<Stage>,
    ) -> Result<Self, Error> {
        let (room, name) = (Arc::clone(&store.disk.room), Name::content(&digest));
        let space = Space::asking(move |growth| room.has_for(name, growth.written, growth.more));
        let limits = Limits { bytes: LAYER_LIMIT, space, directories };
        let started = Unpack::start(ingest.directory(), ingest.profile(), limits, content);
        let unpack = started.map_err(|source| Error::Unpack { digest: digest.clone(), source })?;
        Ok(Self { unpack: Some(unpack), ..Self::hashing(digest, busy) })
    }

    /// Does not hash: the content was compared with its digest before.
    pub fn of_verified(self) -> Self {
        Self { hasher: None, ..self }
    }

    /// Takes the next bytes. Returns those from where unpacking needs a large window: it goes on with them, and with what follows,
    /// when [`Self::finish`] reads them again.
    ///
    /// # Errors
    /// [`Error::Unpack`] when the disk failed. That the content is bad is an error at the end, if it is the right content.
    pub fn take(&mut self, bytes: Bytes) -> Result<Option<Bytes>, Error> {
        if let Some(hasher) = &mut self.hasher {
            let began = Instant::now();
            hasher.update(&bytes);
            self.busy.add(Stage::Verify, began.elapsed());
        }
        self.taken += bytes.len() as u64;
        if self.stopped_at.is_some() {
            return Ok(None);
        }
        let rest = self.unpack(bytes)?;
        if let Some(rest) = &rest {
            self.stopped_at = Some(self.taken - rest.len() as u64);
        }
        Ok(rest)
    }

    /// Bad content is only bad if it is the content that was asked for: a broken mirror is no reason to refuse an
    /// image. So the digest decides, at the end.
    fn unpack(&mut self, bytes: Bytes) -> Result<Option<Bytes>, Error> {
        let Some(unpack) = &mut self.unpack else { return Ok(None) };
        let began = Instant::now();
        let pushed = unpack.push(bytes);
        self.busy.add(Stage::Unpack, began.elapsed());
        match pushed {
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

    /// Whether it unpacks.
    pub fn unpacks(&self) -> bool {
        self.unpack.is_some()
    }

    /// Allows 128 MiB of memory for decompression. Who calls this bounds how many have that.
    pub fn allow_large_window(&mut self) {
        if let Some(unpack) = &mut self.unpack {
            unpack.allow_large_window();
        }
    }

    /// Whether [`Self::finish`] takes that memory.
    pub fn needs_large_window(&self) -> bool {
        self.stopped_at.is_some() && self.unpack.is_some()
    }

    /// The digest of all that was taken. *Caller:* nothing is taken after that.
    pub fn digest(&mut self) -> Digest {
        let hasher = self.hasher.take();
        self.got.get_or_insert_with(|| hasher.map_or_else(|| self.digest.clone(), Hasher::finish)).clone()
    }

    /// What was unpacked, when all was taken. What is left of that is read from `partial`.
    ///
    /// # Errors
    /// [`Error::Unpack`], also for content that was refused before; those of the store.
    pub fn finish(mut self, partial: &Partial) -> Result<Summary, Error> {
        if let Some(mut at) = self.stopped_at {
            self.allow_large_window();
            while self.unpack.is_some() && at < partial.size() {
                let end = (at + READ_BACK as u64).min(partial.size());
                let bytes = partial.read_at(at..end)?;
                at = end;
                self.unpack(bytes)?;
            }
        }
        let summary = match (self.unpack.take(), self.refused) {
            (Some(unpack), None) => {
                let began = Instant::now();
                let summary = unpack.finish();
                self.busy.add(Stage::Unpack, began.elapsed());
                summary
            }
            (_, Some(refused)) => Err(refused),
            (None, None) => return Err(Error::Fault),
        };
        summary.map_err(|source| Error::Unpack { digest: self.digest, source })
    }
}
