//! Bounds on what one client can make the server hold or do.

use std::time::Duration;

use arrow_flight::FlightData;
use arrow_flight::sql::{
    ActionCreatePreparedStatementRequest, ActionCreatePreparedStatementResult, CommandPreparedStatementQuery,
};
use futures::{StreamExt, TryStreamExt, stream};
use tonic::Code;
use updraft_engine::PrincipalConfig;

use crate::client::{Wire, descriptor, ticket};
use crate::{as_it_is, nothing_runs, with_server};

/// Resident memory of this process, which is the server's too.
fn resident_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: u64 = status.split(' ').nth(1).unwrap().parse().unwrap();
    pages * 4096
}

#[test]
fn a_slow_reader_makes_its_query_wait() {
    with_server(
        |config| config.engine.stream_buffer = "1MiB".parse().unwrap(),
        |server| async {
            let mut wire = Wire::new(&server).await;
            // 4 GB if it were made at once.
            let sql = "SELECT value, repeat('x', 1000) AS text FROM generate_series(1, 4000000)";
            let info = wire.plan(sql).await.unwrap();
            let mut results = wire.open(ticket(&info)).await.unwrap();
            results.next().await.unwrap().unwrap();
            tokio::time::sleep(Duration::from_millis(500)).await;
            let before = resident_bytes();
            tokio::time::sleep(Duration::from_secs(1)).await;
            let grown = resident_bytes().saturating_sub(before);
            // Other tests run in this process meanwhile; unbounded, it would be several hundred MB a second.
            assert!(grown < 200 << 20, "{grown} bytes more while nobody reads");
            assert_eq!(server.running.engine().running(), 1);
            // It goes on when the client does.
            let some: Vec<FlightData> = results.by_ref().take(20).try_collect().await.unwrap();
            assert_eq!(some.len(), 20);
            drop(results);
            nothing_runs(&server).await;
            server
        },
    );
}

#[test]
fn a_client_that_stops_reading_loses_its_query_and_what_waits_for_it() {
    let idle = Duration::from_secs(1);
    let patient = PrincipalConfig { idle_stream_timeout: Some(10 * idle), ..PrincipalConfig::default() };
    for own in [None, Some(patient)] {
        with_server(
            |config| {
                config.engine.stream_buffer = "16MiB".parse().unwrap();
                config.engine.idle_stream_timeout = idle;
                config.engine.principals.extend(own.clone().map(|own| ("anonymous".to_owned(), own)));
            },
            |server| async {
                let engine = server.running.engine();
                // More than may wait for a client; and less, so that the query has ended when its client stops.
                for rows in [4_000_000, 12_000] {
                    let mut wire = Wire::new(&server).await;
                    let sql = format!("SELECT value, repeat('x', 1000) AS text FROM generate_series(1, {rows})");
                    let info = wire.plan(&sql).await.unwrap();
                    let mut results = wire.open(ticket(&info)).await.unwrap();
                    results.next().await.unwrap().unwrap();
                    if own.is_some() {
                        tokio::time::sleep(3 * idle).await;
                        assert!(rows == 12_000 || engine.running() == 1, "this client may pause for longer");
                        results.next().await.unwrap().expect("it goes on");
                        continue;
                    }
                    // Its query was ended after one, and its call is cut after two.
                    tokio::time::sleep(idle * 3 / 2).await;
                    assert_eq!(engine.running(), 0);
                    // What HTTP/2 had taken still comes (a window and a message); nothing that waited for it does.
                    let mut bytes = 0;
                    let status = loop {
                        match results.next().await.expect("it does not end well") {
                            Ok(message) => bytes += message.data_body.len(),
                            Err(status) => break status,
                        }
                    };
                    assert_eq!(status.code(), Code::DeadlineExceeded, "{rows}: {status}");
                    assert!(bytes < 6 << 20, "{rows}: {bytes} bytes came after its end");
                }
                server
            },
        );
    }
}

#[test]
fn an_upload_beyond_its_limit_is_refused() {
    with_server(
        |config| config.flight.upload_limit = "64KiB".parse().unwrap(),
        |server| async {
            let mut wire = Wire::new(&server).await;
            let request = ActionCreatePreparedStatementRequest { query: "SELECT ?".into(), transaction_id: None };
            let created: ActionCreatePreparedStatementResult =
                wire.sql_action("CreatePreparedStatement", &request).await.unwrap();
            let command =
                CommandPreparedStatementQuery { prepared_statement_handle: created.prepared_statement_handle };
            let big = FlightData {
                flight_descriptor: Some(descriptor(&command)),
                data_header: vec![0; 128 << 10].into(),
                ..Default::default()
            };
            let status = wire.put(stream::iter([big])).await.unwrap_err();
            assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
            let nonsense = FlightData {
                flight_descriptor: Some(descriptor(&command)),
                data_header: vec![7; 100].into(),
                ..Default::default()
            };
            let status = wire.put(stream::iter([nonsense])).await.unwrap_err();
            assert_eq!(status.code(), Code::InvalidArgument, "{status}");
            let status = wire.put(stream::iter([])).await.unwrap_err();
            assert_eq!(status.code(), Code::InvalidArgument, "{status}");
            let status = wire.put(stream::iter([FlightData::default()])).await.unwrap_err();
            assert_eq!(status.code(), Code::InvalidArgument, "{status}");
            assert_eq!(wire.rows("SELECT 1").await, ["1"]);
            server
        },
    );
}

#[test]
fn many_clients_at_once_all_get_their_rows() {
    with_server(as_it_is, |server| async {
        let mut clients = Vec::new();
        for client in 0..20 {
            let mut wire = Wire::new(&server).await;
            clients.push(tokio::spawn(async move {
                for statement in 0..10 {
                    let value = client * 100 + statement;
                    assert_eq!(wire.rows(&format!("SELECT {value}, count(*) FROM t")).await, [format!("{value} 3")]);
                }
            }));
        }
        for client in clients {
            client.await.unwrap();
        }
        server
    });
}
