//! What a scan of a million rows in memory costs: rows left out before they are copied, or passed on as they are.
//!
//! `cargo bench -p updraft-hot --bench scan`

use std::sync::Arc;

use async_trait::async_trait;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use datafusion::arrow::array::{ArrayRef, Float64Array, Int64Array, StringViewArray};
use datafusion::arrow::datatypes::{DataType, Field, Schema};
use datafusion::datasource::listing::PartitionedFile;
use datafusion::datasource::physical_plan::{FileGroup, FileScanConfigBuilder, ParquetSource};
use datafusion::datasource::source::{DataSource, DataSourceExec};
use datafusion::error::Result;
use datafusion::execution::TaskContext;
use datafusion::execution::object_store::ObjectStoreUrl;
use datafusion::logical_expr::Operator;
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::expressions::{binary, col, lit};
use datafusion::physical_plan::ExecutionPlan;
use futures::StreamExt;
use tokio::runtime::{Builder, Runtime};
use updraft_hot::{Cache, ColumnKey, File, FileKey, HotSource, Load, Segments, Size, When};

const ROWS: usize = 1 << 20;

/// A column of each kind: ascending, spread, few strings, many strings.
#[derive(Debug)]
struct Loader;

#[async_trait]
impl Load for Loader {
    async fn sizes(&self, keys: &[ColumnKey]) -> Result<Vec<Size>> {
        Ok(vec![Size::default(); keys.len()])
    }

    async fn load(&self, key: &ColumnKey) -> Result<ArrayRef> {
        let spread = (0..ROWS as u64).map(|row| row.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40);
        Ok(match key.column {
            0 => Arc::new(Int64Array::from_iter_values(0..ROWS as i64)),
            1 => Arc::new(Float64Array::from_iter_values(spread.map(|number| (number % 10_000) as f64 / 100.0))),
            2 => {
                let words = spread.map(|number| format!("category {}", number % 20));
                Arc::new(StringViewArray::from_iter_values(words))
            }
            _ => Arc::new(StringViewArray::from_iter_values(spread.map(|number| format!("the name {number}")))),
        })
    }
}

fn source(runtime: &Runtime) -> HotSource {
    let schema = Arc::new(Schema::new(vec![
        Field::new("id", DataType::Int64, true),
        Field::new("score", DataType::Float64, true),
        Field::new("category", DataType::Utf8View, true),
        Field::new("name", DataType::Utf8View, true),
    ]));
    let loader = Arc::new(Loader) as Arc<dyn Load>;
    let columns: Arc<[Option<u32>]> = (0..4).map(Some).collect();
    let file = File { key: FileKey::new("t"), rows: Arc::new([ROWS as u64]), columns, loader: loader.clone() };
    let keys = schema.fields().iter().enumerate().filter_map(|(at, field)| file.column(0, at, field.data_type()));
    let (cache, table, keys) = (Cache::new(1 << 30), Arc::<str>::from("t"), keys.collect::<Vec<_>>());
    runtime.block_on(cache.get_or_load(&table, &loader, &keys, When::AtOnce)).expect("loaded");
    let files = vec![PartitionedFile::new("t.parquet", 1).with_extension(file)];
    let segments = Segments::new(schema.clone(), files.clone()).expect("all are known");
    let base = FileScanConfigBuilder::new(ObjectStoreUrl::local_filesystem(), Arc::new(ParquetSource::new(schema)))
        .with_file_groups(vec![FileGroup::new(files)]);
    HotSource::new(base.build(), Arc::new(segments), None, cache, table, 1)
}

/// The plan of `source` with `filter`.
fn filtered(source: &HotSource, filter: Option<Arc<dyn PhysicalExpr>>) -> Arc<dyn ExecutionPlan> {
    let filters = filter.into_iter().collect();
    let pushed = source.try_pushdown_filters(filters, &Default::default()).expect("taken");
    Arc::new(DataSourceExec::new(pushed.updated_node.unwrap_or_else(|| Arc::new(source.clone()))))
}

fn rows(runtime: &Runtime, plan: &Arc<dyn ExecutionPlan>) -> usize {
    runtime.block_on(async {
        let mut batches = plan.execute(0, Arc::new(TaskContext::default())).expect("a stream");
        let mut rows = 0;
        while let Some(batch) = batches.next().await {
            rows += batch.expect("rows").num_rows();
        }
        rows
    })
}

fn scan(c: &mut Criterion) {
    let runtime = Builder::new_current_thread().build().expect("a runtime");
    let source = source(&runtime);
    let schema = source.eq_properties().schema().clone();
    let is = |column: &str, operator, value| {
        binary(col(column, &schema).expect("a column"), operator, value, &schema).expect("a filter")
    };
    let both = binary(
        is("score", Operator::Gt, lit(50.0)),
        Operator::And,
        is("category", Operator::Lt, lit(datafusion::common::ScalarValue::Utf8View(Some("category 2".to_owned())))),
        &schema,
    );
    let category = datafusion::common::ScalarValue::Utf8View(Some("category 7".to_owned()));
    let mut group = c.benchmark_group("a million rows in memory");
    group.throughput(Throughput::Elements(ROWS as u64));
    for (name, filter, expected) in [
        ("all", None, Some(ROWS)),
        ("one row by the sorted column", Some(is("id", Operator::Eq, lit(4242_i64))), Some(1)),
        ("a twentieth by a number", Some(is("score", Operator::Gt, lit(95.0))), None),
        ("a twentieth by a coded string", Some(is("category", Operator::Eq, lit(category))), None),
        ("a quarter by both", Some(both.expect("a filter")), None),
    ] {
        let plan = filtered(&source, filter);
        let given = rows(&runtime, &plan);
        assert!(given > 0 && expected.is_none_or(|expected| given == expected), "{name}: {given} rows");
        group.bench_function(name, |bencher| bencher.iter(|| rows(&runtime, &plan)));
    }
}

criterion_group!(benches, scan);
criterion_main!(benches);
