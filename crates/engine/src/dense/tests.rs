use std::fmt;
use std::sync::Arc;

use arbtest::arbitrary::{Result as Choice, Unstructured};
use datafusion::arrow::array::{
    Array, ArrayRef, BooleanArray, Date32Array, Decimal128Array, DictionaryArray, Float64Array, Int8Array, Int64Array,
    RecordBatch, StringArray, StringViewArray, TimestampNanosecondArray, UInt8Array, UInt16Array, UInt64Array,
};
use datafusion::arrow::datatypes::{DataType, Schema};
use datafusion::arrow::util::pretty::pretty_format_batches;
use datafusion::common::config::ConfigOptions;
use datafusion::common::stats::Precision;
use datafusion::common::tree_node::{Transformed, TransformedResult, TreeNode, TreeNodeRecursion};
use datafusion::common::{Result, ScalarValue, Statistics};
use datafusion::datasource::MemTable;
use datafusion::datasource::source::DataSourceExec;
use datafusion::execution::memory_pool::GreedyMemoryPool;
use datafusion::execution::runtime_env::RuntimeEnvBuilder;
use datafusion::execution::session_state::SessionStateBuilder;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_optimizer::PhysicalOptimizerRule;
use datafusion::physical_optimizer::optimizer::PhysicalOptimizer;
use datafusion::physical_plan::statistics::StatisticsArgs;
use datafusion::physical_plan::{DisplayAs, DisplayFormatType, ExecutionPlan, PlanProperties, collect, displayable};
use datafusion::prelude::{SessionConfig, SessionContext};
use futures::StreamExt;

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
            if !node.is::<DataSourceExec>() {
                return Ok(Transformed::no(node));
            }
            let schema = node.schema();
            let bounds = |name: &str| self.columns.iter().find(|(column, _)| column == name).map(|one| one.1.clone());
            let columns = schema.fields().iter().map(|field| bounds(field.name()).expect("a column of the table"));
            let claims = Claims { columns: columns.collect(), input: node, claim: self.claim };
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
        let mut config = SessionConfig::new().with_target_partitions(self.partitions.len()).with_batch_size(64);
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
    let text = |number: u8| format!("{}{number}", if number % 2 == 0 { "a text that is not inlined " } else { "" });
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
    let (mut replaced, mut fell_back) = (0, 0);
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
        let fit = *u.choose(&[None, Some(Fit { room: 1 << 30, careful: false })])?;
        runtime.block_on(async {
            let (expected, _) = rows(&table.context(None, None, 1 << 30), &sql).await.expect("DataFusion answers");
            match rows(&table.context(Some(claim), fit, pool), &sql).await {
                Ok((answer, plan)) => {
                    let differ: Vec<_> = answer.iter().zip(&expected).filter(|(left, right)| left != right).collect();
                    let plan_text = displayable(plan.as_ref()).indent(false).to_string();
                    assert!(answer == expected, "{sql} {claim:?}\n{differ:#?}\n{plan_text}");
                    if dense(&plan).is_some() {
                        replaced += 1;
                        fell_back += fallbacks(&plan);
                    }
                }
                // It has nothing to spill to with so little.
                Err(error) => assert!(pool < 1 << 30, "{sql}: {error}"),
            }
        });
        Ok(())
    })
    .budget_ms(8_000);
    assert!(replaced > 20 && fell_back > 2 && fell_back < replaced, "{replaced} {fell_back}");
}
