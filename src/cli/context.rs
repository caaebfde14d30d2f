//! What every command works with: a runtime, and the volumes of the store that its flags name.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::cli::args::Common;
use crate::cli::interrupt;
use crate::cli::output;
use crate::control::{client, wait};
use crate::failure::Failure;
use crate::host::blocking;
use crate::mount::locked::Lock;
use crate::mount::target::Policy;
use crate::node::pull_flags::PullFlags;
use crate::registry::addresses::Addresses;
use crate::registry::client::Registry;
use crate::store::space::budget::Budget;
use crate::volume::credentials::CredentialSources;
use crate::volume::permits::Permits;
use crate::volume::volumes::{MIN_AGE, Settings, Volumes};

/// Runs `work` of a command, which ends early when somebody wants it to: then what is kept is said.
///
/// # Errors
/// As [`run`].
pub fn run_command<T>(work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    run(GRACE, async {
        tokio::select! {
            biased;
            failure = interrupt::wanted() => Err(failure),
            result = work => result,
        }
    })
}

/// Runs `work`, and ends with it: what blocks meanwhile has `grace` to end, and is then left behind.
///
/// # Errors
/// Those of `work`; when there are no threads.
pub fn run<T>(grace: Duration, work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let runtime = runtime()?;
    let result = runtime.block_on(work);
    runtime.shutdown_timeout(grace);
    result
}

/// What a command waits for what it has begun, to clear it away.
pub const GRACE: Duration = Duration::from_secs(10);

/// The async runtime. Blocking work has threads of its own, and their number has a bound.
fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(std::thread::available_parallelism().map_or(2, |cores| cores.get().clamp(2, 4)))
        .max_blocking_threads(blocking::THREADS)
        .enable_all()
        .build()
        .map_err(|error| Failure::internal(&format!("cannot start threads: {error}")))
}

/// What commands work on whose store is open for them: here, after waiting for another command that has it, or in a plugin that can be
/// asked.
///
/// # Errors
/// When a flag cannot be used, or the store cannot be opened.
pub async fn store(common: &Common, pulls: Pulls) -> Result<Arc<Volumes>, Failure> {
    let volumes = volumes(common, pulls)?;
    let root = volumes.store_root();
    if client::is_served(root).await? {
        let unused: Vec<&str> =
            common.given.iter().map(String::as_str).filter(|flag| !OWN.contains(flag)).collect();
        if !unused.is_empty() {
            output::warn(&format!(
                "the plugin that holds {} pulls with its own settings; {} {} not used",
                root.display(),
                unused.join(", "),
                if unused.len() == 1 { "is" } else { "are" }
            ));
        }
    } else if !common.no_wait {
        wait::until_free(&volumes, |holder| output::note(&format!("waiting for {holder}"))).await?;
    }
    Ok(volumes)
}

/// Flags that are the command's own, also where a plugin does the work.
const OWN: [&str; 4] = ["--root", "--no-wait", "--output", "--docker-config"];

/// What a command does with registries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pulls {
    /// It pulls, as the flags say.
    AsFlagged,
    /// Nothing: flags about registries and pulls say nothing, be they right or wrong.
    None,
}

/// What commands work on, made from the common flags.
///
/// # Errors
/// When a flag cannot be used.
pub fn volumes(common: &Common, pulls: Pulls) -> Result<Arc<Volumes>, Failure> {
    let flags = match pulls {
        Pulls::AsFlagged => common.pulls(),
        Pulls::None => PullFlags::default(),
    };
    let (mut registry, pulls) =
        flags.check(Addresses::of_a_command()).map_err(|error| Failure::usage(&error.to_string()))?;
    registry.layouts = registry.layouts.of_a_command();
    let registry = Registry::new(registry).map_err(|error| Failure::internal(&error.to_string()))?;
    let settings = Settings {
        events: None,
        credentials: CredentialSources::default(),
        permits: Permits::default(),
        pulls,
        budget: Budget::COMMAND,
        pinned: BTreeSet::new(),
        min_age: MIN_AGE,
        policy: Policy::anywhere(),
        lock: Lock::All,
        warm: None,
    };
    Ok(Volumes::new(common.root()?, registry, settings, Default::default()))
}

/// The absolute path of `path`, as text, which is what crosses the socket.
///
/// # Errors
/// When there is none.
pub fn absolute(path: &Path) -> Result<String, Failure> {
    let path =
        std::path::absolute(path).map_err(|error| Failure::usage(&format!("{}: {error}", path.display())))?;
    path.into_os_string()
        .into_string()
        .map_err(|path| Failure::usage(&format!("{}: is not UTF-8", path.display())))
}
