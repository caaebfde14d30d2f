//! Tries every way to change what a directory holds, and says what came of each: `NAME done` or `NAME <error>`.
//!
//! usage: `attempts DIRECTORY [FILE]`, with that file in it, else `config.json`. Ends with 1 when something was changed.
#![allow(clippy::print_stdout)]

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::os::unix::fs::{PermissionsExt as _, chown, symlink};
use std::path::Path;
use std::process::ExitCode;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use rustix::fs::{AtFlags, CWD, Mode, OFlags, XattrFlags};
use rustix::mount::{FsPickFlags, OpenTreeFlags};

const NONE: Option<&str> = None;

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let directory = arguments.next().expect("usage: attempts DIRECTORY [FILE]");
    let directory = Path::new(&directory);
    let file = directory.join(arguments.next().as_deref().unwrap_or("config.json"));
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    for line in table.lines().filter(|line| line.split(' ').nth(4) == directory.to_str()) {
        println!("mount {}", line.split(' ').nth(5).unwrap_or_default());
    }
    let mut changed = false;
    for (name, attempt) in attempts() {
        restore(directory, &file);
        let result = attempt(directory, &file);
        changed |= result.is_ok();
        match result {
            Ok(()) => println!("{name} done"),
            Err(error) => println!("{name} {error}"),
        }
    }
    println!("attempts {}", attempts().len());
    ExitCode::from(u8::from(changed))
}

/// Where it can be written, undoes what an attempt did: each is to find what the first one found.
fn restore(directory: &Path, file: &Path) {
    for name in ["new", "other.json", "null"] {
        let _ = std::fs::remove_file(directory.join(name));
    }
    let _ = std::fs::remove_dir(directory.join("new-directory"));
    if !file.exists() {
        let _ = std::fs::write(file, "content");
    }
}

type Attempt = fn(&Path, &Path) -> io::Result<()>;

fn attempts() -> Vec<(&'static str, Attempt)> {
    vec![
        ("open for write", |_, file| write(file)),
        ("open for append", |_, file| OpenOptions::new().append(true).open(file)?.write_all(b"x")),
        ("open and truncate", |_, file| OpenOptions::new().write(true).truncate(true).open(file).map(drop)),
        ("open again through /proc", |_, file| {
            let open = File::open(file)?;
            write(Path::new(&format!("/proc/self/fd/{}", open.as_raw_fd())))
        }),
        ("truncate", |_, file| {
            let file = rustix::fs::openat(CWD, file, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
            Ok(rustix::fs::ftruncate(file, 0)?)
        }),
        ("create", |directory, _| File::create_new(directory.join("new")).map(drop)),
        ("unnamed file", |directory, _| {
            let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
            Ok(rustix::fs::openat(CWD, directory, flags, Mode::RUSR).map(drop)?)
        }),
        ("create a directory", |directory, _| std::fs::create_dir(directory.join("new-directory"))),
        ("create a device", |directory, _| {
            let kind = rustix::fs::FileType::CharacterDevice;
            let path = directory.join("null");
            Ok(rustix::fs::mknodat(CWD, path, kind, Mode::RUSR, rustix::fs::makedev(1, 3))?)
        }),
        ("remove", |_, file| std::fs::remove_file(file)),
        ("rename", |directory, file| std::fs::rename(file, directory.join("other.json"))),
        ("link", |directory, file| std::fs::hard_link(file, directory.join("other.json"))),
        ("symlink", |directory, _| symlink("config.json", directory.join("other.json"))),
        ("chmod", |_, file| std::fs::set_permissions(file, std::fs::Permissions::from_mode(0o777))),
        ("chmod of the directory", |directory, _| {
            std::fs::set_permissions(directory, std::fs::Permissions::from_mode(0o777))
        }),
        ("chown", |_, file| chown(file, Some(1), Some(1))),
        ("utimes", |_, file| {
            let times = rustix::fs::Timestamps {
                last_access: rustix::fs::Timespec { tv_sec: 1, tv_nsec: 0 },
                last_modification: rustix::fs::Timespec { tv_sec: 1, tv_nsec: 0 },
            };
            Ok(rustix::fs::utimensat(CWD, file, &times, AtFlags::empty())?)
        }),
        ("setxattr", |_, file| Ok(rustix::fs::setxattr(file, "user.x", b"x", XattrFlags::empty())?)),
        ("inode flags", |_, file| {
            let file = File::open(file)?;
            Ok(rustix::fs::ioctl_setflags(&file, rustix::fs::IFlags::NOATIME)?)
        }),
        ("remount,rw", |directory, file| {
            remount(directory, MsFlags::MS_REMOUNT)?;
            write(file)
        }),
        ("remount,bind,rw", |directory, file| {
            remount(directory, MsFlags::MS_REMOUNT | MsFlags::MS_BIND)?;
            write(file)
        }),
        ("bind elsewhere and remount,rw", |directory, file| {
            let other = Path::new("/tmp/bound");
            std::fs::create_dir_all(other)?;
            mount(Some(directory), other, NONE, MsFlags::MS_BIND, NONE)?;
            remount(other, MsFlags::MS_REMOUNT | MsFlags::MS_BIND)?;
            write(&other.join(file.file_name().unwrap_or_default()))
        }),
        ("clone and write", |directory, file| {
            let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
            let clone = rustix::mount::open_tree(CWD, directory, flags)?;
            let place = Path::new("/tmp/cloned");
            std::fs::create_dir_all(place)?;
            let from = rustix::mount::MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
            rustix::mount::move_mount(clone.as_fd(), "", CWD, place, from)?;
            remount(place, MsFlags::MS_REMOUNT | MsFlags::MS_BIND)?;
            write(&place.join(file.file_name().unwrap_or_default()))
        }),
        ("reconfigure the file system", |directory, file| {
            let context = rustix::mount::fspick(CWD, directory, FsPickFlags::FSPICK_CLOEXEC)?;
            rustix::mount::fsconfig_set_flag(&context, "rw")?;
            rustix::mount::fsconfig_reconfigure(&context)?;
            write(file)
        }),
        // Last: it leaves the namespace.
        ("remount,rw in another namespace", |directory, file| {
            unshare(CloneFlags::CLONE_NEWNS)?;
            mount(NONE, "/", NONE, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NONE)?;
            remount(directory, MsFlags::MS_REMOUNT | MsFlags::MS_BIND)?;
            write(file)
        }),
    ]
}

fn write(file: &Path) -> io::Result<()> {
    OpenOptions::new().write(true).open(file)?.write_all(b"changed")
}

fn remount(directory: &Path, flags: MsFlags) -> io::Result<()> {
    Ok(mount(NONE, directory, NONE, flags, NONE)?)
}
