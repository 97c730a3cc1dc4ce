//! A result whose partitions several clients' streams share out among themselves.
//!
//! Until the first part is fetched, all there is of it is how many parts there are: a client may ask for any number of
//! results and fetch none. Who fetches first has it planned and waits for its turn, for all. When memory is refused to one of
//! the streams before any of them has given rows, all begin anew, carefully. Otherwise they end together when the query is
//! cancelled, has to give way, or is out of time; a client that drops one of them keeps the others.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use datafusion::arrow::array::RecordBatch;
use datafusion::error::DataFusionError;
use datafusion::execution::SendableRecordBatchStream;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{ExecutionPlan, ExecutionPlanProperties};
use futures::stream;
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::admission::Lane;
use crate::engine::Engine;
use crate::error::Error;
use crate::launch::{Effort, Held, Turn, after, first_of, fit};
use crate::plan::Planned;
use crate::plan_cache::Ready;
use crate::query::Run;
use crate::runtime::CpuRuntime;

/// How often it is looked whether parts are left that nobody fetches. What they would have read waits in memory or on
/// disk, so after two looks that saw nobody they are given up.
pub(crate) const LOOK: Duration = Duration::from_secs(15);

/// The parts of a result.
#[derive(Debug)]
pub(crate) struct Parts {
    /// One for each part; true = somebody fetches or fetched it.
    claimed: Mutex<Vec<bool>>,
    /// Made by who fetches first, for all.
    begun: tokio::sync::Mutex<Option<Arc<Begun>>>,
    progress: Mutex<Progress>,
    end: Arc<SharedEnd>,
}

/// What all parts are read from.
#[derive(Debug)]
struct Begun {
    plan: Arc<dyn ExecutionPlan>,
    turn: Arc<Turn>,
    effort: Effort,
    /// Ends it, so that another may begin.
    cancel: CancellationToken,
}

/// How far the parts have come, together.
#[derive(Debug)]
struct Progress {
    /// How they are tried now.
    effort: Effort,
    /// A stream has given rows, or ended: too late for another attempt, which might give its rows to others.
    has_shown: bool,
}

/// A part that is its holder's to fetch.
#[derive(Debug)]
pub(crate) struct Claimed {
    parts: Arc<Parts>,
    index: usize,
    /// Nobody has claimed one before.
    pub(crate) is_first: bool,
}

/// How the streams of one result end together.
#[derive(Debug)]
pub(crate) struct SharedEnd {
    /// What the operators look at. The tokens of the streams are its children.
    pub(crate) cancel: CancellationToken,
    /// Why that was, if its clients can be told more than that.
    pub(crate) why: Arc<Mutex<Option<Why>>>,
    /// Parts somebody may still want rows of.
    wanted: AtomicUsize,
}

/// Why a run was ended that its client did not cancel.
#[derive(Debug)]
pub(crate) enum Why {
    /// For the sake of others.
    Shed(String),
    /// Its time was over, which was this long.
    Deadline(String),
}

impl SharedEnd {
    /// Nobody wants more rows of `parts` of the parts. Streams that were dropped may be in the middle of something long,
    /// and then they see it here.
    pub(crate) fn done_with(&self, parts: usize) {
        if self.wanted.fetch_sub(parts, Ordering::AcqRel) == parts {
            self.cancel.cancel();
        }
    }
}

impl Parts {
    /// `parts` parts that nobody fetches yet.
    pub(crate) fn new(parts: usize) -> Self {
        let end = SharedEnd { cancel: CancellationToken::new(), why: Arc::default(), wanted: AtomicUsize::new(parts) };
        let progress = Mutex::new(Progress { effort: Effort::InParts, has_shown: false });
        Self { claimed: Mutex::new(vec![false; parts]), begun: Default::default(), progress, end: Arc::new(end) }
    }

    /// What the parts are read from when they are tried with `effort`. What was tried before ends.
    async fn begun(
        &self,
        engine: &Engine,
        planned: &Planned,
        ready: &Ready,
        effort: Effort,
    ) -> Result<Arc<Begun>, Error> {
        let mut begun = self.begun.lock().await;
        if self.progress.lock().effort != effort {
            // Another stream has seen to it meanwhile.
            return Err(Error::Cancelled);
        }
        if let Some(begun) = begun.as_ref().filter(|begun| begun.effort == effort) {
            return Ok(Arc::clone(begun));
        }
        if let Some(before) = begun.take() {
            before.cancel.cancel();
        }
        let fitted = fit(engine, planned, ready, &self.end.cancel, effort).await?;
        let turn = fitted.turn(engine, planned).await?;
        if effort.is_careful() || !engine.memory().counts_all() {
            turn.set_final();
        }
        let new = Arc::new(Begun { plan: fitted.plan, turn, effort, cancel: fitted.cancel });
        *begun = Some(Arc::clone(&new));
        Ok(new)
    }

    /// Whether what came of an attempt with `effort` may be shown; then no other follows.
    fn may_show(&self, effort: Effort) -> bool {
        let mut progress = self.progress.lock();
        progress.has_shown |= progress.effort == effort;
        progress.effort == effort
    }

    /// Whether another attempt takes the place of one with `effort`, because it does already, or because this one
    /// was `refused` memory.
    fn begin_anew(&self, effort: Effort, refused: bool) -> bool {
        let mut progress = self.progress.lock();
        if refused && !progress.has_shown {
            progress.effort = Effort::CarefulInParts;
        }
        progress.effort != effort
    }

    fn unclaimed(&self) -> usize {
        self.claimed.lock().iter().filter(|claimed| !**claimed).count()
    }
}

impl Drop for Parts {
    fn drop(&mut self) {
        self.end.done_with(self.unclaimed());
    }
}

/// Makes part `index` of `planned` the caller's.
///
/// # Errors
/// `Stale` when the part was claimed before, or waited for too long; `Invalid` when there is no such part.
pub(crate) fn claim(planned: &Planned, index: u32) -> Result<Claimed, Error> {
    let mut slot = planned.parts.lock();
    let gone = || Error::Stale("the parts of this result were fetched or given up; run the query again".to_owned());
    let parts = Arc::clone(slot.as_ref().ok_or_else(gone)?);
    let index = index as usize;
    let is_first = parts.claimed.lock().iter().all(|claimed| !claimed);
    match parts.claimed.lock().get_mut(index) {
        None => return Err(Error::Invalid(format!("there is no part {index}"))),
        Some(true) => {
            return Err(Error::Stale(format!("part {index} of this result was fetched before; run the query again")));
        }
        Some(claimed) => *claimed = true,
    }
    // The streams hold what they need; the plan with all it has built must not outlive them.
    if parts.unclaimed() == 0 {
        slot.take();
    }
    Ok(Claimed { parts, index, is_first })
}

impl Drop for Claimed {
    /// Its stream has begun to give, or failed, or its client has gone.
    fn drop(&mut self) {
        self.parts.progress.lock().has_shown = true;
    }
}

impl Claimed {
    /// What ends its stream and the others.
    pub(crate) fn end(&self) -> &Arc<SharedEnd> {
        &self.parts.end
    }

    /// The partitions of the part, merged as they come.
    ///
    /// # Errors
    /// What admission and DataFusion say.
    pub(crate) async fn batches(
        self,
        engine: &Engine,
        planned: &Planned,
        ready: &Ready,
        run: &Run,
    ) -> Result<SendableRecordBatchStream, Error> {
        loop {
            let effort = self.parts.progress.lock().effort;
            let error = match self.attempt(engine, planned, ready, run, effort).await {
                Ok((first, batches)) if self.parts.may_show(effort) => {
                    batches.turn.set_final();
                    return Ok(after(first, batches));
                }
                Ok(_) => run.cancelled(),
                Err(error) => error,
            };
            let refused = error.is_refusal() && engine.memory().counts_all();
            if run.cancel.is_cancelled() || !self.parts.begin_anew(effort, refused) {
                return Err(error);
            }
            run.begins_anew(&error);
        }
    }

    /// Runs the part up to its first batch.
    async fn attempt(
        &self,
        engine: &Engine,
        planned: &Planned,
        ready: &Ready,
        run: &Run,
        effort: Effort,
    ) -> Result<(Option<RecordBatch>, Held), Error> {
        let begun = self.parts.begun(engine, planned, ready, effort).await?;
        let Begun { plan, turn, cancel, .. } = &*begun;
        run.attempt(turn.attempt.clone());
        if plan.output_partitioning().partition_count() == 1 && self.index == 0 {
            // Nobody else has rows to wait for.
            run.has_turn(turn);
        }
        let of = self.parts.claimed.lock().len();
        let partitions = (0..plan.output_partitioning().partition_count()).filter(|p| p % of == self.index);
        let streams: Result<Vec<_>, DataFusionError> =
            partitions.map(|partition| plan.execute(partition, Arc::clone(&turn.context))).collect();
        let merged = streams
            .map(|streams| Box::pin(RecordBatchStreamAdapter::new(plan.schema(), stream::select_all(streams))) as _);
        first_of(merged, Arc::clone(turn), cancel, run).await
    }
}

/// Gives up the parts that are left when nobody fetches any, looking `every` so often. To be called once for a result.
pub(crate) fn watch_claims(cpu: &CpuRuntime, planned: &Arc<Planned>, every: Duration) {
    let planned = Arc::downgrade(planned);
    let watch = async move {
        // How many parts were left when nobody was seen.
        let mut left = None;
        loop {
            tokio::time::sleep(every).await;
            let Some(planned) = planned.upgrade() else { return };
            let Some(parts) = planned.parts.lock().clone() else { return };
            let unclaimed = parts.unclaimed();
            // Whoever reads one part after the other comes for the next when it has read this one.
            if parts.end.wanted.load(Ordering::Acquire) > unclaimed {
                left = None;
            } else if left.replace(unclaimed) == Some(unclaimed) {
                warn!(query_id = %planned.id, unclaimed, "giving up the parts of a result that nobody fetches");
                // Not dropped under the lock: memory that is given back lets others in, who ask what may be evicted.
                let given_up = planned.parts.lock().take();
                drop((given_up, parts));
                return;
            }
        }
    };
    // It ends with the query, and holds nothing: no handle to keep.
    drop(cpu.spawn(Lane::Light, watch).detach());
}
