//! A layer all of whose bytes are on the node, and unpacking it from there.

use std::sync::Arc;

use crate::host::limits::READ_BACK;
use crate::host::metric::Seconds;
use crate::store::access::origin::Origin;
use crate::store::content::blobs::Blob;
use crate::store::content::layers::LayerIngest;
use crate::store::content::partial::Partial;
use crate::store::error::Error as StoreError;
use crate::store::open::Store;
use crate::transfer::error::Error;
use crate::transfer::follower::Follower;
use crate::transfer::metrics::Stage;
use crate::transfer::needed::{Form, Needed, Stored};
use crate::unpack::directory_memory::DirectoryMemory;

/// All bytes of a layer, in a file.
pub struct Archive {
    partial: Arc<Partial>,
    /// Of a blob of the store.
    origins: Vec<Origin>,
    /// What was downloaded, and compared with its digest, is in its directory, and goes with that.
    download: Option<Box<LayerIngest>>,
}

/// How much memory unpacking may take.
#[derive(Debug, Clone)]
pub enum Room {
    /// What every layer may have, and as many directories as there is memory for.
    Common(DirectoryMemory),
    /// [`LARGE_UNPACK`](crate::host::limits::LARGE_UNPACK).
    Large,
}

impl Archive {
    /// A blob of the store.
    pub fn published(file: &Blob) -> Self {
        let partial = Arc::new(Partial::published(file.path.clone(), file.size));
        Self { partial, origins: file.origins.clone(), download: None }
    }

    /// What was downloaded, and has the right digest.
    pub fn downloaded(download: Box<LayerIngest>, partial: Arc<Partial>) -> Self {
        Self { partial, origins: Vec::new(), download: Some(download) }
    }

    /// Unpacks it as `needed`, and publishes that. Nothing, when it needs more room. How long it takes is added to `busy`.
    ///
    /// # Errors
    /// [`StoreError::Mismatch`] when the file no longer has the content that it had, [`Error::Unpack`] when the content cannot be
    /// unpacked, and those of the store.
    pub fn unpack(
        &self,
        store: &Store,
        needed: &Needed,
        room: Room,
        busy: Seconds<Stage>,
    ) -> Result<Option<Stored>, Error> {
        let Form::Layer { profile, content } = &needed.form else { return Err(Error::Fault) };
        let expected = &needed.blob.digest;
        let ingest = match &self.download {
            Some(download) => download.again()?,
            None => store.layers.ingest(&needed.blob, *profile, self.origins.clone())?,
        };
        let (is_large, directories) = match room {
            Room::Common(directories) => (false, directories),
            Room::Large => (true, DirectoryMemory::Own),
        };
        let digest = expected.clone();
        let mut follower = Follower::unpacking(store, digest, &ingest, content.clone(), directories, busy)?;
        if self.download.is_some() {
            follower = follower.of_verified();
        }
        if is_large {
            follower.allow_large_window();
        }
        let mut at = 0;
        while at < self.partial.size() {
            let end = (at + READ_BACK as u64).min(self.partial.size());
            match follower.take(self.partial.read_at(at..end)?) {
                Err(error) if error.is_short_of_memory() && !is_large => return Ok(None),
                taken => taken?,
            };
            if follower.needs_large_window() {
                return Ok(None);
            }
            at = end;
        }
        let got = follower.digest();
        if got != *expected {
            return Err(StoreError::Mismatch { expected: expected.clone(), got }.into());
        }
        let summary = match follower.finish(&self.partial) {
            Err(error) if error.is_short_of_memory() && !is_large => return Ok(None),
            summary => summary?,
        };
        Ok(Some(Stored::Layer(ingest.publish(summary, content.clone())?)))
    }
}
