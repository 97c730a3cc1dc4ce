//! GetCatalogs: the catalogs a principal may see.

use std::sync::Arc;

use arrow_flight::sql::CommandGetCatalogs;
use datafusion::arrow::array::{RecordBatch, StringArray};
use datafusion::arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::arrow::error::ArrowError;

/// The schema of the answer.
pub(crate) fn schema() -> SchemaRef {
    Arc::new(Schema::new(vec![Field::new("catalog_name", DataType::Utf8, false)]))
}

/// All of `catalogs`, sorted, each once.
pub(crate) fn answer(_: &CommandGetCatalogs, catalogs: &[String]) -> Result<RecordBatch, ArrowError> {
    let mut names: Vec<&str> = catalogs.iter().map(String::as_str).collect();
    names.sort_unstable();
    names.dedup();
    RecordBatch::try_new(schema(), vec![Arc::new(StringArray::from(names))])
}

#[cfg(test)]
mod tests {
    use super::*;
    use datafusion::arrow::util::pretty::pretty_format_batches;
    use expect_test::expect;

    #[test]
    fn sorted_and_unique() {
        let catalogs = ["b", "a", "b"].map(str::to_owned);
        let batch = answer(&CommandGetCatalogs {}, &catalogs).expect("answer");
        expect![[r#"
            +--------------+
            | catalog_name |
            +--------------+
            | a            |
            | b            |
            +--------------+"#]]
        .assert_eq(&pretty_format_batches(&[batch]).expect("pretty").to_string());
        assert_eq!(answer(&CommandGetCatalogs {}, &[]).expect("empty").num_rows(), 0);
    }

    #[test]
    fn schema_is_that_of_the_protocol() {
        assert_eq!(schema(), arrow_flight::sql::metadata::GetCatalogsBuilder::new().schema());
    }
}
