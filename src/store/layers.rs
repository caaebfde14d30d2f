//! Layers: archives that were unpacked, each once, whatever images and artifacts they are part of.
//!
//! ```text
//! layers/<key>.json        the record; without it the layer is not there
//! layers/<key>/fs          files at their names; what pods see, where an image is one layer
//! layers/<key>/aside       content whose name was taken
//! layers/<key>/index       every entry, in the order of the archive
//! ```
//!
//! A layer is always complete: what a volume leaves out, it leaves out of its tree.

use std::collections::HashMap;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::layer;
use crate::layer::checksum::Checksum;
use crate::layer::format::{Profile, Summary};
use crate::layer::index;
use crate::layer::index::{Kind, Metadata, Place};
use crate::layer::name::Name;
use crate::oci::descriptor::Descriptor;
use crate::oci::digest::Digest;
use crate::store::blobs::{Origin, note_origin};
use crate::store::error::{Error, io};
use crate::store::{Entry, Store, create_private, record, remove};

/// The name of a layer: a hash of everything that decides what it holds.
///
/// *Invariant:* 64 lower-case hex digits.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String")]
pub struct LayerKey(String);

/// A layer in the store.
#[derive(Debug, Clone)]
pub struct Layer {
    /// Its name.
    pub key: LayerKey,
    /// Where it is.
    pub directory: PathBuf,
    /// Bytes of the blob it came from.
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

/// A layer that is being unpacked. What was written goes when this is dropped without being published.
#[derive(Debug)]
pub struct LayerIngest {
    store: Arc<Store>,
    directory: PathBuf,
    key: LayerKey,
    profile: Profile,
    blob: Descriptor,
    origins: Vec<Origin>,
    /// [`Store::losses`] when it was begun.
    losses: u64,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct LayerRecord {
    digest: Digest,
    size: u64,
    profile: Profile,
    summary: Summary,
    contents: Vec<Digest>,
    origins: Vec<Origin>,
    boot_id: String,
    durable: bool,
}

/// Changes whenever the same archive would be unpacked differently than before.
const UNPACK_VERSION: u32 = 2;

impl LayerKey {
    /// The key of the blob `digest`, unpacked in this way.
    pub fn new(digest: &Digest, profile: Profile) -> Self {
        let text = format!("{digest} {profile:?} {UNPACK_VERSION}");
        Self(Digest::sha256(text.as_bytes()).hex().to_owned())
    }

    /// The key as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for LayerKey {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, &'static str> {
        crate::store::trees::is_key(&text).then_some(Self(text)).ok_or("not a layer key")
    }
}

impl Layer {
    /// What the layer holds.
    ///
    /// # Errors
    /// [`Error::Damaged`] when the index is not what was written, [`Error::Io`].
    pub fn entries(&self) -> Result<Vec<layer::index::Entry>, Error> {
        let path = self.directory.join("index");
        let bytes = fs::read(&path).map_err(io("read", &path))?;
        index::read(&bytes, self.summary.index)
            .map_err(|error| Error::Damaged(format!("layer {}: {error}", self.key.as_str())))
    }

    /// Where the content of the entry with this number is, relative to the layer's directory.
    pub fn place(name: &Name, place: Place, number: u32) -> PathBuf {
        match place {
            Place::Named => Path::new("fs").join(std::ffi::OsStr::from_bytes(name.as_bytes())),
            Place::Aside => Path::new("aside").join(number.to_string()),
        }
    }
}

impl LayerIngest {
    /// Where to unpack to: a directory that is empty.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Publishes the layer. The caller has checked the digest of the blob, and of its `content` if that is given.
    ///
    /// # Errors
    /// [`Error::Damaged`] when the disk failed meanwhile, [`Error::NoSpace`], [`Error::Io`].
    pub fn publish(self, summary: Summary, content: Option<Digest>) -> Result<Layer, Error> {
        crate::host::failpoint::reached("unpack.finished");
        let store = &self.store;
        let _one = store.publishing();
        if let Some(known) = store.layer(&self.key)? {
            // Somebody else was faster, or the content is only now known.
            store.update_layer(&self.key, |record| {
                let mut news = false;
                if let Some(content) = &content
                    && !record.contents.iter().any(|known| known.algorithm() == content.algorithm())
                {
                    record.contents.push(content.clone());
                    news = true;
                }
                for origin in &self.origins {
                    news |= note_origin(&mut record.origins, origin.clone());
                }
                news
            })?;
            return Ok(store.layer(&self.key)?.unwrap_or(known));
        }
        store.retire_layer(&self.key)?;
        let directory = store.layer_directory(&self.key);
        fs::rename(&self.directory, &directory).map_err(io("publish", &directory))?;
        crate::host::failpoint::reached("layer.named");
        let record = LayerRecord {
            digest: self.blob.digest.clone(),
            size: self.blob.size,
            profile: self.profile,
            summary,
            contents: content.into_iter().collect(),
            origins: self.origins.clone(),
            boot_id: store.boot_id.clone(),
            durable: false,
        };
        {
            let _guard = store.lock_records();
            store.check_losses(self.losses, &format!("layer {}", self.blob.digest))?;
            store.write_record(&store.layer_record(&self.key), &record)?;
        }
        crate::host::failpoint::reached("layer.recorded");
        let entry = Entry::Layer(self.key.clone());
        store.verified().insert(entry.clone());
        store.flusher.add(entry);
        Ok(store.as_layer(&self.key, record))
    }
}

impl Drop for LayerIngest {
    fn drop(&mut self) {
        // After publishing there is nothing there. What stays is removed at the next start.
        if let Err(error) = self.store.discard(&self.directory) {
            tracing::warn!(%error, "cannot remove what was unpacked in vain");
        }
    }
}

impl Store {
    /// Starts to unpack `blob`, all of which comes from each of `origins`.
    ///
    /// # Errors
    /// [`Error::NoSpace`], [`Error::Io`].
    pub fn ingest_layer(
        self: &Arc<Self>,
        blob: &Descriptor,
        profile: Profile,
        origins: Vec<Origin>,
    ) -> Result<LayerIngest, Error> {
        let losses = self.losses();
        let directory = self.temporary();
        create_private(&directory).map_err(io("create", &directory))?;
        let key = LayerKey::new(&blob.digest, profile);
        Ok(LayerIngest {
            store: Arc::clone(self),
            directory,
            key,
            profile,
            blob: blob.clone(),
            origins,
            losses,
        })
    }

    /// The layer with `key`, if it is here.
    ///
    /// The first look by a new process at a layer that is not durable reads it whole.
    ///
    /// # Errors
    /// [`Error::Io`]. A layer that did not survive is discarded and counts as absent.
    pub fn layer(&self, key: &LayerKey) -> Result<Option<Layer>, Error> {
        let entry = Entry::Layer(key.clone());
        let read = || record::read::<LayerRecord>(&self.layer_record(key));
        let is_trusted = |known: &LayerRecord| known.durable || self.verified().contains(&entry);
        let Some(mut known) = read()? else { return Ok(None) };
        if !is_trusted(&known) {
            let _one = self.checking(key.as_str());
            // Somebody may have looked meanwhile.
            match read()? {
                Some(now) => known = now,
                None => return Ok(None),
            }
            if !is_trusted(&known) {
                if known.boot_id != self.boot_id || !self.is_sound(key, &known)? {
                    tracing::warn!(key = key.as_str(), "discarding a layer that did not survive");
                    self.retire_layer(key)?;
                    return Ok(None);
                }
                self.verified().insert(entry.clone());
                self.flusher.add(entry);
            }
        }
        let layer = self.as_layer(key, known);
        Ok(Some(layer).filter(|layer| layer.directory.join("fs").is_dir()))
    }

    fn is_sound(&self, key: &LayerKey, known: &LayerRecord) -> Result<bool, Error> {
        match is_sound(&self.as_layer(key, known.clone())) {
            Err(error) if error.is_loss() => Ok(false),
            result => result,
        }
    }

    /// Gives the layer up if the disk has lost something of it, so that it is pulled again.
    pub(super) fn give_up_if_lost(&self, layer: &Layer) -> Result<(), Error> {
        let _one = self.checking(layer.key.as_str());
        match is_sound(layer) {
            Ok(true) => return Ok(()),
            Err(error) if !error.is_loss() => return Err(error),
            _ => tracing::warn!(key = layer.key.as_str(), "discarding a layer that the disk has lost"),
        }
        self.retire_layer(&layer.key)
    }

    /// Notes that the layer's blob was shown to be readable at `origin`.
    ///
    /// # Errors
    /// [`Error::NoSpace`], [`Error::Io`].
    pub fn add_layer_origin(&self, key: &LayerKey, origin: Origin) -> Result<(), Error> {
        self.update_layer(key, |known| note_origin(&mut known.origins, origin))
    }

    pub(super) fn mark_layer_durable(&self, key: &LayerKey) -> Result<(), Error> {
        self.update_layer(key, |known| !std::mem::replace(&mut known.durable, true))
    }

    /// Forgets every layer that is not durable. Goes on after an error, and returns the first.
    pub(super) fn forget_volatile_layers(&self) -> Result<(), Error> {
        let mut result = Ok(());
        for path in crate::store::children(&self.directory.join("layers"))? {
            let key = path.file_name().and_then(|name| name.to_str()?.strip_suffix(".json"));
            let key = key.and_then(|key| LayerKey::try_from(key.to_owned()).ok());
            let known = key.as_ref().map(|_| record::read::<LayerRecord>(&path));
            if let (Some(key), Some(Ok(Some(LayerRecord { durable: false, .. })))) = (key, known) {
                result = result.and(self.forget_layer(&key));
            }
        }
        result
    }

    fn forget_layer(&self, key: &LayerKey) -> Result<(), Error> {
        let _guard = self.lock_records();
        self.verified().remove(&Entry::Layer(key.clone()));
        remove(&self.layer_record(key))
    }

    /// Moves a layer's directory aside. Its files stay: a pod may have it mounted.
    fn retire_layer(&self, key: &LayerKey) -> Result<(), Error> {
        self.forget_layer(key)?;
        self.retire(&self.layer_directory(key))
    }

    fn as_layer(&self, key: &LayerKey, record: LayerRecord) -> Layer {
        Layer {
            key: key.clone(),
            directory: self.layer_directory(key),
            size: record.size,
            summary: record.summary,
            contents: record.contents,
            public: record.origins.iter().any(|origin| origin.anonymous),
            origins: record.origins,
        }
    }

    fn update_layer(
        &self,
        key: &LayerKey,
        change: impl FnOnce(&mut LayerRecord) -> bool,
    ) -> Result<(), Error> {
        let path = self.layer_record(key);
        let _guard = self.lock_records();
        let Some(mut known) = record::read::<LayerRecord>(&path)? else { return Ok(()) };
        if change(&mut known) { self.write_record(&path, &known) } else { Ok(()) }
    }

    fn layer_directory(&self, key: &LayerKey) -> PathBuf {
        self.directory.join("layers").join(key.as_str())
    }

    fn layer_record(&self, key: &LayerKey) -> PathBuf {
        self.directory.join("layers").join(format!("{}.json", key.as_str()))
    }
}

/// Compares everything on disk with the index.
fn is_sound(layer: &Layer) -> Result<bool, Error> {
    let entries = layer.entries()?;
    let mut directories: HashMap<&Name, &Metadata> = HashMap::new();
    for (number, entry) in (0_u32..).zip(&entries) {
        let at = |place| layer.directory.join(Layer::place(&entry.name, place, number));
        let sound = match &entry.kind {
            Kind::File { size, checksum, place } => is_file(&at(*place), *size, *checksum, entry)?,
            Kind::Symlink { target, place } => {
                fs::read_link(at(*place)).is_ok_and(|found| found.as_os_str().as_bytes() == target)
            }
            Kind::Directory => {
                directories.insert(&entry.name, &entry.metadata);
                true
            }
            Kind::HardLink { target } if layer.summary.regular => {
                let other = layer.directory.join(Layer::place(target, Place::Named, 0));
                let inode =
                    |path: &Path| fs::symlink_metadata(path).map(|found| (found.dev(), found.ino())).ok();
                let (one, two) = (inode(&at(Place::Named)), inode(&other));
                one.is_some() && one == two
            }
            Kind::HardLink { .. } | Kind::Whiteout | Kind::Opaque | Kind::Dropped => true,
        };
        if !sound {
            return Ok(false);
        }
    }
    // Only a layer that is mounted as it is shows these.
    Ok(!layer.summary.regular
        || directories.into_iter().all(|(name, metadata)| {
            let path = layer.directory.join(Layer::place(name, Place::Named, 0));
            fs::symlink_metadata(path).is_ok_and(|found| {
                let mode = u32::from(metadata.mode);
                found.is_dir() && found.mode() & mode == mode
            })
        }))
}

fn is_file(path: &Path, size: u64, checksum: Checksum, entry: &layer::index::Entry) -> Result<bool, Error> {
    let Ok(found) = fs::symlink_metadata(path) else { return Ok(false) };
    let mode = u32::from(entry.metadata.mode);
    if !found.is_file() || found.len() != size || found.mode() & mode != mode {
        return Ok(false);
    }
    // Not every file system has every time.
    let storable = (0..i64::from(i32::MAX)).contains(&entry.metadata.mtime);
    if storable && found.mtime() != entry.metadata.mtime {
        return Ok(false);
    }
    Ok(hash_file(path)? == checksum)
}

fn hash_file(path: &Path) -> Result<Checksum, Error> {
    let mut hasher = xxhash_rust::xxh3::Xxh3::new();
    read_with_holes(path, &mut |piece| hasher.update(piece))?;
    Ok(Checksum::finish(&hasher))
}

/// Reads a file piece by piece. Its holes are not read, which would fill the page cache with zeros.
pub(super) fn read_with_holes(path: &Path, take: &mut dyn FnMut(&[u8])) -> Result<(), Error> {
    use rustix::fs::SeekFrom;
    use std::os::unix::fs::FileExt as _;
    static ZEROS: [u8; 64 * 1024] = [0; 64 * 1024];
    let file = fs::File::open(path).map_err(io("open", path))?;
    let size = file.metadata().map_err(io("read", path))?.len();
    let mut buffer = vec![0_u8; 256 * 1024];
    let (mut position, mut data_end) = (0, 0);
    while position < size {
        if position >= data_end {
            // A file system that knows no holes says that all is data.
            let data = match rustix::fs::seek(&file, SeekFrom::Data(position)) {
                Ok(data) => data.min(size),
                Err(rustix::io::Errno::NXIO) => size,
                Err(error) => return Err(io("read", path)(error.into())),
            };
            while position < data {
                let length = usize::try_from(data - position).unwrap_or(usize::MAX).min(ZEROS.len());
                take(&ZEROS[..length]);
                position += length as u64;
            }
            if position < size {
                let end = rustix::fs::seek(&file, SeekFrom::Hole(position)).unwrap_or(size);
                data_end = end.clamp(position + 1, size);
            }
            continue;
        }
        let wanted = usize::try_from(data_end - position).unwrap_or(usize::MAX).min(buffer.len());
        match file.read_at(&mut buffer[..wanted], position).map_err(io("read", path))? {
            0 => break,
            length => {
                take(&buffer[..length]);
                position += length as u64;
            }
        }
    }
    Ok(())
}
