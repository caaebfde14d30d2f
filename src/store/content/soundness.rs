//! Whether the disk still has what a layer's index says: for layers that may not have survived a crash.

use std::collections::HashMap;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use crate::host::limits;
use crate::layer::checksum::Checksum;
use crate::layer::format::place_of;
use crate::layer::index::{Entry, EntryKind, Place};
use crate::layer::stream::ReadError;
use crate::store::content::holes::read_with_holes;
use crate::store::content::layer::Layer;
use crate::store::error::{Error, io};

/// Why a layer cannot be used.
pub(in crate::store) enum Unsound {
    /// The disk has something else than the index says.
    Content,
    /// It cannot be found out.
    Unknown(Error),
}

/// Directories whose modes are held at a time, in a table that may be half empty, and is there twice while it grows.
const DIRECTORIES: usize = limits::FIRST_LOOK_BYTES / 4 / size_of::<(u64, u16)>();

impl From<Error> for Unsound {
    fn from(error: Error) -> Self {
        Self::Unknown(error)
    }
}

/// Compares everything on disk with the index.
///
/// # Errors
/// [`Unsound`].
pub(in crate::store) fn check(layer: &Layer) -> Result<(), Unsound> {
    let mut directories = 0_usize;
    each(layer, &mut |number, entry| {
        let at = |place| layer.directory.join(place_of(&entry.name, place, number));
        Ok(match &entry.kind {
            EntryKind::File { size, checksum, place } => is_file(&at(*place), *size, *checksum, entry)?,
            EntryKind::Symlink { target, place } => {
                fs::read_link(at(*place)).is_ok_and(|found| found.as_os_str().as_bytes() == target)
            }
            EntryKind::Directory => {
                directories += 1;
                true
            }
            EntryKind::HardLink { target } if layer.summary.regular => {
                let other = layer.directory.join(place_of(target, Place::Named, 0));
                let inode =
                    |path: &Path| fs::symlink_metadata(path).map(|found| (found.dev(), found.ino())).ok();
                let (one, two) = (inode(&at(Place::Named)), inode(&other));
                one.is_some() && one == two
            }
            EntryKind::HardLink { .. } | EntryKind::Whiteout | EntryKind::Opaque | EntryKind::Dropped => true,
        })
    })?;
    // Only a layer that is mounted as it is shows its directories.
    let rounds = if layer.summary.regular { directories.div_ceil(DIRECTORIES) } else { 0 };
    (0..rounds).try_for_each(|round| check_directories(layer, round, rounds))
}

/// Compares the modes of the directories whose turn it is in this round: the last entry of a name says what it is.
fn check_directories(layer: &Layer, round: usize, rounds: usize) -> Result<(), Unsound> {
    let of_this_round = |entry: &Entry| {
        let hash = xxhash_rust::xxh3::xxh3_64(entry.name.as_bytes());
        (matches!(entry.kind, EntryKind::Directory) && hash % rounds as u64 == round as u64).then_some(hash)
    };
    let mut modes: HashMap<u64, u16> = HashMap::new();
    each(layer, &mut |_, entry| {
        modes.extend(of_this_round(entry).map(|hash| (hash, entry.metadata.mode)));
        Ok(true)
    })?;
    each(layer, &mut |_, entry| {
        let Some(mode) = of_this_round(entry).and_then(|hash| modes.get(&hash)) else { return Ok(true) };
        let path = layer.directory.join(place_of(&entry.name, Place::Named, 0));
        let mode = u32::from(*mode);
        Ok(fs::symlink_metadata(path).is_ok_and(|found| found.is_dir() && found.mode() & mode == mode))
    })
}

/// Calls `check` with every entry and its number, until one is not sound.
fn each(layer: &Layer, check: &mut dyn FnMut(u32, &Entry) -> Result<bool, Error>) -> Result<(), Unsound> {
    let path = &layer.directory;
    for (number, entry) in (0_u32..).zip(layer.read_entries()?) {
        let entry = match entry {
            Ok(entry) => entry,
            Err(ReadError::Damaged(_)) => return Err(Unsound::Content),
            Err(ReadError::Io(error)) => return Err(io("read the index of", path)(error).into()),
        };
        if !check(number, &entry)? {
            return Err(Unsound::Content);
        }
    }
    Ok(())
}

fn is_file(path: &Path, size: u64, checksum: Checksum, entry: &Entry) -> Result<bool, Error> {
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
