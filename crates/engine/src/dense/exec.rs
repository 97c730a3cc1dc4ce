//! The plan node that groups by direct addressing.

use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;

use datafusion::arrow::datatypes::{Schema, SchemaRef};
use datafusion::common::config::ConfigOptions;
use datafusion::common::runtime::SpawnedTask;
use datafusion::common::stats::Precision;
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::common::{Result, Statistics, internal_datafusion_err};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::expressions::Column;
use datafusion::physical_expr::{EquivalenceProperties, PhysicalExpr};
use datafusion::physical_plan::aggregates::{AggregateExec, AggregateMode};
use datafusion::physical_plan::coop::make_cooperative;
use datafusion::physical_plan::empty::EmptyExec;
use datafusion::physical_plan::execution_plan::{
    Boundedness, CardinalityEffect, EmissionType, EvaluationType, SchedulingType,
};
use datafusion::physical_plan::filter_pushdown::{
    ChildFilterDescription, ChildPushdownResult, FilterDescription, FilterPushdownPhase, FilterPushdownPropagation,
};
use datafusion::physical_plan::metrics::{BaselineMetrics, ExecutionPlanMetricsSet, MetricBuilder, MetricsSet};
use datafusion::physical_plan::statistics::{ChildStats, StatisticsArgs};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{
    DisplayAs, DisplayFormatType, ExecutionPlan, ExecutionPlanProperties, Partitioning, PlanProperties,
};
use futures::{FutureExt, StreamExt, TryStreamExt};
use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::groups::{Grouping, Key, first_radix};
use super::keys::{Domain, SLOTS_MAX};
use super::run::{Share, Work};

/// Groups rows by keys whose values make small numbers, and aggregates the groups.
#[derive(Debug)]
pub(crate) struct DenseAggregateExec {
    grouping: Arc<Grouping>,
    /// Coded keys are dictionaries in what it gives.
    input: Arc<dyn ExecutionPlan>,
    /// What DataFusion would do in each partition, over an input in which nothing is coded, and with what that gives.
    partial: Arc<AggregateExec>,
    last: Arc<AggregateExec>,
    properties: Arc<PlanProperties>,
    metrics: ExecutionPlanMetricsSet,
    /// Of this run, by output.
    outputs: Mutex<Vec<Option<Output>>>,
}

/// An output that nobody has asked for yet.
struct Output {
    share: oneshot::Receiver<Result<Share>>,
    run: Arc<Run>,
}

/// Begins with the first row that is asked for, and ends when nobody is interested any more.
struct Run {
    work: Arc<Work>,
    begin: Mutex<Begin>,
}

enum Begin {
    Waiting(Vec<oneshot::Sender<Result<Share>>>),
    Begun(#[expect(dead_code, reason = "dropping it ends the task")] SpawnedTask<()>),
}

impl fmt::Debug for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Output")
    }
}

impl DenseAggregateExec {
    /// Does what `aggregate` does, with tables of at most `slots_max` slots. `input` gives what `aggregate` is given,
    /// which is `plain`, with coded keys as dictionaries.
    ///
    /// # Errors
    /// None, unless `aggregate` could not be made either.
    pub(super) fn try_new(
        aggregate: &AggregateExec,
        keys: Vec<Key>,
        slots_max: u32,
        input: Arc<dyn ExecutionPlan>,
        plain: &SchemaRef,
    ) -> Result<Self> {
        let (group, functions) = (aggregate.group_expr().clone(), aggregate.aggr_expr().to_vec());
        let filters = aggregate.filter_expr();
        let placeholder = Arc::new(EmptyExec::new(Arc::clone(plain)));
        let partial = Arc::new(AggregateExec::try_new(
            AggregateMode::Partial,
            group.clone(),
            functions.clone(),
            filters.to_vec(),
            placeholder,
            Arc::clone(plain),
        )?);
        let last = AggregateExec::try_new(
            AggregateMode::FinalPartitioned,
            group.as_final(),
            functions.clone(),
            vec![None; functions.len()],
            Arc::clone(&partial) as Arc<dyn ExecutionPlan>,
            Arc::clone(plain),
        )?;
        let grouping = Grouping { keys, functions: functions.into(), filters: filters.into(), slots_max };
        Ok(Self::over(input, Arc::new(grouping), partial, Arc::new(last)))
    }

    fn over(
        input: Arc<dyn ExecutionPlan>,
        grouping: Arc<Grouping>,
        partial: Arc<AggregateExec>,
        last: Arc<AggregateExec>,
    ) -> Self {
        // A group is in one place only, but in which depends on all of them.
        let constraints = last.properties().equivalence_properties().constraints().clone();
        let properties = PlanProperties::new(
            EquivalenceProperties::new(last.schema()).with_constraints(constraints),
            Partitioning::UnknownPartitioning(input.output_partitioning().partition_count()),
            EmissionType::Final,
            Boundedness::Bounded,
        );
        let properties =
            properties.with_evaluation_type(EvaluationType::Eager).with_scheduling_type(SchedulingType::Cooperative);
        Self {
            grouping,
            input,
            partial,
            last,
            properties: Arc::new(properties),
            metrics: ExecutionPlanMetricsSet::new(),
            outputs: Mutex::default(),
        }
    }

    /// What DataFusion would do in its place. Its inputs are not those of this one.
    pub(crate) fn stock(&self) -> &AggregateExec {
        &self.partial
    }

    /// What it groups.
    pub(crate) fn input(&self) -> &Arc<dyn ExecutionPlan> {
        &self.input
    }

    /// Bytes of the table of each partition at its start.
    pub(crate) fn table_bytes(&self) -> u64 {
        first_radix(&self.grouping.keys, SLOTS_MAX)
            .map_or(0, |radix| u64::from(radix.slots()) * size_of::<u32>() as u64)
    }

    fn start(&self, context: Arc<TaskContext>) -> Vec<Option<Output>> {
        let partitions = self.properties.partitioning.partition_count();
        let times =
            (0..partitions).map(|partition| MetricBuilder::new(&self.metrics).subset_time("grouping_time", partition));
        let work = Arc::new(Work {
            grouping: Arc::clone(&self.grouping),
            input: Arc::clone(&self.input),
            partial: Arc::clone(&self.partial),
            schema: self.last.schema(),
            context,
            times: times.collect(),
            fallbacks: MetricBuilder::new(&self.metrics).global_counter("fallbacks"),
        });
        let (senders, receivers): (Vec<_>, Vec<_>) = (0..partitions).map(|_| oneshot::channel()).unzip();
        let run = Arc::new(Run { work, begin: Mutex::new(Begin::Waiting(senders)) });
        receivers.into_iter().map(|share| Some(Output { share, run: Arc::clone(&run) })).collect()
    }
}

impl Run {
    /// Begins, unless it has begun.
    fn begin(&self) {
        let mut begin = self.begin.lock();
        if let Begin::Waiting(outputs) = &mut *begin {
            let outputs = std::mem::take(outputs);
            *begin = Begin::Begun(SpawnedTask::spawn(Arc::clone(&self.work).run(outputs)));
        }
    }
}

impl DisplayAs for DenseAggregateExec {
    fn fmt_as(&self, kind: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |f: &mut fmt::Formatter<'_>, name: &str, items: Vec<String>| match kind {
            DisplayFormatType::TreeRender => writeln!(f, "{name}={}", items.join(", ")),
            _ => write!(f, "{name}=[{}]", items.join(", ")),
        };
        if !matches!(kind, DisplayFormatType::TreeRender) {
            f.write_str("DenseAggregateExec: ")?;
        }
        let keys = self.grouping.keys.iter().zip(self.partial.group_expr().expr()).map(|(key, (expr, name))| {
            let domain = match key.domain {
                Domain::Range { min, count } => format!("{count} from {min}"),
                Domain::Coded => "coded".to_owned(),
            };
            format!("{expr} as {name} ({domain})")
        });
        list(f, "gby", keys.collect())?;
        if !matches!(kind, DisplayFormatType::TreeRender) {
            f.write_str(", ")?;
        }
        list(f, "aggr", self.grouping.functions.iter().map(|function| function.name().to_owned()).collect())
    }
}

impl ExecutionPlan for DenseAggregateExec {
    fn name(&self) -> &str {
        "DenseAggregateExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        vec![&self.input]
    }

    fn with_new_children(self: Arc<Self>, mut children: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        let (partial, last) = (Arc::clone(&self.partial), Arc::clone(&self.last));
        Ok(Arc::new(Self::over(children.swap_remove(0), Arc::clone(&self.grouping), partial, last)))
    }

    fn apply_expressions(
        &self,
        f: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        self.partial.apply_expressions(f)
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let mut outputs = self.outputs.lock();
        if outputs.is_empty() {
            *outputs = self.start(context);
        }
        let output = outputs.get_mut(partition).and_then(Option::take);
        let Output { share, run } =
            output.ok_or_else(|| internal_datafusion_err!("partition {partition} was executed before"))?;
        drop(outputs);
        let baseline = BaselineMetrics::new(&self.metrics, partition);
        let rows = async move {
            run.begin();
            let share = share.await.map_err(|_| internal_datafusion_err!("the aggregation has ended"))??;
            let stream = share.into_stream(&run.work, &run.work.times[partition]).await?;
            // The run goes on until the last of its outputs has what it wants.
            Ok::<_, datafusion::error::DataFusionError>(stream.inspect(move |_| {
                let _ = &run;
            }))
        };
        let rows = rows.into_stream().try_flatten();
        let rows = rows.inspect_ok(move |batch| baseline.record_output(batch.num_rows()));
        Ok(make_cooperative(Box::pin(RecordBatchStreamAdapter::new(self.schema(), rows))))
    }

    fn metrics(&self) -> Option<MetricsSet> {
        Some(self.metrics.clone_inner())
    }

    fn child_stats_requests(&self, _: Option<usize>) -> Vec<ChildStats> {
        vec![ChildStats::At(None)]
    }

    fn statistics_from_inputs(&self, inputs: &[Arc<Statistics>], args: &StatisticsArgs) -> Result<Arc<Statistics>> {
        if args.partition().is_some() {
            return Ok(Arc::new(Statistics::new_unknown(&self.schema())));
        }
        let partial = self.partial.statistics_from_inputs(inputs, args)?;
        let mut all = Arc::unwrap_or_clone(self.last.statistics_from_inputs(&[partial], args)?);
        for (column, key) in all.column_statistics.iter_mut().zip(&self.grouping.keys) {
            if key.domain == Domain::Coded {
                // They are of the dictionary's type.
                (column.min_value, column.max_value) = (Precision::Absent, Precision::Absent);
            }
        }
        Ok(Arc::new(all))
    }

    fn cardinality_effect(&self) -> CardinalityEffect {
        CardinalityEffect::LowerEqual
    }

    /// A filter of keys takes whole groups away, and may as well take their rows.
    fn gather_filters_for_pushdown(
        &self,
        _: FilterPushdownPhase,
        parent_filters: Vec<Arc<dyn PhysicalExpr>>,
        _: &ConfigOptions,
    ) -> Result<FilterDescription> {
        let names = self.partial.group_expr().expr().iter().map(|(_, name)| name);
        let keys = self.grouping.keys.iter().zip(names).enumerate();
        let keys = keys.filter(|(_, (key, name))| is_passed_on(key, name, &self.input.schema()));
        let allowed: HashSet<usize> = keys.map(|(index, _)| index).collect();
        let child = ChildFilterDescription::from_child_with_allowed_indices(&parent_filters, allowed, &self.input)?;
        Ok(FilterDescription::new().with_child(child))
    }

    fn handle_child_pushdown_result(
        &self,
        _: FilterPushdownPhase,
        result: ChildPushdownResult,
        _: &ConfigOptions,
    ) -> Result<FilterPushdownPropagation<Arc<dyn ExecutionPlan>>> {
        Ok(FilterPushdownPropagation::if_any(result))
    }
}

/// Whether a filter of the key `name` is one of the input's column of that name: filters are pushed down by name.
fn is_passed_on(key: &Key, name: &str, input: &Schema) -> bool {
    let column = key.expr.downcast_ref::<Column>();
    key.domain != Domain::Coded && column.is_some_and(|column| input.index_of(name).ok() == Some(column.index()))
}
