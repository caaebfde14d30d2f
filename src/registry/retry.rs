//! When to ask again, and how long to wait before.

use std::time::Duration;

use crate::registry::error::Error;

/// Waits between attempts: exponential, with jitter, bounded.
#[derive(Debug, Clone, Copy)]
pub struct Backoff {
    /// Failures in a row so far.
    failures: u32,
    /// Failures in a row after which to give up.
    limit: u32,
    /// How many of the requests stalled.
    stalls: u32,
}

/// The first wait; doubles with every failure.
const FIRST: Duration = Duration::from_millis(200);
/// The longest wait, also for a `Retry-After`: a registry that asks for more is reported instead.
const LONGEST: Duration = Duration::from_secs(20);

impl Backoff {
    /// Gives up at the `limit`-th failure in a row.
    pub fn new(limit: u32) -> Self {
        Self { failures: 0, limit, stalls: 0 }
    }

    /// How long to wait for the first byte: longer when a request stalled before, so that it is not simply repeated into
    /// the same wait.
    pub fn patience(&self, stall_timeout: Duration) -> Duration {
        stall_timeout.saturating_mul(1 << self.stalls.min(self.limit).min(8))
    }

    /// Gives up at the `limit`-th failure in a row from now on.
    pub fn allow(&mut self, limit: u32) {
        self.limit = limit;
    }

    /// Something succeeded: start over.
    pub fn reset(&mut self) {
        self.failures = 0;
        self.stalls = 0;
    }

    /// How long to wait after `error`, or `None` to give up.
    pub fn after(&mut self, error: &Error) -> Option<Duration> {
        self.failures += 1;
        self.stalls += u32::from(matches!(error, Error::Stalled { .. }));
        if !error.is_transient() || self.failures >= self.limit {
            return None;
        }
        let exponential = FIRST.saturating_mul(1 << (self.failures - 1).min(16)).min(LONGEST);
        let least = match error {
            Error::RateLimited { retry_after: Some(wait), .. } if *wait > LONGEST => return None,
            Error::RateLimited { retry_after: Some(wait), .. } => *wait,
            Error::Status { retry_after: Some(wait), .. } => (*wait).clamp(exponential / 2, LONGEST),
            _ => exponential / 2,
        };
        // A part is random: clients that failed together do not come back together.
        Some(least + exponential.mul_f64(rand::random_range(0.0..0.5)))
    }
}

/// Asks, and asks again after what may pass, at most `attempts` times in a row. `ask` is given the wait for the first byte, which
/// begins with `stall_timeout`.
///
/// # Errors
/// The last one.
pub async fn retry<T, F: Future<Output = Result<T, Error>>>(
    attempts: u32,
    stall_timeout: Duration,
    mut ask: impl FnMut(Duration) -> F,
) -> Result<T, Error> {
    let mut backoff = Backoff::new(attempts);
    loop {
        let error = match ask(backoff.patience(stall_timeout)).await {
            Ok(value) => return Ok(value),
            Err(error) => error,
        };
        let Some(wait) = backoff.after(&error) else { return Err(error) };
        tracing::debug!(%error, ?wait, "asking again");
        tokio::time::sleep(wait).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_and_end() {
        let error = Error::Status { host: "r".into(), status: 503, retry_after: None, detail: String::new() };
        let mut backoff = Backoff::new(4);
        let waits: Vec<_> = std::iter::from_fn(|| backoff.after(&error)).collect();
        assert_eq!(waits.len(), 3);
        assert!(waits[0] >= FIRST / 2 && waits[2] < FIRST * 4 + FIRST);
        backoff.reset();
        assert!(backoff.after(&error).is_some());
    }

    #[test]
    fn regression_a_wait_for_the_first_byte_is_not_repeated_as_it_was() {
        let second = Duration::from_secs(1);
        let mut backoff = Backoff::new(4);
        assert_eq!(backoff.patience(second), second);
        let stalled = Error::Stalled { host: "r".into(), after: second };
        assert!(backoff.after(&stalled).is_some());
        assert_eq!(backoff.patience(second), 2 * second);
        assert!(backoff.after(&stalled).is_some());
        assert_eq!(backoff.patience(second), 4 * second);
    }

    #[test]
    fn what_does_not_pass_is_not_repeated() {
        let missing = Error::NotFound { host: "r".into(), what: "x".into(), detail: String::new() };
        assert_eq!(Backoff::new(4).after(&missing), None);
        let limited = |seconds| Error::RateLimited {
            host: "r".into(),
            retry_after: Some(Duration::from_secs(seconds)),
            detail: String::new(),
        };
        assert_eq!(Backoff::new(4).after(&limited(3600)), None);
        assert!(Backoff::new(4).after(&limited(10)) >= Some(Duration::from_secs(10)));
    }
}
