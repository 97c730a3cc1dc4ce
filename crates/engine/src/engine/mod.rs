//! The parts of the engine, and what callers ask of it. Planning and the session state have files of their own.

mod hot;
mod planning;
mod state;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytesize::ByteSize;
use datafusion::arrow::datatypes::SchemaRef;
use datafusion::execution::{SendableRecordBatchStream, SessionState};
use parking_lot::Mutex;
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;
use tracing::{info, warn};
use updraft_auth::Principal;
use updraft_catalog::Catalog;

use crate::admission::{Admission, Lane, Limits, PerPrincipal};
use crate::bridge::{self, Weight};
use crate::config::Config;
use crate::error::Error;
use crate::expiring::{Expiring, WhenFull};
use crate::kept::{self, Kept, PlannedQueries};
use crate::memory::{self, Allocator, Guard, Load, Memory, QueryMemory, UploadMemory};
use crate::parts;
use crate::plan::{Planned, Planner, Work, reference};
use crate::plan_cache::{CacheFigures, PlanCache};
use crate::prepared::{Prepared, PreparedHandle, PreparedStatements};
use crate::produce::Encoded;
use crate::query::{QueryId, Runs};
use crate::result_cache::ResultCache;
use crate::run::{self, Limit, Part, QueryStream, Where};
use crate::runtime::{CpuRuntime, STACK_BYTES};
use crate::session::{Session, SessionId, Sessions};
use crate::settings::SettingSpec;
use crate::spill::Spill;
use crate::unsent::{Outgoing, Unsent};

/// How often expired sessions, statements and plans are dropped.
const SWEEP_INTERVAL: Duration = Duration::from_secs(30);

/// The query engine. One for the process; everything it hands out holds it by `Arc`.
#[derive(Debug)]
pub struct Engine {
    config: Arc<Config>,
    planner: Planner,
    cpu: CpuRuntime,
    template: SessionState,
    memory: Memory,
    /// What each principal may use.
    limits: Arc<PerPrincipal<Limits>>,
    admission: Arc<Admission<Arc<QueryMemory>>>,
    spill: Arc<Spill>,
    sessions: Sessions,
    prepared: PreparedStatements,
    plans: Arc<PlanCache>,
    results: Arc<ResultCache>,
    planned: Arc<PlannedQueries>,
    /// Cancelled before they ran; their tickets stay dead for as long as they are valid.
    cancelled: Expiring<QueryId, Principal>,
    runs: Arc<Runs>,
    unsent: Arc<Unsent>,
    draining: AtomicBool,
    /// The guard admits no heavy query.
    memory_pressure: AtomicBool,
    sweeper: Mutex<Option<AbortOnDropHandle<()>>>,
}

/// What became of a request to cancel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CancelOutcome {
    /// It was planned and will not run.
    Cancelled,
    /// It runs and is ending.
    Cancelling,
    /// The caller has no such query.
    NotFound,
}

/// A table or view as clients list it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableDescription {
    /// Its schema.
    pub schema: String,
    /// Its name.
    pub name: String,
    /// Whether it is a view.
    pub is_view: bool,
}

/// The functions SQL may call, by what they work on. Sorted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FunctionNames {
    /// Functions on numbers.
    pub numeric: Vec<String>,
    /// Functions on text.
    pub string: Vec<String>,
    /// Functions on dates and times.
    pub datetime: Vec<String>,
    /// All others.
    pub system: Vec<String>,
}

impl Engine {
    /// Builds the engine and starts its CPU runtime. `front_end` are the session settings that the front
    /// end adds to the engine's. Must be called on a tokio runtime.
    ///
    /// # Errors
    /// `Invalid` for a config that cannot work, such as a spill folder that cannot be written.
    pub fn new(config: Config, front_end: &'static [SettingSpec], catalog: Arc<Catalog>) -> Result<Arc<Self>, Error> {
        let cpu = CpuRuntime::start(config.cpu_threads)
            .map_err(|error| Error::Invalid(format!("cannot start the CPU runtime: {error}")))?;
        let (memory_limit, source) = config.memory_bytes();
        info!(memory_limit = %ByteSize(memory_limit), source, cpu_threads = cpu.threads(), "engine starts");
        if let Some(host) = memory::host_memory().filter(|host| memory_limit > *host) {
            warn!(memory_limit = %ByteSize(memory_limit), host = %ByteSize(host), "engine.memory_limit is more than the host has");
        }
        let spill = Spill::new(&config)?;
        let template = state::template(&config, &catalog)?;
        let limits = Arc::new(PerPrincipal::limits(&config, cpu.threads(), memory_limit));
        let admission = Admission::new(&config, Arc::clone(&limits), cpu.threads());
        let memory = Memory::new(config.memory_pool, memory_limit);
        let results = Arc::new(ResultCache::new(&config));
        if config.result_cache_limit.as_u64() > memory_limit {
            return Err(Error::Invalid(format!(
                "engine.result_cache_limit ({}) is more than the memory of all queries ({}); give at most that",
                config.result_cache_limit,
                ByteSize(memory_limit)
            )));
        }
        memory.add_reclaimer(Arc::clone(&results) as _);
        if let Some(hot) = catalog.hot() {
            memory.share_with(hot);
            hot.load_behind(cpu.handle(Lane::Heavy).clone());
        }
        let plans = Arc::new(PlanCache::new(&config));
        let planned = Arc::new(kept::planned_queries(&config));
        let kept = Kept { planned: Arc::clone(&planned), plans: Arc::clone(&plans), catalog: Arc::clone(&catalog) };
        memory.add_reclaimer(Arc::new(kept));
        let waiting = Arc::downgrade(&admission);
        memory.on_freed(move || waiting.upgrade().iter().for_each(Admission::poke));
        let engine = Arc::new(Self {
            sessions: Sessions::new(&config, front_end, &limits),
            prepared: PreparedStatements::new(&config),
            plans,
            results,
            planned,
            cancelled: Expiring::new(config.planned_max, config.ticket_ttl, WhenFull::EvictOldest),
            runs: Arc::default(),
            unsent: Unsent::new(memory.clone()),
            draining: AtomicBool::new(false),
            memory_pressure: AtomicBool::new(false),
            sweeper: Mutex::default(),
            planner: Planner { config: Arc::new(config.clone()), catalog },
            config: Arc::new(config),
            cpu,
            template,
            memory,
            admission,
            limits,
            spill,
        });
        let swept = Arc::downgrade(&engine);
        *engine.sweeper.lock() = Some(engine.cpu.spawn(Lane::Light, async move {
            loop {
                tokio::time::sleep(SWEEP_INTERVAL).await;
                let Some(engine) = swept.upgrade() else { return };
                engine.sessions.sweep();
                engine.prepared.sweep();
                engine.planned.sweep();
                engine.cancelled.sweep();
            }
        }));
        Ok(engine)
    }

    /// The session `id` of `principal`, with the server's settings when it changed none.
    pub fn session(&self, id: SessionId, principal: &Principal) -> Session {
        self.sessions.get(id, principal)
    }

    /// Sets a setting of the session; `None` = back to the server's value.
    ///
    /// # Errors
    /// `Unsupported` for a name that cannot be set; `Invalid` for a value; `Exhausted` for one session too many.
    pub fn set(&self, session: &Session, name: &str, value: Option<&str>) -> Result<(), Error> {
        // The session as it is now, not as it was when the query was planned.
        let current = self.sessions.get(session.id, &session.principal);
        let defaults = self.sessions.defaults(&session.principal);
        let settings = match value {
            Some(value) => defaults.with(&current.settings, name, value)?,
            None => defaults.without(&current.settings, name)?,
        };
        self.sessions.put(&current, settings)
    }

    /// The canonical name of a setting.
    ///
    /// # Errors
    /// `Unsupported`, with the list of what can be set.
    pub fn setting_name(&self, name: &str) -> Result<&'static str, Error> {
        self.sessions.setting_name(name)
    }

    /// All settings of the session: name, value, documentation.
    pub fn settings(&self, session: &Session) -> Vec<(&'static str, String, &'static str)> {
        self.sessions.defaults(&session.principal).show(&session.settings)
    }

    /// The session with some settings changed for one call, by names and values.
    ///
    /// # Errors
    /// As [`Self::set`].
    pub fn with_settings<'a>(
        &self,
        session: &Session,
        changes: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> Result<Session, Error> {
        let mut changes = changes.into_iter().peekable();
        if changes.peek().is_none() {
            return Ok(session.clone());
        }
        let mut settings = (*session.settings).clone();
        for (name, value) in changes {
            settings = self.sessions.defaults(&session.principal).with(&settings, name, value)?;
        }
        Ok(Session { settings: Arc::new(settings), ..session.clone() })
    }

    /// Closes the session and its prepared statements. Returns whether it had settings of its own.
    pub fn close_session(&self, session: &Session) -> bool {
        self.prepared.close_session(session);
        self.sessions.close(session)
    }

    /// The caller's prepared statement `handle`.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn prepared(&self, handle: PreparedHandle, session: &Session) -> Result<Arc<Prepared>, Error> {
        self.prepared.get(handle, &session.principal)
    }

    /// Memory for what the caller is about to upload, of which it has nothing yet.
    pub fn upload_memory(&self, session: &Session) -> UploadMemory {
        let limit = self.limits(&session.principal).memory_limit;
        UploadMemory::new(&self.memory, session.principal.clone(), limit)
    }

    /// Closes the caller's prepared statement; closing one that is gone is fine. Returns whether it was open.
    pub fn close_prepared(&self, handle: PreparedHandle, session: &Session) -> bool {
        self.prepared.close(handle, &session.principal)
    }

    /// Runs a planned query. `encode` turns its batches into what is sent, on the CPU runtime.
    ///
    /// # Errors
    /// `NotFound` for somebody else's query. What fails later comes as the stream's last item.
    pub fn run<T>(
        self: &Arc<Self>,
        session: &Session,
        planned: Arc<Planned>,
        part: Part,
        deadline: Option<Instant>,
        encode: impl FnOnce(SendableRecordBatchStream) -> Encoded<T> + Send + 'static,
    ) -> Result<QueryStream<T>, Error>
    where
        T: Weight + Send + 'static,
    {
        if planned.principal != session.principal {
            return Err(Error::NotFound { what: "query", name: planned.id.to_string(), hint: "run it again" });
        }
        if let Work::Change { name, value } = &planned.work {
            self.set(session, name, value.as_deref())?;
        }
        let part = match part {
            Part::Whole => None,
            Part::One { index } => Some(parts::claim(&planned, index)?),
        };
        let guard = self.runs.enter(&planned, part.as_ref().map(|part| Arc::clone(part.end())));
        let limit = self.limit(&planned, deadline);
        if part.as_ref().is_some_and(|part| part.is_first) {
            parts::watch_claims(&self.cpu, &planned, parts::LOOK);
        }
        let bounds = bridge::Bounds {
            bytes: usize::try_from(self.config.stream_buffer.0).unwrap_or(usize::MAX),
            idle: self.limits(&planned.principal).idle_stream_timeout,
        };
        let bridge = bridge::channel(bounds, Outgoing::new(&self.unsent));
        let place = if planned.is_at_hand() { Where::Here } else { Where::OnCpu };
        let opened = run::open(Arc::clone(self), planned, part, Arc::clone(&guard));
        Ok(QueryStream::start(&self.cpu, place, guard, limit, bridge, opened, encode))
    }

    /// Runs a planned statement that returns nothing to a client: `SET` by an update call.
    ///
    /// # Errors
    /// `Unsupported` for a statement that returns rows; as [`Self::set`].
    pub fn run_change(&self, session: &Session, planned: &Planned) -> Result<(), Error> {
        match &planned.work {
            Work::Change { name, value } => self.set(session, name, value.as_deref()),
            _ => Err(Error::Unsupported(
                "updates are not offered: this server answers statements that read; run this as a query".to_owned(),
            )),
        }
    }

    /// Cancels the caller's query, whether it waits to be fetched or runs.
    pub fn cancel(&self, id: QueryId, session: &Session) -> CancelOutcome {
        let running = self.runs.cancel(id, &session.principal);
        let own = |planned: &Arc<Planned>| planned.principal == session.principal;
        let waiting = self.planned.get(&id).filter(own).and_then(|_| self.planned.remove(&id)).is_some();
        if waiting || running > 0 {
            // The bound evicts, so this cannot fail.
            let _ = self.cancelled.insert(id, session.principal.clone());
        }
        match (running, waiting) {
            (0, false) => CancelOutcome::NotFound,
            (0, true) => CancelOutcome::Cancelled,
            _ => CancelOutcome::Cancelling,
        }
    }

    /// Keeps the planned query `id` for another ticket's life.
    pub fn keep_alive(&self, id: QueryId) {
        let _ = self.planned.get(&id);
    }

    /// The tables and views there are, by schema and name.
    ///
    /// # Errors
    /// `Unavailable` when a store cannot be listed.
    pub async fn tables(&self) -> Result<Vec<TableDescription>, Error> {
        let listed = self.planner.catalog.list().await?;
        let tables = listed.into_iter().map(|listed| TableDescription {
            schema: listed.schema,
            name: listed.name,
            is_view: listed.kind == updraft_catalog::Kind::View,
        });
        Ok(tables.collect())
    }

    /// The columns of `tables`, in their order; `None` where one cannot be read.
    ///
    /// # Errors
    /// `Deadline`; a caught panic.
    pub async fn columns(
        self: &Arc<Self>,
        session: &Session,
        tables: &[TableDescription],
        deadline: Option<Instant>,
    ) -> Result<Vec<Option<SchemaRef>>, Error> {
        let names: Vec<_> = tables.iter().map(|table| reference(&table.schema, &table.name)).collect();
        let (engine, settings) = (Arc::clone(self), Arc::clone(&session.settings));
        self.on_cpu(QueryId::new(), deadline, async move {
            Ok(engine.planner.columns(&engine.state(&settings), &names).await)
        })
        .await
    }

    /// The functions SQL may call.
    pub fn functions(&self) -> FunctionNames {
        let mut names = FunctionNames::default();
        for (name, function) in self.template.scalar_functions() {
            let section = function.documentation().map_or("", |documentation| documentation.doc_section.label);
            let list = match section {
                "Math Functions" => &mut names.numeric,
                "String Functions" | "Binary String Functions" | "Regular Expression Functions" => &mut names.string,
                "Time and Date Functions" => &mut names.datetime,
                _ => &mut names.system,
            };
            list.push(name.clone());
        }
        let others = self.template.aggregate_functions().keys();
        let others = others.chain(self.template.window_functions().keys());
        names.system.extend(others.chain(self.template.table_functions().keys()).cloned());
        for list in [&mut names.numeric, &mut names.string, &mut names.datetime, &mut names.system] {
            list.sort_unstable();
            list.dedup();
        }
        names
    }

    /// What the cache of plans holds.
    pub fn plan_cache(&self) -> CacheFigures {
        self.plans.figures()
    }

    /// What the cache of results holds.
    pub fn result_cache(&self) -> CacheFigures {
        self.results.figures()
    }

    /// How many planned queries wait for their client to fetch them, and how many bytes they take, about.
    pub fn planned(&self) -> (usize, usize) {
        (self.planned.len(), self.planned.weight())
    }

    pub(crate) fn results(&self) -> &Arc<ResultCache> {
        &self.results
    }

    /// What the operator set.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// How long a ticket is valid.
    pub fn ticket_ttl(&self) -> Duration {
        self.config.ticket_ttl
    }

    /// From now on new queries are refused; those that run go on.
    pub fn drain(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    /// Waits until no query runs.
    pub async fn idle(&self) {
        self.runs.idle().await;
    }

    /// Bytes that running queries have spilled.
    pub fn spilled(&self) -> u64 {
        self.spill.used()
    }

    /// Removes what queries have spilled, for a process that is about to exit: nothing may run after it.
    pub fn remove_spilled(&self) {
        self.spill.remove();
    }

    /// How many queries run.
    pub fn running(&self) -> usize {
        self.runs.len()
    }

    /// How many results wait to be read although their queries are over.
    pub fn sending(&self) -> usize {
        self.unsent.results()
    }

    /// Watches what `allocator` really has, from now on: queries then give way before the system has to.
    ///
    /// # Errors
    /// The system has no thread to give.
    pub fn guard_memory(self: &Arc<Self>, allocator: Arc<dyn Allocator>) -> std::io::Result<()> {
        let guard = Guard::new(self.memory.clone(), allocator);
        let engine = Arc::downgrade(self);
        let watch = move || guard.watch(&|| engine.upgrade().map(|engine| engine as Arc<dyn Load>));
        // It ends with the engine, within one of its looks.
        let thread = std::thread::Builder::new().name("updraft-memory".to_owned());
        // It drops what caches let go of, plans among it, which takes the stack of those who made them.
        thread.stack_size(STACK_BYTES).spawn(watch).map(drop)
    }

    pub(crate) fn memory(&self) -> &Memory {
        &self.memory
    }

    pub(crate) fn admission(&self) -> &Arc<Admission<Arc<QueryMemory>>> {
        &self.admission
    }

    pub(crate) fn limits(&self, principal: &Principal) -> &Limits {
        self.limits.of(principal)
    }

    pub(crate) fn spill(&self) -> &Arc<Spill> {
        &self.spill
    }

    pub(crate) fn cpu_threads(&self) -> usize {
        self.cpu.threads()
    }

    /// How many queries wait for their turn.
    pub fn queued(&self) -> usize {
        [Lane::Heavy, Lane::Light].map(|lane| self.admission.queued(lane)).iter().sum()
    }

    /// Whether so much memory is there that no heavy query is admitted.
    pub fn memory_pressure(&self) -> bool {
        self.memory_pressure.load(Ordering::Relaxed)
    }

    /// Bytes that are there although nobody holds them, as last measured: caches, and what is not counted.
    pub fn memory_unaccounted(&self) -> u64 {
        self.memory.unaccounted()
    }

    /// Bytes that are held for what clients have uploaded.
    pub fn memory_uploaded(&self) -> u64 {
        self.memory.uploaded()
    }

    /// Bytes that running queries and uploads have reserved, and those that queries which are over have left for their clients.
    pub fn memory_reserved(&self) -> usize {
        usize::try_from(self.memory.held()).unwrap_or(usize::MAX)
    }

    /// Bytes that all queries together may reserve.
    pub fn memory_limit(&self) -> u64 {
        self.memory.limit()
    }

    fn limit(&self, planned: &Planned, deadline: Option<Instant>) -> Limit {
        let now = Instant::now();
        let timeout = planned.settings.statement_timeout;
        let own = (!timeout.is_zero()).then(|| now + timeout.saturating_sub(planned.plan_time));
        match (own, deadline) {
            (Some(own), Some(theirs)) if own <= theirs => Limit { deadline: Some(own), allowed: timeout },
            (Some(own), None) => Limit { deadline: Some(own), allowed: timeout },
            (_, theirs) => {
                let allowed = theirs.map_or(Duration::ZERO, |theirs| theirs.saturating_duration_since(now));
                Limit { deadline: theirs, allowed }
            }
        }
    }
}

impl Load for Engine {
    fn pause(&self, paused: bool) {
        self.memory_pressure.store(paused, Ordering::Relaxed);
        self.admission.pause(paused);
    }

    fn poke(&self) -> usize {
        self.admission.poke();
        self.admission.queued(Lane::Heavy)
    }

    fn running(&self) -> usize {
        self.runs.len()
    }

    fn end_largest(&self, limit: u64, least: u64) -> Option<u64> {
        self.runs.end_largest(least, |held| memory::shed_text(held, limit))
    }
}
