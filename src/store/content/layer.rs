//! A layer, as those see it who use it.

use std::fs::File;
use std::path::PathBuf;

use crate::layer::entries::Entries;
use crate::layer::format::{INDEX, Summary};
use crate::layer::index::{ENTRY_LIMIT, Reader};
use crate::oci::digest::Digest;
use crate::store::access::origin::Origin;
use crate::store::error::{Error, io};
use crate::store::key::LayerKey;

/// A layer in the store.
#[derive(Debug, Clone)]
pub struct Layer {
    /// Its name.
    pub key: LayerKey,
    /// Where it is.
    pub directory: PathBuf,
    /// The blob it came from.
    pub digest: Digest,
    /// Bytes of that blob.
    pub size: u64,
    /// What was unpacked.
    pub summary: Summary,
    /// Digests of the uncompressed archive, one of each algorithm that was once checked.
    pub contents: Vec<Digest>,
    /// Whether its blob was once fetched without credentials: then everybody may have it.
    pub public: bool,
    /// The repositories its blob was fetched from, or was shown to be readable in.
    pub origins: Vec<Origin>,
}

impl Layer {
    /// What the layer holds. It takes less than [`Summary::memory`] bytes.
    ///
    /// # Errors
    /// [`Error::Damaged`] when the index is not what was written, [`Error::Io`].
    pub fn entries(&self) -> Result<Entries, Error> {
        let path = self.directory.join(INDEX);
        let file = File::open(&path).map_err(io("read", &path))?;
        let size = file.metadata().map_err(io("read", &path))?.len();
        let Summary { index, entries, memory, .. } = self.summary;
        let damaged = |why: String| Error::Damaged(format!("layer {}: {why}", self.key));
        if size > memory {
            return Err(damaged(format!(
                "its index has {size} bytes, and needed {memory} bytes of memory when it was written"
            )));
        }
        let read = Entries::read(file, index, entries.min(ENTRY_LIMIT), size);
        read.map_err(|error| damaged(error.to_string()))
    }

    /// The same one after the other, in little memory. The last is an error when the index is not what was written.
    ///
    /// # Errors
    /// [`Error::Io`] when it cannot be opened.
    pub fn read_entries(&self) -> Result<Reader<File>, Error> {
        let path = self.directory.join(INDEX);
        Ok(Reader::new(File::open(&path).map_err(io("read", &path))?, self.summary.index, ENTRY_LIMIT))
    }
}
