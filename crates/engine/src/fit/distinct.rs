//! `count(DISTINCT x)` per group reserves what it holds, and gives it back when it spills.
//!
//! DataFusion 55.2 keeps a set for each group, and reserves nearly nothing of it: tens of KiB for a group with one
//! string. For integers it has one set for all groups, which keeps its capacity after the groups were written out;
//! the aggregate then reserves that again and fails, however often it spills. These are fast, and stay until a
//! query has run out of memory.

use std::sync::Arc;

use datafusion::arrow::datatypes::{DataType, FieldRef, Schema};
use datafusion::common::Result;
use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::{Transformed, TransformedResult, TreeNode};
use datafusion::functions_aggregate::count::Count;
use datafusion::logical_expr::function::{AccumulatorArgs, StateFieldsArgs};
use datafusion::logical_expr::{Accumulator, AggregateUDF, AggregateUDFImpl, GroupsAccumulator, Signature};
use datafusion::physical_expr::aggregate::{AggregateExprBuilder, AggregateFunctionExpr};
use datafusion::physical_optimizer::PhysicalOptimizerRule;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::aggregates::AggregateExec;

use super::Fit;
use super::counted::{DistinctCounts, countable};

/// Replaces these aggregates.
#[derive(Debug)]
pub(super) struct CountTogether;

impl PhysicalOptimizerRule for CountTogether {
    fn optimize(&self, plan: Arc<dyn ExecutionPlan>, config: &ConfigOptions) -> Result<Arc<dyn ExecutionPlan>> {
        let Some(fit) = config.extensions.get::<Fit>() else { return Ok(plan) };
        let together = Arc::new(AggregateUDF::from(Together(Count::new())));
        plan.transform_up(|node| match node.downcast_ref::<AggregateExec>() {
            Some(aggregate) if !aggregate.group_expr().is_true_no_grouping() => {
                let mut changed = false;
                let functions = aggregate.aggr_expr().iter().map(|function| {
                    if !is_replaced(function, &aggregate.input_schema(), fit.careful)? {
                        return Ok(Arc::clone(function));
                    }
                    changed = true;
                    let count = AggregateExprBuilder::new(Arc::clone(&together), function.expressions());
                    let count = count.schema(aggregate.input_schema()).alias(function.name()).distinct();
                    Ok(Arc::new(count.build()?))
                });
                let functions = functions.collect::<Result<Vec<_>>>()?;
                if !changed {
                    return Ok(Transformed::no(node));
                }
                Ok(Transformed::yes(Arc::new(aggregate.with_new_aggr_exprs(functions)) as Arc<dyn ExecutionPlan>))
            }
            _ => Ok(Transformed::no(node)),
        })
        .data()
    }

    fn name(&self) -> &str {
        "CountTogether"
    }

    fn schema_check(&self) -> bool {
        true
    }
}

fn is_replaced(function: &AggregateFunctionExpr, input: &Schema, careful: bool) -> Result<bool> {
    if !function.is_distinct()
        || !function.fun().inner().is::<Count>()
        || (function.groups_accumulator_supported() && !careful)
    {
        return Ok(false);
    }
    match function.expressions().as_slice() {
        [value] => Ok(countable(&value.data_type(input)?)),
        _ => Ok(false),
    }
}

/// `count`, for planned expressions only: nothing of it that planning asks for.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Together(Count);

impl AggregateUDFImpl for Together {
    fn name(&self) -> &str {
        self.0.name()
    }

    fn signature(&self) -> &Signature {
        self.0.signature()
    }

    fn return_type(&self, arguments: &[DataType]) -> Result<DataType> {
        self.0.return_type(arguments)
    }

    fn is_nullable(&self) -> bool {
        self.0.is_nullable()
    }

    fn state_fields(&self, arguments: StateFieldsArgs<'_>) -> Result<Vec<FieldRef>> {
        self.0.state_fields(arguments)
    }

    fn accumulator(&self, arguments: AccumulatorArgs<'_>) -> Result<Box<dyn Accumulator>> {
        self.0.accumulator(arguments)
    }

    fn groups_accumulator_supported(&self, _: AccumulatorArgs<'_>) -> bool {
        true
    }

    fn create_groups_accumulator(&self, arguments: AccumulatorArgs<'_>) -> Result<Box<dyn GroupsAccumulator>> {
        Ok(Box::new(DistinctCounts::new(arguments.expr_fields[0].data_type().clone())))
    }
}

#[cfg(test)]
mod tests {
    use datafusion::arrow::util::pretty::pretty_format_batches;
    use datafusion::common::tree_node::TreeNodeRecursion;
    use datafusion::execution::memory_pool::GreedyMemoryPool;

    use super::super::testing::context;
    use super::*;

    /// Values of all kinds, with NULLs.
    const DATA: &str = "SELECT value AS id, value % 5000 AS k, value % 7001 AS i,
        nullif(concat('a text that is not short ', value % 6007), 'a text that is not short 7') AS s,
        arrow_cast(concat('b', value % 900), 'Binary') AS y, arrow_cast(concat('v', value % 90), 'Utf8View') AS v,
        CASE value % 7 WHEN 0 THEN 'NaN'::double WHEN 1 THEN -0.0 WHEN 2 THEN 0.0 WHEN 3 THEN NULL ELSE value % 80 END AS f,
        CAST(CAST(value % 300 AS INT) AS DATE) AS d, CAST(value % 500 AS DECIMAL(20, 2)) AS m,
        arrow_cast(value % 13, 'Decimal256(40, 1)') AS w, arrow_cast(value % 99, 'Timestamp(Second, Some(\"UTC\"))') AS t,
        nullif(value % 3, 0) = 1 AS b, arrow_cast(value % 17, 'Float32') AS g FROM range(60000)";

    async fn answer(partitions: usize, limit: usize, fit: Option<bool>, sql: &str) -> Result<(String, usize)> {
        let fit = fit.map(|careful| Fit { room: limit, share: limit, careful });
        let context = context(partitions, 1024, fit, Some(Arc::new(GreedyMemoryPool::new(limit))));
        let plan = context.sql(&sql.replace("data", &format!("({DATA})"))).await?.create_physical_plan().await?;
        let batches = datafusion::physical_plan::collect(Arc::clone(&plan), context.task_ctx()).await?;
        let mut spills = 0;
        plan.apply(|node| {
            let metrics = node.metrics().filter(|_| node.is::<AggregateExec>());
            spills += metrics.and_then(|metrics| metrics.spill_count()).unwrap_or(0);
            Ok(TreeNodeRecursion::Continue)
        })?;
        Ok((pretty_format_batches(&batches)?.to_string(), spills))
    }

    const INTEGERS: &str = "SELECT count(*), sum(k), sum(a), sum(b), sum(c), sum(d), max(a), min(b) FROM (
        SELECT k, count(DISTINCT i) AS a, count(DISTINCT id % 11) AS b, count(DISTINCT nullif(id % 3, 0)) AS c, count(*) AS d
        FROM data GROUP BY k)";

    #[tokio::test]
    async fn distinct_counts_spill() {
        let plenty = 1 << 30;
        let (expected, _) = answer(1, plenty, Some(false), INTEGERS).await.expect("there is room");
        for partitions in [1, 3] {
            assert_eq!(answer(partitions, plenty, Some(true), INTEGERS).await.expect("there is room").0, expected);
        }
        let little = 1 << 20;
        assert!(answer(1, little, Some(false), INTEGERS).await.is_err(), "then integers need no careful attempt");
        let (rows, spills) = answer(1, little, Some(true), INTEGERS).await.expect("it spills");
        assert_eq!(rows, expected);
        assert!(spills > 0);
    }

    #[tokio::test]
    async fn all_types_are_counted_as_datafusion_counts_them() {
        let counts = "count(DISTINCT s), count(DISTINCT y), count(DISTINCT v), count(DISTINCT f),
            count(DISTINCT d), count(DISTINCT m), count(DISTINCT w), count(DISTINCT t),
            count(DISTINCT b), count(DISTINCT g), count(DISTINCT i), count(DISTINCT id % 100),
            count(DISTINCT s) FILTER (WHERE nullif(id % 4, 1) > 1), sum(id) AS n";
        let (plenty, little) = (4 << 30, 16 << 20);
        // One group's values must fit, so that only many groups do with little.
        for (key, spilled) in [("k % 10", false), ("s", true)] {
            let sql = format!("SELECT {key}, {counts} FROM data GROUP BY 1 ORDER BY 1, 2, n");
            let (expected, _) = answer(1, plenty, None, &sql).await.expect("there is room");
            for (partitions, limit, careful) in [(1, plenty, false), (3, plenty, true), (1, little, true)] {
                if limit == plenty || spilled {
                    let (rows, spills) = answer(partitions, limit, Some(careful), &sql).await.expect("it spills");
                    assert!(rows == expected, "{sql} {partitions} {limit}");
                    assert_eq!(spills > 0, limit < plenty, "{sql} {partitions}");
                }
            }
        }
    }
}
