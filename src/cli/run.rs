//! Runs a command.

use crate::cli::args::Output;
use crate::cli::completion;
use crate::cli::context;
use crate::cli::demo;
use crate::cli::export;
use crate::cli::fsck;
use crate::cli::gc;
use crate::cli::inspect;
use crate::cli::interrupt;
use crate::cli::list;
use crate::cli::load;
use crate::cli::mount;
use crate::cli::output;
use crate::cli::process;
use crate::cli::pull;
use crate::cli::resolve;
use crate::cli::rm;
use crate::cli::save;
use crate::cli::status;
use crate::cli::verify;
use crate::controller;
use crate::node;
use std::process::ExitCode;

use tokio::sync::watch;

use crate::cli::args::{Cli, Command};
use crate::failure::Failure;
use crate::failure::Kind;

/// Runs the command. The calling process has one thread: some commands change its namespaces first.
pub fn run(cli: Cli) -> ExitCode {
    let umask = rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    let is_node = matches!(cli.command, Command::Node(_) | Command::Controller(_));
    crate::telemetry::logs::start(cli.common.log_format, cli.common.level(is_node));
    let format = if is_node { Output::Text } else { cli.common.output };
    let result = dispatch(cli, umask);
    // A result that did not arrive is none.
    match result.and_then(|status| output::lost().map_or(Ok(status), Err)) {
        Ok(status) => status,
        Err(failure) => {
            output::fail(format, &failure);
            match (interrupt::status(), failure.kind) {
                (Some(status), _) => ExitCode::from(status),
                (None, Kind::InvalidArgument) => ExitCode::from(2),
                (None, _) => ExitCode::FAILURE,
            }
        }
    }
}

fn dispatch(cli: Cli, umask: rustix::fs::Mode) -> Result<ExitCode, Failure> {
    let common = cli.common;
    match cli.command {
        Command::Node(flags) => {
            let config = flags.check(common.root()?, common.pulls())?;
            prepare()?;
            let can_lock = process::limit_locked_memory(config.warm.map_or(0, |warm| warm.pinned));
            process::give_up_privileges(!can_lock)?;
            context::run(node::shutdown::GRACE, async {
                let (stop, stopped) = watch::channel(false);
                tokio::spawn(node::shutdown::stop_on_signal(stop));
                node::run::run(config, stopped).await
            })?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Controller(flags) => {
            let config = flags.check(common.pulls())?;
            prepare()?;
            process::give_up_privileges(false)?;
            context::run(node::shutdown::GRACE, async {
                let (stop, stopped) = watch::channel(false);
                tokio::spawn(node::shutdown::stop_on_signal(stop));
                controller::run::run(config, stopped).await
            })?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Pull(flags) => context::run_command(pull::run(&common, &flags)),
        Command::Mount(flags) => mount::mount(&common, &flags, umask),
        Command::Umount(flags) => context::run_command(mount::umount(&common, &flags)),
        Command::Export(flags) => context::run_command(export::run(&common, &flags)),
        Command::Inspect(flags) => context::run_command(inspect::run(&common, &flags)),
        Command::Resolve(flags) => context::run_command(resolve::run(&common, &flags)),
        Command::Ls => context::run_command(list::run(&common)),
        Command::Rm(flags) => context::run_command(rm::run(&common, &flags)),
        Command::Gc(flags) => context::run_command(gc::run(&common, &flags)),
        Command::Verify(flags) => context::run_command(verify::run(&common, &flags)),
        Command::Fsck(flags) => context::run_command(fsck::run(&common, &flags)),
        Command::Load(flags) => context::run_command(load::run(&common, &flags)),
        Command::Save(flags) => context::run_command(save::run(&common, &flags)),
        Command::Status => context::run_command(status::run(&common)),
        Command::Demo => demo::run(&common),
        Command::Completion(flags) => Ok(completion::completion(&flags)),
        Command::Man(flags) => completion::man(&flags, umask),
    }
}

/// What every process in a cluster does first: it takes all descriptors that it may have, and bounds what else it can take.
fn prepare() -> Result<(), Failure> {
    process::raise_open_files();
    crate::host::limits::enforce()
        .map_err(|error| Failure::internal(&format!("cannot bound this process's memory: {error}")))?;
    crate::host::limits::forbid_cores()
        .map_err(|error| Failure::internal(&format!("cannot forbid cores: {error}")))
}
