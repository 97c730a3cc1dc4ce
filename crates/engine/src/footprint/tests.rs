//! Plans of SQL over Parquet files with several row groups, weighed.

mod channels;

use std::path::Path;
use std::sync::Arc;

use datafusion::arrow::array::{ArrayRef, Float64Array, Int64Array, RecordBatch, StringArray};
use datafusion::datasource::physical_plan::FileScanConfig;
use datafusion::datasource::source::DataSourceExec;
use datafusion::execution::SessionState;
use datafusion::execution::runtime_env::RuntimeEnvBuilder;
use datafusion::execution::session_state::SessionStateBuilder;
use datafusion::logical_expr::LogicalPlan;
use datafusion::parquet::arrow::ArrowWriter;
use datafusion::parquet::file::properties::WriterProperties;
use datafusion::physical_plan::{ExecutionPlan, displayable};
use datafusion::prelude::SessionConfig;
use tempfile::TempDir;
use tokio::runtime::Handle;
use updraft_catalog::{CATALOG, Catalog, SCHEMA};
use updraft_hot::Cache;

use super::shape::ScanSize;
use super::width::Widths;
use super::{Footprint, of, partitions_for, scan, scan_size};
use crate::config::Config;
use crate::fit::{self, Fit};
use crate::plan::Planner;
use crate::sql::{self, Parsed};

const MIB: u64 = 1 << 20;
/// What may wait for a client in these tests.
const CLIENT: u64 = 4 * MIB;

/// A folder of tables:
/// `wide` of 80,000 rows in 8 row groups, with numbers, text of 200 characters and a dictionary of long words;
/// `long` of 250,000 numbers; `tiny` of 100 rows; `text`, a small CSV file.
struct Lake {
    _folder: TempDir,
    planner: Planner,
}

impl Lake {
    async fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let wide = (0..80_000_i64).collect::<Vec<_>>();
        write(&folder.path().join("wide.parquet"), &columns(&wide), 10_000);
        write(&folder.path().join("tiny.parquet"), &columns(&wide[..100]), 10_000);
        let long: ArrayRef = Arc::new(Int64Array::from_iter_values(0..250_000));
        let long = RecordBatch::try_from_iter([("n", long)]).expect("a batch");
        write(&folder.path().join("long.parquet"), &long, 100_000);
        std::fs::write(folder.path().join("text.csv"), "a,b\n1,x\n2,y\n").expect("a file");
        let data = vec![folder.path().to_str().expect("a name").to_owned()];
        let config = updraft_catalog::Config { data, ..updraft_catalog::Config::default() };
        let catalog = Catalog::open(config, Handle::current()).await.expect("a catalog");
        let planner = Planner { config: Arc::new(Config::default()), catalog: Arc::new(catalog) };
        Self { _folder: folder, planner }
    }

    fn state(&self, partitions: usize) -> SessionState {
        let config = SessionConfig::new()
            .with_information_schema(true)
            .with_create_default_catalog_and_schema(false)
            .with_default_catalog_and_schema(CATALOG, SCHEMA)
            .with_target_partitions(partitions)
            // The files of a test are small; those of a server are split at row groups.
            .with_repartition_file_min_size(1);
        let runtime = RuntimeEnvBuilder::new().with_object_store_registry(self.planner.catalog.object_stores());
        let runtime = runtime.build_arc().expect("a runtime");
        let state = SessionStateBuilder::new().with_config(config).with_runtime_env(runtime).with_default_features();
        state.with_physical_optimizer_rules(fit::rules()).build()
    }

    async fn logical(&self, state: &mut SessionState, sql: &str) -> LogicalPlan {
        let Parsed::Read(statement, _) = sql::parse(sql, &self.planner.config).expect(sql) else { panic!("{sql}") };
        let logical = self.planner.logical(state, *statement).await.expect(sql);
        state.optimize(&logical.plan).expect(sql)
    }

    async fn plan(&self, sql: &str, partitions: usize) -> Arc<dyn ExecutionPlan> {
        let mut state = self.state(partitions);
        let logical = self.logical(&mut state, sql).await;
        state.query_planner().create_physical_plan(&logical, &state).await.expect(sql)
    }

    async fn weigh(&self, sql: &str, partitions: usize) -> Footprint {
        of(&self.plan(sql, partitions).await, 8192, CLIENT)
    }

    async fn size(&self, sql: &str) -> ScanSize {
        scan_size(&self.logical(&mut self.state(4), sql).await).expect(sql)
    }
}

fn columns(ids: &[i64]) -> RecordBatch {
    let number = |f: fn(i64) -> i64| Arc::new(Int64Array::from_iter_values(ids.iter().map(|id| f(*id)))) as ArrayRef;
    // Not compressible, as real comments are.
    let text = ids.iter().map(|id| format!("{:0200}", (*id as u128 + 7).pow(6) % 1_000_000_000_000_000_007));
    let word = ids.iter().map(|id| format!("{:0100}", id % 5));
    RecordBatch::try_from_iter([
        ("id", number(|id| id)),
        ("few", number(|id| id % 10)),
        ("many", number(|id| id.wrapping_mul(0x9E37_79B9_7F4A_7C15_u64 as i64))),
        ("price", Arc::new(Float64Array::from_iter_values(ids.iter().map(|id| *id as f64 / 7.0))) as ArrayRef),
        ("comment", Arc::new(StringArray::from_iter_values(text)) as ArrayRef),
        ("word", Arc::new(StringArray::from_iter_values(word)) as ArrayRef),
    ])
    .expect("a batch")
}

fn write(path: &Path, batch: &RecordBatch, rows_per_group: usize) {
    let properties = WriterProperties::builder().set_max_row_group_row_count(Some(rows_per_group)).build();
    let file = std::fs::File::create(path).expect("a file");
    let mut writer = ArrowWriter::try_new(file, batch.schema(), Some(properties)).expect("a writer");
    writer.write(batch).expect("rows");
    writer.close().expect("a footer");
}

#[tokio::test]
async fn a_scan_holds_memory_in_proportion_to_its_partitions_and_columns() {
    let lake = Lake::new().await;
    let held = async |sql, partitions| lake.weigh(sql, partitions).await.unaccounted - CLIENT;
    let all = "SELECT * FROM wide WHERE few = 3";
    let (one, two, eight) = (held(all, 1).await, held(all, 2).await, held(all, 8).await);
    // Two batches are on the way to the client whatever the partitions, and more where partitions are merged.
    assert!(two * 10 > one * 15 && two * 10 < one * 25, "{two} of two partitions, {one} of one");
    assert!(eight * 10 > one * 50 && eight < one * 10, "{eight} of eight partitions, {one} of one");
    for (partitions, lanes) in [(2, 2), (16, 8)] {
        let plan = lake.plan("SELECT * FROM wide", partitions).await;
        let source = plan.downcast_ref::<DataSourceExec>().expect("a scan");
        let files = source.data_source().downcast_ref::<FileScanConfig>().expect("of files");
        assert_eq!(scan::of(files, &mut Widths::default()).lanes, lanes, "there are eight row groups to read");
    }
    let narrow = held("SELECT id FROM wide WHERE few = 3", 8).await;
    assert!(narrow * 8 < eight, "{narrow} of two columns, {eight} of all six");
    // 216 bytes of text, 116 of the word, four numbers of 8: two batches in the scan, two in the filter, two outside.
    let batches = 6 * 8192 * (216 + 116 + 32);
    assert!((batches..2 * batches).contains(&one), "{one} in place of {batches} and a row group");
}

#[tokio::test]
async fn slices_of_an_aggregate_spill_one_after_the_other() {
    let lake = Lake::new().await;
    let sql = "SELECT a.comment, count(*) FROM wide a JOIN wide b ON a.few = b.few GROUP BY 1";
    let whole = lake.weigh(sql, 2).await;
    let mut state = lake.state(2);
    let fit = Fit { room: 512 << 20, share: 512 << 20, careful: false };
    state.config_mut().options_mut().extensions.insert(fit);
    let logical = lake.logical(&mut state, sql).await;
    let plan = state.query_planner().create_physical_plan(&logical, &state).await.expect(sql);
    let shown = displayable(plan.as_ref()).indent(false).to_string();
    assert!(shown.contains("SlicesExec: slices="), "{shown}");
    let slices = of(&plan, 8192, CLIENT);
    // The exchange has a batch for each of them to fill, 16 at most, and no more than that.
    let batch = 8192 * (216 + 8);
    assert!(slices.minimum - whole.minimum <= 14 * batch, "{slices:?} {whole:?}");
    assert!(slices.unaccounted - whole.unaccounted <= 14 * batch, "{slices:?} {whole:?}");
    assert_eq!(slices.spillers, whole.spillers);
}

#[tokio::test]
async fn what_is_in_memory_is_neither_read_nor_held() {
    let (all, one) = ("SELECT * FROM wide", "SELECT * FROM wide WHERE id = 12345");
    let files = Lake::new().await.weigh(all, 4).await;
    let mut lake = Lake::new().await;
    let catalog = Arc::into_inner(lake.planner.catalog).expect("nobody else has it");
    lake.planner.catalog = Arc::new(catalog.with_hot(Cache::new(256 * MIB)));
    let cold = lake.weigh(all, 4).await;
    assert_eq!((cold.scan_bytes, cold.scan_rows, cold.is_light), (files.scan_bytes, Some(80_000), false));
    assert!(cold.unaccounted * 10 > files.unaccounted * 9, "{cold:?} {files:?}");
    assert_eq!(lake.weigh(one, 4).await.scan_rows, Some(10_000));

    let context = lake.state(1).task_ctx();
    let rows = datafusion::physical_plan::collect(lake.plan(all, 1).await, context).await.expect("rows");
    assert_eq!(rows.iter().map(RecordBatch::num_rows).sum::<usize>(), 80_000);
    let hot = lake.weigh(all, 4).await;
    assert_eq!((hot.scan_bytes, hot.scan_rows, hot.is_light), (0, Some(80_000), true), "it is over in milliseconds");
    assert!(hot.unaccounted < cold.unaccounted, "{hot:?} {cold:?}");
    let point = lake.weigh(one, 4).await;
    assert_eq!((point.scan_bytes, point.scan_rows, point.is_light), (0, Some(1), true));
}

#[tokio::test]
async fn what_is_read_is_known() {
    let lake = Lake::new().await;
    let all = lake.weigh("SELECT * FROM wide", 4).await;
    let some = lake.weigh("SELECT few FROM wide", 4).await;
    assert_eq!((all.scan_rows, some.scan_rows), (Some(80_000), Some(80_000)));
    assert!(some.scan_bytes > 0 && some.scan_bytes * 10 < all.scan_bytes, "{some:?} {all:?}");
    assert_eq!(all.partitions, 4);
    assert_eq!(lake.weigh("SELECT * FROM text", 4).await.scan_rows, None, "a CSV file does not tell");
    let twice = lake.weigh("SELECT a.few FROM wide a JOIN wide b ON a.id = b.id", 4).await;
    assert_eq!(twice.scan_rows, Some(160_000));
}

#[tokio::test]
async fn row_groups_that_filters_leave_out_are_not_weighed() {
    let lake = Lake::new().await;
    let all = lake.weigh("SELECT * FROM wide", 4).await;
    let one = lake.weigh("SELECT * FROM wide WHERE id = 12345", 4).await;
    assert_eq!((all.scan_rows, one.scan_rows), (Some(80_000), Some(10_000)));
    assert_eq!(one.scan_bytes, all.scan_bytes.div_ceil(8), "{one:?} {all:?}");
    assert!(one.unaccounted < all.unaccounted, "one reader has something to read: {one:?} {all:?}");
    let few = lake.weigh("SELECT * FROM wide WHERE few = 3", 4).await;
    assert_eq!(few.scan_rows, Some(80_000), "it is in every row group");
    let none = lake.weigh("SELECT * FROM wide WHERE id < 0", 4).await;
    assert_eq!((none.scan_rows, none.scan_bytes), (Some(0), 0));
}

#[tokio::test]
async fn light_and_heavy_statements() {
    let lake = Lake::new().await;
    for (is_light, sql) in [
        (true, "SELECT 1"),
        (true, "SELECT * FROM (VALUES (1), (2)) v ORDER BY 1"),
        (true, "SELECT count(*) FROM wide"),
        (true, "SELECT count(*), min(n), max(n) FROM long"),
        (true, "SELECT table_name FROM information_schema.tables ORDER BY 1"),
        (true, "EXPLAIN SELECT * FROM wide a, wide b"),
        (true, "SELECT word, sum(price) FROM tiny GROUP BY word ORDER BY 2 DESC"),
        (true, "SELECT * FROM text"),
        (true, "SELECT * FROM tiny a JOIN tiny b USING (id)"),
        (true, "SELECT count(*) FROM tiny a, tiny b"),
        (true, "SELECT id, row_number() OVER (ORDER BY price) FROM tiny"),
        (false, "SELECT * FROM long WHERE n > 5"),
        (true, "SELECT * FROM long WHERE n = 5"),
        (false, "SELECT comment FROM wide"),
        (true, "SELECT count(*) FROM tiny a, tiny b, tiny c, tiny d"),
        (false, "SELECT sum(a.id + b.id + c.id + d.id) FROM tiny a, tiny b, tiny c, tiny d"),
        (
            false,
            "SELECT sum(c.id) FROM tiny a JOIN tiny b ON a.few = b.few JOIN tiny c ON b.few = c.few JOIN long d ON c.few = n",
        ),
        (false, "SELECT count(*) FROM generate_series(1, 1000000000)"),
        (false, "SELECT unnest(range(id, id * 1000000)) FROM tiny"),
        (false, "WITH RECURSIVE r AS (SELECT 1 AS n UNION ALL SELECT n + 1 FROM r) SELECT * FROM r LIMIT 5"),
        (false, "SELECT * FROM wide a JOIN long b ON a.id = b.n"),
    ] {
        let footprint = lake.weigh(sql, 4).await;
        assert_eq!(footprint.is_light, is_light, "{sql}: {footprint:?}");
    }
}

#[tokio::test]
async fn operators_that_keep_rows_need_memory() {
    let lake = Lake::new().await;
    let sort = of(&lake.plan("SELECT * FROM wide ORDER BY many", 1).await, 1024, CLIENT);
    let rows = 80_000 * (216 + 116 + 32);
    assert_eq!(sort.appetite, Some(2 * rows), "to sort {rows} bytes");
    assert!(sort.minimum < rows / 2 && sort.minimum > MIB, "it spills: {sort:?}");
    let small = lake.weigh("SELECT * FROM tiny ORDER BY many", 1).await;
    assert_eq!(Some(small.minimum), small.appetite, "nothing needs more than all there is: {small:?}");
    let topk = lake.weigh("SELECT * FROM wide ORDER BY many LIMIT 10", 4).await;
    assert_eq!(Some(topk.minimum), topk.appetite, "it does not spill: {topk:?}");
    let few = lake.weigh("SELECT few, count(*) FROM wide GROUP BY few", 4).await;
    let many = lake.weigh("SELECT comment, count(*) FROM wide GROUP BY comment", 4).await;
    assert!(few.minimum * 2 < many.minimum, "{few:?} {many:?}");
    let join = lake.weigh("SELECT a.comment, b.id FROM wide a JOIN wide b ON a.many = b.id", 4).await;
    assert!(join.minimum > 80_000 * 8, "a hash table must fit: {join:?}");
    let hoard = lake.weigh("SELECT median(price), array_agg(comment) FROM wide", 4).await;
    assert!(hoard.minimum > 80_000 * 216, "all values are kept: {hoard:?}");
    let window = lake.weigh("SELECT sum(price) OVER () FROM wide", 1).await;
    assert!(window.minimum >= 80_000 * 8, "its one partition is gathered: {window:?}");
    let windows = lake.weigh("SELECT sum(price) OVER (PARTITION BY id) FROM long JOIN wide ON n = id", 1).await;
    assert!(windows.minimum < windows.appetite.unwrap_or_default(), "one after the other: {windows:?}");
    let series = lake.weigh("SELECT value FROM generate_series(1, 1000000000) ORDER BY value DESC", 4).await;
    assert_eq!(series.appetite, None, "nobody knows how many rows a function gives");
}

#[tokio::test]
async fn fewer_partitions_never_need_more() {
    let lake = Lake::new().await;
    for sql in [
        "SELECT * FROM wide",
        "SELECT comment, count(DISTINCT id) FROM wide GROUP BY comment ORDER BY 2 DESC",
        "SELECT few, sum(price) FROM wide WHERE id > 5 GROUP BY few",
        "SELECT * FROM wide ORDER BY comment, id",
        "SELECT * FROM wide a JOIN long b ON a.id = b.n WHERE a.price > 3 ORDER BY a.many",
        "SELECT id, sum(price) OVER (PARTITION BY few) FROM wide",
        "SELECT word FROM wide UNION SELECT comment FROM wide",
    ] {
        let mut last: Option<Footprint> = None;
        for partitions in [1, 2, 4, 8] {
            let plan = lake.plan(sql, partitions).await;
            let now = of(&plan, 8192, CLIENT);
            let smaller = of(&plan, 2048, CLIENT);
            assert!(smaller.unaccounted <= now.unaccounted && smaller.minimum <= now.minimum, "{sql} at {partitions}");
            if let Some(last) = last {
                assert!(last.unaccounted <= now.unaccounted, "{sql} at {partitions}: {last:?}, {now:?}");
                assert!(last.minimum <= now.minimum, "{sql} at {partitions}: {last:?}, {now:?}");
            }
            last = Some(now);
        }
    }
}

#[tokio::test]
async fn sorts_set_aside_a_quarter_of_the_room() {
    let lake = Lake::new().await;
    let sort = lake.weigh("SELECT * FROM wide ORDER BY many", 4).await;
    assert_eq!(sort.sort_reservation(1 << 40), 10 << 20, "no more than DataFusion's default");
    let two_runs = |footprint: &Footprint| footprint.sort_reservation(0);
    assert_eq!(two_runs(&sort), 10 << 20, "two runs of 3 MiB batches need more, and take it from the rest");
    let narrow = lake.weigh("SELECT id FROM wide ORDER BY id DESC", 4).await;
    assert_eq!(narrow.sort_reservation(64 * MIB), 4 << 20, "{narrow:?}");
    assert_eq!(two_runs(&narrow), 6 * 8192 * 8, "no less than a merge needs");
    for (room, fan_in) in [(0, 2), (8 * MIB, 2), (64 * MIB, 21), (1 << 40, 64)] {
        assert_eq!(narrow.merge_fan_in(room, 64), fan_in, "{room} bytes of room: {narrow:?}");
    }
    assert_eq!(lake.weigh("SELECT 1", 4).await.merge_fan_in(1 << 40, 16), 16);
}

#[tokio::test]
async fn tables_are_sized_before_planning() {
    let lake = Lake::new().await;
    let wide = lake.size("SELECT * FROM wide").await;
    assert_eq!(
        wide,
        ScanSize { bytes: 80_000 * 364, rows: Some(80_000), row_width: 364, gathers: false, multiplies: false }
    );
    let grouped = lake.size("SELECT few, count(*) FROM wide GROUP BY few").await;
    assert_eq!((grouped.bytes, grouped.rows, grouped.gathers), (80_000 * 8, Some(80_000), true));
    let inner = lake.size("SELECT n FROM long WHERE n IN (SELECT id FROM wide WHERE few = 1)").await;
    assert_eq!(inner.rows, Some(330_000), "the tables of subqueries count");
    let limited = lake.size("SELECT n FROM long LIMIT 10").await;
    assert_eq!((limited.rows, limited.bytes), (Some(10), 80), "a scan ends at its limit");
    assert_eq!(lake.size("SELECT table_name FROM information_schema.tables").await.rows, Some(0));
    assert!(lake.size("SELECT count(*) FROM generate_series(1, 9)").await.multiplies);
    assert!(lake.size("SELECT count(*) FROM tiny a, tiny b").await.multiplies);
    assert_eq!(lake.size("SELECT * FROM text").await.rows, None);

    for (sql, partitions) in [
        ("SELECT few, count(*) FROM wide GROUP BY few", 1),
        ("SELECT n % 10, count(*) FROM long GROUP BY 1", 3),
        ("SELECT n FROM long WHERE n > 7", 1),
        ("SELECT * FROM wide ORDER BY comment", 4),
        ("SELECT 1", 1),
    ] {
        assert_eq!(partitions_for(&lake.size(sql).await, 8, 0), partitions, "{sql}");
    }
    assert_eq!(wide.batch_rows(8192), 8192);
}
