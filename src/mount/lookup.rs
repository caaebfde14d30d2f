//! What is mounted at one path, at the same price however many mounts there are.
//!
//! The mount table is a text of all mounts, which the kernel writes anew for each reader: 12 ms for a thousand volumes. From Linux 6.8 on it
//! can be asked for one mount (`statmount`). Where that does not answer, for whatever reason, the table is read.
//!
//! Asked is what a path leads to. A mount that another one has hidden since, by lying over a directory on the way, is in the table and
//! not here: it can neither be used nor unmounted by that path. Who unmounts looks there as well, so as not to call it gone.

use std::path::Path;

use crate::mount::error::Error;
use crate::mount::mountinfo::{Mount, StoreLocation, Table};
use crate::mount::statmount;
use crate::mount::statmount::NoAnswer;

/// The topmost mount at exactly `path`, in the mount namespace of the calling thread.
///
/// # Errors
/// [`Error::Kernel`] when the kernel neither answers nor lets `/proc` be read.
pub fn at(path: &Path) -> Result<Option<Mount>, Error> {
    match statmount::at(path) {
        Ok(found) => Ok(found),
        Err(NoAnswer) => Ok(Table::read()?.at(path).cloned()),
    }
}

/// Where the store directory `path`, which has no symbolic links, is. Also when it cannot be read, or is gone.
///
/// # Errors
/// As [`at`].
pub fn locate_store(path: &Path) -> Result<Option<StoreLocation>, Error> {
    match statmount::holder(path).map(|holder| StoreLocation::on(&holder, path)) {
        Ok(Some(location)) => Ok(Some(location)),
        Ok(None) | Err(NoAnswer) => Ok(Table::read()?.locate_store(path)),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use nix::mount::{MsFlags, mount, umount};

    use super::*;

    const NONE: Option<&str> = None;

    /// A mount namespace of this thread's own.
    fn isolate() {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS)
            .expect("mount tests need root: run them with sudo, or as root in a container");
        mount(NONE, "/", NONE, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NONE).expect("private mounts");
    }

    #[test]
    fn the_kernel_says_what_the_table_says() {
        isolate();
        let directory = tempfile::tempdir().expect("a directory");
        let base = directory.path().canonicalize().expect("a path");
        let bind = |from: &str, to: &str, flags: MsFlags| {
            let (from, to) = (base.join(from), base.join(to));
            mount(Some(&from), &to, NONE, MsFlags::MS_BIND, NONE).expect("bound");
            mount(NONE, &to, NONE, MsFlags::MS_BIND | MsFlags::MS_REMOUNT | flags, NONE).expect("flags");
        };
        for name in ["tree/sub dir", "one", "two", "shared", "tmpfs", "gone", "a\\b \n"] {
            fs::create_dir_all(base.join(name)).expect("directories");
        }
        let read_only = MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
        bind("tree", "one", read_only);
        bind("tree/sub dir", "a\\b \n", read_only | MsFlags::MS_NOEXEC | MsFlags::MS_NOATIME);
        bind("tree", "two", MsFlags::MS_NODIRATIME);
        bind("tree/sub dir", "two", MsFlags::MS_STRICTATIME);
        bind("tree", "shared", MsFlags::empty());
        mount(NONE, &base.join("shared"), NONE, MsFlags::MS_SHARED, NONE).expect("shared");
        mount(Some("a source"), &base.join("tmpfs"), Some("tmpfs"), MsFlags::empty(), NONE).expect("mounted");
        fs::create_dir(base.join("tree/retired")).expect("a directory");
        bind("tree/retired", "gone", MsFlags::empty());
        fs::remove_dir(base.join("tree/retired")).expect("removed");

        let table = Table::read().expect("a table");
        let mut compared = 0;
        for mount in table.iter() {
            let path = &mount.mount_point;
            let Ok(found) = statmount::at(path) else { continue };
            let Some(found) = found else {
                assert!(!path.starts_with(&base), "{path:?} is not seen");
                continue;
            };
            assert_eq!(Some(&found), table.at(path), "{path:?}");
            compared += usize::from(path.starts_with(&base));
        }
        if statmount::at(&base).is_ok() {
            // One line of the table is of a mount below another.
            assert_eq!(compared, 7, "{table:?}");
        }
        for name in ["two", "one", "shared", "tmpfs", "gone", "a\\b \n"] {
            let path = base.join(name);
            assert!(at(&path).expect("an answer").is_some(), "{name}");
            for below in ["sub dir", "absent", "absent/x"] {
                assert_eq!(at(&path.join(below)).expect("an answer"), None, "{name}/{below}");
            }
            umount(&path).expect("unmounted");
        }
        assert!(at(&base.join("two")).expect("an answer").is_some_and(|mount| mount.root.ends_with("tree")));
        umount(&base.join("two")).expect("unmounted");
        assert_eq!(at(&base.join("two")).expect("an answer"), None);
        let file = base.join("file");
        fs::write(&file, "").expect("a file");
        assert_eq!(at(&file).expect("an answer"), None);
        assert_eq!(at(&file.join("x")).expect("an answer"), None);
    }

    #[test]
    fn t34_what_symbolic_links_lead_to_is_not_at_their_path() {
        isolate();
        let directory = tempfile::tempdir().expect("a directory");
        let base = directory.path().canonicalize().expect("a path");
        fs::create_dir_all(base.join("tree/real")).expect("directories");
        let real = base.join("tree/real");
        mount(Some(&base.join("tree")), &real, NONE, MsFlags::MS_BIND, NONE).expect("bound");
        std::os::unix::fs::symlink("tree", base.join("way")).expect("a link");
        std::os::unix::fs::symlink("tree/real", base.join("last")).expect("a link");
        assert!(at(&real).expect("an answer").is_some());
        for name in ["way/real", "last"] {
            assert_eq!(at(&base.join(name)).expect("an answer"), None, "{name}");
            assert!(Table::read().expect("a table").at(&base.join(name)).is_none(), "{name}");
        }
        umount(&real).expect("unmounted");
    }

    #[test]
    fn a_store_is_found_by_both_ways_where_it_is_and_where_it_was() {
        isolate();
        let directory = tempfile::tempdir().expect("a directory");
        let base = directory.path().canonicalize().expect("a path");
        fs::create_dir_all(base.join("disk/ocivol/v1")).expect("directories");
        fs::create_dir_all(base.join("lib/ocivol")).expect("directories");
        let table = || Table::read().expect("a table");
        let same = |path: &Path| {
            let found = locate_store(path).expect("an answer");
            assert_eq!(found, table().locate_store(path), "{path:?}");
            found.expect("located")
        };
        let whole = same(&base.join("disk/ocivol"));
        mount(Some(&base.join("disk")), &base.join("lib"), NONE, MsFlags::MS_BIND, NONE).expect("bound");
        assert_eq!(same(&base.join("lib/ocivol")), whole);
        assert_eq!(
            same(&base.join("lib/absent/below")).root,
            whole.root.with_file_name("absent").join("below")
        );
        umount(&base.join("lib")).expect("unmounted");
    }

    #[test]
    fn a_mount_that_another_one_hides_is_not_there() {
        isolate();
        let directory = tempfile::tempdir().expect("a directory");
        let base = directory.path().canonicalize().expect("a path");
        fs::create_dir_all(base.join("pods/target")).expect("directories");
        fs::create_dir_all(base.join("over/target")).expect("directories");
        let bind = |from: &str, to: &str| {
            mount(Some(&base.join(from)), &base.join(to), NONE, MsFlags::MS_BIND, NONE).expect("bound");
        };
        bind("over", "pods/target");
        bind("over", "pods");
        if let Ok(found) = statmount::at(&base.join("pods/target")) {
            assert_eq!(found, None);
        }
        umount(&base.join("pods")).expect("unmounted");
        assert!(at(&base.join("pods/target")).expect("an answer").is_some());
        umount(&base.join("pods/target")).expect("unmounted");
    }
}
