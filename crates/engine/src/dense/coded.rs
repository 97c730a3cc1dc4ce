//! Asks a plan for strings as codes: dictionaries in place of their columns.

use std::sync::Arc;

use datafusion::common::Result;
use datafusion::datasource::source::DataSourceExec;
use datafusion::physical_expr::expressions::Column;
use datafusion::physical_expr::utils::collect_columns;
use datafusion::physical_plan::filter::FilterExec;
use datafusion::physical_plan::projection::ProjectionExec;
use datafusion::physical_plan::{ChildrenPropertiesMode, ExecutionPlan, ReplaceChildrenOptions};
use updraft_hot::HotSource;

/// `plan` with these columns as dictionaries; `None` if it cannot give them so, or looks at them itself.
///
/// # Errors
/// What a node says when it is made anew.
pub(super) fn coded(plan: &Arc<dyn ExecutionPlan>, columns: &[usize]) -> Result<Option<Arc<dyn ExecutionPlan>>> {
    if let Some(hot) = HotSource::of(plan.as_ref()) {
        // They may not be stored as codes.
        return Ok(hot.with_coded(columns).map(|scan| DataSourceExec::from_data_source(scan) as _));
    }
    let below = if let Some(filter) = plan.downcast_ref::<FilterExec>() {
        let projection = filter.projection().as_deref();
        let below: Vec<_> = columns.iter().map(|column| projection.map_or(*column, |to| to[*column])).collect();
        let given = projection.map_or(columns.len(), |to| to.iter().filter(|column| below.contains(column)).count());
        let looks = collect_columns(filter.predicate()).iter().any(|column| below.contains(&column.index()));
        (!looks && given == columns.len()).then_some(below)
    } else if let Some(projection) = plan.downcast_ref::<ProjectionExec>() {
        passed_on(projection, columns)
    } else {
        None
    };
    let (Some(below), Some(child)) = (below, plan.children().first().copied()) else { return Ok(None) };
    let Some(child) = coded(child, &below)? else { return Ok(None) };
    if let Some(projection) = plan.downcast_ref::<ProjectionExec>() {
        // With another child it would keep the types of its columns.
        return Ok(Some(Arc::new(ProjectionExec::try_new(projection.expr().to_vec(), child)?)));
    }
    let options = ReplaceChildrenOptions::new(ChildrenPropertiesMode::Recompute);
    Arc::clone(plan).replace_children(vec![child], options).map(Some)
}

/// Where these columns come from, if they are passed on as they are, and nothing else is made of them.
fn passed_on(projection: &ProjectionExec, columns: &[usize]) -> Option<Vec<usize>> {
    let below = columns.iter().map(|column| projection.expr()[*column].expr.downcast_ref::<Column>());
    let below = below.map(|column| Some(column?.index())).collect::<Option<Vec<_>>>()?;
    let mut others = projection.expr().iter().enumerate().filter(|(index, _)| !columns.contains(index));
    let looks =
        others.any(|(_, other)| collect_columns(&other.expr).iter().any(|column| below.contains(&column.index())));
    (!looks).then_some(below)
}
