//! Batches of a query turned into the wire schema, in pieces of a bounded size.
//!
//! The cut comes first and the conversion second: a piece is measured as it will be on the wire, so that neither plain
//! values out of a dictionary nor 32-bit offsets out of large strings can grow past the bound while they are made.

use std::sync::Arc;

use datafusion::arrow::array::{
    Array, ArrayRef, AsArray, BinaryArray, FixedSizeListArray, GenericListArray, MapArray, OffsetSizeTrait,
    PrimitiveArray, RecordBatch, RecordBatchOptions, RunArray, StructArray, UInt64Array, UnionArray, make_array,
};
use datafusion::arrow::buffer::{OffsetBuffer, ScalarBuffer};
use datafusion::arrow::compute::{CastOptions, cast_with_options, take};
use datafusion::arrow::datatypes::{
    ArrowDictionaryKeyType, ArrowNativeType, DataType, FieldRef, Int16Type, Int32Type, Int64Type, RunEndIndexType,
    Schema, SchemaRef, UnionMode,
};
use datafusion::arrow::downcast_dictionary_array;
use datafusion::arrow::error::ArrowError;

use super::text::gathered;

/// What goes in the place of `wire_schema` when its batches are written: columns of text are columns of bytes, which look
/// the same on the wire and need no check that they are text.
pub(super) fn layout(wire_schema: &Schema) -> SchemaRef {
    let fields = wire_schema.fields().iter().map(|field| match field.data_type() {
        DataType::Utf8 => Arc::new(field.as_ref().clone().with_data_type(DataType::Binary)),
        _ => Arc::clone(field),
    });
    Arc::new(Schema::new(fields.collect::<Vec<_>>()))
}

/// Rows of a batch that go in one message.
#[derive(Debug)]
pub(crate) struct Piece {
    /// As the query gave them.
    pub(super) rows: RecordBatch,
    /// What they are on the wire, without headers, padding and dictionaries.
    pub(crate) bytes: usize,
}

/// Cuts `batch` into pieces that are at most `bytes_max` bytes of data as `wire_schema`, in order. A single row that is wider
/// is a piece of its own. A batch without columns keeps its number of rows.
///
/// Fails when there are more columns or fewer than in the schema, which is a bug of the caller.
pub(super) fn cut(batch: &RecordBatch, wire_schema: &Schema, bytes_max: usize) -> Result<Vec<Piece>, ArrowError> {
    if batch.num_columns() != wire_schema.fields().len() {
        return Err(ArrowError::SchemaError(format!(
            "batch has {} columns, its wire schema {}",
            batch.num_columns(),
            wire_schema.fields().len()
        )));
    }
    let mut bytes_left = batch_bytes(batch, wire_schema);
    if bytes_left <= bytes_max {
        return Ok(vec![Piece { rows: batch.clone(), bytes: bytes_left }]);
    }
    let mut pieces = Vec::new();
    let (mut start, rows) = (0, batch.num_rows());
    loop {
        let piece = first_piece(&batch.slice(start, rows - start), bytes_left, wire_schema, bytes_max);
        start += piece.rows.num_rows();
        bytes_left = bytes_left.saturating_sub(piece.bytes);
        pieces.push(piece);
        if start >= rows {
            return Ok(pieces);
        }
    }
}

/// Rows at the start of `batch` that fit `bytes_max`: as many as there are if all pieces are to be of one size, made fewer
/// until they fit, then doubled while they fill less than half, as when the wide rows come last.
///
/// `bytes_all` is about what the batch takes. What is given is measured; to measure what is left at each piece would take long.
fn first_piece(batch: &RecordBatch, bytes_all: usize, wire_schema: &Schema, bytes_max: usize) -> Piece {
    let bytes_of = |rows: usize| batch_bytes(&batch.slice(0, rows), wire_schema);
    let mut rows = batch.num_rows().div_ceil(bytes_all.div_ceil(bytes_max).max(1));
    let mut bytes = bytes_of(rows);
    while rows > 1 && bytes > bytes_max {
        let share = (rows as u128 * bytes_max as u128 / bytes as u128) as usize;
        // A guess that is hardly smaller than the last one would be made many times on skewed rows.
        rows = share.min(rows * 3 / 4).max(1);
        bytes = bytes_of(rows);
    }
    while rows < batch.num_rows() && bytes <= bytes_max / 2 {
        let more = (rows * 2).min(batch.num_rows());
        let more_bytes = bytes_of(more);
        if more_bytes > bytes_max {
            break;
        }
        (rows, bytes) = (more, more_bytes);
    }
    Piece { rows: batch.slice(0, rows), bytes }
}

/// Bytes that `batch` takes on the wire as `wire_schema`, without headers, padding and dictionaries.
pub(super) fn batch_bytes(batch: &RecordBatch, wire_schema: &Schema) -> usize {
    batch
        .columns()
        .iter()
        .zip(wire_schema.fields())
        .map(|(column, field)| wire_bytes(column, field.data_type()))
        .fold(0, usize::saturating_add)
}

/// `batch` as `wire_schema`, written as `layout`.
///
/// Fails when its columns do not fit the schema, or when a value cannot be converted.
pub(super) fn to_wire(
    batch: &RecordBatch,
    wire_schema: &Schema,
    layout: &SchemaRef,
) -> Result<RecordBatch, ArrowError> {
    let columns = batch.columns().iter().zip(wire_schema.fields());
    let columns = columns.map(|(column, field)| written(column, field.data_type())).collect::<Result<Vec<_>, _>>()?;
    let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
    RecordBatch::try_new_with_options(Arc::clone(layout), columns, &options)
}

/// A column that is to arrive as `to`, as [`layout`] has it.
fn written(column: &ArrayRef, to: &DataType) -> Result<ArrayRef, ArrowError> {
    Ok(match (column.data_type(), to) {
        (DataType::Utf8View, DataType::Utf8) => Arc::new(gathered(column.as_string_view())?),
        (DataType::BinaryView, DataType::Binary) => Arc::new(gathered(column.as_binary_view())?),
        (DataType::Dictionary(..), DataType::Utf8 | DataType::Binary) => written(&looked_up(column)?, to)?,
        (_, DataType::Utf8) => Arc::new(BinaryArray::from(convert(column, to)?.as_string::<i32>().clone())),
        _ => convert(column, to)?,
    })
}

/// `array` as `to`, which must come from the mapping of `types.rs`.
pub(super) fn convert(array: &ArrayRef, to: &DataType) -> Result<ArrayRef, ArrowError> {
    use DataType::{
        Dictionary, FixedSizeList, LargeList, LargeListView, List, ListView, Map, RunEndEncoded, Struct, Union,
    };
    if array.data_type() == to {
        return Ok(Arc::clone(array));
    }
    let nulls = || array.nulls().cloned();
    match (array.data_type(), to) {
        (Dictionary(..), Dictionary(_, value)) => {
            let dictionary = array.as_any_dictionary();
            Ok(dictionary.with_values(convert(dictionary.values(), value)?))
        }
        (Dictionary(..), _) => convert(&looked_up(array)?, to),
        (RunEndEncoded(..), RunEndEncoded(_, value)) => {
            let data = array.to_data();
            let [run_ends, values] = data.child_data() else {
                return Err(ArrowError::SchemaError("run-end encoded array without two children".to_owned()));
            };
            let values = convert(&make_array(values.clone()), value.data_type())?.to_data();
            let children = vec![run_ends.clone(), values];
            Ok(make_array(data.clone().into_builder().data_type(to.clone()).child_data(children).build()?))
        }
        (RunEndEncoded(..), _) => {
            let (values, runs) = runs(array)?;
            let indices = runs.iter().flat_map(|(index, times)| std::iter::repeat_n(*index as u64, *times));
            convert(&take(&values, &UInt64Array::from_iter_values(indices), None)?, to)
        }
        (List(_), List(item)) => Ok(Arc::new(convert_list::<i32, i32>(array, item)?)),
        (LargeList(_), LargeList(item)) => Ok(Arc::new(convert_list::<i64, i64>(array, item)?)),
        (LargeList(_), List(item)) => Ok(Arc::new(convert_list::<i64, i32>(array, item)?)),
        (ListView(item), _) => convert(&plain_cast(array, &List(Arc::clone(item)))?, to),
        (LargeListView(item), _) => convert(&plain_cast(array, &LargeList(Arc::clone(item)))?, to),
        // Only reached from a list view whose items changed.
        (List(_), ListView(item)) => plain_cast(&convert(array, &List(Arc::clone(item)))?, to),
        (LargeList(_), LargeListView(item)) => plain_cast(&convert(array, &LargeList(Arc::clone(item)))?, to),
        (LargeList(_), ListView(item)) => plain_cast(&convert(array, &List(Arc::clone(item)))?, to),
        (FixedSizeList(..), FixedSizeList(item, size)) => {
            let values = convert(array.as_fixed_size_list().values(), item.data_type())?;
            let item = Arc::clone(item);
            Ok(Arc::new(FixedSizeListArray::try_new_with_length(item, *size, values, nulls(), array.len())?))
        }
        (Struct(_), Struct(fields)) => {
            let children = array.as_struct().columns().iter().zip(fields);
            let children =
                children.map(|(child, field)| convert(child, field.data_type())).collect::<Result<Vec<_>, _>>()?;
            Ok(Arc::new(StructArray::try_new_with_length(fields.clone(), children, nulls(), array.len())?))
        }
        (Map(..), Map(entries, sorted)) => {
            let map = array.as_map();
            let (offsets, values) = used_values(map.offsets(), &(Arc::new(map.entries().clone()) as ArrayRef))?;
            let values = convert(&values, entries.data_type())?.as_struct().clone();
            Ok(Arc::new(MapArray::try_new(Arc::clone(entries), offsets, values, nulls(), *sorted)?))
        }
        (Union(..), Union(fields, _)) => {
            let union = array.as_union();
            let children = fields
                .iter()
                .map(|(id, field)| convert(union.child(id), field.data_type()))
                .collect::<Result<Vec<_>, _>>()?;
            let (ids, offsets) = (union.type_ids().clone(), union.offsets().cloned());
            Ok(Arc::new(UnionArray::try_new(fields.clone(), ids, offsets, children)?))
        }
        _ => plain_cast(array, to),
    }
}

/// The value of each row of a dictionary array. What is done with them takes as long as there are rows in this piece, however
/// large the dictionary is.
fn looked_up(array: &ArrayRef) -> Result<ArrayRef, ArrowError> {
    let dictionary = array.as_any_dictionary();
    take(dictionary.values(), dictionary.keys(), None)
}

fn plain_cast(array: &ArrayRef, to: &DataType) -> Result<ArrayRef, ArrowError> {
    // A value that does not fit is an error; the default would send NULL in its place.
    let options = CastOptions { safe: false, ..CastOptions::default() };
    cast_with_options(array, to, &options)
}

fn convert_list<From: OffsetSizeTrait, To: OffsetSizeTrait>(
    array: &ArrayRef,
    item: &FieldRef,
) -> Result<GenericListArray<To>, ArrowError> {
    let list = array.as_list::<From>();
    let (offsets, values) = used_values(list.offsets(), list.values())?;
    let values = convert(&values, item.data_type())?;
    GenericListArray::try_new(Arc::clone(item), offsets, values, list.nulls().cloned())
}

/// The values that `offsets` reach, and the offsets counted from the first of them.
pub(super) fn used_values<From: OffsetSizeTrait, To: OffsetSizeTrait>(
    offsets: &OffsetBuffer<From>,
    values: &ArrayRef,
) -> Result<(OffsetBuffer<To>, ArrayRef), ArrowError> {
    let (first, last) = (offsets[0].as_usize(), offsets[offsets.len() - 1].as_usize());
    let moved = offsets
        .iter()
        .map(|offset| To::from_usize(offset.as_usize() - first))
        .collect::<Option<Vec<To>>>()
        .ok_or_else(|| ArrowError::OffsetOverflowError(last - first))?;
    Ok((OffsetBuffer::new(ScalarBuffer::from(moved)), values.slice(first, last - first)))
}

/// The values of a run-end encoded array, and for each run in order the index of its value and how often it repeats.
fn runs(array: &ArrayRef) -> Result<(ArrayRef, Vec<(usize, usize)>), ArrowError> {
    fn of<R: RunEndIndexType>(array: &RunArray<R>) -> (ArrayRef, Vec<(usize, usize)>) {
        let mut runs = Vec::new();
        if !array.is_empty() {
            let (start, mut done) = (array.get_start_physical_index(), 0);
            for (run, end) in array.run_ends().sliced_values().enumerate() {
                let end = end.as_usize().min(array.len());
                runs.push((start + run, end - done));
                done = end;
            }
        }
        (Arc::clone(array.values()), runs)
    }
    match array.data_type() {
        DataType::RunEndEncoded(ends, _) => match ends.data_type() {
            DataType::Int16 => Ok(of(array.as_run::<Int16Type>())),
            DataType::Int32 => Ok(of(array.as_run::<Int32Type>())),
            _ => Ok(of(array.as_run::<Int64Type>())),
        },
        other => Err(ArrowError::CastError(format!("{other} is not run-end encoded"))),
    }
}

/// Bytes that `array` takes on the wire as `to`, without headers, padding and dictionaries.
pub(super) fn wire_bytes(array: &ArrayRef, to: &DataType) -> usize {
    use DataType::{
        Binary, BinaryView, Dictionary, FixedSizeList, LargeBinary, LargeList, LargeListView, LargeUtf8, List,
        ListView, Map, RunEndEncoded, Struct, Union, Utf8, Utf8View,
    };
    let rows = array.len();
    let validity = if array.null_count() > 0 { rows.div_ceil(8) } else { 0 };
    let picked = |values: &ArrayRef, picks: &mut dyn Iterator<Item = (usize, usize)>| picked_bytes(values, to, picks);
    let data = match (array.data_type(), to) {
        (Dictionary(..), Dictionary(key, _)) => rows * key.primitive_width().unwrap_or(8),
        (Dictionary(..), _) => downcast_dictionary_array! {
            array => picked(array.values(), &mut present_keys(array.keys())),
            _ => 0,
        },
        (RunEndEncoded(..), _) => match (runs(array), to) {
            (Ok((values, runs)), RunEndEncoded(ends, value)) => {
                let ends = runs.len() * ends.data_type().primitive_width().unwrap_or(8);
                let once = &mut runs.iter().map(|(index, _)| (*index, 1));
                ends.saturating_add(picked_bytes(&values, value.data_type(), once))
            }
            (Ok((values, runs)), _) => picked(&values, &mut runs.into_iter()),
            (Err(_), _) => 0,
        },
        (Utf8, _) => text_bytes(array.as_string::<i32>().offsets(), to),
        (Binary, _) => text_bytes(array.as_binary::<i32>().offsets(), to),
        (LargeUtf8, _) => text_bytes(array.as_string::<i64>().offsets(), to),
        (LargeBinary, _) => text_bytes(array.as_binary::<i64>().offsets(), to),
        (Utf8View | BinaryView, Utf8View | BinaryView) => {
            let (used, held) = view_bytes(array);
            rows * 16 + if views_waste(used, held) { used } else { held }
        }
        (Utf8View, _) => offsets_bytes(rows, to) + array.as_string_view().total_bytes_len(),
        (BinaryView, _) => offsets_bytes(rows, to) + array.as_binary_view().total_bytes_len(),
        (List(_), _) => list_bytes(array.as_list::<i32>().offsets(), array.as_list::<i32>().values(), to),
        (LargeList(_), _) => list_bytes(array.as_list::<i64>().offsets(), array.as_list::<i64>().values(), to),
        (Map(..), _) => {
            let map = array.as_map();
            list_bytes(map.offsets(), &(Arc::new(map.entries().clone()) as ArrayRef), to)
        }
        (ListView(_), _) => list_view_bytes::<i32>(array, to),
        (LargeListView(_), _) => list_view_bytes::<i64>(array, to),
        (FixedSizeList(..), FixedSizeList(item, _)) => {
            wire_bytes(array.as_fixed_size_list().values(), item.data_type())
        }
        (Struct(_), Struct(fields)) => array
            .as_struct()
            .columns()
            .iter()
            .zip(fields)
            .map(|(child, field)| wire_bytes(child, field.data_type()))
            .fold(0, usize::saturating_add),
        (Union(_, mode), Union(fields, _)) => {
            let union = array.as_union();
            let mut used = [0_usize; 128];
            for id in union.type_ids() {
                used[usize::from(id.unsigned_abs().min(127))] += 1;
            }
            let children = fields.iter().map(|(id, field)| {
                let child = union.child(id);
                let bytes = wire_bytes(child, field.data_type());
                match mode {
                    UnionMode::Sparse => bytes,
                    // The encoder leaves out the rows of a child that no row of the union uses.
                    UnionMode::Dense => {
                        let used = used[usize::from(id.unsigned_abs().min(127))];
                        (bytes as u128 * used as u128 / child.len().max(1) as u128) as usize
                    }
                }
            });
            children.fold(rows * 5, usize::saturating_add)
        }
        _ => fixed_bytes(rows, to),
    };
    data.saturating_add(validity)
}

/// Bytes of `rows` values of a type whose values all have one width, or are text of a known length.
fn fixed_bytes(rows: usize, data_type: &DataType) -> usize {
    match data_type {
        DataType::Null => 0,
        DataType::Boolean => rows.div_ceil(8),
        DataType::FixedSizeBinary(width) => rows * usize::try_from(*width).unwrap_or(0),
        // Intervals sent as text: "-178956970 years -7 mons -2147483648 days ..." is the longest kind.
        DataType::Utf8 => rows * 100,
        other => rows * other.primitive_width().unwrap_or(16),
    }
}

/// Bytes of the offsets of `rows` variable-width values sent as `to`.
fn offsets_bytes(rows: usize, to: &DataType) -> usize {
    let width = match to {
        DataType::LargeUtf8 | DataType::LargeBinary | DataType::LargeList(_) => 8,
        DataType::ListView(_) => 8,
        DataType::LargeListView(_) => 16,
        _ => 4,
    };
    (rows + 1) * width
}

fn text_bytes<O: OffsetSizeTrait>(offsets: &OffsetBuffer<O>, to: &DataType) -> usize {
    let rows = offsets.len() - 1;
    offsets_bytes(rows, to) + offsets[rows].as_usize() - offsets[0].as_usize()
}

fn item_type(to: &DataType) -> Option<&DataType> {
    match to {
        DataType::List(item)
        | DataType::LargeList(item)
        | DataType::ListView(item)
        | DataType::LargeListView(item)
        | DataType::Map(item, _) => Some(item.data_type()),
        _ => None,
    }
}

fn list_bytes<O: OffsetSizeTrait>(offsets: &OffsetBuffer<O>, values: &ArrayRef, to: &DataType) -> usize {
    let rows = offsets.len() - 1;
    let (first, last) = (offsets[0].as_usize(), offsets[rows].as_usize());
    let items = item_type(to).map_or(0, |item| wire_bytes(&values.slice(first, last - first), item));
    offsets_bytes(rows, to).saturating_add(items)
}

fn list_view_bytes<O: OffsetSizeTrait>(array: &ArrayRef, to: &DataType) -> usize {
    let list = array.as_list_view::<O>();
    let items = list.sizes().iter().map(|size| size.as_usize()).fold(0, usize::saturating_add);
    let values = list.values();
    let bytes = item_type(to).map_or(0, |item| wire_bytes(values, item));
    // Items may be shared between rows or used by none: counted by the average, since they are laid out one after the other.
    let used = (bytes as u128 * items as u128 / values.len().max(1) as u128) as usize;
    offsets_bytes(list.len(), to).saturating_add(used)
}

/// Bytes that the views of a view array use in its buffers, and bytes its buffers hold.
pub(super) fn view_bytes(array: &ArrayRef) -> (usize, usize) {
    let held = |buffers: &[datafusion::arrow::buffer::Buffer]| buffers.iter().map(|buffer| buffer.len()).sum();
    match array.data_type() {
        DataType::Utf8View => {
            let views = array.as_string_view();
            (views.total_buffer_bytes_used(), held(views.data_buffers()))
        }
        _ => {
            let views = array.as_binary_view();
            (views.total_buffer_bytes_used(), held(views.data_buffers()))
        }
    }
}

/// Copying the used bytes pays when they are less than half of what would be sent.
pub(super) fn views_waste(used: usize, held: usize) -> bool {
    held / 2 > used
}

fn present_keys<K: ArrowDictionaryKeyType>(keys: &PrimitiveArray<K>) -> impl Iterator<Item = (usize, usize)> + '_ {
    keys.iter().flatten().map(|key| (key.as_usize(), 1))
}

/// Bytes as `to` of the values picked as `(index, times)`.
fn picked_bytes(values: &ArrayRef, to: &DataType, picks: &mut dyn Iterator<Item = (usize, usize)>) -> usize {
    let sum = |bytes_of: &mut dyn FnMut(usize) -> usize, picks: &mut dyn Iterator<Item = (usize, usize)>| {
        picks.fold(0_usize, |sum, (index, times)| sum.saturating_add(bytes_of(index).saturating_mul(times)))
    };
    let width = offsets_bytes(0, to);
    match values.data_type() {
        DataType::Utf8 => {
            let values = values.as_string::<i32>();
            sum(&mut |index| width + values.value_length(index).as_usize(), picks)
        }
        DataType::LargeUtf8 => {
            let values = values.as_string::<i64>();
            sum(&mut |index| width + values.value_length(index).as_usize(), picks)
        }
        DataType::Utf8View => {
            let values = values.as_string_view();
            // The low half of a view is the length of its value.
            sum(&mut |index| width + (values.views()[index] as u32) as usize, picks)
        }
        _ if to.primitive_width().is_some() => {
            let width = to.primitive_width().unwrap_or(16);
            sum(&mut |_| width, picks)
        }
        _ => {
            let mut known: Vec<Option<usize>> = vec![None; values.len()];
            let bytes_of =
                &mut |index: usize| *known[index].get_or_insert_with(|| wire_bytes(&values.slice(index, 1), to));
            sum(bytes_of, picks)
        }
    }
}
