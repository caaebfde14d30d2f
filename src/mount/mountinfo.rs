//! The mount table of this mount namespace, and which of its mounts are ours.

#![cfg_attr(not(test), deny(clippy::indexing_slicing))]

use std::ffi::OsString;
use std::io::Read as _;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use crate::mount::error::Error;

/// One line of mountinfo. Source: `man 5 proc_pid_mountinfo`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// The kernel's number for it, which another mount may get once this one is gone.
    pub id: u32,
    /// `major:minor` of the file system; of an overlay of ours, of the one that the tree is in.
    pub device: String,
    /// The directory of that file system which is mounted; of an overlay of ours, the tree that it shows.
    pub root: PathBuf,
    /// Where.
    pub mount_point: PathBuf,
    /// Flags of this mount: `ro,nosuid,nodev` …
    pub options: String,
    /// Whether mounts below it propagate to other namespaces.
    pub shared: bool,
    /// The file system's type.
    pub fs_type: String,
    /// Whether it is an overlay that shows a tree of ours.
    pub is_overlay: bool,
}

/// The mounts of a namespace; later ones are on top.
#[derive(Debug, Clone, Default)]
pub struct Table {
    mounts: Vec<Mount>,
}

/// Where the store is, in the mount table's words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreLocation {
    pub(super) device: String,
    /// The store's directory within its file system.
    pub(super) root: PathBuf,
}

/// What the mount table shows as such a mount's source, before the tree's device and directory: an overlay is a file system
/// of its own, so these are not in its line as they are in that of a bind.
pub(in crate::mount) const OVERLAY_SOURCE: &str = "ocivol:";
/// Bytes of the table: a hundred thousand mounts.
const LIMIT: u64 = 64 * 1024 * 1024;

impl Table {
    /// Reads the table of the calling thread's mount namespace.
    ///
    /// # Errors
    /// [`Error::Kernel`] when `/proc` cannot be read.
    pub fn read() -> Result<Self, Error> {
        let path = Path::new("/proc/thread-self/mountinfo");
        let mut bytes = Vec::new();
        std::fs::File::open(path)
            .and_then(|file| file.take(LIMIT).read_to_end(&mut bytes))
            .map_err(|source| Error::Kernel { action: "read", path: path.to_owned(), source })?;
        Ok(Self::parse(&bytes))
    }

    /// Reads the text of a mountinfo file. Lines of another shape are left out.
    pub fn parse(text: &[u8]) -> Self {
        Self { mounts: text.split(|&byte| byte == b'\n').filter_map(parse_line).collect() }
    }

    /// The topmost mount at exactly `path`.
    pub fn at(&self, path: &Path) -> Option<&Mount> {
        self.mounts.iter().rfind(|mount| mount.mount_point == path)
    }

    /// All mounts.
    pub fn iter(&self) -> impl Iterator<Item = &Mount> {
        self.mounts.iter()
    }

    /// The mount that `path` lies on.
    pub fn holder(&self, path: &Path) -> Option<&Mount> {
        let holders = self.mounts.iter().filter(|mount| path.starts_with(&mount.mount_point));
        // Of equally long mount points the last is on top.
        holders.max_by_key(|mount| mount.mount_point.components().count())
    }

    /// Where the store directory `path` is. Works from the table alone, also when the store cannot be read.
    pub fn locate_store(&self, path: &Path) -> Option<StoreLocation> {
        StoreLocation::on(self.holder(path)?, path)
    }
}

impl StoreLocation {
    /// Of the directory `path`, which lies on `holder`.
    pub(in crate::mount) fn on(holder: &Mount, path: &Path) -> Option<Self> {
        let below = path.strip_prefix(&holder.mount_point).ok()?;
        Some(Self { device: holder.device.clone(), root: join(&holder.root, below) })
    }

    /// Whether `mount` shows a tree of this store, or a layer that needs none.
    pub fn holds(&self, mount: &Mount) -> bool {
        let below = |name| mount.root.starts_with(join(&self.root, Path::new(name)));
        mount.device == self.device && (below("v1/trees") || below("v1/layers"))
    }

    /// The directory of this store that `mount` shows some of: `trees/<name>` or `layers/<name>`.
    pub fn directory_of(&self, mount: &Mount) -> Option<String> {
        let below = mount.root.strip_prefix(join(&self.root, Path::new("v1"))).ok()?;
        let mut parts = below.components().map(|part| part.as_os_str().to_string_lossy());
        let (kind, name) = (parts.next()?, parts.next()?);
        self.holds(mount).then(|| format!("{kind}/{name}"))
    }
}

impl Mount {
    /// With what `source`, that of its file system, tells of an overlay of ours.
    pub(in crate::mount) fn of_source(self, source: &Path) -> Self {
        match (self.fs_type == "overlay").then(|| tree_of(source)).flatten() {
            Some((device, root)) => Self { device, root, is_overlay: true, ..self },
            None => self,
        }
    }

    /// Whether the mount shows a tree of some ocivol store: by the shape of its root, `…/trees/<64 hex>/fs…` or
    /// `…/layers/<64 hex>/fs…`.
    ///
    /// For unpublishing when this store was moved, or is lost and cannot be located.
    pub fn looks_like_a_tree(&self) -> bool {
        self.store_key().is_some()
    }

    /// The key of the tree or layer that is mounted, from the mount's root.
    pub fn store_key(&self) -> Option<&str> {
        let parts: Vec<&str> = self.root.iter().filter_map(|part| part.to_str()).collect();
        parts.windows(3).find_map(|window| {
            let &[kind, name, fs] = window else { return None };
            let key =
                name.strip_prefix("retired-").map_or(name, |rest| rest.split('-').next().unwrap_or(rest));
            let is_key = key.len() == 64 && key.bytes().all(|byte| byte.is_ascii_hexdigit());
            (["trees", "layers"].contains(&kind) && fs == "fs" && is_key).then_some(key)
        })
    }

    /// Whether the mount has `flag` among its own options.
    pub fn has(&self, flag: &str) -> bool {
        self.options.split(',').any(|option| option == flag)
    }
}

/// Like [`Path::join`], without a trailing slash for an empty `below`.
fn join(base: &Path, below: &Path) -> PathBuf {
    if below.as_os_str().is_empty() { base.to_owned() } else { base.join(below) }
}

/// `36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue`
fn parse_line(line: &[u8]) -> Option<Mount> {
    let mut fields = line.split(|&byte| byte == b' ');
    let text = |field: &[u8]| String::from_utf8_lossy(field).into_owned();
    let id = std::str::from_utf8(fields.next()?).ok()?.parse().ok()?;
    let device = text(fields.nth(1)?);
    let root = unescape(fields.next()?);
    let mount_point = unescape(fields.next()?);
    let options = text(fields.next()?);
    let optional: Vec<&[u8]> = fields.by_ref().take_while(|field| *field != b"-").collect();
    let shared = optional.iter().any(|field| field.starts_with(b"shared:"));
    let fs_type = text(fields.next()?);
    let source = unescape(fields.next().unwrap_or_default());
    let mount = Mount { id, device, root, mount_point, options, shared, fs_type, is_overlay: false };
    Some(mount.of_source(&source))
}

/// Device and directory of the tree that an overlay shows, from the source that the mount table has for it.
fn tree_of(source: &Path) -> Option<(String, PathBuf)> {
    let place = source.to_str()?.strip_prefix(OVERLAY_SOURCE)?;
    let (device, root) = place.split_at_checked(place.find('/')?)?;
    Some((device.to_owned(), PathBuf::from(root)))
}

/// Space, tab, newline and backslash appear as `\` and three octal digits.
fn unescape(field: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, after)) = rest.split_first() {
        let octal = |byte: u8| (b'0'..=b'7').contains(&byte).then(|| u32::from(byte - b'0'));
        let escaped = match after {
            [one, two, three, ..] if first == b'\\' => octal(*one)
                .zip(octal(*two))
                .zip(octal(*three))
                .map(|((one, two), three)| one * 64 + two * 8 + three),
            _ => None,
        };
        match escaped.and_then(|value| u8::try_from(value).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = after.get(3..).unwrap_or_default();
            }
            None => {
                bytes.push(first);
                rest = after;
            }
        }
    }
    PathBuf::from(OsString::from_vec(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    fn table() -> Table {
        let text = format!(
            "21 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n\
             22 21 8:2 /data /var/lib/ocivol rw shared:2 - xfs /dev/sdb rw\n\
             23 21 8:2 /data/v1/trees/{KEY}/fs /pods/a/with\\040space ro,nosuid,nodev shared:3 - xfs /dev/sdb rw\n\
             24 21 8:2 /data2/v1/trees/{KEY}/fs /pods/b ro - xfs /dev/sdb rw\n\
             25 21 0:30 / /pods/c rw shared:4 master:2 - tmpfs tmpfs rw\n\
             26 25 8:2 /data/v1/trees/{KEY}/fs/sub\\134x//deleted /pods/c ro - xfs /dev/sdb rw\n\
             nonsense\n"
        );
        Table::parse(text.as_bytes())
    }

    #[test]
    fn lines_are_read_and_escapes_undone() {
        let table = table();
        assert_eq!(table.iter().count(), 6);
        let mount = table.at(Path::new("/pods/a/with space")).expect("mounted");
        assert!(mount.has("ro") && mount.has("nodev") && !mount.has("noexec") && mount.shared);
        assert_eq!((mount.id, mount.fs_type.as_str()), (23, "xfs"));
        let top = table.at(Path::new("/pods/c")).expect("mounted");
        assert!(top.root.to_str().expect("text").contains("sub\\x"));
    }

    #[test]
    fn ours_is_what_lies_in_the_stores_trees() {
        let table = table();
        let store = table.locate_store(Path::new("/var/lib/ocivol")).expect("located");
        let ours = |path: &str| table.at(Path::new(path)).is_some_and(|mount| store.holds(mount));
        assert!(ours("/pods/a/with space") && ours("/pods/c"));
        assert!(!ours("/pods/b") && !ours("/var/lib/ocivol") && !ours("/nowhere"));
        assert_eq!(table.at(Path::new("/pods/b")).and_then(Mount::store_key), Some(KEY));
        assert_eq!(table.at(Path::new("/")).and_then(Mount::store_key), None);
    }

    #[test]
    fn the_holder_is_the_longest_mount_point() {
        let table = table();
        let holder = |path: &str| table.holder(Path::new(path)).map(|mount| mount.device.clone());
        assert_eq!(holder("/var/lib/ocivol/v1").as_deref(), Some("8:2"));
        assert_eq!(holder("/var/lib/ocivol2").as_deref(), Some("8:1"));
    }
}
