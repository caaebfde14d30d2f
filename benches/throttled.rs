//! One blob from servers that are slow, each in its way: how much faster is it than one connection allows?
//!
//! `make bench` runs it, and `docs/benchmarks.md` has its table. `SIZE` (1 GiB) is taken from the environment, in bytes.

#![allow(clippy::print_stdout)]

#[path = "../tests/support/mod.rs"]
#[allow(dead_code, unused_imports)]
mod support;

use std::process::{Command, Stdio};
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use ocivol::demo::push::Layer;
use ocivol::oci::digest::Digest;
use support::debian_registry::DebianRegistry;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

/// How late a timer may be without a loss of bytes.
const LATE: Duration = Duration::from_millis(50);

/// A server.
#[derive(Clone, Copy)]
struct Server {
    name: &'static str,
    /// Bytes a second.
    rate: usize,
    /// Whether all connections together get that, and not each.
    is_shared: bool,
    /// How long an answer takes to begin.
    late: Duration,
}

const SERVERS: [Server; 5] = [
    Server { name: "20 MB/s for each connection", rate: 20_000_000, is_shared: false, late: Duration::ZERO },
    Server { name: "50 MB/s for each connection", rate: 50_000_000, is_shared: false, late: Duration::ZERO },
    Server {
        name: "20 MB/s for each, 200 ms away",
        rate: 20_000_000,
        is_shared: false,
        late: Duration::from_millis(200),
    },
    Server {
        name: "50 MB/s for each, after 2 s",
        rate: 50_000_000,
        is_shared: false,
        late: Duration::from_secs(2),
    },
    Server { name: "60 MB/s for all together", rate: 60_000_000, is_shared: true, late: Duration::ZERO },
];

/// Connections that it has, and had at most.
#[derive(Clone, Default)]
struct Connections(Arc<(AtomicUsize, AtomicUsize)>);

fn main() {
    let size = std::env::var("SIZE").ok().and_then(|text| text.parse().ok()).unwrap_or(1 << 30);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    let registry = runtime.block_on(DebianRegistry::start());
    let content = support::noise(1, size);
    let digest = Digest::sha256(&content);
    let layer = Layer::model_file("weight", "w", content);
    runtime.block_on(registry.pusher("m").model("v1", &[layer])).expect("pushed");
    println!("{size} bytes; seconds with one connection are what its rate makes of them.\n");
    println!(
        "| server | one connection, MB/s | seconds with it | ocivol pull, seconds | times as fast | connections, at most |"
    );
    println!("|---|---|---|---|---|---|");
    for server in SERVERS {
        let (host, connections) = runtime.block_on(throttle(registry.host(), server));
        let one = runtime.block_on(one_connection(&host, &digest));
        connections.0.1.store(0, Relaxed);
        let directory = tempfile::Builder::new().prefix("ocivol-bench-").tempdir().expect("a directory");
        let began = Instant::now();
        let pulled = Command::new(env!("CARGO_BIN_EXE_ocivol"))
            .args(["--plain-http", &host, "--root"])
            .arg(directory.path().join("store"))
            .args(["pull", &format!("{host}/m:v1")])
            .stdout(Stdio::null())
            .status();
        assert!(pulled.is_ok_and(|status| status.success()), "ocivol pull");
        let (took, alone) = (began.elapsed().as_secs_f64(), size as f64 / one);
        println!(
            "| {} | {:.0} | {alone:.1} | {took:.1} | {:.1} | {} |",
            server.name,
            one / 1e6,
            alone / took,
            connections.0.1.load(Relaxed)
        );
    }
}

/// Bytes a second that one connection gets, as it is: timers are late on a machine that is busy.
async fn one_connection(host: &str, digest: &Digest) -> f64 {
    let mut stream = TcpStream::connect(host).await.expect("connected");
    let request = format!("GET /v2/m/blobs/{digest} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.expect("asked");
    let mut buffer = vec![0; 256 << 10];
    let mut bytes = stream.read(&mut buffer).await.expect("an answer");
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(3) {
        match stream.read(&mut buffer).await.expect("an answer") {
            0 => break,
            length => bytes += length,
        }
    }
    bytes as f64 / began.elapsed().as_secs_f64()
}

/// A port before `registry` that is as slow as `server`, and who is connected to it.
async fn throttle(registry: String, server: Server) -> (String, Connections) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let host = listener.local_addr().expect("bound").to_string();
    let connections = Connections::default();
    let (all, counted) = (Arc::new(Mutex::new(Instant::now())), connections.clone());
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let registry = registry.clone();
            let free_at =
                if server.is_shared { Arc::clone(&all) } else { Arc::new(Mutex::new(Instant::now())) };
            let counted = counted.clone();
            tokio::spawn(async move {
                let (now, most) = &*counted.0;
                most.fetch_max(now.fetch_add(1, Relaxed) + 1, Relaxed);
                if let Ok(server_side) = TcpStream::connect(registry).await {
                    carry(client, server_side, server, &free_at).await;
                }
                now.fetch_sub(1, Relaxed);
            });
        }
    });
    (host, connections)
}

/// Carries what `client` asks for, late, and what is answered, slowly, until either has gone.
async fn carry(client: TcpStream, registry: TcpStream, server: Server, free_at: &Mutex<Instant>) {
    let ((mut from_client, mut to_client), (mut from_registry, mut to_registry)) =
        (client.into_split(), registry.into_split());
    let requests = async {
        let mut buffer = vec![0; 64 << 10];
        while let Ok(length @ 1..) = from_client.read(&mut buffer).await {
            tokio::time::sleep(server.late).await;
            if to_registry.write_all(&buffer[..length]).await.is_err() {
                return;
            }
        }
    };
    let answers = async {
        let mut buffer = vec![0; 64 << 10];
        while let Ok(length @ 1..) = from_registry.read(&mut buffer).await {
            let until = {
                let mut free_at = free_at.lock().expect("no panic");
                // What a timer is late is made up for; what nobody asked for is not saved up.
                let earliest = Instant::now() - LATE;
                *free_at =
                    (*free_at).max(earliest) + Duration::from_secs_f64(length as f64 / server.rate as f64);
                *free_at
            };
            tokio::time::sleep_until(until.into()).await;
            if to_client.write_all(&buffer[..length]).await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        () = requests => {}
        () = answers => {}
    }
}
