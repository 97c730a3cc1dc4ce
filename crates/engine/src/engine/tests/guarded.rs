//! What the guard does to queries when the process has more memory than it may.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use datafusion::execution::memory_pool::{MemoryConsumer, MemoryPool, MemoryReservation};
use tokio_util::sync::CancellationToken;

use super::parts::SILENT;
use super::*;
use crate::engine::CancelOutcome;
use crate::error::ErrorKind;
use crate::memory::{Allocator, Claim, Spillers, testing};
use crate::query::{Attempt, RunGuard};
use crate::run::QueryStream;

const MIB: u64 = 1 << 20;
/// What the guard takes for the process without queries, and the budget of a fixture.
const FULL: u64 = (64 + 256) * MIB;
const SLIGHTLY_OVER: u64 = FULL + 20 * MIB;
const FAR_OVER: u64 = FULL + 180 * MIB;

const ROWS: i64 = 600_000;
/// Gathers all rows before it gives the first.
const LARGE: &str = "SELECT id FROM n ORDER BY id % 1000, id";
const SMALL: &str = "SELECT id FROM n WHERE id >= 0";

/// An allocator that says what a test has it say.
#[derive(Default)]
struct Meter {
    allocated: AtomicU64,
    /// What it says once, if it is not zero.
    peak: AtomicU64,
    looks: AtomicUsize,
}

impl Allocator for Meter {
    fn allocated(&self) -> Option<u64> {
        self.looks.fetch_add(1, Ordering::Relaxed);
        let peak = self.peak.swap(0, Ordering::Relaxed);
        Some(if peak > 0 { peak } else { self.allocated.load(Ordering::Relaxed) })
    }

    fn purge(&self) {}
}

impl Meter {
    /// Says `bytes` once, and returns when the guard has done what it does about it.
    async fn peaks(&self, bytes: u64) {
        self.peak.store(bytes, Ordering::Relaxed);
        until(|| self.peak.load(Ordering::Relaxed) == 0).await;
        let looks = self.looks.load(Ordering::Relaxed);
        until(|| self.looks.load(Ordering::Relaxed) > looks).await;
    }
}

/// An engine that is guarded, with the table `n` of [`ROWS`] rows.
async fn guarded() -> (Fixture, Arc<Meter>) {
    let fixture = Fixture::new(Config { stream_buffer: ByteSize::kib(64), ..Config::default() }).await;
    fixture.numbers("n.parquet", 0..ROWS);
    let meter = Arc::new(Meter::default());
    fixture.engine.guard_memory(Arc::clone(&meter) as _).unwrap();
    // What it looks at first is what the process has anyway.
    until(|| meter.looks.load(Ordering::Relaxed) > 1).await;
    (fixture, meter)
}

/// `sql`, running.
async fn started(fixture: &Fixture, sql: &str) -> QueryStream<Batch> {
    let session = fixture.session("ann");
    let planned = fixture.plan(&session, sql).await;
    fixture.engine.run(&session, planned, Part::Whole, None, as_they_are).unwrap()
}

/// The first batch of `sql`, and the rest, which is more than waits for a client that does not read.
async fn halfway(fixture: &Fixture, sql: &str) -> (usize, QueryStream<Batch>) {
    let mut stream = started(fixture, sql).await;
    let first = stream.next().await.unwrap().unwrap();
    (first.0.num_rows(), stream)
}

async fn rest(stream: QueryStream<Batch>) -> Result<usize, Error> {
    stream.map_ok(|Batch(batch)| batch.num_rows()).try_fold(0, async |sum, rows| Ok(sum + rows)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn far_beyond_the_budget_the_largest_query_is_ended_and_others_go_on() {
    let (fixture, meter) = guarded().await;
    let (first, small) = halfway(&fixture, SMALL).await;
    let (_, large) = halfway(&fixture, LARGE).await;
    meter.peaks(FAR_OVER).await;
    let error = rest(large).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Exhausted);
    assert!(error.to_string().contains("memory limit of 256.0 MiB and ended the largest query"), "{error}");
    assert_eq!(first + rest(small).await.unwrap(), ROWS as usize);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_query_that_is_ended_before_its_first_batch_begins_anew() {
    let (fixture, meter) = guarded().await;
    let stream = started(&fixture, LARGE).await;
    let usage = stream.usage();
    until(|| usage.report().attempts == 1).await;
    meter.peaks(FAR_OVER).await;
    assert_eq!(rest(stream).await.unwrap(), ROWS as usize);
    let report = usage.report();
    assert_eq!((report.attempts, report.partitions), (2, 1), "{report:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_query_that_is_ended_by_its_own_operator_begins_anew_and_forgets_why() {
    let (fixture, meter) = guarded().await;
    let engine = &fixture.engine;
    let session = engine.with_settings(&fixture.session("ann"), [("target_partitions", "1")]).unwrap();
    // In one partition nothing comes between the operator, which looks itself whether it has to end, and its query.
    let planned = fixture.plan(&session, SILENT).await;
    let stream = engine.run(&session, Arc::clone(&planned), Part::Whole, None, as_they_are).unwrap();
    let usage = stream.usage();
    until(|| usage.report().peak_bytes > 4 * MIB).await;
    meter.peaks(FAR_OVER).await;
    until(|| usage.report().attempts == 2).await;
    assert_eq!(engine.cancel(planned.id(), &session), CancelOutcome::Cancelling);
    let error = rest(stream).await.unwrap_err();
    assert!(matches!(error, Error::Cancelled), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn slightly_beyond_the_budget_heavy_queries_wait_and_light_ones_run() {
    let (fixture, meter) = guarded().await;
    let engine = &fixture.engine;
    meter.allocated.store(SLIGHTLY_OVER, Ordering::Relaxed);
    until(|| engine.memory_pressure()).await;
    let heavy = started(&fixture, SMALL).await;
    let usage = heavy.usage();
    until(|| engine.queued() == 1).await;
    assert_eq!(fixture.answer("SELECT name FROM t WHERE id = 2").await, "b");
    assert_eq!((engine.queued(), usage.report().attempts), (1, 0));
    meter.allocated.store(FULL, Ordering::Relaxed);
    assert_eq!(rest(heavy).await.unwrap(), ROWS as usize);
    assert!(!engine.memory_pressure() && usage.report().queue_time > Duration::ZERO, "{:?}", usage.report());
}

#[tokio::test(flavor = "multi_thread")]
async fn light_queries_run_beside_a_heavy_one_of_the_same_principal_that_holds_all() {
    let (fixture, _meter) = guarded().await;
    let memory = fixture.engine.memory();
    let _all = holding_all(&fixture).await;
    assert_eq!(memory.free(), 0);
    let answer = fixture.answer("SELECT name FROM t WHERE id = 2");
    assert_eq!(tokio::time::timeout(Duration::from_secs(5), answer).await.as_deref(), Ok("b"));
}

/// A run that holds `bytes`. What ends its present attempt is the last.
async fn holding(fixture: &Fixture, bytes: usize) -> (RunGuard, MemoryReservation, CancellationToken) {
    let (engine, session, trial) = (&fixture.engine, fixture.session("ann"), CancellationToken::new());
    let run = engine.runs.enter(&*fixture.plan(&session, "SELECT 1").await, None);
    let claim = Claim { principal: session.principal, priority: 10, principal_limit: u64::MAX, shares: true };
    let memory =
        engine.memory().try_query(&claim, 0, u64::MAX, Spillers { floor: 0, gathered_share: 100 }, &trial).unwrap();
    let (figures, pool) = (Arc::clone(memory.figures()), memory as Arc<dyn MemoryPool>);
    let held = MemoryConsumer::new("all").register(&pool);
    held.try_grow(bytes).unwrap();
    let spill = engine.spill().query(run.id, &trial);
    run.attempt(Attempt { queue_time: Duration::ZERO, partitions: 1, batch_size: 1, memory: figures, spill });
    run.on_trial(Some(trial.clone()));
    (run, held, trial)
}

/// A run that holds all that is free. Others may take some of it until it is held.
async fn holding_all(fixture: &Fixture) -> (RunGuard, MemoryReservation, CancellationToken) {
    let all = holding(fixture, 0).await;
    until(|| all.1.try_grow(fixture.engine.memory().free() as usize).is_ok()).await;
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn no_query_is_ended_for_what_a_cache_lets_go_of() {
    let (fixture, meter) = guarded().await;
    for (cached, ends) in [(FAR_OVER - FULL, false), (FAR_OVER - FULL - MIB, true)] {
        let cache = Arc::new(testing::Cache(cached.into()));
        fixture.engine.memory().add_reclaimer(Arc::clone(&cache) as _);
        let (_run, _held, trial) = holding(&fixture, 30 * MIB as usize).await;
        meter.peaks(FAR_OVER).await;
        assert_eq!(trial.is_cancelled(), ends, "{cached} bytes");
        assert_eq!(cache.0.load(Ordering::Relaxed), 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_query_that_has_given_rows_waits_for_what_others_hold() {
    let (fixture, _meter) = guarded().await;
    let (first, large) = halfway(&fixture, LARGE).await;
    let (run, held, _) = holding_all(&fixture).await;
    let others = tokio::spawn(async move {
        tokio::time::sleep(Duration::from_millis(300)).await;
        drop((run, held));
    });
    let usage = large.usage();
    assert_eq!(first + rest(large).await.unwrap(), ROWS as usize);
    assert!(usage.report().memory_wait >= Duration::from_millis(100), "{:?}", usage.report());
    others.await.unwrap();
}

#[tokio::test]
async fn who_is_ended_lets_go_before_the_next_is_and_is_ended_for_good_the_second_time() {
    let fixture = Fixture::new(Config::default()).await;
    let end = |least| fixture.engine.runs.end_largest(least, |bytes| format!("it held {bytes}"));
    assert_eq!(end(0), None, "nothing runs");
    let (small, _small, of_small) = holding(&fixture, 1_000).await;
    let (large, _large, of_large) = holding(&fixture, 5_000).await;
    let ended = |run: &RunGuard, trial: &CancellationToken| (trial.is_cancelled(), run.cancel.is_cancelled());
    assert_eq!(end(5_001), None, "it would not help");
    assert_eq!(end(5_000), Some(5_000));
    assert_eq!(ended(&large, &of_large), (true, false), "another attempt follows");
    assert_eq!(end(1_001), None, "it lets go");
    assert_eq!(end(1_000), Some(1_000));
    assert_eq!(ended(&small, &of_small), (true, false));

    large.on_trial(None);
    assert_eq!(end(0), Some(5_000));
    assert_eq!(ended(&large, &of_large), (true, true));
    assert_eq!(large.cancelled().to_string(), "it held 5000");
    assert_eq!(end(0), None, "both are ending");
}
