//! Which aggregates group by direct addressing.

use std::collections::HashSet;
use std::sync::Arc;

use datafusion::arrow::datatypes::DataType;
use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::{Transformed, TransformedResult, TreeNode};
use datafusion::common::{Result, Statistics};
use datafusion::physical_expr::expressions::Column;
use datafusion::physical_expr::utils::collect_columns;
use datafusion::physical_optimizer::PhysicalOptimizerRule;
use datafusion::physical_optimizer::topk_aggregation::TopKAggregation;
use datafusion::physical_plan::aggregates::{AggregateExec, AggregateMode};
use datafusion::physical_plan::statistics::{StatisticsArgs, StatisticsContext};
use datafusion::physical_plan::{ExecutionPlan, ExecutionPlanProperties};

use super::coded::coded;
use super::exec::DenseAggregateExec;
use super::groups::{Key, first_radix};
use super::keys::{Domain, SLOTS_MAX, is_string};
use crate::fit::Fit;

/// So many slots are worth it however few rows there are.
const SLOTS_MIN: usize = 64 << 10;
/// Slots for each row, at most: beyond, most of the table is empty, and each row waits for memory as with a hash table.
const SLOTS_PER_ROW: usize = 16;
/// Rows of an input of which nothing is known.
const ROWS: usize = 256 << 10;
/// The part of the query's room that the tables of all partitions may take.
const PART: usize = 8;

/// Replaces them. Must run before `EnsureRequirements`: the groups are not partitioned by a hash of their keys.
#[derive(Debug)]
pub(crate) struct DenseAggregates;

impl PhysicalOptimizerRule for DenseAggregates {
    fn optimize(&self, plan: Arc<dyn ExecutionPlan>, options: &ConfigOptions) -> Result<Arc<dyn ExecutionPlan>> {
        let fit = options.extensions.get::<Fit>().copied();
        if fit.is_some_and(|fit| fit.careful) {
            // Groups that do not fit are spilled by stock aggregates only.
            return Ok(plan);
        }
        let room = fit.map_or(usize::MAX, |fit| fit.room / PART);
        // The first groups by their key, or by the least or greatest value, need no more than as many groups: DataFusion
        // marks these aggregates with a limit, but not until later.
        let plan = TopKAggregation::new().optimize(plan, options)?;
        plan.transform_up(|node| {
            let aggregate = node.downcast_ref::<AggregateExec>();
            match aggregate.map(|aggregate| dense(aggregate, room)).transpose()?.flatten() {
                Some(dense) => Ok(Transformed::yes(dense)),
                None => Ok(Transformed::no(node)),
            }
        })
        .data()
    }

    fn name(&self) -> &str {
        "DenseAggregates"
    }

    fn schema_check(&self) -> bool {
        true
    }
}

/// `aggregate` and what it is the end of, by direct addressing, if its tables take at most `room` bytes.
fn dense(aggregate: &AggregateExec, room: usize) -> Result<Option<Arc<dyn ExecutionPlan>>> {
    let first = match aggregate.mode() {
        AggregateMode::Final | AggregateMode::FinalPartitioned => {
            let below = aggregate.input().downcast_ref::<AggregateExec>();
            below.filter(|below| *below.mode() == AggregateMode::Partial)
        }
        AggregateMode::Single | AggregateMode::SinglePartitioned => Some(aggregate),
        AggregateMode::Partial | AggregateMode::PartialReduce => None,
    };
    let Some(first) = first else { return Ok(None) };
    if !is_simple(first) || aggregate.limit_options().is_some() {
        return Ok(None);
    }
    let plain = first.input().schema();
    let Some((keys, input)) = keys(first)? else { return Ok(None) };
    let rows = statistics(first.input().as_ref()).num_rows.get_value().copied().unwrap_or(ROWS);
    let worth = rows.saturating_mul(SLOTS_PER_ROW).max(SLOTS_MIN);
    // One for each partition, and one for all.
    let tables = input.output_partitioning().partition_count() + 1;
    let slots_max = worth.min(room / size_of::<u32>() / tables);
    let slots_max = u32::try_from(slots_max).unwrap_or(SLOTS_MAX).min(SLOTS_MAX);
    if first_radix(&keys, slots_max).is_none() {
        return Ok(None);
    }
    let dense = DenseAggregateExec::try_new(first, keys, slots_max, input, &plain)?;
    // Fields keep what else was said of them.
    Ok((dense.schema() == aggregate.schema()).then(|| Arc::new(dense) as Arc<dyn ExecutionPlan>))
}

/// Whether it groups once, by keys, and its functions take rows in any order.
fn is_simple(aggregate: &AggregateExec) -> bool {
    let group = aggregate.group_expr();
    group.is_single()
        && !group.is_empty()
        && aggregate.limit_options().is_none()
        && aggregate.aggr_expr().iter().all(|function| {
            function.order_bys().is_empty() && !function.is_reversed() && function.groups_accumulator_supported()
        })
}

/// Keys, and the input in which those that are strings are coded.
type Keyed = (Vec<Key>, Arc<dyn ExecutionPlan>);

/// The keys of `aggregate`; `None` if one of them has no known domain.
fn keys(aggregate: &AggregateExec) -> Result<Option<Keyed>> {
    let input = aggregate.input();
    let schema = input.schema();
    let mut known = None;
    let mut strings = Vec::new();
    let mut keys = Vec::new();
    for (expr, _) in aggregate.group_expr().expr() {
        let data_type = expr.data_type(&schema)?;
        let column = expr.downcast_ref::<Column>().map(Column::index);
        let of_type = Domain::of_type(&data_type);
        let domain = match column {
            Some(column) if is_string(&data_type) => {
                strings.push(column);
                Some(Domain::Coded)
            }
            Some(column) if of_type != Some(Domain::Coded) => {
                let known = known.get_or_insert_with(|| statistics(input.as_ref()));
                bounds(known, column, &data_type).or(of_type)
            }
            _ => of_type,
        };
        let Some(domain) = domain else { return Ok(None) };
        keys.push(Key { expr: Arc::clone(expr), data_type, domain });
    }
    if strings.is_empty() {
        return Ok(Some((keys, Arc::clone(input))));
    }
    if used(aggregate).iter().any(|column| strings.contains(column)) {
        return Ok(None);
    }
    Ok(coded(input, &strings)?.map(|input| (keys, input)))
}

/// What is known of a column of whole numbers.
fn bounds(known: &Statistics, column: usize, data_type: &DataType) -> Option<Domain> {
    let column = known.column_statistics.get(column)?;
    Domain::between(data_type, column.min_value.get_value()?, column.max_value.get_value()?)
}

/// The columns that are not only keys.
fn used(aggregate: &AggregateExec) -> HashSet<usize> {
    let keys = aggregate.group_expr().expr().iter().map(|(expr, _)| expr).filter(|expr| !expr.is::<Column>()).cloned();
    let arguments = aggregate.aggr_expr().iter().flat_map(|function| function.expressions());
    let filters = aggregate.filter_expr().iter().flatten().cloned();
    let all = keys.chain(arguments).chain(filters);
    all.flat_map(|expr| collect_columns(&expr)).map(|column| column.index()).collect()
}

/// What is known of `plan`; nothing, if its statistics contradict each other.
fn statistics(plan: &dyn ExecutionPlan) -> Arc<Statistics> {
    let known = StatisticsContext::new().compute(plan, &StatisticsArgs::new());
    known.unwrap_or_else(|_| Arc::new(Statistics::new_unknown(&plan.schema())))
}
