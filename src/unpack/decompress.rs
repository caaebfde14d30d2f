//! Compression, told apart by magic bytes and not by media type: none, gzip, zstd.
//!
//! Compressed bytes are pushed in as they come, and leave in buffers of a fixed size. Several gzip members, and
//! several or skippable zstd frames, one after the other, are one stream (RFC 1952, 2.2; RFC 8878, 3.1). Zeros may
//! follow the last gzip member, as tools that pad to blocks leave them; nothing else may.

#![cfg_attr(not(test), deny(clippy::indexing_slicing))]

use std::time::Duration;

use bytes::{Buf as _, Bytes};
use flate2::{Decompress, FlushDecompress, Status};
use zstd::zstd_safe::{DCtx, DParameter, InBuffer, OutBuffer, ResetDirective};

use crate::host::limits;
use crate::unpack::error::Error;

/// A decoder of one stream.
pub struct Decoder {
    state: State,
    /// The first bytes, until they tell what the stream is.
    start: Vec<u8>,
    consumed: u64,
    /// Bytes that came out, without buffers full of zeros: those take no space.
    produced: u64,
    /// Time of the processor.
    spent: Duration,
    /// Whether a window larger than [`COMMON_WINDOW`] may be had.
    large_window: bool,
}

enum State {
    Unknown,
    Plain,
    Gzip {
        /// It reads the header of a member and checks its CRC and size, too.
        inflate: Box<Decompress>,
        /// Between two members.
        ended: bool,
        /// Only zeros may come.
        padding: bool,
    },
    Zstd {
        context: Box<DCtx<'static>>,
        /// Between two frames, where the next header is collected.
        header: Option<Vec<u8>>,
    },
}

/// A buffer of a fixed size that is filled piece by piece.
pub struct Buffer {
    bytes: Box<[u8]>,
    filled: usize,
}

/// A piece of what was decompressed.
pub enum Piece<'a> {
    /// A buffer to take the content of; it is to be left empty, or replaced by an empty one.
    Buffer(&'a mut Buffer),
    /// Bytes that were not compressed at all.
    Shared(Bytes),
}

type Emit<'a> = &'a mut dyn FnMut(Piece<'_>) -> Result<(), Error>;

/// The longest magic number that is looked at.
const MAGIC: usize = 6;
/// Windows up to this size (2^23 is 8 MiB, what `zstd -19` needs) are had by every stream at once.
const COMMON_WINDOW: u64 = limits::COMMON_WINDOW;
/// The largest window (`zstd --ultra -22`), for who is allowed to have it.
const LARGEST_WINDOW: u64 = limits::LARGE_WINDOW;
/// Bytes of a zstd frame header with everything in it (RFC 8878, 3.1.1.1).
const FRAME_HEADER: usize = 18;
/// How often larger what is no zeros may be: deflate ends at 1,032, and what is made for use is far below 100.
const RATIO_LIMIT: u64 = 200;
/// Content up to this size may have any ratio.
const RATIO_FREE: u64 = 256 * 1024 * 1024;
/// Time of the processor that a stream may take, and bytes of it that earn a second more. The slowest that is made for
/// use comes to a tenth of that; zeros, of which there may be any number, to 200 GB in the time that is free.
const TIME_FREE: Duration = Duration::from_secs(300);
const BYTES_PER_SECOND: u64 = 8 * 1024 * 1024;

/// The window of deflate as a power of two: distances are up to 32 KiB (RFC 1951, 3.2.5).
const GZIP_WINDOW_BITS: u8 = 15;

const ZSTD_MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];

impl Buffer {
    /// An empty buffer for `size` bytes.
    pub fn new(size: usize) -> Self {
        Self { bytes: vec![0; size].into(), filled: 0 }
    }

    /// What is in it.
    pub fn content(&self) -> &[u8] {
        self.bytes.get(..self.filled).unwrap_or_default()
    }

    /// Forgets what is in it.
    pub fn clear(&mut self) {
        self.filled = 0;
    }

    fn is_full(&self) -> bool {
        self.filled == self.bytes.len()
    }

    fn free(&mut self) -> &mut [u8] {
        self.bytes.get_mut(self.filled..).unwrap_or_default()
    }
}

impl Default for Decoder {
    fn default() -> Self {
        Self {
            state: State::Unknown,
            start: Vec::new(),
            consumed: 0,
            produced: 0,
            spent: Duration::ZERO,
            large_window: false,
        }
    }
}

impl Decoder {
    /// From now on a large window may be had. Who allows it bounds how many there are.
    pub fn allow_large_window(&mut self) {
        self.large_window = true;
    }

    /// Takes the next bytes in. Whenever `buffer` is full, or bytes were not compressed, `emit` gets them.
    ///
    /// Returns the bytes from where a large window is needed that is not [allowed](Self::allow_large_window); they
    /// are to be pushed again, when it is.
    ///
    /// # Errors
    /// [`Error::Compression`], [`Error::Format`], [`Error::TooMuch`], and those of `emit`.
    pub fn push(
        &mut self,
        mut bytes: Bytes,
        buffer: &mut Buffer,
        emit: Emit<'_>,
    ) -> Result<Option<Bytes>, Error> {
        if matches!(self.state, State::Unknown) {
            if !self.start.is_empty() || bytes.len() < MAGIC {
                self.start.extend_from_slice(&bytes);
                if self.start.len() < MAGIC {
                    return Ok(None);
                }
                bytes = std::mem::take(&mut self.start).into();
            }
            self.state = recognise(&bytes)?;
        }
        self.decode(bytes, buffer, emit)
    }

    /// The end of the stream: what is left goes to `emit`.
    ///
    /// # Errors
    /// [`Error::Compression`] when the end is not where the stream should end, and as [`Self::push`].
    pub fn finish(&mut self, buffer: &mut Buffer, emit: Emit<'_>) -> Result<(), Error> {
        if matches!(self.state, State::Unknown) {
            let start = std::mem::take(&mut self.start);
            self.state = recognise(&start)?;
            self.decode(start.into(), buffer, emit)?;
        }
        let complete = match &mut self.state {
            State::Unknown | State::Plain => true,
            State::Gzip { ended, .. } => *ended,
            State::Zstd { header, .. } => header.as_ref().is_some_and(Vec::is_empty),
        };
        if !complete {
            return Err(Error::Compression("it ends too early".into()));
        }
        if buffer.content().is_empty() { Ok(()) } else { emit(Piece::Buffer(buffer)) }
    }

    fn decode(
        &mut self,
        mut bytes: Bytes,
        buffer: &mut Buffer,
        emit: Emit<'_>,
    ) -> Result<Option<Bytes>, Error> {
        self.consumed += bytes.len() as u64;
        if matches!(self.state, State::Plain) {
            self.produced += bytes.len() as u64;
            if !bytes.is_empty() {
                emit(Piece::Shared(bytes))?;
            }
            return Ok(None);
        }
        loop {
            let before = (bytes.len(), buffer.filled);
            let began = processor_time();
            match &mut self.state {
                State::Unknown | State::Plain => return Ok(None),
                State::Gzip { inflate, ended, padding } => {
                    gunzip(inflate, ended, padding, &mut bytes, buffer)?;
                }
                State::Zstd { context, header } => {
                    if !unzstd(context, header, self.large_window, &mut bytes, buffer)? {
                        self.consumed -= bytes.len() as u64;
                        return Ok(Some(bytes));
                    }
                }
            }
            self.spent += processor_time().saturating_sub(began);
            if self.spent > TIME_FREE + Duration::from_secs(self.consumed / BYTES_PER_SECOND) {
                let rule = format!("can be decompressed in {} s", self.spent.as_secs());
                return Err(Error::TooMuch(rule.into()));
            }
            if buffer.is_full() && !is_zero(buffer.content()) {
                self.produced += buffer.content().len() as u64;
            }
            if self.produced > RATIO_FREE && self.produced / RATIO_LIMIT > self.consumed {
                let rule = format!("{RATIO_LIMIT} times its size: it looks like a decompression bomb");
                return Err(Error::TooMuch(rule.into()));
            }
            if buffer.is_full() {
                emit(Piece::Buffer(buffer))?;
            } else if bytes.is_empty() {
                return Ok(None);
            } else if (bytes.len(), buffer.filled) == before {
                return Err(Error::Compression("it leads nowhere".into()));
            }
        }
    }
}

/// What this thread took of the processor's time.
fn processor_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::try_from(time).unwrap_or_default()
}

fn is_zero(bytes: &[u8]) -> bool {
    static ZEROS: [u8; 4096] = [0; 4096];
    bytes.chunks(ZEROS.len()).all(|chunk| ZEROS.get(..chunk.len()) == Some(chunk))
}

/// What the first bytes say.
fn recognise(start: &[u8]) -> Result<State, Error> {
    let begins = |magic: &[u8]| start.starts_with(magic);
    if begins(&[0x1f, 0x8b]) {
        let inflate = Box::new(Decompress::new_gzip(GZIP_WINDOW_BITS));
        return Ok(State::Gzip { inflate, ended: false, padding: false });
    }
    if begins(&ZSTD_MAGIC) || is_skippable(start) {
        let mut context = Box::new(DCtx::create());
        let limit = DParameter::WindowLogMax(LARGEST_WINDOW.ilog2());
        context.set_parameter(limit).map_err(zstd_error)?;
        return Ok(State::Zstd { context, header: Some(Vec::new()) });
    }
    // What is no tar archive either has no valid header; these are told by name.
    match start {
        [b'B', b'Z', b'h', ..] => Err(Error::Format("compressed with bzip2")),
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Err(Error::Format("compressed with xz")),
        [b'P', b'K', 3, 4, ..] => Err(Error::Format("a zip archive")),
        [0x04, 0x22, 0x4d, 0x18, ..] => Err(Error::Format("compressed with lz4")),
        [b'h', b's', b'q', b's', ..] => Err(Error::Format("a squashfs image")),
        _ => Ok(State::Plain),
    }
}

fn is_skippable(start: &[u8]) -> bool {
    matches!(start, [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..])
}

fn gunzip(
    inflate: &mut Decompress,
    ended: &mut bool,
    padding: &mut bool,
    input: &mut Bytes,
    buffer: &mut Buffer,
) -> Result<(), Error> {
    if *padding || (*ended && input.first() == Some(&0)) {
        *padding = true;
        if input.iter().any(|byte| *byte != 0) {
            return Err(Error::Compression("there is something else after the compressed content".into()));
        }
        input.clear();
        return Ok(());
    }
    if *ended {
        if input.is_empty() {
            return Ok(());
        }
        *inflate = Decompress::new_gzip(GZIP_WINDOW_BITS);
        *ended = false;
    }
    let (read, written) = (inflate.total_in(), inflate.total_out());
    let status = inflate.decompress(input, buffer.free(), FlushDecompress::None);
    buffer.filled += usize::try_from(inflate.total_out() - written).unwrap_or(0);
    input.advance(usize::try_from(inflate.total_in() - read).unwrap_or(0));
    match status {
        Ok(Status::Ok | Status::BufError) => Ok(()),
        Ok(Status::StreamEnd) => {
            *ended = true;
            Ok(())
        }
        Err(error) => {
            let what = error.message().unwrap_or("it cannot be decompressed");
            Err(Error::Compression(format!("gzip: {what}").into()))
        }
    }
}

/// False when the next frame needs a large window, and may not have it.
fn unzstd(
    context: &mut DCtx<'static>,
    header: &mut Option<Vec<u8>>,
    large_window: bool,
    input: &mut Bytes,
    buffer: &mut Buffer,
) -> Result<bool, Error> {
    // The header is looked at before the decoder sees it: the decoder would allocate what it asks for.
    let mut start = Vec::new();
    if let Some(collected) = header {
        let wanted = FRAME_HEADER.saturating_sub(collected.len()).min(input.len());
        let known = collected.len();
        collected.extend_from_slice(input.get(..wanted).unwrap_or_default());
        let Some(window) = window(collected)? else {
            input.advance(wanted);
            return Ok(true);
        };
        if window > LARGEST_WINDOW {
            let rule = format!("zstd with a window of {} MiB, more than 128", window >> 20);
            return Err(Error::Compression(rule.into()));
        }
        if window > COMMON_WINDOW && !large_window {
            collected.truncate(known);
            return Ok(false);
        }
        start = std::mem::take(collected);
        start.truncate(known); // The rest is still in `input`.
        *header = None;
    }
    if !start.is_empty() {
        // What an earlier piece held of the header; it makes no output.
        let mut source = InBuffer::around(&start);
        let mut none = [0_u8; 0];
        let mut sink = OutBuffer::around(&mut none[..]);
        while source.pos < start.len() {
            let before = source.pos;
            context.decompress_stream(&mut sink, &mut source).map_err(zstd_error)?;
            if source.pos == before {
                return Err(Error::Compression("zstd: its header is not sound".into()));
            }
        }
    }
    let mut source = InBuffer::around(input);
    let mut sink = OutBuffer::around(buffer.free());
    let result = context.decompress_stream(&mut sink, &mut source);
    let (read, written) = (source.pos, sink.pos());
    buffer.filled += written;
    input.advance(read);
    if result.map_err(zstd_error)? == 0 {
        context.reset(ResetDirective::SessionOnly).map_err(zstd_error)?;
        *header = Some(Vec::new());
    }
    Ok(true)
}

fn zstd_error(code: usize) -> Error {
    Error::Compression(format!("zstd: {}", zstd::zstd_safe::get_error_name(code)).into())
}

/// The window that a frame asks for; `None` when the header is not all here. RFC 8878, 3.1.1.1.
fn window(header: &[u8]) -> Result<Option<u64>, Error> {
    let Some(magic) = header.first_chunk::<4>() else { return Ok(None) };
    if is_skippable(magic) {
        return Ok(Some(0));
    }
    if *magic != ZSTD_MAGIC {
        return Err(Error::Compression("there is something else after the compressed content".into()));
    }
    let Some(descriptor) = header.get(4) else { return Ok(None) };
    if descriptor & 0x20 == 0 {
        return Ok(header.get(5).map(|byte| {
            let base = 1_u64 << (10 + (byte >> 3));
            base + base / 8 * u64::from(byte & 7)
        }));
    }
    // A single segment: the window is the content, whose size follows the dictionary's ID.
    let at = 5 + [0, 1, 2, 4].get(usize::from(descriptor & 3)).copied().unwrap_or_default();
    let length = 1_usize << (descriptor >> 6);
    let Some(field) = header.get(at..at + length) else { return Ok(None) };
    let size = field.iter().rev().fold(0_u64, |size, byte| size << 8 | u64::from(*byte));
    Ok(Some(if length == 2 { size + 256 } else { size }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decoded(bytes: &[u8]) -> Result<Vec<u8>, Error> {
        let (mut decoder, mut buffer, mut out) = (Decoder::default(), Buffer::new(4096), Vec::new());
        let mut emit = |piece: Piece<'_>| {
            if let Piece::Buffer(buffer) = piece {
                out.extend_from_slice(buffer.content());
                buffer.clear();
            }
            Ok(())
        };
        decoder.push(Bytes::copy_from_slice(bytes), &mut buffer, &mut emit)?;
        decoder.finish(&mut buffer, &mut emit)?;
        Ok(out)
    }

    #[test]
    fn t15_members_of_gzip_are_checked() {
        let member = crate::demo::tarball::gzip(b"content").expect("gzip");
        assert_eq!(decoded(&member).expect("sound"), b"content");
        // The method and the flags that there are not; and at the end a CRC and a size (RFC 1952, 2.3).
        for at in [2, 3].into_iter().chain(member.len() - 8..member.len()) {
            let mut wrong = member.clone();
            wrong[at] ^= 0x80;
            let error = decoded(&wrong).expect_err("it is not what it says").to_string();
            assert!(error.contains("gzip: "), "{at}: {error}");
        }
        // A header with a name and a CRC of its own.
        let mut header = member[..10].to_vec();
        header[3] = 2 | 8;
        header.extend_from_slice(b"name\0");
        let mut crc = flate2::Crc::new();
        crc.update(&header);
        for (change, is_sound) in [(0, true), (1, false)] {
            let sum = crc.sum().to_le_bytes();
            let named = [&header[..], &[sum[0] ^ change, sum[1]], &member[10..]].concat();
            assert_eq!(decoded(&named).is_ok(), is_sound);
        }
    }

    #[test]
    fn t14_time_is_bounded_whatever_comes_out() {
        let zeros = crate::demo::tarball::gzip(&vec![0; 8 << 20]).expect("gzip");
        let run = |spent: Duration| {
            let mut decoder = Decoder { spent, ..Decoder::default() };
            let mut buffer = Buffer::new(64 * 1024);
            let mut emit = |piece: Piece<'_>| {
                if let Piece::Buffer(buffer) = piece {
                    buffer.clear();
                }
                Ok(())
            };
            decoder.push(zeros.clone().into(), &mut buffer, &mut emit)?;
            decoder.finish(&mut buffer, &mut emit)?;
            Ok::<_, Error>(decoder)
        };
        let decoder = run(Duration::ZERO).expect("zeros are no bomb");
        assert!(decoder.produced < 64 * 1024 && decoder.spent > Duration::ZERO);
        assert!(matches!(run(TIME_FREE), Err(Error::TooMuch(_))));
    }
}
