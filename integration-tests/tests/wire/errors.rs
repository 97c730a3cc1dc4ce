//! What a client is told when something is wrong: code and message, as data.

use expect_test::expect;
use tonic::Code;

use crate::client::{Wire, told};
use crate::{as_it_is, with_server};

#[test]
fn each_mistake_has_its_code_and_a_text_that_helps() {
    with_server(as_it_is, |server| async {
        let root = server.dir.path();
        std::fs::write(root.join("cut.parquet"), b"PAR1 this is not the whole file").unwrap();
        std::fs::write(root.join("bad.csv"), "a,b\n1,2\n3\n").unwrap();
        let mut wire = Wire::new(&server).await;
        let mut lines = Vec::new();
        for sql in [
            "",
            ";",
            "SELEC 1",
            "SELECT 'open",
            "SELECT 1; SELECT 2",
            "SELECT nothing FROM t",
            "SELECT 1 FROM nothing",
            "SELECT no_such_function(1)",
            "SELECT CAST('x' AS int)",
            "SELECT id / (id - id) FROM t",
            "SELECT ?",
            "INSERT INTO t VALUES (1, 'x')",
            "CREATE EXTERNAL TABLE e STORED AS CSV LOCATION '/etc/passwd'",
            "SET datafusion.runtime.memory_limit = '1T'",
            "SET batch_size = none",
            "SELECT * FROM cut",
            "SELECT * FROM bad",
        ] {
            let status = wire.query(sql).await.unwrap_err();
            let text = told(&status).replace(root.to_str().unwrap(), "DIR");
            // What DataFusion adds in further lines are guesses.
            let text = text.lines().next().unwrap_or_default();
            lines.push(format!("{sql}\n    {text}"));
        }
        expect![[r#"

                InvalidArgument: the statement is empty
            ;
                InvalidArgument: the statement is empty
            SELEC 1
                InvalidArgument: syntax error: Expected: an SQL statement, found: SELEC at Line: 1, Column: 1
            SELECT 'open
                InvalidArgument: Unterminated string literal at Line: 1, Column: 8
            SELECT 1; SELECT 2
                InvalidArgument: give one statement at a time
            SELECT nothing FROM t
                InvalidArgument: No field named nothing.
            SELECT 1 FROM nothing
                NotFound: table "nothing" does not exist; hint: SHOW TABLES lists those you may read
            SELECT no_such_function(1)
                InvalidArgument: Invalid function 'no_such_function'.
            SELECT CAST('x' AS int)
                InvalidArgument: Cast error: Cannot cast string 'x' to value of Int32 type
            SELECT id / (id - id) FROM t
                InvalidArgument: Divide by zero error
            SELECT ?
                InvalidArgument: the statement has parameters ($1); prepare it and bind them
            INSERT INTO t VALUES (1, 'x')
                InvalidArgument: INSERT INTO is not offered; this server answers statements that read: SELECT, EXPLAIN, SHOW, DESCRIBE, and SET of session settings
            CREATE EXTERNAL TABLE e STORED AS CSV LOCATION '/etc/passwd'
                InvalidArgument: CREATE EXTERNAL TABLE is not offered; this server answers statements that read: SELECT, EXPLAIN, SHOW, DESCRIBE, and SET of session settings
            SET datafusion.runtime.memory_limit = '1T'
                InvalidArgument: setting "datafusion.runtime.memory_limit" cannot be set; memory is shared by all queries; the operator sets engine.memory_limit, a session query_memory_limit. what can be set: target_partitions, batch_size, statement_timeout, query_memory_limit, result_cache, time_zone, catalog, schema, wire_types, wire_compression, endpoints
            SET batch_size = none
                InvalidArgument: cannot set "batch_size" to 'none': give a number of rows from 1 to 1048576
            SELECT * FROM cut
                DataLoss: table "public.cut": read file DIR/cut.parquet: Parquet error: Parquet error: Invalid Parquet file. Corrupt footer
            SELECT * FROM bad
                DataLoss: table "public.bad": read file DIR/bad.csv: Arrow error: Csv error: Encountered unequal lengths between records on CSV file. Expected 2 records, found 1 records at line 3"#]].assert_eq(&lines.join("\n"));
        server
    });
}

#[test]
fn text_that_is_too_much_is_refused_and_the_server_lives() {
    with_server(as_it_is, |server| async {
        let mut wire = Wire::new(&server).await;
        let nested = |depth: usize| format!("SELECT {}1{}", "(".repeat(depth), ")".repeat(depth));
        let many = |item: &str, count: usize| vec![item; count].join(" OR ");
        let mut subqueries = "SELECT 1 AS x".to_owned();
        for depth in 0..150 {
            subqueries = format!("SELECT x FROM ({subqueries}) AS t{depth}");
        }
        for (name, sql, code) in [
            ("2 MiB of text", format!("SELECT '{}'", "x".repeat(2 << 20)), Code::InvalidArgument),
            ("just within 1 MiB", format!("SELECT length('{}')", "x".repeat((1 << 20) - 17)), Code::Ok),
            ("10,000 OR", format!("SELECT * FROM t WHERE {}", many("id = 1", 10_000)), Code::InvalidArgument),
            ("1,000 OR", format!("SELECT * FROM t WHERE {}", many("id = 1", 1_000)), Code::Ok),
            ("100,000 (", nested(100_000), Code::InvalidArgument),
            ("201 (", nested(201), Code::InvalidArgument),
            ("150 (", nested(150), Code::Ok),
            ("100,000 NOT", format!("SELECT {} true", "NOT ".repeat(100_000)), Code::InvalidArgument),
            ("100,000 minus", format!("SELECT {}1", "- ".repeat(100_000)), Code::InvalidArgument),
            ("300 +", format!("SELECT 1{}", " + 1".repeat(300)), Code::Ok),
            ("20,000 in a list", format!("SELECT id FROM t WHERE id IN (0{})", ",1".repeat(20_000)), Code::Ok),
            ("1,000 UNION", vec!["SELECT 1"; 1_000].join(" UNION ALL "), Code::Ok),
            ("150 subqueries", subqueries, Code::Ok),
            ("100,000 CASE", format!("SELECT {} 1", "CASE WHEN true THEN ".repeat(100_000)), Code::InvalidArgument),
            ("100,000 open [", format!("SELECT {}", "[".repeat(100_000)), Code::InvalidArgument),
        ] {
            let outcome = wire.query(&sql).await;
            let found = outcome.as_ref().err().map_or(Code::Ok, tonic::Status::code);
            assert_eq!(found, code, "{name}: {:?}", outcome.err());
        }
        assert_eq!(wire.rows("SELECT 1").await, ["1"]);
        server
    });
}

#[test]
fn memory_that_is_not_there_ends_one_query() {
    with_server(
        |config| config.engine.memory_limit = Some("32MiB".parse().unwrap()),
        |server| async {
            let mut wire = Wire::new(&server).await;
            // One value for all rows cannot be spilled.
            let status = wire
                .query("SELECT cardinality(array_agg(repeat('x', 1000) || value)) FROM generate_series(1, 200000)")
                .await;
            assert_eq!(status.unwrap_err().code(), Code::ResourceExhausted);
            assert_eq!(wire.rows("SELECT 1").await, ["1"]);
            server
        },
    );
}
