//! The command line: syntax and output. What commands do is elsewhere.

pub mod args;
pub mod demo;
pub mod inspect;
pub mod list;
pub mod mount;
pub mod namespace;
pub mod node;
pub mod output;
pub mod process;
pub mod pull;

use std::process::ExitCode;
use std::sync::Arc;

use tokio::sync::watch;

use crate::control::Failure;
use crate::failure::Kind;
use crate::mount::{Lock, Policy};
use crate::registry::Registry;
use crate::volume::Volumes;
use args::{Cli, Command, Common};

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
            crate::limits::enforce(config.pulls.parallel_downloads)
                .map_err(|error| internal(&format!("cannot bound this process's memory: {error}")))?;
            process::give_up_privileges()?;
            runtime()?.block_on(async {
                let (stop, stopped) = watch::channel(false);
                tokio::spawn(node::stop_on_signal(stop));
                node::run(config, stopped).await
            })?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Pull(flags) => runtime()?.block_on(pull::run(&common, &flags)),
        Command::Mount(flags) => mount::mount(&common, &flags, umask),
        Command::Umount(flags) => runtime()?.block_on(mount::umount(&common, &flags)),
        Command::Inspect(flags) => runtime()?.block_on(inspect::run(&common, &flags)),
        Command::Ls => runtime()?.block_on(list::run(&common)),
        Command::Demo => demo::run(&common),
    }
}

/// The async runtime. Blocking work has threads of its own, and their number has a bound.
fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(std::thread::available_parallelism().map_or(2, |cores| cores.get().clamp(2, 4)))
        .max_blocking_threads(128)
        .enable_all()
        .build()
        .map_err(|error| internal(&format!("cannot start threads: {error}")))
}

/// What commands work on, made from the common flags.
fn volumes(common: &Common) -> Result<Arc<Volumes>, Failure> {
    let (registry, pulls) = common.pulls().check().map_err(|error| usage(&error.to_string()))?;
    let registry = Registry::new(registry).map_err(|error| internal(&error.to_string()))?;
    Ok(Volumes::new(common.root()?, registry, pulls, Default::default(), Policy::anywhere(), Lock::All))
}

fn usage(message: &str) -> Failure {
    Failure { kind: Kind::InvalidArgument, message: message.to_owned() }
}

fn internal(message: &str) -> Failure {
    Failure { kind: Kind::Internal, message: message.to_owned() }
}
