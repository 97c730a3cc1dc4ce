//! The shared memory pool, behind a seam of ours, and where its limit comes from.

use std::fmt;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytesize::ByteSize;
use datafusion::common::Result;
use datafusion::error::DataFusionError;
use datafusion::execution::memory_pool::{
    FairSpillPool, GreedyMemoryPool, MemoryConsumer, MemoryLimit, MemoryPool, MemoryReservation, TrackConsumersPool,
};

use crate::config::MemoryPoolKind;

/// How many of the largest consumers an out-of-memory error names.
const CONSUMERS_NAMED: NonZeroUsize = NonZeroUsize::new(3).expect("three is not zero");

/// Of the memory that is there, how much queries may reserve. The rest is for what DataFusion does not
/// count: batches between operators, decoded row groups, what is on its way to clients.
const SHARE_OF_HOST: f64 = 0.65;

/// The pool all queries share.
pub(crate) fn pool(kind: MemoryPoolKind, bytes: u64) -> Arc<dyn MemoryPool> {
    let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
    match kind {
        MemoryPoolKind::DatafusionFair => {
            Arc::new(Pool(TrackConsumersPool::new(FairSpillPool::new(bytes), CONSUMERS_NAMED)))
        }
        MemoryPoolKind::Greedy => {
            Arc::new(Pool(TrackConsumersPool::new(GreedyMemoryPool::new(bytes), CONSUMERS_NAMED)))
        }
    }
}

/// Out of memory, said so that DataFusion does not take it as a request to spill.
#[derive(Debug, thiserror::Error)]
#[error("not enough memory for a join without an equality: {0}; hint: raise engine.memory_limit, or join fewer rows")]
pub(crate) struct Refused(String);

/// The error for a consumer that asks for too much.
///
/// DataFusion 55.2 answers ResourcesExhausted to a nested loop join by spilling its build side, and that
/// path loses rows (apache/datafusion#24745). Any other error makes the query fail instead.
fn not_enough(reservation: &MemoryReservation, text: String) -> DataFusionError {
    if reservation.consumer().name().starts_with("NestedLoopJoinLoad[") {
        DataFusionError::External(Box::new(Refused(text)))
    } else {
        DataFusionError::ResourcesExhausted(text)
    }
}

/// A pool of DataFusion with what must hold whichever it is.
#[derive(Debug)]
struct Pool<P>(P);

impl<P: fmt::Display> fmt::Display for Pool<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl<P: MemoryPool> MemoryPool for Pool<P> {
    fn name(&self) -> &str {
        self.0.name()
    }

    fn register(&self, consumer: &MemoryConsumer) {
        self.0.register(consumer);
    }

    fn unregister(&self, consumer: &MemoryConsumer) {
        self.0.unregister(consumer);
    }

    fn grow(&self, reservation: &MemoryReservation, additional: usize) {
        self.0.grow(reservation, additional);
    }

    fn shrink(&self, reservation: &MemoryReservation, shrink: usize) {
        self.0.shrink(reservation, shrink);
    }

    fn try_grow(&self, reservation: &MemoryReservation, additional: usize) -> Result<()> {
        match self.0.try_grow(reservation, additional) {
            Err(DataFusionError::ResourcesExhausted(text)) => Err(not_enough(reservation, text)),
            other => other,
        }
    }

    fn reserved(&self) -> usize {
        self.0.reserved()
    }

    fn memory_limit(&self) -> MemoryLimit {
        self.0.memory_limit()
    }
}

/// A pool for one query, that takes from `shared` at most `bytes`.
pub(crate) fn query_pool(shared: Arc<dyn MemoryPool>, bytes: u64) -> Arc<dyn MemoryPool> {
    let limit = usize::try_from(bytes).unwrap_or(usize::MAX);
    Arc::new(QueryPool { shared, used: AtomicUsize::new(0), limit })
}

/// The share of one query in the pool of all.
#[derive(Debug)]
struct QueryPool {
    shared: Arc<dyn MemoryPool>,
    used: AtomicUsize,
    limit: usize,
}

impl fmt::Display for QueryPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "query pool of {} in {}", ByteSize(self.limit as u64), self.shared)
    }
}

impl MemoryPool for QueryPool {
    fn name(&self) -> &str {
        "query"
    }

    fn register(&self, consumer: &MemoryConsumer) {
        self.shared.register(consumer);
    }

    fn unregister(&self, consumer: &MemoryConsumer) {
        self.shared.unregister(consumer);
    }

    fn grow(&self, reservation: &MemoryReservation, additional: usize) {
        self.used.fetch_add(additional, Ordering::Relaxed);
        self.shared.grow(reservation, additional);
    }

    fn shrink(&self, reservation: &MemoryReservation, shrink: usize) {
        self.used.fetch_sub(shrink, Ordering::Relaxed);
        self.shared.shrink(reservation, shrink);
    }

    fn try_grow(&self, reservation: &MemoryReservation, additional: usize) -> Result<()> {
        let fits = |used: usize| used.checked_add(additional).filter(|used| *used <= self.limit);
        self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits).map_err(|used| {
            let text = format!(
                "the query has reserved {} and asks for {} more; its limit is {} (query_memory_limit)",
                ByteSize(used as u64),
                ByteSize(additional as u64),
                ByteSize(self.limit as u64)
            );
            not_enough(reservation, text)
        })?;
        self.shared.try_grow(reservation, additional).inspect_err(|_| {
            self.used.fetch_sub(additional, Ordering::Relaxed);
        })
    }

    fn reserved(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    fn memory_limit(&self) -> MemoryLimit {
        MemoryLimit::Finite(self.limit)
    }
}

/// The limit to use when the config names none, in bytes, and where it comes from.
pub(crate) fn default_limit() -> (u64, String) {
    let host = std::fs::read_to_string("/proc/meminfo").ok().and_then(|text| mem_total(&text));
    let cgroup = ["/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"]
        .iter()
        .find_map(|path| std::fs::read_to_string(path).ok()?.trim().parse::<u64>().ok());
    let (there, source) = match (cgroup, host) {
        (Some(cgroup), host) if host.is_none_or(|host| cgroup < host) => (cgroup, "the cgroup's"),
        (_, Some(host)) => (host, "the host's"),
        (_, None) => (ByteSize::gib(1).0, "an assumed"),
    };
    let limit = (there as f64 * SHARE_OF_HOST) as u64;
    (limit, format!("{:.0} % of {source} {}", SHARE_OF_HOST * 100.0, ByteSize(there)))
}

/// `MemTotal` of `/proc/meminfo`, in bytes.
fn mem_total(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find(|line| line.starts_with("MemTotal:"))?;
    let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    kib.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_nested_loop_join_is_not_told_to_spill() {
        let pool = pool(MemoryPoolKind::DatafusionFair, 1000);
        let join = MemoryConsumer::new("NestedLoopJoinLoad[0]").register(&pool);
        let sort = MemoryConsumer::new("ExternalSorter[0]").with_can_spill(true).register(&pool);
        let join_error = join.try_grow(2000).expect_err("more than the pool");
        let sort_error = sort.try_grow(2000).expect_err("more than the pool");
        assert!(!matches!(join_error.find_root(), DataFusionError::ResourcesExhausted(_)), "{join_error}");
        assert!(matches!(sort_error.find_root(), DataFusionError::ResourcesExhausted(_)), "{sort_error}");
    }

    #[test]
    fn a_query_takes_no_more_than_its_limit() {
        let shared = pool(MemoryPoolKind::Greedy, 1000);
        let query = query_pool(Arc::clone(&shared), 100);
        let reservation = MemoryConsumer::new("sort").with_can_spill(true).register(&query);
        reservation.try_grow(100).expect("the last byte of the limit");
        assert!(reservation.try_grow(1).is_err(), "one byte more");
        assert_eq!((query.reserved(), shared.reserved()), (100, 100));
        let other = MemoryConsumer::new("other").register(&shared);
        other.try_grow(900).expect("the rest is for others");
        reservation.shrink(50);
        other.try_grow(50).expect("what one gave back");
        assert!(reservation.try_grow(10).is_err(), "the shared pool is full");
        assert_eq!(query.reserved(), 50, "a refusal takes nothing");
        reservation.free();
        assert_eq!((query.reserved(), shared.reserved()), (0, 950));
    }

    #[test]
    fn the_hosts_memory_is_found() {
        assert_eq!(mem_total("MemFree: 1 kB\nMemTotal:       2048 kB\n"), Some(2048 * 1024));
        assert_eq!(mem_total("nothing"), None);
        let (limit, source) = default_limit();
        assert!(limit > 0 && source.starts_with("65 % of"), "{limit} {source}");
    }
}
