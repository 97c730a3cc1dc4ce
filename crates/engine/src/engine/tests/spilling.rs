//! What a query that spills is given to spill with.

use tokio_util::sync::CancellationToken;

use super::*;
use crate::config::SpillCompression;
use crate::launch::{Effort, fit};

/// Sorts half a million numbers with little memory: the answer, and the bytes it has spilled.
async fn sort(spill_compression: SpillCompression) -> (String, u64) {
    let fixture = Fixture::new(Config { spill_compression, ..Config::default() }).await;
    fixture.numbers("n.parquet", 0..500_000);
    fixture.engine.set(&fixture.session("ann"), "query_memory_limit", Some("4MiB")).unwrap();
    let session = fixture.session("ann");
    let sql = "SELECT sum(k * (r % 1000)) FROM (SELECT k, row_number() OVER (ORDER BY k) AS r
               FROM (SELECT id * 7919 % 1000003 AS k FROM n))";
    let (batches, report) = fixture.run(&session, fixture.plan(&session, sql).await).await.unwrap();
    (lines(&batches), report.spilled_bytes)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_spilled_is_compressed_as_configured() {
    let (plain, plain_bytes) = sort(SpillCompression::None).await;
    for compression in [SpillCompression::Lz4, SpillCompression::Zstd] {
        let (answer, bytes) = sort(compression).await;
        assert_eq!(answer, plain);
        assert!(bytes > 0 && bytes < plain_bytes / 4 * 3, "{compression:?}: {bytes} of {plain_bytes}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_are_shorter_than_what_is_compared_of_them_are_sorted_too() {
    let fixture = Fixture::new(Config::default()).await;
    fixture.engine.set(&fixture.session("ann"), "query_memory_limit", Some("8MiB")).unwrap();
    let session = fixture.session("ann");
    let sql = "SELECT sum(v * (r % 7)), min(v), max(v), count(*) FROM (SELECT v, row_number() OVER (ORDER BY v % 1000, v, v % 7) AS r
               FROM (SELECT value AS v FROM range(1000000)))";
    let (batches, report) = fixture.run(&session, fixture.plan(&session, sql).await).await.unwrap();
    assert!(report.spilled_bytes > 0 && report.attempts == 1, "{report:?}");
    let (all, _) =
        fixture.run(&fixture.session("bob"), fixture.plan(&fixture.session("bob"), sql).await).await.unwrap();
    assert_eq!(lines(&batches), lines(&all));
}

/// How many runs a sort that tries so merges at once.
async fn fan_in(spill_merge_fan_in: usize, effort: Effort) -> usize {
    let fixture = Fixture::new(Config { spill_merge_fan_in, ..Config::default() }).await;
    fixture.numbers("n.parquet", 0..1_000);
    let (engine, session) = (&fixture.engine, fixture.session("ann"));
    let planned = fixture.plan(&session, "SELECT id FROM n ORDER BY id % 7").await;
    let Work::Query(ready) = &planned.work else { panic!("a query") };
    let fitted = fit(engine, &planned, ready, &CancellationToken::new(), effort).await.unwrap();
    let turn = fitted.turn(engine, &planned).await.unwrap();
    turn.context.runtime_env().disk_manager.max_spill_merge_fan_in()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_merge_reads_as_many_files_as_configured_if_memory_allows() {
    for (configured, careful) in [(3, 3), (32, 4)] {
        assert_eq!(fan_in(configured, Effort::Usual).await, configured);
        assert_eq!(fan_in(configured, Effort::Careful).await, careful);
    }
    let (usual, careful) = (fan_in(0, Effort::Usual).await, fan_in(0, Effort::Careful).await);
    assert!(usual > 100 && usual < usize::MAX, "{usual}: as memory allows");
    assert_eq!(careful, 4);
}
