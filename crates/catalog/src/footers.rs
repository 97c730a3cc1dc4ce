//! Parquet footers: read once per file identity, kept in a bounded cache, and given to the scan.
//!
//! DataFusion's own cache compares size and time only, and its keys do not tell stores apart; this one asks for the whole
//! identity. It also keeps the source of an error, which DataFusion's reader turns into text.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use datafusion::datasource::listing::PartitionedFile;
use datafusion::datasource::physical_plan::parquet::ParquetAccessPlan;
use datafusion::datasource::physical_plan::parquet::metadata::DFParquetMetadata;
use datafusion::datasource::physical_plan::{ParquetFileMetrics, ParquetFileReaderFactory};
use datafusion::error::{DataFusionError, Result as DfResult};
use datafusion::parquet::arrow::arrow_reader::ArrowReaderOptions;
use datafusion::parquet::arrow::async_reader::AsyncFileReader;
use datafusion::parquet::basic::SortOrder;
use datafusion::parquet::errors::{ParquetError, Result as ParquetResult};
use datafusion::parquet::file::metadata::{ColumnChunkMetaData, PageIndexPolicy, ParquetMetaData};
use datafusion::physical_plan::metrics::ExecutionPlanMetricsSet;
use futures::FutureExt;
use futures::future::BoxFuture;
use object_store::{ObjectMeta, ObjectStore, ObjectStoreExt};
use updraft_hot::ByPages;

use crate::cache::Cache;
use crate::error::Error;
use crate::follow::Following;
use crate::metadata::CacheStatistics;
use crate::pinned::{FileId, PinnedStore};

/// What is read from the end of a remote file to have its footer by one request: most are smaller.
const FOOTER: usize = 128 << 10;

/// Footers by file identity.
#[derive(Debug)]
pub(crate) struct Footers {
    cache: Cache<FileId, Footer>,
}

#[derive(Debug, Clone)]
struct Footer {
    metadata: Arc<ParquetMetaData>,
    /// Page indexes were asked for, and are there if the file has any.
    with_pages: bool,
}

impl Footers {
    pub(crate) fn new(budget: usize) -> Self {
        Self { cache: Cache::new(budget) }
    }

    /// The footer of a file, if it is known.
    pub(crate) fn known(&self, file: &FileId) -> Option<Arc<ParquetMetaData>> {
        self.cache.get(file).map(|footer| footer.metadata)
    }

    /// Bytes that they may take.
    pub(crate) fn budget(&self) -> usize {
        self.cache.budget()
    }

    /// Bytes that they take.
    pub(crate) fn used(&self) -> usize {
        self.cache.size().1
    }

    /// Drops up to `bytes`. Returns how many that are.
    pub(crate) fn evict(&self, bytes: usize) -> usize {
        self.cache.evict(bytes)
    }

    /// What there is, and how often it was asked for.
    pub(crate) fn statistics(&self) -> CacheStatistics {
        CacheStatistics::of(&self.cache)
    }

    /// The footer of a file of `store`, with page indexes if `pages` asks for them.
    pub(crate) async fn get(
        &self,
        store: &Arc<PinnedStore>,
        meta: &ObjectMeta,
        pages: PageIndexPolicy,
        size_hint: Option<usize>,
    ) -> Result<Arc<ParquetMetaData>, DataFusionError> {
        let file = store.file(&meta.location)?.clone();
        let wants_pages = pages != PageIndexPolicy::Skip;
        if let Some(footer) = self.cache.get(&file.id)
            && (footer.with_pages || !wants_pages)
        {
            return Ok(footer.metadata);
        }
        let size_hint = size_hint.or_else(|| file.is_remote().then_some(FOOTER));
        let store: &dyn ObjectStore = store.as_ref();
        let metadata = DFParquetMetadata::new(store, meta)
            .with_metadata_size_hint(size_hint)
            .with_page_index_policy(Some(pages))
            .fetch_metadata()
            .await?;
        let metadata = without_doubtful(metadata);
        let footer = Footer { metadata: metadata.clone(), with_pages: wants_pages };
        self.cache.insert(file.id.clone(), footer, metadata.memory_size());
        Ok(metadata)
    }
}

/// `footer` without the bounds of columns that an old writer may have ordered otherwise: it compared bytes as numbers with a sign,
/// whatever they stand for, and said so in fields that later ones do not use.
fn without_doubtful(footer: Arc<ParquetMetaData>) -> Arc<ParquetMetaData> {
    let is_doubtful = |chunk: &ColumnChunkMetaData| {
        let is_old = chunk.statistics().is_some_and(|statistics| statistics.is_min_max_deprecated());
        is_old && chunk.column_descr().sort_order() != SortOrder::SIGNED
    };
    if !footer.row_groups().iter().flat_map(|group| group.columns()).any(is_doubtful) {
        return footer;
    }
    let cleared = |chunk: ColumnChunkMetaData| match is_doubtful(&chunk) {
        true => chunk.into_builder().clear_statistics().build(),
        false => Ok(chunk),
    };
    let mut builder = ParquetMetaData::clone(&footer).into_builder();
    let groups = builder.take_row_groups().into_iter().map(|group| {
        let mut group = group.into_builder();
        let columns = group.take_columns().into_iter().map(cleared).collect::<ParquetResult<_>>()?;
        group.set_column_metadata(columns).build()
    });
    match groups.collect::<ParquetResult<_>>() {
        Ok(groups) => Arc::new(builder.set_row_groups(groups).build()),
        // Not for what was whole before.
        Err(_) => footer,
    }
}

/// Opens the files of one snapshot for the Parquet scan.
#[derive(Debug, Clone)]
pub(crate) struct Readers {
    pub(crate) store: Arc<PinnedStore>,
    pub(crate) footers: Arc<Footers>,
}

impl Readers {
    /// A reader of one file outside of any plan.
    pub(crate) fn open(&self, meta: ObjectMeta) -> impl AsyncFileReader + use<> {
        let metrics = ParquetFileMetrics::new(0, meta.location.as_ref(), &ExecutionPlanMetricsSet::new());
        let (store, footers) = (self.store.clone(), self.footers.clone());
        Reader { store, footers, meta, pages: PageIndexPolicy::Skip, size_hint: None, metrics, following: None }
    }
}

impl ParquetFileReaderFactory for Readers {
    fn create_reader(
        &self,
        partition_index: usize,
        file: PartitionedFile,
        size_hint: Option<usize>,
        metrics: &ExecutionPlanMetricsSet,
    ) -> DfResult<Box<dyn AsyncFileReader + Send>> {
        let metrics = ParquetFileMetrics::new(partition_index, file.object_meta.location.as_ref(), metrics);
        let (store, footers) = (self.store.clone(), self.footers.clone());
        // The scan of one row group has said what comes next.
        let follows = file.extension::<ParquetAccessPlan>().is_none();
        let part = match &file.range {
            Some(range) => u64::try_from(range.start).unwrap_or(0)..u64::try_from(range.end).unwrap_or(0),
            None => 0..u64::MAX,
        };
        let following = follows.then(|| (Following::default(), part));
        let pages = file.extension::<ByPages>().map_or(PageIndexPolicy::Skip, |_| PageIndexPolicy::Optional);
        Ok(Box::new(Reader { store, footers, meta: file.object_meta, pages, size_hint, metrics, following }))
    }
}

struct Reader {
    store: Arc<PinnedStore>,
    footers: Arc<Footers>,
    meta: ObjectMeta,
    /// DataFusion asks for a footer without the index of its pages, and then reads that each time, unless it is there.
    pages: PageIndexPolicy,
    size_hint: Option<usize>,
    metrics: ParquetFileMetrics,
    /// The row groups it reads of a remote file, and which it may.
    following: Option<(Following, Range<u64>)>,
}

impl Reader {
    /// Has what is likely to be read after `ranges` brought near.
    fn follow(&mut self, ranges: &[Range<u64>]) {
        let Ok(file) = self.store.file(&self.meta.location) else { return };
        if let Some((following, part)) = self.following.as_mut().filter(|_| file.is_remote())
            && let Some(footer) = self.footers.known(&file.id)
        {
            following.reads(&self.store, &self.meta.location, &footer, part, ranges);
        }
    }

    fn named(&self, source: DataFusionError) -> ParquetError {
        let file = self.store.display(&self.meta.location);
        ParquetError::External(Box::new(Error::reading(self.store.table(), &file, String::new(), source)))
    }
}

impl AsyncFileReader for Reader {
    fn get_bytes(&mut self, range: Range<u64>) -> BoxFuture<'_, ParquetResult<Bytes>> {
        self.metrics.bytes_scanned.add(usize::try_from(range.end - range.start).unwrap_or_default());
        async move { self.store.get_range(&self.meta.location, range).await.map_err(|e| self.named(e.into())) }.boxed()
    }

    fn get_byte_ranges(&mut self, ranges: Vec<Range<u64>>) -> BoxFuture<'_, ParquetResult<Vec<Bytes>>> {
        let bytes: u64 = ranges.iter().map(|r| r.end - r.start).sum();
        self.metrics.bytes_scanned.add(usize::try_from(bytes).unwrap_or_default());
        self.follow(&ranges);
        async move { self.store.get_ranges(&self.meta.location, &ranges).await.map_err(|e| self.named(e.into())) }
            .boxed()
    }

    fn get_metadata<'a>(
        &'a mut self,
        options: Option<&'a ArrowReaderOptions>,
    ) -> BoxFuture<'a, ParquetResult<Arc<ParquetMetaData>>> {
        let asked = options.map_or(PageIndexPolicy::Skip, |options| options.column_index_policy());
        let pages = if asked == PageIndexPolicy::Skip { self.pages } else { asked };
        async move {
            let footer = self.footers.get(&self.store, &self.meta, pages, self.size_hint).await;
            footer.map_err(|e| self.named(e))
        }
        .boxed()
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.metrics.scan_efficiency_ratio.add_part(self.metrics.bytes_scanned.value());
        self.metrics.scan_efficiency_ratio.set_total(usize::try_from(self.meta.size).unwrap_or_default());
    }
}

#[cfg(test)]
mod tests {
    use datafusion::arrow::array::{ArrayRef, Int64Array, RecordBatch, StringArray};
    use datafusion::parquet::arrow::ArrowWriter;
    use datafusion::parquet::file::statistics::Statistics;

    use super::*;

    #[test]
    fn old_bounds_are_trusted_where_their_order_is_that_of_numbers() {
        let columns: [(&str, ArrayRef); 2] =
            [("n", Arc::new(Int64Array::from(vec![1, 2]))), ("s", Arc::new(StringArray::from(vec!["a", "\u{e9}"])))];
        let batch = RecordBatch::try_from_iter(columns).expect("columns of a length");
        let mut writer = ArrowWriter::try_new(Vec::new(), batch.schema(), None).expect("a writer");
        writer.write(&batch).expect("rows");
        let new = Arc::new(writer.finish().expect("a footer"));
        assert!(Arc::ptr_eq(&without_doubtful(Arc::clone(&new)), &new), "nothing is doubtful");

        let mut builder = ParquetMetaData::clone(&new).into_builder();
        let groups = builder.take_row_groups().into_iter().map(|group| {
            let mut group = group.into_builder();
            let chunks = group.take_columns().into_iter().map(|chunk| {
                let old = match chunk.statistics().expect("it has some") {
                    Statistics::Int64(_) => Statistics::int64(Some(1), Some(2), None, Some(0), true),
                    _ => Statistics::byte_array(Some("\u{e9}".into()), Some("a".into()), None, Some(0), true),
                };
                chunk.into_builder().set_statistics(old).build().expect("a chunk")
            });
            let chunks = chunks.collect();
            group.set_column_metadata(chunks).build().expect("a row group")
        });
        let groups = groups.collect();
        let old = without_doubtful(Arc::new(builder.set_row_groups(groups).build()));
        let known: Vec<bool> = old.row_group(0).columns().iter().map(|chunk| chunk.statistics().is_some()).collect();
        assert_eq!(known, [true, false]);
    }
}
