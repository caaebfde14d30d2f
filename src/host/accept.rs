//! Connections that are made to a listener, also while there are no descriptors for more.
//!
//! When accept(2) fails because the process or the machine has no descriptor or no memory left, the connection stays
//! in the listener's queue, and the listener stays readable. Whoever tries again at once does nothing else any more.
//! So there is a pause before the next attempt, and one line in the log for all attempts that fail in a row.

use std::error::Error;
use std::io;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::{Stream, stream};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::time::Instant;

/// The pause after the first failure; it doubles with each further one, up to [`LONGEST_PAUSE`].
const SHORTEST_PAUSE: Duration = Duration::from_millis(100);
/// The longest pause. Nobody waits longer for a connection once there are descriptors again.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// Failures that follow each other within this time are one episode, of which one line is logged.
const EPISODE: Duration = Duration::from_secs(60);

/// A socket that others connect to.
pub trait Listener {
    /// A connection to it.
    type Connection;

    /// The next connection, as `TcpListener::poll_accept` gives it.
    fn poll_accept(&self, context: &mut Context<'_>) -> Poll<io::Result<Self::Connection>>;

    /// What the log calls it.
    fn name(&self) -> String;
}

/// The connections that are made to `listener`. The stream never ends; failures are waited out.
pub fn connections<L: Listener>(listener: L) -> impl Stream<Item = L::Connection> {
    stream::unfold((listener, Patience::default()), async |(listener, mut patience)| {
        loop {
            match std::future::poll_fn(|context| listener.poll_accept(context)).await {
                Ok(connection) => {
                    patience.succeeded();
                    return Some((connection, (listener, patience)));
                }
                Err(error) if concerns_one_connection(&error) => {
                    tracing::debug!(listener = listener.name(), %error, "a connection ended before it was accepted");
                }
                Err(error) => {
                    let (pause, begins) = patience.failed(Instant::now());
                    if begins {
                        tracing::warn!(listener = listener.name(), %error, "cannot accept connections; trying again");
                    }
                    tokio::time::sleep(pause).await;
                }
            }
        }
    })
}

/// How long to wait after failures.
#[derive(Default)]
struct Patience {
    /// The pause after the last failure; nothing when an attempt has succeeded since.
    pause: Duration,
    last_failure: Option<Instant>,
}

impl Patience {
    /// The pause after a failure at `now`, and whether an episode begins with it.
    fn failed(&mut self, now: Instant) -> (Duration, bool) {
        let begins = self.last_failure.is_none_or(|last| now - last > EPISODE);
        self.last_failure = Some(now);
        self.pause = (self.pause * 2).clamp(SHORTEST_PAUSE, LONGEST_PAUSE);
        (self.pause, begins)
    }

    fn succeeded(&mut self) {
        self.pause = Duration::ZERO;
    }
}

/// Whether `error`, or what caused it, is that the process or the machine has no descriptors or memory left.
pub fn is_shortage(error: &(dyn Error + 'static)) -> bool {
    let number = error.downcast_ref::<io::Error>().and_then(io::Error::raw_os_error);
    let here = matches!(number, Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM));
    here || error.source().is_some_and(is_shortage)
}

/// Whether the failure took its connection out of the queue, so that the next attempt is about another one: the
/// network's errors of `man 2 accept`, "Error handling".
fn concerns_one_connection(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(
            libc::ECONNABORTED
                | libc::ECONNRESET
                | libc::EINTR
                | libc::EPROTO
                | libc::ENOPROTOOPT
                | libc::ENETDOWN
                | libc::ENETUNREACH
                | libc::EHOSTDOWN
                | libc::EHOSTUNREACH
                | libc::ENONET
        )
    )
}

impl Listener for TcpListener {
    type Connection = TcpStream;

    fn poll_accept(&self, context: &mut Context<'_>) -> Poll<io::Result<TcpStream>> {
        Self::poll_accept(self, context).map_ok(|(connection, _)| connection)
    }

    fn name(&self) -> String {
        self.local_addr().map_or_else(|error| error.to_string(), |address| address.to_string())
    }
}

impl Listener for UnixListener {
    type Connection = UnixStream;

    fn poll_accept(&self, context: &mut Context<'_>) -> Poll<io::Result<UnixStream>> {
        Self::poll_accept(self, context).map_ok(|(connection, _)| connection)
    }

    fn name(&self) -> String {
        let address = self.local_addr().ok();
        let path = address.as_ref().and_then(|address| address.as_pathname());
        path.map_or_else(|| "a socket without a name".to_owned(), |path| path.display().to_string())
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use futures_util::StreamExt as _;

    use super::*;

    /// Answers each attempt with the next of a list: an error number, or a connection.
    struct Scripted(RefCell<Vec<Option<i32>>>);

    impl Listener for Scripted {
        type Connection = ();

        fn poll_accept(&self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(
                self.0
                    .borrow_mut()
                    .remove(0)
                    .map_or(Ok(()), |error| Err(io::Error::from_raw_os_error(error))),
            )
        }

        fn name(&self) -> String {
            "a test".to_owned()
        }
    }

    /// Milliseconds until the stream has given a connection.
    async fn waited(answers: &[Option<i32>]) -> u128 {
        let began = Instant::now();
        let script = answers.iter().copied().chain([None]).collect();
        let mut connections = std::pin::pin!(connections(Scripted(RefCell::new(script))));
        connections.next().await.expect("it never ends");
        began.elapsed().as_millis()
    }

    #[tokio::test(start_paused = true)]
    async fn the_pause_doubles_up_to_a_second() {
        for error in [libc::EMFILE, libc::ENFILE, libc::ENOBUFS, libc::ENOMEM] {
            assert_eq!(waited(&[Some(error)]).await, 100);
        }
        assert_eq!(waited(&[Some(libc::EMFILE); 3]).await, 100 + 200 + 400);
        assert_eq!(waited(&[Some(libc::EMFILE); 6]).await, 100 + 200 + 400 + 800 + 1000 + 1000);
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_ended_early_costs_no_time() {
        assert_eq!(waited(&[Some(libc::ECONNABORTED), Some(libc::EINTR), Some(libc::EPROTO)]).await, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn an_episode_is_logged_once_and_goes_on_over_a_success() {
        let mut patience = Patience::default();
        let began = Instant::now();
        let at = |seconds| began + Duration::from_secs(seconds);
        assert_eq!(patience.failed(at(0)), (SHORTEST_PAUSE, true));
        assert_eq!(patience.failed(at(1)), (SHORTEST_PAUSE * 2, false));
        patience.succeeded();
        assert_eq!(patience.failed(at(2)), (SHORTEST_PAUSE, false));
        assert_eq!(patience.failed(at(63)), (SHORTEST_PAUSE * 2, true));
    }
}
