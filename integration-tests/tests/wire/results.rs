//! How results are encoded on request: types, compression, several endpoints.

use std::collections::BTreeSet;

use arrow_flight::FlightInfo;
use arrow_ipc::{BodyCompressionMethod, CompressionType, root_as_message};
use datafusion::arrow::datatypes::DataType;
use expect_test::expect;
use futures::TryStreamExt;
use tonic::Code;

use crate::client::{Wire, announced, ticket, told};
use crate::{as_it_is, with_server};

#[test]
fn clients_get_the_types_they_ask_for() {
    with_server(as_it_is, |server| async {
        let wire = Wire::new(&server).await;
        let sql = "SELECT kind, word, price, arrow_cast(1, 'UInt8') AS u8, arrow_cast(1, 'UInt64') AS u64, \
            arrow_cast('x', 'LargeUtf8') AS large, arrow_cast(1.5, 'Float16') AS half, interval '1 month' AS i FROM dated";
        let mut lines = Vec::new();
        for types in ["compatible", "bi", "native", "views,dictionaries"] {
            let fetched = wire.with("x-updraft-wire-types", types).query(sql).await.unwrap();
            let shown = fetched.schema.fields().iter().map(|field| field.data_type().to_string());
            lines.push(format!("{types}: {}", shown.collect::<Vec<_>>().join(", ")));
            if types != "bi" {
                assert_eq!(fetched.rows(), ["x v 1.50 1 1 x 1.5 1 mons", "y w NULL 1 1 x 1.5 1 mons"], "{types}");
            }
        }
        expect![[r#"
            compatible: Utf8, Utf8, Decimal128(12, 2), UInt8, UInt64, Utf8, Float32, Interval(MonthDayNano)
            bi: Utf8, Utf8, Decimal128(12, 2), Int16, Decimal128(20, 0), Utf8, Float32, Utf8
            native: Dictionary(Int32, Utf8), Utf8View, Decimal128(12, 2), UInt8, UInt64, LargeUtf8, Float16, Interval(MonthDayNano)
            views,dictionaries: Dictionary(Int32, Utf8), Utf8View, Decimal128(12, 2), UInt8, UInt64, Utf8, Float32, Interval(MonthDayNano)"#]].assert_eq(&lines.join("\n"));
        // What a header changes, it changes for its own call.
        let (mut plain, mut native) = (wire.clone(), wire.with("x-updraft-wire-types", "native"));
        let info = native.plan("SELECT word FROM dated").await.unwrap();
        assert_eq!(announced(&info).field(0).data_type(), &DataType::Utf8View);
        // The ticket keeps the types that were announced, whoever redeems it.
        assert_eq!(plain.redeem(&info).await.unwrap().schema, announced(&info));
        assert_eq!(plain.query("SELECT word FROM dated").await.unwrap().schema.field(0).data_type(), &DataType::Utf8);
        let status = wire.with("x-updraft-wire-types", "none").query("SELECT 1").await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{status}");
        let status = wire.with("x-updraft-no-such-thing", "1").query("SELECT 1").await.unwrap_err();
        assert!(told(&status).starts_with("InvalidArgument: setting \"no_such_thing\" cannot be set"), "{status}");
        server
    });
}

#[test]
fn bodies_are_compressed_on_request() {
    with_server(as_it_is, |server| async {
        let wire = Wire::new(&server).await;
        let sql = "SELECT value, 'the same text in each row' AS text FROM generate_series(1, 20000)";
        let mut sizes = Vec::new();
        for (asked, codec) in
            [("none", None), ("lz4", Some(CompressionType::LZ4_FRAME)), ("zstd", Some(CompressionType::ZSTD))]
        {
            let mut wire = wire.with("x-updraft-wire-compression", asked);
            let info = wire.plan(sql).await.unwrap();
            let messages: Vec<_> = wire.open(ticket(&info)).await.unwrap().try_collect().await.unwrap();
            for message in &messages[1..] {
                let header = root_as_message(&message.data_header).unwrap();
                let compression = header.header_as_record_batch().unwrap().compression();
                assert_eq!(compression.map(|compression| compression.codec()), codec, "{asked}");
                assert!(compression.is_none_or(|compression| compression.method() == BodyCompressionMethod::BUFFER));
            }
            sizes.push(messages.iter().map(|message| message.data_body.len()).sum::<usize>());
            let rows = wire.rows(&format!("SELECT sum(value), min(text) FROM ({sql})")).await;
            assert_eq!(rows, ["200010000 the same text in each row"]);
        }
        assert!(sizes[1] < sizes[0] / 2 && sizes[2] < sizes[0] / 2, "{sizes:?}");
        server
    });
}

async fn endpoints(wire: &mut Wire, sql: &str, asked: &str) -> FlightInfo {
    wire.with("x-updraft-endpoints", asked).plan(sql).await.unwrap()
}

#[test]
fn the_parts_of_a_result_are_the_whole() {
    with_server(
        |config| config.engine.target_partitions = "4".parse().unwrap(),
        |server| async {
            let mut wire = Wire::new(&server).await;
            let sql = "SELECT value % 1000 AS k, count(*) AS n FROM generate_series(1, 50000) GROUP BY value % 1000";
            let whole = endpoints(&mut wire, sql, "1").await;
            assert_eq!((whole.endpoint.len(), whole.ordered), (1, true));
            let mut expected = wire.redeem(&whole).await.unwrap().rows();
            expected.sort();
            let parts = endpoints(&mut wire, sql, "4").await;
            assert_eq!((parts.endpoint.len(), parts.ordered), (4, false));
            let tickets: Vec<_> = parts.endpoint.iter().map(|endpoint| endpoint.ticket.clone().unwrap()).collect();
            let fetches = tickets.iter().cloned().map(|ticket| {
                let mut wire = wire.clone();
                async move { wire.fetch(ticket).await.unwrap() }
            });
            let fetched = futures::future::join_all(fetches).await;
            let mut rows = Vec::new();
            for part in &fetched {
                assert_eq!(part.schema, announced(&parts));
                rows.extend(part.rows());
            }
            rows.sort();
            assert_eq!(rows, expected);
            // A part is fetched once.
            let status = wire.fetch(tickets[0].clone()).await.unwrap_err();
            assert_eq!(status.code(), Code::FailedPrecondition, "{status}");
            // What has one partition has one endpoint, and so has what is in order.
            assert_eq!(endpoints(&mut wire, "SELECT 1", "4").await.endpoint.len(), 1);
            assert_eq!(endpoints(&mut wire, &format!("{sql} ORDER BY 1"), "4").await.endpoint.len(), 1);
            let status = wire.with("x-updraft-endpoints", "65").plan("SELECT 1").await.unwrap_err();
            assert_eq!(status.code(), Code::InvalidArgument);
            server
        },
    );
}

#[test]
fn parts_nobody_fetches_are_no_running_query() {
    with_server(
        |config| config.engine.target_partitions = "4".parse().unwrap(),
        |server| async {
            let mut wire = Wire::new(&server).await;
            let sql = "SELECT value % 10 AS k, count(*) FROM generate_series(1, 1000) GROUP BY 1";
            for _ in 0..3 {
                let info = endpoints(&mut wire, sql, "4").await;
                assert!(info.endpoint.len() > 1);
            }
            assert_eq!(server.running.engine().running(), 0);
            assert_eq!(server.running.engine().memory_reserved(), 0);
            server
        },
    );
}

#[test]
fn results_of_every_size_come_whole_and_in_order() {
    with_server(as_it_is, |server| async {
        let mut wire = Wire::new(&server).await;
        for rows in [0_u64, 1, 8191, 8192, 8193, 300_000] {
            let sql = format!("SELECT value FROM generate_series(1, {rows}) ORDER BY value");
            // What is compressed is encoded by several tasks.
            for compression in ["none", "zstd"] {
                let fetched = wire.with("x-updraft-wire-compression", compression).query(&sql).await.unwrap();
                let values = fetched.rows();
                assert_eq!(values.len() as u64, rows);
                assert!(values.iter().zip(1_u64..).all(|(value, n)| *value == n.to_string()), "{rows} {compression}");
            }
        }
        // Wide rows: every column once.
        let columns: Vec<_> = (0..1000).map(|n| format!("{n} AS c{n}")).collect();
        let fetched = wire.query(&format!("SELECT {}", columns.join(", "))).await.unwrap();
        let names: BTreeSet<_> = fetched.schema.fields().iter().map(|field| field.name().clone()).collect();
        assert_eq!((names.len(), fetched.batches[0].num_rows()), (1000, 1));
        // A row larger than a message aims to be.
        let fetched = wire.query("SELECT repeat('x', 9000000) AS big FROM t").await.unwrap();
        assert_eq!(fetched.batches.iter().map(|batch| batch.num_rows()).sum::<usize>(), 3);
        server
    });
}
