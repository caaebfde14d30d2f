//! One layer, against its index.

use std::collections::HashMap;
use std::fs::{self, Metadata};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use xxhash_rust::xxh3::{Xxh3, xxh3_64};

use crate::layer::checksum::Checksum;
use crate::layer::format::{FILES, Profile, SHADOWED, place_of, readable};
use crate::layer::index::{Entry, EntryKind, Place};
use crate::layer::name::shown;
use crate::layer::stream::ReadError;
use crate::store::content::layer::Layer;
use crate::store::error::{Error, io};
use crate::store::fsck::names::Allowed;
use crate::store::fsck::read::{Pace, read};
use crate::store::fsck::report::{Damage, Problem};

/// What ended the look at an entry.
pub(in crate::store) enum End {
    /// Something is wrong.
    Damage(Damage),
    /// It cannot be found out.
    Error(Error),
    /// It was told to end.
    Stopped,
}

impl From<Error> for End {
    fn from(error: Error) -> Self {
        Self::Error(error)
    }
}

/// Compares what the layer has on disk with its index: names, kinds, bytes, permissions, and times of files. Not owners, extended
/// attributes, and times of directories and links.
///
/// # Errors
/// [`End`], the first that there is.
pub(in crate::store) fn check(layer: &Layer, profile: Profile, pace: &Pace<'_>) -> Result<(), End> {
    let directory = &layer.directory;
    each(layer, &mut |number, entry| match &entry.kind {
        EntryKind::File { size, checksum, place } => {
            let below = place_of(&entry.name, *place, number);
            let mode = profile.mode_on_disk(entry.metadata.mode);
            check_file(directory, &below, *size, mode, Some(entry.metadata.mtime))?;
            check_content(directory, &below, *checksum, pace)
        }
        EntryKind::Symlink { target, place } => {
            check_link(directory, &place_of(&entry.name, *place, number), target)
        }
        EntryKind::HardLink { target } if layer.summary.regular => {
            let (one, two) = (place_of(&entry.name, Place::Named, number), place_of(target, Place::Named, 0));
            let (one_inode, two_inode) = (look(directory, &one)?.ino(), look(directory, &two)?.ino());
            if one_inode == two_inode {
                Ok(())
            } else {
                Err(End::Damage(Damage::of(Problem::Kind, text(&one))))
            }
        }
        EntryKind::HardLink { .. }
        | EntryKind::Directory
        | EntryKind::Whiteout
        | EntryKind::Opaque
        | EntryKind::Dropped => Ok(()),
    })?;
    let rounds = Allowed::rounds(2 * layer.summary.entries);
    for round in 0..rounds {
        check_names(layer, round, rounds)?;
        // Only a layer that is mounted as it is shows its directories.
        if layer.summary.regular {
            check_directories(layer, profile, round, rounds)?;
        }
    }
    Ok(())
}

fn check_names(layer: &Layer, round: u64, rounds: u64) -> Result<(), End> {
    let (mut files, mut shadowed) = (Allowed::new(round, rounds), Allowed::new(round, rounds));
    each(layer, &mut |number, entry| {
        match &entry.kind {
            EntryKind::File { place: Place::Shadowed, .. }
            | EntryKind::Symlink { place: Place::Shadowed, .. } => {
                shadowed.add(number.to_string().as_bytes());
            }
            EntryKind::File { .. }
            | EntryKind::Symlink { .. }
            | EntryKind::HardLink { .. }
            | EntryKind::Directory => files.add(entry.name.as_bytes()),
            EntryKind::Whiteout | EntryKind::Opaque | EntryKind::Dropped => {}
        }
        // A directory is made for what is in it, also for what is not created there.
        if let Some((above, _)) = entry.name.split() {
            files.add(above);
        }
        Ok(())
    })?;
    for (kind, allowed) in [(FILES, files), (SHADOWED, shadowed)] {
        if let Some(other) = allowed.first_other(&layer.directory.join(kind))? {
            return Err(End::Damage(Damage::of(Problem::Added, text(&Path::new(kind).join(other)))));
        }
    }
    Ok(())
}

/// Of a directory the last entry says what it is.
fn check_directories(layer: &Layer, profile: Profile, round: u64, rounds: u64) -> Result<(), End> {
    let of_this_round = |entry: &Entry| {
        let hash = xxh3_64(entry.name.as_bytes());
        (matches!(entry.kind, EntryKind::Directory) && hash % rounds == round).then_some(hash)
    };
    let mut modes: HashMap<u64, u16> = HashMap::new();
    each(layer, &mut |_, entry| {
        modes.extend(of_this_round(entry).map(|hash| (hash, entry.metadata.mode)));
        Ok(())
    })?;
    each(layer, &mut |_, entry| {
        let Some(mode) = of_this_round(entry).and_then(|hash| modes.get(&hash)) else { return Ok(()) };
        let mode = match profile {
            Profile::Image => *mode,
            Profile::Archive => readable(*mode, true),
        };
        check_directory(&layer.directory, &place_of(&entry.name, Place::Named, 0), mode)
    })
}

/// Calls `check` with every entry and its number.
fn each(layer: &Layer, check: &mut dyn FnMut(u32, &Entry) -> Result<(), End>) -> Result<(), End> {
    let entries = match layer.read_entries() {
        Err(error) if error.is_loss() => return Err(End::Damage(Damage::whole(Problem::Index))),
        entries => entries?,
    };
    for (number, entry) in (0_u32..).zip(entries) {
        check(number, &entry.map_err(|error| bad_index(&layer.directory, error))?)?;
    }
    Ok(())
}

/// What it means that an index cannot be read.
pub(in crate::store) fn bad_index(directory: &Path, error: ReadError) -> End {
    match error {
        ReadError::Damaged(_) => End::Damage(Damage::whole(Problem::Index)),
        ReadError::Io(error) => End::Error(io("read the index of", directory)(error)),
    }
}

pub(in crate::store) fn check_file(
    directory: &Path,
    below: &Path,
    size: u64,
    mode: u16,
    mtime: Option<i64>,
) -> Result<Metadata, End> {
    let found = look(directory, below)?;
    let damage = |problem| Err(End::Damage(Damage::of(problem, text(below))));
    if !found.is_file() {
        return damage(Problem::Kind);
    }
    if found.len() != size {
        return damage(Problem::Size);
    }
    // Not every file system has every time.
    let is_storable = |time: i64| (0..i64::from(i32::MAX)).contains(&time);
    let is_other_time = mtime.is_some_and(|time| is_storable(time) && found.mtime() != time);
    if found.mode() & 0o7777 != u32::from(mode) || is_other_time {
        return damage(Problem::Metadata);
    }
    Ok(found)
}

pub(in crate::store) fn check_content(
    directory: &Path,
    below: &Path,
    checksum: Checksum,
    pace: &Pace<'_>,
) -> Result<(), End> {
    let mut hasher = Xxh3::new();
    if !read(&directory.join(below), pace, &mut |piece| hasher.update(piece))? {
        return Err(End::Stopped);
    }
    if Checksum::finish(&hasher) == checksum {
        return Ok(());
    }
    Err(End::Damage(Damage::of(Problem::Content, text(below))))
}

pub(in crate::store) fn check_link(directory: &Path, below: &Path, target: &[u8]) -> Result<(), End> {
    if !look(directory, below)?.is_symlink() {
        return Err(End::Damage(Damage::of(Problem::Kind, text(below))));
    }
    let path = directory.join(below);
    let found = fs::read_link(&path).map_err(io("read", &path))?;
    if found.as_os_str().as_bytes() == target {
        return Ok(());
    }
    Err(End::Damage(Damage::of(Problem::Content, text(below))))
}

pub(in crate::store) fn check_directory(directory: &Path, below: &Path, mode: u16) -> Result<(), End> {
    let found = look(directory, below)?;
    let problem = match found.is_dir() {
        false => Problem::Kind,
        true if found.mode() & 0o7777 != u32::from(mode) => Problem::Metadata,
        true => return Ok(()),
    };
    Err(End::Damage(Damage::of(problem, text(below))))
}

pub(in crate::store) fn look(directory: &Path, below: &Path) -> Result<Metadata, End> {
    let path: PathBuf = directory.join(below);
    match fs::symlink_metadata(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            Err(End::Damage(Damage::of(Problem::Missing, text(below))))
        }
        found => Ok(found.map_err(io("read", &path))?),
    }
}

pub(in crate::store) fn text(path: &Path) -> String {
    shown(path.as_os_str().as_bytes())
}
