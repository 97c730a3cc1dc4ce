//! CSV and NDJSON: guessing columns from the beginning of a file, and decoding the rest in pieces.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use datafusion::arrow::array::RecordBatch;
use datafusion::arrow::csv;
use datafusion::arrow::datatypes::{DataType, Field, FieldRef, Fields, Schema, SchemaRef};
use datafusion::arrow::error::ArrowError;
use datafusion::arrow::json;
use datafusion::datasource::listing::PartitionedFile;
use datafusion::error::{DataFusionError, Result as DfResult};
use datafusion_datasource::boundary_stream::AlignedBoundaryStream;
use datafusion_datasource::decoder::{Decoder, DecoderDeserializer, deserialize_stream};
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use object_store::path::Path;
use object_store::{GetOptions, ObjectStore};

use crate::config::{Compression, Format};
use crate::formats::Text;
use crate::pinned::PinnedStore;

/// Text (bytes, decompressed) from which columns are guessed at most.
const HEAD_MAX: usize = 1 << 20;

/// What the beginning of a text file told.
#[derive(Debug)]
pub(crate) struct Guess {
    pub(crate) schema: Schema,
    /// A quoted value holds a line break.
    pub(crate) quoted_newlines: bool,
}

/// Guesses the columns of one file.
pub(crate) async fn guess(
    store: &Arc<PinnedStore>,
    location: &Path,
    name: &str,
    format: Format,
    compression: Compression,
    text: &Text,
) -> DfResult<Guess> {
    let (head, whole) = head(store, location, compression).await?;
    let head = head.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&head);
    if format == Format::Json {
        let end =
            if whole { head.len() } else { head.iter().rposition(|b| *b == b'\n').map_or(head.len(), |at| at + 1) };
        let (schema, _) = json::reader::infer_json_schema(&head[..end], Some(text.infer_rows))?;
        return Ok(Guess { schema: in_order_of_appearance(&schema, head), quoted_newlines: false });
    }
    let (end, quoted_newlines) = last_record(head, text);
    let end = if whole || end == 0 { head.len() } else { end };
    let mut format = csv::reader::Format::default()
        .with_header(text.header)
        .with_delimiter(text.delimiter(name))
        .with_quote(text.quote);
    if let Some(escape) = text.escape {
        format = format.with_escape(escape);
    }
    if let Some(comment) = text.comment {
        format = format.with_comment(comment);
    }
    if let Some(null) = &text.null {
        format = format.with_null_regex(null.clone());
    }
    let (schema, _) = format.infer_schema(&head[..end], Some(text.infer_rows))?;
    Ok(Guess { schema, quoted_newlines })
}

/// The beginning of a file, decompressed, and whether that is all of it.
async fn head(store: &Arc<PinnedStore>, location: &Path, compression: Compression) -> DfResult<(Bytes, bool)> {
    let mut options = GetOptions::default();
    if compression == Compression::None {
        options.range = Some((0..HEAD_MAX as u64 + 1).into());
    }
    let raw = store.get_opts(location, options).await?.into_stream().map_err(DataFusionError::from).boxed();
    let mut plain = compression.codec().convert_stream(raw)?;
    let mut head = BytesMut::new();
    while head.len() <= HEAD_MAX {
        match plain.try_next().await? {
            Some(bytes) => head.extend_from_slice(&bytes),
            None => return Ok((head.freeze(), true)),
        }
    }
    Ok((head.freeze(), false))
}

/// Where the last complete record ends, and whether a line break was inside quotes before that.
fn last_record(head: &[u8], text: &Text) -> (usize, bool) {
    let (mut quoted, mut breaks, mut end, mut breaks_at_end, mut at) = (false, false, 0, false, 0);
    while at < head.len() {
        let byte = head[at];
        if Some(byte) == text.escape && quoted {
            at += 1;
        } else if byte == text.quote {
            quoted = !quoted;
        } else if byte == b'\n' {
            if quoted {
                breaks = true;
            } else {
                (end, breaks_at_end) = (at + 1, breaks);
            }
        }
        at += 1;
    }
    (end, breaks_at_end)
}

/// Arrow guesses the columns of JSON in no order; they come in the order in which the text names them.
fn in_order_of_appearance(schema: &Schema, head: &[u8]) -> Schema {
    let text = String::from_utf8_lossy(head);
    let place = |field: &FieldRef| {
        let quoted = format!("\"{}\"", field.name());
        text.find(&quoted).unwrap_or(usize::MAX)
    };
    fn sort(fields: &Fields, place: &dyn Fn(&FieldRef) -> usize) -> Fields {
        let mut sorted: Vec<FieldRef> = fields.iter().map(|field| inner(field, place)).collect();
        sorted.sort_by_cached_key(|field| (place(field), field.name().clone()));
        sorted.into()
    }
    fn inner(field: &FieldRef, place: &dyn Fn(&FieldRef) -> usize) -> FieldRef {
        let data_type = match field.data_type() {
            DataType::Struct(fields) => DataType::Struct(sort(fields, place)),
            DataType::List(item) => DataType::List(inner(item, place)),
            _ => return field.clone(),
        };
        Arc::new(field.as_ref().clone().with_data_type(data_type))
    }
    Schema::new(sort(schema.fields(), &place))
}

/// The rows of a CSV file, or of the part of it that `file` names, as the columns of `target` that the file has.
pub(crate) async fn csv(
    store: Arc<PinnedStore>,
    file: PartitionedFile,
    physical: SchemaRef,
    target: SchemaRef,
    compression: Compression,
    text: &Text,
    batch_size: usize,
) -> DfResult<BoxStream<'static, DfResult<RecordBatch>>> {
    let wanted = target.fields().iter().filter_map(|field| physical.index_of(field.name()).ok()).collect();
    // CSV is read by place, so the file's own order counts; the types are the table's.
    let fields = physical.fields().iter().map(|field| match target.field_with_name(field.name()) {
        Ok(target) => Field::new(field.name(), target.data_type().clone(), true),
        Err(_) => Field::new(field.name(), DataType::Utf8, true),
    });
    let starts_at = file.range.as_ref().map_or(0, |range| range.start);
    let name = file.object_meta.location.filename().unwrap_or_default().to_owned();
    let mut builder = csv::ReaderBuilder::new(Arc::new(Schema::new(fields.collect::<Vec<_>>())))
        .with_header(text.header && starts_at == 0)
        .with_delimiter(text.delimiter(&name))
        .with_quote(text.quote)
        .with_batch_size(batch_size)
        .with_projection(wanted);
    if let Some(escape) = text.escape {
        builder = builder.with_escape(escape);
    }
    if let Some(comment) = text.comment {
        builder = builder.with_comment(comment);
    }
    if let Some(null) = &text.null {
        builder = builder.with_null_regex(null.clone());
    }
    let part = file.range.is_some() && compression == Compression::None && text.comment.is_none();
    let mut bytes = open(store, file, compression).await?;
    if part {
        bytes = whole_values(bytes, text.quote, text.escape);
    }
    Ok(decode(bytes, CsvDecoder(builder.build_decoder())))
}

/// The rows of an NDJSON file, or of the part of it that `file` names, as the columns of `target`.
pub(crate) async fn json(
    store: Arc<PinnedStore>,
    file: PartitionedFile,
    target: SchemaRef,
    compression: Compression,
    batch_size: usize,
) -> DfResult<BoxStream<'static, DfResult<RecordBatch>>> {
    let decoder = json::ReaderBuilder::new(target).with_batch_size(batch_size).build_decoder()?;
    Ok(decode(open(store, file, compression).await?, JsonDecoder(decoder)))
}

type ByteStream = BoxStream<'static, DfResult<Bytes>>;

/// The lines of a file, or of a part of it. A compressed file can not be entered in the middle: its first part is all of it.
async fn open(store: Arc<PinnedStore>, file: PartitionedFile, compression: Compression) -> DfResult<ByteStream> {
    let location = file.object_meta.location;
    let raw = match file.range {
        Some(range) if compression == Compression::None => {
            let (start, end) = (range.start.unsigned_abs(), range.end.unsigned_abs());
            let store = store as Arc<dyn ObjectStore>;
            let size = file.object_meta.size;
            let lines = AlignedBoundaryStream::new(store, location, start, end, size, b'\n').await?;
            lines.map_err(DataFusionError::from).boxed()
        }
        Some(range) if range.start > 0 => return Ok(futures::stream::empty().boxed()),
        _ => {
            let got = store.get_opts(&location, GetOptions::default()).await?;
            got.into_stream().map_err(DataFusionError::from).boxed()
        }
    };
    compression.codec().convert_stream(raw)
}

fn decode(bytes: ByteStream, decoder: impl Decoder + 'static) -> BoxStream<'static, DfResult<RecordBatch>> {
    deserialize_stream(bytes.fuse(), DecoderDeserializer::new(decoder)).map_err(DataFusionError::from).boxed()
}

/// Parts are cut at line breaks. If no part has an odd number of quotes, no cut was inside of a value (the first part starts
/// outside, so it ends outside, so the next starts outside ...); else the rows would be wrong, and this is an error.
fn whole_values(bytes: ByteStream, quote: u8, escape: Option<u8>) -> ByteStream {
    let state = (bytes, false, false);
    futures::stream::try_unfold(state, move |(mut bytes, mut odd, mut escaped)| async move {
        let Some(piece) = bytes.try_next().await? else {
            if odd {
                return Err(DataFusionError::Execution(
                    "a quoted value holds a line break, so the file can not be read in parts; \
                     set newlines_in_values = true for this table in catalog.tables"
                        .to_owned(),
                ));
            }
            return Ok(None);
        };
        for &byte in &piece {
            if escaped {
                escaped = false;
            } else if Some(byte) == escape {
                escaped = true;
            } else if byte == quote {
                odd = !odd;
            }
        }
        Ok(Some((piece, (bytes, odd, escaped))))
    })
    .boxed()
}

#[derive(Debug)]
struct CsvDecoder(csv::reader::Decoder);

impl Decoder for CsvDecoder {
    fn decode(&mut self, bytes: &[u8]) -> Result<usize, ArrowError> {
        self.0.decode(bytes)
    }

    fn flush(&mut self) -> Result<Option<RecordBatch>, ArrowError> {
        self.0.flush()
    }

    fn can_flush_early(&self) -> bool {
        self.0.capacity() == 0
    }
}

#[derive(Debug)]
struct JsonDecoder(json::reader::Decoder);

impl Decoder for JsonDecoder {
    fn decode(&mut self, bytes: &[u8]) -> Result<usize, ArrowError> {
        self.0.decode(bytes)
    }

    fn flush(&mut self) -> Result<Option<RecordBatch>, ArrowError> {
        self.0.flush()
    }

    fn can_flush_early(&self) -> bool {
        false
    }
}
