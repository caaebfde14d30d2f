//! What a tree was made of, name by name: so that it can be seen whether the disk still has that.

use std::fs::File;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::host::failpoint;
use crate::layer::checksum::Checksum;
use crate::layer::format::INDEX;
use crate::layer::index::ENTRY_LIMIT;
use crate::layer::name::Name;
use crate::layer::stream::{Reader, Writer};
use crate::oci::digest::Digest;
use crate::store::error::{Error, io};

/// One name of a tree.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::store) struct TreeEntry {
    pub name: Name,
    pub kind: TreeKind,
    /// Permission bits on the disk; without meaning for symbolic links.
    pub mode: u16,
}

/// What is at a name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::store) enum TreeKind {
    Directory,
    /// A file of so many bytes, with this content.
    File(u64, Content),
    /// A symbolic link that says this.
    Symlink(Vec<u8>),
}

/// What the bytes of a file are known by.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::store) enum Content {
    /// They came from an archive, or from the layout.
    Checksum(Checksum),
    /// They are those of a blob.
    Blob(Digest),
}

/// Writes what a tree is made of, in the order in which it is.
pub(in crate::store) struct TreeIndex(Writer<File>);

impl TreeIndex {
    /// Beside the files of the tree, in `directory`.
    pub(in crate::store) fn create(directory: &Path) -> Result<Self, Error> {
        let path = directory.join(INDEX);
        let mut options = File::options();
        let file =
            options.write(true).create_new(true).mode(0o600).open(&path).map_err(io("create", &path))?;
        Ok(Self(Writer::new(file)))
    }

    pub(in crate::store) fn add(&mut self, name: &Name, kind: TreeKind, mode: u16) -> Result<(), Error> {
        let entry = TreeEntry { name: name.clone(), kind, mode };
        failpoint::fails("tree.index")
            .and_then(|()| self.0.add(&entry))
            .map(drop)
            .map_err(io("write", Path::new(INDEX)))
    }

    /// The checksum of the whole.
    pub(in crate::store) fn finish(self) -> Result<Checksum, Error> {
        self.0.finish().map_err(io("write", Path::new(INDEX)))
    }
}

/// Reads what the tree in `directory` was made of.
pub(in crate::store) fn read(directory: &Path, checksum: Checksum) -> Result<Reader<File, TreeEntry>, Error> {
    let path = directory.join(INDEX);
    let file = File::open(&path).map_err(io("read", &path))?;
    Ok(Reader::new(file, checksum, 2 * ENTRY_LIMIT))
}
