//! `ocivol export`: a plain copy of a tree, for who cannot or need not mount.

use std::fs::{self, File, FileTimes};
use std::io::{self, Read as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _, symlink};
use std::path::Path;
use std::process::ExitCode;

use indicatif::BinaryBytes;
use serde::Serialize;

use crate::cli::args::Common;
use crate::cli::command_args::ExportArgs;
use crate::cli::credentials::docker_config;
use crate::cli::interrupt;
use crate::cli::output::{self, counted};
use crate::cli::pull::pull;
use crate::cli::staging::{Failed, Staging};
use crate::control::request::{Content, Pulled};
use crate::failure::{Failure, Kind};
use crate::host::blocking::{self, Lane};

/// Directories in directories: more than any tree of the store has.
const DEPTH_LIMIT: usize = 512;

/// What was written.
#[derive(Serialize)]
struct Exported<'a> {
    #[serde(flatten)]
    pulled: &'a Pulled,
    directory: String,
}

/// Bytes that are copied between two looks whether to go on.
const STEP: u64 = 64 * 1024 * 1024;

/// Pulls, and copies what a volume would show.
///
/// # Errors
/// Whatever failed. Then nothing of the copy is there.
pub async fn run(common: &Common, flags: &ExportArgs) -> Result<ExitCode, Failure> {
    let directory = std::path::absolute(&flags.directory)
        .map_err(|error| Failure::usage(&format!("{}: {error}", flags.directory.display())))?;
    let attributes = flags.content.attributes(&flags.reference)?;
    // Made before anything is pulled: where it cannot be, nothing is worth pulling.
    let place = directory.clone();
    let make = move || {
        let is_there = is_empty_directory(&place)?;
        Staging::make(&place, is_there).map_err(|(path, error)| cannot("write into", &path, &error, ""))
    };
    // Until something is copied into it, it is removed where it is: a command ends with that, and nothing else waits.
    let staging = blocking::run(Lane::Store, make).await?;
    let docker_config = docker_config(common, &flags.reference).await?;
    let pulled = pull(common, &flags.reference, Content { attributes, docker_config }, true).await?;
    let tree = pulled.path.clone();
    let write = move || {
        let copied = copy(&tree, &staging.tree(), 0);
        let copied = copied.map_err(|(path, error)| (staging.shown(&path), error));
        copied.and_then(|()| staging.finish()).map_err(|(path, error)| {
            let is_hidden = error.kind() == io::ErrorKind::PermissionDenied && path.starts_with(&tree);
            let advice = if is_hidden { "; --readable lets everybody read it" } else { "" };
            cannot("copy", &path, &error, advice)
        })
    };
    // The runtime waits for it when somebody ends the command, and it sees that.
    blocking::run(Lane::Work, write).await?;
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

/// Copies a directory of the store. Files belong to who runs this, who may also change and remove them.
fn copy(from: &Path, to: &Path, depth: usize) -> Result<(), Failed> {
    let at = |path: &Path| {
        let path = path.to_owned();
        move |error| (path, error)
    };
    if depth > DEPTH_LIMIT {
        return Err((from.to_owned(), io::Error::other("it is deeper than any tree of the store")));
    }
    let found = fs::metadata(from).map_err(at(from))?;
    fs::DirBuilder::new().mode(0o700).create(to).map_err(at(to))?;
    for entry in fs::read_dir(from).map_err(at(from))? {
        let entry = entry.map_err(at(from))?;
        interrupt::check().map_err(at(to))?;
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        let kind = entry.file_type().map_err(at(&source))?;
        if kind.is_dir() {
            copy(&source, &target, depth + 1)?;
        } else if kind.is_symlink() {
            let points_to = fs::read_link(&source).map_err(at(&source))?;
            symlink(points_to, &target).map_err(at(&target))?;
        } else {
            copy_file(&source, &target)?;
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
fn copy_file(from: &Path, to: &Path) -> Result<(), Failed> {
    let in_store = |error| (from.to_owned(), error);
    let source = File::open(from).map_err(in_store)?;
    let found = source.metadata().map_err(in_store)?;
    copy_content(source, &found, to).map_err(|error| (to.to_owned(), error))
}

fn copy_content(mut source: File, found: &fs::Metadata, to: &Path) -> io::Result<()> {
    let mut target = File::options().write(true).create_new(true).open(to)?;
    if rustix::fs::ioctl_ficlone(&target, &source).is_err() {
        while io::copy(&mut (&mut source).take(STEP), &mut target)? > 0 {
            interrupt::check()?;
        }
    }
    target.set_permissions(fs::Permissions::from_mode(found.mode() & 0o777 | 0o600))?;
    target.set_times(FileTimes::new().set_modified(found.modified()?))
}

fn cannot(action: &str, path: &Path, error: &io::Error, advice: &str) -> Failure {
    let (kind, advice) = match error.kind() {
        io::ErrorKind::StorageFull => (Kind::ResourceExhausted, "; make room, or name another directory"),
        io::ErrorKind::PermissionDenied => (Kind::PermissionDenied, advice),
        io::ErrorKind::NotFound => (Kind::NotFound, "; make it first"),
        _ => (Kind::Unavailable, ""),
    };
    Failure { kind, message: format!("cannot {action} {}: {error}{advice}", path.display()) }
}
