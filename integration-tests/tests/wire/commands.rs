//! Each command of Flight SQL: the schema it announces, by FlightInfo and by GetSchema, is the one its stream has.

use arrow_flight::sql::{
    ActionBeginSavepointRequest, ActionBeginTransactionRequest, ActionEndTransactionRequest, CommandGetCatalogs,
    CommandGetCrossReference, CommandGetDbSchemas, CommandGetExportedKeys, CommandGetImportedKeys,
    CommandGetPrimaryKeys, CommandGetSqlInfo, CommandGetTableTypes, CommandGetTables, CommandGetXdbcTypeInfo,
    CommandStatementIngest, CommandStatementQuery, CommandStatementUpdate, ProstMessageExt,
};
use arrow_flight::{Action, Criteria, Empty, FlightData, FlightDescriptor, IpcMessage, Ticket};
use datafusion::arrow::datatypes::Schema;
use expect_test::expect;
use futures::{TryStreamExt, stream};
use prost::Message;

use crate::client::{Wire, announced, descriptor, statement, told};
use crate::{as_it_is, with_server};

/// Announces, fetches, compares; the schema and rows as text.
async fn check(wire: &mut Wire, command: &impl ProstMessageExt) -> (String, Vec<String>) {
    let info = wire.info(command).await.unwrap();
    let fetched = wire.redeem(&info).await.unwrap();
    assert_eq!(announced(&info), fetched.schema);
    assert_eq!(wire.schema(descriptor(command)).await.unwrap(), fetched.schema);
    assert_eq!(info.flight_descriptor, Some(descriptor(command)), "clients match answers by their descriptor");
    for batch in &fetched.batches {
        assert_eq!(batch.schema_ref().as_ref(), &fetched.schema);
    }
    let shown = |field: &std::sync::Arc<datafusion::arrow::datatypes::Field>| {
        format!("{}: {}{}", field.name(), field.data_type(), if field.is_nullable() { "?" } else { "" })
    };
    let schema: Vec<String> = fetched.schema.fields().iter().map(shown).collect();
    if schema.is_empty() {
        return ("nothing".to_owned(), fetched.rows());
    }
    (schema.join(", "), fetched.rows())
}

#[test]
fn the_announced_schema_is_the_schema_of_the_stream() {
    with_server(as_it_is, |server| async {
        let mut wire = Wire::new(&server).await;
        let mut lines = Vec::new();
        for sql in [
            "SELECT * FROM t",
            "SELECT * FROM v",
            "SELECT * FROM dated",
            "SELECT price * 2, day + interval '1 day', kind, word FROM dated",
            "SELECT sum(price), avg(price), count(*) FROM dated",
            "SELECT 1 AS one, NULL AS nothing, 'x' AS text, true AS b, now() AS at",
            "SELECT [1, 2] AS list, struct(1 AS a) AS s, MAP {'k': 1} AS m, x'00' AS bytes",
            "SELECT arrow_cast(1, 'UInt64') AS u, arrow_cast(1.5, 'Float16') AS h, arrow_cast('x', 'LargeUtf8') AS large",
            "SELECT interval '1 month' AS i, arrow_cast(1, 'Duration(s)') AS d",
            "SELECT id FROM t WHERE false",
            "EXPLAIN SELECT 1",
            "SHOW TABLES",
            "SHOW ALL",
            "DESCRIBE t",
            "SELECT * FROM information_schema.columns",
            "SELECT row_number() OVER () AS n, id FROM t UNION ALL SELECT 0, 0",
            "SET batch_size = 100",
        ] {
            let (schema, _) = check(&mut wire, &statement(sql)).await;
            lines.push(format!("{sql}\n    {schema}"));
        }
        expect![[r#"
            SELECT * FROM t
                id: Int64?, name: Utf8?
            SELECT * FROM v
                twice: Int64?, name: Utf8?
            SELECT * FROM dated
                price: Decimal128(12, 2)?, day: Date32?, kind: Utf8?, word: Utf8?
            SELECT price * 2, day + interval '1 day', kind, word FROM dated
                dated.price * Int64(2): Decimal128(33, 2)?, dated.day + IntervalMonthDayNano("IntervalMonthDayNano { months: 0, days: 1, nanoseconds: 0 }"): Date32?, kind: Utf8?, word: Utf8?
            SELECT sum(price), avg(price), count(*) FROM dated
                sum(dated.price): Decimal128(22, 2)?, avg(dated.price): Decimal128(16, 6)?, count(*): Int64
            SELECT 1 AS one, NULL AS nothing, 'x' AS text, true AS b, now() AS at
                one: Int64, nothing: Null?, text: Utf8, b: Boolean, at: Timestamp(ns, "UTC")
            SELECT [1, 2] AS list, struct(1 AS a) AS s, MAP {'k': 1} AS m, x'00' AS bytes
                list: List(Int64), s: Struct("a": Int64), m: Map("entries": non-null Struct("key": non-null Utf8, "value": Int64), unsorted), bytes: Binary
            SELECT arrow_cast(1, 'UInt64') AS u, arrow_cast(1.5, 'Float16') AS h, arrow_cast('x', 'LargeUtf8') AS large
                u: UInt64, h: Float32, large: Utf8
            SELECT interval '1 month' AS i, arrow_cast(1, 'Duration(s)') AS d
                i: Interval(MonthDayNano), d: Duration(s)
            SELECT id FROM t WHERE false
                id: Int64?
            EXPLAIN SELECT 1
                plan_type: Utf8, plan: Utf8
            SHOW TABLES
                table_catalog: Utf8, table_schema: Utf8, table_name: Utf8, table_type: Utf8
            SHOW ALL
                name: Utf8, value: Utf8, description: Utf8
            DESCRIBE t
                column_name: Utf8, data_type: Utf8, is_nullable: Utf8
            SELECT * FROM information_schema.columns
                table_catalog: Utf8, table_schema: Utf8, table_name: Utf8, column_name: Utf8, ordinal_position: UInt64, column_default: Utf8?, is_nullable: Utf8, data_type: Utf8, character_maximum_length: UInt64?, character_octet_length: UInt64?, numeric_precision: UInt64?, numeric_precision_radix: UInt64?, numeric_scale: UInt64?, datetime_precision: UInt64?, interval_type: Utf8?
            SELECT row_number() OVER () AS n, id FROM t UNION ALL SELECT 0, 0
                n: Decimal128(20, 0), id: Int64?
            SET batch_size = 100
                nothing"#]].assert_eq(&lines.join("\n"));
        server
    });
}

#[test]
fn catalog_commands_answer_in_the_schemas_of_the_protocol() {
    with_server(as_it_is, |server| async {
        let mut wire = Wire::new(&server).await;
        let wire = &mut wire;
        let mut lines = Vec::new();
        let mut add = |name: &str, (schema, rows): (String, Vec<String>)| {
            lines.push(format!("{name}\n    {schema}"));
            lines.extend(rows.into_iter().map(|row| format!("    {row}")));
        };
        add("catalogs", check(wire, &CommandGetCatalogs {}).await);
        add("schemas", check(wire, &CommandGetDbSchemas::default()).await);
        add(
            "schemas %b%",
            check(wire, &CommandGetDbSchemas { db_schema_filter_pattern: Some("%b%".into()), ..Default::default() })
                .await,
        );
        add(
            "schemas of another catalog",
            check(wire, &CommandGetDbSchemas { catalog: Some("x".into()), ..Default::default() }).await,
        );
        add("tables", check(wire, &CommandGetTables::default()).await);
        let views = CommandGetTables { table_types: vec!["VIEW".into()], ..Default::default() };
        add("tables: VIEW", check(wire, &views).await);
        let named = CommandGetTables { table_name_filter_pattern: Some("d_ted".into()), ..Default::default() };
        add("tables: d_ted", check(wire, &named).await);
        add("table types", check(wire, &CommandGetTableTypes {}).await);
        let table = "t".to_owned();
        add("primary keys", check(wire, &CommandGetPrimaryKeys { table: table.clone(), ..Default::default() }).await);
        add("exported keys", check(wire, &CommandGetExportedKeys { table: table.clone(), ..Default::default() }).await);
        add("imported keys", check(wire, &CommandGetImportedKeys { table: table.clone(), ..Default::default() }).await);
        let both = CommandGetCrossReference { pk_table: table.clone(), fk_table: table, ..Default::default() };
        add("cross reference", check(wire, &both).await);
        add("sql info 0", check(wire, &CommandGetSqlInfo { info: vec![0] }).await);
        add("xdbc type info 12", check(wire, &CommandGetXdbcTypeInfo { data_type: Some(12) }).await);
        expect![[r#"
            catalogs
                catalog_name: Utf8
                updraft
            schemas
                catalog_name: Utf8?, db_schema_name: Utf8
                updraft public
            schemas %b%
                catalog_name: Utf8?, db_schema_name: Utf8
                updraft public
            schemas of another catalog
                catalog_name: Utf8?, db_schema_name: Utf8
            tables
                catalog_name: Utf8?, db_schema_name: Utf8?, table_name: Utf8, table_type: Utf8
                updraft public dated TABLE
                updraft public t TABLE
                updraft public v VIEW
            tables: VIEW
                catalog_name: Utf8?, db_schema_name: Utf8?, table_name: Utf8, table_type: Utf8
                updraft public v VIEW
            tables: d_ted
                catalog_name: Utf8?, db_schema_name: Utf8?, table_name: Utf8, table_type: Utf8
                updraft public dated TABLE
            table types
                table_type: Utf8
                TABLE
                VIEW
            primary keys
                catalog_name: Utf8?, db_schema_name: Utf8?, table_name: Utf8, column_name: Utf8, key_sequence: Int32, key_name: Utf8?
            exported keys
                pk_catalog_name: Utf8?, pk_db_schema_name: Utf8?, pk_table_name: Utf8, pk_column_name: Utf8, fk_catalog_name: Utf8?, fk_db_schema_name: Utf8?, fk_table_name: Utf8, fk_column_name: Utf8, key_sequence: Int32, fk_key_name: Utf8?, pk_key_name: Utf8?, update_rule: UInt8, delete_rule: UInt8
            imported keys
                pk_catalog_name: Utf8?, pk_db_schema_name: Utf8?, pk_table_name: Utf8, pk_column_name: Utf8, fk_catalog_name: Utf8?, fk_db_schema_name: Utf8?, fk_table_name: Utf8, fk_column_name: Utf8, key_sequence: Int32, fk_key_name: Utf8?, pk_key_name: Utf8?, update_rule: UInt8, delete_rule: UInt8
            cross reference
                pk_catalog_name: Utf8?, pk_db_schema_name: Utf8?, pk_table_name: Utf8, pk_column_name: Utf8, fk_catalog_name: Utf8?, fk_db_schema_name: Utf8?, fk_table_name: Utf8, fk_column_name: Utf8, key_sequence: Int32, fk_key_name: Utf8?, pk_key_name: Utf8?, update_rule: UInt8, delete_rule: UInt8
            sql info 0
                info_name: UInt32, value: Union(Dense, 0: ("string_value": non-null Utf8), 1: ("bool_value": non-null Boolean), 2: ("bigint_value": non-null Int64), 3: ("int32_bitmask": non-null Int32), 4: ("string_list": List(Utf8)), 5: ("int32_to_int32_list_map": Map("entries": non-null Struct("keys": non-null Int32, "values": List(Int32)), unsorted)))
                0 {string_value=Updraft}
            xdbc type info 12
                type_name: Utf8, data_type: Int32, column_size: Int32?, literal_prefix: Utf8?, literal_suffix: Utf8?, create_params: List(non-null Utf8)?, nullable: Int32, case_sensitive: Boolean, searchable: Int32, unsigned_attribute: Boolean?, fixed_prec_scale: Boolean, auto_increment: Boolean?, local_type_name: Utf8?, minimum_scale: Int32?, maximum_scale: Int32?, sql_data_type: Int32, datetime_subcode: Int32?, num_prec_radix: Int32?, interval_precision: Int32?
                VARCHAR 12 2147483647 ' ' NULL 1 true 3 NULL false NULL VARCHAR NULL NULL 12 NULL NULL NULL"#]].assert_eq(&lines.join("\n"));

        let (_, all) = check(wire, &CommandGetSqlInfo { info: vec![] }).await;
        assert!(all.len() > 70, "{} infos", all.len());
        let (_, types) = check(wire, &CommandGetXdbcTypeInfo { data_type: None }).await;
        assert!(types.len() > 10, "{} types", types.len());
        server
    });
}

#[test]
fn table_schemas_are_those_of_their_queries() {
    with_server(as_it_is, |server| async {
        let mut wire = Wire::new(&server).await;
        let command = CommandGetTables { include_schema: true, ..Default::default() };
        let info = wire.info(&command).await.unwrap();
        let fetched = wire.redeem(&info).await.unwrap();
        let mut seen = 0;
        for batch in &fetched.batches {
            use datafusion::arrow::array::AsArray;
            let names = batch.column_by_name("table_name").unwrap().as_string::<i32>();
            let schemas = batch.column_by_name("table_schema").unwrap().as_binary::<i32>();
            for (name, bytes) in names.iter().zip(schemas) {
                let listed = Schema::try_from(IpcMessage(bytes::Bytes::copy_from_slice(bytes.unwrap()))).unwrap();
                let queried = wire.query(&format!("SELECT * FROM \"{}\"", name.unwrap())).await.unwrap().schema;
                // The list says more of each column than a result does, but not something else.
                for (listed, queried) in listed.fields().iter().zip(queried.fields()) {
                    assert_eq!(listed.data_type(), queried.data_type(), "{name:?}");
                    assert_eq!(
                        (listed.name(), listed.is_nullable()),
                        (queried.name(), queried.is_nullable()),
                        "{name:?}"
                    );
                    assert_eq!(listed.metadata().get("ARROW:FLIGHT:SQL:TABLE_NAME").map(String::as_str), name);
                    assert_eq!(
                        listed.metadata().get("ARROW:FLIGHT:SQL:DB_SCHEMA_NAME").map(String::as_str),
                        Some("public")
                    );
                    for key in [
                        "CATALOG_NAME",
                        "TYPE_NAME",
                        "IS_READ_ONLY",
                        "IS_SEARCHABLE",
                        "IS_AUTO_INCREMENT",
                        "IS_CASE_SENSITIVE",
                    ] {
                        assert!(listed.metadata().contains_key(&format!("ARROW:FLIGHT:SQL:{key}")), "{name:?} {key}");
                    }
                }
                seen += 1;
            }
        }
        assert_eq!(seen, 3, "t, dated and v");
        server
    });
}

#[test]
fn plain_sql_and_paths_are_commands_too() {
    with_server(as_it_is, |server| async {
        let mut wire = Wire::new(&server).await;
        let info = wire.describe(FlightDescriptor::new_cmd("SELECT id FROM t ORDER BY id")).await.unwrap();
        assert_eq!(wire.redeem(&info).await.unwrap().rows(), ["1", "2", "3"]);
        let fetched = wire.fetch(Ticket::new("SELECT name FROM t ORDER BY id")).await.unwrap();
        assert_eq!(fetched.rows(), ["a", "NULL", "c"]);
        for path in [vec!["t"], vec!["public", "t"], vec!["updraft", "public", "t"]] {
            let descriptor = FlightDescriptor::new_path(path.iter().map(|part| (*part).to_owned()).collect());
            let info = wire.describe(descriptor.clone()).await.unwrap();
            let fetched = wire.redeem(&info).await.unwrap();
            assert_eq!(fetched.batches[0].num_rows(), 3, "{path:?}");
            assert_eq!(wire.schema(descriptor).await.unwrap(), fetched.schema);
        }
        // A command as a ticket, without FlightInfo, as older clients do it.
        let ticket = Ticket::new(CommandGetCatalogs {}.as_any().encode_to_vec());
        assert_eq!(wire.fetch(ticket).await.unwrap().rows(), ["updraft"]);
        server
    });
}

#[test]
fn flights_and_actions_are_listed() {
    with_server(as_it_is, |server| async {
        let mut wire = Wire::new(&server).await;
        let request = wire.request(Criteria::default());
        let flights: Vec<_> =
            wire.client.list_flights(request).await.unwrap().into_inner().try_collect().await.unwrap();
        let mut names = Vec::new();
        for flight in flights {
            let descriptor = flight.flight_descriptor.clone().unwrap();
            names.push(descriptor.path.join("."));
            let info = wire.describe(descriptor).await.unwrap();
            assert_eq!(announced(&info), announced(&flight));
        }
        assert_eq!(names, ["updraft.public.dated", "updraft.public.t", "updraft.public.v"]);

        let request = wire.request(Empty {});
        let actions: Vec<_> =
            wire.client.list_actions(request).await.unwrap().into_inner().try_collect().await.unwrap();
        for action in &actions {
            // What is listed is answered: an empty request is bad, or fine, but never unknown.
            let outcome = wire.action(&action.r#type, "").await;
            assert!(
                !matches!(&outcome, Err(status) if status.code() == tonic::Code::Unimplemented),
                "{}",
                action.r#type
            );
        }
        let names: Vec<_> = actions.iter().map(|action| action.r#type.as_str()).collect();
        assert!(names.contains(&"CreatePreparedStatement") && names.contains(&"CancelFlightInfo"), "{names:?}");
        assert!(!names.contains(&"BeginTransaction"), "what is not offered is not advertised");
        server
    });
}

#[test]
fn polling_finds_the_query_ready() {
    with_server(as_it_is, |server| async {
        let mut wire = Wire::new(&server).await;
        let request = wire.request(descriptor(&statement("SELECT count(*) FROM t")));
        let poll = wire.client.poll_flight_info(request).await.unwrap().into_inner();
        assert_eq!(poll.progress, Some(1.0));
        assert_eq!(poll.flight_descriptor, None, "there is nothing more to poll for");
        let info = poll.info.unwrap();
        let fetched = wire.redeem(&info).await.unwrap();
        assert_eq!((announced(&info), fetched.rows()), (fetched.schema.clone(), vec!["3".to_owned()]));
        server
    });
}

#[test]
fn polling_finds_each_part_of_a_query_ready() {
    with_server(
        |config| config.engine.target_partitions = "4".parse().unwrap(),
        |server| async {
            let mut wire = Wire::new(&server).await.with("x-updraft-endpoints", "4");
            let sql = "SELECT value % 1000 AS k, count(*) AS n FROM generate_series(1, 50000) GROUP BY 1";
            let request = wire.request(descriptor(&statement(sql)));
            let poll = wire.client.poll_flight_info(request).await.unwrap().into_inner();
            assert_eq!((poll.progress, poll.flight_descriptor), (Some(1.0), None));
            let info = poll.info.unwrap();
            assert_eq!(info.endpoint.len(), 4);
            // One is there before anybody has asked for the others.
            let mut rows = Vec::new();
            for index in [2, 0, 1, 3] {
                let part = wire.fetch(info.endpoint[index].ticket.clone().unwrap()).await.unwrap().rows();
                assert!((1..1000).contains(&part.len()), "{} rows", part.len());
                rows.extend(part);
            }
            rows.sort();
            let mut expected: Vec<_> = (0..1000).map(|k| format!("{k} 50")).collect();
            expected.sort();
            assert_eq!(rows, expected);
            server
        },
    );
}

#[test]
fn what_is_not_offered_says_so_in_one_sentence() {
    with_server(as_it_is, |server| async {
        let mut wire = Wire::new(&server).await;
        let mut lines = Vec::new();
        let mut add = |name: &str, status: tonic::Status| lines.push(format!("{name}\n    {}", told(&status)));
        let upload = |command: Vec<u8>| {
            let data = FlightData { flight_descriptor: Some(FlightDescriptor::new_cmd(command)), ..Default::default() };
            stream::iter([data])
        };
        let update = CommandStatementUpdate { query: "DELETE FROM t".into(), transaction_id: None };
        add("update", wire.put(upload(update.as_any().encode_to_vec())).await.unwrap_err());
        let ingest = CommandStatementIngest { table: "t".into(), ..Default::default() };
        add("ingest", wire.put(upload(ingest.as_any().encode_to_vec())).await.unwrap_err());
        add("put of a query", wire.put(upload(statement("SELECT 1").as_any().encode_to_vec())).await.unwrap_err());
        add("info of an update", wire.info(&update).await.unwrap_err());
        let inside = CommandStatementQuery { query: "SELECT 1".into(), transaction_id: Some("t".into()) };
        add("query in a transaction", wire.info(&inside).await.unwrap_err());
        for (name, body) in [
            ("BeginTransaction", ActionBeginTransactionRequest {}.as_any().encode_to_vec()),
            ("EndTransaction", ActionEndTransactionRequest::default().as_any().encode_to_vec()),
            ("BeginSavepoint", ActionBeginSavepointRequest::default().as_any().encode_to_vec()),
            ("NoSuchAction", vec![]),
        ] {
            add(name, wire.action(name, body).await.unwrap_err());
        }
        let request = wire.request(stream::iter([FlightData::default()]));
        add("exchange", wire.client.do_exchange(request).await.unwrap_err());
        let request = wire.request(Action { r#type: "CancelFlightInfo".into(), body: "\u{7f}".into() });
        add("action with nonsense", wire.client.do_action(request).await.unwrap_err());
        expect![[r#"
            update
                Unimplemented: DELETE FROM is not offered; this server answers statements that read: SELECT, EXPLAIN, SHOW, DESCRIBE, and SET of session settings
            ingest
                Unimplemented: bulk ingestion is not offered: this server answers statements that read
            put of a query
                Unimplemented: uploading to this descriptor is not offered: this server answers statements that read
            info of an update
                InvalidArgument: CommandStatementUpdate goes with DoPut
            query in a transaction
                Unimplemented: transactions are not offered: this server answers statements that read
            BeginTransaction
                Unimplemented: transactions are not offered: this server answers statements that read
            EndTransaction
                Unimplemented: transactions are not offered: this server answers statements that read
            BeginSavepoint
                Unimplemented: transactions are not offered: this server answers statements that read
            NoSuchAction
                Unimplemented: action "NoSuchAction" is not offered: this server answers statements that read
            exchange
                Unimplemented: DoExchange is not offered: this server answers statements that read
            action with nonsense
                InvalidArgument: the request of CancelFlightInfo cannot be decoded: failed to decode Protobuf message: invalid wire type value: 7"#]].assert_eq(&lines.join("\n"));

        // SET returns nothing, so an update may carry it.
        let set = CommandStatementUpdate { query: "SET batch_size = 77".into(), transaction_id: None };
        let (results, _) = wire.put(upload(set.as_any().encode_to_vec())).await.unwrap();
        let result = arrow_flight::sql::DoPutUpdateResult::decode(results[0].app_metadata.clone()).unwrap();
        assert_eq!(result.record_count, 0);
        assert_eq!(wire.rows("SELECT 1").await, ["1"]);
        let shown = wire.rows("SHOW batch_size").await;
        assert!(shown[0].starts_with("batch_size 77"), "{shown:?}");
        server
    });
}
