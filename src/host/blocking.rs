//! Work that blocks, away from the threads of async code.
//!
//! There are lanes, so that long work never keeps short work from a thread: each has threads of its own, and the runtime has
//! as many as all lanes together. What runs as long as a network takes ([`on_own_thread`]) is in none of them.

use std::panic::AssertUnwindSafe;
use std::sync::LazyLock;

use tokio::sync::{Semaphore, oneshot, watch};

use crate::host::failpoint;

/// What work waits with for a thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lane {
    /// Mounts, unmounts, the mount table, answers to kubelet: milliseconds, and nothing may hold them up.
    Mounts,
    /// Looks into the store, and small writes: mostly milliseconds, and as slow as the disk.
    Store,
    /// What takes seconds: merges, first looks at what is not known to be sound, parsing of large manifests.
    Work,
}

/// Threads of each lane.
const MOUNTS: usize = 32;
const STORE: usize = 48;
const WORK: usize = 16;
/// Look-ups of the addresses of hosts at a time, which take as long as name servers do: those of a host that does not answer go on
/// although nobody waits any more.
pub const LOOKUPS: usize = 64;
/// Threads of all lanes, and of look-ups.
pub const THREADS: usize = MOUNTS + STORE + WORK + LOOKUPS;

/// Threads of [`on_own_thread`] that run.
static OWN: LazyLock<watch::Sender<usize>> = LazyLock::new(|| watch::Sender::new(0));

static LANES: LazyLock<[Semaphore; 3]> = LazyLock::new(|| [MOUNTS, STORE, WORK].map(Semaphore::new));

/// Runs `work`, which may block, on a thread of `lane`. It is finished although nobody may wait for it any more.
pub async fn run<T: Send + 'static>(lane: Lane, work: impl FnOnce() -> T + Send + 'static) -> T {
    let [mounts, store, long] = &*LANES;
    let lane = match lane {
        Lane::Mounts => mounts,
        Lane::Store => store,
        Lane::Work => long,
    };
    // Nobody closes them; without a permit the work waits for the runtime's own bound.
    let turn = lane.acquire().await.ok();
    let work = move || {
        let _turn = turn;
        failpoint::delay();
        let value = work();
        failpoint::delay();
        value
    };
    match tokio::task::spawn_blocking(work).await {
        Ok(value) => value,
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        // The runtime is going down, and this future with it.
        Err(_) => std::future::pending().await,
    }
}

/// Runs `work` on a thread that is made for it, which takes some tens of microseconds. *Caller:* bounds how many there are.
///
/// # Errors
/// The kernel's, when it gives no thread.
pub async fn on_own_thread<T: Send + 'static>(
    name: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> std::io::Result<T> {
    let (sender, receiver) = oneshot::channel();
    let work = AssertUnwindSafe(work);
    let running = Running::start();
    std::thread::Builder::new().name(name.to_owned()).spawn(move || {
        // Who no longer waits does not need it; then it is dropped here.
        failpoint::delay();
        drop(sender.send(std::panic::catch_unwind(work)));
        drop(running);
    })?;
    match receiver.await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(panic)) => std::panic::resume_unwind(panic),
        Err(_) => std::future::pending().await,
    }
}

/// Ends when no thread of [`on_own_thread`] runs any more.
pub async fn own_threads_ended() {
    // The sender is static.
    let _ = OWN.subscribe().wait_for(|running| *running == 0).await;
}

/// Counts a thread as long as it is there.
struct Running;

impl Running {
    fn start() -> Self {
        OWN.send_modify(|running| *running += 1);
        Self
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        OWN.send_modify(|running| *running -= 1);
    }
}

/// A value whose drop blocks, in async code: it may remove a million files. It is dropped on a thread for that.
pub struct DropAway<T: Send + 'static>(Option<T>);

impl<T: Send + 'static> DropAway<T> {
    /// Takes care of `value`.
    pub fn new(value: T) -> Self {
        Self(Some(value))
    }

    /// The value; there always is one.
    pub fn get(&self) -> Option<&T> {
        self.0.as_ref()
    }

    /// The value, for who may block.
    pub fn into_inner(mut self) -> Option<T> {
        self.0.take()
    }
}

impl<T: Send + 'static> Drop for DropAway<T> {
    fn drop(&mut self) {
        let Some(value) = self.0.take() else { return };
        if tokio::runtime::Handle::try_current().is_ok() {
            // Without a thread it is dropped where it is.
            let running = Running::start();
            let _ = std::thread::Builder::new().name("drop".into()).spawn(move || {
                drop(value);
                drop(running);
            });
        }
    }
}
