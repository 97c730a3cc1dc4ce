//! How queries end: cancelled, past a deadline, abandoned, or by a server that shuts down.

use std::time::{Duration, Instant};

use arrow_flight::sql::{ActionCancelQueryRequest, ActionCancelQueryResult};
use arrow_flight::{CancelFlightInfoRequest, CancelFlightInfoResult, CancelStatus, FlightInfo};
use futures::StreamExt;
use prost::Message;
use tonic::{Code, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;
use tonic_types::StatusExt;
use updraft_engine::PrincipalConfig;

use crate::client::{Wire, collect, ticket};
use crate::{LONG, SILENT, as_it_is, entries, nothing_runs, with_server};

async fn cancel(wire: &mut Wire, info: &FlightInfo) -> Result<CancelStatus, Status> {
    let request = CancelFlightInfoRequest { info: Some(info.clone()) };
    let result: CancelFlightInfoResult = wire.flight_action("CancelFlightInfo", &request).await?;
    Ok(CancelStatus::try_from(result.status).unwrap())
}

async fn cancel_query(wire: &mut Wire, info: &FlightInfo) -> Result<i32, Status> {
    let request = ActionCancelQueryRequest { info: info.encode_to_vec().into() };
    let result: ActionCancelQueryResult = wire.sql_action("CancelQuery", &request).await?;
    Ok(result.result)
}

#[test]
fn a_running_query_is_cancelled_from_another_connection() {
    with_server(as_it_is, |server| async {
        for sql in [LONG, SILENT] {
            for older_action in [false, true] {
                let mut wire = Wire::new(&server).await;
                let mut other = Wire::new(&server).await;
                let info = wire.plan(sql).await.unwrap();
                let stream = wire.open(ticket(&info)).await.unwrap();
                let fetching = tokio::spawn(collect(stream));
                while server.running.engine().running() == 0 {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                let status = if older_action {
                    cancel_query(&mut other, &info).await.unwrap()
                } else {
                    cancel(&mut other, &info).await.unwrap() as i32
                };
                assert_eq!(status, CancelStatus::Cancelling as i32);
                let started = Instant::now();
                let ended = fetching.await.unwrap().unwrap_err();
                assert_eq!(ended.code(), Code::Cancelled, "{ended}");
                assert!(started.elapsed() < Duration::from_secs(2), "{:?}", started.elapsed());
                nothing_runs(&server).await;
                assert_eq!(cancel(&mut other, &info).await.unwrap_err().code(), Code::NotFound, "it has ended");
            }
        }
        server
    });
}

#[test]
fn a_query_cancelled_before_it_is_fetched_does_not_run() {
    with_server(as_it_is, |server| async {
        let mut wire = Wire::new(&server).await;
        let info = wire.plan("SELECT 1").await.unwrap();
        assert_eq!(cancel(&mut wire, &info).await.unwrap(), CancelStatus::Cancelled);
        assert_eq!(wire.redeem(&info).await.unwrap_err().code(), Code::Cancelled);
        assert_eq!(cancel(&mut wire, &info).await.unwrap_err().code(), Code::NotFound);
        let old = wire.plan("SELECT 1").await.unwrap();
        assert_eq!(cancel_query(&mut wire, &old).await.unwrap(), CancelStatus::Cancelled as i32);
        assert_eq!(cancel(&mut wire, &FlightInfo::default()).await.unwrap_err().code(), Code::NotFound);
        let request = CancelFlightInfoRequest { info: None };
        let status = wire.flight_action::<CancelFlightInfoResult>("CancelFlightInfo", &request).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument);
        server
    });
}

#[test]
fn a_client_that_never_fetches_leaves_nothing() {
    with_server(
        |config| config.engine.ticket_ttl = Duration::from_millis(200),
        |server| async {
            let mut wire = Wire::new(&server).await;
            let mut infos = Vec::new();
            for _ in 0..50 {
                infos.push(wire.plan(SILENT).await.unwrap());
            }
            assert_eq!(server.running.engine().running(), 0, "FlightInfo plans and never runs");
            assert_eq!(server.running.engine().memory_reserved(), 0);
            tokio::time::sleep(Duration::from_millis(300)).await;
            for info in &infos {
                // Past its life a plan is not kept, so there is nothing to cancel.
                assert_eq!(cancel(&mut wire, info).await.unwrap_err().code(), Code::NotFound);
            }
            server
        },
    );
}

#[test]
fn a_client_that_goes_away_takes_its_query_with_it() {
    with_server(as_it_is, |server| async {
        let sorting = "SELECT a.value FROM generate_series(1, 3000000) AS a ORDER BY a.value % 1000, a.value";
        for sql in [LONG, SILENT, sorting] {
            // It drops the stream of results, or its whole connection.
            for connection_too in [false, true] {
                let mut wire = Wire::new(&server).await;
                let info = wire.plan(sql).await.unwrap();
                let mut stream = wire.open(ticket(&info)).await.unwrap();
                stream.next().await.unwrap().unwrap();
                while server.running.engine().running() == 0 {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                drop(stream);
                if connection_too {
                    drop(wire);
                }
                let started = Instant::now();
                nothing_runs(&server).await;
                assert!(started.elapsed() < Duration::from_secs(2), "{sql}: {:?}", started.elapsed());
            }
        }
        server
    });
}

#[test]
fn deadlines_hold_for_queries_with_and_without_rows() {
    with_server(as_it_is, |server| async {
        let wire = Wire::new(&server).await;
        for sql in [LONG, SILENT] {
            // The client's own, as its header has it.
            let mut client = wire.clone();
            let info = client.plan(sql).await.unwrap();
            let started = Instant::now();
            let mut limited = wire.with("grpc-timeout", "300m");
            let status = limited.redeem(&info).await.unwrap_err();
            assert_eq!(status.code(), Code::DeadlineExceeded, "{status}");
            // The session's.
            let mut session = wire.with("x-updraft-statement-timeout", "300ms");
            let status = session.query(sql).await.unwrap_err();
            assert_eq!(status.code(), Code::DeadlineExceeded, "{status}");
            assert!(status.message().contains("limit of 300ms"), "{status}");
            assert!(started.elapsed() < Duration::from_secs(4), "{:?}", started.elapsed());
            nothing_runs(&server).await;
        }
        assert_eq!(wire.within(Duration::from_secs(20)).rows("SELECT 1").await, ["1"]);
        server
    });
}

#[test]
fn queries_end_when_the_operator_says_or_sooner_for_a_principal() {
    let own = PrincipalConfig { statement_timeout: Some(Duration::from_millis(200)), ..PrincipalConfig::default() };
    for (own, limit) in [(None, "limit of 300ms"), (Some(own), "limit of 200ms")] {
        with_server(
            |config| {
                config.engine.statement_timeout = Duration::from_millis(300);
                config.engine.principals.extend(own.map(|own| ("anonymous".to_owned(), own)));
            },
            |server| async {
                let mut wire = Wire::new(&server).await;
                for sql in [LONG, SILENT] {
                    let status = wire.query(sql).await.unwrap_err();
                    assert_eq!(status.code(), Code::DeadlineExceeded, "{status}");
                    assert!(status.message().contains(limit), "{status}");
                    nothing_runs(&server).await;
                }
                server
            },
        );
    }
}

#[test]
fn a_drain_lets_queries_end_and_takes_no_new_ones() {
    with_server(as_it_is, |server| async {
        let mut wire = Wire::new(&server).await;
        let mut health = HealthClient::new(server.channel().await);
        let mut serving = async || health.check(HealthCheckRequest::default()).await.unwrap().into_inner().status;
        assert_eq!(serving().await, 1);
        let waiting = wire.plan("SELECT 1").await.unwrap();
        let rows = 2_000_000;
        let info = wire.plan(&format!("SELECT value FROM generate_series(1, {rows})")).await.unwrap();
        let mut stream = wire.open(ticket(&info)).await.unwrap();
        stream.next().await.unwrap().unwrap();
        assert_eq!(server.running.engine().running(), 1);

        server.running.begin_drain();
        let status = wire.plan("SELECT 1").await.unwrap_err();
        assert_eq!(status.code(), Code::Unavailable, "{status}");
        let retry = status.get_details_retry_info().and_then(|info| info.retry_delay);
        assert!(retry.is_some(), "a client should know when to try again");
        // A query that was planned before has not begun: it is new.
        let outcome = wire.redeem(&waiting).await;
        assert!(
            outcome.as_ref().is_ok_and(|fetched| fetched.rows() == ["1"])
                || outcome.is_err_and(|status| status.code() == Code::Unavailable)
        );
        for _ in 0..100 {
            if serving().await == 2 {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert_eq!(serving().await, 2, "NOT_SERVING");
        let fetched = count(stream).await.unwrap();
        assert_eq!(fetched, rows, "what ran has run to its end");
        server
    });
}

/// Rows of the rest of a stream whose first message, the schema, was read.
async fn count(mut stream: tonic::Streaming<arrow_flight::FlightData>) -> Result<i64, Status> {
    let mut rows = 0;
    while let Some(message) = stream.next().await {
        let message = message?;
        let header = arrow_ipc::root_as_message(&message.data_header).unwrap();
        rows += header.header_as_record_batch().unwrap().length();
    }
    Ok(rows)
}

#[test]
fn a_hard_stop_ends_what_runs() {
    // Neither is over before the test is; the second is in the middle of spilling.
    let spilling = "SELECT value, repeat('x', 100) || value AS text FROM generate_series(1, 100000000) ORDER BY text";
    for (sql, memory, spills) in [(SILENT, "256MiB", false), (spilling, "64MiB", true)] {
        crate::support::run(async {
            let folder = tempfile::tempdir().unwrap();
            let server = crate::Server::start(crate::folder(), |config| {
                config.engine.memory_limit = Some(memory.parse().unwrap());
                config.engine.spill_directories = vec![folder.path().to_owned()];
            })
            .await;
            let mut wire = Wire::new(&server).await;
            let info = wire.plan(sql).await.unwrap();
            let fetching = tokio::spawn(collect(wire.open(ticket(&info)).await.unwrap()));
            let engine = std::sync::Arc::clone(server.running.engine());
            while engine.running() == 0 || (spills && engine.spilled() == 0) {
                assert!(!fetching.is_finished(), "it ended by itself");
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            let started = Instant::now();
            let ended = server.running.drain(Duration::from_millis(200), std::future::pending()).await.unwrap();
            assert!(ended.killed, "the grace was over");
            assert!(started.elapsed() < Duration::from_secs(4), "{:?}", started.elapsed());
            assert!(fetching.await.unwrap().is_err());
            let left = || (engine.running(), engine.memory_reserved(), engine.spilled(), entries(folder.path()));
            for _ in 0..200 {
                if left() == (0, 0, 0, 0) {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            panic!("runs, bytes of memory, bytes and files on disk that are left: {:?}", left());
        });
    }
}

#[test]
fn a_panic_ends_one_query_and_names_it() {
    with_server(as_it_is, |server| async {
        use updraft_engine::{Encoded, Error, ErrorKind, Part, SessionId, Statement, Weight};
        struct Never;
        impl Weight for Never {
            fn weight(&self) -> usize {
                0
            }
        }
        // No statement is known that panics, so what encodes its rows does.
        let engine = server.running.engine();
        let session = engine.session(SessionId([1; 16]), &updraft_auth::Principal::anonymous());
        let planned = engine.plan(&session, Statement::Sql("SELECT 1".into()), None).await.unwrap();
        let id = planned.id().to_string();
        let results = engine.run(&session, planned, Part::Whole, None, |batches| {
            Encoded::in_turn(batches.map(|_| -> Result<Never, Error> { panic!("as a bug would") }))
        });
        let outcomes: Vec<_> = results.unwrap().collect().await;
        assert_eq!(outcomes.len(), 1);
        let error = outcomes.into_iter().next().unwrap().err().unwrap();
        assert_eq!(error.kind(), ErrorKind::Internal);
        assert!(error.to_string().contains(&id), "{error}");
        assert_eq!(Wire::new(&server).await.rows("SELECT 1").await, ["1"]);
        server
    });
}
