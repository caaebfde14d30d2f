//! `ocivol mount` and `ocivol umount`

use std::path::Path;
use std::process::ExitCode;

use rustix::thread::{CapabilitySet, capabilities};
use serde::Serialize;

use crate::cli::args::Common;
use crate::cli::busy;
use crate::cli::child;
use crate::cli::command_args::{MountArgs, UmountArgs};
use crate::cli::context::{self, GRACE, Pulls, absolute, store, volumes};
use crate::cli::credentials::{docker_config, without_helpers};
use crate::cli::progress::Progress;
use crate::cli::pull::{pull, say_if_old};
use crate::cli::{namespace, output};
use crate::control::client;
use crate::control::request::{Content, ControlRequest, Pulled, Reply};
use crate::failure::{Failure, Kind};
use crate::host::blocking::{self, Lane};
use crate::mount::attach::{MountSource, Mounter};
use crate::mount::detach::detach;
use crate::mount::locked::Lock;
use crate::mount::lookup;
use crate::mount::target::Policy;
use crate::store::disk::empty_directory;
use crate::volume;
use crate::volume::attributes::Attributes;

/// What was mounted.
#[derive(Serialize)]
struct Mounted<'a> {
    #[serde(flatten)]
    pulled: &'a Pulled,
    directory: &'a str,
}

/// What was unmounted.
#[derive(Serialize)]
struct Unmounted<'a> {
    directory: &'a str,
}

/// Mounts; with a command, in a namespace of its own, and becomes that command, with the caller's `umask`. Where the directory was made for
/// the mount it waits for the command's end instead, and removes the directory.
///
/// # Errors
/// Whatever failed.
pub fn mount(common: &Common, flags: &MountArgs, umask: rustix::fs::Mode) -> Result<ExitCode, Failure> {
    let mut attributes = flags.content.attributes(&flags.reference)?;
    attributes.extend(flags.path.clone().map(|path| ("path".to_owned(), path)));
    if flags.exec {
        attributes.insert("exec".to_owned(), "true".to_owned());
    }
    // Checked before anything is pulled or any namespace is left.
    let checked = Attributes::parse(&attributes).map_err(volume::error::Error::from)?;
    let target = absolute(&flags.directory)?;
    Policy::anywhere().check(&target).map_err(volume::error::Error::from)?;
    let Some((program, arguments)) = flags.command.split_first() else {
        return context::run_command(mount_for_good(common, flags, attributes, target));
    };
    // A name without a slash is looked for in PATH, and not here.
    let is_path = program.as_encoded_bytes().contains(&b'/');
    let is_inside = is_path && std::path::absolute(program).is_ok_and(|program| program.starts_with(&target));
    if is_inside && !flags.exec {
        return Err(Failure::usage(&format!(
            "{} is in the volume, which is mounted noexec; add --exec to run what is in it",
            program.display()
        )));
    }
    // A helper is the user's, and so asked before the user has another number.
    let docker_config = match without_helpers(common, &flags.reference)? {
        Some(known) => known,
        None => context::run_command(docker_config(common, &flags.reference))?,
    };
    // The store's place is that of the user who asks, not of the root of the new namespace.
    let root = common.root()?;
    let common = Common { root: Some(root.clone()), ..common.clone() };
    namespace::enter()?;
    let content = Content { attributes, docker_config };
    let pulled = context::run_command(pull(&common, &flags.reference, content, true))?;
    let target = Policy::anywhere().check(&target).map_err(volume::error::Error::from)?;
    let source = MountSource {
        tree: &pulled.path,
        path: checked.path.as_ref(),
        exec: checked.exec,
        asked_read_only: true,
    };
    let mounter = Mounter::new(&root, &empty_directory(&root), Lock::All);
    let attached = mounter.attach(source, &target).map_err(volume::error::Error::from)?;
    rustix::process::umask(umask);
    let ended = if attached.made_target {
        let own = lookup::at(target.path()).map_err(volume::error::Error::from)?.map(|mount| mount.id);
        let ended = context::run(GRACE, async { Ok(child::run(program, arguments).await) })?;
        // Where something that the command left running is still in there, the directory stays.
        let _ = detach(&target, |mount| Some(mount.id) == own, true);
        ended
    } else {
        Err(child::become_it(program, arguments))
    };
    ended.or_else(|error| {
        let status = child::status_of(&error);
        let kind = if status == child::NOT_FOUND { Kind::NotFound } else { Kind::FailedPrecondition };
        let message = format!("cannot run {}: {error}", program.display());
        output::fail(common.output, &Failure { kind, message });
        Ok(ExitCode::from(status))
    })
}

async fn mount_for_good(
    common: &Common,
    flags: &MountArgs,
    attributes: std::collections::BTreeMap<String, String>,
    target: String,
) -> Result<ExitCode, Failure> {
    let may_mount = capabilities(None).is_ok_and(|own| own.effective.contains(CapabilitySet::SYS_ADMIN));
    if !may_mount && !client::is_served(&common.root()?).await? {
        return Err(Failure {
            kind: Kind::PermissionDenied,
            message: format!(
                "mounting for others to see needs root; without, run one command with it: ocivol mount {} {} -- COMMAND",
                flags.reference,
                flags.directory.display()
            ),
        });
    }
    let docker_config = docker_config(common, &flags.reference).await?;
    let content = Content { attributes, docker_config };
    let volumes = store(common, Pulls::AsFlagged).await?;
    let mut progress = Progress::new(common, &flags.reference);
    let request = ControlRequest::Mount { content, target: target.clone() };
    let reply = client::run(&volumes, request, |now| progress.show(&now)).await?;
    drop(progress);
    match reply {
        Reply::Mounted(pulled) => {
            say_if_old(&pulled);
            let mounted = Mounted { pulled: &pulled, directory: &target };
            output::result(common, &mounted, || format!("{}\nmounted on {target}, read-only", pulled.digest));
            Ok(ExitCode::SUCCESS)
        }
        other => Err(Failure::internal(&format!("unexpected answer: {other:?}"))),
    }
}

/// Unmounts. It does not wait for the store: what is mounted can be unmounted without.
///
/// # Errors
/// Whatever failed.
pub async fn umount(common: &Common, flags: &UmountArgs) -> Result<ExitCode, Failure> {
    let target = absolute(&flags.directory)?;
    let request = ControlRequest::Unmount { target: target.clone() };
    match client::run(&volumes(common, Pulls::None)?, request, |_| {}).await {
        Ok(_) => {
            output::result(common, &Unmounted { directory: &target }, String::new);
            Ok(ExitCode::SUCCESS)
        }
        Err(mut failure) => {
            if busy::is_why(&failure) {
                let users = blocking::run(Lane::Work, move || busy::users(Path::new(&target))).await;
                failure.message.extend(users.map(|users| format!("; used by {users}")));
            }
            Err(failure)
        }
    }
}
