//! GetPrimaryKeys, GetExportedKeys, GetImportedKeys, GetCrossReference: files have no keys, so the answers are empty.
//! They are given all the same, since JDBC tools ask for the keys of every table they show.

use std::sync::Arc;

use datafusion::arrow::array::RecordBatch;
use datafusion::arrow::datatypes::{DataType, Field, Schema, SchemaRef};

/// The schema of the answer to GetPrimaryKeys.
pub(crate) fn primary_schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("catalog_name", DataType::Utf8, true),
        Field::new("db_schema_name", DataType::Utf8, true),
        Field::new("table_name", DataType::Utf8, false),
        Field::new("column_name", DataType::Utf8, false),
        Field::new("key_sequence", DataType::Int32, false),
        Field::new("key_name", DataType::Utf8, true),
    ]))
}

/// The schema of the answers to GetExportedKeys, GetImportedKeys and GetCrossReference.
pub(crate) fn foreign_schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("pk_catalog_name", DataType::Utf8, true),
        Field::new("pk_db_schema_name", DataType::Utf8, true),
        Field::new("pk_table_name", DataType::Utf8, false),
        Field::new("pk_column_name", DataType::Utf8, false),
        Field::new("fk_catalog_name", DataType::Utf8, true),
        Field::new("fk_db_schema_name", DataType::Utf8, true),
        Field::new("fk_table_name", DataType::Utf8, false),
        Field::new("fk_column_name", DataType::Utf8, false),
        Field::new("key_sequence", DataType::Int32, false),
        Field::new("fk_key_name", DataType::Utf8, true),
        Field::new("pk_key_name", DataType::Utf8, true),
        Field::new("update_rule", DataType::UInt8, false),
        Field::new("delete_rule", DataType::UInt8, false),
    ]))
}

/// The answer to GetPrimaryKeys.
pub(crate) fn primary_answer() -> RecordBatch {
    RecordBatch::new_empty(primary_schema())
}

/// The answer to the other three.
pub(crate) fn foreign_answer() -> RecordBatch {
    RecordBatch::new_empty(foreign_schema())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(schema: &Schema) -> String {
        let field = |field: &Arc<Field>| {
            format!("{} {}{}", field.name(), field.data_type(), if field.is_nullable() { "" } else { "!" })
        };
        schema.fields().iter().map(field).collect::<Vec<_>>().join(", ")
    }

    #[test]
    fn schemas_are_those_of_the_protocol() {
        assert_eq!(
            written(&primary_answer().schema()),
            "catalog_name Utf8, db_schema_name Utf8, table_name Utf8!, column_name Utf8!, key_sequence Int32!, key_name Utf8"
        );
        assert_eq!(
            written(&foreign_answer().schema()),
            "pk_catalog_name Utf8, pk_db_schema_name Utf8, pk_table_name Utf8!, pk_column_name Utf8!, \
             fk_catalog_name Utf8, fk_db_schema_name Utf8, fk_table_name Utf8!, fk_column_name Utf8!, \
             key_sequence Int32!, fk_key_name Utf8, pk_key_name Utf8, update_rule UInt8!, delete_rule UInt8!"
        );
    }
}
