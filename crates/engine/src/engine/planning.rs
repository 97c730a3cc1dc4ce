//! Statements and prepared statements to planned queries.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use datafusion::arrow::array::{ArrayRef, RecordBatch, StringArray};
use datafusion::arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::common::ScalarValue;
use datafusion::execution::SessionState;
use datafusion::physical_plan::ExecutionPlanProperties;
use parking_lot::Mutex;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::Engine;
use crate::admission::Lane;
use crate::error::Error;
use crate::launch::{self, Effort};
use crate::params;
use crate::parts::Parts;
use crate::plan::{BoundRows, Planned, Statement, Work};
use crate::plan_cache::{Asked, Plan, Ready};
use crate::prepared::{Bound, Described, Prepared, PreparedHandle};
use crate::query::QueryId;
use crate::session::Session;
use crate::sql::{self, Parsed, Placeholders};

/// How many files of tables are compared where requests are answered; more would keep others waiting.
const COMPARED_MAX: usize = 100;

impl Engine {
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
        let started = Instant::now();
        let asked = asked(session, statement);
        let kept = self.kept(&asked, deadline).await?;
        if let Some(ready) = kept.as_ref().and_then(|plan| plan.kept(&[])) {
            let snapshots = kept.map_or(0, |plan| plan.logical.snapshots());
            return Ok(self.keep(id, session, &asked.statement, query(ready, snapshots), started, true));
        }
        let (engine, session) = (Arc::clone(self), session.clone());
        self.on_cpu(id, deadline, async move {
            let mut state = engine.state(&session.settings);
            let outcome = match engine.understand(&asked, kept, &mut state, Parameters::Refused).await? {
                Understood::Plan(plan) => query(plan.ready(&state, Vec::new())?, plan.logical.snapshots()),
                Understood::Command(command) => engine.command(&session, command)?,
            };
            Ok(engine.keep(id, &session, &asked.statement, outcome, started, true))
        })
        .await
    }

    /// The plan that was kept of what is asked, if its tables are still the same. This does not leave the caller's
    /// runtime unless there is much to compare: it waits for the store, and computes nothing.
    async fn kept(&self, asked: &Arc<Asked>, deadline: Option<Instant>) -> Result<Option<Arc<Plan>>, Error> {
        self.refuse_when_draining()?;
        let is_current = async |plan: &Plan| {
            let Some(versions) = &plan.logical.versions else { return false };
            if plan.logical.files <= COMPARED_MAX {
                return self.planner.is_current(versions).await;
            }
            let (planner, versions) = (self.planner.clone(), Arc::clone(versions));
            self.cpu.spawn(Lane::Light, async move { planner.is_current(&versions).await }).await.unwrap_or(false)
        };
        let found = tokio::time::timeout_at(self.until(deadline), self.plans.get(asked, is_current));
        // Planning anew ends in time too, and says why it took so long.
        Ok(found.await.ok().flatten())
    }

    /// What is asked, planned, unless a plan was `kept`.
    async fn understand(
        &self,
        asked: &Arc<Asked>,
        kept: Option<Arc<Plan>>,
        state: &mut SessionState,
        parameters: Parameters,
    ) -> Result<Understood, Error> {
        let accept = |placeholders: &Placeholders| match parameters {
            Parameters::Refused if !placeholders.ids.is_empty() => {
                let names = placeholders.ids.join(", ");
                Err(Error::Invalid(format!("the statement has parameters ({names}); prepare it and bind them")))
            }
            _ => Ok(()),
        };
        if let Some(plan) = kept {
            accept(&plan.placeholders)?;
            return Ok(Understood::Plan(plan));
        }
        let (logical, placeholders) = match &asked.statement {
            Statement::Substrait(plan) => (self.planner.substrait(state, plan).await?, Placeholders::default()),
            Statement::Sql(text) => match sql::parse(text, &self.config)? {
                Parsed::Read(statement, placeholders) => {
                    accept(&placeholders)?;
                    (self.planner.logical(state, *statement).await?, placeholders)
                }
                command => return Ok(Understood::Command(command)),
            },
        };
        let plan = Arc::new(Plan::new(logical, placeholders));
        self.plans.put(asked, &plan);
        Ok(Understood::Plan(plan))
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
        let asked = asked(session, statement.clone());
        let kept = self.kept(&asked, deadline).await?;
        if let Some(described) = kept.as_ref().and_then(|plan| plan.described(&unknown)) {
            return self.open_prepared(session, statement, described);
        }
        let (engine, session) = (Arc::clone(self), session.clone());
        self.on_cpu(QueryId::new(), deadline, async move {
            let mut state = engine.state(&session.settings);
            let described = match engine.understand(&asked, kept, &mut state, Parameters::Described).await? {
                Understood::Plan(plan) => plan.describe(&unknown)?,
                Understood::Command(Parsed::Show(name)) => {
                    let schema = Some(engine.show(&session, name.as_deref())?.schema());
                    Arc::new(Described { schema, ..Described::default() })
                }
                Understood::Command(_) => Arc::default(),
            };
            engine.open_prepared(&session, statement, described)
        })
        .await
    }

    fn open_prepared(
        &self,
        session: &Session,
        statement: Statement,
        described: Arc<Described>,
    ) -> Result<Arc<Prepared>, Error> {
        let prepared = Arc::new(Prepared {
            handle: PreparedHandle::new(),
            principal: session.principal.clone(),
            session: session.id,
            statement,
            described,
            bound: Mutex::default(),
        });
        self.prepared.open(Arc::clone(&prepared))?;
        Ok(prepared)
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
        let (id, started) = (QueryId::new(), Instant::now());
        let asked = asked(session, prepared.statement.clone());
        let kept = self.kept(&asked, deadline).await?;
        // What is wrong with the parameters is said below.
        if let (Some(plan), Ok(Values { first, rows: 0 | 1, .. })) = (&kept, bound(&prepared))
            && let Some(ready) = plan.kept(&first)
        {
            let outcome = query(ready, plan.logical.snapshots());
            return Ok(self.keep(id, session, &asked.statement, outcome, started, false));
        }
        let (engine, session) = (Arc::clone(self), session.clone());
        self.on_cpu(id, deadline, async move {
            let mut state = engine.state(&session.settings);
            let outcome = match engine.understand(&asked, kept, &mut state, Parameters::Described).await? {
                Understood::Plan(plan) => bind(&state, &prepared, &plan)?,
                Understood::Command(command) => engine.command(&session, command)?,
            };
            Ok(engine.keep(id, &session, &asked.statement, outcome, started, false))
        })
        .await
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
            let Work::Query(ready) = &planned.work else { return Ok(1) };
            // Only to see how far it can be split: it is planned again when the first part is fetched.
            let fitted = launch::fit(&engine, &planned, ready, &CancellationToken::new(), Effort::InParts).await?;
            let parts = parts.min(fitted.plan.output_partitioning().partition_count());
            if parts > 1 {
                *planned.parts.lock() = Some(Arc::new(Parts::new(parts)));
            }
            Ok(parts)
        })
        .await
    }

    /// Runs `work` on the CPU runtime, within the deadline and the planning timeout, panics caught.
    pub(super) async fn on_cpu<T: Send + 'static>(
        &self,
        id: QueryId,
        deadline: Option<Instant>,
        work: impl Future<Output = Result<T, Error>> + Send + 'static,
    ) -> Result<T, Error> {
        self.refuse_when_draining()?;
        let until = self.until(deadline);
        let allowed = until.saturating_duration_since(Instant::now());
        let task = self.cpu.spawn(Lane::Light, work);
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

    fn refuse_when_draining(&self) -> Result<(), Error> {
        if self.draining.load(Ordering::Relaxed) { Err(Error::Draining) } else { Ok(()) }
    }

    /// Until when a statement that is planned now may take.
    fn until(&self, deadline: Option<Instant>) -> Instant {
        let timeout = Instant::now() + self.config.planning_timeout;
        deadline.map_or(timeout, |deadline| deadline.min(timeout))
    }

    /// `SET`, `RESET` and `SHOW`: answered here, never by DataFusion.
    fn command(&self, session: &Session, command: Parsed) -> Result<Outcome, Error> {
        let (name, value) = match command {
            Parsed::Set(name, value) => (name, Some(value)),
            Parsed::Reset(name) => (name, None),
            Parsed::Show(name) => {
                let batch = self.show(session, name.as_deref())?;
                let schema = batch.schema();
                return Ok(Outcome { work: Work::Batch(batch), schema, snapshots: 0 });
            }
            Parsed::Read(..) => unreachable!("callers plan what reads"),
        };
        // A name or value that is wrong is an error of planning, before anything is fetched.
        let defaults = self.sessions.defaults(&session.principal);
        match &value {
            Some(value) => defaults.with(&session.settings, &name, value)?,
            None => defaults.without(&session.settings, &name)?,
        };
        Ok(Outcome { work: Work::Change { name, value }, schema: Arc::new(Schema::empty()), snapshots: 0 })
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

    fn keep(
        &self,
        id: QueryId,
        session: &Session,
        statement: &Statement,
        outcome: Outcome,
        started: Instant,
        ticket_tells_all: bool,
    ) -> Arc<Planned> {
        let Outcome { work, schema, snapshots } = outcome;
        let planned = Arc::new(Planned {
            id,
            principal: session.principal.clone(),
            statement_hash: statement.fingerprint(),
            settings: Arc::clone(&session.settings),
            work,
            schema,
            snapshots,
            plan_time: started.elapsed(),
            parts: Mutex::default(),
            ticket_tells_all,
        });
        // The bound evicts, so this cannot fail.
        let _ = self.planned.insert_weighing(id, Arc::clone(&planned), planned.weight());
        planned
    }
}

/// What came of planning.
struct Outcome {
    work: Work,
    schema: SchemaRef,
    snapshots: u64,
}

fn query(ready: Arc<Ready>, snapshots: u64) -> Outcome {
    Outcome { schema: Arc::clone(&ready.schema), work: Work::Query(ready), snapshots }
}

/// What a statement is.
enum Understood {
    Plan(Arc<Plan>),
    /// `SET`, `RESET` or `SHOW`.
    Command(Parsed),
}

/// What becomes of a statement that has parameters.
#[derive(Clone, Copy)]
enum Parameters {
    Refused,
    Described,
}

fn asked(session: &Session, statement: Statement) -> Arc<Asked> {
    let (settings, principal) = (Arc::clone(&session.settings), session.principal.clone());
    Arc::new(Asked { statement, settings, principal })
}

/// The parameters of a statement.
struct Values {
    /// The first row; empty when the statement has none.
    first: Vec<ScalarValue>,
    rows: usize,
    /// `None` when the statement has none.
    bound: Option<Arc<Bound>>,
}

/// # Errors
/// `Invalid` when parameters are missing or do not fit.
fn bound(prepared: &Prepared) -> Result<Values, Error> {
    let Described { placeholders, types, .. } = &*prepared.described;
    if placeholders.ids.is_empty() {
        return Ok(Values { first: Vec::new(), rows: 0, bound: None });
    }
    let bound = prepared.bound.lock().clone();
    let batches = bound.as_ref().map_or(&[][..], |bound| &bound.batches);
    let Some(first) = batches.iter().find(|batch| batch.num_rows() > 0) else {
        let names = placeholders.ids.join(", ");
        return Err(Error::Invalid(format!("the statement has parameters ({names}) and none are bound")));
    };
    let first = params::values(placeholders, types, first, 0)?;
    let rows = batches.iter().map(RecordBatch::num_rows).sum();
    Ok(Values { first, rows, bound })
}

/// `plan` with what is bound to `prepared`.
fn bind(state: &SessionState, prepared: &Prepared, plan: &Plan) -> Result<Outcome, Error> {
    let Values { first, rows, bound } = bound(prepared)?;
    let ready = plan.ready(state, first)?;
    let outcome = query(ready, plan.logical.snapshots());
    let Some(bound) = bound.filter(|_| rows > 1) else { return Ok(outcome) };
    let Described { placeholders, types, .. } = &*prepared.described;
    let rows = BoundRows { placeholders: placeholders.clone(), types: types.clone(), bound };
    Ok(Outcome { work: Work::Each { template: Arc::new(plan.logical.plan.clone()), rows }, ..outcome })
}
