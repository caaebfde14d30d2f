//! What programs answered: asked for once at a time, and kept as long as they say.
//!
//! A question that is being asked is not asked again: who has the same waits for that answer. It is asked to the end although nobody
//! may wait any more, so that a program that takes longer than kubelet waits has answered by the time that kubelet comes again.
//! All is found by SHA-256 digests, so that no secret is kept in a key.

#![cfg_attr(not(test), deny(clippy::indexing_slicing))]

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use sha2::{Digest as _, Sha256};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::host::fair_queue::FairQueue;
use crate::host::interleaving::{Mutex, lock};
use crate::host::limits;
use crate::tenant::Tenant;

/// Programs that run at a time for one kind of questions; others wait for their turn.
const TURNS: u64 = limits::PROGRAM_TURNS;
/// Questions of one tenant that are asked or wait for their turn. Its own bound: no tenant keeps another's from being asked.
const QUESTIONS: usize = 64;
/// Answers that are kept, and their bytes. Beyond, those of the tenant that has most go, the first to end first.
const KEPT: usize = 512;
const KEPT_BYTES: usize = limits::PROGRAM_KEPT;

/// The answers to one kind of questions, whose errors are `E`.
pub(in crate::registry) struct Answers<V, E> {
    state: Mutex<State<V, E>>,
    turns: FairQueue,
    /// How long a question waits for its turn.
    patience: Duration,
}

struct State<V, E> {
    kept: HashMap<Key, Kept<V>>,
    /// By who asked: nobody waits in the line of somebody else.
    asked: HashMap<(Tenant, Key), Pending<V, E>>,
}

/// Where the answer to a question that is asked will be.
type Pending<V, E> = watch::Receiver<Option<Result<V, E>>>;

struct Kept<V> {
    /// Who asked.
    tenant: Tenant,
    value: V,
    bytes: usize,
    until: Instant,
}

/// An answer, and where it is kept.
pub(in crate::registry) struct Answer<V> {
    /// What is given to those who asked.
    pub value: V,
    /// Its size.
    pub bytes: usize,
    /// For which questions, and how long; `None` is only for those who wait for it.
    pub keep: Option<(Key, Duration)>,
}

/// Why a question was not asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unasked {
    /// Programs take so long that others do not get their turn.
    #[error(
        "{TURNS} runs of it go on, which is the most, and none ended in time for another; kubelet tries the volume again"
    )]
    Busy,
    /// The run was broken off.
    #[error("its run was broken off, because ocivol stops or has a fault")]
    BrokenOff,
}

/// What a question or an answer is about.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(in crate::registry) struct Key([u8; 32]);

impl Key {
    /// The key of these parts in this order.
    pub fn of<'a>(parts: impl IntoIterator<Item = &'a str>) -> Self {
        let mut hash = Sha256::new();
        for part in parts {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        }
        Self(hash.finalize().into())
    }
}

impl<V, E> fmt::Debug for Answers<V, E> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("Answers")
    }
}

impl<V, E> Answers<V, E>
where
    V: Clone + Send + Sync + 'static,
    E: Clone + Send + Sync + From<Unasked> + 'static,
{
    /// No answers yet. Who waits for a turn waits so long.
    pub fn new(patience: Duration) -> Arc<Self> {
        let state = State { kept: HashMap::new(), asked: HashMap::new() };
        Arc::new(Self { state: Mutex::new(state), turns: FairQueue::new(TURNS), patience })
    }

    /// The answer that is kept for one of `kept`, the first that there is; else that of `ask`, on behalf of `tenant`, unless `question` is
    /// already being asked.
    ///
    /// # Errors
    /// Those of `ask`, and [`Unasked`] when there is no turn for it. They are not kept.
    pub async fn get<F>(
        self: &Arc<Self>,
        tenant: &Tenant,
        question: Key,
        kept: Vec<Key>,
        ask: F,
    ) -> Result<V, E>
    where
        F: Future<Output = Result<Answer<V>, E>> + Send + 'static,
    {
        let mut answer = {
            let mut state = lock(&self.state);
            if let Some(value) = state.find(&kept) {
                return Ok(value);
            }
            match state.asked.get(&(tenant.clone(), question)) {
                Some(answer) => answer.clone(),
                None if state.asked.keys().filter(|(who, _)| who == tenant).count() >= QUESTIONS => {
                    return Err(Unasked::Busy.into());
                }
                None => {
                    let (sender, answer) = watch::channel(None);
                    state.asked.insert((tenant.clone(), question), answer.clone());
                    let asked = Asked { answers: Arc::clone(self), question, tenant: tenant.clone() };
                    tokio::spawn(asked.ask(kept, ask, sender));
                    answer
                }
            }
        };
        let answer = answer.wait_for(Option::is_some).await;
        answer.ok().and_then(|answer| answer.clone()).unwrap_or(Err(Unasked::BrokenOff.into()))
    }

    async fn ask<F>(&self, tenant: &Tenant, kept: &[Key], ask: F) -> Result<V, E>
    where
        F: Future<Output = Result<Answer<V>, E>>,
    {
        let turn = tokio::time::timeout(self.patience, self.turns.acquire(tenant, "", 1)).await;
        let _turn = turn.map_err(|_| Unasked::Busy)?;
        // What another question brought meanwhile may be the answer to this one, too: that for all of a registry.
        if let Some(value) = lock(&self.state).find(kept) {
            return Ok(value);
        }
        let answer = ask.await?;
        if let Some((key, time)) = answer.keep
            && let Some(until) = Instant::now().checked_add(time)
        {
            let (tenant, value) = (tenant.clone(), answer.value.clone());
            let kept = Kept { tenant, value, bytes: answer.bytes, until };
            lock(&self.state).keep(key, kept);
        }
        Ok(answer.value)
    }
}

impl<V: Clone, E> State<V, E> {
    fn find(&mut self, keys: &[Key]) -> Option<V> {
        let now = Instant::now();
        self.kept.retain(|_, kept| now < kept.until);
        keys.iter().find_map(|key| self.kept.get(key)).map(|kept| kept.value.clone())
    }

    fn keep(&mut self, key: Key, kept: Kept<V>) {
        if kept.bytes > KEPT_BYTES {
            return;
        }
        self.kept.remove(&key);
        let mut bytes: usize = self.kept.values().map(|kept| kept.bytes).sum();
        while self.kept.len() >= KEPT || bytes + kept.bytes > KEPT_BYTES {
            // Of the tenant that has most, what ends first.
            let mut held: HashMap<&Tenant, usize> = HashMap::new();
            self.kept.values().for_each(|it| *held.entry(&it.tenant).or_default() += it.bytes.max(1));
            let most = held.into_iter().max_by_key(|(_, bytes)| *bytes).map(|(tenant, _)| tenant.clone());
            let of_most = self.kept.iter().filter(|(_, it)| Some(&it.tenant) == most.as_ref());
            let first = of_most.min_by_key(|(_, kept)| kept.until).map(|(key, _)| *key);
            let Some(gone) = first.and_then(|first| self.kept.remove(&first)) else { break };
            bytes -= gone.bytes;
        }
        self.kept.insert(key, kept);
    }
}

/// A question that is being asked, until dropped.
struct Asked<V, E> {
    answers: Arc<Answers<V, E>>,
    question: Key,
    tenant: Tenant,
}

impl<V, E> Asked<V, E>
where
    V: Clone + Send + Sync + 'static,
    E: Clone + Send + Sync + From<Unasked> + 'static,
{
    async fn ask<F>(self, kept: Vec<Key>, ask: F, sender: watch::Sender<Option<Result<V, E>>>)
    where
        F: Future<Output = Result<Answer<V>, E>> + Send + 'static,
    {
        let answer = self.answers.ask(&self.tenant, &kept, ask).await;
        // Who comes now finds what is kept, or asks anew.
        drop(self);
        // Nobody may wait any more.
        let _ = sender.send(Some(answer));
    }
}

impl<V, E> Drop for Asked<V, E> {
    fn drop(&mut self) {
        lock(&self.answers.state).asked.remove(&(self.tenant.clone(), self.question));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    type Test = Arc<Answers<usize, Unasked>>;

    const MINUTE: Duration = Duration::from_secs(60);

    fn key(text: &str) -> Key {
        Key::of([text])
    }

    /// Questions that begin with `@` are another's.
    fn tenant_of(question: &str) -> Tenant {
        Tenant::of_namespace(Some(if question.starts_with('@') { "other" } else { "one" }))
    }

    /// Asks, which takes a second and gives the number of the run.
    async fn ask(
        answers: &Test,
        runs: &Arc<AtomicUsize>,
        question: &str,
        keep: Option<(&str, Duration)>,
    ) -> Result<usize, Unasked> {
        let runs = Arc::clone(runs);
        let keep = keep.map(|(text, time)| (key(text), time));
        let run = async move {
            let value = runs.fetch_add(1, Ordering::SeqCst) + 1;
            tokio::time::sleep(Duration::from_secs(1)).await;
            Ok(Answer { value, bytes: 1, keep })
        };
        answers.get(&tenant_of(question), key(question), vec![key(question), key("all")], run).await
    }

    #[test]
    fn keys_tell_parts_from_one_another() {
        assert!(Key::of(["a", "bc"]) != Key::of(["ab", "c"]));
        assert!(Key::of(["a"]) != Key::of(["a", ""]));
        assert!(Key::of(["a", "b"]) == Key::of(["a", "b"]));
    }

    #[tokio::test(start_paused = true)]
    async fn a_question_is_asked_once_at_a_time() {
        let (answers, runs) = (Answers::new(MINUTE), Arc::default());
        let many = (0..20).map(|_| ask(&answers, &runs, "a", None));
        let found = futures_util::future::join_all(many).await;
        assert!(found.iter().all(|value| *value == Ok(1)), "{found:?}");
        // What is not kept is asked for again.
        assert_eq!(ask(&answers, &runs, "a", None).await, Ok(2));
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_is_kept_for_its_time_and_for_its_questions() {
        let (answers, runs) = (Answers::new(MINUTE), Arc::default());
        assert_eq!(ask(&answers, &runs, "a", Some(("a", MINUTE))).await, Ok(1));
        assert_eq!(ask(&answers, &runs, "a", None).await, Ok(1));
        assert_eq!(ask(&answers, &runs, "b", Some(("all", MINUTE / 2))).await, Ok(2));
        assert_eq!(ask(&answers, &runs, "c", None).await, Ok(2));
        tokio::time::advance(MINUTE / 2).await;
        assert_eq!(ask(&answers, &runs, "c", None).await, Ok(3));
        assert_eq!(ask(&answers, &runs, "a", None).await, Ok(1));
        tokio::time::advance(MINUTE / 2).await;
        assert_eq!(ask(&answers, &runs, "a", None).await, Ok(4));
        assert_eq!(lock(&answers.state).asked.len(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_for_a_turn_takes_what_others_brought() {
        let (answers, runs) = (Answers::new(MINUTE), Arc::default());
        let names: Vec<String> = (0..TURNS * 3).map(|number| number.to_string()).collect();
        let many = names.iter().map(|name| ask(&answers, &runs, name, Some(("all", MINUTE))));
        let found = futures_util::future::join_all(many).await;
        assert!(found.iter().all(Result::is_ok), "{found:?}");
        // One turn is left for others.
        assert_eq!(runs.load(Ordering::SeqCst) as u64, TURNS - 1);
    }

    #[tokio::test(start_paused = true)]
    async fn no_tenant_keeps_another_from_asking() {
        let (answers, runs) = (Answers::new(MINUTE), Arc::default());
        let names: Vec<String> = (0..QUESTIONS).map(|number| number.to_string()).collect();
        let many = futures_util::future::join_all(names.iter().map(|name| ask(&answers, &runs, name, None)));
        let other = async {
            tokio::task::yield_now().await;
            let began = Instant::now();
            ask(&answers, &runs, "@other", None).await.map(|_| began.elapsed())
        };
        let (_, took) = tokio::join!(many, other);
        assert!(took.expect("it has its turn") <= Duration::from_secs(3), "{took:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_waits_for_a_turn_for_ever() {
        let (answers, runs) = (Answers::new(Duration::from_millis(500)), Arc::default());
        let names: Vec<String> = (0..=QUESTIONS).map(|number| number.to_string()).collect();
        let found =
            futures_util::future::join_all(names.iter().map(|name| ask(&answers, &runs, name, None))).await;
        assert_eq!(found.iter().filter(|value| value.is_ok()).count() as u64, TURNS - 1);
        assert_eq!(found.last(), Some(&Err(Unasked::Busy)));
        assert_eq!(found.get(TURNS as usize), Some(&Err(Unasked::Busy)));
        assert_eq!(lock(&answers.state).asked.len(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_question_is_asked_to_the_end_although_nobody_waits() {
        let (answers, runs) = (Answers::new(MINUTE), Arc::default());
        let asked = ask(&answers, &runs, "a", Some(("a", MINUTE)));
        assert!(tokio::time::timeout(Duration::from_millis(10), asked).await.is_err());
        assert_eq!(ask(&answers, &runs, "a", None).await, Ok(1));
    }

    #[tokio::test]
    async fn a_fault_leaves_nobody_waiting() {
        let answers: Test = Answers::new(MINUTE);
        let fault = async { panic!("a fault of the test's own") };
        assert_eq!(answers.get(&tenant_of("a"), key("a"), Vec::new(), fault).await, Err(Unasked::BrokenOff));
        let runs = Arc::default();
        assert_eq!(ask(&answers, &runs, "a", None).await, Ok(1));
    }

    #[tokio::test]
    async fn errors_are_not_kept() {
        let answers: Test = Answers::new(MINUTE);
        let fails = async { Err(Unasked::Busy) };
        assert_eq!(answers.get(&tenant_of("a"), key("a"), vec![key("a")], fails).await, Err(Unasked::Busy));
        assert_eq!(ask(&answers, &Arc::default(), "a", None).await, Ok(1));
    }

    #[tokio::test]
    async fn what_is_kept_has_bounds() {
        let mut state: State<usize, Unasked> = State { kept: HashMap::new(), asked: HashMap::new() };
        let now = Instant::now();
        let kept = |value: usize, bytes: usize| Kept {
            tenant: tenant_of("a"),
            value,
            bytes,
            until: now + MINUTE * value as u32,
        };
        for number in 1..=KEPT + 1 {
            state.keep(key(&number.to_string()), kept(number, 1));
        }
        assert_eq!(
            (state.kept.len(), state.find(&[key("1")]), state.find(&[key("2")])),
            (KEPT, None, Some(2))
        );
        state.keep(key("large"), kept(9000, KEPT_BYTES));
        assert_eq!((state.kept.len(), state.find(&[key("large")])), (1, Some(9000)));
        state.keep(key("larger"), kept(9000, KEPT_BYTES + 1));
        assert_eq!(state.find(&[key("larger")]), None);
        state.keep(key("small"), kept(1, 1));
        assert_eq!((state.kept.len(), state.find(&[key("small")])), (1, Some(1)));
    }
}
