//! Who keeps a directory from being unmounted: processes that are in it, run from it, or have files of it open.
//!
//! What `fuser -m` looks at: `man 5 proc`, `cwd`, `root`, `exe`, `fd`, `maps`.

use std::path::Path;

use std::io::Read as _;

/// Processes that are looked at.
const PROCESSES: usize = 16 * 1024;
/// Descriptors of a process that are looked at.
const DESCRIPTORS: usize = 4096;
/// Bytes of a process's list of mapped files that are read.
const MAPS: u64 = 1024 * 1024;
/// Processes that are said.
const SAID: usize = 5;

/// The processes that use something below `directory`, in words; `None` when none is seen.
pub(super) fn users(directory: &Path) -> Option<String> {
    let mut found = Vec::new();
    let mut more = 0_usize;
    for entry in std::fs::read_dir("/proc").ok()?.flatten().take(PROCESSES) {
        let Some(number) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        if !uses(&entry.path(), directory) {
            continue;
        }
        if found.len() < SAID {
            let name = std::fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
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

fn uses(process: &Path, directory: &Path) -> bool {
    let is_inside = |link: &Path| std::fs::read_link(link).is_ok_and(|path| path.starts_with(directory));
    if ["cwd", "root", "exe"].iter().any(|name| is_inside(&process.join(name))) {
        return true;
    }
    let descriptors = std::fs::read_dir(process.join("fd")).into_iter().flatten().flatten();
    descriptors.take(DESCRIPTORS).any(|entry| is_inside(&entry.path())) || has_mapped(process, directory)
}

fn has_mapped(process: &Path, directory: &Path) -> bool {
    let Ok(file) = std::fs::File::open(process.join("maps")) else { return false };
    let mut text = Vec::new();
    if file.take(MAPS).read_to_end(&mut text).is_err() {
        return false;
    }
    let text = String::from_utf8_lossy(&text);
    let paths = text.lines().filter_map(|line| Some(&line[line.find('/')?..]));
    paths.into_iter().any(|path| Path::new(path).starts_with(directory))
}
