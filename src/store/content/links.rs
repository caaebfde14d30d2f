//! Links of a tree to what its layers have, and the copies that take their place.

use std::borrow::Cow;
use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fs::{AtFlags, CWD, Mode, OFlags};
use rustix::io::Errno;

use crate::host::{failpoint, file_metadata};
use crate::layer::entries::At;
use crate::layer::format::{FILES, SHADOWED, place_of};
use crate::layer::index::{Entry, EntryKind, EntryMetadata, Place};
use crate::layer::merge::Merge;
use crate::layer::name::split;
use crate::store::content::layer::Layer;
use crate::store::error::{Error, io};
use crate::store::space::amount::Amount;

/// Makes sure that so much more fits.
pub(in crate::store) type Space<'a> = &'a (dyn Fn(Amount) -> Result<(), Error> + Sync);

/// A directory of a tree, while something is made in it.
pub(in crate::store) struct Directory {
    pub fd: OwnedFd,
    pub path: PathBuf,
    pub mode: u16,
    pub metadata: EntryMetadata,
}

/// What is to be linked in one directory.
pub(in crate::store) struct Links {
    directory: Arc<Directory>,
    /// The names, one after the other.
    names: Vec<u8>,
    /// Where each name ends, and what it stands for.
    items: Vec<(usize, At)>,
}

/// Links and copies what layers have. Several threads may.
pub(in crate::store) struct Linker<'a> {
    merge: &'a Merge<'a>,
    /// By the number of the layer in the merge; nothing where that is no layer.
    layers: Vec<Option<&'a Layer>>,
    /// Where something was copied to that has several names: the others are links to that.
    copies: Mutex<HashMap<At, PathBuf>>,
    /// Held by who copies, so that what has several names is copied once. Who links does not wait for it.
    copying: Mutex<()>,
    has_copies: AtomicBool,
    reflink: bool,
    space: Space<'a>,
    /// Files and directories made, and bytes copied, since the free space was looked at.
    unchecked: Mutex<(usize, u64)>,
}

/// Directories of layers that were linked from: mostly the next link is from the same.
#[derive(Default)]
struct Originals<'a>(Vec<(u32, Option<&'a [u8]>, OwnedFd)>);

/// How often the free space is looked at.
const CHECK_NODES: usize = 4096;
const CHECK_BYTES: u64 = 4 * 1024 * 1024;
/// Directories of layers that are open at a time, for each thread that links.
const ORIGINALS: usize = 8;
/// Links of one directory that are made by one thread without a pause: two that link in the same directory wait for each other.
pub(in crate::store) const LINKS: usize = 4096;

const ORIGINAL: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

impl Directory {
    /// Everything in it is made, if nobody else has it still: it gets its metadata, times last.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(in crate::store) fn let_go(self: Arc<Self>) -> Result<(), Error> {
        let Some(Self { fd, path, mode, metadata }) = Arc::into_inner(self) else { return Ok(()) };
        let set = file_metadata::set(fd.as_fd(), mode, &metadata);
        set.map(drop).map_err(|error| io("change", &path)(error.into()))
    }
}

impl Links {
    pub(in crate::store) fn new(directory: Arc<Directory>) -> Self {
        Self { directory, names: Vec::new(), items: Vec::new() }
    }

    pub(in crate::store) fn directory(&self) -> &Arc<Directory> {
        &self.directory
    }

    pub(in crate::store) fn len(&self) -> usize {
        self.items.len()
    }

    /// Those so far; others of the same directory may follow.
    pub(in crate::store) fn take(&mut self) -> Self {
        std::mem::replace(self, Self::new(Arc::clone(&self.directory)))
    }

    /// Returns those before, when it is time to make them.
    pub(in crate::store) fn add(&mut self, name: &[u8], at: At) -> Option<Self> {
        let before = (self.items.len() >= LINKS).then(|| self.take());
        self.names.extend_from_slice(name);
        self.items.push((self.names.len(), at));
        before
    }
}

impl<'a> Linker<'a> {
    pub(in crate::store) fn new(
        merge: &'a Merge<'a>,
        layers: Vec<Option<&'a Layer>>,
        reflink: bool,
        space: Space<'a>,
    ) -> Self {
        Self {
            merge,
            layers,
            copies: Mutex::default(),
            copying: Mutex::default(),
            has_copies: AtomicBool::new(false),
            reflink,
            space,
            unchecked: Mutex::default(),
        }
    }

    /// Makes these links, and lets their directories go.
    ///
    /// # Errors
    /// [`Error::NoSpace`], [`Error::Io`].
    pub(in crate::store) fn link_all(&self, all: Vec<Links>) -> Result<(), Error> {
        let mut originals = Originals::default();
        for Links { directory, names, items } in all {
            let mut rest = names.as_slice();
            let mut start = 0;
            for (end, at) in items {
                let name;
                (name, rest) = rest.split_at_checked(end - start).unwrap_or((rest, b""));
                start = end;
                self.link(&directory, name, at, None, &mut originals)?;
            }
            directory.let_go()?;
        }
        Ok(())
    }

    /// Copies what needs another `mode` than its layer gave it.
    ///
    /// # Errors
    /// As [`Self::link_all`].
    pub(in crate::store) fn copy_as(
        &self,
        directory: &Directory,
        name: &[u8],
        at: At,
        mode: u16,
    ) -> Result<(), Error> {
        self.link(directory, name, at, Some(mode), &mut Originals::default())
    }

    /// Links what a layer has, or copies it: where it needs another `mode`, and where it cannot be linked.
    fn link(
        &self,
        directory: &Directory,
        name: &[u8],
        at: At,
        mode: Option<u16>,
        originals: &mut Originals<'a>,
    ) -> Result<(), Error> {
        let target = || directory.path.join(OsStr::from_bytes(name));
        failpoint::fails("tree.link").map_err(|error| io("link", &target())(error))?;
        let Some(layer) = self.layers.get(at.layer as usize).copied().flatten() else { return Ok(()) };
        let entry = self.merge.entry(at);
        let link_copy = || match self.copy_of(at) {
            Some(copy) => {
                done(rustix::fs::linkat(CWD, &copy, &directory.fd, name, AtFlags::empty()), &target)
            }
            None => Ok(false),
        };
        if self.has_copies.load(Ordering::Acquire) && link_copy()? {
            return Ok(());
        }
        if mode.is_none() && done(originals.link(layer, at, &entry, &directory.fd, name), &target)? {
            return Ok(());
        }
        let _copying = self.copying.lock().unwrap_or_else(PoisonError::into_inner);
        if link_copy()? {
            return Ok(());
        }
        if let EntryKind::File { size, .. } = entry.kind {
            // Copies that share their content take nothing.
            self.check_space(if self.reflink { 0 } else { size })?;
        }
        copy_entry(layer, at, &entry, directory, name, mode.unwrap_or(entry.metadata.mode))?;
        if self.merge.is_linked(at) {
            self.copies().insert(at, target());
            self.has_copies.store(true, Ordering::Release);
        }
        Ok(())
    }

    /// What is about to be made has to leave room for others.
    ///
    /// # Errors
    /// [`Error::NoSpace`], [`Error::Io`].
    pub(in crate::store) fn check_space(&self, bytes: u64) -> Result<(), Error> {
        {
            let mut unchecked = self.unchecked.lock().unwrap_or_else(PoisonError::into_inner);
            *unchecked = (unchecked.0 + 1, unchecked.1.saturating_add(bytes));
            if unchecked.0 < CHECK_NODES && unchecked.1 < CHECK_BYTES {
                return Ok(());
            }
            *unchecked = (0, 0);
        }
        (self.space)(Amount { bytes: bytes.max(1), inodes: CHECK_NODES as u64 })
    }

    fn copy_of(&self, at: At) -> Option<PathBuf> {
        self.copies().get(&at).cloned()
    }

    fn copies(&self) -> std::sync::MutexGuard<'_, HashMap<At, PathBuf>> {
        self.copies.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<'a> Originals<'a> {
    fn link(
        &mut self,
        layer: &Layer,
        at: At,
        entry: &Entry<&'a [u8]>,
        directory: &OwnedFd,
        name: &[u8],
    ) -> Result<(), Errno> {
        let (parent, original): (Option<&[u8]>, Cow<'_, [u8]>) =
            match (&entry.kind, split(entry.name.bytes())) {
                (
                    EntryKind::File { place: Place::Named, .. }
                    | EntryKind::Symlink { place: Place::Named, .. },
                    Some((parent, part)),
                ) => (Some(parent), part.into()),
                _ => (None, at.entry.to_string().into_bytes().into()),
            };
        let known = self.0.iter().rposition(|(number, known, _)| (*number, *known) == (at.layer, parent));
        let known = match known {
            Some(known) => known,
            None => {
                let path = match parent {
                    Some(parent) => layer.directory.join(FILES).join(OsStr::from_bytes(parent)),
                    None => layer.directory.join(SHADOWED),
                };
                let opened = rustix::fs::openat(CWD, &path, ORIGINAL, Mode::empty())?;
                if self.0.len() >= ORIGINALS {
                    self.0.remove(0);
                }
                self.0.push((at.layer, parent, opened));
                self.0.len() - 1
            }
        };
        let Some((.., from)) = self.0.get(known) else { return Err(Errno::NOENT) };
        rustix::fs::linkat(from, original.as_ref(), directory, name, AtFlags::empty())
    }
}

/// Whether it was linked: not, when it cannot be.
fn done(linked: Result<(), Errno>, target: &dyn Fn() -> PathBuf) -> Result<bool, Error> {
    match linked {
        Ok(()) => Ok(true),
        Err(error) if cannot_link(error) => Ok(false),
        Err(error) => Err(io("link", &target())(error.into())),
    }
}

/// ext4 ends at 65,000 links of one file; another file system mounted in between cannot be linked to, and some have
/// no links at all.
pub(in crate::store) fn cannot_link(error: Errno) -> bool {
    matches!(error, Errno::MLINK | Errno::XDEV | Errno::PERM | Errno::OPNOTSUPP)
}

fn copy_entry(
    layer: &Layer,
    at: At,
    entry: &Entry<&[u8]>,
    directory: &Directory,
    name: &[u8],
    mode: u16,
) -> Result<(), Error> {
    let to = directory.path.join(OsStr::from_bytes(name));
    let place = match &entry.kind {
        EntryKind::Symlink { target, .. } => {
            let made = rustix::fs::symlinkat(*target, &directory.fd, name);
            return made
                .and_then(|()| file_metadata::set_symlink(directory.fd.as_fd(), name, &entry.metadata))
                .map_err(|error| io("create", &to)(error.into()));
        }
        EntryKind::File { place, .. } => *place,
        // A merge has nothing else as leaves.
        _ => return Ok(()),
    };
    let file = copy(&layer.directory.join(place_of(&entry.name, place, at.entry)), &to)?;
    file_metadata::set(file.as_fd(), mode, &entry.metadata)
        .map(drop)
        .map_err(|error| io("change", &to)(error.into()))
}

/// Makes the file `path`, which is not there yet.
///
/// # Errors
/// [`Error::Io`].
pub(in crate::store) fn create(path: &Path) -> Result<File, Error> {
    let mut options = fs::OpenOptions::new();
    options.write(true).create_new(true).mode(0o600).open(path).map_err(io("create", path))
}

/// Copies the content of a file, or shares it where the file system can.
///
/// # Errors
/// [`Error::Io`].
pub(in crate::store) fn copy(from: &Path, to: &Path) -> Result<File, Error> {
    failpoint::fails("tree.copy").map_err(io("write", to))?;
    let source = File::open(from).map_err(io("open", from))?;
    let target = create(to)?;
    if rustix::fs::ioctl_ficlone(&target, &source).is_err() {
        std::io::copy(&mut &source, &mut &target).map_err(io("write", to))?;
    }
    Ok(target)
}
