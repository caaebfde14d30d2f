//! One blob.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use crate::oci::digest::Digest;
use crate::store::error::Error;
use crate::store::fsck::read::{Pace, read};
use crate::store::fsck::report::{Damage, Problem};

/// Permission bits of a blob's file.
const MODE: u32 = 0o444;

/// What is wrong with the file at `path`, which should have `size` bytes of this digest; `None` when `pace` ended it.
///
/// # Errors
/// [`Error::Io`].
pub(in crate::store) fn check(
    path: &Path,
    digest: &Digest,
    size: u64,
    pace: &Pace<'_>,
) -> Result<Option<Option<Damage>>, Error> {
    let found = |problem| Ok(Some(Some(Damage::whole(problem))));
    let Ok(metadata) = fs::symlink_metadata(path) else { return found(Problem::Missing) };
    if !metadata.is_file() {
        return found(Problem::Kind);
    }
    if metadata.len() != size {
        return found(Problem::Size);
    }
    if metadata.mode() & 0o7777 != MODE || metadata.mtime() != 0 {
        return found(Problem::Metadata);
    }
    let mut hasher = digest.algorithm().hasher();
    if !read(path, pace, &mut |piece| hasher.update(piece))? {
        return Ok(None);
    }
    if hasher.finish() == *digest { Ok(Some(None)) } else { found(Problem::Content) }
}
