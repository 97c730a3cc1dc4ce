//! The crate as a whole: files in a folder of the test's own, queries through a plain DataFusion session.
#![allow(clippy::unwrap_used)]

mod cold;
mod fresh;
mod hot;
mod names;
mod reading;
mod reads;
mod remote;
mod scan;

use std::collections::HashMap;
use std::error::Error as StdError;
use std::path::PathBuf;
use std::sync::Arc;

use datafusion::arrow::array::RecordBatch;
use datafusion::arrow::datatypes as arrow_schema;
use datafusion::arrow::util::pretty::pretty_format_batches;
use datafusion::catalog::MemorySchemaProvider;
use datafusion::common::ResolvedTableReference;
use datafusion::execution::runtime_env::RuntimeEnvBuilder;
use datafusion::parquet::arrow::ArrowWriter;
use datafusion::parquet::file::properties::WriterProperties;
use datafusion::prelude::{SessionConfig, SessionContext};
use tempfile::TempDir;
use tokio::runtime::Handle;

use crate::{CATALOG, Catalog, Config, Error, ErrorKind, Relation, SCHEMA, Snapshot, Version, find};

type Anything = Box<dyn StdError + Send + Sync>;

/// A folder, and the catalog over it.
struct Fixture {
    dir: TempDir,
    config: Config,
}

impl Fixture {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let config = Config { data: vec![dir.path().to_str().unwrap().to_owned()], ..Config::default() };
        Self { dir, config }
    }

    fn path(&self, rel: &str) -> PathBuf {
        self.dir.path().join(rel)
    }

    fn write(&self, rel: &str, bytes: impl AsRef<[u8]>) -> &Self {
        let path = self.path(rel);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        // As a careful writer does: the new file takes the place of the old one at once.
        let new = path.with_extension("new");
        std::fs::write(&new, bytes).unwrap();
        std::fs::rename(new, path).unwrap();
        self
    }

    fn parquet(&self, rel: &str, batch: &RecordBatch) -> &Self {
        self.write(rel, parquet_bytes(batch, 1024))
    }

    async fn open(&self) -> Catalog {
        self.try_open().await.unwrap_or_else(|errors| panic!("{errors:?}"))
    }

    async fn try_open(&self) -> Result<Catalog, Vec<Error>> {
        Catalog::open(self.config.clone(), Handle::current()).await
    }
}

fn parquet_bytes(batch: &RecordBatch, rows_per_group: usize) -> Vec<u8> {
    let properties = WriterProperties::builder().set_max_row_group_row_count(Some(rows_per_group)).build();
    let mut bytes = Vec::new();
    let mut writer = ArrowWriter::try_new(&mut bytes, batch.schema(), Some(properties)).unwrap();
    writer.write(batch).unwrap();
    writer.close().unwrap();
    bytes
}

fn session(catalog: &Catalog) -> SessionContext {
    let config = SessionConfig::new().with_default_catalog_and_schema(CATALOG, SCHEMA).with_target_partitions(3);
    session_with(catalog, config)
}

fn session_with(catalog: &Catalog, config: SessionConfig) -> SessionContext {
    let runtime = RuntimeEnvBuilder::new().with_object_store_registry(catalog.object_stores()).build_arc().unwrap();
    SessionContext::new_with_config_rt(config, runtime)
}

fn name(schema: &str, table: &str) -> ResolvedTableReference {
    ResolvedTableReference { catalog: CATALOG.into(), schema: schema.into(), table: table.into() }
}

async fn resolve(
    catalog: &Catalog,
    names: &[ResolvedTableReference],
) -> Result<HashMap<ResolvedTableReference, Relation>, Error> {
    catalog.resolve(names, &session(catalog).state()).await
}

async fn snapshot(catalog: &Catalog, table: &str) -> Result<Arc<Snapshot>, Error> {
    let (schema, table) = crate::split_name(table);
    let name = name(schema, table);
    match resolve(catalog, std::slice::from_ref(&name)).await?.remove(&name) {
        Some(Relation::Table(snapshot)) => Ok(snapshot),
        other => panic!("{name} is {other:?}"),
    }
}

/// A session in which the tables that `sql` names are registered, as the engine does it.
async fn prepared(catalog: &Catalog, ctx: SessionContext, sql: &str) -> Result<SessionContext, Anything> {
    let state = ctx.state();
    let statement = state.sql_to_statement(sql, &datafusion::config::Dialect::Generic)?;
    let names = state.resolve_table_references(&statement)?;
    let names: Vec<_> = names.into_iter().map(|name| name.resolve(CATALOG, SCHEMA)).collect();
    for (name, relation) in catalog.resolve(&names, &state).await? {
        let Relation::Table(snapshot) = relation else { continue };
        let in_catalog = ctx.catalog(CATALOG).unwrap();
        if in_catalog.schema(&name.schema).is_none() {
            in_catalog.register_schema(&name.schema, Arc::new(MemorySchemaProvider::new()))?;
        }
        in_catalog.schema(&name.schema).unwrap().register_table(name.table.to_string(), snapshot.provider())?;
    }
    Ok(ctx)
}

async fn rows(catalog: &Catalog, sql: &str) -> Result<Vec<RecordBatch>, Anything> {
    let ctx = prepared(catalog, session(catalog), sql).await?;
    Ok(ctx.sql(sql).await?.collect().await?)
}

/// The answer as lines of values separated by a space.
async fn query(catalog: &Catalog, sql: &str) -> Result<Vec<String>, Anything> {
    let table = pretty_format_batches(&rows(catalog, sql).await?)?.to_string();
    let lines = table.lines().skip(3).filter(|line| line.starts_with('|'));
    let cells = |line: &str| line.trim_matches('|').split('|').map(|c| c.trim().to_owned()).collect::<Vec<_>>();
    Ok(lines.map(|line| cells(line).join(" ")).collect())
}

async fn answer(catalog: &Catalog, sql: &str) -> Vec<String> {
    query(catalog, sql).await.unwrap_or_else(|e| panic!("{sql}: {e}"))
}

/// The kind and the text of the error that a query ends with.
async fn failure(catalog: &Catalog, sql: &str) -> (Option<ErrorKind>, String) {
    let error = query(catalog, sql).await.expect_err(sql);
    (find(error.as_ref()), error.to_string())
}

/// The physical plan.
async fn explain(catalog: &Catalog, sql: &str) -> String {
    let ctx = prepared(catalog, session(catalog), sql).await.unwrap();
    let plan = ctx.sql(sql).await.unwrap().create_physical_plan().await.unwrap();
    datafusion::physical_plan::displayable(plan.as_ref()).indent(true).to_string()
}
