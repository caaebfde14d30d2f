//! A view of what is mounted that keeps nobody from unmounting it.

use std::os::fd::OwnedFd;

use rustix::fs::CWD;
use rustix::io::Errno;
use rustix::mount::{OpenTreeFlags, open_tree};

use crate::mount::error::{Error, kernel};
use crate::mount::target::Target;

/// A mount of our own of what is mounted at `target`, attached nowhere. It ends when it is closed. Nothing, when the target is not
/// there.
///
/// # Errors
/// [`Error::Kernel`].
pub fn private(target: &Target) -> Result<Option<OwnedFd>, Error> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    match open_tree(CWD, target.path(), flags) {
        Err(Errno::NOENT) => Ok(None),
        view => view.map(Some).map_err(kernel("take a view of", target.path())),
    }
}
