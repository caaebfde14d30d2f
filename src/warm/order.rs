//! Which files of a volume are warmed, in the order in which servers of models read them.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// A file that is warmed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WarmFile {
    /// Where it is.
    pub path: PathBuf,
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
/// Names that are looked at. An image of a distribution with Python has some ten thousand.
const NAMES_LIMIT: usize = 200_000;
/// Files that are warmed of one volume.
const FILES_LIMIT: usize = 4096;

impl Content {
    /// What an artifact of `family` is.
    pub fn of_family(family: &str) -> Self {
        if MODELS.contains(&family) { Self::Model } else { Self::Anything }
    }
}

/// The files below `root` that are warmed, first ones first. None where nothing is a model.
///
/// Symbolic links are not followed: what they lead to is listed where it is.
///
/// # Errors
/// The kernel's, when the directory cannot be read.
pub fn files(root: &Path, content: Content) -> io::Result<Vec<WarmFile>> {
    let mut names = Vec::new();
    let mut directories = vec![root.to_owned()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(&directory)? {
            let (entry, kind) = entry.and_then(|entry| entry.file_type().map(|kind| (entry, kind)))?;
            if kind.is_dir() {
                directories.push(entry.path());
            } else if kind.is_file() {
                names.push(entry.path());
            }
        }
        if names.len() + directories.len() > NAMES_LIMIT {
            tracing::debug!(root = %root.display(), "too many names: what comes after them is not warmed");
            break;
        }
    }
    let weights: Vec<&Path> =
        names.iter().filter(|path| is_weights(path)).filter_map(|path| path.parent()).collect();
    let wanted = |path: &PathBuf| match content {
        Content::Model => true,
        // Beside weights are the files that belong to them; in the rest of an image is a system.
        Content::Anything => path.parent().is_some_and(|parent| weights.contains(&parent)),
    };
    let mut files = Vec::new();
    for path in names.iter().filter(|path| wanted(path)) {
        let size = fs::symlink_metadata(path)?.len();
        if size > 0 && (weights.is_empty() || is_weights(path) || size <= SMALL) {
            files.push(WarmFile { path: path.clone(), size });
        }
    }
    files.sort_by(|one, two| (rank(one), &one.path).cmp(&(rank(two), &two.path)));
    files.truncate(FILES_LIMIT);
    Ok(files)
}

fn is_weights(path: &Path) -> bool {
    let end = path.extension().and_then(|end| end.to_str()).unwrap_or_default();
    WEIGHTS.iter().any(|known| end.eq_ignore_ascii_case(known))
}

/// When a server reads the file: the configuration decides what to load, the tokenizer is small, the index says which shards
/// there are, and shards follow each other by their names.
fn rank(file: &WarmFile) -> u8 {
    let name = file.path.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_ascii_lowercase();
    match name.as_str() {
        _ if is_weights(&file.path) || file.size > SMALL => 4,
        _ if name.ends_with(".index.json") => 2,
        _ if name.contains("config") => 0,
        _ if ["token", "vocab", "merges", "chat_template"].iter().any(|part| name.contains(part)) => 1,
        _ => 3,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The names of what is warmed of a directory with `files`.
    fn order(files: &[(&str, u64)], content: Content) -> Vec<String> {
        let directory = tempfile::tempdir().expect("a directory");
        for (name, size) in files {
            let path = directory.path().join(name);
            fs::create_dir_all(path.parent().expect("a parent")).expect("made");
            fs::File::create(path).and_then(|file| file.set_len(*size)).expect("a file");
        }
        let found = super::files(directory.path(), content).expect("listed");
        let name =
            |file: &WarmFile| file.path.strip_prefix(directory.path()).expect("below").display().to_string();
        found.iter().map(name).collect()
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
        assert_eq!(files(directory.path(), Content::Model).expect("listed"), []);
    }
}
