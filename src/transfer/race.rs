//! Sources of one blob that are compared: which one goes on.
//!
//! What counts is when a source would be done, not how fast it is: one that has most of a blob already is not given up for one that
//! would begin anew.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::registry::source::Asker;
use crate::transfer::fetch::{HELP_BELOW, Speed};

/// One source that is being fetched from.
pub struct Attempt {
    /// Which.
    pub asker: Asker,
    /// What it delivers.
    pub speed: Arc<Speed>,
    began: Instant,
    /// When bytes came for the first time, as far as that was seen.
    first_byte: Option<Instant>,
}

/// How much sooner another source has to be done, so that two do not take turns.
pub const SOONER: f64 = 1.2;
/// How long a source may show what it can before it is compared.
const TRIAL: Duration = Duration::from_secs(2);
/// How long one from which nothing comes is waited for before it is compared.
const SILENCE: Duration = Duration::from_secs(10);

impl Attempt {
    /// It begins now.
    pub fn new(asker: Asker, speed: Arc<Speed>) -> Self {
        Self { asker, speed, began: Instant::now(), first_byte: None }
    }

    /// Notes when bytes have come. To be called often.
    pub fn note_first_byte(&mut self) {
        if self.speed.received() > 0 {
            self.first_byte.get_or_insert_with(Instant::now);
        }
    }

    /// Whether it had time to show what it can.
    fn is_tried(&self) -> bool {
        match self.first_byte {
            Some(first_byte) => first_byte.elapsed() >= TRIAL,
            None => self.began.elapsed() >= SILENCE,
        }
    }
}

/// How many seconds are left, if the only source that runs is slow for this network, and another could be worth a trial.
pub fn slow(attempts: &[Attempt]) -> Option<f64> {
    let [only] = attempts else { return None };
    let pace = only.speed.pace().filter(|pace| pace.rate < HELP_BELOW)?;
    Some(pace.seconds_left()).filter(|seconds_left| *seconds_left > TRIAL.as_secs_f64())
}

/// Which of two sources that run is to be given up, once both had time to show what they can.
pub fn slower(attempts: &[Attempt]) -> Option<usize> {
    let [first, second] = attempts else { return None };
    if !first.is_tried() || !second.is_tried() {
        return None;
    }
    let (one, two) = (first.speed.pace()?.seconds_left(), second.speed.pace()?.seconds_left());
    Some(if SOONER * two < one { 0 } else { 1 })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::repository::Repository;
    use crate::registry::source::Source;
    use crate::tenant::Tenant;
    use crate::transfer::fetch::Pace;

    const MB: f64 = 1e6;

    fn attempt(rate: f64, missing: u64, since_first_byte: Option<Duration>, since: Duration) -> Attempt {
        let repository = Repository { host: "host".into(), name: "r".into() };
        let asker =
            Asker { source: Source { repository, credential: None }, tenant: Tenant::of_namespace(None) };
        let before = |age: Duration| Instant::now().checked_sub(age).expect("the clock is older");
        let speed = Arc::new(Speed::at(Pace { rate, missing }));
        Attempt { asker, speed, began: before(since), first_byte: since_first_byte.map(before) }
    }

    #[test]
    fn regression_one_that_is_nearly_done_is_not_given_up_for_a_faster_one() {
        let long = Duration::from_secs(30);
        let nearly = || attempt(10.0 * MB, 100_000_000, Some(long), long);
        let faster = || attempt(15.0 * MB, 9_000_000_000, Some(long), long);
        assert_eq!(slower(&[nearly(), faster()]), Some(1));
        let much_faster = attempt(2_000.0 * MB, 9_000_000_000, Some(long), long);
        assert_eq!(slower(&[nearly(), much_faster]), Some(0));
        assert_eq!(slow(&[nearly()]), Some(10.0));
        assert_eq!(slow(&[attempt(10.0 * MB, 1_000_000, Some(long), long)]), None, "it is done before");
    }

    #[test]
    fn regression_one_that_is_slow_to_begin_is_waited_for() {
        let long = Duration::from_secs(3_600);
        let trickle = || attempt(0.02 * MB, 1_000_000_000, Some(long), long);
        let after = |seconds| attempt(0.0, 1_000_000_000, None, Duration::from_secs(seconds));
        assert_eq!(slower(&[trickle(), after(3)]), None);
        assert_eq!(slower(&[trickle(), after(11)]), Some(1), "nothing came");
        let began =
            attempt(50.0 * MB, 1_000_000_000, Some(Duration::from_millis(2_100)), Duration::from_secs(9));
        assert_eq!(slower(&[trickle(), began]), Some(0));
    }
}
