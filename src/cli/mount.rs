//! `ocivol mount` and `ocivol umount`

use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::ExitCode;

use crate::cli::args::{Common, MountArgs, UmountArgs};
use crate::cli::context::{self, GRACE, volumes};
use crate::cli::output::Progress;
use crate::cli::{namespace, output};
use crate::control::client;
use crate::control::request::{Content, ControlRequest, Reply};
use crate::failure::Failure;
use crate::mount::attach::{MountSource, Mounter};
use crate::mount::locked::Lock;
use crate::mount::target::Policy;
use crate::store::disk::empty_directory;
use crate::volume;
use crate::volume::attributes::Attributes;

/// Mounts; with a command, in a namespace of its own, and becomes that command, with the caller's `umask`.
///
/// # Errors
/// Whatever failed.
pub fn mount(common: &Common, flags: &MountArgs, umask: rustix::fs::Mode) -> Result<ExitCode, Failure> {
    let attributes = flags.attributes();
    // Checked before anything is pulled or any namespace is left.
    let checked = Attributes::parse(&attributes).map_err(volume::error::Error::from)?;
    let target = absolute(&flags.directory)?;
    let content = Content { attributes, docker_config: common.docker_config()? };
    let Some((program, arguments)) = flags.command.split_first() else {
        return context::run(GRACE, mount_for_good(common, content, target));
    };
    // The store's place is that of the user who asks, not of the root of the new namespace.
    let root = common.root()?;
    let common = Common { root: Some(root.clone()), ..common.clone() };
    namespace::enter()?;
    let pulled = context::run(GRACE, crate::cli::pull::pull(&common, content, true))?;
    let target = Policy::anywhere().check(&target).map_err(volume::error::Error::from)?;
    let source = MountSource {
        tree: &pulled.tree,
        path: checked.path.as_ref(),
        exec: checked.exec,
        asked_read_only: true,
    };
    let mounter = Mounter::new(&root, &empty_directory(&root), Lock::All);
    mounter.attach(source, &target).map_err(volume::error::Error::from)?;
    rustix::process::umask(umask);
    let error = std::process::Command::new(program).args(arguments).exec();
    Err(Failure::usage(&format!("cannot run {}: {error}", program.display())))
}

async fn mount_for_good(common: &Common, content: Content, target: String) -> Result<ExitCode, Failure> {
    let mut progress = Progress::new(common);
    let request = ControlRequest::Mount { content, target: target.clone() };
    let reply = client::run(&volumes(common)?, request, |now| progress.show(&now)).await?;
    drop(progress);
    match reply {
        Reply::Mounted(pulled) => {
            output::result(common, &pulled, || format!("{}\nmounted on {target}, read-only", pulled.digest));
            Ok(ExitCode::SUCCESS)
        }
        other => Err(Failure::internal(&format!("unexpected answer: {other:?}"))),
    }
}

/// Unmounts.
///
/// # Errors
/// Whatever failed.
pub async fn umount(common: &Common, flags: &UmountArgs) -> Result<ExitCode, Failure> {
    let target = absolute(&flags.directory)?;
    client::run(&volumes(common)?, ControlRequest::Unmount { target }, |_| {}).await?;
    Ok(ExitCode::SUCCESS)
}

fn absolute(path: &Path) -> Result<String, Failure> {
    let path =
        std::path::absolute(path).map_err(|error| Failure::usage(&format!("{}: {error}", path.display())))?;
    path.into_os_string()
        .into_string()
        .map_err(|path| Failure::usage(&format!("{}: is not UTF-8", path.display())))
}
