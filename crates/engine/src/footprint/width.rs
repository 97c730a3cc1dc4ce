//! How many bytes a row takes once it is decoded.

use std::collections::HashMap;
use std::sync::Arc;

use datafusion::arrow::datatypes::{DataType, Field, Schema};
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::expressions::Column;
use updraft_catalog::StoredColumn;

/// A view of a string, or its offset and what growing buffers leave empty.
const STRING_OVERHEAD: u64 = 16;
/// Characters of a string of which nothing is known: the columns of TPC-H have 25 on average.
const STRING_GUESS: u64 = 32;
/// Items of a list of which nothing is known.
const LIST_GUESS: u64 = 8;

/// The widths of columns of which more is known than their type, by name.
///
/// A name keeps its width through joins, sorts and groups, so it need not be followed through each kind of
/// operator. Of two columns of one name the wider counts.
#[derive(Debug, Default)]
pub(super) struct Widths {
    by_name: HashMap<String, u64>,
}

impl Widths {
    /// A column of a table, from what its `rows` take in its files.
    pub(super) fn learn(&mut self, field: &Field, stored: &StoredColumn, rows: u64) {
        if rows > 0 && field.data_type().primitive_width().is_none() {
            self.insert(field.name(), STRING_OVERHEAD.saturating_add(stored.values / rows));
        }
    }

    /// A column called `name`, which is `expr` of columns in `schema`.
    pub(super) fn alias(&mut self, name: &str, expr: &Arc<dyn PhysicalExpr>, schema: &Schema) {
        let Some(column) = expr.downcast_ref::<Column>().filter(|column| column.name() != name) else { return };
        if let Ok(field) = schema.field_with_name(column.name())
            && self.by_name.contains_key(column.name())
        {
            self.insert(name, self.value(field));
        }
    }

    fn insert(&mut self, name: &str, width: u64) {
        match self.by_name.get_mut(name) {
            Some(known) => *known = width.max(*known),
            None => _ = self.by_name.insert(name.to_owned(), width),
        }
    }

    /// Bytes of one value.
    pub(super) fn value(&self, field: &Field) -> u64 {
        let fixed = field.data_type().primitive_width().map(|width| width as u64);
        let known = || self.by_name.get(field.name()).copied();
        fixed.or_else(known).unwrap_or_else(|| guess(field.data_type()))
    }

    /// Bytes of one row.
    pub(super) fn row(&self, schema: &Schema) -> u64 {
        schema.fields().iter().fold(0, |sum: u64, field| sum.saturating_add(self.value(field)))
    }

    /// Bytes of one value of `key`, which is of columns in `schema`, in the form in which rows of several keys are compared:
    /// whether it is there, and strings in blocks of eight (`arrow-row` describes it).
    pub(super) fn sortable(&self, key: &Arc<dyn PhysicalExpr>, schema: &Schema) -> u64 {
        let field = key.return_field(schema);
        let value = field.map_or(STRING_OVERHEAD + STRING_GUESS, |field| {
            let column = key.downcast_ref::<Column>().and_then(|column| schema.fields().get(column.index()));
            self.value(column.unwrap_or(&field))
        });
        value.saturating_add(value / 8).saturating_add(2)
    }
}

/// Bytes of a value of which only the type is known.
fn guess(data_type: &DataType) -> u64 {
    if let Some(width) = data_type.primitive_width() {
        return width as u64;
    }
    match data_type {
        DataType::Null | DataType::Boolean => 1,
        DataType::FixedSizeBinary(width) => u64::try_from(*width).unwrap_or_default(),
        DataType::Struct(fields) => fields.iter().fold(0, |sum, field| guess(field.data_type()).saturating_add(sum)),
        DataType::FixedSizeList(item, count) => {
            guess(item.data_type()).saturating_mul(u64::try_from(*count).unwrap_or_default())
        }
        DataType::List(item)
        | DataType::LargeList(item)
        | DataType::ListView(item)
        | DataType::LargeListView(item)
        | DataType::Map(item, _) => guess(item.data_type()).saturating_mul(LIST_GUESS),
        // The values are there once for many rows.
        DataType::Dictionary(key, _) => guess(key),
        DataType::RunEndEncoded(_, values) => guess(values.data_type()),
        DataType::Union(fields, _) => fields.iter().map(|(_, field)| guess(field.data_type())).max().unwrap_or(0),
        _ => STRING_OVERHEAD + STRING_GUESS,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn widths_by_type_and_by_what_is_known() {
        let text = |name: &str| Field::new(name, DataType::Utf8View, true);
        let number = Field::new("number", DataType::Int64, true);
        let schema = Schema::new(vec![number.clone(), text("long"), text("unknown")]);
        let mut widths = Widths::default();
        assert_eq!(widths.row(&schema), 8 + 48 + 48);
        let stored = StoredColumn { values: 2_000_000, ..StoredColumn::default() };
        widths.learn(&text("long"), &stored, 1000);
        widths.learn(&number, &stored, 1000);
        widths.learn(&text("unknown"), &stored, 0);
        assert_eq!(widths.row(&schema), 8 + 2016 + 48, "fixed widths are exact, and nothing is learnt of no rows");
        let column: Arc<dyn PhysicalExpr> = Arc::new(Column::new("long", 1));
        widths.alias("renamed", &column, &schema);
        assert_eq!(widths.value(&text("renamed")), 2016);
    }

    #[test]
    fn nested_types_have_a_width() {
        let item = Arc::new(Field::new("item", DataType::Int32, true));
        let nested = DataType::Struct(vec![item.as_ref().clone(), Field::new("s", DataType::Utf8, true)].into());
        for (data_type, width) in [
            (DataType::List(Arc::clone(&item)), 32),
            (DataType::FixedSizeList(Arc::clone(&item), 3), 12),
            (DataType::FixedSizeList(Arc::clone(&item), -3), 0),
            (nested, 52),
            (DataType::Dictionary(Box::new(DataType::Int32), Box::new(DataType::Utf8)), 4),
            (DataType::Boolean, 1),
        ] {
            assert_eq!(guess(&data_type), width, "{data_type}");
        }
    }
}
