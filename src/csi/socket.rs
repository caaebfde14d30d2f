//! Unix sockets for gRPC: made private, and served to root alone.

use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::Path;

use futures_util::{Stream, StreamExt as _, TryStreamExt as _};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{UnixListener, UnixStream};
use tonic::transport::{Channel, Endpoint, Uri};

use super::authority::stream::{Dialed, Served, of_path};
use crate::accept;

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

/// The same for gRPC, from clients with any authority.
pub fn private_grpc(listener: UnixListener) -> impl Stream<Item = io::Result<Served<UnixStream>>> {
    private(listener).map_ok(Served::new)
}

/// A gRPC connection to the socket at `path`, with the authority `localhost`, as kubelet makes it to a CSI socket.
///
/// # Errors
/// When nobody listens there.
pub async fn connect(path: &Path) -> Result<Channel, tonic::transport::Error> {
    connect_through(path, |stream| stream).await
}

/// A gRPC connection whose authority is the path in percent-encoding, as kubelet makes it to a registration socket.
///
/// # Errors
/// When nobody listens there.
pub async fn connect_by_path(path: &Path) -> Result<Channel, tonic::transport::Error> {
    let authority = of_path(path);
    connect_through(path, move |stream| Dialed::new(stream, &authority)).await
}

async fn connect_through<S>(
    path: &Path,
    wrap: impl Fn(UnixStream) -> S + Clone + Send + 'static,
) -> Result<Channel, tonic::transport::Error>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let path = path.to_owned();
    let connector = tower::service_fn(move |_: Uri| {
        let (path, wrap) = (path.clone(), wrap.clone());
        async move { UnixStream::connect(path).await.map(|stream| TokioIo::new(wrap(stream))) }
    });
    Endpoint::from_static("http://localhost").connect_with_connector(connector).await
}

/// What tells one socket from another at the same path.
pub fn identity(path: &Path) -> Option<(u64, u64)> {
    let found = std::fs::symlink_metadata(path).ok()?;
    found.file_type().is_socket().then_some((found.dev(), found.ino()))
}
