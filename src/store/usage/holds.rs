//! Holds: what this process needs, or is about to need. What is held is not collected.
//!
//! Whoever needs something holds it first and looks for it then; whoever collects claims it first and takes it away then. So
//! what was found stays, and what is not there any more is seen to be gone.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use crate::host::interleaving::{self, Condvar, Mutex, MutexGuard};
use crate::store::key::Name;

/// The holds of this process.
#[derive(Debug, Clone, Default)]
pub struct Holds(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    /// A claim ended.
    ended: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// How many hold it.
    held: HashMap<Name, u32>,
    /// What is being taken away.
    claimed: HashSet<Name>,
}

/// Keeps what it names until it is dropped.
#[derive(Debug)]
pub struct Hold {
    holds: Holds,
    names: Vec<Name>,
}

/// Whoever has it may take away what it names: nobody needs it, and who is about to waits.
#[derive(Debug)]
pub(in crate::store) struct Claim {
    holds: Holds,
    name: Name,
}

impl Holds {
    /// Holds all of `names`. Waits for what is being taken away: for the time of a rename.
    pub fn hold(&self, names: impl IntoIterator<Item = Name>) -> Hold {
        let names: Vec<Name> = names.into_iter().collect();
        let mut state = self.lock();
        while names.iter().any(|name| state.claimed.contains(name)) {
            state = interleaving::wait(&self.0.ended, state);
        }
        for name in &names {
            *state.held.entry(*name).or_default() += 1;
        }
        drop(state);
        Hold { holds: self.clone(), names }
    }

    /// The right to take `name` away; `None` while somebody holds it.
    pub(in crate::store) fn claim(&self, name: Name) -> Option<Claim> {
        let mut state = self.lock();
        if state.held.contains_key(&name) || !state.claimed.insert(name) {
            return None;
        }
        Some(Claim { holds: self.clone(), name })
    }

    /// Whether somebody holds it.
    pub fn is_held(&self, name: Name) -> bool {
        self.lock().held.contains_key(&name)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        interleaving::lock(&self.0.state)
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        let mut state = self.holds.lock();
        for name in &self.names {
            if let Some(count) = state.held.get_mut(name) {
                *count -= 1;
                if *count == 0 {
                    state.held.remove(name);
                }
            }
        }
        // A pull of very many blobs does not leave its room behind.
        if state.held.is_empty() {
            state.held.shrink_to(64);
        }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.holds.lock().claimed.remove(&self.name);
        self.holds.0.ended.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;
    use crate::oci::digest::Digest;

    fn names() -> [Name; 2] {
        [b"1", b"2"].map(|text| Name::content(&Digest::sha256(text)))
    }

    #[test]
    fn what_is_held_cannot_be_claimed_until_the_last_hold_is_dropped() {
        let [one, two] = names();
        let holds = Holds::default();
        let (first, second) = (holds.hold([one]), holds.hold([one, two]));
        drop(first);
        assert!(holds.claim(one).is_none());
        drop(second);
        let claim = holds.claim(one);
        assert!(claim.is_some() && holds.claim(one).is_none());
        assert!(holds.claim(two).is_some());
    }

    /// Two threads of each kind, at random moments: what was found while it was held is there until the hold ends.
    #[test]
    fn what_was_found_stays_while_it_is_held() {
        let ([name, _], holds) = (names(), Holds::default());
        let is_there = AtomicBool::new(true);
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    for _ in 0..20_000 {
                        let hold = holds.hold([name]);
                        if is_there.load(Ordering::SeqCst) {
                            assert!(is_there.load(Ordering::SeqCst), "it was taken away");
                        } else {
                            is_there.store(true, Ordering::SeqCst);
                        }
                        drop(hold);
                    }
                });
                scope.spawn(|| {
                    for _ in 0..20_000 {
                        if let Some(_claim) = holds.claim(name) {
                            is_there.store(false, Ordering::SeqCst);
                        }
                    }
                });
            }
        });
    }
}

#[cfg(all(test, feature = "interleavings"))]
mod interleavings {
    use std::sync::atomic::{AtomicBool, Ordering};

    use shuttle::thread;

    use super::*;
    use crate::host::interleaving::moment;
    use crate::oci::digest::Digest;

    /// Something that can be collected.
    #[derive(Clone)]
    struct Thing {
        holds: Holds,
        name: Name,
        is_there: Arc<AtomicBool>,
    }

    impl Thing {
        fn new(holds: &Holds, text: &[u8]) -> Self {
            let name = Name::content(&Digest::sha256(text));
            Self { holds: holds.clone(), name, is_there: Arc::new(AtomicBool::new(true)) }
        }

        /// Is used, after it was brought again if need be.
        fn used(&self) {
            moment();
            if !self.is_there.load(Ordering::SeqCst) {
                self.is_there.store(true, Ordering::SeqCst);
            }
            moment();
            assert!(self.is_there.load(Ordering::SeqCst), "it was taken away");
        }

        /// Is collected, if nobody holds it.
        fn collected(&self) {
            if let Some(_claim) = self.holds.claim(self.name) {
                moment();
                self.is_there.store(false, Ordering::SeqCst);
                moment();
            }
        }
    }

    fn one_uses_what_another_collects() {
        let thing = Thing::new(&Holds::default(), b"1");
        let other = thing.clone();
        let collector = thread::spawn(move || other.collected());
        let hold = thing.holds.hold([thing.name]);
        thing.used();
        drop(hold);
        collector.join().expect("no panic");
    }

    /// Three who use both, in another order each, and two who collect.
    fn all_use_what_is_collected() {
        let holds = Holds::default();
        let things = [b"1", b"2"].map(|text| Thing::new(&holds, text));
        let mut threads = Vec::new();
        for user in 0..3 {
            let (holds, things) = (holds.clone(), things.clone());
            threads.push(thread::spawn(move || {
                let [one, two] = [&things[user % 2], &things[(user + 1) % 2]];
                let both = holds.hold([one.name, two.name]);
                one.used();
                let again = holds.hold([two.name]);
                drop(both);
                two.used();
                drop(again);
            }));
        }
        for _ in 0..2 {
            let things = things.clone();
            threads.push(thread::spawn(move || things.iter().for_each(Thing::collected)));
        }
        for thread in threads {
            thread.join().expect("no panic");
        }
        let state = holds.lock();
        assert!(state.held.is_empty() && state.claimed.is_empty());
    }

    #[test]
    fn what_was_found_stays_while_it_is_held() {
        shuttle::check_dfs(one_uses_what_another_collects, None);
        shuttle::check_random(all_use_what_is_collected, 20_000);
        shuttle::check_pct(all_use_what_is_collected, 20_000, 3);
    }
}
