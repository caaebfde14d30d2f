//! Unix sockets: made private, and served to root alone.

use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::Path;

use futures_util::{Stream, StreamExt as _};
use tokio::net::{UnixListener, UnixStream};

use crate::host::accept;

/// Binds a socket at `path`, mode 0600, in place of a stale one.
///
/// The process's umask keeps others out between bind and chmod; `main` sets it.
///
/// # Errors
/// When something that is no socket is in the way, or the kernel refuses.
pub fn bind(path: &Path) -> io::Result<UnixListener> {
    match std::fs::symlink_metadata(path) {
        Ok(found) if found.file_type().is_socket() => std::fs::remove_file(path)?,
        Ok(_) => return Err(io::Error::new(io::ErrorKind::AlreadyExists, "it exists and is no socket")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// The connections that root, or the user this process runs as, makes to `listener`; others are closed.
pub fn private(listener: UnixListener) -> impl Stream<Item = io::Result<UnixStream>> {
    let own = rustix::process::geteuid().as_raw();
    let connections = accept::connections(listener).filter(move |stream| {
        let allowed = stream.peer_cred().is_ok_and(|peer| peer.uid() == 0 || peer.uid() == own);
        if !allowed {
            tracing::warn!("refused a connection that is not root's");
        }
        std::future::ready(allowed)
    });
    connections.map(Ok)
}

/// What tells one socket from another at the same path.
pub fn identity(path: &Path) -> Option<(u64, u64)> {
    let found = std::fs::symlink_metadata(path).ok()?;
    found.file_type().is_socket().then_some((found.dev(), found.ino()))
}
