//! `NOT IN` of a subquery, where DataFusion 55.2 forgets that NULL is neither in a list nor not in it.
//!
//! It has a join for a subquery that does not refer to the row outside. One that does it refuses, or answers as if a NULL
//! anywhere were one for this row; beside an `OR` it takes a row for found or not found, with no third; and it does not ask whether
//! a constant is NULL. So these become what they mean, in a filter, which asks only for what is true:
//!
//! - with a reference to the row: there is no row inside that is equal, or that cannot be compared;
//! - without: the subquery is empty, or it has no NULL, the value is none, and it was not found.
//!
//! Where that cannot be said in place, the statement is refused.

use std::collections::HashSet;
use std::sync::Arc;

use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::common::{Column, DFSchema, ExprSchema, Result, Spans, not_impl_err};
use datafusion::logical_expr::expr::{Exists, InSubquery};
use datafusion::logical_expr::utils::split_conjunction;
use datafusion::logical_expr::{
    BinaryExpr, Expr, ExprSchemable, Filter, LogicalPlan, LogicalPlanBuilder, Operator, Subquery,
};
use datafusion::optimizer::optimizer::ApplyOrder;
use datafusion::optimizer::{Optimizer, OptimizerConfig, OptimizerRule};

use crate::fit::is_steady;

/// DataFusion's rules, and the one of this module before subqueries become joins.
pub(crate) fn rules() -> Vec<Arc<dyn OptimizerRule + Send + Sync>> {
    let mut rules = Optimizer::new().rules;
    let joins = rules.iter().position(|rule| rule.name() == "decorrelate_predicate_subquery");
    rules.insert(joins.expect("DataFusion has this rule"), Arc::new(NotIn));
    rules
}

#[derive(Debug)]
struct NotIn;

impl OptimizerRule for NotIn {
    fn name(&self) -> &str {
        "not_in"
    }

    fn apply_order(&self) -> Option<ApplyOrder> {
        Some(ApplyOrder::TopDown)
    }

    fn rewrite(&self, plan: LogicalPlan, _: &dyn OptimizerConfig) -> Result<Transformed<LogicalPlan>> {
        let LogicalPlan::Filter(filter) = plan else { return Ok(Transformed::no(plan)) };
        let predicate = spelled_out(filter.predicate, filter.input.schema(), true)?;
        let filter = |predicate| Filter::try_new(predicate, filter.input).map(LogicalPlan::Filter);
        predicate.map_data(filter)
    }
}

/// `expression`, which is true for the same rows. `is_alone` = no row gets past it by an `OR`.
fn spelled_out(expression: Expr, schema: &DFSchema, is_alone: bool) -> Result<Transformed<Expr>> {
    match expression {
        Expr::BinaryExpr(BinaryExpr { left, op: op @ (Operator::And | Operator::Or), right }) => {
            let is_alone = is_alone && op == Operator::And;
            let left = spelled_out(*left, schema, is_alone)?;
            let right = spelled_out(*right, schema, is_alone)?;
            let transformed = left.transformed || right.transformed;
            let both = Expr::BinaryExpr(BinaryExpr::new(Box::new(left.data), op, Box::new(right.data)));
            Ok(if transformed { Transformed::yes(both) } else { Transformed::no(both) })
        }
        Expr::InSubquery(test) if test.negated => not_in(test, schema, is_alone),
        expression => Ok(Transformed::no(expression)),
    }
}

fn not_in(test: InSubquery, schema: &DFSchema, is_alone: bool) -> Result<Transformed<Expr>> {
    let inner = &test.subquery.subquery;
    let value = Expr::Column(Column::from(inner.schema().qualified_field(0)));
    let value_is_nullable = value.nullable(inner.schema())?;
    let none_is_null = !value_is_nullable && !test.expr.nullable(schema)?;
    if none_is_null || test.expr.contains_outer() || test.expr.is_volatile() {
        return Ok(Transformed::no(Expr::InSubquery(test)));
    }
    if !inner.all_out_ref_exprs().is_empty() {
        if !may_be_filtered(inner) || mistakes_columns(inner, &test.expr)? {
            return not_impl_err!(
                "NOT IN of a subquery that refers to the row outside, where NULL may occur, and that has an aggregate, a \
                 window, LIMIT or UNION, or columns of one name; NOT EXISTS says it, too"
            );
        }
        let key = as_outer(test.expr.as_ref().clone(), schema)?;
        let is_equal = value.clone().eq(key.clone());
        let rows = LogicalPlanBuilder::from(inner.as_ref().clone());
        let rows = rows.filter(is_equal.or(key.is_null()).or(value.is_null()))?.build()?;
        return Ok(Transformed::yes(none(rows)?));
    }
    // It looks whether columns can be NULL, not whether what is made of them can.
    let columns = test.expr.column_refs();
    let has_join = value_is_nullable || columns.iter().any(|column| schema.nullable(column).unwrap_or(true));
    if is_alone && !columns.is_empty() && has_join || !is_steady(inner)? {
        return Ok(Transformed::no(Expr::InSubquery(test)));
    }
    let one = |rows: LogicalPlanBuilder| none(rows.limit(0, Some(1))?.build()?);
    let rows = || LogicalPlanBuilder::from(inner.as_ref().clone());
    let is_empty = one(rows())?;
    let has_no_null = one(rows().filter(value.is_null())?)?;
    let key = test.expr.as_ref().clone();
    Ok(Transformed::yes(is_empty.or(has_no_null.and(key.is_not_null()).and(Expr::InSubquery(test)))))
}

/// Whether a filter above `plan` asks for the same as one beside the references that it has to rows outside.
fn may_be_filtered(plan: &LogicalPlan) -> bool {
    let passes = match plan {
        LogicalPlan::Filter(_) | LogicalPlan::Projection(_) | LogicalPlan::SubqueryAlias(_) => true,
        // DISTINCT.
        LogicalPlan::Aggregate(aggregate) => aggregate.aggr_expr.is_empty(),
        _ => false,
    };
    plan.all_out_ref_exprs().is_empty() || passes && plan.inputs().into_iter().all(may_be_filtered)
}

/// Whether DataFusion would take a column for another when it makes a join of `plan`: it gives all those that are compared
/// with rows outside a new qualifier, and what is called like one of them outside as well.
fn mistakes_columns(plan: &LogicalPlan, key: &Expr) -> Result<bool> {
    let mut compared = HashSet::from([Column::from(plan.schema().qualified_field(0))]);
    plan.apply(|node| {
        if let LogicalPlan::Filter(filter) = node {
            let outside = split_conjunction(&filter.predicate).into_iter().filter(|part| part.contains_outer());
            compared.extend(outside.flat_map(|part| part.column_refs().into_iter().cloned()));
        }
        Ok(TreeNodeRecursion::Continue)
    })?;
    let names: HashSet<_> = compared.iter().map(|column| &column.name).collect();
    Ok(names.len() < compared.len() || key.column_refs().into_iter().any(|column| compared.contains(column)))
}

/// Whether there are no `rows`.
fn none(rows: LogicalPlan) -> Result<Expr> {
    let outer_ref_columns = rows.all_out_ref_exprs();
    let subquery = Subquery { subquery: Arc::new(rows), outer_ref_columns, spans: Spans::new() };
    Ok(Expr::Exists(Exists { subquery, negated: true }))
}

/// `expression` over columns of `schema` as it is written in a subquery.
fn as_outer(expression: Expr, schema: &DFSchema) -> Result<Expr> {
    let expression = expression.transform(|part| match part {
        Expr::Column(column) => {
            let field = Arc::clone(schema.field_from_column(&column)?);
            Ok(Transformed::yes(Expr::OuterReferenceColumn(field, column)))
        }
        part => Ok(Transformed::no(part)),
    })?;
    Ok(expression.data)
}
