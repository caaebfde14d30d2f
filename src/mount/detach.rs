//! Detaching: unmount and remove the empty directory, nothing else.
//!
//! Deleting recursively below a target has cost others their data (CVE-2017-1002102, CVE-2026-3864): here only
//! `umount` and `rmdir` exist.

use std::path::Path;

use rustix::fs::AtFlags;
use rustix::io::Errno;
use rustix::mount::UnmountFlags;

use crate::mount::error::{Error, kernel};
use crate::mount::lookup;
use crate::mount::mountinfo::{Mount, Table};
use crate::mount::target::Target;

/// Mounts stacked on one target that are taken away in one call.
const STACK_LIMIT: usize = 64;
/// How often a mount that is in use is tried in one call. Whoever looks at its path uses it for some microseconds, kubelet and this
/// process among them.
const BUSY_TRIES: usize = 3;

/// Takes away every mount on `target` that is `ours`, then the directory if `and_directory`. Returns how many
/// mounts there were; none is success.
///
/// *Caller:* holds the target's turn.
///
/// # Errors
/// [`Error::NotOurs`] when a foreign mount is on top, [`Error::Busy`] while somebody uses the mount,
/// [`Error::NotEmpty`] when the directory holds something, [`Error::BadTarget`], [`Error::Kernel`].
pub fn detach(target: &Target, ours: impl Fn(&Mount) -> bool, and_directory: bool) -> Result<usize, Error> {
    let path = target.path();
    for unmounted in 0..STACK_LIMIT {
        let Some(mount) = lookup::at(path)? else {
            // Only the table knows of a mount that another one hides, by lying over a directory on the way. It could not be unmounted.
            if unmounted == 0 && Table::read()?.at(path).is_some_and(&ours) {
                let hidden =
                    std::io::Error::other("another mount, over a directory on the way to it, hides it");
                return Err(Error::Busy { path: path.to_owned(), source: hidden });
            }
            if and_directory {
                remove_directory(target)?;
            }
            return Ok(unmounted);
        };
        if !ours(&mount) {
            let what = format!("{} {}", mount.fs_type, mount.root.display());
            return Err(Error::NotOurs { path: path.to_owned(), what });
        }
        match unmount(path) {
            Ok(()) => crate::host::failpoint::reached("unpublish.unmounted"),
            // No longer a mount: somebody else was faster.
            Err(Errno::INVAL | Errno::NOENT) => {}
            Err(Errno::BUSY) => {
                return Err(Error::Busy { path: path.to_owned(), source: Errno::BUSY.into() });
            }
            Err(errno) => return Err(kernel("unmount", path)(errno)),
        }
    }
    Err(Error::Busy { path: path.to_owned(), source: std::io::Error::other("mounts keep appearing on it") })
}

fn unmount(path: &Path) -> Result<(), Errno> {
    let mut tries = 1..BUSY_TRIES;
    loop {
        match rustix::mount::unmount(path, UnmountFlags::NOFOLLOW) {
            Err(Errno::BUSY) if tries.next().is_some() => std::thread::yield_now(),
            result => return result,
        }
    }
}

fn remove_directory(target: &Target) -> Result<(), Error> {
    let Some(parent) = target.open_parent()? else { return Ok(()) };
    match rustix::fs::unlinkat(&parent, target.name(), AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(Errno::NOTEMPTY | Errno::EXIST) => Err(Error::NotEmpty { path: target.path().to_owned() }),
        Err(Errno::BUSY) => Err(Error::Busy { path: target.path().to_owned(), source: Errno::BUSY.into() }),
        Err(Errno::NOTDIR) => Err(target.bad("it exists and is no directory")),
        Err(errno) => Err(kernel("remove", target.path())(errno)),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use nix::mount::{MsFlags, mount, umount};

    use super::*;
    use crate::mount::target::Policy;

    #[test]
    fn regression_a_mount_that_another_one_hides_is_not_called_gone() {
        const NONE: Option<&str> = None;
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS)
            .expect("mount tests need root: run them with sudo, or as root in a container");
        mount(NONE, "/", NONE, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NONE).expect("private mounts");
        let directory = tempfile::tempdir().expect("a directory");
        let base = directory.path().canonicalize().expect("a path");
        for name in ["pods/target", "over/target"] {
            fs::create_dir_all(base.join(name)).expect("directories");
        }
        let bind = |to: &str| {
            mount(Some(&base.join("over")), &base.join(to), NONE, MsFlags::MS_BIND, NONE).expect("bound");
        };
        bind("pods/target");
        bind("pods");
        let path = base.join("pods/target");
        let target = Policy::anywhere().check(path.to_str().expect("text")).expect("a target");
        let hidden = detach(&target, |_| true, true);
        assert!(matches!(hidden, Err(Error::Busy { .. })), "{hidden:?}");
        umount(&base.join("pods")).expect("unmounted");
        assert_eq!(detach(&target, |_| true, true).expect("unmounted"), 1);
        assert_eq!(detach(&target, |_| true, true).expect("nothing is there"), 0);
    }
}
