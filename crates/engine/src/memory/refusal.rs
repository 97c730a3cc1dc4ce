//! What an operator is told that may not have more memory.
//!
//! Most are told so with DataFusion's own error, and spill. A nested loop join must not hear that one, whoever on its left
//! side it is meant for: DataFusion 55.2 answers by running that side once more into a spill file, which panics when there is
//! an exchange in it, and then loses rows (apache/datafusion#24745). Any other error makes the query fail instead, and it is
//! tried again carefully.

use std::fmt;
use std::sync::Arc;

use datafusion::common::Result;
use datafusion::error::DataFusionError;
use datafusion::execution::memory_pool::MemoryReservation;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_plan::execution_plan::{ChildrenPropertiesMode, ReplaceChildrenOptions};
use datafusion::physical_plan::joins::NestedLoopJoinExec;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{DisplayAs, DisplayFormatType, ExecutionPlan};
use futures::TryStreamExt;

use crate::passing::passes_rows_on;

/// Out of memory, said so that DataFusion does not take it as a request to spill.
#[derive(Debug, thiserror::Error)]
#[error(
    "not enough memory for the side that a join without an equality keeps: {0}; hint: raise engine.memory_limit, or join fewer rows"
)]
pub(crate) struct Refused(String);

/// The error for a consumer that asks for too much.
pub(super) fn refused(reservation: &MemoryReservation, text: String) -> DataFusionError {
    if reservation.consumer().name().starts_with("NestedLoopJoinLoad[") {
        DataFusionError::External(Box::new(Refused(text)))
    } else {
        DataFusionError::ResourcesExhausted(text)
    }
}

/// Whether `error` says that memory was refused, and less of it could do.
pub(crate) fn is_refusal(error: &DataFusionError) -> bool {
    match error.find_root() {
        DataFusionError::ResourcesExhausted(_) => true,
        DataFusionError::External(error) => error.is::<Refused>(),
        _ => false,
    }
}

/// `node`, with a left side whose refusals do not make it spill if it is a nested loop join.
///
/// # Errors
/// What DataFusion says of the join, which it has made before.
pub(crate) fn unspilled(node: Arc<dyn ExecutionPlan>) -> Result<Arc<dyn ExecutionPlan>> {
    let Some(join) = node.downcast_ref::<NestedLoopJoinExec>() else { return Ok(node) };
    let left = Arc::new(UnspilledExec { input: Arc::clone(join.left()) });
    let right = Arc::clone(join.right());
    node.replace_children(vec![left, right], ReplaceChildrenOptions::new(ChildrenPropertiesMode::Keep))
}

/// Gives what `input` gives, and says [`Refused`] where an operator of it was refused memory.
#[derive(Debug)]
struct UnspilledExec {
    input: Arc<dyn ExecutionPlan>,
}

impl DisplayAs for UnspilledExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl ExecutionPlan for UnspilledExec {
    fn name(&self) -> &str {
        "UnspilledExec"
    }

    passes_rows_on!();

    fn with_new_children(self: Arc<Self>, mut children: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        Ok(Arc::new(Self { input: children.swap_remove(0) }))
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let input = self.input.execute(partition, context)?;
        Ok(Box::pin(RecordBatchStreamAdapter::new(input.schema(), input.map_err(not_to_spill))))
    }
}

fn not_to_spill(error: DataFusionError) -> DataFusionError {
    match error.find_root() {
        DataFusionError::ResourcesExhausted(text) => DataFusionError::External(Box::new(Refused(text.clone()))),
        _ => error,
    }
}

#[cfg(test)]
mod tests {
    use datafusion::execution::runtime_env::RuntimeEnvBuilder;
    use datafusion::physical_plan::collect;
    use datafusion::prelude::{SessionConfig, SessionContext};
    use tokio_util::sync::CancellationToken;

    use super::super::testing::Asked;
    use super::*;
    use crate::error::{Error, ErrorKind};
    use crate::interrupt::interruptible;

    /// Its left side groups, sorts and keeps first rows.
    const JOIN: &str = "SELECT count(*), count(b.value) FROM (SELECT k, row_number() OVER (ORDER BY k) FROM
        (SELECT value % 1000 AS k, count(*) AS n FROM range(5000) GROUP BY value % 1000 ORDER BY n, k LIMIT 700)) a
        LEFT JOIN range(10) b ON a.k < b.value";

    /// Runs the join where who is called so gets no memory. The error, if any, and who asked for memory.
    async fn refuse(name: &'static str) -> (Option<Error>, Vec<String>) {
        let asked = Asked::refusing(name);
        let environment = RuntimeEnvBuilder::new().with_memory_pool(Arc::clone(&asked) as _);
        let environment = environment.build_arc().expect("an environment");
        let config = SessionConfig::new().with_target_partitions(2);
        let context = SessionContext::new_with_config_rt(config, environment);
        let plan = context.sql(JOIN).await.expect("it plans").create_physical_plan().await.expect("it plans");
        let plan = interruptible(plan, &CancellationToken::new()).expect("it is rewritten");
        let outcome = collect(plan, context.task_ctx()).await;
        (outcome.err().map(Error::from), asked.names())
    }

    #[tokio::test]
    async fn a_nested_loop_join_never_spills_whoever_below_it_is_refused() {
        for name in ["NestedLoopJoinLoad[", "FinalHashAggregateStream[", "TopK[", "SortPreservingMergeExec["] {
            let (error, asked) = refuse(name).await;
            assert!(asked.iter().any(|asked| asked.starts_with(name)), "{name} is not among {asked:?}");
            assert!(!asked.iter().any(|name| name == "NestedLoopJoinLoad[fallback]"), "{name}: it spills");
            let error = error.unwrap_or_else(|| panic!("{name} was refused"));
            assert!(error.is_refusal() && error.kind() == ErrorKind::Exhausted, "{name}: {error}");
        }
        assert!(refuse("nobody").await.0.is_none());
    }
}
