//! Tar archives for the demo and the tests, written by the crate `tar`.
//!
//! Names, links and kinds are written as they are given: also those that the crate's own methods refuse or tidy up, because
//! what becomes of them is what many tests are about.

use std::io::Write as _;

use flate2::Compression;
use flate2::write::GzEncoder;

/// An archive that is being written.
pub struct Tarball(tar::Builder<Vec<u8>>);

/// One entry's header; change what the test needs.
#[derive(Debug, Clone)]
pub struct Header {
    /// Its name.
    pub name: Vec<u8>,
    /// Its type flag.
    pub kind: u8,
    /// Where a link leads.
    pub link: Vec<u8>,
    /// Bytes of content.
    pub size: u64,
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Seconds since the epoch.
    pub mtime: u64,
}

/// A regular file.
pub const FILE: u8 = b'0';
/// A hard link.
pub const HARD_LINK: u8 = b'1';
/// A symbolic link.
pub const SYMLINK: u8 = b'2';
/// A character device.
pub const CHARACTER_DEVICE: u8 = b'3';
/// A block device.
pub const BLOCK_DEVICE: u8 = b'4';
/// A directory.
pub const DIRECTORY: u8 = b'5';
/// A FIFO.
pub const FIFO: u8 = b'6';

impl Header {
    /// A header with what is common for `kind`.
    pub fn new(name: impl AsRef<[u8]>, kind: u8) -> Self {
        let mode = if kind == DIRECTORY { 0o755 } else { 0o644 };
        Self {
            name: name.as_ref().to_vec(),
            kind,
            link: Vec::new(),
            size: 0,
            mode,
            uid: 0,
            gid: 0,
            mtime: 1_700_000_000,
        }
    }

    /// The header as the crate `tar` has it; names that do not fit are cut.
    pub fn to_tar(&self) -> tar::Header {
        let mut header = tar::Header::new_ustar();
        header.set_mode(self.mode);
        header.set_uid(self.uid.into());
        header.set_gid(self.gid.into());
        header.set_size(self.size);
        header.set_mtime(self.mtime);
        // `set_path` would refuse "..", and `set_entry_type` cannot write the 0 that archives had before POSIX.
        let fields = header.as_old_mut();
        fields.linkflag = [self.kind];
        for (field, text) in [(&mut fields.name, &self.name), (&mut fields.linkname, &self.link)] {
            let length = text.len().min(field.len());
            field[..length].copy_from_slice(&text[..length]);
        }
        header.set_cksum();
        header
    }
}

impl Default for Tarball {
    fn default() -> Self {
        Self(tar::Builder::new(Vec::new()))
    }
}

// What the builder returns is ignored: it writes to a vector, and that does not fail.
impl Tarball {
    /// An empty archive.
    pub fn new() -> Self {
        Self::default()
    }

    /// The builder below, for what is not written entry by entry.
    pub fn builder(&mut self) -> &mut tar::Builder<Vec<u8>> {
        &mut self.0
    }

    /// A header, content, and padding up to the next block. Names and links that do not fit get a PAX header. The header's
    /// size is written as it is, and need not be that of the content.
    pub fn entry(mut self, header: &Header, content: &[u8]) -> Self {
        let mut records: Vec<(&str, &[u8])> = Vec::new();
        if header.name.len() > 100 {
            records.push(("path", &header.name));
        }
        if header.link.len() > 100 {
            records.push(("linkpath", &header.link));
        }
        self = self.pax(&records);
        let _ = self.0.append(&header.to_tar(), content);
        self
    }

    /// A PAX header for the next entry; none without records.
    pub fn pax(mut self, records: &[(&str, &[u8])]) -> Self {
        let _ = self.0.append_pax_extensions(records.iter().copied());
        self
    }

    /// A file.
    pub fn file(self, name: impl AsRef<[u8]>, content: &[u8]) -> Self {
        self.entry(&Header { size: content.len() as u64, ..Header::new(name, FILE) }, content)
    }

    /// A directory.
    pub fn directory(self, name: impl AsRef<[u8]>) -> Self {
        self.entry(&Header::new(name, DIRECTORY), b"")
    }

    /// A symbolic link.
    pub fn symlink(self, name: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Self {
        self.link(SYMLINK, name, target)
    }

    /// A hard link.
    pub fn hard_link(self, name: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Self {
        self.link(HARD_LINK, name, target)
    }

    fn link(self, kind: u8, name: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Self {
        let mode = if kind == SYMLINK { 0o777 } else { 0o644 };
        self.entry(&Header { link: target.as_ref().to_vec(), mode, ..Header::new(name, kind) }, b"")
    }

    /// The archive, with its end.
    pub fn finish(self) -> Vec<u8> {
        self.0.into_inner().unwrap_or_default()
    }
}

/// One gzip member.
///
/// # Errors
/// Those of the encoder. It writes to memory, and has none.
pub fn gzip(content: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(content)?;
    encoder.finish()
}

/// One zstd frame.
///
/// # Errors
/// When there is no memory.
pub fn zstd(content: &[u8]) -> std::io::Result<Vec<u8>> {
    zstd::encode_all(content, 3)
}
