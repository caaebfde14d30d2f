//! Layers: archives that were unpacked, each once, whatever images and artifacts they are part of.
//!
//! ```text
//! layers/<key>.json        the record; without it the layer is not there
//! layers/<key>/            what `layer::format` says
//! ```
//!
//! A layer is always complete: what a volume leaves out, it leaves out of its tree.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::host::failpoint;
use crate::host::limits::FIRST_LOOKS;
use crate::layer::format::{EARLY, FILES, Profile, Summary};
use crate::oci::descriptor::Descriptor;
use crate::oci::digest::Digest;
use crate::store::access::origin::{Origin, note_origin};
use crate::store::content::layer::Layer;
use crate::store::content::partial::Partial;
use crate::store::content::soundness::{self, Unsound};
use crate::store::disk::{Disk, create_private, each_child, remove};
use crate::store::durable::facts::Facts;
use crate::store::durable::ledger::Ledger;
use crate::store::durable::record::{self, Stamp};
use crate::store::error::{Error, io};
use crate::store::key::{Entry, LayerKey, Name};

/// The owner of `layers/`.
#[derive(Debug)]
pub struct Layers {
    disk: Arc<Disk>,
    ledger: Arc<Ledger>,
    facts: Arc<Facts>,
    /// Held while a layer that is not durable is looked at for the first time: once, and few at a time.
    checking: [Mutex<()>; FIRST_LOOKS],
    /// Held while a layer takes its name.
    naming: Mutex<()>,
}

/// A layer that is being unpacked. What was written goes when this is dropped without being published.
#[derive(Debug)]
pub struct LayerIngest {
    layers: Arc<Layers>,
    directory: PathBuf,
    key: LayerKey,
    profile: Profile,
    blob: Descriptor,
    origins: Vec<Origin>,
    /// [`Ledger::losses`] when it was begun.
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
    #[serde(flatten)]
    stamp: Stamp,
}

/// What is learnt of a layer later.
#[derive(Debug, Default, Serialize, Deserialize)]
struct LayerFacts {
    #[serde(default)]
    contents: Vec<Digest>,
    #[serde(default)]
    origins: Vec<Origin>,
}

impl LayerIngest {
    /// Where to unpack to: a directory that is empty.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// How its archive is read.
    pub fn profile(&self) -> Profile {
        self.profile
    }

    /// Another directory to unpack the same to. What the disk has lost since this was begun counts for that as well: what is
    /// unpacked was kept here.
    ///
    /// # Errors
    /// [`Error::NoSpace`], [`Error::Io`].
    pub fn again(&self) -> Result<Self, Error> {
        let origins = self.origins.clone();
        let mut again = self.layers.ingest(&self.blob, self.profile, origins)?;
        again.losses = self.losses;
        Ok(again)
    }

    /// Writes bytes of the archive that are kept in a file, in `partial`. *Caller:* one thread.
    ///
    /// # Errors
    /// As [`Partial::write`].
    pub fn write(&self, partial: &Partial, offset: u64, bytes: Bytes) -> Result<(), Error> {
        let content = Name::content(&self.blob.digest);
        // It is what is unpacked that was promised.
        partial.write_on(&self.layers.disk, content, false, offset, bytes)
    }

    /// Where bytes of the archive go that come before their turn.
    pub fn early(&self) -> PathBuf {
        self.directory.join(EARLY)
    }

    /// Publishes the layer. The caller has checked the digest of the blob, and of its `content` if that is given.
    ///
    /// # Errors
    /// [`Error::Damaged`] when the disk failed meanwhile, [`Error::NoSpace`], [`Error::Io`].
    pub fn publish(self, summary: Summary, content: Option<Digest>) -> Result<Layer, Error> {
        failpoint::reached("unpack.finished");
        remove(&self.early())?;
        let layers = &self.layers;
        let _one = layers.naming.lock().unwrap_or_else(PoisonError::into_inner);
        if layers.get(&self.key)?.is_some() {
            // Another download was faster, or the content is only now known.
            layers.facts.update(&Entry::Layer(self.key.clone()), |known: &mut LayerFacts| {
                let mut news = false;
                if let Some(content) = &content
                    && !known.contents.iter().any(|known| known.algorithm() == content.algorithm())
                {
                    known.contents.push(content.clone());
                    news = true;
                }
                for origin in &self.origins {
                    news |= note_origin(&mut known.origins, origin.clone());
                }
                news
            })?;
        } else {
            layers.retire(&self.key)?;
            let directory = layers.directory(&self.key);
            let named = failpoint::fails("layer.name").and_then(|()| fs::rename(&self.directory, &directory));
            named.map_err(io("publish", &directory))?;
            failpoint::reached("layer.named");
            let stamp = Stamp::now(&layers.disk);
            let record = LayerRecord {
                digest: self.blob.digest.clone(),
                size: self.blob.size,
                profile: self.profile,
                summary,
                contents: content.into_iter().collect(),
                origins: self.origins.clone(),
                stamp: stamp.clone(),
            };
            {
                let _guard = layers.ledger.publishing();
                let what = format!("layer {}", self.blob.digest);
                let recorded = layers.ledger.check_losses(self.losses, &what);
                let recorded = recorded
                    .and_then(|()| record::write(&layers.disk, &layers.record_path(&self.key), &record));
                if let Err(error) = recorded {
                    // Without its record it is nothing. It is deleted with this ingest, when nobody waits for that.
                    fs::rename(&directory, &self.directory).map_err(io("take back", &directory))?;
                    return Err(error);
                }
            }
            layers.disk.room.arrived(Name::content(&self.blob.digest));
            failpoint::reached("layer.recorded");
            layers.ledger.trust(Entry::Layer(self.key.clone()), &stamp);
        }
        layers.get(&self.key)?.ok_or_else(|| Error::Damaged(format!("layer {} is gone", self.key)))
    }
}

impl Drop for LayerIngest {
    fn drop(&mut self) {
        // After publishing there is nothing there. What stays is removed at the next start.
        if let Err(error) = self.layers.disk.discard(&self.directory) {
            tracing::warn!(%error, "cannot remove what was unpacked in vain");
        }
    }
}

impl Layers {
    pub(in crate::store) fn new(disk: Arc<Disk>, ledger: Arc<Ledger>, facts: Arc<Facts>) -> Self {
        Self { disk, ledger, facts, checking: Default::default(), naming: Mutex::default() }
    }

    /// Starts to unpack `blob`, all of which comes from each of `origins`.
    ///
    /// # Errors
    /// [`Error::NoSpace`], [`Error::Io`].
    pub fn ingest(
        self: &Arc<Self>,
        blob: &Descriptor,
        profile: Profile,
        origins: Vec<Origin>,
    ) -> Result<LayerIngest, Error> {
        let losses = self.ledger.losses();
        let directory = self.disk.temporary();
        let created = failpoint::fails("layer.create").and_then(|()| create_private(&directory));
        created.map_err(io("create", &directory))?;
        let key = LayerKey::new(&blob.digest, profile);
        let blob = blob.clone();
        Ok(LayerIngest { layers: Arc::clone(self), directory, key, profile, blob, origins, losses })
    }

    /// The layer with `key`, if it is here.
    ///
    /// The first look by a new process at a layer that is not durable reads it whole.
    ///
    /// # Errors
    /// [`Error::Io`]. A layer that did not survive is discarded and counts as absent.
    pub fn get(&self, key: &LayerKey) -> Result<Option<Layer>, Error> {
        let entry = Entry::Layer(key.clone());
        let read = || record::read::<LayerRecord>(&self.record_path(key));
        let is_trusted = |known: &LayerRecord| self.ledger.is_trusted(&entry, &known.stamp);
        let Some(mut known) = read()? else { return Ok(None) };
        if !is_trusted(&known) {
            let _one = self.checking(key);
            // Another thread may have looked meanwhile.
            match read()? {
                Some(now) => known = now,
                None => return Ok(None),
            }
            if !is_trusted(&known) {
                let is_of_this_boot = known.stamp.boot_id == self.disk.boot_id;
                let is_sound = is_of_this_boot && self.is_sound(&self.as_layer(key, known.clone())?)?;
                if !is_sound {
                    tracing::warn!(%key, "discarding a layer that did not survive");
                    self.retire(key)?;
                    return Ok(None);
                }
                self.ledger.trust(entry, &known.stamp);
            }
        }
        let layer = self.as_layer(key, known)?;
        Ok(Some(layer).filter(|layer| layer.directory.join(FILES).is_dir()))
    }

    /// Whether the disk still has everything of the layer.
    fn is_sound(&self, layer: &Layer) -> Result<bool, Error> {
        match soundness::check(layer) {
            Ok(()) => Ok(true),
            Err(Unsound::Content) => Ok(false),
            Err(Unsound::Unknown(error)) if error.is_loss() => Ok(false),
            Err(Unsound::Unknown(error)) => Err(error),
        }
    }

    /// Gives the layer up if the disk has lost something of it, so that it is pulled again.
    pub(in crate::store) fn give_up_if_lost(&self, layer: &Layer) -> Result<(), Error> {
        let _one = self.checking(&layer.key);
        if self.is_sound(layer)? {
            return Ok(());
        }
        tracing::warn!(key = %layer.key, "discarding a layer that the disk has lost");
        self.retire(&layer.key)
    }

    /// Notes that the layer's blob was shown to be readable at `origin`.
    ///
    /// # Errors
    /// [`Error::NoSpace`], [`Error::Io`].
    pub fn add_origin(&self, key: &LayerKey, origin: Origin) -> Result<(), Error> {
        let recorded = record::read::<LayerRecord>(&self.record_path(key))?;
        if recorded.is_none_or(|known| known.origins.contains(&origin)) {
            return Ok(());
        }
        let entry = Entry::Layer(key.clone());
        self.facts.update(&entry, |known: &mut LayerFacts| note_origin(&mut known.origins, origin))
    }

    /// Forgets every layer that is not durable. Goes on after an error, and returns the first.
    pub(in crate::store) fn forget_volatile(&self) -> Result<(), Error> {
        let mut result = Ok(());
        self.each(&mut |key, path| {
            if let Ok(Some(known)) = record::read::<LayerRecord>(path)
                && !self.ledger.is_durable(&Entry::Layer(key.clone()), &known.stamp)
            {
                result = std::mem::replace(&mut result, Ok(())).and(self.forget(&key));
            }
            Ok(())
        })?;
        result
    }

    /// Calls `take` with the key of one layer after the other, and where its record is.
    ///
    /// # Errors
    /// [`Error::Io`] when there is no list of them; those of `take`.
    pub(in crate::store) fn each(
        &self,
        take: &mut dyn FnMut(LayerKey, &Path) -> Result<(), Error>,
    ) -> Result<(), Error> {
        each_child(&self.disk.directory().join("layers"), &mut |path| {
            let name = path.file_name().and_then(|name| name.to_str()?.strip_suffix(".json"));
            name.and_then(LayerKey::parse).map_or(Ok(()), |key| take(key, path))
        })
    }

    /// What is recorded of a layer, without looking at it.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(in crate::store) fn recorded(&self, key: &LayerKey) -> Result<Option<Layer>, Error> {
        let known = record::read::<LayerRecord>(&self.record_path(key))?;
        known.map(|known| self.as_layer(key, known)).transpose()
    }

    /// Takes a layer out of the store, its record first. Returns where its files wait to be deleted.
    ///
    /// *Caller:* has claimed its content, and knows that nothing has it mounted.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(in crate::store) fn take_away(&self, key: &LayerKey) -> Result<PathBuf, Error> {
        let _one = self.naming.lock().unwrap_or_else(PoisonError::into_inner);
        self.forget(key)?;
        failpoint::reached("collect.layer_forgotten");
        self.disk.to_trash(&self.directory(key))
    }

    /// Takes the directory with this name out of sight, unless a record belongs to it or one is about to.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(in crate::store) fn take_nameless(&self, name: &str) -> Result<Option<PathBuf>, Error> {
        let _one = self.naming.lock().unwrap_or_else(PoisonError::into_inner);
        let directory = self.disk.directory().join("layers");
        match directory.join(format!("{name}.json")).exists() {
            true => Ok(None),
            false => self.disk.to_trash(&directory.join(name)).map(Some),
        }
    }

    fn forget(&self, key: &LayerKey) -> Result<(), Error> {
        let _guard = self.ledger.publishing();
        let entry = Entry::Layer(key.clone());
        self.ledger.forget(&entry, &self.record_path(key))?;
        self.facts.forget(&entry)
    }

    /// Gives a layer up that is not what it was: it is unpacked again. Pods that have it mounted keep it.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(in crate::store) fn give_up(&self, key: &LayerKey) -> Result<(), Error> {
        let _one = self.naming.lock().unwrap_or_else(PoisonError::into_inner);
        self.retire(key)
    }

    /// Moves a layer's directory out of the way. Its files stay: a pod may have it mounted.
    fn retire(&self, key: &LayerKey) -> Result<(), Error> {
        self.forget(key)?;
        self.disk.retire(&self.directory(key))
    }

    fn as_layer(&self, key: &LayerKey, record: LayerRecord) -> Result<Layer, Error> {
        let LayerFacts { contents, origins } = self.facts.of(&Entry::Layer(key.clone()))?;
        let origins: Vec<Origin> = record.origins.into_iter().chain(origins).collect();
        Ok(Layer {
            key: key.clone(),
            directory: self.directory(key),
            digest: record.digest,
            size: record.size,
            summary: record.summary,
            contents: record.contents.into_iter().chain(contents).collect(),
            public: origins.iter().any(|origin| origin.anonymous),
            origins,
        })
    }

    fn checking(&self, key: &LayerKey) -> MutexGuard<'_, ()> {
        let number = usize::from(key.as_str().bytes().last().unwrap_or_default()) % FIRST_LOOKS;
        self.checking[number].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where the layer with `key` is, or would be.
    pub(in crate::store) fn directory(&self, key: &LayerKey) -> PathBuf {
        self.disk.directory().join("layers").join(key.as_str())
    }

    fn record_path(&self, key: &LayerKey) -> PathBuf {
        self.disk.directory().join("layers").join(format!("{key}.json"))
    }
}

/// What is recorded of a layer in the store in `directory`, without what was learnt of it later.
pub(in crate::store) fn recorded(
    directory: &Path,
    key: &LayerKey,
) -> Result<Option<(Layer, Profile, Stamp)>, Error> {
    let directory = directory.join("layers");
    let known = record::read::<LayerRecord>(&directory.join(format!("{key}.json")))?;
    Ok(known.map(|known| {
        let layer = Layer {
            key: key.clone(),
            directory: directory.join(key.as_str()),
            digest: known.digest,
            size: known.size,
            summary: known.summary,
            contents: known.contents,
            public: false,
            origins: known.origins,
        };
        (layer, known.profile, known.stamp)
    }))
}
