//! Window functions that run along with their rows keep no more of them than they look at.
//!
//! `BoundedWindowAggExec` of DataFusion 55.2 appends each batch, with all its columns, to what it keeps of those before, and
//! cuts off what it is done with. Of strings that cuts nothing: views point to where the text is, and what is appended to
//! them has the texts of all batches there were, until their partition ends. A number for each row of a sorted table had
//! the whole table in memory, reserved by nobody.
//!
//! Where the input is sorted by the keys of PARTITION BY, one partition is not complete at a time. Its rows wait as they
//! came until all functions have a result for them; beside them are kept the rows that the functions look at still, in
//! memory of their own, and where it is known which columns those are, only these.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;

use datafusion::arrow::array::{ArrayRef, NullArray, RecordBatch, RecordBatchOptions};
use datafusion::arrow::compute::concat;
use datafusion::arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::{Transformed, TransformedResult, TreeNode, TreeNodeRecursion};
use datafusion::common::utils::memory::RecordBatchMemoryCounter;
use datafusion::common::utils::{evaluate_partition_ranges, get_row_at_idx};
use datafusion::common::{Result, Statistics, internal_err};
use datafusion::error::DataFusionError;
use datafusion::execution::memory_pool::{MemoryConsumer, MemoryReservation};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::logical_expr::window_state::PartitionBatchState;
use datafusion::physical_expr::utils::collect_columns;
use datafusion::physical_expr::window::{
    PartitionBatches, PartitionWindowAggStates, StandardWindowExpr, WindowEvalContext,
};
use datafusion::physical_expr::{PhysicalExpr, PhysicalSortExpr};
use datafusion::physical_optimizer::PhysicalOptimizerRule;
use datafusion::physical_plan::coop::make_cooperative;
use datafusion::physical_plan::execution_plan::CardinalityEffect;
use datafusion::physical_plan::metrics::{BaselineMetrics, ExecutionPlanMetricsSet, MetricsSet};
use datafusion::physical_plan::statistics::{ChildStats, StatisticsArgs};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::windows::BoundedWindowAggExec;
use datafusion::physical_plan::{
    DisplayAs, DisplayFormatType, ExecutionPlan, InputOrderMode, PlanProperties, WindowExpr,
};
use futures::{Stream, StreamExt, TryStreamExt, stream};

use super::compact;
use super::windows::{display, in_place_of_window};

/// Puts the operator of this module in the place of `BoundedWindowAggExec` over sorted input.
#[derive(Debug)]
pub(super) struct RunAlong;

impl PhysicalOptimizerRule for RunAlong {
    fn optimize(&self, plan: Arc<dyn ExecutionPlan>, _: &ConfigOptions) -> Result<Arc<dyn ExecutionPlan>> {
        plan.transform_up(|node| {
            let window = node.downcast_ref::<BoundedWindowAggExec>();
            Ok(match window.filter(|window| window.input_order_mode == InputOrderMode::Sorted) {
                Some(window) => Transformed::yes(Arc::new(RunningWindowExec::new(window.clone())) as Arc<_>),
                None => Transformed::no(node),
            })
        })
        .data()
    }

    fn name(&self) -> &str {
        "RunAlong"
    }

    fn schema_check(&self) -> bool {
        true
    }
}

/// Gives what `window` gives, in the same order.
#[derive(Debug)]
pub(crate) struct RunningWindowExec {
    window: BoundedWindowAggExec,
    metrics: ExecutionPlanMetricsSet,
}

impl RunningWindowExec {
    fn new(window: BoundedWindowAggExec) -> Self {
        Self { window, metrics: ExecutionPlanMetricsSet::new() }
    }

    /// The operator in whose place it is.
    pub(crate) fn window(&self) -> &BoundedWindowAggExec {
        &self.window
    }

    /// The same with other functions, which give the same columns.
    pub(crate) fn with_functions(&self, functions: Vec<Arc<dyn WindowExpr>>) -> Result<Self> {
        let (input, partitioned) = (Arc::clone(self.window.input()), !self.window.partition_keys().is_empty());
        Ok(Self::new(BoundedWindowAggExec::try_new(functions, input, InputOrderMode::Sorted, partitioned)?))
    }
}

impl DisplayAs for RunningWindowExec {
    fn fmt_as(&self, t: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        display(self.name(), self.window.window_expr(), t, f)
    }
}

impl ExecutionPlan for RunningWindowExec {
    fn name(&self) -> &str {
        "RunningWindowExec"
    }

    in_place_of_window!();

    fn with_new_children(self: Arc<Self>, mut children: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        let (functions, partitioned) = (self.window.window_expr().to_vec(), !self.window.partition_keys().is_empty());
        let input = children.swap_remove(0);
        let window = BoundedWindowAggExec::try_new(functions, input, InputOrderMode::Sorted, partitioned)?;
        Ok(Arc::new(Self::new(window)))
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let functions = self.window.window_expr().to_vec();
        let consumer = MemoryConsumer::new(format!("RunningWindow[{partition}]"));
        let running = Running {
            keys: self.window.partition_by_sort_keys()?,
            kept: Kept::of(&functions, &self.window.input().schema()),
            schema: self.schema(),
            partitions: PartitionBatches::default(),
            states: functions.iter().map(|_| PartitionWindowAggStates::default()).collect(),
            functions,
            waiting: VecDeque::new(),
            reservation: consumer.register(context.memory_pool()),
        };
        let metrics = BaselineMetrics::new(&self.metrics, partition);
        let input = self.window.input().execute(partition, context)?;
        let batches = run(running, input, metrics);
        Ok(make_cooperative(Box::pin(RecordBatchStreamAdapter::new(self.schema(), batches))))
    }

    fn cardinality_effect(&self) -> CardinalityEffect {
        self.window.cardinality_effect()
    }
}

/// The rows of `input` with their results, as soon as they have them.
fn run(
    running: Running,
    input: SendableRecordBatchStream,
    metrics: BaselineMetrics,
) -> impl Stream<Item = Result<RecordBatch>> + Send {
    let ready = stream::try_unfold((running, Some(input), metrics), async |(mut running, input, metrics)| {
        let Some(mut batches) = input else { return Ok(None) };
        let (ready, input) = loop {
            let batch = batches.try_next().await?;
            let timer = metrics.elapsed_compute().timer();
            let is_last = batch.is_none();
            match batch {
                Some(batch) => running.push(batch)?,
                None => running.end(),
            }
            let ready = running.ready()?;
            timer.done();
            if is_last {
                break (ready, None);
            }
            if !ready.is_empty() {
                break (ready, Some(batches));
            }
        };
        metrics.record_output(ready.iter().map(RecordBatch::num_rows).sum());
        Ok::<_, DataFusionError>(Some((stream::iter(ready).map(Ok), (running, input, metrics))))
    });
    ready.try_flatten()
}

/// What is computed, and how far it has come.
struct Running {
    functions: Vec<Arc<dyn WindowExpr>>,
    /// Of PARTITION BY; all functions have the same.
    keys: Vec<PhysicalSortExpr>,
    kept: Kept,
    schema: SchemaRef,
    /// What the functions look at. All but the last are complete.
    partitions: PartitionBatches,
    /// Of each function.
    states: Vec<PartitionWindowAggStates>,
    /// Rows that not all functions have a result for, in their order.
    waiting: VecDeque<RecordBatch>,
    reservation: MemoryReservation,
}

impl Running {
    fn push(&mut self, batch: RecordBatch) -> Result<()> {
        if batch.num_rows() == 0 {
            return Ok(());
        }
        let keys = self.keys.iter().map(|key| key.evaluate_to_sort_column(&batch)).collect::<Result<Vec<_>>>()?;
        let values: Vec<ArrayRef> = keys.iter().map(|key| Arc::clone(&key.values)).collect();
        let kept = self.kept.columns(&batch)?;
        for rows in evaluate_partition_ranges(batch.num_rows(), &keys)? {
            let key = get_row_at_idx(&values, rows.start)?;
            let rows = kept.slice(rows.start, rows.end - rows.start);
            match self.partitions.last_mut() {
                Some((last, partition)) if *last == key => match partition.record_batch.num_rows() {
                    0 => partition.record_batch = rows,
                    _ => partition.extend(&rows)?,
                },
                last => {
                    if let Some((_, last)) = last {
                        last.is_end = true;
                    }
                    if self.partitions.insert(key, PartitionBatchState::new_with_batch(rows)).is_some() {
                        return internal_err!("the rows of a partition are not together");
                    }
                }
            }
        }
        self.waiting.push_back(batch);
        Ok(())
    }

    /// There are no more rows.
    fn end(&mut self) {
        if let Some((_, last)) = self.partitions.last_mut() {
            last.is_end = true;
        }
    }

    /// The rows that now have all their results; they wait no longer.
    fn ready(&mut self) -> Result<Vec<RecordBatch>> {
        for (function, states) in self.functions.iter().zip(&mut self.states) {
            function.evaluate_stateful(&self.partitions, states, &WindowEvalContext::default())?;
        }
        let results = self.take_results()?;
        self.forget()?;
        let rows = results.first().map_or(0, |results| results.len());
        let mut ready = Vec::new();
        let mut given = 0;
        while given < rows
            && let Some(batch) = self.waiting.pop_front()
        {
            let taken = batch.num_rows().min(rows - given);
            if taken < batch.num_rows() {
                self.waiting.push_front(batch.slice(taken, batch.num_rows() - taken));
            }
            let columns = batch.columns().iter().map(|column| column.slice(0, taken));
            let columns = columns.chain(results.iter().map(|results| results.slice(given, taken)));
            ready.push(RecordBatch::try_new(Arc::clone(&self.schema), columns.collect())?);
            given += taken;
        }
        self.reservation.try_resize(self.held())?;
        Ok(ready)
    }

    /// What each function has come to for the rows that all have come to something for.
    fn take_results(&mut self) -> Result<Vec<ArrayRef>> {
        if self.partitions.is_empty() {
            return Ok(Vec::new());
        }
        let mut results: Vec<Vec<ArrayRef>> = vec![Vec::new(); self.functions.len()];
        for key in self.partitions.keys() {
            let mut columns: Vec<_> = self.states.iter_mut().map(|states| &mut states[key].state.out_col).collect();
            let rows = columns.iter().map(|column| column.len()).min().unwrap_or_default();
            for (column, results) in columns.iter_mut().zip(&mut results) {
                results.push(column.slice(0, rows));
                **column = column.slice(rows, column.len() - rows);
            }
        }
        let put_together = |results: Vec<ArrayRef>| match results.as_slice() {
            [one] => Ok(Arc::clone(one)),
            all => concat(&all.iter().map(AsRef::as_ref).collect::<Vec<_>>()),
        };
        Ok(results.into_iter().map(put_together).collect::<Result<_, _>>()?)
    }

    /// Lets go of partitions that are complete, and of the rows of the last that no function looks at any more.
    fn forget(&mut self) -> Result<()> {
        self.partitions.retain(|_, partition| !partition.is_end);
        for states in &mut self.states {
            states.retain(|key, _| self.partitions.contains_key(key));
        }
        let Some((key, partition)) = self.partitions.last_mut() else { return Ok(()) };
        let needless = self.states.iter().map(|states| {
            let state = &states[key].state;
            state.window_frame_range.start.min(state.last_calculated_index)
        });
        let needless = needless.min().unwrap_or_default();
        if needless > 0 {
            let batch = &partition.record_batch;
            let rows = batch.num_rows() - needless;
            partition.record_batch = match rows {
                0 => RecordBatch::new_empty(batch.schema()),
                _ => compact(batch.slice(needless, rows))?,
            };
            for states in &mut self.states {
                states[key].state.prune_state(needless);
            }
        }
        Ok(())
    }

    /// Bytes of all rows that are there.
    fn held(&self) -> usize {
        let mut counter = RecordBatchMemoryCounter::new();
        let kept = self.partitions.values().map(|partition| &partition.record_batch);
        self.waiting.iter().chain(kept).map(|batch| counter.count_batch(batch)).sum()
    }
}

/// Which columns the functions look at.
struct Kept {
    /// Of the input, without names and types of the others: there, all is NULL.
    schema: SchemaRef,
    columns: Vec<bool>,
}

impl Kept {
    fn of(functions: &[Arc<dyn WindowExpr>], input: &SchemaRef) -> Self {
        // What an aggregate filters by, it does not say.
        let is_known = functions.iter().all(|function| function.as_any().is::<StandardWindowExpr>());
        let mut columns = vec![!is_known; input.fields().len()];
        for function in functions {
            let all = function.all_expressions();
            for expr in all.args.iter().chain(&all.partition_by_exprs).chain(&all.order_by_exprs) {
                for column in collect_columns(expr) {
                    columns[column.index()] = true;
                }
            }
        }
        let fields = input.fields().iter().zip(&columns).map(|(field, is_kept)| match is_kept {
            true => Arc::clone(field),
            false => Arc::new(Field::new("", DataType::Null, true)),
        });
        Self { schema: Arc::new(Schema::new(fields.collect::<Vec<_>>())), columns }
    }

    fn columns(&self, batch: &RecordBatch) -> Result<RecordBatch> {
        let columns = batch.columns().iter().zip(&self.columns).map(|(column, is_kept)| match is_kept {
            true => Arc::clone(column),
            false => Arc::new(NullArray::new(batch.num_rows())) as ArrayRef,
        });
        let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
        Ok(RecordBatch::try_new_with_options(Arc::clone(&self.schema), columns.collect(), &options)?)
    }
}

#[cfg(test)]
mod tests {
    use datafusion::arrow::array::{Int64Array, StringViewArray};
    use datafusion::datasource::MemTable;
    use datafusion::execution::memory_pool::{GreedyMemoryPool, MemoryPool};
    use datafusion::prelude::col;

    use super::super::testing::{context, gives_what_stock_gives};
    use super::*;

    #[tokio::test]
    async fn rows_have_the_results_that_they_had() {
        let queries = [
            "row_number() OVER (PARTITION BY k ORDER BY v, t), rank() OVER (PARTITION BY k ORDER BY v, t)",
            "row_number() OVER (ORDER BY t, v, k), lag(t, 7) OVER (ORDER BY t, v, k), lead(v) OVER (ORDER BY t, v, k)",
            "dense_rank() OVER (ORDER BY v), count(*) OVER (ORDER BY v)",
            "sum(v) OVER (PARTITION BY k ORDER BY v ROWS BETWEEN 3 PRECEDING AND 2 FOLLOWING), \
             max(t) OVER (PARTITION BY k ORDER BY v ROWS BETWEEN 40 PRECEDING AND CURRENT ROW)",
            "sum(v) FILTER (WHERE t LIKE '%1%') OVER (ORDER BY v, k, t)",
            "sum(v) OVER (ORDER BY v RANGE BETWEEN 3 PRECEDING AND 5 FOLLOWING), min(k) OVER (ORDER BY v)",
            "first_value(t) OVER (PARTITION BY t ORDER BY v), nth_value(v, 2) OVER (PARTITION BY t ORDER BY v)",
            "sum(v) OVER (ORDER BY v GROUPS BETWEEN 1 PRECEDING AND 1 FOLLOWING)",
            "lead(v, 70) OVER (PARTITION BY k ORDER BY v, t), row_number() OVER (PARTITION BY k ORDER BY v, t)",
        ];
        gives_what_stock_gives(&queries, "RunningWindowExec: wdw=").await;
    }

    /// In one partition of 20 MB in all.
    #[tokio::test]
    async fn text_that_nobody_looks_at_any_more_is_let_go() {
        for (function, fits) in [
            ("row_number() OVER (ORDER BY k)", true),
            ("lag(t, 5) OVER (ORDER BY k)", true),
            ("max(t) OVER (ORDER BY k ROWS BETWEEN 5 PRECEDING AND 5 FOLLOWING)", true),
            ("lead(t, 10000) OVER (ORDER BY k)", false),
        ] {
            let pool: Arc<dyn MemoryPool> = Arc::new(GreedyMemoryPool::new(1 << 20));
            let context = context(1, 32, None, Some(Arc::clone(&pool)));
            let batches = (0..20_000_i64).collect::<Vec<_>>();
            let batches = batches.chunks(32).map(|keys| {
                let text = keys.iter().map(|key| Some(format!("{key:01000}")));
                let keys: ArrayRef = Arc::new(Int64Array::from(keys.to_vec()));
                let text: ArrayRef = Arc::new(text.collect::<StringViewArray>());
                RecordBatch::try_from_iter([("k", keys), ("t", text)]).expect("two columns")
            });
            let batches: Vec<_> = batches.collect();
            let table = MemTable::try_new(batches[0].schema(), vec![batches]).expect("batches of one schema");
            let table = table.with_sort_order(vec![vec![col("k").sort(true, true)]]);
            context.register_table("a", Arc::new(table)).expect("a name of its own");
            let sql = format!("SELECT count(w), max(octet_length(t)) FROM (SELECT t, {function} AS w FROM a)");
            let outcome = context.sql(&sql).await.expect("it plans").collect().await;
            assert_eq!(outcome.is_ok(), fits, "{function}: {outcome:?}");
            if let Err(error) = outcome {
                assert!(matches!(error.find_root(), DataFusionError::ResourcesExhausted(_)), "{error}");
            }
            assert_eq!(pool.reserved(), 0, "everything is given back");
        }
    }
}
