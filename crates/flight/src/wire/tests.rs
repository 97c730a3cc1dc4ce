//! Columns of every type, for the tests of this crate: nested, sliced, with and without nulls.

use std::collections::HashMap;
use std::sync::Arc;

use datafusion::arrow::array::*;
use datafusion::arrow::buffer::{NullBuffer, OffsetBuffer, ScalarBuffer};
use datafusion::arrow::compute::cast;
use datafusion::arrow::datatypes::*;

/// One column of `rows` rows for each Arrow type there is, every third value null where the type can.
pub(crate) fn every_column(rows: usize) -> Vec<ArrayRef> {
    let ints: Int64Array = (0..rows as i64).map(|row| (row % 3 != 2).then_some(row % 100)).collect();
    let ints: ArrayRef = Arc::new(ints);
    let texts: ArrayRef = Arc::new(
        (0..rows)
            .map(|row| (row % 3 != 2).then(|| format!("{row} {}", "long text ".repeat(row % 4))))
            .collect::<StringArray>(),
    );
    let binaries = cast(&texts, &DataType::Binary).expect("binary");
    let mut columns: Vec<ArrayRef> = vec![Arc::new(NullArray::new(rows))];
    let bools: BooleanArray = (0..rows).map(|row| (row % 3 != 2).then_some(row % 2 == 0)).collect();
    columns.push(Arc::new(bools));
    let second = TimeUnit::Second;
    for data_type in [
        DataType::Int8,
        DataType::Int16,
        DataType::Int32,
        DataType::Int64,
        DataType::UInt8,
        DataType::UInt16,
        DataType::UInt32,
        DataType::UInt64,
        DataType::Float16,
        DataType::Float32,
        DataType::Float64,
        DataType::Decimal32(9, 2),
        DataType::Decimal64(18, 2),
        DataType::Decimal128(38, 2),
        DataType::Decimal256(76, 2),
        DataType::Timestamp(second, None),
        DataType::Timestamp(TimeUnit::Millisecond, Some("Europe/Berlin".into())),
        DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())),
        DataType::Timestamp(TimeUnit::Nanosecond, None),
        DataType::Date64,
        DataType::Time64(TimeUnit::Microsecond),
        DataType::Time64(TimeUnit::Nanosecond),
        DataType::Duration(second),
        DataType::Duration(TimeUnit::Millisecond),
        DataType::Duration(TimeUnit::Microsecond),
        DataType::Duration(TimeUnit::Nanosecond),
    ] {
        columns.push(cast(&ints, &data_type).expect("cast of integers"));
    }
    let short = cast(&ints, &DataType::Int32).expect("int32");
    for data_type in [
        DataType::Date32,
        DataType::Time32(second),
        DataType::Time32(TimeUnit::Millisecond),
        DataType::Interval(IntervalUnit::YearMonth),
    ] {
        columns.push(cast(&short, &data_type).expect("cast of short integers"));
    }
    let nulls = NullBuffer::from_iter((0..rows).map(|row| row % 3 != 2));
    let day_time = (0..rows).map(|row| IntervalDayTimeType::make_value(row as i32, 5));
    columns.push(Arc::new(IntervalDayTimeArray::new(day_time.collect(), Some(nulls.clone()))));
    let month_day = (0..rows).map(|row| IntervalMonthDayNanoType::make_value(1, row as i32, 5));
    columns.push(Arc::new(IntervalMonthDayNanoArray::new(month_day.collect(), Some(nulls.clone()))));
    for data_type in [DataType::Utf8, DataType::LargeUtf8, DataType::Utf8View] {
        columns.push(cast(&texts, &data_type).expect("cast of text"));
    }
    for data_type in [DataType::Binary, DataType::LargeBinary, DataType::BinaryView] {
        columns.push(cast(&binaries, &data_type).expect("cast of binaries"));
    }
    let fixed = (0..rows).map(|row| (row % 3 != 2).then_some([row as u8; 5]));
    columns.push(Arc::new(FixedSizeBinaryArray::try_from_sparse_iter_with_size(fixed, 5).expect("fixed size")));

    let views = cast(&texts, &DataType::Utf8View).expect("views");
    let text_dictionary = DataType::Dictionary(Box::new(DataType::Int32), Box::new(DataType::Utf8));
    let dictionary = cast(&texts, &text_dictionary).expect("dictionary");
    columns.push(Arc::clone(&dictionary));
    let number_dictionary = DataType::Dictionary(Box::new(DataType::UInt8), Box::new(DataType::Int64));
    columns.push(cast(&ints, &number_dictionary).expect("dictionary of numbers"));
    let runs = (1..=rows.div_ceil(2)).map(|run| (run * 2).min(rows) as i32).collect::<Int32Array>();
    let run_values = texts.slice(0, runs.len());
    columns.push(Arc::new(RunArray::try_new(&runs, &run_values).expect("runs")));

    for item in [&ints, &texts, &views, &dictionary] {
        columns.extend(nested(item, &nulls));
    }
    // A second level, with everything that moves when it is sliced.
    let inner = nested(&views, &nulls);
    for item in inner {
        columns.push(list::<i32>(&item, &nulls));
    }
    columns
}

/// The types of [`every_column`].
pub(crate) fn every_type() -> Vec<DataType> {
    every_column(3).iter().map(|column| column.data_type().clone()).collect()
}

fn item_field(item: &ArrayRef) -> FieldRef {
    Arc::new(Field::new("item", item.data_type().clone(), true))
}

/// Row `n` has `n % 2` items, so that items are fewer than rows.
fn list<O: OffsetSizeTrait>(item: &ArrayRef, nulls: &NullBuffer) -> ArrayRef {
    let lengths = (0..item.len()).map(|row| row % 2);
    let offsets = OffsetBuffer::<O>::from_lengths(lengths);
    let list = GenericListArray::<O>::try_new(item_field(item), offsets, Arc::clone(item), Some(nulls.clone()));
    Arc::new(list.expect("list"))
}

fn nested(item: &ArrayRef, nulls: &NullBuffer) -> Vec<ArrayRef> {
    let rows = item.len();
    let field = item_field(item);
    let plain = list::<i32>(item, nulls);
    let mut columns = vec![Arc::clone(&plain), list::<i64>(item, nulls)];
    columns.push(cast(&plain, &DataType::ListView(Arc::clone(&field))).expect("list view"));
    columns.push(cast(&columns[1], &DataType::LargeListView(Arc::clone(&field))).expect("large list view"));
    columns.push(Arc::new(
        FixedSizeListArray::try_new(Arc::clone(&field), 1, Arc::clone(item), Some(nulls.clone())).expect("fixed list"),
    ));
    let ids: ArrayRef = Arc::new(Int64Array::from_iter_values(0..rows as i64));
    let fields = Fields::from(vec![Field::new("id", DataType::Int64, false), field.as_ref().clone()]);
    let pairs = StructArray::try_new(fields.clone(), vec![Arc::clone(&ids), Arc::clone(item)], None).expect("pairs");
    let entries = Arc::new(Field::new("entries", DataType::Struct(fields.clone()), false));
    let offsets = OffsetBuffer::<i32>::from_lengths((0..rows).map(|row| row % 2));
    columns.push(Arc::new(MapArray::try_new(entries, offsets, pairs, Some(nulls.clone()), false).expect("map")));
    columns.push(Arc::new(
        StructArray::try_new(fields, vec![Arc::clone(&ids), Arc::clone(item)], Some(nulls.clone())).expect("struct"),
    ));
    let members = UnionFields::try_new([0, 5], [Field::new("id", DataType::Int64, false), field.as_ref().clone()])
        .expect("members");
    let type_ids: ScalarBuffer<i8> = (0..rows).map(|row| if row % 2 == 0 { 0 } else { 5 }).collect();
    let at: ScalarBuffer<i32> = (0..rows as i32).collect();
    let children = vec![ids, Arc::clone(item)];
    for offsets in [Some(at), None] {
        let union = UnionArray::try_new(members.clone(), type_ids.clone(), offsets, children.clone());
        columns.push(Arc::new(union.expect("union")));
    }
    columns
}

/// A batch of `columns` named `c0`, `c1`, ...; every second one has metadata.
pub(crate) fn batch_of(columns: Vec<ArrayRef>) -> RecordBatch {
    let fields = columns.iter().enumerate().map(|(index, column)| {
        let field = Field::new(format!("c{index}"), column.data_type().clone(), true);
        let metadata = if index % 2 == 0 { HashMap::new() } else { [("k".to_owned(), index.to_string())].into() };
        field.with_metadata(metadata)
    });
    let schema = Arc::new(Schema::new(fields.collect::<Vec<_>>()));
    RecordBatch::try_new(schema, columns).expect("columns of one length")
}
