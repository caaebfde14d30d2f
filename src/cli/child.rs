//! The command of `mount … -- COMMAND`, in the namespace that has the mount.

use std::ffi::OsString;
use std::io;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::process::{Command, ExitCode, ExitStatus};

use rustix::process::{Pid, Signal, kill_process};
use tokio::process::Child;
use tokio::signal::unix::{SignalKind, signal};

/// The exit status of shells for a command that there is not.
pub const NOT_FOUND: u8 = 127;
/// That for one that cannot be run.
const NOT_RUN: u8 = 126;

/// Becomes the command: it has this process' number, and its parent.
pub fn become_it(program: &OsString, arguments: &[OsString]) -> io::Error {
    Command::new(program).args(arguments).exec()
}

/// Runs the command to its end, for who has something left to do then. It gets the signals that ask this process to end. Those of a
/// terminal's keys it gets from the terminal.
///
/// # Errors
/// When it cannot be run.
pub async fn run(program: &OsString, arguments: &[OsString]) -> io::Result<ExitCode> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hang_up = signal(SignalKind::hangup())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut quit = signal(SignalKind::quit())?;
    let mut child = tokio::process::Command::new(program).args(arguments).spawn()?;
    loop {
        tokio::select! {
            status = child.wait() => return status.map(code),
            _ = terminate.recv() => pass_on(&child, Signal::TERM),
            _ = hang_up.recv() => pass_on(&child, Signal::HUP),
            _ = interrupt.recv() => {}
            _ = quit.recv() => {}
        }
    }
}

fn pass_on(child: &Child, signal: Signal) {
    let number = child.id().and_then(|number| i32::try_from(number).ok());
    if let Some(number) = number.and_then(Pid::from_raw) {
        // One that has ended needs no signal.
        let _ = kill_process(number, signal);
    }
}

/// The command's own status; 128 and its number when a signal ended it, as shells have it.
fn code(status: ExitStatus) -> ExitCode {
    let number = status.code().or_else(|| status.signal().map(|signal| 128 + signal));
    number.and_then(|number| u8::try_from(number).ok()).map_or(ExitCode::FAILURE, ExitCode::from)
}

/// The exit status for a command that did not run.
pub fn status_of(error: &io::Error) -> u8 {
    if error.kind() == io::ErrorKind::NotFound { NOT_FOUND } else { NOT_RUN }
}
