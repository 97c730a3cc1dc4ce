//! The second gate: no plan that writes passes, whatever text it came from.
//!
//! The first gate looks at statements. This one looks at plans, with their subqueries, and so also
//! covers views, Substrait plans, and what `EXPLAIN ANALYZE` would run.

use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::logical_expr::LogicalPlan;

use crate::error::Error;

/// The most steps of a plan. What `WITH` names, or a view, is shared where it is used until the plan is optimized: a short
/// text whose parts use each other twice comes to more than there is memory for.
const NODES_MAX: usize = 20_000;

/// # Errors
/// `TooComplex` for a plan with too many steps; `Unsupported` when any part of `plan` would change anything.
pub(crate) fn check_plan(plan: &LogicalPlan) -> Result<(), Error> {
    let mut refused = None;
    let mut nodes = 0;
    plan.apply_with_subqueries(|node| {
        nodes += 1;
        if nodes > NODES_MAX {
            return Ok(TreeNodeRecursion::Stop);
        }
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
        None if nodes > NODES_MAX => Err(Error::TooComplex(format!(
            "its plan has more than {NODES_MAX} steps; a part that is named in WITH, or a view, counts each time it is used"
        ))),
        None => Ok(()),
        Some(what) => {
            Err(Error::Unsupported(format!("{what} is not offered; this server answers statements that read")))
        }
    }
}
