//! That a query is brought to run with what is free: how it is split, where it waits, and its second try.

use super::*;
use crate::config::{MemoryPoolKind, Partitions};
use crate::error::ErrorKind;
use crate::memory::{Claim, Memory};

/// A group for each row.
const WIDE: &str = "SELECT count(*), sum(c), max(k) FROM (SELECT id AS k, count(*) AS c FROM n GROUP BY id)";
const ROWS: i64 = 300_000;

impl Fixture {
    /// A fixture with the table `n` of [`ROWS`] rows.
    async fn wide(config: Config) -> Self {
        let fixture = Self::new(config).await;
        fixture.numbers("n.parquet", 0..ROWS);
        fixture
    }

    /// Holds all that is free but `left` bytes, as somebody else's query does.
    fn hold_all_but(&self, left: u64) -> impl Drop + use<> {
        let Memory::Fair(budget) = self.engine.memory() else { panic!("our own") };
        let claim = Claim { principal: Principal::new("bob"), priority: 10, principal_limit: u64::MAX, shares: true };
        budget.try_grant(&claim, budget.free() - left).expect("it is free")
    }
}

fn expected() -> String {
    format!("{ROWS} {ROWS} {}", ROWS - 1)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_query_is_split_less_while_less_is_free() {
    let queue_timeout = Duration::from_secs(10);
    let config = Config { target_partitions: Partitions::Count(8), queue_timeout, ..Config::default() };
    let fixture = Fixture::wide(config).await;
    let session = fixture.session("ann");
    let partitions = async || {
        let (answer, report) = fixture.outcome(&session, WIDE).await;
        assert_eq!(answer.unwrap(), expected());
        assert_eq!(report.attempts, 1);
        report.partitions
    };
    assert_eq!(partitions().await, 8);
    let held = fixture.hold_all_but(24 << 20);
    let fewer = partitions().await;
    assert!(fewer < 8, "the plan that was kept needs more than is free");
    drop(held);
    assert_eq!(partitions().await, 8);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_query_that_fits_no_more_waits_until_it_does() {
    let fixture = Fixture::wide(Config::default()).await;
    let (engine, session) = (&fixture.engine, fixture.session("ann"));
    let held = fixture.hold_all_but(0);
    let waits = async {
        let (answer, report) = fixture.outcome(&session, WIDE).await;
        assert_eq!(answer.unwrap(), expected());
        assert!(report.queue_time >= Duration::from_millis(50), "{report:?}");
    };
    let ends = async {
        until(|| engine.queued() == 1).await;
        tokio::time::sleep(Duration::from_millis(50)).await;
        drop(held);
    };
    tokio::join!(waits, ends);
    assert_eq!(engine.memory_reserved(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn by_itself_a_query_has_the_partitions_its_data_is_worth_and_others_leave() {
    let fixture = Fixture::wide(Config::default()).await;
    let session = fixture.session("ann");
    let partitions = async |sql: &str| fixture.outcome(&session, sql).await.1.partitions;
    assert_eq!(partitions("SELECT count(*) FROM (SELECT DISTINCT id FROM t)").await, 1);
    assert_eq!(partitions(WIDE).await, 2, "a core each");
    let planned = fixture.plan(&session, WIDE).await;
    let others: Vec<_> = (0..3).map(|_| fixture.engine.runs.enter(&planned, None)).collect();
    assert_eq!(partitions(WIDE).await, 1);
    drop(others);
}

/// A join that nobody can tell the size of beforehand, and that has a build side of some 50 MB.
const SURPRISE: &str = "SELECT count(*), sum(length(a.text)) \
    FROM (SELECT value AS v, repeat('x', 400) || value AS text FROM generate_series(100001, 200000)) AS a \
    JOIN generate_series(100001, 400000) AS b ON a.v = b.value";

#[tokio::test(flavor = "multi_thread")]
async fn what_was_refused_memory_is_tried_once_more_with_care() {
    let little = |memory_pool| {
        let memory_limit = Some(ByteSize::mib(32));
        Fixture::new(Config { memory_limit, memory_pool, target_partitions: Partitions::Count(2), ..Config::default() })
    };
    let fixture = little(MemoryPoolKind::Fair).await;
    let (answer, report) = fixture.outcome(&fixture.session("ann"), SURPRISE).await;
    assert_eq!(answer.unwrap(), format!("100000 {}", 100_000 * 406));
    assert_eq!((report.attempts, report.partitions), (2, 1), "{report:?}");
    assert_eq!(fixture.engine.memory_reserved(), 0);

    let fixture = little(MemoryPoolKind::Greedy).await;
    let (answer, report) = fixture.outcome(&fixture.session("ann"), SURPRISE).await;
    assert_eq!(answer.unwrap_err().kind(), ErrorKind::Exhausted);
    assert_eq!((report.attempts, report.partitions), (1, 2), "DataFusion's pools are as they are: {report:?}");
}
