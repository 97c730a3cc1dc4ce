//! Type names in the settings: SQL's and Arrow's.

use std::str::FromStr;

use datafusion::arrow::datatypes::{DataType, TimeUnit};

/// The Arrow type for a SQL type (`BIGINT`, `DECIMAL(10,2)`) or an Arrow type (`Int64`); else what would be right.
pub(crate) fn parse(text: &str) -> Result<DataType, String> {
    let upper = text.trim().to_ascii_uppercase();
    let (base, arguments) = match upper.split_once('(') {
        Some((base, rest)) => (base.trim(), rest.trim_end().strip_suffix(')')),
        None => (upper.as_str(), None),
    };
    let sql = match base {
        "BOOLEAN" | "BOOL" => Some(DataType::Boolean),
        "TINYINT" => Some(DataType::Int8),
        "SMALLINT" => Some(DataType::Int16),
        "INT" | "INTEGER" => Some(DataType::Int32),
        "BIGINT" => Some(DataType::Int64),
        "REAL" | "FLOAT" => Some(DataType::Float32),
        "DOUBLE" | "DOUBLE PRECISION" => Some(DataType::Float64),
        "DECIMAL" | "NUMERIC" => decimal(arguments),
        "VARCHAR" | "CHAR" | "TEXT" | "STRING" => Some(DataType::Utf8View),
        "BYTEA" | "VARBINARY" | "BLOB" => Some(DataType::BinaryView),
        "DATE" => Some(DataType::Date32),
        "TIME" => Some(DataType::Time64(TimeUnit::Nanosecond)),
        // With anything but digits of a second it is Arrow's own name, such as `Timestamp(ms)`.
        "TIMESTAMP" => match arguments {
            None | Some("9") => Some(DataType::Timestamp(TimeUnit::Nanosecond, None)),
            Some("6") => Some(DataType::Timestamp(TimeUnit::Microsecond, None)),
            Some("3") => Some(DataType::Timestamp(TimeUnit::Millisecond, None)),
            Some("0") => Some(DataType::Timestamp(TimeUnit::Second, None)),
            Some(_) => None,
        },
        "TIMESTAMPTZ" | "TIMESTAMP WITH TIME ZONE" => {
            Some(DataType::Timestamp(TimeUnit::Nanosecond, Some("+00:00".into())))
        }
        _ => None,
    };
    sql.or_else(|| DataType::from_str(text.trim()).ok()).ok_or_else(|| {
        format!(
            "{text:?} is not a type; use a SQL type such as BIGINT or DECIMAL(10,2), or an Arrow type such as Int64"
        )
    })
}

fn decimal(arguments: Option<&str>) -> Option<DataType> {
    let Some(arguments) = arguments else { return Some(DataType::Decimal128(38, 10)) };
    let mut numbers = arguments.split(',').map(str::trim);
    let precision: u8 = numbers.next()?.parse().ok()?;
    let scale: i8 = numbers.next().unwrap_or("0").parse().ok()?;
    let fits = numbers.next().is_none() && scale >= 0 && scale as u8 <= precision;
    match precision {
        1..=38 if fits => Some(DataType::Decimal128(precision, scale)),
        39..=76 if fits => Some(DataType::Decimal256(precision, scale)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sql_and_arrow_names() {
        assert_eq!(parse("bigint"), Ok(DataType::Int64));
        assert_eq!(parse("Decimal(10, 2)"), Ok(DataType::Decimal128(10, 2)));
        assert_eq!(parse("VARCHAR(20)"), Ok(DataType::Utf8View));
        assert_eq!(parse("Int8"), Ok(DataType::Int8));
        assert_eq!(parse("TIMESTAMP(6)"), Ok(DataType::Timestamp(TimeUnit::Microsecond, None)));
        assert_eq!(parse("Timestamp(ms)"), Ok(DataType::Timestamp(TimeUnit::Millisecond, None)));
        for wrong in ["", "decimal(0)", "decimal(5,9)", "decimal(77)", "number"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
