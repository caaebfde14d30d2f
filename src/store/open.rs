//! Opens the store: takes its lock, clears what earlier processes left, and puts its parts together.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock};

use crate::oci::digest::Digest;
use crate::oci::reference::Reference;
use crate::oci::repository::Repository;
use crate::store::access::grants::Grants;
use crate::store::access::keyed::NodeKey;
use crate::store::access::tags::Tags;
use crate::store::collect::past::Past;
use crate::store::collect::rules::Keeper;
use crate::store::content::blobs::Blobs;
use crate::store::content::ingest::Ingests;
use crate::store::content::layers::Layers;
use crate::store::content::trees::Trees;
use crate::store::disk::{Disk, FORMAT, boot_id, create_private};
use crate::store::durable::facts::Facts;
use crate::store::durable::ledger::Ledger;
use crate::store::durable::{flush, record, recovery};
use crate::store::error::{Error, io};
use crate::store::fsck::cursor::Cursor;
use crate::store::lock::Lock;
use crate::store::space::budget::Budget;
use crate::store::usage::holds::Holds;
use crate::store::usage::leases::Leases;
use crate::store::usage::pins::Pins;
use crate::store::usage::volumes::{VolumeRecord, VolumeRecords};

/// What a directory may hold that is nobody's but the store's. The last one is made with a file system.
const OWN_NAMES: [&str; 3] = [FORMAT, "lock", "lost+found"];

/// Directories of the format.
const DIRECTORIES: [&str; 15] = [
    "ingest",
    "ingest/trash",
    "blobs/sha256",
    "blobs/sha512",
    "layers",
    "trees",
    "images",
    "durable",
    "facts",
    "volumes",
    "leases",
    "pins",
    "tags",
    "proofs",
    "empty",
];

/// The store, open for writing by this process alone.
#[derive(Debug)]
pub struct Store {
    /// The directory, and its space.
    pub disk: Arc<Disk>,
    /// Verified blobs as files.
    pub blobs: Arc<Blobs>,
    /// Unpacked archives.
    pub layers: Arc<Layers>,
    /// What pods see.
    pub trees: Trees,
    /// Downloads that can be resumed.
    pub ingests: Arc<Ingests>,
    /// Who has shown a right to what.
    pub grants: Grants,
    /// What tags were.
    pub tags: Tags,
    /// Published targets.
    pub volumes: VolumeRecords,
    /// What this process needs.
    pub holds: Holds,
    /// Trees that commands need.
    pub leases: Leases,
    /// Trees that an operator wants to be here.
    pub pins: Pins,
    /// Collects what has to go at once; set by who knows what is mounted.
    pub keeper: OnceLock<Keeper>,
    /// Held by the one collection that runs.
    pub(in crate::store) collections: Mutex<Past>,
    ledger: Arc<Ledger>,
    _lock: Lock,
}

impl Store {
    /// Opens the store at `root`, and creates it where there is none. It takes what `budget` allows.
    ///
    /// # Errors
    /// [`Error::Locked`] while another process has it, [`Error::Newer`] when a later version wrote it,
    /// [`Error::Unusable`] when the directory cannot be created, belongs to another user, or cannot be written.
    pub fn open(root: &Path, budget: Budget) -> Result<Arc<Self>, Error> {
        let unusable = |reason: String| Error::Unusable { root: root.to_owned(), reason };
        create_private(root).map_err(|error| unusable(error.to_string()))?;
        let metadata = fs::metadata(root).map_err(|error| unusable(error.to_string()))?;
        if metadata.uid() != rustix::process::geteuid().as_raw() {
            return Err(unusable(format!("it belongs to user {}", metadata.uid())));
        }
        // Whoever made it for us, kubelet for example, may have let others in. What holds anything else, as /tmp does, is not ours.
        let is_ours = || {
            let names =
                fs::read_dir(root).into_iter().flatten().map(|entry| entry.map(|entry| entry.file_name()));
            names.into_iter().all(|name| name.is_ok_and(|name| OWN_NAMES.iter().any(|own| name == *own)))
        };
        if metadata.mode() & 0o077 != 0 && is_ours() {
            fs::set_permissions(root, fs::Permissions::from_mode(0o700)).map_err(|error| {
                unusable(format!(
                    "others may enter it, and that cannot be changed ({error}); chmod it to 0700"
                ))
            })?;
        }
        let lock = Lock::take(root)?;
        for entry in fs::read_dir(root).map_err(io("list", root))? {
            let name = entry.map_err(io("list", root))?.file_name();
            let version = name.to_str().and_then(|name| name.strip_prefix('v')?.parse::<u32>().ok());
            if version.is_some_and(|version| version > 1) {
                return Err(Error::Newer { root: root.to_owned(), format: name.to_string_lossy().into() });
            }
        }
        let directory = root.join(FORMAT);
        for name in DIRECTORIES {
            create_private(&directory.join(name)).map_err(|error| unusable(error.to_string()))?;
        }
        // First: on a full disk it is what makes the rest possible.
        recovery::clear(&directory, &boot_id()?)?;
        let disk = Arc::new(Disk::new(directory, budget)?);
        let (ledger, entries) = Ledger::new(Arc::clone(&disk));
        let ledger = Arc::new(ledger);
        let parts = || (Arc::clone(&disk), Arc::clone(&ledger));
        let facts = Arc::new(Facts::new(Arc::clone(&disk)));
        let with_facts = || (Arc::clone(&disk), Arc::clone(&ledger), Arc::clone(&facts));
        let (one, two, three) = with_facts();
        let blobs = Arc::new(Blobs::new(one, two, three));
        let (one, two, three) = with_facts();
        let layers = Arc::new(Layers::new(one, two, three));
        let (one, two) = parts();
        let ingests = Arc::new(Ingests::new(one, two, Arc::clone(&blobs)));
        let trees = || {
            let (one, two, three) = with_facts();
            Trees::new(one, two, three, Arc::clone(&blobs), Arc::clone(&layers))
        };
        let give_up = {
            let (ledger, blobs, layers, trees, ingests) =
                (Arc::clone(&ledger), Arc::clone(&blobs), Arc::clone(&layers), trees(), Arc::clone(&ingests));
            move || {
                ledger.lose();
                let given_up = blobs.discard_volatile();
                let given_up = given_up.and(layers.forget_volatile()).and(trees.forget_volatile());
                given_up.and(ingests.discard_volatile())
            }
        };
        let key = NodeKey::of(disk.directory())?;
        let grants = Grants::open(Arc::clone(&disk), key.clone())?;
        let tags = Tags::open(Arc::clone(&disk), key)?;
        // Last of what may fail: its thread ends when the store is closed.
        flush::start(entries, &disk, Arc::clone(&ledger), give_up)?;
        let store = Arc::new(Self {
            trees: trees(),
            blobs,
            layers,
            ingests,
            grants,
            tags,
            volumes: VolumeRecords::new(Arc::clone(&disk)),
            holds: Holds::default(),
            leases: Leases::new(Arc::clone(&disk)),
            pins: Pins::new(Arc::clone(&disk)),
            keeper: OnceLock::new(),
            collections: Mutex::default(),
            ledger,
            disk,
            _lock: lock,
        });
        tracing::info!(root = %root.display(), reflink = store.disk.reflink, "store opened");
        Ok(store)
    }

    /// Forgets `target`, after noting that its tree was in use until now; what is not there is fine.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn end_volume(&self, target: &Path) -> Result<Option<VolumeRecord>, Error> {
        let record = self.volumes.get(target)?;
        if let Some(record) = &record
            && let Err(error) = self.trees.was_mounted(&record.tree)
        {
            tracing::warn!(%error, tree = %record.tree, "cannot note when a tree was used last");
        }
        self.volumes.remove(target)?;
        Ok(record)
    }

    /// Notes that `digest` is what `reference` is, and that everybody may read it there, because the operator says so. Nothing that a
    /// registry answers, or a pod asks for, changes that; who asks a registry later goes by its answer.
    ///
    /// # Errors
    /// [`Error::NoSpace`], [`Error::Io`].
    pub fn preload(&self, reference: &Reference, digest: &Digest) -> Result<(), Error> {
        let repository = Repository::of(reference);
        self.grants.preload(&repository, digest)?;
        match reference.digest() {
            Some(_) => Ok(()),
            None => self.tags.preload(&repository, &reference.target(), digest),
        }
    }

    /// Makes everybody forget that `reference` was `digest`: who wants it asks its registry.
    ///
    /// # Errors
    /// [`Error::NoSpace`], [`Error::Io`].
    pub fn forget_tag(&self, reference: &Reference, digest: &Digest) -> Result<(), Error> {
        match reference.digest() {
            Some(_) => Ok(()),
            None => self.tags.remove(&Repository::of(reference), &reference.target(), digest),
        }
    }

    /// Bytes that a look at the whole store reads, about: what is on its disk, and the files of trees once more for each.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn bytes_to_look_at(&self) -> Result<u64, Error> {
        let usage = self.disk.room.measure()?;
        let mut bytes = usage.total.minus(usage.free).bytes;
        self.trees.each(&mut |tree| {
            // Blobs are looked at once, and a layer that is the tree as well.
            if !tree.image.layers.is_empty() && tree.image.only_layer.is_none() {
                bytes = bytes.saturating_add(tree.image.size);
            }
            Ok(())
        })?;
        Ok(bytes)
    }

    /// How far the look at the whole store was when it was last noted.
    pub fn scrubbed(&self) -> Cursor {
        record::read(&self.scrub_path()).ok().flatten().unwrap_or_default()
    }

    /// Notes how far it is. That it is lost does no harm.
    pub fn note_scrubbed(&self, cursor: &Cursor) {
        if let Err(error) = record::write(&self.disk, &self.scrub_path(), cursor) {
            tracing::debug!(%error, "cannot note how far the store was looked at");
        }
    }

    fn scrub_path(&self) -> PathBuf {
        self.disk.directory().join("scrub.json")
    }

    /// Waits until everything published so far is durable. False when this process ever lost something.
    pub fn flush(&self) -> bool {
        self.ledger.flush()
    }
}

impl Drop for Store {
    /// The thread that makes entries durable ends after the batch it works on; what it still notes does no harm.
    fn drop(&mut self) {
        self.ledger.close();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regression_a_directory_that_holds_something_else_keeps_its_mode() {
        for (is_empty, mode) in [(true, 0o700), (false, 0o755)] {
            let parent = tempfile::tempdir().expect("a directory");
            let root = parent.path().join("root");
            fs::create_dir(&root).expect("made");
            fs::set_permissions(&root, fs::Permissions::from_mode(0o755)).expect("allowed");
            if !is_empty {
                fs::write(root.join("other"), "").expect("written");
            }
            for _ in 0..2 {
                drop(Store::open(&root, Budget::COMMAND).expect("a store"));
                let found = fs::metadata(&root).expect("there").mode() & 0o777;
                assert_eq!(found, mode, "{found:o}");
            }
            let inside = fs::metadata(root.join(FORMAT)).expect("there").mode() & 0o777;
            assert_eq!(inside, 0o700, "{inside:o}");
        }
    }
}
