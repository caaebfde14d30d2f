//! A file of records, one after the other, whose checksum is known to whoever reads it.

#![cfg_attr(not(test), deny(clippy::indexing_slicing))]

use std::io;
use std::marker::PhantomData;

use serde::Serialize;
use serde::de::DeserializeOwned;
use xxhash_rust::xxh3::Xxh3;

use crate::layer::checksum::Checksum;

/// Writes records.
pub struct Writer<W> {
    out: W,
    hasher: Xxh3,
    buffer: Vec<u8>,
}

/// The file is not what was written, or of another version of the format.
#[derive(Debug, thiserror::Error)]
#[error("an index is damaged: {0}")]
pub struct Damaged(pub(in crate::layer) &'static str);

/// Why the next record cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// It is not what was written.
    #[error(transparent)]
    Damaged(#[from] Damaged),
    /// The kernel's.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Bytes that are written at a time.
const WRITE: usize = 64 * 1024;

impl<W: io::Write> Writer<W> {
    /// Writes to `out`, in pieces of about 64 KiB.
    pub fn new(out: W) -> Self {
        Self { out, hasher: Xxh3::new(), buffer: Vec::with_capacity(WRITE + 16 * 1024) }
    }

    /// Adds a record; returns how many bytes it has.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn add(&mut self, record: &impl Serialize) -> io::Result<usize> {
        let buffer = std::mem::take(&mut self.buffer);
        let before = buffer.len();
        self.buffer = postcard::to_extend(record, buffer).map_err(io::Error::other)?;
        let size = self.buffer.len() - before;
        if self.buffer.len() >= WRITE {
            self.flush()?;
        }
        Ok(size)
    }

    /// Writes what is left; returns the checksum of the whole.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn finish(mut self) -> io::Result<Checksum> {
        self.flush()?;
        self.out.flush()?;
        Ok(Checksum::finish(&self.hasher))
    }

    fn flush(&mut self) -> io::Result<()> {
        self.hasher.update(&self.buffer);
        self.out.write_all(&self.buffer)?;
        self.buffer.clear();
        Ok(())
    }
}

/// Reads what was written, record by record, in memory that has a fixed bound.
///
/// The last item is an error when the whole is not what was written.
pub struct Reader<R, T> {
    input: R,
    expected: Checksum,
    hasher: Xxh3,
    buffer: Vec<u8>,
    /// What of the buffer was decoded.
    decoded: usize,
    records: usize,
    /// Records that there may be.
    limit: usize,
    ended: bool,
    record: PhantomData<T>,
}

/// Bytes that are read at a time.
const READ: usize = 64 * 1024;
/// Bytes of a record: names, a target and extended attributes are bounded far below it.
const RECORD_LIMIT: usize = 4 * 1024 * 1024;

impl<R: io::Read, T: DeserializeOwned> Reader<R, T> {
    /// Reads at most `limit` records from `input`, which has this checksum.
    pub fn new(input: R, expected: Checksum, limit: usize) -> Self {
        Self {
            input,
            expected,
            hasher: Xxh3::new(),
            buffer: Vec::with_capacity(READ),
            decoded: 0,
            records: 0,
            limit,
            ended: false,
            record: PhantomData,
        }
    }

    /// Reads more; false at the end.
    fn fill(&mut self) -> Result<bool, ReadError> {
        self.buffer.drain(..self.decoded);
        self.decoded = 0;
        let before = self.buffer.len();
        if before > RECORD_LIMIT {
            return Err(Damaged("an entry is too long").into());
        }
        self.buffer.resize(before + READ, 0);
        let read = self.input.read(self.buffer.get_mut(before..).unwrap_or_default())?;
        self.buffer.truncate(before + read);
        self.hasher.update(self.buffer.get(before..).unwrap_or_default());
        Ok(read > 0)
    }

    fn read(&mut self) -> Result<Option<T>, ReadError> {
        loop {
            match postcard::take_from_bytes::<T>(self.buffer.get(self.decoded..).unwrap_or_default()) {
                Ok((record, rest)) => {
                    self.decoded = self.buffer.len() - rest.len();
                    self.records += 1;
                    if self.records > self.limit {
                        return Err(Damaged("it is too long").into());
                    }
                    return Ok(Some(record));
                }
                Err(postcard::Error::DeserializeUnexpectedEnd) => {
                    if self.fill()? {
                        continue;
                    }
                    if self.decoded < self.buffer.len() {
                        return Err(Damaged("it is cut off").into());
                    }
                    if Checksum::finish(&self.hasher) != self.expected {
                        return Err(Damaged("its checksum is wrong").into());
                    }
                    return Ok(None);
                }
                Err(_) => return Err(Damaged("it cannot be decoded").into()),
            }
        }
    }
}

impl<R: io::Read, T: DeserializeOwned> Iterator for Reader<R, T> {
    type Item = Result<T, ReadError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let read = self.read();
        self.ended = !matches!(read, Ok(Some(_)));
        read.transpose()
    }
}
