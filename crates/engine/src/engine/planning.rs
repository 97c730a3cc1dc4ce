//! Statements and prepared statements to planned queries.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use datafusion::arrow::array::{ArrayRef, RecordBatch, StringArray};
use datafusion::arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::execution::SessionState;
use datafusion::physical_plan::ExecutionPlanProperties;
use parking_lot::Mutex;
use tokio::sync::OnceCell;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::Engine;
use crate::admission::Lane;
use crate::error::Error;
use crate::launch::{self, Effort};
use crate::params;
use crate::plan::{BoundRows, Logical, Planned, Statement, Work};
use crate::prepared::{Prepared, PreparedHandle};
use crate::query::QueryId;
use crate::run::Parts;
use crate::session::Session;
use crate::sql::{self, Parsed, Placeholders};

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
                    (engine.planner.substrait(&mut state, plan).await?, Placeholders::default())
                }
                Statement::Sql(text) => match sql::parse(text, &engine.config)? {
                    Parsed::Read(statement, placeholders) => {
                        (engine.planner.logical(&mut state, *statement).await?, placeholders)
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
            // The parts are run by several streams; each is cancelled by itself.
            let fitted = launch::fit(&engine, &planned, plan, &CancellationToken::new(), Effort::Usual).await?;
            let of = parts.min(fitted.plan.output_partitioning().partition_count());
            if of > 1 {
                let claimed = Mutex::new(vec![false; of]);
                *planned.parts.lock() = Some(Arc::new(Parts { fitted, of, claimed, turn: OnceCell::new() }));
            }
            Ok(of)
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
        if self.draining.load(Ordering::Relaxed) {
            return Err(Error::Draining);
        }
        let timeout = Instant::now() + self.config.planning_timeout;
        let until = deadline.map_or(timeout, |deadline| deadline.min(timeout));
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
        let defaults = self.sessions.defaults(&session.principal);
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
