//! What a directory holds, in a form that can be compared: content, metadata, and which names are one file.

use std::collections::{BTreeMap, HashMap};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::Path;

use ocivol::oci::digest::Digest;

/// One file, directory or symlink.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// `f`, `d`, `l`; anything else is `?`.
    pub kind: char,
    pub mode: u32,
    pub owner: (u32, u32),
    /// Seconds and nanoseconds.
    pub mtime: (i64, i64),
    /// Digest of the content, or a symlink's target.
    pub content: String,
    pub xattrs: BTreeMap<String, Vec<u8>>,
    /// The first of its names, in byte order.
    pub group: String,
}

pub type Snapshot = BTreeMap<String, Node>;

/// What is below `root`; the root itself is `""`. Devices and the like are left out.
pub fn snapshot(root: &Path) -> Snapshot {
    let mut nodes = Snapshot::new();
    let mut inodes: HashMap<u64, String> = HashMap::new();
    let mut paths = vec![root.to_owned()];
    let mut at = 0;
    while at < paths.len() {
        let path = paths[at].clone();
        at += 1;
        if std::fs::symlink_metadata(&path).expect("metadata").is_dir() {
            paths.extend(
                std::fs::read_dir(&path).expect("a directory").map(|entry| entry.expect("entry").path()),
            );
        }
    }
    let name = |path: &Path| {
        let relative = path.strip_prefix(root).expect("below the root");
        relative.as_os_str().as_bytes().escape_ascii().to_string()
    };
    paths.sort_by_key(|path| name(path));
    for path in paths {
        let found = std::fs::symlink_metadata(&path).expect("metadata");
        let (kind, content) = match found.file_type() {
            kind if kind.is_dir() => ('d', String::new()),
            kind if kind.is_file() => {
                ('f', Digest::sha256(&std::fs::read(&path).expect("content")).to_string())
            }
            kind if kind.is_symlink() => (
                'l',
                std::fs::read_link(&path)
                    .expect("a target")
                    .as_os_str()
                    .as_bytes()
                    .escape_ascii()
                    .to_string(),
            ),
            kind if kind.is_fifo() || kind.is_socket() || kind.is_block_device() || kind.is_char_device() => {
                continue;
            }
            _ => ('?', String::new()),
        };
        let group = match kind {
            'd' => name(&path),
            _ => inodes.entry(found.ino()).or_insert_with(|| name(&path)).clone(),
        };
        let node = Node {
            kind,
            mode: found.mode() & 0o7777,
            owner: (found.uid(), found.gid()),
            mtime: (found.mtime(), found.mtime_nsec()),
            content,
            xattrs: if kind == 'l' { BTreeMap::new() } else { xattrs(&path) },
            group,
        };
        nodes.insert(name(&path), node);
    }
    nodes
}

fn xattrs(path: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut names = vec![0_u8; 64 * 1024];
    let Ok(length) = rustix::fs::llistxattr(path, &mut names[..]) else { return BTreeMap::new() };
    let names = names[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty());
    names
        .map(|name| {
            let mut value = vec![0_u8; 64 * 1024];
            let length = rustix::fs::lgetxattr(path, name, &mut value[..]).expect("a value");
            (name.escape_ascii().to_string(), value[..length].to_vec())
        })
        .collect()
}

/// Panics with the first difference.
pub fn assert_equal(ours: &Snapshot, theirs: &Snapshot, who: &str) {
    if let Some(difference) = difference(ours, theirs, who) {
        panic!("{difference}");
    }
}

/// The first difference, in words.
pub fn difference(ours: &Snapshot, theirs: &Snapshot, who: &str) -> Option<String> {
    let names: std::collections::BTreeSet<_> = ours.keys().chain(theirs.keys()).collect();
    names.into_iter().find_map(|name| match (ours.get(name), theirs.get(name)) {
        (one, two) if one == two => None,
        (one, two) => Some(format!("{name:?}: ocivol has {one:?}, {who} has {two:?}")),
    })
}

/// All paths below a directory, sorted; directories end in a slash.
pub fn paths(root: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut waiting = vec![root.to_owned()];
    while let Some(directory) = waiting.pop() {
        for entry in std::fs::read_dir(directory).expect("a directory") {
            let path = entry.expect("an entry").path();
            let is_directory = std::fs::symlink_metadata(&path).expect("metadata").is_dir();
            let name = path.strip_prefix(root).expect("below").display().to_string();
            found.push(if is_directory { name + "/" } else { name });
            if is_directory {
                waiting.push(path);
            }
        }
    }
    found.sort();
    found
}
