//! Locks, tasks and timeouts of code in which the order of what runs beside each other matters.
//!
//! They are those of std and tokio. In unit tests with the feature `interleavings` they are those of [shuttle](https://docs.rs/shuttle),
//! which runs one thread at a time, and at each of them chooses anew which that is: a test sees thousands of orders (`make
//! interleavings`).

use std::sync::PoisonError;
use std::time::Duration;

/// As [`std::sync::Mutex`].
#[cfg(not(all(test, feature = "interleavings")))]
pub type Mutex<T> = std::sync::Mutex<T>;
/// As [`std::sync::Mutex`].
#[cfg(all(test, feature = "interleavings"))]
pub type Mutex<T> = shuttle::sync::Mutex<T>;

/// As [`std::sync::MutexGuard`].
#[cfg(not(all(test, feature = "interleavings")))]
pub type MutexGuard<'a, T> = std::sync::MutexGuard<'a, T>;
/// As [`std::sync::MutexGuard`].
#[cfg(all(test, feature = "interleavings"))]
pub type MutexGuard<'a, T> = shuttle::sync::MutexGuard<'a, T>;

/// As [`std::sync::Condvar`].
#[cfg(not(all(test, feature = "interleavings")))]
pub type Condvar = std::sync::Condvar;
/// As [`std::sync::Condvar`].
#[cfg(all(test, feature = "interleavings"))]
pub type Condvar = shuttle::sync::Condvar;

/// What `mutex` protects. A thread that panicked has left it as it was between two changes, each of which is whole.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Waits for `condvar`, without the lock meanwhile.
pub fn wait<'a, T>(condvar: &Condvar, guard: MutexGuard<'a, T>) -> MutexGuard<'a, T> {
    condvar.wait(guard).unwrap_or_else(PoisonError::into_inner)
}

/// A moment at which others may go on, for what is shared without one of these locks.
pub fn moment() {
    #[cfg(all(test, feature = "interleavings"))]
    shuttle::thread::yield_now();
}

/// Runs `work` beside the caller, until it ends.
pub fn spawn(work: impl Future<Output = ()> + Send + 'static) {
    #[cfg(not(all(test, feature = "interleavings")))]
    drop(tokio::spawn(work)); // It goes on.
    #[cfg(all(test, feature = "interleavings"))]
    drop(shuttle::future::spawn(work)); // It goes on.
}

/// The outcome of `work`, or nothing when it takes longer than `time`.
pub async fn within<T>(time: Duration, work: impl Future<Output = T>) -> Option<T> {
    #[cfg(not(all(test, feature = "interleavings")))]
    let outcome = tokio::time::timeout(time, work).await.ok();
    #[cfg(all(test, feature = "interleavings"))]
    let outcome = shuttled::within(time, work).await;
    outcome
}

#[cfg(all(test, feature = "interleavings"))]
mod shuttled {
    use std::time::Duration;

    use shuttle::rand::Rng as _;

    /// Whatever `time` says, it may be over at any moment; only [`Duration::MAX`] never is.
    pub(super) async fn within<T>(time: Duration, work: impl Future<Output = T>) -> Option<T> {
        let mut work = std::pin::pin!(work);
        std::future::poll_fn(|context| {
            if let std::task::Poll::Ready(value) = work.as_mut().poll(context) {
                return std::task::Poll::Ready(Some(value));
            }
            if time == Duration::MAX {
                return std::task::Poll::Pending;
            }
            if shuttle::rand::thread_rng().gen_ratio(1, 8) {
                return std::task::Poll::Ready(None);
            }
            context.waker().wake_by_ref();
            std::task::Poll::Pending
        })
        .await
    }
}
