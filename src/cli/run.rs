//! Runs a command.

use crate::cli::context::{self, GRACE};
use crate::cli::demo;
use crate::cli::fsck;
use crate::cli::gc;
use crate::cli::inspect;
use crate::cli::list;
use crate::cli::load;
use crate::cli::mount;
use crate::cli::output;
use crate::cli::process;
use crate::cli::pull;
use crate::cli::save;
use crate::node;
use std::process::ExitCode;

use tokio::sync::watch;

use crate::cli::args::{Cli, Command};
use crate::failure::Failure;
use crate::failure::Kind;

/// Runs the command. The calling process has one thread: some commands change its namespaces first.
pub fn run(cli: Cli) -> ExitCode {
    let umask = rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    let is_node = matches!(cli.command, Command::Node(_));
    crate::telemetry::logs::start(cli.common.log_format, cli.common.level(is_node));
    let result = dispatch(cli, umask);
    match result {
        Ok(code) => code,
        Err(failure) => {
            output::fail(&failure.message);
            if failure.kind == Kind::InvalidArgument { ExitCode::from(2) } else { ExitCode::FAILURE }
        }
    }
}

fn dispatch(cli: Cli, umask: rustix::fs::Mode) -> Result<ExitCode, Failure> {
    let common = cli.common;
    match cli.command {
        Command::Node(flags) => {
            let config = flags.check(&common)?;
            process::raise_open_files();
            crate::host::limits::enforce().map_err(|error| {
                Failure::internal(&format!("cannot bound this process's memory: {error}"))
            })?;
            crate::host::limits::forbid_cores()
                .map_err(|error| Failure::internal(&format!("cannot forbid cores: {error}")))?;
            process::give_up_privileges()?;
            context::run(node::shutdown::GRACE, async {
                let (stop, stopped) = watch::channel(false);
                tokio::spawn(node::shutdown::stop_on_signal(stop));
                node::run::run(config, stopped).await
            })?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Pull(flags) => context::run(GRACE, pull::run(&common, &flags)),
        Command::Load(flags) => context::run(GRACE, load::run(&common, &flags)),
        Command::Save(flags) => context::run(GRACE, save::run(&common, &flags)),
        Command::Mount(flags) => mount::mount(&common, &flags, umask),
        Command::Umount(flags) => context::run(GRACE, mount::umount(&common, &flags)),
        Command::Inspect(flags) => context::run(GRACE, inspect::run(&common, &flags)),
        Command::Ls => context::run(GRACE, list::run(&common)),
        Command::Fsck(flags) => context::run(GRACE, fsck::run(&common, &flags)),
        Command::Gc(flags) => context::run(GRACE, gc::run(&common, &flags)),
        Command::Demo => demo::run(&common),
    }
}
