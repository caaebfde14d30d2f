//! Does HTTP/2 pay towards a registry? The same requests over several connections of HTTP/1.1, as ocivol makes them, and over
//! the one connection of HTTP/2, to an nginx that speaks TLS and both.
//!
//! `make bench-http2` runs it. Medians of `ROUNDS` (5), which take turns.

#![allow(clippy::print_stdout)]

use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use reqwest::{Certificate, Client, ClientBuilder, Version, header};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

/// Bytes of the large blob, and of each part of it that is asked for.
const LARGE: u64 = 1 << 30;
const PART: u64 = 16 << 20;
/// How many small blobs there are, of how many bytes.
const SMALL: usize = 400;
const SMALL_BYTES: u64 = 16 << 10;
/// Requests at the same time.
const AT_ONCE: usize = 8;
/// The way there and back of a registry that is not near.
const ROUND_TRIP: Duration = Duration::from_millis(20);
/// Bytes of a stream and of a connection that may be on the way in HTTP/2; the client's defaults are 2 and 5 MiB.
const WIDE: u32 = 32 << 20;

/// A way to speak.
struct Way {
    name: &'static str,
    client: Client,
    version: Version,
}

/// What one run took.
#[derive(Clone, Copy)]
struct Took {
    wall: Duration,
    cpu: Duration,
}

#[tokio::main]
async fn main() {
    let directory = tempfile::Builder::new().prefix("http2-bench-").tempdir().expect("a directory");
    let server = Server::start(directory.path());
    let near = server.port;
    let far = delay(near).await;
    let rounds = std::env::var("ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(5);
    println!("{:34} {:>22} {:>8} {:>8}", "", "way", "seconds", "CPU s");
    for (what, port, large) in [
        ("1 GiB in parts of 16 MiB, near", near, true),
        ("1 GiB in parts of 16 MiB, 20 ms", far, true),
        ("400 blobs of 16 KiB, near", near, false),
        ("400 blobs of 16 KiB, 20 ms", far, false),
    ] {
        let mut taken = [const { Vec::new() }; 3];
        for _ in 0..rounds {
            for (way, taken) in ways(directory.path()).iter().zip(&mut taken) {
                taken.push(run(way, port, large).await);
            }
        }
        for (way, taken) in ways(directory.path()).iter().zip(taken) {
            let (wall, cpu) =
                (median(taken.iter().map(|took| took.wall)), median(taken.iter().map(|took| took.cpu)));
            println!("{what:34} {:>22} {:8.2} {:8.2}", way.name, wall.as_secs_f64(), cpu.as_secs_f64());
        }
    }
}

/// New clients: a pull begins without connections.
fn ways(directory: &Path) -> [Way; 3] {
    let builder = || {
        let certificate = std::fs::read(directory.join("cert.pem")).expect("a certificate");
        Client::builder()
            .tls_certs_only([Certificate::from_pem(&certificate).expect("PEM")])
            .tcp_nodelay(true)
            .pool_max_idle_per_host(AT_ONCE)
    };
    let way = |name, client: ClientBuilder, version| Way {
        name,
        client: client.build().expect("a client"),
        version,
    };
    let wide = builder().http2_initial_stream_window_size(WIDE).http2_initial_connection_window_size(WIDE);
    [
        way("HTTP/1.1", builder().http1_only(), Version::HTTP_11),
        way("HTTP/2", builder(), Version::HTTP_2),
        way("HTTP/2, window 32 MiB", wide, Version::HTTP_2),
    ]
}

/// Fetches the large blob in parts, or all small ones.
async fn run(way: &Way, port: u16, large: bool) -> Took {
    let (began, cpu) = (Instant::now(), cpu());
    let requests = if large { (LARGE / PART) as usize } else { SMALL };
    stream::iter(0..requests)
        .map(|number| fetch(way, port, large.then(|| number as u64 * PART)))
        .buffer_unordered(AT_ONCE)
        .try_collect::<Vec<()>>()
        .await
        .expect("fetched");
    Took { wall: began.elapsed(), cpu: self::cpu() - cpu }
}

async fn fetch(way: &Way, port: u16, part: Option<u64>) -> Result<(), reqwest::Error> {
    let mut request = way
        .client
        .get(format!("https://localhost:{port}/{}", if part.is_some() { "large" } else { "small" }));
    if let Some(start) = part {
        request = request.header(header::RANGE, format!("bytes={start}-{}", start + PART - 1));
    }
    let mut response = request.send().await?.error_for_status()?;
    assert_eq!(response.version(), way.version, "what is measured is what was meant");
    let mut bytes = 0;
    while let Some(chunk) = response.chunk().await? {
        bytes += chunk.len() as u64;
    }
    assert_eq!(bytes, if part.is_some() { PART } else { SMALL_BYTES });
    Ok(())
}

/// Time on the processors that this process has had.
fn cpu() -> Duration {
    let mut time = std::fs::read_to_string("/proc/self/stat").expect("a process");
    time.drain(..=time.rfind(')').expect("a name"));
    let ticks: u64 =
        time.split_whitespace().skip(11).take(2).map(|ticks| ticks.parse::<u64>().expect("a number")).sum();
    Duration::from_secs_f64(ticks as f64 / rustix::param::clock_ticks_per_second() as f64)
}

fn median(times: impl Iterator<Item = Duration>) -> Duration {
    let mut times: Vec<_> = times.collect();
    times.sort_unstable();
    times[times.len() / 2]
}

/// An nginx with two files.
struct Server {
    port: u16,
    process: Child,
}

impl Server {
    fn start(directory: &Path) -> Self {
        for (name, bytes) in [("large", LARGE), ("small", SMALL_BYTES)] {
            std::fs::File::create(directory.join(name)).and_then(|file| file.set_len(bytes)).expect("a file");
        }
        let made = Command::new("openssl")
            .args([
                "req",
                "-x509",
                "-newkey",
                "ec",
                "-pkeyopt",
                "ec_paramgen_curve:prime256v1",
                "-nodes",
                "-days",
                "2",
            ])
            .args([
                "-subj",
                "/CN=localhost",
                "-addext",
                "subjectAltName=DNS:localhost",
                "-addext",
                "basicConstraints=critical,CA:FALSE",
            ])
            .args(["-keyout", "key.pem", "-out", "cert.pem"])
            .current_dir(directory)
            .stderr(Stdio::null())
            .status();
        assert!(made.is_ok_and(|status| status.success()), "openssl makes a certificate");
        let free =
            TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a port");
        let configuration = directory.join("nginx.conf");
        let text = format!(
            "daemon off; master_process on; worker_processes 2; pid {0}/pid; user root;
             events {{}}
             http {{
                 access_log off; error_log {0}/log; sendfile on; keepalive_requests 10000;
                 server {{
                     listen 127.0.0.1:{1} ssl http2; root {0};
                     ssl_certificate {0}/cert.pem; ssl_certificate_key {0}/key.pem;
                 }}
             }}",
            directory.display(),
            free.port(),
        );
        std::fs::write(&configuration, text).expect("written");
        let process =
            Command::new("nginx").arg("-c").arg(configuration).stderr(Stdio::null()).spawn().expect("nginx");
        let mut server = Self { port: free.port(), process };
        while std::net::TcpStream::connect(free).is_err() {
            assert!(
                matches!(server.process.try_wait(), Ok(None)),
                "nginx has ended; see {}/log",
                directory.display()
            );
            std::thread::yield_now();
        }
        server
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // A master that is killed leaves its workers.
        let pid = rustix::process::Pid::from_child(&self.process);
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        let _ = self.process.wait();
    }
}

/// A port before `port` that is half of [`ROUND_TRIP`] away from it.
async fn delay(port: u16) -> u16 {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let far = listener.local_addr().expect("bound").port();
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let Ok(server) = tokio::net::TcpStream::connect(("127.0.0.1", port)).await else { return };
            let _ = (client.set_nodelay(true), server.set_nodelay(true));
            let ((from_client, to_client), (from_server, to_server)) =
                (client.into_split(), server.into_split());
            tokio::spawn(carry(from_client, to_server));
            tokio::spawn(carry(from_server, to_client));
        }
    });
    far
}

/// Carries bytes, each of which takes half of [`ROUND_TRIP`].
async fn carry(mut from: tokio::net::tcp::OwnedReadHalf, mut to: tokio::net::tcp::OwnedWriteHalf) {
    // At most 64 MiB are on the way, which at this delay is no bound.
    let (sender, mut receiver) = tokio::sync::mpsc::channel::<(Instant, Vec<u8>)>(1024);
    tokio::spawn(async move {
        while let Some((due, bytes)) = receiver.recv().await {
            tokio::time::sleep_until(due.into()).await;
            if to.write_all(&bytes).await.is_err() {
                return;
            }
        }
    });
    let mut buffer = vec![0; 64 << 10];
    while let Ok(length @ 1..) = from.read(&mut buffer).await {
        if sender.send((Instant::now() + ROUND_TRIP / 2, buffer[..length].to_vec())).await.is_err() {
            return;
        }
    }
}
