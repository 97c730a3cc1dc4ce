//! Which plans give the same rows whenever they run on the same tables.

use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::datasource::source_as_provider;
use datafusion::logical_expr::{Expr, LogicalPlan, Volatility, WindowFunctionDefinition};

/// Whether all that `plan` reads are tables of the catalog, whose versions say what is in them. What a function of SQL
/// made when the statement was planned is in the plan, and nothing tells of what.
pub(super) fn reads_tables_only(plan: &LogicalPlan) -> bool {
    holds(plan, |node| match node {
        LogicalPlan::TableScan(scan) => {
            source_as_provider(&scan.source).is_ok_and(|table| updraft_catalog::stored(table.as_ref()).is_some())
        }
        LogicalPlan::Extension(_) => false,
        _ => true,
    })
}

/// Whether `plan`, not yet optimized, gives the same rows whenever it runs on the same tables. `now()` is gone from an
/// optimized plan, with the time it was in its place.
pub(super) fn is_repeatable(plan: &LogicalPlan) -> bool {
    holds(plan, |node| {
        let mut all = true;
        let looked = node.apply_expressions(|expression| {
            expression.apply(|part| {
                all = all && is_fixed(part);
                Ok(if all { TreeNodeRecursion::Continue } else { TreeNodeRecursion::Stop })
            })
        });
        // How long it took, and how it was planned, is not what the tables hold.
        let tells_of_itself = matches!(node, LogicalPlan::Analyze(_) | LogicalPlan::Explain(_));
        all && looked.is_ok() && !tells_of_itself
    })
}

/// Whether a part of an expression, what it is made of apart, gives the same for the same rows.
fn is_fixed(part: &Expr) -> bool {
    let volatility = match part {
        Expr::ScalarFunction(call) => call.func.signature().volatility,
        Expr::AggregateFunction(call) => call.func.signature().volatility,
        Expr::WindowFunction(call) => match &call.fun {
            WindowFunctionDefinition::AggregateUDF(function) => function.signature().volatility,
            WindowFunctionDefinition::WindowUDF(function) => function.signature().volatility,
        },
        Expr::HigherOrderFunction(call) => call.func.signature().volatility,
        Expr::ScalarVariable(..) => Volatility::Volatile,
        _ => Volatility::Immutable,
    };
    volatility == Volatility::Immutable
}

/// Whether `test` holds for all nodes of `plan`, those of its subqueries included.
fn holds(plan: &LogicalPlan, test: impl Fn(&LogicalPlan) -> bool) -> bool {
    let mut all = true;
    let walked = plan.apply_with_subqueries(|node| {
        all = all && test(node);
        Ok(if all { TreeNodeRecursion::Continue } else { TreeNodeRecursion::Stop })
    });
    all && walked.is_ok()
}
