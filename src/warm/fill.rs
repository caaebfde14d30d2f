//! Reading a part of a file into the page cache, without a copy of it.
//!
//! `posix_fadvise(WILLNEED)` and `readahead(2)` read at most as much as the disk's readahead at a call, whatever they are asked
//! for, and say nothing of it; and a queue that has no bound makes every other reader of the disk wait for seconds. So
//! what is read is spliced from the file into `/dev/null`, which takes a page without a copy, and knows when it is here.

use std::fs::{File, OpenOptions, read_to_string};
use std::io;
use std::num::NonZeroU64;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt as _;

use rustix::fs::{Advice, fadvise, major, minor};
use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_setpipe_size, pipe_with, splice};

/// Bytes on their way through the pipe.
const PIPE: usize = 1 << 20;
/// KiB of readahead from which the kernel by itself reads as fast as the disk can.
const LARGE_READAHEAD: u64 = 1024;
/// Bytes that are asked for ahead of the splice, where it does not.
const WINDOW: u64 = 32 << 20;
/// Bytes that are asked for at a call.
const LARGEST_PIECE: u64 = 1 << 20;

/// A pipe that leads nowhere.
#[derive(Debug)]
pub struct Filler {
    from: OwnedFd,
    into: OwnedFd,
    nowhere: File,
}

impl Filler {
    /// # Errors
    /// The kernel's, when it has no descriptors left.
    pub fn new() -> io::Result<Self> {
        let (from, into) = pipe_with(PipeFlags::CLOEXEC)?;
        // It is as good with the 64 KiB it has, only slower.
        let _ = fcntl_setpipe_size(&into, PIPE);
        let nowhere = OpenOptions::new().write(true).open("/dev/null")?;
        Ok(Self { from, into, nowhere })
    }

    /// Reads `range` of `file` into memory, and waits until it is there. A file that ends earlier is read to its end.
    ///
    /// # Errors
    /// What reading it fails with.
    pub fn fill(&self, file: &File, range: Range<u64>) -> io::Result<()> {
        let piece = piece_of(file)?;
        if piece.is_none() {
            fadvise(file, range.start, None, Advice::Sequential)?;
        }
        let (mut at, mut asked) = (range.start, range.start);
        while at < range.end {
            if let Some(piece) = piece {
                while asked < range.end.min(at + WINDOW) {
                    fadvise(file, asked, NonZeroU64::new(piece), Advice::WillNeed)?;
                    asked += piece;
                }
            }
            let wanted = usize::try_from(range.end - at).unwrap_or(PIPE).min(PIPE);
            let in_pipe = splice(file, Some(&mut at), &self.into, None, wanted, SpliceFlags::MOVE)?;
            if in_pipe == 0 {
                return Ok(());
            }
            let mut left = in_pipe;
            while left > 0 {
                left -= splice(&self.from, None, &self.nowhere, None, left, SpliceFlags::MOVE)?.min(left);
            }
        }
        Ok(())
    }
}

/// Bytes to ask for at a call; `None` where the kernel's own readahead is enough.
fn piece_of(file: &File) -> io::Result<Option<u64>> {
    let device = file.metadata()?.dev();
    let name = format!("{}:{}", major(device), minor(device));
    let setting = |path: String| read_to_string(path).ok()?.trim().parse::<u64>().ok();
    // File systems of several disks, as btrfs, have no device of their own, and a size of readahead all the same.
    let ahead = setting(format!("/sys/class/bdi/{name}/read_ahead_kb")).unwrap_or(128);
    if ahead >= LARGE_READAHEAD {
        return Ok(None);
    }
    // A partition has the queue of its disk.
    let queue = |of: &str| setting(format!("/sys/dev/block/{name}{of}/queue/max_sectors_kb"));
    let request = queue("").or_else(|| queue("/..")).unwrap_or(ahead);
    Ok(Some((ahead.max(request).max(128) * 1024).min(LARGEST_PIECE)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::warm::resident::resident;
    use std::io::Write as _;

    #[test]
    fn what_was_filled_is_in_memory_and_nothing_else() {
        let mut file = tempfile::tempfile_in(env!("CARGO_MANIFEST_DIR")).expect("a file");
        let size: u64 = 160 << 20;
        file.write_all(&vec![7; size as usize]).and_then(|()| file.sync_all()).expect("written");
        fadvise(&file, 0, None, Advice::DontNeed).expect("dropped");
        assert_eq!(resident(&file, 0..size).expect("counted"), 0);
        let filler = Filler::new().expect("a pipe");
        filler.fill(&file, 8 << 20..40 << 20).expect("filled");
        assert_eq!(resident(&file, 8 << 20..40 << 20).expect("counted"), 32 << 20);
        assert_eq!(resident(&file, 128 << 20..size).expect("counted"), 0, "the disk's readahead ends");
        filler.fill(&file, 154 << 20..200 << 20).expect("to its end");
        assert_eq!(resident(&file, 154 << 20..size).expect("counted"), 6 << 20);
    }
}
