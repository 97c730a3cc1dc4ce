//! Places in a plan where its query gives way to others, and where it ends when it was cancelled.
//!
//! An operator takes all it gets of its input within one poll: an aggregate returns when its input is at its
//! end. DataFusion's leaves let others run after 128 batches, which is a second of heavy work, and a join makes
//! millions of batches of one that it read (apache/datafusion#19358). So leaves, and operators that can give more
//! than they got, look at the clock and at the query's token for each batch.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use datafusion::arrow::array::RecordBatch;
use datafusion::arrow::datatypes::SchemaRef;
use datafusion::common::Result;
use datafusion::error::DataFusionError;
use datafusion::execution::{RecordBatchStream, SendableRecordBatchStream, TaskContext};
use datafusion::physical_plan::{DisplayAs, DisplayFormatType, ExecutionPlan};
use futures::Stream;
use tokio_util::sync::CancellationToken;

use crate::error::Error;
use crate::passing::passes_rows_on;

/// How long a query works before it gives way. A small query waits about this long for each heavy one.
pub(crate) const TURN: Duration = Duration::from_millis(1);

/// Operators whose output is not bounded by a few times their input, or that give it long after their input
/// has ended.
const MULTIPLYING: [&str; 12] = [
    "AggregateExec",
    "CrossJoinExec",
    "DenseAggregateExec",
    "HashJoinExec",
    "NestedLoopJoinExec",
    "PiecewiseMergeJoinExec",
    "RecursiveQueryExec",
    "SortExec",
    "SortMergeJoinExec",
    "SymmetricHashJoinExec",
    "UnnestExec",
    "WindowByPartitionExec",
];

/// Whether a plan needs such a place above `node`.
pub(crate) fn needs_place(node: &dyn ExecutionPlan) -> bool {
    node.children().is_empty() || MULTIPLYING.contains(&node.name())
}

/// Gives what `input` gives, until its query is cancelled.
#[derive(Debug)]
pub(crate) struct CooperateExec {
    input: Arc<dyn ExecutionPlan>,
    cancel: CancellationToken,
}

impl CooperateExec {
    pub(crate) fn new(input: Arc<dyn ExecutionPlan>, cancel: CancellationToken) -> Self {
        Self { input, cancel }
    }
}

impl DisplayAs for CooperateExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl ExecutionPlan for CooperateExec {
    fn name(&self) -> &str {
        "CooperateExec"
    }

    passes_rows_on!();

    fn with_new_children(self: Arc<Self>, mut children: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        Ok(Arc::new(Self::new(children.swap_remove(0), self.cancel.clone())))
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let input = self.input.execute(partition, context)?;
        Ok(Box::pin(Cooperate { input, cancel: self.cancel.clone(), since: None }))
    }
}

struct Cooperate {
    input: SendableRecordBatchStream,
    cancel: CancellationToken,
    /// The first poll since its task last gave way here or waited for something.
    since: Option<Instant>,
}

impl Stream for Cooperate {
    type Item = Result<RecordBatch>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.cancel.is_cancelled() {
            return Poll::Ready(Some(Err(DataFusionError::External(Box::new(Error::Cancelled)))));
        }
        if self.since.get_or_insert_with(Instant::now).elapsed() >= TURN {
            self.since = None;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let polled = self.input.as_mut().poll_next(cx);
        if polled.is_pending() {
            self.since = None;
        }
        polled
    }
}

impl RecordBatchStream for Cooperate {
    fn schema(&self) -> SchemaRef {
        self.input.schema()
    }
}

#[cfg(test)]
mod tests {
    use datafusion::physical_plan::collect;
    use datafusion::prelude::{SessionConfig, SessionContext};

    use super::*;
    use crate::interrupt::interruptible;

    /// These would go on for minutes without a batch.
    const SILENT: [&str; 6] = [
        "SELECT sum((a.value * b.value) % 7) FROM range(1000000) a CROSS JOIN range(1000000) b",
        "SELECT sum((a.value * b.value) % 7) FROM range(1000000) a JOIN range(1000000) b ON a.value % 2 = b.value % 2",
        "SELECT count(*) FROM (SELECT DISTINCT concat('a', value % 1000) FROM range(1000000000000))",
        "WITH RECURSIVE r AS (SELECT 0 AS n UNION ALL SELECT (n + 1) % 10 FROM r) SELECT count(*) FROM r",
        "WITH RECURSIVE r AS (SELECT 0 AS n UNION SELECT n + 1 FROM r) SELECT count(*) FROM r",
        "SELECT sum(x % 7) FROM (SELECT unnest(range(1000)) AS x FROM range(1000000000000))",
    ];

    fn context() -> SessionContext {
        SessionContext::new_with_config(SessionConfig::new().with_target_partitions(1))
    }

    #[tokio::test]
    async fn a_query_gives_way() {
        for sql in SILENT {
            let context = context();
            let plan = context.sql(sql).await.expect("it plans").create_physical_plan().await.expect("it plans");
            let plan = interruptible(plan, &CancellationToken::new()).expect("it is rewritten");
            let query = collect(plan, context.task_ctx());
            // On one thread the timer can only fire when the query yields.
            assert!(tokio::time::timeout(Duration::from_millis(300), query).await.is_err(), "{sql}");
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn a_cancelled_query_ends_without_being_asked_again() {
        for sql in SILENT {
            let context = context();
            let plan = context.sql(sql).await.expect("it plans").create_physical_plan().await.expect("it plans");
            let cancel = CancellationToken::new();
            let plan = interruptible(plan, &cancel).expect("it is rewritten");
            let query = tokio::spawn(collect(plan, context.task_ctx()));
            tokio::time::sleep(Duration::from_millis(100)).await;
            cancel.cancel();
            let outcome = tokio::time::timeout(Duration::from_secs(5), query).await.expect("it ends");
            let error = outcome.expect("no panic").expect_err("it was cancelled");
            assert!(matches!(error.find_root(), DataFusionError::External(_)), "{error}");
        }
    }
}
