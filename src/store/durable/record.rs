//! Records: small JSON files that appear whole or not at all, and are never replaced.
//!
//! A file system may lose a file that takes another's name by `rename` when the power goes: XFS flushes the content of the new
//! one no sooner than any other. So a record is written once. What is learnt later is a [fact](crate::store::durable::facts),
//! and that an entry is durable is the [ledger's](crate::store::durable::ledger) to know.

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::host::failpoint;
use crate::store::disk::Disk;
use crate::store::error::{Error, io};

/// Bytes of a record: a tree of 4,096 files with long names fits many times.
const LIMIT: u64 = 64 * 1024 * 1024;

/// What every record says of its entry: when it came into being.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stamp {
    /// The boot ID of the kernel under which it was written.
    pub boot_id: String,
    /// Tells an entry from one of the same name that was there before: what is known of that one is not known of this one. 0
    /// in records of ocivol 0.1, which had none.
    #[serde(default)]
    pub generation: u64,
    /// Whether the record itself says that it is on the disk, as those of ocivol 0.1 do.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub durable: bool,
}

impl Stamp {
    /// The stamp of what is written now.
    pub(in crate::store) fn now(disk: &Disk) -> Self {
        // 0 is what records of before have.
        let generation = rand::random::<u64>().max(1);
        Self { boot_id: disk.boot_id.clone(), generation, durable: false }
    }
}

/// Reads a record. A record that is torn, foreign or too large counts as absent: no record, no entry.
pub(in crate::store) fn read<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, Error> {
    let file = match fs::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io("read", path)(error)),
    };
    let length = file.metadata().map_err(io("read", path))?.len();
    if length > LIMIT {
        return Ok(None);
    }
    let mut bytes = Vec::with_capacity(usize::try_from(length).unwrap_or_default());
    file.take(LIMIT).read_to_end(&mut bytes).map_err(io("read", path))?;
    match serde_json::from_slice(&bytes) {
        Ok(record) => Ok(Some(record)),
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "ignoring an unreadable record");
            Ok(None)
        }
    }
}

/// Writes a record, or a fact: beside first, then in place by one rename.
pub(in crate::store) fn write<T: Serialize>(disk: &Disk, path: &Path, record: &T) -> Result<(), Error> {
    let temporary = disk.temporary();
    let result = (|| {
        let mut file = fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&temporary)
            .map_err(io("create", &temporary))?;
        let bytes = serde_json::to_vec(record).map_err(|error| io("encode", path)(error.into()))?;
        failpoint::fails("record.write").map_err(io("write", &temporary))?;
        file.write_all(&bytes).map_err(io("write", &temporary))?;
        failpoint::reached("record.written");
        failpoint::fails("record.name").map_err(io("write", path))?;
        fs::rename(&temporary, path).map_err(io("write", path))
    })();
    if result.is_err() {
        let _ = fs::remove_file(&temporary); // It is in ingest/, where the next start removes it as well.
    }
    result
}
