//! The memory of what clients upload: parameters while they are received, and as long as they are bound or a query has
//! them.
//!
//! It stays while no query of the client runs, and nobody knows how long. So uploads may have a part of the budget only:
//! there are always queries that fit beside them.

use std::sync::Arc;

use bytesize::ByteSize;
use updraft_auth::Principal;

use super::Memory;
use super::budget::Budget;
use crate::error::Error;

/// Of the budget, and of what a principal may hold, all uploads may have one part in this many.
const SHARE: u64 = 2;

/// What an upload may have even when queries have all there is: a few parameters must not have to wait for the end of a
/// large query.
const SMALL: u64 = 64 << 10;

/// Memory that is held for what a client has uploaded. Dropping it gives it back.
#[derive(Debug)]
pub struct UploadMemory {
    /// `None`: a pool of DataFusion's has no place for it.
    budget: Option<Arc<Budget>>,
    principal: Principal,
    principal_limit: u64,
    bytes: u64,
}

impl UploadMemory {
    /// Of `memory`, for `principal`, all of whose queries and uploads may hold `principal_limit`. Nothing is held yet.
    pub(crate) fn new(memory: &Memory, principal: Principal, principal_limit: u64) -> Self {
        let budget = match memory {
            Memory::Fair(budget) => {
                budget.state.lock().parties.entry(principal.clone()).or_default().members += 1;
                Some(Arc::clone(budget))
            }
            Memory::Stock { .. } => None,
        };
        Self { budget, principal, principal_limit, bytes: 0 }
    }

    /// Holds `bytes` more, for which caches give way.
    ///
    /// # Errors
    /// `Exhausted`, with how much there is, when uploads have their part of the budget, or queries all of it.
    pub fn grow(&mut self, bytes: u64) -> Result<(), Error> {
        let Some(budget) = self.budget.clone() else { return Ok(()) };
        let held = self.bytes;
        let refused = match self.grow_once(&budget, bytes) {
            Ok(()) => return Ok(()),
            // Caches are not asked in vain.
            Err(free) if free.others.min(free.lendable) < bytes => free.others.min(free.lendable),
            Err(free) => {
                budget.reclaim(bytes - free.now.min(bytes));
                match self.grow_once(&budget, bytes) {
                    Ok(()) => return Ok(()),
                    Err(free) => free.now.min(free.others),
                }
            }
        };
        Err(Error::Exhausted(format!(
            "an upload that has {} needs {} more, and {} are free: all uploads together may hold {}, as long as queries \
             leave it; hint: close prepared statements, bind fewer rows at a time, or raise engine.memory_limit",
            ByteSize(held),
            ByteSize(bytes),
            ByteSize(refused),
            ByteSize(budget.limit.min(self.principal_limit) / SHARE)
        )))
    }

    fn grow_once(&mut self, budget: &Budget, bytes: u64) -> Result<(), Free> {
        let mut state = budget.state.lock();
        let party = state.parties.get(&self.principal).expect("an upload keeps its principal's part in the budget");
        let own = (self.principal_limit / SHARE).saturating_sub(party.uploaded);
        let own = own.min(self.principal_limit.saturating_sub(party.held));
        let others = (budget.limit / SHARE).saturating_sub(state.uploaded).min(own);
        let now = match self.bytes + bytes <= SMALL {
            true => u64::MAX,
            false => budget.free_of(&state),
        };
        if bytes > now.min(others) {
            return Err(Free { now, lendable: budget.lendable_of(&state), others });
        }
        self.set(&mut state, self.bytes + bytes);
        Ok(())
    }

    fn set(&mut self, state: &mut super::budget::State, bytes: u64) {
        let before = std::mem::replace(&mut self.bytes, bytes);
        let changed = |held: u64| held - before + bytes;
        (state.held, state.uploaded) = (changed(state.held), changed(state.uploaded));
        if let Some(party) = state.parties.get_mut(&self.principal) {
            (party.held, party.uploaded) = (changed(party.held), changed(party.uploaded));
        }
    }
}

/// Why there is not enough for an upload.
struct Free {
    /// Bytes that are free now.
    now: u64,
    /// Those, and what caches may give.
    lendable: u64,
    /// Bytes that uploads may have beside what other uploads have.
    others: u64,
}

impl Drop for UploadMemory {
    fn drop(&mut self) {
        let Some(budget) = self.budget.take() else { return };
        {
            let mut state = budget.state.lock();
            self.set(&mut state, 0);
            state.leave(&self.principal);
        }
        budget.tell_freed();
    }
}

#[cfg(test)]
mod tests {
    use super::super::budget::Reclaim;
    use super::super::grant::Claim;
    use super::super::testing::Cache;
    use super::*;

    const MIB: u64 = 1 << 20;

    fn memory(limit: u64) -> (Memory, Arc<Budget>) {
        let budget = Budget::new(limit);
        (Memory::Fair(Arc::clone(&budget)), budget)
    }

    fn upload(memory: &Memory, principal_limit: u64) -> UploadMemory {
        UploadMemory::new(memory, Principal::new("a"), principal_limit)
    }

    fn claim(name: &str) -> Claim {
        Claim { principal: Principal::new(name), priority: 10, principal_limit: u64::MAX, shares: true }
    }

    #[test]
    fn uploads_are_held_until_they_are_dropped_and_leave_room_for_queries() {
        let (memory, budget) = memory(100 * MIB);
        let (mut first, mut second) = (upload(&memory, u64::MAX), upload(&memory, u64::MAX));
        first.grow(30 * MIB).expect("it fits");
        second.grow(20 * MIB).expect("a half, to the last byte");
        let error = second.grow(1).expect_err("uploads have their half").to_string();
        assert!(error.contains("20.0 MiB needs 1 B more, and 0 B are free"), "{error}");
        assert_eq!((budget.held(), budget.uploaded(), budget.free()), (50 * MIB, 50 * MIB, 50 * MIB));
        let query = budget.try_grant(&claim("b"), 80 * MIB).expect("nobody else runs, and all that is left is granted");
        assert_eq!(query.held(), 50 * MIB);
        drop((first, second));
        assert_eq!((budget.held(), budget.uploaded()), (50 * MIB, 0));
        drop(query);
        assert_eq!(format!("{budget:?}"), format!("{:?}", Budget::new(100 * MIB)), "nothing is left of anybody");
    }

    #[test]
    fn queries_that_have_all_leave_only_small_uploads_room() {
        let (memory, budget) = memory(100 * MIB);
        let _query = budget.try_grant(&claim("b"), 100 * MIB).expect("all there is");
        let mut upload = upload(&memory, u64::MAX);
        upload.grow(SMALL).expect("a few parameters");
        assert!(upload.grow(1).is_err());
        assert_eq!(budget.held(), 100 * MIB + SMALL, "it is counted");
    }

    #[test]
    fn a_principal_has_its_part_of_what_it_may_hold() {
        let (memory, budget) = memory(100 * MIB);
        let mut own = upload(&memory, 20 * MIB);
        own.grow(10 * MIB).expect("a half of what it may hold");
        assert!(own.grow(1).is_err());
        let claim = Claim { principal_limit: 20 * MIB, ..claim("a") };
        let query = budget.try_grant(&claim, 20 * MIB).expect("what its uploads leave of that");
        assert_eq!(query.held(), 10 * MIB);
        let mut others = UploadMemory::new(&memory, Principal::new("b"), u64::MAX);
        others.grow(40 * MIB).expect("others have theirs");
    }

    #[test]
    fn caches_give_way_to_uploads() {
        let (memory, budget) = memory(100 * MIB);
        let cache = Arc::new(Cache((90 * MIB).into()));
        memory.add_reclaimer(Arc::clone(&cache) as _);
        let mut upload = upload(&memory, u64::MAX);
        upload.grow(40 * MIB).expect("the cache gives it");
        assert_eq!((cache.held(), budget.held()), (60 * MIB, 40 * MIB));
        assert!(upload.grow(20 * MIB).is_err(), "more than the half of uploads");
        assert_eq!(cache.held(), 60 * MIB, "for which no cache is emptied");
        let query = budget.try_grant(&claim("a"), 55 * MIB).expect("it runs alone");
        assert!(upload.grow(10 * MIB).is_err(), "more than queries leave");
        assert_eq!((cache.held(), query.held()), (60 * MIB, 55 * MIB), "nor for that");
    }

    #[test]
    fn pools_of_datafusion_have_no_place_for_uploads() {
        let memory = Memory::new(crate::config::MemoryPoolKind::Greedy, 1000);
        upload(&memory, u64::MAX).grow(MIB).expect("nothing is counted");
    }
}
