//! Flags about the disk: how much of it may be taken, and by whom.

use crate::node::bad_flag::BadFlag;
use crate::store::space::budget::{Budget, Level};
use crate::store::space::quota::Quota;
use crate::volume::volumes::MIN_AGE;

/// Flags about the disk, as they were given.
#[derive(Debug, Clone)]
pub struct DiskFlags {
    /// `--gc-start`
    pub gc_start: String,
    /// `--gc-stop`
    pub gc_stop: String,
    /// `--keep-free`
    pub keep_free: String,
    /// `--keep-free-inodes`
    pub keep_free_inodes: String,
    /// `--gc-min-age`, seconds.
    pub gc_min_age: u64,
    /// `--quota-bytes`
    pub quota_bytes: Option<String>,
    /// `--quota-inodes`
    pub quota_inodes: Option<u64>,
    /// `--quota-trees`
    pub quota_trees: Option<u64>,
}

impl Default for DiskFlags {
    fn default() -> Self {
        let Budget { start, stop, keep_free, keep_free_inodes } = Budget::NODE;
        Self {
            gc_start: start.map_or_else(String::new, |start| start.to_string()),
            gc_stop: stop.to_string(),
            keep_free: keep_free.to_string(),
            keep_free_inodes: keep_free_inodes.to_string(),
            gc_min_age: MIN_AGE.as_secs(),
            quota_bytes: None,
            quota_inodes: None,
            quota_trees: None,
        }
    }
}

impl DiskFlags {
    /// What each namespace may bring in.
    ///
    /// # Errors
    /// [`BadFlag`] when the size is none.
    pub fn quota(&self) -> Result<Quota, BadFlag> {
        let bytes = |value: &String| match value.parse() {
            Ok(Level::Count(bytes)) => Ok(bytes),
            _ => Err(BadFlag {
                flag: "--quota-bytes",
                value: value.clone(),
                reason: "it is no number of bytes, as 40GiB".to_owned(),
            }),
        };
        let bytes = self.quota_bytes.as_ref().map(bytes).transpose()?;
        Ok(Quota { bytes, inodes: self.quota_inodes, trees: self.quota_trees })
    }

    /// Checks every flag.
    ///
    /// # Errors
    /// [`BadFlag`] names the first flag that cannot be used, and says why.
    pub fn check(self) -> Result<Budget, BadFlag> {
        let level = |flag, value: &str| {
            value.parse::<Level>().map_err(|error| BadFlag {
                flag,
                value: value.to_owned(),
                reason: error.to_string(),
            })
        };
        let (start, stop) = (level("--gc-start", &self.gc_start)?, level("--gc-stop", &self.gc_stop)?);
        let is_above = match (start, stop) {
            (Level::Percent(start), Level::Percent(stop)) => stop > start,
            (Level::Count(start), Level::Count(stop)) => stop > start,
            _ => false,
        };
        if is_above {
            let reason = format!("it must not be more than --gc-start, which is {start}");
            return Err(BadFlag { flag: "--gc-stop", value: self.gc_stop, reason });
        }
        Ok(Budget {
            start: Some(start),
            stop,
            keep_free: level("--keep-free", &self.keep_free)?,
            keep_free_inodes: level("--keep-free-inodes", &self.keep_free_inodes)?,
        })
    }
}
