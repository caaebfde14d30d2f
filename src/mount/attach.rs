//! Attaching a tree to a target: read-only before anybody can see it.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fs::{AtFlags, CWD, Dir, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::MoveMountFlags;

use crate::host::sys::{MountAttributes, mount_setattr};
use crate::layout::tree_path::TreePath;
use crate::mount::error::{Error, kernel};
use crate::mount::inside::DIRECTORY;
use crate::mount::locked::{Lock, LockedStore, identity};
use crate::mount::target::Target;
use crate::mount::{inside, lookup, overlay};

/// Mounts trees of one store on targets.
#[derive(Debug)]
pub struct Mounter {
    /// The store.
    root: PathBuf,
    /// An empty directory in it.
    empty: PathBuf,
    lock: Lock,
    /// Made when it is first needed, and again when another directory has taken the store's path.
    locked: Mutex<Option<Arc<LockedStore>>>,
}

/// What is mounted.
#[derive(Debug, Clone, Copy)]
pub struct MountSource<'a> {
    /// A tree of the store.
    pub tree: &'a Path,
    /// Only this directory of it.
    pub path: Option<&'a TreePath>,
    /// Whether its files may be executed.
    pub exec: bool,
    /// Whether the container's runtime will be told that the volume is read-only. If not, it starts the container only
    /// when it can clear the mount's flags, so that these cannot be what protects the content.
    pub asked_read_only: bool,
}

/// What [`Mounter::attach`] did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attached {
    /// Whether the target's directory was made for the mount.
    pub made_target: bool,
    /// The directory that is mounted, in the store.
    pub directory: PathBuf,
}

impl Mounter {
    /// For the store at `root`, in which `empty` is a directory that stays empty.
    pub fn new(root: &Path, empty: &Path, lock: Lock) -> Self {
        Self { root: root.to_owned(), empty: empty.to_owned(), lock, locked: Mutex::default() }
    }

    /// Whether flags of mounts can be locked on this machine: tries it with the empty directory. Where they cannot, every
    /// volume is an overlay.
    ///
    /// # Errors
    /// As [`LockedStore::open`].
    pub fn check(&self) -> io::Result<()> {
        let source = MountSource { tree: &self.empty, path: None, exec: false, asked_read_only: true };
        let directory = rustix::fs::openat(CWD, &self.empty, DIRECTORY, Mode::empty())?;
        self.locked_mount_of(&self.locked(None)?, source, &directory, Path::new("")).map(drop)
    }

    /// Mounts `source` on `target`, `ro,nosuid,nodev`, and `noexec` unless it may be executed.
    ///
    /// The target is made if it is not there. The mount gets its flags while it is attached nowhere (`man 2 open_tree`,
    /// `mount_setattr`, `fsmount`), then it is moved by descriptors: it is never writable, not for an instant. There is no
    /// other way for older kernels: a bind that is made read-only afterwards has by then spread, writable, to the host,
    /// where pods get it from. What a container can do to its own mount of the target, see [`locked`](crate::mount::locked) and
    /// `overlay`: never clear `ro`.
    ///
    /// *Caller:* holds the target's turn, and has seen in the mount table that nothing is mounted there.
    ///
    /// # Errors
    /// [`Error::BadTarget`], [`Error::NoSuchPath`], [`Error::OldKernel`], [`Error::Kernel`]. A target that was made here is
    /// removed again.
    pub fn attach(&self, source: MountSource<'_>, target: &Target) -> Result<Attached, Error> {
        let (directory, within) = open_source(source.tree, source.path)?;
        let parent = target
            .open_parent()?
            .ok_or_else(|| target.bad("the directory that should hold it does not exist"))?;
        let made = match rustix::fs::mkdirat(&parent, target.name(), Mode::from_raw_mode(0o750)) {
            Ok(()) => true,
            Err(Errno::EXIST) => false,
            Err(errno) => return Err(kernel("create", target.path())(errno)),
        };
        crate::host::failpoint::reached("publish.target_made");
        let result = open_target(&parent, target).and_then(|at| {
            let mount =
                self.mount_of(source, &directory, &within).map_err(|source| match source.raw_os_error() {
                    Some(libc::ENOSYS) => Error::OldKernel,
                    _ => {
                        Error::Kernel { action: "mount the tree for", path: target.path().to_owned(), source }
                    }
                })?;
            let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
            rustix::mount::move_mount(&mount, c"", &at, c"", flags).map_err(kernel("mount on", target.path()))
        });
        if result.is_err() && made {
            // Only an empty directory goes; the error that matters is the first one.
            let _ = rustix::fs::unlinkat(&parent, target.name(), AtFlags::REMOVEDIR);
        }
        result?;
        crate::host::failpoint::reached("publish.mounted");
        Ok(Attached { made_target: made, directory: source.tree.join(within) })
    }

    /// A read-only mount of `directory`, which is what `source` says and is `within` its tree, attached nowhere.
    ///
    /// An overlay only where locks cannot be had: an error that may pass is tried again, because an overlay is less.
    fn mount_of(&self, source: MountSource<'_>, directory: &OwnedFd, within: &Path) -> io::Result<OwnedFd> {
        if source.asked_read_only {
            match self.locked(None) {
                Ok(store) => return self.locked_mount_of(&store, source, directory, within),
                Err(error) if is_forbidden(&error) => {
                    tracing::warn!(%error, tree = %source.tree.display(), "flags cannot be locked: mounting an overlay");
                }
                Err(error) => return Err(error),
            }
        }
        let empty = rustix::fs::openat(CWD, &self.empty, DIRECTORY, Mode::empty())?;
        let place = lookup::locate_store(&source.tree.canonicalize()?).map_err(io::Error::other)?;
        let place =
            place.ok_or_else(|| io::Error::other("the store's file system is not in the mount table"))?;
        Ok(overlay::mount_of(directory, &place, &empty, source.exec)?)
    }

    fn locked_mount_of(
        &self,
        store: &Arc<LockedStore>,
        source: MountSource<'_>,
        directory: &OwnedFd,
        within: &Path,
    ) -> io::Result<OwnedFd> {
        let within = source.tree.strip_prefix(&self.root).map_err(io::Error::other)?.join(within);
        let wanted = identity(directory.as_fd())?;
        let from = |store: &LockedStore| {
            let mount = store.mount_of(&within, source.exec)?;
            let found = identity(mount.as_fd())?;
            if found == wanted { Ok(mount) } else { Err(Errno::STALE.into()) }
        };
        let mount = match from(store) {
            // Another directory is the store now, or lies over a part of it.
            Err(error) if matches!(Errno::from_io_error(&error), Some(Errno::NOENT | Errno::STALE)) => {
                from(&*self.locked(Some(store))?)?
            }
            mount => mount?,
        };
        let mut set = libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV;
        if !source.exec {
            set |= libc::MOUNT_ATTR_NOEXEC;
        }
        // Private: what happens to mounts of the store must not propagate into pods, nor back.
        let attributes = MountAttributes { set, propagation: libc::MS_PRIVATE, user_namespace: None };
        mount_setattr(mount.as_fd(), &attributes)?;
        Ok(mount)
    }

    /// The store with locked flags; a new one if it is still `stale`.
    fn locked(&self, stale: Option<&Arc<LockedStore>>) -> io::Result<Arc<LockedStore>> {
        let mut slot = self.locked.lock().unwrap_or_else(PoisonError::into_inner);
        match &*slot {
            Some(store) if !stale.is_some_and(|stale| Arc::ptr_eq(stale, store)) => Ok(Arc::clone(store)),
            _ => Ok(Arc::clone(slot.insert(Arc::new(LockedStore::open(&self.root, self.lock)?)))),
        }
    }
}

/// Whether the kernel, or who configured it, allows no user namespaces: `man 7 user_namespaces`, `man 2 clone`. `EINVAL` is
/// a kernel without them, or a root directory that cannot be changed; `ENOSPC` is `user.max_user_namespaces`.
fn is_forbidden(error: &io::Error) -> bool {
    let errno = Errno::from_io_error(error);
    matches!(errno, Some(Errno::PERM | Errno::ACCESS | Errno::INVAL | Errno::NOSPC | Errno::USERS))
}

/// The directory that is mounted, and where it is within the tree.
fn open_source(tree: &Path, path: Option<&TreePath>) -> Result<(OwnedFd, PathBuf), Error> {
    let root = rustix::fs::openat(CWD, tree, DIRECTORY, Mode::empty()).map_err(kernel("open", tree))?;
    let Some(path) = path else { return Ok((root, PathBuf::new())) };
    inside::open(&root, path).map_err(|reason| Error::NoSuchPath { path: path.to_string(), reason })
}

/// Opens the target itself: an empty directory.
fn open_target(parent: &OwnedFd, target: &Target) -> Result<OwnedFd, Error> {
    let directory =
        rustix::fs::openat(parent, target.name(), DIRECTORY, Mode::empty()).map_err(|errno| match errno {
            Errno::NOTDIR | Errno::LOOP => target.bad("it exists and is no directory"),
            other => kernel("open", target.path())(other),
        })?;
    let readable = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let listed = rustix::fs::openat(&directory, ".", readable, Mode::empty())
        .map_err(kernel("list", target.path()))?;
    for entry in Dir::new(listed).map_err(kernel("list", target.path()))? {
        let entry = entry.map_err(kernel("list", target.path()))?;
        if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
            return Err(target.bad("it is a directory that is not empty"));
        }
    }
    Ok(directory)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::mount::detach;
    use crate::mount::mountinfo::{Mount, Table};
    use crate::mount::target::Policy;

    /// Gives this thread a mount namespace of its own; what is mounted there ends with the thread.
    fn isolate() {
        use nix::mount::{MsFlags, mount};
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS)
            .expect("mount tests need root: run them with sudo, or as root in a container");
        let none: Option<&str> = None;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).expect("private mounts");
    }

    fn tree() -> tempfile::TempDir {
        let directory = tempfile::tempdir().expect("a directory");
        fs::create_dir_all(directory.path().join("tree/sub")).expect("a tree");
        fs::write(directory.path().join("tree/sub/file"), "content").expect("a file");
        directory
    }

    fn attach(base: &Path, path: Option<&TreePath>, target: &Target, exec: bool) -> Result<Attached, Error> {
        let source = MountSource { tree: &base.join("tree"), path, exec, asked_read_only: true };
        Mounter::new(base, &base.join("empty"), Lock::All).attach(source, target)
    }

    #[test]
    fn the_mount_has_its_flags() {
        isolate();
        let directory = tree();
        let policy = Policy { pods: None, roots: vec![directory.path().to_owned()] };
        for (number, exec) in [(0, false), (1, true)] {
            let path = directory.path().canonicalize().expect("a path").join(format!("target-{number}"));
            let target = policy.check(path.to_str().expect("text")).expect("allowed");
            let attached = attach(directory.path(), None, &target, exec).expect("mounted");
            assert!(attached.made_target);
            let table = Table::read().expect("a table");
            let mount = table.at(&path).expect("in the table");
            for flag in ["ro", "nosuid", "nodev"] {
                assert!(mount.has(flag), "{}", mount.options);
            }
            assert_eq!(mount.has("noexec"), !exec);
            assert!(!mount.shared);
            let error = fs::write(path.join("sub/file"), "x").expect_err("read-only");
            assert_eq!(error.raw_os_error(), Some(libc::EROFS));
            assert_eq!(fs::read(path.join("sub/file")).expect("content"), b"content");
            assert_eq!(detach::detach(&target, |_| true, true).expect("unmounted"), 1);
            assert!(!path.exists());
        }
    }

    #[test]
    fn t34_a_target_that_is_not_an_empty_directory_is_refused() {
        isolate();
        let directory = tree();
        let base = directory.path().canonicalize().expect("a path");
        let policy = Policy { pods: None, roots: vec![base.clone()] };
        fs::create_dir_all(base.join("full/inner")).expect("a directory");
        fs::write(base.join("file"), "x").expect("a file");
        std::os::unix::fs::symlink("tree", base.join("link")).expect("a link");
        for name in ["full", "file", "link", "link/sub", "file/x", "absent/x"] {
            let target = policy.check(base.join(name).to_str().expect("text")).expect("allowed");
            let error = attach(&base, None, &target, false).expect_err(name);
            assert!(matches!(error, Error::BadTarget { .. }), "{name}: {error}");
        }
        assert!(base.join("full/inner").exists() && base.join("file").exists());
        let table = Table::read().expect("a table");
        assert!(!table.iter().any(|mount| mount.mount_point.starts_with(&base)));
    }

    #[test]
    fn a_part_of_the_tree_is_mounted_and_must_exist() {
        isolate();
        let directory = tree();
        let base = directory.path().canonicalize().expect("a path");
        std::os::unix::fs::symlink("/etc", base.join("tree/link")).expect("a link");
        let policy = Policy { pods: None, roots: vec![base.clone()] };
        let target = policy.check(base.join("t").to_str().expect("text")).expect("allowed");
        for name in ["absent", "sub/file", "link"] {
            let path = TreePath::new(name).expect("safe");
            let error = attach(&base, Some(&path), &target, false).expect_err(name);
            assert!(matches!(error, Error::NoSuchPath { .. }), "{error}");
            assert!(!base.join("t").exists());
        }
        let path = TreePath::new("sub").expect("safe");
        attach(&base, Some(&path), &target, false).expect("mounted");
        assert!(base.join("t/file").exists());
        detach::detach(&target, |_| true, true).expect("unmounted");
    }

    /// Clears all flags of a mount as runc 1.2 and later does for `rw`.
    fn clear_flags(path: &Path) -> Result<(), nix::Error> {
        use nix::mount::{MsFlags, mount};
        let none: Option<&str> = None;
        mount(none, path, none, MsFlags::MS_REMOUNT | MsFlags::MS_BIND, none)
    }

    #[test]
    fn regression_t23_no_flag_of_a_volume_can_be_cleared_not_even_on_a_copy() {
        use nix::errno::Errno;
        use nix::mount::{MsFlags, mount};
        isolate();
        let none: Option<&str> = None;
        for (lock, kept) in [(Lock::All, &["ro", "nosuid", "nodev", "noexec"][..]), (Lock::ReadOnly, &["ro"])]
        {
            let directory = tree();
            let base = directory.path().canonicalize().expect("a path");
            let policy = Policy { pods: None, roots: vec![base.clone()] };
            let path = base.join("target");
            let target = policy.check(path.to_str().expect("text")).expect("allowed");
            let source =
                MountSource { tree: &base.join("tree"), path: None, exec: false, asked_read_only: true };
            Mounter::new(&base, &base.join("empty"), lock).attach(source, &target).expect("mounted");
            // As a container runtime binds it.
            let bound = base.join("bound");
            fs::create_dir(&bound).expect("a directory");
            mount(Some(&path), &bound, none, MsFlags::MS_BIND | MsFlags::MS_REC, none).expect("bound");
            for place in [&path, &bound] {
                assert_eq!(clear_flags(place), Err(Errno::EPERM), "{lock:?}");
                let read_only = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY;
                // What older runc does for a read-only volume: possible when the other flags are not locked.
                let result = mount(none, place, none, read_only, none);
                assert_eq!(result.is_ok(), lock == Lock::ReadOnly, "{result:?}");
                let table = Table::read().expect("a table");
                let mount = table.at(place).expect("mounted");
                assert!(kept.iter().all(|flag| mount.has(flag)), "{}", mount.options);
                let error = fs::write(place.join("sub/file"), "x").expect_err("read-only");
                assert_eq!(error.raw_os_error(), Some(libc::EROFS));
            }
            nix::mount::umount(&bound).expect("unmounted");
            detach::detach(&target, |_| true, true).expect("unmounted");
        }
    }

    #[test]
    fn regression_t23_a_volume_whose_flags_are_cleared_is_still_read_only() {
        use nix::mount::{MsFlags, mount};
        isolate();
        let directory = tempfile::tempdir().expect("a directory");
        let base = directory.path().canonicalize().expect("a path");
        let key = "ab".repeat(32);
        let tree = base.join("v1/trees").join(&key).join("fs");
        fs::create_dir_all(tree.join("sub:a,b")).expect("a tree");
        fs::create_dir(base.join("v1/empty")).expect("a directory");
        fs::write(tree.join("sub:a,b/file"), "content").expect("a file");
        let policy = Policy { pods: None, roots: vec![base.clone()] };
        let path = base.join("target");
        let target = policy.check(path.to_str().expect("text")).expect("allowed");
        let part = TreePath::new("sub:a,b").expect("safe");
        let source = MountSource { tree: &tree, path: Some(&part), exec: false, asked_read_only: false };
        let mounter = Mounter::new(&base, &base.join("v1/empty"), Lock::All);
        mounter.attach(source, &target).expect("mounted");
        let table = Table::read().expect("a table");
        let mounted = table.at(&path).expect("mounted");
        assert!(
            ["ro", "nosuid", "nodev", "noexec"].iter().all(|flag| mounted.has(flag)),
            "{}",
            mounted.options
        );
        assert!(!mounted.shared && mounted.is_overlay);
        // It is known as the store's without a record.
        let store = table.locate_store(&base).expect("a place");
        assert!(store.holds(mounted) && mounted.store_key() == Some(key.as_str()));
        assert!(!table.locate_store(&base.join("v1")).expect("a place").holds(mounted), "another store's");
        let bind = Mount { is_overlay: false, ..mounted.clone() };
        assert!(store.holds(&bind), "known by device and directory, as a bind is");
        clear_flags(&path).expect("the runtime can clear the flags");
        for flags in [MsFlags::empty(), MsFlags::MS_REMOUNT] {
            if !flags.is_empty() {
                let none: Option<&str> = None;
                let error = mount(none, &path, none, flags, none).expect_err("no writable file system");
                assert_eq!(error, nix::errno::Errno::EROFS);
            }
            let error = fs::write(path.join("file"), "x").expect_err("read-only");
            assert_eq!(error.raw_os_error(), Some(libc::EROFS));
        }
        assert_eq!(fs::read(path.join("file")).expect("content"), b"content");
        detach::detach(&target, |mount| store.holds(mount), true).expect("unmounted");
    }

    #[test]
    fn a_store_that_was_replaced_is_mounted_as_it_is_now() {
        isolate();
        let directory = tree();
        let base = directory.path().canonicalize().expect("a path");
        let policy = Policy { pods: None, roots: vec![base.clone()] };
        let target = policy.check(base.join("t").to_str().expect("text")).expect("allowed");
        let root = base.join("store");
        let mounter = Mounter::new(&root, &root.join("empty"), Lock::All);
        for content in ["first", "second"] {
            fs::create_dir_all(root.join("tree")).expect("a tree");
            fs::write(root.join("tree/file"), content).expect("a file");
            let source =
                MountSource { tree: &root.join("tree"), path: None, exec: false, asked_read_only: true };
            mounter.attach(source, &target).expect("mounted");
            assert_eq!(fs::read_to_string(base.join("t/file")).expect("a file"), content);
            detach::detach(&target, |mount| !mount.is_overlay, true).expect("unmounted");
            fs::rename(&root, base.join(content)).expect("moved away");
        }
    }
}
