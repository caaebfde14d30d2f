//! Who keeps a directory from being unmounted: processes that are in it, run from it, or have files of it open.
//!
//! What `fuser -m` looks at: `man 5 proc`, `cwd`, `root`, `exe`, `fd`, `maps`.

use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use crate::failure::{Failure, Kind};

/// Processes that are looked at.
const PROCESSES: usize = 16 * 1024;
/// Descriptors of a process that are looked at.
const DESCRIPTORS: usize = 4096;
/// Bytes of a process's lists of mapped files and of mounts that are read.
const LIST: u64 = 1024 * 1024;
/// Processes that are said.
const SAID: usize = 5;

/// Whether something failed because a directory is in use.
pub(super) fn is_why(failure: &Failure) -> bool {
    let busy = io::Error::from_raw_os_error(libc::EBUSY).to_string();
    failure.kind == Kind::Unavailable && failure.message.contains(&busy)
}

/// The processes that use something below `directory`, in words; `None` when none is seen. Blocks.
pub(super) fn users(directory: &Path) -> Option<String> {
    // Links of /proc lead to real paths.
    let directory = &directory.canonicalize().ok()?;
    let own = Namespace::of(Path::new("/proc/self"), directory);
    let mut found = Vec::new();
    let mut more = 0_usize;
    for entry in std::fs::read_dir("/proc").ok()?.flatten().take(PROCESSES) {
        let Some(number) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        if !uses(&entry.path(), directory) || !own.is_seen_by(&entry.path(), directory) {
            continue;
        }
        if found.len() < SAID {
            let name = text_of(&entry.path().join("comm")).unwrap_or_default();
            found.push(format!("process {number} ({})", crate::failure::one_line(name.trim_end())));
        } else {
            more += 1;
        }
    }
    match (found.is_empty(), more) {
        (true, _) => None,
        (false, 0) => Some(found.join(", ")),
        (false, more) => Some(format!("{} and {more} more", found.join(", "))),
    }
}

/// What a process has mounted at a directory, and in which mount namespace.
#[derive(PartialEq, Eq)]
struct Namespace {
    /// As the kernel names it: `mnt:[4026531841]`.
    name: Option<PathBuf>,
    /// Device and root of the mount there (`man 5 proc_pid_mountinfo`, fields 3 and 4).
    mounted: Option<(String, String)>,
}

impl Namespace {
    fn of(process: &Path, directory: &Path) -> Self {
        let name = std::fs::read_link(process.join("ns/mnt")).ok();
        let text = text_of(&process.join("mountinfo")).unwrap_or_default();
        let mut at = text.lines().filter_map(|line| {
            let mut fields = line.split(' ').skip(2);
            let (device, root, point) = (fields.next()?, fields.next()?, fields.next()?);
            (Path::new(point) == directory).then(|| (device.to_owned(), root.to_owned()))
        });
        Self { name, mounted: at.next_back() }
    }

    /// Whether a process that uses what is called so has this mount there: a path of another namespace may be another directory.
    fn is_seen_by(&self, process: &Path, directory: &Path) -> bool {
        let other = std::fs::read_link(process.join("ns/mnt")).ok();
        other == self.name || self.mounted.is_some() && Self::of(process, directory).mounted == self.mounted
    }
}

fn uses(process: &Path, directory: &Path) -> bool {
    let is_inside = |link: &Path| std::fs::read_link(link).is_ok_and(|path| path.starts_with(directory));
    if ["cwd", "root", "exe"].iter().any(|name| is_inside(&process.join(name))) {
        return true;
    }
    let descriptors = std::fs::read_dir(process.join("fd")).into_iter().flatten().flatten();
    descriptors.take(DESCRIPTORS).any(|entry| is_inside(&entry.path())) || has_mapped(process, directory)
}

fn has_mapped(process: &Path, directory: &Path) -> bool {
    let Some(text) = text_of(&process.join("maps")) else { return false };
    let paths = text.lines().filter_map(|line| Some(&line[line.find('/')?..]));
    paths.into_iter().any(|path| Path::new(path).starts_with(directory))
}

/// The text of a file of `/proc`, as much of it as is looked at.
fn text_of(path: &Path) -> Option<String> {
    let mut text = Vec::new();
    std::fs::File::open(path).ok()?.take(LIST).read_to_end(&mut text).ok()?;
    Some(String::from_utf8_lossy(&text).into_owned())
}
