//! What the caches of what is known about files hold, and how often they were asked.

use std::hash::Hash;

use serde::Serialize;

use crate::cache::Cache;

/// What is kept of what is known about files. It counts against `engine.memory_limit` as all does that no query holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct MetadataStatistics {
    /// `catalog.metadata_cache`, of which footers have one half and schemas the other.
    pub limit_bytes: usize,
    /// Parquet footers.
    pub footers: CacheStatistics,
    /// Schemas, statistics and layouts of files of all formats.
    pub schemas: CacheStatistics,
}

/// What a cache holds, and how often it was asked since the server started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct CacheStatistics {
    /// Files.
    pub entries: usize,
    /// Bytes that they take.
    pub used_bytes: usize,
    /// Asks for what was there.
    pub hits: u64,
    /// Asks for what was not.
    pub misses: u64,
}

impl CacheStatistics {
    pub(crate) fn of<K: Hash + Eq + Clone, V: Clone>(cache: &Cache<K, V>) -> Self {
        let ((entries, used_bytes), (hits, misses)) = (cache.size(), cache.asked());
        Self { entries, used_bytes, hits, misses }
    }
}
