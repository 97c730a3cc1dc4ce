//! Bytes that no client would send: nothing may panic, abort or hang. `UPDRAFT_FUZZ_SECONDS=60` looks longer.
//!
//! The same functions as the targets in `integration-tests/fuzz`, on stable Rust.

use std::time::Duration;

use arbitrary::{Arbitrary, Unstructured};
use arrow_flight::encode::FlightDataEncoderBuilder;
use arrow_flight::sql::{Any, CommandPreparedStatementQuery, ProstMessageExt, TicketStatementQuery};
use arrow_flight::{Action, FlightData, FlightDescriptor, Ticket};
use datafusion::arrow::datatypes::DataType;
use futures::{StreamExt, stream};
use prost::Message;
use tonic::Code;
use updraft_auth::{Sealer, parse_authorization};
use updraft_flight::{UploadLimits, open_for_fuzzing, read_upload};

use crate::client::{Wire, ticket};
use crate::support::data::table;
use crate::{as_it_is, with_server};

fn budget() -> Duration {
    let seconds = std::env::var("UPDRAFT_FUZZ_SECONDS").ok().and_then(|text| text.parse().ok());
    Duration::from_secs_f64(seconds.unwrap_or(2.0))
}

/// Good bytes with some of them changed, or none good at all.
fn spoiled(u: &mut Unstructured<'_>, good: &[u8]) -> arbitrary::Result<Vec<u8>> {
    let mut bytes = good.to_vec();
    match u.int_in_range(0..=3)? {
        0 => return Vec::<u8>::arbitrary(u),
        1 => bytes.truncate(u.int_in_range(0..=good.len())?),
        _ if good.is_empty() => return Vec::<u8>::arbitrary(u),
        _ => {
            for _ in 0..u.int_in_range(1..=8)? {
                let at = u.int_in_range(0..=bytes.len().saturating_sub(1))?;
                bytes[at] = u8::arbitrary(u)?;
            }
        }
    }
    Ok(bytes)
}

#[test]
fn tickets_and_headers_of_any_bytes_are_refused_in_order() {
    let sealer = Sealer::new(&[7; 32]);
    let good = sealer.seal("ticket", b"\x0a\x01x");
    arbtest::arbtest(|u| {
        let bytes = spoiled(u, &good)?;
        // Whoever has no key makes no ticket.
        assert!(!open_for_fuzzing(&sealer, &bytes) || bytes == good);
        let header = spoiled(u, b"Basic YW5uOnNlY3JldA==")?;
        let _ = parse_authorization(&header);
        Ok(())
    })
    .budget(budget());
}

/// What a client uploads to bind three rows.
fn upload() -> Vec<FlightData> {
    let dictionary = DataType::Dictionary(Box::new(DataType::Int32), Box::new(DataType::Utf8));
    let batch = table(&[
        ("a", DataType::Int64, "1 - 3"),
        ("b", DataType::Utf8, "x '' -"),
        ("c", dictionary, "k l k"),
        ("d", DataType::Utf8View, "a_text_that_does_not_fit_in_a_view y -"),
        ("e", DataType::Decimal128(10, 2), "1.25 2 3"),
    ]);
    let encoder = FlightDataEncoderBuilder::new()
        .with_dictionary_handling(arrow_flight::encode::DictionaryHandling::Resend)
        .build(stream::iter([Ok(batch)]));
    futures::executor::block_on(encoder.map(Result::unwrap).collect())
}

#[test]
fn uploads_of_any_bytes_are_refused_in_order() {
    let good = upload();
    let limits = UploadLimits { bytes: 1 << 20, ..UploadLimits::default() };
    let read = |messages: Vec<FlightData>| {
        let mut messages = messages.into_iter();
        let first = messages.next().unwrap_or_default();
        futures::executor::block_on(read_upload(first, stream::iter(messages.map(Ok)), &limits, |_| Ok(())))
    };
    assert_eq!(read(good.clone()).unwrap().num_rows(), 3);
    arbtest::arbtest(|u| {
        let mut messages = good.clone();
        let at = u.choose_index(messages.len())?;
        if bool::arbitrary(u)? {
            messages[at].data_header = spoiled(u, &good[at].data_header)?.into();
        }
        if bool::arbitrary(u)? {
            messages[at].data_body = spoiled(u, &good[at].data_body)?.into();
        }
        if let Ok(upload) = read(messages) {
            // What was let through can be used.
            for batch in &upload.batches {
                let _ = crate::support::text::rows(std::slice::from_ref(batch));
            }
        }
        Ok(())
    })
    .budget(budget());
}

#[test]
fn calls_of_any_bytes_are_answered() {
    with_server(as_it_is, |server| async {
        let mut wire = Wire::new(&server).await;
        let info = wire.plan("SELECT id FROM t").await.unwrap();
        let command = CommandPreparedStatementQuery { prepared_statement_handle: vec![1; 16].into() };
        let goods = [
            ticket(&info).ticket.to_vec(),
            info.flight_descriptor.clone().unwrap().cmd.to_vec(),
            command.as_any().encode_to_vec(),
            b"SELECT id FROM t WHERE id = 1".to_vec(),
        ];
        let actions = [
            "CreatePreparedStatement",
            "CreatePreparedSubstraitPlan",
            "ClosePreparedStatement",
            "CancelQuery",
            "CancelFlightInfo",
            "RenewFlightEndpoint",
            "SetSessionOptions",
            "GetSessionOptions",
            "CloseSession",
        ];
        let handle = tokio::runtime::Handle::current();
        let mut wire = wire.within(Duration::from_secs(20));
        let fuzzing = tokio::task::spawn_blocking(move || {
            arbtest::arbtest(|u| {
                let good = u.choose(&goods)?;
                let bytes = spoiled(u, good)?;
                let status = handle.block_on(async {
                    match u.int_in_range(0..=4)? {
                        0 => Ok(wire.fetch(Ticket::new(bytes)).await.map(drop)),
                        1 => Ok(wire.describe(FlightDescriptor::new_cmd(bytes)).await.map(drop)),
                        2 => Ok(wire.schema(FlightDescriptor::new_cmd(bytes)).await.map(drop)),
                        3 => {
                            let sealed = TicketStatementQuery { statement_handle: bytes.into() };
                            let any: Any = sealed.as_any();
                            Ok(wire.fetch(Ticket::new(any.encode_to_vec())).await.map(drop))
                        }
                        _ => {
                            let action = Action { r#type: (*u.choose(&actions)?).to_owned(), body: bytes.into() };
                            Ok(wire.action(&action.r#type, action.body).await.map(drop))
                        }
                    }
                })?;
                if let Err(status) = status {
                    let fine = [
                        Code::InvalidArgument,
                        Code::NotFound,
                        Code::Unimplemented,
                        Code::FailedPrecondition,
                        Code::Cancelled,
                    ];
                    assert!(fine.contains(&status.code()), "{status}");
                }
                Ok(())
            })
            .budget(budget());
        });
        fuzzing.await.unwrap();
        assert_eq!(Wire::new(&server).await.rows("SELECT count(*) FROM t").await, ["3"]);
        server
    });
}
