//! gRPC over unix sockets, as kubelet speaks it.

use std::io;
use std::path::Path;

use futures_util::{Stream, TryStreamExt as _};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{UnixListener, UnixStream};
use tonic::transport::{Channel, Endpoint, Uri};

use crate::csi::authority::stream::{Dialed, Served, of_path};
use crate::host::socket;

/// The connections that root makes to `listener`, for gRPC, from clients with any authority.
pub fn private_grpc(listener: UnixListener) -> impl Stream<Item = io::Result<Served<UnixStream>>> {
    socket::private(listener).map_ok(Served::new)
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
