//! A ring of buffers between the thread that inflates and the one that reads the archive.

#![cfg_attr(not(test), deny(clippy::indexing_slicing))]

use std::io::{self, BufRead, Read};
use std::sync::mpsc::{Receiver as Channel, SyncSender, sync_channel};

use bytes::Bytes;

use crate::unpack::decompress::{Buffer, Piece};
use crate::unpack::error::Error;

/// Bytes of a buffer: large enough that handing it over costs nothing, small enough for the cache.
pub(super) const BUFFER: usize = 256 * 1024;
/// Full buffers on the way; one more is being filled, and one being read.
const AHEAD: usize = 2;
/// Bytes of all buffers of a ring.
pub const MEMORY: usize = (AHEAD + 2) * BUFFER;

enum Full {
    Buffer(Buffer),
    Shared(Bytes),
    /// The end; without it the archive is cut off.
    End,
}

/// The end that is written to.
pub(super) struct Sender {
    full: SyncSender<Full>,
    empty: Channel<Buffer>,
    /// Buffers that may still be made.
    spare: usize,
}

/// The end that is read from.
pub(super) struct Receiver {
    full: Channel<Full>,
    empty: SyncSender<Buffer>,
    current: Full,
    /// Bytes of `current` that were read.
    read: usize,
}

pub(super) fn new() -> (Sender, Receiver) {
    let (full_sender, full) = sync_channel(AHEAD);
    let (empty_sender, empty) = sync_channel(AHEAD + 2);
    let sender = Sender { full: full_sender, empty, spare: AHEAD + 1 };
    (sender, Receiver { full, empty: empty_sender, current: Full::Shared(Bytes::new()), read: 0 })
}

impl Sender {
    /// Hands `piece` over; false when the other side is gone.
    pub fn send(&mut self, piece: Piece<'_>) -> bool {
        match piece {
            Piece::Shared(bytes) => self.full.send(Full::Shared(bytes)).is_ok(),
            Piece::Buffer(buffer) => {
                let next = match self.empty.try_recv() {
                    Ok(known) => known,
                    Err(_) if self.spare > 0 => {
                        self.spare -= 1;
                        Buffer::new(BUFFER)
                    }
                    Err(_) => match self.empty.recv() {
                        Ok(known) => known,
                        Err(_) => return false,
                    },
                };
                self.full.send(Full::Buffer(std::mem::replace(buffer, next))).is_ok()
            }
        }
    }

    /// Says that the content is complete.
    pub fn end(&mut self) {
        // Who is gone has said why, and is asked next.
        let _ = self.full.send(Full::End);
    }
}

impl Read for Receiver {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let mut available = self.fill_buf()?;
        let length = available.read(out)?;
        self.consume(length);
        Ok(length)
    }
}

impl BufRead for Receiver {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        while self.read == self.current.content().len() && !matches!(self.current, Full::End) {
            // What was read is let go before more is waited for: more may only come when there is room for it.
            self.read = 0;
            if let Full::Buffer(mut used) = std::mem::replace(&mut self.current, Full::Shared(Bytes::new())) {
                used.clear();
                let _ = self.empty.send(used); // Nobody fills it any more: fine.
            }
            // A channel that closes without an end was cut off.
            self.current =
                self.full.recv().map_err(|_| io::Error::other(Error::archive(0, "it was cut off")))?;
        }
        Ok(self.current.content().get(self.read..).unwrap_or_default())
    }

    fn consume(&mut self, length: usize) {
        self.read += length;
    }
}

impl Full {
    fn content(&self) -> &[u8] {
        match self {
            Self::Buffer(buffer) => buffer.content(),
            Self::Shared(bytes) => bytes,
            Self::End => &[],
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// Says when it is dropped.
    struct Told(std::sync::mpsc::Sender<()>);

    impl AsRef<[u8]> for Told {
        fn as_ref(&self) -> &[u8] {
            b"content"
        }
    }

    impl Drop for Told {
        fn drop(&mut self) {
            let _ = self.0.send(());
        }
    }

    #[test]
    fn regression_what_was_read_is_let_go_before_more_is_waited_for() {
        let (told, is_told) = std::sync::mpsc::channel();
        let (mut sender, mut receiver) = new();
        assert!(sender.send(Piece::Shared(Bytes::from_owner(Told(told)))));
        let reader = std::thread::spawn(move || {
            let mut read = Vec::new();
            receiver.read_to_end(&mut read).expect("readable");
            read
        });
        let let_go = is_told.recv_timeout(Duration::from_secs(20));
        sender.end();
        assert_eq!(reader.join().expect("no panic"), b"content");
        assert!(let_go.is_ok(), "it was kept until the end");
    }
}
