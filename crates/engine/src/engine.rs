//! The parts of the engine, and what callers ask of it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytesize::ByteSize;
use datafusion::arrow::array::{ArrayRef, RecordBatch, StringArray};
use datafusion::arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::config::ConfigNonZeroUsize;
use datafusion::execution::FunctionRegistry;
use datafusion::execution::disk_manager::{DiskManagerBuilder, DiskManagerMode};
use datafusion::execution::runtime_env::{RuntimeEnv, RuntimeEnvBuilder};
use datafusion::execution::session_state::SessionStateBuilder;
use datafusion::execution::{SendableRecordBatchStream, SessionState, TaskContext};
use datafusion::physical_plan::ExecutionPlanProperties;
use datafusion::prelude::SessionConfig;
use futures::Stream;
use parking_lot::Mutex;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tracing::info;
use updraft_auth::Principal;
use updraft_catalog::Catalog;

use crate::bridge::{self, Weight};
use crate::config::Config;
use crate::cooperate::Cooperate;
use crate::error::Error;
use crate::expiring::{Expiring, WhenFull};
use crate::memory;
use crate::params;
use crate::plan::{BoundRows, Logical, Planned, Planner, Statement, Work, reference};
use crate::prepared::{Prepared, PreparedHandle, PreparedStatements};
use crate::query::{QueryId, Runs};
use crate::run::{self, Limit, Part, Parts, QueryStream};
use crate::runtime::CpuRuntime;
use crate::session::{Session, SessionId, Sessions};
use crate::settings::{SettingSpec, Settings};
use crate::sql::{self, Parsed, Placeholders};

/// How often expired sessions, statements and plans are dropped.
const SWEEP_INTERVAL: Duration = Duration::from_secs(30);

/// The query engine. One for the process; everything it hands out holds it by `Arc`.
#[derive(Debug)]
pub struct Engine {
    config: Arc<Config>,
    planner: Planner,
    cpu: CpuRuntime,
    template: SessionState,
    memory_limit: u64,
    sessions: Sessions,
    prepared: PreparedStatements,
    planned: Expiring<QueryId, Arc<Planned>>,
    /// Cancelled before they ran; their tickets stay dead for as long as they are valid.
    cancelled: Expiring<QueryId, Principal>,
    runs: Arc<Runs>,
    draining: AtomicBool,
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
        let (memory_limit, source) = match config.memory_limit {
            Some(limit) => (limit.0, "engine.memory_limit".to_owned()),
            None => memory::default_limit(),
        };
        info!(memory_limit = %ByteSize(memory_limit), source, cpu_threads = cpu.threads(), "engine starts");
        let runtime = runtime_env(&config, memory_limit, &catalog)?;
        let mut template = SessionStateBuilder::new()
            .with_config(session_config(&config.time_zone))
            .with_runtime_env(runtime)
            .with_default_features()
            .with_physical_optimizer_rule(Arc::new(Cooperate))
            .build();
        follow_config(&mut template);
        let engine = Arc::new(Self {
            sessions: Sessions::new(&config, front_end, cpu.threads(), memory_limit),
            prepared: PreparedStatements::new(&config),
            planned: Expiring::new(config.planned_max, config.ticket_ttl, WhenFull::EvictOldest),
            cancelled: Expiring::new(config.planned_max, config.ticket_ttl, WhenFull::EvictOldest),
            runs: Arc::default(),
            draining: AtomicBool::new(false),
            sweeper: Mutex::default(),
            planner: Planner { config: Arc::new(config.clone()), catalog },
            config: Arc::new(config),
            cpu,
            template,
            memory_limit,
        });
        let swept = Arc::downgrade(&engine);
        *engine.sweeper.lock() = Some(engine.cpu.spawn(async move {
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
        let defaults = self.sessions.defaults();
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
        self.sessions.defaults().canonical(name)
    }

    /// All settings of the session: name, value, documentation.
    pub fn settings(&self, session: &Session) -> Vec<(&'static str, String, &'static str)> {
        self.sessions.defaults().show(&session.settings)
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
        let mut settings = (*session.settings).clone();
        for (name, value) in changes {
            settings = self.sessions.defaults().with(&settings, name, value)?;
        }
        Ok(Session { settings: Arc::new(settings), ..session.clone() })
    }

    /// Closes the session and its prepared statements. Returns whether it had settings of its own.
    pub fn close_session(&self, session: &Session) -> bool {
        self.prepared.close_session(session);
        self.sessions.close(session)
    }

    /// Plans `statement` for [`Self::run`], on its tables as they are now.
    ///
    /// # Errors
    /// Whatever is wrong with the statement or its tables; `Draining`; `Deadline`.
    pub async fn plan(
        self: &Arc<Self>,
        session: &Session,
        statement: Statement,
        deadline: Option<Instant>,
    ) -> Result<Arc<Planned>, Error> {
        self.plan_as(QueryId::new(), session, statement, deadline).await
    }

    /// The planned query `id`, or `statement` planned again when it is no longer kept.
    ///
    /// # Errors
    /// As [`Self::plan`]; `Cancelled` when it was cancelled before.
    pub async fn replan(
        self: &Arc<Self>,
        id: QueryId,
        session: &Session,
        statement: Option<Statement>,
        deadline: Option<Instant>,
    ) -> Result<Arc<Planned>, Error> {
        if self.cancelled.get(&id).is_some_and(|principal| principal == session.principal) {
            return Err(Error::Cancelled);
        }
        if let Some(planned) = self.planned.get(&id).filter(|planned| planned.principal == session.principal) {
            return Ok(planned);
        }
        let Some(statement) = statement else {
            return Err(Error::Stale("this query is no longer kept; run it again".to_owned()));
        };
        self.plan_as(id, session, statement, deadline).await
    }

    async fn plan_as(
        self: &Arc<Self>,
        id: QueryId,
        session: &Session,
        statement: Statement,
        deadline: Option<Instant>,
    ) -> Result<Arc<Planned>, Error> {
        let (engine, session) = (Arc::clone(self), session.clone());
        self.on_cpu(id, deadline, async move {
            let started = Instant::now();
            let hash = statement.fingerprint();
            let mut state = engine.state(&session.settings);
            let (work, schema, snapshots) = match &statement {
                Statement::Substrait(plan) => {
                    let logical = engine.planner.substrait(&mut state, plan).await?;
                    query(&state, logical)?
                }
                Statement::Sql(text) => match sql::parse(text, &engine.config)? {
                    Parsed::Read(statement, placeholders) => {
                        if !placeholders.ids.is_empty() {
                            let names = placeholders.ids.join(", ");
                            return Err(Error::Invalid(format!(
                                "the statement has parameters ({names}); prepare it and bind them"
                            )));
                        }
                        let logical = engine.planner.logical(&mut state, *statement).await?;
                        query(&state, logical)?
                    }
                    other => engine.command(&session, other)?,
                },
            };
            Ok(engine.keep(id, &session, hash, work, schema, snapshots, started.elapsed()))
        })
        .await
    }

    /// Prepares `statement`. Parameters without an inferred type count as `unknown` in the schema.
    ///
    /// # Errors
    /// As [`Self::plan`]; `Exhausted` at the bounds of prepared statements.
    pub async fn prepare(
        self: &Arc<Self>,
        session: &Session,
        statement: Statement,
        unknown: DataType,
        deadline: Option<Instant>,
    ) -> Result<Arc<Prepared>, Error> {
        let (engine, session) = (Arc::clone(self), session.clone());
        self.on_cpu(QueryId::new(), deadline, async move {
            let mut state = engine.state(&session.settings);
            let (logical, placeholders) = match &statement {
                Statement::Substrait(plan) => {
                    (Some(engine.planner.substrait(&mut state, plan).await?), Placeholders::default())
                }
                Statement::Sql(text) => match sql::parse(text, &engine.config)? {
                    Parsed::Read(statement, placeholders) => {
                        (Some(engine.planner.logical(&mut state, *statement).await?), placeholders)
                    }
                    Parsed::Show(name) => {
                        let batch = engine.show(&session, name.as_deref())?;
                        return engine.prepared_without_plan(&session, statement, Some(batch.schema()));
                    }
                    Parsed::Set(..) | Parsed::Reset(_) => {
                        return engine.prepared_without_plan(&session, statement, None);
                    }
                },
            };
            let logical = logical.expect("every arm above that goes on has planned");
            let (types, schema) = describe(&logical, &placeholders, &unknown)?;
            let prepared = Arc::new(Prepared {
                handle: PreparedHandle::new(),
                principal: session.principal.clone(),
                session: session.id,
                statement,
                placeholders,
                types,
                schema: Some(schema),
                last: Mutex::new(Some((session.settings.fingerprint(), Arc::new(logical)))),
                bound: Mutex::default(),
            });
            engine.prepared.open(Arc::clone(&prepared))?;
            Ok(prepared)
        })
        .await
    }

    fn prepared_without_plan(
        &self,
        session: &Session,
        statement: Statement,
        schema: Option<SchemaRef>,
    ) -> Result<Arc<Prepared>, Error> {
        let prepared = Arc::new(Prepared {
            handle: PreparedHandle::new(),
            principal: session.principal.clone(),
            session: session.id,
            statement,
            placeholders: Placeholders::default(),
            types: params::Types::default(),
            schema,
            last: Mutex::default(),
            bound: Mutex::default(),
        });
        self.prepared.open(Arc::clone(&prepared))?;
        Ok(prepared)
    }

    /// The caller's prepared statement `handle`.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn prepared(&self, handle: PreparedHandle, session: &Session) -> Result<Arc<Prepared>, Error> {
        self.prepared.get(handle, &session.principal)
    }

    /// Closes the caller's prepared statement; closing one that is gone is fine. Returns whether it was open.
    pub fn close_prepared(&self, handle: PreparedHandle, session: &Session) -> bool {
        self.prepared.close(handle, &session.principal)
    }

    /// Plans a prepared statement with what is bound to it.
    ///
    /// # Errors
    /// As [`Self::plan`]; `Invalid` when parameters are missing or do not fit.
    pub async fn plan_prepared(
        self: &Arc<Self>,
        session: &Session,
        prepared: Arc<Prepared>,
        deadline: Option<Instant>,
    ) -> Result<Arc<Planned>, Error> {
        let id = QueryId::new();
        let (engine, session) = (Arc::clone(self), session.clone());
        self.on_cpu(id, deadline, async move {
            let started = Instant::now();
            let hash = prepared.statement.fingerprint();
            let mut state = engine.state(&session.settings);
            let key = session.settings.fingerprint();
            let last = prepared.last.lock().clone().filter(|(settings, _)| *settings == key);
            let current = match last {
                Some((_, logical)) if engine.planner.is_current(&state, &logical).await? => Some(logical),
                _ => None,
            };
            let logical = match (current, &prepared.statement) {
                (Some(logical), _) => logical,
                (None, Statement::Substrait(plan)) => Arc::new(engine.planner.substrait(&mut state, plan).await?),
                (None, Statement::Sql(text)) => match sql::parse(text, &engine.config)? {
                    Parsed::Read(statement, _) => Arc::new(engine.planner.logical(&mut state, *statement).await?),
                    other => {
                        let (work, schema, snapshots) = engine.command(&session, other)?;
                        return Ok(engine.keep(id, &session, hash, work, schema, snapshots, started.elapsed()));
                    }
                },
            };
            *prepared.last.lock() = Some((key, Arc::clone(&logical)));
            let (work, schema) = engine.bind(&state, &prepared, &logical)?;
            Ok(engine.keep(id, &session, hash, work, schema, logical.snapshots, started.elapsed()))
        })
        .await
    }

    fn bind(&self, state: &SessionState, prepared: &Prepared, logical: &Logical) -> Result<(Work, SchemaRef), Error> {
        let batches = prepared.bound.lock().clone().unwrap_or_else(|| Arc::from([]));
        let rows: usize = batches.iter().map(RecordBatch::num_rows).sum();
        let placeholders = &prepared.placeholders;
        if placeholders.ids.is_empty() {
            let plan = state.optimize(&logical.plan)?;
            let schema = Arc::clone(plan.schema().inner());
            return Ok((Work::Query(plan), schema));
        }
        let Some(first) = batches.iter().find(|batch| batch.num_rows() > 0) else {
            let names = placeholders.ids.join(", ");
            return Err(Error::Invalid(format!("the statement has parameters ({names}) and none are bound")));
        };
        let values = params::values(placeholders, &prepared.types, first, 0)?;
        let plan = state.optimize(&logical.plan.clone().replace_params_with_values(&values)?)?;
        let schema = Arc::clone(plan.schema().inner());
        if rows == 1 {
            return Ok((Work::Query(plan), schema));
        }
        let rows = BoundRows { placeholders: placeholders.clone(), types: prepared.types.clone(), batches };
        Ok((Work::Each { template: logical.plan.clone(), rows }, schema))
    }

    /// Makes the result of `planned` fetchable in up to `parts` parts, each by its own stream at the same
    /// time. Returns how many parts there are: 1 = only as a whole.
    ///
    /// # Errors
    /// What DataFusion says of the plan.
    pub async fn split(self: &Arc<Self>, planned: &Arc<Planned>, parts: usize) -> Result<usize, Error> {
        let Work::Query(_) = &planned.work else { return Ok(1) };
        if parts <= 1 {
            return Ok(1);
        }
        let (engine, planned) = (Arc::clone(self), Arc::clone(planned));
        self.on_cpu(planned.id, None, async move {
            let Work::Query(plan) = &planned.work else { return Ok(1) };
            let state = engine.state(&planned.settings);
            // The parts are run by several streams; each is cancelled by itself.
            let plan = run::physical(&state, plan, &CancellationToken::new()).await?;
            let of = parts.min(plan.output_partitioning().partition_count());
            if of > 1 {
                let context = engine.task_context(&state, &planned.settings)?;
                let claimed = Mutex::new(vec![false; of]);
                *planned.parts.lock() = Some(Arc::new(Parts { plan, context, of, claimed }));
            }
            Ok(of)
        })
        .await
    }

    /// Runs a planned query. `encode` turns its batches into what is sent, on the CPU runtime.
    ///
    /// # Errors
    /// `NotFound` for somebody else's query. What fails later comes as the stream's last item.
    pub fn run<T, S>(
        self: &Arc<Self>,
        session: &Session,
        planned: Arc<Planned>,
        part: Part,
        deadline: Option<Instant>,
        encode: impl FnOnce(SendableRecordBatchStream) -> S + Send + 'static,
    ) -> Result<QueryStream<T>, Error>
    where
        T: Weight + Send + 'static,
        S: Stream<Item = Result<T, Error>> + Send + 'static,
    {
        if planned.principal != session.principal {
            return Err(Error::NotFound { what: "query", name: planned.id.to_string(), hint: "run it again" });
        }
        if let Work::Change { name, value } = &planned.work {
            self.set(session, name, value.as_deref())?;
        }
        let guard = self.runs.enter(planned.id, &planned.principal, planned.statement_hash, planned.plan_time);
        let limit = self.limit(&planned, deadline);
        if matches!(part, Part::One { .. }) {
            run::watch_claims(&self.cpu, &planned, &self.runs);
        }
        let batches = run::open(Arc::clone(self), planned, part, guard.cancel.clone());
        let bounds = bridge::Bounds {
            bytes: usize::try_from(self.config.stream_buffer.0).unwrap_or(usize::MAX),
            idle: self.config.stream_idle_timeout,
        };
        Ok(QueryStream::start(&self.cpu, guard, limit, bounds, batches, encode))
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

    /// How many queries run.
    pub fn running(&self) -> usize {
        self.runs.len()
    }

    /// Bytes that running queries have reserved.
    pub fn memory_reserved(&self) -> usize {
        self.template.runtime_env().memory_pool.reserved()
    }

    /// Bytes that all queries together may reserve.
    pub fn memory_limit(&self) -> u64 {
        self.memory_limit
    }

    /// A session state with these settings, on the shared runtime, without tables.
    pub(crate) fn state(&self, settings: &Settings) -> SessionState {
        let mut state = self.template.clone();
        let options = state.config_mut().options_mut();
        options.execution.target_partitions = settings.target_partitions;
        options.execution.planning_concurrency = settings.target_partitions;
        options.execution.batch_size =
            ConfigNonZeroUsize::try_new(settings.batch_size).expect("settings hold checked values");
        options.execution.time_zone = Some(settings.time_zone.clone());
        options.catalog.default_catalog = settings.catalog.clone();
        options.catalog.default_schema = settings.schema.clone();
        if settings.time_zone != self.config.time_zone {
            follow_config(&mut state);
        }
        state.mark_start_execution();
        state
    }

    /// What a run of a query executes with: the shared runtime, its memory capped for this query.
    pub(crate) fn task_context(&self, state: &SessionState, settings: &Settings) -> Result<Arc<TaskContext>, Error> {
        let context = TaskContext::from(state);
        if settings.query_memory_limit >= self.memory_limit {
            return Ok(Arc::new(context));
        }
        let shared = self.template.runtime_env();
        let pool = memory::query_pool(Arc::clone(&shared.memory_pool), settings.query_memory_limit);
        let runtime = RuntimeEnvBuilder::from_runtime_env(shared).with_memory_pool(pool).build_arc()?;
        Ok(Arc::new(context.with_runtime(runtime)))
    }

    /// Runs `work` on the CPU runtime, within the deadline and the planning timeout, panics caught.
    async fn on_cpu<T: Send + 'static>(
        &self,
        id: QueryId,
        deadline: Option<Instant>,
        work: impl Future<Output = Result<T, Error>> + Send + 'static,
    ) -> Result<T, Error> {
        if self.draining.load(Ordering::Relaxed) {
            return Err(Error::Draining);
        }
        let timeout = Instant::now() + self.config.planning_timeout;
        let until = deadline.map_or(timeout, |deadline| deadline.min(timeout));
        let allowed = until.saturating_duration_since(Instant::now());
        let task = self.cpu.spawn(work);
        match tokio::time::timeout_at(until, task).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(join)) => {
                let message = join.to_string();
                tracing::error!(query_id = %id, message, "panic while planning");
                Err(Error::Panicked { query: id, message })
            }
            Err(_) => Err(Error::Deadline(humantime::format_duration(allowed).to_string())),
        }
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

    /// `SET`, `RESET` and `SHOW`: answered here, never by DataFusion.
    fn command(&self, session: &Session, command: Parsed) -> Result<(Work, SchemaRef, u64), Error> {
        let (name, value) = match command {
            Parsed::Set(name, value) => (name, Some(value)),
            Parsed::Reset(name) => (name, None),
            Parsed::Show(name) => {
                let batch = self.show(session, name.as_deref())?;
                let schema = batch.schema();
                return Ok((Work::Batch(batch), schema, 0));
            }
            Parsed::Read(..) => unreachable!("callers plan what reads"),
        };
        // A name or value that is wrong is an error of planning, before anything is fetched.
        let defaults = self.sessions.defaults();
        match &value {
            Some(value) => defaults.with(&session.settings, &name, value)?,
            None => defaults.without(&session.settings, &name)?,
        };
        Ok((Work::Change { name, value }, Arc::new(Schema::empty()), 0))
    }

    fn show(&self, session: &Session, name: Option<&str>) -> Result<RecordBatch, Error> {
        let name = name.map(|name| self.setting_name(name)).transpose()?;
        let rows = self.settings(session);
        let rows = rows.iter().filter(|(known, ..)| name.is_none_or(|name| name == *known));
        let (mut names, mut values, mut docs) = (Vec::new(), Vec::new(), Vec::new());
        for (name, value, doc) in rows {
            names.push(*name);
            values.push(value.as_str());
            docs.push(*doc);
        }
        let columns: Vec<(&str, Vec<&str>)> = vec![("name", names), ("value", values), ("description", docs)];
        let fields: Vec<_> = columns.iter().map(|(name, _)| Field::new(*name, DataType::Utf8, false)).collect();
        let arrays = columns.into_iter().map(|(_, values)| Arc::new(StringArray::from(values)) as ArrayRef).collect();
        let batch = RecordBatch::try_new(Arc::new(Schema::new(fields)), arrays);
        Ok(batch.map_err(datafusion::error::DataFusionError::from)?)
    }

    #[expect(clippy::too_many_arguments, reason = "it builds one struct of as many fields")]
    fn keep(
        &self,
        id: QueryId,
        session: &Session,
        statement_hash: u64,
        work: Work,
        schema: SchemaRef,
        snapshots: u64,
        plan_time: Duration,
    ) -> Arc<Planned> {
        let planned = Arc::new(Planned {
            id,
            principal: session.principal.clone(),
            statement_hash,
            settings: Arc::clone(&session.settings),
            work,
            schema,
            snapshots,
            plan_time,
            parts: Mutex::default(),
        });
        // The bound evicts, so this cannot fail.
        let _ = self.planned.insert(id, Arc::clone(&planned));
        planned
    }
}

/// The types of the parameters, and the schema while none are bound.
fn describe(
    logical: &Logical,
    placeholders: &Placeholders,
    unknown: &DataType,
) -> Result<(params::Types, SchemaRef), Error> {
    let types = params::types(&logical.plan)?;
    if placeholders.ids.is_empty() {
        return Ok((types, Arc::clone(logical.plan.schema().inner())));
    }
    let nulls = params::nulls(placeholders, &types, unknown)?;
    let plan = logical.plan.clone().replace_params_with_values(&nulls)?;
    Ok((types, Arc::clone(plan.schema().inner())))
}

fn query(state: &SessionState, logical: Logical) -> Result<(Work, SchemaRef, u64), Error> {
    let plan = state.optimize(&logical.plan)?;
    let schema = Arc::clone(plan.schema().inner());
    Ok((Work::Query(plan), schema, logical.snapshots))
}

/// Gives the functions that keep a part of the config, such as `now()` its time zone, the present one.
fn follow_config(state: &mut SessionState) {
    let options = state.config().options();
    let functions = state.scalar_functions().values();
    let changed: Vec<_> = functions.filter_map(|function| function.inner().with_updated_config(options)).collect();
    for function in changed {
        // Only a function of the same name is replaced, which a session state never refuses.
        let _ = state.register_udf(Arc::new(function));
    }
}

/// What no session changes, and the server's time zone.
fn session_config(time_zone: &str) -> SessionConfig {
    let mut config = SessionConfig::new()
        .with_information_schema(true)
        .with_create_default_catalog_and_schema(false)
        .with_default_catalog_and_schema(updraft_catalog::CATALOG, updraft_catalog::SCHEMA);
    let options = config.options_mut();
    options.execution.time_zone = Some(time_zone.to_owned());
    // `0.1` is the decimal it says, as in DuckDB and PostgreSQL, and not the nearest double.
    options.sql_parser.parse_float_as_decimal = true;
    // A file may be bigger than memory: small read buffers, compressed spills.
    options.execution.spill_compression = datafusion::config::SpillCompression::Lz4Frame;
    options.execution.sort_pushdown_buffer_capacity = 32 << 20;
    options.execution.enforce_batch_size_in_joins = true;
    config
}

fn runtime_env(config: &Config, memory_limit: u64, catalog: &Catalog) -> Result<Arc<RuntimeEnv>, Error> {
    let mode = if config.spill_directories.is_empty() {
        DiskManagerMode::OsTmpDirectory
    } else {
        for folder in &config.spill_directories {
            std::fs::create_dir_all(folder)
                .map_err(|error| Error::Invalid(format!("engine.spill_directories: {}: {error}", folder.display())))?;
        }
        DiskManagerMode::Directories(config.spill_directories.clone())
    };
    let disk = DiskManagerBuilder::default().with_mode(mode).with_max_temp_directory_size(config.spill_limit.0);
    Ok(RuntimeEnvBuilder::new()
        .with_memory_pool(memory::pool(config.memory_pool, memory_limit))
        .with_disk_manager_builder(disk)
        .with_object_store_registry(catalog.object_stores())
        .build_arc()?)
}
