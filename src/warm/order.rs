//! Which files of a volume are warmed, in the order in which servers of models read them.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use crate::host::limits;

/// The files of a volume that are warmed, first ones first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WarmFiles {
    /// The directory that the volume shows.
    pub directory: PathBuf,
    /// What of it is warmed.
    pub files: Vec<WarmFile>,
}

/// A file that is warmed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WarmFile {
    /// Where it is below the directory.
    pub name: PathBuf,
    /// In bytes.
    pub size: u64,
}

/// What a volume is, for the choice of its files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Content {
    /// A model, as its artifact's family says: all of it is read, where no file is called weights.
    Model,
    /// Anything: weights are known by their names.
    Anything,
}

/// Families whose artifacts are models.
const MODELS: [&str; 4] = ["modelpack", "docker-model", "ollama", "kitops"];
/// Names of files with weights end so.
const WEIGHTS: [&str; 2] = ["safetensors", "gguf"];
/// Bytes of a file that is read as a whole beside the weights: a configuration, a tokenizer, an index.
const SMALL: u64 = 32 << 20;
/// Bytes that directories take which are remembered while a tree is walked. What is beyond them is not warmed.
pub const WALK_BYTES: usize = 64 * 1024;
/// Names of a tree that are looked at. An image of a distribution with Python has some ten thousand.
const NAMES_LIMIT: usize = 200_000;
/// Bytes that the files of one volume which are warmed take in memory: a model has some hundred shards.
pub const NAMES_BYTES: usize = 32 * 1024;
const _: () = assert!((2 * WALK_BYTES + 2 * NAMES_BYTES) as u64 <= limits::WARM_WALK);

impl WarmFiles {
    /// Bytes that the list takes in memory.
    pub fn memory(&self) -> u64 {
        let names: usize = self.files.iter().map(|file| size_of::<u64>() + memory_of(&file.name)).sum();
        u64::try_from(size_of::<Self>() + self.directory.as_os_str().len() + names).unwrap_or(u64::MAX)
    }
}

impl Content {
    /// What an artifact of `family` is.
    pub fn of_family(family: &str) -> Self {
        if MODELS.contains(&family) { Self::Model } else { Self::Anything }
    }
}

/// The files below `root` that are warmed; none where nothing is a model. `None` when `gone` has become true meanwhile.
///
/// Symbolic links are not followed: what they lead to is listed where it is.
///
/// # Errors
/// The kernel's, when a directory cannot be read.
pub fn files(root: &Path, content: Content, gone: &AtomicBool) -> io::Result<Option<WarmFiles>> {
    let mut with_weights = BTreeSet::new();
    let mut bytes = 0;
    let is_whole = walk(root, gone, |directory, name| {
        if is_weights(Path::new(name)) && !with_weights.contains(directory) && bytes < WALK_BYTES {
            bytes += memory_of(directory);
            with_weights.insert(directory.to_owned());
        }
        Ok(true)
    })?;
    if !is_whole {
        return Ok(None);
    }
    let (mut files, mut bytes) = (Vec::new(), 0);
    let nothing = content == Content::Anything && with_weights.is_empty();
    let is_whole = nothing
        || walk(root, gone, |directory, name| {
            // Beside weights are the files that belong to them; in the rest of an image is a system.
            if content == Content::Anything && !with_weights.contains(directory) {
                return Ok(true);
            }
            let name = directory.join(name);
            let size = fs::symlink_metadata(root.join(&name))?.len();
            if size > 0 && (with_weights.is_empty() || is_weights(&name) || size <= SMALL) {
                bytes += size_of::<u64>() + memory_of(&name);
                files.push(WarmFile { name, size });
            }
            Ok(bytes < NAMES_BYTES)
        })?;
    files.sort_by(|one, two| (rank(one), &one.name).cmp(&(rank(two), &two.name)));
    files.shrink_to_fit();
    Ok(is_whole.then(|| WarmFiles { directory: root.to_owned(), files }))
}

/// Bytes that a path takes, with what the allocator adds.
fn memory_of(path: &Path) -> usize {
    size_of::<PathBuf>() + path.as_os_str().len().next_multiple_of(16)
}

/// Calls `found` with each file below `root`, by its directory below it and its name, until it says that it is enough, or there were very
/// many. Returns whether nobody has made `gone` true.
fn walk(
    root: &Path,
    gone: &AtomicBool,
    mut found: impl FnMut(&Path, &OsStr) -> io::Result<bool>,
) -> io::Result<bool> {
    let (mut directories, mut bytes, mut names) = (vec![PathBuf::new()], memory_of(Path::new("")), 0);
    while let Some(directory) = directories.pop() {
        if gone.load(Ordering::Relaxed) {
            return Ok(false);
        }
        bytes -= memory_of(&directory);
        for entry in fs::read_dir(root.join(&directory))? {
            let (entry, kind) = entry.and_then(|entry| entry.file_type().map(|kind| (entry, kind)))?;
            names += 1;
            if names > NAMES_LIMIT {
                return Ok(true);
            }
            if kind.is_dir() && bytes < WALK_BYTES {
                let below = directory.join(entry.file_name());
                bytes += memory_of(&below);
                directories.push(below);
            } else if kind.is_file() && !found(&directory, &entry.file_name())? {
                return Ok(true);
            }
        }
    }
    Ok(true)
}

fn is_weights(path: &Path) -> bool {
    let end = path.extension().and_then(|end| end.to_str()).unwrap_or_default();
    WEIGHTS.iter().any(|known| end.eq_ignore_ascii_case(known))
}

/// When a server reads the file: the configuration decides what to load, the tokenizer is small, the index says which shards
/// there are, and shards follow each other by their names.
fn rank(file: &WarmFile) -> u8 {
    let name = file.name.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_ascii_lowercase();
    match name.as_str() {
        _ if is_weights(&file.name) || file.size > SMALL => 4,
        _ if name.ends_with(".index.json") => 2,
        _ if name.contains("config") => 0,
        _ if ["token", "vocab", "merges", "chat_template"].iter().any(|part| name.contains(part)) => 1,
        _ => 3,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed(root: &Path, content: Content) -> WarmFiles {
        files(root, content, &AtomicBool::new(false)).expect("listed").expect("it is there")
    }

    /// The names of what is warmed of a directory with `files`.
    fn order(files: &[(&str, u64)], content: Content) -> Vec<String> {
        let directory = tempfile::tempdir().expect("a directory");
        for (name, size) in files {
            let path = directory.path().join(name);
            fs::create_dir_all(path.parent().expect("a parent")).expect("made");
            fs::File::create(path).and_then(|file| file.set_len(*size)).expect("a file");
        }
        let found = listed(directory.path(), content);
        found.files.iter().map(|file| file.name.display().to_string()).collect()
    }

    const HUGGING_FACE: [(&str, u64); 9] = [
        ("model-00002-of-00002.safetensors", 70 << 20),
        ("model-00001-of-00002.safetensors", 70 << 20),
        ("model.safetensors.index.json", 9),
        ("tokenizer.json", 9),
        ("config.json", 9),
        ("README.md", 9),
        ("empty", 0),
        ("generation_config.json", 9),
        ("original/consolidated.00.pth", 70 << 20),
    ];

    #[test]
    fn a_model_is_warmed_as_servers_read_it() {
        let expected = [
            "config.json",
            "generation_config.json",
            "tokenizer.json",
            "model.safetensors.index.json",
            "README.md",
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
        ];
        assert_eq!(order(&HUGGING_FACE, Content::Model), expected, "no weights of another format");
        assert_eq!(order(&HUGGING_FACE, Content::Anything), expected);
    }

    #[test]
    fn a_model_without_known_weights_is_warmed_whole() {
        let files = [("weights.bin", 70 << 20), ("config.json", 9), ("a/b.onnx", 9)];
        assert_eq!(order(&files, Content::Model), ["config.json", "a/b.onnx", "weights.bin"]);
        assert!(order(&files, Content::Anything).is_empty());
    }

    #[test]
    fn of_an_image_the_directory_with_the_weights_is_warmed() {
        let files = [
            ("usr/bin/python", 9),
            ("opt/m/llama.GGUF", 70 << 20),
            ("opt/m/config.json", 9),
            ("etc/passwd", 9),
        ];
        assert_eq!(order(&files, Content::Anything), ["opt/m/config.json", "opt/m/llama.GGUF"]);
    }

    #[test]
    fn links_lead_nowhere() {
        let directory = tempfile::tempdir().expect("a directory");
        std::os::unix::fs::symlink("/etc/passwd", directory.path().join("x.gguf")).expect("a link");
        std::os::unix::fs::symlink("/etc", directory.path().join("etc")).expect("a link");
        assert_eq!(listed(directory.path(), Content::Model).files, []);
    }

    #[test]
    fn what_a_hostile_volume_names_is_bounded() {
        for name in ["", &"x".repeat(200)] {
            let directory = tempfile::tempdir().expect("a directory");
            for number in 0..3000 {
                let path = directory.path().join(format!("{number:04}{name}.gguf"));
                fs::File::create(path).and_then(|file| file.set_len(1)).expect("a file");
            }
            let found = listed(directory.path(), Content::Model);
            let most = (NAMES_BYTES + 1024) as u64;
            assert!(found.files.len() > 100 && found.memory() < most, "{}", found.memory());
        }
    }

    #[test]
    fn a_volume_that_is_gone_is_not_listed() {
        let directory = tempfile::tempdir().expect("a directory");
        assert_eq!(files(directory.path(), Content::Model, &AtomicBool::new(true)).expect("no error"), None);
    }
}
