//! What is kept to answer the next statements sooner, and given up when queries need the room: queries that wait for their
//! client to fetch them, plans, and what is known about files.

use std::fmt;
use std::sync::Arc;

use updraft_catalog::Catalog;

use crate::config::Config;
use crate::expiring::{Expiring, WhenFull};
use crate::memory::Reclaim;
use crate::plan::Planned;
use crate::plan_cache::PlanCache;
use crate::query::QueryId;

/// What is not given up: every small query needs a footer and a plan, and would otherwise wait for them whenever a large
/// one takes all it can get. It is part of what the process has beside the budget.
const FLOOR: u64 = 16 << 20;

/// Queries that wait for their client to fetch them: the oldest is dropped at the bound of their number and at that of
/// their bytes, and planned again from its ticket.
pub(crate) type PlannedQueries = Expiring<QueryId, Arc<Planned>>;

pub(crate) fn planned_queries(config: &Config) -> PlannedQueries {
    let bytes_max = usize::try_from(config.planned_limit.as_u64()).unwrap_or(usize::MAX);
    Expiring::new(config.planned_max, config.ticket_ttl, WhenFull::EvictOldest).within(bytes_max)
}

/// All of it, as what queries may ask for room.
pub(crate) struct Kept {
    pub(crate) planned: Arc<PlannedQueries>,
    pub(crate) plans: Arc<PlanCache>,
    pub(crate) catalog: Arc<Catalog>,
}

impl fmt::Debug for Kept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Kept").field("held", &self.held()).finish_non_exhaustive()
    }
}

impl Reclaim for Kept {
    fn reclaim(&self, bytes: u64) -> u64 {
        let wanted = usize::try_from(bytes.min(self.held())).unwrap_or(usize::MAX);
        // What waits longest to be fetched may never be.
        let mut got = self.planned.evict(wanted, |planned| planned.can_be_planned_again());
        if got < wanted {
            got += self.plans.evict(wanted - got);
        }
        if got < wanted {
            got += self.catalog.evict_metadata(wanted - got);
        }
        got as u64
    }

    fn held(&self) -> u64 {
        let bytes = self.planned.weight() + self.plans.bytes() + self.catalog.metadata_bytes();
        (bytes as u64).saturating_sub(FLOOR)
    }
}
