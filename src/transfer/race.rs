//! Sources of one blob that are compared: which ones go on.
//!
//! What counts is when a source would be done, and that nothing is lost: one is given up only when another has as much of the
//! blob, and would not be done later. So nobody can end what somebody else's source has got so far by a short burst.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::registry::source::Asker;
use crate::tenant::Tenant;
use crate::transfer::fetch::{Pace, Speed};
use crate::transfer::help::HELP_BELOW;

/// One source that is being fetched from.
pub struct Attempt {
    /// Which.
    pub asker: Asker,
    /// What it delivers.
    pub speed: Arc<Speed>,
    began: Instant,
    /// When bytes came for the first time, as far as that was seen.
    first_byte: Option<Instant>,
    /// Since when its pace is not known, and what had come then: it has just begun, or what it sends keeps disk or processor busy.
    unknown_since: Option<(Instant, u64)>,
}

/// The sources that run, seen by one that may join them.
pub struct Rivals {
    /// When the first of them would be done.
    pub seconds_left: f64,
    /// Those whose sources run, when more than one does: each may have only one then.
    tenants: Vec<Tenant>,
}

/// How much sooner another source has to be done, so that two do not take turns.
pub const SOONER: f64 = 1.2;
/// How long a source may show what it can before it is compared.
const TRIAL: Duration = Duration::from_secs(2);
/// How long one from which nothing comes, or of which nothing is known, is waited for.
const SILENCE: Duration = Duration::from_secs(10);
/// Bytes per second that are too few for what keeps disk or processor busy.
const BUSY_BELOW: f64 = 1e6;
/// Sources that run at a time.
const ATTEMPTS: usize = 4;

impl Attempt {
    /// It begins now.
    pub fn new(asker: Asker, speed: Arc<Speed>) -> Self {
        Self { asker, speed, began: Instant::now(), first_byte: None, unknown_since: None }
    }

    /// Notes what can be seen. To be called often.
    pub fn note(&mut self) {
        if self.speed.received() > 0 {
            self.first_byte.get_or_insert_with(Instant::now);
        }
        match self.speed.pace() {
            Some(_) => self.unknown_since = None,
            None => {
                self.unknown_since.get_or_insert_with(|| (Instant::now(), self.speed.received()));
            }
        }
    }

    /// Whether it had time to show what it can.
    fn is_tried(&self) -> bool {
        match self.first_byte {
            Some(first_byte) => first_byte.elapsed() >= TRIAL,
            None => self.began.elapsed() >= SILENCE,
        }
    }

    /// How many seconds are left, if it is slow for this network, and another could be worth a trial.
    fn slow(&self) -> Option<f64> {
        match self.speed.pace() {
            _ if self.speed.has_ended() => None,
            Some(pace) if pace.rate >= HELP_BELOW => None,
            Some(pace) => {
                Some(pace.seconds_left()).filter(|seconds_left| *seconds_left > TRIAL.as_secs_f64())
            }
            // A disk that is slow is so for another as well; few bytes that take long are made for that.
            None => self.unknown_since.and_then(|(since, before)| {
                let came = self.speed.received().saturating_sub(before) as f64;
                let is_long = since.elapsed() >= SILENCE;
                (is_long && came < BUSY_BELOW * since.elapsed().as_secs_f64()).then_some(f64::INFINITY)
            }),
        }
    }
}

impl Rivals {
    /// Whether the source of `asker` may join them.
    pub fn admit(&self, asker: &Asker) -> bool {
        !self.tenants.contains(&asker.tenant)
    }
}

/// Whether another source may join those that run: all of them are slow, and had their trial.
pub fn wants_another(attempts: &[Attempt]) -> Option<Rivals> {
    if attempts.is_empty() || attempts.len() >= ATTEMPTS {
        return None;
    }
    let others = attempts.len() > 1;
    let slow = |attempt: &Attempt| attempt.slow().filter(|_| !others || attempt.is_tried());
    let all: Option<Vec<f64>> = attempts.iter().map(slow).collect();
    let seconds_left = all?.into_iter().fold(f64::INFINITY, f64::min);
    let tenants = attempts.iter().filter(|_| others).map(|attempt| attempt.asker.tenant.clone());
    Some(Rivals { seconds_left, tenants: tenants.collect() })
}

/// Which of the sources that run is to be given up: another has as much, and would be done sooner, or began before and would be
/// done no later. When no more may join, the last one makes place.
pub fn loser(attempts: &[Attempt]) -> Option<usize> {
    let known: Vec<(usize, Pace)> = (0..)
        .zip(attempts)
        .filter(|(_, attempt)| attempt.is_tried())
        .filter_map(|(at, attempt)| Some((at, attempt.speed.pace()?)))
        .collect();
    let loses = |(at, pace): &(usize, Pace)| {
        known.iter().any(|(other, others)| {
            let (mine, theirs) = (pace.seconds_left(), others.seconds_left());
            let is_sooner = SOONER * theirs < mine || (other < at && theirs <= SOONER * mine);
            other != at && others.missing <= pace.missing && is_sooner
        })
    };
    let beaten = known.iter().find(|one| loses(one)).map(|(at, _)| *at);
    beaten.or_else(|| {
        let is_full = attempts.len() >= ATTEMPTS && known.len() == attempts.len();
        let most = known.iter().map(|(_, pace)| pace.missing).min().filter(|_| is_full)?;
        let behind = known.iter().filter(|(_, pace)| pace.missing > most);
        let last = behind
            .max_by(|(_, one), (_, other)| one.seconds_left().total_cmp(&other.seconds_left()))
            .map(|(at, _)| *at);
        last.filter(|_| attempts.iter().all(|attempt| attempt.slow().is_some()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::repository::Repository;
    use crate::registry::source::Source;

    const MB: u64 = 1_000_000;
    const LONG: Duration = Duration::from_secs(30);

    fn before(age: Duration) -> Instant {
        Instant::now().checked_sub(age).expect("the clock is older")
    }

    /// A source with so many bytes a second, of which so many are missing.
    fn attempt(tenant: &str, rate: u64, missing: u64) -> Attempt {
        let repository = Repository { host: tenant.into(), name: "r".into() };
        let source = Source { repository, credential: None };
        let asker = Asker { source, tenant: Tenant::of_namespace(Some(tenant)) };
        let speed = Arc::new(Speed::at(Pace { rate: rate as f64, missing }));
        Attempt { asker, speed, began: before(LONG), first_byte: Some(before(LONG)), unknown_since: None }
    }

    #[test]
    fn regression_nothing_that_a_source_has_is_lost_to_a_burst() {
        let nearly = || attempt("a", 10 * MB, 1_000 * MB);
        let burst = |missing| attempt("b", 2_000 * MB, missing);
        assert_eq!(loser(&[nearly(), burst(9_000 * MB)]), None, "it has less");
        assert_eq!(loser(&[nearly(), burst(1_000 * MB)]), Some(0), "it has as much, and is faster");
        assert_eq!(loser(&[nearly(), attempt("b", 15 * MB, 9_000 * MB)]), Some(1), "it would be done later");
        assert_eq!(loser(&[nearly(), attempt("b", 11 * MB, 1_000 * MB)]), Some(1), "hardly faster");
        // The one that has most may do badly for a moment.
        assert_eq!(loser(&[attempt("a", 0, 1_000 * MB), burst(9_000 * MB)]), None);
    }

    #[test]
    fn regression_one_that_is_slow_to_begin_is_waited_for() {
        let trickle = || attempt("a", MB / 50, 1_000 * MB);
        let after = |seconds| Attempt {
            began: before(Duration::from_secs(seconds)),
            first_byte: None,
            ..attempt("b", 0, 1_000 * MB)
        };
        assert_eq!(loser(&[trickle(), after(3)]), None);
        assert_eq!(loser(&[trickle(), after(11)]), Some(1), "nothing came");
        let began = Attempt {
            first_byte: Some(before(Duration::from_millis(2_100))),
            ..attempt("b", 50 * MB, 1_000 * MB)
        };
        assert_eq!(loser(&[trickle(), began]), Some(0));
    }

    #[test]
    fn regression_sources_of_some_tenants_leave_room_for_another() {
        let slow = |tenant: &str| attempt(tenant, MB, 1_000 * MB);
        let rivals = wants_another(&[slow("a")]).expect("it is slow");
        assert!(rivals.admit(&slow("a").asker), "one that is alone may be compared with its own");
        // Two that are slow, and each the better one in some way.
        let two = || vec![attempt("a", MB, 900 * MB), attempt("b", 2 * MB, 1_000 * MB)];
        assert_eq!(loser(&two()), None);
        let rivals = wants_another(&two()).expect("a third");
        assert!(!rivals.admit(&slow("a").asker) && rivals.admit(&slow("c").asker));
        let mut four = two();
        four.extend([attempt("c", 3 * MB, 1_100 * MB), attempt("d", 4 * MB, 1_200 * MB)]);
        assert!(wants_another(&four).is_none());
        assert_eq!(loser(&four), Some(1), "the one that would be done last, but not the one that has most");
        assert!(wants_another(&[attempt("a", 200 * MB, 10_000 * MB)]).is_none(), "it is fast");
        assert!(wants_another(&[attempt("a", 10 * MB, MB)]).is_none(), "it is done before");
    }

    #[test]
    fn regression_what_keeps_the_processor_busy_is_compared_as_well() {
        let busy = |since| {
            let mut attempt = attempt("a", MB, MB);
            attempt.speed = Arc::default();
            Attempt { unknown_since: Some((before(since), 0)), ..attempt }
        };
        assert!(wants_another(&[busy(Duration::from_secs(3))]).is_none());
        assert!(wants_another(&[busy(Duration::from_secs(11))]).is_some());
        let done = busy(LONG);
        done.speed.end();
        assert!(wants_another(&[done]).is_none(), "all has come");
    }
}
