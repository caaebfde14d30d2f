//! `ocivol export`: a plain copy of a tree, for who cannot or need not mount.

use std::fs::{self, File, FileTimes};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use indicatif::BinaryBytes;
use serde::Serialize;

use crate::cli::args::Common;
use crate::cli::command_args::ExportArgs;
use crate::cli::content_args::attributes;
use crate::cli::credentials::docker_config;
use crate::cli::output::{self, counted};
use crate::cli::pull::pull;
use crate::control::request::{Content, Pulled};
use crate::failure::{Failure, Kind};
use crate::host::blocking;

/// Directories in directories: more than any tree of the store has.
const DEPTH_LIMIT: usize = 512;

/// What was written.
#[derive(Serialize)]
struct Exported<'a> {
    #[serde(flatten)]
    pulled: &'a Pulled,
    directory: String,
}

/// Pulls, and copies what a volume would show.
///
/// # Errors
/// Whatever failed. A directory that was made for it is then not there.
pub async fn run(common: &Common, flags: &ExportArgs) -> Result<ExitCode, Failure> {
    let directory = std::path::absolute(&flags.directory)
        .map_err(|error| Failure::usage(&format!("{}: {error}", flags.directory.display())))?;
    // Looked at before anything is pulled.
    let is_there = is_empty_directory(&directory)?;
    let attributes =
        attributes(&flags.reference, &flags.choice, Some(&flags.files), flags.policy.pull_policy)?;
    let docker_config = docker_config(common, std::slice::from_ref(&flags.reference)).await?;
    let pulled = pull(common, &flags.reference, Content { attributes, docker_config }, true).await?;
    let (tree, place) = (pulled.path.clone(), directory.clone());
    let write = move || if is_there { copy(&tree, &place, 0) } else { make(&tree, &place) };
    let written = blocking::on_own_thread("export", write).await;
    let written = written.map_err(|error| Failure::internal(&format!("cannot start a thread: {error}")))?;
    written.map_err(|(path, error)| failed(&path, &error))?;
    let exported = Exported { pulled: &pulled, directory: directory.display().to_string() };
    output::result(common, &exported, || {
        let files = counted(pulled.files as u64, "file");
        format!("{}\n{files}, {}, in {}", pulled.digest, BinaryBytes(pulled.size), exported.directory)
    });
    Ok(ExitCode::SUCCESS)
}

/// Whether the directory is there, and holds nothing.
fn is_empty_directory(directory: &Path) -> Result<bool, Failure> {
    match fs::read_dir(directory).map(|mut entries| entries.next().is_none()) {
        Ok(true) => Ok(true),
        Ok(false) => Err(Failure::usage(&format!(
            "{} is not empty; name a directory that is, or that is not there",
            directory.display()
        ))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(Failure::usage(&format!("{}: {error}", directory.display()))),
    }
}

/// Makes `directory` under another name beside it first: it is there when it is complete.
fn make(tree: &Path, directory: &Path) -> Result<(), (PathBuf, io::Error)> {
    let at = |error| (directory.to_owned(), error);
    let parent = directory.parent().ok_or_else(|| at(io::ErrorKind::InvalidInput.into()))?;
    let staging = tempfile::Builder::new().prefix(".ocivol-export-").tempdir_in(parent).map_err(at)?;
    let inner = staging.path().join("tree");
    copy(tree, &inner, 0)?;
    fs::rename(&inner, directory).map_err(at)
}

/// Copies a directory of the store. Files belong to who runs this, who may also change and remove them.
fn copy(from: &Path, to: &Path, depth: usize) -> Result<(), (PathBuf, io::Error)> {
    let at = |path: &Path| {
        let path = path.to_owned();
        move |error| (path, error)
    };
    if depth > DEPTH_LIMIT {
        return Err((from.to_owned(), io::Error::other("it is deeper than any tree of the store")));
    }
    let found = fs::metadata(from).map_err(at(from))?;
    match fs::DirBuilder::new().mode(0o700).create(to) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && depth == 0 => {}
        made => made.map_err(at(to))?,
    }
    for entry in fs::read_dir(from).map_err(at(from))? {
        let entry = entry.map_err(at(from))?;
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        let kind = entry.file_type().map_err(at(&source))?;
        if kind.is_dir() {
            copy(&source, &target, depth + 1)?;
        } else if kind.is_symlink() {
            let points_to = fs::read_link(&source).map_err(at(&source))?;
            symlink(points_to, &target).map_err(at(&target))?;
        } else {
            copy_file(&source, &target).map_err(at(&source))?;
        }
    }
    let mode = fs::Permissions::from_mode(found.mode() & 0o777 | 0o700);
    fs::set_permissions(to, mode).map_err(at(to))?;
    let times = found.modified().map(|time| FileTimes::new().set_modified(time));
    let set = times.and_then(|times| File::open(to)?.set_times(times));
    set.map_err(at(to))
}

/// The content, its time, and who may do what with it but for the bits that give privileges. The content is shared where the file system
/// can do that.
fn copy_file(from: &Path, to: &Path) -> io::Result<()> {
    let mut source = File::open(from)?;
    let found = source.metadata()?;
    let mut target = File::options().write(true).create_new(true).open(to)?;
    if rustix::fs::ioctl_ficlone(&target, &source).is_err() {
        io::copy(&mut source, &mut target)?;
    }
    target.set_permissions(fs::Permissions::from_mode(found.mode() & 0o777 | 0o600))?;
    target.set_times(FileTimes::new().set_modified(found.modified()?))
}

fn failed(path: &Path, error: &io::Error) -> Failure {
    let (kind, advice) = match error.kind() {
        io::ErrorKind::StorageFull => (Kind::ResourceExhausted, ""),
        io::ErrorKind::PermissionDenied => {
            (Kind::PermissionDenied, "; --readable true lets everybody read it")
        }
        _ => (Kind::Unavailable, ""),
    };
    Failure { kind, message: format!("cannot copy {}: {error}{advice}", path.display()) }
}
