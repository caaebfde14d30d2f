//! The plugin's side of the control socket.

use std::path::Path;
use std::sync::Arc;

use futures_util::StreamExt as _;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc, watch};

use crate::control::execute::execute;
use crate::control::request::{ControlRequest, Reply};
use crate::control::status::AboutNode;
use crate::failure::Failure;
use crate::failure::Kind;
use crate::host::socket;
use crate::volume::volumes::Volumes;

/// Bytes of a request: a Docker config fits.
const REQUEST_LIMIT: u64 = 2 * 1024 * 1024;
/// Connections at a time.
const CONNECTIONS: usize = 32;
/// Progress that waits for a slow reader; more is left out.
const PROGRESS_QUEUE: usize = 4;

/// Serves until `stop` is true, then removes the socket. `about` is the plugin itself.
pub async fn serve(
    listener: UnixListener,
    path: &Path,
    volumes: Arc<Volumes>,
    about: AboutNode,
    mut stop: watch::Receiver<bool>,
) {
    let slots = Arc::new(Semaphore::new(CONNECTIONS));
    let mut connections = std::pin::pin!(socket::private(listener));
    loop {
        let connection = tokio::select! {
            _ = stop.wait_for(|stop| *stop) => break,
            connection = connections.next() => connection,
        };
        match connection {
            Some(Ok(stream)) => {
                let slot = tokio::select! {
                    _ = stop.wait_for(|stop| *stop) => break,
                    slot = Arc::clone(&slots).acquire_owned() => slot,
                };
                let Ok(slot) = slot else { break };
                let (volumes, about) = (Arc::clone(&volumes), Arc::clone(&about));
                tokio::spawn(async move {
                    let _slot = slot;
                    if let Err(error) = converse(stream, &volumes, &about).await {
                        tracing::debug!(%error, "a control connection ended early");
                    }
                });
            }
            Some(Err(_)) | None => break,
        }
    }
    let _ = std::fs::remove_file(path); // A stale one is replaced at the next start.
}

async fn converse(stream: UnixStream, volumes: &Volumes, about: &AboutNode) -> std::io::Result<()> {
    // A process outside the PID namespace of a plugin in a container is 0 there.
    let pid = stream.peer_cred().ok().and_then(|peer| peer.pid()).and_then(|pid| u32::try_from(pid).ok());
    let pid = pid.filter(|pid| *pid > 0);
    let (reader, mut writer) = stream.into_split();
    let mut line = Vec::new();
    let mut reader = BufReader::new(reader.take(REQUEST_LIMIT));
    reader.read_until(b'\n', &mut line).await?;
    let mut kept = None;
    let reply = match serde_json::from_slice::<ControlRequest>(&line) {
        Ok(request) => {
            let (sender, mut snapshots) = mpsc::channel(PROGRESS_QUEUE);
            let mut work = Box::pin(execute(volumes, request, pid, Some(about), move |snapshot| {
                let _ = sender.try_send(snapshot);
            }));
            loop {
                tokio::select! {
                    result = &mut work => match result {
                        Ok(done) => {
                            kept = done.kept;
                            break done.reply;
                        }
                        Err(failure) => break Reply::Failed(failure),
                    },
                    Some(snapshot) = snapshots.recv() => write(&mut writer, &Reply::Progress(snapshot)).await?,
                }
            }
        }
        // The parser's own text could quote a credential.
        Err(_) => Reply::Failed(Failure {
            kind: Kind::InvalidArgument,
            message:
                "the plugin does not understand the request; use the same version of ocivol on both sides"
                    .into(),
        }),
    };
    write(&mut writer, &reply).await?;
    if let Some(kept) = kept {
        // It is needed until who asked hangs up, which sends nothing more.
        let _ = reader.read(&mut [0; 1]).await;
        drop(kept);
    }
    Ok(())
}

async fn write(writer: &mut (impl tokio::io::AsyncWrite + Unpin), reply: &Reply) -> std::io::Result<()> {
    let mut line = serde_json::to_vec(reply)?;
    line.push(b'\n');
    writer.write_all(&line).await
}
