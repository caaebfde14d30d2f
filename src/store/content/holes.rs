//! Reading files whose holes are not read: that would fill the page cache with zeros.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use rustix::fs::SeekFrom;

use crate::store::error::{Error, io as failed};

/// Reads the next bytes at an offset, at most as many as fit; none ends it.
pub(in crate::store) type Read<'a> = dyn FnMut(&File, &mut [u8], u64) -> io::Result<usize> + 'a;

/// Calls `take` with a file piece by piece.
///
/// # Errors
/// [`Error::Io`].
pub(in crate::store) fn read_with_holes(path: &Path, take: &mut dyn FnMut(&[u8])) -> Result<(), Error> {
    read_with_holes_by(path, &mut |file, buffer, offset| file.read_at(buffer, offset), take)
}

/// The same, where `read` reads what is no hole.
///
/// # Errors
/// [`Error::Io`].
pub(in crate::store) fn read_with_holes_by(
    path: &Path,
    read: &mut Read<'_>,
    take: &mut dyn FnMut(&[u8]),
) -> Result<(), Error> {
    static ZEROS: [u8; 64 * 1024] = [0; 64 * 1024];
    let file = File::open(path).map_err(failed("open", path))?;
    let size = file.metadata().map_err(failed("read", path))?.len();
    let mut buffer = vec![0_u8; 256 * 1024];
    let (mut position, mut data_end) = (0, 0);
    while position < size {
        if position >= data_end {
            // A file system that knows no holes says that all is data.
            let data = match rustix::fs::seek(&file, SeekFrom::Data(position)) {
                Ok(data) => data.min(size),
                Err(rustix::io::Errno::NXIO) => size,
                Err(error) => return Err(failed("read", path)(error.into())),
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
        match read(&file, &mut buffer[..wanted], position).map_err(failed("read", path))? {
            0 => break,
            length => {
                take(&buffer[..length]);
                position += length as u64;
            }
        }
    }
    Ok(())
}
