//! Records: small JSON files that appear whole or not at all.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::store::Store;
use crate::store::error::{Error, io};

/// Bytes of a record: a tree of 4,096 files with long names fits many times.
const LIMIT: u64 = 64 * 1024 * 1024;

/// Reads a record. A record that is torn, foreign or too large counts as absent: no record, no entry.
pub(super) fn read<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, Error> {
    match fs::metadata(path) {
        Ok(found) if found.len() > LIMIT => return Ok(None),
        Ok(_) => {}
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io("read", path)(error)),
    }
    let bytes = fs::read(path).map_err(io("read", path))?;
    match serde_json::from_slice(&bytes) {
        Ok(record) => Ok(Some(record)),
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "ignoring an unreadable record");
            Ok(None)
        }
    }
}

impl Store {
    /// Writes a record: beside first, then in place by one rename.
    pub(super) fn write_record<T: Serialize>(&self, path: &Path, record: &T) -> Result<(), Error> {
        let temporary = self.temporary();
        let result = (|| {
            let mut file = fs::OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(&temporary)
                .map_err(io("create", &temporary))?;
            let bytes = serde_json::to_vec(record).map_err(|error| io("encode", path)(error.into()))?;
            file.write_all(&bytes).map_err(io("write", &temporary))?;
            crate::host::failpoint::reached("record.written");
            fs::rename(&temporary, path).map_err(io("write", path))
        })();
        if result.is_err() {
            let _ = fs::remove_file(&temporary); // It is in ingest/, where the next start removes it as well.
        }
        result
    }
}
