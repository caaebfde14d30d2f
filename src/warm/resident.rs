//! How much of a file is in memory.

use std::fs::{self, File};
use std::io;
use std::ops::Range;
use std::os::fd::AsFd as _;
use std::path::Path;

use crate::host::sys::{FileMapping, cachestat};

/// Bytes of a window that is looked at where the kernel counts no pages itself, and how many windows are.
const WINDOW: u64 = 1 << 20;
const WINDOWS: u64 = 16;

/// How many bytes of `range` of `file` have a page in memory. Pages count that are still being read.
///
/// Of cachestat(2), from Linux 6.5; before, of mincore(2) on sixteen windows of one MiB.
///
/// # Errors
/// The kernel's.
pub fn resident(file: &File, range: Range<u64>) -> io::Result<u64> {
    let length = range.end.saturating_sub(range.start);
    if length == 0 {
        return Ok(0);
    }
    match cachestat(file.as_fd(), range.start, length) {
        Ok(pages) => Ok((pages * page_size()).min(length)),
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOSYS | libc::EPERM | libc::EOPNOTSUPP)) => {
            sample(file, range)
        }
        Err(error) => Err(error),
    }
}

/// How many bytes of the files below `root` are in memory; `None` where there are more names than `limit`, which becomes less by those that
/// were looked at. Symbolic links are not followed.
///
/// # Errors
/// The kernel's, also when something goes away meanwhile.
pub fn resident_below(root: &Path, limit: &mut usize) -> io::Result<Option<u64>> {
    let (mut directories, mut here) = (vec![root.to_owned()], 0);
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(&directory)? {
            let entry = entry?;
            let kind = entry.file_type()?;
            let Some(rest) = limit.checked_sub(1) else { return Ok(None) };
            *limit = rest;
            if kind.is_dir() {
                directories.push(entry.path());
            } else if kind.is_file() {
                let file = File::open(entry.path())?;
                here += resident(&file, 0..file.metadata()?.len())?;
            }
        }
    }
    Ok(Some(here))
}

/// The same from a sample.
fn sample(file: &File, range: Range<u64>) -> io::Result<u64> {
    let length = range.end - range.start;
    let step = (length / WINDOWS).max(WINDOW);
    let (mut seen, mut here, mut at) = (0, 0, range.start / page_size() * page_size());
    while at < range.end {
        let window = WINDOW.min(range.end - at);
        let pages = FileMapping::new(file.as_fd(), at, window)?.resident()?;
        (seen, here) = (seen + window.div_ceil(page_size()), here + pages);
        at += step / page_size() * page_size();
    }
    let share = u128::from(length) * u128::from(here) / u128::from(seen.max(1));
    Ok(u64::try_from(share).unwrap_or(length).min(length))
}

fn page_size() -> u64 {
    u64::try_from(rustix::param::page_size()).unwrap_or(4096)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{Advice, fadvise};
    use std::io::Write as _;
    use std::num::NonZeroU64;

    #[test]
    fn what_is_in_memory_is_counted_and_what_was_dropped_is_not() {
        // Not in memory itself, as /tmp may be.
        let mut file = tempfile::tempfile_in(env!("CARGO_MANIFEST_DIR")).expect("a file");
        let size: u64 = (24 << 20) + 5;
        file.write_all(&vec![1; size as usize]).and_then(|()| file.sync_all()).expect("written");
        let count = |range: Range<u64>| {
            (resident(&file, range.clone()).expect("counted"), sample(&file, range).expect("counted"))
        };
        assert_eq!(count(0..size), (size, size));
        assert_eq!(resident(&file, 5..5).expect("counted"), 0, "nothing of nothing");
        fadvise(&file, 0, NonZeroU64::new(12 << 20), Advice::DontNeed).expect("dropped");
        let (counted, sampled) = count(0..size);
        assert!(counted.abs_diff(size / 2) < 2 << 20, "{counted}");
        assert!(sampled.abs_diff(size / 2) < 3 << 20, "{sampled}");
        assert_eq!(count(0..4 << 20), (0, 0));
    }

    #[test]
    fn of_a_directory_all_files_count_where_they_are_not_too_many() {
        let directory = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).expect("a directory");
        fs::create_dir(directory.path().join("a")).expect("made");
        for name in ["a/one", "two"] {
            fs::write(directory.path().join(name), vec![1; 10_000]).expect("written");
        }
        std::os::unix::fs::symlink("two", directory.path().join("link")).expect("a link");
        assert_eq!(resident_below(directory.path(), &mut 4).expect("looked"), Some(20_000));
        assert_eq!(resident_below(directory.path(), &mut 3).expect("looked"), None);
    }
}
