//! Which requests reading a pinned file of an object store makes, by a store that writes them down.

#![expect(clippy::single_range_in_vec_init, reason = "lists of one range are meant")]

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use datafusion::datasource::listing::PartitionedFile;
use datafusion::datasource::physical_plan::ParquetFileReaderFactory;
use datafusion::physical_plan::metrics::ExecutionPlanMetricsSet;
use futures::TryStreamExt;
use futures::stream::BoxStream;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetRange, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, ObjectStoreExt,
    PutMultipartOptions, PutOptions, PutPayload, PutResult,
};
use parking_lot::Mutex;

use super::*;
use crate::ahead::Room;
use crate::files::Entry;
use crate::follow::bytes_of;
use crate::footers::{Footers, Readers};
use crate::pinned::{FileId, PIECE, PinnedFile, PinnedStore};
use crate::ranges::REQUEST;
use crate::requests::Requests;
use crate::stores::{Backend, Root};

const KIB: u64 = 1 << 10;

/// Answers from memory after a while.
#[derive(Debug)]
pub(super) struct Slow {
    pub(super) objects: InMemory,
    pub(super) takes: Duration,
    pub(super) asked: Mutex<Vec<Range<u64>>>,
    pub(super) running: Arc<AtomicUsize>,
    /// The most at the same time.
    pub(super) together: AtomicUsize,
}

impl Default for Slow {
    fn default() -> Self {
        let (asked, running, together) = (Mutex::default(), Arc::default(), AtomicUsize::default());
        Self { objects: InMemory::default(), takes: Duration::from_millis(20), asked, running, together }
    }
}

struct Running(Arc<AtomicUsize>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl std::fmt::Display for Slow {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Slow")
    }
}

#[async_trait]
impl ObjectStore for Slow {
    async fn get_opts(&self, location: &Path, options: GetOptions) -> object_store::Result<GetResult> {
        if let Some(GetRange::Bounded(range)) = &options.range {
            self.asked.lock().push(range.clone());
        }
        let running = self.running.fetch_add(1, Ordering::Relaxed) + 1;
        let _running = Running(self.running.clone());
        self.together.fetch_max(running, Ordering::Relaxed);
        tokio::time::sleep(self.takes).await;
        self.objects.get_opts(location, options).await
    }

    async fn put_opts(&self, at: &Path, bytes: PutPayload, options: PutOptions) -> object_store::Result<PutResult> {
        self.objects.put_opts(at, bytes, options).await
    }

    async fn put_multipart_opts(
        &self,
        at: &Path,
        options: PutMultipartOptions,
    ) -> object_store::Result<Box<dyn MultipartUpload>> {
        self.objects.put_multipart_opts(at, options).await
    }

    fn delete_stream(
        &self,
        paths: BoxStream<'static, object_store::Result<Path>>,
    ) -> BoxStream<'static, object_store::Result<Path>> {
        self.objects.delete_stream(paths)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, object_store::Result<ObjectMeta>> {
        self.objects.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> object_store::Result<ListResult> {
        self.objects.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> object_store::Result<()> {
        self.objects.copy_opts(from, to, options).await
    }
}

/// What the file has. Runs of one byte and a number, as making each byte anew takes a test most of its time.
fn content(size: u64) -> Bytes {
    let mut bytes = Vec::new();
    for number in 0..size.div_ceil(256) {
        bytes.resize(bytes.len() + 248, number as u8);
        bytes.extend_from_slice(&number.to_le_bytes());
    }
    bytes.truncate(size as usize);
    bytes.into()
}

/// One pinned file, and its store.
struct One {
    slow: Arc<Slow>,
    pinned: Arc<PinnedStore>,
    file: Path,
    content: Bytes,
}

impl One {
    /// Of `size` bytes, with `room` for what is read ahead of it, and `together` requests at the same time.
    async fn new(size: u64, room: u64, together: usize) -> Self {
        Self::of(content(size), room, together).await
    }

    async fn of(content: Bytes, room: u64, together: usize) -> Self {
        let (slow, file, size) = (Arc::new(Slow::default()), Path::from("t.parquet"), content.len() as u64);
        slow.put(&file, content.clone().into()).await.unwrap();
        let meta = slow.objects.head(&file).await.unwrap();
        let requests = Arc::new(Requests::new(together, None));
        let backend = Backend::Remote { store: slow.clone(), prefix: Path::default(), requests, lists: true };
        let root = Arc::new(Root { id: 0, location: "s3://bucket".into(), backend });
        let entry =
            Entry { rel: "t.parquet".into(), size, modified: meta.last_modified, etag: meta.e_tag, version: None };
        let pinned = Arc::new(PinnedFile { root, id: FileId { root: 0, entry } });
        let files = HashMap::from([(file.clone(), pinned)]);
        // One table has a quarter.
        let room = Room::new(4 * room);
        let pinned = PinnedStore::new("public.t".into(), files, Handle::current(), &room, &Arc::default());
        Self { slow, pinned, file, content }
    }

    async fn read(&self, ranges: &[Range<u64>]) -> object_store::Result<()> {
        let got = self.pinned.get_ranges(&self.file, ranges).await?;
        assert_eq!(got.len(), ranges.len());
        for (range, got) in ranges.iter().zip(got) {
            assert!(got == self.part(range.clone()), "{range:?} of {ranges:?}");
        }
        Ok(())
    }

    fn part(&self, range: Range<u64>) -> Bytes {
        self.content.slice(range.start as usize..range.end as usize)
    }

    fn asked(&self) -> Vec<Range<u64>> {
        std::mem::take(&mut self.slow.asked.lock())
    }

    async fn replace(&self) {
        self.slow.put(&self.file, Bytes::from_static(b"something else").into()).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn columns_beside_each_other_are_one_request_and_none_is_read_past_the_end() {
    let one = One::new(2 * KIB * KIB, 0, 8).await;
    let started = tokio::time::Instant::now();
    one.read(&[KIB..2 * KIB, 5 * KIB..9 * KIB, 1500 * KIB..1600 * KIB, 7..7]).await.unwrap();
    assert_eq!(one.asked(), [KIB..9 * KIB, 1500 * KIB..1600 * KIB]);
    assert_eq!(started.elapsed(), Duration::from_millis(20), "both at once");
    let error = one.read(&[0..2 * KIB * KIB + 1]).await.expect_err("it is longer than the file");
    assert!(error.to_string().contains("not inside"), "{error}");
    assert!(one.asked().is_empty());
}

#[tokio::test(start_paused = true)]
async fn long_ranges_are_read_in_parts_and_no_more_at_once_than_there_are_connections() {
    let one = One::new(3 * REQUEST, 0, 2).await;
    one.read(&[5..3 * REQUEST, 6..10]).await.unwrap();
    let asked = one.asked();
    assert_eq!(asked.len(), 3, "{asked:?}");
    assert!(asked.iter().all(|range| range.end - range.start <= REQUEST), "{asked:?}");
    assert_eq!(one.slow.together.load(Ordering::Relaxed), 2);
}

#[tokio::test(start_paused = true)]
async fn what_was_asked_for_ahead_is_there_and_is_not_asked_for_twice() {
    let one = One::new(KIB * KIB, KIB * KIB, 8).await;
    let ranges = [0..KIB, 2 * KIB..3 * KIB];
    let kept = one.pinned.read_ahead(&one.file, &ranges).expect("there is room");
    let again = one.pinned.read_ahead(&one.file, &ranges).expect("it is on its way");
    one.read(&[10..20, 2 * KIB..3 * KIB]).await.unwrap();
    assert_eq!(one.asked(), [0..3 * KIB], "for both, and for the second who asks");
    drop(kept);
    one.read(&[0..KIB, 900 * KIB..901 * KIB]).await.unwrap();
    assert_eq!(one.asked(), [900 * KIB..901 * KIB], "it stays until the last has read it");
    drop(again);
    one.read(&[0..KIB]).await.unwrap();
    assert_eq!(one.asked(), [0..KIB]);
}

#[tokio::test(start_paused = true)]
async fn no_more_is_read_ahead_than_there_is_room_for() {
    let one = One::new(4 * KIB * KIB, 8 * KIB, 8).await;
    // Far from each other, so that they are not one.
    let part = |number: u64| number * 1000 * KIB..number * 1000 * KIB + 4 * KIB;
    let first = one.pinned.read_ahead(&one.file, &[part(0)]).expect("half of the room");
    let second = one.pinned.read_ahead(&one.file, &[part(1)]).expect("all of the room");
    assert!(one.pinned.read_ahead(&one.file, &[part(2)]).is_none());
    drop(first);
    let some = one.pinned.read_ahead(&one.file, &[part(2), part(3)]).expect("half of the room");
    assert_eq!(some.len(), 1, "as much as there is room for");
    drop((second, some));
    assert!(one.pinned.read_ahead(&one.file, &[0..8 * KIB + 1]).is_none());
    assert!(one.pinned.read_ahead(&one.file, &[0..8 * KIB]).is_some(), "all was given back");
    let none = One::new(KIB, 0, 8).await;
    assert!(none.pinned.read_ahead(&none.file, &[0..1]).is_none());
}

#[tokio::test(start_paused = true)]
async fn what_nobody_waits_for_is_given_up() {
    let one = One::new(KIB, KIB, 8).await;
    let kept = one.pinned.read_ahead(&one.file, &[0..KIB]).expect("there is room");
    tokio::time::sleep(Duration::from_millis(1)).await;
    assert_eq!(one.slow.running.load(Ordering::Relaxed), 1, "nobody has to wait for it to begin");
    drop(kept);
    tokio::time::sleep(Duration::from_millis(1)).await;
    assert_eq!(one.slow.running.load(Ordering::Relaxed), 0);
}

#[tokio::test(start_paused = true)]
async fn a_file_that_was_replaced_is_never_mixed_with_its_successor() {
    let one = One::new(KIB * KIB, KIB * KIB, 8).await;
    let kept = one.pinned.read_ahead(&one.file, &[0..KIB]).expect("there is room");
    one.read(&[0..KIB]).await.unwrap();
    one.replace().await;
    one.read(&[0..KIB]).await.expect("it was read before");
    let error = one.read(&[0..KIB, 900 * KIB..901 * KIB]).await.expect_err("replaced");
    assert_eq!(find(&error), Some(ErrorKind::Changed), "{error}");
    drop(kept);
    let kept = one.pinned.read_ahead(&one.file, &[0..KIB]).expect("there is room");
    let error = one.read(&[0..KIB]).await.expect_err("what fails ahead fails when it is needed");
    assert_eq!(find(&error), Some(ErrorKind::Changed), "{error}");
    drop(kept);
}

#[tokio::test(start_paused = true)]
async fn a_long_body_is_read_piece_by_piece_with_one_on_its_way() {
    let size = 3 * PIECE + 5;
    let one = One::new(size, 0, 8).await;
    let result = one.pinned.get_opts(&one.file, GetOptions::default()).await.unwrap();
    assert_eq!(result.range, 0..size);
    let mut stream = result.into_stream();
    let mut got = Vec::new();
    let mut most = 0;
    while let Some(piece) = stream.try_next().await.unwrap() {
        got.extend_from_slice(&piece);
        // Whoever is slow gets no more than the next one.
        tokio::time::sleep(Duration::from_secs(60)).await;
        let begun = one.slow.asked.lock().last().map_or(0, |range| range.end);
        most = most.max(begun - got.len() as u64);
    }
    assert!(got == one.content);
    assert_eq!((most, one.asked().len()), (PIECE, 4));
    let end = one.pinned.get_opts(&one.file, GetOptions::new().with_range(Some(GetRange::Suffix(3)))).await.unwrap();
    assert_eq!(end.bytes().await.unwrap(), one.part(size - 3..size));
}

#[tokio::test(start_paused = true)]
async fn who_reads_row_groups_one_after_the_other_finds_the_next_ones_there() {
    let numbers = datafusion::arrow::array::Int64Array::from_iter_values(0..12_000);
    let columns = ["a", "b", "c"].map(|name| (name, Arc::new(numbers.clone()) as _, false));
    let batch = RecordBatch::try_from_iter_with_nullable(columns).unwrap();
    let one = One::of(parquet_bytes(&batch, 1000).into(), KIB * KIB, 32).await;
    let meta = one.slow.objects.head(&one.file).await.unwrap();
    let readers = Readers { store: one.pinned.clone(), footers: Arc::new(Footers::new(1 << 20)) };
    let file = PartitionedFile::new_from_meta(ObjectMeta { location: one.file.clone(), ..meta });
    let mut reader = readers.create_reader(0, file, None, &ExecutionPlanMetricsSet::new()).unwrap();
    let footer = reader.get_metadata(None).await.unwrap();
    assert_eq!(one.asked().len(), 1, "a footer is one request");
    let mut waits = Vec::new();
    // The second row group is left out, as one that no row of passes would be.
    for group in (0..12).filter(|group| *group != 1) {
        let started = tokio::time::Instant::now();
        let columns = [0, 2].map(|column| bytes_of(footer.row_group(group).column(column)));
        let got = reader.get_byte_ranges(columns.to_vec()).await.unwrap();
        assert!(got.iter().zip(columns).all(|(got, range)| *got == one.part(range)));
        waits.push(started.elapsed().as_millis());
        // It is decoded.
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(waits, [20, 20, 20, 0, 0, 0, 0, 0, 0, 0, 0]);
    let asked = one.asked();
    assert_eq!(asked.len(), 11, "nothing twice, and nothing that is not read: {asked:?}");
    assert!(reader.get_byte_ranges(vec![bytes_of(footer.row_group(3).column(1))]).await.is_ok());
    assert_eq!(one.asked().len(), 1, "back, and another column: nothing is expected to follow");
}
