//! The system calls of an extraction: directories that are never left, and content.

#![cfg_attr(not(test), deny(clippy::indexing_slicing))]

use std::collections::{HashSet, VecDeque};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use xxhash_rust::xxh3::Xxh3;

use crate::host::fair_queue::Permit;
use crate::host::limits;
use crate::layer::checksum::Checksum;
use crate::layer::format::Profile;
use crate::layer::name::Name;
use crate::unpack::directory_memory::DirectoryMemory;
use crate::unpack::error::{Error, io};

/// The directories that were made, and the few that are open.
pub(super) struct Directories {
    root: OwnedFd,
    made: HashSet<Name>,
    /// Bytes of memory they take, about.
    memory: u64,
    /// Where more comes from than every layer has, how much came, and what is held of it.
    more: DirectoryMemory,
    taken: u64,
    held: Vec<Permit>,
    /// Most recently used last.
    open: VecDeque<(Name, OwnedFd)>,
}

/// A directory that something is to be created in.
pub(super) enum Parent<'a> {
    /// It was made by this extraction.
    Here(BorrowedFd<'a>),
    /// A file or symlink of this layer is in the way.
    Blocked,
}

/// Directories that are open at a time: archives go through a tree depth first.
const OPEN: usize = 16;

const DIRECTORY: OFlags =
    OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

impl Directories {
    pub fn new(root: OwnedFd, more: DirectoryMemory) -> Self {
        Self {
            root,
            made: HashSet::new(),
            memory: 0,
            more,
            taken: 0,
            held: Vec::new(),
            open: VecDeque::new(),
        }
    }

    /// How many were made.
    pub fn created(&self) -> usize {
        self.made.len()
    }

    /// The names of all that were made, without the root.
    pub fn take_names(&mut self) -> Vec<Name> {
        self.made.drain().collect()
    }

    /// The directory that `name` is in, made where it is missing.
    pub fn parent(&mut self, name: &Name, profile: Profile) -> Result<Parent<'_>, Error> {
        let parent = name.split().map_or_else(Name::default, |(parent, _)| Name::below(parent, b""));
        if let Parent::Blocked = self.make(&parent, profile)? {
            return Ok(Parent::Blocked);
        }
        Ok(self.opened(&parent))
    }

    /// The directory that `name` is in, if it was made.
    pub fn find(&mut self, name: &Name) -> Result<Parent<'_>, Error> {
        let parent = name.split().map_or_else(Name::default, |(parent, _)| Name::below(parent, b""));
        if !parent.is_root() && !self.made.contains(&parent) {
            return Ok(Parent::Blocked);
        }
        self.reopen(&parent)?;
        Ok(self.opened(&parent))
    }

    /// Makes the directory `name` and those above it, where they are missing. In an archive that is no image, a
    /// parent that is something else is refused.
    pub fn make(&mut self, name: &Name, profile: Profile) -> Result<Parent<'_>, Error> {
        if name.is_root() || self.made.contains(name) {
            self.reopen(name)?;
            return Ok(self.opened(name));
        }
        // The deepest directory above that is known to be there.
        let bytes = name.as_bytes();
        let slashes = bytes.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(at, _)| at);
        let ends: Vec<usize> = slashes.chain([bytes.len()]).collect();
        let up_to = |end: &usize| Name::below(bytes.get(..*end).unwrap_or_default(), b"");
        let known = ends.iter().rposition(|end| self.made.contains(&up_to(end)));
        for end in ends.iter().skip(known.map_or(0, |known| known + 1)) {
            let directory = up_to(end);
            if let Parent::Blocked = self.make_one(&directory)? {
                if profile == Profile::Archive && directory != *name {
                    let there = format!("its parent \"{directory}\" is a file or a symbolic link");
                    return Err(Error::entry(bytes, there));
                }
                return Ok(Parent::Blocked);
            }
        }
        Ok(self.opened(name))
    }

    /// Makes one directory, whose parent was made.
    fn make_one(&mut self, name: &Name) -> Result<Parent<'_>, Error> {
        let Some((parent, part)) = name.split() else { return Ok(Parent::Blocked) };
        let parent = Name::below(parent, b"");
        self.reopen(&parent)?;
        let Parent::Here(at) = self.opened(&parent) else { return Ok(Parent::Blocked) };
        match rustix::fs::mkdirat(at, part, Mode::RWXU) {
            Ok(()) => {}
            // It was not made here, so it is something else.
            Err(Errno::EXIST) => return Ok(Parent::Blocked),
            Err(error) => return Err(io("create", name.as_bytes())(error)),
        }
        let opened =
            rustix::fs::openat(at, part, DIRECTORY, Mode::empty()).map_err(io("open", name.as_bytes()))?;
        self.made.insert(name.clone());
        self.take_memory(160 + 2 * name.as_bytes().len() as u64)?;
        self.keep(name.clone(), opened);
        Ok(self.opened(name))
    }

    fn take_memory(&mut self, bytes: u64) -> Result<(), Error> {
        const STEP: u64 = DirectoryMemory::STEP;
        self.memory += bytes;
        while self.memory > limits::OWN_DIRECTORY_BYTES + self.taken {
            if self.taken + STEP > limits::LAYER_DIRECTORY_BYTES {
                return Err(Error::TooMuch("can be kept in memory of its directories".into())); // However long it waited.
            }
            if let DirectoryMemory::Shared(all, tenant) = &self.more {
                let permit = all.try_acquire(tenant, "", STEP).ok_or(Error::Busy("directories"))?;
                self.held.push(permit);
            }
            self.taken += STEP;
        }
        Ok(())
    }

    /// Opens the directory `name`, which was made, without following anything on the way.
    pub fn open(&self, name: &Name) -> Result<OwnedFd, Error> {
        let path: &[u8] = if name.is_root() { b"." } else { name.as_bytes() };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        rustix::fs::openat2(&self.root, path, flags, Mode::empty(), inside())
            .map_err(io("open", name.as_bytes()))
    }

    /// Makes sure that `name`, which was made, is among the open ones, as the most recent.
    fn reopen(&mut self, name: &Name) -> Result<(), Error> {
        if name.is_root() || self.open.back().is_some_and(|(known, _)| known == name) {
            return Ok(());
        }
        let known = self.open.iter().position(|(known, _)| known == name);
        let (name, opened) = match known.and_then(|position| self.open.remove(position)) {
            Some(known) => known,
            None => {
                let opened =
                    rustix::fs::openat2(&self.root, name.as_bytes(), DIRECTORY, Mode::empty(), inside());
                (name.clone(), opened.map_err(io("open", name.as_bytes()))?)
            }
        };
        self.keep(name, opened);
        Ok(())
    }

    fn keep(&mut self, name: Name, opened: OwnedFd) {
        if self.open.len() >= OPEN {
            self.open.pop_front();
        }
        self.open.push_back((name, opened));
    }

    fn opened(&self, name: &Name) -> Parent<'_> {
        if name.is_root() {
            return Parent::Here(self.root.as_fd());
        }
        match self.open.back() {
            Some((known, opened)) if known == name => Parent::Here(opened.as_fd()),
            _ => Parent::Blocked,
        }
    }
}

/// `man 2 openat2`: whatever somebody may have put in the way, it is not followed.
fn inside() -> ResolveFlags {
    ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV
}

/// A file's content on its way to disk. Long runs of zeros are not written: they are holes, which take no space.
pub(super) struct Content<'a> {
    file: BorrowedFd<'a>,
    size: u64,
    /// Whether somebody else has the checksum.
    is_hashed: bool,
    /// `None` for a file that came in one piece, as most do: hashing it at once is faster.
    hasher: Option<Box<Xxh3>>,
    checksum: Checksum,
    /// Where the next byte goes, after the zeros that are not written yet.
    position: u64,
    zeros: u64,
    written: u64,
    written_back: u64,
}

/// How often writeback is started, so that the disk works while the network does.
const WRITE_BACK_EVERY: u64 = 32 * 1024 * 1024;
/// A run of zeros that is worth a hole: smaller ones save little, and split a write.
const HOLE: u64 = ZEROS.len() as u64;
/// Zeros are looked for in blocks of this size.
const BLOCK: usize = 4096;
static ZEROS: [u8; 64 * 1024] = [0; 64 * 1024];

/// So many zeros, at most [`HOLE`].
fn some_zeros(length: u64) -> &'static [u8] {
    usize::try_from(length).ok().and_then(|length| ZEROS.get(..length)).unwrap_or(&ZEROS)
}

impl<'a> Content<'a> {
    /// The content of `file`, which is new: what is not written reads as zeros.
    pub fn new(file: BorrowedFd<'a>, size: u64) -> Self {
        Self {
            file,
            size,
            is_hashed: false,
            hasher: None,
            checksum: Checksum::of(b""),
            position: 0,
            zeros: 0,
            written: 0,
            written_back: 0,
        }
    }

    /// The same of a file of which somebody else has the checksum: `whole` is all of its content.
    pub fn write_whole(file: BorrowedFd<'a>, whole: &[u8]) -> Result<(), Errno> {
        let mut content = Self { is_hashed: true, ..Self::new(file, whole.len() as u64) };
        content.write(whole)?;
        content.finish().map(drop)
    }

    /// The next bytes. Returns how many were written.
    pub fn write(&mut self, piece: &[u8]) -> Result<u64, Errno> {
        if self.is_hashed {
            // Nothing is to be told.
        } else if piece.len() as u64 == self.size {
            self.checksum = Checksum::of(piece);
        } else {
            self.hasher.get_or_insert_default().update(piece);
        }
        let leading = zeros(piece.chunks(BLOCK));
        self.zeros += leading as u64;
        let data = piece.get(leading..).unwrap_or_default();
        if data.is_empty() {
            return Ok(0);
        }
        let before = self.written;
        if self.zeros < HOLE {
            self.write_data(some_zeros(self.zeros))?;
        } else {
            self.position += self.zeros;
        }
        let trailing = zeros(data.rchunks(BLOCK));
        self.write_data(data.get(..data.len() - trailing).unwrap_or_default())?;
        self.zeros = trailing as u64;
        Ok(self.written - before)
    }

    /// A hole up to `offset`. Its zeros count as content.
    pub fn hole(&mut self, offset: u64) {
        while self.position + self.zeros < offset {
            let length = (offset - self.position - self.zeros).min(HOLE);
            self.hasher.get_or_insert_default().update(some_zeros(length));
            self.zeros += length;
        }
    }

    /// The end of the file, which may be a hole.
    pub fn finish(mut self) -> Result<Checksum, Errno> {
        self.hole(self.size);
        if self.zeros > 0 {
            rustix::fs::ftruncate(self.file, self.size)?;
        }
        Ok(self.hasher.as_ref().map_or(self.checksum, |hasher| Checksum::finish(hasher)))
    }

    fn write_data(&mut self, mut data: &[u8]) -> Result<(), Errno> {
        while !data.is_empty() {
            match rustix::io::pwrite(self.file, data, self.position) {
                Ok(written) => {
                    data = data.get(written..).unwrap_or_default();
                    self.position += written as u64;
                    self.written += written as u64;
                }
                Err(Errno::INTR) => {}
                Err(error) => return Err(error),
            }
        }
        if self.position - self.written_back >= WRITE_BACK_EVERY {
            // Only advice; the data is no worse without it.
            let _ = crate::host::sys::start_writeback(self.file, self.written_back..self.position);
            self.written_back = self.position;
        }
        Ok(())
    }
}

/// How many bytes the blocks have before the first that is not all zeros.
fn zeros<'b>(blocks: impl Iterator<Item = &'b [u8]>) -> usize {
    blocks.take_while(|block| ZEROS.get(..block.len()) == Some(*block)).map(<[u8]>::len).sum()
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd as _;
    use std::os::unix::fs::{FileExt as _, MetadataExt as _};

    use super::*;

    #[test]
    fn regression_zeros_are_holes_and_count_all_the_same() {
        let hole = HOLE;
        let one = vec![1; ZEROS.len()];
        let zero = vec![0; ZEROS.len()];
        let table: [Vec<&[u8]>; 8] = [
            vec![&one[..100], &zero[..9000], &one[..9000], &zero[..5000], &one[..1]],
            vec![&one, &zero, &one],
            vec![&zero, &zero],
            vec![&one[..100], &zero, &zero, &zero],
            vec![&zero[..100], &one, &zero, &zero[..50]],
            vec![&[]],
            vec![&zero[..100]],
            vec![&zero, &one[..1]],
        ];
        for parts in table {
            let content = parts.concat();
            for step in [content.len().max(1), ZEROS.len(), 10_000, 100_000] {
                let file = tempfile::tempfile().expect("a file");
                let mut writer = Content::new(file.as_fd(), content.len() as u64);
                let written: u64 =
                    content.chunks(step).map(|piece| writer.write(piece).expect("written")).sum();
                assert!(written <= content.len() as u64);
                assert_eq!(writer.finish().expect("finished"), Checksum::of(&content));
                let mut read = vec![2; content.len() + 1];
                let length = file.read_at(&mut read, 0).expect("read");
                read.truncate(length);
                assert!(read == content, "{} bytes in steps of {step}", content.len());
            }
        }
        let file = tempfile::tempfile().expect("a file");
        let mut writer = Content::new(file.as_fd(), 1000 * hole + 5);
        writer.hole(3 * hole + 7);
        writer.write(b"x").expect("written");
        writer.finish().expect("finished");
        let metadata = file.metadata().expect("metadata");
        assert_eq!(metadata.len(), 1000 * hole + 5);
        assert!(metadata.blocks() * 512 <= 2 * hole, "{} blocks", metadata.blocks());
    }
}
