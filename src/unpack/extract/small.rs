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
    /// Bytes of their names.
    names: usize,
}

/// Files above this size are filled by the thread that reads the archive.
pub(super) const SMALL_FILE: u64 = limits::SMALL_FILE as u64;
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
        if self.content.capacity() == 0 {
            self.content.reserve_exact(limits::SMALL_FILE_BATCH + limits::SMALL_FILE);
            self.files.reserve_exact(FILES);
        }
        self.content.extend_from_slice(content);
        self.names += name.as_bytes().len();
        let (name, metadata) = (name.clone(), metadata.clone());
        self.files.push(Small { file, name, size: content.len(), metadata, mode });
        let is_full =
            self.files.len() >= FILES || self.content.len() + self.names >= limits::SMALL_FILE_BATCH;
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
            failpoint::fails("unpack.write").map_err(io("write", name))?;
            Content::write_whole(file.as_fd(), content).map_err(failed("write"))?;
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
    use std::path::{Path, PathBuf};

    use super::*;
    use crate::host::crew::Pool;
    use crate::layer::format::{INDEX, Profile, SHADOWED};
    use crate::unpack::directory_memory::DirectoryMemory;
    use crate::unpack::extract::{Extract, Limits};
    use crate::unpack::space::Space;

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
        // Also by bytes, of their names as well, and what is left over is a batch as well.
        let made = |name: &str| std::fs::File::create_new(directory.path().join(name)).expect("a file");
        let name = Name::parse(b"large").expect("a name");
        let large = vec![7; limits::SMALL_FILE_BATCH];
        assert!(batch.add(made("large").into(), &name, &large, &metadata(0), None).is_some());
        let long = Name::parse(format!("{}/", "x".repeat(249)).repeat(12).as_bytes()).expect("a name");
        for number in 0..limits::SMALL_FILE_BATCH / 3000 {
            let file = made(&format!("long-{number}"));
            assert!(batch.add(file.into(), &long, b"", &metadata(0), None).is_none(), "{number}");
        }
        assert!(batch.add(made("long").into(), &long, b"", &metadata(0), None).is_some());
        assert!(batch.files.is_empty() && batch.fill().is_ok(), "nothing is left");
    }

    #[test]
    fn a_file_that_cannot_be_filled_is_named() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("x");
        std::fs::write(&path, "").expect("a file");
        let file = std::fs::File::open(&path).expect("only for reading");
        let mut batch = Batch::default();
        let name = Name::parse(b"etc/x").expect("a name");
        assert!(batch.add(file.into(), &name, b"content", &EntryMetadata::implied(), None).is_none());
        let error = batch.fill().expect_err("it is not for writing").to_string();
        assert!(error.contains("etc/x"), "{error}");
    }

    /// Small files, larger ones, hard links, and names that are there twice.
    fn layer() -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        let mut add = |kind: tar::EntryType, name: &str, content: &[u8], link: &str| {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(kind);
            header.set_mode(0o640);
            header.set_mtime(1_700_000_000);
            header.set_size(content.len() as u64);
            match link {
                "" => builder.append_data(&mut header, name, content),
                link => builder.append_link(&mut header, name, link),
            }
            .expect("added");
        };
        for number in 0..100_usize {
            let content = vec![number as u8; number * 37];
            add(tar::EntryType::Regular, &format!("d{}/{number}", number % 7), &content, "");
            if number % 10 == 3 {
                add(tar::EntryType::Regular, &format!("large/{number}"), &vec![1; 20_000 + number], "");
                add(
                    tar::EntryType::Link,
                    &format!("linked/{number}"),
                    b"",
                    &format!("d{}/{number}", number % 7),
                );
                add(tar::EntryType::Regular, &format!("d{}/{number}", number % 7), b"again", "");
            }
        }
        builder.into_inner().expect("an archive")
    }

    /// All files below a directory: their paths, content, links, modes and times.
    fn files(directory: &Path) -> Vec<(PathBuf, Vec<u8>, u64, u32, i64)> {
        let mut found = Vec::new();
        for entry in std::fs::read_dir(directory).expect("a directory") {
            let path = entry.expect("an entry").path();
            match path.is_dir() {
                true => found.extend(files(&path)),
                false => {
                    let about = path.metadata().expect("metadata");
                    let content = std::fs::read(&path).expect("read");
                    found.push((path, content, about.nlink(), about.mode() & 0o777, about.mtime()));
                }
            }
        }
        found.sort();
        found
    }

    #[test]
    fn a_layer_is_the_same_whoever_fills_its_files() {
        let archive = layer();
        let unpacked = [0, 1].map(|helpers| {
            let directory = tempfile::tempdir().expect("a directory");
            let limits =
                Limits { bytes: u64::MAX, space: Space::asking(|_| true), directories: DirectoryMemory::Own };
            let extract = Extract::new(directory.path(), Profile::Image, limits).expect("prepared");
            let summary = extract.run_with(Pool::of(helpers), archive.as_slice()).expect("unpacked");
            let mut all = files(directory.path());
            for (path, ..) in &mut all {
                *path = path.strip_prefix(directory.path()).expect("below it").to_owned();
            }
            all.retain(|(path, ..)| path != Path::new(INDEX));
            (summary, all)
        });
        let [(alone, one), (helped, two)] = unpacked;
        assert_eq!((alone, &one), (helped, &two));
        assert_eq!(one.len(), 100 + 3 * 10);
        let (_, content, links, mode, mtime) =
            one.iter().find(|(path, ..)| path == Path::new("fs/linked/13")).expect("linked");
        assert_eq!((content, *links, *mode, *mtime), (&vec![13; 13 * 37], 2, 0o640, 1_700_000_000));
        let shadowed = one.iter().filter(|(path, ..)| path.starts_with(SHADOWED));
        assert_eq!(shadowed.filter(|(_, content, ..)| content == b"again").count(), 10);
    }
}
