//! What the scan leaves out, shares and says, on tables made for it.

use std::ops::Range;
use std::sync::Arc;

use datafusion::arrow::array::{Array, AsArray, Int64Array, RecordBatch, StringViewArray};
use datafusion::arrow::datatypes::{DataType, Field, Schema, UInt32Type};
use datafusion::common::config::ConfigOptions;
use datafusion::common::stats::Precision;
use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::datasource::source::{DataSource, DataSourceExec};
use datafusion::physical_optimizer::PhysicalOptimizerRule;
use datafusion::physical_plan::{ExecutionPlan, collect, displayable};
use datafusion::prelude::SessionContext;
use tempfile::TempDir;

use super::super::{HotSource, LoadOnce, Outlook};
use super::table::{Table, answer, session, texts, write};
use crate::cache::Cache;

/// Two files of two row groups of `rows` rows: `id` ascends through all, `v` descends, `s` has three values.
pub(super) fn table(rows: i64) -> (TempDir, Table) {
    let schema = Schema::new(vec![
        Field::new("id", DataType::Int64, false),
        Field::new("v", DataType::Int64, true),
        Field::new("s", DataType::Utf8View, true),
    ]);
    let batch = |ids: Range<i64>| {
        let words = ids.clone().map(|id| ["north", "south", "a region with a long name"][id as usize % 3]);
        let columns: Vec<Arc<dyn Array>> = vec![
            Arc::new(Int64Array::from_iter_values(ids.clone())),
            Arc::new(ids.map(|id| (id % 10 > 0).then_some(-id)).collect::<Int64Array>()),
            Arc::new(words.map(Some).collect::<StringViewArray>()),
        ];
        RecordBatch::try_new(Arc::new(schema.clone()), columns).expect("a batch")
    };
    let folder = tempfile::tempdir().expect("folder");
    let paths = [folder.path().join("a.parquet"), folder.path().join("b.parquet")];
    write(&paths[0], &[batch(0..rows), batch(rows..2 * rows)]);
    write(&paths[1], &[batch(2 * rows..3 * rows), batch(3 * rows..4 * rows)]);
    let files = [(paths[0].as_path(), vec![]), (paths[1].as_path(), vec![])];
    let table = Table::new(&schema, &Schema::empty(), &files).with_cache(&Cache::new(64 << 20));
    (folder, table)
}

pub(super) fn context(table: &Table, partitions: usize) -> SessionContext {
    session(Arc::new(table.clone()), partitions, 8192)
}

pub(super) async fn plan(context: &SessionContext, sql: &str) -> Arc<dyn ExecutionPlan> {
    context.sql(sql).await.expect("a query").create_physical_plan().await.expect("a plan")
}

/// The only scan of a plan.
fn leaf(plan: &Arc<dyn ExecutionPlan>) -> Arc<dyn ExecutionPlan> {
    let mut node = plan;
    while let Some(child) = node.children().last() {
        node = child;
    }
    node.clone()
}

fn source(leaf: &Arc<dyn ExecutionPlan>) -> HotSource {
    HotSource::of(leaf.as_ref()).expect("of ours").clone()
}

fn counted(leaf: &Arc<dyn ExecutionPlan>, name: &str) -> usize {
    leaf.metrics().and_then(|metrics| metrics.sum_by_name(name)).map_or(0, |count| count.as_usize())
}

#[tokio::test]
async fn a_lookup_by_the_sorted_column_looks_at_one_row() {
    let (_folder, table) = table(10_000);
    table.load(|_, _| true).await;
    let context = context(&table, 2);
    let plan = plan(&context, "select * from t where id = 23456").await;
    let shown = displayable(plan.as_ref()).indent(false).to_string();
    assert!(!shown.contains("FilterExec"), "the source does it: {shown}");
    assert_eq!(source(&leaf(&plan)).outlook(), Outlook { rows: 1, segments: 1, ..Outlook::default() });
    assert_eq!(plan.properties().partitioning.partition_count(), 1, "that is not worth two partitions");
    let batches = collect(plan.clone(), context.task_ctx()).await.expect("rows");
    assert_eq!(texts(&batches), ["23456|-23456|a region with a long name"]);
    assert_eq!(counted(&leaf(&plan), "rows_scanned"), 1);
    for (filter, expected) in [
        ("id > 39997", vec!["39998", "39999"]),
        ("id >= 10000 and id < 10001", vec!["10000"]),
        ("id <= 0", vec!["0"]),
        ("20000 > id and 19999 <= id", vec!["19999"]),
        ("id = 40000", vec![]),
        ("id = 5 and id = 6", vec![]),
    ] {
        let sql = format!("select id from t where {filter} order by id");
        assert_eq!(answer(&context, &sql).await.expect("rows"), expected, "{filter}");
    }
}

#[tokio::test]
async fn a_topk_leaves_out_row_groups_without_looking_at_them() {
    let (_folder, table) = table(10_000);
    table.load(|_, _| true).await;
    let context = context(&table, 1);
    // The largest ids are in the last row group: it is taken first, and none of the others can do better.
    let plan = plan(&context, "select id from t order by id desc limit 3").await;
    let batches = collect(plan.clone(), context.task_ctx()).await.expect("rows");
    assert_eq!(texts(&batches), ["39999", "39998", "39997"]);
    assert_eq!((counted(&leaf(&plan), "morsels_hot"), counted(&leaf(&plan), "morsels_pruned")), (1, 3));
    assert!(counted(&leaf(&plan), "rows_scanned") <= 16_384, "{}", counted(&leaf(&plan), "rows_scanned"));
}

#[tokio::test]
async fn bytes_are_asked_for_when_a_scan_begins_and_not_when_its_rows_are() {
    let (_folder, table) = table(100_000);
    let context = context(&table, 1);
    let asked = async |sql: &str| {
        let source = source(&leaf(&plan(&context, sql).await));
        let _rows = source.open(0, context.task_ctx()).expect("a scan");
        std::mem::take(&mut *table.ahead.lock())
    };
    assert_eq!(asked("select v from t").await, [(0, 1), (1, 1), (0, 1), (1, 1)]);
    assert_eq!(asked("select v from t limit 3").await, [], "it is not known where they are");
    let join = "select t.v from (values (31234), (31239)) k(id) join t on t.id = k.id";
    assert_eq!(asked(join).await, [(0, 0), (0, 1)], "the join may say where they are");
    table.load(|_, column| column == 1).await;
    assert_eq!(asked("select v from t").await, []);
}

#[tokio::test]
async fn of_rows_that_are_all_over_a_column_it_is_asked_for_as_a_whole() {
    let (_folder, mut table) = table(100_000);
    table.late = true;
    let context = context(&table, 1);
    for (filter, columns) in [("v < -100", vec![0, 1]), ("v = -123456", vec![])] {
        let source = source(&leaf(&plan(&context, &format!("select id from t where {filter}")).await));
        let _rows = source.open(0, context.task_ctx()).expect("a scan");
        let mut asked: Vec<u32> =
            std::mem::take(&mut *table.ahead.lock()).into_iter().map(|(_, column)| column).collect();
        asked.sort_unstable();
        asked.dedup();
        assert_eq!(asked, columns, "{filter}");
    }
}

#[tokio::test]
async fn a_join_tells_the_scan_what_it_wants() {
    let (_folder, table) = table(10_000);
    table.load(|_, _| true).await;
    let context = context(&table, 1);
    let sql = "select t.id from (values (31234), (31239)) k(id) join t on t.id = k.id order by 1";
    let plan = plan(&context, sql).await;
    let batches = collect(plan.clone(), context.task_ctx()).await.expect("rows");
    assert_eq!(texts(&batches), ["31234", "31239"]);
    let mut scan = None;
    let _ = datafusion::common::tree_node::TreeNode::apply(&plan, |node| {
        scan = scan.take().or_else(|| node.is::<DataSourceExec>().then(|| node.clone()));
        scan = scan.take().filter(|scan| displayable(scan.as_ref()).one_line().to_string().contains("HotSource"));
        Ok(datafusion::common::tree_node::TreeNodeRecursion::Continue)
    });
    let scan = scan.expect("a scan of the table");
    assert!(counted(&scan, "morsels_pruned") >= 3, "three row groups have none of the keys");
    assert_eq!(
        scan.metrics().and_then(|metrics| metrics.output_rows()),
        Some(2),
        "the others are left out before the join sees them"
    );
}

#[tokio::test]
async fn cold_and_hot_parts_are_read_in_one_plan() {
    let (_folder, table) = table(10_000);
    table.load(|segment, _| segment != 1).await;
    let cold = table.with_cache(&Cache::new(0));
    for (table, outlook) in [
        (&table, Outlook { rows: 40_000, absent_rows: 10_000, segments: 4, absent_segments: 1, skipped_rows: 0 }),
        (&cold, Outlook { rows: 40_000, absent_rows: 40_000, segments: 4, absent_segments: 4, skipped_rows: 0 }),
    ] {
        let context = context(table, 2);
        let plan = plan(&context, "select s, count(*), sum(id), count(v) from t group by s order by s").await;
        assert_eq!(source(&leaf(&plan)).outlook(), outlook);
        let batches = collect(plan.clone(), context.task_ctx()).await.expect("rows");
        let expected = [
            "a region with a long name|13333|266660000|12000",
            "north|13334|266673333|12000",
            "south|13333|266646667|12000",
        ];
        assert_eq!(texts(&batches), expected);
    }
    let context = context(&table, 2);
    answer(&context, "select * from t").await.expect("rows");
    let now = source(&leaf(&plan(&context, "select * from t").await)).outlook();
    assert_eq!(now.absent_segments, 0, "what was cold was loaded, as there was room");
}

#[tokio::test]
async fn a_row_group_that_was_read_leaves_nothing_to_the_next() {
    let (_folder, table) = table(10_000);
    let context = context(&table.with_cache(&Cache::new(0)), 2);
    let plan = plan(&context, "select id, s from t where v <= 0").await;
    collect(plan.clone(), context.task_ctx()).await.expect("rows");
    let scan = leaf(&plan);
    assert_eq!(counted(&scan, "segments_cold"), 4);
    let metrics = source(&scan).files().file_source().metrics().clone_inner();
    assert_eq!(metrics.iter().map(|metric| metric.value().name()).collect::<Vec<_>>(), Vec::<&str>::new());
}

#[tokio::test]
async fn much_is_read_from_files_before_it_is_loaded() {
    let (_folder, table) = table(100_000);
    let cache = table.cache.as_ref().expect("a cache");
    let context = context(&table, 2);
    let sql = "select count(v), sum(id), max(s) from t";
    let expected = ["360000|79999800000|south"];
    assert_eq!(answer(&context, sql).await.expect("rows"), expected);
    assert_eq!(cache.used(), 0, "it may never be asked for again");
    assert_eq!(answer(&context, sql).await.expect("rows"), expected);
    assert!(cache.used() > 0, "it was");
    cache.clear();
    assert_eq!(answer(&context, sql).await.expect("rows"), expected);
    assert_eq!(cache.used(), 0, "all is forgotten");
}

#[tokio::test]
async fn what_a_plan_looks_at_twice_is_read_once() {
    let (_folder, table) = table(100_000);
    let cache = table.cache.as_ref().expect("a cache");
    let context = context(&table, 2);
    let first = "select count(v), sum(id) from t where s <> 'north'";
    let twice = format!("{first} union all select count(s), sum(id + v) from t");
    let once = format!("{first} union all select count(*), sum(id) from t");
    for (sql, cold) in [(twice, [0, 0]), (once, [4, 0])] {
        let plan = LoadOnce.optimize(plan(&context, &sql).await, &ConfigOptions::new()).expect("a plan");
        let mut given = texts(&collect(plan.clone(), context.task_ctx()).await.expect("rows"));
        given.sort();
        let mut scans = Vec::new();
        plan.apply(|node| {
            scans.extend(node.is::<DataSourceExec>().then(|| counted(node, "segments_cold")));
            Ok(TreeNodeRecursion::Continue)
        })
        .expect("a walk");
        assert_eq!(scans, cold, "{sql}");
        assert_eq!(given, answer(&context, &format!("select * from ({sql}) order by 1, 2")).await.expect("rows"));
        cache.clear();
    }
}

#[tokio::test]
async fn what_a_filter_lets_much_through_of_is_loaded_by_the_second_scan() {
    let (_folder, mut table) = table(100_000);
    table.late = true;
    let context = context(&table, 2);
    let sql = "select id, v, s from t where v < -100";
    let absent = async || source(&leaf(&plan(&context, sql).await)).outlook().absent_segments;
    let first = answer(&context, sql).await.expect("rows");
    assert_eq!(absent().await, 4);
    assert_eq!(answer(&context, sql).await.expect("rows").len(), first.len());
    assert_eq!(absent().await, 0);
}

#[tokio::test]
async fn lookups_read_next_to_nothing_and_wait_for_no_load() {
    let (_folder, table) = table(100_000);
    let cache = table.cache.as_ref().expect("a cache");
    let context = context(&table, 2);
    let look = async |id: usize| {
        let plan = plan(&context, &format!("select id, v from t where id = {id}")).await;
        let batches = collect(plan.clone(), context.task_ctx()).await.expect("rows");
        assert_eq!(texts(&batches), [format!("{id}|-{id}")]);
        let leaf = leaf(&plan);
        assert_eq!(counted(&leaf, "rows_scanned"), 1, "by the reader, or by looking for it in memory");
        counted(&leaf, "segments_cold") == 1
    };
    let lookup = source(&leaf(&plan(&context, "select id, v from t where id = 123456").await)).outlook();
    assert_eq!((lookup.absent_rows, lookup.absent_rows - lookup.skipped_rows), (100_000, 40_000), "pages are indexed");
    let scan = source(&leaf(&plan(&context, "select id, v from t where v < 0").await)).outlook();
    assert_eq!((scan.absent_rows, scan.skipped_rows), (400_000, 0), "many rows pass");
    assert!(look(123_456).await && look(300_001).await && look(123_457).await);
    assert_eq!(cache.used(), 0);
    // Together they read as much as there is in the end; then it is loaded behind them.
    let mut cold = 0;
    while look(123_456).await {
        cold += 1;
        assert!(cold < 1000, "nothing is ever loaded");
        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
    }
    assert!(cache.used() > 0 && look(300_001).await, "the other row group was asked for once");
}

#[tokio::test]
async fn one_plan_executed_twice_at_once_gives_all_rows_to_both() {
    let (_folder, table) = table(20_000);
    table.load(|segment, _| segment % 2 == 0).await;
    let (a, b) = (context(&table, 3), context(&table, 3));
    let plan = plan(&a, "select id from t where v is not null").await;
    let (first, second) = tokio::join!(collect(plan.clone(), a.task_ctx()), collect(plan.clone(), b.task_ctx()));
    for batches in [first, second, collect(plan, a.task_ctx()).await] {
        let mut ids: Vec<i64> = texts(&batches.expect("rows")).iter().map(|id| id.parse().expect("a number")).collect();
        ids.sort_unstable();
        assert!(ids.iter().copied().eq((0..80_000).filter(|id| id % 10 > 0)));
    }
}

#[tokio::test]
async fn without_stealing_each_partition_has_its_own_segments() {
    let (_folder, table) = table(10_000);
    table.load(|_, _| true).await;
    let mut config = context(&table, 3).copied_config();
    config.options_mut().execution.enable_file_stream_work_stealing = false;
    let context = SessionContext::new_with_config(config);
    context.register_table("t", Arc::new(table.clone())).expect("registered");
    let rows = answer(&context, "select count(*), sum(id) from t where v is not null").await.expect("rows");
    assert_eq!(rows, ["36000|720000000"]);
}

#[tokio::test]
async fn a_limit_is_kept_exactly_and_loads_nothing() {
    let (_folder, table) = table(10_000);
    let context = context(&table, 2);
    for (sql, expected) in [("select * from t limit 7", 7), ("select id from t limit 0", 0)] {
        assert_eq!(answer(&context, sql).await.expect("rows").len(), expected, "{sql}");
        assert_eq!(table.cache.as_ref().expect("a cache").used(), 0, "{sql}");
    }
    let some = answer(&context, "select * from t where v < -20 limit 7").await.expect("rows");
    assert_eq!(some.len(), 7);
    let all = answer(&context, "select id from t limit 100000").await.expect("rows");
    assert_eq!(all.len(), 40_000);
}

#[tokio::test]
async fn strings_are_given_as_codes_when_that_is_asked_for() {
    let (_folder, table) = table(10_000);
    assert!(table.source(2).expect("hot").with_coded(&[2]).is_some(), "the file itself has codes");
    table.load(|segment, _| segment < 3).await;
    let source = table.source(2).expect("hot").with_columns(Some(&[2, 0])).expect("columns");
    assert!(source.with_coded(&[1]).is_none(), "not a string");
    let coded = source.with_coded(&[0]).expect("few values");
    let codes = DataType::Dictionary(Box::new(DataType::UInt32), Box::new(DataType::Utf8View));
    assert_eq!(coded.eq_properties().schema().field(0).data_type(), &codes);
    let plan: Arc<dyn ExecutionPlan> = DataSourceExec::from_data_source(coded);
    let context = context(&table.with_cache(&Cache::new(0)), 2);
    let batches = collect(plan, context.task_ctx()).await.expect("rows");
    let mut values = std::collections::HashSet::new();
    let mut rows = texts(&batches);
    for batch in &batches {
        let column = batch.column(0).as_dictionary::<UInt32Type>();
        if batch.num_rows() > 0 && column.values().len() == 3 {
            values.insert(Arc::as_ptr(column.values()).cast::<u8>() as usize);
        }
    }
    let plain: Arc<dyn ExecutionPlan> = DataSourceExec::from_data_source(source);
    let mut expected = texts(&collect(plain, context.task_ctx()).await.expect("rows"));
    rows.sort();
    expected.sort();
    assert_eq!(rows, expected);
    assert!(values.len() >= 3, "each segment in memory has its own strings: {values:?}");
}

#[tokio::test]
async fn statistics_are_exact_until_a_filter_makes_them_an_estimate() {
    let (_folder, table) = table(10_000);
    let all = table.source(4).expect("hot");
    assert_eq!(all.partition_statistics(None).expect("statistics").num_rows, Precision::Exact(40_000));
    assert_eq!(all.partition_statistics(Some(1)).expect("statistics").num_rows, Precision::Inexact(10_000));
    let few = all.with_rows(Some(5)).partition_statistics(None).expect("statistics");
    assert_eq!(few.num_rows, Precision::Exact(5));
    // Bytes of single columns would outlive the rows that joins leave out.
    assert!(few.column_statistics.iter().all(|column| column.byte_size == Precision::Absent), "{few}");
    let context = context(&table, 4);
    let filtered = source(&leaf(&plan(&context, "select s from t where id between 30000 and 39999").await));
    let statistics = filtered.partition_statistics(None).expect("statistics");
    let Precision::Inexact(rows) = statistics.num_rows else { panic!("{statistics}") };
    assert!((2000..=10_000).contains(&rows), "one of four row groups can have such rows: {rows}");
    assert_eq!(statistics.column_statistics.len(), 1);
}

#[tokio::test]
async fn a_plan_shows_what_is_hot() {
    let (_folder, table) = table(10_000);
    table.load(|segment, _| segment == 3).await;
    let context = context(&table, 2);
    let plan = plan(&context, "select s from t where id > 25000 and v < 0").await;
    let shown = displayable(plan.as_ref()).indent(false).to_string();
    let expected = "HotSource: table=public.t, files=2, hot=1, cold=1, pruned=2, projection=[s], \
                    filters=[id@0 > 25000, v@1 < 0]";
    assert!(shown.contains(expected), "{shown}");
}

#[tokio::test]
async fn how_many_rows_pass_is_known_from_some_of_them() {
    let (_folder, table) = table(40_000);
    let rows = |table: &Table| {
        let context = context(table, 1);
        async move {
            let plan = plan(&context, "select id from t where s like '%region%' and v is not null").await;
            let statistics = source(&leaf(&plan)).partition_statistics(None).expect("statistics");
            statistics.num_rows.get_value().copied().expect("a number")
        }
    };
    assert_eq!(rows(&table).await, 32_000, "what DataFusion takes any such filter for");
    table.load(|_, _| true).await;
    let sampled = rows(&table).await;
    assert!((44_000..=52_000).contains(&sampled), "{sampled} in place of 48,000");
}
