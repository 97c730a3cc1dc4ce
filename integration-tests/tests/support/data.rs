//! The tables that the `.slt` files query. Small enough to check an answer by hand.

use std::fs::{self, File};
use std::path::Path;
use std::sync::Arc;

use datafusion::arrow::array::*;
use datafusion::arrow::buffer::OffsetBuffer;
use datafusion::arrow::compute::cast;
use datafusion::arrow::datatypes::{
    DataType, Field, Fields, Int8Type, Int32Type, IntervalDayTime, IntervalMonthDayNano, Schema, TimeUnit,
};
use datafusion::arrow::ipc::writer::FileWriter;
use datafusion::parquet::arrow::ArrowWriter;
use datafusion::parquet::file::properties::WriterProperties;
use tempfile::TempDir;

/// A folder with one table of every kind.
pub fn folder() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    people(root);
    texts(root);
    types(root);
    nested(root);
    big(root);
    sales(root);
    differing(root);
    fs::write(root.join("birds.avro"), avro()).unwrap();
    let n = Arc::new(Int64Array::from_iter_values(0..100)) as ArrayRef;
    let even = Arc::new(BooleanArray::from_iter((0..100).map(|n| Some(n % 2 == 0)))) as ArrayRef;
    arrow(&root.join("numbers.arrow"), &RecordBatch::try_from_iter([("n", n), ("even", even)]).unwrap());
    parquet(
        &root.join("Mixed Case.parquet"),
        &table(&[
            ("Id", DataType::Int32, "1 2"),
            ("the_value", DataType::Utf8, "x y"),
            ("select", DataType::Utf8, "p q"),
        ]),
    );
    dir
}

/// Views, as the settings have them.
pub const VIEWS: &[(&str, &str)] = &[
    ("adults", "SELECT id, name, age FROM people WHERE age >= 30"),
    ("adult_names", "SELECT upper(name) AS name FROM adults"),
    ("lab.warm", "SELECT * FROM lab.readings WHERE celsius > 20"),
];

/// Columns of a type from their values as text, separated by spaces; `-` is NULL, `''` the empty string.
pub fn table(columns: &[(&str, DataType, &str)]) -> RecordBatch {
    let column = |(name, data_type, values): &(&str, DataType, &str)| {
        let values = values.split(' ').map(|value| match value {
            "-" => None,
            "''" => Some(""),
            value => Some(value),
        });
        let text = StringArray::from_iter(values);
        (Field::new(*name, data_type.clone(), true), cast(&text, data_type).unwrap())
    };
    let (fields, arrays): (Vec<_>, Vec<_>) = columns.iter().map(column).unzip();
    RecordBatch::try_new(Arc::new(Schema::new(fields)), arrays).unwrap()
}

pub fn parquet(path: &Path, batch: &RecordBatch) {
    parquet_groups(path, batch, 1 << 20);
}

/// A Parquet file with so many rows in a row group.
pub fn parquet_groups(path: &Path, batch: &RecordBatch, rows: usize) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let properties = WriterProperties::builder().set_max_row_group_row_count(Some(rows)).build();
    let temporary = path.with_extension("new");
    let file = File::create(&temporary).unwrap();
    let mut writer = ArrowWriter::try_new(file, batch.schema(), Some(properties)).unwrap();
    writer.write(batch).unwrap();
    writer.close().unwrap();
    // As a careful writer does: the new file takes the place of the old one at once.
    fs::rename(temporary, path).unwrap();
}

pub fn arrow(path: &Path, batch: &RecordBatch) {
    let mut writer = FileWriter::try_new(File::create(path).unwrap(), &batch.schema()).unwrap();
    writer.write(batch).unwrap();
    writer.finish().unwrap();
}

fn people(root: &Path) {
    let people = table(&[
        ("id", DataType::Int32, "1 2 3 4 5"),
        ("name", DataType::Utf8, "Ann Bob Cid '' Éva"),
        ("age", DataType::Int32, "34 - 27 51 34"),
        ("city", DataType::Utf8, "Oslo Rome - Oslo Paris"),
        ("balance", DataType::Decimal128(10, 2), "100.50 20.00 - 0.00 1234.56"),
        ("joined", DataType::Date32, "2020-01-15 2021-03-01 2019-12-31 2020-02-29 -"),
    ]);
    parquet(&root.join("people.parquet"), &people);
    let readings = table(&[("sensor", DataType::Utf8, "a a b"), ("celsius", DataType::Float64, "19.5 21.25 -")]);
    parquet(&root.join("lab/readings.parquet"), &readings);
    let notes = table(&[("id", DataType::Int64, "1")]);
    arrow(&root.join("lab/notes.arrow"), &notes);
}

fn texts(root: &Path) {
    let orders = "id,person,item,amount,at\n\
                  10,1,pen,2.50,2024-01-01T10:00:00\n\
                  11,1,\"ink, blue\",7.25,2024-01-02T11:30:00\n\
                  12,2,pen,2.50,2024-02-01T00:00:00\n\
                  13,9,cap,12.00,2024-02-15T23:59:59\n\
                  14,,mug,5.00,2024-03-10T08:00:00\n";
    fs::write(root.join("orders.csv"), orders).unwrap();
    let events = r#"{"id":1,"kind":"click","tags":["a","b"],"user":{"name":"Ann","address":{"city":"Oslo"}},"score":1.5}
{"id":2,"kind":"view","tags":[],"user":{"name":"Bob","address":null},"score":null}
{"id":3,"kind":"click","user":null,"score":-2.25}
{"id":4,"tags":["b",null],"user":{"name":"Cid","address":{"city":"Rome"}},"score":0}
"#;
    fs::write(root.join("events.ndjson"), events).unwrap();
}

/// One column for each type that a Parquet file can hold: the smallest value, an ordinary one, NULL.
fn types(root: &Path) {
    use DataType::*;
    let scalars = table(&[
        ("boolean", Boolean, "false true -"),
        ("int8", Int8, "-128 1 -"),
        ("int16", Int16, "-32768 1 -"),
        ("int32", Int32, "-2147483648 1 -"),
        ("int64", Int64, "-9223372036854775808 1 -"),
        ("uint8", UInt8, "255 1 -"),
        ("uint16", UInt16, "65535 1 -"),
        ("uint32", UInt32, "4294967295 1 -"),
        ("uint64", UInt64, "18446744073709551615 1 -"),
        ("float16", Float16, "-1.5 1 -"),
        ("float32", Float32, "-1.5 0.1 -"),
        ("float64", Float64, "-1.5 0.1 -"),
        ("decimal128", Decimal128(38, 10), "-1.0000000001 0.5 -"),
        ("decimal256", Decimal256(76, 2), "-123456789012345678901234567890123456789012.25 0.5 -"),
        ("decimal32", Decimal32(9, 2), "-1.25 0.5 -"),
        ("decimal64", Decimal64(18, 2), "-1.25 0.5 -"),
        ("utf8", Utf8, "'' ä€😀 -"),
        ("large_utf8", LargeUtf8, "'' x -"),
        ("utf8_view", Utf8View, "'' a_string_longer_than_twelve_bytes -"),
        ("binary", Binary, "'' x -"),
        ("large_binary", LargeBinary, "'' x -"),
        ("date32", Date32, "0001-01-01 2024-02-29 -"),
        ("time32_s", Time32(TimeUnit::Second), "00:00:00 23:59:59 -"),
        ("time32_ms", Time32(TimeUnit::Millisecond), "00:00:00 23:59:59.999 -"),
        ("time64_us", Time64(TimeUnit::Microsecond), "00:00:00 23:59:59.999999 -"),
        ("time64_ns", Time64(TimeUnit::Nanosecond), "00:00:00 23:59:59.999999999 -"),
        ("timestamp_s", Timestamp(TimeUnit::Second, None), "1969-12-31T23:59:59 2024-02-29T12:00:00 -"),
        ("timestamp_ms", Timestamp(TimeUnit::Millisecond, None), "1969-12-31T23:59:59.999 2024-02-29T12:00:00 -"),
        ("timestamp_us", Timestamp(TimeUnit::Microsecond, None), "1969-12-31T23:59:59.999999 2024-02-29T12:00:00 -"),
        ("timestamp_ns", Timestamp(TimeUnit::Nanosecond, None), "1969-12-31T23:59:59.999999999 2024-02-29T12:00:00 -"),
        (
            "timestamp_utc",
            Timestamp(TimeUnit::Microsecond, Some("UTC".into())),
            "1970-01-01T00:00:00Z 2024-02-29T12:00:00Z -",
        ),
        (
            "timestamp_oslo",
            Timestamp(TimeUnit::Millisecond, Some("Europe/Oslo".into())),
            "1970-01-01T00:00:00Z 2024-07-01T12:00:00Z -",
        ),
        ("dictionary", Dictionary(Box::new(Int32), Box::new(Utf8)), "a b -"),
    ]);
    parquet(&root.join("types.parquet"), &scalars);

    // Types that have no text form, or that Parquet does not keep.
    let fixed =
        FixedSizeBinaryArray::try_from_sparse_iter_with_size([Some(b"ab"), Some(b"cd"), None].into_iter(), 2).unwrap();
    let days =
        IntervalDayTimeArray::from_iter([Some(IntervalDayTime::new(-1, 500)), Some(IntervalDayTime::new(2, 0)), None]);
    let months =
        [Some(IntervalMonthDayNano::new(14, -3, 1_000_000_000)), Some(IntervalMonthDayNano::new(0, 0, 1)), None];
    let duration = DurationSecondArray::from(vec![Some(-1), Some(90), None]);
    let days_ms = Date64Array::from(vec![Some(0), Some(86_400_000), None]);
    let runs = RunArray::<Int32Type>::try_new(&Int32Array::from(vec![2, 3]), &StringArray::from(vec![Some("r"), None]))
        .unwrap();
    let keyed: DictionaryArray<Int8Type> = [Some("k"), Some("k"), None].into_iter().collect();
    let unusual = RecordBatch::try_from_iter_with_nullable([
        ("null", Arc::new(NullArray::new(3)) as ArrayRef, true),
        ("fixed_binary", Arc::new(fixed) as ArrayRef, true),
        ("interval_dt", Arc::new(days) as ArrayRef, true),
        ("interval_mdn", Arc::new(IntervalMonthDayNanoArray::from_iter(months)) as ArrayRef, true),
        ("interval_ym", Arc::new(IntervalYearMonthArray::from(vec![Some(-13), Some(1), None])) as ArrayRef, true),
        ("duration", Arc::new(duration) as ArrayRef, true),
        ("date64", Arc::new(days_ms) as ArrayRef, true),
        ("run_end", Arc::new(runs) as ArrayRef, true),
        ("keyed", Arc::new(keyed) as ArrayRef, true),
    ]);
    arrow(&root.join("unusual.arrow"), &unusual.unwrap());
}

/// Lists, structs and maps, with NULL and empty ones.
fn nested(root: &Path) {
    let list =
        ListArray::from_iter_primitive::<Int32Type, _, _>([Some(vec![Some(1), Some(2), None]), Some(vec![]), None]);
    let fields = Fields::from(vec![Field::new("x", DataType::Int32, true), Field::new("y", DataType::Utf8, true)]);
    let x = Arc::new(Int32Array::from(vec![Some(1), None, Some(9)])) as ArrayRef;
    let y = Arc::new(StringArray::from(vec![Some("a"), Some("b"), None])) as ArrayRef;
    let structs = StructArray::new(fields, vec![x, y], Some(vec![true, true, false].into()));
    let entries = StructArray::from(vec![
        (Arc::new(Field::new("keys", DataType::Utf8, false)), Arc::new(StringArray::from(vec!["k", "l"])) as ArrayRef),
        (
            Arc::new(Field::new("values", DataType::Int64, true)),
            Arc::new(Int64Array::from(vec![Some(7), None])) as ArrayRef,
        ),
    ]);
    let field = Arc::new(Field::new("entries", entries.data_type().clone(), false));
    let maps = MapArray::new(
        field,
        OffsetBuffer::new(vec![0, 2, 2, 2].into()),
        entries,
        Some(vec![true, true, false].into()),
        false,
    );
    let batch = RecordBatch::try_from_iter([
        ("id", Arc::new(Int32Array::from(vec![1, 2, 3])) as ArrayRef),
        ("list", Arc::new(list) as ArrayRef),
        ("struct", Arc::new(structs) as ArrayRef),
        ("map", Arc::new(maps) as ArrayRef),
    ]);
    parquet(&root.join("nested.parquet"), &batch.unwrap());
}

/// 20,000 rows in ten row groups, sorted by `id`.
fn big(root: &Path) {
    let ids = 0..20_000_i64;
    let batch = RecordBatch::try_from_iter([
        ("id", Arc::new(Int64Array::from_iter_values(ids.clone())) as ArrayRef),
        ("bucket", Arc::new(Int32Array::from_iter_values(ids.clone().map(|id| (id % 7) as i32))) as ArrayRef),
        ("half", Arc::new(Float64Array::from_iter_values(ids.clone().map(|id| id as f64 / 2.0))) as ArrayRef),
        ("label", Arc::new(StringArray::from_iter_values(ids.map(|id| format!("label-{id:05}")))) as ArrayRef),
    ]);
    parquet_groups(&root.join("big.parquet"), &batch.unwrap(), 2_000);
}

/// `sales/year=2023/month=1/...`: four partitions of two rows.
fn sales(root: &Path) {
    for (year, month, id, amount) in
        [(2023, 1, "1 2", "10 20"), (2023, 2, "3 4", "30 40"), (2024, 1, "5 6", "50 60"), (2024, 2, "7 8", "70 80")]
    {
        let batch = table(&[("id", DataType::Int32, id), ("amount", DataType::Int64, amount)]);
        parquet(&root.join(format!("sales/year={year}/month={month}/part.parquet")), &batch);
    }
}

/// Tables whose files do not have the same columns.
fn differing(root: &Path) {
    let old = table(&[("id", DataType::Int32, "1 2"), ("name", DataType::Utf8, "a b")]);
    let new =
        table(&[("id", DataType::Int32, "3"), ("extra", DataType::Float64, "0.5"), ("name", DataType::Utf8, "c")]);
    parquet(&root.join("grown/1.parquet"), &old);
    parquet(&root.join("grown/2.parquet"), &new);
    parquet(&root.join("clash/1.parquet"), &table(&[("v", DataType::Int32, "1")]));
    parquet(&root.join("clash/2.parquet"), &table(&[("v", DataType::Utf8, "one")]));
    fs::write(root.join("bad_line.csv"), "a,b\n1,2\n3\n").unwrap();
    fs::write(root.join("cut.parquet"), b"PAR1 this is not the whole file").unwrap();
}

/// An Avro file, byte by byte: its writers are not part of this build.
fn avro() -> Vec<u8> {
    let schema = r#"{"type":"record","name":"bird","fields":[{"name":"name","type":"string"},{"name":"eggs","type":["null","int"]}]}"#;
    let zigzag = |n: i64| {
        let mut n = ((n << 1) ^ (n >> 63)) as u64;
        let mut bytes = Vec::new();
        while n >= 0x80 {
            bytes.push(n as u8 | 0x80);
            n >>= 7;
        }
        bytes.push(n as u8);
        bytes
    };
    let text = |text: &str| [zigzag(text.len() as i64), text.as_bytes().to_vec()].concat();
    let sync = [7_u8; 16];
    let rows = [
        [text("wren"), zigzag(1), zigzag(6)].concat(),
        [text("kiwi"), zigzag(1), zigzag(1)].concat(),
        [text("dodo"), zigzag(0)].concat(),
    ];
    let block = rows.concat();
    let metadata = [zigzag(2), text("avro.schema"), text(schema), text("avro.codec"), text("null"), zigzag(0)].concat();
    [b"Obj\x01".to_vec(), metadata, sync.to_vec(), zigzag(3), zigzag(block.len() as i64), block, sync.to_vec()].concat()
}
