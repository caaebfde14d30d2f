//! A merged tree on disk: directories of its own, files that are links to those of layers and blobs.

use std::collections::HashMap;
use std::fs::{self, File, Permissions};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rustix::fs::{AtFlags, CWD, Mode, OFlags};
use rustix::io::Errno;

use crate::host::{failpoint, file_metadata};
use crate::layer::checksum::Checksum;
use crate::layer::format::{Profile, place_of, readable};
use crate::layer::index::{EntryKind, EntryMetadata, Place};
use crate::layer::merge::{At, Merge, Visit};
use crate::layer::name::Name;
use crate::layout;
use crate::store::content::blobs::Blob;
use crate::store::content::layer::Layer;
use crate::store::content::tree_index::{Content, TreeIndex, TreeKind};
use crate::store::disk::create_private;
use crate::store::error::{Error, io};
use crate::store::space::amount::Amount;

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

struct Linker<'a> {
    root: &'a Path,
    merge: &'a Merge<'a>,
    sources: &'a [TreeSource],
    how: How,
    /// The directories on the way, with what they get when they are left.
    open: Vec<(OwnedFd, PathBuf, EntryMetadata)>,
    /// Where something was copied to: its other names are links to that.
    copies: HashMap<At, PathBuf>,
    /// The same of blobs, by what their file is.
    blobs: HashMap<(PathBuf, layout::plan::StatedMetadata), PathBuf>,
    made: Made,
    index: TreeIndex,
    space: Space<'a>,
    /// Files and directories made, and bytes copied, since the free space was looked at.
    unchecked: (usize, u64),
}

/// Makes sure that so much more fits.
type Space<'a> = &'a dyn Fn(Amount) -> Result<(), Error>;

/// How often the free space is looked at.
const CHECK_NODES: usize = 4096;
const CHECK_BYTES: u64 = 4 * 1024 * 1024;

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
    create_private(root.parent().unwrap_or(root)).map_err(io("create", root))?;
    let index = TreeIndex::create(root.parent().unwrap_or(root))?;
    let mut linker = Linker {
        root,
        merge,
        sources,
        how,
        open: Vec::new(),
        copies: HashMap::new(),
        blobs: HashMap::new(),
        made: Made::default(),
        index,
        space,
        unchecked: (0, 0),
    };
    merge.walk(&mut |visit| match visit {
        Visit::Enter { path, metadata } => linker.enter(path, metadata),
        Visit::Leave => linker.leave(),
        Visit::Leaf { path, at } => linker.leaf(path, at),
    })?;
    let Linker { index, mut made, .. } = linker;
    made.index = Some(index.finish()?);
    Ok(made)
}

impl Linker<'_> {
    fn enter(&mut self, path: &Name, metadata: Option<&EntryMetadata>) -> Result<(), Error> {
        self.made.inodes += 1;
        self.check_space(0)?;
        let place = self.place(path);
        failpoint::fails("tree.directory").map_err(io("create", &place))?;
        let part = path.split().map(|(_, part)| part);
        let opened = match (self.open.last(), part) {
            (Some((parent, ..)), Some(part)) => rustix::fs::mkdirat(parent, part, Mode::RWXU)
                .and_then(|()| rustix::fs::openat(parent, part, DIRECTORY, Mode::empty())),
            _ => rustix::fs::mkdirat(CWD, self.root, Mode::RWXU)
                .and_then(|()| rustix::fs::openat(CWD, self.root, DIRECTORY, Mode::empty())),
        };
        let opened = opened.map_err(|error| io("create", &place)(error.into()))?;
        let metadata = metadata.cloned().unwrap_or_else(EntryMetadata::implied);
        self.index.add(path, TreeKind::Directory, self.mode_of_directory(&metadata))?;
        self.open.push((opened, place, metadata));
        Ok(())
    }

    fn mode_of_directory(&self, metadata: &EntryMetadata) -> u16 {
        if self.how.readable { readable(metadata.mode, true) } else { metadata.mode }
    }

    /// Everything in it is made: it gets its metadata, times last.
    fn leave(&mut self) -> Result<(), Error> {
        let Some((directory, path, metadata)) = self.open.pop() else { return Ok(()) };
        let mode = self.mode_of_directory(&metadata);
        file_metadata::set(directory.as_fd(), mode, &metadata)
            .map_err(|error| io("change", &path)(error.into()))?;
        Ok(())
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
                self.check_space(text.len() as u64)?;
                let target = self.place(path);
                let file = create(&target)?;
                file.write_all_at(text, 0).map_err(io("write", &target))?;
                set_plain(&file, &target, PLAIN)?;
                let content = Content::Checksum(Checksum::of(text));
                self.index.add(path, TreeKind::File(text.len() as u64, content), PLAIN)
            }
            (TreeSource::Layer(layer), EntryKind::File { size, place, checksum }) => {
                self.made.bytes += size;
                let on_disk = self.how.profile.mode_on_disk(entry.metadata.mode);
                let mode = if self.how.readable {
                    readable(entry.metadata.mode, false)
                } else {
                    entry.metadata.mode
                };
                self.link(layer, path, at, *place, (mode != on_disk).then_some(mode))?;
                self.index.add(path, TreeKind::File(*size, Content::Checksum(*checksum)), mode)
            }
            (TreeSource::Layer(layer), EntryKind::Symlink { place, target }) => {
                self.link(layer, path, at, *place, None)?;
                self.index.add(path, TreeKind::Symlink(target.clone()), 0)
            }
            // A merge has nothing else as leaves.
            (TreeSource::Layer(_), _) => Ok(()),
        }
    }

    /// Links what a layer has, or copies it: where it needs another `mode`, and where it cannot be linked.
    fn link(
        &mut self,
        layer: &Layer,
        path: &Name,
        at: At,
        place: Place,
        mode: Option<u16>,
    ) -> Result<(), Error> {
        let target = self.place(path);
        failpoint::fails("tree.link").map_err(io("link", &target))?;
        let entry = self.merge.entry(at);
        let original = layer.directory.join(place_of(&entry.name, place, at.entry));
        let known = self.copies.get(&at).cloned();
        if let Some(from) = known.as_deref().or_else(|| mode.is_none().then_some(original.as_path())) {
            let (Some((directory, ..)), Some((_, part))) = (self.open.last(), path.split()) else {
                return Ok(());
            };
            match rustix::fs::linkat(CWD, from, directory, part, AtFlags::empty()) {
                Ok(()) => return Ok(()),
                Err(error) if cannot_link(error) => {}
                Err(error) => return Err(io("link", &target)(error.into())),
            }
        }
        if let EntryKind::File { size, .. } = entry.kind {
            // Copies that share their content take nothing.
            self.check_space(if self.how.reflink { 0 } else { size })?;
        }
        self.copy(&original, &target, &entry.kind, mode.unwrap_or(entry.metadata.mode), &entry.metadata)?;
        self.copies.insert(at, target);
        Ok(())
    }

    /// What is about to be made has to leave room for others.
    fn check_space(&mut self, bytes: u64) -> Result<(), Error> {
        self.unchecked = (self.unchecked.0 + 1, self.unchecked.1.saturating_add(bytes));
        if self.unchecked.0 < CHECK_NODES && self.unchecked.1 < CHECK_BYTES {
            return Ok(());
        }
        self.unchecked = (0, 0);
        (self.space)(Amount { bytes: bytes.max(1), inodes: CHECK_NODES as u64 })
    }

    fn copy(
        &self,
        from: &Path,
        to: &Path,
        kind: &EntryKind,
        mode: u16,
        metadata: &EntryMetadata,
    ) -> Result<(), Error> {
        if let EntryKind::Symlink { target, .. } = kind {
            let (parent, part) = (to.parent().unwrap_or(to), to.file_name().unwrap_or_default());
            let at = rustix::fs::openat(CWD, parent, DIRECTORY, Mode::empty());
            let at = at.map_err(|error| io("open", parent)(error.into()))?;
            let made = rustix::fs::symlinkat(target.as_slice(), &at, part);
            return made
                .and_then(|()| file_metadata::set_symlink(at.as_fd(), part.as_encoded_bytes(), metadata))
                .map_err(|error| io("create", to)(error.into()));
        }
        let file = copy(from, to)?;
        file_metadata::set(file.as_fd(), mode, metadata)
            .map(drop)
            .map_err(|error| io("change", to)(error.into()))
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
        self.check_space(if self.how.reflink { 0 } else { blob.size })?;
        let file = copy(&blob.path, &target)?;
        if own_metadata {
            let seconds = metadata.mtime.max(0);
            let exact = EntryMetadata {
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
        use std::os::unix::ffi::OsStrExt as _;
        if path.is_root() {
            return self.root.to_owned();
        }
        self.root.join(std::ffi::OsStr::from_bytes(path.as_bytes()))
    }
}

/// ext4 ends at 65,000 links of one file; another file system mounted in between cannot be linked to, and some have
/// no links at all.
fn cannot_link(error: Errno) -> bool {
    matches!(error, Errno::MLINK | Errno::XDEV | Errno::PERM | Errno::OPNOTSUPP)
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

fn create(path: &Path) -> Result<File, Error> {
    let mut options = fs::OpenOptions::new();
    options.write(true).create_new(true).mode(0o600).open(path).map_err(io("create", path))
}

fn copy(from: &Path, to: &Path) -> Result<File, Error> {
    failpoint::fails("tree.copy").map_err(io("write", to))?;
    let source = File::open(from).map_err(io("open", from))?;
    let target = create(to)?;
    if rustix::fs::ioctl_ficlone(&target, &source).is_err() {
        std::io::copy(&mut &source, &mut &target).map_err(io("write", to))?;
    }
    Ok(target)
}
