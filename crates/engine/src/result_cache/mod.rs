//! Results that are kept for the next time the same is asked.
//!
//! What is the same: the optimized plan with the literals in it, the settings of the session, who asks, and the
//! version of every table the plan reads, those of its subqueries and views included. A table whose files change has
//! another version, so that its results are never given again; nothing expires. Plans that would not give the same
//! twice, such as those with `now()`, have no results kept.

mod filling;

use std::hash::Hash;
use std::sync::Arc;

use datafusion::arrow::array::RecordBatch;
use updraft_auth::Principal;
use updraft_catalog::{Cache, Lookups};

pub(crate) use filling::Filling;

use crate::config::Config;
use crate::memory::Reclaim;
use crate::plan::{Planned, Versions};
use crate::plan_cache::{CacheFigures, Ready};
use crate::settings::Settings;

/// One part in this many of the budget is the most that one result may take: a large one must not drop all others.
const SHARE: usize = 8;
/// What an entry takes beside its batches.
const ENTRY_BYTES: usize = 4 << 10;

/// What was asked, and by whom. All of it is compared.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Key {
    ready: Arc<Ready>,
    settings: Arc<Settings>,
    principal: Principal,
}

/// What was answered.
#[derive(Debug)]
pub(crate) struct Kept {
    /// Not in the key: the result of a table that has changed makes room for the new one.
    versions: Arc<Versions>,
    pub(crate) batches: Vec<RecordBatch>,
    pub(crate) bytes: usize,
}

/// The results that are kept, within a budget of bytes that is part of the memory of all queries.
#[derive(Debug)]
pub(crate) struct ResultCache {
    results: Cache<Key, Arc<Kept>>,
    budget: usize,
    lookups: Lookups,
}

/// What the cache has to say of a query.
pub(crate) enum Asking {
    /// Its result.
    Hit(Arc<Kept>),
    /// Nothing yet; its result is to be shown to this.
    Miss(Filling),
    /// Nothing, now and later.
    Off,
}

impl ResultCache {
    pub(crate) fn new(config: &Config) -> Self {
        let budget = usize::try_from(config.result_cache_limit.as_u64()).unwrap_or(usize::MAX);
        Self { results: Cache::new(budget), budget, lookups: Lookups::default() }
    }

    /// Asks for the result of `ready` as it was planned by `planned`.
    pub(crate) fn ask(self: &Arc<Self>, planned: &Planned, ready: &Arc<Ready>) -> Asking {
        let Some(versions) = ready.repeats_on.as_ref().filter(|_| self.budget > 0 && planned.settings.result_cache)
        else {
            return Asking::Off;
        };
        let key = Key {
            ready: Arc::clone(ready),
            settings: Arc::clone(&planned.settings),
            principal: planned.principal.clone(),
        };
        let found = self.results.get(&key).filter(|kept| kept.versions == *versions);
        self.lookups.count(found.is_some());
        match found {
            Some(kept) => Asking::Hit(kept),
            None => Asking::Miss(Filling::new(Arc::clone(self), key, Arc::clone(versions))),
        }
    }

    pub(crate) fn figures(&self) -> CacheFigures {
        CacheFigures::of(self.results.size(), &self.lookups)
    }
}

impl Reclaim for ResultCache {
    fn reclaim(&self, bytes: u64) -> u64 {
        self.results.evict(usize::try_from(bytes).unwrap_or(usize::MAX)) as u64
    }

    fn held(&self) -> u64 {
        self.results.size().1 as u64
    }
}
