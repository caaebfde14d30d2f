//! Tar archives block by block, for tests of what no library writes.

use ocivol::demo::tarball::{Header, Tarball};

/// What a [`Tarball`] does not write by itself.
pub trait Raw {
    /// Bytes as they are, and zeros up to the next block.
    fn raw(self, bytes: &[u8]) -> Self;

    /// An extended header of any kind, with any content.
    fn extended(self, kind: u8, content: &[u8]) -> Self;

    /// The archive without the blocks that end it.
    fn unfinished(self) -> Vec<u8>;
}

impl Raw for Tarball {
    fn raw(mut self, bytes: &[u8]) -> Self {
        let archive = self.builder().get_mut();
        archive.extend_from_slice(bytes);
        archive.resize(archive.len().next_multiple_of(512), 0);
        self
    }

    fn extended(self, kind: u8, content: &[u8]) -> Self {
        self.entry(&Header { size: content.len() as u64, ..Header::new("PaxHeaders/x", kind) }, content)
    }

    fn unfinished(mut self) -> Vec<u8> {
        std::mem::take(self.builder().get_mut())
    }
}

/// The block of a header, to be changed.
pub fn block(header: &Header) -> [u8; 512] {
    *header.to_tar().as_bytes()
}

/// `block` with the checksum that belongs to it.
pub fn with_checksum(block: [u8; 512]) -> [u8; 512] {
    let mut header = tar::Header::from_byte_slice(&block).clone();
    header.set_cksum();
    *header.as_bytes()
}
