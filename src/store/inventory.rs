//! What a store holds, without opening it: read by whoever may read its directory, also while another process writes there.
//!
//! What is taken away in the moment it is looked at is left out.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use crate::layer::format::Profile;
use crate::oci::digest::Digest;
use crate::store::content::trees::{Image, Tree, TreeFacts};
use crate::store::content::{blobs, layers};
use crate::store::disk::{FORMAT, boot_id, children, each_child};
use crate::store::durable::record;
use crate::store::error::{Error, io};
use crate::store::key::{Entry, LayerKey, TreeKey};
use crate::store::usage::leases::Lease;
use crate::store::usage::volumes::VolumeRecord;

/// What a store holds.
#[derive(Debug, Default)]
pub struct Inventory {
    /// Its trees, in the order of their references.
    pub trees: Vec<Tree>,
    /// Targets that are recorded.
    pub volumes: Vec<VolumeRecord>,
    /// Trees that commands have mounted for themselves.
    pub leases: Vec<Lease>,
    /// Bytes of the content of all of them, each counted once.
    pub content: u64,
    /// Bytes of downloads that are not finished.
    pub unfinished: u64,
    /// Bytes that are free on its disk for who is not root; `None` where there is no store.
    pub free: Option<u64>,
}

impl Inventory {
    /// Reads what the store at `root` holds. Where there is none there is nothing.
    ///
    /// # Errors
    /// [`Error::Io`] when it cannot be listed.
    pub fn read(root: &Path) -> Result<Self, Error> {
        let directory = root.join(FORMAT);
        match fs::metadata(&directory) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Self::default()),
            found => found.map_err(io("look at", &directory))?,
        };
        let mut found = Self::default();
        each(&directory.join("images"), &mut |name, path| {
            let Some(key) = TreeKey::parse(name) else { return Ok(()) };
            if let Some(image) = read::<Image>(path) {
                let facts = format!("{}.json", Entry::Tree(key.clone()).file_name());
                let usage: TreeFacts = read(&directory.join("facts").join(facts)).unwrap_or_default();
                found.trees.push(Tree::described(&directory, key, image, usage));
            }
            Ok(())
        })?;
        found.trees.sort_by(|one, two| one.usage.references.cmp(&two.usage.references));
        each(&directory.join("volumes"), &mut |_, path| {
            found.volumes.extend(read(path));
            Ok(())
        })?;
        let boot = boot_id()?;
        each(&directory.join("leases"), &mut |_, path| {
            found.leases.extend(read::<Lease>(path).filter(|lease| lease.is_current(&boot)));
            Ok(())
        })?;
        found.content = content(&directory)?;
        found.unfinished = unfinished(&directory)?;
        let space =
            rustix::fs::statvfs(&directory).map_err(|error| io("measure", &directory)(error.into()))?;
        found.free = Some(space.f_bavail.saturating_mul(space.f_frsize));
        Ok(found)
    }
}

/// How much a store holds, in entries.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Entries {
    /// Blobs as files.
    pub blobs: u64,
    /// Unpacked archives.
    pub layers: u64,
    /// What pods see.
    pub trees: u64,
}

/// Counts the records of the store at `root`.
///
/// # Errors
/// [`Error::Io`] when it cannot be listed.
pub fn count(root: &Path) -> Result<Entries, Error> {
    let directory = root.join(FORMAT);
    let count = |kinds: &[&str]| {
        let mut records = 0_u64;
        for kind in kinds {
            each(&directory.join(kind), &mut |_, _| {
                records += 1;
                Ok(())
            })?;
        }
        Ok::<u64, Error>(records)
    };
    Ok(Entries {
        blobs: count(&["blobs/sha256", "blobs/sha512"])?,
        layers: count(&["layers"])?,
        trees: count(&["images"])?,
    })
}

/// Which of `wanted`, blobs and how they are unpacked, are not in the store at `root`, in either form.
pub fn missing<'a>(
    root: &Path,
    profile: Profile,
    wanted: impl IntoIterator<Item = &'a Digest>,
) -> Vec<&'a Digest> {
    let directory = root.join(FORMAT);
    let is_here = |digest: &Digest| {
        let as_file = directory.join(Entry::Blob(digest.clone()).record());
        let unpacked = directory.join(Entry::Layer(LayerKey::new(digest, profile)).record());
        as_file.exists() || unpacked.exists()
    };
    wanted.into_iter().filter(|digest| !is_here(digest)).collect()
}

/// Bytes of blobs and unpacked layers, as their records say.
fn content(directory: &Path) -> Result<u64, Error> {
    let mut bytes = 0_u64;
    for algorithm in ["blobs/sha256", "blobs/sha512"] {
        each(&directory.join(algorithm), &mut |_, path| {
            if let Ok(Some((size, _))) = blobs::recorded(path) {
                bytes = bytes.saturating_add(size);
            }
            Ok(())
        })?;
    }
    each(&directory.join("layers"), &mut |name, _| {
        let Some(key) = LayerKey::parse(name) else { return Ok(()) };
        if let Ok(Some((layer, ..))) = layers::recorded(directory, &key) {
            bytes = bytes.saturating_add(layer.summary.bytes);
        }
        Ok(())
    })?;
    Ok(bytes)
}

/// What `ingest/` takes of the disk: downloads, which have a directory each.
fn unfinished(directory: &Path) -> Result<u64, Error> {
    let mut bytes = 0_u64;
    for path in children(&directory.join("ingest"))? {
        if let Ok(data) = fs::symlink_metadata(path.join("data")) {
            bytes = bytes.saturating_add(data.blocks().saturating_mul(512));
        }
    }
    Ok(bytes)
}

/// Calls `take` with the name and the path of one record after the other.
fn each(directory: &Path, take: &mut dyn FnMut(&str, &Path) -> Result<(), Error>) -> Result<(), Error> {
    if !directory.exists() {
        return Ok(());
    }
    each_child(directory, &mut |path| {
        let name = path.file_name().and_then(|name| name.to_str()?.strip_suffix(".json"));
        name.map_or(Ok(()), |name| take(name, path))
    })
}

/// A record; `None` when it is gone, or says nothing.
fn read<T: serde::de::DeserializeOwned>(path: &Path) -> Option<T> {
    record::read(path).inspect_err(|error| tracing::warn!(%error, "a record is left out")).ok().flatten()
}
