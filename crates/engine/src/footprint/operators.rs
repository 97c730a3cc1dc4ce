//! What each operator of DataFusion 55.2 holds by itself.
//!
//! The numbers of batches are read from its sources; an operator that is not known here, of a later version or one
//! of our own, is taken to pass its rows on.

use datafusion::physical_expr::aggregate::AggregateFunctionExpr;
use datafusion::physical_plan::aggregates::{AggregateExec, AggregateMode};
use datafusion::physical_plan::coalesce_partitions::CoalescePartitionsExec;
use datafusion::physical_plan::filter::FilterExec;
use datafusion::physical_plan::joins::{
    CrossJoinExec, HashJoinExec, NestedLoopJoinExec, PiecewiseMergeJoinExec, SortMergeJoinExec,
};
use datafusion::physical_plan::recursive_query::RecursiveQueryExec;
use datafusion::physical_plan::repartition::RepartitionExec;
use datafusion::physical_plan::sorts::partial_sort::PartialSortExec;
use datafusion::physical_plan::sorts::sort::SortExec;
use datafusion::physical_plan::sorts::sort_preserving_merge::SortPreservingMergeExec;
use datafusion::physical_plan::windows::BoundedWindowAggExec;
use datafusion::physical_plan::{ExecutionPlan, InputOrderMode};

use super::walk::Walk;
use crate::dense::DenseAggregateExec;
use crate::fit::{RunningWindowExec, WindowByPartitionExec};

/// A hash table's share of a row: a hash and a place, tables at most 7/8 full, and the next row of the same hash.
const HASH_BYTES: u64 = 32;
/// Batches for each run that is merged: one, which DataFusion counts double, because rows in sortable form stand
/// beside it, and half as much again for what batches read back are larger than their rows.
pub(super) const PER_RUN: u64 = 3;
/// Where a row in sortable form begins.
const OFFSET_BYTES: u64 = 8;
/// Batches with which a sort can merge two runs.
const MERGING: u64 = 2 * PER_RUN;
/// Batches with which an operator that spills gets on well enough: two runs are merged with one batch read ahead of
/// each, and a few are gathered for the next run.
const SPILLING: u64 = 16;
/// Batches for an operator that keeps some of its input, of which nobody knows how much.
const KEEPING: u64 = 8;
/// Batches of rows no longer wanted that a TopK keeps before it copies what it wants.
const TOPK: u64 = 20;
/// Functions whose state is all the values they were given.
const HOARDERS: [&str; 5] = ["array_agg", "string_agg", "median", "percentile_cont", "nth_value"];

/// Where an operator stands.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    pub(super) partitions: u64,
    /// Partitions of its first input.
    pub(super) from: u64,
    /// Rows of a batch it gives.
    pub(super) rows: u64,
    /// Bytes of a batch it gives.
    pub(super) batch: u64,
    /// Bytes of a batch it is given.
    pub(super) input: u64,
    /// Bytes that such a batch keeps alive beside its rows, and that are reserved with it.
    pub(super) pinned: u64,
    /// The most rows it is given, whatever the data.
    pub(super) given: u64,
}

/// What an operator holds by itself, in bytes over all its partitions.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Own {
    pub(super) unaccounted: u64,
    pub(super) minimum: u64,
    /// Where it is less than `minimum`, that counts.
    pub(super) appetite: u64,
}

/// How an operator takes its inputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Manner {
    /// It gives rows as they come.
    Passing,
    /// It gives rows when its input has ended.
    Blocking,
    /// It takes all of its first input, then gives rows as those of the second come.
    Building,
}

impl Place {
    /// So many batches that it gives, in each partition.
    fn each(self, batches: u64) -> u64 {
        self.partitions.saturating_mul(batches).saturating_mul(self.batch)
    }

    /// The groups of one batch in each partition, all different.
    fn groups(self) -> u64 {
        self.partitions.saturating_mul(self.rows.saturating_mul(HASH_BYTES).saturating_add(self.batch))
    }
}

impl Own {
    /// What is not reserved.
    fn passing(bytes: u64) -> Self {
        Self { unaccounted: bytes, ..Self::default() }
    }
}

/// What `plan`, which stands at `at`, holds.
pub(super) fn own(walk: &mut Walk, plan: &dyn ExecutionPlan, at: Place) -> (Manner, Own) {
    let passing = Own::passing(at.each(1));
    let from_each = |batches: u64| at.from.saturating_mul(batches).saturating_mul(at.batch);
    if plan.is::<FilterExec>() {
        // What comes in, and the batch that is being filled with what is left of it.
        (Manner::Passing, Own::passing(at.each(2)))
    } else if plan.is::<RepartitionExec>() {
        // The batches in its channels are reserved, or spilled; those being filled and being cut up are not.
        let own = Own::passing(at.each(1).saturating_add(from_each(2)));
        (Manner::Passing, Own { minimum: at.each(1), ..own })
    } else if plan.is::<CoalescePartitionsExec>() && at.from > 1 {
        // One of each input waits in the channel, and one is being made.
        (Manner::Passing, Own::passing(from_each(2)))
    } else if plan.is::<SortPreservingMergeExec>() && at.from > 1 {
        // One of each input is read ahead; another is being merged, with its rows in sortable form. Its strings point
        // into the batches of all runs that it was merged from.
        let merging = if at.pinned > 0 { KEEPING } else { 2 };
        (Manner::Passing, Own { minimum: from_each(merging), ..Own::passing(from_each(1).saturating_add(at.batch)) })
    } else if let Some(sort) = plan.downcast_ref::<SortExec>() {
        (Manner::Blocking, of_sort(walk, sort, at))
    } else if plan.is::<PartialSortExec>() {
        (Manner::Passing, Own { minimum: at.each(MERGING), ..passing })
    } else if let Some(aggregate) = plan.downcast_ref::<AggregateExec>() {
        of_aggregate(walk, aggregate, at)
    } else if let Some(dense) = plan.downcast_ref::<DenseAggregateExec>() {
        of_dense(walk, dense, at)
    } else if let Some(window) = plan.downcast_ref::<WindowByPartitionExec>().map(WindowByPartitionExec::window) {
        let all = walk.bytes(window.input().as_ref(), 0);
        let some = at.each(KEEPING);
        // With partitions it can be run on one of them after the other.
        let minimum = if window.partition_keys().is_empty() { all.unwrap_or(some) } else { some };
        (Manner::Blocking, Own { minimum, appetite: walk.twice(all), ..passing })
    } else if plan.is::<RunningWindowExec>() || plan.is::<BoundedWindowAggExec>() {
        (Manner::Passing, Own { minimum: at.each(KEEPING), ..passing })
    } else if plan.is::<RecursiveQueryExec>() {
        (Manner::Passing, Own { minimum: at.each(KEEPING), appetite: walk.twice(None), ..passing })
    } else if plan.is::<SortMergeJoinExec>() {
        let minimum = at.partitions.saturating_mul(2 * MERGING).saturating_mul(at.input);
        (Manner::Passing, Own { minimum, ..Own::passing(at.each(2)) })
    } else if let Some((build, hash)) = build_side(plan) {
        let kept = walk.bytes(build, hash);
        // It does not spill: all that is built must fit.
        let minimum = kept.unwrap_or_else(|| at.partitions.saturating_mul(MERGING).saturating_mul(at.input));
        (Manner::Building, Own { minimum, appetite: walk.twice(kept), ..Own::passing(at.each(2)) })
    } else {
        (Manner::Passing, passing)
    }
}

/// The side of a join that is kept, and the bytes for each of its rows beside the row.
fn build_side(plan: &dyn ExecutionPlan) -> Option<(&dyn ExecutionPlan, u64)> {
    if let Some(join) = plan.downcast_ref::<HashJoinExec>() {
        Some((join.left().as_ref(), HASH_BYTES))
    } else if let Some(join) = plan.downcast_ref::<NestedLoopJoinExec>() {
        Some((join.left().as_ref(), 0))
    } else if let Some(join) = plan.downcast_ref::<CrossJoinExec>() {
        Some((join.left().as_ref(), 0))
    } else {
        plan.downcast_ref::<PiecewiseMergeJoinExec>().map(|join| (join.buffered.as_ref(), 0))
    }
}

fn of_sort(walk: &mut Walk, sort: &SortExec, at: Place) -> Own {
    let passing = Own::passing(at.each(1));
    let row = walk.row(&sort.schema());
    let all = walk.bytes(sort.input().as_ref(), 0);
    // As given and sorted.
    let all_max = at.given.saturating_mul(row).saturating_mul(2);
    // A batch that is kept, and one that does not fit any more.
    let pinned = at.partitions.saturating_mul(2).saturating_mul(at.pinned);
    if let Some(fetch) = sort.fetch() {
        let wanted = (fetch as u64).saturating_mul(row).saturating_mul(2);
        let kept = wanted.saturating_add(at.input.saturating_mul(TOPK)).saturating_mul(at.partitions).min(all_max);
        let kept = kept.saturating_add(pinned);
        return Own { minimum: kept, appetite: kept, ..passing };
    }
    walk.sums.sorts = walk.sums.sorts.saturating_add(at.partitions);
    walk.sums.compared = walk.sums.compared.max(compared(walk, sort));
    walk.sums.spills(at.partitions, at.batch);
    let minimum = at.each(SPILLING).min(all_max).saturating_add(pinned);
    Own { minimum, appetite: walk.twice(all), ..passing }
}

/// What a sort holds of a row to compare it, for a hundred bytes of the row. One key of a common type is compared where it is.
fn compared(walk: &Walk, sort: &SortExec) -> u64 {
    let (schema, keys) = (sort.schema(), sort.expr());
    if let [key] = &keys[..]
        && key.expr.data_type(&schema).is_ok_and(|kind| kind.is_primitive() || kind.is_string() || kind.is_binary())
    {
        return 100;
    }
    let bytes = keys.iter().fold(OFFSET_BYTES, |sum, key| sum.saturating_add(walk.sortable(&key.expr, &schema)));
    bytes.saturating_mul(100) / walk.row(&schema).max(1)
}

fn of_aggregate(walk: &mut Walk, plan: &AggregateExec, at: Place) -> (Manner, Own) {
    let passing = Own::passing(at.each(1));
    let hoard = hoard(walk, plan, plan.input().as_ref());
    if plan.group_expr().is_true_no_grouping() {
        // Its state does not spill.
        let minimum = hoard.unwrap_or_else(|| at.partitions.saturating_mul(KEEPING).saturating_mul(at.input));
        return (Manner::Blocking, Own { minimum, appetite: walk.twice(hoard), ..passing });
    }
    let groups = at.groups();
    let row = walk.row(&plan.schema()).saturating_add(HASH_BYTES);
    // Each row a group, in the table and sorted.
    let all_max = at.given.saturating_mul(row).saturating_mul(2);
    let few = groups.saturating_mul(MERGING).min(all_max);
    if *plan.input_order_mode() != InputOrderMode::Linear {
        return (Manner::Passing, Own { minimum: few, appetite: walk.twice(hoard), ..passing });
    }
    let rows_there = walk.rows(plan.input().as_ref());
    let is_partial = matches!(plan.mode(), AggregateMode::Partial | AggregateMode::PartialReduce);
    // Before they are brought together, each partition may have all groups.
    let times = if is_partial { at.partitions } else { 1 };
    let rows = walk.rows(plan).map(|groups| groups.saturating_mul(times).min(rows_there.unwrap_or(u64::MAX)));
    let all = rows.zip(hoard).map(|(rows, hoard)| rows.saturating_mul(row).saturating_add(hoard));
    let appetite = walk.twice(all);
    if !is_partial {
        walk.sums.spills(at.partitions, groups / at.partitions.max(1));
    }
    match is_partial {
        // It gives its groups early when there is no room for more.
        true => (Manner::Passing, Own { minimum: few, appetite, ..passing }),
        false => (Manner::Blocking, Own { minimum: groups.saturating_mul(SPILLING).min(all_max), appetite, ..passing }),
    }
}

/// Each partition has all groups and a table of slots, until they are brought together in one more. When there is no
/// room for that, DataFusion's final aggregate takes over.
fn of_dense(walk: &mut Walk, plan: &DenseAggregateExec, at: Place) -> (Manner, Own) {
    let hoard = hoard(walk, plan.stock(), plan.input().as_ref());
    let row = walk.row(&plan.schema());
    let all_max = at.given.saturating_mul(row.saturating_add(HASH_BYTES)).saturating_mul(2);
    let rows_there = walk.rows(plan.input().as_ref()).unwrap_or(u64::MAX);
    let rows = walk.rows(plan).map(|groups| groups.saturating_mul(at.partitions).min(rows_there));
    let tables = plan.table_bytes().saturating_mul(at.partitions);
    let all =
        rows.zip(hoard).map(|(rows, hoard)| rows.saturating_mul(row).saturating_add(hoard).saturating_add(tables));
    walk.sums.spills(at.partitions, at.groups() / at.partitions.max(1));
    let minimum = at.groups().saturating_mul(SPILLING).min(all_max);
    (Manner::Blocking, Own { minimum, appetite: walk.twice(all), ..Own::passing(at.each(1)) })
}

/// Bytes that the functions of `plan` keep of its `input`, if they keep all values.
fn hoard(walk: &Walk, plan: &AggregateExec, input: &dyn ExecutionPlan) -> Option<u64> {
    match plan.aggr_expr().iter().any(|function| hoards(function)) {
        true => walk.bytes(input, 0),
        false => Some(0),
    }
}

fn hoards(function: &AggregateFunctionExpr) -> bool {
    function.is_distinct() || HOARDERS.contains(&function.fun().name())
}
