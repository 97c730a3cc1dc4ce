//! Physical plans that may run more than once.
//!
//! Most operators of DataFusion 55.2 keep something of the run they are in: a join its build side, an exchange its
//! channels, all of them their metrics. `reset_state` makes a copy without it, but not of everything: what a filter
//! that is made while the query runs has come to stays in whoever reads it, and a minimum found by an aggregate would
//! hide the minimum from the next run. So a plan is kept only when it has none of that and every operator in it is
//! known to start anew.

use std::sync::Arc;

use datafusion::common::tree_node::{Transformed, TransformedResult, TreeNode, TreeNodeRecursion};
use datafusion::datasource::memory::MemorySourceConfig;
use datafusion::datasource::source::{DataSource, DataSourceExec};
use datafusion::error::Result;
use datafusion::execution::config::SessionConfig;
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::expressions::{Column, DynamicFilterPhysicalExpr, Literal};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::aggregates::AggregateExec;
use datafusion::physical_plan::coalesce_partitions::CoalescePartitionsExec;
use datafusion::physical_plan::empty::EmptyExec;
use datafusion::physical_plan::execution_plan::reset_plan_states;
use datafusion::physical_plan::filter::FilterExec;
use datafusion::physical_plan::limit::{GlobalLimitExec, LocalLimitExec};
use datafusion::physical_plan::placeholder_row::PlaceholderRowExec;
use datafusion::physical_plan::projection::ProjectionExec;
use datafusion::physical_plan::repartition::RepartitionExec;
use datafusion::physical_plan::sorts::sort::SortExec;
use datafusion::physical_plan::sorts::sort_preserving_merge::SortPreservingMergeExec;
use datafusion::physical_plan::union::UnionExec;
use updraft_hot::HotSource;

use crate::footprint::{Footprint, Shape};

/// Nodes of this crate that begin anew when they are made anew.
const OURS: [&str; 3] = ["CompactExec", "DenseAggregateExec", "SlicesExec"];

/// The most bytes of constants in a result that is at hand: a client that never takes it may keep that long.
const AT_HAND_BYTES: usize = 4 << 10;

/// A physical plan that is never run itself, but copied for each run.
#[derive(Debug)]
pub(crate) struct Again {
    plan: Arc<dyn ExecutionPlan>,
    /// What it was planned with.
    pub(crate) config: SessionConfig,
    pub(crate) footprint: Footprint,
    pub(crate) shape: Shape,
    /// Bytes it was made to fit into; `None` when that was not asked.
    room: Option<usize>,
    at_hand: bool,
}

impl Again {
    /// `None` when `plan` may run only once.
    pub(crate) fn new(
        plan: &Arc<dyn ExecutionPlan>,
        config: &SessionConfig,
        footprint: Footprint,
        shape: Shape,
        room: Option<usize>,
    ) -> Option<Arc<Self>> {
        let plan = Arc::clone(plan);
        starts_anew(&plan).then(|| {
            let at_hand = is_at_hand(&plan);
            Arc::new(Self { plan, config: config.clone(), footprint, shape, room, at_hand })
        })
    }

    /// Whether all it does is to give constants that the plan has.
    pub(crate) fn is_at_hand(&self) -> bool {
        self.at_hand
    }

    /// Whether planning once more, in this shape and for this much room, would give the same plan. With more room it
    /// might be a better one, and with less of its columns in memory another.
    pub(crate) fn suits(&self, shape: Shape, room: Option<usize>) -> bool {
        let fits = match (self.room, room) {
            (Some(planned), Some(room)) => planned <= room && room / 2 <= planned,
            (planned, room) => planned == room,
        };
        self.shape == shape && (fits || self.footprint.is_light) && all(&self.plan, is_in_memory)
    }

    /// A copy to run.
    ///
    /// # Errors
    /// None in practice: what DataFusion says of a node that does not take back its own children.
    pub(crate) fn plan(&self) -> Result<Arc<dyn ExecutionPlan>> {
        let plan = Arc::clone(&self.plan).transform_up(|node| {
            // Sources have no state to reset, but metrics that would grow with each run.
            let scan = node.downcast_ref::<DataSourceExec>();
            let source = scan.and_then(|scan| scan.data_source().downcast_ref::<HotSource>());
            Ok(match (scan, source) {
                (Some(scan), Some(source)) => {
                    let source = Arc::new(source.with_rows(source.fetch()));
                    Transformed::yes(Arc::new(scan.clone().with_data_source(source)) as Arc<dyn ExecutionPlan>)
                }
                _ => Transformed::no(node),
            })
        });
        reset_plan_states(plan.data()?)
    }
}

/// Whether copies of `plan` have nothing in common that a run changes.
fn starts_anew(plan: &Arc<dyn ExecutionPlan>) -> bool {
    all(plan, |node| known(node) && is_in_memory(node) && !shares_a_filter(node))
}

fn all(plan: &Arc<dyn ExecutionPlan>, mut test: impl FnMut(&dyn ExecutionPlan) -> bool) -> bool {
    let mut all = true;
    let walked = plan.apply(|node| {
        all = all && test(node.as_ref());
        Ok(if all { TreeNodeRecursion::Continue } else { TreeNodeRecursion::Stop })
    });
    all && walked.is_ok()
}

/// Whether `plan` is a row of a few constants, or none: `SELECT 1`, and a count that the statistics tell.
fn is_at_hand(plan: &Arc<dyn ExecutionPlan>) -> bool {
    let mut bytes = 0_usize;
    let constants = all(plan, |node| {
        let Some(projection) = node.downcast_ref::<ProjectionExec>() else {
            return node.is::<PlaceholderRowExec>() || node.is::<EmptyExec>();
        };
        projection.expr().iter().all(|column| match column.expr.downcast_ref::<Literal>() {
            Some(literal) => {
                bytes = bytes.saturating_add(literal.value().size());
                true
            }
            None => column.expr.is::<Column>(),
        })
    });
    constants && bytes <= AT_HAND_BYTES
}

/// Whether `node` is of a kind whose `reset_state` leaves nothing of a run.
fn known(node: &dyn ExecutionPlan) -> bool {
    node.is::<PlaceholderRowExec>()
        || node.is::<DataSourceExec>()
        || node.is::<EmptyExec>()
        || node.is::<ProjectionExec>()
        || node.is::<FilterExec>()
        || node.is::<AggregateExec>()
        || node.is::<SortExec>()
        || node.is::<SortPreservingMergeExec>()
        || node.is::<GlobalLimitExec>()
        || node.is::<LocalLimitExec>()
        || node.is::<CoalescePartitionsExec>()
        || node.is::<RepartitionExec>()
        || node.is::<UnionExec>()
        || OURS.contains(&node.name())
}

/// Whether `node` reads nothing from files. Their readers keep the metrics of all their runs, which would grow without end;
/// and how a scan of columns is planned depends on whether they are in memory.
fn is_in_memory(node: &dyn ExecutionPlan) -> bool {
    let Some(scan) = node.downcast_ref::<DataSourceExec>() else { return true };
    let source = scan.data_source();
    match source.downcast_ref::<HotSource>() {
        Some(hot) => hot.outlook().absent_segments == 0,
        None => source.is::<MemorySourceConfig>(),
    }
}

/// Whether `node` has a filter that is made while the query runs, beside the one that a sort keeps to itself and makes
/// anew.
fn shares_a_filter(node: &dyn ExecutionPlan) -> bool {
    if node.is::<SortExec>() {
        return false;
    }
    let mut found = false;
    let mut look = |expression: &Arc<dyn PhysicalExpr>| {
        expression.apply(|part| {
            found |= part.is::<DynamicFilterPhysicalExpr>();
            Ok(if found { TreeNodeRecursion::Stop } else { TreeNodeRecursion::Continue })
        })
    };
    let looked = node.apply_expressions(&mut look);
    found || looked.is_err() || !node.dynamic_expressions_produced().is_empty()
}
