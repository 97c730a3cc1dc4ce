//! Brings a planned query to run: how it is split, what it will need, its turn, its memory, and a second try.

use std::borrow::Cow;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use datafusion::arrow::array::{RecordBatch, StringArray};
use datafusion::arrow::datatypes::SchemaRef;
use datafusion::error::DataFusionError;
use datafusion::execution::memory_pool::{MemoryConsumer, MemoryPool, MemoryReservation};
use datafusion::execution::{RecordBatchStream, SendableRecordBatchStream, TaskContext};
use datafusion::logical_expr::LogicalPlan;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{ExecutionPlan, execute_stream};
use datafusion::prelude::SessionConfig;
use futures::{Stream, StreamExt, stream};
use tokio_util::sync::CancellationToken;

use crate::admission::{Lane, Parked, Permit};
use crate::config::Partitions;
use crate::engine::Engine;
use crate::error::Error;
use crate::fit::careful_logical;
use crate::footprint::{self, Footprint, Shape};
use crate::interrupt::interruptible;
use crate::memory::{Claim, Memory, QueryMemory};
use crate::plan::Planned;
use crate::plan_cache::{Again, Ready};
use crate::query::{Attempt, Run};

/// Of all memory, what a careful attempt is granted. The rest keeps small queries going meanwhile.
const CAREFUL_SHARE: (u64, u64) = (3, 4);

/// The most rows per batch of a careful attempt. What was spilled comes back by batches, one of each run at a time, and a row may
/// be a group with hundreds of distinct values: with 2048 rows such groups want three times the memory that they want with 512.
const CAREFUL_BATCH_ROWS: usize = 512;

/// How many spilled runs a careful attempt merges at once.
const CAREFUL_FAN_IN: usize = 4;

/// How a query is tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Effort {
    /// As the settings say, with less where less is free.
    Usual,
    /// The same for a result that is fetched in parts: no partition waits until another is asked for.
    InParts,
    /// With as little as it can do with, of as much as there is.
    Careful,
    /// The same for a result that is fetched in parts.
    CarefulInParts,
}

impl Effort {
    pub(crate) fn is_careful(self) -> bool {
        matches!(self, Self::Careful | Self::CarefulInParts)
    }

    pub(crate) fn is_in_parts(self) -> bool {
        matches!(self, Self::InParts | Self::CarefulInParts)
    }
}

/// A physical plan, and what it will need.
#[derive(Debug)]
pub(crate) struct Fitted {
    pub(crate) plan: Arc<dyn ExecutionPlan>,
    /// What it was planned with.
    config: SessionConfig,
    footprint: Footprint,
    shape: Shape,
    effort: Effort,
    /// Where it waits for its turn, and where it runs.
    pub(crate) lane: Lane,
    /// What its operators look at.
    pub(crate) cancel: CancellationToken,
}

/// What a run holds from its turn to its end.
pub(crate) struct Turn {
    pub(crate) context: Arc<TaskContext>,
    /// How it goes.
    pub(crate) attempt: Attempt,
    /// For what DataFusion does not count.
    uncounted: MemoryReservation,
    /// Of that, what may wait for the client.
    buffered: usize,
    permit: Permit<Arc<QueryMemory>>,
}

/// A query that stands still, as its client does not read.
pub(crate) struct Standing<'a> {
    turn: &'a Turn,
    parked: Parked<'a, Arc<QueryMemory>>,
    /// What it has left to others of what was granted, and of what is not counted.
    lent: (u64, usize),
}

impl fmt::Debug for Turn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Turn").field("memory", self.permit.grant()).finish_non_exhaustive()
    }
}

/// The batches of `ready`, which was `fitted`. When memory is refused or taken away before the first of them, it is run
/// once more, carefully.
///
/// # Errors
/// What admission and DataFusion say.
pub(crate) async fn launch(
    engine: &Arc<Engine>,
    planned: &Planned,
    ready: &Ready,
    fitted: Fitted,
    run: &Arc<Run>,
) -> Result<SendableRecordBatchStream, Error> {
    let batches = match attempt(engine, planned, fitted, run).await {
        Err(error) if error.is_refusal() && engine.memory().counts_all() && !run.cancel.is_cancelled() => {
            run.begins_anew(&error);
            attempt(engine, planned, fit(engine, planned, ready, &run.cancel, Effort::Careful).await?, run).await?
        }
        outcome => outcome?,
    };
    Ok(match &ready.plan {
        LogicalPlan::Analyze(_) => with_report(batches, Arc::clone(run)),
        _ => batches,
    })
}

/// Runs what was fitted up to its first batch.
async fn attempt(
    engine: &Arc<Engine>,
    planned: &Planned,
    fitted: Fitted,
    run: &Arc<Run>,
) -> Result<SendableRecordBatchStream, Error> {
    let cancel = fitted.cancel.clone();
    // An attempt that fails leaves nothing running that holds memory: the next wants it.
    let ends = cancel.clone().drop_guard();
    let turn = fitted.turn(engine, planned).await?;
    run.attempt(turn.attempt.clone());
    run.has_turn(&turn);
    let another_may_follow = fitted.effort == Effort::Usual && engine.memory().counts_all();
    run.on_trial(another_may_follow.then(|| cancel.clone()));
    if !another_may_follow {
        turn.set_final();
    }
    let batches = execute_stream(fitted.plan, Arc::clone(&turn.context));
    let (first, batches) = first_of(batches, turn, &cancel, run).await?;
    run.trial_is_over();
    if cancel.is_cancelled() {
        // It was ended while its first rows were made. Nobody has seen them.
        return Err(run.cancelled());
    }
    batches.turn.set_final();
    ends.disarm();
    Ok(after(first, batches))
}

/// The first of `batches`, which are made with `turn`, and the others. It ends with `cancel`, which their operators look at.
///
/// # Errors
/// What DataFusion says; why `run` or its attempt was cancelled.
pub(crate) async fn first_of(
    batches: Result<SendableRecordBatchStream, DataFusionError>,
    turn: Arc<Turn>,
    cancel: &CancellationToken,
    run: &Run,
) -> Result<(Option<RecordBatch>, Held), Error> {
    // An operator that looks at the token says that it was cancelled, or that it could not write, and not why.
    let ended = |error: DataFusionError| if cancel.is_cancelled() { run.cancelled() } else { error.into() };
    let mut batches = Held { batches: batches.map_err(ended)?, turn };
    let first = tokio::select! {
        biased;
        () = cancel.cancelled() => return Err(run.cancelled()),
        first = batches.next() => first.transpose().map_err(ended)?,
    };
    Ok((first, batches))
}

/// `first`, then `batches`.
pub(crate) fn after(first: Option<RecordBatch>, batches: Held) -> SendableRecordBatchStream {
    let schema = batches.schema();
    Box::pin(RecordBatchStreamAdapter::new(schema, stream::iter(first.map(Ok)).chain(batches)))
}

/// The physical plan of `ready`, split only so far that what it needs is free. It ends with `cancel`, and may be ended
/// without it.
///
/// # Errors
/// What DataFusion says of the plan.
pub(crate) async fn fit(
    engine: &Engine,
    planned: &Planned,
    ready: &Ready,
    cancel: &CancellationToken,
    effort: Effort,
) -> Result<Fitted, Error> {
    let settings = &planned.settings;
    let (plan, size) = if effort.is_careful() {
        let plan = careful_logical(ready.plan.clone())?;
        let size = footprint::scan_size(&plan)?;
        (Cow::Owned(plan), size)
    } else {
        (Cow::Borrowed(&ready.plan), ready.size)
    };
    let wanted = match settings.target_partitions {
        Partitions::Count(count) => count,
        Partitions::Auto => footprint::partitions_for(&size, engine.cpu_threads(), engine.running()),
    };
    // What a session has set, it gets.
    let most = if settings.batch_size == engine.config().batch_size { usize::MAX } else { settings.batch_size };
    let batch_size = size.batch_rows(settings.batch_size).min(most);
    let cancel = cancel.child_token();
    let mut shapes = footprint::ladder(Shape { partitions: wanted, batch_size });
    let mut shape = if effort.is_careful() {
        let careful = |last: Shape| Shape { batch_size: last.batch_size.min(CAREFUL_BATCH_ROWS), ..last };
        shapes.by_ref().last().map(careful)
    } else {
        shapes.next()
    }
    .expect("a ladder has a step");
    let fitted = |plan, config, footprint, shape| {
        let plan = interruptible(plan, &cancel)?;
        let lane = lane_of(&footprint, effort, engine.memory());
        Ok::<_, Error>(Fitted { plan, config, footprint, shape, effort, lane, cancel: cancel.clone() })
    };
    let room = engine.room(settings, effort);
    if effort == Effort::Usual
        && let Some(again) = ready.again().filter(|again| again.suits(shape, room))
    {
        let fitted = fitted(again.plan()?, again.config.clone(), again.footprint, shape)?;
        if fitted.is_free(engine) {
            return Ok(fitted);
        }
    }
    loop {
        let state = engine.shaped(settings, shape, effort, room);
        let mut physical = state.query_planner().create_physical_plan(&plan, &state).await?;
        let footprint = footprint::of(&physical, shape.batch_size, engine.config().stream_buffer.0);
        let config = state.config().clone();
        let may_repeat = effort == Effort::Usual && ready.repeats_on.is_some();
        let again = may_repeat.then(|| Again::new(&physical, &config, footprint, shape, room)).flatten();
        if let Some(again) = &again {
            physical = again.plan()?;
        }
        let fitted = fitted(physical, config, footprint, shape)?;
        if fitted.is_free(engine) {
            again.into_iter().for_each(|again| ready.keep(again));
            return Ok(fitted);
        }
        match shapes.next() {
            Some(smaller) => shape = smaller,
            None => return Ok(fitted),
        }
    }
}

/// A light query waits for no heavy one, and what it leaves for its client is not granted to it. While clients that take
/// nothing leave much, one that would leave more has to be granted it. What did not go with little has much.
fn lane_of(footprint: &Footprint, effort: Effort, memory: &Memory) -> Lane {
    let is_light = footprint.is_light && !effort.is_careful();
    if is_light && footprint.answer <= memory.answer_max() { Lane::Light } else { Lane::Heavy }
}

impl Fitted {
    /// Whether it could have now what it needs.
    fn is_free(&self, engine: &Engine) -> bool {
        self.lane == Lane::Light || self.needs() <= engine.memory().free()
    }

    /// The least it can run with, in bytes.
    fn needs(&self) -> u64 {
        self.footprint.unaccounted.saturating_add(self.footprint.minimum)
    }

    /// Waits for its turn, and takes its memory.
    ///
    /// # Errors
    /// What admission says; what DataFusion says of the memory.
    pub(crate) async fn turn(&self, engine: &Engine, planned: &Planned) -> Result<Arc<Turn>, Error> {
        let shared = engine.memory().clone();
        let limits = engine.limits(&planned.principal);
        let limit = planned.settings.query_memory_limit.min(shared.limit());
        let careful = self.effort.is_careful();
        let grant = if careful { self.needs().max(limit / CAREFUL_SHARE.1 * CAREFUL_SHARE.0) } else { self.needs() };
        let lane = self.lane;
        let claim = Claim {
            principal: planned.principal.clone(),
            priority: limits.priority,
            principal_limit: limits.memory_limit,
            shares: lane == Lane::Heavy,
        };
        let spillers = self.footprint.spillers();
        let counts_all = shared.counts_all();
        let cancel = self.cancel.clone();
        let take = move || shared.try_query(&claim, grant.min(limit), limit, spillers, &cancel);
        let permit = engine.admission().enter(&planned.principal, lane, take).await?;
        let memory = Arc::clone(permit.grant());
        let pool: Arc<dyn MemoryPool> = Arc::clone(&memory) as _;
        let uncounted = MemoryConsumer::new("Uncounted").register(&pool);
        if counts_all {
            // A query that may have less than that must still be able to do something.
            let most = limit / if careful { 4 } else { 2 };
            uncounted.try_grow(usize::try_from(self.footprint.unaccounted.min(most)).unwrap_or(usize::MAX))?;
        }
        let spill = engine.spill().query(planned.id, &self.cancel);
        let figures = Arc::clone(memory.figures());
        let room = memory.room();
        let most = engine.config().merge_fan_in_max();
        // More passes, and less memory for each.
        let most = if careful { most.min(CAREFUL_FAN_IN) } else { most };
        let fan_in = self.footprint.merge_fan_in(room, most);
        let sort_reservation = self.footprint.sort_reservation(room);
        let spills = spill.disk_manager().with_max_spill_merge_fan_in(fan_in);
        let context = engine.task_context(&self.plan, &self.config, memory, spills, sort_reservation)?;
        let attempt = Attempt {
            queue_time: permit.waited(),
            partitions: self.shape.partitions,
            batch_size: self.shape.batch_size,
            memory: figures,
            spill,
        };
        let buffered = usize::try_from(engine.config().stream_buffer.0).unwrap_or(usize::MAX);
        Ok(Arc::new(Turn { context, attempt, uncounted, buffered, permit }))
    }
}

impl Turn {
    /// Says that no other attempt follows.
    pub(crate) fn set_final(&self) {
        self.permit.grant().set_final();
    }

    /// Leaves its slot to others, as the query stands still, and its memory but for what operators have and what waits for
    /// the client. What else is there, such as the row groups it was reading, is what the guard measures.
    pub(crate) fn park(&self) -> Standing<'_> {
        let released = self.uncounted.size().saturating_sub(self.buffered);
        self.uncounted.shrink(released);
        let lent = (self.permit.grant().lend(), released);
        Standing { turn: self, parked: self.permit.park(), lent }
    }
}

impl Standing<'_> {
    /// Waits for its turn and its memory. When that takes too long it goes on without, and others spill or wait: it may be
    /// among those that wait for each other, and its client has a part of the result.
    pub(crate) async fn resume(self) {
        let Self { turn, parked, lent: (lent, released) } = self;
        let memory = Arc::clone(turn.permit.grant());
        let take = move || memory.take_back(lent, released as u64).then(|| Arc::clone(&memory));
        if !parked.resume(take).await {
            turn.permit.grant().take_back_anyway(lent);
        }
        turn.uncounted.grow(released);
    }
}

/// Batches, and what they are made with. The batches go first.
pub(crate) struct Held {
    pub(crate) batches: SendableRecordBatchStream,
    pub(crate) turn: Arc<Turn>,
}

impl Stream for Held {
    type Item = Result<RecordBatch, DataFusionError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.batches.poll_next_unpin(cx)
    }
}

impl RecordBatchStream for Held {
    fn schema(&self) -> SchemaRef {
        self.batches.schema()
    }
}

/// What `EXPLAIN ANALYZE` gives, and one row more: what the run has used.
fn with_report(batches: SendableRecordBatchStream, run: Arc<Run>) -> SendableRecordBatchStream {
    let schema = batches.schema();
    let columns = Arc::clone(&schema);
    let report = stream::once(async move {
        let fields = run.report().fields().map(|(name, value)| format!("{name}={value}"));
        let row = ["Resources".to_owned(), fields.join(", ")];
        let row = row.map(|text| Arc::new(StringArray::from(vec![text])) as _);
        Ok(RecordBatch::try_new(columns, row.to_vec())?)
    });
    Box::pin(RecordBatchStreamAdapter::new(schema, batches.chain(report)))
}
