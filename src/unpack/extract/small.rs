//! Small files: the thread that reads the archive makes them, and whoever of its crew has time fills them. In a layer of many, making and
//! filling take about as long, so that two threads need half the time.

#![cfg_attr(not(test), deny(clippy::indexing_slicing))]

use std::os::fd::{AsFd as _, OwnedFd};

use rustix::io::Errno;

use crate::host::{failpoint, file_metadata, limits};
use crate::layer::index::EntryMetadata;
use crate::layer::name::Name;
use crate::unpack::error::{Error, io};
use crate::unpack::extract::files::Content;

/// A file that was made, and what it is to have. Its content is the next `size` bytes of its batch.
struct Small {
    file: OwnedFd,
    name: Name,
    size: usize,
    metadata: EntryMetadata,
    /// The mode, if the file was not made with it.
    mode: Option<u16>,
}

/// Files that are filled together: handing over each by itself would take as long as filling it.
#[derive(Default)]
pub(super) struct Batch {
    files: Vec<Small>,
    content: Vec<u8>,
}

/// Files above this size are filled by the thread that reads the archive.
pub(super) const SMALL_FILE: u64 = limits::SMALL_FILE;
/// Files of a batch, which are open until then.
const FILES: usize = 16;

impl Batch {
    /// Adds a file. Returns the batch when it is full, and begins another one.
    pub fn add(
        &mut self,
        file: OwnedFd,
        name: &Name,
        content: &[u8],
        metadata: &EntryMetadata,
        mode: Option<u16>,
    ) -> Option<Self> {
        self.content.extend_from_slice(content);
        let (name, metadata) = (name.clone(), metadata.clone());
        self.files.push(Small { file, name, size: content.len(), metadata, mode });
        let is_full = self.files.len() >= FILES || self.content.len() >= limits::SMALL_FILE_BATCH;
        is_full.then(|| std::mem::take(self))
    }

    /// Gives the files their content and metadata.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::NoSpace`].
    pub fn fill(self) -> Result<(), Error> {
        let mut rest = self.content.as_slice();
        for Small { file, name, size, metadata, mode } in self.files {
            let (content, after) = rest.split_at_checked(size).unwrap_or((rest, &[]));
            rest = after;
            let name = name.as_bytes();
            let failed = |what| move |error: Errno| io(what, name)(error);
            let mut writer = Content::new(file.as_fd(), content.len() as u64);
            failpoint::fails("unpack.write").map_err(io("write", name))?;
            writer.write(content).map_err(failed("write"))?;
            writer.finish().map_err(failed("write"))?;
            file_metadata::set_owner(file.as_fd(), &metadata).map_err(failed("change owner of"))?;
            if let Some(mode) = mode {
                rustix::fs::fchmod(&file, file_metadata::mode(mode)).map_err(failed("change mode of"))?;
            }
            // Times come last: everything else changes them.
            file_metadata::set_times(file.as_fd(), &metadata).map_err(failed("touch"))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use super::*;

    #[test]
    fn files_get_what_is_theirs_when_the_batch_is_full() {
        let directory = tempfile::tempdir().expect("a directory");
        let metadata = |mtime| EntryMetadata { mtime, ..EntryMetadata::implied() };
        let content = |number: usize| vec![number as u8; number * 100];
        let mut batch = Batch::default();
        let mut full = None;
        for number in 0..FILES {
            assert!(full.is_none(), "{number}");
            let file = std::fs::File::create_new(directory.path().join(number.to_string())).expect("a file");
            let name = Name::parse(number.to_string().as_bytes()).expect("a name");
            let mode = (number == 3).then_some(0o640);
            full = batch.add(file.into(), &name, &content(number), &metadata(1000 + number as i64), mode);
        }
        full.expect("full").fill().expect("filled");
        for number in 0..FILES {
            let path = directory.path().join(number.to_string());
            assert_eq!(std::fs::read(&path).expect("read"), content(number));
            let found = path.metadata().expect("metadata");
            assert_eq!(found.mtime(), 1000 + number as i64);
            assert_eq!(found.mode() & 0o777 == 0o640, number == 3);
        }
        // Also by bytes, and what is left over is a batch as well.
        let file = std::fs::File::create_new(directory.path().join("large")).expect("a file");
        let name = Name::parse(b"large").expect("a name");
        let large = vec![7; limits::SMALL_FILE_BATCH];
        assert!(batch.add(file.into(), &name, &large, &metadata(0), None).is_some());
        assert!(batch.fill().is_ok(), "nothing is left");
    }
}
