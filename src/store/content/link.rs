//! A merged tree on disk: directories of its own, files that are links to those of layers and blobs.

use std::collections::HashMap;
use std::fs::{File, Permissions};
use std::os::fd::AsFd as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustix::fs::{AtFlags, CWD, Mode, OFlags};

use crate::host::crew::{self, Crew, Pool};
use crate::host::{failpoint, file_metadata};
use crate::layer::checksum::Checksum;
use crate::layer::entries::At;
use crate::layer::format::{Profile, readable};
use crate::layer::index::{EntryKind, EntryMetadata};
use crate::layer::merge::{Merge, Visit};
use crate::layer::name::Name;
use crate::layout;
use crate::store::content::blobs::Blob;
use crate::store::content::layer::Layer;
use crate::store::content::links::{Directory, LINKS, Linker, Links, Space, cannot_link, copy, create};
use crate::store::content::tree_index::{Content, TreeIndex, TreeKind};
use crate::store::disk::create_private;
use crate::store::error::{Error, io};

/// What the tree is made of, by the number of the layer in the merge.
pub(in crate::store) enum TreeSource {
    /// A blob that is one file.
    Blob(Blob, layout::plan::StatedMetadata),
    /// A file that the layout writes.
    Text(Vec<u8>),
    /// An unpacked layer.
    Layer(Layer),
}

/// How the tree is made.
#[derive(Debug, Clone, Copy)]
pub(in crate::store) struct How {
    pub profile: Profile,
    /// Everybody may read everything.
    pub readable: bool,
    /// The file system shares content between files.
    pub reflink: bool,
}

/// What was made: files, and bytes of them.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(in crate::store) struct Made {
    pub files: usize,
    /// Files and directories.
    pub inodes: u64,
    pub bytes: u64,
    /// Of the index of a tree that has one.
    pub index: Option<Checksum>,
}

/// Permission bits of a file of which nothing is known.
const PLAIN: u16 = 0o444;
/// Files up to this size are copied, not linked, to carry their own mode, owner and time.
const COPY_LIMIT: u64 = 1024 * 1024;
/// Files up to this size are copied when their artifact calls them executable. Larger ones are weights: tools set the
/// bit on whatever a file system without permissions had.
const EXECUTABLE_LIMIT: u64 = 64 * 1024 * 1024;

const DIRECTORY: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// The walk over a merge.
struct Walk<'a, 'c> {
    root: &'a Path,
    merge: &'a Merge<'a>,
    sources: &'a [TreeSource],
    how: How,
    linker: &'c Linker<'a>,
    /// Makes the links.
    crew: &'c Crew<'c, Vec<Links>, Error>,
    /// The directories on the way, with what is to be linked in them.
    open: Vec<Links>,
    /// Directories that were left, and their links, until these are enough to be given away.
    left: Vec<Links>,
    /// Links that were added since all were handed over, at most.
    waiting: usize,
    /// Where a blob was put that could not be linked, by what its file is there.
    blobs: HashMap<(PathBuf, layout::plan::StatedMetadata), PathBuf>,
    made: Made,
    index: TreeIndex,
}

/// Links, and directories, that are given away together.
const GIVEN_LINKS: usize = 256;
const GIVEN_DIRECTORIES: usize = 32;
/// Entries from which on helpers are worth their start.
const MANY: usize = 1000;

/// Makes the tree at `root`, which is not there yet.
///
/// # Errors
/// [`Error::NoSpace`], [`Error::Io`].
pub(in crate::store) fn make(
    root: &Path,
    merge: &Merge<'_>,
    sources: &[TreeSource],
    how: How,
    space: Space<'_>,
) -> Result<Made, Error> {
    let entries = layers(sources).flatten().map(|layer| layer.summary.entries).sum::<usize>();
    let helpers = if entries < MANY { 0 } else { crew::MOST };
    make_with(&crew::LINKS, helpers, root, merge, sources, how, space)
}

fn make_with(
    pool: &'static Pool,
    helpers: usize,
    root: &Path,
    merge: &Merge<'_>,
    sources: &[TreeSource],
    how: How,
    space: Space<'_>,
) -> Result<Made, Error> {
    create_private(root.parent().unwrap_or(root)).map_err(io("create", root))?;
    let index = TreeIndex::create(root.parent().unwrap_or(root))?;
    let linker = Linker::new(merge, layers(sources).collect(), how.reflink, space);
    let link = |links| linker.link_all(links);
    let (index, mut made) = crew::with_helpers(pool, helpers, "link", &link, |crew| {
        let mut walk = Walk {
            root,
            merge,
            sources,
            how,
            linker: &linker,
            crew,
            open: Vec::new(),
            left: Vec::new(),
            waiting: 0,
            blobs: HashMap::new(),
            made: Made::default(),
            index,
        };
        merge.walk(&mut |visit| match visit {
            Visit::Enter { path, metadata } => walk.enter(path, metadata),
            Visit::Leave => walk.leave(),
            Visit::Leaf { path, at } => walk.leaf(path, at),
        })?;
        crew.give(walk.left)?;
        Ok((walk.index, walk.made))
    })?;
    made.index = Some(index.finish()?);
    Ok(made)
}

fn layers(sources: &[TreeSource]) -> impl Iterator<Item = Option<&Layer>> {
    sources.iter().map(|source| match source {
        TreeSource::Layer(layer) => Some(layer),
        TreeSource::Blob(..) | TreeSource::Text(_) => None,
    })
}

impl Walk<'_, '_> {
    fn enter(&mut self, path: &Name, metadata: Option<EntryMetadata<&[u8]>>) -> Result<(), Error> {
        self.made.inodes += 1;
        self.linker.check_space(0)?;
        let place = self.place(path);
        failpoint::fails("tree.directory").map_err(io("create", &place))?;
        let part = path.split().map(|(_, part)| part);
        let opened = match (self.open.last(), part) {
            (Some(parent), Some(part)) => {
                let parent = &parent.directory().fd;
                rustix::fs::mkdirat(parent, part, Mode::RWXU)
                    .and_then(|()| rustix::fs::openat(parent, part, DIRECTORY, Mode::empty()))
            }
            _ => rustix::fs::mkdirat(CWD, self.root, Mode::RWXU)
                .and_then(|()| rustix::fs::openat(CWD, self.root, DIRECTORY, Mode::empty())),
        };
        let fd = opened.map_err(|error| io("create", &place)(error.into()))?;
        let metadata = metadata.map_or_else(EntryMetadata::implied, |stated| stated.to_owned());
        let mode = if self.how.readable { readable(metadata.mode, true) } else { metadata.mode };
        self.index.add(path, TreeKind::Directory, mode)?;
        self.open.push(Links::new(Arc::new(Directory { fd, path: place, mode, metadata })));
        Ok(())
    }

    fn leave(&mut self) -> Result<(), Error> {
        self.open.pop().map_or(Ok(()), |links| self.hand_over(links))
    }

    /// Has links made, once there are enough of them.
    fn hand_over(&mut self, links: Links) -> Result<(), Error> {
        self.left.push(links);
        let count = self.left.iter().map(Links::len).sum::<usize>();
        if count < GIVEN_LINKS && self.left.len() < GIVEN_DIRECTORIES {
            return Ok(());
        }
        self.crew.give(std::mem::take(&mut self.left))
    }

    fn leaf(&mut self, path: &Name, at: At) -> Result<(), Error> {
        failpoint::reached("merge.entry");
        let entry = self.merge.entry(at);
        self.made.files += 1;
        self.made.inodes += 1;
        match (&self.sources[at.layer as usize], &entry.kind) {
            (TreeSource::Blob(blob, metadata), _) => {
                self.made.bytes += blob.size;
                let mode = self.place_blob(blob, path, *metadata)?;
                let content = Content::Blob(blob.digest.clone());
                self.index.add(path, TreeKind::File(blob.size, content), mode)
            }
            (TreeSource::Text(text), _) => {
                self.made.bytes += text.len() as u64;
                self.linker.check_space(text.len() as u64)?;
                let target = self.place(path);
                let file = create(&target)?;
                file.write_all_at(text, 0).map_err(io("write", &target))?;
                set_plain(&file, &target, PLAIN)?;
                let content = Content::Checksum(Checksum::of(text));
                self.index.add(path, TreeKind::File(text.len() as u64, content), PLAIN)
            }
            (TreeSource::Layer(_), EntryKind::File { size, checksum, .. }) => {
                self.made.bytes += size;
                let on_disk = self.how.profile.mode_on_disk(entry.metadata.mode);
                let mode = if self.how.readable {
                    readable(entry.metadata.mode, false)
                } else {
                    entry.metadata.mode
                };
                self.link(path, at, (mode != on_disk).then_some(mode))?;
                self.index.add(path, TreeKind::File(*size, Content::Checksum(*checksum)), mode)
            }
            (TreeSource::Layer(_), EntryKind::Symlink { target, .. }) => {
                self.link(path, at, None)?;
                self.index.add(path, TreeKind::Symlink(target.to_vec()), 0)
            }
            // A merge has nothing else as leaves.
            (TreeSource::Layer(_), _) => Ok(()),
        }
    }

    /// Has a link made some time, or copies at once what needs another `mode`.
    fn link(&mut self, path: &Name, at: At, mode: Option<u16>) -> Result<(), Error> {
        let (Some(links), Some((_, part))) = (self.open.last_mut(), path.split()) else { return Ok(()) };
        match mode {
            Some(mode) => self.linker.copy_as(links.directory(), part, at, mode),
            None => match links.add(part, at) {
                Some(before) => self.hand_over(before),
                None => self.hand_over_much(),
            },
        }
    }

    /// Has all links made that wait, when they are as many as one directory may have. Those of a tree of many levels would otherwise take
    /// memory for each level.
    fn hand_over_much(&mut self) -> Result<(), Error> {
        self.waiting += 1;
        if self.waiting < LINKS {
            return Ok(());
        }
        self.waiting = 0;
        for at in 0..self.open.len() {
            let Some(links) = self.open.get_mut(at).filter(|links| links.len() > 0) else { continue };
            let before = links.take();
            self.hand_over(before)?;
        }
        Ok(())
    }

    /// Puts a blob's content at `path`: linked where its plain metadata will do, else copied, once for all names of the
    /// same metadata. Returns its permission bits.
    fn place_blob(
        &mut self,
        blob: &Blob,
        path: &Name,
        metadata: layout::plan::StatedMetadata,
    ) -> Result<u16, Error> {
        let target = self.place(path);
        let own_metadata = has_own_metadata(blob, &metadata, self.how);
        let executable = is_executable(blob, &metadata);
        let stated = metadata.mode.unwrap_or(PLAIN) & 0o777;
        let mode = match (own_metadata, executable) {
            (true, _) if self.how.readable => readable(stated, false),
            (true, _) => stated,
            (false, true) => PLAIN | 0o111,
            (false, false) => PLAIN,
        };
        let known = self.blobs.get(&(blob.path.clone(), metadata)).cloned();
        let original = (!own_metadata && !executable).then(|| blob.path.clone());
        if let Some(from) = known.or(original) {
            match rustix::fs::linkat(CWD, &from, CWD, &target, AtFlags::empty()) {
                Ok(()) => return Ok(mode),
                Err(error) if cannot_link(error) => {}
                Err(error) => return Err(io("link", &target)(error.into())),
            }
        }
        // Copies that share their content take nothing.
        self.linker.check_space(if self.how.reflink { 0 } else { blob.size })?;
        let file = copy(&blob.path, &target)?;
        if own_metadata {
            let seconds = metadata.mtime.max(0);
            let exact: EntryMetadata = EntryMetadata {
                mode,
                uid: metadata.uid,
                gid: metadata.gid,
                mtime: seconds,
                ..EntryMetadata::default()
            };
            file_metadata::set(file.as_fd(), mode, &exact)
                .map_err(|error| io("change", &target)(error.into()))?;
        } else {
            set_plain(&file, &target, mode)?;
        }
        self.blobs.insert((blob.path.clone(), metadata), target);
        Ok(mode)
    }

    fn place(&self, path: &Name) -> PathBuf {
        if path.is_root() {
            return self.root.to_owned();
        }
        self.root.join(std::ffi::OsStr::from_bytes(path.as_bytes()))
    }
}

/// Whether a blob's file gets the owner, mode and time that its artifact says.
fn has_own_metadata(blob: &Blob, metadata: &layout::plan::StatedMetadata, how: How) -> bool {
    *metadata != layout::plan::StatedMetadata::default() && (blob.size <= COPY_LIMIT || how.reflink)
}

fn is_executable(blob: &Blob, metadata: &layout::plan::StatedMetadata) -> bool {
    metadata.mode.is_some_and(|mode| mode & 0o111 != 0) && blob.size <= EXECUTABLE_LIMIT
}

/// What a file has of which nothing is known.
fn set_plain(file: &File, target: &Path, mode: u16) -> Result<(), Error> {
    file.set_modified(SystemTime::UNIX_EPOCH + Duration::ZERO).map_err(io("touch", target))?;
    file.set_permissions(Permissions::from_mode(mode.into())).map_err(io("change mode of", target))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::os::unix::fs::MetadataExt as _;
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::layer::entries::Entries;
    use crate::layer::format::{Dropped, FILES, INDEX, SHADOWED, Summary};
    use crate::layer::index::{Entry, Place};
    use crate::layer::stream;
    use crate::oci::digest::Digest;
    use crate::store::key::LayerKey;

    fn entry(name: &str, kind: EntryKind, mode: u16) -> Entry {
        let name = Name::parse(name.as_bytes()).expect("safe");
        Entry { name, kind, metadata: EntryMetadata { mode, mtime: 1000, ..EntryMetadata::default() } }
    }

    fn file(name: &str, place: Place, mode: u16) -> Entry {
        let kind =
            EntryKind::File { size: name.len() as u64, checksum: Checksum::of(name.as_bytes()), place };
        entry(name, kind, mode)
    }

    /// A layer of these entries in `directory`, as unpacking leaves it. What a file holds is its name.
    fn layer(directory: &Path, number: usize, entries: &[Entry]) -> Layer {
        let directory = directory.join(format!("layer-{number}"));
        let text = |name: &Name| String::from_utf8_lossy(name.as_bytes()).into_owned();
        std::fs::create_dir_all(directory.join(SHADOWED)).expect("a directory");
        for (number, entry) in entries.iter().enumerate() {
            let named = directory.join(FILES).join(text(&entry.name));
            match &entry.kind {
                EntryKind::Directory => std::fs::create_dir_all(&named).expect("a directory"),
                EntryKind::File { place, .. } => {
                    let shadowed = directory.join(SHADOWED).join(number.to_string());
                    let path = if *place == Place::Named { named } else { shadowed };
                    std::fs::write(&path, text(&entry.name)).expect("a file");
                    let mode = Permissions::from_mode(entry.metadata.mode.into());
                    std::fs::set_permissions(&path, mode).expect("a mode");
                }
                EntryKind::Symlink { target, .. } => {
                    symlink(String::from_utf8_lossy(target).as_ref(), &named).expect("a link");
                }
                _ => {}
            }
        }
        let digest = Digest::sha256(number.to_string().as_bytes());
        let summary = Summary {
            entries: entries.len(),
            files: 0,
            bytes: 0,
            memory: 0,
            index: Checksum::of(b""),
            regular: false,
            readable: false,
            dropped: Dropped::default(),
        };
        Layer {
            key: LayerKey::new(&digest, Profile::Image),
            directory,
            digest,
            size: 0,
            summary,
            contents: Vec::new(),
            public: false,
            origins: Vec::new(),
        }
    }

    /// Two layers with many directories, one of very many files, names of one file, and a file whose name was taken.
    fn entries() -> [Vec<Entry>; 2] {
        let mut below = vec![entry("", EntryKind::Directory, 0o711)];
        for directory in 0..60 {
            below.push(entry(&format!("d{directory}/in"), EntryKind::Directory, 0o750));
            for number in 0..20 {
                below.push(file(&format!("d{directory}/in/f{number}"), Place::Named, 0o640));
            }
            let target = b"in/f1".to_vec();
            below.push(entry(
                &format!("d{directory}/link"),
                EntryKind::Symlink { target, place: Place::Named },
                0,
            ));
        }
        below.push(entry("many", EntryKind::Directory, 0o755));
        below.extend((0..9000).map(|number| file(&format!("many/{number:04}"), Place::Named, 0o644)));
        let target = Name::parse(b"d1/in/f1").expect("safe");
        below.push(entry("many/other", EntryKind::HardLink { target }, 0));
        let above = vec![
            file("d1/in/f0", Place::Shadowed, 0o600),
            entry("d2/in/f0", EntryKind::Whiteout, 0),
            entry("d3", EntryKind::Opaque, 0),
            entry("d4", EntryKind::Directory, 0o700),
        ];
        [below, above]
    }

    /// What is at each name: kind, mode, time, content, and which other name is the same file.
    fn listing(root: &Path) -> BTreeMap<PathBuf, (String, u32, i64, String, u64)> {
        let mut found = BTreeMap::new();
        let mut waiting = vec![root.to_owned()];
        while let Some(path) = waiting.pop() {
            let metadata = std::fs::symlink_metadata(&path).expect("it is there");
            let (content, links) = if metadata.is_dir() {
                waiting.extend(
                    std::fs::read_dir(&path).expect("a list").map(|entry| entry.expect("one").path()),
                );
                (String::new(), 0)
            } else if metadata.is_symlink() {
                (std::fs::read_link(&path).expect("a target").display().to_string(), 0)
            } else {
                (std::fs::read_to_string(&path).expect("text"), metadata.nlink())
            };
            let kind = format!("{:?}", metadata.file_type());
            let time = if metadata.is_dir() { metadata.mtime() } else { 0 };
            let below = path.strip_prefix(root).expect("below").to_owned();
            found.insert(below, (kind, metadata.mode(), time, content, links));
        }
        found
    }

    fn index_of(root: &Path, made: &Made) -> Vec<crate::store::content::tree_index::TreeEntry> {
        let file = File::open(root.with_file_name(INDEX)).expect("an index");
        stream::Reader::new(file, made.index.expect("a checksum"), 100_000)
            .map(|entry| entry.expect("an entry"))
            .collect()
    }

    /// Makes the tree of [`entries`], whose layers are in `base`, in `place`; with `readable` some of it is copied.
    fn make_in(place: &Path, base: &Path, helpers: usize, readable: bool) -> (PathBuf, Made) {
        let entries = entries();
        let layers = [0, 1].map(|number| layer(base, number, &entries[number]));
        let sources = layers.map(TreeSource::Layer);
        let entries = entries.map(|entries| Entries::of(&entries).expect("memory"));
        let mut merge = Merge::new(Profile::Image);
        for entries in &entries {
            merge.apply(entries, None).expect("applied");
        }
        let root = place.join(format!("tree-{helpers}-{readable}")).join(FILES);
        let how = How { profile: Profile::Image, readable, reflink: false };
        let made =
            make_with(Pool::of(helpers), helpers, &root, &merge, &sources, how, &|_| Ok(())).expect("made");
        (root, made)
    }

    #[test]
    fn a_tree_is_the_same_however_many_help() {
        for readable in [false, true] {
            let directory = tempfile::tempdir().expect("a directory");
            let made = [0, 1, 3].map(|helpers| {
                let base = directory.path().join(helpers.to_string());
                let (root, made) = make_in(directory.path(), &base, helpers, readable);
                (listing(&root), index_of(&root, &made), made)
            });
            assert_eq!(made[0], made[1]);
            assert_eq!(made[0], made[2]);
            let (listing, index, counts) = &made[0];
            assert_eq!((listing.len(), index.len()), (counts.inodes as usize, counts.inodes as usize));
            let at = |path: &str| listing.get(Path::new(path)).cloned();
            let mode = |path: &str| at(path).map(|found| found.1 & 0o7777);
            assert_eq!(mode(""), Some(if readable { 0o755 } else { 0o711 }));
            assert_eq!(mode("d1/in/f0"), Some(if readable { 0o644 } else { 0o600 }));
            assert_eq!(at("d2/in/f0"), None);
            assert_eq!(at("d3/in"), None);
            assert_eq!(mode("d4"), Some(if readable { 0o755 } else { 0o700 }));
            let time = |path: &str| at(path).map(|found| found.2);
            assert_eq!((time("many"), time("d4"), time("d5/in")), (Some(1000), Some(1000), Some(1000)));
            // Two names in the tree, and, where it is not copied, one in the layer.
            assert_eq!(at("many/other").map(|found| found.4), Some(if readable { 2 } else { 3 }));
            assert_eq!(at("many/other").map(|found| found.3), Some("d1/in/f1".to_owned()));
        }
    }

    #[test]
    fn what_cannot_be_linked_is_copied_once_for_all_its_names() {
        let (here, there) =
            (tempfile::tempdir().expect("here"), tempfile::tempdir_in("/dev/shm").expect("there"));
        let device = |path: &Path| std::fs::metadata(path).expect("it is there").dev();
        assert_ne!(device(here.path()), device(there.path()), "this test needs two file systems");
        let linked = make_in(here.path(), &here.path().join("layers"), 0, false);
        for helpers in [0, 3] {
            let base = there.path().join(helpers.to_string());
            let copied = make_in(&here.path().join("copied"), &base, helpers, false);
            assert_eq!(index_of(&copied.0, &copied.1), index_of(&linked.0, &linked.1));
            let (copied, linked) = (listing(&copied.0), listing(&linked.0));
            assert_eq!(copied.keys().collect::<Vec<_>>(), linked.keys().collect::<Vec<_>>());
            for (path, (kind, mode, time, content, links)) in copied {
                let (_, mode_linked, time_linked, content_linked, _) = &linked[&path];
                assert_eq!(
                    (&mode, &time, &content),
                    (mode_linked, time_linked, content_linked),
                    "{path:?} {kind}"
                );
                let names = if path.ends_with("other") || path.ends_with("d1/in/f1") { 2 } else { 1 };
                assert!(links == 0 || links == names, "{path:?} has {links} names");
            }
        }
    }

    #[test]
    fn an_error_of_a_helper_ends_it() {
        let directory = tempfile::tempdir().expect("a directory");
        for helpers in [0, 3] {
            let base = directory.path().join(helpers.to_string());
            let entries = entries();
            let layers = [0, 1].map(|number| layer(&base, number, &entries[number]));
            std::fs::remove_file(base.join("layer-0/fs/d7/in/f3")).expect("removed");
            let sources = layers.map(TreeSource::Layer);
            let mut merge = Merge::new(Profile::Image);
            let entries = Entries::of(&entries[0]).expect("memory");
            merge.apply(&entries, None).expect("applied");
            let root = base.join("tree").join(FILES);
            let how = How { profile: Profile::Image, readable: false, reflink: false };
            let error = make_with(Pool::of(helpers), helpers, &root, &merge, &sources, how, &|_| Ok(()))
                .expect_err("it is lost");
            assert!(error.is_loss() && error.to_string().contains("d7/in/f3"), "{error}");
        }
    }

    #[test]
    fn a_disk_that_is_full_ends_it() {
        let directory = tempfile::tempdir().expect("a directory");
        // More than are made between two looks at the disk.
        let entries: Vec<Entry> =
            (0..5000).map(|number| entry(&format!("d{number}"), EntryKind::Directory, 0o755)).collect();
        for helpers in [0, 3] {
            let base = directory.path().join(helpers.to_string());
            let sources = [TreeSource::Layer(layer(&base, 0, &entries))];
            let mut merge = Merge::new(Profile::Image);
            let entries = Entries::of(&entries).expect("memory");
            merge.apply(&entries, None).expect("applied");
            let root = base.join("tree").join(FILES);
            let how = How { profile: Profile::Image, readable: false, reflink: false };
            let full = |_| Err(Error::Abandoned);
            let error = make_with(Pool::of(helpers), helpers, &root, &merge, &sources, how, &full)
                .expect_err("it is full");
            assert!(matches!(error, Error::Abandoned), "{error}");
        }
    }

    #[test]
    fn links_of_many_levels_are_all_made() {
        let directory = tempfile::tempdir().expect("a directory");
        let (mut entries, mut path) = (Vec::new(), String::new());
        for level in 0..4 {
            entries
                .extend((0..LINKS / 2).map(|number| file(&format!("{path}a{number}"), Place::Named, 0o644)));
            path.push_str(&format!("b{level}/"));
            entries.push(entry(path.trim_end_matches('/'), EntryKind::Directory, 0o755));
        }
        // A layer's files are written in this order, directories first.
        let mut on_disk = entries.clone();
        on_disk.sort_by_key(|entry| !matches!(entry.kind, EntryKind::Directory));
        let sources = [TreeSource::Layer(layer(directory.path(), 0, &on_disk))];
        let mut merge = Merge::new(Profile::Image);
        let entries = Entries::of(&entries).expect("memory");
        merge.apply(&entries, None).expect("applied");
        let how = How { profile: Profile::Image, readable: false, reflink: false };
        for helpers in [0, 1] {
            let root = directory.path().join(format!("tree-{helpers}")).join(FILES);
            let made = make_with(Pool::of(helpers), helpers, &root, &merge, &sources, how, &|_| Ok(()))
                .expect("made");
            let found = listing(&root);
            assert_eq!(found.len() as u64, made.inodes as u64);
            assert_eq!(made.files, 4 * (LINKS / 2));
            let times = found.values().filter(|found| found.1 & 0o170_000 == 0o040_000).map(|found| found.2);
            assert_eq!(times.filter(|time| *time == 1000).count(), 4, "directories get their times last");
        }
    }
}
