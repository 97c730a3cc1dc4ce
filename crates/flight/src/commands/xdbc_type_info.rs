//! GetXdbcTypeInfo: the SQL types there are. BI tools look up the `TYPE_NAME` of every column here.

use std::sync::LazyLock;

use arrow_flight::sql::metadata::{XdbcTypeInfo, XdbcTypeInfoData, XdbcTypeInfoDataBuilder};
use arrow_flight::sql::{CommandGetXdbcTypeInfo, Nullable, Searchable, XdbcDataType, XdbcDatetimeSubcode};
use datafusion::arrow::array::RecordBatch;
use datafusion::arrow::datatypes::SchemaRef;
use datafusion::arrow::error::ArrowError;

/// The schema of the answer.
pub(crate) fn schema() -> SchemaRef {
    XdbcTypeInfoDataBuilder::new().schema()
}

/// The types with the `data_type` asked for, all if none is, ordered by `data_type` and name.
pub(crate) fn answer(command: &CommandGetXdbcTypeInfo) -> Result<RecordBatch, ArrowError> {
    static TYPES: LazyLock<Result<XdbcTypeInfoData, String>> = LazyLock::new(|| {
        let mut builder = XdbcTypeInfoDataBuilder::new();
        types().into_iter().for_each(|info| builder.append(info));
        builder.build().map_err(|error| error.to_string())
    });
    let types = TYPES.as_ref().map_err(|error| ArrowError::ComputeError(error.clone()))?;
    types.record_batch(command.data_type).map_err(|error| ArrowError::ComputeError(error.to_string()))
}

fn types() -> Vec<XdbcTypeInfo> {
    let mut types = vec![
        number("TINYINT", XdbcDataType::XdbcTinyint, 3),
        number("SMALLINT", XdbcDataType::XdbcSmallint, 5),
        number("INTEGER", XdbcDataType::XdbcInteger, 10),
        number("BIGINT", XdbcDataType::XdbcBigint, 19),
        unsigned("TINYINT UNSIGNED", XdbcDataType::XdbcTinyint, 3),
        unsigned("SMALLINT UNSIGNED", XdbcDataType::XdbcSmallint, 5),
        unsigned("INTEGER UNSIGNED", XdbcDataType::XdbcInteger, 10),
        unsigned("BIGINT UNSIGNED", XdbcDataType::XdbcBigint, 20),
        number("REAL", XdbcDataType::XdbcReal, 7),
        number("DOUBLE", XdbcDataType::XdbcDouble, 15),
        XdbcTypeInfo {
            create_params: Some(vec!["precision".to_owned(), "scale".to_owned()]),
            minimum_scale: Some(0),
            // Up to 38 digits a decimal is 128 bits wide; 76 is the limit of the wider form.
            maximum_scale: Some(76),
            ..number("DECIMAL", XdbcDataType::XdbcDecimal, 76)
        },
        plain("BOOLEAN", XdbcDataType::XdbcBit, Some(1)),
        XdbcTypeInfo { case_sensitive: true, ..quoted("VARCHAR", XdbcDataType::XdbcVarchar, "'", None) },
        quoted("VARBINARY", XdbcDataType::XdbcVarbinary, "X'", None),
        quoted("BINARY", XdbcDataType::XdbcBinary, "X'", None),
        date_time("DATE", XdbcDataType::XdbcDate, "DATE '", 10, 0, XdbcDatetimeSubcode::XdbcSubcodeYear),
        date_time("TIME", XdbcDataType::XdbcTime, "TIME '", 18, 9, XdbcDatetimeSubcode::XdbcSubcodeTime),
        date_time(
            "TIMESTAMP",
            XdbcDataType::XdbcTimestamp,
            "TIMESTAMP '",
            29,
            9,
            XdbcDatetimeSubcode::XdbcSubcodeTimestamp,
        ),
        date_time(
            "TIMESTAMP WITH TIME ZONE",
            XdbcDataType::XdbcTimestamp,
            "TIMESTAMP WITH TIME ZONE '",
            29,
            9,
            XdbcDatetimeSubcode::XdbcSubcodeTimestampWithTimezone,
        ),
        quoted("INTERVAL", XdbcDataType::XdbcInterval, "INTERVAL '", None),
    ];
    // No XDBC code fits these; tools then show them as text or as objects.
    let others = ["ARRAY", "DURATION", "MAP", "NULL", "STRUCT", "UNION"];
    types.extend(
        others.map(|name| XdbcTypeInfo {
            searchable: Searchable::None,
            ..plain(name, XdbcDataType::XdbcUnknownType, None)
        }),
    );
    types
}

fn plain(name: &str, data_type: XdbcDataType, column_size: Option<i32>) -> XdbcTypeInfo {
    XdbcTypeInfo {
        type_name: name.to_owned(),
        data_type,
        column_size,
        nullable: Nullable::NullabilityNullable,
        searchable: Searchable::Full,
        local_type_name: Some(name.to_owned()),
        sql_data_type: data_type,
        ..XdbcTypeInfo::default()
    }
}

fn number(name: &str, data_type: XdbcDataType, digits: i32) -> XdbcTypeInfo {
    XdbcTypeInfo {
        unsigned_attribute: Some(false),
        auto_increment: Some(false),
        minimum_scale: Some(0),
        maximum_scale: Some(0),
        num_prec_radix: Some(10),
        ..plain(name, data_type, Some(digits))
    }
}

fn unsigned(name: &str, data_type: XdbcDataType, digits: i32) -> XdbcTypeInfo {
    XdbcTypeInfo { unsigned_attribute: Some(true), ..number(name, data_type, digits) }
}

fn quoted(name: &str, data_type: XdbcDataType, prefix: &str, column_size: Option<i32>) -> XdbcTypeInfo {
    XdbcTypeInfo {
        literal_prefix: Some(prefix.to_owned()),
        literal_suffix: Some("'".to_owned()),
        // What has no bound of its own is bounded by 32-bit offsets.
        column_size: column_size.or(Some(i32::MAX)),
        ..plain(name, data_type, None)
    }
}

fn date_time(
    name: &str,
    data_type: XdbcDataType,
    prefix: &str,
    length: i32,
    scale: i32,
    subcode: XdbcDatetimeSubcode,
) -> XdbcTypeInfo {
    XdbcTypeInfo {
        minimum_scale: Some(0),
        maximum_scale: Some(scale),
        // All three are kinds of DATETIME, told apart by their subcode.
        sql_data_type: XdbcDataType::XdbcDatetime,
        datetime_subcode: Some(subcode),
        ..quoted(name, data_type, prefix, Some(length))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::tests::every_type;
    use crate::wire::types::SqlType;
    use datafusion::arrow::array::AsArray;
    use datafusion::arrow::datatypes::Int32Type;

    fn names(data_type: Option<i32>) -> Vec<(i32, String)> {
        let batch = answer(&CommandGetXdbcTypeInfo { data_type }).expect("answer");
        assert_eq!(batch.schema(), schema());
        let (names, types) = (batch.column(0).as_string::<i32>(), batch.column(1).as_primitive::<Int32Type>());
        types.values().iter().zip(names).map(|(code, name)| (*code, name.expect("not null").to_owned())).collect()
    }

    #[test]
    fn sorted_by_code_then_name() {
        let rows = names(None);
        let mut sorted = rows.clone();
        sorted.sort();
        assert_eq!(rows, sorted);
        assert_eq!(rows.len(), types().len());
    }

    #[test]
    fn filtered_by_code() {
        let (code, row) = (XdbcDataType::XdbcBigint as i32, |name: &str| (-5, name.to_owned()));
        assert_eq!(names(Some(code)), [row("BIGINT"), row("BIGINT UNSIGNED")]);
        assert!(names(Some(4711)).is_empty());
    }

    #[test]
    fn every_type_name_of_a_column_is_found() {
        let known: Vec<String> = names(None).into_iter().map(|(_, name)| name).collect();
        for data_type in every_type() {
            let name = SqlType::of(&data_type).name;
            assert!(known.iter().any(|known| known == name), "{name} for {data_type}");
        }
    }
}
