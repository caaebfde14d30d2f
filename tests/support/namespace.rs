//! A mount namespace for each test: whatever it mounts is gone with its thread and its processes.

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

/// Runs `test` in a mount namespace of its own.
pub fn isolated(test: impl Future<Output = ()>) {
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
