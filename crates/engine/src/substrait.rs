//! Substrait plans to DataFusion's.

use bytes::Bytes;
use datafusion::error::DataFusionError;
use datafusion::execution::SessionState;
use datafusion::logical_expr::LogicalPlan;
use datafusion_substrait::logical_plan::consumer::from_substrait_plan;
use datafusion_substrait::substrait::proto::Plan;
use prost::Message;

use crate::error::Error;

/// The version of Substrait that is read.
pub fn substrait_version() -> String {
    let version = datafusion_substrait::substrait::version::version();
    format!("{}.{}.{}", version.major_number, version.minor_number, version.patch_number)
}

/// # Errors
/// `Invalid` for bytes that are no plan, or a plan DataFusion cannot run.
pub(crate) async fn plan(state: &SessionState, bytes: &Bytes) -> Result<LogicalPlan, Error> {
    // prost refuses nesting beyond 100, which bounds the recursion below.
    let plan = Plan::decode(bytes.clone())
        .map_err(|error| DataFusionError::Substrait(format!("not a Substrait plan: {error}")))?;
    Ok(from_substrait_plan(state, &plan).await?)
}
