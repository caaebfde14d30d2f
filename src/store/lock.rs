//! One process writes to a store: an advisory lock that the kernel releases with its holder.

use std::fs::{File, OpenOptions};
use std::io::{Read as _, Seek as _, Write as _};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::fs::{FlockOperation, flock};

use crate::store::error::{Error, io};

/// The lock, held until dropped.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

impl Lock {
    /// Takes the lock of the store at `root`, or says who has it.
    pub(in crate::store) fn take(root: &Path) -> Result<Self, Error> {
        let path = root.join("lock");
        let mut file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .mode(0o600)
            .open(&path)
            .map_err(io("open", &path))?;
        if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
            let mut holder = String::new();
            std::io::Read::by_ref(&mut file)
                .take(256)
                .read_to_string(&mut holder)
                .map_err(io("read", &path))?;
            return Err(Error::Locked { root: root.to_owned(), holder: holder.trim().to_owned() });
        }
        let host = rustix::system::uname();
        let line = format!("process {} on {}\n", std::process::id(), host.nodename().to_string_lossy());
        let written =
            file.set_len(0).and_then(|()| file.rewind()).and_then(|()| file.write_all(line.as_bytes()));
        if let Err(error) = written {
            // On a full disk as well: the lock is held, and only its holder's name is not told.
            tracing::warn!(%error, "cannot name the holder of the store's lock");
        }
        Ok(Self { _file: file })
    }
}
