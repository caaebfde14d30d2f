//! Namespaces for each test: whatever it mounts is gone with its thread and its processes.

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

/// Runs `test` in a mount and a network namespace of its own: its mounts and its ports are nobody else's.
pub fn isolated(test: impl Future<Output = ()>) {
    unshare(CloneFlags::CLONE_NEWNET)
        .unwrap_or_else(|error| panic!("this test needs root: {error}; run `sudo make test`"));
    let up = std::process::Command::new("ip").args(["link", "set", "lo", "up"]).status();
    let up =
        up.unwrap_or_else(|error| panic!("ip cannot be started: {error}; run `apt-get install iproute2`"));
    assert!(up.success(), "the loopback interface cannot be set up");
    separate_mounts();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    runtime.expect("a runtime").block_on(test);
}

/// Moves this thread, and the threads and processes it starts, into a new mount namespace.
pub fn separate_mounts() {
    unshare(CloneFlags::CLONE_NEWNS)
        .unwrap_or_else(|error| panic!("this test mounts and needs root: {error}; run `sudo make test`"));
    let none: Option<&str> = None;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).expect("private mounts");
}
