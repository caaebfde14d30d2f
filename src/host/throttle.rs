//! A bound of bytes per second, which all share who go through it.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

/// So many bytes per second, or as many as come.
#[derive(Debug, Default)]
pub struct Throttle {
    bytes_per_second: Option<u64>,
    /// Until when what went through takes.
    busy: Mutex<Option<Instant>>,
}

/// Bytes that take their time at once.
const PIECE: usize = 64 * 1024;

impl Throttle {
    /// At most so many bytes per second; `None`: no bound.
    pub fn new(bytes_per_second: Option<u64>) -> Self {
        Self { bytes_per_second, busy: Mutex::default() }
    }

    /// Whether there is a bound.
    pub fn is_set(&self) -> bool {
        self.bytes_per_second.is_some()
    }

    /// Waits until what went through before has had its time, and takes the time of `bytes`. What was not used of the past is lost.
    pub async fn pass(&self, mut bytes: usize) {
        let Some(rate) = self.bytes_per_second else { return };
        // In small pieces, so that who has large ones does not get more.
        while bytes > 0 {
            let piece = bytes.min(PIECE);
            bytes -= piece;
            let begins = self.begin(Duration::from_secs_f64(piece as f64 / rate.max(1) as f64));
            sleep_until(begins).await;
        }
    }

    /// When what takes so long begins.
    fn begin(&self, takes: Duration) -> Instant {
        let mut busy = self.busy.lock().unwrap_or_else(PoisonError::into_inner);
        let begins = busy.map_or_else(Instant::now, |busy| busy.max(Instant::now()));
        *busy = Some(begins + takes);
        begins
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn all_that_go_through_share_the_rate() {
        let throttle = Throttle::new(Some(1000));
        let began = Instant::now();
        // Each sends 100 bytes five times.
        let one = async {
            for _ in 0..5 {
                throttle.pass(100).await;
            }
        };
        let two = async {
            for _ in 0..5 {
                throttle.pass(100).await;
            }
        };
        tokio::join!(one, two);
        let took = began.elapsed().as_millis();
        assert!((900..=1000).contains(&took), "{took} ms for 1000 bytes, the last of which take no time");
        // What was not used is no credit.
        tokio::time::advance(Duration::from_secs(60)).await;
        let began = Instant::now();
        for _ in 0..11 {
            throttle.pass(100).await;
        }
        let took = began.elapsed().as_millis();
        assert!((1000..1100).contains(&took), "{took} ms");
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_bound_nothing_waits() {
        let (throttle, began) = (Throttle::default(), Instant::now());
        throttle.pass(usize::MAX).await;
        assert!(!throttle.is_set() && began.elapsed().is_zero());
    }
}
