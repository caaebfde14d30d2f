//! Programs that the operator configured, and that print credentials: kubelet's credential providers and Docker's helpers.
//!
//! A program is run by its absolute path, with the arguments that the configuration gives; no shell and no `PATH` takes part. It has the
//! environment of this process and what the configuration adds. What it is asked goes to its standard input alone. What it writes to
//! standard error goes nowhere: it may hold credentials, and who wants to see it runs the program by hand.

#![cfg_attr(not(test), deny(clippy::indexing_slicing))]

use std::fmt;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::Child;
use tokio::runtime::Handle;
use zeroize::Zeroizing;

use crate::host::blocking::{self, Lane};
use crate::host::{limits, orphans};
use crate::registry::credentials::secret::Secret;

/// Bytes that a program may print. There is room for them at once, so that no copies are made.
pub(in crate::registry) const OUTPUT_LIMIT: usize = limits::PROGRAM_OUTPUT;

/// A program, and how it is run.
#[derive(Debug, Clone)]
pub(in crate::registry) struct Command {
    /// Its absolute path.
    pub program: PathBuf,
    /// What follows its name.
    pub arguments: Vec<String>,
    /// What is added to the environment of this process. May hold secrets.
    pub environment: Vec<(String, Secret)>,
    /// How long it may take. Then it is killed, with all that it has started and that is still in its process group.
    pub limit: Duration,
}

/// What a program printed, and how it ended. The memory is overwritten when it is dropped.
pub(in crate::registry) struct Output {
    /// How it ended.
    pub exit: Exit,
    /// Its standard output, which is at most [`OUTPUT_LIMIT`] bytes.
    pub text: Zeroizing<Vec<u8>>,
}

/// How a program ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// By itself, with this status; 0 is success.
    Status(i32),
    /// By this signal.
    Signal(i32),
}

impl fmt::Display for Exit {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Status(status) => write!(out, "it exited with status {status}"),
            Self::Signal(signal) => write!(out, "signal {signal} ended it"),
        }
    }
}

impl From<ExitStatus> for Exit {
    fn from(status: ExitStatus) -> Self {
        match (status.code(), status.signal()) {
            (Some(code), _) => Self::Status(code),
            (None, signal) => Self::Signal(signal.unwrap_or_default()),
        }
    }
}

/// Why a program gave no answer. Nothing that it printed is in here.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CommandError {
    /// The kernel does not run it.
    #[error(
        "it cannot be started: {reason}; check that the file is there, is executable, and was built for this machine \
         (a script needs its interpreter, a dynamic program its libraries, in ocivol's container)"
    )]
    Start {
        /// The kernel's word.
        reason: String,
    },
    /// It did not end in time.
    #[error(
        "it did not end within {} s and was killed; check what it waits for: often a metadata service or a token server that \
         ocivol's container does not reach", after.as_secs_f32()
    )]
    TooSlow {
        /// The limit.
        after: Duration,
    },
    /// It printed more than any answer has.
    #[error("it printed more than {OUTPUT_LIMIT} bytes and was killed; run it by hand to see what")]
    TooMuch,
    /// Its output cannot be read, or its end not be waited for.
    #[error("its answer cannot be read: {reason}; kubelet tries the volume again")]
    Broken {
        /// The kernel's word.
        reason: String,
    },
}

/// Why `program` cannot be one that is run, or `None`: it has to be an executable file, by its absolute path. Blocks.
pub(in crate::registry) fn objection(program: &Path) -> Option<String> {
    if !program.is_absolute() {
        return Some("the path is not absolute".to_owned());
    }
    match std::fs::metadata(program) {
        Err(error) => Some(error.to_string()),
        Ok(found) if !found.is_file() => Some("it is not a file".to_owned()),
        Ok(found) if found.permissions().mode() & 0o111 == 0 => Some("it is not executable".to_owned()),
        Ok(_) => None,
    }
}

impl Command {
    /// Runs the program with `input` as its standard input, and waits for its end. Whether that is a success is for the caller to see.
    ///
    /// Who no longer waits has it killed.
    ///
    /// # Errors
    /// [`CommandError`] when it cannot be started, or breaks a bound; then it is killed.
    pub async fn run(&self, input: Zeroizing<Vec<u8>>) -> Result<Output, CommandError> {
        let limit = self.limit;
        let ends = async {
            // Starting waits until the kernel has read the file.
            let command = self.clone();
            let started = blocking::run(Lane::Store, move || command.start()).await;
            let running = started.map_err(|error| CommandError::Start { reason: error.to_string() })?;
            running.end(&input).await
        };
        // Here all that is not at its end is dropped, and so killed.
        tokio::time::timeout(limit, ends).await.unwrap_or(Err(CommandError::TooSlow { after: limit }))
    }

    fn start(&self) -> std::io::Result<Running> {
        let child = tokio::process::Command::new(&self.program)
            .args(&self.arguments)
            .envs(self.environment.iter().map(|(name, value)| (name, value.reveal())))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .process_group(0)
            .kill_on_drop(true)
            .spawn()?;
        Ok(Running(Some(child)))
    }
}

/// A program that runs. When this is dropped before its end, it is killed with its process group.
struct Running(Option<Child>);

impl Running {
    async fn end(mut self, input: &[u8]) -> Result<Output, CommandError> {
        let broken = |error: std::io::Error| CommandError::Broken { reason: error.to_string() };
        let gone = || CommandError::Broken { reason: "it is gone".to_owned() };
        let (stdin, stdout) = {
            let child = self.0.as_mut().ok_or_else(gone)?;
            (child.stdin.take(), child.stdout.take())
        };
        let write = async {
            if let Some(mut stdin) = stdin {
                // A program that does not read what it is asked may still answer. The pipe is closed by the drop.
                let _ = stdin.write_all(input).await;
            }
        };
        let mut text = Zeroizing::new(Vec::with_capacity(OUTPUT_LIMIT + 1));
        let read = async {
            let Some(stdout) = stdout else { return Ok(()) };
            stdout.take(OUTPUT_LIMIT as u64 + 1).read_to_end(&mut text).await.map_err(broken)?;
            if text.len() > OUTPUT_LIMIT { Err(CommandError::TooMuch) } else { Ok(()) }
        };
        {
            // Not `join`: when all of the output is there, or too much, it does not matter whether the program reads what it is asked.
            tokio::pin!(write);
            tokio::pin!(read);
            tokio::select! {
                biased;
                read = &mut read => read?,
                () = &mut write => read.await?,
            }
        }
        // Only now, so that as long as anything is read the process is not waited for, and its id is nobody else's.
        let group = group_of(&self.0);
        let status = self.0.as_mut().ok_or_else(gone)?.wait().await.map_err(broken)?;
        if let Some(group) = group {
            orphans::bury(group);
        }
        Ok(Output { exit: status.into(), text })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // There is none when it has been waited for.
        let Some(group) = group_of(&self.0) else { return };
        // Who is gone need not be killed.
        let _ = kill_process_group(group, Signal::KILL);
        let (Some(mut child), Ok(runtime)) = (self.0.take(), Handle::try_current()) else { return };
        runtime.spawn(async move {
            let _ = child.wait().await;
            orphans::bury(group);
        });
    }
}

/// The process group of a program that has not been waited for: its id is the program's.
fn group_of(child: &Option<Child>) -> Option<Pid> {
    child.as_ref()?.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw)
}

#[cfg(test)]
pub(in crate::registry) mod tests {
    use std::io::Write as _;

    use super::*;

    /// Long enough for whatever the machine has to do meanwhile.
    pub(in crate::registry) const LONG: Duration = Duration::from_secs(50);

    /// A script in `directory`. Another process writes it: while a file is open for that, the kernel does not run it, and each
    /// program that a test beside this one starts has what is open here for a moment.
    pub(in crate::registry) fn script(directory: &Path, name: &str, text: &str) -> PathBuf {
        let path = directory.join(name);
        let mut shell = std::process::Command::new("/bin/sh")
            .args(["-c", "cat >\"$0\" && chmod 755 \"$0\""])
            .arg(&path)
            .stdin(Stdio::piped())
            .spawn()
            .expect("a shell");
        let mut stdin = shell.stdin.take().expect("a pipe");
        stdin.write_all(format!("#!/bin/sh\n{text}").as_bytes()).expect("written");
        drop(stdin);
        assert!(shell.wait().expect("it ends").success());
        path
    }

    fn command(directory: &Path, text: &str, limit: Duration) -> Command {
        let program = script(directory, "program", text);
        Command { program, arguments: Vec::new(), environment: Vec::new(), limit }
    }

    fn bytes(text: &str) -> Zeroizing<Vec<u8>> {
        Zeroizing::new(text.as_bytes().to_vec())
    }

    async fn output(text: &str, input: &str) -> Result<(Exit, String), CommandError> {
        let directory = tempfile::tempdir().expect("a directory");
        let output = command(directory.path(), text, LONG).run(bytes(input)).await?;
        Ok((output.exit, String::from_utf8(output.text.to_vec()).expect("UTF-8")))
    }

    /// Waits until the process whose id is in `file` runs no more.
    async fn ended(file: &Path) {
        let id = std::fs::read_to_string(file).expect("written");
        let runs = || {
            let stat = std::fs::read_to_string(format!("/proc/{}/stat", id.trim())).unwrap_or_default();
            stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
        };
        let all_ended = async {
            while runs() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(LONG, all_ended).await.expect("it is killed");
    }

    #[tokio::test]
    async fn t53_no_shell_reads_what_a_program_is_given() {
        let directory = tempfile::tempdir().expect("a directory");
        let hostile = "$(touch /tmp/x); `id` | 'a' \"b\" *\n&";
        let mut command = command(directory.path(), r#"printf '%s|%s|%s|' "$#" "$1" "$ADDED"; cat"#, LONG);
        command.arguments = vec![hostile.to_owned()];
        command.environment = vec![("ADDED".to_owned(), Secret::new(hostile))];
        let output = command.run(bytes(hostile)).await.expect("it runs");
        assert_eq!(*output.text, format!("1|{hostile}|{hostile}|{hostile}").into_bytes());
        let printed = format!("{command:?}");
        assert!(printed.contains("ADDED: ***") || printed.contains(r#"("ADDED", ***)"#), "{printed}");
    }

    #[tokio::test]
    async fn how_a_program_ends_is_told() {
        assert_eq!(output("echo no; exit 3", "").await, Ok((Exit::Status(3), "no\n".to_owned())));
        assert_eq!(output("kill -9 $$", "").await, Ok((Exit::Signal(9), String::new())));
        assert_eq!(Exit::Status(3).to_string(), "it exited with status 3");
        assert_eq!(Exit::Signal(9).to_string(), "signal 9 ended it");
    }

    #[tokio::test]
    async fn a_program_need_not_read_what_it_is_asked_nor_keep_its_output_open() {
        let much = "x".repeat(1_000_000);
        assert_eq!(output("echo done", &much).await, Ok((Exit::Status(0), "done\n".to_owned())));
        assert_eq!(output("exec >&-; cat; exit 0", "").await, Ok((Exit::Status(0), String::new())));
        let read = output("wc -c", &much).await.expect("it runs");
        assert_eq!(read.1.trim(), "1000000");
    }

    #[tokio::test]
    async fn what_is_too_much_ends_the_program() {
        assert_eq!(output("yes", "").await, Err(CommandError::TooMuch));
        let most = format!("head -c {OUTPUT_LIMIT} /dev/zero");
        assert_eq!(output(&most, "").await.expect("as much as there may be").1.len(), OUTPUT_LIMIT);
        let loud = "head -c 3000000 /dev/zero >&2; echo done";
        assert_eq!(output(loud, "").await, Ok((Exit::Status(0), "done\n".to_owned())));
    }

    #[tokio::test]
    async fn what_takes_too_long_is_killed_with_all_that_it_started() {
        let directory = tempfile::tempdir().expect("a directory");
        let id = directory.path().join("id");
        let text = format!("sleep 1000 & echo $! >'{0}.part'; mv '{0}.part' '{0}'; wait", id.display());
        let command = command(directory.path(), &text, Duration::from_millis(500));
        let error = command.run(bytes("")).await.err();
        assert_eq!(error, Some(CommandError::TooSlow { after: Duration::from_millis(500) }));
        ended(&id).await;
        assert!(error.is_some_and(|error| error.to_string().contains("within 0.5 s")));
    }

    #[tokio::test]
    async fn regression_what_a_program_leaves_behind_does_not_stay_in_the_table_of_processes() {
        // As for process 1 of a container: who loses its parent is a child of this process.
        rustix::process::set_child_subreaper(Some(rustix::process::getpid())).expect("a subreaper");
        let directory = tempfile::tempdir().expect("a directory");
        let id = directory.path().join("id");
        let left = format!(
            "sleep 0.1 >/dev/null & echo $! >'{0}.part'; mv '{0}.part' '{0}'; echo done",
            id.display()
        );
        let killed = format!("sleep 1000 & echo $! >'{0}.part'; mv '{0}.part' '{0}'; wait", id.display());
        for (text, limit) in [(left, LONG), (killed, Duration::from_millis(500))] {
            let _ = command(directory.path(), &text, limit).run(bytes("")).await;
            let left = format!("/proc/{}", std::fs::read_to_string(&id).expect("written").trim());
            let gone = async {
                while Path::new(&left).exists() {
                    output("true", "").await.expect("another program");
                }
            };
            tokio::time::timeout(LONG, gone).await.expect("it is waited for");
        }
    }

    #[tokio::test]
    async fn nobody_waits_and_the_program_is_killed() {
        let directory = tempfile::tempdir().expect("a directory");
        let id = directory.path().join("id");
        let text = format!("sleep 1000 & echo $! >'{0}.part'; mv '{0}.part' '{0}'; wait", id.display());
        let command = command(directory.path(), &text, LONG);
        let task = tokio::spawn(async move { command.run(bytes("")).await.err() });
        while !id.exists() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        task.abort();
        ended(&id).await;
    }

    #[tokio::test]
    async fn what_cannot_be_run_is_told() {
        let directory = tempfile::tempdir().expect("a directory");
        let file = directory.path().join("file");
        std::fs::write(&file, "text").expect("written");
        assert_eq!(objection(&file).as_deref(), Some("it is not executable"));
        assert_eq!(objection(directory.path()).as_deref(), Some("it is not a file"));
        assert_eq!(objection(Path::new("sh")).as_deref(), Some("the path is not absolute"));
        assert!(objection(&directory.path().join("none")).is_some_and(|text| text.contains("No such file")));
        assert_eq!(objection(Path::new("/bin/sh")), None);
        let command = Command { program: file, arguments: Vec::new(), environment: Vec::new(), limit: LONG };
        let error = command.run(bytes("")).await.err().expect("not started");
        assert!(error.to_string().contains("Permission denied"), "{error}");
    }
}
