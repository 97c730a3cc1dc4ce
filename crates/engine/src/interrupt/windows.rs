//! Makes the aggregates of window functions look whether their query was cancelled, for each row.
//!
//! A window function goes through a partition, or a batch, within one call. That takes minutes when each row's
//! frame is looked at anew, as `median` does. What is called for each row is the function's accumulator.

use std::hash::{Hash, Hasher};
use std::sync::Arc;

use datafusion::arrow::array::ArrayRef;
use datafusion::arrow::datatypes::{DataType, FieldRef, SchemaRef};
use datafusion::common::{Result, ScalarValue};
use datafusion::logical_expr::function::AccumulatorArgs;
use datafusion::logical_expr::{Accumulator, AggregateUDF, AggregateUDFImpl, SetMonotonicity, Signature};
use datafusion::physical_expr::aggregate::{AggregateExprBuilder, AggregateFunctionExpr};
use datafusion::physical_expr::window::{PlainAggregateWindowExpr, SlidingAggregateWindowExpr};
use datafusion::physical_plan::windows::BoundedWindowAggExec;
use datafusion::physical_plan::{ExecutionPlan, WindowExpr};
use tokio_util::sync::CancellationToken;

use super::Watch;
use crate::fit::{RunningWindowExec, WindowByPartitionExec};

/// `node`, with functions that watch `cancel`, if it is an operator of window functions.
pub(super) fn watching(node: &dyn ExecutionPlan, cancel: &CancellationToken) -> Result<Option<Arc<dyn ExecutionPlan>>> {
    let watched = |functions: &[Arc<dyn WindowExpr>], input: &Arc<dyn ExecutionPlan>| {
        let watch = Watch::of(cancel);
        functions.iter().map(|function| watched(function, &input.schema(), &watch)).collect::<Result<Vec<_>>>()
    };
    Ok(if let Some(node) = node.downcast_ref::<WindowByPartitionExec>() {
        Some(Arc::new(node.with_functions(watched(node.window().window_expr(), node.window().input())?)?))
    } else if let Some(node) = node.downcast_ref::<RunningWindowExec>() {
        Some(Arc::new(node.with_functions(watched(node.window().window_expr(), node.window().input())?)?))
    } else if let Some(node) = node.downcast_ref::<BoundedWindowAggExec>() {
        let (functions, input) = (watched(node.window_expr(), node.input())?, Arc::clone(node.input()));
        let partitioned = !node.partition_keys().is_empty();
        Some(Arc::new(BoundedWindowAggExec::try_new(functions, input, node.input_order_mode.clone(), partitioned)?))
    } else {
        None
    })
}

fn watched(function: &Arc<dyn WindowExpr>, input: &SchemaRef, watch: &Watch) -> Result<Arc<dyn WindowExpr>> {
    // DataFusion 55.2 tells nobody the condition of FILTER, without which the function cannot be made anew. Whether it
    // has one shows in this text only. Such a function stays as it is.
    let is_filtered = || !format!("{function:?}").ends_with("filter: None }");
    let (keys, order, frame) = (function.partition_by(), function.order_by(), function.get_window_frame());
    if let Some(plain) = function.as_any().downcast_ref::<PlainAggregateWindowExpr>()
        && !is_filtered()
    {
        let aggregate = aggregate(plain.get_aggregate_expr(), input, watch)?;
        return Ok(Arc::new(PlainAggregateWindowExpr::new(aggregate, keys, order, Arc::clone(frame), None)));
    }
    if let Some(sliding) = function.as_any().downcast_ref::<SlidingAggregateWindowExpr>()
        && !is_filtered()
    {
        let aggregate = aggregate(sliding.get_aggregate_expr(), input, watch)?;
        return Ok(Arc::new(SlidingAggregateWindowExpr::new(aggregate, keys, order, Arc::clone(frame), None)));
    }
    Ok(Arc::clone(function))
}

fn aggregate(of: &AggregateFunctionExpr, input: &SchemaRef, watch: &Watch) -> Result<Arc<AggregateFunctionExpr>> {
    let watching = Watching { inner: of.fun().clone(), field: of.field(), watch: watch.clone() };
    let builder = AggregateExprBuilder::new(Arc::new(AggregateUDF::from(watching)), of.expressions())
        .schema(Arc::clone(input))
        .alias(of.name())
        .order_by(of.order_bys().to_vec())
        .with_ignore_nulls(of.ignore_nulls())
        .with_distinct(of.is_distinct())
        .with_reversed(of.is_reversed());
    Ok(Arc::new(builder.build()?))
}

/// An aggregate that is planned: nothing of it that planning asks for.
#[derive(Debug)]
struct Watching {
    inner: AggregateUDF,
    field: FieldRef,
    watch: Watch,
}

impl AggregateUDFImpl for Watching {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn signature(&self) -> &Signature {
        self.inner.signature()
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(self.field.data_type().clone())
    }

    fn return_field(&self, _: &[FieldRef]) -> Result<FieldRef> {
        Ok(Arc::clone(&self.field))
    }

    fn is_nullable(&self) -> bool {
        self.inner.is_nullable()
    }

    fn accumulator(&self, arguments: AccumulatorArgs<'_>) -> Result<Box<dyn Accumulator>> {
        Ok(Box::new(Accumulating { inner: self.inner.accumulator(arguments)?, watch: self.watch.clone() }))
    }

    fn create_sliding_accumulator(&self, arguments: AccumulatorArgs<'_>) -> Result<Box<dyn Accumulator>> {
        let inner = self.inner.create_sliding_accumulator(arguments)?;
        Ok(Box::new(Accumulating { inner, watch: self.watch.clone() }))
    }

    fn default_value(&self, data_type: &DataType) -> Result<ScalarValue> {
        self.inner.default_value(data_type)
    }

    fn set_monotonicity(&self, data_type: &DataType) -> SetMonotonicity {
        self.inner.inner().set_monotonicity(data_type)
    }
}

impl PartialEq for Watching {
    fn eq(&self, other: &Self) -> bool {
        self.inner == other.inner && self.field == other.field
    }
}

impl Eq for Watching {}

impl Hash for Watching {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.inner.hash(state);
    }
}

/// Gives what `inner` gives, unless its query was cancelled.
#[derive(Debug)]
struct Accumulating {
    inner: Box<dyn Accumulator>,
    watch: Watch,
}

impl Accumulator for Accumulating {
    fn update_batch(&mut self, values: &[ArrayRef]) -> Result<()> {
        self.inner.update_batch(values)
    }

    fn retract_batch(&mut self, values: &[ArrayRef]) -> Result<()> {
        self.inner.retract_batch(values)
    }

    fn supports_retract_batch(&self) -> bool {
        self.inner.supports_retract_batch()
    }

    fn merge_batch(&mut self, states: &[ArrayRef]) -> Result<()> {
        self.inner.merge_batch(states)
    }

    fn evaluate(&mut self) -> Result<ScalarValue> {
        self.watch.look()?;
        self.inner.evaluate()
    }

    fn state(&mut self) -> Result<Vec<ScalarValue>> {
        self.inner.state()
    }

    fn size(&self) -> usize {
        size_of_val(self) + self.inner.size()
    }
}
