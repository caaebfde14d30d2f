//! A bound that is shared fairly: between tenants first, and between the registries of each tenant then.
//!
//! Five rules keep a tenant from holding a bound against others, however long what it holds takes.
//! - *A tenant may hold at most as much as is free.* Alone, it gets half of the bound; the next one still finds half of the
//!   rest, and so on (dynamic thresholds, Choudhury and Hahne, 1998). A tenant that holds nothing gets whatever fits.
//! - *A registry may hold at most as much of its tenant's share as is free there*, where a queue says so: one that does not answer
//!   leaves room for the others of the same tenant.
//! - *Who holds least goes first.* Among the tenants that wait it is the one that holds least, then of its registries the one
//!   that holds least, and then who came first.
//! - *Nobody waits for who is last.* What is done before anybody wants it ([`Tenant::is_last`]) has a small part of the bound, and gets
//!   nothing while somebody waits who could have what it holds.
//! - *Nobody is passed over for ever*, where what is held ends by itself. A tenant that holds nothing and waits for much is next, when
//!   those that came later have got as much as the whole bound meanwhile: nobody gets anything until there is enough. Who is last may be.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

use crate::tenant::Tenant;

/// A number of units, of which each permit holds some. Clones share them.
#[derive(Debug, Clone)]
pub struct FairQueue {
    shared: Arc<Shared>,
}

/// Some units of a [`FairQueue`], until dropped.
#[derive(Debug)]
pub struct Permit {
    shared: Arc<Shared>,
    tenant: Tenant,
    registry: Arc<str>,
    units: u64,
}

#[derive(Debug)]
struct Shared {
    capacity: u64,
    /// What a tenant holds for one registry, if that has a bound of its own.
    per_registry: Option<u64>,
    /// Nobody is passed over for ever.
    is_patient: bool,
    state: Mutex<State>,
}

/// Who is last has at most one of so many parts of the bound, unless it wants more of it at once.
const LAST_PART: u64 = 4;

#[derive(Debug)]
struct State {
    free: u64,
    tenants: HashMap<Tenant, Holding>,
    /// How many have come.
    arrivals: u64,
}

/// What a tenant holds and waits for.
#[derive(Debug, Default)]
struct Holding {
    units: u64,
    registries: HashMap<Arc<str>, Line>,
}

/// What a tenant holds for one registry, and who waits for more.
#[derive(Debug, Default)]
struct Line {
    units: u64,
    waiting: VecDeque<Waiting>,
}

#[derive(Debug)]
struct Waiting {
    units: u64,
    arrival: u64,
    /// Units that were given to those that came later.
    passed_over: u64,
    permit: oneshot::Sender<Permit>,
}

/// Somebody who waits. Those behind may go on when they leave.
struct Leaving<'a> {
    shared: &'a Arc<Shared>,
    waits: bool,
}

impl Drop for Leaving<'_> {
    fn drop(&mut self) {
        if self.waits {
            self.shared.dispatch(&mut self.shared.lock());
        }
    }
}

impl FairQueue {
    /// A bound of `capacity` units.
    pub fn new(capacity: u64) -> Self {
        Self::with(capacity, None, false)
    }

    /// The same queue, in which nobody is passed over for ever. For what is held as long as others like that would be a way to hold
    /// them up. *Caller:* nobody has it yet.
    pub fn with_patience(self) -> Self {
        Self::with(self.shared.capacity, self.shared.per_registry, true)
    }

    /// A bound of `capacity` units, of which a tenant holds at most `per_registry` for one registry, and leaves room for others.
    pub fn with_registries(capacity: u64, per_registry: u64) -> Self {
        Self::with(capacity, Some(per_registry.max(1)), false)
    }

    fn with(capacity: u64, per_registry: Option<u64>, is_patient: bool) -> Self {
        let state = Mutex::new(State { free: capacity, tenants: HashMap::new(), arrivals: 0 });
        Self { shared: Arc::new(Shared { capacity, per_registry, is_patient, state }) }
    }

    /// Waits for `units`, or for all there are if that is less.
    pub async fn acquire(&self, tenant: &Tenant, registry: &str, units: u64) -> Permit {
        let units = units.min(self.shared.capacity);
        // Declared first, so it is dropped when the place in the line is gone.
        let mut leaving = Leaving { shared: &self.shared, waits: true };
        let permit = {
            let mut state = self.shared.lock();
            let (permit, receiver) = oneshot::channel();
            state.arrivals += 1;
            let arrival = state.arrivals;
            state.line(tenant, registry).waiting.push_back(Waiting {
                units,
                arrival,
                passed_over: 0,
                permit,
            });
            self.shared.dispatch(&mut state);
            receiver
        };
        match permit.await {
            Ok(permit) => {
                leaving.waits = false;
                permit
            }
            // The sender is dropped by nobody but the queue, which `self` keeps.
            Err(_) => std::future::pending().await,
        }
    }

    /// Takes `units` if they can be had at once.
    pub fn try_acquire(&self, tenant: &Tenant, registry: &str, units: u64) -> Option<Permit> {
        let mut state = self.shared.lock();
        let registry: Arc<str> = registry.into();
        if self.shared.patient(&state).is_some() || !self.shared.may_take(&state, tenant, &registry, units) {
            return None;
        }
        if self.shared.is_patient {
            let arrival = state.arrivals + 1;
            state.pass_over(arrival, units);
        }
        Some(self.shared.grant(&mut state, tenant.clone(), registry, units))
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether `tenant` may have `units` now.
    fn may_take(&self, state: &State, tenant: &Tenant, registry: &Arc<str>, units: u64) -> bool {
        let holding = state.tenants.get(tenant);
        let (held, at_registry) = holding.map_or((0, 0), |holding| {
            (holding.units, holding.registries.get(registry).map_or(0, |line| line.units))
        });
        if tenant.is_last() {
            let is_much = held > 0 && held.saturating_add(units) > self.capacity / LAST_PART;
            if is_much || self.others_want(state, state.free.saturating_add(held)) {
                return false;
            }
        }
        self.is_allowed(state.free, (held, at_registry), units)
    }

    /// Whether who holds `held` units, some of them for a registry, may have `units` more for that of `free` ones.
    fn is_allowed(&self, free: u64, (held, at_registry): (u64, u64), units: u64) -> bool {
        let fits = units <= free;
        let is_fair = held == 0 || held.saturating_add(units) <= free;
        let leaves_room = self.per_registry.is_none_or(|per_registry| {
            // What the tenant can have, if nobody else takes more.
            let share = (free + held) / 2;
            let after = at_registry.saturating_add(units);
            at_registry == 0 || (after <= per_registry && after <= share.saturating_sub(held))
        });
        fits && is_fair && leaves_room
    }

    /// Whether somebody waits who is not last, and could have what was waited for if `free` units were free.
    fn others_want(&self, state: &State, free: u64) -> bool {
        let others = state.tenants.iter().filter(|(tenant, _)| !tenant.is_last());
        let lines =
            others.flat_map(|(_, holding)| holding.registries.values().map(|line| (holding.units, line)));
        let mut firsts = lines.filter_map(|(held, line)| {
            let first = line.waiting.iter().find(|first| !first.permit.is_closed())?;
            Some((held, line.units, first.units))
        });
        firsts.any(|(held, at_registry, units)| self.is_allowed(free, (held, at_registry), units))
    }

    fn grant(self: &Arc<Self>, state: &mut State, tenant: Tenant, registry: Arc<str>, units: u64) -> Permit {
        state.free -= units;
        let holding = state.tenants.entry(tenant.clone()).or_default();
        holding.units += units;
        holding.registries.entry(Arc::clone(&registry)).or_default().units += units;
        Permit { shared: Arc::clone(self), tenant, registry, units }
    }

    /// Who was passed over for long enough, with what it waits for.
    fn patient(&self, state: &State) -> Option<(Tenant, Arc<str>, u64)> {
        if !self.is_patient {
            return None;
        }
        let nothing =
            state.tenants.iter().filter(|(tenant, holding)| holding.units == 0 && !tenant.is_last());
        nothing
            .flat_map(|(tenant, holding)| holding.registries.iter().map(move |line| (tenant, line)))
            .filter_map(|(tenant, (registry, line))| Some((tenant, registry, line.waiting.front()?)))
            .filter(|(.., first)| first.passed_over >= self.capacity && !first.permit.is_closed())
            .min_by_key(|(.., first)| first.arrival)
            .map(|(tenant, registry, first)| (tenant.clone(), Arc::clone(registry), first.units))
    }

    /// Gives permits to those who wait, as long as somebody may have one.
    fn dispatch(self: &Arc<Self>, state: &mut State) {
        while let Some((tenant, registry)) = self.next(state) {
            let Some(waiting) = state.line(&tenant, &registry).waiting.pop_front() else { return };
            if self.is_patient {
                state.pass_over(waiting.arrival, waiting.units);
            }
            let permit = self.grant(state, tenant, registry, waiting.units);
            if let Err(mut unwanted) = waiting.permit.send(permit) {
                // Who waited has gone. A permit of nothing does not take the lock, which is held here.
                state.take_back(&unwanted.tenant, &unwanted.registry, unwanted.units);
                unwanted.units = 0;
            }
        }
    }

    /// Whose turn it is.
    fn next(&self, state: &mut State) -> Option<(Tenant, Arc<str>)> {
        for holding in state.tenants.values_mut() {
            for line in holding.registries.values_mut() {
                while line.waiting.front().is_some_and(|first| first.permit.is_closed()) {
                    line.waiting.pop_front();
                }
            }
            holding.registries.retain(|_, line| line.units > 0 || !line.waiting.is_empty());
        }
        state.tenants.retain(|_, holding| !holding.registries.is_empty());
        if let Some((tenant, registry, units)) = self.patient(state) {
            return self.may_take(state, &tenant, &registry, units).then_some((tenant, registry));
        }
        /// Whether it is last, what the tenant holds, what it holds for the registry, and when who waits came.
        type Rank = (bool, u64, u64, u64);
        let mut best: Option<(Rank, &Tenant, &Arc<str>)> = None;
        for (tenant, holding) in &state.tenants {
            for (registry, line) in &holding.registries {
                let Some(first) = line.waiting.front() else { continue };
                let rank = (tenant.is_last(), holding.units, line.units, first.arrival);
                if best.is_none_or(|(best, ..)| rank < best)
                    && self.may_take(state, tenant, registry, first.units)
                {
                    best = Some((rank, tenant, registry));
                }
            }
        }
        best.map(|(_, tenant, registry)| (tenant.clone(), Arc::clone(registry)))
    }
}

impl State {
    fn line(&mut self, tenant: &Tenant, registry: &str) -> &mut Line {
        let holding = self.tenants.entry(tenant.clone()).or_default();
        holding.registries.entry(registry.into()).or_default()
    }

    /// Notes that `units` go to who came at `arrival`, or comes now.
    fn pass_over(&mut self, arrival: u64, units: u64) {
        for holding in self.tenants.values_mut().filter(|holding| holding.units == 0) {
            let firsts = holding.registries.values_mut().filter_map(|line| line.waiting.front_mut());
            for first in firsts.filter(|first| first.arrival < arrival) {
                first.passed_over = first.passed_over.saturating_add(units);
            }
        }
    }

    fn take_back(&mut self, tenant: &Tenant, registry: &str, units: u64) {
        self.free += units;
        if let Some(holding) = self.tenants.get_mut(tenant) {
            holding.units -= units;
            if let Some(line) = holding.registries.get_mut(registry) {
                line.units -= units;
            }
        }
    }
}

impl Permit {
    /// Who has it.
    pub fn tenant(&self) -> &Tenant {
        &self.tenant
    }

    /// Gives back all but `units`.
    pub fn shrink(&mut self, units: u64) {
        let returned = self.units.saturating_sub(units);
        let shared = Arc::clone(&self.shared);
        let mut state = shared.lock();
        state.take_back(&self.tenant, &self.registry, returned);
        self.units -= returned;
        shared.dispatch(&mut state);
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if self.units == 0 {
            return;
        }
        let shared = Arc::clone(&self.shared);
        let mut state = shared.lock();
        state.take_back(&self.tenant, &self.registry, self.units);
        shared.dispatch(&mut state);
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    fn tenant(name: &str) -> Tenant {
        Tenant::of_namespace(Some(name))
    }

    fn take(queue: &FairQueue, who: &str, registry: &str) -> Option<Permit> {
        queue.try_acquire(&tenant(who), registry, 1)
    }

    #[test]
    fn a_tenant_leaves_half_of_what_there_is() {
        let queue = FairQueue::new(32);
        let fill = |who: &str| std::iter::from_fn(|| take(&queue, who, "r")).collect::<Vec<_>>();
        let first = fill("a");
        let second = fill("b");
        let third = fill("c");
        assert_eq!([first.len(), second.len(), third.len()], [16, 8, 4]);
        drop(second);
        let again = fill("d");
        assert!(again.len() >= 6, "{}", again.len());
    }

    #[test]
    fn a_large_request_of_who_holds_nothing_is_not_refused() {
        let queue = FairQueue::new(100);
        let held = queue.try_acquire(&tenant("a"), "", 90).expect("alone");
        assert!(queue.try_acquire(&tenant("a"), "", 1).is_none(), "it has more than is free");
        assert!(queue.try_acquire(&tenant("b"), "", 10).is_some());
        drop(held);
    }

    #[test]
    fn a_registry_has_a_bound_of_its_own_for_each_tenant() {
        let queue = FairQueue::with_registries(32, 2);
        let held = [take(&queue, "a", "slow"), take(&queue, "a", "slow")];
        assert!(held.iter().all(Option::is_some));
        assert!(take(&queue, "a", "slow").is_none());
        assert!(take(&queue, "a", "fast").is_some() && take(&queue, "b", "slow").is_some());
        // However large that bound is, something is left for others.
        let queue = FairQueue::with_registries(32, 64);
        let held: Vec<Permit> = std::iter::from_fn(|| take(&queue, "a", "slow")).collect();
        assert_eq!(held.len(), 8);
        assert!((0..3).all(|number| take(&queue, "a", &number.to_string()).is_some()));
    }

    #[tokio::test]
    async fn regression_who_waits_for_much_is_not_passed_over_for_ever() {
        let queue = FairQueue::new(10).with_patience();
        let small = async |number: u64| queue.acquire(&tenant(&format!("t{number}")), "", 3).await;
        let mut held = [small(0).await, small(1).await];
        let patient = tenant("patient");
        let mut large = Box::pin(queue.acquire(&patient, "", 8));
        // Others come and go, and there are never 8 units.
        for number in 2..20 {
            assert!(large.as_mut().now_or_never().is_none());
            let Some(next) = Box::pin(small(number)).as_mut().now_or_never() else { break };
            held[number as usize % 2] = next;
        }
        assert!(queue.try_acquire(&tenant("late"), "", 1).is_none(), "it is the turn of who waits");
        drop(held);
        let _large = large.await;
        assert!(queue.try_acquire(&tenant("late"), "", 1).is_some());
    }

    #[tokio::test]
    async fn what_nobody_waits_for_gets_what_others_leave() {
        let queue = FairQueue::new(8);
        let ahead = std::iter::from_fn(|| queue.try_acquire(&Tenant::PrePull, "r", 1)).collect::<Vec<_>>();
        assert_eq!(ahead.len(), 2, "it has a quarter");
        // Of the rest each namespace leaves some for the next.
        let mut held = Vec::new();
        for (name, count) in [("a", 3), ("b", 2), ("c", 1)] {
            let own = std::iter::from_fn(|| take(&queue, name, "r")).collect::<Vec<_>>();
            assert_eq!(own.len(), count, "{name}");
            held.extend(own);
        }
        // Who came first and who holds less do not count.
        let (last, pod) = (Tenant::PrePull, tenant("d"));
        let mut last = Box::pin(queue.acquire(&last, "", 1));
        assert!(last.as_mut().now_or_never().is_none());
        let mut waits = Box::pin(queue.acquire(&pod, "", 1));
        assert!(waits.as_mut().now_or_never().is_none());
        held.pop();
        let _pod = waits.as_mut().now_or_never().expect("its turn");
        assert!(last.as_mut().now_or_never().is_none());
        drop((ahead, held));
        assert!(last.as_mut().now_or_never().is_some());
    }

    #[tokio::test]
    async fn who_waits_for_more_than_there_is_does_not_see_it_go_to_who_is_last() {
        let queue = FairQueue::new(8);
        let _ahead = queue.try_acquire(&Tenant::PrePull, "r", 1).expect("nobody waits");
        let held = [queue.acquire(&tenant("a"), "", 3).await, queue.acquire(&tenant("b"), "", 2).await];
        let pod = tenant("c");
        let mut waits = Box::pin(queue.acquire(&pod, "", 3));
        assert!(waits.as_mut().now_or_never().is_none(), "two are free");
        assert!(queue.try_acquire(&Tenant::PrePull, "r", 1).is_none());
        // Of one that has its share already nobody needs to take heed.
        drop(waits);
        let mut full = Box::pin(queue.acquire(held[0].tenant(), "", 2));
        assert!(full.as_mut().now_or_never().is_none());
        assert!(queue.try_acquire(&Tenant::PrePull, "r", 1).is_some());
    }

    #[tokio::test]
    async fn who_is_last_goes_after_those_that_came_later() {
        let queue = FairQueue::new(1).with_patience();
        let held = queue.acquire(&tenant("a"), "", 1).await;
        let (ahead, pod) = (Tenant::PrePull, tenant("b"));
        let mut last = Box::pin(queue.acquire(&ahead, "", 1));
        assert!(last.as_mut().now_or_never().is_none());
        let mut waits = Box::pin(queue.acquire(&pod, "", 1));
        assert!(waits.as_mut().now_or_never().is_none());
        drop(held);
        let next = waits.as_mut().now_or_never().expect("a pod goes first, however long the other waits");
        assert!(last.as_mut().now_or_never().is_none());
        drop(next);
        assert!(last.as_mut().now_or_never().is_some());
    }

    #[tokio::test]
    async fn when_who_is_next_leaves_others_go_on() {
        let queue = FairQueue::new(10).with_patience();
        let (a, b, c, d) = (tenant("a"), tenant("b"), tenant("c"), tenant("d"));
        let _held = queue.acquire(&a, "", 4).await;
        let mut large = Box::pin(queue.acquire(&b, "", 8));
        assert!(large.as_mut().now_or_never().is_none());
        for _ in 0..2 {
            drop(queue.acquire(&c, "", 6).await);
        }
        let mut other = Box::pin(queue.acquire(&d, "", 1));
        assert!(other.as_mut().now_or_never().is_none(), "it is the turn of who waits for much");
        drop(large);
        assert!(other.as_mut().now_or_never().is_some());
    }

    #[tokio::test]
    async fn who_holds_least_goes_first_and_who_left_takes_nothing() {
        let queue = FairQueue::new(3);
        let (a, b) = (tenant("a"), tenant("b"));
        let held = [queue.acquire(&a, "r", 1).await, queue.acquire(&b, "r", 2).await];
        let mut gone = Box::pin(queue.acquire(&a, "r", 1));
        assert!(gone.as_mut().now_or_never().is_none());
        let mut waits = Box::pin(queue.acquire(&a, "s", 1));
        let c = tenant("c");
        let mut other = Box::pin(queue.acquire(&c, "r", 1));
        assert!(waits.as_mut().now_or_never().is_none() && other.as_mut().now_or_never().is_none());
        drop(gone);
        let [one, _two] = held;
        drop(one);
        // Both hold nothing now; the one of `a` came first, and the one that left takes nothing.
        let first = waits.await;
        assert!(other.as_mut().now_or_never().is_none());
        drop(first);
        let mut last = other.await;
        last.shrink(0);
        assert!(queue.try_acquire(&a, "r", 1).is_some());
    }
}
