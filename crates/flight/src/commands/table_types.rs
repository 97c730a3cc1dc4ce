//! GetTableTypes: the kinds of tables there are.

use std::sync::Arc;

use arrow_flight::sql::CommandGetTableTypes;
use datafusion::arrow::array::{RecordBatch, StringArray};
use datafusion::arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::arrow::error::ArrowError;

use super::tables::TableKind;

/// The schema of the answer.
pub(crate) fn schema() -> SchemaRef {
    Arc::new(Schema::new(vec![Field::new("table_type", DataType::Utf8, false)]))
}

/// Every kind GetTables answers with, sorted, whether or not there is a table of it.
pub(crate) fn answer(_: &CommandGetTableTypes) -> Result<RecordBatch, ArrowError> {
    let names = StringArray::from_iter_values(TableKind::ALL.map(TableKind::as_str));
    RecordBatch::try_new(schema(), vec![Arc::new(names)])
}

#[cfg(test)]
mod tests {
    use super::*;
    use datafusion::arrow::array::AsArray;

    #[test]
    fn both_kinds_sorted() {
        let batch = answer(&CommandGetTableTypes {}).expect("answer");
        assert_eq!(batch.column(0).as_string::<i32>().iter().flatten().collect::<Vec<_>>(), ["TABLE", "VIEW"]);
    }

    #[test]
    fn schema_is_that_of_the_protocol() {
        let batch = answer(&CommandGetTableTypes {}).expect("answer");
        assert_eq!(batch.schema(), Arc::new(Schema::new(vec![Field::new("table_type", DataType::Utf8, false)])));
    }
}
