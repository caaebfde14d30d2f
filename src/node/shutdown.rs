//! How the plugin ends: told by a signal, and within the grace period of its pod whatever it is doing.

use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

/// Time for calls to end after SIGTERM.
pub(crate) const DRAIN: Duration = Duration::from_secs(12);
/// How long the command line's operations may then take.
pub(in crate::node) const CONTROL: Duration = Duration::from_secs(2);
/// How long downloads may take to note how far they are.
pub(in crate::node) const THREADS: Duration = Duration::from_secs(2);
/// How long the disk may take for what is not durable yet.
pub(in crate::node) const FLUSH: Duration = Duration::from_secs(5);
/// How long the last traces may take.
pub(in crate::node) const TRACES: Duration = Duration::from_secs(1);
/// How long what blocks may take: what is left behind then is cleared at the next start.
pub const GRACE: Duration = Duration::from_secs(3);

/// Kubernetes kills after 30 s, and all these times together are clearly less.
const _: () = assert!(
    DRAIN.as_secs()
        + CONTROL.as_secs()
        + THREADS.as_secs()
        + FLUSH.as_secs()
        + TRACES.as_secs()
        + GRACE.as_secs()
        <= 25
);

/// Becomes true when the process is told to end.
pub async fn stop_on_signal(stop: watch::Sender<bool>) {
    let (Ok(mut terminate), Ok(mut interrupt)) =
        (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        return tracing::error!("cannot handle signals");
    };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    stop.send_replace(true);
}

/// Ends when `stop` is true.
pub(crate) async fn wait_for(mut stop: watch::Receiver<bool>) {
    // A dropped sender means the same: nobody is left who could want this to go on.
    let _ = stop.wait_for(|stop| *stop).await;
}
