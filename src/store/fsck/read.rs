//! Reading files that nobody else needs at the moment: what was in the page cache stays there, and what was not does not come to
//! stay. A pod's model is not pushed out of memory because the store is looked at.

use std::fs::File;
use std::io::IoSliceMut;
use std::num::NonZeroU64;
use std::path::Path;

use rustix::fs::Advice;
use rustix::io::{Errno, ReadWriteFlags, preadv2};

use crate::store::content::holes::read_with_holes_by;
use crate::store::error::Error;

/// Bytes that a file counts for at least.
const SMALLEST: u64 = 4096;

/// Called with how many bytes were read; false ends it.
pub type Pace<'a> = dyn Fn(u64) -> bool + 'a;

/// Calls `take` with all of a file; false when `pace` ended it. Holes cost nothing.
///
/// # Errors
/// [`Error::Io`].
pub(in crate::store) fn read(
    path: &Path,
    pace: &Pace<'_>,
    take: &mut dyn FnMut(&[u8]),
) -> Result<bool, Error> {
    // Also what has no bytes costs a look.
    let mut goes_on = pace(SMALLEST);
    let mut is_first = true;
    let mut read = |file: &File, buffer: &mut [u8], offset: u64| {
        if !goes_on {
            return Ok(0);
        }
        if std::mem::take(&mut is_first) {
            // Otherwise the kernel reads ahead, and what comes next is in the page cache because of this.
            let _ = rustix::fs::fadvise(file, 0, None, Advice::Random);
        }
        let (length, was_cached) = read_piece(file, buffer, offset)?;
        if let (false, Some(length)) = (was_cached, NonZeroU64::new(length as u64)) {
            // Only a hint.
            let _ = rustix::fs::fadvise(file, offset, Some(length), Advice::DontNeed);
        }
        goes_on = pace(length as u64);
        Ok(length)
    };
    read_with_holes_by(path, &mut read, take)?;
    Ok(goes_on)
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
