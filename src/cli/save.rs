//! `ocivol save`

use std::io;
use std::io::{BufWriter, IsTerminal as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use indicatif::BinaryBytes;
use serde::Serialize;

use crate::cli::archive;
use crate::cli::args::Common;
use crate::cli::command_args::SaveArgs;
use crate::cli::content_args::attributes;
use crate::cli::context::{Pulls, store};
use crate::cli::credentials::docker_config;
use crate::cli::interrupt;
use crate::cli::output::{self, counted};
use crate::cli::progress::{Bytes, Progress};
use crate::control::client;
use crate::control::request::{Content, ControlRequest, Reply, Saved};
use crate::failure::{Failure, Kind};
use crate::host::blocking::{self, Lane};

/// What was written.
#[derive(Serialize)]
struct Written {
    reference: String,
    /// What the reference is: an index, or the manifest itself.
    digest: String,
    /// The manifest in the archive.
    manifest: String,
    /// Its config and layers, and itself.
    blobs: usize,
    /// Their bytes.
    size: u64,
    /// Bytes that came over the network.
    fetched: u64,
    file: String,
}

/// Bytes that are written at a time.
const WRITE: usize = 1024 * 1024;

/// Writes an archive of what the reference means.
///
/// # Errors
/// Whatever failed. Then there is no file that was not there before.
pub async fn run(common: &Common, flags: &SaveArgs) -> Result<ExitCode, Failure> {
    let to_stdout = flags.file.as_os_str() == "-";
    if to_stdout && io::stdout().is_terminal() {
        return Err(Failure::usage("an archive is not for a terminal: name a file, or redirect the output"));
    }
    // Made before anything is pulled: where it cannot be, nothing is worth pulling.
    let part = match to_stdout {
        true => None,
        false => {
            let file = flags.file.clone();
            Some(blocking::run(Lane::Store, move || Part::make(&file)).await?)
        }
    };
    let attributes = attributes(&flags.reference, &flags.choice, None, flags.policy.pull_policy)?;
    let docker_config = docker_config(common, &flags.reference).await?;
    let content = Content { attributes, docker_config };
    let volumes = store(common, Pulls::AsFlagged).await?;
    let mut progress = Progress::new(common, &flags.reference);
    let request = ControlRequest::Save { content };
    // The blobs stay in the store until they are written.
    let (reply, _kept) = client::ask(&volumes, request, |now| progress.show(&now)).await?;
    drop(progress);
    let Reply::Saved(saved) = reply else {
        return Err(Failure::internal(&format!("unexpected answer: {reply:?}")));
    };
    let (saved, root) = (Arc::new(saved), volumes.store_root().to_owned());
    let written = Arc::clone(&saved);
    // The runtime waits for it when somebody ends the command, and it sees that.
    let write = move || match part {
        None => to_standard_output(&root, &written),
        Some(part) => part.write(&root, &written),
    };
    blocking::run(Lane::Work, write).await?;
    if to_stdout {
        return Ok(ExitCode::SUCCESS);
    }
    let manifest =
        saved.blobs.first().map_or_else(|| saved.digest.to_string(), |blob| blob.digest.to_string());
    let result = Written {
        reference: saved.reference.clone(),
        digest: saved.digest.to_string(),
        manifest,
        blobs: saved.blobs.len(),
        size: saved.blobs.iter().fold(0, |sum, blob| sum + blob.size),
        fetched: saved.fetched,
        file: flags.file.display().to_string(),
    };
    output::result(common, &result, || {
        let chosen = match result.manifest == result.digest {
            true => String::new(),
            false => format!(" (chosen from the index {})", result.digest),
        };
        format!(
            "{}{chosen}\n{}: {}, {}; {} were fetched\nwritten to {}",
            result.manifest,
            result.reference,
            counted(result.blobs as u64, "blob"),
            BinaryBytes(result.size),
            BinaryBytes(result.fetched),
            result.file
        )
    });
    Ok(ExitCode::SUCCESS)
}

fn to_standard_output(root: &Path, saved: &Saved) -> Result<(), Failure> {
    let out = BufWriter::with_capacity(WRITE, io::stdout().lock());
    let mut told = Bytes::new("written");
    archive::write(out, root, saved, &mut |bytes| told.show(bytes))
        .map_err(|error| failed(&error, Path::new("stdout")))
}

/// A file beside the one that is to be written, which takes its name when all of it is on the disk. It goes when this is dropped.
struct Part {
    file: PathBuf,
    absolute: PathBuf,
    temporary: tempfile::NamedTempFile,
}

impl Part {
    fn make(file: &Path) -> Result<Self, Failure> {
        let io = |error: io::Error| failed(&error.into(), file);
        let absolute = std::path::absolute(file).map_err(io)?;
        let (Some(directory), Some(name)) = (absolute.parent(), absolute.file_name()) else {
            return Err(Failure::usage(&format!("{} is no file to write to", file.display())));
        };
        if absolute.is_dir() {
            return Err(Failure::usage(&format!("{} is a directory; name a file in it", file.display())));
        }
        let prefix = format!(".{}.", name.to_string_lossy().chars().take(100).collect::<String>());
        let temporary =
            tempfile::Builder::new().prefix(&prefix).suffix(".part").tempfile_in(directory).map_err(io)?;
        Ok(Self { file: file.to_owned(), absolute, temporary })
    }

    fn write(self, root: &Path, saved: &Saved) -> Result<(), Failure> {
        let Self { file, absolute, temporary } = self;
        let io = |error: io::Error| failed(&error.into(), &file);
        let out = BufWriter::with_capacity(WRITE, temporary.as_file());
        let mut told = Bytes::new("written");
        archive::write(out, root, saved, &mut |bytes| told.show(bytes))
            .map_err(|error| failed(&error, &file))?;
        temporary.as_file().sync_all().map_err(io)?;
        interrupt::check().map_err(io)?;
        temporary.persist(&absolute).map_err(|error| io(error.error))?;
        let Some(directory) = absolute.parent() else { return Ok(()) };
        std::fs::File::open(directory).and_then(|directory| directory.sync_all()).map_err(io)
    }
}

fn failed(error: &archive::Error, file: &Path) -> Failure {
    let kind = match error {
        archive::Error::Damaged(_) => Kind::FailedPrecondition,
        archive::Error::Io(error) if error.kind() == io::ErrorKind::StorageFull => Kind::ResourceExhausted,
        archive::Error::Io(_) => Kind::Unavailable,
    };
    Failure { kind, message: format!("cannot write {}: {error}", file.display()) }
}
