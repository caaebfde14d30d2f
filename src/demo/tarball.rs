//! Tar archives byte by byte, for the demo and the tests: also what a well-behaved library would not write.

/// An archive that is being written.
#[derive(Debug, Default, Clone)]
pub struct Tarball(Vec<u8>);

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

    /// The block; names that do not fit are cut.
    pub fn block(&self) -> [u8; 512] {
        let mut block = [0_u8; 512];
        let mut put = |at: usize, bytes: &[u8]| block[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &self.name[..self.name.len().min(100)]);
        put(100, format!("{:07o}\0", self.mode).as_bytes());
        put(108, format!("{:07o}\0", self.uid).as_bytes());
        put(116, format!("{:07o}\0", self.gid).as_bytes());
        put(124, &size_field(self.size));
        put(136, format!("{:011o}\0", self.mtime).as_bytes());
        put(156, &[self.kind]);
        put(157, &self.link[..self.link.len().min(100)]);
        put(257, b"ustar\x0000");
        with_checksum(block)
    }
}

/// `block` with the checksum that belongs to it.
pub fn with_checksum(mut block: [u8; 512]) -> [u8; 512] {
    block[148..156].copy_from_slice(b"        ");
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block
}

fn size_field(size: u64) -> [u8; 12] {
    let mut field = [0_u8; 12];
    if size < 1 << 33 {
        field.copy_from_slice(format!("{size:011o}\0").as_bytes());
    } else {
        field[4..].copy_from_slice(&size.to_be_bytes());
        field[0] = 0x80;
    }
    field
}

/// Records of a PAX header.
pub fn pax(records: &[(&str, &[u8])]) -> Vec<u8> {
    let mut all = Vec::new();
    for (key, value) in records {
        let body = 1 + key.len() + 1 + value.len() + 1;
        let mut length = body + 1;
        while length.to_string().len() + body != length {
            length += 1;
        }
        all.extend_from_slice(format!("{length} {key}=").as_bytes());
        all.extend_from_slice(value);
        all.push(b'\n');
    }
    all
}

impl Tarball {
    /// An empty archive.
    pub fn new() -> Self {
        Self::default()
    }

    /// Bytes as they are.
    pub fn raw(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }

    /// A header, content, and padding up to the next block. Names and links that do not fit get a PAX header.
    pub fn entry(mut self, header: &Header, content: &[u8]) -> Self {
        let mut records: Vec<(&str, &[u8])> = Vec::new();
        if header.name.len() > 100 {
            records.push(("path", &header.name));
        }
        if header.link.len() > 100 {
            records.push(("linkpath", &header.link));
        }
        if !records.is_empty() {
            self = self.pax(&records);
        }
        self.raw(&header.block()).content(content)
    }

    /// Content, and padding up to the next block.
    pub fn content(mut self, content: &[u8]) -> Self {
        self.0.extend_from_slice(content);
        let padded = self.0.len().next_multiple_of(512);
        self.0.resize(padded, 0);
        self
    }

    /// A PAX header for the next entry.
    pub fn pax(self, records: &[(&str, &[u8])]) -> Self {
        self.extended(b'x', &pax(records))
    }

    /// An extended header of any kind.
    pub fn extended(self, kind: u8, content: &[u8]) -> Self {
        let header = Header { size: content.len() as u64, ..Header::new("PaxHeaders/x", kind) };
        self.raw(&header.block()).content(content)
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
    pub fn finish(mut self) -> Vec<u8> {
        self.0.resize(self.0.len() + 1024, 0);
        self.0
    }

    /// The archive without the blocks that end it.
    pub fn unfinished(self) -> Vec<u8> {
        self.0
    }
}

/// One gzip member.
///
/// # Errors
/// When the content does not fit, which is a fault of this function.
pub fn gzip(content: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut deflate = zlib_rs::Deflate::new(6, true, 16 + 15);
    let mut out = vec![0; content.len() / 1000 * 1001 + 1024];
    let status = deflate.compress(content, &mut out, zlib_rs::DeflateFlush::Finish);
    if !matches!(status, Ok(zlib_rs::Status::StreamEnd)) {
        return Err(std::io::Error::other("gzip failed"));
    }
    out.truncate(usize::try_from(deflate.total_out()).unwrap_or(usize::MAX));
    Ok(out)
}

/// One zstd frame.
///
/// # Errors
/// When there is no memory.
pub fn zstd(content: &[u8]) -> std::io::Result<Vec<u8>> {
    zstd::encode_all(content, 3)
}
