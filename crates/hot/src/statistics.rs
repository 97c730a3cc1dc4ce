//! What the cache holds, and what it did.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

/// What the cache holds, and what it did since the server started.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Statistics {
    /// `hot.memory_limit`.
    pub limit_bytes: u64,
    /// Bytes of columns in memory and of those being loaded. Those that were let go of count until no query reads them.
    pub used_bytes: u64,
    /// Columns being loaded.
    pub loading: usize,
    /// Columns that made room for others.
    pub evictions: u64,
    /// Bytes given back because queries needed memory.
    pub reclaimed_bytes: u64,
    /// All tables together.
    pub total: TableStatistics,
    /// By table (`schema.name`).
    pub tables: BTreeMap<Arc<str>, TableStatistics>,
}

/// The part of one table. A column is counted once per segment (row group) that a scan asks for.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct TableStatistics {
    /// Columns that were in memory.
    pub hits: u64,
    /// Columns that were not.
    pub misses: u64,
    /// Hits of all; none when nothing was asked for.
    pub hit_rate: Option<f64>,
    /// Columns in memory, one for each segment.
    pub columns: usize,
    /// Their bytes.
    pub bytes: u64,
    /// Columns that were loaded.
    pub loads: u64,
    /// The time that took, of all threads together.
    pub load_seconds: f64,
}

/// What is counted of a table as it happens.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) hits: u64,
    pub(crate) misses: u64,
    pub(crate) loads: u64,
    pub(crate) load_time: Duration,
}

impl Counters {
    pub(crate) fn show(&self) -> TableStatistics {
        TableStatistics {
            hits: self.hits,
            misses: self.misses,
            hit_rate: rate(self.hits, self.misses),
            loads: self.loads,
            load_seconds: self.load_time.as_secs_f64(),
            ..TableStatistics::default()
        }
    }
}

impl TableStatistics {
    /// All of `tables` together.
    pub(crate) fn total<'a>(tables: impl Iterator<Item = &'a Self>) -> Self {
        let mut total = Self::default();
        for table in tables {
            total.hits += table.hits;
            total.misses += table.misses;
            total.columns += table.columns;
            total.bytes += table.bytes;
            total.loads += table.loads;
            total.load_seconds += table.load_seconds;
        }
        Self { hit_rate: rate(total.hits, total.misses), ..total }
    }
}

fn rate(hits: u64, misses: u64) -> Option<f64> {
    let asked = hits + misses;
    (asked > 0).then(|| hits as f64 / asked as f64)
}
