//! Prepared statements: their parameters in every form, bound rows, and whose they are.

use arrow_flight::encode::FlightDataEncoderBuilder;
use arrow_flight::sql::{
    ActionClosePreparedStatementRequest, ActionCreatePreparedStatementRequest,
    ActionCreatePreparedSubstraitPlanRequest, CommandPreparedStatementQuery, CommandPreparedStatementUpdate,
    CommandStatementSubstraitPlan, DoPutPreparedStatementResult, ProstMessageExt, SubstraitPlan,
};
use arrow_flight::{FlightData, IpcMessage};
use bytes::Bytes;
use datafusion::arrow::array::RecordBatch;
use datafusion::arrow::datatypes::{DataType, Schema};
use datafusion::prelude::{ParquetReadOptions, SessionContext};
use datafusion_substrait::logical_plan::producer::to_substrait_plan;
use expect_test::expect;
use futures::{StreamExt, stream};
use prost::Message;
use tonic::{Code, Status};

use crate::client::{Fetched, Wire, announced, descriptor, told};
use crate::support::data::table;
use crate::{as_it_is, with_server};

/// `ActionCreatePreparedStatementResult`, with the field that arrow-flight lacks.
#[derive(Clone, PartialEq, prost::Message)]
struct Created {
    #[prost(bytes = "bytes", tag = "1")]
    handle: Bytes,
    #[prost(bytes = "bytes", tag = "2")]
    dataset_schema: Bytes,
    #[prost(bytes = "bytes", tag = "3")]
    parameter_schema: Bytes,
    #[prost(bool, optional, tag = "4")]
    is_update: Option<bool>,
}

impl Created {
    fn query(&self) -> CommandPreparedStatementQuery {
        CommandPreparedStatementQuery { prepared_statement_handle: self.handle.clone() }
    }

    fn parameters(&self) -> String {
        let schema = Schema::try_from(IpcMessage(self.parameter_schema.clone())).unwrap();
        let fields = schema.fields().iter().map(|field| format!("{} {}", field.name(), field.data_type()));
        fields.collect::<Vec<_>>().join(", ")
    }
}

async fn create(wire: &mut Wire, sql: &str) -> Result<Created, Status> {
    let request = ActionCreatePreparedStatementRequest { query: sql.into(), transaction_id: None };
    wire.sql_action("CreatePreparedStatement", &request).await
}

async fn messages(command: &impl ProstMessageExt, batch: RecordBatch) -> Vec<FlightData> {
    let encoder = FlightDataEncoderBuilder::new()
        .with_schema(batch.schema())
        .with_flight_descriptor(Some(descriptor(command)))
        .build(stream::iter([Ok(batch)]));
    encoder.map(Result::unwrap).collect().await
}

async fn bind(wire: &mut Wire, prepared: &Created, batch: RecordBatch) -> Result<(), Status> {
    let messages = messages(&prepared.query(), batch).await;
    let (results, _) = wire.put(stream::iter(messages)).await?;
    let result = DoPutPreparedStatementResult::decode(results[0].app_metadata.clone()).unwrap();
    assert_eq!(
        result.prepared_statement_handle,
        Some(prepared.handle.clone()),
        "Java takes an absent one for an empty one"
    );
    Ok(())
}

async fn run(wire: &mut Wire, prepared: &Created) -> Result<Fetched, Status> {
    let info = wire.info(&prepared.query()).await?;
    let fetched = wire.redeem(&info).await?;
    assert_eq!(announced(&info), fetched.schema);
    assert_eq!(wire.schema(descriptor(&prepared.query())).await?, fetched.schema);
    Ok(fetched)
}

async fn close(wire: &mut Wire, prepared: &Created) {
    let request = ActionClosePreparedStatementRequest { prepared_statement_handle: prepared.handle.clone() };
    let answers = wire.action("ClosePreparedStatement", request.as_any().encode_to_vec()).await.unwrap();
    assert!(answers.is_empty());
}

fn int(values: &str) -> RecordBatch {
    table(&[("", DataType::Int64, values)])
}

#[test]
fn parameters_of_every_form_are_described_and_bound() {
    with_server(as_it_is, |server| async {
        let mut wire = Wire::new(&server).await;
        let mut lines = Vec::new();
        for (sql, bound) in [
            ("SELECT name FROM t WHERE id = ?", int("1")),
            ("SELECT name FROM t WHERE id = $1", int("3")),
            ("SELECT name FROM t WHERE id = :id", table(&[("id", DataType::Int64, "3")])),
            ("SELECT name FROM t WHERE id = $id", table(&[("$id", DataType::Int32, "1")])),
            (
                "SELECT id FROM t WHERE id > ? AND id < ?",
                table(&[("", DataType::Int64, "1"), ("", DataType::Int64, "3")]),
            ),
            // `$2` is bound second, wherever it stands.
            (
                "SELECT id FROM t WHERE id > $2 AND id < $1",
                table(&[("", DataType::Int64, "3"), ("", DataType::Int64, "1")]),
            ),
            // By name, in any order; once, for both places.
            (
                "SELECT id FROM t WHERE id > :low AND id < :high",
                table(&[("high", DataType::Int64, "3"), ("low", DataType::Int64, "1")]),
            ),
            ("SELECT id FROM t WHERE id = :x OR id = :x + 1 ORDER BY id", table(&[("x", DataType::Int64, "2")])),
            // Without a type of its own.
            ("SELECT ? AS x", table(&[("", DataType::Utf8, "text")])),
            ("SELECT ? AS x", int("-")),
            // A type that fits after a cast, and NULL.
            ("SELECT id FROM t WHERE id = ?", table(&[("", DataType::Utf8, "2")])),
            ("SELECT count(*) FROM t WHERE id = ?", int("-")),
            ("SELECT name FROM t WHERE name LIKE ?", table(&[("", DataType::LargeUtf8, "a%")])),
            ("SELECT id FROM t ORDER BY id LIMIT ?", int("2")),
            ("SELECT price FROM dated WHERE day = ?", table(&[("", DataType::Date32, "2024-02-29")])),
            ("SELECT kind FROM dated WHERE price = ?", table(&[("", DataType::Decimal128(5, 1), "1.5")])),
        ] {
            let prepared = create(&mut wire, sql).await.unwrap();
            assert_eq!(prepared.is_update, Some(false));
            let before = Schema::try_from(IpcMessage(prepared.dataset_schema.clone())).unwrap();
            assert_eq!(before.fields().len(), 1, "{sql}");
            bind(&mut wire, &prepared, bound).await.unwrap();
            let fetched = run(&mut wire, &prepared).await.unwrap();
            lines.push(format!("{sql}\n    ({}) {}", prepared.parameters(), fetched.rows().join(", ")));
            close(&mut wire, &prepared).await;
        }
        expect![[r#"
            SELECT name FROM t WHERE id = ?
                (1 Int64) a
            SELECT name FROM t WHERE id = $1
                (1 Int64) c
            SELECT name FROM t WHERE id = :id
                (id Int64) c
            SELECT name FROM t WHERE id = $id
                (id Int64) a
            SELECT id FROM t WHERE id > ? AND id < ?
                (1 Int64, 2 Int64) 2
            SELECT id FROM t WHERE id > $2 AND id < $1
                (1 Int64, 2 Int64) 2
            SELECT id FROM t WHERE id > :low AND id < :high
                (low Int64, high Int64) 2
            SELECT id FROM t WHERE id = :x OR id = :x + 1 ORDER BY id
                (x Int64) 2, 3
            SELECT ? AS x
                (1 Null) text
            SELECT ? AS x
                (1 Null) NULL
            SELECT id FROM t WHERE id = ?
                (1 Int64) 2
            SELECT count(*) FROM t WHERE id = ?
                (1 Int64) 0
            SELECT name FROM t WHERE name LIKE ?
                (1 Utf8) a
            SELECT id FROM t ORDER BY id LIMIT ?
                (1 Null) 1, 2
            SELECT price FROM dated WHERE day = ?
                (1 Date32) 1.50
            SELECT kind FROM dated WHERE price = ?
                (1 Decimal128(12, 2)) x"#]]
        .assert_eq(&lines.join("\n"));
        server
    });
}

#[test]
fn what_does_not_fit_is_refused_with_both_sides_named() {
    with_server(as_it_is, |server| async {
        let mut wire = Wire::new(&server).await;
        let mut lines = Vec::new();
        for (sql, bound) in [
            ("SELECT id FROM t WHERE id = ?", Some(table(&[("a", DataType::Int64, "1"), ("b", DataType::Int64, "1")]))),
            ("SELECT id FROM t WHERE id > ? AND id < ?", Some(int("1"))),
            ("SELECT id FROM t WHERE id = ?", Some(table(&[("", DataType::Utf8, "x")]))),
            ("SELECT id FROM t WHERE id = :a AND id = :b", Some(table(&[("a", DataType::Int64, "1")]))),
            ("SELECT id FROM t WHERE id = ?", None),
            ("SELECT id FROM t WHERE id = ? OR id = $1", None),
            ("SELECT id FROM nothing WHERE id = ?", None),
            ("SELECT ? + ?", None),
            ("INSERT INTO t VALUES (?, ?)", None),
            ("SELECT 1; SELECT ?", None),
        ] {
            let outcome = async {
                let prepared = create(&mut wire, sql).await?;
                if let Some(bound) = bound {
                    bind(&mut wire, &prepared, bound).await?;
                }
                run(&mut wire, &prepared).await.map(|fetched| fetched.rows().join(", "))
            };
            let text = outcome.await.unwrap_or_else(|status| told(&status));
            lines.push(format!("{sql}\n    {text}"));
        }
        expect![[r#"
            SELECT id FROM t WHERE id = ?
                InvalidArgument: the statement has 1 parameters ($1), 2 were bound
            SELECT id FROM t WHERE id > ? AND id < ?
                InvalidArgument: the statement has 2 parameters ($1, $2), 1 were bound
            SELECT id FROM t WHERE id = ?
                InvalidArgument: parameter 1 is Utf8 and does not fit Int64: Arrow error: Cast error: Cannot cast string 'x' to value of Int64 type
            SELECT id FROM t WHERE id = :a AND id = :b
                InvalidArgument: the statement has 2 parameters ($a, $b), 1 were bound
            SELECT id FROM t WHERE id = ?
                InvalidArgument: the statement has parameters ($1) and none are bound
            SELECT id FROM t WHERE id = ? OR id = $1
                InvalidArgument: a statement may use one kind of placeholder: ?, or $1, or names ($name and :name)
            SELECT id FROM nothing WHERE id = ?
                NotFound: table "nothing" does not exist; hint: SHOW TABLES lists those you may read
            SELECT ? + ?
                InvalidArgument: the statement has parameters ($1, $2) and none are bound
            INSERT INTO t VALUES (?, ?)
                InvalidArgument: INSERT INTO is not offered; this server answers statements that read: SELECT, EXPLAIN, SHOW, DESCRIBE, and SET of session settings
            SELECT 1; SELECT ?
                InvalidArgument: give one statement at a time"#]].assert_eq(&lines.join("\n"));
        server
    });
}

#[test]
fn several_bound_rows_run_one_after_the_other() {
    with_server(as_it_is, |server| async {
        let mut wire = Wire::new(&server).await;
        let prepared = create(&mut wire, "SELECT id, name FROM t WHERE id >= ? ORDER BY id").await.unwrap();
        bind(&mut wire, &prepared, int("2 3 9")).await.unwrap();
        assert_eq!(run(&mut wire, &prepared).await.unwrap().rows(), ["2 NULL", "3 c", "3 c"]);
        // Bound anew, and run twice with what is bound.
        bind(&mut wire, &prepared, int("3")).await.unwrap();
        for _ in 0..2 {
            assert_eq!(run(&mut wire, &prepared).await.unwrap().rows(), ["3 c"]);
        }
        // The ticket of an earlier binding gives what was bound then.
        let earlier = wire.info(&prepared.query()).await.unwrap();
        bind(&mut wire, &prepared, int("1")).await.unwrap();
        assert_eq!(wire.redeem(&earlier).await.unwrap().rows(), ["3 c"]);
        assert_eq!(run(&mut wire, &prepared).await.unwrap().rows().len(), 3);
        server
    });
}

#[test]
fn a_closed_statement_is_gone_and_closing_it_again_is_fine() {
    with_server(as_it_is, |server| async {
        let mut wire = Wire::new(&server).await;
        let prepared = create(&mut wire, "SELECT 1").await.unwrap();
        assert_eq!(run(&mut wire, &prepared).await.unwrap().rows(), ["1"]);
        close(&mut wire, &prepared).await;
        close(&mut wire, &prepared).await;
        for status in [
            run(&mut wire, &prepared).await.unwrap_err(),
            bind(&mut wire, &prepared, int("1")).await.unwrap_err(),
            wire.schema(descriptor(&prepared.query())).await.unwrap_err(),
        ] {
            assert_eq!(status.code(), Code::NotFound, "{status}");
        }
        server
    });
}

#[test]
fn a_statement_sees_its_tables_as_they_are_now() {
    with_server(as_it_is, |server| async {
        let mut wire = Wire::new(&server).await;
        let prepared = create(&mut wire, "SELECT sum(id) FROM t").await.unwrap();
        assert_eq!(run(&mut wire, &prepared).await.unwrap().rows(), ["6"]);
        let bigger = table(&[("id", DataType::Int64, "10 20 30 40"), ("name", DataType::Utf8, "a b c d")]);
        crate::data::parquet(&server.dir.path().join("t.parquet"), &bigger);
        assert_eq!(run(&mut wire, &prepared).await.unwrap().rows(), ["100"]);
        server
    });
}

#[test]
fn set_as_a_prepared_statement_is_an_update() {
    with_server(as_it_is, |server| async {
        let mut wire = Wire::new(&server).await;
        let prepared = create(&mut wire, "SET batch_size = 55").await.unwrap();
        assert_eq!((prepared.is_update, prepared.dataset_schema.len()), (Some(true), 0), "JDBC decides by the schema");
        let command = CommandPreparedStatementUpdate { prepared_statement_handle: prepared.handle.clone() };
        // JDBC opens the upload with a schema without fields; the Rust client with the descriptor alone.
        let empty = RecordBatch::new_empty(Schema::empty().into());
        wire.put(stream::iter(messages(&command, empty).await)).await.unwrap();
        let alone = FlightData { flight_descriptor: Some(descriptor(&command)), ..Default::default() };
        wire.put(stream::iter([alone])).await.unwrap();
        assert!(wire.rows("SHOW batch_size").await[0].starts_with("batch_size 55"));
        let select = create(&mut wire, "SELECT 1").await.unwrap();
        let command = CommandPreparedStatementUpdate { prepared_statement_handle: select.handle };
        let alone = FlightData { flight_descriptor: Some(descriptor(&command)), ..Default::default() };
        assert_eq!(wire.put(stream::iter([alone])).await.unwrap_err().code(), Code::Unimplemented);
        server
    });
}

#[test]
fn substrait_plans_run_and_can_be_prepared() {
    with_server(as_it_is, |server| async {
        let mut wire = Wire::new(&server).await;
        let context = SessionContext::new();
        let file = server.dir.path().join("t.parquet");
        context.register_parquet("t", file.to_str().unwrap(), ParquetReadOptions::default()).await.unwrap();
        let plan = context.sql("SELECT id + 1 AS next FROM t WHERE id > 1 ORDER BY id").await.unwrap();
        let plan = to_substrait_plan(plan.logical_plan(), &context.state()).unwrap();
        let plan = SubstraitPlan { plan: plan.encode_to_vec().into(), version: String::new() };
        let command = CommandStatementSubstraitPlan { plan: Some(plan.clone()), transaction_id: None };
        let info = wire.info(&command).await.unwrap();
        let fetched = wire.redeem(&info).await.unwrap();
        assert_eq!(announced(&info), fetched.schema);
        assert_eq!(wire.schema(descriptor(&command)).await.unwrap(), fetched.schema);
        assert_eq!(fetched.rows(), ["3", "4"]);

        let request = ActionCreatePreparedSubstraitPlanRequest { plan: Some(plan), transaction_id: None };
        let prepared: Created = wire.sql_action("CreatePreparedSubstraitPlan", &request).await.unwrap();
        assert_eq!(run(&mut wire, &prepared).await.unwrap().rows(), ["3", "4"]);

        let nonsense = SubstraitPlan { plan: Bytes::from_static(b"\xff\xff"), version: String::new() };
        let command = CommandStatementSubstraitPlan { plan: Some(nonsense), transaction_id: None };
        assert_eq!(wire.info(&command).await.unwrap_err().code(), Code::InvalidArgument);
        assert_eq!(
            wire.info(&CommandStatementSubstraitPlan::default()).await.unwrap_err().code(),
            Code::InvalidArgument
        );

        // A table the server does not have.
        let other = SessionContext::new();
        other.register_parquet("elsewhere", file.to_str().unwrap(), ParquetReadOptions::default()).await.unwrap();
        let plan = other.sql("SELECT * FROM elsewhere").await.unwrap();
        let plan = to_substrait_plan(plan.logical_plan(), &other.state()).unwrap();
        let plan = SubstraitPlan { plan: plan.encode_to_vec().into(), version: String::new() };
        let command = CommandStatementSubstraitPlan { plan: Some(plan), transaction_id: None };
        let status = wire.info(&command).await.unwrap_err();
        assert_eq!(status.code(), Code::NotFound, "{status}");
        server
    });
}

#[test]
fn the_bounds_of_prepared_statements_hold() {
    let few = |config: &mut updraft_server::Config| {
        config.engine.prepared_per_session_max = 2;
        config.engine.prepared_max = 3;
        config.engine.prepared_ttl = std::time::Duration::from_millis(2000);
    };
    with_server(few, |server| async {
        let (mut ann, mut bob) = (Wire::new(&server).await, Wire::new(&server).await);
        let kept = create(&mut ann, "SELECT 1").await.unwrap();
        create(&mut ann, "SELECT 2").await.unwrap();
        let status = create(&mut ann, "SELECT 3").await.unwrap_err();
        assert_eq!(status.code(), Code::ResourceExhausted);
        assert!(status.message().contains("engine.prepared_per_session_max"), "{status}");
        create(&mut bob, "SELECT 1").await.unwrap();
        let status = create(&mut bob, "SELECT 2").await.unwrap_err();
        assert!(status.message().contains("engine.prepared_max"), "{status}");
        // One that is used lives on, those that are not make room.
        for _ in 0..5 {
            tokio::time::sleep(std::time::Duration::from_millis(500)).await;
            run(&mut ann, &kept).await.unwrap();
        }
        create(&mut bob, "SELECT 2").await.unwrap();
        tokio::time::sleep(std::time::Duration::from_millis(2100)).await;
        assert_eq!(run(&mut ann, &kept).await.unwrap_err().code(), Code::NotFound);
        assert_eq!(bob.query("SELECT 5").await.unwrap().rows(), ["5"]);
        server
    });
}
