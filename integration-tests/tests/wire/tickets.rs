//! Tickets: forged, expired, another's, renewed, and tables that change between FlightInfo and DoGet.

use std::time::Duration;

use arrow_flight::sql::{
    ActionClosePreparedStatementRequest, ActionCreatePreparedStatementRequest, Any, ProstMessageExt,
    TicketStatementQuery,
};
use arrow_flight::{FlightEndpoint, RenewFlightEndpointRequest, Ticket};
use datafusion::arrow::datatypes::DataType;
use prost::Message;
use tonic::Code;
use updraft_auth::{Token, new_api_token};

use crate::client::{Wire, ticket, told};
use crate::support::data::{parquet, table};
use crate::{Server, as_it_is, with_server};

/// The sealed part of a ticket.
fn sealed(ticket: &Ticket) -> Vec<u8> {
    let message: TicketStatementQuery = Any::decode(ticket.ticket.clone()).unwrap().unpack().unwrap().unwrap();
    message.statement_handle.to_vec()
}

fn sealed_as(bytes: Vec<u8>) -> Ticket {
    Ticket::new(TicketStatementQuery { statement_handle: bytes.into() }.as_any().encode_to_vec())
}

#[test]
fn only_whole_tickets_of_this_server_are_redeemed() {
    with_server(as_it_is, |server| async {
        let mut wire = Wire::new(&server).await;
        let good = ticket(&wire.plan("SELECT id FROM t ORDER BY id").await.unwrap());
        let bytes = sealed(&good);
        for (name, bad) in [
            ("empty", vec![]),
            ("short", bytes[..10].to_vec()),
            ("long", [bytes.clone(), vec![0]].concat()),
            ("changed at its start", [vec![bytes[0] ^ 1], bytes[1..].to_vec()].concat()),
            ("changed at its end", [bytes[..bytes.len() - 1].to_vec(), vec![bytes[bytes.len() - 1] ^ 1]].concat()),
        ] {
            let status = wire.fetch(sealed_as(bad)).await.unwrap_err();
            assert_eq!(status.code(), Code::InvalidArgument, "{name}: {status}");
        }
        // A good one works, and works again.
        for _ in 0..2 {
            assert_eq!(wire.fetch(good.clone()).await.unwrap().rows(), ["1", "2", "3"]);
        }
        // From another connection too: a ticket is no state of a connection.
        assert_eq!(Wire::new(&server).await.fetch(good).await.unwrap().rows().len(), 3);
        assert_eq!(wire.fetch(Ticket::new("")).await.unwrap_err().code(), Code::InvalidArgument);
        server
    });
}

#[test]
fn a_ticket_of_another_server_is_none_of_this() {
    with_server(as_it_is, |server| async {
        let other = Server::start(crate::folder(), |_| {}).await;
        let foreign = ticket(&Wire::new(&other).await.plan("SELECT 1").await.unwrap());
        let status = Wire::new(&server).await.fetch(foreign).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{status}");
        other.running.stop().await.unwrap();
        server
    });
}

#[test]
fn a_ticket_expires_and_can_be_renewed_before() {
    with_server(
        |config| config.engine.ticket_ttl = Duration::from_secs(2),
        |server| async {
            let mut wire = Wire::new(&server).await;
            let info = wire.plan("SELECT 7").await.unwrap();
            assert!(info.endpoint[0].expiration_time.is_some());
            tokio::time::sleep(Duration::from_millis(1100)).await;
            let request = RenewFlightEndpointRequest { endpoint: Some(info.endpoint[0].clone()) };
            let renewed: FlightEndpoint = wire.flight_action("RenewFlightEndpoint", &request).await.unwrap();
            assert!(
                renewed.expiration_time.as_ref().map(|time| time.seconds)
                    > info.endpoint[0].expiration_time.as_ref().map(|time| time.seconds)
            );
            // Seconds are whole: the old one ends at the latest after three.
            tokio::time::sleep(Duration::from_millis(1950)).await;
            let status = wire.redeem(&info).await.unwrap_err();
            assert_eq!(told(&status), "FailedPrecondition: the ticket has expired; run the query again");
            let mut late = info.clone();
            late.endpoint = vec![renewed];
            let outcome = wire.redeem(&late).await;
            // On a slow machine the renewed one may have ended too; then it says so.
            assert!(
                matches!(&outcome, Ok(fetched) if fetched.rows() == ["7"])
                    || outcome.is_err_and(|status| status.code() == Code::FailedPrecondition)
            );
            let request = RenewFlightEndpointRequest { endpoint: Some(info.endpoint[0].clone()) };
            let status = wire.flight_action::<FlightEndpoint>("RenewFlightEndpoint", &request).await.unwrap_err();
            assert_eq!(status.code(), Code::FailedPrecondition);
            let status = wire
                .flight_action::<FlightEndpoint>("RenewFlightEndpoint", &RenewFlightEndpointRequest::default())
                .await
                .unwrap_err();
            assert_eq!(status.code(), Code::InvalidArgument);
            server
        },
    );
}

#[test]
fn tickets_and_handles_are_their_principals_own() {
    let (ann, ann_hash) = new_api_token("ann").unwrap();
    let (bob, bob_hash) = new_api_token("bob").unwrap();
    let users = move |config: &mut updraft_server::Config| {
        for (name, hash) in [("ann", ann_hash), ("bob", bob_hash)] {
            let token = Token { principal: name.to_owned(), hash, expires_at: None };
            config.auth.tokens.insert(name.to_owned(), token);
        }
    };
    with_server(users, |server| async move {
        let nobody = Wire::new(&server).await;
        let mut ann = nobody.with("authorization", &format!("Bearer {ann}"));
        let mut bob = nobody.with("authorization", &format!("Bearer {bob}"));
        assert_eq!(nobody.clone().plan("SELECT 1").await.unwrap_err().code(), Code::Unauthenticated);
        let info = ann.plan("SELECT 1").await.unwrap();
        assert_eq!(bob.redeem(&info).await.unwrap_err().code(), Code::PermissionDenied);
        assert_eq!(ann.redeem(&info).await.unwrap().rows(), ["1"]);
        // Cancelling and renewing need the ticket's principal as well.
        let cancel = arrow_flight::CancelFlightInfoRequest { info: Some(info.clone()) };
        let status =
            bob.flight_action::<arrow_flight::CancelFlightInfoResult>("CancelFlightInfo", &cancel).await.unwrap_err();
        assert_eq!(status.code(), Code::PermissionDenied);
        let renew = RenewFlightEndpointRequest { endpoint: Some(info.endpoint[0].clone()) };
        let status = bob.flight_action::<FlightEndpoint>("RenewFlightEndpoint", &renew).await.unwrap_err();
        assert_eq!(status.code(), Code::PermissionDenied);

        // Another's prepared statement is not there, and closing it does nothing.
        let request = ActionCreatePreparedStatementRequest { query: "SELECT 2".into(), transaction_id: None };
        let created: arrow_flight::sql::ActionCreatePreparedStatementResult =
            ann.sql_action("CreatePreparedStatement", &request).await.unwrap();
        let handle = created.prepared_statement_handle;
        let query = arrow_flight::sql::CommandPreparedStatementQuery { prepared_statement_handle: handle.clone() };
        assert_eq!(bob.info(&query).await.unwrap_err().code(), Code::NotFound);
        let close = ActionClosePreparedStatementRequest { prepared_statement_handle: handle };
        bob.action("ClosePreparedStatement", close.as_any().encode_to_vec()).await.unwrap();
        let info = ann.info(&query).await.unwrap();
        assert_eq!(ann.redeem(&info).await.unwrap().rows(), ["2"]);

        // Nor is a session, although both are on one connection.
        ann.query("SET batch_size = 11").await.unwrap();
        assert!(ann.rows("SHOW batch_size").await[0].starts_with("batch_size 11"));
        assert!(bob.rows("SHOW batch_size").await[0].starts_with("batch_size 8192"));
        server
    });
}

#[test]
fn a_table_that_changes_under_a_ticket_gives_old_rows_or_a_clear_error() {
    with_server(as_it_is, |server| async {
        let mut wire = Wire::new(&server).await;
        let file = server.dir.path().join("t.parquet");
        let info = wire.plan("SELECT id FROM t ORDER BY id").await.unwrap();
        parquet(&file, &table(&[("id", DataType::Int64, "7 8 9 10"), ("name", DataType::Utf8, "x x x x")]));
        old_rows_or_stale(wire.redeem(&info).await, &["1", "2", "3"]);
        assert_eq!(wire.rows("SELECT id FROM t ORDER BY id").await, ["7", "8", "9", "10"]);
        // Other columns, and no file at all.
        let info = wire.plan("SELECT id FROM t WHERE id > 8 ORDER BY id").await.unwrap();
        parquet(&file, &table(&[("other", DataType::Utf8, "x")]));
        old_rows_or_stale(wire.redeem(&info).await, &["9", "10"]);
        let info = wire.plan("SELECT * FROM t").await.unwrap();
        std::fs::remove_file(&file).unwrap();
        old_rows_or_stale(wire.redeem(&info).await, &["x"]);
        let status = wire.plan("SELECT * FROM t").await.unwrap_err();
        assert_eq!(told(&status), "NotFound: table \"t\" does not exist; hint: SHOW TABLES lists those you may read");
        server
    });
}

/// Never a mixture, and never another error.
fn old_rows_or_stale(outcome: Result<crate::client::Fetched, tonic::Status>, old: &[&str]) {
    match outcome {
        Ok(fetched) => assert_eq!(fetched.rows(), old),
        Err(status) => assert_eq!(status.code(), Code::FailedPrecondition, "{status}"),
    }
}

#[test]
fn a_query_that_is_no_longer_kept_is_planned_again_on_the_same_tables() {
    with_server(
        |config| config.engine.planned_max = 1,
        |server| async {
            let mut wire = Wire::new(&server).await;
            let kept_not = wire.plan("SELECT id FROM t ORDER BY id").await.unwrap();
            let changes = wire.plan("SELECT id FROM t ORDER BY id").await.unwrap();
            wire.plan("SELECT 1").await.unwrap();
            assert_eq!(wire.redeem(&kept_not).await.unwrap().rows(), ["1", "2", "3"]);
            let file = server.dir.path().join("t.parquet");
            parquet(&file, &table(&[("id", DataType::Int64, "7"), ("name", DataType::Utf8, "x")]));
            let status = wire.redeem(&changes).await.unwrap_err();
            assert_eq!(status.code(), Code::FailedPrecondition, "{status}");
            server
        },
    );
}
