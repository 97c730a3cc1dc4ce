//! What a statement costs before and after its plan is kept, and what grouping costs in memory.
//!
//! `cargo bench -p updraft-engine --bench statements`

use std::hint::black_box;
use std::sync::Arc;

use criterion::{Criterion, criterion_group, criterion_main};
use datafusion::arrow::array::{ArrayRef, Int64Array, RecordBatch, StringArray};
use datafusion::parquet::arrow::ArrowWriter;
use futures::TryStreamExt;
use tempfile::TempDir;
use tokio::runtime::{Handle, Runtime};
use updraft_auth::Principal;
use updraft_catalog::Catalog;
use updraft_engine::{Config, Encoded, Engine, Error, Part, Planned, Session, SessionId, Statement, Weight};
use updraft_hot::Cache;

/// Rows of the table `t`.
const ROWS: i64 = 1_000_000;

struct Batch(RecordBatch);

impl Weight for Batch {
    fn weight(&self) -> usize {
        self.0.get_array_memory_size()
    }
}

struct Fixture {
    runtime: Runtime,
    engine: Arc<Engine>,
    session: Session,
    _folder: TempDir,
}

impl Fixture {
    /// Over `t`: as many users as there are tenths of rows, and 20 categories.
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let users: ArrayRef = Arc::new(Int64Array::from_iter_values((0..ROWS).map(|row| row * 7919 % (ROWS / 10))));
        let category = |row: i64| format!("category {}", row * 31 % 20);
        let categories: ArrayRef = Arc::new(StringArray::from_iter_values((0..ROWS).map(category)));
        let batch = RecordBatch::try_from_iter([("user_id", users), ("category", categories)]).expect("a batch");
        let file = std::fs::File::create(folder.path().join("t.parquet")).expect("a file");
        let mut writer = ArrowWriter::try_new(file, batch.schema(), None).expect("a writer");
        writer.write(&batch).and_then(|()| writer.close()).expect("a table");

        let runtime = Runtime::new().expect("a runtime");
        let data = vec![folder.path().to_str().expect("a plain path").to_owned()];
        let catalog = updraft_catalog::Config { data, ..updraft_catalog::Config::default() };
        let engine = runtime.block_on(async {
            let catalog = Catalog::open(catalog, Handle::current()).await.expect("a catalog");
            let catalog = Arc::new(catalog.with_hot(Cache::new(256 << 20)));
            Engine::new(Config::default(), &[], catalog).expect("an engine")
        });
        let session = engine.session(SessionId([0; 16]), &Principal::anonymous());
        Self { runtime, engine, session, _folder: folder }
    }

    fn plan(&self, sql: &str) -> Arc<Planned> {
        let plan = self.engine.plan(&self.session, Statement::Sql(sql.into()), None);
        self.runtime.block_on(plan).expect("it plans")
    }

    fn rows(&self, sql: &str) -> usize {
        let planned = self.plan(sql);
        let as_they_are = |batches: datafusion::execution::SendableRecordBatchStream| {
            Encoded::in_turn(batches.map_ok(Batch).map_err(Error::from))
        };
        let rows = self.engine.run(&self.session, planned, Part::Whole, None, as_they_are).expect("it starts");
        let count = rows.try_fold(0, |rows, batch| async move { Ok(rows + batch.0.num_rows()) });
        self.runtime.block_on(count).expect("it runs")
    }
}

fn statements(c: &mut Criterion) {
    let fixture = Fixture::new();
    let mut group = c.benchmark_group("plan");
    let mut number = 0;
    group.bench_function("a statement that is new", |b| {
        b.iter(|| {
            number += 1;
            black_box(fixture.plan(&format!("SELECT user_id FROM t WHERE user_id = {number}")))
        });
    });
    group.bench_function("a statement that was asked before", |b| {
        b.iter(|| black_box(fixture.plan("SELECT user_id FROM t WHERE user_id = 4242")));
    });
    group.finish();

    let mut group = c.benchmark_group("plan and run");
    for (name, sql, rows) in [
        ("nothing", "SELECT 1", 1),
        ("what statistics know", "SELECT count(*) FROM t", 1),
        ("20 strings", "SELECT category, count(*), sum(user_id) FROM t GROUP BY category", 20),
        (
            "100,000 numbers, the first 10",
            "SELECT user_id, count(*) AS n FROM t GROUP BY user_id ORDER BY n DESC LIMIT 10",
            10,
        ),
    ] {
        group.bench_function(name, |b| b.iter(|| assert_eq!(fixture.rows(sql), rows)));
    }
    group.finish();
}

criterion_group!(benches, statements);
criterion_main!(benches);
