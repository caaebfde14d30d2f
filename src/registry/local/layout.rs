//! One image layout, a directory or an archive: its files by name.

#![cfg_attr(not(test), deny(clippy::indexing_slicing))]

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use serde::Deserialize;

use crate::failure::one_line;
use crate::oci::digest::Digest;
use crate::oci::manifest::SIZE_LIMIT;
use crate::oci::reference::OCI_LAYOUT;
use crate::registry::error::Error;
use crate::registry::local::archive::{Archive, Unreadable};
use crate::registry::local::places::{Opened, Places, Refused};
use crate::registry::local::tags::{Named, NoChoice, choose, each};

/// A layout at a path.
#[derive(Clone)]
pub(super) struct Layout {
    places: Places,
    path: String,
    /// Of an archive; none of a directory.
    archive: Option<(Arc<File>, u64, Arc<Archive>)>,
}

/// A file of a layout: bytes of a file on this node.
#[derive(Debug, Clone)]
pub(super) struct Content {
    /// The file.
    pub file: Arc<File>,
    /// The first byte.
    pub start: u64,
    /// Bytes.
    pub size: u64,
}

/// A manifest of a layout.
pub(super) struct Found {
    /// Its digest.
    pub digest: Digest,
    /// What the layout's index says it is.
    pub media_type: Option<String>,
    /// Its bytes, which were compared with the digest if a tag was asked for.
    pub content: Content,
}

/// Bytes of the file `oci-layout`, of which the specification needs some 30.
const MARKER_LIMIT: u64 = 4096;
/// Bytes that are read at a time.
const READ: usize = 64 * 1024;

impl Layout {
    /// The layout at `path`, of which nothing was looked at; `archive` is its file, its size and its names, if it is one.
    pub fn new(places: Places, path: String, archive: Option<(Arc<File>, u64, Arc<Archive>)>) -> Self {
        Self { places, path, archive }
    }

    /// Whether its names are looked for in a long archive, which takes up to seconds for each.
    pub fn is_searched(&self) -> bool {
        self.archive.as_ref().is_some_and(|(.., archive)| archive.has_more())
    }

    /// The manifest at `target`: a digest, a tag, or [`ONLY`](crate::oci::reference::ONLY).
    ///
    /// # Errors
    /// [`Error::NotFound`] when it is not there; [`Error::WrongContent`] when it is not what the index says; [`Error::Protocol`] when
    /// the layout cannot be read.
    pub fn manifest(&self, target: &str) -> Result<Found, Error> {
        self.check_marker()?;
        if let Ok(digest) = target.parse::<Digest>() {
            return Ok(Found { content: self.blob(&digest)?, digest, media_type: None });
        }
        let named = choose(self.index()?, target).map_err(|reason| self.no_choice(target, &reason))?;
        let content = self.blob(&named.digest)?;
        if content.size > SIZE_LIMIT as u64 {
            let what = format!(
                "has a manifest {} of {} bytes, and {SIZE_LIMIT} are read",
                named.digest, content.size
            );
            return Err(self.unreadable(what));
        }
        let got = content.digest_as(&named.digest).map_err(|error| self.io("blob", &error))?;
        if got != named.digest {
            return Err(Error::WrongContent {
                host: self.shown(),
                wanted: named.digest,
                got: got.to_string(),
            });
        }
        Ok(Found { digest: named.digest, media_type: named.media_type, content })
    }

    /// The first `limit` manifests that the index names, and how many there are.
    ///
    /// # Errors
    /// As [`Layout::manifest`].
    pub fn all(&self, limit: usize) -> Result<(Vec<Named>, usize), Error> {
        self.check_marker()?;
        let (mut all, mut count) = (Vec::new(), 0);
        let see = &mut |named| {
            count += 1;
            if all.len() < limit {
                all.push(named);
            }
        };
        each(self.index()?, see).map_err(|reason| self.no_choice("", &NoChoice::Unreadable(reason)))?;
        Ok((all, count))
    }

    /// Bytes of the index that are read, and in memory at a time at most; 0 where there is none, or one that is too large to be read.
    ///
    /// # Errors
    /// As [`Layout::manifest`].
    pub fn index_size(&self) -> Result<u64, Error> {
        let size = self.open("index.json")?.map_or(0, |content| content.size);
        Ok(if size > SIZE_LIMIT as u64 { 0 } else { size })
    }

    /// The content of a blob, which nobody has compared with its digest.
    ///
    /// # Errors
    /// [`Error::NotFound`] when it is not there; [`Error::Protocol`] when it cannot be read.
    pub fn blob(&self, digest: &Digest) -> Result<Content, Error> {
        let name = format!("blobs/{}/{}", digest.algorithm().as_str(), digest.hex());
        self.open(&name)?.ok_or_else(|| Error::NotFound {
            host: self.shown(),
            what: format!("blob {digest}"),
            detail: format!(" (there is no {name} in it; was it copied whole?)"),
        })
    }

    /// The file `oci-layout` says that this is a layout, and that it can be read (image-layout.md#oci-layout-file).
    fn check_marker(&self) -> Result<(), Error> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Marker {
            image_layout_version: String,
        }
        let Some(content) = self.open("oci-layout")? else {
            return Err(self.unreadable("is no OCI image layout: it has no file oci-layout".to_owned()));
        };
        let marker = serde_json::from_reader::<_, Marker>(io::BufReader::new(io::Read::take(
            content.reader(),
            MARKER_LIMIT,
        )));
        let version = marker.map_err(|_| {
            self.unreadable("is no OCI image layout: its file oci-layout cannot be read".to_owned())
        })?;
        let version = version.image_layout_version;
        if version.starts_with("1.") {
            return Ok(());
        }
        let version: String = version.chars().take(20).collect();
        Err(self.unreadable(format!("has imageLayoutVersion {version:?}, and only 1.0.0 is read")))
    }

    fn index(&self) -> Result<io::Take<Reader>, Error> {
        let content = self.open("index.json")?;
        let content = content.ok_or_else(|| self.unreadable("has no index.json".to_owned()))?;
        if content.size > SIZE_LIMIT as u64 {
            return Err(self.unreadable(format!(
                "has an index.json of {} bytes, and {SIZE_LIMIT} are read",
                content.size
            )));
        }
        Ok(io::Read::take(content.reader(), SIZE_LIMIT as u64))
    }

    /// The file with this name of image-layout.md; none when there is nothing.
    fn open(&self, name: &str) -> Result<Option<Content>, Error> {
        if let Some((file, size, archive)) = &self.archive {
            let place = archive.find(file, *size, name).map_err(|error| archive_error(&self.path, error))?;
            return Ok(place.map(|place| Content {
                file: Arc::clone(file),
                start: place.start,
                size: place.size,
            }));
        }
        match self.places.open(&self.path, Some(name))? {
            Ok(Opened::File(file, size)) => Ok(Some(Content { file: Arc::new(file), start: 0, size })),
            Err(Refused::NotFound) => Ok(None),
            Ok(Opened::Directory) => {
                Err(self.unreadable(format!("has a directory {name} where a file belongs")))
            }
            Err(Refused::NoFile) => Err(self.unreadable(format!("has no regular file at {name}"))),
            Err(Refused::LeadsOut) => {
                Err(self.unreadable(format!("has a symbolic link at {name} that leads out of it")))
            }
            Err(Refused::Io(error)) => Err(self.io(name, &error.into())),
        }
    }

    fn no_choice(&self, target: &str, reason: &NoChoice) -> Error {
        let tag = if target == crate::oci::reference::ONLY {
            "a single manifest, or one named latest,".to_owned()
        } else {
            format!("tag {target}")
        };
        match reason {
            NoChoice::Unreadable(error) => self.unreadable(format!(
                "has an index.json that cannot be read: {}",
                one_line(&error.to_string())
            )),
            NoChoice::NotThere(has) => {
                Error::NotFound { host: self.shown(), what: tag, detail: format!("; {has}") }
            }
            NoChoice::Several(which) => self.unreadable(format!(
                "has several manifests for {tag}: {which}; give the digest of the one that is meant"
            )),
        }
    }

    fn io(&self, name: &str, error: &io::Error) -> Error {
        io_error(&self.path, name, error)
    }

    fn unreadable(&self, what: String) -> Error {
        Error::Protocol { host: self.shown(), what }
    }

    fn shown(&self) -> String {
        shown(&self.path)
    }
}

/// A layout as references name it.
pub(super) fn shown(path: &str) -> String {
    format!("{OCI_LAYOUT}:{path}")
}

/// The error for an archive that cannot be read.
pub(super) fn archive_error(path: &str, error: Unreadable) -> Error {
    match error {
        Unreadable::Bad(what) => Error::Protocol { host: shown(path), what },
        Unreadable::Io(error) => io_error(path, "the archive", &error),
    }
}

/// The error for what the kernel says.
pub(super) fn io_error(path: &str, name: &str, error: &io::Error) -> Error {
    let what =
        format!("cannot be read by this process ({name}: {error}); check its permissions, and the disk");
    Error::Protocol { host: shown(path), what }
}

impl Content {
    /// Reads from the first byte to the last.
    pub fn reader(&self) -> Reader {
        Reader { content: self.clone(), position: 0 }
    }

    /// Its digest, under the algorithm of `wanted`.
    fn digest_as(&self, wanted: &Digest) -> io::Result<Digest> {
        let (mut hasher, mut reader, mut buffer) =
            (wanted.algorithm().hasher(), self.reader(), vec![0; READ]);
        loop {
            let length = io::Read::read(&mut reader, &mut buffer)?;
            if length == 0 {
                return Ok(hasher.finish());
            }
            hasher.update(buffer.get(..length).unwrap_or_default());
        }
    }
}

/// Reads content in order.
pub(super) struct Reader {
    content: Content,
    position: u64,
}

impl io::Read for Reader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.content.size - self.position).unwrap_or(usize::MAX);
        let length = buffer.len().min(left);
        let piece = buffer.get_mut(..length).unwrap_or_default();
        let read = self.content.file.read_at(piece, self.content.start + self.position)?;
        self.position += read as u64;
        Ok(read)
    }
}
