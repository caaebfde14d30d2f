//! What stands between the plugin and a registry: a line that can be listened to and held up, TLS, and a proxy.
//!
//! All of it is on loopback, and ends when it is dropped.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tokio_rustls::TlsAcceptor;

use super::tls::{CertificateAuthority, Identity};

/// A port of the loopback interface.
pub const ANY_PORT: &str = "127.0.0.1:0";

/// Bytes of a request's head that a proxy takes.
const HEAD_LIMIT: usize = 64 * 1024;

/// A port, and the connections to it.
struct Port {
    address: SocketAddr,
    task: JoinHandle<()>,
}

impl Port {
    async fn serve<F>(at: &str, serve: impl Fn(TcpStream) -> F + Send + 'static) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind(at).await.unwrap_or_else(|error| panic!("{at}: {error}"));
        let address = listener.local_addr().expect("an address");
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                connections.spawn(serve(stream));
                while connections.try_join_next().is_some() {}
            }
        });
        Self { address, task }
    }
}

impl Drop for Port {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// What clients sent, in the order of their connections.
#[derive(Clone, Default)]
struct Heard(Arc<Mutex<Vec<Vec<u8>>>>);

impl Heard {
    fn connection(&self) -> usize {
        let mut all = self.0.lock().expect("no panic");
        all.push(Vec::new());
        all.len() - 1
    }

    fn add(&self, connection: usize, bytes: &[u8]) {
        self.0.lock().expect("no panic")[connection].extend_from_slice(bytes);
    }

    fn all(&self) -> Vec<Vec<u8>> {
        self.0.lock().expect("no panic").clone()
    }
}

/// Passes bytes on both ways. What the client sends is heard; what it is answered waits while the gate is closed.
async fn pass(
    client: TcpStream,
    server: TcpStream,
    heard: &Heard,
    number: usize,
    mut gate: watch::Receiver<bool>,
) {
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let up = async {
        let mut buffer = vec![0; 64 * 1024];
        while let Ok(length @ 1..) = from_client.read(&mut buffer).await {
            heard.add(number, &buffer[..length]);
            if to_server.write_all(&buffer[..length]).await.is_err() {
                break;
            }
        }
        let _ = to_server.shutdown().await;
    };
    let down = async {
        let mut buffer = vec![0; 64 * 1024];
        while let Ok(length @ 1..) = from_server.read(&mut buffer).await {
            let _ = gate.wait_for(|open| *open).await;
            if to_client.write_all(&buffer[..length]).await.is_err() {
                break;
            }
        }
        let _ = to_client.shutdown().await;
    };
    tokio::join!(up, down);
}

/// A line to a registry, on a port of its own, that is listened to and can be held up.
pub struct Line {
    port: Port,
    heard: Heard,
    gate: watch::Sender<bool>,
}

impl Line {
    /// A line to what listens at `to`.
    pub async fn start(to: &str) -> Self {
        Self::start_at(ANY_PORT, to).await
    }

    /// The same, on this port.
    pub async fn start_at(at: &str, to: &str) -> Self {
        let (heard, gate) = (Heard::default(), watch::Sender::new(true));
        let (log, open, to) = (heard.clone(), gate.clone(), to.to_owned());
        let port = Port::serve(at, move |client| {
            let (log, open, to) = (log.clone(), open.subscribe(), to.clone());
            async move {
                let number = log.connection();
                let Ok(server) = TcpStream::connect(&to).await else { return };
                pass(client, server, &log, number, open).await;
            }
        });
        Self { port: port.await, heard, gate }
    }

    pub fn host(&self) -> String {
        self.port.address.to_string()
    }

    pub fn reference(&self, rest: &str) -> String {
        format!("{}/{rest}", self.host())
    }

    /// From now on answers wait here. Requests go on.
    pub fn hold(&self) {
        self.gate.send_replace(false);
    }

    /// All that waits goes on.
    pub fn release(&self) {
        self.gate.send_replace(true);
    }

    /// What clients sent, for each connection.
    pub fn heard(&self) -> Vec<Vec<u8>> {
        self.heard.all()
    }
}

/// TLS before a registry that has none, on a port of its own.
pub struct Secure {
    port: Port,
    connections: Arc<AtomicUsize>,
    accepted: Arc<AtomicUsize>,
}

impl Secure {
    /// Shows `identity`, and passes what is said on to `to`.
    pub async fn start(identity: &Identity, to: &str) -> Self {
        Self::start_at(ANY_PORT, identity, to).await
    }

    /// The same, on this port.
    pub async fn start_at(at: &str, identity: &Identity, to: &str) -> Self {
        Self::with(at, identity.acceptor(None), to).await
    }

    /// The same, for those who show a certificate of `clients`.
    pub async fn asking(identity: &Identity, clients: &CertificateAuthority, to: &str) -> Self {
        Self::with(ANY_PORT, identity.acceptor(Some(clients)), to).await
    }

    async fn with(at: &str, acceptor: TlsAcceptor, to: &str) -> Self {
        let (connections, accepted) = (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
        let (came, stayed, to) = (Arc::clone(&connections), Arc::clone(&accepted), to.to_owned());
        let port = Port::serve(at, move |client| {
            came.fetch_add(1, Ordering::SeqCst);
            let (acceptor, stayed, to) = (acceptor.clone(), Arc::clone(&stayed), to.clone());
            async move {
                let Ok(mut client) = acceptor.accept(client).await else { return };
                stayed.fetch_add(1, Ordering::SeqCst);
                let Ok(mut server) = TcpStream::connect(&to).await else { return };
                let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
            }
        });
        Self { port: port.await, connections, accepted }
    }

    pub fn host(&self) -> String {
        self.port.address.to_string()
    }

    pub fn reference(&self, rest: &str) -> String {
        format!("{}/{rest}", self.host())
    }

    /// Connections that clients made.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    /// Connections whose clients were content with the certificate.
    pub fn accepted(&self) -> usize {
        self.accepted.load(Ordering::SeqCst)
    }
}

/// An HTTP proxy.
pub struct Proxy {
    port: Port,
    heard: Heard,
}

impl Proxy {
    /// A proxy that connects whoever comes with whatever is asked for. It knows the addresses of `names`.
    pub async fn start(names: &[(&str, &str)]) -> Self {
        let names: Vec<(String, String)> =
            names.iter().map(|(name, address)| ((*name).to_owned(), (*address).to_owned())).collect();
        Self::with(move |target| {
            let known = names.iter().find(|(name, _)| *name == target);
            Ok(known.map_or_else(|| target.to_owned(), |(_, address)| address.clone()))
        })
        .await
    }

    /// A proxy that has only this answer: a status, and maybe headers.
    pub async fn refusing(answer: &'static str) -> Self {
        Self::with(move |_| Err(answer)).await
    }

    async fn with(decide: impl Fn(&str) -> Result<String, &'static str> + Send + Sync + 'static) -> Self {
        let (heard, decide) = (Heard::default(), Arc::new(decide));
        let log = heard.clone();
        let open = watch::Sender::new(true);
        let port = Port::serve(ANY_PORT, move |client| {
            let (log, decide, open) = (log.clone(), Arc::clone(&decide), open.subscribe());
            async move { proxied(client, &log, &*decide, open).await }
        });
        Self { port: port.await, heard }
    }

    pub fn host(&self) -> String {
        self.port.address.to_string()
    }

    /// What clients sent, for each connection.
    pub fn heard(&self) -> Vec<Vec<u8>> {
        self.heard.all()
    }

    /// The first line of each connection: what the proxy was asked for.
    pub fn asked(&self) -> Vec<String> {
        let first = |bytes: &Vec<u8>| {
            String::from_utf8_lossy(bytes).lines().next().unwrap_or_default().trim_end().to_owned()
        };
        self.heard().iter().map(first).collect()
    }
}

async fn proxied(
    mut client: TcpStream,
    heard: &Heard,
    decide: &(dyn Fn(&str) -> Result<String, &'static str> + Send + Sync),
    open: watch::Receiver<bool>,
) {
    let number = heard.connection();
    let mut head = Vec::new();
    let mut buffer = vec![0; 4096];
    while !head.windows(4).any(|end| end == b"\r\n\r\n") && head.len() < HEAD_LIMIT {
        let Ok(length @ 1..) = client.read(&mut buffer).await else { return };
        heard.add(number, &buffer[..length]);
        head.extend_from_slice(&buffer[..length]);
    }
    let text = String::from_utf8_lossy(&head).into_owned();
    let mut words = text.split_whitespace();
    let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let is_tunnel = method == "CONNECT";
    let authority = target.strip_prefix("http://").unwrap_or(target);
    let authority = authority.split('/').next().unwrap_or_default();
    let connected = match decide(authority) {
        Ok(address) => TcpStream::connect(address).await.map_err(|_| "502 Bad Gateway"),
        Err(answer) => Err(answer),
    };
    match connected {
        Ok(mut server) => {
            let begun = if is_tunnel {
                client.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n").await
            } else {
                // Servers take the absolute form that proxies get: RFC 9112, 3.2.2.
                server.write_all(&head).await
            };
            if begun.is_ok() {
                pass(client, server, heard, number, open).await;
            }
        }
        Err(answer) => {
            let answer = format!("HTTP/1.1 {answer}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
            let _ = client.write_all(answer.as_bytes()).await;
            let _ = client.shutdown().await;
        }
    }
}
