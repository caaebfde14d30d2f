//! Connections whose client's frames go through a [`Rewriter`]: read so by a server, or written so by a client.

#![cfg_attr(not(test), deny(clippy::indexing_slicing))]

use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tonic::transport::server::Connected;

use crate::csi::authority::rewriter::Rewriter;

/// Bytes of one read.
const READ_SIZE: usize = 8 * 1024;

/// The server's end of a connection: whatever authority the client sends, `localhost` is read.
#[derive(Debug)]
pub struct Served<S> {
    stream: S,
    rewriter: Rewriter,
    input: Queue,
    output: Queue,
    ended: bool,
}

/// A client's end of a connection: it sends another authority than the client's library would.
#[derive(Debug)]
pub struct Dialed<S> {
    stream: S,
    rewriter: Rewriter,
    output: Queue,
}

/// The authority that grpc-go makes of a socket's path, as `encodeAuthority` in its clientconn.go does.
pub fn of_path(path: &Path) -> String {
    let mut authority = String::new();
    for &byte in path.as_os_str().as_bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.~!$&'()*+,;=:[]@".contains(&byte) {
            authority.push(char::from(byte));
        } else {
            authority.push_str(&format!("%{byte:02X}"));
        }
    }
    authority
}

impl<S> Served<S> {
    /// Nothing was read from `stream` yet.
    pub fn new(stream: S) -> Self {
        let rewriter = Rewriter::new("localhost");
        Self { stream, rewriter, input: Queue::default(), output: Queue::default(), ended: false }
    }
}

impl<S> Dialed<S> {
    /// Nothing was written to `stream` yet.
    pub fn new(stream: S, authority: &str) -> Self {
        Self { stream, rewriter: Rewriter::new(authority), output: Queue::default() }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Served<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        loop {
            let ready = this.output.rest();
            if !ready.is_empty() {
                let length = ready.len().min(buffer.remaining());
                buffer.put_slice(ready.get(..length).unwrap_or_default());
                this.output.advance(length);
                return Poll::Ready(Ok(()));
            }
            if this.ended {
                return Poll::Ready(Ok(()));
            }
            if this.input.rest().is_empty() {
                ready!(this.input.poll_fill(&mut this.stream, context))?;
                this.ended = this.input.rest().is_empty();
            }
            match this.rewriter.feed(this.input.rest(), &mut this.output.bytes) {
                Ok(length) => this.input.advance(length),
                Err(error) => {
                    this.ended = true;
                    this.output = Queue::default();
                    tracing::warn!(%error, "disconnected a client");
                    return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, error)));
                }
            }
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Served<S> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(context, buffer)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write_vectored(context, buffers)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(context)
    }
}

impl<S: Connected> Connected for Served<S> {
    type ConnectInfo = S::ConnectInfo;

    fn connect_info(&self) -> Self::ConnectInfo {
        self.stream.connect_info()
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Dialed<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Dialed<S> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        ready!(this.output.poll_drain(&mut this.stream, context))?;
        let length = this
            .rewriter
            .feed(buffer, &mut this.output.bytes)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        // What the kernel does not take now goes with the next write or flush.
        if let Poll::Ready(Err(error)) = this.output.poll_drain(&mut this.stream, context) {
            return Poll::Ready(Err(error));
        }
        Poll::Ready(Ok(length))
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.output.poll_drain(&mut this.stream, context))?;
        Pin::new(&mut this.stream).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.output.poll_drain(&mut this.stream, context))?;
        Pin::new(&mut this.stream).poll_shutdown(context)
    }
}

/// Bytes that wait.
#[derive(Debug, Default)]
struct Queue {
    bytes: Vec<u8>,
    gone: usize,
}

impl Queue {
    fn rest(&self) -> &[u8] {
        self.bytes.get(self.gone..).unwrap_or_default()
    }

    fn advance(&mut self, length: usize) {
        self.gone += length;
        if self.gone >= self.bytes.len() {
            self.bytes.clear();
            self.gone = 0;
        }
    }

    /// Reads into the queue, which is empty; it stays empty when the peer sends nothing more.
    fn poll_fill(
        &mut self,
        stream: &mut (impl AsyncRead + Unpin),
        context: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        let mut bytes = [0; READ_SIZE];
        let mut buffer = ReadBuf::new(&mut bytes);
        ready!(Pin::new(stream).poll_read(context, &mut buffer))?;
        self.bytes.extend_from_slice(buffer.filled());
        Poll::Ready(Ok(()))
    }

    fn poll_drain(
        &mut self,
        stream: &mut (impl AsyncWrite + Unpin),
        context: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        while !self.rest().is_empty() {
            let length = ready!(Pin::new(&mut *stream).poll_write(context, self.rest()))?;
            if length == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.advance(length);
        }
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use axum::http::{HeaderName, HeaderValue, Request, Response};
    use proptest::prelude::{Just, Strategy, prop_oneof};
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[test]
    fn a_path_is_coded_as_grpc_go_does() {
        let path = Path::new("/var/lib/kubelet/plugins_registry/csi.ocivol.dev-reg.sock");
        let coded = "%2Fvar%2Flib%2Fkubelet%2Fplugins_registry%2Fcsi.ocivol.dev-reg.sock";
        assert_eq!(of_path(path), coded);
        assert_eq!(of_path(Path::new("/a b%\u{e4}:[1]")), "%2Fa%20b%25%C3%A4:[1]");
    }

    /// Requests from few names and values, so that the encoder's table is referred to, and overflows. Seven of the longest
    /// values, whose bytes take up to 30 bits each, stay within the bound of a block.
    fn requests() -> impl Strategy<Value = Vec<Vec<(String, Vec<u8>, bool)>>> {
        let name = prop_oneof![Just("user-agent".to_owned()), "x-[a-c]", "x-[a-z0-9]{1,20}"];
        let value = prop_oneof![
            Just(b"token".to_vec()),
            proptest::collection::vec(0x20_u8..0x7f, 0..40),
            proptest::collection::vec(0x80_u8..=0xff, 0..500),
        ];
        let fields = proptest::collection::vec((name, value, proptest::bool::ANY), 0..8);
        proptest::collection::vec(fields, 1..20)
    }

    /// What a server reads: the requests of an `h2` client that dials by path, with all their headers.
    async fn read_by_h2(requests: Vec<Vec<(String, Vec<u8>, bool)>>) {
        let (client, server) = tokio::io::duplex(1000);
        let expected = requests.clone();
        let serve = async move {
            let mut connection = h2::server::handshake(Served::new(server)).await.expect("a preface");
            for fields in expected {
                let (request, mut answer) =
                    connection.accept().await.expect("a request").expect("well-formed");
                assert_eq!(request.uri().authority().expect("an authority"), "localhost");
                let mut read: Vec<_> =
                    request.headers().iter().map(|(name, value)| (name.as_str(), value)).collect();
                let mut sent: Vec<_> =
                    fields.iter().map(|(name, value, _)| (name.as_str(), &value[..])).collect();
                read.sort_by_key(|(name, _)| *name);
                sent.sort_by_key(|(name, _)| *name);
                assert_eq!(read.len(), sent.len());
                for (read, sent) in read.iter().zip(&sent) {
                    assert_eq!((read.0, read.1.as_bytes()), *sent);
                }
                answer.send_response(Response::new(()), true).expect("sent");
            }
            let more = connection.accept().await; // The client goes away.
            assert!(!matches!(more, Some(Ok(_))), "more requests than were sent");
        };
        let ask = async move {
            let dialed = Dialed::new(client, "%2Fvar%2Flib%2Fa.sock");
            let (mut requests_to, connection) = h2::client::handshake(dialed).await.expect("a connection");
            let driven = tokio::spawn(connection);
            for fields in requests {
                let mut request = Request::post("http://localhost/a.B/C").body(()).expect("a request");
                for (name, value, sensitive) in fields {
                    let name = HeaderName::try_from(name).expect("a name");
                    let mut value = HeaderValue::try_from(value).expect("a value");
                    value.set_sensitive(sensitive);
                    request.headers_mut().append(name, value);
                }
                requests_to = requests_to.ready().await.expect("ready");
                let (answer, _) = requests_to.send_request(request, true).expect("sent");
                answer.await.expect("an answer");
            }
            drop(requests_to);
            driven.await.expect("no panic").expect("a good end");
        };
        tokio::join!(serve, ask);
    }

    #[test]
    fn what_h2_writes_h2_reads_with_another_authority() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let config = proptest::test_runner::Config { cases: 100, ..Default::default() };
        proptest::proptest!(config, |(requests in requests())| runtime.block_on(read_by_h2(requests)));
    }

    #[tokio::test]
    async fn megabytes_pass_as_they_are() {
        let (mut client, server) = tokio::io::duplex(100_000);
        let mut server = Served::new(server);
        let mut sent = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        for _ in 0..256 {
            sent.extend_from_slice(&[0, 0x40, 0, 0, 0, 0, 0, 0, 1]);
            sent.extend_from_slice(&[7; 0x4000]);
        }
        let expected = sent.clone();
        let writing = tokio::spawn(async move { client.write_all(&sent).await });
        let mut read = Vec::new();
        server.read_to_end(&mut read).await.expect("all");
        writing.await.expect("no panic").expect("written");
        assert!(read == expected, "{} bytes of {}", read.len(), expected.len());
    }

    #[tokio::test]
    async fn a_client_that_breaks_the_rules_is_read_no_more() {
        let (mut client, server) = tokio::io::duplex(1000);
        let mut server = Served::new(server);
        client.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.expect("written");
        client.write_all(&[0, 0, 1, 1, 4, 0, 0, 0, 1, 0x80, 0, 0, 0, 4]).await.expect("written");
        let mut read = Vec::new();
        let error = server.read_to_end(&mut read).await.expect_err("index 0");
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        assert_eq!(server.read_to_end(&mut read).await.expect("nothing"), 0);
    }
}
