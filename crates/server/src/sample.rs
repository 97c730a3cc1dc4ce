//! `updraft sample`: the eight TPC-H tables as Parquet files.
//!
//! A table is cut into parts, one per row group. Workers generate and encode parts, one thread per table appends them in
//! order, so that all cores are busy although most rows are in one table, and memory holds a few row groups at most.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};

use datafusion::arrow::array::RecordBatch;
use datafusion::arrow::datatypes::SchemaRef;
use datafusion::parquet::arrow::ArrowSchemaConverter;
use datafusion::parquet::arrow::arrow_writer::{ArrowColumnChunk, ArrowRowGroupWriterFactory, compute_leaves};
use datafusion::parquet::basic::{Compression, ZstdLevel};
use datafusion::parquet::errors::ParquetError;
use datafusion::parquet::file::properties::WriterProperties;
use datafusion::parquet::file::writer::SerializedFileWriter;
use tpchgen::generators as rows;
use tpchgen_arrow as batches;

/// Rows of a row group. A scan is split at row groups: this is a few MiB of each file, so that even small scales split,
/// and far above what makes the footer or the pages' headers matter.
const ROWS_PER_GROUP: f64 = 250_000.0;

/// The tables and their rows at scale 1.
const TABLES: [(&str, f64); 8] = [
    ("lineitem", 6_001_215.0),
    ("orders", 1_500_000.0),
    ("partsupp", 800_000.0),
    ("part", 200_000.0),
    ("customer", 150_000.0),
    ("supplier", 10_000.0),
    ("nation", 25.0),
    ("region", 5.0),
];

/// Why sample data could not be written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Scale is not a number above 0 that the generator takes.
    #[error("scale {0} is out of range; use a number from 0.001 to 100000, such as 0.1")]
    Scale(f64),
    /// Files of someone else are not overwritten.
    #[error("{0} is not empty; hint: name a new folder, or --force to write into it")]
    NotEmpty(PathBuf),
    /// The folder or a file cannot be made.
    #[error("write {path}: {source}")]
    Io {
        /// The folder or file.
        path: PathBuf,
        /// What the system says.
        #[source]
        source: std::io::Error,
    },
    /// Rows cannot be encoded or written.
    #[error("write {path}: {source}")]
    Parquet {
        /// The file.
        path: PathBuf,
        /// What the encoder says.
        #[source]
        source: ParquetError,
    },
}

/// One finished file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    /// Name of the table.
    pub table: &'static str,
    /// The file, `DIR/<table>.parquet`.
    pub path: PathBuf,
    /// Rows in it.
    pub rows: i64,
    /// Its size in bytes.
    pub bytes: u64,
}

/// Writes `DIR/<table>.parquet` for each of the eight tables and returns them, largest first. Uses all cores, and blocks.
///
/// # Errors
/// A scale out of range, a folder that is not empty without `force`, a full disk. Files of tables that were begun are left.
pub fn write(dir: &Path, scale: f64, force: bool) -> Result<Vec<Written>, Error> {
    if !(0.001..=100_000.0).contains(&scale) {
        return Err(Error::Scale(scale));
    }
    let io = |source| Error::Io { path: dir.to_owned(), source };
    std::fs::create_dir_all(dir).map_err(io)?;
    if !force && std::fs::read_dir(dir).map_err(io)?.next().is_some() {
        return Err(Error::NotEmpty(dir.to_owned()));
    }
    let workers = std::thread::available_parallelism().map_or(1, usize::from);
    TABLES.iter().map(|&(table, rows_at_1)| write_table(dir, table, scale, rows_at_1, workers)).collect()
}

type Part = (usize, Result<Vec<ArrowColumnChunk>, ParquetError>);

fn write_table(dir: &Path, table: &'static str, scale: f64, rows_at_1: f64, workers: usize) -> Result<Written, Error> {
    let path = dir.join(format!("{table}.parquet"));
    // nation and region are the same at every scale, and come in one part.
    let parts = if rows_at_1 < 100.0 { 1 } else { (rows_at_1 * scale / ROWS_PER_GROUP).ceil().max(1.0) as usize };
    let parquet = |source| Error::Parquet { path: path.clone(), source };
    let file = File::create(&path).map_err(|source| Error::Io { path: path.clone(), source })?;

    let schema = generate(table, scale, 1, parts).1;
    let properties =
        Arc::new(WriterProperties::builder().set_compression(Compression::ZSTD(ZstdLevel::default())).build());
    // The Arrow schema is left out: it would ask readers for string views, which older ones do not know.
    let root = ArrowSchemaConverter::new().convert(&schema).map_err(parquet)?.root_schema_ptr();
    let mut writer = SerializedFileWriter::new(std::io::BufWriter::new(file), root, properties).map_err(parquet)?;
    let factory = ArrowRowGroupWriterFactory::new(&writer, Arc::clone(&schema));

    let next = AtomicUsize::new(0);
    let rows = std::thread::scope(|scope| -> Result<i64, ParquetError> {
        let (sender, receiver) = sync_channel::<Part>(workers);
        for _ in 0..workers.min(parts) {
            let sender = sender.clone();
            let (next, factory) = (&next, &factory);
            scope.spawn(move || encode_parts(table, scale, parts, next, factory, &sender));
        }
        drop(sender);
        // Parts arrive in nearly the order they were taken; those too early wait here.
        let mut early = std::collections::BTreeMap::new();
        let mut rows = 0;
        for wanted in 0..parts {
            let chunks = loop {
                if let Some(chunks) = early.remove(&wanted) {
                    break chunks;
                }
                let (part, chunks) =
                    receiver.recv().map_err(|_| ParquetError::General("a worker ended early".to_owned()))?;
                early.insert(part, chunks?);
            };
            let mut group = writer.next_row_group()?;
            for chunk in chunks {
                chunk.append_to_row_group(&mut group)?;
            }
            rows += group.close()?.num_rows();
        }
        Ok(rows)
    })
    .map_err(parquet)?;
    writer.close().map_err(parquet)?;
    let bytes = std::fs::metadata(&path).map_err(|source| Error::Io { path: path.clone(), source })?.len();
    Ok(Written { table, path, rows, bytes })
}

/// Takes parts until none is left or the writer has given up.
fn encode_parts(
    table: &str,
    scale: f64,
    parts: usize,
    next: &AtomicUsize,
    factory: &ArrowRowGroupWriterFactory,
    sender: &SyncSender<Part>,
) {
    loop {
        let part = next.fetch_add(1, Ordering::Relaxed);
        if part >= parts || sender.send((part, encode(table, scale, part, parts, factory))).is_err() {
            return;
        }
    }
}

fn encode(
    table: &str,
    scale: f64,
    part: usize,
    parts: usize,
    factory: &ArrowRowGroupWriterFactory,
) -> Result<Vec<ArrowColumnChunk>, ParquetError> {
    let (batches, schema) = generate(table, scale, part + 1, parts);
    let mut writers = factory.create_column_writers(part)?;
    for batch in batches {
        // No column is nested, so each is one leaf.
        let leaves = schema.fields().iter().zip(batch.columns()).map(|(field, column)| compute_leaves(field, column));
        for (writer, leaves) in writers.iter_mut().zip(leaves) {
            for leaf in leaves? {
                writer.write(&leaf)?;
            }
        }
    }
    writers.into_iter().map(|writer| writer.close()).collect()
}

type Batches = Box<dyn Iterator<Item = RecordBatch>>;

/// The rows of part `part` (from 1) of `parts`.
fn generate(table: &str, scale: f64, part: usize, parts: usize) -> (Batches, SchemaRef) {
    fn boxed<I: batches::RecordBatchIterator + 'static>(batches: I) -> (Batches, SchemaRef) {
        let schema = Arc::clone(batches.schema());
        (Box::new(batches), schema)
    }
    // At the largest scale there are 2.4 million parts.
    let (part, parts) = (part as i32, parts as i32);
    match table {
        "lineitem" => boxed(batches::LineItemArrow::new(rows::LineItemGenerator::new(scale, part, parts))),
        "orders" => boxed(batches::OrderArrow::new(rows::OrderGenerator::new(scale, part, parts))),
        "partsupp" => boxed(batches::PartSuppArrow::new(rows::PartSuppGenerator::new(scale, part, parts))),
        "part" => boxed(batches::PartArrow::new(rows::PartGenerator::new(scale, part, parts))),
        "customer" => boxed(batches::CustomerArrow::new(rows::CustomerGenerator::new(scale, part, parts))),
        "supplier" => boxed(batches::SupplierArrow::new(rows::SupplierGenerator::new(scale, part, parts))),
        "nation" => boxed(batches::NationArrow::new(rows::NationGenerator::new(scale, part, parts))),
        _ => boxed(batches::RegionArrow::new(rows::RegionGenerator::new(scale, part, parts))),
    }
}

#[cfg(test)]
mod tests {
    use super::{Error, write};
    use datafusion::parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

    #[test]
    fn tables_are_complete_and_readable() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let tables = write(&dir.path().join("new"), 0.001, false).expect("sample data");
        let counts: Vec<_> = tables.iter().map(|table| (table.table, table.rows)).collect();
        let expected = [
            ("lineitem", 6005),
            ("orders", 1500),
            ("partsupp", 800),
            ("part", 200),
            ("customer", 150),
            ("supplier", 10),
            ("nation", 25),
            ("region", 5),
        ];
        assert_eq!(counts, expected);
        for table in tables {
            let file = std::fs::File::open(&table.path).expect("the file that was written");
            let reader = ParquetRecordBatchReaderBuilder::try_new(file)
                .and_then(|reader| reader.build())
                .expect("a Parquet file");
            let rows: usize = reader.map(|batch| batch.expect("a readable batch").num_rows()).sum();
            assert_eq!(rows as i64, table.rows, "{}", table.table);
        }
    }

    #[test]
    fn files_of_others_are_left_alone() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        std::fs::write(dir.path().join("mine"), "x").expect("a file");
        assert!(matches!(write(dir.path(), 0.001, false), Err(Error::NotEmpty(_))));
        assert!(write(dir.path(), 0.001, true).is_ok());
        for scale in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            assert!(matches!(write(dir.path(), scale, true), Err(Error::Scale(_))), "{scale}");
        }
    }
}
