//! `array_agg` and `string_agg` with an ORDER BY take their values from a sort, group after group.
//!
//! DataFusion 55.2 keeps the values of all groups to the end, and what they are ordered by beside them, each as a
//! `ScalarValue`: hundreds of bytes for a short string, which are counted late and cannot be spilled. A sort by the
//! groups and then by that order spills, and what comes out of it need only be strung together.

use std::sync::Arc;

use datafusion::common::Result;
use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::{Transformed, TransformedResult, TreeNode};
use datafusion::functions_aggregate::array_agg::ArrayAgg;
use datafusion::functions_aggregate::string_agg::StringAgg;
use datafusion::physical_expr::aggregate::{AggregateExprBuilder, AggregateFunctionExpr};
use datafusion::physical_expr::{LexOrdering, Partitioning, PhysicalSortExpr};
use datafusion::physical_optimizer::PhysicalOptimizerRule;
use datafusion::physical_plan::aggregates::{AggregateExec, AggregateMode};
use datafusion::physical_plan::coalesce_partitions::CoalescePartitionsExec;
use datafusion::physical_plan::repartition::RepartitionExec;
use datafusion::physical_plan::sorts::sort::SortExec;
use datafusion::physical_plan::sorts::sort_preserving_merge::SortPreservingMergeExec;
use datafusion::physical_plan::{ExecutionPlan, ExecutionPlanProperties};

use super::Fit;

/// Puts the sorts in.
#[derive(Debug)]
pub(super) struct CollectSorted;

impl PhysicalOptimizerRule for CollectSorted {
    fn optimize(&self, plan: Arc<dyn ExecutionPlan>, config: &ConfigOptions) -> Result<Arc<dyn ExecutionPlan>> {
        if config.extensions.get::<Fit>().is_none() {
            return Ok(plan);
        }
        plan.transform_down(|node| {
            let sorted = node.downcast_ref::<AggregateExec>().map(sorted).transpose()?.flatten();
            Ok(sorted.map_or_else(|| Transformed::no(node), Transformed::yes))
        })
        .data()
    }

    fn name(&self) -> &str {
        "CollectSorted"
    }

    fn schema_check(&self) -> bool {
        true
    }
}

/// What gives the rows of `last` from sorted input; `None` where that is not needed or not possible.
fn sorted(last: &AggregateExec) -> Result<Option<Arc<dyn ExecutionPlan>>> {
    let Some(first) = first_stage(last) else { return Ok(None) };
    let group = first.group_expr();
    let Some(order) = common_order(first.aggr_expr()).filter(|_| group.is_single() && !group.is_true_no_grouping())
    else {
        return Ok(None);
    };
    let keys = group.input_exprs();
    // 0.0 and -0.0 are one group, and have others between them when they are sorted.
    let schema = first.input_schema();
    for key in &keys {
        let key = key.data_type(&schema)?;
        if key.is_floating() || key.is_nested() {
            return Ok(None);
        }
    }
    let by_group = keys.iter().map(|key| PhysicalSortExpr::new_default(Arc::clone(key)));
    let Some(ordering) = LexOrdering::new(by_group.chain(order.iter().cloned())) else { return Ok(None) };

    // A sort by the order alone, which string_agg asks for, is in vain.
    let mut input = first.input();
    while let Some(sort) = input.downcast_ref::<SortExec>().filter(|sort| sort.fetch().is_none()) {
        input = sort.input();
    }
    let mut input = Arc::clone(input);
    let mode = match last.mode() {
        AggregateMode::FinalPartitioned => {
            let partitions = last.input().output_partitioning().partition_count();
            input = Arc::new(RepartitionExec::try_new(input, Partitioning::Hash(keys, partitions))?);
            AggregateMode::SinglePartitioned
        }
        AggregateMode::Final => {
            if input.output_partitioning().partition_count() > 1 {
                input = Arc::new(CoalescePartitionsExec::new(input));
            }
            AggregateMode::Single
        }
        mode => *mode,
    };
    let spread = input.output_partitioning().partition_count() > 1;
    let input = Arc::new(SortExec::new(ordering, input).with_preserve_partitioning(spread));
    let functions = first.aggr_expr().iter().map(|function| in_order_of_input(function, first));
    let functions = functions.collect::<Result<Vec<_>>>()?;
    let filters = first.filter_expr().to_vec();
    let aggregate = AggregateExec::try_new(mode, group.clone(), functions, filters, input, first.input_schema())?;
    Ok((aggregate.schema() == last.schema()).then(|| Arc::new(aggregate) as _))
}

/// The stage of `last` that reads the rows: itself, or the one below the exchange.
fn first_stage(last: &AggregateExec) -> Option<&AggregateExec> {
    match last.mode() {
        AggregateMode::Single | AggregateMode::SinglePartitioned => return Some(last),
        AggregateMode::Final | AggregateMode::FinalPartitioned => {}
        AggregateMode::Partial | AggregateMode::PartialReduce => return None,
    }
    let mut node = last.input();
    loop {
        if let Some(first) = node.downcast_ref::<AggregateExec>() {
            return (*first.mode() == AggregateMode::Partial).then_some(first);
        }
        let is_exchange = node.is::<RepartitionExec>()
            || node.is::<CoalescePartitionsExec>()
            || node.is::<SortPreservingMergeExec>()
            || node.is::<SortExec>();
        node = node.children().into_iter().next().filter(|_| is_exchange)?;
    }
}

/// The one order in which `functions` want their rows; `None` when that is none, or several, or when one of them wants
/// it for something else than to keep all values.
fn common_order(functions: &[Arc<AggregateFunctionExpr>]) -> Option<&[PhysicalSortExpr]> {
    let mut ordered = functions.iter().filter(|function| !function.order_bys().is_empty());
    let order = ordered.clone().next()?.order_bys();
    ordered.all(|function| collects(function) && function.order_bys() == order).then_some(order)
}

fn collects(function: &AggregateFunctionExpr) -> bool {
    let inner = function.fun().inner();
    (inner.is::<ArrayAgg>() || inner.is::<StringAgg>()) && !function.is_distinct() && !function.is_reversed()
}

/// `function`, without the order that its input has now.
fn in_order_of_input(
    function: &Arc<AggregateFunctionExpr>,
    first: &AggregateExec,
) -> Result<Arc<AggregateFunctionExpr>> {
    if function.order_bys().is_empty() {
        return Ok(Arc::clone(function));
    }
    let plain = AggregateExprBuilder::new(Arc::new(function.fun().clone()), function.expressions());
    let plain = plain.schema(first.input_schema()).alias(function.name()).with_ignore_nulls(function.ignore_nulls());
    Ok(Arc::new(plain.build()?))
}

#[cfg(test)]
mod tests {
    use datafusion::arrow::util::pretty::pretty_format_batches;
    use datafusion::common::tree_node::TreeNodeRecursion;
    use datafusion::execution::memory_pool::GreedyMemoryPool;

    use super::super::testing::context;
    use super::*;

    /// 20,000 rows. `few` are the first of them.
    const DATA: &str = "SELECT value AS id, value % 700 AS k, nullif(value % 3, 0) AS n,
        nullif(concat('text ', value % 601), 'text 7') AS s, (value * 7919) % 20011 AS o,
        CASE value % 5 WHEN 0 THEN -0.0 WHEN 1 THEN 0.0 WHEN 2 THEN 'NaN'::double ELSE NULL END AS f FROM range(20000)";

    /// The rows, and whether an aggregate of the plan orders its values itself.
    async fn answer(fits: bool, partitions: usize, limit: usize, sql: &str) -> Result<(String, bool)> {
        let fit = fits.then_some(Fit { room: limit, share: limit, careful: false });
        let context = context(partitions, 512, fit, Some(Arc::new(GreedyMemoryPool::new(limit))));
        let sql = sql.replace("few", "(SELECT * FROM data WHERE id < 3000)").replace("data", &format!("({DATA})"));
        let plan = context.sql(&sql).await?.create_physical_plan().await?;
        let mut orders = false;
        plan.apply(|node| {
            let functions = node.downcast_ref::<AggregateExec>().map(AggregateExec::aggr_expr).unwrap_or_default();
            orders |= functions.iter().any(|function| !function.order_bys().is_empty());
            Ok(TreeNodeRecursion::Continue)
        })?;
        let batches = datafusion::physical_plan::collect(plan, context.task_ctx()).await?;
        Ok((pretty_format_batches(&batches)?.to_string(), orders))
    }

    const PLENTY: usize = 1 << 30;

    #[tokio::test]
    async fn answers_are_those_of_datafusion() {
        // What is selected, its groups, the order of rows, and whether no aggregate needs to order what it keeps.
        let cases = [
            ("k, string_agg(s, ',' ORDER BY o, id) AS x, count(*), sum(o)", "k", "1", true),
            ("k, array_agg(s ORDER BY o DESC NULLS LAST, id) AS x, max(s)", "k", "1", true),
            ("k, array_agg(o ORDER BY s, id) AS x, string_agg(s, '' ORDER BY s, id)", "k", "1", true),
            (
                "n, CAST(f AS VARCHAR) AS g, array_agg(id ORDER BY id) FILTER (WHERE o % 3 = 1) AS x",
                "n, f",
                "1, 2, 3",
                false,
            ),
            ("n, array_agg(id ORDER BY id) FILTER (WHERE o % 3 = 1) AS x", "n", "1", true),
            ("k % 7, string_agg(s, '-' ORDER BY id) AS x, count(DISTINCT s)", "k % 7", "1", true),
            ("k, id, array_agg(s) IGNORE NULLS AS x, min(o)", "k, id", "1, 2", true),
            ("k, array_agg(DISTINCT n ORDER BY n) AS x", "k", "1", false),
            ("k, array_agg(o ORDER BY id) AS x, string_agg(s, ',' ORDER BY id DESC)", "k", "1", false),
            ("k, array_agg(o ORDER BY id) AS x, first_value(s ORDER BY o, id)", "k", "1", false),
            ("k, id % 2, array_agg(o ORDER BY id) AS x", "CUBE (k, id % 2)", "1, 2", false),
        ];
        for (selected, group, order, is_sorted) in cases {
            let sql = format!("SELECT {selected} FROM few GROUP BY {group} ORDER BY {order}");
            let (expected, _) = answer(false, 1, PLENTY, &sql).await.expect(&sql);
            for partitions in [1, 3] {
                let (rows, orders) = answer(true, partitions, PLENTY, &sql).await.expect(&sql);
                assert!(rows == expected, "{sql}");
                assert_eq!(!orders, is_sorted, "{sql}");
            }
        }
        let all = "SELECT string_agg(s, ',' ORDER BY id) FROM few";
        let (expected, _) = answer(false, 1, PLENTY, all).await.expect(all);
        assert_eq!(answer(true, 3, PLENTY, all).await.expect(all), (expected, true));
        let empty = "SELECT k, string_agg(s, ',' ORDER BY id) FROM few WHERE id < 0 GROUP BY k";
        assert_eq!(answer(true, 3, PLENTY, empty).await.expect("no rows").0.lines().count(), 2);
    }

    #[tokio::test]
    async fn little_memory_is_enough() {
        let sql = "SELECT count(*), sum(length(x)) FROM (
            SELECT k, string_agg(concat(s, ' is made longer than any view holds inline'), ',' ORDER BY o, id) AS x
            FROM data GROUP BY k)";
        let little = 2 << 20;
        assert!(answer(false, 1, little, sql).await.is_err());
        let (expected, _) = answer(false, 1, PLENTY, sql).await.expect("there is room");
        assert_eq!(answer(true, 1, little, sql).await.expect("it spills").0, expected);
    }
}
