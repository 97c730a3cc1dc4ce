//! One memory budget for all queries.
//!
//! | module | its story |
//! |---|---|
//! | `budget` | what all queries share, and who may take how much of it |
//! | `grant` | one query's part of it |
//! | `query` | the memory of one query, as a DataFusion pool |
//! | `consumers` | its operators, and what each of them has |
//! | `upload` | the memory of what clients upload |
//! | `overhead` | by how much operators have more than they say |
//! | `refusal` | what an operator is told that may not have more |
//! | `guard` | compares with what is really there, and sheds load before the kernel does |
//! | `limit`, `cgroup` | how much there is |

mod budget;
mod cgroup;
mod consumers;
mod grant;
mod guard;
mod limit;
mod overhead;
mod query;
mod refusal;
#[cfg(test)]
pub(crate) mod testing;
mod upload;

use std::sync::Arc;

use bytesize::ByteSize;
use datafusion::execution::memory_pool::{FairSpillPool, GreedyMemoryPool, MemoryPool};
use tokio_util::sync::CancellationToken;

use budget::Budget;
pub(crate) use budget::Reclaim;
pub(crate) use grant::Claim;
pub use guard::Allocator;
pub(crate) use guard::{Guard, Load};
pub(crate) use limit::{default_limit, host_memory};
use query::Source;
pub(crate) use query::{Figures, QueryMemory, Spillers};
pub(crate) use refusal::{Refused, is_refusal, unspilled};
pub use upload::UploadMemory;

use crate::config::MemoryPoolKind;

/// The memory that all queries share.
#[derive(Debug, Clone)]
pub(crate) enum Memory {
    /// Our budget.
    Fair(Arc<Budget>),
    /// A pool of DataFusion's as it is: no grants, and nothing beside it is counted.
    Stock { pool: Arc<dyn MemoryPool>, limit: u64 },
}

impl Memory {
    /// `limit` bytes, shared as `kind` says.
    pub(crate) fn new(kind: MemoryPoolKind, limit: u64) -> Self {
        let bytes = usize::try_from(limit).unwrap_or(usize::MAX);
        match kind {
            MemoryPoolKind::Fair => Self::Fair(Budget::new(limit)),
            MemoryPoolKind::DatafusionFair => Self::Stock { pool: Arc::new(FairSpillPool::new(bytes)), limit },
            MemoryPoolKind::Greedy => Self::Stock { pool: Arc::new(GreedyMemoryPool::new(bytes)), limit },
        }
    }

    /// Bytes that queries may hold.
    pub(crate) fn limit(&self) -> u64 {
        match self {
            Self::Fair(budget) => budget.limit(),
            Self::Stock { limit, .. } => *limit,
        }
    }

    /// Bytes that queries and uploads hold, and those that queries which ended have left for their clients.
    pub(crate) fn held(&self) -> u64 {
        match self {
            Self::Fair(budget) => budget.held(),
            Self::Stock { pool, .. } => pool.reserved() as u64,
        }
    }

    /// What uploads hold of that.
    pub(crate) fn uploaded(&self) -> u64 {
        match self {
            Self::Fair(budget) => budget.uploaded(),
            Self::Stock { .. } => 0,
        }
    }

    /// The largest answer, in bytes, that need not wait until less waits for clients.
    pub(crate) fn answer_max(&self) -> u64 {
        match self {
            Self::Fair(budget) => budget.answer_max(),
            Self::Stock { .. } => u64::MAX,
        }
    }

    /// Bytes that are there although nobody holds them, as last measured.
    pub(crate) fn unaccounted(&self) -> u64 {
        match self {
            Self::Fair(budget) => budget.unaccounted(),
            Self::Stock { .. } => 0,
        }
    }

    /// Bytes that a new query could be granted.
    pub(crate) fn free(&self) -> u64 {
        match self {
            Self::Fair(budget) => budget.free(),
            Self::Stock { limit, .. } => *limit,
        }
    }

    /// Calls `freed` whenever a query has given back what it held.
    pub(crate) fn on_freed(&self, freed: impl Fn() + Send + Sync + 'static) {
        if let Self::Fair(budget) = self {
            budget.on_freed(freed);
        }
    }

    /// Counts `bytes` that queries have left when they ended, whether there is room for them or not.
    pub(crate) fn add_unsent(&self, bytes: u64) {
        if let Self::Fair(budget) = self {
            budget.add_unsent(bytes);
        }
    }

    /// `bytes` of those have gone.
    pub(crate) fn less_unsent(&self, bytes: u64) {
        if let Self::Fair(budget) = self {
            budget.less_unsent(bytes);
        }
    }

    /// Asks `cache` to let go of memory when queries need it.
    pub(crate) fn add_reclaimer(&self, cache: Arc<dyn Reclaim>) {
        if let Self::Fair(budget) = self {
            budget.add_reclaimer(cache);
        }
    }

    /// Makes the cache of hot tables a part of this memory.
    pub(crate) fn share_with(&self, hot: &Arc<updraft_hot::Cache>) {
        self.add_reclaimer(Arc::clone(hot) as _);
        if let Self::Fair(budget) = self {
            let budget = Arc::downgrade(budget);
            hot.share_with_queries(move || budget.upgrade().map_or(0, |budget| budget.free_for_hot()));
        }
    }

    /// Whether what DataFusion does not count is reserved as well.
    pub(crate) fn counts_all(&self) -> bool {
        matches!(self, Self::Fair(_))
    }

    /// Memory for a query: `grant` bytes that are set aside now, and up to `limit`, of which `spillers` have
    /// their part, until `cancel` says so. `None` while there are not as many.
    pub(crate) fn try_query(
        &self,
        claim: &Claim,
        grant: u64,
        limit: u64,
        spillers: Spillers,
        cancel: &CancellationToken,
    ) -> Option<Arc<QueryMemory>> {
        let source = match self {
            Self::Fair(budget) => Source::Budget(budget.try_grant(claim, grant)?),
            Self::Stock { pool, .. } => Source::Stock(Arc::clone(pool)),
        };
        Some(QueryMemory::new(source, limit, spillers, cancel.clone()))
    }
}

/// What a query that was ended for the sake of all others is told.
pub(crate) fn shed_text(held: u64, limit: u64) -> String {
    format!(
        "the server came close to its memory limit of {} and ended the largest query, which held {}; \
         hint: run it when less runs, or raise engine.memory_limit",
        ByteSize(limit),
        ByteSize(held)
    )
}
