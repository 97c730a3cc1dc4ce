//! Every query gives the same answer with a tenth of its data's size in memory as with plenty.
#![allow(clippy::unwrap_used)]

mod support;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use datafusion::arrow::array::RecordBatch;
use futures::TryStreamExt;
use updraft_auth::Principal;
use updraft_engine::{Encoded, Engine, Part, SessionId, Statement, Weight};

use support::{Server, text};

/// The tables of this scale take some 150 MiB in memory.
const SCALE: f64 = 0.1;

const LITTLE: &str = "16MiB";

/// Shapes that TPC-H has not: a sort, a group for each row, distinct counts, windows, outer joins, set operations. Each
/// is summed up, so that its order is checked and its rows need not be sent.
const SHAPES: &[&str] = &[
    "SELECT count(*), sum(n * l_linenumber) FROM (SELECT *, row_number() OVER (ORDER BY l_comment, l_orderkey, l_linenumber) AS n FROM lineitem)",
    "SELECT count(*), sum(q), max(c) FROM (SELECT l_orderkey, l_linenumber, sum(l_quantity) AS q, min(l_comment) AS c FROM lineitem GROUP BY 1, 2)",
    "SELECT count(*) FROM (SELECT DISTINCT l_comment, l_shipdate FROM lineitem)",
    "SELECT count(*), sum(s), sum(r) FROM (SELECT sum(l_quantity) OVER (PARTITION BY l_orderkey) AS s, rank() OVER (PARTITION BY l_suppkey ORDER BY l_shipdate) AS r FROM lineitem)",
    "SELECT count(*), count(o_comment), sum(l_quantity) FROM lineitem FULL JOIN orders ON l_orderkey = o_orderkey + 7 AND o_totalprice > l_extendedprice",
    "SELECT count(*), sum(length(a.l_comment)) FROM lineitem a LEFT JOIN lineitem b ON a.l_orderkey = b.l_orderkey AND a.l_linenumber < b.l_linenumber",
    "SELECT count(*) FROM (SELECT l_partkey, l_suppkey FROM lineitem EXCEPT SELECT ps_partkey, ps_suppkey FROM partsupp WHERE ps_availqty > 5000)",
    "SELECT count(*) FROM (SELECT l_orderkey, l_comment FROM lineitem INTERSECT SELECT l_orderkey, l_comment FROM lineitem WHERE l_linenumber > 2)",
    "SELECT count(*) FROM orders WHERE NOT EXISTS (SELECT 1 FROM lineitem WHERE l_orderkey = o_orderkey AND l_shipdate > o_orderdate + INTERVAL '60 days')",
    "SELECT count(*), sum(parts), sum(suppliers) FROM (SELECT l_orderkey % 5000 AS k, count(DISTINCT l_partkey) AS parts, count(DISTINCT l_suppkey) AS suppliers, avg(l_tax) FROM lineitem GROUP BY k)",
];

struct Batch(RecordBatch);

impl Weight for Batch {
    fn weight(&self) -> usize {
        self.0.get_array_memory_size()
    }
}

/// The rows of the answer as text, sorted.
async fn answer(engine: &Arc<Engine>, sql: &str) -> Result<Vec<Vec<String>>, updraft_engine::Error> {
    let session = engine.session(SessionId([1; 16]), &Principal::anonymous());
    let planned = engine.plan(&session, Statement::Sql(sql.into()), None).await?;
    // For what hangs: the slowest takes half a minute on an idle machine, in a debug build.
    let deadline = Some(tokio::time::Instant::now() + Duration::from_secs(240));
    let stream = engine.run(&session, planned, Part::Whole, deadline, |batches| {
        Encoded::in_turn(batches.map_ok(Batch).map_err(updraft_engine::Error::from))
    })?;
    let batches: Vec<RecordBatch> = stream.map_ok(|Batch(batch)| batch).try_collect().await?;
    let mut rows = text::rows(&batches);
    rows.sort();
    Ok(rows)
}

fn queries() -> Vec<(String, String)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tpch");
    let tpch = (1..=22).map(|number| {
        let name = format!("q{number:02}");
        let sql = std::fs::read_to_string(folder.join(&name).with_extension("sql")).unwrap();
        (name, sql)
    });
    let shapes = SHAPES.iter().map(|sql| ((*sql).to_owned(), (*sql).to_owned()));
    tpch.chain(shapes).collect()
}

#[test]
#[ignore = "takes a minute or two: a step of its own in test.sh"]
fn a_tenth_of_the_data_is_memory_enough() {
    support::run(async {
        let data = tempfile::tempdir().unwrap();
        updraft_server::sample::write(data.path(), SCALE, true).unwrap();
        let path = data.path().to_str().unwrap().to_owned();
        let start = async |memory: &str| {
            let (memory, path) = (memory.parse().unwrap(), path.clone());
            Server::start(tempfile::tempdir().unwrap(), move |config| {
                config.engine.memory_limit = Some(memory);
                config.catalog.data = vec![path];
            })
            .await
        };
        // One after the other: an engine looks at the memory of the whole process.
        let plenty = start("4GiB").await;
        let mut expected = Vec::new();
        for (name, sql) in queries() {
            let rows = answer(plenty.running.engine(), &sql).await.unwrap();
            expected.push((name, sql, rows));
        }
        plenty.running.stop().await.unwrap();
        drop(plenty.dir);
        let little = start(LITTLE).await;
        let mut wrong = Vec::new();
        for (name, sql, expected) in expected {
            match answer(little.running.engine(), &sql).await {
                Ok(rows) if rows == expected => {}
                Ok(_) => wrong.push(format!("{name}: another answer")),
                Err(error) => wrong.push(format!("{name}: {error}")),
            }
        }
        little.running.stop().await.unwrap();
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    });
}
