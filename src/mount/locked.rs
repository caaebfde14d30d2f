//! The store, mounted where nobody sees it, with flags that no container can take away.
//!
//! A container runtime binds a volume's target once more for the container, and sets that mount's flags as the pod's
//! author asked: for a volume without `readOnly: true` containerd asks runc for `rw`, and runc 1.2 and later then clears
//! `ro`, `nosuid`, `nodev` and `noexec` (opencontainers/runc#4824). The files below are shared by all pods, so the kernel
//! itself has to refuse. It does so for mounts that were copied into a mount namespace of another user namespace: every
//! flag that was set at that moment is locked on the copy and on all copies of it (`man 7 mount_namespaces`,
//! "Restrictions on mount namespaces"; `lock_mnt_tree` in fs/namespace.c).
//!
//! So once, for the whole store: a thread takes a mount namespace of its own that holds nothing but the store, mounted
//! with the wanted flags; a child copies that namespace into a new user namespace, which locks the flags, clones the mount
//! there, and hands the clone back, which is mounted in the thread's namespace. Clones of parts of it, the volumes, are
//! locked as well. The namespace lives as long as this process, through descriptors: nothing is left behind by a kill,
//! no path of the node shows it, and it holds no mount of anybody else.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::Path;

use nix::sched::{CloneFlags, setns, unshare};
use rustix::fs::{AtFlags, CWD, Mode, OFlags, ResolveFlags, StatxFlags};
use rustix::mount::{
    MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, mount_change, move_mount, open_tree,
    unmount,
};

use crate::host::sys;
use crate::host::sys::MountAttributes;

/// Which flags of a volume's mount no container can clear.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Lock {
    /// All: `ro`, `nosuid`, `nodev`, and `noexec` where it is set.
    #[default]
    All,
    /// `ro` alone, for nodes whose runc is older than 1.2: it asks for `ro` and nothing else when it binds the volume,
    /// which the kernel takes for an attempt to clear the others.
    ReadOnly,
}

/// The store's directory, mounted in a mount namespace of its own. Clones of what is in it have locked flags.
#[derive(Debug)]
pub struct LockedStore {
    namespace: OwnedFd,
    executable: OwnedFd,
    not_executable: OwnedFd,
}

const DIRECTORY: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);
const CLONE: OpenTreeFlags = OpenTreeFlags::OPEN_TREE_CLONE.union(OpenTreeFlags::OPEN_TREE_CLOEXEC);
const READ_ONLY: u64 = libc::MOUNT_ATTR_RDONLY;

impl LockedStore {
    /// Mounts the store at `root` with locked flags.
    ///
    /// # Errors
    /// The kernel's: where user namespaces are forbidden (`user.max_user_namespaces`, or a security module), where the
    /// caller may not mount, and before Linux 5.12.
    pub fn open(root: &Path, lock: Lock) -> io::Result<Self> {
        on_a_thread(|| Self::build(root, lock))
    }

    fn build(root: &Path, lock: Lock) -> io::Result<Self> {
        unshare(CloneFlags::CLONE_NEWNS)?;
        let namespace = rustix::fs::openat(
            CWD,
            "/proc/thread-self/ns/mnt",
            OFlags::RDONLY | OFlags::CLOEXEC,
            Mode::empty(),
        )?;
        let directory = rustix::fs::openat(CWD, root, DIRECTORY, Mode::empty())?;
        // The caller's root directory may be a chroot, in which the kernel makes no user namespace. Entering a namespace
        // leads to that namespace's own root.
        setns(&namespace, CloneFlags::CLONE_NEWNS)?;
        // From the very root: whatever were still shared, and is detached below, would be detached on the node.
        mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
        let clone = clone(directory.as_fd())?;
        let attributes = |set| MountAttributes { set, propagation: libc::MS_PRIVATE, user_namespace: None };
        let set = match lock {
            Lock::All => READ_ONLY | libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV,
            Lock::ReadOnly => READ_ONLY,
        };
        sys::mount_setattr(clone.as_fd(), &attributes(set))?;
        attach(&clone, &directory)?;
        become_root(&clone)?;
        let executable = sys::clone_of_root_in_a_user_namespace()?;
        if lock == Lock::All {
            sys::mount_setattr(clone.as_fd(), &attributes(libc::MOUNT_ATTR_NOEXEC))?;
        }
        let not_executable = sys::clone_of_root_in_a_user_namespace()?;
        // Before Linux 6.15 only what is mounted in the caller's namespace can be cloned.
        attach(&executable, &clone)?;
        attach(&not_executable, &clone)?;
        Ok(Self { namespace, executable, not_executable })
    }

    /// A mount of the directory `path`, relative to the store, that is attached nowhere yet. With [`Lock::ReadOnly`] only
    /// `ro` is set.
    ///
    /// # Errors
    /// The kernel's. `path` is not followed through symbolic links.
    pub fn mount_of(&self, path: &Path, executable: bool) -> io::Result<OwnedFd> {
        let root = if executable { &self.executable } else { &self.not_executable };
        on_a_thread(|| {
            unshare(CloneFlags::CLONE_FS)?;
            setns(&self.namespace, CloneFlags::CLONE_NEWNS)?;
            let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
            let directory = rustix::fs::openat2(root, path, DIRECTORY, Mode::empty(), resolve)?;
            Ok(clone(directory.as_fd())?)
        })
    }
}

/// Which directory a descriptor refers to, whatever its path.
pub(super) fn identity(directory: BorrowedFd<'_>) -> rustix::io::Result<(u64, u64)> {
    let found = rustix::fs::statx(directory, "", AtFlags::EMPTY_PATH, StatxFlags::INO)?;
    let device = rustix::fs::makedev(found.stx_dev_major, found.stx_dev_minor);
    Ok((device, found.stx_ino))
}

fn clone(directory: BorrowedFd<'_>) -> rustix::io::Result<OwnedFd> {
    open_tree(directory, c"", CLONE | OpenTreeFlags::AT_EMPTY_PATH)
}

fn attach(mount: &OwnedFd, directory: &OwnedFd) -> rustix::io::Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(mount, c"", directory, c"", flags)
}

/// Makes `mount` the root of this thread's mount namespace, and detaches all that was there before: other people's mounts
/// must not be kept busy here.
fn become_root(mount: &OwnedFd) -> rustix::io::Result<()> {
    let old = rustix::fs::openat(CWD, "/", DIRECTORY, Mode::empty())?;
    rustix::process::fchdir(mount)?;
    // Puts the old root on top of the new one; `man 2 pivot_root`, "pivot_root(".", ".")".
    rustix::process::pivot_root(".", ".")?;
    rustix::process::fchdir(old)?;
    unmount(".", UnmountFlags::DETACH)?;
    rustix::process::chdir("/")
}

/// Runs `work` on a thread that ends with it: what it does to its namespaces and its root is nobody else's.
fn on_a_thread<T: Send>(work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("mounts".into()).spawn_scoped(scope, work)?;
        thread.join().unwrap_or_else(|_| Err(io::Error::other("the thread that mounts panicked")))
    })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use nix::mount::{MsFlags, mount};

    use super::*;

    const NONE: Option<&str> = None;

    #[test]
    fn nothing_is_unmounted_anywhere_else_not_even_from_a_chroot() {
        unshare(CloneFlags::CLONE_NEWNS).expect("mount tests need root: run them with sudo");
        mount(NONE, "/", NONE, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NONE).expect("private mounts");
        let directory = tempfile::tempdir().expect("a directory");
        let base = directory.path().canonicalize().expect("a path");
        // The node: its mounts are shared, and one lies outside of the root directory that the caller has.
        for name in ["node", "root"] {
            fs::create_dir(base.join(name)).expect("a directory");
            let options = Some("size=1m");
            mount(Some("tmpfs"), &base.join(name), Some("tmpfs"), MsFlags::empty(), options)
                .expect("mounted");
        }
        mount(NONE, "/", NONE, MsFlags::MS_REC | MsFlags::MS_SHARED, NONE).expect("shared mounts");
        let before = fs::read_to_string("/proc/thread-self/mountinfo").expect("mounts");
        for name in ["proc", "store"] {
            fs::create_dir(base.join("root").join(name)).expect("a directory");
        }
        fs::write(base.join("root/store/file"), "content").expect("a file");
        let root = base.join("root");
        let opened = on_a_thread(|| {
            unshare(CloneFlags::CLONE_NEWNS)?;
            mount(Some("/proc"), &root.join("proc"), NONE, MsFlags::MS_BIND | MsFlags::MS_REC, NONE)?;
            std::os::unix::fs::chroot(&root)?;
            LockedStore::open(Path::new("/store"), Lock::All)
        });
        let store = opened.expect("opened in a chroot");
        // The bind above spread to here, as it does on a node; take it away again.
        nix::mount::umount2(&base.join("root/proc"), nix::mount::MntFlags::MNT_DETACH).expect("unmounted");
        let after = fs::read_to_string("/proc/thread-self/mountinfo").expect("mounts");
        assert_eq!(before, after);
        store.mount_of(Path::new("."), false).expect("a volume");
        for name in ["node", "root"] {
            nix::mount::umount2(&base.join(name), nix::mount::MntFlags::MNT_DETACH).expect("unmounted");
        }
    }
}
