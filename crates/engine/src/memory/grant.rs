//! What one query holds of the budget, and what it may still ask for.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use bytesize::ByteSize;
use parking_lot::Mutex;
use updraft_auth::Principal;

use super::budget::{Budget, KEPT_FREE, State};
use crate::hand_over;

/// Above this share of the limit, what can be spilled is held to its fair share.
const CROWDED: f64 = 0.8;
/// How long a query waits in all for what others let go of, before it fails for want of it: they spill, or end.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);
/// The same when nobody else holds anything, but more is there than is counted: that may be so no more at the next look.
const PATIENCE_ALONE: Duration = Duration::from_millis(50);
/// How often who waits tries again.
const TRY_EVERY: Duration = Duration::from_millis(5);

/// Who asks for memory, and what bounds it.
#[derive(Debug, Clone)]
pub(crate) struct Claim {
    pub(crate) principal: Principal,
    /// The weight of the principal when shares are worked out.
    pub(crate) priority: u32,
    /// The most that all queries of the principal may hold, in bytes.
    pub(crate) principal_limit: u64,
    /// Whether the query counts when shares are worked out. A light one does not: it is gone in a moment.
    pub(crate) shares: bool,
}

/// Why memory was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// The budget is taken.
    Full { free: u64 },
    /// There is some, but it is others' share.
    OverShare { share: u64 },
    /// The principal's queries hold all they may.
    Principal { limit: u64 },
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Full { free } => write!(f, "{} are free (engine.memory_limit)", ByteSize(*free)),
            Self::OverShare { share } => write!(f, "its share is {} while others run", ByteSize(*share)),
            Self::Principal { limit } => write!(f, "all queries of its principal may hold {}", ByteSize(*limit)),
        }
    }
}

/// What an operator does that is refused memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Otherwise {
    Spills,
    /// Or its query begins anew, which may.
    DoesWithout,
    Fails,
}

/// What one query holds of the budget, from before it starts until it has ended.
#[derive(Debug)]
pub(crate) struct Grant {
    budget: Arc<Budget>,
    claim: Claim,
    /// What is set aside. Changed under the budget's lock only.
    bytes: AtomicU64,
    /// The greater of that and what is used. Changed under the budget's lock only.
    held: AtomicU64,
    waiters: Mutex<Waiters>,
}

/// The threads of a query that wait for memory now.
#[derive(Debug, Default)]
struct Waiters {
    threads: u64,
    /// What the query held when the first of them began.
    held: u64,
}

impl Grant {
    /// Of `bytes`, which are counted in the budget's `state`. Its principal has its part there.
    pub(super) fn new(budget: Arc<Budget>, claim: Claim, state: &mut State, bytes: u64) -> Self {
        let grant = Self { budget, claim, bytes: bytes.into(), held: 0.into(), waiters: Mutex::default() };
        grant.set(state, bytes);
        grant
    }

    /// Bytes set aside for the query.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// The greater of what was set aside and what is used.
    pub(crate) fn held(&self) -> u64 {
        self.held.load(Ordering::Relaxed)
    }

    /// The most the query could use at this moment of what can be spilled.
    pub(crate) fn room(&self) -> u64 {
        let state = self.budget.state.lock();
        let held = self.held();
        let free = held + self.budget.lendable_of(&state).saturating_sub(self.budget.limit / KEPT_FREE);
        let room = free.min(self.share(&state).max(held));
        room.min(self.claim.principal_limit).max(self.bytes())
    }

    /// Holds `used` bytes, or as many as were set aside if that is more.
    ///
    /// # Errors
    /// When the budget or the shares do not allow as many.
    pub(crate) fn hold(&self, used: u64, otherwise: Otherwise) -> Result<(), Refusal> {
        let wanted = used.max(self.bytes());
        match self.hold_once(wanted, otherwise) {
            Err(refusal @ Refusal::Full { .. }) => {
                let kept = if otherwise == Otherwise::Spills { self.budget.kept_free() } else { 0 };
                let (missing, others) = {
                    let state = self.budget.state.lock();
                    let more = wanted.saturating_sub(self.held());
                    (self.budget.missing(&self.claim, &state, more, kept), state.heavy().saturating_sub(self.held()))
                };
                let got = match otherwise {
                    Otherwise::Spills => self.budget.reclaim_some(missing),
                    Otherwise::DoesWithout if self.claim.shares && others > 0 => self.budget.reclaim_some(missing),
                    Otherwise::DoesWithout | Otherwise::Fails => self.budget.reclaim(missing),
                };
                if got == 0 {
                    return Err(refusal);
                }
                self.hold_once(wanted, otherwise)
            }
            done => done,
        }
    }

    fn hold_once(&self, wanted: u64, otherwise: Otherwise) -> Result<(), Refusal> {
        let can_spill = otherwise == Otherwise::Spills;
        let held = self.held();
        if wanted == held {
            return Ok(());
        }
        let mut state = self.budget.state.lock();
        if let Some(more) = wanted.checked_sub(held) {
            let free = self.budget.free_for(&self.claim, &state);
            if more > free {
                return Err(Refusal::Full { free });
            }
            if self.budget.is_over_own(&self.claim, &state, more) {
                return Err(Refusal::Principal { limit: self.claim.principal_limit });
            }
            let kept = if can_spill { self.budget.kept_free() } else { 0 };
            if free - more < kept && more > self.budget.for_light(&self.claim, &state) {
                return Err(Refusal::Full { free: free.saturating_sub(kept) });
            }
            // What only a cache has is nobody's share. Of what is measured more may be there than a moment ago.
            let lendable = self.budget.lendable_of(&state);
            let crowded = lendable.saturating_sub(more) as f64 <= self.budget.limit as f64 * (1.0 - CROWDED);
            let share = self.share(&state);
            if can_spill && crowded && wanted > share && share < self.budget.limit {
                return Err(Refusal::OverShare { share });
            }
        }
        self.set(&mut state, wanted);
        Ok(())
    }

    /// Tries again and again until it is `done`, while others may let go of memory and the query has not waited for long.
    /// This thread sleeps meanwhile. Adds to `waited`, in microseconds.
    pub(crate) fn wait_until(&self, waited: &AtomicU64, mut done: impl FnMut() -> bool) {
        if !self.claim.shares {
            return;
        }
        hand_over::blocking(|| {
            self.set_waiting(true);
            let since = Instant::now();
            let before = Duration::from_micros(waited.load(Ordering::Relaxed));
            while before + since.elapsed() < self.patience() {
                // Their shares are smaller now.
                self.budget.wanted.store(true, Ordering::Relaxed);
                thread::sleep(TRY_EVERY);
                if done() {
                    break;
                }
            }
            waited.fetch_add(since.elapsed().as_micros() as u64, Ordering::Relaxed);
            self.set_waiting(false);
        });
    }

    /// One thread more waits, or one less.
    fn set_waiting(&self, waits: bool) {
        let mut state = self.budget.state.lock();
        let mut waiters = self.waiters.lock();
        if waits {
            waiters.threads += 1;
            if waiters.threads == 1 {
                waiters.held = self.held();
                state.waiting.push(waiters.held);
            }
            return;
        }
        waiters.threads -= 1;
        if waiters.threads == 0
            && let Some(at) = state.waiting.iter().position(|held| *held == waiters.held)
        {
            state.waiting.swap_remove(at);
        }
    }

    /// How long the query may have waited in all, as things are: when everybody waits, who holds the most has to do without.
    fn patience(&self) -> Duration {
        let state = self.budget.state.lock();
        let queries: u64 = state.parties.values().map(|party| party.sharing).sum();
        let others_hold = state.held > state.uploaded + self.held();
        match others_hold {
            true if queries > state.waiting.len() as u64 => PATIENCE,
            true if state.waiting.iter().any(|held| *held > self.waiters.lock().held) => PATIENCE,
            false if self.budget.is_more_than_cached() => PATIENCE_ALONE,
            _ => Duration::ZERO,
        }
    }

    /// Holds `used` bytes even when the budget does not allow as many: they have been allocated already.
    pub(crate) fn hold_anyway(&self, used: u64) {
        let wanted = used.max(self.bytes());
        if wanted != self.held() {
            self.set(&mut self.budget.state.lock(), wanted);
        }
    }

    /// Sets nothing aside any more: of what was, only the `used` bytes stay held. Returns how many were set aside.
    pub(crate) fn lend(&self, used: u64) -> u64 {
        let mut state = self.budget.state.lock();
        self.set(&mut state, used);
        self.bytes.swap(0, Ordering::Relaxed)
    }

    /// Says that there is more for others.
    pub(crate) fn tell_freed(&self) {
        self.budget.tell_freed();
    }

    /// Sets the `lent` bytes aside again, and holds `used` if that is more; `false` while there are not as many. The only
    /// query that holds anything has them in any case, as it had when it started.
    pub(crate) fn take_back(&self, lent: u64, used: u64) -> bool {
        let once = || {
            let mut state = self.budget.state.lock();
            let (wanted, held) = (used.max(lent), self.held());
            let more = wanted.saturating_sub(held);
            let missing = self.budget.missing(&self.claim, &state, more, 0);
            if missing > 0 && state.held > state.uploaded + held {
                return Err(missing);
            }
            let own = state.parties.get(&self.claim.principal);
            let others = own.map_or(0, |party| party.held - party.uploaded - held);
            if others > 0 && self.budget.is_over_own(&self.claim, &state, more) {
                return Err(0);
            }
            self.bytes.store(lent, Ordering::Relaxed);
            self.set(&mut state, wanted);
            Ok(())
        };
        let done =
            once().or_else(|missing| if self.budget.reclaim(missing) > 0 { once() } else { Err(missing) }).is_ok();
        if self.claim.shares {
            self.budget.wanted.store(!done, Ordering::Relaxed);
        }
        done
    }

    /// Sets the `lent` bytes aside again, and holds `used` if that is more, even when the budget does not allow as many.
    pub(crate) fn take_back_anyway(&self, lent: u64, used: u64) {
        let mut state = self.budget.state.lock();
        self.bytes.store(lent, Ordering::Relaxed);
        self.set(&mut state, used.max(lent));
    }

    fn share(&self, state: &State) -> u64 {
        state.share(&self.claim.principal, self.budget.limit, self.budget.wanted.load(Ordering::Relaxed))
    }

    fn set(&self, state: &mut State, wanted: u64) {
        let held = self.held.swap(wanted, Ordering::Relaxed);
        state.held = state.held - held + wanted;
        if !self.claim.shares {
            state.light = state.light - held + wanted;
        }
        if let Some(party) = state.parties.get_mut(&self.claim.principal) {
            party.held = party.held - held + wanted;
            if !self.claim.shares {
                party.light = party.light - held + wanted;
            }
        }
    }
}

impl Drop for Grant {
    fn drop(&mut self) {
        {
            let mut state = self.budget.state.lock();
            self.set(&mut state, 0);
            let Some(party) = state.parties.get_mut(&self.claim.principal) else { return };
            party.sharing -= u64::from(self.claim.shares);
            state.leave(&self.claim.principal);
        }
        self.budget.tell_freed();
    }
}
