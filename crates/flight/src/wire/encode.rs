//! Record batches into Flight messages.
//!
//! arrow-flight's own encoder is not used: it measures whole buffers and so cuts slices of large arrays into tiny
//! messages, announces large lists as lists, and sends nothing for an empty result, which several clients take for an
//! error. Here the schema is a message of its own, and a batch becomes messages of at most the size given.

use std::sync::Arc;

use arrow_ipc::CompressionType;
use arrow_ipc::writer::{DictionaryTracker, IpcDataGenerator, IpcWriteOptions, StreamEncoder, write_message};
use bytes::Bytes;
use datafusion::arrow::array::{
    Array, ArrayRef, AsArray, FixedSizeListArray, GenericListArray, MapArray, OffsetSizeTrait, RecordBatch,
    RecordBatchOptions, StructArray, UInt64Array, UnionArray,
};
use datafusion::arrow::compute::{cast, take};
use datafusion::arrow::datatypes::{DataType, FieldRef, Schema, SchemaRef, UnionMode};
use datafusion::arrow::error::ArrowError;
use parking_lot::Mutex;
use updraft_engine::Weight;

use super::convert::{Piece, cut, layout, to_wire, used_values, view_bytes, views_waste};
use super::message::Message;
use super::options::{Compression, WireOptions};
use super::types::wire_schema;

/// Why a result could not be put on the wire.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WireError {
    /// A batch does not fit the schema announced to the client, or one of its values has no form there.
    #[error("convert a result batch to the types announced")]
    Convert {
        /// What arrow found.
        #[source]
        source: ArrowError,
    },
    /// A batch could not be written as an IPC message.
    #[error("encode a result batch")]
    Encode {
        /// What arrow found.
        #[source]
        source: ArrowError,
    },
}

/// The encoder of one stream. It is synchronous and does the work of the CPU: conversion, compression.
pub(crate) struct Encoder {
    schema: SchemaRef,
    layout: SchemaRef,
    schema_message: Message,
    bytes_max: usize,
    write: IpcWriteOptions,
    goes_side_by_side: bool,
    /// As many as pieces were encoded at the same time. They keep what takes long to make, such as the state of a codec, and
    /// know which dictionaries went.
    idle: Mutex<Vec<Writer>>,
}

struct Writer {
    stream: StreamEncoder,
    /// The stream of IPC begins with the schema, which went before.
    is_begun: bool,
}

impl Encoder {
    /// An encoder of batches into `wire_schema` (from [`super::wire_schema`], metadata included), with messages of at
    /// most `message_size` bytes of data. One row wider than that, and a dictionary, go in one message whatever their size.
    ///
    /// Fails for a dictionary of dictionaries, which IPC does not know.
    pub(crate) fn new(wire_schema: SchemaRef, options: &WireOptions, message_size: usize) -> Result<Self, WireError> {
        let encode = |source| WireError::Encode { source };
        let compression = options.compression.map(|compression| match compression {
            Compression::Lz4 => CompressionType::LZ4_FRAME,
            Compression::Zstd => CompressionType::ZSTD,
        });
        let write = IpcWriteOptions::default()
            .try_with_compression(compression)
            .expect("the default metadata version is V5, which knows compression");
        let mut dictionaries = DictionaryTracker::new(false);
        let schema = IpcDataGenerator::default().schema_to_bytes_with_dictionary_tracker(
            &wire_schema,
            &mut dictionaries,
            &write,
        );
        Ok(Self {
            schema_message: Message::new(&schema.ipc_message, Vec::new()).map_err(encode)?,
            bytes_max: message_size.max(1),
            idle: Mutex::new(vec![Writer::new(&wire_schema, write.clone()).map_err(encode)?]),
            write,
            goes_side_by_side: compression.is_some() && !has_dictionaries(&wire_schema),
            layout: layout(&wire_schema),
            schema: wire_schema,
        })
    }

    /// Whether pieces are to be encoded side by side: each takes long, and none knows what others sent. Without compression
    /// one core encodes several times what a client takes.
    pub(crate) fn goes_side_by_side(&self) -> bool {
        self.goes_side_by_side
    }

    /// What the batches are sent as.
    pub(crate) fn wire_schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    /// The first message of the stream. It must be sent whether or not batches follow.
    pub(crate) fn schema(&self) -> Message {
        self.schema_message.clone()
    }

    /// The pieces of one batch of the query, to be sent in this order: none if it has no rows.
    pub(crate) fn cut(&self, batch: &RecordBatch) -> Result<Vec<Piece>, WireError> {
        if batch.num_rows() == 0 {
            return Ok(Vec::new());
        }
        cut(batch, &self.schema, self.bytes_max).map_err(|source| WireError::Convert { source })
    }

    /// The messages of one piece: dictionaries that are new, and a record batch.
    pub(crate) fn piece(&self, piece: &Piece) -> Result<Vec<Message>, WireError> {
        let converted = to_wire(&piece.rows, &self.schema, &self.layout);
        let converted = converted.map_err(|source| WireError::Convert { source })?;
        let encode = |source| WireError::Encode { source };
        let idle = self.idle.lock().pop();
        let mut writer = idle.map_or_else(|| Writer::new(&self.schema, self.write.clone()), Ok).map_err(encode)?;
        let messages = writer.write(&converted).map_err(encode)?;
        self.idle.lock().push(writer);
        Ok(messages)
    }

    /// The messages of one batch of the query, all at once.
    pub(crate) fn batch(&self, batch: &RecordBatch) -> Result<Vec<Message>, WireError> {
        let messages = self.cut(batch)?.iter().map(|piece| self.piece(piece)).collect::<Result<Vec<_>, _>>()?;
        Ok(messages.into_iter().flatten().collect())
    }
}

impl Writer {
    fn new(schema: &Schema, write: IpcWriteOptions) -> Result<Self, ArrowError> {
        Ok(Self { stream: StreamEncoder::try_new_with_options(schema, write)?, is_begun: false })
    }

    fn write(&mut self, batch: &RecordBatch) -> Result<Vec<Message>, ArrowError> {
        let columns = batch.columns().iter().map(compact).collect::<Result<Vec<_>, _>>()?;
        let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
        let batch = RecordBatch::try_new_with_options(batch.schema(), columns, &options)?;
        let mut messages = Message::of_stream(self.stream.encode(&batch)?)?;
        if !std::mem::replace(&mut self.is_begun, true) {
            messages.remove(0);
        }
        Ok(messages)
    }
}

/// Whether a column, or what is in one, is sent as a dictionary.
fn has_dictionaries(schema: &Schema) -> bool {
    schema.flattened_fields().iter().any(|field| matches!(field.data_type(), DataType::Dictionary(..)))
}

/// Encodes `batch` into messages of about `message_size` bytes; for benches. Returns the bytes of all, or `None` if it cannot be
/// sent.
pub fn encode_for_bench(batch: &RecordBatch, options: &WireOptions, message_size: usize) -> Option<usize> {
    let schema = Arc::new(wire_schema(&batch.schema(), options));
    let messages = Encoder::new(schema, options, message_size).and_then(|encoder| encoder.batch(batch));
    Some(messages.ok()?.iter().map(Weight::weight).sum())
}

/// `schema` as an encapsulated IPC message: what FlightInfo, SchemaResult, prepared statements and `table_schema` carry.
pub(crate) fn schema_bytes(schema: &Schema) -> Result<Bytes, ArrowError> {
    let write = IpcWriteOptions::default();
    let mut dictionaries = DictionaryTracker::new(false);
    let encoded =
        IpcDataGenerator::default().schema_to_bytes_with_dictionary_tracker(schema, &mut dictionaries, &write);
    let mut bytes = Vec::new();
    write_message(&mut bytes, encoded, &write)?;
    Ok(bytes.into())
}

/// Whether arrow's writer would send more than the rows of a sliced array of this type, or send it wrongly.
fn needs_compaction(data_type: &DataType) -> bool {
    match data_type {
        DataType::Utf8View
        | DataType::BinaryView
        | DataType::ListView(_)
        | DataType::LargeListView(_)
        | DataType::Union(..) => true,
        DataType::List(item)
        | DataType::LargeList(item)
        | DataType::Map(item, _)
        | DataType::FixedSizeList(item, _) => needs_compaction(item.data_type()),
        DataType::Struct(fields) => fields.iter().any(|field| needs_compaction(field.data_type())),
        _ => false,
    }
}

/// `array` with the same values and little more: views copied out of buffers they use less than half of, children of
/// list views and dense unions cut down to the rows that are used, unions inside lists moved to the front of their
/// buffers (arrow's writer takes them from row 0 wherever the list begins).
fn compact(array: &ArrayRef) -> Result<ArrayRef, ArrowError> {
    if !needs_compaction(array.data_type()) {
        return Ok(Arc::clone(array));
    }
    let nulls = || array.nulls().cloned();
    match array.data_type() {
        DataType::Utf8View | DataType::BinaryView => {
            let (used, held) = view_bytes(array);
            Ok(match array.data_type() {
                _ if !views_waste(used, held) => Arc::clone(array),
                DataType::Utf8View => Arc::new(array.as_string_view().gc()),
                _ => Arc::new(array.as_binary_view().gc()),
            })
        }
        // The way over a list lays the items out row by row.
        DataType::ListView(item) => {
            let list = cast(array, &DataType::List(Arc::clone(item)))?;
            cast(&compact(&list)?, array.data_type())
        }
        DataType::LargeListView(item) => {
            let list = cast(array, &DataType::LargeList(Arc::clone(item)))?;
            cast(&compact(&list)?, array.data_type())
        }
        DataType::List(item) => compact_list::<i32>(array, item),
        DataType::LargeList(item) => compact_list::<i64>(array, item),
        DataType::Map(entries, sorted) => {
            let map = array.as_map();
            let (offsets, values) = used_values(map.offsets(), &(Arc::new(map.entries().clone()) as ArrayRef))?;
            let values = compact(&values)?.as_struct().clone();
            Ok(Arc::new(MapArray::try_new(Arc::clone(entries), offsets, values, nulls(), *sorted)?))
        }
        DataType::FixedSizeList(item, size) => {
            let values = compact(array.as_fixed_size_list().values())?;
            let item = Arc::clone(item);
            Ok(Arc::new(FixedSizeListArray::try_new_with_length(item, *size, values, nulls(), array.len())?))
        }
        DataType::Struct(fields) => {
            let children = array.as_struct().columns().iter().map(compact).collect::<Result<Vec<_>, _>>()?;
            Ok(Arc::new(StructArray::try_new_with_length(fields.clone(), children, nulls(), array.len())?))
        }
        DataType::Union(fields, mode) => {
            let dense = match mode {
                UnionMode::Sparse => Arc::clone(array),
                UnionMode::Dense => take(array, &UInt64Array::from_iter_values(0..array.len() as u64), None)?,
            };
            let union = dense.as_union();
            let children = fields.iter().map(|(id, _)| compact(union.child(id))).collect::<Result<Vec<_>, _>>()?;
            let (ids, offsets) = (union.type_ids().clone(), union.offsets().cloned());
            Ok(Arc::new(UnionArray::try_new(fields.clone(), ids, offsets, children)?))
        }
        _ => Ok(Arc::clone(array)),
    }
}

fn compact_list<O: OffsetSizeTrait>(array: &ArrayRef, item: &FieldRef) -> Result<ArrayRef, ArrowError> {
    let list = array.as_list::<O>();
    let (offsets, values) = used_values::<O, O>(list.offsets(), list.values())?;
    let values = compact(&values)?;
    Ok(Arc::new(GenericListArray::<O>::try_new(Arc::clone(item), offsets, values, list.nulls().cloned())?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::convert::wire_bytes;
    use crate::wire::message::tests::received;
    use crate::wire::tests::{batch_of, every_column};
    use arrow_flight::FlightData;
    use arrow_flight::decode::FlightRecordBatchStream;
    use datafusion::arrow::array::{DictionaryArray, Int32Array, Int64Array, StringArray, StringViewArray};
    use datafusion::arrow::buffer::NullBuffer;
    use datafusion::arrow::datatypes::{Field, Int32Type};
    use datafusion::arrow::util::display::{ArrayFormatter, FormatOptions};
    use futures::{StreamExt, TryStreamExt, executor::block_on, stream};

    struct Sent {
        messages: Vec<FlightData>,
        schema: SchemaRef,
        batches: Vec<RecordBatch>,
    }

    /// Encodes `batches` and decodes what comes out with arrow-flight.
    fn send(batches: &[RecordBatch], options: &str, message_size: usize) -> Sent {
        let options: WireOptions = options.parse().expect(options);
        let schema = Arc::new(wire_schema(&batches[0].schema(), &options));
        let encoder = Encoder::new(Arc::clone(&schema), &options, message_size).expect("encoder");
        let mut messages = vec![received(&encoder.schema())];
        for batch in batches {
            messages.extend(encoder.batch(batch).expect("encode").iter().map(received));
        }
        let mut stream = FlightRecordBatchStream::new_from_flight_data(stream::iter(messages.clone()).map(Ok));
        let batches: Vec<RecordBatch> = block_on((&mut stream).try_collect()).expect("decode");
        let received = stream.schema().cloned().expect("a schema comes first");
        assert_eq!(without_dictionary_ids(&received), without_dictionary_ids(&schema));
        Sent { messages, schema: received, batches }
    }

    /// Ids of dictionaries are kept in fields but are no part of what a schema says.
    fn without_dictionary_ids(schema: &Schema) -> String {
        schema
            .fields()
            .iter()
            .map(|field| {
                format!("{} {} {} {:?}", field.name(), field.data_type(), field.is_nullable(), field.metadata())
            })
            .collect::<Vec<_>>()
            .join("\n")
    }

    fn shown(array: &dyn Array) -> Vec<String> {
        let options = FormatOptions::new().with_null("NULL");
        let formatter = ArrayFormatter::try_new(array, &options).expect("formatter");
        (0..array.len()).map(|row| formatter.value(row).to_string()).collect()
    }

    fn assert_same_values(sent: &Sent, input: &RecordBatch) {
        let mut row = 0;
        for batch in &sent.batches {
            let expected = input.slice(row, batch.num_rows());
            for (index, column) in batch.columns().iter().enumerate() {
                let name = format!("{} from row {row}", input.schema().field(index));
                for (received, expected) in shown(column).iter().zip(shown(expected.column(index))) {
                    // Half floats are shown without decimals, floats with one.
                    assert_eq!(received.replace(".0", ""), expected.replace(".0", ""), "{name}");
                }
            }
            row += batch.num_rows();
        }
        assert_eq!(row, input.num_rows());
    }

    #[test]
    fn every_type_arrives_whole_and_sliced_in_every_mode() {
        let whole = batch_of(every_column(120));
        for options in [
            "",
            "wire_types=native",
            "wire_types=bi",
            "wire_types=views,large",
            "wire_types=run_end,dictionaries,list_views",
        ] {
            for input in [whole.clone(), whole.slice(37, 50), whole.slice(119, 1)] {
                for message_size in [usize::MAX, 20_000, 1] {
                    let sent = send(std::slice::from_ref(&input), options, message_size);
                    if options != "wire_types=bi" {
                        assert_same_values(&sent, &input);
                    }
                    if message_size == 1 {
                        assert_eq!(sent.batches.len(), input.num_rows(), "one row per message");
                    }
                }
            }
        }
    }

    #[test]
    fn native_arrives_as_the_same_arrays() {
        let input = batch_of(every_column(50)).slice(7, 30);
        let sent = send(std::slice::from_ref(&input), "wire_types=native", usize::MAX);
        assert_eq!(sent.batches.len(), 1);
        for (received, expected) in sent.batches[0].columns().iter().zip(input.columns()) {
            assert_eq!(received, expected, "{}", expected.data_type());
        }
    }

    #[test]
    fn whatever_is_picked_and_sliced_arrives_as_the_same_arrays() {
        let columns = every_column(100);
        arbtest::arbtest(|u| {
            let rows = u.int_in_range(1..=60)?;
            let mut column = || -> arbitrary::Result<ArrayRef> {
                let column = u.choose(&columns)?;
                let start = u.int_in_range(0..=column.len() - rows)?;
                let sliced = column.slice(start, rows);
                if u.ratio(1, 2)? {
                    return Ok(sliced);
                }
                let picks = (0..rows).map(|_| u.int_in_range(0..=rows as u64 - 1)).collect::<Result<Vec<_>, _>>()?;
                let picked = take(&sliced, &UInt64Array::from(picks), None);
                Ok(picked.unwrap_or(sliced))
            };
            let input = batch_of((0..3).map(|_| column()).collect::<Result<_, _>>()?);
            let options = *u.choose(&["wire_types=native", "wire_types=native;wire_compression=lz4"])?;
            let sent = send(std::slice::from_ref(&input), options, *u.choose(&[usize::MAX, 2000, 100])?);
            let mut row = 0;
            for batch in &sent.batches {
                for (received, expected) in batch.columns().iter().zip(input.slice(row, batch.num_rows()).columns()) {
                    assert_eq!(received, expected, "{} from row {row}", expected.data_type());
                }
                row += batch.num_rows();
            }
            assert_eq!(row, rows);
            Ok(())
        });
    }

    #[test]
    fn compression_is_used_and_read_back() {
        let input = batch_of(every_column(2000));
        let size = |options: &str| {
            let sent = send(std::slice::from_ref(&input), options, 2 << 20);
            assert_same_values(&sent, &input);
            sent.messages.iter().map(|message| message.data_body.len()).sum::<usize>()
        };
        let (plain, lz4, zstd) = (size(""), size("wire_compression=lz4"), size("wire_compression=zstd"));
        assert!(lz4 < plain && zstd < plain, "{plain} {lz4} {zstd}");
    }

    fn encoder_of(input: &RecordBatch, options: &str, message_size: usize) -> Encoder {
        let options: WireOptions = options.parse().expect(options);
        let schema = Arc::new(wire_schema(&input.schema(), &options));
        Encoder::new(schema, &options, message_size).expect("encoder")
    }

    #[test]
    fn pieces_are_encoded_side_by_side_as_they_are_in_turn() {
        let input = batch_of(every_column(5000));
        let options = "wire_compression=zstd";
        let in_turn = encoder_of(&input, options, 50_000).batch(&input).expect("encode");
        let encoder = encoder_of(&input, options, 50_000);
        assert!(encoder.goes_side_by_side());
        let pieces = encoder.cut(&input).expect("cut");
        assert!(pieces.len() > 3);
        let side_by_side: Vec<Message> = std::thread::scope(|scope| {
            let encoder = &encoder;
            let tasks: Vec<_> = pieces.iter().map(|piece| scope.spawn(|| encoder.piece(piece))).collect();
            tasks.into_iter().flat_map(|task| task.join().expect("no panic").expect("encode")).collect()
        });
        let received = |messages: &[Message]| messages.iter().map(received).collect::<Vec<_>>();
        assert!(received(&side_by_side) == received(&in_turn));
        for options in ["", "wire_types=native;wire_compression=zstd"] {
            assert!(!encoder_of(&input, options, 50_000).goes_side_by_side(), "{options}");
        }
    }

    #[test]
    fn a_column_of_numbers_goes_as_it_lies_in_memory_and_nothing_with_it() {
        let ints = Int64Array::from_iter_values(0..8000);
        let address = ints.values().inner().as_ptr().addr();
        let first_is_null: NullBuffer = (0..8000).map(|row| row > 0).collect();
        let with_null = Int64Array::new(ints.values().clone(), Some(first_is_null));
        let (ints, with_null) = (batch_of(vec![Arc::new(ints)]), batch_of(vec![Arc::new(with_null)]));
        for (input, start, rows) in [(&ints, 0, 8000), (&ints, 1000, 2000), (&with_null, 1000, 2000)] {
            let messages = encoder_of(input, "", 2 << 20).batch(&input.slice(start, rows)).expect("encode");
            let [message] = &messages[..] else { panic!("{} messages", messages.len()) };
            assert_eq!(received(message).data_body.len(), rows * 8, "no validity");
            let values = message.clone().into_pieces().last().expect("values");
            assert_eq!((values.as_ptr().addr(), values.len()), (address + start * 8, rows * 8));
        }
    }

    #[test]
    fn an_empty_result_is_a_schema_alone() {
        let empty = batch_of(every_column(3)).slice(0, 0);
        let sent = send(&[empty.clone(), empty], "", 2 << 20);
        assert_eq!((sent.messages.len(), sent.batches.len()), (1, 0));
        assert_eq!(sent.schema.fields().len(), every_column(3).len());
    }

    #[test]
    fn a_batch_without_columns_keeps_its_rows() {
        let options = RecordBatchOptions::new().with_row_count(Some(17));
        let input = RecordBatch::try_new_with_options(Arc::new(Schema::empty()), vec![], &options).expect("batch");
        let sent = send(&[input], "", 2 << 20);
        assert_eq!(sent.batches.iter().map(RecordBatch::num_rows).sum::<usize>(), 17);
    }

    #[test]
    fn messages_stay_within_the_size_and_are_well_filled() {
        let rows = 1_000_000;
        let ints: ArrayRef = Arc::new(Int64Array::from_iter_values(0..rows));
        let texts: ArrayRef =
            Arc::new(StringViewArray::from_iter_values((0..rows).map(|row| format!("value {row:020}"))));
        let input = batch_of(vec![ints, texts]);
        let limit = 2 << 20;
        for options in ["", "wire_types=native"] {
            let sent = send(std::slice::from_ref(&input), options, limit);
            let sizes: Vec<_> = sent.messages[1..].iter().map(|message| message.data_body.len()).collect();
            assert!(sizes.iter().all(|size| *size <= limit + 1024), "{options}: {sizes:?}");
            assert!(sizes[..sizes.len() - 1].iter().all(|size| *size >= limit / 2), "{options}: {sizes:?}");
        }
    }

    #[test]
    fn a_slice_of_a_large_array_is_one_message() {
        let texts: ArrayRef = Arc::new(StringArray::from_iter_values((0..500_000).map(|row| format!("value {row}"))));
        let input = batch_of(vec![texts]).slice(250_000, 1000);
        let sent = send(std::slice::from_ref(&input), "", 2 << 20);
        assert_eq!(sent.batches.len(), 1);
        assert!(sent.messages[1].data_body.len() < 32_000);
    }

    #[test]
    fn views_into_large_buffers_are_copied_out() {
        let texts = StringViewArray::from_iter_values((0..100_000).map(|row| format!("a value of row {row:010}")));
        let input = batch_of(vec![Arc::new(texts)]).slice(500, 10);
        let sent = send(std::slice::from_ref(&input), "wire_types=native", 2 << 20);
        assert_same_values(&sent, &input);
        assert!(sent.messages[1].data_body.len() < 2000, "{}", sent.messages[1].data_body.len());
    }

    #[test]
    fn wide_rows_go_alone_and_narrow_ones_together() {
        let lengths = [10, 20, 5000, 10, 10, 10, 3000, 3000, 1];
        let texts: ArrayRef = Arc::new(StringArray::from_iter_values(lengths.map(|length| "x".repeat(length))));
        let input = batch_of(vec![texts]);
        let sent = send(std::slice::from_ref(&input), "", 1000);
        assert_same_values(&sent, &input);
        for batch in &sent.batches {
            let bytes = wire_bytes(batch.column(0), &DataType::Utf8);
            assert!(batch.num_rows() == 1 || bytes <= 1000, "{} rows of {bytes} bytes", batch.num_rows());
        }
        assert!(sent.batches.len() < lengths.len());
    }

    #[test]
    fn a_small_dictionary_of_wide_values_does_not_blow_up_a_message() {
        let values = StringArray::from_iter_values((0..4).map(|_| "y".repeat(100_000)));
        let keys = Int32Array::from_iter_values((0..400).map(|row| row % 4));
        let column: ArrayRef = Arc::new(DictionaryArray::new(keys, Arc::new(values)));
        let sent = send(&[batch_of(vec![column])], "", 1 << 20);
        assert!(sent.messages[1..].iter().all(|message| message.data_body.len() <= (1 << 20) + 1024));
        assert_eq!(sent.batches.iter().map(RecordBatch::num_rows).sum::<usize>(), 400);
    }

    #[test]
    fn dictionaries_are_sent_once_and_again_when_they_change() {
        let column = |values: &[&str]| -> ArrayRef {
            let values: ArrayRef = Arc::new(StringArray::from(values.to_vec()));
            Arc::new(DictionaryArray::<Int32Type>::new(Int32Array::from(vec![0, 1, 0]), values))
        };
        let inputs = [column(&["a", "b"]), column(&["a", "b"]), column(&["c", "d"]), column(&["c", "d", "e"])]
            .map(|column| batch_of(vec![column]));
        let sent = send(&inputs, "wire_types=native", 2 << 20);
        // Schema, four batches, and a dictionary before the first, third and fourth.
        assert_eq!(sent.messages.len(), 1 + 4 + 3);
        for (received, input) in sent.batches.iter().zip(&inputs) {
            assert_eq!(shown(received.column(0)), shown(input.column(0)));
        }
    }

    #[test]
    fn large_strings_beyond_32_bits_are_split_not_refused() {
        // Announced lengths decide, so overlapping offsets make a large column out of little memory.
        let values: ArrayRef = Arc::new(StringArray::from_iter_values(["z".repeat(1 << 20)]));
        let keys = Int32Array::from_iter_values(std::iter::repeat_n(0, 3000));
        let column: ArrayRef = Arc::new(DictionaryArray::new(keys, values));
        assert!(wire_bytes(&column, &DataType::Utf8) > i32::MAX as usize);
        let input = batch_of(vec![column]);
        let schema = Arc::new(wire_schema(&input.schema(), &WireOptions::default()));
        let pieces = cut(&input.slice(0, 20), &schema, 4 << 20).expect("it fits the schema");
        let pieces = pieces.iter().map(|piece| to_wire(&piece.rows, &schema, &layout(&schema)).expect("convert"));
        assert_eq!(pieces.map(|piece| piece.num_rows()).collect::<Vec<_>>(), [3, 3, 3, 3, 3, 3, 2]);
    }

    #[test]
    fn a_value_that_does_not_fit_is_an_error_not_a_null() {
        let schema = Arc::new(Schema::new(vec![Field::new("c0", DataType::Int32, true)]));
        let column: ArrayRef = Arc::new(Int64Array::from(vec![1 << 40]));
        let encoder = Encoder::new(schema, &WireOptions::default(), 2 << 20).expect("encoder");
        assert!(matches!(encoder.batch(&batch_of(vec![column])), Err(WireError::Convert { .. })));
    }

    #[test]
    fn a_batch_of_another_shape_is_an_error() {
        let schema = Arc::new(Schema::new(vec![Field::new("c0", DataType::Int32, true)]));
        let encoder = Encoder::new(schema, &WireOptions::default(), 2 << 20).expect("encoder");
        let columns = every_column(2)[..2].to_vec();
        assert!(matches!(encoder.batch(&batch_of(columns)), Err(WireError::Convert { .. })));
    }

    #[test]
    fn schema_bytes_are_an_encapsulated_message() {
        let schema = batch_of(every_column(3)).schema();
        let bytes = schema_bytes(&schema).expect("bytes");
        assert_eq!(bytes[..4], [0xff; 4]);
        let read = arrow_ipc::convert::try_schema_from_ipc_buffer(&bytes).expect("schema");
        assert_eq!(without_dictionary_ids(&read), without_dictionary_ids(&schema));
    }
}
