//! Names to pinned table snapshots.
//!
//! A query names tables; [`Catalog::resolve`] answers with [`Snapshot`]s: one list of files, their schema and statistics, and
//! a store that serves those files as they were. Planning, statistics and scan all use that list, so a query sees one
//! version of each table from start to end, and the next query sees what has changed since.
//!
//! Never: SQL (views are text here), who may read what, state of a query, a write to any store, and no path or URL that
//! is not below a configured location: DataFusion's registry is given the live snapshots and nothing else.
//!
//! - `config`: the settings of section `catalog`; `types`: type names in them
//! - `stores`: locations and clients; `files`: listing; `discover`: which tables are below a root (the rule is there)
//! - `definition`: a table's files now; `formats`: names to formats; `partitions`: columns from `key=value` folders
//! - `snapshot`: files to schema and statistics; `facts`: what each of them tells; `schema`: the union of their columns;
//!   `cache`: what is known of files, `metadata`: how much of that
//! - `stored`: how large the parts of a table are
//! - `remote`: reads of object stores: `ranges` says by which requests, `requests` when and how often, `ahead` what
//!   before it is needed, `follow` for a scan that does not say what that is
//! - `pinned`: the store that serves only what was pinned; `local`: ranges of files on disk; `error`: what goes wrong, by kind
//! - `table`: the provider; `footers`, `named`: Parquet; `source`, `text`, `ipc`, `avro`: the other formats
//! - `hot`: how the cache of hot columns (crate `updraft-hot`) reads a pinned file

mod ahead;
mod avro;
mod cache;
mod config;
mod definition;
mod discover;
mod error;
mod facts;
mod files;
mod follow;
mod footers;
mod formats;
mod hot;
mod ipc;
mod local;
mod metadata;
mod named;
mod partitions;
mod pinned;
mod ranges;
mod remote;
mod requests;
mod schema;
mod snapshot;
mod source;
mod stored;
mod stores;
mod table;
#[cfg(test)]
mod tests;
mod text;
mod types;

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use datafusion::catalog::Session;
use datafusion::common::ResolvedTableReference;
use datafusion::execution::object_store::ObjectStoreRegistry;
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio_util::task::AbortOnDropHandle;

pub use cache::{Cache, Lookups};
pub use config::{Column, Compression, Config, Format, StoreConfig, TableConfig};
pub use error::{Clash, Error, ErrorKind, find};
pub use metadata::{CacheStatistics, MetadataStatistics};
pub use requests::StoreFigures;
pub use snapshot::{Snapshot, SnapshotId};
pub use stored::{Stored, StoredColumn};
pub use table::{outlook, stored};

use ahead::Room;
use definition::{Definition, Member, Places};
use discover::{Candidate, candidates};
use files::Listing;
use footers::Footers;
use snapshot::{Workshop, id_of};
use stores::{Backend, Root, Stores};

/// Name of the one catalog.
pub const CATALOG: &str = "updraft";
/// Name of the default schema.
pub const SCHEMA: &str = "public";

/// What is read ahead when nobody says how much, in bytes.
const PREFETCH: u64 = 64 << 20;
/// Tables of which the last snapshot is kept; at the bound all are dropped, and made anew when asked for.
const TABLES_MAX: usize = 4096;
/// Files of a table whose footers are read before it is asked for: more are too much for the threads that only move bytes.
const BEGUN_FILES_MAX: usize = 32;

/// Names to pinned table snapshots. Shared by all queries.
#[derive(Debug)]
pub struct Catalog {
    roots: Vec<Arc<Root>>,
    tables: BTreeMap<Name, Definition>,
    views: BTreeMap<Name, String>,
    listing: Listing,
    workshop: Arc<Workshop>,
    /// The last snapshot of each table, used again as long as its files are the same.
    current: Mutex<HashMap<Name, Arc<Slot>>>,
    /// The clients of the stores, which locations share.
    stores: Stores,
}

/// Schema and name.
type Name = (String, String);

#[derive(Debug, Default)]
struct Slot {
    snapshot: Mutex<Option<Arc<Snapshot>>>,
    /// Held while a snapshot is made, so that a hundred queries on a cold table read its footers once.
    making: tokio::sync::Mutex<()>,
    /// The snapshot that was begun when the files were found to have changed.
    begun: Mutex<Option<AbortOnDropHandle<()>>>,
}

impl Slot {
    fn kept(&self, id: SnapshotId) -> Option<Arc<Snapshot>> {
        self.snapshot.lock().clone().filter(|snapshot| snapshot.id() == id)
    }

    /// Puts `snapshot` in the place of the last one, of which only the files that it shares stay hot.
    fn keep(&self, snapshot: &Arc<Snapshot>) {
        let before = self.snapshot.lock().replace(snapshot.clone());
        if let Some(before) = before {
            before.end(Some(snapshot));
        }
    }
}

/// What a name stands for.
#[derive(Debug, Clone)]
pub enum Relation {
    /// A table, pinned.
    Table(Arc<Snapshot>),
    /// A view.
    View {
        /// SQL text of its query, as configured.
        sql: String,
    },
}

/// Which version of a table or view a name stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Version {
    /// A table of these files.
    Table(SnapshotId),
    /// A view of this text, hashed.
    View(u64),
}

impl Relation {
    /// Which version this is.
    pub fn version(&self) -> Version {
        match self {
            Self::Table(snapshot) => Version::Table(snapshot.id()),
            Self::View { sql } => view_version(sql),
        }
    }
}

fn view_version(sql: &str) -> Version {
    let mut hash = DefaultHasher::new();
    sql.hash(&mut hash);
    Version::View(hash.finish())
}

/// Table or view.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// A table.
    Table,
    /// A view.
    View,
}

/// A name in the catalog.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Listed {
    /// Schema.
    pub schema: String,
    /// Name.
    pub name: String,
    /// Table or view.
    pub kind: Kind,
}

impl Catalog {
    /// Opens all roots and looks at their names, without opening a file. Network requests run on `io`. The error is
    /// everything that is wrong: settings, roots that do not exist or refuse the credential, names that are taken twice.
    pub async fn open(config: Config, io: Handle) -> Result<Catalog, Vec<Error>> {
        let problems = config.problems();
        if !problems.is_empty() {
            return Err(problems.into_iter().map(|(key, problem)| Error::Setting { key, problem }).collect());
        }
        let mut errors = Vec::new();
        let stores = Stores::new(config.stores, io.clone());
        let mut open = |location: &String| stores.root(location).map_err(|e| errors.push(e)).ok();
        let mut roots: Vec<Arc<Root>> = config.data.iter().filter_map(&mut open).collect();
        roots.dedup_by_key(|root| root.id);
        let mut tables = BTreeMap::new();
        for (key, config) in config.tables {
            let (schema, name) = own(split_name(&key));
            let places = Places::Configured(config.location.iter().filter_map(&mut open).collect());
            tables.insert((schema.clone(), name.clone()), Definition { schema, name, places, config });
        }
        let views = config.views.into_iter().map(|(key, sql)| (own(split_name(&key)), sql)).collect();
        let prefetch = config.prefetch_limit.map_or(PREFETCH, |limit| limit.0);
        let budget = usize::try_from(config.metadata_cache.as_u64()).unwrap_or(usize::MAX);
        let catalog = Catalog {
            roots,
            tables,
            views,
            listing: Listing::new(config.list_ttl, io.clone()),
            workshop: Arc::new(Workshop {
                io,
                registry: Arc::default(),
                room: Room::new(prefetch),
                footers: Arc::new(Footers::new(budget / 2)),
                facts: Cache::new(budget - budget / 2),
                hot: None,
            }),
            current: Mutex::default(),
            stores,
        };
        errors.extend(catalog.check().await);
        if errors.is_empty() { Ok(catalog) } else { Err(errors) }
    }

    /// Keeps columns of Parquet tables in `cache`, and answers from it. For a catalog that has resolved nothing yet.
    pub fn with_hot(mut self, cache: Arc<updraft_hot::Cache>) -> Self {
        let workshop = Arc::get_mut(&mut self.workshop);
        workshop.expect("nothing was begun before anything was resolved").hot = Some(cache);
        self
    }

    /// The cache of hot columns, when it is on.
    pub fn hot(&self) -> Option<&Arc<updraft_hot::Cache>> {
        self.workshop.hot.as_ref()
    }

    /// What was asked of each bucket or web server, with its URL. One that has settings of its own for a part of it is
    /// there for each.
    pub fn stores(&self) -> Vec<(String, StoreFigures)> {
        self.stores.figures()
    }

    /// What is kept of what is known about files.
    pub fn metadata(&self) -> MetadataStatistics {
        let Workshop { footers, facts, .. } = self.workshop.as_ref();
        MetadataStatistics {
            limit_bytes: footers.budget() + facts.budget(),
            footers: footers.statistics(),
            schemas: CacheStatistics::of(facts),
        }
    }

    /// Bytes that take what is known about files.
    pub fn metadata_bytes(&self) -> usize {
        self.workshop.footers.used() + self.workshop.facts.size().1
    }

    /// Forgets up to `bytes` of what is known about files, what was used longest ago first. Returns how many that are.
    pub fn evict_metadata(&self, bytes: usize) -> usize {
        let footers = self.workshop.footers.evict(bytes);
        footers + self.workshop.facts.evict(bytes.saturating_sub(footers))
    }

    /// The object stores for DataFusion's `RuntimeEnv`: the live snapshots, by URLs only this crate makes. There is no
    /// `file://`, and no store can be added.
    pub fn object_stores(&self) -> Arc<dyn ObjectStoreRegistry> {
        self.workshop.registry.clone()
    }

    /// Pins each name. The only await on the way of a query. Names that do not exist are absent from the map; a name that
    /// exists and can not be read is the error. Of `session`, the number of files read at once is used.
    pub async fn resolve(
        &self,
        names: &[ResolvedTableReference],
        session: &dyn Session,
    ) -> Result<HashMap<ResolvedTableReference, Relation>, Error> {
        let reads_max = session.config_options().execution.meta_fetch_concurrency.get();
        let ours = names.iter().filter(|name| name.catalog.as_ref() == CATALOG);
        let each = ours.map(|name| async move {
            let relation = self.relation(&name.schema, &name.table, reads_max).await?;
            Ok::<_, Error>(relation.map(|relation| (name.clone(), relation)))
        });
        let each: Vec<_> = each.collect();
        Ok(futures::future::try_join_all(each).await?.into_iter().flatten().collect())
    }

    /// All tables and views by name, without opening a file. Sorted by schema, name. A name that is there but can not be
    /// read (two places claim it, a folder is mixed) is listed too: its query says what is wrong.
    pub async fn list(&self) -> Result<Vec<Listed>, Error> {
        let mut names: BTreeMap<Name, Kind> = BTreeMap::new();
        for root in &self.roots {
            for found in candidates(&self.listing, root, None).await? {
                names.insert((found.schema, found.name), Kind::Table);
            }
        }
        names.extend(self.tables.keys().map(|name| (name.clone(), Kind::Table)));
        names.extend(self.views.keys().map(|name| (name.clone(), Kind::View)));
        Ok(names.into_iter().map(|((schema, name), kind)| Listed { schema, name, kind }).collect())
    }

    /// Which version [`Self::resolve`] would pin of each name, in their order, without opening a file; `None` for a name
    /// that does not exist.
    pub async fn versions(&self, names: &[ResolvedTableReference]) -> Result<Vec<Option<Version>>, Error> {
        let each = names.iter().map(|name| async move {
            if name.catalog.as_ref() != CATALOG {
                return Ok(None);
            }
            let key = own((&name.schema, &name.table));
            if let Some(sql) = self.views.get(&key) {
                return Ok(Some(view_version(sql)));
            }
            let Some(definition) = self.definition(&key).await? else { return Ok(None) };
            let (format, members) = definition.members(&self.listing).await?;
            let id = id_of(&definition, &members);
            self.begin(&key, id, definition, format, members);
            Ok(Some(Version::Table(id)))
        });
        futures::future::try_join_all(each).await
    }

    /// The definition of a table, in the settings or below a root.
    async fn definition(&self, key: &Name) -> Result<Option<Cow<'_, Definition>>, Error> {
        Ok(match self.tables.get(key) {
            Some(definition) => Some(Cow::Borrowed(definition)),
            None => self.discover(&key.0, &key.1).await?.map(Cow::Owned),
        })
    }

    /// Begins to read the footers of a remote table that has changed: who asked which version it has is about to plan anew,
    /// and looks at its files once more before.
    fn begin(&self, key: &Name, id: SnapshotId, definition: Cow<Definition>, format: Format, members: Vec<Member>) {
        let Some(slot) = self.current.lock().get(key).cloned() else { return };
        let is_known = slot.snapshot.lock().as_ref().is_none_or(|snapshot| snapshot.id() == id);
        let is_remote = members.iter().any(|member| matches!(member.root.backend, Backend::Remote { .. }));
        if is_known || !is_remote || members.len() > BEGUN_FILES_MAX {
            return;
        }
        let (workshop, definition) = (self.workshop.clone(), definition.into_owned());
        // Weak, as the slot holds the task.
        let of = Arc::downgrade(&slot);
        let work = async move {
            let Some(slot) = of.upgrade() else { return };
            let _making = slot.making.lock().await;
            if slot.kept(id).is_none()
                && let Ok(snapshot) = workshop.snapshot(&definition, format, members, BEGUN_FILES_MAX).await
            {
                // What is wrong with it is told to who resolves it.
                slot.keep(&Arc::new(snapshot));
            }
        };
        *slot.begun.lock() = Some(AbortOnDropHandle::new(self.workshop.io.spawn(work)));
    }

    async fn relation(&self, schema: &str, name: &str, reads_max: usize) -> Result<Option<Relation>, Error> {
        let key = own((schema, name));
        if let Some(sql) = self.views.get(&key) {
            return Ok(Some(Relation::View { sql: sql.clone() }));
        }
        let Some(definition) = self.definition(&key).await? else {
            let gone = self.current.lock().remove(&key);
            if let Some(last) = gone.and_then(|slot| slot.snapshot.lock().take()) {
                last.end(None);
            }
            return Ok(None);
        };
        let (format, members) = definition.members(&self.listing).await?;
        let id = id_of(&definition, &members);
        let slot = {
            let mut current = self.current.lock();
            if current.len() >= TABLES_MAX && !current.contains_key(&key) {
                current.clear();
            }
            current.entry(key).or_default().clone()
        };
        if let Some(snapshot) = slot.kept(id) {
            return Ok(Some(Relation::Table(snapshot)));
        }
        let _making = slot.making.lock().await;
        if let Some(snapshot) = slot.kept(id) {
            return Ok(Some(Relation::Table(snapshot)));
        }
        let snapshot = Arc::new(self.workshop.snapshot(&definition, format, members, reads_max).await?);
        slot.keep(&snapshot);
        Ok(Some(Relation::Table(snapshot)))
    }

    /// The definition of a table below the data roots.
    async fn discover(&self, schema: &str, name: &str) -> Result<Option<Definition>, Error> {
        let mut found: Option<Candidate> = None;
        for root in &self.roots {
            for candidate in candidates(&self.listing, root, Some((schema, name))).await? {
                if let Some(first) = &found {
                    return Err(ambiguous(first, &candidate));
                }
                found = Some(candidate);
            }
        }
        let Some(found) = found else { return Ok(None) };
        if let Some(problem) = found.problem {
            return Err(problem);
        }
        Ok(Some(Definition {
            schema: found.schema,
            name: found.name,
            places: Places::Discovered(found.place),
            config: TableConfig::default(),
        }))
    }

    /// What is wrong with the names below the roots: all of it, for `open`.
    async fn check(&self) -> Vec<Error> {
        let mut errors = Vec::new();
        let mut names: BTreeMap<Name, Candidate> = BTreeMap::new();
        for root in &self.roots {
            let found = match candidates(&self.listing, root, None).await {
                Ok(found) => found,
                Err(e) => {
                    errors.push(e);
                    continue;
                }
            };
            for candidate in found {
                let name = (candidate.schema.clone(), candidate.name.clone());
                match names.get(&name) {
                    // The settings say which one is meant.
                    _ if self.tables.contains_key(&name) => {}
                    Some(first) => errors.push(ambiguous(first, &candidate)),
                    None => _ = names.insert(name, candidate),
                }
            }
        }
        for (schema, name) in self.views.keys() {
            let key = (schema.clone(), name.clone());
            let location = match (names.get(&key), self.tables.contains_key(&key)) {
                (_, true) => "catalog.tables".to_owned(),
                (Some(candidate), _) => candidate.place.display(),
                (None, false) => continue,
            };
            errors.push(Error::ViewIsTable { schema: schema.clone(), name: name.clone(), location });
        }
        errors
    }
}

fn ambiguous(first: &Candidate, second: &Candidate) -> Error {
    Error::Ambiguous {
        schema: first.schema.clone(),
        name: first.name.clone(),
        first: first.place.display(),
        second: second.place.display(),
    }
}

/// `schema.name`, or `name` in the default schema.
pub fn split_name(name: &str) -> (&str, &str) {
    name.split_once('.').unwrap_or((SCHEMA, name))
}

fn own((schema, name): (&str, &str)) -> Name {
    (schema.to_owned(), name.to_owned())
}
