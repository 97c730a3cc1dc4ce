//! What is known of a query while it runs, and the one line that is logged when it ends.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{error, info};
use updraft_auth::Principal;
use uuid::Uuid;

use crate::error::{Error, ErrorKind};
use crate::launch::Turn;
use crate::memory::Figures;
use crate::parts::{SharedEnd, Why};
use crate::plan::Planned;
use crate::spill::QuerySpill;

/// The name of a query: in its ticket, in the log, in what cancels it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct QueryId(Uuid);

impl QueryId {
    /// A new one. Ids made later sort later.
    pub fn new() -> Self {
        Self(Uuid::now_v7())
    }

    /// The id of these 16 bytes; `None` for any other number of bytes.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        Uuid::from_slice(bytes).ok().map(Self)
    }

    /// 16 bytes.
    pub fn as_bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

impl Default for QueryId {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Display for QueryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// One run of a query, shared by who makes the result, who sends it, and who may cancel it.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) id: QueryId,
    pub(crate) principal: Principal,
    pub(crate) statement_hash: u64,
    pub(crate) plan_time: Duration,
    pub(crate) cancel: CancellationToken,
    started: Instant,
    rows: AtomicU64,
    bytes: AtomicU64,
    result_cache: OnceLock<ResultCacheUse>,
    attempts: Mutex<Attempts>,
    turn: Mutex<Weak<Turn>>,
    /// What ends the present attempt, as long as another could follow.
    trial: Mutex<Option<CancellationToken>>,
    /// The present attempt was ended and still holds memory.
    letting_go: AtomicBool,
    /// Why it was ended, when its client did not.
    why: Arc<Mutex<Option<Why>>>,
    /// What it ends with, when its result is a part of a query's.
    shared: Option<Arc<SharedEnd>>,
    /// How it ended: the first to say so is right.
    outcome: OnceLock<Outcome>,
}

/// What the attempts at a run have used. There is one, and a second when memory was refused to the first.
#[derive(Debug, Default)]
struct Attempts {
    count: usize,
    queue_time: Duration,
    /// Of those before the last.
    peak: u64,
    memory_wait: Duration,
    spilled_bytes: u64,
    spill_peak: u64,
    spill_files: u64,
    last: Option<Attempt>,
}

/// One attempt at running a query. Clones are the same one.
#[derive(Debug, Clone)]
pub(crate) struct Attempt {
    /// How long it waited for its turn.
    pub(crate) queue_time: Duration,
    pub(crate) partitions: usize,
    pub(crate) batch_size: usize,
    pub(crate) memory: Arc<Figures>,
    pub(crate) spill: QuerySpill,
}

/// What a run of a query has used so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Report {
    /// Rows made.
    pub rows: u64,
    /// The most memory it had reserved at a time, in bytes.
    pub peak_bytes: u64,
    /// Bytes it wrote to disk because they did not fit in memory.
    pub spilled_bytes: u64,
    /// The most of those that were on disk at a time.
    pub spill_peak_bytes: u64,
    /// Files it wrote them to.
    pub spill_files: u64,
    /// Into how many partitions it was split.
    pub partitions: usize,
    /// Rows per batch.
    pub batch_size: usize,
    /// How often it was started: twice when memory was refused at first.
    pub attempts: usize,
    /// How long it waited for its turn.
    pub queue_time: Duration,
    /// How long its threads waited in all for memory that other queries had, once it ran.
    pub memory_wait: Duration,
    /// How long planning took.
    pub plan_time: Duration,
    /// How long ago it started, waiting included.
    pub run_time: Duration,
    /// Whether its result was kept from before.
    pub result_cache: ResultCacheUse,
}

/// What the cache of results did for a run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ResultCacheUse {
    /// The result was there.
    Hit,
    /// It was not, and is kept for the next time if it is not too large.
    Miss,
    /// It was not looked for: the cache is off, or the answer would not be the same the next time.
    #[default]
    Off,
}

impl fmt::Display for ResultCacheUse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Hit => "hit",
            Self::Miss => "miss",
            Self::Off => "off",
        })
    }
}

impl Report {
    /// Names and values, for people and programs.
    pub fn fields(&self) -> [(&'static str, String); 13] {
        [
            ("rows", self.rows.to_string()),
            ("peak_bytes", self.peak_bytes.to_string()),
            ("spilled_bytes", self.spilled_bytes.to_string()),
            ("spill_peak_bytes", self.spill_peak_bytes.to_string()),
            ("spill_files", self.spill_files.to_string()),
            ("partitions", self.partitions.to_string()),
            ("batch_size", self.batch_size.to_string()),
            ("attempts", self.attempts.to_string()),
            ("queue_ms", millis(self.queue_time).to_string()),
            ("memory_wait_ms", millis(self.memory_wait).to_string()),
            ("plan_ms", millis(self.plan_time).to_string()),
            ("run_ms", millis(self.run_time).to_string()),
            ("result_cache", self.result_cache.to_string()),
        ]
    }
}

#[derive(Debug)]
enum Outcome {
    Complete,
    Failed(ErrorKind, String),
}

impl Run {
    pub(crate) fn count_rows(&self, rows: usize) {
        self.rows.fetch_add(rows as u64, Ordering::Relaxed);
    }

    pub(crate) fn count_bytes(&self, bytes: usize) {
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(crate) fn complete(&self) {
        let _ = self.outcome.set(Outcome::Complete);
    }

    pub(crate) fn failed(&self, error: &Error) {
        if self.outcome.set(Outcome::Failed(error.kind(), error.to_string())).is_err() {
            return;
        }
        if let Error::Deadline(allowed) = error {
            self.why.lock().get_or_insert_with(|| Why::Deadline(allowed.clone()));
        }
        // What fails by itself leaves to the other streams what is right of theirs.
        if let (Some(shared), Error::Deadline(_) | Error::Cancelled | Error::Shed(_)) = (&self.shared, error) {
            shared.cancel.cancel();
        }
    }

    /// Ends the run, and the others that give the same result.
    fn end(&self) {
        self.shared.as_ref().map_or(&self.cancel, |shared| &shared.cancel).cancel();
    }

    /// Ends the run because nobody wants its result. After its end this changes nothing. To be called once.
    pub(crate) fn abandon(&self) {
        let _ = self.outcome.set(Outcome::Failed(ErrorKind::Cancelled, "the client went away".to_owned()));
        self.cancel.cancel();
        if let Some(shared) = &self.shared {
            shared.done_with(1);
        }
    }

    /// Ends the run for the sake of others, or, while it has shown nothing, only its present attempt; `why` is told
    /// to its client.
    pub(crate) fn shed(&self, why: String) {
        self.why.lock().get_or_insert(Why::Shed(why));
        match self.trial.lock().take() {
            Some(trial) => {
                self.letting_go.store(true, Ordering::Relaxed);
                trial.cancel();
            }
            None => self.end(),
        }
    }

    /// From now on `trial` ends the attempt that begins; `None` when no other would follow.
    pub(crate) fn on_trial(&self, trial: Option<CancellationToken>) {
        self.letting_go.store(false, Ordering::Relaxed);
        *self.trial.lock() = trial;
    }

    /// From now on the attempt is the last.
    pub(crate) fn trial_is_over(&self) {
        *self.trial.lock() = None;
    }

    /// Another attempt follows the one that came to `error`: why that was has nothing to do with how this one ends.
    pub(crate) fn begins_anew(&self, error: &Error) {
        info!(query_id = %self.id, %error, "out of memory; trying once more with less at a time");
        // What ends all streams of a result stays said to all.
        if self.shared.is_none() {
            *self.why.lock() = None;
        }
    }

    /// Why it, or its attempt, was cancelled.
    pub(crate) fn cancelled(&self) -> Error {
        match &*self.why.lock() {
            Some(Why::Shed(why)) => Error::Shed(why.clone()),
            Some(Why::Deadline(allowed)) => Error::Deadline(allowed.clone()),
            None => Error::Cancelled,
        }
    }

    /// What the cache of results does for it.
    pub(crate) fn result_cache(&self, what: ResultCacheUse) {
        let _ = self.result_cache.set(what);
    }

    /// Another attempt has its turn.
    pub(crate) fn attempt(&self, attempt: Attempt) {
        let mut attempts = self.attempts.lock();
        attempts.count += 1;
        attempts.queue_time += attempt.queue_time;
        if let Some(before) = attempts.last.replace(attempt) {
            attempts.peak = attempts.peak.max(before.memory.peak());
            attempts.memory_wait += before.memory.waited();
            attempts.spilled_bytes += before.spill.bytes_written();
            attempts.spill_peak = attempts.spill_peak.max(before.spill.peak());
            attempts.spill_files += before.spill.files();
        }
    }

    /// It has its turn, as long as somebody holds it.
    pub(crate) fn has_turn(&self, turn: &Arc<Turn>) {
        *self.turn.lock() = Arc::downgrade(turn);
    }

    pub(crate) fn turn(&self) -> Option<Arc<Turn>> {
        self.turn.lock().upgrade()
    }

    /// Bytes it uses now, as far as they are counted.
    fn memory_used(&self) -> u64 {
        self.attempts.lock().last.as_ref().map_or(0, |last| last.memory.used())
    }

    pub(crate) fn report(&self) -> Report {
        let attempts = self.attempts.lock();
        let last = attempts.last.as_ref();
        Report {
            rows: self.rows.load(Ordering::Relaxed),
            peak_bytes: last.map_or(0, |last| last.memory.peak()).max(attempts.peak),
            spilled_bytes: attempts.spilled_bytes + last.map_or(0, |last| last.spill.bytes_written()),
            spill_peak_bytes: last.map_or(0, |last| last.spill.peak()).max(attempts.spill_peak),
            spill_files: attempts.spill_files + last.map_or(0, |last| last.spill.files()),
            partitions: last.map_or(0, |last| last.partitions),
            batch_size: last.map_or(0, |last| last.batch_size),
            attempts: attempts.count,
            queue_time: attempts.queue_time,
            memory_wait: attempts.memory_wait + last.map_or(Duration::ZERO, |last| last.memory.waited()),
            plan_time: self.plan_time,
            run_time: self.started.elapsed(),
            result_cache: self.result_cache.get().copied().unwrap_or_default(),
        }
    }

    fn log(&self) {
        let report = self.report();
        let (status, reason) = match self.outcome.get() {
            Some(Outcome::Complete) => ("ok".to_owned(), ""),
            Some(Outcome::Failed(kind, reason)) => (kind.to_string(), reason.as_str()),
            None => (ErrorKind::Cancelled.to_string(), "the client went away"),
        };
        macro_rules! line {
            ($level:ident) => {
                $level!(
                    target: "updraft::query",
                    // The same line wherever the query ran: of no call's span.
                    parent: None,
                    query_id = %self.id,
                    principal = %self.principal.name(),
                    statement = format_args!("{:016x}", self.statement_hash),
                    status,
                    rows = report.rows,
                    bytes = self.bytes.load(Ordering::Relaxed),
                    peak_bytes = report.peak_bytes,
                    spilled_bytes = report.spilled_bytes,
                    spill_peak_bytes = report.spill_peak_bytes,
                    spill_files = report.spill_files,
                    partitions = report.partitions,
                    batch_size = report.batch_size,
                    attempts = report.attempts,
                    queue_ms = millis(report.queue_time),
                    memory_wait_ms = millis(report.memory_wait),
                    plan_ms = millis(report.plan_time),
                    run_ms = millis(report.run_time),
                    result_cache = %report.result_cache,
                    reason,
                    "query ended"
                )
            };
        }
        // A bug of ours should wake someone up; what a user did wrong should not.
        match self.outcome.get() {
            Some(Outcome::Failed(ErrorKind::Internal, _)) => line!(error),
            _ => line!(info),
        }
    }
}

fn millis(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e3
}

/// The runs that are going on.
#[derive(Debug, Default)]
pub(crate) struct Runs {
    running: Mutex<HashMap<QueryId, Vec<Arc<Run>>>>,
    changed: Notify,
}

impl Runs {
    /// Enters a run of `planned`, or of a part of it, which ends with `shared`; it leaves when the guard is dropped, and
    /// then its line is logged.
    pub(crate) fn enter(self: &Arc<Self>, planned: &Planned, shared: Option<Arc<SharedEnd>>) -> RunGuard {
        let id = planned.id;
        let run = Arc::new(Run {
            id,
            principal: planned.principal.clone(),
            statement_hash: planned.statement_hash,
            plan_time: planned.plan_time,
            cancel: shared.as_ref().map_or_else(CancellationToken::new, |shared| shared.cancel.child_token()),
            started: Instant::now(),
            rows: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            result_cache: OnceLock::new(),
            attempts: Mutex::default(),
            turn: Mutex::default(),
            trial: Mutex::default(),
            letting_go: AtomicBool::new(false),
            why: shared.as_ref().map(|shared| Arc::clone(&shared.why)).unwrap_or_default(),
            shared,
            outcome: OnceLock::new(),
        });
        self.running.lock().entry(id).or_default().push(Arc::clone(&run));
        RunGuard { run, runs: Arc::clone(self) }
    }

    pub(crate) fn len(&self) -> usize {
        self.running.lock().values().map(Vec::len).sum()
    }

    /// Cancels the runs of `id` that `principal` started. Returns how many there were.
    pub(crate) fn cancel(&self, id: QueryId, principal: &Principal) -> usize {
        let running = self.running.lock();
        let runs = running.get(&id).map(Vec::as_slice).unwrap_or_default();
        let own = runs.iter().filter(|run| run.principal == *principal);
        own.map(|run| run.end()).count()
    }

    /// Ends the run that uses most memory, if that is some, and as much as `least` bytes; `why` says it to its client,
    /// given how many bytes it is. Returns them.
    pub(crate) fn end_largest(&self, least: u64, why: impl FnOnce(u64) -> String) -> Option<u64> {
        let running = self.running.lock();
        let ending = |run: &Run| run.cancel.is_cancelled() || run.letting_go.load(Ordering::Relaxed);
        let candidates = running.values().flatten().filter(|run| !ending(run));
        let (used, largest) = candidates.map(|run| (run.memory_used(), run)).max_by_key(|(used, _)| *used)?;
        (used >= least.max(1)).then(|| {
            largest.shed(why(used));
            used
        })
    }

    /// Waits until nothing runs.
    pub(crate) async fn idle(&self) {
        loop {
            let changed = self.changed.notified();
            if self.len() == 0 {
                return;
            }
            changed.await;
        }
    }
}

/// Keeps a run entered.
#[derive(Debug)]
pub(crate) struct RunGuard {
    run: Arc<Run>,
    runs: Arc<Runs>,
}

impl std::ops::Deref for RunGuard {
    type Target = Arc<Run>;

    fn deref(&self) -> &Arc<Run> {
        &self.run
    }
}

impl Drop for RunGuard {
    fn drop(&mut self) {
        {
            let mut running = self.runs.running.lock();
            if let Some(runs) = running.get_mut(&self.run.id) {
                runs.retain(|run| !Arc::ptr_eq(run, &self.run));
                if runs.is_empty() {
                    running.remove(&self.run.id);
                }
            }
        }
        self.run.log();
        self.runs.changed.notify_waiters();
    }
}
