//! Makes the filter of a join a place where its query can be ended, and where it makes room for others. Likewise the
//! aggregates of window functions.
//!
//! A nested loop join compares all rows of one side with a batch of the other within one poll, and when its
//! filter lets nothing through there is no batch at which `cooperate` could make it yield. What it does
//! call, again and again, is its filter. So the filter looks whether the query was cancelled, and now and then
//! hands the runtime's worker over to other queries; this one goes on beside them on a thread of its own.

mod windows;

use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use datafusion::arrow::array::RecordBatch;
use datafusion::arrow::datatypes::{DataType, Schema};
use datafusion::common::Result;
use datafusion::common::tree_node::{Transformed, TransformedResult, TreeNode};
use datafusion::error::DataFusionError;
use datafusion::logical_expr::ColumnarValue;
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::joins::utils::JoinFilter;
use datafusion::physical_plan::joins::{
    HashJoinExec, NestedLoopJoinExec, NestedLoopJoinExecBuilder, SortMergeJoinExec,
};
use tokio_util::sync::CancellationToken;

use crate::cooperate::{CooperateExec, needs_place};
use crate::error::Error;
use crate::hand_over::breathe;
use crate::memory::unspilled;

/// `plan`, whose operators, with the filters and aggregates within them, look at `cancel`, and whose nested loop joins
/// never spill.
pub(crate) fn interruptible(
    plan: Arc<dyn ExecutionPlan>,
    cancel: &CancellationToken,
) -> Result<Arc<dyn ExecutionPlan>> {
    plan.transform_up(|node| {
        let place = needs_place(node.as_ref());
        let node = watching(unspilled(node)?, cancel)?;
        Ok(if place {
            Transformed::yes(Arc::new(CooperateExec::new(node, cancel.clone())) as Arc<dyn ExecutionPlan>)
        } else {
            Transformed::no(node)
        })
    })
    .data()
}

/// `node`, with what is called again and again within one poll of it watching `cancel`.
fn watching(node: Arc<dyn ExecutionPlan>, cancel: &CancellationToken) -> Result<Arc<dyn ExecutionPlan>> {
    if let Some(join) = node.downcast_ref::<NestedLoopJoinExec>()
        && let Some(filter) = join.filter()
    {
        let filter = watched(filter, cancel);
        return Ok(Arc::new(NestedLoopJoinExecBuilder::from(join).with_filter(Some(filter)).build()?));
    }
    if let Some(join) = node.downcast_ref::<HashJoinExec>()
        && let Some(filter) = join.filter()
    {
        let filter = watched(filter, cancel);
        return join.builder().with_filter(Some(filter)).build_exec();
    }
    if let Some(join) = node.downcast_ref::<SortMergeJoinExec>()
        && let Some(filter) = join.filter()
    {
        let join = SortMergeJoinExec::try_new(
            Arc::clone(&join.left),
            Arc::clone(&join.right),
            join.on.clone(),
            Some(watched(filter, cancel)),
            join.join_type,
            join.sort_options.clone(),
            join.null_equality,
        )?;
        return Ok(Arc::new(join));
    }
    Ok(windows::watching(node.as_ref(), cancel)?.unwrap_or(node))
}

fn watched(filter: &JoinFilter, cancel: &CancellationToken) -> JoinFilter {
    let inner = Arc::clone(filter.expression());
    let expression = Watched { inner, watch: Watch::of(cancel) };
    JoinFilter::new(Arc::new(expression), filter.column_indices().to_vec(), Arc::clone(filter.schema()))
}

/// What is called again and again within one poll looks whether its query goes on.
#[derive(Debug, Clone)]
struct Watch {
    cancel: CancellationToken,
}

impl Watch {
    fn of(cancel: &CancellationToken) -> Self {
        Self { cancel: cancel.clone() }
    }

    /// Now and then makes room for others.
    ///
    /// # Errors
    /// `Error::Cancelled` when the query was cancelled.
    fn look(&self) -> Result<()> {
        if self.cancel.is_cancelled() {
            return Err(DataFusionError::External(Box::new(Error::Cancelled)));
        }
        breathe();
        Ok(())
    }
}

/// An expression that gives what `inner` gives, unless its query was cancelled.
#[derive(Debug)]
struct Watched {
    inner: Arc<dyn PhysicalExpr>,
    watch: Watch,
}

impl PhysicalExpr for Watched {
    fn data_type(&self, input_schema: &Schema) -> Result<DataType> {
        self.inner.data_type(input_schema)
    }

    fn nullable(&self, input_schema: &Schema) -> Result<bool> {
        self.inner.nullable(input_schema)
    }

    fn evaluate(&self, batch: &RecordBatch) -> Result<ColumnarValue> {
        self.watch.look()?;
        self.inner.evaluate(batch)
    }

    fn children(&self) -> Vec<&Arc<dyn PhysicalExpr>> {
        vec![&self.inner]
    }

    fn with_new_children(self: Arc<Self>, children: Vec<Arc<dyn PhysicalExpr>>) -> Result<Arc<dyn PhysicalExpr>> {
        let inner = children.into_iter().next().unwrap_or_else(|| Arc::clone(&self.inner));
        Ok(Arc::new(Self { inner, watch: self.watch.clone() }))
    }

    fn fmt_sql(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt_sql(f)
    }
}

impl fmt::Display for Watched {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}

impl PartialEq for Watched {
    fn eq(&self, other: &Self) -> bool {
        self.inner.eq(&other.inner)
    }
}

impl Eq for Watched {}

impl Hash for Watched {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.inner.hash(state);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::thread;
    use std::time::Duration;

    use datafusion::execution::session_state::SessionStateBuilder;
    use datafusion::physical_plan::collect;
    use datafusion::prelude::{SessionConfig, SessionContext};

    use super::*;
    use crate::fit::{self, Fit};

    const PATIENCE: Duration = Duration::from_secs(5);

    /// A join that compares for minutes and gives nothing.
    const ENDLESS: &str = "SELECT count(*) FROM range(1000000) a JOIN range(1000000) b ON a.value < b.value - 2000000";

    /// The same as a hash join of one key, or, with little room, a merge join.
    const ENDLESS_KEYED: &str = "SELECT count(*) FROM range(300000) a JOIN range(300000) b ON a.value % 1 = b.value % 1 AND a.value < b.value - 2000000";

    /// A partition that takes long: all there is in a frame is looked at for each row.
    const ENDLESS_WINDOW: &str = "SELECT max(m) FROM (SELECT median(value) OVER (ROWS BETWEEN 50000 PRECEDING AND UNBOUNDED FOLLOWING) AS m FROM range(100000))";

    fn context(careful: bool) -> SessionContext {
        let mut config = SessionConfig::new().with_target_partitions(1);
        config.options_mut().extensions.insert(Fit { room: 1, share: 1, careful });
        let state = SessionStateBuilder::new().with_config(config).with_default_features();
        SessionContext::new_with_state(state.with_physical_optimizer_rules(fit::rules()).build())
    }

    async fn planned(context: &SessionContext, sql: &str) -> Arc<dyn ExecutionPlan> {
        context.sql(sql).await.expect("it plans").create_physical_plan().await.expect("it plans")
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn an_operator_that_gives_nothing_can_be_cancelled_and_leaves_room_for_others() {
        let queries = [(ENDLESS, false), (ENDLESS_KEYED, false), (ENDLESS_KEYED, true), (ENDLESS_WINDOW, false)];
        for (sql, careful) in queries {
            let (context, cancel) = (context(careful), CancellationToken::new());
            let plan = interruptible(planned(&context, sql).await, &cancel).expect("it is rewritten");
            // The runtime waits for it even when this test fails.
            let cancelled = cancel.drop_guard();
            let (ended, ends) = mpsc::channel();
            let query = collect(plan, context.task_ctx());
            tokio::spawn(async move { ended.send(query.await) });
            // Time for the merge join to sort what it compares.
            thread::sleep(Duration::from_millis(500));
            // The only worker is busy with the query, unless it was handed over. So are its timers.
            let (other, others) = mpsc::channel();
            tokio::spawn(async move { other.send(()) });
            assert_eq!(others.recv_timeout(PATIENCE), Ok(()), "{sql}");
            drop(cancelled);
            assert!(ends.recv_timeout(PATIENCE).expect("it ends").is_err(), "{sql}");
        }
    }

    #[tokio::test]
    async fn answers_stay_the_same() {
        let mut queries = Vec::new();
        for join in ["a.value < b.value", "a.value % 3 = b.value % 3 AND a.value > b.value"] {
            for kind in ["INNER", "LEFT", "FULL"] {
                queries.push(format!("a.value, b.value FROM range(20) a {kind} JOIN range(15) b ON {join}"));
            }
        }
        for function in ["median(value)", "count(DISTINCT value % 4)", "sum(value) FILTER (WHERE value % 2 = 0)"] {
            for frame in [
                "ORDER BY value",
                "PARTITION BY value % 3 ORDER BY value ROWS BETWEEN 2 PRECEDING AND 1 FOLLOWING",
                "ORDER BY value DESC RANGE BETWEEN 3 PRECEDING AND UNBOUNDED FOLLOWING",
                "ORDER BY value ROWS BETWEEN 5 PRECEDING AND 4 PRECEDING",
            ] {
                queries.push(format!("value, {function} OVER ({frame}) FROM range(40)"));
            }
        }
        for rows in queries {
            let sql = format!("SELECT {rows} ORDER BY 1, 2");
            for context in [SessionContext::new(), context(false)] {
                // A plan is run once: joins keep what they have built.
                let wrapped = interruptible(planned(&context, &sql).await, &CancellationToken::new());
                let wrapped = collect(wrapped.expect("it is rewritten"), context.task_ctx()).await.expect("it runs");
                let plain = collect(planned(&context, &sql).await, context.task_ctx()).await.expect("it runs");
                assert_eq!(plain, wrapped, "{sql}");
            }
        }
    }
}
