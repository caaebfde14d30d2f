//! File systems for a store, on loop devices, and what a power cut leaves of them.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::{Node, eventually};

/// The file systems that the store is made for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileSystem {
    Ext4,
    Xfs,
    Btrfs,
}

/// A file system that is mounted as the store of a node. It goes with the test's mount namespace, and its loop device
/// with it.
pub struct Disk {
    kind: FileSystem,
    image: PathBuf,
    place: PathBuf,
    /// How often its power was cut.
    cuts: u32,
    /// The image that was in use until then.
    before: Option<PathBuf>,
}

/// FS_IOC_SHUTDOWN, which is XFS_IOC_GOINGDOWN, and flushes the log before: what was logged is there, and data that
/// nobody has waited for is not. Source: linux/fs.h.
const SHUT_DOWN: &str = "fcntl.ioctl(disk, 0x8004587d, struct.pack('I', 1))";
/// The same with FSOP_GOING_FLAGS_NOLOGFLUSH: what was logged in memory alone is gone as well.
const SHUT_DOWN_WITHOUT_LOG: &str = "fcntl.ioctl(disk, 0x8004587d, struct.pack('I', 2))";
/// BTRFS_IOC_START_SYNC and BTRFS_IOC_WAIT_SYNC: the transaction is committed, as every thirty seconds; data that nobody
/// has waited for is not part of it. Source: linux/btrfs.h.
const COMMIT: &str = "transaction = bytearray(8)\n\
    fcntl.ioctl(disk, 0x80089418, transaction)\n\
    fcntl.ioctl(disk, 0x40089416, bytes(transaction))";

/// Runs a program of the system; fails the test when it fails.
fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output();
    let output =
        output.unwrap_or_else(|error| panic!("{program} cannot be started: {error}; run `make test`"));
    assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

impl Disk {
    /// Makes a file system of this many MiB, and mounts it as the store of `node`, whose plugin does not run.
    pub fn for_store(node: &Node, kind: FileSystem, mib: u64) -> Self {
        let disk = Self {
            kind,
            image: node.directory.path().join("disk"),
            place: node.root.clone(),
            cuts: 0,
            before: None,
        };
        let file = File::create(&disk.image).and_then(|file| file.set_len(mib << 20));
        file.expect("a sparse file");
        let image = disk.image.display().to_string();
        match kind {
            FileSystem::Ext4 => run("mkfs.ext4", &["-q", &image]),
            FileSystem::Xfs => run("mkfs.xfs", &["-q", &image]),
            FileSystem::Btrfs => run("mkfs.btrfs", &["-q", &image]),
        };
        disk.mount();
        disk
    }

    fn mount(&self) {
        let (image, place) = (self.image.display().to_string(), self.place.display().to_string());
        run("mount", &["-o", "loop", &image, &place]);
    }

    /// Waits until all that was written is on the disk.
    pub fn sync(&self) {
        let directory = File::open(&self.place).expect("the store's directory");
        rustix::fs::syncfs(directory).expect("on the disk");
    }

    /// Bytes of the whole, and bytes that are free for anybody.
    pub fn space(&self) -> (u64, u64) {
        let found = rustix::fs::statvfs(&self.place).expect("a disk");
        (found.f_blocks * found.f_frsize, found.f_bavail * found.f_frsize)
    }

    /// The power is cut: of what is not on the disk nothing comes there any more. The mount is of no use afterwards.
    pub fn cut_power(&mut self) {
        self.cut_power_with(true);
    }

    /// The same, with what the file system has noted so far on its way to the disk, or without.
    pub fn cut_power_with(&mut self, log: bool) {
        match (self.kind, log) {
            (FileSystem::Ext4 | FileSystem::Xfs, true) => self.control(SHUT_DOWN),
            (FileSystem::Ext4 | FileSystem::Xfs, false) => self.control(SHUT_DOWN_WITHOUT_LOG),
            (FileSystem::Btrfs, log) => {
                if log {
                    self.control(COMMIT);
                }
                self.cuts += 1;
                let copy = self.image.with_file_name(format!("disk-{}", self.cuts));
                let (from, to) = (self.image.display().to_string(), copy.display().to_string());
                run("cp", &["--reflink=never", "--sparse=always", &from, &to]);
                self.before = Some(std::mem::replace(&mut self.image, copy));
            }
        }
    }

    fn control(&self, what: &str) {
        let script =
            format!("import fcntl, os, struct, sys\ndisk = os.open(sys.argv[1], os.O_RDONLY)\n{what}");
        run("python3", &["-c", &script, &self.place.display().to_string()]);
    }

    /// Unmounts it, and mounts what the power cut left. Nobody has anything of it any more.
    pub async fn mount_again(&mut self) {
        let before = self.loop_devices();
        run("umount", &[&self.place.display().to_string()]);
        // It is gone when its device is.
        eventually("the file system is gone", || {
            let now = self.loop_devices();
            !before.iter().any(|device| now.contains(device))
        })
        .await;
        self.mount();
        if let Some(before) = self.before.take() {
            std::fs::remove_file(before).expect("removed");
        }
    }

    /// Loop devices of the files in this disk's directory.
    fn loop_devices(&self) -> Vec<String> {
        let directory = self.image.parent().map(Path::display).expect("a directory").to_string();
        let all = run("losetup", &["--list", "--noheadings", "--output", "NAME,BACK-FILE"]);
        all.lines().filter(|line| line.contains(&directory)).map(str::to_owned).collect()
    }
}
