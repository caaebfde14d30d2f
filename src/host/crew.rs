//! Work that one thread finds and several do.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::{Builder, scope};

/// Who may help with one kind of work: of all leaders together no more at a time than the machine has cores beside one. A helper counts
/// only as long as it has something to do: a leader that waits for a network holds none that another could have.
pub struct Pool {
    used: AtomicUsize,
    /// How many there are, if it does not depend on the machine.
    most: Option<usize>,
}

/// A core of a pool, for who helps.
struct Core(&'static Pool);

/// Those who do what is found. Dropped, they end when everything is done.
pub struct Crew<'a, T, E> {
    shared: &'a Shared<'a, T, E>,
    /// Starts a thread. Whether that is possible.
    start: &'a dyn Fn() -> bool,
}

/// What the leader and its helpers know.
struct Shared<'a, T, E> {
    work: &'a (dyn Fn(T) -> Result<(), E> + Sync),
    pool: &'static Pool,
    /// Helpers, at most.
    most: usize,
    queue: Mutex<Queue<T>>,
    wake: Condvar,
    is_failed: AtomicBool,
    error: Mutex<Option<E>>,
}

struct Queue<T> {
    /// Pieces of work.
    waiting: VecDeque<T>,
    /// Helpers that have a core, or get one of `calls`.
    awake: usize,
    calls: Vec<Core>,
    /// Threads of helpers.
    started: usize,
    has_ended: bool,
}

/// Helpers of one leader, however many cores there are.
pub const MOST: usize = 3;

/// Links of trees.
pub static LINKS: Pool = Pool { used: AtomicUsize::new(0), most: None };
/// Small files of layers.
pub static SMALL_FILES: Pool = Pool { used: AtomicUsize::new(0), most: None };

/// Pieces of work that wait for a helper. With more the leader does one.
const WAITING: usize = 2;

/// Runs `lead`, which gives pieces of work to a crew of itself and of `most` more threads of this name, if the `pool` has cores for them. It
/// ends when all of them are done.
///
/// # Errors
/// The first one, of `lead` or of `work`. What is not begun by then is not done.
pub fn with_helpers<T: Send, R, E: Send>(
    pool: &'static Pool,
    most: usize,
    name: &str,
    work: &(dyn Fn(T) -> Result<(), E> + Sync),
    lead: impl FnOnce(&Crew<'_, T, E>) -> Result<R, E>,
) -> Result<R, E> {
    let queue = Queue { waiting: VecDeque::new(), awake: 0, calls: Vec::new(), started: 0, has_ended: false };
    let shared = Shared {
        work,
        pool,
        most,
        queue: Mutex::new(queue),
        wake: Condvar::new(),
        is_failed: AtomicBool::new(false),
        error: Mutex::new(None),
    };
    let led = scope(|scope| {
        let shared = &shared;
        let start = || Builder::new().name(name.into()).spawn_scoped(scope, || shared.help()).is_ok();
        let crew = Crew { shared, start: &start };
        let led = lead(&crew);
        if led.is_err() {
            shared.is_failed.store(true, Ordering::Relaxed);
        }
        // What waits still the leader does as well.
        drop(shared.do_waiting(shared.queue()));
        led
    })?;
    match shared.error.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some(error) => Err(error),
        None => Ok(led),
    }
}

impl<T, E> Crew<'_, T, E> {
    /// Gives a piece of work to who has time: this thread, when all have enough to do, or nobody helps.
    ///
    /// # Errors
    /// The first that there was, of whatever piece.
    pub fn give(&self, piece: T) -> Result<(), E> {
        let shared = self.shared;
        if shared.is_failed.load(Ordering::Relaxed)
            && let Some(error) = shared.error.lock().unwrap_or_else(PoisonError::into_inner).take()
        {
            return Err(error);
        }
        let mut queue = shared.queue();
        if queue.awake < shared.most
            && queue.waiting.len() >= queue.awake
            && let Some(core) = shared.pool.take()
            && (queue.started > queue.awake || (self.start)())
        {
            queue.calls.push(core);
            queue.awake += 1;
            queue.started = queue.started.max(queue.awake);
            shared.wake.notify_one();
        }
        if queue.awake > 0 && queue.waiting.len() < WAITING {
            queue.waiting.push_back(piece);
            return Ok(());
        }
        drop(queue);
        (shared.work)(piece)
    }
}

impl<T, E> Drop for Crew<'_, T, E> {
    fn drop(&mut self) {
        self.shared.queue().has_ended = true;
        self.shared.wake.notify_all();
    }
}

impl<T, E> Shared<'_, T, E> {
    /// What a helper does: it works when it is called, and sleeps without a core.
    fn help(&self) {
        let mut queue = self.queue();
        loop {
            let Some(core) = queue.calls.pop() else {
                if queue.has_ended {
                    return;
                }
                queue = self.wake.wait(queue).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            queue = self.do_waiting(queue);
            queue.awake -= 1;
            drop(core);
        }
    }

    /// Does what waits, until there is nothing more.
    fn do_waiting<'a>(&'a self, mut queue: MutexGuard<'a, Queue<T>>) -> MutexGuard<'a, Queue<T>> {
        while let Some(piece) = queue.waiting.pop_front() {
            drop(queue);
            if !self.is_failed.load(Ordering::Relaxed)
                && let Err(error) = (self.work)(piece)
            {
                self.error.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
                self.is_failed.store(true, Ordering::Relaxed);
            }
            queue = self.queue();
        }
        queue
    }

    fn queue(&self) -> MutexGuard<'_, Queue<T>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pool {
    /// So many, whatever the machine has.
    #[cfg(test)]
    pub fn of(most: usize) -> &'static Self {
        Box::leak(Box::new(Self { used: AtomicUsize::new(0), most: Some(most) }))
    }

    fn take(&'static self) -> Option<Core> {
        let most = self.most.unwrap_or_else(spare_cores);
        let more = |used| (used < most).then_some(used + 1);
        self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).ok().map(|_| Core(self))
    }
}

/// Cores of this machine beside one. The kernel is asked once: that takes as long as some pieces of work.
fn spare_cores() -> usize {
    static KNOWN: OnceLock<usize> = OnceLock::new();
    *KNOWN.get_or_init(|| std::thread::available_parallelism().map_or(0, |cores| cores.get() - 1))
}

impl Drop for Core {
    fn drop(&mut self) {
        self.0.used.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU64;
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn cores_are_given_once_and_given_back() {
        let pool = Pool::of(2);
        let cores: Vec<_> = (0..5).filter_map(|_| pool.take()).collect();
        assert_eq!(cores.len(), 2);
        drop(cores);
        assert!(pool.take().is_some() && Pool::of(0).take().is_none());
        static MACHINE: Pool = Pool { used: AtomicUsize::new(0), most: None };
        assert_eq!((0..1000).map_while(|_| MACHINE.take().map(std::mem::forget)).count(), spare_cores());
    }

    #[test]
    fn everything_is_done_once_however_many_help() {
        for (most, cores) in [(0, 3), (3, 0), (1, 1), (3, 1), (3, 3)] {
            let sum = AtomicU64::new(0);
            let add = |number: u64| {
                sum.fetch_add(number, Ordering::SeqCst);
                Ok::<_, String>(())
            };
            let led = with_helpers(Pool::of(cores), most, "help", &add, |crew| {
                (1..=1000).try_for_each(|number| crew.give(number))?;
                Ok("led")
            });
            assert_eq!((led.expect("no error"), sum.into_inner()), ("led", 500_500));
        }
    }

    #[test]
    fn a_leader_that_waits_holds_no_core() {
        let pool = Pool::of(1);
        let (sender, receiver) = mpsc::channel();
        let tell = |number: u64| {
            let helper = std::thread::current().name() == Some("help");
            sender.send((number, helper)).map_err(|_| "nobody listens")
        };
        with_helpers(pool, 1, "help", &tell, |crew| {
            for number in 0..3 {
                assert_eq!(pool.used.load(Ordering::SeqCst), 0, "nothing is to be done");
                crew.give(number)?;
                assert_eq!(receiver.recv().expect("done"), (number, true));
                // It goes to sleep by and by.
                while crew.shared.queue().awake > 0 || pool.used.load(Ordering::SeqCst) > 0 {
                    std::thread::yield_now();
                }
            }
            // Another leader has it.
            let core = pool.take().expect("a core");
            crew.give(3)?;
            assert_eq!(receiver.recv().expect("done"), (3, false));
            drop(core);
            assert_eq!(crew.shared.queue().started, 1);
            Ok(())
        })
        .expect("no error");
    }

    #[test]
    fn the_first_error_is_the_result_and_ends_the_rest() {
        for helpers in [0, 1, 3] {
            let pool = Pool::of(helpers);
            let fail = |number: u64| if number == 5 { Err("five".to_owned()) } else { Ok(()) };
            let led = with_helpers(pool, helpers, "help", &fail, |crew| {
                // Until it is told.
                (1..).try_for_each(|number| crew.give(number))
            });
            assert!(led.expect_err("an error").contains("five"));
            let led: Result<(), String> =
                with_helpers(pool, helpers, "help", &fail, |_| Err("of the leader".to_owned()));
            assert!(led.expect_err("an error").contains("of the leader"));
            let led = with_helpers(pool, helpers, "help", &fail, |crew| crew.give(5));
            assert!(led.expect_err("the last piece counts").contains("five"));
        }
    }

    #[test]
    fn a_leader_that_panics_leaves_nobody_asleep() {
        let pool = Pool::of(1);
        let work = |_: u64| Ok::<_, String>(());
        let led = || {
            with_helpers::<_, (), _>(pool, 1, "help", &work, |crew| {
                crew.give(1)?;
                panic!("as a test")
            })
        };
        let led = std::panic::catch_unwind(std::panic::AssertUnwindSafe(led));
        assert!(led.is_err() && pool.used.load(Ordering::SeqCst) == 0);
    }
}
