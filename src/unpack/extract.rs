//! Entries of an archive become files below a directory, and an index.
//!
//! On disk nothing is ever followed, replaced or removed. A file is created at its own name below directories that
//! were created here; a name that is taken, or whose parent is no such directory, goes `shadowed`, and the index says
//! so. What such entries mean (a parent that is a symlink, a file that becomes a directory) is for the merge, in
//! memory. So nothing outside the directory can be reached, whatever the names and links say.
//!
//! ```text
//! <directory>/fs/<name>       what the layer holds, at its names
//! <directory>/aside/<number>  content whose name was taken, by the number of its entry
//! <directory>/index           every entry, in the order of the archive
//! ```

pub mod files;
mod small;

use std::collections::HashMap;
use std::fs::File;
use std::io::BufRead;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Mode, OFlags};
use rustix::io::Errno;

use crate::host::crew::{self, Crew, Pool};
use crate::host::limits::MERGE_BYTES;
use crate::host::{failpoint, file_metadata};
use crate::layer::checksum::Checksum;
use crate::layer::format::{Dropped, FILES, INDEX, Profile, SHADOWED, Summary};
use crate::layer::index::{ENTRY_LIMIT, NODE_MEMORY};
use crate::layer::index::{Entry, EntryKind, EntryMetadata, Place, Writer};
use crate::layer::name::{AUFS_LINKS, Name, shown};
use crate::unpack::directory_memory::DirectoryMemory;
use crate::unpack::error::{Error, io};
use crate::unpack::extract::files::{Directories, Parent};
use crate::unpack::extract::small::{Batch, SMALL_FILE};
use crate::unpack::space::{Growth, Space};
use crate::unpack::tar::{Archive, Header, Type};

/// An extraction.
pub struct Extract {
    shadowed: OwnedFd,
    index: Writer<File>,
    profile: Profile,
    limits: Limits,
    directories: Directories,
    /// What archives say of directories, and what they do not.
    described: HashMap<Name, EntryMetadata>,
    /// Bytes of the attributes in it.
    described_xattrs: usize,
    umask: u16,
    summary: Summary,
    /// Bytes and entries when the free space was last checked.
    checked: (u64, usize),
    /// Bytes that became holes.
    zeros: u64,
    /// Files that were made and not given to anybody yet.
    batch: Batch,
}

/// Who fills small files.
type Fillers<'a> = Crew<'a, Batch, Error>;

/// What may be used.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Bytes of all files.
    pub bytes: u64,
    /// Whether there is room on the disk.
    pub space: Space,
    /// Memory for directories beyond what every layer has.
    pub directories: DirectoryMemory,
}

/// How often the free space is checked.
const CHECK_BYTES: u64 = 32 * 1024 * 1024;
const CHECK_ENTRIES: usize = 4096;
/// Zeros of a layer that are not written, before a file with more is begun: they take no space, but a second for some
/// gigabytes.
const ZEROS_LIMIT: u64 = 256 << 30;
/// Bytes of attributes of one entry, and of all directories of a layer: theirs are set at the end. One attribute may have
/// 64 KiB (`XATTR_SIZE_MAX`), and most file systems take less for all of a file.
const XATTRS_LIMIT: usize = 64 * 1024;
/// The same of all directories of a layer.
pub const DIRECTORY_XATTRS_LIMIT: usize = 1024 * 1024;
/// `man 7 xattr`; overlayfs reads the second as instructions (CVE-2023-0386 and its kind).
const XATTR_PREFIX: &[u8] = b"user.";
const XATTR_NEVER: &[u8] = b"user.overlay.";
/// `XATTR_NAME_MAX`
const XATTR_NAME: usize = 255;

impl Extract {
    /// Prepares `directory`, which is there and empty.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::NoSpace`].
    pub fn new(directory: &Path, profile: Profile, limits: Limits) -> Result<Self, Error> {
        let make = |name: &str| {
            let path = directory.join(name);
            rustix::fs::mkdirat(CWD, &path, Mode::RWXU).map_err(io("create", name.as_bytes()))?;
            let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            rustix::fs::openat(CWD, &path, flags, Mode::empty()).map_err(io("open", name.as_bytes()))
        };
        let (fs, shadowed) = (make(FILES)?, make(SHADOWED)?);
        let index = File::create_new(directory.join(INDEX)).map_err(io("create", INDEX.as_bytes()))?;
        Ok(Self {
            directories: Directories::new(fs, limits.directories.clone()),
            shadowed,
            index: Writer::new(index),
            profile,
            limits,
            described: HashMap::new(),
            described_xattrs: 0,
            umask: 0,
            summary: Summary {
                entries: 0,
                files: 0,
                bytes: 0,
                memory: 0,
                index: Checksum::of(b""),
                regular: true,
                readable: true,
                dropped: Dropped::default(),
            },
            checked: (0, 0),
            zeros: 0,
            batch: Batch::default(),
        })
    }

    /// Extracts the archive, on a thread of its own: the thread's mode mask is changed.
    ///
    /// # Errors
    /// When the archive breaks a rule or a limit, or the kernel refuses something. What was written then stays
    /// for the caller to remove.
    pub fn run(self, input: impl BufRead) -> Result<Summary, Error> {
        self.run_with(&crew::SMALL_FILES, input)
    }

    fn run_with(self, pool: &'static Pool, input: impl BufRead) -> Result<Summary, Error> {
        // All have ended when this returns: nobody writes in the directory any more.
        crew::with_helpers(pool, 1, "fill", &Batch::fill, |fillers| self.lead(input, fillers))
    }

    fn lead(mut self, input: impl BufRead, fillers: &Fillers<'_>) -> Result<Summary, Error> {
        self.umask = file_metadata::clear_umask();
        self.check_space()?;
        let mut archive = Archive::new(input);
        let mut last = Vec::new();
        loop {
            let next = archive.next_entry();
            let next = next.map_err(|error| if last.is_empty() { error } else { error.near("after", &last) });
            let Some(header) = next? else {
                fillers.give(std::mem::take(&mut self.batch))?;
                return self.finish();
            };
            self.entry(&header, &mut archive, fillers).map_err(|error| error.near("in", &header.name))?;
            last = header.name;
        }
    }

    fn entry<R: BufRead>(
        &mut self,
        header: &Header,
        archive: &mut Archive<R>,
        fillers: &Fillers<'_>,
    ) -> Result<(), Error> {
        failpoint::reached("unpack.entry");
        let refused = |rule: &'static str| Error::entry(&header.name, rule);
        let name = Name::parse(&header.name).map_err(refused)?;
        let (name, whiteout) = match self.profile {
            Profile::Image => match whiteout(&name, header.kind).map_err(refused)? {
                Special::No => (name, None),
                Special::Whiteout(hidden, kind) => (hidden, Some(kind)),
                Special::Bookkeeping => return Ok(()),
            },
            Profile::Archive => (name, None),
        };
        if name.split().is_some_and(|(parent, _)| parent == AUFS_LINKS) {
            self.summary.regular = false;
        }
        let metadata = self.metadata(header)?;
        let kind = match (whiteout, header.kind) {
            (Some(kind), _) => {
                self.summary.regular = false;
                kind
            }
            (None, Type::Directory) => self.directory(&name, &metadata)?,
            (None, _) if name.is_root() => return Err(refused("the root is no directory")),
            (None, Type::File) => self.file(&name, header, &metadata, archive, fillers)?,
            (None, Type::Symlink) => self.symlink(&name, header, &metadata)?,
            (None, Type::HardLink) => self.hard_link(&name, header)?,
            (None, Type::Special) => {
                self.summary.dropped.devices += 1;
                self.summary.regular = false;
                EntryKind::Dropped
            }
        };
        let is_file =
            matches!(kind, EntryKind::File { .. } | EntryKind::Symlink { .. } | EntryKind::HardLink { .. });
        self.summary.files += usize::from(is_file);
        failpoint::fails("unpack.index").map_err(io("write", b"index"))?;
        self.index.add(&Entry { name, kind, metadata }).map_err(io("write", b"index"))?;
        let used = self.index.entries() + self.directories.created();
        if used > ENTRY_LIMIT {
            let rule = format!("{ENTRY_LIMIT} files and directories");
            return Err(Error::TooMuch(rule.into()));
        }
        if self.memory() > MERGE_BYTES {
            return Err(Error::TooMuch("can be kept in memory of names and attributes".into()));
        }
        if used >= self.checked.1 + CHECK_ENTRIES {
            self.check_space()?;
        }
        Ok(())
    }

    fn directory(&mut self, name: &Name, metadata: &EntryMetadata) -> Result<EntryKind, Error> {
        match self.directories.make(name, self.profile)? {
            Parent::Here(_) => {
                self.note_readable(metadata.mode, true);
                self.described_xattrs += size_of_xattrs(metadata);
                if self.described_xattrs > DIRECTORY_XATTRS_LIMIT {
                    let rule = format!("{DIRECTORY_XATTRS_LIMIT} bytes of attributes of directories");
                    return Err(Error::TooMuch(rule.into()));
                }
                self.described.insert(name.clone(), metadata.clone());
            }
            Parent::Blocked => self.summary.regular = false,
        }
        Ok(EntryKind::Directory)
    }

    fn file<R: BufRead>(
        &mut self,
        name: &Name,
        header: &Header,
        metadata: &EntryMetadata,
        archive: &mut Archive<R>,
        fillers: &Fillers<'_>,
    ) -> Result<EntryKind, Error> {
        self.summary.bytes = self.summary.bytes.saturating_add(header.size);
        if self.summary.bytes > self.limits.bytes {
            return Err(Error::TooMuch(format!("{} bytes", self.limits.bytes).into()));
        }
        let holes = header.size - header.map.pieces().map(|(_, length)| length).sum::<u64>();
        if self.zeros.saturating_add(holes) > ZEROS_LIMIT {
            return Err(Error::TooMuch(format!("{ZEROS_LIMIT} bytes of zeros").into()));
        }
        self.note_readable(metadata.mode, false);
        let mode = self.profile.mode_on_disk(metadata.mode);
        let create = |at: BorrowedFd<'_>, part: &[u8]| {
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            rustix::fs::openat(at, part, flags, file_metadata::mode(mode))
        };
        failpoint::fails("unpack.create").map_err(io("create", name.as_bytes()))?;
        let (file, place) = self.create(name, create)?;
        let lost_mode = (mode & self.umask != 0).then_some(mode);
        if header.size <= SMALL_FILE
            && metadata.xattrs.is_empty()
            && let Some(content) = whole(header, archive)?
        {
            let (checksum, length) = (Checksum::of(content), content.len());
            let full = self.batch.add(file, name, content, metadata, lost_mode);
            archive.consume(length);
            self.checked.0 += header.size;
            if let Some(batch) = full {
                fillers.give(batch)?;
            }
            return Ok(EntryKind::File { size: header.size, checksum, place });
        }
        let checksum = self.write(&file, name, header, archive)?;
        file_metadata::set_owner(file.as_fd(), metadata).map_err(io("change owner of", name.as_bytes()))?;
        if let Some(mode) = lost_mode {
            rustix::fs::fchmod(&file, file_metadata::mode(mode))
                .map_err(io("change mode of", name.as_bytes()))?;
        }
        self.summary.dropped.xattrs += file_metadata::set_xattrs(file.as_fd(), metadata)
            .map_err(io("set attributes of", name.as_bytes()))?;
        file_metadata::set_times(file.as_fd(), metadata).map_err(io("touch", name.as_bytes()))?;
        Ok(EntryKind::File { size: header.size, checksum, place })
    }

    fn write<R: BufRead>(
        &mut self,
        file: &OwnedFd,
        name: &Name,
        header: &Header,
        archive: &mut Archive<R>,
    ) -> Result<Checksum, Error> {
        let mut content = files::Content::new(file.as_fd(), header.size);
        let mut written = 0;
        for (offset, length) in header.map.pieces() {
            content.hole(offset);
            let mut left = length;
            if left >= CHECK_BYTES {
                self.check_space_for(CHECK_BYTES)?;
            }
            while left > 0 {
                let piece = archive.content()?;
                let taken = usize::try_from(left).unwrap_or(usize::MAX).min(piece.len());
                failpoint::fails("unpack.write").map_err(io("write", name.as_bytes()))?;
                let more = content.write(&piece[..taken]).map_err(io("write", name.as_bytes()))?;
                archive.consume(taken);
                left -= taken as u64;
                written += more;
                self.checked.0 += more;
                if self.checked.0 >= CHECK_BYTES {
                    self.check_space_for(left.min(CHECK_BYTES))?;
                }
            }
        }
        self.zeros = self.zeros.saturating_add(header.size.saturating_sub(written));
        content.finish().map_err(io("write", name.as_bytes()))
    }

    fn symlink(
        &mut self,
        name: &Name,
        header: &Header,
        metadata: &EntryMetadata,
    ) -> Result<EntryKind, Error> {
        let target = header.link.clone();
        if target.is_empty() || target.len() > 4095 {
            return Err(Error::entry(&header.name, "a symbolic link to nothing, or to more than 4095 bytes"));
        }
        let create = |at: BorrowedFd<'_>, part: &[u8]| rustix::fs::symlinkat(target.as_slice(), at, part);
        let ((), place) = self.create(name, create)?;
        let number = self.index.entries().to_string();
        let (at, part) = match place {
            Place::Named => (self.directories.parent(name, self.profile)?, name.split().map(|split| split.1)),
            Place::Shadowed => (Parent::Here(self.shadowed.as_fd()), Some(number.as_bytes())),
        };
        if let (Parent::Here(at), Some(part)) = (at, part) {
            file_metadata::set_symlink(at, part, metadata).map_err(io("touch", name.as_bytes()))?;
        }
        Ok(EntryKind::Symlink { target, place })
    }

    fn hard_link(&mut self, name: &Name, header: &Header) -> Result<EntryKind, Error> {
        let refused = |rule: &'static str| Error::entry(&header.name, rule);
        let target = Name::parse(&header.link).map_err(|rule| {
            Error::entry(&header.name, format!("it is a hard link to \"{}\": {rule}", shown(&header.link)))
        })?;
        let (_, target_part) = target.split().ok_or_else(|| refused("it is a hard link to the root"))?;
        let (_, part) = name.split().ok_or_else(|| refused("the root is no directory"))?;
        // What it means is decided by the merge. On disk it is there if nothing is special about it.
        let mut linked = false;
        if let Parent::Here(source) = self.directories.find(&target)? {
            let source = source.try_clone_to_owned().map_err(io("open", target.as_bytes()))?;
            if let Parent::Here(parent) = self.directories.parent(name, self.profile)? {
                let result = rustix::fs::linkat(&source, target_part, parent, part, AtFlags::empty());
                linked = match result {
                    Ok(()) => true,
                    Err(Errno::NOENT | Errno::EXIST | Errno::PERM | Errno::MLINK) => false,
                    Err(error) => return Err(io("link", name.as_bytes())(error)),
                };
            }
        }
        self.summary.regular &= linked;
        Ok(EntryKind::HardLink { target })
    }

    /// Creates something at `name`, or shadowed.
    fn create<T>(
        &mut self,
        name: &Name,
        create: impl Fn(BorrowedFd<'_>, &[u8]) -> Result<T, Errno>,
    ) -> Result<(T, Place), Error> {
        if let (Parent::Here(parent), Some((_, part))) =
            (self.directories.parent(name, self.profile)?, name.split())
        {
            match create(parent, part) {
                Ok(made) => return Ok((made, Place::Named)),
                Err(Errno::EXIST | Errno::ISDIR) => {}
                Err(error) => return Err(io("create", name.as_bytes())(error)),
            }
        }
        self.summary.regular = false;
        let number = self.index.entries().to_string();
        match create(self.shadowed.as_fd(), number.as_bytes()) {
            Ok(made) => Ok((made, Place::Shadowed)),
            Err(error) => Err(io("create", name.as_bytes())(error)),
        }
    }

    /// The metadata that is kept, and what is dropped of it.
    fn metadata(&mut self, header: &Header) -> Result<EntryMetadata, Error> {
        self.summary.dropped.mode_bits += u64::from(header.mode & 0o7000 != 0);
        let total = header.xattrs.len();
        let kept = header.xattrs.iter().filter(|(name, _)| {
            name.len() > XATTR_PREFIX.len()
                && name.starts_with(XATTR_PREFIX)
                && !name.starts_with(XATTR_NEVER)
                && name.len() <= XATTR_NAME
        });
        let xattrs: Vec<_> = kept.cloned().collect();
        self.summary.dropped.xattrs += (total - xattrs.len()) as u64;
        let metadata = EntryMetadata {
            mode: header.mode & 0o777,
            uid: header.uid,
            gid: header.gid,
            mtime: header.mtime,
            nanos: header.nanos,
            xattrs,
        };
        if size_of_xattrs(&metadata) > XATTRS_LIMIT {
            return Err(Error::entry(
                &header.name,
                format!("its attributes take more than {XATTRS_LIMIT} bytes"),
            ));
        }
        Ok(metadata)
    }

    fn note_readable(&mut self, mode: u16, directory: bool) {
        self.summary.readable &= crate::layer::format::readable(mode, directory) == mode;
    }

    /// Gives directories their metadata, deepest first: creating something in them has changed their time.
    fn finish(mut self) -> Result<Summary, Error> {
        let mut names = self.directories.take_names();
        names.sort_unstable_by(|one, two| two.cmp(one));
        for name in names.iter().chain([&Name::default()]) {
            let implied;
            let metadata = match self.described.get(name) {
                Some(described) => described,
                None => {
                    implied = EntryMetadata::implied();
                    &implied
                }
            };
            let mode = match self.profile {
                Profile::Image => metadata.mode,
                Profile::Archive => crate::layer::format::readable(metadata.mode, true),
            };
            let directory = self.directories.open(name)?;
            self.summary.dropped.xattrs += file_metadata::set(directory.as_fd(), mode, metadata)
                .map_err(io("change", name.as_bytes()))?;
        }
        self.summary.entries = self.index.entries();
        self.summary.memory = self.memory();
        self.summary.index = self.index.finish().map_err(io("write", b"index"))?;
        Ok(self.summary)
    }

    /// Bytes of memory that a merge needs for what there is so far, at most.
    fn memory(&self) -> u64 {
        self.index.memory() + (self.directories.created() * NODE_MEMORY) as u64
    }

    /// Checks that there is still room.
    fn check_space(&mut self) -> Result<(), Error> {
        self.check_space_for(0)
    }

    /// The same for `more` bytes, which is at most what is written until the next time.
    fn check_space_for(&mut self, more: u64) -> Result<(), Error> {
        let written = self.checked.0;
        self.checked = (0, self.index.entries() + self.directories.created());
        if self.limits.space.is_enough(Growth { written, more }) { Ok(()) } else { Err(Error::NoSpace) }
    }
}

/// The content of a file that has no holes, if all of it is at hand.
fn whole<'a, R: BufRead>(header: &Header, archive: &'a mut Archive<R>) -> Result<Option<&'a [u8]>, Error> {
    if header.size == 0 {
        return Ok(Some(&[]));
    }
    let is_whole = header.map.pieces().eq([(0, header.size)]);
    let content = if is_whole { archive.content()? } else { &[] };
    Ok(Some(content).filter(|content| content.len() as u64 == header.size))
}

fn size_of_xattrs(metadata: &EntryMetadata) -> usize {
    metadata.xattrs.iter().map(|(name, value)| name.len() + value.len()).sum()
}

enum Special {
    No,
    Whiteout(Name, EntryKind),
    /// What AUFS wrote for itself; docker has always left it out.
    Bookkeeping,
}

/// Whether a name is a whiteout. Source: image-spec layer.md#whiteouts.
fn whiteout(name: &Name, kind: Type) -> Result<Special, &'static str> {
    const PREFIX: &[u8] = b".wh.";
    const META: &[u8] = b".wh..wh.";
    const OPAQUE: &[u8] = b".wh..wh..opq";
    let Some((parent, part)) = name.split() else { return Ok(Special::No) };
    if parent == AUFS_LINKS && kind == Type::File {
        return Ok(Special::No); // Files by number, whose names are hard links to them. The merge takes them out again.
    }
    if parent.split(|byte| *byte == b'/').any(|part| part.starts_with(META)) {
        return Ok(Special::Bookkeeping);
    }
    if parent.split(|byte| *byte == b'/').any(|part| part.starts_with(PREFIX)) {
        return Err("it is inside a whiteout");
    }
    let Some(hidden) = part.strip_prefix(PREFIX) else { return Ok(Special::No) };
    let plain = matches!(kind, Type::File | Type::HardLink);
    if part == OPAQUE {
        let directory = Name::below(parent, b"");
        return if plain {
            Ok(Special::Whiteout(directory, EntryKind::Opaque))
        } else {
            Err("a whiteout is a file")
        };
    }
    if part.starts_with(META) {
        return Ok(Special::Bookkeeping);
    }
    if !plain {
        return Err("a whiteout is a file");
    }
    if matches!(hidden, b"" | b"." | b"..") {
        return Err("it is a whiteout of nothing");
    }
    Ok(Special::Whiteout(Name::below(parent, hidden), EntryKind::Whiteout))
}
