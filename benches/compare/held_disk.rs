//! A disk that is held to a rate, as those of clouds are, with a cgroup: version 1 or 2.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// Until it is dropped, processes read so many bytes a second of a disk, and the kernel writes no more to it.
pub struct HeldDisk {
    group: PathBuf,
    parent: PathBuf,
    processes: Vec<u32>,
    device: String,
    is_version_1: bool,
}

const READS: &str = "blkio.throttle.read_bps_device";
/// Of the root group as well: in its name version 1 writes back what processes of any group have written.
const WRITES: &str = "blkio.throttle.write_bps_device";

impl HeldDisk {
    /// The disk of `place`, at `rate` bytes a second, for `processes` and what they start. Needs root, and a file system on a whole
    /// disk, which a loop device is.
    pub fn hold(place: &Path, rate: u64, processes: &[u32]) -> Self {
        let device = device_of(place);
        let version_1 = Path::new("/sys/fs/cgroup/blkio");
        let is_version_1 = version_1.exists();
        let parent = if is_version_1 { version_1 } else { Path::new("/sys/fs/cgroup") }.to_owned();
        let group = parent.join(format!("ocivol-bench-{}", std::process::id()));
        fs::create_dir(&group).unwrap_or_else(|error| panic!("{}: {error}; run it as root", group.display()));
        // From here on it is undone when it is dropped.
        let held = Self { group, parent, processes: processes.to_vec(), device, is_version_1 };
        if is_version_1 {
            for (group, what) in [(&held.group, READS), (&held.group, WRITES), (&held.parent, WRITES)] {
                held.set(group, what, &rate.to_string());
            }
        } else {
            let controllers = held.parent.join("cgroup.subtree_control");
            fs::write(controllers, "+io").expect("the io controller");
            held.set(&held.group, "io.max", &format!("rbps={rate} wbps={rate}"));
        }
        held.move_to(&held.group).expect("in the group");
        held
    }

    fn set(&self, group: &Path, what: &str, limit: &str) {
        let path = group.join(what);
        fs::write(&path, format!("{} {limit}", self.device)).unwrap_or_else(|error| {
            panic!("{}: device {}: {error}; the place has to be on a whole disk", path.display(), self.device)
        });
    }

    fn move_to(&self, group: &Path) -> io::Result<()> {
        let procs = group.join("cgroup.procs");
        self.processes.iter().try_for_each(|process| fs::write(&procs, process.to_string()))
    }
}

impl Drop for HeldDisk {
    /// As far as it goes: what it belongs to may have failed.
    fn drop(&mut self) {
        let free = match self.is_version_1 {
            true => fs::write(self.parent.join(WRITES), format!("{} 0", self.device)),
            false => Ok(()), // The limits go with the group.
        };
        let undone =
            free.and_then(|()| self.move_to(&self.parent)).and_then(|()| fs::remove_dir(&self.group));
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
