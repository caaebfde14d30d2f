//! Names that should not be there: a directory is walked, and each name in it looked up among those that may be there.

use std::collections::HashSet;
use std::fs::{self, ReadDir};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use xxhash_rust::xxh3::xxh3_64;

use crate::host::limits;
use crate::store::error::{Error, io};

/// Names that may be there are in memory as hashes, so many at a time; of more, a directory is walked several times.
const AT_A_TIME: usize = 48 * 1024;
/// Hashes of a layer's names, and of those that are shadowed, in tables that may be half empty.
const _: () = assert!((2 * AT_A_TIME * 2 * (size_of::<u64>() + 1)) as u64 <= limits::FSCK_BYTES);

/// The names that may be there, of one round.
pub(in crate::store) struct Allowed {
    hashes: HashSet<u64>,
    round: u64,
    rounds: u64,
}

impl Allowed {
    /// How many rounds it takes for so many names.
    pub(in crate::store) fn rounds(names: usize) -> u64 {
        (names / AT_A_TIME + 1) as u64
    }

    pub(in crate::store) fn new(round: u64, rounds: u64) -> Self {
        Self { hashes: HashSet::new(), round, rounds }
    }

    /// `name` may be there, and so may the directories that it is in.
    pub(in crate::store) fn add(&mut self, name: &[u8]) {
        let mut rest = Some(name);
        while let Some(name) = rest.filter(|name| !name.is_empty()) {
            let hash = xxh3_64(name);
            // A name that is known has parents that are known; one of another round may not.
            if self.is_of_this_round(hash) && !self.hashes.insert(hash) {
                return;
            }
            rest = name.iter().rposition(|byte| *byte == b'/').and_then(|slash| name.get(..slash));
        }
    }

    /// The first name below `root` that may not be there.
    pub(in crate::store) fn first_other(&self, root: &Path) -> Result<Option<PathBuf>, Error> {
        let open = |path: &Path| fs::read_dir(path).map_err(io("list", path));
        // One directory open for each level, and no list of names in memory.
        let mut levels: Vec<(PathBuf, ReadDir)> = vec![(root.to_owned(), open(root)?)];
        while let Some((directory, entries)) = levels.last_mut() {
            let Some(entry) = entries.next() else {
                levels.pop();
                continue;
            };
            let entry = entry.map_err(io("list", directory))?;
            let path = entry.path();
            let below = path.strip_prefix(root).unwrap_or(&path);
            let hash = xxh3_64(below.as_os_str().as_bytes());
            if self.is_of_this_round(hash) && !self.hashes.contains(&hash) {
                return Ok(Some(below.to_owned()));
            }
            if entry.file_type().map_err(io("read", &path))?.is_dir() {
                let entries = open(&path)?;
                levels.push((path, entries));
            }
        }
        Ok(None)
    }

    fn is_of_this_round(&self, hash: u64) -> bool {
        hash % self.rounds == self.round
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_allowed_is_found_in_any_number_of_rounds() {
        let directory = tempfile::tempdir().expect("a directory");
        for name in ["a/b", "a/c/d", "e"] {
            fs::create_dir_all(directory.path().join(name)).expect("made");
        }
        fs::write(directory.path().join("a/c/f"), "").expect("written");
        let other = |names: &[&str], rounds: u64| -> Vec<String> {
            let of_round = |round| {
                let mut allowed = Allowed::new(round, rounds);
                names.iter().for_each(|name| allowed.add(name.as_bytes()));
                allowed.first_other(directory.path()).expect("listed")
            };
            (0..rounds).filter_map(of_round).map(|path| path.display().to_string()).collect()
        };
        for rounds in [1, 2, 5] {
            assert_eq!(other(&["a/b", "a/c/d", "a/c/f", "e"], rounds), Vec::<String>::new());
            assert_eq!(other(&["a/b", "a/c/d", "e"], rounds), ["a/c/f"]);
            assert_eq!(other(&["a/b", "a/c/d", "a/c/f"], rounds), ["e"]);
        }
    }
}
