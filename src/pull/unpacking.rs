//! A layer on its way in: hashed and unpacked in one pass, published when the digest is right.
//!
//! Bytes that arrive in order go straight on. Those that a second connection brings ahead of the order wait in a
//! file, and are read back from the page cache when their turn comes; so memory is bounded however many
//! connections there are. A layer that needs more memory to decompress than every layer may have waits there as a
//! whole: its download holds nothing that others need, and it is unpacked when its turn for that memory comes.

use std::fs::{File, OpenOptions};
use std::io::Read as _;
use std::ops::Range;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::sync::Arc;

use bytes::Bytes;

use crate::layer::format::Profile;
use crate::oci::descriptor::Descriptor;
use crate::oci::digest::{Digest, Hasher};
use crate::pull::error::Error;
use crate::pull::wanted::{Form, Stored, Wanted};
use crate::store::Store;
use crate::store::blobs::{Blob, Origin};
use crate::store::ingest::Ingest;
use crate::store::layers::LayerIngest;
use crate::store::ranges::Ranges;
use crate::unpack::extract::Limits;
use crate::unpack::pipeline::Unpack;
use crate::{store, unpack};

/// Where the bytes of a blob go.
pub(super) enum Sink {
    File(Box<Ingest>),
    Layer(Box<Unpacking>),
}

/// A layer that is being unpacked.
pub(super) struct Unpacking {
    /// `None` when the content turned out to be bad: the rest is only hashed, to know whether it is the right one.
    unpack: Option<Unpack>,
    refused: Option<unpack::error::Error>,
    ingest: LayerIngest,
    blob: Descriptor,
    content: Option<Digest>,
    hasher: Hasher,
    /// Bytes hashed.
    position: u64,
    /// Where unpacking stopped, because it needs a large window; what follows is kept.
    stopped_at: Option<u64>,
    ahead: Option<Ahead>,
}

/// Bytes that came before their turn.
struct Ahead {
    file: File,
    ranges: Ranges,
}

/// Bytes read back at a time.
const READ_BACK: usize = 256 * 1024;
/// Bytes of the files of one layer; a bound for hostile ones, far above the largest models.
const LAYER_LIMIT: u64 = 16 << 40;

impl Sink {
    /// Opens a sink for what `origin` will send.
    ///
    /// # Errors
    /// Those of the store.
    pub fn open(store: &Arc<Store>, wanted: &Wanted, origin: Origin) -> Result<Self, Error> {
        match &wanted.form {
            Form::File => Ok(Self::File(Box::new(store.ingest(&wanted.blob, origin)?))),
            Form::Layer { .. } => Self::open_layer(store, wanted, vec![origin]),
        }
    }

    /// Opens a sink for a layer all of whose bytes come from each of `origins`.
    ///
    /// # Errors
    /// Those of the store.
    fn open_layer(store: &Arc<Store>, wanted: &Wanted, origins: Vec<Origin>) -> Result<Self, Error> {
        let Form::Layer { profile, content } = &wanted.form else { return Err(Error::Stopped) };
        let unpacking = Unpacking::start(store, &wanted.blob, *profile, content.clone(), origins)?;
        Ok(Self::Layer(Box::new(unpacking)))
    }

    /// A sink with all of a layer that the store has as a file.
    ///
    /// # Errors
    /// As [`Self::write`].
    pub fn from_file(store: &Arc<Store>, wanted: &Wanted, file: Blob) -> Result<Self, Error> {
        let mut sink = Self::open_layer(store, wanted, file.origins)?;
        let io = |source: std::io::Error| {
            Error::Store(store::error::Error::Io { action: "read", path: file.path.clone(), source })
        };
        let mut source = File::open(&file.path).map_err(io)?;
        let mut offset = 0;
        loop {
            let mut buffer = vec![0; READ_BACK];
            let length = source.read(&mut buffer).map_err(io)?;
            if length == 0 {
                return Ok(sink);
            }
            buffer.truncate(length);
            sink.write(offset, buffer.into())?;
            offset += length as u64;
        }
    }

    /// Whether [`Self::finish`] takes 128 MiB of memory; who calls it bounds how many do.
    pub fn needs_large_window(&self) -> bool {
        matches!(self, Self::Layer(unpacking) if unpacking.stopped_at.is_some() && unpacking.unpack.is_some())
    }

    /// Bytes that are there from an earlier attempt.
    pub fn present(&self) -> u64 {
        match self {
            Self::File(ingest) => ingest.present(),
            Self::Layer(_) => 0,
        }
    }

    /// What has to be fetched.
    pub fn missing(&self) -> Vec<Range<u64>> {
        match self {
            Self::File(ingest) => ingest.missing(),
            Self::Layer(unpacking) if unpacking.blob.size == 0 => Vec::new(),
            Self::Layer(unpacking) => std::iter::once(0..unpacking.blob.size).collect(),
        }
    }

    /// Takes bytes in.
    ///
    /// # Errors
    /// Those of the store and of the disk.
    pub fn write(&mut self, offset: u64, bytes: Bytes) -> Result<(), Error> {
        match self {
            Self::File(ingest) => Ok(ingest.write(offset, &bytes)?),
            Self::Layer(unpacking) => unpacking.write(offset, bytes),
        }
    }

    /// Checks the digest and publishes.
    ///
    /// # Errors
    /// [`store::error::Error::Mismatch`] when the content is not what the digest names, [`Error::Unpack`] when it is and
    /// cannot be unpacked, and those of the store.
    pub fn finish(self) -> Result<Stored, Error> {
        match self {
            Self::File(ingest) => Ok(Stored::Blob(ingest.finish()?)),
            Self::Layer(unpacking) => unpacking.finish().map(Stored::Layer),
        }
    }
}

impl Unpacking {
    fn start(
        store: &Arc<Store>,
        blob: &Descriptor,
        profile: Profile,
        content: Option<Digest>,
        origins: Vec<Origin>,
    ) -> Result<Self, Error> {
        let ingest = store.ingest_layer(blob, profile, origins)?;
        let limits = Limits { bytes: LAYER_LIMIT, reserve: store.reserve()? };
        let unpack = Unpack::start(ingest.directory(), profile, limits, content.clone())
            .map_err(|source| Error::Unpack { digest: blob.digest.clone(), source })?;
        Ok(Self {
            unpack: Some(unpack),
            refused: None,
            ingest,
            content,
            hasher: blob.digest.algorithm().hasher(),
            blob: blob.clone(),
            position: 0,
            stopped_at: None,
            ahead: None,
        })
    }

    fn write(&mut self, offset: u64, bytes: Bytes) -> Result<(), Error> {
        if offset != self.position {
            return self.keep(offset, &bytes);
        }
        self.take(bytes, false)?;
        self.catch_up()
    }

    /// Hashes and unpacks the next bytes. They may be `kept` already.
    fn take(&mut self, bytes: Bytes, kept: bool) -> Result<(), Error> {
        self.hasher.update(&bytes);
        let offset = self.position;
        self.position += bytes.len() as u64;
        match self.stopped_at {
            Some(_) if kept => Ok(()),
            Some(_) => self.keep(offset, &bytes),
            None => match self.unpack(bytes)? {
                Some(rest) => {
                    let from = self.position - rest.len() as u64;
                    self.stopped_at = Some(from);
                    self.keep(from, &rest)
                }
                None => Ok(()),
            },
        }
    }

    /// Bad content is only bad if it is the content that was asked for: a broken mirror is no reason to refuse an
    /// image. So the digest decides, at the end.
    fn unpack(&mut self, bytes: Bytes) -> Result<Option<Bytes>, Error> {
        let Some(unpack) = &mut self.unpack else { return Ok(None) };
        match unpack.push(bytes) {
            Ok(rest) => Ok(rest),
            Err(source) => {
                self.unpack = None;
                if !source.is_about_content() {
                    return Err(self.error(source));
                }
                self.refused = Some(source);
                Ok(None)
            }
        }
    }

    fn error(&self, source: unpack::error::Error) -> Error {
        Error::Unpack { digest: self.blob.digest.clone(), source }
    }

    /// Keeps bytes whose turn has not come.
    fn keep(&mut self, offset: u64, bytes: &[u8]) -> Result<(), Error> {
        let path = self.ingest.directory().join("ahead");
        let io = |error: std::io::Error| self.error(unpack::error::io("keep", b"what came ahead")(error));
        if self.ahead.is_none() {
            let mut options = OpenOptions::new();
            let file = options.read(true).write(true).create_new(true).mode(0o600).open(&path).map_err(io)?;
            self.ahead = Some(Ahead { file, ranges: Ranges::default() });
        }
        let Some(ahead) = &mut self.ahead else { return Ok(()) };
        let written = ahead.file.write_all_at(bytes, offset);
        ahead.ranges.insert(offset..offset + bytes.len() as u64);
        written.map_err(|error| self.error(unpack::error::io("keep", b"what came ahead")(error)))
    }

    /// The bytes from `offset` that are kept, up to a bound; none where nothing is.
    fn kept(&self, offset: u64) -> Result<Bytes, Error> {
        let Some(ahead) = &self.ahead else { return Ok(Bytes::new()) };
        let length = ahead.ranges.contiguous_from(offset) - offset;
        let length = usize::try_from(length).unwrap_or(READ_BACK).min(READ_BACK);
        let mut buffer = vec![0; length];
        let read = ahead.file.read_exact_at(&mut buffer, offset);
        read.map_err(|error| self.error(unpack::error::io("read", b"what came ahead")(error)))?;
        Ok(buffer.into())
    }

    /// Takes what is kept and has its turn now.
    fn catch_up(&mut self) -> Result<(), Error> {
        loop {
            let bytes = self.kept(self.position)?;
            if bytes.is_empty() {
                return Ok(());
            }
            self.take(bytes, true)?;
        }
    }

    fn finish(mut self) -> Result<store::layers::Layer, Error> {
        let digest = self.blob.digest.clone();
        if self.position != self.blob.size {
            let at = self.position;
            return Err(
                store::error::Error::Damaged(format!("layer {digest} is incomplete at byte {at}")).into()
            );
        }
        let hasher = std::mem::replace(&mut self.hasher, digest.algorithm().hasher());
        let got = hasher.finish();
        if got != digest {
            return Err(store::error::Error::Mismatch { expected: digest, got }.into());
        }
        if let (Some(mut at), Some(unpack)) = (self.stopped_at, &mut self.unpack) {
            unpack.allow_large_window();
            while self.unpack.is_some() && at < self.blob.size {
                let bytes = self.kept(at)?;
                at += bytes.len() as u64;
                self.unpack(bytes)?;
            }
        }
        let summary = match (self.unpack.take(), self.refused) {
            (Some(unpack), None) => unpack.finish(),
            (_, Some(refused)) => Err(refused),
            (None, None) => return Err(Error::Stopped),
        };
        let summary = summary.map_err(|source| Error::Unpack { digest, source })?;
        if self.ahead.take().is_some() {
            let path = self.ingest.directory().join("ahead");
            std::fs::remove_file(&path)
                .map_err(|source| Error::Store(store::error::Error::Io { action: "remove", path, source }))?;
        }
        Ok(self.ingest.publish(summary, self.content)?)
    }
}
