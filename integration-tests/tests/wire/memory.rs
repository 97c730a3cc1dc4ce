//! Memory, turns and what a query says of itself, as a client meets them.

use std::time::Duration;

use datafusion::arrow::datatypes::DataType;
use futures::StreamExt;
use serde_json::{Value, json};
use tonic::metadata::MetadataMap;
use tonic::{Code, Status};
use tonic_types::StatusExt;
use updraft_engine::{MemoryPoolKind, PrincipalConfig};

use crate::client::{Wire, ticket, told};
use crate::support::data;
use crate::{LONG, as_it_is, nothing_runs, with_server};

/// Some 60 MB to sort, which 32 MiB cannot hold.
const SORT: &str = "SELECT sum(n % 7 * v) FROM (SELECT value AS v, row_number() OVER (ORDER BY value % 1000, p) AS n \
    FROM (SELECT value, repeat('x', 100) || value AS p FROM generate_series(1, 400000)))";

const SORTED: &str = "240006404001";

/// Some 50 MB on the build side of a join, of which nothing is known before.
const SURPRISE: &str = "SELECT count(*), sum(length(a.text)) \
    FROM (SELECT value AS v, repeat('x', 400) || value AS text FROM generate_series(1, 100000)) AS a \
    JOIN generate_series(1, 300000) AS b ON a.v = b.value";

/// A result of one row that takes a turn to compute.
const SUM: &str = "SELECT sum(n) FROM (SELECT value % 7 AS n FROM generate_series(1, 300000))";

/// Runs `sql` to its end and returns what came after the last message.
async fn trailers(wire: &mut Wire, sql: &str) -> MetadataMap {
    let info = wire.plan(sql).await.unwrap();
    let mut messages = wire.open(ticket(&info)).await.unwrap();
    while let Some(message) = messages.next().await {
        message.unwrap_or_else(|status| panic!("{sql}: {status}"));
    }
    messages.trailers().await.unwrap().unwrap_or_default()
}

fn number(trailers: &MetadataMap, name: &str) -> f64 {
    let value = trailers.get(name).unwrap_or_else(|| panic!("{name} is missing in {trailers:?}"));
    value.to_str().unwrap().parse().unwrap()
}

#[test]
fn a_query_says_what_it_used() {
    with_server(
        |config| config.engine.memory_limit = Some("32MiB".parse().unwrap()),
        |server| async {
            let mut wire = Wire::new(&server).await;
            let used = trailers(&mut wire, SORT).await;
            assert!(number(&used, "x-updraft-spilled-bytes") > 1e6, "{used:?}");
            assert!(number(&used, "x-updraft-spill-files") >= 1.0, "{used:?}");
            let peak = number(&used, "x-updraft-peak-bytes");
            assert!(peak > 1e6 && peak <= f64::from(32 << 20), "{used:?}");
            assert!(number(&used, "x-updraft-partitions") >= 1.0, "{used:?}");
            assert!(number(&used, "x-updraft-run-ms") > 0.0, "{used:?}");
            assert_eq!(
                number(&trailers(&mut wire, SURPRISE).await, "x-updraft-attempts"),
                2.0,
                "it was refused memory"
            );
            let used = trailers(&mut wire, "SELECT 1").await;
            assert_eq!((number(&used, "x-updraft-rows"), number(&used, "x-updraft-spilled-bytes")), (1.0, 0.0));

            let rows = wire.rows("EXPLAIN ANALYZE SELECT id FROM t ORDER BY id").await;
            let report = rows.iter().find(|row| row.starts_with("Resources")).expect("a row of resources");
            for part in ["peak_bytes=", "spilled_bytes=0", "spill_files=0", "partitions=2", "queue_ms="] {
                assert!(report.contains(part), "{report}");
            }
            nothing_runs(&server).await;
            assert_eq!(server.running.engine().spilled(), 0, "what was spilled is gone");
            server
        },
    );
}

#[test]
fn what_a_query_will_read_is_told_with_its_ticket() {
    with_server(as_it_is, |server| async {
        let mut wire = Wire::new(&server).await;
        for (sql, rows, bytes) in [
            ("SELECT id FROM t", json!(3), 24.0..=24.0),
            ("SELECT id, name FROM t", json!(3), 30.0..=300.0),
            ("SELECT 1", json!(0), 0.0..=0.0),
        ] {
            let info = wire.plan(sql).await.unwrap();
            let told: Value = serde_json::from_slice(&info.endpoint[0].app_metadata).unwrap();
            assert_eq!(told["scan_rows"], rows, "{sql}: {told}");
            assert!(told["scan_bytes"].as_f64().is_some_and(|told| bytes.contains(&told)), "{sql}: {told}");
            assert!(told["plan_ms"].as_f64().is_some_and(|took| took > 0.0), "{sql}: {told}");
        }
        server
    });
}

#[test]
fn datafusions_own_pools_run_queries_and_report_on_them() {
    for pool in [MemoryPoolKind::DatafusionFair, MemoryPoolKind::Greedy] {
        with_server(
            |config| {
                config.engine.memory_pool = pool;
                config.engine.memory_limit = Some("64MiB".parse().unwrap());
                // Two sorts beside each other leave nothing for their merges, in a pool that serves who comes first.
                config.engine.target_partitions = "1".parse().unwrap();
            },
            |server| async {
                let mut wire = Wire::new(&server).await;
                assert_eq!(wire.rows(SORT).await, [SORTED]);
                let rows = wire.rows(&format!("EXPLAIN ANALYZE {SORT}")).await;
                let report = rows.iter().find(|row| row.starts_with("Resources")).expect("a row of resources");
                assert!(report.contains("attempts=1") && !report.contains("spilled_bytes=0"), "{pool:?}: {report}");
                server
            },
        );
    }
}

#[test]
fn the_least_a_session_may_have_is_enough_for_a_small_scan() {
    with_server(as_it_is, |server| async {
        let mut least = Wire::new(&server).await.with("x-updraft-query-memory-limit", "1MiB");
        assert_eq!(least.rows("SELECT name FROM t WHERE id = 3").await, ["c"]);
        assert_eq!(least.rows("SELECT id FROM t ORDER BY id DESC").await, ["3", "2", "1"]);
        server
    });
}

/// Opens a stream of [`LONG`] and reads its first message, so that it has had its turn.
async fn occupy(wire: &mut Wire) -> tonic::Streaming<arrow_flight::FlightData> {
    let info = wire.plan(LONG).await.unwrap();
    let mut stream = wire.open(ticket(&info)).await.unwrap();
    stream.next().await.unwrap().unwrap();
    stream
}

async fn refused(wire: &mut Wire) -> Status {
    let info = wire.plan(LONG).await.unwrap();
    match wire.open(ticket(&info)).await {
        Err(status) => status,
        Ok(mut stream) => loop {
            match stream.next().await {
                Some(Ok(_)) => {}
                Some(Err(status)) => return status,
                None => panic!("it ended well"),
            }
        },
    }
}

#[test]
fn a_full_queue_is_told_and_light_queries_pass_it() {
    with_server(
        |config| {
            config.engine.max_concurrent_queries = 1;
            config.engine.max_queued = 1;
            config.engine.queue_timeout = Duration::from_millis(700);
        },
        |server| async {
            let mut wire = Wire::new(&server).await;
            let running = occupy(&mut wire).await;
            let mut waiting = wire.clone();
            let waits = tokio::spawn(async move { refused(&mut waiting).await });
            while server.running.engine().queued() == 0 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            let status = refused(&mut wire).await;
            assert_eq!(status.code(), Code::Unavailable, "{status}");
            assert!(told(&status).contains("engine.max_queued"), "{status}");
            assert!(status.get_details_retry_info().and_then(|info| info.retry_delay).is_some(), "{status:?}");
            // A light query has a lane of its own.
            assert_eq!(wire.rows("SELECT count(*) FROM t").await, ["3"]);
            let status = waits.await.unwrap();
            assert_eq!(status.code(), Code::Unavailable, "{status}");
            assert!(told(&status).contains("queue_timeout"), "{status}");
            // Who waits in vain says so in its status, who has its turn in what follows the result.
            let mut waiting = wire.clone();
            let waits = tokio::spawn(async move { trailers(&mut waiting, SUM).await });
            while server.running.engine().queued() == 0 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
            drop(running);
            let used = waits.await.unwrap();
            assert!(number(&used, "x-updraft-queue-ms") >= 100.0, "{used:?}");
            assert_eq!(number(&used, "x-updraft-attempts"), 1.0, "{used:?}");
            nothing_runs(&server).await;
            drop(occupy(&mut wire).await);
            server
        },
    );
}

#[test]
fn a_principal_has_bounds_of_its_own() {
    with_server(
        |config| {
            let bounds = PrincipalConfig {
                max_concurrent_queries: Some(1),
                max_queued: Some(0),
                query_memory_limit: Some("64MiB".parse().unwrap()),
                statement_timeout: Some(Duration::from_secs(60)),
                ..PrincipalConfig::default()
            };
            config.engine.principals.insert("anonymous".to_owned(), bounds);
        },
        |server| async {
            let mut wire = Wire::new(&server).await;
            let running = occupy(&mut wire).await;
            let status = refused(&mut wire).await;
            assert_eq!(status.code(), Code::Unavailable, "{status}");
            drop(running);
            nothing_runs(&server).await;
            for (statement, cap) in
                [("SET query_memory_limit = '65MiB'", "64.0 MiB"), ("SET statement_timeout = '61s'", "1m")]
            {
                let status = wire.query(statement).await.unwrap_err();
                assert_eq!(status.code(), Code::InvalidArgument, "{status}");
                assert!(status.message().contains(cap), "{statement}: {status}");
            }
            server
        },
    );
}

#[test]
fn a_principal_waits_no_longer_than_its_own_bound_says() {
    with_server(
        |config| {
            let bounds =
                PrincipalConfig { queue_timeout: Some(Duration::from_millis(300)), ..PrincipalConfig::default() };
            config.engine.max_concurrent_queries = 1;
            config.engine.principals.insert("anonymous".to_owned(), bounds);
        },
        |server| async {
            let mut wire = Wire::new(&server).await;
            let running = occupy(&mut wire).await;
            let status = refused(&mut wire).await;
            assert_eq!(status.code(), Code::Unavailable, "{status}");
            assert!(told(&status).contains("queue_timeout"), "{status}");
            drop(running);
            server
        },
    );
}

#[test]
fn the_queries_of_a_principal_together_hold_no_more_than_its_bound_says() {
    const LIMIT: usize = 64 << 20;
    with_server(
        |config| {
            let bounds = PrincipalConfig { memory_limit: Some("64MiB".parse().unwrap()), ..PrincipalConfig::default() };
            config.engine.principals.insert("anonymous".to_owned(), bounds);
        },
        |server| async {
            let engine = server.running.engine();
            let (mut one, mut other) = (Wire::new(&server).await, Wire::new(&server).await);
            let mut both = std::pin::pin!(async { tokio::join!(one.rows(SORT), other.rows(SORT)) });
            let mut most = 0;
            let (one, other) = loop {
                match tokio::time::timeout(Duration::from_millis(1), &mut both).await {
                    Ok(rows) => break rows,
                    Err(_) => most = most.max(engine.memory_reserved()),
                }
            };
            assert_eq!([one, other], [[SORTED]; 2]);
            assert!(most > LIMIT / 2 && most <= LIMIT, "both together held {most} bytes");
            server
        },
    );
}

#[test]
fn a_result_that_was_kept_waits_for_nobody() {
    with_server(
        |config| {
            config.engine.result_cache_limit = "16MiB".parse().unwrap();
            config.engine.max_concurrent_queries = 1;
            config.engine.max_queued = 0;
        },
        |server| async {
            // As many rows as make a query heavy.
            let ids = (1..=300_000).map(|id| id.to_string()).collect::<Vec<_>>().join(" ");
            let many = data::table(&[("id", DataType::Int64, ids.as_str())]);
            data::parquet(&server.dir.path().join("many.parquet"), &many);
            let sum = "SELECT sum(id % 7) FROM many";
            let mut wire = Wire::new(&server).await;
            assert_eq!(wire.rows(sum).await, ["899998"]);
            nothing_runs(&server).await;
            let running = occupy(&mut wire).await;
            let status = wire.query("SELECT sum(id % 8) FROM many").await.unwrap_err();
            assert_eq!(status.code(), Code::Unavailable, "{status}");
            assert_eq!(wire.rows(sum).await, ["899998"]);
            let used = trailers(&mut wire, sum).await;
            assert_eq!(used.get("x-updraft-result-cache").unwrap(), "hit");
            drop(running);
            server
        },
    );
}

#[test]
fn what_leaves_the_budget_is_refused_with_the_key_to_use() {
    with_server(
        |_| {},
        |server| async {
            let mut wire = Wire::new(&server).await;
            for (key, instead) in [
                ("memory_limit", "engine.memory_limit"),
                ("temp_directory", "engine.spill_directories"),
                ("max_temp_directory_size", "engine.spill_limit"),
            ] {
                let status = wire.query(&format!("SET datafusion.runtime.{key} = '1G'")).await.unwrap_err();
                assert_eq!(status.code(), Code::InvalidArgument, "{status}");
                assert!(status.message().contains(instead), "{key}: {status}");
            }
            server
        },
    );
}
