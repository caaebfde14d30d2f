//! Work that one thread finds and several do.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Mutex, PoisonError};

/// Those who do what is found. Dropped, they end when everything is done.
pub struct Crew<'a, T, E> {
    work: &'a (dyn Fn(T) -> Result<(), E> + Sync),
    /// Nothing without helpers.
    waiting: Option<SyncSender<T>>,
    failure: &'a Failure<E>,
}

/// The first error of any of them.
struct Failure<E> {
    is_there: AtomicBool,
    error: Mutex<Option<E>>,
}

/// Helpers of one leader, however many cores there are.
pub const MOST: usize = 3;
/// Who helps with one kind of work: of all leaders together no more than the machine has cores beside one.
pub struct Pool(AtomicUsize);

/// Links of trees.
pub static LINKS: Pool = Pool(AtomicUsize::new(0));
/// Small files of layers.
pub static SMALL_FILES: Pool = Pool(AtomicUsize::new(0));

/// Pieces of work that wait for a helper. With more the leader does one.
const WAITING: usize = 2;

/// Cores for helpers, as long as nobody else has them for the same work. Nobody waits for one: without it takes longer, and nothing else.
pub struct SpareCores {
    count: usize,
    pool: &'static Pool,
}

impl SpareCores {
    /// As many as there are, and make sense, and at most `most`.
    pub fn take(pool: &'static Pool, most: usize) -> Self {
        let all = std::thread::available_parallelism().map_or(0, |cores| cores.get() - 1);
        let mut count = 0;
        // The closure always gives a value.
        let _ = pool.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| {
            count = all.saturating_sub(used).min(most);
            Some(used + count)
        });
        Self { count, pool }
    }

    /// How many they are.
    pub fn count(&self) -> usize {
        self.count
    }
}

impl Drop for SpareCores {
    fn drop(&mut self) {
        self.pool.0.fetch_sub(self.count, Ordering::Relaxed);
    }
}

/// Runs `lead`, which gives pieces of work to a crew of itself and `helpers` more threads of this name. It ends when all of them are done.
///
/// # Errors
/// The first one, of `lead` or of `work`. What is not begun by then is not done.
pub fn with_helpers<T: Send, R, E: Send>(
    helpers: usize,
    name: &str,
    work: &(dyn Fn(T) -> Result<(), E> + Sync),
    lead: impl FnOnce(&Crew<'_, T, E>) -> Result<R, E>,
) -> Result<R, E> {
    let failure = Failure { is_there: AtomicBool::new(false), error: Mutex::new(None) };
    let (sender, receiver) = sync_channel::<T>(WAITING);
    let receiver = Mutex::new(receiver);
    let help = || {
        loop {
            let next = receiver.lock().unwrap_or_else(PoisonError::into_inner).recv();
            let Ok(next) = next else { return };
            if !failure.is_there.load(Ordering::Relaxed)
                && let Err(error) = work(next)
            {
                failure.note(error);
            }
        }
    };
    let led = std::thread::scope(|scope| {
        // Without any of these threads it takes longer, and nothing else.
        let start =
            |_: &usize| std::thread::Builder::new().name(name.into()).spawn_scoped(scope, help).is_ok();
        let started = (0..helpers).filter(start).count();
        let crew = Crew { work, waiting: (started > 0).then_some(sender), failure: &failure };
        let led = lead(&crew);
        if led.is_err() {
            failure.is_there.store(true, Ordering::Relaxed);
        }
        drop(crew);
        // What waits still the leader does as well.
        help();
        led
    })?;
    match failure.error.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some(error) => Err(error),
        None => Ok(led),
    }
}

impl<T, E> Crew<'_, T, E> {
    /// Has `piece` done: by a helper, or at once when all have enough to do.
    ///
    /// # Errors
    /// The first that there was, of whatever piece.
    pub fn give(&self, piece: T) -> Result<(), E> {
        if self.failure.is_there.load(Ordering::Relaxed)
            && let Some(error) = self.failure.error.lock().unwrap_or_else(PoisonError::into_inner).take()
        {
            return Err(error);
        }
        let own = match &self.waiting {
            Some(waiting) => waiting.try_send(piece).err().map(|refused| match refused {
                std::sync::mpsc::TrySendError::Full(piece)
                | std::sync::mpsc::TrySendError::Disconnected(piece) => piece,
            }),
            None => Some(piece),
        };
        own.map_or(Ok(()), self.work)
    }
}

impl<E> Failure<E> {
    fn note(&self, error: E) {
        self.error.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
        self.is_there.store(true, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU64;

    use super::*;

    #[test]
    fn cores_are_given_to_one_leader_at_a_time() {
        let all = std::thread::available_parallelism().map_or(0, |cores| cores.get() - 1);
        static POOL: Pool = Pool(AtomicUsize::new(0));
        let leaders: Vec<_> = (0..100).map(|_| SpareCores::take(&POOL, MOST)).collect();
        assert!(leaders.iter().map(SpareCores::count).sum::<usize>() <= all);
        assert!(leaders.iter().all(|cores| cores.count() <= MOST));
        drop(leaders);
        assert_eq!(SpareCores::take(&POOL, 1).count(), all.min(1));
        assert_eq!(SpareCores::take(&POOL, 0).count(), 0);
    }

    #[test]
    fn everything_is_done_once_however_many_help() {
        for helpers in [0, 1, 3] {
            let sum = AtomicU64::new(0);
            let add = |number: u64| {
                sum.fetch_add(number, Ordering::SeqCst);
                Ok::<_, String>(())
            };
            let led = with_helpers(helpers, "help", &add, |crew| {
                (1..=1000).try_for_each(|number| crew.give(number))?;
                Ok("led")
            });
            assert_eq!((led.expect("no error"), sum.into_inner()), ("led", 500_500));
        }
    }

    #[test]
    fn the_first_error_is_the_result_and_ends_the_rest() {
        for helpers in [0, 1, 3] {
            let done = AtomicU64::new(0);
            let fail = |number: u64| {
                done.fetch_add(1, Ordering::SeqCst);
                if number == 5 { Err("five".to_owned()) } else { Ok(()) }
            };
            let led = with_helpers(helpers, "help", &fail, |crew| {
                // Until it is told.
                (1..).try_for_each(|number| crew.give(number))
            });
            assert!(led.expect_err("an error").contains("five"));
            let led: Result<(), String> =
                with_helpers(helpers, "help", &fail, |_| Err("of the leader".to_owned()));
            assert!(led.expect_err("an error").contains("of the leader"));
            let led = with_helpers(helpers, "help", &fail, |crew| crew.give(5));
            assert!(led.expect_err("the last piece counts").contains("five"));
        }
    }
}
