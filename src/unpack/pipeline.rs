//! The pipeline of one layer: decompress on the thread that pushes, extract on another.

use crate::unpack::error;
use crate::unpack::error::Error;
use crate::unpack::extract;
use crate::unpack::extract::Limits;
use crate::unpack::ring;
use std::path::Path;
use std::thread::JoinHandle;

use bytes::Bytes;

use crate::layer::format::{Profile, Summary};
use crate::oci::digest::{Digest, Hasher};
use crate::unpack::decompress::{Buffer, Decoder, Piece};
use crate::unpack::ring::Sender;

/// Five steps make a third of the weight.
const NICE: i32 = 5;

/// A layer that is being unpacked.
pub struct Unpack {
    decoder: Decoder,
    buffer: Buffer,
    sender: Option<Sender>,
    /// Over the uncompressed archive, where its digest is promised.
    promised: Option<(Digest, Hasher)>,
    thread: Option<JoinHandle<Result<Summary, Error>>>,
}

impl Unpack {
    /// Starts to unpack into `directory`, which is empty. `promised` is the digest that the uncompressed archive
    /// has to have, if that is to be checked: a layer's diff ID.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::NoSpace`].
    pub fn start(
        directory: &Path,
        profile: Profile,
        limits: Limits,
        promised: Option<Digest>,
    ) -> Result<Self, Error> {
        let extract = extract::Extract::new(directory, profile, limits)?;
        let (sender, receiver) = ring::new();
        let thread = std::thread::Builder::new()
            .name("unpack".into())
            .spawn(move || {
                yield_to_others();
                extract.run(receiver)
            })
            .map_err(error::io("start a thread for", b"unpacking"))?;
        Ok(Self {
            decoder: Decoder::default(),
            buffer: Buffer::new(ring::BUFFER),
            sender: Some(sender),
            promised: promised.map(|digest| (digest.clone(), digest.algorithm().hasher())),
            thread: Some(thread),
        })
    }

    /// Takes the next bytes of the layer; waits while those before are being written.
    ///
    /// Returns the bytes from where the layer needs more memory than every layer may have. They, and all after them,
    /// are to be pushed when that is [allowed](Self::allow_large_window).
    ///
    /// # Errors
    /// Why the layer cannot be unpacked; nothing may be pushed after that.
    pub fn push(&mut self, bytes: Bytes) -> Result<Option<Bytes>, Error> {
        self.drive(|decoder, buffer, emit| decoder.push(bytes, buffer, emit))
    }

    /// Allows 128 MiB of memory for decompression. Who calls this bounds how many layers have that.
    pub fn allow_large_window(&mut self) {
        self.decoder.allow_large_window();
    }

    /// The end of the layer: waits until everything is written, and says what it was.
    ///
    /// # Errors
    /// As [`Self::push`].
    pub fn finish(mut self) -> Result<Summary, Error> {
        self.drive(|decoder, buffer, emit| decoder.finish(buffer, emit))?;
        if let Some((expected, hasher)) = self.promised.take() {
            let got = hasher.finish();
            if got != expected {
                return Err(Error::Content { expected, got });
            }
        }
        if let Some(sender) = &mut self.sender {
            sender.end();
        }
        self.join()
    }

    fn drive<T>(
        &mut self,
        step: impl FnOnce(
            &mut Decoder,
            &mut Buffer,
            &mut dyn FnMut(Piece<'_>) -> Result<(), Error>,
        ) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let mut gone = false;
        let result = step(&mut self.decoder, &mut self.buffer, &mut |piece| {
            if let Some((_, hasher)) = &mut self.promised {
                hasher.update(match &piece {
                    Piece::Buffer(buffer) => buffer.content(),
                    Piece::Shared(bytes) => bytes,
                });
            }
            let sent = self.sender.as_mut().is_some_and(|sender| sender.send(piece));
            gone = !sent;
            // The text is not shown: the other side has the real one.
            if sent { Ok(()) } else { Err(Error::Format("no longer read")) }
        });
        if gone {
            // The other thread ended before its input did: it says why.
            return self.join().and(result);
        }
        result
    }

    fn join(&mut self) -> Result<Summary, Error> {
        self.sender = None;
        match self.thread.take().map(JoinHandle::join) {
            Some(Ok(result)) => result,
            Some(Err(panic)) => std::panic::resume_unwind(panic),
            None => Err(Error::Format("no longer read")),
        }
    }
}

/// Lets the calling thread go after those that only fetch: files of layers are made by the hundred thousand, and who waits for
/// one large file should not wait for the processor as well. `man 7 sched`, "The nice value": it belongs to the thread.
pub fn yield_to_others() {
    // As it is without.
    let _ = rustix::process::nice(NICE);
}

impl Drop for Unpack {
    /// Waits for the other thread: nobody writes in the directory after this.
    fn drop(&mut self) {
        self.sender = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join(); // Its result is not wanted, or was an error before.
        }
    }
}
