//! The memory that all queries share, and who may take how much of it.
//!
//! One number holds at every request: what queries hold, and what is there beyond what they say, never passes
//! the limit. A query holds the greater of what it uses and what it was granted before it started, so what it
//! was granted is there when it asks. Beyond that it takes what is free, and once most of the budget is taken,
//! what can be spilled stays within its fair share: equal between principals of equal priority, and equal
//! between the queries of one. DataFusion's `FairSpillPool` shares between operators instead, so that a query
//! with many gets more, and does not check the total.
//!
//! What clients have uploaded is held too (`upload`), and is as much less for queries to share.
//!
//! Light queries have a small part whatever the others hold, so that they wait for none of these. Until the others have
//! given way, the total may pass the limit by that part. The cache of hot tables keeps a small part as well, of what those
//! that can spill leave free: what is asked for again and again would otherwise be read anew for as long as heavy queries run.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use parking_lot::{Mutex, RwLock};
use updraft_auth::Principal;

use super::grant::{Claim, Grant};

/// The part of the limit that what can be spilled leaves free: the grant of a small query is there at once, and need
/// not wait until a large one spills.
pub(super) const KEPT_FREE: u64 = 8;
/// The part of the limit that the cache of hot tables keeps when queries can spill, wait, or begin anew: of what is left free.
const FOR_HOT: u64 = 16;
/// Of the limit, what may wait for clients before it counts as a crowd: many of them, as one leaves some megabytes.
const CROWD: u64 = 4;

/// Of the limit, what light queries may hold together however little is free: one part in this many.
const FOR_LIGHT: u64 = 16;
/// The most that this is.
const FOR_LIGHT_MAX: u64 = 64 << 20;
/// An answer of so many bytes is made although a crowd of them waits for clients.
const SMALL_ANSWER: u64 = 64 << 10;
/// The same when they have twice as much as makes a crowd: thousands of small answers are much, too.
const TINY_ANSWER: u64 = 1 << 10;

/// What can let go of memory when queries need it, such as a cache.
pub(crate) trait Reclaim: fmt::Debug + Send + Sync {
    /// Lets go of up to `bytes`; returns how many it let go of.
    fn reclaim(&self, bytes: u64) -> u64;

    /// Bytes that it has, most of which it can let go of.
    fn held(&self) -> u64 {
        0
    }

    /// Whether it keeps a part from queries that can go on without.
    fn keeps_a_part(&self) -> bool {
        false
    }
}

impl Reclaim for updraft_hot::Cache {
    fn reclaim(&self, bytes: u64) -> u64 {
        Self::reclaim(self, bytes)
    }

    fn held(&self) -> u64 {
        self.used()
    }

    fn keeps_a_part(&self) -> bool {
        true
    }
}

/// The shared budget.
pub(crate) struct Budget {
    pub(super) limit: u64,
    /// Bytes that are there although no query holds them, as last measured.
    unaccounted: AtomicU64,
    /// Somebody waits for a grant that did not fit.
    pub(super) wanted: AtomicBool,
    pub(super) state: Mutex<State>,
    reclaimers: RwLock<Vec<Arc<dyn Reclaim>>>,
    /// Called when a query has given back what it held.
    freed: OnceLock<Box<dyn Fn() + Send + Sync>>,
}

#[derive(Debug, Default)]
pub(super) struct State {
    /// The sum of what queries and uploads hold.
    pub(super) held: u64,
    /// Of that, what uploads hold.
    pub(super) uploaded: u64,
    /// Of that, what light queries hold.
    pub(super) light: u64,
    /// What queries that ended have left for their clients. Who would be let in alone does not wait for it.
    unsent: u64,
    pub(super) parties: HashMap<Principal, Party>,
    /// What each query holds that waits for others to let go of memory.
    pub(super) waiting: Vec<u64>,
}

/// One principal's part in the budget; gone with its last query and upload.
#[derive(Debug, Default)]
pub(super) struct Party {
    pub(super) held: u64,
    /// Of that, what uploads hold.
    pub(super) uploaded: u64,
    /// Of that, what light queries hold.
    pub(super) light: u64,
    /// Queries and uploads.
    pub(super) members: u64,
    /// The queries that count when shares are worked out.
    pub(super) sharing: u64,
    priority: u32,
}

impl fmt::Debug for Budget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unaccounted = self.unaccounted.load(Ordering::Relaxed);
        write!(f, "Budget {{ limit: {}, unaccounted: {unaccounted}, {:?} }}", self.limit, self.state.lock())
    }
}

impl Budget {
    pub(crate) fn new(limit: u64) -> Arc<Self> {
        Arc::new(Self {
            limit,
            unaccounted: AtomicU64::new(0),
            wanted: AtomicBool::new(false),
            state: Mutex::default(),
            reclaimers: RwLock::default(),
            freed: OnceLock::new(),
        })
    }

    pub(crate) fn limit(&self) -> u64 {
        self.limit
    }

    /// The sum of what queries and uploads hold and of what queries that ended have left, in bytes.
    pub(crate) fn held(&self) -> u64 {
        let state = self.state.lock();
        state.held + state.unsent
    }

    /// What uploads hold of that, in bytes.
    pub(crate) fn uploaded(&self) -> u64 {
        self.state.lock().uploaded
    }

    /// The largest answer, in bytes, that need not wait until less waits for clients.
    pub(crate) fn answer_max(&self) -> u64 {
        let state = self.state.lock();
        match self.is_crowded_with(&state) {
            true if state.unsent > self.limit / CROWD * 2 => TINY_ANSWER,
            true => SMALL_ANSWER,
            false => u64::MAX,
        }
    }

    fn is_crowded_with(&self, state: &State) -> bool {
        state.unsent > self.limit / CROWD
    }

    /// What a new query could be granted now, in bytes: what is free, and what caches would let go of for it.
    pub(crate) fn free(&self) -> u64 {
        let state = self.state.lock();
        let kept = if state.heavy() > 0 { self.kept_hot() } else { 0 };
        self.lendable_of(&state).saturating_sub(kept)
    }

    /// What the cache of hot tables may take more than it has: what is free, but for the part that is kept for queries, and
    /// of that its own.
    pub(crate) fn free_for_hot(&self) -> u64 {
        let free = self.free_of(&self.state.lock());
        let keeps = self.limit / FOR_HOT - self.kept_hot();
        free.saturating_sub(self.limit / KEPT_FREE).max(keeps.min(free))
    }

    /// Counts `bytes` that are nobody's any more and still there: results that wait for clients.
    pub(crate) fn add_unsent(&self, bytes: u64) {
        self.state.lock().unsent += bytes;
    }

    /// `bytes` of those have gone.
    pub(crate) fn less_unsent(&self, bytes: u64) {
        self.state.lock().unsent -= bytes;
        self.tell_freed();
    }

    /// Tells how many bytes are there beyond what queries hold.
    pub(crate) fn set_unaccounted(&self, bytes: u64) {
        self.unaccounted.store(bytes, Ordering::Relaxed);
    }

    pub(crate) fn unaccounted(&self) -> u64 {
        self.unaccounted.load(Ordering::Relaxed)
    }

    /// Calls `freed` whenever a query has given back what it held: the operators of a query that has ended may hold
    /// memory for a moment longer than its turn lasts.
    pub(crate) fn on_freed(&self, freed: impl Fn() + Send + Sync + 'static) {
        let _ = self.freed.set(Box::new(freed));
    }

    /// Says that there is more. Not under a lock of the budget's.
    pub(super) fn tell_freed(&self) {
        if let Some(freed) = self.freed.get() {
            freed();
        }
    }

    /// Nobody waits for a grant any more.
    pub(crate) fn nobody_waits(&self) {
        self.wanted.store(false, Ordering::Relaxed);
    }

    /// Asks `reclaimer` for memory from now on, after those that were added before.
    pub(crate) fn add_reclaimer(&self, reclaimer: Arc<dyn Reclaim>) {
        self.reclaimers.write().push(reclaimer);
    }

    /// Asks the caches for `bytes`; returns how many they let go of.
    pub(crate) fn reclaim(&self, bytes: u64) -> u64 {
        self.reclaim_from(bytes, |_| u64::MAX)
    }

    /// The same, but for what is kept from queries that can go on without.
    pub(super) fn reclaim_some(&self, bytes: u64) -> u64 {
        self.reclaim_from(bytes, |cache| match cache.keeps_a_part() {
            true => cache.held().saturating_sub(self.limit / FOR_HOT),
            false => u64::MAX,
        })
    }

    fn reclaim_from(&self, bytes: u64, most: impl Fn(&dyn Reclaim) -> u64) -> u64 {
        let reclaimers = self.reclaimers.read();
        let mut got = 0;
        for reclaimer in reclaimers.iter() {
            let asked = bytes.saturating_sub(got).min(most(reclaimer.as_ref()));
            if asked > 0 {
                got += reclaimer.reclaim(asked);
            }
        }
        // Freed bytes were part of what was measured; the next measurement says so exactly.
        let less = |unaccounted: u64| Some(unaccounted.saturating_sub(got));
        let _ = self.unaccounted.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
        got
    }

    /// What those that can spill leave free: with what the cache of hot tables keeps it is always the same.
    pub(super) fn kept_free(&self) -> u64 {
        self.limit / KEPT_FREE - self.kept_hot()
    }

    fn kept_hot(&self) -> u64 {
        let reclaimers = self.reclaimers.read();
        let held = reclaimers.iter().filter(|cache| cache.keeps_a_part()).map(|cache| cache.held()).sum::<u64>();
        held.min(self.limit / FOR_HOT)
    }

    /// Sets `bytes` aside for a query of `claim`; `None` while there are not as many. More than the whole budget, less
    /// what uploads hold, is granted as just that, and the only query is granted whatever it asks: it would wait for nobody.
    pub(crate) fn try_grant(self: &Arc<Self>, claim: &Claim, bytes: u64) -> Option<Grant> {
        let grant = self.grant_once(claim, bytes).or_else(|| {
            let (missing, heavy) = {
                let state = self.state.lock();
                (self.missing(claim, &state, bytes.min(self.limit), 0), state.heavy())
            };
            let got = if claim.shares && heavy > 0 { self.reclaim_some(missing) } else { self.reclaim(missing) };
            (got > 0).then(|| self.grant_once(claim, bytes)).flatten()
        });
        // A light query that gets its little says nothing about who waits for much.
        if claim.shares {
            self.wanted.store(grant.is_none(), Ordering::Relaxed);
        }
        grant
    }

    fn grant_once(self: &Arc<Self>, claim: &Claim, bytes: u64) -> Option<Grant> {
        let mut state = self.state.lock();
        let known = state.parties.get(&claim.principal);
        let uploaded = known.map_or(0, |party| party.uploaded);
        let most = self.limit.saturating_sub(state.uploaded).min(claim.principal_limit.saturating_sub(uploaded));
        let bytes = bytes.min(most);
        // Who runs alone has what it needs in any case, unless it adds to what no client takes. Then some is kept for the light.
        let others_run = state.held > state.uploaded;
        let adds_to_crowd = claim.shares && self.is_crowded_with(&state);
        let kept = if adds_to_crowd { self.limit / KEPT_FREE } else { 0 };
        let is_full = bytes > self.free_for(claim, &state).saturating_sub(kept);
        if (is_full && (others_run || adds_to_crowd)) || self.is_over_own(claim, &state, bytes) {
            return None;
        }
        let party = state.parties.entry(claim.principal.clone()).or_default();
        party.priority = claim.priority;
        party.members += 1;
        party.sharing += u64::from(claim.shares);
        Some(Grant::new(Arc::clone(self), claim.clone(), &mut state, bytes))
    }

    pub(super) fn free_of(&self, state: &State) -> u64 {
        self.limit.saturating_sub(state.held + state.unsent).saturating_sub(self.beside().0)
    }

    /// What is free for a query of `claim`.
    pub(super) fn free_for(&self, claim: &Claim, state: &State) -> u64 {
        self.free_of(state).max(self.for_light(claim, state))
    }

    /// What a query of `claim` gets whatever others hold, those of its principal as well: they would keep all light ones waiting.
    pub(super) fn for_light(&self, claim: &Claim, state: &State) -> u64 {
        if claim.shares { 0 } else { self.part_of_light().saturating_sub(state.light) }
    }

    fn part_of_light(&self) -> u64 {
        FOR_LIGHT_MAX.min(self.limit / FOR_LIGHT)
    }

    /// Whether `more` bytes for a query of `claim` are more than its principal may hold. What light queries have as their
    /// part, they have beside that.
    pub(super) fn is_over_own(&self, claim: &Claim, state: &State, more: u64) -> bool {
        let held = state.parties.get(&claim.principal).map_or(0, |party| match claim.shares {
            true => party.held - party.light.min(self.part_of_light()),
            false => party.held,
        });
        held + more > claim.principal_limit && more > self.for_light(claim, state)
    }

    /// What caches would have to let go of for a query of `claim` to have `more` bytes, and leave `kept`.
    pub(super) fn missing(&self, claim: &Claim, state: &State, more: u64, kept: u64) -> u64 {
        match more + kept <= self.free_for(claim, state) {
            true => 0,
            false => (more + kept).saturating_sub(self.free_of(state)),
        }
    }

    /// What is free, and what caches would let go of.
    pub(super) fn lendable_of(&self, state: &State) -> u64 {
        let (beside, cached) = self.beside();
        self.limit.saturating_sub(state.held + state.unsent).saturating_sub(beside - cached)
    }

    /// Whether more is there than queries hold and caches have, as last measured.
    pub(super) fn is_more_than_cached(&self) -> bool {
        let (beside, cached) = self.beside();
        beside > cached
    }

    /// Bytes that are there although no query holds them, and how many of them caches have. A cache says so at once what
    /// it has; what was measured may be some milliseconds old.
    fn beside(&self) -> (u64, u64) {
        let cached = self.reclaimers.read().iter().map(|reclaimer| reclaimer.held()).sum();
        (self.unaccounted.load(Ordering::Relaxed).max(cached), cached)
    }
}

impl State {
    /// What queries hold, but for light ones.
    pub(super) fn heavy(&self) -> u64 {
        self.held - self.uploaded - self.light
    }

    /// A query or an upload of `principal` is over.
    pub(super) fn leave(&mut self, principal: &Principal) {
        let Some(party) = self.parties.get_mut(principal) else { return };
        party.members -= 1;
        if party.members == 0 {
            self.parties.remove(principal);
        }
    }

    /// The fair share of each query of `principal`. A grant that somebody waits for counts as one more principal.
    pub(super) fn share(&self, principal: &Principal, limit: u64, wanted: bool) -> u64 {
        let limit = limit.saturating_sub(self.uploaded);
        let Some(party) = self.parties.get(principal) else { return limit };
        let priority = u64::from(party.priority);
        let sharing = self.parties.values().filter(|party| party.sharing > 0);
        let all = sharing.map(|party| u64::from(party.priority)).sum::<u64>() + if wanted { priority } else { 0 };
        (u128::from(limit) * u128::from(priority) / u128::from(all.max(1)) / u128::from(party.sharing.max(1))) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::super::grant::{Otherwise, Refusal};
    use super::super::testing::Cache;
    use super::*;

    fn claim(name: &str) -> Claim {
        Claim { principal: Principal::new(name), priority: 10, principal_limit: u64::MAX, shares: true }
    }

    #[test]
    fn what_a_query_lends_is_for_others_until_it_takes_it_back() {
        let budget = Budget::new(1000);
        let a = budget.try_grant(&claim("a"), 700).expect("it fits");
        a.hold(100, Otherwise::Spills).expect("its own");
        assert_eq!((a.lend(100), budget.held(), budget.free()), (700, 100, 900));
        let b = budget.try_grant(&claim("b"), 600).expect("what was lent");
        assert!(!a.take_back(700, 100), "300 are free, and it has 100");
        assert_eq!(budget.held(), 700, "a try changes nothing");
        drop(b);
        let capped = Claim { principal_limit: 300, ..claim("b") };
        let (first, second) = (budget.try_grant(&capped, 300).expect("it fits"), budget.try_grant(&capped, 0));
        first.lend(0);
        second.as_ref().expect("nothing fits").hold(200, Otherwise::Fails).expect("what was lent");
        assert!(!first.take_back(300, 0), "its principal may not have both");
        drop(second);
        assert!(first.take_back(300, 0));
        drop(first);
        assert!(a.take_back(700, 100));
        assert_eq!((a.bytes(), budget.held()), (700, 700));
        a.lend(300);
        budget.set_unaccounted(600);
        assert!(a.take_back(700, 300), "it waits for nobody when nobody else runs");
        drop(a);
        assert_eq!(budget.held(), 0);
    }

    #[test]
    fn light_queries_have_a_part_whatever_others_hold() {
        let budget = Budget::new(1600);
        let heavy = budget.try_grant(&claim("a"), 0).expect("it fits");
        heavy.hold(1600, Otherwise::Fails).expect("all of it");
        let light = Claim { shares: false, ..claim("b") };
        let one = budget.try_grant(&light, 60).expect("of a sixteenth");
        assert!(budget.try_grant(&light, 41).is_none(), "that is all of the part");
        one.hold(100, Otherwise::Fails).expect("all of the part");
        assert_eq!(one.hold(101, Otherwise::Fails), Err(Refusal::Full { free: 0 }));
        assert_eq!(heavy.hold(1601, Otherwise::Fails), Err(Refusal::Full { free: 0 }));
        assert!(budget.try_grant(&claim("c"), 1).is_none(), "heavy ones have no such part");
        assert_eq!((one.lend(0), budget.held()), (60, 1600));
        assert!(one.take_back(60, 0), "it is its part still");
        heavy.hold(1000, Otherwise::Fails).expect("less");
        let two = budget.try_grant(&light, 500).expect("it is free");
        drop((two, heavy));
        let heavy = budget.try_grant(&claim("a"), 1240).expect("it fits");
        let cache = Arc::new(Cache(AtomicU64::new(300)));
        budget.add_reclaimer(cache.clone());
        let two = budget.try_grant(&light, 50).expect("more than is left of the part");
        assert_eq!(cache.held(), 250, "of the cache's");
        drop((one, two, heavy));
        let state = budget.state.lock();
        assert_eq!((state.held, state.light), (0, 0));
    }

    #[test]
    fn light_queries_have_their_part_beyond_what_their_principal_may_hold() {
        let budget = Budget::new(1600);
        let bounded = Claim { principal_limit: 400, ..claim("a") };
        let heavy = budget.try_grant(&bounded, 0).expect("it fits");
        heavy.hold(400, Otherwise::Fails).expect("all it may");
        let light = Claim { shares: false, ..bounded };
        let one = budget.try_grant(&light, 50).expect("of the part");
        one.hold(100, Otherwise::Fails).expect("all of the part");
        assert_eq!(one.hold(101, Otherwise::Fails), Err(Refusal::Principal { limit: 400 }));
        assert!(budget.try_grant(&light, 1).is_none());
        one.lend(0);
        assert!(one.take_back(100, 0));
        heavy.hold(300, Otherwise::Fails).expect("less");
        heavy.hold(400, Otherwise::Fails).expect("all it may, whatever light ones hold");
        assert_eq!(heavy.hold(401, Otherwise::Fails), Err(Refusal::Principal { limit: 400 }));
    }

    #[test]
    fn the_more_waits_for_clients_the_smaller_are_the_answers_that_do_not_wait() {
        let budget = Budget::new(1000);
        for (more, answer_max) in [(250, u64::MAX), (1, SMALL_ANSWER), (249, SMALL_ANSWER), (1, TINY_ANSWER)] {
            budget.add_unsent(more);
            assert_eq!(budget.answer_max(), answer_max);
        }
    }

    #[test]
    fn what_was_granted_is_there_whatever_others_do() {
        let budget = Budget::new(1000);
        let (a, b) = (budget.try_grant(&claim("a"), 300), budget.try_grant(&claim("b"), 300));
        let (a, b) = (a.expect("it fits"), b.expect("it fits"));
        b.hold(700, Otherwise::Fails).expect("all that was not granted to a");
        assert_eq!(b.hold(701, Otherwise::Fails), Err(Refusal::Full { free: 0 }));
        a.hold(300, Otherwise::Spills).expect("its own");
        assert_eq!(a.hold(301, Otherwise::Fails), Err(Refusal::Full { free: 0 }));
        assert!(budget.try_grant(&claim("c"), 1).is_none());
        drop(b);
        assert_eq!((budget.held(), budget.free()), (300, 700));
        drop(a);
        assert_eq!(budget.free(), 1000);
    }

    #[test]
    fn what_waits_for_clients_is_not_free_and_keeps_nobody_out_who_is_alone() {
        let budget = Budget::new(1000);
        budget.add_unsent(100);
        assert_eq!((budget.held(), budget.free()), (100, 900));
        let small = budget.try_grant(&claim("a"), 900).expect("all that is free");
        assert!(budget.try_grant(&claim("b"), 1).is_none());
        drop(small);
        let alone = budget.try_grant(&claim("a"), 1000).expect("it would wait for clients only");
        assert_eq!(alone.hold(1001, Otherwise::Fails), Err(Refusal::Full { free: 0 }));
        budget.less_unsent(100);
        assert_eq!(budget.held(), 1000);
    }

    #[test]
    fn shares_are_between_principals_and_then_between_their_queries() {
        let budget = Budget::new(1200);
        let one = budget.try_grant(&claim("a"), 0).expect("it fits");
        assert_eq!(
            one.hold(1051, Otherwise::Spills),
            Err(Refusal::Full { free: 1050 }),
            "an eighth is left to newcomers"
        );
        one.hold(1050, Otherwise::Spills).expect("alone it may have all the rest");
        one.hold(0, Otherwise::Spills).expect("it lets go");
        let two: Vec<_> = (0..2).map(|_| budget.try_grant(&claim("b"), 0).expect("it fits")).collect();
        assert_eq!(one.hold(1000, Otherwise::Spills), Err(Refusal::OverShare { share: 600 }));
        one.hold(600, Otherwise::Spills).expect("half for each principal");
        assert_eq!(two[0].hold(400, Otherwise::Spills), Err(Refusal::OverShare { share: 300 }));
        two[0].hold(300, Otherwise::Spills).expect("half of a half");
        two[1].hold(150, Otherwise::Spills).expect("what is left");
        two[0].hold(0, Otherwise::Spills).expect("it lets go");
        two[1].hold(600, Otherwise::Fails).expect("what cannot spill takes what is free");
    }

    #[test]
    fn a_principal_with_twice_the_priority_has_twice_the_share() {
        let budget = Budget::new(900);
        let a = budget.try_grant(&Claim { priority: 20, ..claim("a") }, 0).expect("it fits");
        let b = budget.try_grant(&claim("b"), 0).expect("it fits");
        assert_eq!((a.room(), b.room()), (600, 300));
        let waiting = budget.try_grant(&claim("c"), 901).is_none();
        assert!(!waiting, "more than the budget is the whole budget, and nobody holds any of it");
    }

    #[test]
    fn a_principal_stays_below_its_own_limit() {
        let budget = Budget::new(1000);
        let bounded = Claim { principal_limit: 400, ..claim("a") };
        let first = budget.try_grant(&bounded, 300).expect("it fits");
        assert!(budget.try_grant(&bounded, 200).is_none());
        let second = budget.try_grant(&bounded, 100).expect("its last");
        assert_eq!(second.hold(101, Otherwise::Fails), Err(Refusal::Principal { limit: 400 }));
        drop(first);
        second.hold(400, Otherwise::Fails).expect("what the first gave back");
    }

    #[test]
    fn what_is_there_unaccounted_counts() {
        let budget = Budget::new(1000);
        let query = budget.try_grant(&claim("a"), 100).expect("it fits");
        budget.set_unaccounted(500);
        assert_eq!(query.hold(501, Otherwise::Fails), Err(Refusal::Full { free: 400 }));
        query.hold(500, Otherwise::Fails).expect("the rest");
        assert!(budget.try_grant(&claim("b"), 1).is_none());
    }

    #[test]
    fn caches_give_way_before_a_query_is_refused() {
        let budget = Budget::new(1000);
        budget.set_unaccounted(600);
        budget.add_reclaimer(Arc::new(Cache(AtomicU64::new(500))));
        let query = budget.try_grant(&claim("a"), 300).expect("it fits");
        let other = budget.try_grant(&claim("b"), 300).expect("of the cache's");
        query.hold(600, Otherwise::Fails).expect("of the cache's");
        assert_eq!(other.hold(400, Otherwise::Fails), Err(Refusal::Full { free: 0 }), "the cache has no more");
    }

    #[test]
    fn what_a_cache_has_is_free_to_plan_with_and_nobodys_share() {
        let budget = Budget::new(1000);
        let cache = Arc::new(Cache(AtomicU64::new(800)));
        budget.add_reclaimer(cache.clone());
        assert_eq!(budget.free(), 1000, "before it is measured");
        budget.set_unaccounted(850);
        assert_eq!(budget.free(), 950);
        let a = budget.try_grant(&claim("a"), 100).expect("it fits");
        let _b = budget.try_grant(&claim("b"), 100).expect("of the cache's");
        assert_eq!((cache.held(), budget.free()), (750, 688), "all but the part that caches keep");
        assert_eq!(a.room(), 500);
        a.hold(400, Otherwise::Spills).expect("of the cache's");
        assert_eq!(cache.held(), 387, "and an eighth is left free or in the cache");
        assert_eq!(budget.free(), 388);
        assert_eq!(budget.free_for_hot(), 0);
        assert_eq!(cache.reclaim(347), 347);
        budget.set_unaccounted(503);
        assert_eq!(budget.free_for_hot(), 0, "as others have it");
        budget.set_unaccounted(450);
        assert_eq!(budget.free_for_hot(), 22, "40 are there, and 62 may be");
    }

    #[test]
    fn the_hot_cache_keeps_a_part_from_those_that_can_do_without() {
        let budget = Budget::new(1600);
        let cache = Arc::new(Cache(AtomicU64::new(300)));
        budget.add_reclaimer(cache.clone());
        let (a, b) = (budget.try_grant(&claim("a"), 0), budget.try_grant(&claim("b"), 0));
        let (a, b) = (a.expect("it fits"), b.expect("it fits"));
        a.hold(1300, Otherwise::Fails).expect("it is free");
        assert_eq!(b.hold(101, Otherwise::Spills), Err(Refusal::Full { free: 100 }), "it may spill");
        assert_eq!(cache.held(), 100, "a sixteenth");
        b.hold(100, Otherwise::Spills).expect("as much as without a cache");
        assert!(budget.try_grant(&claim("c"), 101).is_none(), "it may wait");
        assert_eq!(b.hold(201, Otherwise::DoesWithout), Err(Refusal::Full { free: 100 }), "it may begin anew");
        assert_eq!((cache.held(), budget.free()), (100, 100));
        b.hold(201, Otherwise::Fails).expect("of the cache's last");
        assert_eq!(cache.held(), 99);
        drop((a, b));
        let light = Claim { shares: false, ..claim("b") };
        let _light = budget.try_grant(&light, 10).expect("it fits");
        assert_eq!(budget.free(), 1590, "no other runs that it could wait for");
        let alone = budget.try_grant(&claim("a"), 0).expect("it fits");
        alone.hold(1590, Otherwise::DoesWithout).expect("all there is");
        assert_eq!(cache.held(), 0);
    }

    #[test]
    fn what_else_is_kept_goes_before_the_part_of_the_hot_cache() {
        #[derive(Debug)]
        struct Plans(Cache);
        impl Reclaim for Plans {
            fn reclaim(&self, bytes: u64) -> u64 {
                self.0.reclaim(bytes)
            }
            fn held(&self) -> u64 {
                self.0.held()
            }
        }
        let budget = Budget::new(1600);
        let (hot, plans) = (Arc::new(Cache(AtomicU64::new(150))), Arc::new(Plans(Cache(AtomicU64::new(200)))));
        budget.add_reclaimer(hot.clone());
        budget.add_reclaimer(plans.clone());
        let a = budget.try_grant(&claim("a"), 1250).expect("it fits");
        let b = budget.try_grant(&claim("b"), 0).expect("it fits");
        b.hold(150, Otherwise::Spills).expect("of both");
        assert_eq!((hot.held(), plans.held(), budget.free_for_hot()), (100, 0, 0));
        assert_eq!(b.hold(151, Otherwise::Spills), Err(Refusal::Full { free: 0 }));
        drop((a, b));
    }

    /// Random requests: the total never passes the limit, and nothing is left at the end.
    #[test]
    fn the_total_holds_at_every_request() {
        arbtest::arbtest(|u| {
            let budget = Budget::new(u.int_in_range(1..=2000)?);
            let mut queries: Vec<Grant> = Vec::new();
            for _ in 0..u.int_in_range(1..=60)? {
                let bytes = u.int_in_range(0..=1500)?;
                match u.int_in_range(0..=3)? {
                    0 => queries.extend(budget.try_grant(&claim(["a", "b"][u.int_in_range(0..=1)?]), bytes)),
                    1 if !queries.is_empty() => drop(queries.swap_remove(u.choose_index(queries.len())?)),
                    _ if !queries.is_empty() => {
                        let query = &queries[u.choose_index(queries.len())?];
                        let (before, granted) = (query.held(), query.bytes());
                        let otherwise = [Otherwise::Spills, Otherwise::DoesWithout, Otherwise::Fails];
                        let outcome = query.hold(bytes, *u.choose(&otherwise)?);
                        assert!(outcome.is_ok() || query.held() == before, "a refusal takes nothing");
                        assert!(outcome.is_ok() || bytes > granted, "what was granted is there");
                    }
                    _ => {}
                }
                assert!(budget.held() <= budget.limit(), "{budget:?}");
                assert_eq!(budget.held(), queries.iter().map(Grant::held).sum::<u64>());
            }
            drop(queries);
            let state = budget.state.lock();
            assert!(state.held == 0 && state.parties.is_empty(), "{state:?}");
            Ok(())
        });
    }
}
