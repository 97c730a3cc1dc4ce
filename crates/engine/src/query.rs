//! What is known of a query while it runs, and the one line that is logged when it ends.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{error, info};
use updraft_auth::Principal;
use uuid::Uuid;

use crate::error::{Error, ErrorKind};

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
    /// How it ended: the first to say so is right.
    outcome: OnceLock<Outcome>,
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
        let _ = self.outcome.set(Outcome::Failed(error.kind(), error.to_string()));
    }

    /// Ends the run because nobody wants its result. After its end this changes nothing.
    pub(crate) fn abandon(&self) {
        let _ = self.outcome.set(Outcome::Failed(ErrorKind::Cancelled, "the client went away".to_owned()));
        self.cancel.cancel();
    }

    fn log(&self) {
        let (status, reason) = match self.outcome.get() {
            Some(Outcome::Complete) => ("ok".to_owned(), ""),
            Some(Outcome::Failed(kind, reason)) => (kind.to_string(), reason.as_str()),
            None => (ErrorKind::Cancelled.to_string(), "the client went away"),
        };
        macro_rules! line {
            ($level:ident) => {
                $level!(
                    target: "updraft::query",
                    query_id = %self.id,
                    principal = %self.principal.name(),
                    statement = format_args!("{:016x}", self.statement_hash),
                    status,
                    rows = self.rows.load(Ordering::Relaxed),
                    bytes = self.bytes.load(Ordering::Relaxed),
                    queue_ms = 0,
                    plan_ms = millis(self.plan_time),
                    run_ms = millis(self.started.elapsed()),
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
    /// Enters a run; it leaves when the guard is dropped, and then its line is logged.
    pub(crate) fn enter(
        self: &Arc<Self>,
        id: QueryId,
        principal: &Principal,
        statement_hash: u64,
        plan_time: Duration,
    ) -> RunGuard {
        let run = Arc::new(Run {
            id,
            principal: principal.clone(),
            statement_hash,
            plan_time,
            cancel: CancellationToken::new(),
            started: Instant::now(),
            rows: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
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
        own.map(|run| run.cancel.cancel()).count()
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
