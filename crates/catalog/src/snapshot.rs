//! A table as it was when a query resolved its name: one list of files, one schema, exact statistics where there are any.

use std::collections::{HashMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use datafusion::arrow::array::{ArrayRef, RecordBatch};
use datafusion::arrow::datatypes::{Field, Schema, SchemaRef};
use datafusion::catalog::TableProvider;
use datafusion::common::stats::Precision;
use datafusion::common::{ColumnStatistics, ScalarValue, Statistics};
use datafusion::datasource::listing::PartitionedFile;
use datafusion::datasource::table_schema::TableSchema;
use datafusion::error::{DataFusionError, Result as DfResult};
use datafusion::execution::object_store::ObjectStoreUrl;
use object_store::ObjectMeta;
use object_store::path::Path;
use tokio::runtime::Handle;
use updraft_hot::Segments;

use crate::ahead::Room;
use crate::cache::Cache;
use crate::config::{Compression, Format, TableConfig};
use crate::definition::{Definition, Member};
use crate::error::Error;
use crate::facts::{self, Facts, Look, bytes_of_file};
use crate::files::join;
use crate::footers::{Footers, Readers};
use crate::formats::{FileName, Text, split_compression};
use crate::partitions::Partitions;
use crate::pinned::{FileId, PinnedFile, PinnedStore, Registry};
use crate::source::{Layout, Shared};
use crate::stored::Stored;
use crate::table::FilesTable;
use crate::{hot, schema, types};

/// Files whose beginnings or footers are read at the same time for one table.
const READS_MAX: usize = 32;

/// Identifies what a snapshot reads: a hash of the table's definition and of each file's path, size, time, tag and version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SnapshotId(pub u64);

/// A table as it was when a query resolved its name. Cheap to clone; all clones read the same files.
#[derive(Clone)]
pub struct Snapshot {
    inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) id: SnapshotId,
    pub(crate) table: String,
    pub(crate) table_schema: TableSchema,
    pub(crate) files: Vec<PartitionedFile>,
    pub(crate) statistics: Statistics,
    pub(crate) stored: Arc<Stored>,
    /// Values of the partition columns, one row per file; `None` without such columns.
    pub(crate) partitions: Option<RecordBatch>,
    pub(crate) url: ObjectStoreUrl,
    pub(crate) shared: Arc<Shared>,
    pub(crate) footers: Arc<Footers>,
    /// The cache of hot columns, for Parquet, when it is on.
    pub(crate) hot: Option<Arc<updraft_hot::Cache>>,
    /// The row groups of `files`, of Parquet: each carries its [`updraft_hot::File`], and all of these too.
    pub(crate) segments: Option<Arc<Segments>>,
}

impl Snapshot {
    /// Equal ids read equal rows, so this can be part of the key of a cache of results.
    pub fn id(&self) -> SnapshotId {
        self.inner.id
    }

    /// `schema.name` of the table.
    pub fn table(&self) -> &str {
        &self.inner.table
    }

    /// Columns of the files, then partition columns.
    pub fn schema(&self) -> SchemaRef {
        self.inner.table_schema.table_schema().clone()
    }

    /// Statistics over all files; exact for Parquet.
    pub fn statistics(&self) -> &Statistics {
        &self.inner.statistics
    }

    /// Number of files.
    pub fn files(&self) -> usize {
        self.inner.files.len()
    }

    /// Bytes of all files, as stored.
    pub fn bytes(&self) -> u64 {
        self.inner.files.iter().map(|file| file.object_meta.size).sum()
    }

    /// The table for the cache of hot columns; `None` when it is off, or when the table is not Parquet.
    pub fn hot(&self) -> Option<updraft_hot::Table> {
        self.inner.hot.as_ref()?;
        let schema = self.inner.table_schema.file_schema().clone();
        let files = self.hot_files().cloned().collect();
        Some(updraft_hot::Table { name: self.inner.table.as_str().into(), schema, files })
    }

    fn hot_files(&self) -> impl Iterator<Item = &updraft_hot::File> {
        self.inner.files.iter().filter_map(|file| file.extension::<updraft_hot::File>())
    }

    /// Tells the cache of hot columns which files are gone now that queries of the table get `newer`; `None` = none do.
    pub(crate) fn end(&self, newer: Option<&Snapshot>) {
        let Some(cache) = &self.inner.hot else { return };
        let mut gone: HashSet<_> = self.hot_files().map(|file| &file.key).collect();
        for file in newer.into_iter().flat_map(Snapshot::hot_files) {
            gone.remove(&file.key);
        }
        if !gone.is_empty() {
            cache.retire(&gone);
        }
    }

    /// The table for DataFusion. Plans made from it keep the snapshot's files pinned until they are dropped.
    pub fn provider(&self) -> Arc<dyn TableProvider> {
        Arc::new(FilesTable::new(self.inner.clone()))
    }
}

impl std::fmt::Debug for Snapshot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { inner } = self;
        f.debug_struct("Snapshot")
            .field("table", &inner.table)
            .field("id", &format_args!("{:016x}", inner.id.0))
            .field("files", &inner.files.len())
            .finish_non_exhaustive()
    }
}

/// What snapshots are made with; shared by all tables.
#[derive(Debug)]
pub(crate) struct Workshop {
    pub(crate) io: Handle,
    pub(crate) registry: Arc<Registry>,
    /// Room for what is read before it is needed.
    pub(crate) room: Room,
    pub(crate) footers: Arc<Footers>,
    /// By file and by the options that it is read with.
    pub(crate) facts: Cache<(FileId, u64), Arc<Facts>>,
    /// The cache of hot columns, when it is on.
    pub(crate) hot: Option<Arc<updraft_hot::Cache>>,
}

/// The id that a snapshot of these files will have.
pub(crate) fn id_of(definition: &Definition, members: &[Member]) -> SnapshotId {
    let mut hash = DefaultHasher::new();
    (&definition.schema, &definition.name, &definition.config).hash(&mut hash);
    for member in members {
        (member.root.id, &member.entry).hash(&mut hash);
    }
    SnapshotId(hash.finish())
}

impl Workshop {
    /// Pins `members` and finds out what is in them, as far as that is not known from before.
    pub(crate) async fn snapshot(
        self: &Arc<Self>,
        definition: &Definition,
        format: Format,
        members: Vec<Member>,
        reads_max: usize,
    ) -> Result<Snapshot, Error> {
        let id = id_of(definition, &members);
        let table = definition.table();
        let config = &definition.config;
        let invalid = |problem: String| Error::Table { table: table.clone(), problem };
        let text = Text::new(config).map_err(invalid)?;
        let several_roots = members.windows(2).any(|pair| pair[0].root.id != pair[1].root.id);
        let mut pinned = HashMap::with_capacity(members.len());
        let mut files = Vec::with_capacity(members.len());
        for member in &members {
            let id = FileId { root: member.root.id, entry: member.entry.clone() };
            let file = Arc::new(PinnedFile { root: member.root.clone(), id });
            let path = exposed(member, several_roots);
            if pinned.insert(path.clone(), file.clone()).is_some() {
                return Err(invalid(format!("file {} is there twice", file.display())));
            }
            files.push((path, file));
        }
        let store = PinnedStore::new(table.clone(), pinned, self.io.clone(), &self.room, &self.registry);
        let look = Look::new(self.clone(), store.clone(), format, config.clone(), text.clone());
        let facts = facts::of(&Arc::new(look), &files, reads_max.clamp(1, READS_MAX)).await?;

        let paths: Vec<&str> = members.iter().map(|member| member.path.as_str()).collect();
        let partitions = Partitions::new(&paths, &config.partition_columns).map_err(invalid)?;
        let hidden: Vec<String> = partitions.fields.iter().map(|field| field.name().clone()).collect();
        let guessed = matches!(format, Format::Csv | Format::Json);
        let file_schema = Arc::new(self.file_schema(&table, config, &files, &facts, guessed, &hidden)?);
        let table_schema =
            TableSchema::builder(file_schema.clone()).with_table_partition_cols(partitions.fields.clone()).build();

        let splits = match format {
            Format::Csv => text.newlines_in_values != Some(true) && !facts.iter().any(|facts| facts.quoted_newlines),
            Format::Json | Format::Arrow | Format::Parquet => true,
            Format::Avro => false,
        };
        let mut interned = Layouts::default();
        let mut scanned = Vec::with_capacity(files.len());
        let mut stored = Stored::nothing();
        let hot = self.hot.clone().filter(|_| format == Format::Parquet);
        let readers = Readers { store: store.clone(), footers: self.footers.clone() };
        for (((path, file), facts), values) in files.iter().zip(&facts).zip(partitions.values.iter()) {
            let mut scan = PartitionedFile::new_from_meta(meta(path, file));
            scan.statistics = Some(interned.statistics(facts, file.id.entry.size, &file_schema, values));
            scan.partition_values = values.clone();
            stored.add(&facts.stored, interned.places(facts, &file_schema));
            if format != Format::Parquet {
                scan.extensions.insert_arc(interned.layout(facts, compression(config, file)));
            } else {
                if let Some(bounds) = &facts.bounds {
                    scan.extensions.insert_arc(bounds.clone());
                }
                let columns = interned.columns(facts, &file_schema);
                let row_groups = facts.row_groups.clone();
                scan.extensions.insert(hot::file(&readers, file, meta(path, file), row_groups, columns));
            }
            scanned.push(scan);
        }
        if format == Format::Parquet && files.iter().any(|(_, file)| file.is_remote()) {
            stored.ahead = self.room.table_bytes();
        }
        let stored = Arc::new(stored);
        let segments = Segments::new(table_schema.table_schema().clone(), scanned.clone()).map(Arc::new);
        for file in &mut scanned {
            file.extensions.insert_arc(stored.clone());
            if let Some(segments) = &segments {
                file.extensions.insert_arc(segments.clone());
            }
        }
        let all_compressed = files.iter().all(|(_, file)| compression(config, file) != Compression::None);
        let broken = |e: DataFusionError| Error::Internal { what: format!("table {table:?}: {e}") };
        let statistics = merged(&scanned, table_schema.table_schema()).map_err(broken)?;
        let partitions = partition_rows(&partitions).map_err(broken)?;
        let url = store.url().map_err(broken)?;
        let shared = Arc::new(Shared { store, format, text, splits: splits && !(all_compressed && guessed) });
        let footers = self.footers.clone();
        let inner = Inner {
            id,
            table,
            table_schema,
            files: scanned,
            statistics,
            stored,
            partitions,
            url,
            shared,
            footers,
            hot,
            segments,
        };
        Ok(Snapshot { inner: Arc::new(inner) })
    }

    fn file_schema(
        &self,
        table: &str,
        config: &TableConfig,
        files: &[(Path, Arc<PinnedFile>)],
        facts: &[Arc<Facts>],
        guessed: bool,
        hidden: &[String],
    ) -> Result<Schema, Error> {
        let names: Vec<_> = files.iter().map(|(_, file)| move || file.display()).collect();
        if config.columns.is_empty() {
            let files = names.iter().map(|name| name as &dyn Fn() -> String).zip(facts.iter().map(|f| &f.schema));
            return schema::union(table, files, guessed, hidden);
        }
        let declared = config.columns.iter().map(|column| {
            let data_type = types::parse(&column.data_type);
            data_type.map(|data_type| Field::new(&column.name, data_type, true))
        });
        let declared = declared.collect::<Result<Vec<_>, _>>();
        let declared = declared.map_err(|problem| Error::Table { table: table.to_owned(), problem })?;
        let declared = Schema::new(declared);
        if !guessed {
            for (name, facts) in names.iter().zip(facts) {
                schema::fits(table, &declared, name, &facts.schema)?;
            }
        }
        Ok(declared)
    }
}

/// The path under which plans see a file: below its root, and with the root's number when there are several.
fn exposed(member: &Member, several_roots: bool) -> Path {
    let rel = if member.entry.rel.is_empty() { member.root.name() } else { &member.entry.rel };
    let base = if several_roots { Path::from(member.root.id.to_string()) } else { Path::default() };
    join(&base, rel)
}

pub(crate) fn meta(path: &Path, file: &PinnedFile) -> ObjectMeta {
    let entry = &file.id.entry;
    ObjectMeta {
        location: path.clone(),
        last_modified: entry.modified,
        size: entry.size,
        e_tag: entry.etag.clone(),
        version: entry.version.clone(),
    }
}

pub(crate) fn compression(config: &TableConfig, file: &PinnedFile) -> Compression {
    let name = file.name();
    let of_name = || FileName::parse(name).map_or_else(|| split_compression(name).1, |name| name.compression);
    config.compression.unwrap_or_else(of_name)
}

/// Statistics over all `files`.
pub(crate) fn merged(files: &[PartitionedFile], schema: &SchemaRef) -> DfResult<Statistics> {
    Statistics::try_merge_iter(files.iter().filter_map(|file| file.statistics.as_deref()), schema)
}

fn partition_rows(partitions: &Partitions) -> DfResult<Option<RecordBatch>> {
    if partitions.fields.is_empty() || partitions.values.is_empty() {
        return Ok(None);
    }
    let column = |at: usize| ScalarValue::iter_to_array(partitions.values.iter().map(|values| values[at].clone()));
    let columns = (0..partitions.fields.len()).map(column).collect::<DfResult<Vec<ArrayRef>>>()?;
    Ok(Some(RecordBatch::try_new(Arc::new(Schema::new(partitions.fields.clone())), columns)?))
}

/// Layouts and column orders, made once for all files that are alike.
#[derive(Default)]
struct Layouts {
    schemas: HashSet<SchemaRef>,
    /// The schema of the last file, and the one that stands for it: to hash one takes longer than all else.
    last: Option<(SchemaRef, SchemaRef)>,
    layouts: HashMap<(usize, Compression), Arc<Layout>>,
    /// For each schema, where the table's columns are in it; by its address.
    places: HashMap<usize, Vec<Option<usize>>>,
    /// The same for the cache of hot columns.
    columns: HashMap<usize, Arc<[Option<u32>]>>,
}

impl Layouts {
    fn schema(&mut self, schema: &SchemaRef) -> SchemaRef {
        if let Some((last, known)) = &self.last
            && Arc::ptr_eq(last, schema)
        {
            return known.clone();
        }
        let known = self.schemas.get(schema.as_ref()).unwrap_or(schema).clone();
        // Does nothing when it is there.
        self.schemas.insert(known.clone());
        self.last = Some((schema.clone(), known.clone()));
        known
    }

    fn layout(&mut self, facts: &Facts, compression: Compression) -> Arc<Layout> {
        let physical = self.schema(&facts.schema);
        let key = (Arc::as_ptr(&physical) as usize, compression);
        self.layouts.entry(key).or_insert_with(|| Arc::new(Layout { physical, compression })).clone()
    }

    /// Where the table's columns are in a file.
    fn places(&mut self, facts: &Facts, table: &SchemaRef) -> &[Option<usize>] {
        let physical = self.schema(&facts.schema);
        let place = |field: &Arc<Field>| physical.index_of(field.name()).ok();
        let found = || table.fields().iter().map(place).collect();
        self.places.entry(Arc::as_ptr(&physical) as usize).or_insert_with(found)
    }

    /// Where the table's columns are in a file, to be shared.
    fn columns(&mut self, facts: &Facts, table: &SchemaRef) -> Arc<[Option<u32>]> {
        let physical = self.schema(&facts.schema);
        let places = self.places(facts, table);
        let columns = places.iter().map(|place| place.and_then(|at| u32::try_from(at).ok())).collect::<Vec<_>>();
        self.columns.entry(Arc::as_ptr(&physical) as usize).or_insert_with(|| columns.into()).clone()
    }

    /// Statistics of one file over the table's columns: its own, when it has just those.
    fn statistics(
        &mut self,
        facts: &Facts,
        size: u64,
        table: &SchemaRef,
        partition: &[ScalarValue],
    ) -> Arc<Statistics> {
        let physical = &facts.schema;
        let places = self.places(facts, table);
        let known = facts.statistics.as_ref();
        let is_alike = |at: usize, field: &Field| physical.field(at).data_type() == field.data_type();
        let mut columns = table.fields().iter().zip(places).enumerate();
        if let Some(known) = known
            && partition.is_empty()
            && known.column_statistics.len() == places.len()
            && columns.all(|(at, (field, place))| *place == Some(at) && is_alike(at, field))
        {
            return known.clone();
        }
        let rows = known.map_or(Precision::Absent, |known| known.num_rows);
        let file_columns = table.fields().iter().zip(places).map(|(field, place)| match (place, known) {
            // Nothing is known of a value that is cast when it is read.
            (Some(at), Some(known)) if is_alike(*at, field) => known.column_statistics[*at].clone(),
            (None, _) => ColumnStatistics::new_unknown().with_null_count(rows),
            _ => ColumnStatistics::new_unknown(),
        });
        let partition_columns = partition.iter().map(|value| match value.is_null() {
            true => ColumnStatistics::new_unknown().with_null_count(rows),
            false => ColumnStatistics::new_unknown()
                .with_null_count(Precision::Exact(0))
                .with_min_value(Precision::Exact(value.clone()))
                .with_max_value(Precision::Exact(value.clone())),
        });
        Arc::new(Statistics {
            num_rows: rows,
            total_byte_size: known.map_or_else(|| bytes_of_file(size), |known| known.total_byte_size),
            column_statistics: file_columns.chain(partition_columns).collect(),
        })
    }
}
