//! The command line's side: asks the plugin that holds the store, or works on the store itself.

use std::path::Path;
use std::sync::Arc;

use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};

use crate::control::execute::{Done, execute};
use crate::control::request::{ControlRequest, Reply, SOCKET};
use crate::failure::Failure;
use crate::failure::Kind;
use crate::host::blocking::{self, Lane};
use crate::pull::originals::Originals;
use crate::pull::progress::Snapshot;
use crate::volume::volumes::Volumes;

/// What an answer speaks of: it stays in the store as long as this exists.
pub struct Kept {
    /// Here.
    _here: Option<Originals>,
    /// In the plugin, until the connection ends.
    _there: Option<(Lines<BufReader<OwnedReadHalf>>, OwnedWriteHalf)>,
}

/// Runs `request`, whose answer is all of it. See [`ask`].
///
/// # Errors
/// As [`ask`].
pub async fn run(
    volumes: &Arc<Volumes>,
    request: ControlRequest,
    progress: impl FnMut(Snapshot) + Send,
) -> Result<Reply, Failure> {
    ask(volumes, request, progress).await.map(|(reply, _)| reply)
}

/// Runs `request`: by the plugin that holds the store of `volumes` if there is one, else here.
///
/// Here means also that everything pulled is durable before it returns.
///
/// # Errors
/// [`Failure`], whatever failed, on either side.
pub async fn ask(
    volumes: &Arc<Volumes>,
    request: ControlRequest,
    progress: impl FnMut(Snapshot) + Send,
) -> Result<(Reply, Kept), Failure> {
    match connect(volumes.store_root()).await? {
        Some(stream) => converse(stream, &request, progress, volumes.store_root()).await,
        None => {
            let Done { reply, kept } =
                Box::pin(execute(volumes, request, Some(std::process::id()), None, progress)).await?;
            let lost = match &reply {
                Reply::Pulled(_) | Reply::Loaded(_) => {
                    "the disk failed to take what was pulled; see its log, and pull again"
                }
                Reply::Mounted(_) => {
                    "it is mounted, but the disk failed to take what was pulled; see its log, unmount, and pull again"
                }
                _ => return Ok((reply, Kept { _here: kept, _there: None })),
            };
            let store = Arc::clone(volumes.puller().await?.store());
            if blocking::run(Lane::Work, move || store.flush()).await {
                return Ok((reply, Kept { _here: kept, _there: None }));
            }
            Err(Failure { kind: Kind::Unavailable, message: lost.to_owned() })
        }
    }
}

/// Whether a plugin has the store at `root`, and can be asked.
///
/// # Errors
/// When that cannot be seen, as there is something else at `root`, or it is somebody else's.
pub async fn is_served(root: &Path) -> Result<bool, Failure> {
    Ok(connect(root).await?.is_some())
}

async fn connect(root: &Path) -> Result<Option<UnixStream>, Failure> {
    use std::io::ErrorKind::{ConnectionRefused, NotFound};
    match UnixStream::connect(root.join(SOCKET)).await {
        Ok(stream) => Ok(Some(stream)),
        // Nobody listens: there is no plugin, or it left its socket behind.
        Err(error) if matches!(error.kind(), NotFound | ConnectionRefused) => Ok(None),
        Err(error) => Err(unreachable(root, &error)),
    }
}

async fn converse(
    stream: UnixStream,
    request: &ControlRequest,
    mut progress: impl FnMut(Snapshot) + Send,
    root: &Path,
) -> Result<(Reply, Kept), Failure> {
    let (reader, mut writer) = stream.into_split();
    let conversation = async {
        let mut line = serde_json::to_vec(request)?;
        line.push(b'\n');
        writer.write_all(&line).await?;
        let mut lines = BufReader::new(reader).lines();
        while let Some(line) = lines.next_line().await? {
            match serde_json::from_str::<Reply>(&line)? {
                Reply::Progress(snapshot) => progress(snapshot),
                Reply::Failed(failure) => return Ok(Err(failure)),
                reply => return Ok(Ok((reply, Kept { _here: None, _there: Some((lines, writer)) }))),
            }
        }
        Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof))
    };
    match conversation.await {
        Ok(result) => result,
        // The parser's own text could quote anything, and this is what it means.
        Err(error) if error.get_ref().is_some_and(|inner| inner.is::<serde_json::Error>()) => {
            Err(broken(root, "its answer is not understood; use the same version of ocivol on both sides"))
        }
        Err(error) => Err(broken(root, &error.to_string())),
    }
}

/// Why nobody was asked.
fn unreachable(root: &Path, error: &std::io::Error) -> Failure {
    let root_text = root.display();
    match error.kind() {
        std::io::ErrorKind::PermissionDenied => Failure {
            kind: Kind::PermissionDenied,
            message: format!("{root_text} is another user's; run as root, or use another --root"),
        },
        std::io::ErrorKind::NotADirectory => Failure::usage(&format!("--root: {root_text} is no directory")),
        // The kernel's bound for the path of a socket (`man 7 unix`).
        std::io::ErrorKind::InvalidInput => Failure::usage(&format!(
            "--root: {root_text} is too long for the path of a socket in it; use a shorter one"
        )),
        _ => broken(root, &error.to_string()),
    }
}

fn broken(root: &Path, reason: &str) -> Failure {
    Failure {
        kind: Kind::Unavailable,
        message: format!("cannot talk to the plugin that holds {}: {reason}", root.display()),
    }
}
