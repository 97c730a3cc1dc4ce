//! Uploads as clients send them, as an attacker would, and as chance would.

use std::time::Duration;

use arrow_ipc::{
    self as fb, BodyCompression, BodyCompressionArgs, BodyCompressionMethod, Buffer as BufferSpec, CompressionType,
    DictionaryBatch, DictionaryBatchArgs, FieldNode, Message, MessageArgs, RecordBatch as BatchHeader, RecordBatchArgs,
};
use bytes::Bytes;
use datafusion::arrow::array::{Array, AsArray, DictionaryArray, Int32Array, RecordBatchOptions, StringArray};
use datafusion::arrow::datatypes::Schema;
use flatbuffers::{FlatBufferBuilder, UnionWIPOffset, WIPOffset};
use futures::{executor::block_on, stream};

use super::*;
use crate::wire::message::tests::received;
use crate::wire::tests::{batch_of, every_column};
use crate::wire::{Encoder, WireOptions};

/// The messages a client would send for `batches`, types as they are.
fn messages(batches: &[RecordBatch], compression: &str) -> Vec<FlightData> {
    let options = format!("wire_types=native;wire_compression={compression}").parse::<WireOptions>().expect("options");
    let encoder = Encoder::new(batches[0].schema(), &options, usize::MAX).expect("encoder");
    let mut messages = vec![received(&encoder.schema())];
    for batch in batches {
        messages.extend(encoder.batch(batch).expect("encode").iter().map(received));
    }
    messages
}

fn read_with(messages: Vec<FlightData>, limits: &UploadLimits) -> Result<Upload, UploadError> {
    let mut messages = messages.into_iter();
    let first = messages.next().expect("at least one message");
    block_on(read_upload(first, stream::iter(messages.map(Ok)), limits, |_| Ok(())))
}

fn read(messages: Vec<FlightData>) -> Result<Upload, UploadError> {
    read_with(messages, &UploadLimits::default())
}

/// One column for each type that can be uploaded.
fn uploadable(rows: usize) -> RecordBatch {
    fn refused(data_type: &DataType) -> bool {
        match data_type {
            DataType::Union(..) | DataType::RunEndEncoded(..) | DataType::ListView(_) | DataType::LargeListView(_) => {
                true
            }
            DataType::List(item)
            | DataType::LargeList(item)
            | DataType::FixedSizeList(item, _)
            | DataType::Map(item, _) => refused(item.data_type()),
            DataType::Struct(fields) => fields.iter().any(|field| refused(field.data_type())),
            _ => false,
        }
    }
    batch_of(every_column(rows).into_iter().filter(|column| !refused(column.data_type())).collect())
}

#[test]
fn every_type_arrives_with_and_without_compression() {
    for compression in ["none", "lz4", "zstd"] {
        for input in [uploadable(90), uploadable(90).slice(31, 40)] {
            let upload = read(messages(std::slice::from_ref(&input), compression)).expect(compression);
            assert_eq!(upload.num_rows(), input.num_rows());
            for (received, expected) in upload.batches[0].columns().iter().zip(input.columns()) {
                assert_eq!(received, expected, "{compression}: {}", expected.data_type());
            }
            let names = |schema: &Schema| {
                format!("{:?}", schema.fields().iter().map(|f| (f.name(), f.metadata())).collect::<Vec<_>>())
            };
            assert_eq!(names(&upload.schema.expect("schema")), names(&input.schema()));
        }
    }
}

/// What reading `messages` asks to hold, when there are `room` bytes; the error if that is too little.
fn held(messages: Vec<FlightData>, room: u64) -> (u64, Result<Upload, UploadError>) {
    let (mut messages, mut held) = (messages.into_iter(), 0);
    let first = messages.next().expect("at least one message");
    let hold = |bytes| {
        held += bytes;
        if held <= room { Ok(()) } else { Err(Error::Exhausted("no room".to_owned())) }
    };
    let read = block_on(read_upload(first, stream::iter(messages.map(Ok)), &UploadLimits::default(), hold));
    (held, read)
}

#[test]
fn what_is_uploaded_is_held_before_it_is_decoded() {
    let zeros = Arc::new(Int32Array::from(vec![0; 1 << 20]));
    let batch = RecordBatch::try_from_iter([("zeros", zeros as ArrayRef)]).expect("one column");
    for compression in ["none", "lz4"] {
        let messages = messages(std::slice::from_ref(&batch), compression);
        let (bytes, read) = held(messages.clone(), u64::MAX);
        assert!(((4 << 20)..(5 << 20)).contains(&bytes), "{compression}: {bytes}");
        assert_eq!(read.expect("there is room").num_rows(), 1 << 20);
        let (_, read) = held(messages, 4 << 20);
        let error = read.expect_err("there is a little too little");
        assert!(matches!(error, UploadError::NoRoom { .. }), "{compression}: {error}");
        assert_eq!(Status::from(error).code(), tonic::Code::ResourceExhausted);
    }
}

#[test]
fn buffers_may_lie_anywhere_in_memory() {
    let input = uploadable(50);
    let shifted = messages(std::slice::from_ref(&input), "none").into_iter().map(|message| {
        let moved = [&[0][..], &message.data_body].concat();
        FlightData { data_body: Bytes::from(moved).slice(1..), ..message }
    });
    let upload = read(shifted.collect()).expect("misaligned");
    assert_eq!(upload.batches[0].columns(), input.columns());
}

#[test]
fn streams_as_the_clients_open_them() {
    let input = batch_of(vec![Arc::new(Int32Array::from(vec![1, 2])) as ArrayRef]);
    let bare = FlightData::default();

    // Rust: a descriptor and nothing else.
    assert_eq!(read(vec![bare.clone()]).expect("bare"), Upload::default());
    // A descriptor of its own, then the schema.
    let late = [vec![bare.clone()], messages(std::slice::from_ref(&input), "none")].concat();
    assert_eq!(read(late).expect("late schema").num_rows(), 2);
    // A schema and no batch.
    let upload = read(messages(std::slice::from_ref(&input), "none")[..1].to_vec()).expect("schema alone");
    assert!(upload.schema.is_some() && upload.batches.is_empty());
    // Python and Java for "no parameters": an empty schema and one batch without rows.
    let options = RecordBatchOptions::new().with_row_count(Some(0));
    let empty = RecordBatch::try_new_with_options(Arc::new(Schema::empty()), vec![], &options).expect("empty");
    let upload = read(vec![messages(&[empty], "none")[0].clone(), Batch::default().message()]).expect("empty");
    assert_eq!((upload.schema.expect("schema").fields().len(), upload.batches.len()), (0, 1));
    assert_eq!(upload.batches[0].num_rows(), 0);
    // Several batches.
    let upload = read(messages(&[input.clone(), input], "none")).expect("two");
    assert_eq!((upload.batches.len(), upload.num_rows()), (2, 4));
}

#[test]
fn dictionaries_may_be_replaced_and_extended() {
    let column = |values: &[&str]| -> ArrayRef {
        let values: ArrayRef = Arc::new(StringArray::from(values.to_vec()));
        Arc::new(DictionaryArray::new(Int32Array::from(vec![0, 1]), values))
    };
    let inputs = [column(&["a", "b"]), column(&["c", "d"])].map(|column| batch_of(vec![column]));
    let upload = read(messages(&inputs, "none")).expect("replaced");
    assert_eq!(upload.batches[1].column(0).as_any_dictionary().values().as_string::<i32>().value(1), "d");

    let mut sent = messages(&inputs[..1], "none");
    let delta = Batch {
        rows: 1,
        nodes: vec![(1, 0)],
        buffers: vec![(0, 0), (0, 8), (8, 1)],
        body: [0_i32.to_le_bytes().as_slice(), &1_i32.to_le_bytes(), b"z"].concat(),
        ..Batch::default()
    };
    sent.insert(2, delta.dictionary(0, true));
    let upload = read(sent).expect("extended");
    assert_eq!(upload.batches[0].column(0).as_any_dictionary().values().as_string::<i32>().value(2), "z");
}

/// A record batch as it is written on the wire, right or wrong.
#[derive(Clone, Default)]
struct Batch {
    rows: i64,
    nodes: Vec<(i64, i64)>,
    buffers: Vec<(i64, i64)>,
    variadic: Option<Vec<i64>>,
    codec: Option<CompressionType>,
    body: Vec<u8>,
    body_length: Option<i64>,
    no_lists: bool,
}

impl Batch {
    fn header<'a>(&self, fbb: &mut FlatBufferBuilder<'a>) -> WIPOffset<BatchHeader<'a>> {
        let nodes: Vec<_> = self.nodes.iter().map(|(length, nulls)| FieldNode::new(*length, *nulls)).collect();
        let buffers: Vec<_> = self.buffers.iter().map(|(offset, length)| BufferSpec::new(*offset, *length)).collect();
        let (nodes, buffers) = (fbb.create_vector(&nodes), fbb.create_vector(&buffers));
        let variadic = self.variadic.as_ref().map(|counts| fbb.create_vector(counts));
        let compression = self.codec.map(|codec| {
            BodyCompression::create(fbb, &BodyCompressionArgs { codec, method: BodyCompressionMethod::BUFFER })
        });
        let lists = (!self.no_lists).then_some((nodes, buffers));
        let args = RecordBatchArgs {
            length: self.rows,
            nodes: lists.map(|(nodes, _)| nodes),
            buffers: lists.map(|(_, buffers)| buffers),
            compression,
            variadicBufferCounts: variadic,
        };
        BatchHeader::create(fbb, &args)
    }

    fn message(&self) -> FlightData {
        let mut fbb = FlatBufferBuilder::new();
        let header = self.header(&mut fbb).as_union_value();
        self.finish(fbb, fb::MessageHeader::RecordBatch, header)
    }

    fn dictionary(&self, id: i64, is_delta: bool) -> FlightData {
        let mut fbb = FlatBufferBuilder::new();
        let data = Some(self.header(&mut fbb));
        let header =
            DictionaryBatch::create(&mut fbb, &DictionaryBatchArgs { id, data, isDelta: is_delta }).as_union_value();
        self.finish(fbb, fb::MessageHeader::DictionaryBatch, header)
    }

    fn finish(
        &self,
        mut fbb: FlatBufferBuilder<'_>,
        header_type: fb::MessageHeader,
        header: WIPOffset<UnionWIPOffset>,
    ) -> FlightData {
        let length = self.body_length.unwrap_or(self.body.len() as i64);
        message(&mut fbb, header_type, header, length, self.body.clone())
    }
}

fn message(
    fbb: &mut FlatBufferBuilder<'_>,
    header_type: fb::MessageHeader,
    header: WIPOffset<UnionWIPOffset>,
    body_length: i64,
    body: Vec<u8>,
) -> FlightData {
    let args = MessageArgs {
        version: fb::MetadataVersion::V5,
        header_type,
        header: Some(header),
        bodyLength: body_length,
        custom_metadata: None,
    };
    let root = Message::create(fbb, &args);
    fbb.finish(root, None);
    FlightData { data_header: fbb.finished_data().to_vec().into(), data_body: body.into(), ..FlightData::default() }
}

/// The schema message of one column of `data_type`.
fn schema_of(data_type: DataType) -> FlightData {
    let schema = Arc::new(Schema::new(vec![Field::new("c", data_type, true)]));
    let encoder = Encoder::new(schema, &"wire_types=native".parse().expect("options"), 1).expect("encoder");
    received(&encoder.schema())
}

/// The column of 32-bit integers that a test bends in one place.
fn ints() -> Batch {
    Batch { rows: 2, nodes: vec![(2, 0)], buffers: vec![(0, 0), (0, 8)], body: vec![1; 8], ..Batch::default() }
}

/// Two texts, "a" and "b".
fn texts(offsets: [i32; 3], data: &[u8]) -> Batch {
    let mut body: Vec<u8> = offsets.iter().flat_map(|offset| offset.to_le_bytes()).collect();
    body.extend(data);
    let data = (12, data.len() as i64);
    Batch { rows: 2, nodes: vec![(2, 0)], buffers: vec![(0, 0), (0, 12), data], body, ..Batch::default() }
}

/// One buffer of compressed integers that announces `announced` bytes.
fn compressed(codec: CompressionType, announced: i64, compressed: &[u8]) -> Batch {
    let body = [&announced.to_le_bytes()[..], compressed].concat();
    let buffers = vec![(0, 0), (0, body.len() as i64)];
    Batch { codec: Some(codec), buffers, body, ..ints() }
}

fn lz4(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = lz4_flex::frame::FrameEncoder::new(Vec::new());
    std::io::Write::write_all(&mut encoder, bytes).expect("write");
    encoder.finish().expect("finish")
}

/// Asserts that `messages` are refused by a check of ours or of arrow, not by a caught panic, and with this text in the error.
#[track_caller]
fn refused(messages: Vec<FlightData>, expected: &str) {
    let error = read(messages).expect_err(expected).to_string();
    assert!(error.contains(expected), "expected {expected:?}, got {error:?}");
}

#[test]
fn bent_batches_are_refused() {
    let check = |data_type: DataType, batch: Batch, expected: &str| {
        refused(vec![schema_of(data_type), batch.message()], expected);
    };
    let int = DataType::Int32;
    check(int.clone(), Batch { rows: -1, ..ints() }, "negative number of rows");
    check(int.clone(), Batch { rows: i64::MAX, ..ints() }, "number of rows beyond the limit");
    check(int.clone(), Batch { rows: 3, ..ints() }, "has 2 rows, its batch 3");
    check(int.clone(), Batch { nodes: vec![], ..ints() }, "fewer columns");
    check(int.clone(), Batch { nodes: vec![(2, 0); 2], ..ints() }, "more columns");
    check(int.clone(), Batch { nodes: vec![(-2, 0)], ..ints() }, "negative length");
    check(int.clone(), Batch { nodes: vec![(2, 3)], ..ints() }, "more nulls than values");
    check(int.clone(), Batch { nodes: vec![(2, -1)], ..ints() }, "negative number of nulls");
    check(int.clone(), Batch { nodes: vec![(2, 1)], ..ints() }, "validity buffer of 0 bytes where 1");
    check(
        int.clone(),
        Batch { nodes: vec![(2, 1)], buffers: vec![(0, 8), (0, 8)], body: vec![0; 8], ..ints() },
        "null_count",
    );
    check(int.clone(), Batch { buffers: vec![(0, 0)], ..ints() }, "fewer buffers");
    check(int.clone(), Batch { buffers: vec![(0, 0); 3], ..ints() }, "values buffer of 0 bytes");
    check(int.clone(), Batch { buffers: vec![(0, 0), (-8, 8)], ..ints() }, "negative offset");
    check(int.clone(), Batch { buffers: vec![(0, 0), (0, -8)], ..ints() }, "negative offset or length");
    check(int.clone(), Batch { buffers: vec![(0, 0), (4, 8)], ..ints() }, "outside the body");
    check(int.clone(), Batch { buffers: vec![(0, 0), (i64::MAX, i64::MAX)], ..ints() }, "outside the body");
    check(int.clone(), Batch { buffers: vec![(0, 0), (0, 7)], ..ints() }, "7 bytes where 8");
    check(int.clone(), Batch { no_lists: true, ..ints() }, "no list of columns");
    check(int.clone(), Batch { variadic: Some(vec![1]), ..ints() }, "more columns or buffers");
    check(int.clone(), Batch { body_length: Some(-1), ..ints() }, "another length");
    check(int.clone(), Batch { body_length: Some(9), ..ints() }, "another length");
    check(int.clone(), Batch { body_length: Some(i64::MAX), ..ints() }, "another length");
    check(int.clone(), Batch { body_length: Some(8), body: vec![0; 8 + 64], ..ints() }, "another length");
    check(int, Batch { codec: Some(CompressionType(7)), ..ints() }, "unknown compression codec");

    let text = DataType::Utf8;
    check(text.clone(), texts([0, 1, 2], &[b'a', 0xff]), "Invalid UTF8");
    check(text.clone(), texts([0, -1, 2], b"ab"), "ffset");
    check(text.clone(), texts([0, 2, 1], b"ab"), "ffset");
    check(text.clone(), texts([0, 1, 3], b"ab"), "ffset");
    check(text.clone(), texts([0, 1, i32::MAX], b"ab"), "ffset");
    let cut = |length: i64| {
        let mut batch = texts([0, 1, 2], b"ab");
        batch.buffers[1] = (0, length);
        batch
    };
    check(text.clone(), cut(11), "offsets buffer of 11 bytes where 12");
    check(text, cut(13), "offsets buffer of 13 bytes, which are not whole numbers of 4");

    let list = DataType::List(Arc::new(Field::new("item", DataType::Null, true)));
    let lists = |offsets: [i32; 3], items: i64| Batch {
        nodes: vec![(2, 0), (items, items)],
        buffers: vec![(0, 0), (0, 12)],
        ..texts(offsets, &[])
    };
    check(list.clone(), lists([0, -1, 2], 2), "ffset");
    check(list.clone(), lists([0, 1, 5], 2), "ffset");
    check(list, lists([0, 1, 2], i64::MAX), "number of values beyond the limit");

    let nulls = Batch { rows: i64::MAX, nodes: vec![(i64::MAX, i64::MAX)], ..Batch::default() };
    check(DataType::Null, nulls, "number of rows beyond the limit");
    let pair = DataType::Struct(vec![Field::new("a", DataType::Int32, true)].into());
    let short = Batch { nodes: vec![(2, 0), (1, 0)], buffers: vec![(0, 0), (0, 0), (0, 8)], ..ints() };
    check(pair, short, "struct of 2 rows with 1 values");
    let fixed = DataType::FixedSizeList(Arc::new(Field::new("item", DataType::Int32, true)), i32::MAX);
    let few = Batch { nodes: vec![(2, 0), (2, 0)], buffers: vec![(0, 0), (0, 0), (0, 8)], ..ints() };
    check(fixed, few, "too few items");

    let view = |view: [i32; 4]| {
        let body: Vec<u8> = view.iter().flat_map(|part| part.to_le_bytes()).collect();
        let buffers = vec![(0, 0), (0, 16)];
        Batch { rows: 1, nodes: vec![(1, 0)], buffers, variadic: Some(vec![0]), body, ..Batch::default() }
    };
    check(DataType::Utf8View, view([20, 0, 0, 0]), "uffer");
    check(DataType::Utf8View, view([-1, 0, 0, 0]), "uffer");
    let long = Batch { buffers: vec![(0, 0), (0, 17)], body: vec![0; 24], ..view([0; 4]) };
    check(DataType::Utf8View, long, "views buffer of 17 bytes, which are not whole numbers of 16");
    check(DataType::Utf8View, Batch { variadic: None, ..view([0; 4]) }, "without its buffer count");
    check(DataType::Utf8View, Batch { variadic: Some(vec![-1]), ..view([0; 4]) }, "negative buffer count");
    check(DataType::Utf8View, Batch { variadic: Some(vec![i64::MAX]), ..view([0; 4]) }, "fewer buffers");
}

#[test]
fn lying_compression_is_refused_before_memory_is_taken() {
    let check = |batch: Batch, expected: &str| refused(vec![schema_of(DataType::Int32), batch.message()], expected);
    let (good, bomb) = (lz4(&[1; 8]), lz4(&vec![0; 16 << 20]));
    for codec in [CompressionType::LZ4_FRAME, CompressionType::ZSTD] {
        check(compressed(codec, i64::MAX, &good), "decoded data beyond the limit");
        check(compressed(codec, (64 << 20) + 1, &good), "decoded data beyond the limit");
        check(compressed(codec, -2, &good), "negative length");
        check(compressed(codec, i64::MIN, &good), "negative length");
        check(Batch { buffers: vec![(0, 0), (0, 7)], ..compressed(codec, 8, &good) }, "without its length");
        check(compressed(codec, 0, &good), "0 bytes where 8");
        check(compressed(codec, -1, &[1; 7]), "7 bytes where 8");
    }
    check(compressed(CompressionType::LZ4_FRAME, 9, &good), "of another length than it announces");
    check(compressed(CompressionType::LZ4_FRAME, 8, &bomb), "of another length than it announces");
    check(compressed(CompressionType::LZ4_FRAME, 8, &[3; 50]), "a broken LZ4 frame");
    check(compressed(CompressionType::ZSTD, 8, &[3; 50]), "bad record batch");

    // Each within the limit, all together not: 5 times 15 MiB.
    let batch = Batch {
        rows: 2,
        nodes: vec![(2, 0)],
        ..compressed(CompressionType::LZ4_FRAME, 15 << 20, &lz4(&vec![0; 15 << 20]))
    };
    let mut sent = vec![schema_of(DataType::Int32)];
    sent.extend(std::iter::repeat_n(batch.message(), 5));
    refused(sent, "decoded data beyond the limit");
}

#[test]
fn messages_out_of_place_are_refused() {
    let schema = schema_of(DataType::Int32);
    refused(vec![ints().message()], "data before its schema");
    refused(vec![ints().dictionary(0, false)], "data before its schema");
    refused(vec![schema.clone(), schema.clone()], "a second schema");
    refused(vec![FlightData { data_body: vec![1].into(), ..FlightData::default() }], "a body without its header");
    let cut = |length: usize| FlightData { data_header: schema.data_header.slice(..length), ..FlightData::default() };
    for length in [1, 3, 4, 8, schema.data_header.len() / 2] {
        refused(vec![cut(length)], "not Arrow IPC");
    }
    refused(vec![FlightData { data_header: vec![0xff; 64].into(), ..FlightData::default() }], "not Arrow IPC");

    let mut fbb = FlatBufferBuilder::new();
    let tensor = fb::SchemaBuilder::new(&mut fbb).finish().as_union_value();
    refused(vec![message(&mut fbb, fb::MessageHeader(9), tensor, 0, vec![])], "neither schema");

    let dictionary = schema_of(DataType::Dictionary(Box::new(DataType::Int8), Box::new(DataType::Int32)));
    refused(vec![dictionary.clone(), ints().dictionary(77, false)], "dictionary 77 is not in the schema");
    refused(vec![dictionary.clone(), ints().dictionary(0, true)], "No existing dictionary");
    let keys = Batch { buffers: vec![(0, 0), (0, 2)], body: vec![0, 9], ..ints() };
    refused(vec![dictionary.clone(), ints().dictionary(0, false), keys.message()], "bad record batch");
    let wide = schema_of(DataType::Dictionary(Box::new(DataType::Int16), Box::new(DataType::Int32)));
    let keys_of_5 = Batch { buffers: vec![(0, 0), (0, 5)], body: vec![0; 8], ..ints() };
    refused(
        vec![wide, ints().dictionary(0, false), keys_of_5.message()],
        "keys buffer of 5 bytes, which are not whole",
    );
    // No dictionary at all: only nulls may refer to it.
    refused(vec![dictionary, keys.message()], "bad record batch");
}

#[test]
fn limits_hold() {
    let two = || vec![schema_of(DataType::Int32), ints().message(), ints().message()];
    let check = |limits: UploadLimits, expected: &str| {
        let error = read_with(two(), &limits).expect_err(expected).to_string();
        assert!(error.contains(expected), "expected {expected:?}, got {error:?}");
    };
    let limits = UploadLimits::default;
    let exact = two().iter().map(|message| message.data_header.len() + message.data_body.len()).sum();
    assert!(read_with(two(), &UploadLimits { bytes: exact, messages: 3, rows: 4, fields: 1, ..limits() }).is_ok());
    check(UploadLimits { bytes: exact - 1, ..limits() }, "data beyond the limit");
    check(UploadLimits { messages: 2, ..limits() }, "number of messages beyond the limit");
    check(UploadLimits { rows: 3, ..limits() }, "number of rows beyond the limit");
    check(UploadLimits { fields: 0, ..limits() }, "more than 0 fields");
    check(UploadLimits { header_bytes: 10, ..limits() }, "message header beyond the limit");
}

#[test]
fn a_stream_that_breaks_off_is_told_from_one_that_is_wrong() {
    let rest = stream::iter([Err(Status::cancelled("gone"))]);
    let result = block_on(read_upload(schema_of(DataType::Int32), rest, &UploadLimits::default(), |_| Ok(())));
    assert!(matches!(result, Err(UploadError::Transport { .. })));
}

/// A schema message with one field that `build` makes.
fn raw_schema(build: impl Fn(&mut FlatBufferBuilder<'static>) -> Vec<WIPOffset<fb::Field<'static>>>) -> FlightData {
    let mut fbb = FlatBufferBuilder::new();
    let fields = build(&mut fbb);
    let fields = fbb.create_vector(&fields);
    let mut schema = fb::SchemaBuilder::new(&mut fbb);
    schema.add_fields(fields);
    let schema = schema.finish().as_union_value();
    message(&mut fbb, fb::MessageHeader::Schema, schema, 0, vec![])
}

type Fbb = FlatBufferBuilder<'static>;
type Fields = Vec<WIPOffset<fb::Field<'static>>>;

fn raw_field(
    fbb: &mut Fbb,
    type_type: fb::Type,
    type_: Option<WIPOffset<UnionWIPOffset>>,
    children: Option<&Fields>,
) -> WIPOffset<fb::Field<'static>> {
    let children = children.map(|children| fbb.create_vector(children));
    let mut field = fb::FieldBuilder::new(fbb);
    field.add_type_type(type_type);
    if let Some(type_) = type_ {
        field.add_type_(type_);
    }
    if let Some(children) = children {
        field.add_children(children);
    }
    field.finish()
}

fn null_field(fbb: &mut Fbb) -> WIPOffset<fb::Field<'static>> {
    let null = fb::Null::create(fbb, &fb::NullArgs {}).as_union_value();
    raw_field(fbb, fb::Type::Null, Some(null), None)
}

fn int_type(fbb: &mut Fbb, bits: i32) -> WIPOffset<fb::Int<'static>> {
    fb::Int::create(fbb, &fb::IntArgs { bitWidth: bits, is_signed: true })
}

#[test]
fn bent_schemas_are_refused() {
    type Case = (&'static str, fn(&mut Fbb) -> Fields);
    let cases: &[Case] = &[
        ("integer of 7 bits", |fbb| {
            let int = int_type(fbb, 7).as_union_value();
            vec![raw_field(fbb, fb::Type::Int, Some(int), None)]
        }),
        ("integer of -2147483648 bits", |fbb| {
            let int = int_type(fbb, i32::MIN).as_union_value();
            vec![raw_field(fbb, fb::Type::Int, Some(int), None)]
        }),
        ("decimal of 4096 bits", |fbb| {
            let decimal = fb::DecimalArgs { precision: 10, scale: 2, bitWidth: 4096 };
            let decimal = fb::Decimal::create(fbb, &decimal).as_union_value();
            vec![raw_field(fbb, fb::Type::Decimal, Some(decimal), None)]
        }),
        ("decimal(300, 2)", |fbb| {
            let decimal = fb::Decimal::create(fbb, &fb::DecimalArgs { precision: 300, scale: 2, bitWidth: 128 });
            vec![raw_field(fbb, fb::Type::Decimal, Some(decimal.as_union_value()), None)]
        }),
        ("decimal(10, -2147483648)", |fbb| {
            let decimal = fb::Decimal::create(fbb, &fb::DecimalArgs { precision: 10, scale: i32::MIN, bitWidth: 128 });
            vec![raw_field(fbb, fb::Type::Decimal, Some(decimal.as_union_value()), None)]
        }),
        ("unknown float precision", |fbb| {
            let float = fb::FloatingPointArgs { precision: fb::Precision(9) };
            let float = fb::FloatingPoint::create(fbb, &float).as_union_value();
            vec![raw_field(fbb, fb::Type::FloatingPoint, Some(float), None)]
        }),
        ("unknown date unit", |fbb| {
            let date = fb::Date::create(fbb, &fb::DateArgs { unit: fb::DateUnit(9) }).as_union_value();
            vec![raw_field(fbb, fb::Type::Date, Some(date), None)]
        }),
        ("time of 32 bits in Nanosecond", |fbb| {
            let time = fb::Time::create(fbb, &fb::TimeArgs { unit: fb::TimeUnit::NANOSECOND, bitWidth: 32 });
            vec![raw_field(fbb, fb::Type::Time, Some(time.as_union_value()), None)]
        }),
        ("unknown time unit", |fbb| {
            let timestamp = fb::Timestamp::create(fbb, &fb::TimestampArgs { unit: fb::TimeUnit(9), timezone: None });
            vec![raw_field(fbb, fb::Type::Timestamp, Some(timestamp.as_union_value()), None)]
        }),
        ("unknown time zone", |fbb| {
            let timezone = Some(fbb.create_string("Mars/Olympus"));
            let timestamp = fb::TimestampArgs { unit: fb::TimeUnit::SECOND, timezone };
            let timestamp = fb::Timestamp::create(fbb, &timestamp).as_union_value();
            vec![raw_field(fbb, fb::Type::Timestamp, Some(timestamp), None)]
        }),
        ("unknown interval unit", |fbb| {
            let interval = fb::Interval::create(fbb, &fb::IntervalArgs { unit: fb::IntervalUnit(9) });
            vec![raw_field(fbb, fb::Type::Interval, Some(interval.as_union_value()), None)]
        }),
        ("fixed-size binary of width -1", |fbb| {
            let binary = fb::FixedSizeBinary::create(fbb, &fb::FixedSizeBinaryArgs { byteWidth: -1 });
            vec![raw_field(fbb, fb::Type::FixedSizeBinary, Some(binary.as_union_value()), None)]
        }),
        ("fixed-size list of -1 items", |fbb| {
            let list = fb::FixedSizeList::create(fbb, &fb::FixedSizeListArgs { listSize: -1 }).as_union_value();
            vec![raw_field(fbb, fb::Type::FixedSizeList, Some(list), None)]
        }),
        ("has not exactly one child", |fbb| {
            let list = fb::List::create(fbb, &fb::ListArgs {}).as_union_value();
            vec![raw_field(fbb, fb::Type::List, Some(list), None)]
        }),
        ("has not exactly one child", |fbb| {
            let null = null_field(fbb);
            let list = fb::List::create(fbb, &fb::ListArgs {}).as_union_value();
            vec![raw_field(fbb, fb::Type::List, Some(list), Some(&vec![null, null]))]
        }),
        ("entries are not pairs", |fbb| {
            let null = null_field(fbb);
            let map = fb::Map::create(fbb, &fb::MapArgs { keysSorted: false }).as_union_value();
            vec![raw_field(fbb, fb::Type::Map, Some(map), Some(&vec![null]))]
        }),
        ("cannot be uploaded", |fbb| {
            let union = fb::UnionArgs { mode: fb::UnionMode(9), typeIds: None };
            let union = fb::Union::create(fbb, &union).as_union_value();
            vec![raw_field(fbb, fb::Type::Union, Some(union), None)]
        }),
        ("cannot be uploaded", |fbb| {
            let null = fb::Null::create(fbb, &fb::NullArgs {}).as_union_value();
            vec![raw_field(fbb, fb::Type(99), Some(null), None)]
        }),
        ("cannot be uploaded", |fbb| vec![raw_field(fbb, fb::Type::NONE, None, None)]),
        ("more than 8192 fields", |fbb| {
            let null = null_field(fbb);
            vec![null; 8193]
        }),
        ("nested deeper than 16", |fbb| {
            let mut field = null_field(fbb);
            for _ in 0..16 {
                let list = fb::List::create(fbb, &fb::ListArgs {}).as_union_value();
                field = raw_field(fbb, fb::Type::List, Some(list), Some(&vec![field]));
            }
            vec![field]
        }),
        ("not Arrow IPC", |fbb| {
            let mut field = null_field(fbb);
            for _ in 0..10_000 {
                let list = fb::List::create(fbb, &fb::ListArgs {}).as_union_value();
                field = raw_field(fbb, fb::Type::List, Some(list), Some(&vec![field]));
            }
            vec![field]
        }),
        ("names and metadata are too long", |fbb| {
            let name = fbb.create_string(&"n".repeat(1 << 19));
            let null = fb::Null::create(fbb, &fb::NullArgs {}).as_union_value();
            let mut field = fb::FieldBuilder::new(fbb);
            field.add_type_type(fb::Type::Null);
            field.add_type_(null);
            field.add_name(name);
            vec![field.finish(); 3]
        }),
        ("dictionary 7 has two types", |fbb| {
            let field = |fbb: &mut Fbb, bits: i32| {
                let index = int_type(fbb, 8);
                let mut encoding = fb::DictionaryEncodingBuilder::new(fbb);
                encoding.add_id(7);
                encoding.add_indexType(index);
                let encoding = encoding.finish();
                let values = int_type(fbb, bits).as_union_value();
                let mut field = fb::FieldBuilder::new(fbb);
                field.add_type_type(fb::Type::Int);
                field.add_type_(values);
                field.add_dictionary(encoding);
                field.finish()
            };
            vec![field(fbb, 32), field(fbb, 64)]
        }),
        ("integer of 3 bits", |fbb| {
            let index = int_type(fbb, 3);
            let mut encoding = fb::DictionaryEncodingBuilder::new(fbb);
            encoding.add_indexType(index);
            let encoding = encoding.finish();
            let null = fb::Null::create(fbb, &fb::NullArgs {}).as_union_value();
            let mut field = fb::FieldBuilder::new(fbb);
            field.add_type_type(fb::Type::Null);
            field.add_type_(null);
            field.add_dictionary(encoding);
            vec![field.finish()]
        }),
    ];
    for (expected, build) in cases {
        refused(vec![raw_schema(build)], expected);
    }
    // The deepest that is allowed.
    let deepest = raw_schema(|fbb| {
        let mut field = null_field(fbb);
        for _ in 0..15 {
            let list = fb::List::create(fbb, &fb::ListArgs {}).as_union_value();
            field = raw_field(fbb, fb::Type::List, Some(list), Some(&vec![field]));
        }
        vec![field]
    });
    assert!(read(vec![deepest]).is_ok());
}

/// Valid streams, bent at random: whatever comes, it is an error or a batch that holds what it says.
#[test]
fn bent_streams_never_panic() {
    let seconds = std::env::var("UPDRAFT_FUZZ_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(2);
    let batch = uploadable(12);
    let streams = ["none", "lz4", "zstd"].map(|compression| messages(&[batch.slice(0, 7), batch.clone()], compression));
    // One column at a time: a change then hits what is interesting more often.
    let single: Vec<_> =
        batch.columns().iter().map(|column| messages(&[batch_of(vec![Arc::clone(column)])], "none")).collect();
    let limits = UploadLimits { bytes: 1 << 20, rows: 10_000, ..UploadLimits::default() };
    arbtest::arbtest(|u| {
        let mut sent = if u.ratio(1, 4)? { u.choose(&streams)?.clone() } else { u.choose(&single)?.clone() };
        for _ in 0..u.int_in_range(1..=4)? {
            let at = u.choose_index(sent.len())?;
            match u.int_in_range(0..=9)? {
                0 => sent.swap(0, at),
                1 => sent.insert(at, sent[at].clone()),
                change => {
                    let part = if change < 7 { &mut sent[at].data_header } else { &mut sent[at].data_body };
                    let mut bytes = part.to_vec();
                    bend(u, &mut bytes)?;
                    *part = bytes.into();
                }
            }
        }
        match read_with(sent, &limits) {
            Ok(upload) => {
                assert!(upload.num_rows() <= limits.rows);
                for column in upload.batches.iter().flat_map(RecordBatch::columns) {
                    column.to_data().validate_full().expect("a batch that was accepted is valid");
                }
            }
            Err(UploadError::Message { what }) => {
                assert_ne!(what, "a message that could not be decoded", "a panic was caught");
            }
            Err(_) => {}
        }
        Ok(())
    })
    .budget(Duration::from_secs(seconds));
}

fn bend(u: &mut arbitrary::Unstructured<'_>, bytes: &mut Vec<u8>) -> arbitrary::Result<()> {
    if bytes.is_empty() {
        return Ok(());
    }
    let at = u.choose_index(bytes.len())?;
    match u.int_in_range(0..=4)? {
        0 => bytes[at] = u.arbitrary()?,
        1 => bytes[at] ^= 1 << u.int_in_range(0..=7)?,
        2 => bytes.truncate(at),
        3 => {
            let value: i32 = *u.choose(&[0, 1, -1, 7, 64, i32::MAX, i32::MIN])?;
            let at = at / 4 * 4;
            let end = bytes.len().min(at + 4);
            bytes[at..end].copy_from_slice(&value.to_le_bytes()[..end - at]);
        }
        _ => {
            let value: i64 = *u.choose(&[0, 1, -1, 8, 1 << 20, i64::MAX, i64::MIN])?;
            let at = at / 8 * 8;
            let end = bytes.len().min(at + 8);
            bytes[at..end].copy_from_slice(&value.to_le_bytes()[..end - at]);
        }
    }
    Ok(())
}
