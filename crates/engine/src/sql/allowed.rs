//! The second gate: no plan that writes passes, whatever text it came from.
//!
//! The first gate looks at statements. This one looks at plans, with their subqueries, and so also
//! covers views, Substrait plans, and what `EXPLAIN ANALYZE` would run.

use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::logical_expr::LogicalPlan;

use crate::error::Error;

/// # Errors
/// `Unsupported` when any part of `plan` would change anything.
pub(crate) fn check_plan(plan: &LogicalPlan) -> Result<(), Error> {
    let mut refused = None;
    plan.apply_with_subqueries(|node| {
        let what = match node {
            LogicalPlan::Ddl(ddl) => Some(ddl.name().to_owned()),
            LogicalPlan::Dml(dml) => Some(dml.op.to_string()),
            LogicalPlan::Copy(_) => Some("COPY".to_owned()),
            LogicalPlan::Statement(statement) => Some(statement.name().to_owned()),
            _ => None,
        };
        if what.is_some() {
            refused = what;
            return Ok(TreeNodeRecursion::Stop);
        }
        Ok(TreeNodeRecursion::Continue)
    })?;
    match refused {
        None => Ok(()),
        Some(what) => {
            Err(Error::Unsupported(format!("{what} is not offered; this server answers statements that read")))
        }
    }
}
