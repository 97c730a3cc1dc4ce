//! Memory, turns and what a query says of itself, as a client meets them.

use std::time::Duration;

use futures::StreamExt;
use tonic::metadata::MetadataMap;
use tonic::{Code, Status};
use tonic_types::StatusExt;
use updraft_engine::PrincipalConfig;

use crate::client::{Wire, ticket, told};
use crate::{LONG, nothing_runs, with_server};

/// Some 60 MB to sort, which 32 MiB cannot hold.
const SORT: &str = "SELECT sum(n % 7 * v) FROM (SELECT value AS v, row_number() OVER (ORDER BY value % 1000, p) AS n \
    FROM (SELECT value, repeat('x', 100) || value AS p FROM generate_series(1, 400000)))";

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
            drop(running);
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
