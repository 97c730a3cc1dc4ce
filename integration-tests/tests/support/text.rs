//! Values as text, alike for rows that came over the wire and rows that did not.

use std::sync::Arc;

use datafusion::arrow::array::{Array, ArrayRef, AsArray, RecordBatch};
use datafusion::arrow::compute::cast;
use datafusion::arrow::datatypes::{DataType, Float64Type, Schema};
use datafusion::arrow::util::display::{ArrayFormatter, FormatOptions};
use sqllogictest::DefaultColumnType;

const OPTIONS: FormatOptions<'static> = FormatOptions::new().with_null("NULL");

/// All rows; a text of several lines (a plan) becomes as many rows.
pub fn rows(batches: &[RecordBatch]) -> Vec<Vec<String>> {
    let mut rows = Vec::new();
    for batch in batches {
        let columns: Vec<Vec<String>> = batch.columns().iter().map(values).collect();
        for row in 0..batch.num_rows() {
            let cells: Vec<String> = columns.iter().map(|column| column[row].clone()).collect();
            if cells.iter().any(|cell| cell.contains('\n')) {
                let lines = cells.join("\n");
                rows.extend(lines.lines().map(|line| vec![line.trim().to_owned()]));
            } else {
                rows.push(cells);
            }
        }
    }
    rows
}

/// `I` whole numbers, `R` other numbers, `T` text, `?` the rest.
pub fn column_types(schema: &Schema) -> Vec<DefaultColumnType> {
    let of = |data_type: &DataType| match data_type {
        DataType::Dictionary(_, value) => value.as_ref().clone(),
        DataType::RunEndEncoded(_, values) => values.data_type().clone(),
        other => other.clone(),
    };
    schema
        .fields()
        .iter()
        .map(|field| match of(field.data_type()) {
            integer if integer.is_integer() => DefaultColumnType::Integer,
            number if number.is_numeric() => DefaultColumnType::FloatingPoint,
            DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => DefaultColumnType::Text,
            _ => DefaultColumnType::Any,
        })
        .collect()
}

fn values(column: &ArrayRef) -> Vec<String> {
    // A session has the encoding, a client the values.
    let column = match column.data_type() {
        DataType::Dictionary(_, value) => cast(column, value).unwrap(),
        _ => Arc::clone(column),
    };
    let digits = match column.data_type() {
        DataType::Float16 => Some(3),
        DataType::Float32 => Some(6),
        DataType::Float64 => Some(12),
        _ => None,
    };
    if let Some(digits) = digits {
        let column = cast(&column, &DataType::Float64).unwrap();
        let column = column.as_primitive::<Float64Type>();
        return column.iter().map(|value| value.map_or("NULL".to_owned(), |value| float(value, digits))).collect();
    }
    let formatter = ArrayFormatter::try_new(column.as_ref(), &OPTIONS).unwrap();
    (0..column.len())
        .map(|row| match formatter.value(row).to_string() {
            empty if empty.is_empty() => "(empty)".to_owned(),
            text => text,
        })
        .collect()
}

/// The last digits depend on the order in which partitions were added up.
fn float(value: f64, digits: usize) -> String {
    if !value.is_finite() {
        return value.to_string();
    }
    let rounded: f64 = format!("{value:.*e}", digits - 1).parse().unwrap();
    rounded.to_string()
}
