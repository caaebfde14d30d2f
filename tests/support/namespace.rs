//! A process and namespaces for each test: whatever it mounts is gone with them.

use std::process::{Command, Stdio};
use std::time::Duration;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

/// Set in the process of one test.
const ALONE: &str = "OCIVOL_TEST_ALONE";

/// No test takes longer that does not say so.
pub const LONGEST: Duration = Duration::from_secs(20 * 60);

/// What an environment may have that is not for what is on loopback.
const PROXIES: [&str; 6] =
    ["HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"];

/// Runs `test` in a process, a mount and a network namespace of its own: its mounts and its ports are nobody else's.
///
/// Nor are its open files: a process that a test of another thread starts has all of them until it executes its program,
/// and what is open on a mount keeps it busy.
pub fn isolated(test: impl Future<Output = ()>) {
    isolated_for(LONGEST, test);
}

/// The same for a test that may take so long.
pub fn isolated_for(longest: Duration, test: impl Future<Output = ()>) {
    if std::env::var_os(ALONE).is_none() {
        return in_a_process();
    }
    unshare(CloneFlags::CLONE_NEWNET)
        .unwrap_or_else(|error| panic!("this test needs root: {error}; run `sudo make test`"));
    let up = Command::new("ip").args(["link", "set", "lo", "up"]).status();
    let up =
        up.unwrap_or_else(|error| panic!("ip cannot be started: {error}; run `apt-get install iproute2`"));
    assert!(up.success(), "the loopback interface cannot be set up");
    separate_mounts();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    runtime.expect("a runtime").block_on(async {
        tokio::time::timeout(longest, test).await.expect("the test does not end");
    });
}

/// Runs the test of this thread again, alone.
fn in_a_process() {
    let thread = std::thread::current();
    let name = thread.name().filter(|name| name.contains("::")).expect("a test's thread has its name");
    let mut command = Command::new(std::env::current_exe().expect("a path"));
    command.args([name, "--exact", "--nocapture"]).env(ALONE, "1").env("LC_ALL", "C").stdin(Stdio::null());
    for name in PROXIES {
        command.env_remove(name);
    }
    let output = command.output().expect("the test program starts");
    // Captured with this test's output.
    print!("{}", String::from_utf8_lossy(&output.stdout));
    print!("{}", String::from_utf8_lossy(&output.stderr));
    let ran = String::from_utf8_lossy(&output.stdout).contains("test result: ok. 1 passed");
    assert!(output.status.success() && ran, "{name}: {}", output.status);
}

/// Moves this thread, and the threads and processes it starts, into a new mount namespace.
pub fn separate_mounts() {
    unshare(CloneFlags::CLONE_NEWNS)
        .unwrap_or_else(|error| panic!("this test mounts and needs root: {error}; run `sudo make test`"));
    let none: Option<&str> = None;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).expect("private mounts");
}
