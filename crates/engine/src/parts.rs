//! A result whose partitions several clients' streams share out among themselves.
//!
//! Until the first part is fetched, all there is of it is how many parts there are: a client may ask for any number of
//! results and fetch none. Who fetches first has it planned and waits for its turn, for all. From then on the streams end
//! together when the query is cancelled, has to give way, or is out of time; a client that drops one of them keeps the
//! others.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use datafusion::error::DataFusionError;
use datafusion::execution::SendableRecordBatchStream;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{ExecutionPlan, ExecutionPlanProperties};
use futures::stream;
use parking_lot::Mutex;
use tokio::sync::OnceCell;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::admission::Lane;
use crate::engine::Engine;
use crate::error::Error;
use crate::launch::{Effort, Held, Turn, fit};
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
    begun: OnceCell<Begun>,
    end: Arc<SharedEnd>,
}

/// What all parts are read from.
#[derive(Debug)]
struct Begun {
    plan: Arc<dyn ExecutionPlan>,
    turn: Arc<Turn>,
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
        Self { claimed: Mutex::new(vec![false; parts]), begun: OnceCell::new(), end: Arc::new(end) }
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
        let Parts { claimed, begun, end } = &*self.parts;
        let begin = async || {
            let fitted = fit(engine, planned, ready, &end.cancel, Effort::InParts).await?;
            let turn = fitted.turn(engine, planned).await?;
            turn.set_final();
            Ok::<_, Error>(Begun { plan: fitted.plan, turn })
        };
        let Begun { plan, turn } = begun.get_or_try_init(begin).await?;
        run.attempt(turn.attempt.clone());
        let of = claimed.lock().len();
        let partitions = (0..plan.output_partitioning().partition_count()).filter(|p| p % of == self.index);
        let streams: Result<Vec<_>, DataFusionError> =
            partitions.map(|partition| plan.execute(partition, Arc::clone(&turn.context))).collect();
        let merged = RecordBatchStreamAdapter::new(plan.schema(), stream::select_all(streams?));
        Ok(Box::pin(Held { batches: Box::pin(merged), turn: Arc::clone(turn) }))
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
