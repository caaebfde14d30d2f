//! A disk that is held to a rate, as those of clouds are, with a cgroup: version 1 or 2.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// Until it is dropped, a disk reads and writes no more than so many bytes a second for some processes.
pub struct HeldDisk {
    /// Whose limits hold.
    group: PathBuf,
    /// Where the processes go afterwards; with version 1, nowhere.
    parent: Option<PathBuf>,
    processes: Vec<u32>,
    device: String,
}

/// Of version 1.
const LIMITS: [&str; 2] = ["blkio.throttle.read_bps_device", "blkio.throttle.write_bps_device"];

impl HeldDisk {
    /// The disk of `place`, at `rate` bytes a second, for `processes` and what they start. Needs root, and a file system on a whole
    /// disk, which a loop device is.
    ///
    /// With version 1 the root group is held, and the processes are put there. In its name the kernel writes back what processes of any group
    /// have written, and a process in another group writes in that one's name what it starts itself (`man 2 sync_file_range`): held in
    /// two groups, a disk is as fast as both limits together.
    pub fn hold(place: &Path, rate: u64, processes: &[u32]) -> Self {
        let device = device_of(place);
        let version_1 = Path::new("/sys/fs/cgroup/blkio");
        let (group, parent) = if version_1.exists() {
            (version_1.to_owned(), None)
        } else {
            let root = Path::new("/sys/fs/cgroup");
            let group = root.join(format!("ocivol-bench-{}", std::process::id()));
            fs::write(root.join("cgroup.subtree_control"), "+io").expect("the io controller; as root");
            fs::create_dir(&group).expect("a cgroup");
            (group, Some(root.to_owned()))
        };
        // From here on it is undone when it is dropped.
        let held = Self { group, parent, processes: processes.to_vec(), device };
        let limit = |file: &str, limit: &str| {
            held.limit(file, limit).unwrap_or_else(|error| {
                let path = held.group.join(file);
                panic!(
                    "{}: {} {limit}: {error}; run it as root, on a whole disk",
                    path.display(),
                    held.device
                )
            });
        };
        match &held.parent {
            None => LIMITS.iter().for_each(|file| limit(file, &rate.to_string())),
            Some(_) => limit("io.max", &format!("rbps={rate} wbps={rate}")),
        }
        held.move_to(&held.group).expect("in the group");
        held
    }

    fn limit(&self, file: &str, limit: &str) -> io::Result<()> {
        fs::write(self.group.join(file), format!("{} {limit}", self.device))
    }

    fn move_to(&self, group: &Path) -> io::Result<()> {
        let procs = group.join("cgroup.procs");
        self.processes.iter().try_for_each(|process| fs::write(&procs, process.to_string()))
    }
}

impl Drop for HeldDisk {
    /// As far as it goes: what it belongs to may have failed.
    fn drop(&mut self) {
        let undone = match &self.parent {
            None => LIMITS.iter().try_for_each(|file| self.limit(file, "0")),
            Some(parent) => self.move_to(parent).and_then(|()| fs::remove_dir(&self.group)),
        };
        if let Err(error) = undone {
            eprintln!("{}: {error}; a disk may still be held", self.group.display());
        }
    }
}

/// The numbers of the disk that `place` is on.
pub fn device_of(place: &Path) -> String {
    let device = fs::metadata(place).expect("a directory").dev();
    format!("{}:{}", rustix::fs::major(device), rustix::fs::minor(device))
}
