//! Window functions hold one of their partitions at a time, and reserve what they hold.
//!
//! `WindowAggExec` of DataFusion 55.2 gathers its whole input, reserves nothing, and gives one batch. Its input
//! is sorted by the keys of PARTITION BY, so what lies between two changes of the keys can be computed and let
//! go. Without PARTITION BY the whole input is one partition; then it is the reservation that helps.

use std::collections::VecDeque;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use datafusion::arrow::array::{ArrayRef, RecordBatch};
use datafusion::arrow::compute::{concat, concat_batches};
use datafusion::arrow::datatypes::SchemaRef;
use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::{Transformed, TransformedResult, TreeNode, TreeNodeRecursion};
use datafusion::common::utils::evaluate_partition_ranges;
use datafusion::common::utils::memory::RecordBatchMemoryCounter;
use datafusion::common::{Result, Statistics};
use datafusion::error::DataFusionError;
use datafusion::execution::memory_pool::{MemoryConsumer, MemoryReservation};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::{PhysicalExpr, PhysicalSortExpr};
use datafusion::physical_optimizer::PhysicalOptimizerRule;
use datafusion::physical_plan::coop::make_cooperative;
use datafusion::physical_plan::metrics::{BaselineMetrics, ExecutionPlanMetricsSet, MetricsSet};
use datafusion::physical_plan::statistics::{ChildStats, StatisticsArgs};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::windows::WindowAggExec;
use datafusion::physical_plan::{DisplayAs, DisplayFormatType, ExecutionPlan, PlanProperties, WindowExpr};
use futures::{Stream, StreamExt, TryStreamExt, stream};

use super::size;
use crate::hand_over::hand_over;

/// What a running aggregate keeps for a row while it goes through a partition: a `ScalarValue`, in a vector that
/// doubles.
const RUNNING_BYTES: usize = 128;

/// From this many rows on a partition takes long enough to let other queries run meanwhile.
const LONG_PARTITION_ROWS: usize = 100_000;

/// Puts the operator of this module in the place of `WindowAggExec`.
#[derive(Debug)]
pub(super) struct ByPartition;

impl PhysicalOptimizerRule for ByPartition {
    fn optimize(&self, plan: Arc<dyn ExecutionPlan>, _: &ConfigOptions) -> Result<Arc<dyn ExecutionPlan>> {
        plan.transform_up(|node| {
            Ok(match node.downcast_ref::<WindowAggExec>() {
                Some(window) => Transformed::yes(Arc::new(WindowByPartitionExec::new(window.clone())) as Arc<_>),
                None => Transformed::no(node),
            })
        })
        .data()
    }

    fn name(&self) -> &str {
        "ByPartition"
    }

    fn schema_check(&self) -> bool {
        true
    }
}

/// The methods of `ExecutionPlan` for a node with the fields `window`, the operator in whose place it is, and `metrics`. The
/// node itself says its name, how it is made anew with another input, and how it runs.
macro_rules! in_place_of_window {
    () => {
        fn properties(&self) -> &Arc<PlanProperties> {
            self.window.properties()
        }

        fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
            vec![self.window.input()]
        }

        fn maintains_input_order(&self) -> Vec<bool> {
            vec![true]
        }

        fn apply_expressions(
            &self,
            f: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
        ) -> Result<TreeNodeRecursion> {
            self.window.apply_expressions(f)
        }

        fn metrics(&self) -> Option<MetricsSet> {
            Some(self.metrics.clone_inner())
        }

        fn child_stats_requests(&self, partition: Option<usize>) -> Vec<ChildStats> {
            self.window.child_stats_requests(partition)
        }

        fn statistics_from_inputs(&self, inputs: &[Arc<Statistics>], args: &StatisticsArgs) -> Result<Arc<Statistics>> {
            self.window.statistics_from_inputs(inputs, args)
        }
    };
}

pub(super) use in_place_of_window;

/// Gives what `window` gives, in the same order.
#[derive(Debug)]
pub(crate) struct WindowByPartitionExec {
    window: WindowAggExec,
    metrics: ExecutionPlanMetricsSet,
}

impl WindowByPartitionExec {
    fn new(window: WindowAggExec) -> Self {
        Self { window, metrics: ExecutionPlanMetricsSet::new() }
    }

    /// The operator in whose place it is.
    pub(crate) fn window(&self) -> &WindowAggExec {
        &self.window
    }

    /// The same with other functions, which give the same columns.
    pub(crate) fn with_functions(&self, functions: Vec<Arc<dyn WindowExpr>>) -> Result<Self> {
        let partitioned = !self.window.partition_keys().is_empty();
        Ok(Self::new(WindowAggExec::try_new(functions, Arc::clone(self.window.input()), partitioned)?))
    }
}

impl DisplayAs for WindowByPartitionExec {
    fn fmt_as(&self, t: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        display(self.name(), self.window.window_expr(), t, f)
    }
}

/// An operator of window functions, for EXPLAIN.
pub(super) fn display(
    name: &str,
    functions: &[Arc<dyn WindowExpr>],
    t: DisplayFormatType,
    f: &mut fmt::Formatter<'_>,
) -> fmt::Result {
    let functions: Vec<_> = functions.iter().map(|function| function.name()).collect();
    match t {
        DisplayFormatType::TreeRender => write!(f, "select_list={}", functions.join(", ")),
        _ => write!(f, "{name}: wdw=[{}]", functions.join(", ")),
    }
}

impl ExecutionPlan for WindowByPartitionExec {
    fn name(&self) -> &str {
        "WindowByPartitionExec"
    }

    in_place_of_window!();

    fn with_new_children(self: Arc<Self>, mut children: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        let window = self.window.window_expr().to_vec();
        let partitioned = !self.window.partition_keys().is_empty();
        Ok(Arc::new(Self::new(WindowAggExec::try_new(window, children.swap_remove(0), partitioned)?)))
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let window = Window {
            functions: self.window.window_expr().to_vec(),
            keys: self.window.partition_by_sort_keys()?,
            schema: self.window.schema(),
            rows_per_batch: context.session_config().batch_size(),
        };
        let consumer = MemoryConsumer::new(format!("WindowByPartition[{partition}]"));
        let gathered = Gathered {
            input_schema: self.window.input().schema(),
            row_bytes: window.row_bytes(),
            reservation: consumer.register(context.memory_pool()),
            batches: VecDeque::new(),
            counter: RecordBatchMemoryCounter::new(),
            rows: 0,
            closed_rows: 0,
        };
        let metrics = BaselineMetrics::new(&self.metrics, partition);
        let schema = self.schema();
        let input = self.window.input().execute(partition, context)?;
        let batches = run(window, gathered, input, metrics);
        Ok(make_cooperative(Box::pin(RecordBatchStreamAdapter::new(schema, batches))))
    }
}

/// The batches of `window` over `input`.
fn run(
    window: Window,
    gathered: Gathered,
    input: SendableRecordBatchStream,
    metrics: BaselineMetrics,
) -> impl Stream<Item = Result<RecordBatch>> + Send {
    let chunks = stream::try_unfold((window, gathered, Some(input), metrics), async |state| {
        let (window, mut gathered, mut input, metrics) = state;
        // Whoever reads has taken the chunk before.
        gathered.release();
        while let Some(batches) = &mut input
            && gathered.closed_rows < window.rows_per_batch
        {
            match batches.try_next().await? {
                Some(batch) => gathered.push(&window, batch)?,
                None => {
                    input = None;
                    gathered.closed_rows = gathered.rows;
                }
            }
        }
        let Some(chunk) = gathered.take_closed()? else { return Ok(None) };
        let timer = metrics.elapsed_compute().timer();
        let result = window.evaluate(chunk)?;
        timer.done();
        metrics.record_output(result.num_rows());
        let slices = stream::iter(window.slices(&result)).map(Ok);
        Ok::<_, DataFusionError>(Some((slices, (window, gathered, input, metrics))))
    });
    chunks.try_flatten()
}

/// What is computed.
struct Window {
    functions: Vec<Arc<dyn WindowExpr>>,
    /// Of PARTITION BY; all functions have the same.
    keys: Vec<PhysicalSortExpr>,
    schema: SchemaRef,
    rows_per_batch: usize,
}

impl Window {
    /// What a row takes while its results are computed, beside itself.
    fn row_bytes(&self) -> usize {
        let bytes = self.functions.iter().map(|function| {
            let frame = function.get_window_frame();
            let whole = frame.start_bound.is_unbounded() && frame.end_bound.is_unbounded();
            let value = function.field().map_or(0, |field| size::value_bytes(field.data_type()));
            2 * value + if whole { 0 } else { RUNNING_BYTES }
        });
        bytes.sum()
    }

    /// The runs of rows with the same keys.
    fn partitions(&self, batch: &RecordBatch) -> Result<Vec<Range<usize>>> {
        let keys = self.keys.iter().map(|key| key.evaluate_to_sort_column(batch)).collect::<Result<Vec<_>>>()?;
        evaluate_partition_ranges(batch.num_rows(), &keys)
    }

    /// `chunk`, which is whole partitions, with the results as further columns.
    fn evaluate(&self, chunk: RecordBatch) -> Result<RecordBatch> {
        let mut results: Vec<Vec<ArrayRef>> = vec![Vec::new(); self.functions.len()];
        for Range { start, end } in self.partitions(&chunk)? {
            let partition = chunk.slice(start, end - start);
            if partition.num_rows() > LONG_PARTITION_ROWS {
                hand_over();
            }
            for (function, results) in self.functions.iter().zip(&mut results) {
                results.push(function.evaluate(&partition)?);
            }
        }
        let mut columns = chunk.columns().to_vec();
        for results in results {
            let results: Vec<_> = results.iter().map(AsRef::as_ref).collect();
            columns.push(concat(&results)?);
        }
        Ok(RecordBatch::try_new(Arc::clone(&self.schema), columns)?)
    }

    fn slices(&self, result: &RecordBatch) -> Vec<RecordBatch> {
        let rows = result.num_rows();
        let starts = (0..rows).step_by(self.rows_per_batch);
        starts.map(|start| result.slice(start, self.rows_per_batch.min(rows - start))).collect()
    }
}

/// Input that waits until its partition is there as a whole.
struct Gathered {
    input_schema: SchemaRef,
    row_bytes: usize,
    reservation: MemoryReservation,
    batches: VecDeque<RecordBatch>,
    counter: RecordBatchMemoryCounter,
    rows: usize,
    /// Of these rows the partitions are complete.
    closed_rows: usize,
}

impl Gathered {
    fn push(&mut self, window: &Window, batch: RecordBatch) -> Result<()> {
        if batch.num_rows() == 0 {
            return Ok(());
        }
        self.reservation.try_grow(charge(&mut self.counter, &batch, self.row_bytes))?;
        let last = window.partitions(&batch)?.last().map_or(0, |range| range.start);
        if last > 0 || self.changes_before(window, &batch)? {
            self.closed_rows = self.rows + last;
        }
        self.rows += batch.num_rows();
        self.batches.push_back(batch);
        Ok(())
    }

    /// Whether `next` starts a new partition.
    fn changes_before(&self, window: &Window, next: &RecordBatch) -> Result<bool> {
        let Some(before) = self.batches.back() else { return Ok(false) };
        let pair = [before.slice(before.num_rows() - 1, 1), next.slice(0, 1)];
        Ok(window.partitions(&concat_batches(&self.input_schema, &pair)?)?.len() > 1)
    }

    /// The rows of complete partitions; `None` when there are none. They stay reserved.
    fn take_closed(&mut self) -> Result<Option<RecordBatch>> {
        let mut pieces = Vec::new();
        while self.closed_rows > 0
            && let Some(batch) = self.batches.pop_front()
        {
            let taken = batch.num_rows().min(self.closed_rows);
            if taken < batch.num_rows() {
                self.batches.push_front(batch.slice(taken, batch.num_rows() - taken));
            }
            pieces.push(batch.slice(0, taken));
            self.rows -= taken;
            self.closed_rows -= taken;
        }
        if pieces.is_empty() {
            return Ok(None);
        }
        Ok(Some(concat_batches(&self.input_schema, &pieces)?))
    }

    /// Gives back what was reserved for rows that were taken.
    fn release(&mut self) {
        self.counter = RecordBatchMemoryCounter::new();
        let charges = self.batches.iter().map(|batch| charge(&mut self.counter, batch, self.row_bytes));
        self.reservation.resize(charges.sum());
    }
}

/// A batch, its copy when partitions are put together, and its results.
fn charge(counter: &mut RecordBatchMemoryCounter, batch: &RecordBatch, row_bytes: usize) -> usize {
    2 * counter.count_batch(batch) + row_bytes * batch.num_rows()
}

#[cfg(test)]
mod tests {
    use datafusion::arrow::array::Int64Array;
    use datafusion::datasource::MemTable;
    use datafusion::execution::memory_pool::{GreedyMemoryPool, MemoryPool};
    use datafusion::prelude::col;

    use super::super::testing::{context, gives_what_stock_gives};
    use super::*;

    #[tokio::test]
    async fn chunks_give_what_the_whole_gives() {
        let queries = [
            "sum(v) OVER (PARTITION BY k)",
            "sum(v) OVER (PARTITION BY t, k), count(*) OVER (PARTITION BY t, k), max(t) OVER (PARTITION BY k)",
            "ntile(3) OVER (PARTITION BY k ORDER BY v, t), cume_dist() OVER (PARTITION BY k ORDER BY v)",
            "first_value(v) OVER (PARTITION BY k ORDER BY v ROWS BETWEEN CURRENT ROW AND UNBOUNDED FOLLOWING)",
            "sum(v) FILTER (WHERE v > 5) OVER (PARTITION BY k ORDER BY v RANGE BETWEEN 3 PRECEDING AND UNBOUNDED FOLLOWING)",
            "sum(v) OVER (), ntile(7) OVER (ORDER BY v, k)",
        ];
        gives_what_stock_gives(&queries, "WindowByPartitionExec: wdw=").await;
    }

    #[tokio::test]
    async fn a_partition_is_held_and_not_the_whole() {
        for (size, fits) in [(50, true), (20_000, false)] {
            let pool: Arc<dyn MemoryPool> = Arc::new(GreedyMemoryPool::new(96 << 10));
            let context = context(1, 32, None, Some(Arc::clone(&pool)));
            let keys: Vec<_> = (0..20_000_i64).map(|row| row / size).collect();
            let batches = keys.chunks(32).map(|keys| {
                let keys: ArrayRef = Arc::new(Int64Array::from(keys.to_vec()));
                RecordBatch::try_from_iter([("k", keys)]).expect("one column")
            });
            let batches: Vec<_> = batches.collect();
            let table = MemTable::try_new(batches[0].schema(), vec![batches]).expect("batches of one schema");
            let table = table.with_sort_order(vec![vec![col("k").sort(true, true)]]);
            context.register_table("a", Arc::new(table)).expect("a name of its own");
            let sql = "SELECT sum(s) FROM (SELECT sum(k) OVER (PARTITION BY k) s FROM a)";
            let outcome = context.sql(sql).await.expect("it plans").collect().await;
            assert_eq!(outcome.is_ok(), fits, "{outcome:?}");
            if let Err(error) = outcome {
                assert!(matches!(error.find_root(), DataFusionError::ResourcesExhausted(_)), "{error}");
            }
            assert_eq!(pool.reserved(), 0, "everything is given back");
        }
    }
}
