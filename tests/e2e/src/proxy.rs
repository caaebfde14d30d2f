//! A slow line to a registry: a TCP proxy that lets so many bytes a second through, over all connections together.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// The proxy, until it is dropped.
pub struct SlowLine(JoinHandle<()>);

impl SlowLine {
    /// Listens on `address` and passes to `registry` what comes.
    pub async fn start(address: &str, registry: &'static str, bytes_per_second: f64) -> Self {
        let listener = TcpListener::bind(address).await.expect("a port");
        let next = Arc::new(Mutex::new(Instant::now()));
        Self(tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let next = Arc::clone(&next);
                tokio::spawn(async move {
                    let _ = pass(client, registry, &next, bytes_per_second).await;
                });
            }
        }))
    }
}

impl Drop for SlowLine {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn pass(client: TcpStream, registry: &str, next: &Mutex<Instant>, rate: f64) -> std::io::Result<()> {
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_registry, mut to_registry) = TcpStream::connect(registry).await?.into_split();
    let requests = tokio::spawn(async move { tokio::io::copy(&mut from_client, &mut to_registry).await });
    let mut buffer = [0_u8; 8192];
    loop {
        let length = from_registry.read(&mut buffer).await?;
        if length == 0 {
            break;
        }
        let turn = {
            let mut next = next.lock().unwrap_or_else(PoisonError::into_inner);
            let turn = (*next).max(Instant::now());
            *next = turn + Duration::from_secs_f64(length as f64 / rate);
            turn
        };
        tokio::time::sleep_until(turn.into()).await;
        to_client.write_all(&buffer[..length]).await?;
    }
    requests.abort();
    Ok(())
}
