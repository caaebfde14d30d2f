//! One blob from a server that sends each connection so many bytes a second, as object stores do: how much faster is it than one
//! connection allows?
//!
//! `make bench` runs it. `RATE` (20 MB/s for each connection) and `SIZE` (1 GiB) are taken from the environment, in bytes.

#![allow(clippy::print_stdout)]

#[path = "../tests/support/mod.rs"]
#[allow(dead_code, unused_imports)]
mod support;

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use ocivol::demo::push::Layer;
use ocivol::oci::digest::Digest;
use support::debian_registry::DebianRegistry;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

/// How late a timer may be without a loss of bytes.
const LATE: Duration = Duration::from_millis(50);

fn main() {
    let setting = |name: &str, default: usize| {
        std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
    };
    let (rate, size) = (setting("RATE", 20_000_000), setting("SIZE", 1 << 30));
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    let registry = runtime.block_on(DebianRegistry::start());
    let content = support::noise(1, size);
    let digest = Digest::sha256(&content);
    let layer = Layer::model_file("weight", "w", content);
    runtime.block_on(registry.pusher("m").model("v1", &[layer])).expect("pushed");
    let host = runtime.block_on(throttle(registry.host(), rate));
    let one = runtime.block_on(one_connection(&host, &digest));
    let directory = tempfile::Builder::new().prefix("ocivol-bench-").tempdir().expect("a directory");
    let began = Instant::now();
    let pulled = Command::new(env!("CARGO_BIN_EXE_ocivol"))
        .args(["--plain-http", &host, "--root"])
        .arg(directory.path().join("store"))
        .args(["pull", &format!("{host}/m:v1")])
        .stdout(Stdio::null())
        .status();
    assert!(pulled.is_ok_and(|status| status.success()), "ocivol pull");
    let took = began.elapsed().as_secs_f64();
    let alone = size as f64 / one;
    println!("{size} bytes from a server that gives each connection {one:.0} bytes a second:");
    println!("{took:.1} s; one connection alone would take {alone:.1} s, {:.1} times as long", alone / took);
}

/// Bytes a second that one connection gets, as it is: timers are late on a machine that is busy.
async fn one_connection(host: &str, digest: &Digest) -> f64 {
    let mut stream = TcpStream::connect(host).await.expect("connected");
    let request = format!("GET /v2/m/blobs/{digest} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.expect("asked");
    let (began, mut bytes, mut buffer) = (Instant::now(), 0, vec![0; 256 << 10]);
    while began.elapsed() < Duration::from_secs(3) {
        match stream.read(&mut buffer).await.expect("an answer") {
            0 => break,
            length => bytes += length,
        }
    }
    bytes as f64 / began.elapsed().as_secs_f64()
}

/// A port before `registry` whose connections get `rate` bytes a second each.
async fn throttle(registry: String, rate: usize) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let host = listener.local_addr().expect("bound").to_string();
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let registry = registry.clone();
            tokio::spawn(async move {
                let Ok(server) = TcpStream::connect(registry).await else { return };
                let ((mut from_client, mut to_client), (mut from_server, mut to_server)) =
                    (client.into_split(), server.into_split());
                tokio::spawn(async move { tokio::io::copy(&mut from_client, &mut to_server).await });
                let (mut buffer, mut free_at) = (vec![0; 64 << 10], Instant::now());
                while let Ok(length @ 1..) = from_server.read(&mut buffer).await {
                    // What a timer is late is made up for; what nobody asked for is not saved up.
                    let earliest = Instant::now() - LATE;
                    free_at = free_at.max(earliest) + Duration::from_secs_f64(length as f64 / rate as f64);
                    tokio::time::sleep_until(free_at.into()).await;
                    if to_client.write_all(&buffer[..length]).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    host
}
