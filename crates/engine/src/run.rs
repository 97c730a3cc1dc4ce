//! A planned query to a stream of results.
//!
//! One task on the CPU runtime makes the results and sends them over the bridge; dropping the
//! [`QueryStream`] ends the task, and with it everything the query holds. What is at hand without computing is made
//! where it is asked for: to wake another thread takes longer, for it and for whoever waits for it.

use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use datafusion::error::DataFusionError;
use datafusion::execution::SendableRecordBatchStream;
use datafusion::logical_expr::LogicalPlan;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use futures::future::BoxFuture;
use futures::{FutureExt, Stream, StreamExt, TryStreamExt, stream};
use tokio::runtime::Handle;
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;
use tracing::error;

use crate::admission::Lane;
use crate::bridge::{Receiver, Sender, Weight};
use crate::engine::Engine;
use crate::error::Error;
use crate::launch::{Effort, fit, launch};
use crate::params;
use crate::parts::Claimed;
use crate::plan::{BoundRows, Planned, Work};
use crate::plan_cache::Ready;
use crate::produce::{Encoded, joined, produce};
use crate::query::{Report, ResultCacheUse, Run, RunGuard};
use crate::result_cache::Asking;
use crate::runtime::CpuRuntime;

/// How long the answer to a client is held back for its first rows, so that both leave at once.
const TOGETHER_WAIT: Duration = Duration::from_millis(5);

/// From this many bytes a result that was kept is encoded where heavy queries run. It needs no turn in any case.
const LIGHT_BYTES: usize = 1 << 20;

/// Which part of a result to fetch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// All of it.
    Whole,
    /// Part `index`, from 0, of those [`Engine::split`](crate::Engine::split) made.
    One {
        /// From 0.
        index: u32,
    },
}

/// Results on their way to a client. Dropping it cancels the query.
#[expect(missing_debug_implementations, reason = "futures have none")]
pub struct QueryStream<T> {
    results: Receiver<T>,
    run: Arc<Run>,
    /// Ends when the run is cancelled or its deadline passes, even while the CPU task does not yield.
    ended: BoxFuture<'static, Error>,
    /// Dropped with the stream, which aborts it. `None` when there is nothing left to do.
    _task: Option<AbortOnDropHandle<()>>,
    done: bool,
}

/// Where results are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Where {
    /// On the CPU runtime.
    OnCpu,
    /// At once, by the caller, as far as they can be. Only for what takes no longer than to send it.
    Here,
}

impl<T: Weight + Send + 'static> QueryStream<T> {
    /// Starts what is `opened` and encodes what it yields.
    pub(crate) fn start(
        cpu: &CpuRuntime,
        place: Where,
        guard: RunGuard,
        limit: Limit,
        (sender, results): (Sender<T>, Receiver<T>),
        opened: impl Future<Output = Result<Opened, Error>> + Send + 'static,
        encode: impl FnOnce(SendableRecordBatchStream) -> Encoded<T> + Send + 'static,
    ) -> Self {
        let run = Arc::clone(&guard);
        let ended = Box::pin(ended(Arc::clone(&run), limit));
        let heavy = cpu.handle(Lane::Heavy).clone();
        let driven = drive(Arc::new(sender), guard, limit, heavy, opened, encode);
        let task = match place {
            Where::OnCpu => Some(cpu.spawn(Lane::Light, driven)),
            Where::Here => {
                let mut driven = driven.boxed();
                // What has ended only waits until it was received, and it is little.
                let over = (&mut driven).now_or_never().is_some() || results.has_ended();
                (!over).then(|| cpu.spawn(Lane::Light, driven))
            }
        };
        Self { results, run, ended, _task: task, done: false }
    }
}

impl<T> QueryStream<T> {
    /// Waits until there is something to send, or at most for a few milliseconds.
    pub async fn begun(mut self) -> Self {
        let ready = std::future::poll_fn(|cx| self.results.poll_ready(cx));
        // What takes longer has its reasons, and the client is told the columns meanwhile.
        let _ = tokio::time::timeout(TOGETHER_WAIT, ready).await;
        self
    }

    /// How long its client may take nothing of it; zero = for ever.
    pub fn idle_timeout(&self) -> Duration {
        self.results.idle()
    }

    /// What the run uses, to look at while and after it is streamed.
    pub fn usage(&self) -> Usage {
        Usage(Arc::clone(&self.run))
    }
}

/// What a run of a query uses.
#[derive(Debug, Clone)]
pub struct Usage(Arc<Run>);

impl Usage {
    /// Its figures now.
    pub fn report(&self) -> Report {
        self.0.report()
    }
}

impl<T> Drop for QueryStream<T> {
    fn drop(&mut self) {
        // Aborting waits for the task to yield; what looks at the token need not.
        self.run.abandon();
    }
}

impl<T: Weight> Stream for QueryStream<T> {
    type Item = Result<T, Error>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        if this.done {
            return Poll::Ready(None);
        }
        if let Poll::Ready(item) = this.results.poll_next(cx) {
            this.done = !matches!(item, Some(Ok(_)));
            return Poll::Ready(item);
        }
        if let Poll::Ready(error) = this.ended.poll_unpin(cx) {
            this.done = true;
            this.run.failed(&error);
            return Poll::Ready(Some(Err(error)));
        }
        Poll::Pending
    }
}

/// Until when a query may run.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limit {
    pub(crate) deadline: Option<Instant>,
    /// What the error tells: the client's own deadline or the statement timeout.
    pub(crate) allowed: Duration,
}

/// Resolves when the run must end, with the error to tell.
async fn ended(run: Arc<Run>, limit: Limit) -> Error {
    let deadline = async {
        match limit.deadline {
            Some(deadline) => tokio::time::sleep_until(deadline).await,
            None => futures::future::pending().await,
        }
    };
    tokio::select! {
        () = run.cancel.cancelled() => run.cancelled(),
        () = deadline => Error::Deadline(humantime::format_duration(limit.allowed).to_string()),
    }
}

/// A query that is ready to run.
pub(crate) struct Opened {
    /// They do nothing before they are polled.
    pub(crate) batches: SendableRecordBatchStream,
    /// Where to poll them.
    pub(crate) lane: Lane,
}

async fn drive<T>(
    sender: Arc<Sender<T>>,
    guard: RunGuard,
    limit: Limit,
    heavy: Handle,
    opened: impl Future<Output = Result<Opened, Error>> + Send,
    encode: impl FnOnce(SendableRecordBatchStream) -> Encoded<T> + Send + 'static,
) where
    T: Weight + Send + 'static,
{
    let run = Arc::clone(&guard);
    let produce = async {
        let Opened { batches, lane } = opened.await?;
        let produced = produce(Arc::clone(&sender), Arc::clone(&run), batches, lane, encode);
        match lane {
            Lane::Light => produced.await,
            Lane::Heavy => joined(AbortOnDropHandle::new(heavy.spawn(produced))).await,
        }
    };
    let outcome = tokio::select! {
        // In this order no timer is set for what is ready at once.
        biased;
        produced = AssertUnwindSafe(produce).catch_unwind() => match produced {
            Ok(outcome) => outcome,
            Err(panic) => Err(panicked(&run, panic.as_ref())),
        },
        error = ended(Arc::clone(&run), limit) => Err(error),
    };
    // An operator that looked at the token does not know why, and some say only that they could not write or get memory.
    let outcome = outcome.map_err(|error| {
        let ended = run.cancel.is_cancelled() || matches!(error, Error::Cancelled);
        if ended && !matches!(error, Error::Deadline(_)) { run.cancelled() } else { error }
    });
    match &outcome {
        Ok(()) => run.complete(),
        Err(error) => run.failed(error),
    }
    sender.run_is_over();
    // Leaves the list of runs, and logs its line, before the client sees the end.
    drop(guard);
    match outcome {
        Ok(()) => sender.finish().await,
        Err(error) => {
            sender.fail(error);
            // Its other tasks look at the token sooner than they yield. Not before the client is told why.
            run.cancel.cancel();
        }
    }
}

fn panicked(run: &Run, panic: &(dyn std::any::Any + Send)) -> Error {
    let text = panic.downcast_ref::<&str>().map(ToString::to_string);
    let message = text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no message".to_owned());
    error!(query_id = %run.id, message, "panic in a query");
    Error::Panicked { query: run.id, message }
}

/// Gets a planned query ready to run: all of it, or a part.
pub(crate) async fn open(
    engine: Arc<Engine>,
    planned: Arc<Planned>,
    part: Option<Claimed>,
    run: Arc<Run>,
) -> Result<Opened, Error> {
    let schema = Arc::clone(&planned.schema);
    // The client learns the columns at once, and waits for its turn only then.
    let later = |batches: BoxFuture<'static, Result<SendableRecordBatchStream, Error>>| {
        let batches = stream::once(batches).map_err(carried).try_flatten();
        Box::pin(RecordBatchStreamAdapter::new(schema, batches)) as SendableRecordBatchStream
    };
    if let (Some(part), Work::Query(ready)) = (part, &planned.work) {
        let ready = Arc::clone(ready);
        let batches = async move { part.batches(&engine, &planned, &ready, &run).await };
        return Ok(Opened { batches: later(batches.boxed()), lane: Lane::Heavy });
    }
    Ok(match &planned.work {
        Work::Query(ready) => {
            let filling = match engine.results().ask(&planned, ready) {
                Asking::Hit(kept) => {
                    run.result_cache(ResultCacheUse::Hit);
                    let lane = if kept.bytes < LIGHT_BYTES { Lane::Light } else { Lane::Heavy };
                    let batches = stream::iter(kept.batches.clone()).map(Ok);
                    let batches = RecordBatchStreamAdapter::new(Arc::clone(&planned.schema), batches);
                    return Ok(Opened { batches: Box::pin(batches), lane });
                }
                Asking::Miss(filling) => {
                    run.result_cache(ResultCacheUse::Miss);
                    Some(filling)
                }
                Asking::Off => None,
            };
            let fitted = fit(&engine, &planned, ready, &run.cancel, Effort::Usual).await?;
            let (ready, lane) = (Arc::clone(ready), fitted.lane);
            let batches = async move { launch(&engine, &planned, &ready, fitted, &run).await };
            let batches = later(batches.boxed());
            let batches = match filling {
                Some(filling) => filling.watch(batches),
                None => batches,
            };
            Opened { batches, lane }
        }
        Work::Each { template, rows } => {
            let batches = each(engine, Arc::clone(&planned), Arc::clone(template), rows, run);
            Opened { batches, lane: Lane::Heavy }
        }
        Work::Batch(batch) => {
            let batch = batch.clone();
            let batches = RecordBatchStreamAdapter::new(batch.schema(), stream::once(async { Ok(batch) }));
            Opened { batches: Box::pin(batches), lane: Lane::Light }
        }
        Work::Change { .. } => {
            let batches = RecordBatchStreamAdapter::new(Arc::clone(&planned.schema), stream::empty());
            Opened { batches: Box::pin(batches), lane: Lane::Light }
        }
    })
}

/// An error of ours on a stream of DataFusion's; [`Error`] is made of it again at the other end.
fn carried(error: Error) -> DataFusionError {
    match error {
        Error::DataFusion(error) => error,
        error => DataFusionError::External(Box::new(error)),
    }
}

/// One run of `template` for each bound row, one after the other, each with a turn of its own.
fn each(
    engine: Arc<Engine>,
    planned: Arc<Planned>,
    template: Arc<LogicalPlan>,
    rows: &BoundRows,
    run: Arc<Run>,
) -> SendableRecordBatchStream {
    let schema = Arc::clone(&planned.schema);
    let placeholders = rows.placeholders.clone();
    let types = rows.types.clone();
    let bound = Arc::clone(&rows.bound);
    let positions: Vec<_> = bound
        .batches
        .iter()
        .enumerate()
        .flat_map(|(batch, rows)| (0..rows.num_rows()).map(move |row| (batch, row)))
        .collect();
    let state = Arc::new(engine.state(&planned.settings));
    let runs = stream::iter(positions).then(move |(batch, row)| {
        let (engine, planned, run) = (Arc::clone(&engine), Arc::clone(&planned), Arc::clone(&run));
        let (state, template) = (Arc::clone(&state), LogicalPlan::clone(&template));
        let values = params::values(&placeholders, &types, &bound.batches[batch], row);
        let values = values.map(|values| params::assigned(&placeholders, values));
        async move {
            let plan = state.optimize(&template.replace_params_with_values(&values?)?)?;
            let ready = Ready::new(plan, None)?;
            let fitted = fit(&engine, &planned, &ready, &run.cancel, Effort::Usual).await?;
            launch(&engine, &planned, &ready, fitted, &run).await
        }
    });
    let flat = runs.map_err(carried).try_flatten();
    Box::pin(RecordBatchStreamAdapter::new(schema, flat))
}
