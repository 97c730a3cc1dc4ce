//! Rows as text or files, written as they arrive.

use std::fs::File;
use std::io::{self, BufWriter, IsTerminal, Write};
use std::sync::Arc;

use datafusion::arrow::array::RecordBatch;
use datafusion::arrow::csv;
use datafusion::arrow::datatypes::{Schema, SchemaRef};
use datafusion::arrow::error::ArrowError;
use datafusion::arrow::ipc::writer::StreamWriter;
use datafusion::arrow::json;
use datafusion::arrow::util::pretty::pretty_format_batches_with_schema;
use datafusion::parquet::arrow::ArrowWriter;
use datafusion::parquet::basic::{Compression, ZstdLevel};
use datafusion::parquet::file::properties::WriterProperties;

use super::{Error, Job};

/// How rows are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// A table for people; long results are cut (see --max-rows)
    Table,
    /// CSV with a header
    Csv,
    /// One JSON object per line
    Json,
    /// Arrow IPC stream
    Arrow,
    /// One Parquet file
    Parquet,
}

type Sink = Box<dyn Write + Send>;

/// The rows' way out. The encoder is made when the first batch, or the end, tells the schema.
pub(super) struct Output {
    format: Format,
    rows_max: usize,
    terminal: bool,
    sink: Option<Sink>,
    encoder: Option<Encoder>,
}

enum Encoder {
    Table { sink: Sink, schema: SchemaRef, batches: Vec<RecordBatch>, rows: usize, cut: bool },
    Csv(Box<csv::Writer<Sink>>),
    Json(json::LineDelimitedWriter<Sink>),
    Arrow(StreamWriter<Sink>),
    Parquet(Box<ArrowWriter<Sink>>),
}

impl Output {
    /// Opens the file or standard output, before anything is asked of a server.
    pub(super) fn open(job: &Job) -> Result<Self, Error> {
        let terminal = job.output.is_none() && io::stdout().is_terminal();
        match job.format {
            Format::Arrow if terminal => return Err(Error::Terminal("an Arrow stream")),
            Format::Parquet if terminal => return Err(Error::Terminal("a Parquet file")),
            _ => {}
        }
        let sink: Sink = match &job.output {
            Some(path) => Box::new(BufWriter::new(File::create(path).map_err(|error| {
                let text = format!("{}: {error}", path.display());
                Error::Write(ArrowError::IoError(text, error))
            })?)),
            None => Box::new(BufWriter::new(io::stdout())),
        };
        Ok(Self { format: job.format, rows_max: job.table_rows_max, terminal, sink: Some(sink), encoder: None })
    }

    pub(super) fn is_terminal(&self) -> bool {
        self.terminal
    }

    /// Tells the schema; a result without rows has one too.
    pub(super) fn begin(&mut self, schema: &SchemaRef) -> Result<(), ArrowError> {
        if let Some(sink) = self.sink.take() {
            self.encoder = Some(Encoder::new(self.format, sink, schema)?);
        }
        Ok(())
    }

    /// Writes a batch. False: no more rows are wanted.
    pub(super) fn write(&mut self, batch: &RecordBatch) -> Result<bool, ArrowError> {
        self.begin(&batch.schema())?;
        match &mut self.encoder {
            Some(encoder) => encoder.write(batch, self.rows_max),
            None => Ok(true),
        }
    }

    /// Writes what is held back and what ends a file.
    pub(super) fn finish(mut self) -> Result<(), ArrowError> {
        // A result without any endpoint has no schema either.
        self.begin(&Arc::new(Schema::empty()))?;
        self.encoder.map_or(Ok(()), Encoder::finish)
    }
}

impl Encoder {
    fn new(format: Format, sink: Sink, schema: &SchemaRef) -> Result<Self, ArrowError> {
        Ok(match format {
            Format::Table => Self::Table { sink, schema: Arc::clone(schema), batches: Vec::new(), rows: 0, cut: false },
            Format::Csv => {
                // The writer puts the header before the first batch; an empty one makes it appear when there are no rows.
                let mut writer = csv::Writer::new(sink);
                writer.write(&RecordBatch::new_empty(Arc::clone(schema)))?;
                Self::Csv(Box::new(writer))
            }
            Format::Json => Self::Json(json::LineDelimitedWriter::new(sink)),
            Format::Arrow => Self::Arrow(StreamWriter::try_new(sink, schema)?),
            Format::Parquet => {
                let properties =
                    WriterProperties::builder().set_compression(Compression::ZSTD(ZstdLevel::default())).build();
                Self::Parquet(Box::new(ArrowWriter::try_new(sink, Arc::clone(schema), Some(properties))?))
            }
        })
    }

    fn write(&mut self, batch: &RecordBatch, rows_max: usize) -> Result<bool, ArrowError> {
        match self {
            Self::Table { batches, rows, cut, .. } => {
                let wanted = batch.num_rows().min(rows_max - *rows);
                batches.push(batch.slice(0, wanted));
                *rows += wanted;
                *cut = wanted < batch.num_rows();
                return Ok(!*cut);
            }
            Self::Csv(writer) => writer.write(batch)?,
            Self::Json(writer) => writer.write(batch)?,
            Self::Arrow(writer) => writer.write(batch)?,
            Self::Parquet(writer) => writer.write(batch)?,
        }
        Ok(true)
    }

    fn finish(self) -> Result<(), ArrowError> {
        let mut sink = match self {
            Self::Table { mut sink, schema, batches, rows, cut } => {
                if !schema.fields().is_empty() {
                    writeln!(sink, "{}", pretty_format_batches_with_schema(schema, &batches)?)?;
                }
                let plural = if rows == 1 { "" } else { "s" };
                if cut {
                    writeln!(
                        sink,
                        "(the first {rows} row{plural}; there are more: raise --max-rows, or choose another --format)"
                    )?;
                } else {
                    writeln!(sink, "({rows} row{plural})")?;
                }
                sink
            }
            Self::Csv(writer) => writer.into_inner(),
            Self::Json(mut writer) => {
                writer.finish()?;
                writer.into_inner()
            }
            Self::Arrow(writer) => writer.into_inner()?,
            Self::Parquet(writer) => writer.into_inner()?,
        };
        Ok(sink.flush()?)
    }
}

#[cfg(test)]
mod tests {
    use super::{Format, Output};
    use crate::query::Job;
    use datafusion::arrow::array::{Int64Array, RecordBatch, StringArray};
    use datafusion::arrow::ipc::reader::StreamReader;
    use datafusion::parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
    use expect_test::expect;
    use std::sync::Arc;

    fn batch(rows: std::ops::Range<i64>) -> RecordBatch {
        let names: Vec<Option<String>> = rows.clone().map(|row| (row % 2 == 0).then(|| format!("n,{row}"))).collect();
        let columns: Vec<(&str, datafusion::arrow::array::ArrayRef)> =
            vec![("id", Arc::new(Int64Array::from_iter_values(rows))), ("name", Arc::new(StringArray::from(names)))];
        RecordBatch::try_from_iter(columns).expect("columns of one length")
    }

    fn written(format: Format, batches: &[RecordBatch], rows_max: usize) -> Vec<u8> {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("out");
        let job = Job { sql: String::new(), format, output: Some(path.clone()), table_rows_max: rows_max };
        let mut output = Output::open(&job).expect("a file");
        for batch in batches {
            if !output.write(batch).expect("a batch written") {
                break;
            }
        }
        output.begin(&batch(0..0).schema()).expect("a schema");
        output.finish().expect("the end written");
        std::fs::read(path).expect("the file")
    }

    fn text(format: Format, batches: &[RecordBatch], rows_max: usize) -> String {
        String::from_utf8(written(format, batches, rows_max)).expect("text")
    }

    #[test]
    fn tables_end_with_their_number_of_rows_and_are_cut() {
        expect![[r#"
            +----+------+
            | id | name |
            +----+------+
            | 0  | n,0  |
            | 1  |      |
            | 2  | n,2  |
            +----+------+
            (3 rows)
        "#]]
        .assert_eq(&text(Format::Table, &[batch(0..2), batch(2..3)], 3));
        expect![[r#"
            +----+------+
            | id | name |
            +----+------+
            | 0  | n,0  |
            +----+------+
            (the first 1 row; there are more: raise --max-rows, or choose another --format)
        "#]]
        .assert_eq(&text(Format::Table, &[batch(0..2), batch(2..3)], 1));
        expect![[r#"
            +----+------+
            | id | name |
            +----+------+
            +----+------+
            (0 rows)
        "#]]
        .assert_eq(&text(Format::Table, &[], 3));
    }

    #[test]
    fn csv_and_json_are_what_programs_read() {
        expect![[r#"
            id,name
            0,"n,0"
            1,
        "#]]
        .assert_eq(&text(Format::Csv, &[batch(0..1), batch(1..2)], 0));
        expect![[r#"
            id,name
        "#]]
        .assert_eq(&text(Format::Csv, &[], 0));
        expect![[r#"
            {"id":0,"name":"n,0"}
            {"id":1}
        "#]]
        .assert_eq(&text(Format::Json, &[batch(0..1), batch(1..2)], 0));
    }

    #[test]
    fn binary_formats_are_whole_files() {
        for batches in [vec![], vec![batch(0..3), batch(3..5)]] {
            let expected: usize = batches.iter().map(RecordBatch::num_rows).sum();
            let arrow = written(Format::Arrow, &batches, 0);
            let reader = StreamReader::try_new(arrow.as_slice(), None).expect("an Arrow stream");
            assert_eq!(reader.map(|batch| batch.expect("a batch").num_rows()).sum::<usize>(), expected);
            let parquet = bytes::Bytes::from(written(Format::Parquet, &batches, 0));
            let reader = ParquetRecordBatchReaderBuilder::try_new(parquet)
                .and_then(|reader| reader.build())
                .expect("a Parquet file");
            assert_eq!(reader.map(|batch| batch.expect("a batch").num_rows()).sum::<usize>(), expected);
        }
    }
}
