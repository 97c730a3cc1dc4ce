//! The last stage of a large aggregate is cut into slices, so that none has much to sort in one go.
//!
//! An aggregate of DataFusion 55.2 spills by sorting all its groups in one call. While that runs its query cannot be
//! ended: for half a second with 200 MB of groups, for many seconds with all that a large budget gives. So its groups are spread over
//! more partitions than there are processors to work on them. As many as belong to one of the partitions that
//! the plan goes on with are filled side by side, and give their groups one after the other.

use std::collections::VecDeque;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::thread;
use std::time::Instant;

use datafusion::arrow::array::RecordBatch;
use datafusion::arrow::datatypes::SchemaRef;
use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::{Transformed, TransformedResult, TreeNode, TreeNodeRecursion};
use datafusion::common::{Result, Statistics, internal_err};
use datafusion::execution::{RecordBatchStream, SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_optimizer::PhysicalOptimizerRule;
use datafusion::physical_plan::aggregates::{AggregateExec, AggregateMode};
use datafusion::physical_plan::execution_plan::CardinalityEffect;
use datafusion::physical_plan::repartition::RepartitionExec;
use datafusion::physical_plan::statistics::{ChildStats, StatisticsArgs};
use datafusion::physical_plan::{
    ChildrenPropertiesMode, DisplayAs, DisplayFormatType, ExecutionPlan, ExecutionPlanProperties, InputOrderMode,
    Partitioning, PlanProperties, ReplaceChildrenOptions,
};
use futures::{Stream, StreamExt};

use super::{Fit, size};
use crate::cooperate::TURN;

/// What a slice may come to before it is sorted: some 50 ms with text for keys. The smaller it is, the less is freed when
/// it is spilled, and the more runs there are to merge.
const SLICE_BYTES: usize = 32 << 20;

/// The most slices of all partitions, for each processor. Each is given batches of its own, a part of every batch that is read.
const SLICES_MAX: usize = 8;

/// Cuts final aggregates. Without [`Fit`] plans stay as they are.
#[derive(Debug)]
pub(super) struct SliceAggregates {
    /// What a slice may come to.
    slice_bytes: usize,
    /// How many there may be, of all partitions.
    most: usize,
}

impl Default for SliceAggregates {
    fn default() -> Self {
        let processors = thread::available_parallelism().map_or(1, usize::from);
        Self { slice_bytes: SLICE_BYTES, most: SLICES_MAX * processors }
    }
}

impl PhysicalOptimizerRule for SliceAggregates {
    fn optimize(&self, plan: Arc<dyn ExecutionPlan>, options: &ConfigOptions) -> Result<Arc<dyn ExecutionPlan>> {
        let Some(fit) = options.extensions.get::<Fit>() else { return Ok(plan) };
        plan.transform_up(|node| {
            Ok(match self.sliced(&node, fit.share)? {
                Some(sliced) => Transformed::yes(sliced),
                None => Transformed::no(node),
            })
        })
        .data()
    }

    fn name(&self) -> &str {
        "SliceAggregates"
    }

    fn schema_check(&self) -> bool {
        true
    }
}

impl SliceAggregates {
    /// `node` in slices, if it is an aggregate that brings groups together and may hold much of `share` bytes.
    fn sliced(&self, node: &Arc<dyn ExecutionPlan>, share: usize) -> Result<Option<Arc<dyn ExecutionPlan>>> {
        let Some(aggregate) = node.downcast_ref::<AggregateExec>() else { return Ok(None) };
        let is_final = matches!(aggregate.mode(), AggregateMode::FinalPartitioned | AggregateMode::SinglePartitioned);
        let is_sorted = *aggregate.input_order_mode() != InputOrderMode::Linear;
        // One with a limit keeps no more groups than that.
        if !is_final || is_sorted || aggregate.limit_options().is_some() {
            return Ok(None);
        }
        let Some(exchange) = aggregate.input().downcast_ref::<RepartitionExec>() else { return Ok(None) };
        let Partitioning::Hash(keys, partitions) = exchange.partitioning() else { return Ok(None) };
        let slices = self.slices(size::likely(aggregate), share, *partitions);
        if slices == 1 {
            return Ok(None);
        }
        // What a hash leaves, divided by a multiple of the number of partitions, belongs to one of these partitions.
        let partitioning = Partitioning::Hash(keys.clone(), partitions * slices);
        let exchange = RepartitionExec::try_new(Arc::clone(exchange.input()), partitioning)?;
        let options = ReplaceChildrenOptions::new(ChildrenPropertiesMode::Recompute);
        let aggregate = Arc::clone(node).replace_children(vec![Arc::new(exchange)], options)?;
        Ok(Some(Arc::new(SlicesExec::new(aggregate, *partitions))))
    }

    /// Into how many slices to cut each of `partitions` that may hold `share` bytes together, and are thought to come to
    /// `likely`.
    fn slices(&self, likely: Option<usize>, share: usize, partitions: usize) -> usize {
        let each = likely.map_or(share, |likely| likely.min(share)) / partitions.max(1);
        (each / self.slice_bytes).min(self.most / partitions.max(1)).max(1)
    }
}

/// Gives `partitions`, each of which is made of as many of the input's: partition `p` of `p`, `p + partitions` and so on.
#[derive(Debug)]
pub(crate) struct SlicesExec {
    input: Arc<dyn ExecutionPlan>,
    properties: Arc<PlanProperties>,
}

impl SlicesExec {
    fn new(input: Arc<dyn ExecutionPlan>, partitions: usize) -> Self {
        let partitioning = match input.output_partitioning() {
            Partitioning::Hash(keys, _) => Partitioning::Hash(keys.clone(), partitions),
            _ => Partitioning::UnknownPartitioning(partitions),
        };
        let properties = PlanProperties::clone(input.properties()).with_partitioning(partitioning);
        Self { input, properties: Arc::new(properties) }
    }

    fn partitions(&self) -> usize {
        self.properties.partitioning.partition_count()
    }

    /// How many slices a partition has.
    pub(crate) fn slices(&self) -> usize {
        self.input.output_partitioning().partition_count() / self.partitions().max(1)
    }
}

impl DisplayAs for SlicesExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: slices={}", self.name(), self.slices())
    }
}

impl ExecutionPlan for SlicesExec {
    fn name(&self) -> &str {
        "SlicesExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        vec![&self.input]
    }

    fn apply_expressions(
        &self,
        _: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    fn with_new_children(self: Arc<Self>, mut children: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        Ok(Arc::new(Self::new(children.swap_remove(0), self.partitions())))
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let partitions = self.partitions();
        if partition >= partitions {
            return internal_err!("there is no partition {partition} of {partitions}");
        }
        let slices = (0..self.slices()).map(|slice| {
            let slice = partition + slice * partitions;
            self.input.execute(slice, Arc::clone(&context))
        });
        Ok(Box::pin(Slices { schema: self.schema(), filling: slices.collect::<Result<_>>()?, full: VecDeque::new() }))
    }

    fn child_stats_requests(&self, partition: Option<usize>) -> Vec<ChildStats> {
        vec![if partition.is_none() { ChildStats::At(None) } else { ChildStats::Skip }]
    }

    fn statistics_from_inputs(&self, inputs: &[Arc<Statistics>], _: &StatisticsArgs) -> Result<Arc<Statistics>> {
        Ok(Arc::clone(&inputs[0]))
    }

    fn cardinality_effect(&self) -> CardinalityEffect {
        CardinalityEffect::Equal
    }
}

/// The slices of one partition.
struct Slices {
    schema: SchemaRef,
    /// Those that take their rows. What an exchange has for one of them must be taken for the others to have more.
    filling: VecDeque<SendableRecordBatchStream>,
    /// When one has begun to give, what was exchanged has come to its end. What the others give is made when its turn comes.
    full: VecDeque<SendableRecordBatchStream>,
}

impl Stream for Slices {
    type Item = Result<RecordBatch>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let since = Instant::now();
        for _ in 0..self.filling.len() {
            let Some(mut slice) = self.filling.pop_front() else { break };
            match slice.poll_next_unpin(cx) {
                Poll::Pending => self.filling.push_back(slice),
                Poll::Ready(first) => {
                    let Self { filling, full, .. } = &mut *self;
                    full.append(filling);
                    let Some(first) = first else { break };
                    full.push_front(slice);
                    return Poll::Ready(Some(first));
                }
            }
            if since.elapsed() >= TURN {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
        }
        if !self.filling.is_empty() {
            return Poll::Pending;
        }
        while let Some(slice) = self.full.front_mut() {
            if let Some(batch) = ready!(slice.poll_next_unpin(cx)) {
                return Poll::Ready(Some(batch));
            }
            self.full.pop_front();
        }
        Poll::Ready(None)
    }
}

impl RecordBatchStream for Slices {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }
}

#[cfg(test)]
mod tests {
    use datafusion::execution::memory_pool::{FairSpillPool, MemoryPool};
    use datafusion::physical_plan::{collect, displayable};
    use datafusion::prelude::{SessionConfig, SessionContext};

    use super::super::testing::{context, sorted};
    use super::*;

    /// The plan of `sql` in six slices, and how it is shown.
    async fn sliced(context: &SessionContext, sql: &str) -> (Arc<dyn ExecutionPlan>, String) {
        let plan = context.sql(sql).await.expect("it plans").create_physical_plan().await.expect("it plans");
        let mut options = ConfigOptions::clone(context.state().config_options());
        options.extensions.insert(Fit { room: 6, share: 6, careful: false });
        let plan = SliceAggregates { slice_bytes: 1, most: 6 }.optimize(plan, &options).expect("it is rewritten");
        let shown = displayable(plan.as_ref()).indent(false).to_string();
        (plan, shown)
    }

    #[tokio::test]
    async fn answers_stay_the_same() {
        let rows =
            "(SELECT value AS v, value * 7919 % 5003 AS k, concat('text ', value % 4001) AS t FROM range(20000))";
        for (nodes, query) in [
            (1, "SELECT k, t, count(*), min(v) FROM {rows} GROUP BY k, t"),
            (1, "SELECT k, v % 3, count(*) FROM {rows} GROUP BY ROLLUP (k, v % 3)"),
            (1, "SELECT DISTINCT t FROM {rows}"),
            (1, "SELECT count(*) FROM (SELECT DISTINCT t FROM {rows} WHERE v % 4001 < 0)"),
            (
                2,
                "SELECT * FROM (SELECT k, count(*) FROM {rows} GROUP BY k) JOIN (SELECT k AS l, max(t) FROM {rows} GROUP BY k) ON k = l",
            ),
            (2, "SELECT n, count(*) FROM (SELECT t, count(*) AS n FROM {rows} GROUP BY t) GROUP BY n"),
            (0, "SELECT count(*) FROM {rows}"),
            (0, "SELECT k FROM {rows} GROUP BY k ORDER BY k LIMIT 3"),
        ] {
            let sql = query.replace("{rows}", rows);
            let stock = SessionContext::new_with_config(SessionConfig::new().with_target_partitions(2));
            let expected = sorted(&stock.sql(&sql).await.expect("it plans").collect().await.expect("it runs"));
            for partitions in [2, 3] {
                let context = context(partitions, 1024, None, None);
                let (plan, shown) = sliced(&context, &sql).await;
                assert!(shown.matches("SlicesExec: slices=").count() >= nodes.min(1), "{shown}");
                assert!(nodes > 0 || !shown.contains("SlicesExec"), "{shown}");
                let rows = collect(plan, context.task_ctx()).await.expect("it runs");
                assert_eq!(sorted(&rows), expected, "{sql}\n{shown}");
            }
        }
    }

    #[tokio::test]
    async fn each_slice_spills_what_it_has() {
        let sql = "SELECT t, count(*), max(v) FROM (SELECT value AS v, concat('a longer text for number ', value * 7919 % 50021) AS t FROM range(200000)) GROUP BY t";
        let expected = SessionContext::new().sql(sql).await.expect("it plans").collect().await.expect("it runs");
        let pool: Arc<dyn MemoryPool> = Arc::new(FairSpillPool::new(6 << 20));
        let context = context(2, 512, None, Some(Arc::clone(&pool)));
        let (plan, shown) = sliced(&context, sql).await;
        let rows = collect(Arc::clone(&plan), context.task_ctx()).await.expect("it runs");
        assert_eq!(sorted(&rows), sorted(&expected), "{shown}");
        let aggregate = plan.children()[0].children()[0];
        let spilled = aggregate.metrics().and_then(|metrics| metrics.spill_count());
        assert!(spilled > Some(0), "{shown}");
        drop(plan);
        assert_eq!(pool.reserved(), 0, "everything is given back");
    }

    #[test]
    fn as_many_slices_as_are_needed() {
        let rule = SliceAggregates { slice_bytes: 32 << 20, most: 16 };
        for (likely, room, partitions, slices) in [
            (None, 512 << 20, 2, 8),
            (None, 64 << 20, 2, 1),
            (None, 16 << 30, 2, 8),
            (None, 16 << 30, 20, 1),
            (Some(1 << 20), 16 << 30, 2, 1),
            (Some(1 << 30), 16 << 30, 4, 4),
            (Some(1 << 30), 256 << 20, 4, 2),
            (Some(0), 0, 0, 1),
        ] {
            assert_eq!(rule.slices(likely, room, partitions), slices, "{likely:?} in {room} by {partitions}");
        }
    }
}
