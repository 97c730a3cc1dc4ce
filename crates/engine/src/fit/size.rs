//! How many bytes a plan gives, from the statistics of its tables.

use datafusion::arrow::datatypes::DataType;
use datafusion::common::stats::Precision;
use datafusion::logical_expr::JoinType;
use datafusion::physical_plan::aggregates::AggregateExec;
use datafusion::physical_plan::joins::{HashJoinExec, SortMergeJoinExec};
use datafusion::physical_plan::statistics::{StatisticsArgs, StatisticsContext};
use datafusion::physical_plan::{ExecutionPlan, execution_plan::CardinalityEffect};

/// What a value of no known width is taken for: a string of some length, and its view.
const VALUE_BYTES: usize = 32;

/// What such a value is taken for when it must not be too little.
const VALUE_BYTES_MOST: usize = 1 << 10;

/// How many bytes `plan` is thought to give; `None` when nothing is known of its tables.
pub(super) fn likely(plan: &dyn ExecutionPlan) -> Option<usize> {
    Some(likely_rows(plan)?.saturating_mul(row_bytes(plan)))
}

/// How many bytes `plan` gives at most, if its strings are not very long; `None` when that cannot be said.
pub(super) fn at_most(plan: &dyn ExecutionPlan) -> Option<usize> {
    let schema = plan.schema();
    let row = schema.fields().iter().map(|field| bytes_of(field.data_type(), VALUE_BYTES_MOST)).sum::<usize>();
    Some(rows_at_most(plan)?.saturating_mul(row.max(1)))
}

/// DataFusion's estimate, or that of the largest input: most joins are along a key.
fn likely_rows(plan: &dyn ExecutionPlan) -> Option<usize> {
    match rows(plan) {
        Precision::Exact(rows) | Precision::Inexact(rows) => Some(rows),
        Precision::Absent => plan.children().into_iter().filter_map(|child| likely_rows(child.as_ref())).max(),
    }
}

fn rows_at_most(plan: &dyn ExecutionPlan) -> Option<usize> {
    let fetch = plan.fetch();
    let most = match (rows(plan), plan.children().as_slice()) {
        (Precision::Exact(rows), _) => Some(rows),
        // A scan that filters knows how many rows it reads.
        (Precision::Inexact(rows), []) => Some(rows),
        (_, [child]) => match plan.cardinality_effect() {
            CardinalityEffect::Equal | CardinalityEffect::LowerEqual => rows_at_most(child.as_ref()),
            _ if groups_once(plan) => rows_at_most(child.as_ref()),
            _ => None,
        },
        (_, [left, right]) => match existence(plan)? {
            JoinType::LeftSemi | JoinType::LeftAnti | JoinType::LeftMark => rows_at_most(left.as_ref()),
            JoinType::RightSemi | JoinType::RightAnti | JoinType::RightMark => rows_at_most(right.as_ref()),
            _ => None,
        },
        _ => None,
    };
    match (most, fetch) {
        (Some(most), Some(fetch)) => Some(most.min(fetch)),
        (most, fetch) => most.or(fetch),
    }
}

fn rows(plan: &dyn ExecutionPlan) -> Precision<usize> {
    let statistics = StatisticsContext::new().compute(plan, &StatisticsArgs::new());
    statistics.map_or(Precision::Absent, |statistics| statistics.num_rows)
}

/// Whether `plan` is an aggregate that gives at most a row for each of its input.
fn groups_once(plan: &dyn ExecutionPlan) -> bool {
    plan.downcast_ref::<AggregateExec>()
        .is_some_and(|aggregate| aggregate.group_expr().is_single() && !aggregate.group_expr().is_true_no_grouping())
}

fn existence(plan: &dyn ExecutionPlan) -> Option<JoinType> {
    let hash = plan.downcast_ref::<HashJoinExec>().map(|join| *join.join_type());
    hash.or_else(|| plan.downcast_ref::<SortMergeJoinExec>().map(SortMergeJoinExec::join_type))
}

/// Bytes of one row in memory.
pub(super) fn row_bytes(plan: &dyn ExecutionPlan) -> usize {
    plan.schema().fields().iter().map(|field| value_bytes(field.data_type())).sum::<usize>().max(1)
}

/// Whether the bytes of a row are guessed: some of its types do not say.
pub(super) fn is_guessed(plan: &dyn ExecutionPlan) -> bool {
    let schema = plan.schema();
    schema.fields().iter().any(|field| bytes_of(field.data_type(), 0) != bytes_of(field.data_type(), 1))
}

/// Bytes of one value in memory, about.
pub(super) fn value_bytes(data_type: &DataType) -> usize {
    bytes_of(data_type, VALUE_BYTES)
}

/// Bytes of one value in memory, `unknown` where its type does not say.
fn bytes_of(data_type: &DataType, unknown: usize) -> usize {
    match data_type {
        DataType::Boolean | DataType::Null => 1,
        DataType::FixedSizeBinary(size) => usize::try_from(*size).unwrap_or(unknown),
        DataType::Struct(fields) => fields.iter().map(|field| bytes_of(field.data_type(), unknown)).sum(),
        DataType::Dictionary(key, _) => bytes_of(key, unknown),
        other => other.primitive_width().unwrap_or(unknown),
    }
}
