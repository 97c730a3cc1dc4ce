//! GetDbSchemas: the schemas a principal may see, filtered.

use std::sync::Arc;

use arrow_flight::sql::CommandGetDbSchemas;
use datafusion::arrow::array::{RecordBatch, StringArray};
use datafusion::arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::arrow::error::ArrowError;

use super::pattern::{is_catalog, passes};

/// The schema of the answer.
pub(crate) fn schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("catalog_name", DataType::Utf8, true),
        Field::new("db_schema_name", DataType::Utf8, false),
    ]))
}

/// Those of `schemas`, given as (catalog, schema), that pass the filters of the command: sorted, each once.
pub(crate) fn answer(command: &CommandGetDbSchemas, schemas: &[(String, String)]) -> Result<RecordBatch, ArrowError> {
    let mut rows: Vec<&(String, String)> = schemas
        .iter()
        .filter(|(catalog, schema)| {
            is_catalog(command.catalog.as_deref(), catalog)
                && passes(command.db_schema_filter_pattern.as_deref(), schema)
        })
        .collect();
    rows.sort_unstable();
    rows.dedup();
    let catalogs = StringArray::from_iter_values(rows.iter().map(|(catalog, _)| catalog));
    let names = StringArray::from_iter_values(rows.iter().map(|(_, schema)| schema));
    RecordBatch::try_new(schema(), vec![Arc::new(catalogs), Arc::new(names)])
}

#[cfg(test)]
mod tests {
    use super::*;
    use datafusion::arrow::util::pretty::pretty_format_batches;
    use expect_test::{Expect, expect};

    fn check(catalog: Option<&str>, pattern: Option<&str>, expected: Expect) {
        let schemas = [("b", "main"), ("a", "sales_eu"), ("a", "main"), ("a", "main")]
            .map(|(catalog, schema)| (catalog.to_owned(), schema.to_owned()));
        let command = CommandGetDbSchemas {
            catalog: catalog.map(str::to_owned),
            db_schema_filter_pattern: pattern.map(str::to_owned),
        };
        let batch = answer(&command, &schemas).expect("answer");
        expected.assert_eq(&pretty_format_batches(&[batch]).expect("pretty").to_string());
    }

    #[test]
    fn filters() {
        check(
            None,
            None,
            expect![[r#"
                +--------------+----------------+
                | catalog_name | db_schema_name |
                +--------------+----------------+
                | a            | main           |
                | a            | sales_eu       |
                | b            | main           |
                +--------------+----------------+"#]],
        );
        check(
            Some("a"),
            Some("sales%"),
            expect![[r#"
                +--------------+----------------+
                | catalog_name | db_schema_name |
                +--------------+----------------+
                | a            | sales_eu       |
                +--------------+----------------+"#]],
        );
        for (catalog, pattern) in [(Some(""), None), (Some("%"), None), (None, Some(""))] {
            check(
                catalog,
                pattern,
                expect![[r#"
                    +--------------+----------------+
                    | catalog_name | db_schema_name |
                    +--------------+----------------+
                    +--------------+----------------+"#]],
            );
        }
    }

    #[test]
    fn schema_is_that_of_the_protocol() {
        let builder = CommandGetDbSchemas { catalog: None, db_schema_filter_pattern: None }.into_builder();
        assert_eq!(schema(), builder.schema());
    }
}
