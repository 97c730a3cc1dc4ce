use std::io::{ErrorKind as Io, Write};
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};

use datafusion::error::DataFusionError;
use datafusion::execution::memory_pool::GreedyMemoryPool;
use datafusion::execution::runtime_env::RuntimeEnvBuilder;
use datafusion::execution::{SendableRecordBatchStream, SpillWriter};
use datafusion::prelude::{SessionConfig, SessionContext};
use expect_test::expect;
use futures::{StreamExt, TryStreamExt};

use super::*;
use crate::error::ErrorKind;

const MIB: usize = 1 << 20;

/// A folder to spill into, and the limits of all and of each query in bytes.
fn spill(directories: &[&Path], total: usize, query: usize) -> Arc<Spill> {
    let config = Config {
        spill_directories: directories.iter().map(PathBuf::from).collect(),
        spill_limit: ByteSize(total as u64),
        query_spill_limit: Some(ByteSize(query as u64)),
        ..Config::default()
    };
    Spill::new(&config).expect("the directories can be used")
}

fn create(query: &QuerySpill) -> (Arc<dyn SpillFile>, Box<dyn SpillWriter>) {
    let file = query.create_temp_file("a test").expect("there is room");
    let writer = file.open_writer().expect("the file is there");
    (file, writer)
}

async fn read(file: &Arc<dyn SpillFile>) -> Result<Vec<u8>> {
    file.read_stream()?.try_fold(Vec::new(), |all, bytes| async move { Ok([all, bytes.to_vec()].concat()) }).await
}

/// Files and folders below `directory`, the process's own folder and lock left out.
fn found(directory: &Path) -> Vec<PathBuf> {
    let below = |path: &Path| fs::read_dir(path).map_or_else(|_| Vec::new(), Iterator::collect::<Vec<_>>);
    let mut all: Vec<PathBuf> = below(directory).into_iter().map(|entry| entry.expect("an entry").path()).collect();
    let mut index = 0;
    while index < all.len() {
        all.extend(below(&all[index]).into_iter().map(|entry| entry.expect("an entry").path()));
        index += 1;
    }
    all.split_off(2)
}

/// Bytes that do not repeat at the size of a block.
fn pattern(bytes: usize) -> Vec<u8> {
    (0..bytes).map(|index| (index % 251) as u8).collect()
}

#[tokio::test]
async fn what_is_written_is_read_and_nothing_stays() {
    let directory = tempfile::tempdir().expect("a folder");
    let spill = spill(&[directory.path()], 10 * MIB, 10 * MIB);
    let query = spill.query(QueryId::new(), &CancellationToken::new());
    assert_eq!(found(directory.path()).len(), 0, "nothing is made before it is needed");

    let data = pattern(MIB + 5);
    let (file, mut writer) = create(&query);
    for part in [&data[..3], &data[3..100], &data[100..MIB / 2], &data[MIB / 2..]] {
        writer.write_all(part).expect("there is room");
    }
    writer.flush().expect("there is room");
    assert_eq!(read(&file).await.expect_err("the writer may go on").kind(), ErrorKind::Corrupt);
    writer.write_all(&data).expect("there is room");
    writer.finish().expect("there is room");
    drop(writer);
    assert_eq!(read(&file).await.expect("it is whole"), [data.clone(), data.clone()].concat());

    let [folder, path] = &found(directory.path())[..] else { panic!("a folder and a file") };
    let mode = |path: &Path| path.metadata().expect("it is there").mode() & 0o777;
    assert_eq!((mode(folder), mode(path)), (0o700, 0o600));
    let size = 2 * data.len() as u64;
    assert_eq!((file.size(), path.metadata().expect("it is there").len()), (Some(size), size));
    drop(file);
    assert_eq!(found(directory.path()).len(), 1, "the folder, while the query lives");
    assert_eq!((query.files(), query.bytes_written(), query.peak(), spill.used()), (1, size, size, 0));
    drop(query);
    assert_eq!(found(directory.path()).len(), 0);
}

#[tokio::test]
async fn a_query_at_its_quota_fails_alone() {
    let directory = tempfile::tempdir().expect("a folder");
    let spill = spill(&[directory.path()], 3 * MIB, 2 * MIB);
    let (big, small) = (
        spill.query(QueryId::new(), &CancellationToken::new()),
        spill.query(QueryId::new(), &CancellationToken::new()),
    );
    let (big_file, mut big_writer) = create(&big);
    let (small_file, mut small_writer) = create(&small);
    big_writer.write_all(&pattern(2 * MIB)).expect("the last byte of its quota");
    let own = big_writer.write_all(&pattern(MIB)).expect_err("more than its quota");
    small_writer.write_all(&pattern(MIB)).expect("the last byte of all");
    let shared = small_writer.write_all(&pattern(MIB)).expect_err("more than all may");
    expect![[r#"
        exhausted: the query has spilled 2.0 MiB, which is all it may; hint: raise engine.query_spill_limit, or give the query more memory
        exhausted: all queries together may spill 3.0 MiB, and that is used up; hint: try again later, or raise engine.spill_limit"#]].assert_eq(&[own, shared].map(as_told).join("\n"));

    drop((big_file, big_writer));
    small_writer.write_all(&pattern(MIB)).expect("what the other gave back");
    small_writer.finish().expect("nothing is left to write");
    assert_eq!(read(&small_file).await.expect("it is whole").len(), 2 * MIB);
}

#[test]
fn a_query_that_was_cancelled_writes_nothing_more() {
    let directory = tempfile::tempdir().expect("a folder");
    let (spill, cancel) = (spill(&[directory.path()], 10 * MIB, 10 * MIB), CancellationToken::new());
    let query = spill.query(QueryId::new(), &cancel);
    let (file, mut writer) = create(&query);
    writer.write_all(&pattern(MIB)).expect("there is room");
    cancel.cancel();
    assert!(writer.write_all(&pattern(MIB)).is_err());
    drop((file, writer, query));
    assert_eq!((spill.used(), found(directory.path()).len()), (0, 0));
}

/// The kind and the text of an error as Arrow hands it to DataFusion, and DataFusion to us.
fn as_told(error: std::io::Error) -> String {
    let error = Error::from(DataFusionError::from(datafusion::arrow::error::ArrowError::from(error)));
    format!("{}: {error}", error.kind())
}

#[tokio::test]
async fn a_full_disk_is_the_problem_of_one_query() {
    let directory = tempfile::tempdir().expect("a folder");
    let spill = spill(&[directory.path()], 10 * MIB, 10 * MIB);
    let query = spill.query(QueryId::new(), &CancellationToken::new());
    let file = query.create_temp_file("a test").expect("there is room");
    let path = found(directory.path()).pop().expect("the file");
    fs::remove_file(&path).expect("it is there");
    // Writing to this device fails as on a full disk.
    symlink("/dev/full", &path).expect("its place is free");
    let mut writer = file.open_writer().expect("it is there");
    let error = writer.write_all(&pattern(MIB)).expect_err("there is no space");
    let text = as_told(error).replace(&directory.path().display().to_string(), "DIR");
    expect!["exhausted: no space for spilled data in DIR: No space left on device (os error 28); hint: free some there, or add a directory to engine.spill_directories"].assert_eq(&text);
    assert_eq!(spill.used(), 0, "what was not written is not counted");
    drop((file, writer, query));
    assert_eq!(found(directory.path()).len(), 0);
}

#[tokio::test]
async fn every_flipped_bit_and_every_cut_is_found() {
    let directory = tempfile::tempdir().expect("a folder");
    let spill = spill(&[directory.path()], 10 * MIB, 10 * MIB);
    let query = spill.query(QueryId::new(), &CancellationToken::new());
    let (file, mut writer) = create(&query);
    writer.write_all(&pattern(64)).expect("there is room");
    writer.finish().expect("there is room");
    let path = found(directory.path()).pop().expect("the file");
    let written = fs::read(&path).expect("it is there");
    for bit in 0..written.len() * 8 {
        let mut flipped = written.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        fs::write(&path, flipped).expect("it is there");
        assert_eq!(read(&file).await.expect_err("a bit is wrong").kind(), ErrorKind::Corrupt, "bit {bit}");
    }
    for end in [0, 1, 63] {
        fs::write(&path, &written[..end]).expect("it is there");
        assert_eq!(read(&file).await.expect_err("it is cut").kind(), ErrorKind::Corrupt, "cut at {end}");
    }
    fs::write(&path, &written).expect("it is there");
    assert_eq!(read(&file).await.expect("it is as it was"), written);
}

trait Kind {
    fn kind(self) -> ErrorKind;
}

impl Kind for DataFusionError {
    fn kind(self) -> ErrorKind {
        Error::from(self).kind()
    }
}

#[tokio::test]
async fn a_directory_that_fails_is_passed_over() {
    let parent = tempfile::tempdir().expect("a folder");
    let (bad, good) = (parent.path().join("bad"), parent.path().join("good"));
    let spill = spill(&[&bad, &good], 10 * MIB, 10 * MIB);
    fs::remove_dir_all(&bad).expect("it is there");
    let query = spill.query(QueryId::new(), &CancellationToken::new());
    let files: Vec<_> = (0..4).map(|_| create(&query)).collect();
    assert_eq!(found(&good).len(), 5, "a folder and four files");
    fs::remove_dir_all(&good).expect("it is there");
    let error = query.create_temp_file("a test").err().expect("there is nowhere to go");
    assert!(matches!(&error, DataFusionError::IoError(error) if error.kind() == Io::Other), "{error}");
    drop((files, query));
    assert_eq!(spill.used(), 0);
}

const ROWS: usize = 200_000;

/// A sort of some MiB that has one MiB of memory.
async fn sort(query: &QuerySpill) -> SendableRecordBatchStream {
    let runtime = RuntimeEnvBuilder::new()
        .with_memory_pool(Arc::new(GreedyMemoryPool::new(MIB)))
        .with_disk_manager_builder(query.disk_manager())
        .build_arc()
        .expect("it can be built");
    let mut config = SessionConfig::new().with_target_partitions(1).with_batch_size(512);
    config.options_mut().execution.sort_spill_reservation_bytes = 128 << 10;
    let context = SessionContext::new_with_config_rt(config, runtime);
    let sql = format!("SELECT value, value % 977 AS k FROM generate_series(1, {ROWS}) ORDER BY k, value");
    context.sql(&sql).await.expect("it can be planned").execute_stream().await.expect("it can start")
}

#[tokio::test]
async fn a_sort_spills_and_leaves_nothing_however_it_ends() {
    let directory = tempfile::tempdir().expect("a folder");
    let spill = spill(&[directory.path()], 100 * MIB, 100 * MIB);
    let ends = |query: QuerySpill| {
        assert!(query.files() > 2 && query.bytes_written() >= query.peak() && query.peak() > 0, "{query:?}");
        drop(query);
        assert_eq!((found(directory.path()).len(), spill.used()), (0, 0));
    };

    let query = spill.query(QueryId::new(), &CancellationToken::new());
    let rows = sort(&query).await.try_fold(0, |rows, batch| async move { Ok(rows + batch.num_rows()) }).await;
    assert_eq!(rows.expect("there is room"), ROWS);
    ends(query);

    let query = spill.query(QueryId::new(), &CancellationToken::new());
    let mut stopped = sort(&query).await;
    let first = stopped.next().await.expect("there are rows").expect("there is room");
    assert!(first.num_rows() > 0 && found(directory.path()).len() > 2, "the merge reads what was spilled");
    drop(stopped);
    // A read that was under way ends on a thread of its own.
    for _ in 0..500 {
        if spill.used() == 0 {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    ends(query);
}

#[tokio::test]
async fn a_sort_that_needs_more_than_its_quota_leaves_nothing() {
    let directory = tempfile::tempdir().expect("a folder");
    let spill = spill(&[directory.path()], 100 * MIB, MIB / 4);
    let query = spill.query(QueryId::new(), &CancellationToken::new());
    let error = sort(&query).await.try_collect::<Vec<_>>().await.expect_err("more than a quarter of a MiB");
    let error = Error::from(error);
    assert_eq!(error.kind(), ErrorKind::Exhausted);
    expect!["the query has spilled 256.0 KiB, which is all it may; hint: raise engine.query_spill_limit, or give the query more memory"].assert_eq(&error.to_string());
    drop(query);
    assert_eq!((found(directory.path()).len(), spill.used()), (0, 0));

    let none = self::spill(&[directory.path()], 0, 0).query(QueryId::new(), &CancellationToken::new());
    let error = sort(&none).await.try_collect::<Vec<_>>().await.expect_err("it may not spill");
    assert!(error.to_string().contains("Resources exhausted"), "{error}");
}
