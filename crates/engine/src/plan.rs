//! SQL text and pinned tables to a planned query.

use std::collections::{HashMap, HashSet};
use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use datafusion::arrow::array::RecordBatch;
use datafusion::arrow::datatypes::{Schema, SchemaRef};
use datafusion::catalog::TableProvider;
use datafusion::catalog::view::ViewTable;
use datafusion::common::{ResolvedTableReference, TableReference};
use datafusion::datasource::empty::EmptyTable;
use datafusion::error::DataFusionError;
use datafusion::execution::SessionState;
use datafusion::logical_expr::LogicalPlan;
use datafusion::sql::parser::Statement as DfStatement;
use parking_lot::Mutex;
use tracing::warn;
use updraft_auth::Principal;
use updraft_catalog::{Catalog, Relation, Version};

use crate::config::Config;
use crate::error::Error;
use crate::footprint;
use crate::names::{Finder, Names};
use crate::parts::Parts;
use crate::plan_cache::{Ready, weight_of};
use crate::prepared::Bound;
use crate::query::QueryId;
use crate::settings::Settings;
use crate::sql;

/// What a planned query takes beside its plans.
const ENTRY_BYTES: usize = 1 << 10;

/// How deep views may use views.
const VIEW_DEPTH_MAX: usize = 32;

/// What a client wants to run.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Statement {
    /// SQL text.
    Sql(Arc<str>),
    /// A serialized Substrait plan.
    Substrait(Bytes),
}

impl Statement {
    /// How long it is.
    pub(crate) fn bytes(&self) -> usize {
        match self {
            Self::Sql(text) => text.len(),
            Self::Substrait(plan) => plan.len(),
        }
    }

    /// For the log: tells equal statements without showing them.
    pub(crate) fn fingerprint(&self) -> u64 {
        let mut hasher = std::hash::DefaultHasher::new();
        match self {
            Self::Sql(text) => text.hash(&mut hasher),
            Self::Substrait(plan) => plan.hash(&mut hasher),
        }
        hasher.finish()
    }
}

/// A query that is ready to run, on tables that are pinned.
#[derive(Debug)]
pub struct Planned {
    pub(crate) id: QueryId,
    pub(crate) principal: Principal,
    pub(crate) statement_hash: u64,
    pub(crate) settings: Arc<Settings>,
    pub(crate) work: Work,
    pub(crate) schema: SchemaRef,
    pub(crate) snapshots: u64,
    pub(crate) plan_time: Duration,
    pub(crate) parts: Mutex<Option<Arc<Parts>>>,
    /// Whether its ticket says all that it takes to plan it again: what is bound to a statement it does not.
    pub(crate) ticket_tells_all: bool,
}

/// What running a planned query means.
#[derive(Debug)]
pub(crate) enum Work {
    /// Run this plan.
    Query(Arc<Ready>),
    /// Run `template` once for each row of `rows`, one after the other.
    Each { template: Arc<LogicalPlan>, rows: BoundRows },
    /// Return this.
    Batch(RecordBatch),
    /// Change a session setting; `None` = back to the server's value.
    Change { name: String, value: Option<String> },
}

/// Parameters for several runs of one plan.
#[derive(Debug)]
pub(crate) struct BoundRows {
    pub(crate) placeholders: sql::Placeholders,
    pub(crate) types: crate::params::Types,
    pub(crate) bound: Arc<Bound>,
}

impl Planned {
    /// The id that a run of it will have.
    pub fn id(&self) -> QueryId {
        self.id
    }

    /// Who had it planned; nobody else may run it.
    pub fn principal(&self) -> &Principal {
        &self.principal
    }

    /// The schema of its result, as DataFusion has it.
    pub fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    /// A number that differs, but for chance, when any table it reads differs.
    pub fn snapshots(&self) -> u64 {
        self.snapshots
    }

    /// The settings it was planned with.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// How long planning took.
    pub fn plan_time(&self) -> Duration {
        self.plan_time
    }

    /// What it will read, in bytes and rows, as far as its tables tell; zero for what reads no table.
    pub fn scan_size(&self) -> (u64, Option<u64>) {
        match &self.work {
            Work::Query(ready) => (ready.size.bytes, ready.size.rows),
            Work::Each { template, .. } => {
                footprint::scan_size(template).map_or((0, None), |size| (size.bytes, size.rows))
            }
            Work::Batch(_) | Work::Change { .. } => (0, Some(0)),
        }
    }

    /// Bytes that it takes while it waits for its client, about.
    pub(crate) fn weight(&self) -> usize {
        let plans = match &self.work {
            Work::Query(ready) => ready.weight,
            Work::Each { template, .. } => weight_of(template),
            Work::Batch(batch) => batch.get_array_memory_size(),
            Work::Change { .. } => 0,
        };
        plans.saturating_add(ENTRY_BYTES)
    }

    /// Whether nothing is lost but time when it is dropped: it has rows of nobody, and nobody has fetched a part of it.
    pub(crate) fn can_be_planned_again(&self) -> bool {
        self.ticket_tells_all && self.parts.lock().is_none()
    }

    /// Whether its result is there without computing.
    pub(crate) fn is_at_hand(&self) -> bool {
        match &self.work {
            Work::Query(ready) => ready.again().is_some_and(|again| again.is_at_hand()),
            Work::Each { .. } => false,
            Work::Batch(_) | Work::Change { .. } => true,
        }
    }

    /// Whether running it changes the session and returns nothing.
    pub fn is_change(&self) -> bool {
        matches!(self.work, Work::Change { .. })
    }
}

/// A logical plan, not optimized, and what it was made on.
#[derive(Debug, Clone)]
pub(crate) struct Logical {
    pub(crate) plan: LogicalPlan,
    /// `None` for what lists all there is.
    pub(crate) versions: Option<Arc<Versions>>,
    /// How many files its tables have.
    pub(crate) files: usize,
}

impl Logical {
    /// A number that differs, but for chance, when any table it reads differs.
    pub(crate) fn snapshots(&self) -> u64 {
        self.versions.as_ref().map_or(0, |versions| versions.fingerprint())
    }
}

/// What the names in a statement, and in the views it uses, stood for. Equal versions read equal rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Versions {
    /// Sorted, each once.
    names: Vec<ResolvedTableReference>,
    /// `None` for a function, which a table of that name would hide.
    of: Vec<Option<Version>>,
}

impl Versions {
    fn new(mut versions: Vec<(ResolvedTableReference, Option<Version>)>) -> Self {
        versions.sort_unstable();
        versions.dedup();
        let (names, of) = versions.into_iter().unzip();
        Self { names, of }
    }

    fn fingerprint(&self) -> u64 {
        let mut hasher = std::hash::DefaultHasher::new();
        (&self.names, &self.of).hash(&mut hasher);
        hasher.finish()
    }
}

/// What planning needs.
#[derive(Debug, Clone)]
pub(crate) struct Planner {
    pub(crate) config: Arc<Config>,
    pub(crate) catalog: Arc<Catalog>,
}

/// The tables of a statement.
struct Pinned {
    tables: HashMap<ResolvedTableReference, Arc<dyn TableProvider>>,
    schemas: Vec<String>,
    versions: Vec<(ResolvedTableReference, Option<Version>)>,
    /// How many files the tables have.
    files: usize,
}

impl Planner {
    /// Plans `statement` on the tables it names as they are now.
    ///
    /// # Errors
    /// `NotFound` for a table; what the catalog says of a table; what DataFusion says of the statement.
    pub(crate) async fn logical(&self, state: &mut SessionState, statement: DfStatement) -> Result<Logical, Error> {
        let references = state.resolve_table_references(&statement)?;
        let names = resolved(&references, state);
        let all = names.iter().any(|name| &*name.schema == "information_schema");
        let pinned = if all { self.pin_all(state).await? } else { self.pin(state, &names, Missing::IsAnError).await? };
        // What is listed is what there is at the time: not part of any ticket's promise.
        let versions = (!all).then(|| Arc::new(Versions::new(pinned.versions)));
        let files = pinned.files;
        state.register_catalog_list(Arc::new(Names::new(pinned.tables, pinned.schemas, None)));
        let plan = state.statement_to_plan(statement).await?;
        sql::check_plan(&plan)?;
        Ok(Logical { plan, versions, files })
    }

    /// Whether all names still stand for what they did. If one cannot be looked at, planning anew will say why.
    pub(crate) async fn is_current(&self, versions: &Versions) -> bool {
        versions.names.is_empty() || self.catalog.versions(&versions.names).await.is_ok_and(|now| now == versions.of)
    }

    /// Plans a Substrait plan, finding tables as the plan names them.
    pub(crate) async fn substrait(&self, state: &mut SessionState, plan: &Bytes) -> Result<Logical, Error> {
        let finder = Arc::new(Finding { planner: self.clone(), state: state.clone(), found: Mutex::default() });
        let schemas = self.catalog.list().await?.into_iter().map(|listed| listed.schema).collect::<HashSet<_>>();
        let schemas = schemas.into_iter().chain([updraft_catalog::SCHEMA.to_owned()]);
        state.register_catalog_list(Arc::new(Names::new([], schemas, Some(Arc::clone(&finder) as _))));
        let plan = crate::substrait::plan(state, plan).await?;
        sql::check_plan(&plan)?;
        let found = std::mem::take(&mut *finder.found.lock());
        Ok(Logical { plan, versions: Some(Arc::new(Versions::new(found.versions))), files: found.files })
    }

    /// The tables and views of `names`, each pinned, views planned.
    async fn pin(
        &self,
        state: &SessionState,
        names: &[ResolvedTableReference],
        missing: Missing,
    ) -> Result<Pinned, Error> {
        let mut tables = HashMap::new();
        let (mut versions, mut files) = (Vec::new(), 0);
        let mut views = Vec::new();
        // Functions that return tables stand where tables do, as in `FROM generate_series(1, 9)`.
        let mut functions = HashSet::new();
        let mut seen: HashSet<ResolvedTableReference> = names.iter().cloned().collect();
        let mut wanted = names.to_vec();
        for _ in 0..=VIEW_DEPTH_MAX {
            if wanted.is_empty() {
                break;
            }
            let mut relations = self.catalog.resolve(&wanted, state).await?;
            let mut next = Vec::new();
            for name in std::mem::take(&mut wanted) {
                let relation = relations.remove(&name);
                versions.push((name.clone(), relation.as_ref().map(Relation::version)));
                match relation {
                    Some(Relation::Table(snapshot)) => {
                        files += snapshot.files();
                        tables.insert(name, snapshot.provider());
                    }
                    Some(Relation::View { sql }) => {
                        let statement = sql::parse_view(&sql, &self.config).map_err(|error| in_view(&name, &error))?;
                        let uses = resolved(&state.resolve_table_references(&statement)?, state);
                        next.extend(uses.iter().filter(|used| seen.insert((*used).clone())).cloned());
                        views.push((name, sql, statement, uses));
                    }
                    // A table of that name would come first.
                    None if state.table_functions().contains_key(&*name.table) => _ = functions.insert(name),
                    None if missing == Missing::IsAnError => return Err(not_found(&name)),
                    None => {}
                }
            }
            wanted = next;
        }
        if !wanted.is_empty() {
            return Err(Error::Invalid(format!("views use views more than {VIEW_DEPTH_MAX} deep")));
        }
        for (.., uses) in &mut views {
            uses.retain(|used| !functions.contains(used));
        }
        self.plan_views(state, views, &mut tables).await?;
        let schemas = tables.keys().map(|name| name.schema.to_string()).collect();
        Ok(Pinned { tables, schemas, versions, files })
    }

    /// Plans views in the order in which they use each other.
    async fn plan_views(
        &self,
        state: &SessionState,
        mut views: Vec<(ResolvedTableReference, String, DfStatement, Vec<ResolvedTableReference>)>,
        tables: &mut HashMap<ResolvedTableReference, Arc<dyn TableProvider>>,
    ) -> Result<(), Error> {
        while !views.is_empty() {
            let (ready, waiting): (Vec<_>, Vec<_>) =
                views.into_iter().partition(|(.., uses)| uses.iter().all(|used| tables.contains_key(used)));
            if ready.is_empty() {
                let names: Vec<_> = waiting.iter().map(|(name, ..)| name.table.to_string()).collect();
                return Err(Error::Invalid(format!("views use each other in a circle: {}", names.join(", "))));
            }
            for (name, sql, statement, _) in ready {
                let mut state = state.clone();
                let known = tables.iter().map(|(name, table)| (name.clone(), Arc::clone(table)));
                state.register_catalog_list(Arc::new(Names::new(known, [], None)));
                let plan = state.statement_to_plan(statement).await.map_err(|error| in_view(&name, &error.into()))?;
                sql::check_plan(&plan).map_err(|error| in_view(&name, &error))?;
                tables.insert(name, Arc::new(ViewTable::new(plan, Some(sql))));
            }
            views = waiting;
        }
        Ok(())
    }

    /// Every table there is, for `information_schema`. One that cannot be read is listed without columns:
    /// a broken file must not hide the others.
    async fn pin_all(&self, state: &SessionState) -> Result<Pinned, Error> {
        let listed = self.catalog.list().await?;
        let mut tables = HashMap::new();
        let mut schemas: HashSet<String> = [updraft_catalog::SCHEMA.to_owned()].into();
        let names: Vec<_> = listed.iter().map(|listed| reference(&listed.schema, &listed.name)).collect();
        schemas.extend(listed.into_iter().map(|listed| listed.schema));
        match self.pin(state, &names, Missing::IsFine).await {
            Ok(pinned) => tables = pinned.tables,
            // Something is broken: find out what, one by one.
            Err(_) => {
                for name in names {
                    let table = self.pin_one(state, &name).await;
                    tables.insert(name, table.unwrap_or_else(|| Arc::new(EmptyTable::new(Arc::new(Schema::empty())))));
                }
            }
        }
        Ok(Pinned { tables, schemas: schemas.into_iter().collect(), versions: Vec::new(), files: 0 })
    }

    /// One table or view; `None`, with a warning in the log, when it cannot be read.
    async fn pin_one(&self, state: &SessionState, name: &ResolvedTableReference) -> Option<Arc<dyn TableProvider>> {
        match self.pin(state, std::slice::from_ref(name), Missing::IsFine).await {
            Ok(mut pinned) => pinned.tables.remove(name),
            Err(error) => {
                warn!(table = %name.table, %error, "table cannot be read");
                None
            }
        }
    }

    /// The columns of the tables `names`, in their order; `None` where a table cannot be read.
    pub(crate) async fn columns(
        &self,
        state: &SessionState,
        names: &[ResolvedTableReference],
    ) -> Vec<Option<SchemaRef>> {
        let mut columns = Vec::with_capacity(names.len());
        let pinned = self.pin(state, names, Missing::IsFine).await.ok();
        for name in names {
            let table = match &pinned {
                Some(pinned) => pinned.tables.get(name).cloned(),
                None => self.pin_one(state, name).await,
            };
            columns.push(table.map(|table| table.schema()));
        }
        columns
    }
}

/// Whether a name without a table is the end of planning.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Missing {
    IsAnError,
    IsFine,
}

/// Finds the tables of a Substrait plan as the plan is read.
#[derive(Debug)]
struct Finding {
    planner: Planner,
    state: SessionState,
    found: Mutex<Found>,
}

#[derive(Debug, Default)]
struct Found {
    versions: Vec<(ResolvedTableReference, Option<Version>)>,
    files: usize,
}

#[async_trait::async_trait]
impl Finder for Finding {
    async fn find(&self, name: &ResolvedTableReference) -> Result<Option<Arc<dyn TableProvider>>, Error> {
        let mut pinned = self.planner.pin(&self.state, std::slice::from_ref(name), Missing::IsAnError).await?;
        let mut found = self.found.lock();
        found.versions.append(&mut pinned.versions);
        found.files += pinned.files;
        drop(found);
        Ok(pinned.tables.remove(name))
    }
}

/// The name of a table in the one catalog there is.
pub(crate) fn reference(schema: &str, table: &str) -> ResolvedTableReference {
    ResolvedTableReference { catalog: updraft_catalog::CATALOG.into(), schema: schema.into(), table: table.into() }
}

fn resolved(references: &[TableReference], state: &SessionState) -> Vec<ResolvedTableReference> {
    let catalog = &state.config_options().catalog;
    let mut names: Vec<_> =
        references.iter().map(|name| name.clone().resolve(&catalog.default_catalog, &catalog.default_schema)).collect();
    names.sort_unstable_by(|a, b| (&a.schema, &a.table).cmp(&(&b.schema, &b.table)));
    names.dedup();
    names
}

fn not_found(name: &ResolvedTableReference) -> Error {
    let shown = if &*name.catalog != updraft_catalog::CATALOG {
        format!("{}.{}.{}", name.catalog, name.schema, name.table)
    } else if &*name.schema != updraft_catalog::SCHEMA {
        format!("{}.{}", name.schema, name.table)
    } else {
        name.table.to_string()
    };
    Error::NotFound { what: "table", name: shown, hint: "SHOW TABLES lists those you may read" }
}

fn in_view(name: &ResolvedTableReference, error: &Error) -> Error {
    Error::DataFusion(DataFusionError::Plan(format!("view \"{}\": {error}", name.table)))
}
