//! One tree, against its index.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use crate::layer::checksum::Checksum;
use crate::layer::format::FILES;
use crate::layer::index::ENTRY_LIMIT;
use crate::oci::digest::Digest;
use crate::store::content::tree_index::{self, Content, TreeEntry, TreeKind};
use crate::store::fsck::layer::{
    End, bad_index, check_content, check_directory, check_file, check_link, text,
};
use crate::store::fsck::names::Allowed;
use crate::store::fsck::read::{Pace, read};
use crate::store::fsck::report::{Damage, Problem};

/// Compares everything in the tree's `directory` with its index. What is a link to a blob is looked at as the blob; where that is,
/// says `blob`.
///
/// # Errors
/// [`End`], the first that there is.
pub(in crate::store) fn check(
    directory: &Path,
    index: Checksum,
    blob: &dyn Fn(&Digest) -> PathBuf,
    pace: &Pace<'_>,
) -> Result<(), End> {
    let mut names = 0;
    each(directory, index, &mut |entry| {
        names += 1;
        let below = Path::new(FILES).join(OsStr::from_bytes(entry.name.as_bytes()));
        match &entry.kind {
            TreeKind::Directory => check_directory(directory, &below, entry.mode),
            TreeKind::Symlink(target) => check_link(directory, &below, target),
            TreeKind::File(size, content) => {
                let found = check_file(directory, &below, *size, entry.mode, None)?;
                match content {
                    Content::Checksum(checksum) => check_content(directory, &below, *checksum, pace),
                    Content::Blob(digest) => {
                        let original = std::fs::symlink_metadata(blob(digest)).ok();
                        let inode = |found: &std::fs::Metadata| (found.dev(), found.ino());
                        match original.is_some_and(|original| inode(&original) == inode(&found)) {
                            true => Ok(()),
                            false => check_copy(directory, &below, digest, pace),
                        }
                    }
                }
            }
        }
    })?;
    let rounds = Allowed::rounds(names.min(2 * ENTRY_LIMIT));
    for round in 0..rounds {
        let mut allowed = Allowed::new(round, rounds);
        each(directory, index, &mut |entry| {
            allowed.add(entry.name.as_bytes());
            Ok(())
        })?;
        if let Some(other) = allowed.first_other(&directory.join(FILES))? {
            return Err(End::Damage(Damage::of(Problem::Added, text(&Path::new(FILES).join(other)))));
        }
    }
    Ok(())
}

fn each(
    directory: &Path,
    index: Checksum,
    check: &mut dyn FnMut(&TreeEntry) -> Result<(), End>,
) -> Result<(), End> {
    let entries = match tree_index::read(directory, index) {
        Err(error) if error.is_loss() => return Err(End::Damage(Damage::whole(Problem::Index))),
        entries => entries?,
    };
    for entry in entries {
        check(&entry.map_err(|error| bad_index(directory, error))?)?;
    }
    Ok(())
}

fn check_copy(directory: &Path, below: &Path, digest: &Digest, pace: &Pace<'_>) -> Result<(), End> {
    let mut hasher = digest.algorithm().hasher();
    if !read(&directory.join(below), pace, &mut |piece| hasher.update(piece))? {
        return Err(End::Stopped);
    }
    if hasher.finish() == *digest {
        return Ok(());
    }
    Err(End::Damage(Damage::of(Problem::Content, text(below))))
}
