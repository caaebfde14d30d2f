//! A disk that is held to a rate, as those of clouds are, with a cgroup: version 1 or 2.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// Until it is dropped, processes read so many bytes a second of a disk, and the kernel writes no more to it.
pub struct HeldDisk {
    group: PathBuf,
    parent: PathBuf,
    processes: Vec<u32>,
    device: String,
    is_first: bool,
}

/// Version 1 writes back what processes have written in the name of the first group, whoever they were.
const WRITES: &str = "blkio.throttle.write_bps_device";

impl HeldDisk {
    /// The disk of `place`, at `rate` bytes a second, for `processes` and what they start. Needs root.
    pub fn hold(place: &Path, rate: u64, processes: &[u32]) -> Self {
        let device = device_of(place);
        let first = Path::new("/sys/fs/cgroup/blkio");
        let is_first = first.exists();
        let parent = if is_first { first } else { Path::new("/sys/fs/cgroup") }.to_owned();
        let group = parent.join(format!("ocivol-bench-{}", std::process::id()));
        fs::create_dir(&group).expect("a cgroup");
        let held = Self { group, parent, processes: processes.to_vec(), device, is_first };
        if is_first {
            held.limit(&held.group, "blkio.throttle.read_bps_device", rate);
            held.limit(&held.group, WRITES, rate);
            held.limit(&held.parent, WRITES, rate);
        } else {
            let limits = format!("{} rbps={rate} wbps={rate}", held.device);
            fs::write(held.group.join("io.max"), limits).expect("held");
        }
        held.move_to(&held.group);
        held
    }

    fn limit(&self, group: &Path, what: &str, rate: u64) {
        fs::write(group.join(what), format!("{} {rate}", self.device)).expect("held");
    }

    fn move_to(&self, group: &Path) {
        for process in &self.processes {
            fs::write(group.join("cgroup.procs"), process.to_string()).expect("moved");
        }
    }
}

impl Drop for HeldDisk {
    fn drop(&mut self) {
        if self.is_first {
            self.limit(&self.parent, WRITES, 0); // No limit.
        }
        self.move_to(&self.parent);
        fs::remove_dir(&self.group).expect("empty");
    }
}

/// The numbers of the disk that `place` is on.
pub fn device_of(place: &Path) -> String {
    let device = fs::metadata(place).expect("a directory").dev();
    format!("{}:{}", rustix::fs::major(device), rustix::fs::minor(device))
}
