//! The memory of one query: a DataFusion pool that takes from the shared budget.
//!
//! It says what the query uses, what it used at most, and caps it. Within the query, operators that can spill
//! share its room: while there is plenty as they come, then each up to an equal part; and together they leave
//! some to those that cannot, such as the merge of what was spilled.
//!
//! It is also where a query that was cancelled ends soonest: sorts, merges and aggregates work on for long within one
//! poll, and ask for memory with each batch.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytesize::ByteSize;
use datafusion::common::Result;
use datafusion::error::DataFusionError;
use datafusion::execution::memory_pool::{MemoryConsumer, MemoryLimit, MemoryPool, MemoryReservation};
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use super::consumers::{Consumers, Usage, goes_on_without};
use super::grant::{Grant, Otherwise, Refusal};
use super::overhead::overhead;
use super::refusal::refused;
use crate::error::Error;

/// Of a query's room, what operators that can spill leave to those that cannot: one part in this many.
const HEADROOM: u64 = 5;
/// Of what operators that can spill may have, the part that is first come, first served. Of the rest, each may have
/// its equal part.
const FIRST_COME: (u64, u64) = (3, 4);
/// What an operator that cannot spill may have whatever the others have: one part in this many of the query's limit. It
/// would end the query for next to nothing.
const SMALL_CHANGE: u64 = 256;
/// The most that this is.
const SMALL_CHANGE_MAX: u64 = 64 << 10;

/// Where a query's memory comes from.
#[derive(Debug)]
pub(crate) enum Source {
    /// Our budget.
    Budget(Grant),
    /// A pool of DataFusion's, shared by all queries.
    Stock(Arc<dyn MemoryPool>),
}

/// The memory of one query.
#[derive(Debug)]
pub(crate) struct QueryMemory {
    source: Source,
    limit: u64,
    spillers: Spillers,
    cancel: CancellationToken,
    /// It would fail for good when it is refused memory.
    is_final: AtomicBool,
    consumers: Mutex<Consumers>,
    figures: Arc<Figures>,
}

/// What operators that can spill may have.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Spillers {
    /// Bytes that each may have whatever the others have: without its first batches it could not even start to spill.
    pub(crate) floor: u64,
    /// Of what a sort may have, in per cent, what it may have while it gathers rows: merging them takes the rest.
    pub(crate) gathered_share: u64,
}

/// What a query uses, for those who look on: holding it holds no memory.
#[derive(Debug, Default)]
pub(crate) struct Figures {
    used: AtomicU64,
    peak: AtomicU64,
    /// In microseconds.
    waited: AtomicU64,
}

impl Figures {
    /// Bytes in use.
    pub(crate) fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    /// How long its threads have waited in all for memory that others had.
    pub(crate) fn waited(&self) -> Duration {
        Duration::from_micros(self.waited.load(Ordering::Relaxed))
    }

    /// The most bytes that were in use at a time.
    pub(crate) fn peak(&self) -> u64 {
        self.peak.load(Ordering::Relaxed)
    }
}

impl QueryMemory {
    /// At most `limit` bytes of `source`, and what is due to `spillers` if there are so many. Nothing more once `cancel`
    /// says so.
    pub(crate) fn new(source: Source, limit: u64, spillers: Spillers, cancel: CancellationToken) -> Arc<Self> {
        let figures = Arc::default();
        let is_final = AtomicBool::new(false);
        Arc::new(Self { source, limit, spillers, cancel, is_final, consumers: Mutex::default(), figures })
    }

    /// From now on the query cannot be tried anew: who cannot do without what others have waits a little for it.
    pub(crate) fn set_final(&self) {
        self.is_final.store(true, Ordering::Relaxed);
    }

    /// What it uses, to look at while and after it runs.
    pub(crate) fn figures(&self) -> &Arc<Figures> {
        &self.figures
    }

    /// The most it could use at this moment.
    pub(crate) fn room(&self) -> u64 {
        match &self.source {
            Source::Budget(grant) => grant.room().min(self.limit),
            Source::Stock(_) => self.limit,
        }
    }

    /// Leaves what was granted and is not used to others, while the query stands still. Returns what that takes to undo.
    pub(crate) fn lend(&self) -> u64 {
        match &self.source {
            Source::Budget(grant) => {
                let consumers = self.consumers.lock();
                let lent = grant.lend(consumers.used());
                drop(consumers);
                grant.tell_freed();
                lent
            }
            Source::Stock(_) => 0,
        }
    }

    /// Has `lent` bytes again, which [`Self::lend`] returned, and room for `more` than it uses; `false` while there is
    /// not so much.
    pub(crate) fn take_back(&self, lent: u64, more: u64) -> bool {
        match &self.source {
            Source::Budget(grant) => grant.take_back(lent, self.consumers.lock().used() + more),
            Source::Stock(_) => true,
        }
    }

    /// Has `lent` bytes again, whatever others hold.
    pub(crate) fn take_back_anyway(&self, lent: u64) {
        if let Source::Budget(grant) = &self.source {
            grant.take_back_anyway(lent, self.consumers.lock().used());
        }
    }

    fn put(&self, consumers: &mut Consumers, id: usize, usage: Usage) {
        consumers.put(id, usage);
        self.figures.used.store(consumers.used(), Ordering::Relaxed);
        self.figures.peak.fetch_max(consumers.used(), Ordering::Relaxed);
    }

    /// What was given or allocated already: counted, whatever the bounds.
    fn settle(&self, reservation: &MemoryReservation, said: impl FnOnce(u64) -> u64) {
        let mut consumers = self.consumers.lock();
        let id = reservation.consumer().id();
        let Some(usage) = consumers.usage(id) else { return };
        self.put(&mut consumers, id, usage.with(said(usage.said)));
        if let Source::Budget(grant) = &self.source {
            grant.hold_anyway(consumers.used());
        }
    }

    /// Whether an operator that can spill, and has something to spill, may go from `before` to `after`.
    fn fair(&self, consumers: &Consumers, before: Usage, after: Usage, is_sort: bool) -> Result<(), String> {
        let room = self.room().saturating_sub(consumers.used() - consumers.spillable());
        let usable = room - room / HEADROOM;
        let all = consumers.spillers().count().max(1) as u64;
        let floor = self.spillers.floor.min(usable / all);
        if after.charged <= floor {
            return Ok(());
        }
        let missing = |usage: Usage| floor.saturating_sub(usage.charged);
        let kept = consumers.spillers().map(missing).sum::<u64>().saturating_sub(missing(before));
        let spillable = consumers.spillable() - before.charged + after.charged + kept;
        if spillable > usable {
            return Err(format!(
                "operators that spill may have {} of the query's {}",
                ByteSize(usable),
                ByteSize(room)
            ));
        }
        let active = consumers.spillers().filter(|usage| usage.said > 0).count() as u64;
        let share = usable / active.max(1);
        let gathered = share / 100 * self.spillers.gathered_share;
        if is_sort && gathered < share && after.charged > gathered {
            return Err(format!("to merge its rows a sort needs more than {} beside them", ByteSize(share - gathered)));
        }
        if after.charged > share && spillable > usable / FIRST_COME.1 * FIRST_COME.0 {
            return Err(format!("its share of the query's {} is {}", ByteSize(room), ByteSize(share)));
        }
        Ok(())
    }

    /// Gives `additional` bytes more to `reservation`, or says why not.
    fn try_once(&self, reservation: &MemoryReservation, additional: usize) -> Result<(), Denied> {
        if self.cancel.is_cancelled() {
            // Not ResourcesExhausted, which would make it spill.
            return Err(Denied { error: DataFusionError::External(Box::new(Error::Cancelled)), for_now: false });
        }
        let mut consumers = self.consumers.lock();
        let id = reservation.consumer().id();
        let before = consumers.usage(id).expect("a reservation keeps its consumer registered");
        let after = before.with(before.said + additional as u64);
        let used = consumers.used() - before.charged + after.charged;
        let is_small = !after.can_spill && after.charged <= SMALL_CHANGE_MAX.min(self.limit / SMALL_CHANGE);
        if let (Source::Budget(grant), true) = (&self.source, is_small) {
            self.put(&mut consumers, id, after);
            grant.hold_anyway(used);
            return Ok(());
        }
        let mut for_now = false;
        let granted = if used > self.limit {
            Err("that is query_memory_limit".to_owned())
        } else {
            match &self.source {
                Source::Budget(grant) => {
                    let gives_way = before.gives_way(after) && !consumers.hands_on(id, reservation);
                    let fair =
                        if gives_way { self.fair(&consumers, before, after, consumers.is_sort(id)) } else { Ok(()) };
                    let is_final = self.is_final.load(Ordering::Relaxed);
                    let otherwise = match gives_way {
                        true => Otherwise::Spills,
                        false if is_final && !goes_on_without(reservation.consumer().name()) => Otherwise::Fails,
                        false => Otherwise::DoesWithout,
                    };
                    let held = |refusal: Refusal| {
                        for_now = otherwise == Otherwise::Fails && matches!(refusal, Refusal::Full { .. });
                        refusal.to_string()
                    };
                    fair.and_then(|()| grant.hold(used, otherwise).map_err(held))
                }
                Source::Stock(pool) => pool.try_grow(reservation, additional).map_err(|error| error.strip_backtrace()),
            }
        };
        match granted {
            Ok(()) => {
                self.put(&mut consumers, id, after.granted(before));
                Ok(())
            }
            Err(why) => {
                let text = self.refusal(&consumers, reservation, additional, &why);
                self.put(&mut consumers, id, before.refused(reservation.consumer().name()));
                Err(Denied { error: refused(reservation, text), for_now })
            }
        }
    }

    fn refusal(&self, consumers: &Consumers, reservation: &MemoryReservation, more: usize, why: &str) -> String {
        format!(
            "{} asks for {} more; the query uses {} of at most {} ({}); {why}",
            reservation.consumer().name(),
            ByteSize(more as u64),
            ByteSize(consumers.used()),
            ByteSize(self.limit),
            consumers.largest(),
        )
    }
}

/// An operator does not get what it asks for.
#[derive(Debug)]
struct Denied {
    error: DataFusionError,
    /// Others have it, and the operator cannot go on without.
    for_now: bool,
}

impl fmt::Display for QueryMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "query: {} of at most {}", ByteSize(self.figures.used()), ByteSize(self.limit))
    }
}

impl MemoryPool for QueryMemory {
    fn name(&self) -> &str {
        "query"
    }

    fn register(&self, consumer: &MemoryConsumer) {
        let overhead = match &self.source {
            Source::Budget(_) => overhead(consumer.name()),
            Source::Stock(pool) => {
                pool.register(consumer);
                (1, 1)
            }
        };
        self.consumers.lock().register(consumer, overhead);
    }

    fn unregister(&self, consumer: &MemoryConsumer) {
        self.consumers.lock().unregister(consumer.id());
        if let Source::Stock(pool) = &self.source {
            pool.unregister(consumer);
        }
    }

    fn grow(&self, reservation: &MemoryReservation, additional: usize) {
        self.settle(reservation, |said| said + additional as u64);
        if let Source::Stock(pool) = &self.source {
            pool.grow(reservation, additional);
        }
    }

    fn shrink(&self, reservation: &MemoryReservation, shrink: usize) {
        self.settle(reservation, |said| said.saturating_sub(shrink as u64));
        if let Source::Stock(pool) = &self.source {
            pool.shrink(reservation, shrink);
        }
    }

    fn try_grow(&self, reservation: &MemoryReservation, additional: usize) -> Result<()> {
        let mut outcome = self.try_once(reservation, additional);
        let is_for_now = |outcome: &Result<(), Denied>| matches!(outcome, Err(Denied { for_now: true, .. }));
        if let (Source::Budget(grant), true) = (&self.source, is_for_now(&outcome)) {
            grant.wait_until(&self.figures.waited, || {
                outcome = self.try_once(reservation, additional);
                !is_for_now(&outcome)
            });
        }
        outcome.map_err(|denied| denied.error)
    }

    fn reserved(&self) -> usize {
        usize::try_from(self.figures.used()).unwrap_or(usize::MAX)
    }

    fn memory_limit(&self) -> MemoryLimit {
        MemoryLimit::Finite(usize::try_from(self.limit).unwrap_or(usize::MAX))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::super::budget::Budget;
    use super::super::grant::{Claim, PATIENCE};
    use super::*;
    use updraft_auth::Principal;

    fn query(budget: &Arc<Budget>, grant: u64, limit: u64) -> (Arc<QueryMemory>, Arc<dyn MemoryPool>) {
        let claim = Claim { principal: Principal::new("a"), priority: 10, principal_limit: u64::MAX, shares: true };
        let grant = budget.try_grant(&claim, grant).expect("it fits");
        let memory = QueryMemory::new(Source::Budget(grant), limit, spillers(100), CancellationToken::new());
        (Arc::clone(&memory), memory)
    }

    fn spillers(floor: u64) -> Spillers {
        Spillers { floor, gathered_share: 100 }
    }

    fn spiller(pool: &Arc<dyn MemoryPool>) -> MemoryReservation {
        MemoryConsumer::new("test").with_can_spill(true).register(pool)
    }

    #[test]
    fn a_query_takes_no_more_than_its_limit_and_gives_all_back() {
        let budget = Budget::new(1000);
        let (memory, pool) = query(&budget, 50, 100);
        let reservation = MemoryConsumer::new("test").register(&pool);
        reservation.try_grow(100).expect("the last byte of the limit");
        let error = reservation.try_grow(1).expect_err("one more").to_string();
        assert!(error.contains("query_memory_limit"), "{error}");
        assert_eq!((memory.figures.used(), budget.held()), (100, 100));
        reservation.shrink(80);
        assert_eq!(
            (memory.figures.used(), memory.figures.peak(), budget.held()),
            (20, 100, 50),
            "the grant stays held"
        );
        drop((reservation, pool, memory));
        assert_eq!(budget.held(), 0);
    }

    /// What a query gets that asks for 200 bytes when another has 900 of 1,000, and how long that takes. The other is told what
    /// ends the query.
    fn wait_for(
        other: impl FnOnce(MemoryReservation, CancellationToken) + Send + 'static,
        name: &str,
        is_final: bool,
    ) -> (Result<()>, Duration) {
        let budget = Budget::new(1000);
        let (has, others) = query(&budget, 0, 1000);
        has.set_final();
        let held = MemoryConsumer::new("held").register(&others);
        held.try_grow(900).expect("there is plenty");
        drop((has, others));
        let (memory, pool) = query(&budget, 0, 1000);
        if is_final {
            memory.set_final();
        }
        let needs = MemoryConsumer::new(name).register(&pool);
        let cancel = memory.cancel.clone();
        let other = std::thread::spawn(move || other(held, cancel));
        let since = Instant::now();
        let outcome = needs.try_grow(200);
        let took = since.elapsed();
        other.join().expect("it ends");
        (outcome, took)
    }

    #[test]
    fn who_would_fail_for_good_for_want_of_what_others_have_waits_for_it() {
        let later = |held: MemoryReservation, _: CancellationToken| {
            std::thread::sleep(Duration::from_millis(100));
            drop(held);
        };
        for (name, is_final, waits) in [
            ("HashJoinInput[0]", true, true),
            ("HashJoinInput[0]", false, false),  // It is tried anew.
            ("RepartitionExec[0]", true, false), // It writes to disk.
        ] {
            let (outcome, took) = wait_for(later, name, is_final);
            assert_eq!(outcome.is_ok(), waits, "{name}: {outcome:?}");
            assert_eq!(took >= Duration::from_millis(90), waits, "{name}: {took:?}");
        }
        let needs_too = |held: MemoryReservation, _: CancellationToken| {
            std::thread::sleep(Duration::from_millis(20));
            assert!(held.try_grow(200).is_err(), "there is no more");
            drop(held);
        };
        let (outcome, took) = wait_for(needs_too, "HashJoinInput[0]", true);
        assert!(outcome.is_ok() && took < PATIENCE / 2, "not both wait: {outcome:?} after {took:?}");
    }

    #[test]
    fn of_those_that_wait_for_each_other_the_largest_gives_up() {
        let budget = Budget::new(1000);
        let queries = [350, 150].map(|holds| {
            let (memory, pool) = query(&budget, 0, 1000);
            memory.set_final();
            let build = MemoryConsumer::new("HashJoinInput[0]").register(&pool);
            build.try_grow(holds).expect("it is free");
            (memory, build)
        });
        let threads = queries.map(|(memory, build)| {
            std::thread::spawn(move || {
                let outcome = build.try_grow(100);
                drop((memory, build));
                outcome
            })
        });
        let outcomes = threads.map(|thread| thread.join().expect("it ends"));
        assert!(matches!(outcomes, [Err(_), Ok(())]), "{outcomes:?}");
    }

    #[test]
    fn who_waits_for_others_ends_when_its_query_does() {
        let cancels = |held: MemoryReservation, cancel: CancellationToken| {
            std::thread::sleep(Duration::from_millis(50));
            cancel.cancel();
            drop(held);
        };
        let (outcome, took) = wait_for(cancels, "HashJoinInput[0]", true);
        assert!(matches!(outcome, Err(DataFusionError::External(_))), "{outcome:?}");
        assert!(took < PATIENCE / 2, "{took:?}");
    }

    #[test]
    fn a_query_that_was_cancelled_gets_nothing_more_and_is_not_told_to_spill() {
        let budget = Budget::new(1000);
        let (memory, pool) = query(&budget, 0, 1000);
        let sort = spiller(&pool);
        sort.try_grow(10).expect("there is plenty");
        memory.cancel.cancel();
        let error = sort.try_grow(1).expect_err("it was cancelled");
        assert!(matches!(error, DataFusionError::External(_)), "{error}");
        sort.free();
        assert_eq!(memory.figures.used(), 0);
    }

    #[test]
    fn what_spills_leaves_room_to_what_cannot() {
        let budget = Budget::new(1200);
        let (_memory, pool) = query(&budget, 0, 1000);
        let sort = spiller(&pool);
        sort.try_grow(100).expect("its first batch");
        assert!(sort.try_grow(701).is_err());
        sort.try_grow(700).expect("four fifths");
        let merge = MemoryConsumer::new("merge").register(&pool);
        merge.try_grow(200).expect("what is left for it");
    }

    #[test]
    fn a_late_operator_starts_and_the_early_one_gives_way() {
        let budget = Budget::new(1200);
        let (_memory, pool) = query(&budget, 0, 1000);
        let early = spiller(&pool);
        early.try_grow(800).expect("alone it may have all that spills");
        let late = spiller(&pool);
        late.try_grow(50).expect("its first batch");
        late.try_grow(50).expect("its second");
        assert!(early.try_grow(1).is_err(), "it is over its share now, and spills");
        early.free();
        late.try_grow(300).expect("its half");
        early.try_grow(400).expect("the other half");
        early.shrink(300);
        late.try_grow(1).expect("there is plenty");
    }

    #[test]
    fn next_to_nothing_is_not_refused() {
        let budget = Budget::new(16 << 20);
        let (_memory, pool) = query(&budget, 0, 16 << 20);
        let join = MemoryConsumer::new("SMJStream[0]").register(&pool);
        join.grow(17 << 20);
        let sum = MemoryConsumer::new("AggregateStream[0]").register(&pool);
        sum.try_grow(9).expect("the name of a largest value");
        assert!(sum.try_grow(64 << 10).is_err());
        drop((join, sum));
        assert_eq!(budget.held(), 0);
    }

    #[test]
    fn every_operator_has_its_first_batches() {
        let budget = Budget::new(1000);
        let (_memory, pool) = query(&budget, 0, 1000);
        let sorts: Vec<_> = (0..4).map(|_| spiller(&pool)).collect();
        sorts[0].try_grow(500).expect("what is not kept for the others");
        assert!(sorts[0].try_grow(1).is_err());
        for sort in &sorts[1..] {
            sort.try_grow(50).expect("its first batch");
            sort.try_grow(50).expect("its second");
        }
        assert!(sorts[1].try_grow(1).is_err());
    }

    #[test]
    fn a_sort_that_was_told_to_spill_may_do_so() {
        let budget = Budget::new(1200);
        let (_memory, pool) = query(&budget, 0, 1000);
        let sort = spiller(&pool);
        sort.try_grow(800).expect("four fifths");
        assert!(sort.try_grow(10).is_err(), "it is to spill");
        sort.try_grow(100).expect("what it writes may be an eighth larger");
        for _ in 0..2 {
            assert!(sort.try_grow(1).is_err());
        }
        sort.shrink(890);
        let other = spiller(&pool);
        other.try_grow(790).expect("what was spilled");
        sort.try_grow(1).expect("its next batch, although not all of the last is gone");
        assert!(sort.try_grow(100).is_err(), "from now on it gives way again");
    }

    #[test]
    fn a_sort_that_hands_on_its_rows_is_not_told_to_spill() {
        let budget = Budget::new(1200);
        let (_memory, pool) = query(&budget, 0, 1000);
        let register = |name: &str| MemoryConsumer::new(name).with_can_spill(!name.contains("Merge")).register(&pool);
        let (sort, merge) = (register("ExternalSorter[0]"), register("ExternalSorterMerge[0]"));
        let (other, others_merge) = (register("ExternalSorter[0]"), register("ExternalSorterMerge[0]"));
        for merge in [&merge, &others_merge] {
            merge.try_grow(10).expect("what is set aside");
        }
        sort.try_grow(400).expect("more than its half");
        other.try_grow(380).expect("the rest of four fifths");
        merge.free();
        sort.try_grow(5).expect("its rows are in one piece now, and a little larger");
        let run = sort.split(100);
        merge.try_grow(20).expect("rows in sortable form");
        run.try_grow(5).expect("another run, which is sorted meanwhile");
        drop(run);
        assert!(sort.try_grow(100).is_err(), "it gathers again");
    }

    #[test]
    fn an_aggregate_that_has_spilled_may_have_what_is_left() {
        let budget = Budget::new(1500);
        let (_memory, pool) = query(&budget, 0, 1500);
        let aggregate = MemoryConsumer::new("FinalHashAggregateStream[0]").with_can_spill(true).register(&pool);
        aggregate.try_grow(600).expect("it is charged half as much again");
        assert!(aggregate.try_grow(300).is_err(), "four fifths are 1200");
        aggregate.free();
        aggregate.try_grow(900).expect("it reads back what it has spilled");
    }

    #[test]
    fn what_cannot_be_refused_is_counted() {
        let budget = Budget::new(1000);
        let (memory, pool) = query(&budget, 0, 100);
        let bitmap = MemoryConsumer::new("bitmap").register(&pool);
        bitmap.grow(1500);
        assert_eq!((memory.figures.used(), budget.held(), budget.free()), (1500, 1500, 0));
        bitmap.free();
        assert_eq!(budget.free(), 1000);
    }

    #[test]
    fn stock_pools_decide_for_themselves() {
        let shared: Arc<dyn MemoryPool> = Arc::new(datafusion::execution::memory_pool::GreedyMemoryPool::new(1000));
        let memory = QueryMemory::new(Source::Stock(Arc::clone(&shared)), 900, spillers(0), CancellationToken::new());
        let pool: Arc<dyn MemoryPool> = Arc::clone(&memory) as _;
        let (first, second) = (spiller(&pool), spiller(&pool));
        first.try_grow(900).expect("up to the query's limit");
        assert!(second.try_grow(1).is_err());
        assert_eq!((shared.reserved(), memory.figures.used()), (900, 900));
        first.free();
        assert_eq!((shared.reserved(), memory.figures.used(), memory.figures.peak()), (0, 0, 900));
    }
}
