//! What a query asks of an object store of whose files nothing is known.

use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use datafusion::arrow::array::Int64Array;
use datafusion::common::stats::Precision;
use datafusion::parquet::file::metadata::ParquetMetaData;
use object_store::ObjectStoreExt;
use object_store::path::Path;

use super::reads::Slow;
use super::*;
use crate::ahead::Room;
use crate::cache::Cache;
use crate::config::{Format, TableConfig};
use crate::definition::{Definition, Member, Places};
use crate::files::Entry;
use crate::follow::bytes_of;
use crate::footers::Footers;
use crate::pinned::FileId;
use crate::requests::Requests;
use crate::snapshot::Workshop;
use crate::stores::{Backend, Root};

/// A table of files in a slow store.
struct Remote {
    slow: Arc<Slow>,
    workshop: Arc<Workshop>,
    members: Vec<Member>,
}

impl Remote {
    async fn of(slow: Slow, files: Vec<Bytes>, hot: Option<Arc<updraft_hot::Cache>>) -> Self {
        let slow = Arc::new(slow);
        let requests = Arc::new(Requests::new(64, None));
        let backend = Backend::Remote { store: slow.clone(), prefix: Path::default(), requests, lists: true };
        let root = Arc::new(Root { id: 0, location: "s3://bucket".into(), backend });
        let mut members = Vec::new();
        for (at, content) in files.into_iter().enumerate() {
            let rel = format!("{at}.parquet");
            let file = Path::from(rel.as_str());
            slow.put(&file, content.into()).await.unwrap();
            let meta = slow.objects.head(&file).await.unwrap();
            let (size, modified) = (meta.size, meta.last_modified);
            let entry = Entry { rel: rel.clone(), size, modified, etag: meta.e_tag, version: None };
            members.push(Member { root: root.clone(), entry, path: rel });
        }
        let workshop = Workshop {
            io: Handle::current(),
            registry: Arc::default(),
            room: Room::new(0),
            footers: Arc::new(Footers::new(1 << 20)),
            facts: Cache::new(1 << 20),
            hot,
        };
        Self { slow, workshop: Arc::new(workshop), members }
    }

    /// Of the first file.
    fn footer(&self) -> Arc<ParquetMetaData> {
        let Member { root, entry, .. } = self.members[0].clone();
        let file = FileId { root: root.id, entry };
        self.workshop.footers.known(&file).unwrap()
    }

    async fn snapshot(&self) -> Snapshot {
        let places = Places::Configured(Vec::new());
        let (schema, name) = ("public".to_owned(), "t".to_owned());
        let definition = Definition { schema, name, places, config: TableConfig::default() };
        self.workshop.snapshot(&definition, Format::Parquet, self.members.clone(), 32).await.unwrap()
    }
}

/// Files of one row each.
fn tiny(files: i64) -> Vec<Bytes> {
    let file = |value| {
        let column = Arc::new(Int64Array::from(vec![value])) as _;
        parquet_bytes(&RecordBatch::try_from_iter([("a", column)]).unwrap(), 10).into()
    };
    (0..files).map(file).collect()
}

#[tokio::test(start_paused = true)]
async fn footers_of_many_files_are_asked_for_together() {
    let remote = Remote::of(Slow::default(), tiny(100), None).await;
    let started = tokio::time::Instant::now();
    assert_eq!(remote.snapshot().await.statistics().num_rows, Precision::Exact(100));
    assert_eq!(started.elapsed(), Duration::from_millis(80), "four times the way to the store");
    assert_eq!((remote.slow.together.load(Ordering::Relaxed), remote.slow.asked.lock().len()), (32, 100));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_several_threads_found_out_is_known_of_its_file() {
    let fixture = Fixture::new();
    for (at, file) in tiny(100).into_iter().enumerate() {
        fixture.write(&format!("t/{at:02}.parquet"), file);
    }
    let catalog = fixture.open().await;
    assert_eq!(answer(&catalog, "SELECT a FROM t WHERE a IN (3, 77) ORDER BY a").await, ["3", "77"]);
    // Of the others nothing has to be read again.
    fixture.write("t/50.parquet", &tiny(1)[0]);
    assert_eq!(answer(&catalog, "SELECT a FROM t WHERE a IN (0, 50, 77) ORDER BY a").await, ["0", "0", "77"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn footers_that_several_threads_ask_for_are_bounded_and_end_with_who_wanted_them() {
    let slow = Slow { takes: Duration::from_secs(60), ..Slow::default() };
    let remote = Remote::of(slow, tiny(100), None).await;
    let asked = || remote.slow.together.load(Ordering::Relaxed);
    let all = async {
        while asked() < 32 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::select! {
        _ = remote.snapshot() => panic!("it takes minutes"),
        () = all => {}
    }
    let mut waited = 0;
    while remote.slow.running.load(Ordering::Relaxed) > 0 {
        waited += 1;
        assert!(waited < 5000, "they go on");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert_eq!((asked(), remote.slow.asked.lock().len()), (32, 32));
}

/// A file of two row groups, of the even and of the odd numbers, so that their smallest and largest values say nothing.
fn bloomed() -> Bytes {
    let properties = WriterProperties::builder()
        .set_max_row_group_row_count(Some(500))
        .set_column_bloom_filter_enabled("id".into(), true)
        .set_column_bloom_filter_max_ndv("id".into(), 500)
        .build();
    let ids = (0..1000).step_by(2).chain((1..1001).step_by(2)).map(|id| id * 2);
    let ids = Arc::new(Int64Array::from_iter_values(ids)) as _;
    let others = Arc::new(Int64Array::from_iter_values(0..1000)) as _;
    let batch = RecordBatch::try_from_iter([("id", ids), ("value", others)]).unwrap();
    let mut writer = ArrowWriter::try_new(Vec::new(), batch.schema(), Some(properties)).unwrap();
    writer.write(&batch).unwrap();
    writer.into_inner().unwrap().into()
}

#[tokio::test]
async fn a_lookup_reads_no_column_of_a_row_group_that_a_bloom_filter_leaves_out() {
    // With a cache that has no room for a column, and without one.
    for hot in [Some(updraft_hot::Cache::new(1)), None] {
        let remote = Remote::of(Slow { takes: Duration::ZERO, ..Slow::default() }, vec![bloomed()], hot.clone()).await;
        let config = SessionConfig::new().with_target_partitions(1);
        let runtime = RuntimeEnvBuilder::new().with_object_store_registry(remote.workshop.registry.clone());
        let ctx = SessionContext::new_with_config_rt(config, runtime.build_arc().unwrap());
        ctx.register_table("t", remote.snapshot().await.provider()).unwrap();
        let footer = remote.footer();
        let read = async |id: i64| {
            remote.slow.asked.lock().clear();
            let found =
                ctx.sql(&format!("SELECT value FROM t WHERE id = {id}")).await.unwrap().collect().await.unwrap();
            let rows: usize = found.iter().map(RecordBatch::num_rows).sum();
            let asked = remote.slow.asked.lock().clone();
            let holds = |at: &usize| {
                let columns = footer.row_group(*at).columns().iter().map(bytes_of);
                columns.into_iter().any(|own| asked.iter().any(|range| range.start < own.end && own.start < range.end))
            };
            let groups: Vec<usize> = (0..2).filter(holds).collect();
            (rows, groups, asked.len())
        };
        // The index of its pages is read with the footer, which in a small file is all of it.
        read(1003).await;
        let (rows, groups, asked) = read(1001).await;
        assert_eq!((rows, groups), (0, vec![]), "{hot:?}");
        assert!(asked > 0, "nothing but the filters says so");
        let (rows, groups, _) = read(1000).await;
        assert_eq!((rows, groups), (1, vec![0]), "{hot:?}");
    }
}

#[tokio::test]
async fn without_a_cache_a_query_of_few_rows_is_filtered_by_the_reader_and_others_are_not() {
    let fixture = Fixture::new();
    let column = |step: i64| Arc::new(Int64Array::from_iter_values((0..4000).map(|row| row / step))) as _;
    let batch = RecordBatch::try_from_iter([("a", column(1)), ("b", column(100))]).unwrap();
    let catalog = fixture.parquet("t.parquet", &batch).open().await;
    for (sql, by_reader, rows) in [
        ("SELECT b FROM t WHERE a = 7", true, 1),
        ("SELECT b FROM t WHERE a > 7", false, 3992),
        // Nothing is left to be read late.
        ("SELECT a FROM t WHERE a = 7", false, 1),
        // The reader may ask of any row what is only asked of those that another filter lets pass.
        ("SELECT b FROM t WHERE a = 7 AND abs(a) = 7", false, 1),
    ] {
        assert_eq!(!explain(&catalog, sql).await.contains("FilterExec"), by_reader, "{sql}");
        assert_eq!(answer(&catalog, sql).await.len(), rows, "{sql}");
    }
}
