//! What an operator may ask of the cache of hot tables and of the object stores.

use std::sync::Arc;

use updraft_catalog::{MetadataStatistics, Relation, StoreFigures, split_name};
use updraft_hot::{Cache, PreloadError, Table};

use super::Engine;
use crate::admission::Lane;
use crate::error::Error;
use crate::plan::reference;
use crate::query::QueryId;

impl Engine {
    /// The cache of hot tables, when it is on (`hot.memory_limit`).
    pub fn hot(&self) -> Option<&Arc<Cache>> {
        self.planner.catalog.hot()
    }

    /// What was asked of each bucket or web server, with its URL.
    pub fn stores(&self) -> Vec<(String, StoreFigures)> {
        self.planner.catalog.stores()
    }

    /// What is kept of what is known about files (`catalog.metadata_cache`).
    pub fn metadata(&self) -> MetadataStatistics {
        self.planner.catalog.metadata()
    }

    /// Loads `tables` (`name` or `schema.name`) into the cache of hot tables, as they are now.
    ///
    /// # Errors
    /// `NotFound`; `Invalid` for a view, and for a table that is not Parquet; `Exhausted` when they do not fit, before
    /// anything is loaded; `Unsupported` when the cache is off; what reading the files gives.
    pub async fn preload(self: &Arc<Self>, tables: &[String]) -> Result<(), Error> {
        let Some(cache) = self.hot().cloned() else {
            return Err(Error::Unsupported("the cache of hot tables is off; set hot.memory_limit".to_owned()));
        };
        let (engine, tables) = (Arc::clone(self), tables.to_vec());
        let loading = async move {
            let tables = engine.hot_tables(&tables).await?;
            cache.preload(&tables).await.map_err(|error| match error {
                PreloadError::TooLarge { .. } => Error::Exhausted(error.to_string()),
                // It names table and file.
                PreloadError::Load { source, .. } => source.into(),
            })
        };
        self.of_operator(Lane::Heavy, loading).await
    }

    /// Lets go of what the cache of hot tables has of `table` (`name` or `schema.name`), also when there is no such table
    /// any more. Returns how many bytes that is.
    ///
    /// # Errors
    /// When it has nothing of it: as [`Self::preload`], so that a misspelt name is noticed.
    pub async fn evict(self: &Arc<Self>, table: &str) -> Result<u64, Error> {
        let (schema, name) = split_name(table);
        let freed = self.hot().map_or(0, |cache| cache.evict(&format!("{schema}.{name}")));
        if freed == 0 && self.hot().is_some() {
            let (engine, table) = (Arc::clone(self), table.to_owned());
            self.of_operator(Lane::Light, async move { engine.hot_tables(&[table]).await.map(drop) }).await?;
        }
        Ok(freed)
    }

    /// Does `work`, which is no query's, on the CPU runtime.
    async fn of_operator(
        &self,
        lane: Lane,
        work: impl Future<Output = Result<(), Error>> + Send + 'static,
    ) -> Result<(), Error> {
        let done = self.cpu.spawn(lane, work).await;
        done.map_err(|join| Error::Panicked { query: QueryId::new(), message: join.to_string() })?
    }

    async fn hot_tables(&self, names: &[String]) -> Result<Vec<Table>, Error> {
        let references = names.iter().map(|name| split_name(name)).map(|(schema, name)| reference(schema, name));
        let references: Vec<_> = references.collect();
        let resolved = self.planner.catalog.resolve(&references, &self.template).await?;
        let tables = names.iter().zip(&references).map(|(name, reference)| match resolved.get(reference) {
            None => Err(Error::NotFound { what: "table", name: name.clone(), hint: "SHOW TABLES lists all" }),
            Some(Relation::View { .. }) => {
                Err(Error::Invalid(format!("{name:?} is a view: name the tables that it reads")))
            }
            Some(Relation::Table(snapshot)) => snapshot.hot().ok_or_else(|| {
                Error::Invalid(format!("table {name:?} is not Parquet, and only Parquet is kept in memory"))
            }),
        });
        tables.collect()
    }
}
