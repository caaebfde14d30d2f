//! Bytes of a blob on their way in: written in any order by one thread, followed in order by another.
//!
//! The writer drains the network and never does more with a piece than to put it where it belongs. The *follower*, which hashes
//! or unpacks, takes the bytes one after the other: from memory what has just come, from the file what came before its turn.
//! So a blob that comes in order is written once and read by nobody; and a follower that has much to catch up with, after a
//! restart or because parts came before their turn, does not keep the writer from the network.
//!
//! A partial is *spooled* when all of it goes into its file (blobs that are files), or *streamed* when only what comes before
//! its turn does (layers).

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::ops::Range;
use std::os::fd::AsFd as _;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use rustix::buffer::spare_capacity;

use crate::host::failpoint;
use crate::host::limits::{QUEUE, READ_BACK, RECENT_BYTES};
use crate::host::sys;
use crate::store::content::ranges::Ranges;
use crate::store::disk::Disk;
use crate::store::error::{Error, io};
use crate::store::key::Name;
use crate::store::space::amount::Amount;

/// A blob of which parts are there.
#[derive(Debug)]
pub struct Partial {
    size: u64,
    path: PathBuf,
    /// The file is that of a published blob.
    published: bool,
    /// Made when it is needed first.
    file: OnceLock<File>,
    /// Bytes that came since writeback was started, and the free space looked at.
    dirty: AtomicU64,
    /// Nanoseconds that the writer has waited for the follower.
    waited: AtomicU64,
    state: Mutex<State>,
    /// Something came, was taken, or ended.
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    /// What has come.
    there: Ranges,
    /// What of it is in the file.
    in_file: Ranges,
    /// Pieces that have just come, one after the other, for the follower. What is spooled is in the file as well, and may have been
    /// read from there meanwhile.
    recent: VecDeque<(u64, Bytes)>,
    recent_bytes: usize,
    /// How far the follower is.
    followed: u64,
    /// All goes into the file from here on.
    spooled: bool,
    /// No more will come.
    closed: bool,
    /// Nobody wants it any more.
    abandoned: bool,
    /// The follower waits for bytes.
    follower_waits: bool,
    /// The writer waits for room.
    writer_waits: bool,
    /// How many wait for ranges.
    others_wait: usize,
}

/// Bytes that a follower which waits is woken for, and of which a writer that waits is woken when fewer are left: each time costs
/// two switches of threads.
const WAKE_AT: usize = RECENT_BYTES / 2;
/// How often writeback is started.
const WRITE_BACK_EVERY: u64 = 32 * 1024 * 1024;

impl Partial {
    /// A blob of `size` bytes that goes into the file at `path`, which has `there` of it.
    pub fn spooled(path: PathBuf, size: u64, there: Ranges) -> Self {
        Self::new(path, size, there, true)
    }

    /// All of a blob of `size` bytes that is published as the file at `path`, which is only read.
    pub fn published(path: PathBuf, size: u64) -> Self {
        let all = std::iter::once(0..size).collect();
        Self { published: true, ..Self::new(path, size, all, true) }
    }

    /// A blob of `size` bytes of which only what comes before its turn goes into a file, at `path`.
    pub fn streamed(path: PathBuf, size: u64) -> Self {
        Self::new(path, size, Ranges::default(), false)
    }

    fn new(path: PathBuf, size: u64, there: Ranges, spooled: bool) -> Self {
        let state = State {
            in_file: there.clone(),
            there,
            recent: VecDeque::new(),
            recent_bytes: 0,
            followed: 0,
            spooled,
            closed: false,
            abandoned: false,
            follower_waits: false,
            writer_waits: false,
            others_wait: 0,
        };
        Self {
            size,
            path,
            published: false,
            file: OnceLock::new(),
            dirty: AtomicU64::new(0),
            waited: AtomicU64::new(0),
            state: Mutex::new(state),
            changed: Condvar::new(),
        }
    }

    /// Bytes of the whole blob.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Bytes that are there.
    pub fn present(&self) -> u64 {
        self.lock().there.total()
    }

    /// What has to be fetched.
    pub fn missing(&self) -> Vec<Range<u64>> {
        self.lock().there.missing(self.size)
    }

    /// What is there.
    pub fn ranges(&self) -> Ranges {
        self.lock().there.clone()
    }

    /// How far the follower is.
    pub fn followed(&self) -> u64 {
        self.lock().followed
    }

    /// How long the writer has waited for the follower, in all.
    pub fn waited(&self) -> Duration {
        Duration::from_nanos(self.waited.load(Ordering::Relaxed))
    }

    /// Whether all is there.
    pub fn is_complete(&self) -> bool {
        self.present() == self.size
    }

    /// Takes bytes in. *Caller:* one thread. While the follower has what came before in memory, and no room for more, it waits:
    /// reading back from the file would cost more. A follower that is further behind is not waited for, unless the partial is
    /// streamed.
    ///
    /// # Errors
    /// [`Error::NoSpace`], [`Error::Io`]; [`Error::Abandoned`] when the follower has ended.
    pub fn write(&self, offset: u64, bytes: Bytes) -> Result<(), Error> {
        let range = offset..offset + bytes.len() as u64;
        let (spooled, is_next) = {
            let state = self.lock();
            (state.spooled, state.there.contiguous_from(0) == offset)
        };
        let mut in_file = spooled || !is_next;
        let mut state = loop {
            if in_file {
                failpoint::fails("partial.write").map_err(io("write", &self.path))?;
                self.file()?.write_all_at(&bytes, offset).map_err(io("write", &self.path))?;
            }
            let mut state = self.lock();
            while state.recent_bytes >= RECENT_BYTES
                && !state.abandoned
                && (if in_file { state.is_in_memory_up_to(offset) } else { !state.spooled })
            {
                let began = Instant::now();
                state.writer_waits = true;
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                let took = u64::try_from(began.elapsed().as_nanos()).unwrap_or(u64::MAX);
                self.waited.fetch_add(took, Ordering::Relaxed);
            }
            state.writer_waits = false;
            if state.abandoned {
                return Err(Error::Abandoned);
            }
            if in_file || !state.spooled {
                break state;
            }
            in_file = true; // The follower has said so meanwhile.
        };
        state.there.insert(range.clone());
        if in_file {
            state.in_file.insert(range);
        }
        // What finds no room is read back from the file, and so is what comes while the follower has older bytes to read: it would
        // take room in memory until then.
        let is_at_hand = state.is_at_hand(offset);
        if !in_file || (is_at_hand && state.recent_bytes < RECENT_BYTES) {
            state.recent_bytes += bytes.len();
            state.recent.push_back((offset, bytes));
        }
        let is_enough = state.recent_bytes >= WAKE_AT
            || state.recent.len() >= QUEUE
            || !is_at_hand
            || state.recent.is_empty();
        let wakes = (state.follower_waits && is_enough) || state.others_wait > 0;
        drop(state);
        if wakes {
            self.changed.notify_all();
        }
        Ok(())
    }

    /// The same for what is kept on `disk`, of `content`, of which this is what was promised or comes beside: writeback is started now and then, so that the disk works while the network
    /// does, and others write as well, so its free space is looked at.
    ///
    /// # Errors
    /// As [`Self::write`].
    pub(in crate::store) fn write_on(
        &self,
        disk: &Disk,
        content: Name,
        is_promised: bool,
        offset: u64,
        bytes: Bytes,
    ) -> Result<(), Error> {
        let length = bytes.len() as u64;
        self.write(offset, bytes)?;
        let dirty = self.dirty.fetch_add(length, Ordering::Relaxed) + length;
        if dirty >= WRITE_BACK_EVERY {
            self.dirty.store(0, Ordering::Relaxed);
            self.write_back();
            if is_promised {
                disk.room.written(content, dirty);
            }
            disk.room.ensure(Some(content), Amount::bytes(1))?;
        }
        Ok(())
    }

    /// The bytes from where the follower is, and moves it there. Waits for them; `None` when they will not come.
    ///
    /// # Errors
    /// [`Error::Io`] when what is in the file cannot be read.
    pub fn follow(&self) -> Result<Option<Bytes>, Error> {
        self.next(true)
    }

    /// The same without waiting.
    ///
    /// # Errors
    /// As [`Self::follow`].
    pub fn follow_what_is_there(&self) -> Result<Option<Bytes>, Error> {
        self.next(false)
    }

    fn next(&self, wait: bool) -> Result<Option<Bytes>, Error> {
        let mut state = self.lock();
        let from_file = loop {
            let position = state.followed;
            while state.recent.front().is_some_and(|(offset, _)| *offset < position) {
                state.forget_first();
            }
            if state.abandoned || position >= self.size {
                return Ok(None);
            }
            if state.writer_waits && state.recent_bytes < WAKE_AT {
                self.changed.notify_all();
            }
            if state.recent.front().is_some_and(|(offset, _)| *offset == position) {
                let Some(bytes) = state.forget_first() else { return Ok(None) };
                state.followed += bytes.len() as u64;
                let wakes = state.writer_waits && state.recent_bytes < WAKE_AT;
                drop(state);
                if wakes {
                    self.changed.notify_all();
                }
                return Ok(Some(bytes));
            }
            let end = state.in_file.contiguous_from(position);
            if end > position {
                let length = usize::try_from(end - position).unwrap_or(READ_BACK).min(READ_BACK);
                state.followed += length as u64;
                break position..position + length as u64;
            }
            if state.closed || !wait {
                return Ok(None);
            }
            state.follower_waits = true;
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            state.follower_waits = false;
        };
        drop(state);
        self.read_at(from_file).map(Some)
    }

    /// Bytes that are in the file.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn read_at(&self, range: Range<u64>) -> Result<Bytes, Error> {
        let length = usize::try_from(range.end - range.start).unwrap_or(usize::MAX);
        let (file, mut buffer) = (self.file()?, Vec::with_capacity(length));
        while buffer.len() < length {
            let at = range.start + buffer.len() as u64;
            match rustix::io::pread(file, spare_capacity(&mut buffer), at) {
                Ok(0) => {
                    let cut = std::io::Error::from(std::io::ErrorKind::UnexpectedEof);
                    return Err(io("read", &self.path)(cut));
                }
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(io("read", &self.path)(error.into())),
            }
        }
        buffer.truncate(length);
        Ok(buffer.into())
    }

    /// Waits until `range` is there; false when it will not come.
    pub fn wait(&self, range: &Range<u64>) -> bool {
        let mut state = self.lock();
        loop {
            if state.there.contiguous_from(range.start) >= range.end {
                return true;
            }
            if state.closed || state.abandoned {
                return false;
            }
            state.others_wait += 1;
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            state.others_wait -= 1;
        }
    }

    /// From now on all goes into the file, beginning with `bytes`, which the follower was given before and is at the end of.
    ///
    /// # Errors
    /// As [`Self::write`].
    pub fn spool(&self, bytes: &Bytes) -> Result<(), Error> {
        let recent: Vec<(u64, Bytes)> = {
            let mut state = self.lock();
            if self.published {
                return Ok(());
            }
            state.spooled = true;
            self.changed.notify_all();
            let end = state.followed;
            std::iter::once((end - bytes.len() as u64, bytes.clone()))
                .chain(state.recent.iter().cloned())
                .collect()
        };
        for (offset, bytes) in recent {
            self.file()?.write_all_at(&bytes, offset).map_err(io("write", &self.path))?;
            self.lock().in_file.insert(offset..offset + bytes.len() as u64);
        }
        Ok(())
    }

    /// No more will come: the follower ends when it has what is there.
    pub fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_all();
    }

    /// Nobody wants it any more: writer and follower end at once.
    pub fn abandon(&self) {
        let mut state = self.lock();
        state.abandoned = true;
        state.recent.clear();
        state.recent_bytes = 0;
        drop(state);
        self.changed.notify_all();
    }

    /// Starts to write back what is in the file, so that the disk works while the network does. Only a hint.
    fn write_back(&self) {
        let Some(file) = self.file.get() else { return };
        if let Err(error) = sys::start_writeback(file.as_fd(), 0..self.size) {
            tracing::debug!(%error, "cannot start writeback");
        }
    }

    /// Opens the file, and makes it where it is not there; that of a published blob only to read.
    pub(in crate::store) fn file(&self) -> Result<&File, Error> {
        if let Some(file) = self.file.get() {
            return Ok(file);
        }
        let mut options = OpenOptions::new();
        options.read(true).write(!self.published).create(!self.published).truncate(false).mode(0o600);
        let file = options.open(&self.path).map_err(io("open", &self.path))?;
        // Writer and follower may both have opened it; either is the same file.
        Ok(self.file.get_or_init(|| file))
    }

    /// Where the file is.
    pub(in crate::store) fn path(&self) -> &Path {
        &self.path
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Whether all that the follower has not taken, up to `offset`, is in memory.
    fn is_in_memory_up_to(&self, offset: u64) -> bool {
        // What is in memory may be behind the follower, which has read it from the file; then the sum says nothing.
        self.recent.front().is_some_and(|(first, _)| *first == self.followed)
            && self.followed + self.recent_bytes as u64 == offset
    }

    /// Whether the follower comes to `offset` next, after what it has in memory.
    fn is_at_hand(&self, offset: u64) -> bool {
        self.recent.is_empty() && self.followed == offset || self.is_in_memory_up_to(offset)
    }

    fn forget_first(&mut self) -> Option<Bytes> {
        let (_, bytes) = self.recent.pop_front()?;
        self.recent_bytes -= bytes.len();
        Some(bytes)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    /// Writes `content` in pieces, in the order that `order` says, while a follower reads; returns what it read.
    fn passed(partial: Partial, content: &[u8], pieces: &[Range<usize>]) -> Vec<u8> {
        let partial = Arc::new(partial);
        let follower = {
            let partial = Arc::clone(&partial);
            std::thread::spawn(move || {
                let mut read = Vec::new();
                while let Some(bytes) = partial.follow().expect("readable") {
                    read.extend_from_slice(&bytes);
                }
                read
            })
        };
        for piece in pieces {
            let bytes = Bytes::copy_from_slice(&content[piece.clone()]);
            partial.write(piece.start as u64, bytes).expect("written");
        }
        partial.close();
        follower.join().expect("no panic")
    }

    #[test]
    fn the_follower_gets_every_byte_once_and_in_order() {
        let directory = tempfile::tempdir().expect("a directory");
        let content: Vec<u8> = (0..5_000_000_u32).map(|number| (number % 251) as u8).collect();
        let size = content.len();
        let pieces: Vec<Range<usize>> =
            (0..size).step_by(70_000).map(|start| start..(start + 70_000).min(size)).collect();
        let in_order = pieces.clone();
        let mut backwards = pieces.clone();
        backwards.reverse();
        let (first, second) = pieces.split_at(pieces.len() / 2);
        let interleaved: Vec<_> =
            first.iter().zip(second).flat_map(|(one, two)| [one.clone(), two.clone()]).collect();
        let left = pieces.iter().filter(|piece| !interleaved.contains(piece)).cloned();
        let interleaved: Vec<_> = interleaved.iter().cloned().chain(left).collect();
        for (number, order) in [in_order, backwards, interleaved].iter().enumerate() {
            for spooled in [true, false] {
                let path = directory.path().join(format!("{number}-{spooled}"));
                let partial = if spooled {
                    Partial::spooled(path, size as u64, Ranges::default())
                } else {
                    Partial::streamed(path, size as u64)
                };
                assert!(passed(partial, &content, order) == content, "order {number}, spooled {spooled}");
            }
        }
    }

    /// Says when it is dropped.
    struct Told(std::sync::mpsc::Sender<()>);

    impl AsRef<[u8]> for Told {
        fn as_ref(&self) -> &[u8] {
            &[0; RECENT_BYTES]
        }
    }

    impl Drop for Told {
        fn drop(&mut self) {
            let _ = self.0.send(());
        }
    }

    #[test]
    fn regression_a_follower_that_is_behind_keeps_no_pieces_and_no_writer() {
        let directory = tempfile::tempdir().expect("a directory");
        let there: Ranges = std::iter::once(0..131_000).collect();
        let path = directory.path().join("a");
        std::fs::write(&path, vec![0; 131_000]).expect("written");
        let partial = Arc::new(Partial::spooled(path, 600_000, there));
        let (told, is_told) = std::sync::mpsc::channel();
        let writer = {
            let (partial, told) = (Arc::clone(&partial), told.clone());
            std::thread::spawn(move || {
                for number in 0..3 {
                    let piece = Bytes::from_owner(Told(told.clone()));
                    partial.write(131_000 + number * piece.len() as u64, piece).expect("written");
                }
            })
        };
        let let_go = (0..3).map(|_| is_told.recv_timeout(std::time::Duration::from_secs(20)));
        let let_go: Vec<_> = let_go.collect();
        partial.abandon();
        writer.join().expect("no panic");
        assert_eq!(let_go, [Ok(()); 3]);
        // What the follower is at the end of is followed from memory.
        let partial = Partial::spooled(directory.path().join("b"), 600_000, Ranges::default());
        partial.write(0, Bytes::from_owner(Told(told))).expect("written");
        assert!(is_told.try_recv().is_err(), "it would be read back");
        assert_eq!(partial.follow().expect("readable").expect("bytes").len(), RECENT_BYTES);
        assert!(is_told.try_recv().is_ok());
    }

    #[test]
    fn what_is_missing_ends_the_follower_and_nobody_waits_for_ever() {
        let directory = tempfile::tempdir().expect("a directory");
        let content = vec![7; 300_000];
        let partial = Partial::spooled(directory.path().join("a"), 400_000, Ranges::default());
        assert_eq!(passed(partial, &content, &[0..100_000, 200_000..300_000]).len(), 100_000);
        let partial = Arc::new(Partial::streamed(directory.path().join("b"), 10_000_000));
        let writer = {
            let partial = Arc::clone(&partial);
            std::thread::spawn(move || {
                let pieces = (0..100).map(|number| (number * 65_536, Bytes::from(vec![0; 65_536])));
                pieces.map(|(offset, bytes)| partial.write(offset, bytes)).find(Result::is_err)
            })
        };
        assert!(partial.wait(&(0..65_536)));
        partial.abandon();
        assert!(matches!(writer.join().expect("no panic"), Some(Err(Error::Abandoned))));
        assert!(!partial.wait(&(9_000_000..9_000_001)));
    }

    #[test]
    fn a_streamed_partial_can_be_spooled_from_the_middle_on() {
        let directory = tempfile::tempdir().expect("a directory");
        let partial = Partial::streamed(directory.path().join("a"), 300);
        partial.write(0, Bytes::from(vec![1; 100])).expect("written");
        partial.write(100, Bytes::from(vec![2; 100])).expect("written");
        let first = partial.follow().expect("readable").expect("bytes");
        partial.spool(&first.slice(40..)).expect("spooled");
        partial.write(200, Bytes::from(vec![3; 100])).expect("written");
        let expected: Vec<u8> = [vec![1; 60], vec![2; 100], vec![3; 100]].concat();
        assert_eq!(partial.read_at(40..300).expect("in the file"), expected);
        partial.close();
        let mut rest = 0;
        while let Some(bytes) = partial.follow().expect("readable") {
            rest += bytes.len();
        }
        assert_eq!(rest, 200);
    }
}
