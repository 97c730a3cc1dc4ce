//! Pinned tables as the catalog that one statement is planned against.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use datafusion::catalog::{CatalogProvider, CatalogProviderList, SchemaProvider, TableProvider};
use datafusion::common::ResolvedTableReference;
use datafusion::common::Result;
use datafusion::error::DataFusionError;
use parking_lot::Mutex;

/// Finds tables that are not pinned yet, while a plan is being read that does not name them up front.
#[async_trait]
pub(crate) trait Finder: fmt::Debug + Send + Sync {
    async fn find(&self, name: &ResolvedTableReference) -> Result<Option<Arc<dyn TableProvider>>, crate::Error>;
}

/// The tables of one statement, under their names.
#[derive(Debug)]
pub(crate) struct Names {
    catalog: Arc<PinnedCatalog>,
}

#[derive(Debug)]
struct PinnedCatalog {
    schemas: HashMap<String, Arc<PinnedSchema>>,
}

#[derive(Debug)]
struct PinnedSchema {
    name: String,
    tables: Mutex<HashMap<String, Arc<dyn TableProvider>>>,
    finder: Option<Arc<dyn Finder>>,
}

impl Names {
    /// Names of `tables`, and of the `schemas` even where they have no table here.
    pub(crate) fn new(
        tables: impl IntoIterator<Item = (ResolvedTableReference, Arc<dyn TableProvider>)>,
        schemas: impl IntoIterator<Item = String>,
        finder: Option<Arc<dyn Finder>>,
    ) -> Self {
        let mut by_schema: HashMap<String, HashMap<String, Arc<dyn TableProvider>>> = HashMap::new();
        for schema in schemas {
            by_schema.entry(schema).or_default();
        }
        for (name, table) in tables {
            let schema = by_schema.entry(name.schema.to_string()).or_default();
            schema.insert(name.table.to_string(), table);
        }
        let schemas = by_schema.into_iter().map(|(name, tables)| {
            let schema = PinnedSchema { name: name.clone(), tables: Mutex::new(tables), finder: finder.clone() };
            (name, Arc::new(schema))
        });
        Self { catalog: Arc::new(PinnedCatalog { schemas: schemas.collect() }) }
    }
}

impl CatalogProviderList for Names {
    fn register_catalog(&self, _: String, _: Arc<dyn CatalogProvider>) -> Option<Arc<dyn CatalogProvider>> {
        None
    }

    fn catalog_names(&self) -> Vec<String> {
        vec![updraft_catalog::CATALOG.to_owned()]
    }

    fn catalog(&self, name: &str) -> Option<Arc<dyn CatalogProvider>> {
        (name == updraft_catalog::CATALOG).then(|| Arc::clone(&self.catalog) as _)
    }
}

impl CatalogProvider for PinnedCatalog {
    fn schema_names(&self) -> Vec<String> {
        let mut names: Vec<_> = self.schemas.keys().cloned().collect();
        names.sort_unstable();
        names
    }

    fn schema(&self, name: &str) -> Option<Arc<dyn SchemaProvider>> {
        self.schemas.get(name).map(|schema| Arc::clone(schema) as _)
    }
}

#[async_trait]
impl SchemaProvider for PinnedSchema {
    fn table_names(&self) -> Vec<String> {
        let mut names: Vec<_> = self.tables.lock().keys().cloned().collect();
        names.sort_unstable();
        names
    }

    async fn table(&self, name: &str) -> Result<Option<Arc<dyn TableProvider>>> {
        let known = self.tables.lock().get(name).cloned();
        let (None, Some(finder)) = (&known, &self.finder) else {
            return Ok(known);
        };
        let reference = ResolvedTableReference {
            catalog: updraft_catalog::CATALOG.into(),
            schema: self.name.as_str().into(),
            table: name.into(),
        };
        let found = finder.find(&reference).await.map_err(|error| DataFusionError::External(Box::new(error)))?;
        if let Some(table) = &found {
            self.tables.lock().insert(name.to_owned(), Arc::clone(table));
        }
        Ok(found)
    }

    fn table_exist(&self, name: &str) -> bool {
        self.tables.lock().contains_key(name)
    }
}
