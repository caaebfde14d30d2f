//! Reading files that nobody else needs at the moment: what was in the page cache stays there, and what was not does not come to
//! stay. A pod's model is not pushed out of memory because the store is looked at.

use std::fs::File;
use std::io::IoSliceMut;
use std::path::Path;

use rustix::fs::Advice;
use rustix::io::{Errno, ReadWriteFlags, preadv2};

use crate::store::error::{Error, io};

/// Bytes at a time.
const PIECE: usize = 256 * 1024;
/// Bytes that a read counts for at least: it costs the disk as much as a block.
const SMALLEST: u64 = 4096;

/// Called with how many bytes were read; false ends it.
pub type Pace<'a> = dyn Fn(u64) -> bool + 'a;

/// Calls `take` with all of a file; false when `pace` ended it.
///
/// # Errors
/// [`Error::Io`].
pub(in crate::store) fn read(
    path: &Path,
    pace: &Pace<'_>,
    take: &mut dyn FnMut(&[u8]),
) -> Result<bool, Error> {
    let file = File::open(path).map_err(io("open", path))?;
    // Without it the kernel reads ahead, and what comes next is in the page cache because of this.
    let _ = rustix::fs::fadvise(&file, 0, None, Advice::Random);
    let mut buffer = vec![0_u8; PIECE];
    let mut position = 0_u64;
    loop {
        let (length, was_cached) =
            read_piece(&file, &mut buffer, position).map_err(|error| io("read", path)(error.into()))?;
        if length == 0 {
            return Ok(true);
        }
        take(buffer.get(..length).unwrap_or_default());
        if !was_cached {
            // Only a hint.
            let _ = rustix::fs::fadvise(
                &file,
                position,
                std::num::NonZeroU64::new(length as u64),
                Advice::DontNeed,
            );
        }
        position += length as u64;
        if !pace((length as u64).max(SMALLEST)) {
            return Ok(false);
        }
    }
}

/// Reads the next bytes, and says whether they were in the page cache.
fn read_piece(file: &File, buffer: &mut [u8], position: u64) -> Result<(usize, bool), Errno> {
    // Without RWF_NOWAIT (`man 2 preadv2`) nobody knows: then it is left as if they had been.
    match preadv2(file, &mut [IoSliceMut::new(buffer)], position, ReadWriteFlags::NOWAIT) {
        Ok(length) => return Ok((length, true)),
        Err(Errno::AGAIN) => {}
        Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL | Errno::INTR) => {
            return rustix::io::pread(file, buffer, position).map(|length| (length, true));
        }
        Err(error) => return Err(error),
    }
    rustix::io::pread(file, buffer, position).map(|length| (length, false))
}
