use std::fmt;
use std::sync::Arc;

use arbtest::arbitrary::{Result as Choice, Unstructured};
use datafusion::arrow::array::{
    Array, ArrayRef, BooleanArray, Date32Array, Decimal128Array, DictionaryArray, Float64Array, Int8Array, Int64Array,
    RecordBatch, StringArray, StringViewArray, TimestampNanosecondArray, UInt8Array, UInt16Array, UInt64Array,
};
use datafusion::arrow::datatypes::Schema;
use datafusion::arrow::util::pretty::pretty_format_batches;
use datafusion::common::config::ConfigOptions;
use datafusion::common::stats::Precision;
use datafusion::common::tree_node::{Transformed, TransformedResult, TreeNode, TreeNodeRecursion};
use datafusion::common::{Result, ScalarValue, Statistics, TableReference};
use datafusion::datasource::MemTable;
use datafusion::datasource::memory::MemorySourceConfig;
use datafusion::datasource::source::DataSourceExec;
use datafusion::execution::memory_pool::GreedyMemoryPool;
use datafusion::execution::runtime_env::RuntimeEnvBuilder;
use datafusion::execution::session_state::SessionStateBuilder;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::parquet::arrow::ArrowWriter;
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_optimizer::PhysicalOptimizerRule;
use datafusion::physical_optimizer::optimizer::PhysicalOptimizer;
use datafusion::physical_plan::statistics::StatisticsArgs;
use datafusion::physical_plan::{DisplayAs, DisplayFormatType, ExecutionPlan, PlanProperties, collect, displayable};
use datafusion::prelude::{SessionConfig, SessionContext};
use futures::StreamExt;
use updraft_catalog::{CATALOG, Catalog, Relation, SCHEMA};

use super::DenseAggregateExec;
use crate::fit::Fit;

/// What the statistics of a table say of its columns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Claim {
    /// The least and the greatest value.
    True,
    /// The first value is the least and the greatest.
    Narrow,
    /// The greatest value is the least.
    Reversed,
    Nothing,
}

/// Says of its input what is claimed.
#[derive(Debug)]
struct Claims {
    input: Arc<dyn ExecutionPlan>,
    claim: Claim,
    columns: Vec<(ScalarValue, ScalarValue)>,
}

impl DisplayAs for Claims {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Claims")
    }
}

impl ExecutionPlan for Claims {
    fn name(&self) -> &str {
        "Claims"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        self.input.properties()
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        vec![&self.input]
    }

    fn with_new_children(self: Arc<Self>, mut children: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        let (claim, columns) = (self.claim, self.columns.clone());
        Ok(Arc::new(Self { input: children.swap_remove(0), claim, columns }))
    }

    fn apply_expressions(
        &self,
        _: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        self.input.execute(partition, context)
    }

    fn statistics_from_inputs(&self, _: &[Arc<Statistics>], _: &StatisticsArgs) -> Result<Arc<Statistics>> {
        let mut statistics = Statistics::new_unknown(&self.schema());
        for (column, (least, greatest)) in statistics.column_statistics.iter_mut().zip(&self.columns) {
            let (least, greatest) = match self.claim {
                Claim::True => (least, greatest),
                Claim::Narrow => (least, least),
                Claim::Reversed => (greatest, least),
                Claim::Nothing => continue,
            };
            column.min_value = Precision::Inexact(least.clone());
            column.max_value = Precision::Inexact(greatest.clone());
        }
        Ok(Arc::new(statistics))
    }
}

/// Makes the scans of a plan claim something.
#[derive(Debug)]
struct Claiming {
    claim: Claim,
    /// Of all columns of the table, by name.
    columns: Vec<(String, (ScalarValue, ScalarValue))>,
}

impl PhysicalOptimizerRule for Claiming {
    fn optimize(&self, plan: Arc<dyn ExecutionPlan>, _: &ConfigOptions) -> Result<Arc<dyn ExecutionPlan>> {
        plan.transform_up(|node| {
            let source = node.downcast_ref::<DataSourceExec>().map(DataSourceExec::data_source);
            if source.and_then(|source| source.downcast_ref::<MemorySourceConfig>()).is_none() {
                return Ok(Transformed::no(node));
            }
            let schema = node.schema();
            let bounds = |name: &str| self.columns.iter().find(|(column, _)| column == name).map(|one| one.1.clone());
            let Some(columns) = schema.fields().iter().map(|field| bounds(field.name())).collect() else {
                return Ok(Transformed::no(node));
            };
            let claims = Claims { columns, input: node, claim: self.claim };
            Ok(Transformed::yes(Arc::new(claims) as Arc<dyn ExecutionPlan>))
        })
        .data()
    }

    fn name(&self) -> &str {
        "Claiming"
    }

    fn schema_check(&self) -> bool {
        true
    }
}

/// A table `t`, in partitions of batches.
#[derive(Debug, Clone)]
struct Table {
    schema: Arc<Schema>,
    partitions: Vec<Vec<RecordBatch>>,
}

impl Table {
    fn bounds(&self) -> Vec<(String, (ScalarValue, ScalarValue))> {
        let columns = self.schema.fields().iter().enumerate().map(|(index, field)| {
            let batches = self.partitions.iter().flatten().map(|batch| batch.column(index));
            let values = batches.flat_map(|column| {
                (0..column.len()).map(|row| ScalarValue::try_from_array(column, row).expect("it has a scalar"))
            });
            let values = values.filter(|value| !value.is_null());
            let null = ScalarValue::try_from(field.data_type()).expect("it has a scalar");
            let bounds = values.fold((null.clone(), null), |(least, greatest), value| {
                let less = least.is_null() || value < least;
                let more = greatest.is_null() || value > greatest;
                (if less { value.clone() } else { least }, if more { value } else { greatest })
            });
            (field.name().clone(), bounds)
        });
        columns.collect()
    }

    /// A context in which `t` is this table, as stock DataFusion has it or with rules of ours and such claims.
    fn context(&self, claim: Option<Claim>, fit: Option<Fit>, pool: usize) -> SessionContext {
        let mut config = SessionConfig::new().with_target_partitions(self.partitions.len()).with_batch_size(500);
        config.options_mut().execution.sort_spill_reservation_bytes = 64 << 10;
        config.options_mut().optimizer.repartition_file_scans = false;
        if let Some(fit) = fit {
            config.options_mut().extensions.insert(fit);
        }
        let mut rules = claim.map_or_else(|| PhysicalOptimizer::new().rules, |_| crate::fit::rules());
        if let Some(claim) = claim {
            rules.insert(0, Arc::new(Claiming { claim, columns: self.bounds() }));
        }
        let pool = Arc::new(GreedyMemoryPool::new(pool));
        let runtime = RuntimeEnvBuilder::new().with_memory_pool(pool).build_arc().expect("an environment");
        let state = SessionStateBuilder::new().with_config(config).with_runtime_env(runtime).with_default_features();
        let context = SessionContext::new_with_state(state.with_physical_optimizer_rules(rules).build());
        let table =
            MemTable::try_new(Arc::clone(&self.schema), self.partitions.clone()).expect("batches of the schema");
        context.register_table("t", Arc::new(table)).expect("a new table");
        context
    }
}

/// Rows in their order, and the plan that gave them.
async fn rows(context: &SessionContext, sql: &str) -> Result<(Vec<String>, Arc<dyn ExecutionPlan>)> {
    let plan = context.sql(sql).await?.create_physical_plan().await?;
    let batches = collect(Arc::clone(&plan), context.task_ctx()).await?;
    let text = pretty_format_batches(&batches)?.to_string();
    let mut rows: Vec<_> = text.lines().map(str::to_owned).collect();
    rows.sort_unstable();
    Ok((rows, plan))
}

fn dense(plan: &Arc<dyn ExecutionPlan>) -> Option<&Arc<dyn ExecutionPlan>> {
    if plan.is::<DenseAggregateExec>() { Some(plan) } else { plan.children().into_iter().find_map(dense) }
}

fn fallbacks(plan: &Arc<dyn ExecutionPlan>) -> usize {
    let metrics = dense(plan).and_then(|dense| dense.metrics()).expect("a dense aggregate");
    metrics.sum_by_name("fallbacks").map_or(0, |count| count.as_usize())
}

const KEYS: [&str; 12] =
    ["small", "large", "low", "day", "at", "price", "high", "flag", "word", "text", "wide", "constant"];

const FUNCTIONS: [&str; 17] = [
    "count(*)",
    "count(f)",
    "sum(i)",
    "sum(f)",
    "avg(f)",
    "min(g)",
    "max(g)",
    "max(i)",
    "sum(m)",
    "avg(m)",
    "min(s)",
    "max(s)",
    "count(DISTINCT i)",
    "median(i)",
    "bool_or(b)",
    "sum(m) FILTER (WHERE f > 1)",
    "count(word) FILTER (WHERE nullif(b, false))",
];

/// Of each key: how its values are made of a small number.
fn column(name: &str, numbers: &[Option<u8>], batch: usize) -> ArrayRef {
    let numbers = || numbers.iter().copied();
    let whole = |least: i64| numbers().map(move |number| Some(least + i64::from(number?)));
    let text =
        |number: u8| format!("{}{number}", if number.is_multiple_of(2) { "a text that is not inlined " } else { "" });
    match name {
        "small" => Arc::new(whole(-7).collect::<Int64Array>()),
        "large" => Arc::new(whole(i64::MAX - 255).collect::<Int64Array>()),
        "low" => {
            Arc::new(numbers().map(|number| number.map(|number| number.wrapping_add(100) as i8)).collect::<Int8Array>())
        }
        "day" => Arc::new(whole(-100).map(|day| Some(day? as i32)).collect::<Date32Array>()),
        "at" => Arc::new(whole(i64::MIN).collect::<TimestampNanosecondArray>().with_timezone("Europe/Berlin")),
        "price" => {
            let prices = whole(-300).map(|price| price.map(i128::from)).collect::<Decimal128Array>();
            Arc::new(prices.with_precision_and_scale(15, 2).expect("a scale that exists"))
        }
        "high" => Arc::new(whole(-1000).map(|number| number.map(i64::cast_unsigned)).collect::<UInt64Array>()),
        "flag" => Arc::new(numbers().map(|number| Some(number? % 2 == 0)).collect::<BooleanArray>()),
        "word" => {
            // Each batch has them in another order, some twice, and a NULL among them.
            let words = (0..=255_u16).map(|place| place.wrapping_mul(7).wrapping_add(batch as u16 * 31) as u8);
            let words: Vec<_> = words.collect();
            let keys = numbers()
                .map(|number| words.iter().position(|word| Some(*word) == number))
                .map(|key| Some(key? as u16));
            let values: StringViewArray = words.iter().map(|word| (word % 50 != 49).then(|| text(word % 50))).collect();
            Arc::new(DictionaryArray::new(keys.collect::<UInt16Array>(), Arc::new(values)))
        }
        "text" => {
            let keys = numbers().map(|number| Some(number? % 5)).collect::<UInt8Array>();
            let values: StringArray = (0..5).map(|word| Some(text(word))).collect();
            Arc::new(DictionaryArray::new(keys, Arc::new(values)))
        }
        // Too wide for a table.
        "wide" => Arc::new(whole(0).map(|number| Some((number? - 128) << 40)).collect::<Int64Array>()),
        "constant" => Arc::new(numbers().map(|_| None).collect::<Int64Array>()),
        "i" => Arc::new(
            whole(0).map(|number| Some(if number? % 3 == 0 { i64::MAX } else { number? })).collect::<Int64Array>(),
        ),
        "f" => {
            let values = [f64::NAN, f64::INFINITY, -0.0, 1.0, 2.0, 3.5, -7.0, 1e9];
            Arc::new(numbers().map(|number| Some(values[usize::from(number? % 8)])).collect::<Float64Array>())
        }
        // What DataFusion makes of NaN and infinity as the least or the greatest depends on the order of rows.
        "g" => Arc::new(numbers().map(|number| Some(f64::from(number?) * 1e300 - 1e302)).collect::<Float64Array>()),
        "m" => {
            let values = whole(-128).map(|number| Some(i128::from(number? * 1_000_000_007)));
            Arc::new(values.collect::<Decimal128Array>().with_precision_and_scale(20, 3).expect("a scale that exists"))
        }
        "s" => Arc::new(numbers().map(|number| Some(text(number?))).collect::<StringViewArray>()),
        _ => Arc::new(numbers().map(|number| Some(number? % 3 == 0)).collect::<BooleanArray>()),
    }
}

fn batch(rows: &[[Option<u8>; 18]], number: usize) -> RecordBatch {
    let names = KEYS.iter().copied().chain(["i", "f", "g", "m", "s", "b"]).enumerate();
    let columns = names.map(|(index, name)| {
        let numbers: Vec<_> = rows.iter().map(|row| row[index]).collect();
        (name, column(name, &numbers, number), true)
    });
    RecordBatch::try_from_iter_with_nullable(columns).expect("columns of one length")
}

fn any_table(u: &mut Unstructured<'_>) -> Choice<Table> {
    let spread = *u.choose(&[1_u8, 4, 60, 255])?;
    let nulls = *u.choose(&[0_u8, 30, 255])?;
    let schema = batch(&[], 0).schema();
    let mut partitions = Vec::new();
    let mut seed = u.arbitrary::<u64>()? | 1;
    // More numbers than there are bytes to choose from.
    let mut next = move || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        (seed >> 24) as u8
    };
    for partition in 0..u.int_in_range(1..=3)? {
        let mut batches = Vec::new();
        for number in 0..u.int_in_range(0..=4)? {
            let rows = u.int_in_range(0..=120)?;
            let mut value = || Some(next()).filter(|_| next() >= nulls).map(|value| value % spread);
            let rows: Vec<_> = (0..rows).map(|_| [(); 18].map(|()| value())).collect();
            batches.push(batch(&rows, partition * 5 + number));
        }
        partitions.push(batches);
    }
    Ok(Table { schema, partitions })
}

fn any_query(u: &mut Unstructured<'_>) -> Choice<String> {
    let mut keys = Vec::new();
    for _ in 0..u.int_in_range(1..=3)? {
        let key = *u.choose(&KEYS)?;
        if !keys.contains(&key) {
            keys.push(key);
        }
    }
    let keys = keys.join(", ");
    let mut functions = Vec::new();
    for function in FUNCTIONS {
        if u.ratio(1, 3)? {
            functions.push(function);
        }
    }
    let shown: String = functions.iter().map(|function| format!(", {function}")).collect();
    let filter = *u.choose(&["", "WHERE b", "WHERE f > 0 AND small > 3", "WHERE false"])?;
    let having = *u.choose(&["", "HAVING count(*) > 1", "HAVING max(i) > 100 OR min(small) < 3"])?;
    Ok(format!("SELECT {keys}{shown} FROM t {filter} GROUP BY {keys} {having}"))
}

#[test]
fn answers_are_those_of_datafusion() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().expect("a runtime");
    let mut replaced = 0;
    arbtest::arbtest(|u| {
        let (table, sql) = (any_table(u)?, any_query(u)?);
        let claim = *u.choose(&[Claim::True, Claim::True, Claim::Narrow, Claim::Reversed, Claim::Nothing])?;
        // DataFusion itself makes an interval of them where it filters.
        let claim = if claim == Claim::Reversed && sql.contains("WHERE") | sql.contains("HAVING") {
            Claim::True
        } else {
            claim
        };
        let pool = *u.choose(&[1 << 30, 1 << 30, 2 << 20])?;
        let fit = *u.choose(&[None, Some(Fit { room: 1 << 30, share: 1 << 30, careful: false })])?;
        runtime.block_on(async {
            let (expected, _) = rows(&table.context(None, None, 1 << 30), &sql).await.expect("DataFusion answers");
            match rows(&table.context(Some(claim), fit, pool), &sql).await {
                Ok((answer, plan)) => {
                    let differ: Vec<_> = answer.iter().zip(&expected).filter(|(left, right)| left != right).collect();
                    let plan_text = displayable(plan.as_ref()).indent(false).to_string();
                    assert!(answer == expected, "{sql} {claim:?}\n{differ:#?}\n{plan_text}");
                    replaced += usize::from(dense(&plan).is_some());
                }
                // It has nothing to spill to with so little.
                Err(error) => assert!(pool < 1 << 30, "{sql}: {error}"),
            }
        });
        Ok(())
    })
    .budget_ms(5_000);
    assert!(replaced > 0);
}

/// A table of one partition for each of `partitions`, with whole numbers `k` and `v` and two keys of 9,000 words each.
fn numbers(partitions: usize, rows: i64) -> Table {
    let words = || Arc::new((0..9_000).map(|word| Some(format!("word {word}"))).collect::<StringViewArray>());
    let coded = |times: i64| {
        let keys = (0..rows).map(|row| Some((row * times % 9_000) as u16)).collect::<UInt16Array>();
        Arc::new(DictionaryArray::new(keys, words())) as ArrayRef
    };
    let batch = |partition: usize| {
        let key = (0..rows).map(|row| Some((row * 7919 + partition as i64) % rows)).collect::<Int64Array>();
        let value = (0..rows).map(|row| (row % 11 != 0).then_some(row)).collect::<Int64Array>();
        let columns = [("k", Arc::new(key) as ArrayRef), ("v", Arc::new(value)), ("a", coded(1)), ("b", coded(31))];
        RecordBatch::try_from_iter_with_nullable(columns.map(|(name, column)| (name, column, true))).expect("columns")
    };
    let slices = |batch: RecordBatch| {
        (0..batch.num_rows()).step_by(1000).map(move |at| batch.slice(at, 1000.min(batch.num_rows() - at)))
    };
    let partitions: Vec<Vec<_>> = (0..partitions).map(|partition| slices(batch(partition)).collect()).collect();
    Table { schema: partitions[0][0].schema(), partitions }
}

#[tokio::test]
async fn many_groups_are_brought_together_in_parallel() {
    let table = numbers(3, 15_000);
    let sql = "SELECT k, count(*), sum(v), avg(v), max(v), count(v) FILTER (WHERE v > 100) FROM t GROUP BY k";
    let (expected, _) = rows(&table.context(None, None, 1 << 30), sql).await.expect("DataFusion answers");
    let context = table.context(Some(Claim::True), None, 1 << 30);
    let (answer, plan) = rows(&context, sql).await.expect("there is room");
    assert!(answer == expected);
    assert_eq!(fallbacks(&plan), 0);
    let metrics = dense(&plan).and_then(|dense| dense.metrics()).expect("a dense aggregate");
    let mut given = vec![0; 3];
    for metric in metrics.iter().filter(|metric| metric.value().name() == "output_rows") {
        given[metric.partition().expect("rows are of a partition")] += metric.value().as_usize();
    }
    assert!(given.iter().all(|rows| *rows == 5_000), "{given:?}");
    assert_eq!(context.runtime_env().memory_pool.reserved(), 0);
}

#[tokio::test]
async fn what_does_not_fit_is_left_to_datafusion() {
    for (table, sql, claim, pool) in [
        // Keys out of their range.
        (numbers(2, 2_000), "SELECT k, sum(v) FROM t GROUP BY k", Claim::Narrow, 1 << 30),
        // 81 million slots for words.
        (numbers(2, 2_000), "SELECT a, b, sum(v), min(k) FROM t GROUP BY a, b", Claim::True, 1 << 30),
        // No room for more groups, and none to bring them together.
        (numbers(2, 8_000), "SELECT k, sum(v), avg(v) FROM t GROUP BY k", Claim::True, 500 << 10),
        (numbers(2, 8_000), "SELECT k, sum(v), avg(v) FROM t GROUP BY k", Claim::True, 800 << 10),
    ] {
        let (expected, _) = rows(&table.context(None, None, 1 << 30), sql).await.expect("DataFusion answers");
        let context = table.context(Some(claim), None, pool);
        let (answer, plan) = rows(&context, sql).await.expect("DataFusion would answer too");
        assert!(answer == expected, "{sql} {claim:?} {pool}");
        assert_eq!(fallbacks(&plan), 1, "{sql} {claim:?} {pool}");
        assert_eq!(context.runtime_env().memory_pool.reserved(), 0);
    }
}

#[tokio::test]
async fn a_plan_stays_as_it_is_where_tables_would_take_too_much() {
    let table = numbers(2, 100_000);
    let sql = "SELECT k, sum(v) FROM t GROUP BY k";
    for (fit, replaced) in [
        (Fit { room: 16 << 20, share: 16 << 20, careful: false }, true),
        (Fit { room: 4 << 20, share: 4 << 20, careful: false }, false),
        (Fit { room: 1 << 30, share: 1 << 30, careful: true }, false),
    ] {
        let context = table.context(Some(Claim::True), Some(fit), 1 << 30);
        let plan = context.sql(sql).await.expect("it plans").create_physical_plan().await.expect("it plans");
        assert_eq!(dense(&plan).is_some(), replaced, "{fit:?}");
    }
}

#[tokio::test]
async fn first_groups_by_their_greatest_value_are_all_that_is_kept() {
    let table = numbers(2, 2_000);
    for (order, replaced) in [("max(v) DESC NULLS LAST", false), ("max(v) NULLS LAST, k", true), ("k", true)] {
        let sql = format!("SELECT k, max(v) FROM t GROUP BY k ORDER BY {order} LIMIT 7");
        let context = table.context(Some(Claim::True), None, 1 << 30);
        let (answer, plan) = rows(&context, &sql).await.expect("it runs");
        let (expected, _) = rows(&table.context(None, None, 1 << 30), &sql).await.expect("it runs");
        assert_eq!(dense(&plan).is_some(), replaced, "{sql}");
        assert_eq!(answer.len(), expected.len());
        // Which of two equal ones is the last is for the other to choose.
        assert!(!replaced || answer == expected, "{sql}");
    }
}

#[tokio::test]
async fn outputs_can_be_read_one_after_the_other_and_once() {
    let context = numbers(3, 15_000).context(Some(Claim::True), None, 1 << 30);
    let plan = context.sql("SELECT k, sum(v) FROM t GROUP BY k").await.expect("it plans");
    let plan = plan.create_physical_plan().await.expect("it plans");
    let dense = dense(&plan).expect("a dense aggregate");
    let mut rows = 0;
    for partition in 0..3 {
        let mut stream = dense.execute(partition, context.task_ctx()).expect("it starts");
        while let Some(batch) = stream.next().await.transpose().expect("it runs") {
            rows += batch.num_rows();
        }
    }
    assert_eq!(rows, 15_000);
    assert!(dense.execute(1, context.task_ctx()).is_err());
}

#[tokio::test]
async fn an_error_reaches_every_output() {
    let context = numbers(2, 1_000).context(Some(Claim::True), None, 1 << 30);
    let plan = context.sql("SELECT k, sum(1 / (v - 500)) FROM t GROUP BY k").await.expect("it plans");
    let plan = plan.create_physical_plan().await.expect("it plans");
    let dense = dense(&plan).expect("a dense aggregate");
    for partition in 0..2 {
        let mut stream = dense.execute(partition, context.task_ctx()).expect("it starts");
        let error = stream.next().await.expect("an answer").expect_err("a division by zero");
        assert!(error.to_string().contains("ivide by zero"), "{error}");
    }
}

#[tokio::test]
async fn dropping_the_outputs_ends_the_run() {
    let context = numbers(2, 20_000).context(Some(Claim::True), None, 1 << 30);
    let plan = context.sql("SELECT k, sum(v) FROM t GROUP BY k").await.expect("it plans");
    let plan = plan.create_physical_plan().await.expect("it plans");
    let dense = dense(&plan).expect("a dense aggregate");
    let mut streams: Vec<_> =
        (0..2).map(|partition| dense.execute(partition, context.task_ctx()).expect("it starts")).collect();
    assert!(futures::poll!(streams[0].next()).is_pending());
    tokio::task::yield_now().await;
    assert!(context.runtime_env().memory_pool.reserved() > 0, "it gathers groups");
    drop(streams);
    // Its tasks are dropped when their turn comes.
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    assert_eq!(context.runtime_env().memory_pool.reserved(), 0);
}

#[tokio::test]
async fn a_join_filters_the_rows_of_the_groups_it_wants() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("t.parquet");
    let context = numbers(2, 5_000).context(Some(Claim::Nothing), None, 1 << 30);
    let copy = format!("COPY (SELECT k, v FROM t) TO '{}' STORED AS parquet", path.display());
    context.sql(&copy).await.expect("it plans").collect().await.expect("it is written");
    let path = path.to_str().expect("a path in ASCII");
    context.register_parquet("p", path, Default::default()).await.expect("a table");
    let sql = "SELECT g.k, g.s FROM (VALUES (77), (78)) d(other) JOIN (SELECT k, sum(v) AS s FROM p GROUP BY k) g ON g.k = d.other";
    let (answer, plan) = rows(&context, sql).await.expect("it runs");
    let (expected, _) = rows(&numbers(2, 5_000).context(None, None, 1 << 30), &sql.replace("p GROUP", "t GROUP"))
        .await
        .expect("DataFusion answers");
    assert_eq!(answer, expected);
    let text = displayable(plan.as_ref()).indent(false).to_string();
    let below = text.split("DenseAggregateExec").nth(1).expect("its statistics are those of the file");
    assert!(below.contains("DynamicFilter"), "{text}");
}

/// A table `t` in a file of `row_groups`, of which each has words of its own besides those of all, read through a cache.
async fn hot(folder: &std::path::Path, row_groups: i64) -> SessionContext {
    let group = |group: i64| {
        let numbers = || (0..5_000_i64).map(move |row| row * 7919 + group);
        let few = numbers().map(|number| (number % 13 > 0).then(|| format!("one of few words {}", number % 7 + group)));
        let short = numbers().map(|number| Some(["N", "S", "E", "W"][number as usize % 4]));
        let columns: [(&str, ArrayRef); 4] = [
            ("id", Arc::new(numbers().collect::<Int64Array>())),
            ("small", Arc::new(numbers().map(|number| number % 100).collect::<Int64Array>())),
            ("few", Arc::new(few.collect::<StringArray>())),
            ("short", Arc::new(short.collect::<StringArray>())),
        ];
        RecordBatch::try_from_iter_with_nullable(columns.map(|(name, column)| (name, column, true))).expect("columns")
    };
    let file = std::fs::File::create(folder.join("t.parquet")).expect("a file");
    let mut writer = ArrowWriter::try_new(file, group(0).schema(), None).expect("a writer");
    for number in 0..row_groups {
        writer.write(&group(number)).expect("a row group");
        writer.flush().expect("a row group");
    }
    writer.close().expect("a footer");
    let data = vec![folder.to_str().expect("a name").to_owned()];
    let config = updraft_catalog::Config { data, ..updraft_catalog::Config::default() };
    let catalog = Catalog::open(config, tokio::runtime::Handle::current()).await.expect("a catalog");
    let catalog = catalog.with_hot(updraft_hot::Cache::new(64 << 20));
    let runtime = RuntimeEnvBuilder::new().with_object_store_registry(catalog.object_stores()).build_arc();
    let config = SessionConfig::new().with_target_partitions(2).with_batch_size(1000);
    let state = SessionStateBuilder::new().with_config(config).with_runtime_env(runtime.expect("an environment"));
    let state = state.with_default_features().with_physical_optimizer_rules(crate::fit::rules()).build();
    let name = TableReference::bare("t").resolve(CATALOG, SCHEMA);
    let tables = catalog.resolve(std::slice::from_ref(&name), &state).await.expect("it is there");
    let context = SessionContext::new_with_state(state);
    let Some(Relation::Table(table)) = tables.get(&name) else { panic!("t is a table") };
    context.register_table("t", table.provider()).expect("a new table");
    context
}

#[tokio::test]
async fn strings_of_hot_tables_are_grouped_by_their_codes() {
    let folder = tempfile::tempdir().expect("a folder");
    let context = hot(folder.path(), 5).await;
    let stock = SessionContext::new();
    let path = folder.path().join("t.parquet");
    stock.register_parquet("t", path.to_str().expect("a name"), Default::default()).await.expect("a table");
    let queries = [
        ("SELECT few, count(*), sum(id), avg(small) FROM t GROUP BY few", "coded"),
        (
            "SELECT few, short, small, max(id) FROM t WHERE id > 700 AND short <> 'E' GROUP BY few, short, small",
            "coded",
        ),
        ("SELECT short, count(*) FROM t WHERE few LIKE '%3' GROUP BY short HAVING count(*) > 3", "coded"),
        ("SELECT s, count(*) FROM (SELECT short AS s, id FROM t WHERE id % 3 = 1) WHERE id > 7 GROUP BY s", "coded"),
        ("SELECT DISTINCT few FROM t", "coded"),
        // What both sums begin with is computed once, below.
        (
            "SELECT few, sum(id * (1 - small)), sum(id * (1 - small) * (1 + small)) FROM t WHERE small <= 90 GROUP BY few",
            "coded",
        ),
        ("SELECT short, few FROM (SELECT few, short FROM t GROUP BY few, short) ORDER BY few, short LIMIT 5", "coded"),
        // They are looked at as strings too, but in the one that is computed from its key.
        ("SELECT few, max(few), count(*) FROM t GROUP BY few", "mode="),
        ("SELECT few, count(*) FILTER (WHERE few > 'one of few words 3') FROM t GROUP BY few", "mode="),
        ("SELECT few, upper(few), sum(id) FROM t GROUP BY few, upper(few)", "coded"),
        ("SELECT few, upper(few || short), sum(id) FROM t GROUP BY few, upper(few || short)", "mode="),
        ("SELECT small, max(few) FROM t GROUP BY small", "from 0"),
    ];
    for round in ["cold", "hot"] {
        for (sql, part) in queries {
            let (answer, plan) = rows(&context, sql).await.expect("it runs");
            let (expected, _) = rows(&stock, sql).await.expect("it runs");
            assert_eq!(answer, expected, "{round} {sql}");
            let text = displayable(plan.as_ref()).indent(false).to_string();
            assert!(text.contains(part) || round == "cold", "{sql}\n{text}");
        }
    }
}
