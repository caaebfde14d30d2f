//! One mount, from the kernel itself: `statx` says which one a path is on, `statmount` what that is. Both since Linux 6.8.

#![cfg_attr(not(test), deny(clippy::indexing_slicing))]

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, StatxAttributes, StatxFlags};
use rustix::io::Errno;

use crate::host::{failpoint, sys};
use crate::mount::mountinfo::Mount;

/// The kernel cannot say: it is too old, a security module is in the way, or something is mounted or unmounted meanwhile.
#[derive(Debug)]
pub(super) struct NoAnswer;

/// `STATX_MNT_ID_UNIQUE`: the ID that no other mount gets until the next boot. `linux/stat.h`.
const MNT_ID_UNIQUE: StatxFlags = StatxFlags::from_bits_retain(0x4000);

/// What of a mount is asked for, and is where in the answer. `linux/mount.h`, since Linux 6.8; the source since 6.13.
const SB_BASIC: u64 = 0x1;
const MNT_BASIC: u64 = 0x2;
const MNT_ROOT: u64 = 0x8;
const MNT_POINT: u64 = 0x10;
const FS_TYPE: u64 = 0x20;
const SB_SOURCE: u64 = 0x200;
const NEEDED: u64 = SB_BASIC | MNT_BASIC | MNT_ROOT | MNT_POINT | FS_TYPE;
const AT_MASK: usize = 8;
const AT_MAJOR: usize = 16;
const AT_MINOR: usize = 20;
const AT_FS_TYPE: usize = 36;
const AT_ID_OLD: usize = 56;
const AT_ATTRIBUTES: usize = 64;
const AT_PROPAGATION: usize = 72;
const AT_ROOT: usize = 104;
const AT_POINT: usize = 108;
const AT_SOURCE: usize = 124;

/// Bytes of an answer: two paths, and what else there is.
const ANSWER: usize = 12 * 1024;

/// How the mount table says what a mount's attributes are, in its order, after `rw` or `ro`: bits, those of them that are set, the word.
/// `show_mnt_opts` in fs/proc_namespace.c.
const OPTIONS: [(u64, u64, &str); 8] = [
    (libc::MOUNT_ATTR_NOSUID, libc::MOUNT_ATTR_NOSUID, "nosuid"),
    (libc::MOUNT_ATTR_NODEV, libc::MOUNT_ATTR_NODEV, "nodev"),
    (libc::MOUNT_ATTR_NOEXEC, libc::MOUNT_ATTR_NOEXEC, "noexec"),
    (libc::MOUNT_ATTR__ATIME, libc::MOUNT_ATTR_NOATIME, "noatime"),
    (libc::MOUNT_ATTR_NODIRATIME, libc::MOUNT_ATTR_NODIRATIME, "nodiratime"),
    (libc::MOUNT_ATTR__ATIME, libc::MOUNT_ATTR_RELATIME, "relatime"),
    (libc::MOUNT_ATTR_NOSYMFOLLOW, libc::MOUNT_ATTR_NOSYMFOLLOW, "nosymfollow"),
    (libc::MOUNT_ATTR_IDMAP, libc::MOUNT_ATTR_IDMAP, "idmapped"),
];

/// The topmost mount at exactly `path`.
pub(super) fn at(path: &Path) -> Result<Option<Mount>, NoAnswer> {
    match found(path) {
        Ok((id, true)) => {
            // What is mounted where a symbolic link leads is not mounted at the link.
            Ok(Some(mount(id)?).filter(|mount| mount.mount_point == path))
        }
        Ok((_, false)) | Err(Some(Errno::NOENT | Errno::NOTDIR)) => Ok(None),
        Err(_) => Err(NoAnswer),
    }
}

/// The mount that `path`, which exists, lies on.
pub(super) fn holder(path: &Path) -> Result<Mount, NoAnswer> {
    let (id, _) = found(path).map_err(|_| NoAnswer)?;
    mount(id)
}

/// The ID of the mount that `path` is on, and whether it is where that is mounted. Without an error of the kernel: the ID is not
/// known to it.
fn found(path: &Path) -> Result<(u64, bool), Option<Errno>> {
    if failpoint::is_lacking("statmount") {
        return Err(None);
    }
    // Of a file system whose server does not answer, nothing is wanted that it would have to be asked.
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT | AtFlags::STATX_DONT_SYNC;
    let found = rustix::fs::statx(CWD, path, flags, MNT_ID_UNIQUE).map_err(Some)?;
    let is_known = StatxFlags::from_bits_retain(found.stx_mask).contains(MNT_ID_UNIQUE)
        && found.stx_attributes_mask.contains(StatxAttributes::MOUNT_ROOT);
    let is_root = found.stx_attributes.contains(StatxAttributes::MOUNT_ROOT);
    if is_known { Ok((found.stx_mnt_id, is_root)) } else { Err(None) }
}

fn mount(id: u64) -> Result<Mount, NoAnswer> {
    let mut answer = vec![0; ANSWER];
    // Bits that the kernel does not know it leaves out of the mask.
    sys::statmount(id, NEEDED | SB_SOURCE, &mut answer).map_err(|_| NoAnswer)?;
    read(&answer).ok_or(NoAnswer)
}

/// Reads an answer. Nothing, where a part is missing.
fn read(answer: &[u8]) -> Option<Mount> {
    let short = |at: usize| Some(u32::from_ne_bytes(answer.get(at..at + 4)?.try_into().ok()?));
    let long = |at: usize| Some(u64::from_ne_bytes(answer.get(at..at + 8)?.try_into().ok()?));
    let string = |at: usize| {
        let start = sys::STATMOUNT_FIXED.checked_add(usize::try_from(short(at)?).ok()?)?;
        let rest = answer.get(start..)?;
        rest.get(..rest.iter().position(|byte| *byte == 0)?).map(<[u8]>::to_vec)
    };
    let path = |at: usize| string(at).map(|bytes| PathBuf::from(OsString::from_vec(bytes)));
    let text = |at: usize| string(at).map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    let mask = long(AT_MASK)?;
    if mask & NEEDED != NEEDED {
        return None;
    }
    let mount = Mount {
        id: short(AT_ID_OLD)?,
        device: format!("{}:{}", short(AT_MAJOR)?, short(AT_MINOR)?),
        root: path(AT_ROOT)?,
        mount_point: path(AT_POINT)?,
        options: options(long(AT_ATTRIBUTES)?),
        shared: long(AT_PROPAGATION)? & libc::MS_SHARED != 0,
        fs_type: text(AT_FS_TYPE)?,
        is_overlay: false,
    };
    // Of an overlay only its source says what it shows.
    let source = if mask & SB_SOURCE != 0 { path(AT_SOURCE) } else { None };
    match source {
        None if mount.fs_type == "overlay" => None,
        source => Some(mount.of_source(&source.unwrap_or_default())),
    }
}

/// As the mount table has them.
fn options(attributes: u64) -> String {
    let access = if attributes & libc::MOUNT_ATTR_RDONLY == 0 { "rw" } else { "ro" };
    let others = OPTIONS.iter().filter(|(bits, set, _)| attributes & bits == *set).map(|(_, _, word)| *word);
    std::iter::once(access).chain(others).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An answer with these parts.
    fn answer(mask: u64, strings: &[(usize, &str)]) -> Vec<u8> {
        let mut answer = vec![0; sys::STATMOUNT_FIXED];
        answer[AT_MASK..AT_MASK + 8].copy_from_slice(&mask.to_ne_bytes());
        for (at, text) in strings {
            let offset = u32::try_from(answer.len() - sys::STATMOUNT_FIXED).expect("short");
            answer[*at..*at + 4].copy_from_slice(&offset.to_ne_bytes());
            answer.extend_from_slice(text.as_bytes());
            answer.push(0);
        }
        answer
    }

    #[test]
    fn what_an_overlay_of_ours_shows_is_in_its_source() {
        let strings =
            [(AT_FS_TYPE, "overlay"), (AT_ROOT, "/"), (AT_POINT, "/t"), (AT_SOURCE, "ocivol:8:1/v1/trees/x")];
        let mount = read(&answer(NEEDED | SB_SOURCE, &strings)).expect("read");
        assert!(mount.is_overlay);
        assert_eq!((mount.device.as_str(), mount.root.to_str()), ("8:1", Some("/v1/trees/x")));
        // Where the kernel does not tell the source, nothing is known of it.
        assert_eq!(read(&answer(NEEDED, &strings)), None);
    }

    #[test]
    fn an_answer_that_lacks_something_is_none() {
        let strings = [(AT_FS_TYPE, "ext4"), (AT_ROOT, "/"), (AT_POINT, "/t")];
        assert!(read(&answer(NEEDED, &strings)).is_some());
        for missing in [SB_BASIC, MNT_BASIC, MNT_ROOT, MNT_POINT, FS_TYPE] {
            assert_eq!(read(&answer(NEEDED & !missing, &strings)), None, "{missing:#x}");
        }
        let whole = answer(NEEDED, &strings);
        assert_eq!(read(&whole[..whole.len() - 1]), None);
        assert_eq!(read(&whole[..100]), None);
        let mut astray = whole;
        astray[AT_ROOT..AT_ROOT + 4].copy_from_slice(&u32::MAX.to_ne_bytes());
        assert_eq!(read(&astray), None);
    }
}
