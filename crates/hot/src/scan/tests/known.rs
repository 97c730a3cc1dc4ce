//! What is known of columns once they are in memory: their extremes, and their order.

use std::sync::Arc;

use datafusion::arrow::array::{Array, Float64Array, RecordBatch};
use datafusion::arrow::datatypes::{DataType, Field, Schema};
use datafusion::physical_plan::{collect, displayable};

use super::table::{Table, answer, in_memory, session, texts, write};
use super::told::{context, plan, table};
use crate::cache::Cache;

#[tokio::test]
async fn the_extremes_of_floats_are_known_once_all_are_in_memory() {
    let schema = Schema::new(vec![
        Field::new("f", DataType::Float64, true),
        Field::new("zero", DataType::Float64, true),
        Field::new("nan", DataType::Float64, true),
        Field::new("none", DataType::Float64, true),
    ]);
    let batch = |rows: [[Option<f64>; 3]; 3]| {
        let column = |at: usize| Arc::new(rows.iter().map(|row| row[at]).collect::<Float64Array>()) as Arc<dyn Array>;
        let none = Arc::new(Float64Array::new_null(3));
        RecordBatch::try_new(Arc::new(schema.clone()), vec![column(0), column(1), column(2), none]).expect("a batch")
    };
    let folder = tempfile::tempdir().expect("folder");
    let path = folder.path().join("a.parquet");
    let first =
        [[Some(1.5), Some(0.0), Some(f64::NAN)], [None, Some(0.0), Some(1.0)], [Some(f64::INFINITY), None, None]];
    let second = [[Some(-7.25), Some(-0.0), Some(1.0)], [Some(2.0), Some(-1.0), None], [Some(3.0), None, None]];
    write(&path, &[batch(first), batch(second)]);
    let table = Table::new(&schema, &Schema::empty(), &[(&path, vec![])]).with_cache(&Cache::new(1 << 20));
    let context = context(&table, 1);
    let plain = session(in_memory(&table).await, 1, 8192);
    let scans = async |sql: &str| {
        let shown = displayable(plan(&context, sql).await.as_ref()).indent(false).to_string();
        assert_eq!(answer(&context, sql).await.expect("rows"), answer(&plain, sql).await.expect("rows"), "{sql}");
        shown.contains("HotSource")
    };
    let known = ["select min(f), max(f), count(*) from t", "select max(zero), min(zero) from t"];
    for sql in known {
        assert!(scans(sql).await, "{sql}");
        table.cache.as_ref().expect("a cache").clear();
    }
    table.load(|segment, _| segment == 0).await;
    assert!(scans(known[0]).await, "half of it is in memory");
    table.load(|_, _| true).await;
    for sql in known {
        assert!(!scans(sql).await, "{sql}");
    }
    for sql in ["select max(nan) from t", "select min(nan) from t", "select min(none) from t"] {
        assert!(scans(sql).await, "{sql}");
    }
    assert!(scans("select max(f) from t where f < 3").await);
    assert!(scans("select max(f) from (select f from t limit 2)").await);
    table.cache.as_ref().expect("a cache").clear();
    assert!(!scans(known[0]).await, "the files are still the same");
}

#[tokio::test]
async fn rows_that_are_in_order_are_not_sorted() {
    let (_folder, table) = table(10_000);
    let context = context(&table, 3);
    let plain = session(in_memory(&table).await, 1, 8192);
    let sorts = async |sql: &str| {
        let plan = plan(&context, sql).await;
        let shown = displayable(plan.as_ref()).indent(false).to_string();
        let rows = texts(&collect(plan, context.task_ctx()).await.expect("rows"));
        assert_eq!(rows, answer(&plain, sql).await.expect("rows"), "{sql}");
        shown.contains("SortExec")
    };
    let by_id = "select * from t order by id";
    assert!(sorts(by_id).await, "nothing is known of it");
    table.load(|_, _| true).await;
    for sql in [
        by_id,
        "select s from t order by id nulls first",
        "select v, id as a, id as b from t order by b",
        "select * from t order by id limit 3",
        "select id from t order by id limit 3 offset 19998",
        "select id from t where s = 'south' and v is not null order by id",
        "select id from t where s = 'south' and id > 12345 order by id limit 20",
        "select id, row_number() over (order by id) from t order by id limit 2 offset 20000",
    ] {
        assert!(!sorts(sql).await, "{sql}");
    }
    for sql in [
        "select id from t order by id desc",
        "select id, v from t order by v, id limit 10",
        "select id, v from t order by id, v",
        "select id from t order by id % 10, id limit 10",
        "select upper(s) from t order by id",
        // The rows of the limit are those of its own order.
        "select * from (select * from t order by id limit 30000) order by v nulls first, id limit 5",
        "select * from (select id, v from t order by v nulls last limit 12000) order by id limit 5",
    ] {
        assert!(sorts(sql).await, "{sql}");
    }
    // Not in memory any more, or only in part: loaded again, or, of a few rows, read from the file.
    for (sql, loaded) in [(by_id, None), (by_id, Some(1)), ("select id, s from t order by id limit 25000", Some(2))] {
        let plan = plan(&context, sql).await;
        table.cache.as_ref().expect("a cache").clear();
        table.load(|segment, _| Some(segment) == loaded).await;
        let rows = texts(&collect(plan, context.task_ctx()).await.expect("rows"));
        assert_eq!(rows, answer(&plain, sql).await.expect("rows"), "{sql}");
        table.load(|_, _| true).await;
    }
}

#[tokio::test]
async fn row_groups_that_overlap_or_come_in_another_order_are_sorted() {
    let schema = Schema::new(vec![Field::new("k", DataType::Float64, true)]);
    let folder = tempfile::tempdir().expect("folder");
    let path = folder.path().join("a.parquet");
    for (groups, in_order) in [
        ([vec![-1.0, -0.0], vec![0.0, 2.0], vec![2.0, 2.0]], true),
        ([vec![1.0, 2.0], vec![1.5, 3.0], vec![4.0, 5.0]], false),
        ([vec![1.0, 2.0], vec![5.0, 6.0], vec![3.0, 4.0]], false),
        ([vec![1.0, 2.0], vec![2.0, f64::NAN], vec![3.0, 4.0]], false),
        ([vec![1.0, 0.0], vec![2.0, 3.0], vec![3.0, 4.0]], false),
        ([vec![0.0, 0.0], vec![-0.0, 3.0], vec![3.0, 4.0]], false),
    ] {
        let batch = |rows: &Vec<f64>| {
            let column = Arc::new(Float64Array::from(rows.clone()));
            RecordBatch::try_new(Arc::new(schema.clone()), vec![column]).expect("a batch")
        };
        write(&path, &groups.iter().map(batch).collect::<Vec<_>>());
        let table = Table::new(&schema, &Schema::empty(), &[(&path, vec![])]).with_cache(&Cache::new(1 << 20));
        table.load(|_, _| true).await;
        let context = context(&table, 1);
        let sql = "select k from t order by k";
        let shown = displayable(plan(&context, sql).await.as_ref()).indent(false).to_string();
        assert_eq!(!shown.contains("SortExec"), in_order, "{groups:?} {shown}");
        let plain = session(in_memory(&table).await, 1, 8192);
        assert_eq!(answer(&context, sql).await.expect("rows"), answer(&plain, sql).await.expect("rows"));
    }
}
