//! Columns from `key=value` folders.

use chrono::NaiveDate;
use datafusion::arrow::datatypes::{DataType, Field, FieldRef};
use datafusion::common::ScalarValue;
use std::sync::Arc;

use crate::config::Column;
use crate::types;

/// What Hive writes for NULL.
const HIVE_NULL: &str = "__HIVE_DEFAULT_PARTITION__";

/// Keys and values on the path of a file; the last part, its name, does not count.
pub(crate) fn parse(path: &str) -> Vec<(String, Option<String>)> {
    let folders = path.rsplit_once('/').map_or("", |(folders, _)| folders);
    let pairs = folders.split('/').filter_map(|part| part.split_once('='));
    pairs
        .filter(|(key, _)| !key.is_empty())
        .map(|(key, value)| (decode(key), (value != HIVE_NULL).then(|| decode(value))))
        .collect()
}

/// The partition columns of a table, and their values for each of its files.
#[derive(Debug, Default)]
pub(crate) struct Partitions {
    pub(crate) fields: Vec<FieldRef>,
    pub(crate) values: Vec<Vec<ScalarValue>>,
}

impl Partitions {
    /// From the path of each file. The types are those declared, else integers or dates if all values are, else text.
    /// The error says which file does not fit.
    pub(crate) fn new(paths: &[&str], declared: &[Column]) -> Result<Self, String> {
        let parsed: Vec<_> = paths.iter().map(|path| parse(path)).collect();
        let Some(first) = parsed.first() else { return Ok(Self::default()) };
        let keys: Vec<&str> = first.iter().map(|(key, _)| key.as_str()).collect();
        for (path, pairs) in paths.iter().zip(&parsed) {
            if !pairs.iter().map(|(key, _)| key.as_str()).eq(keys.iter().copied()) {
                let show = |keys: Vec<&str>| if keys.is_empty() { "none".to_owned() } else { keys.join(", ") };
                return Err(format!(
                    "file {path} is in other key=value folders ({}) than file {} ({}); give all files the same ones",
                    show(pairs.iter().map(|(key, _)| key.as_str()).collect()),
                    paths[0],
                    show(keys),
                ));
            }
        }
        for (at, key) in keys.iter().enumerate() {
            if keys[..at].contains(key) {
                return Err(format!("file {} has the folder key {key:?} twice", paths[0]));
            }
        }
        if let Some(unknown) = declared.iter().find(|column| !keys.contains(&column.name.as_str())) {
            return Err(format!("partition column {:?} is in the settings, but no folder has it", unknown.name));
        }
        let mut fields = Vec::with_capacity(keys.len());
        for (at, key) in keys.iter().enumerate() {
            let declared = declared.iter().find(|column| column.name == *key);
            let data_type = match declared {
                Some(column) => types::parse(&column.data_type)?,
                None => guess(parsed.iter().filter_map(|pairs| pairs[at].1.as_deref())),
            };
            fields.push(Arc::new(Field::new(*key, data_type, true)));
        }
        let values = parsed.iter().zip(paths).map(|(pairs, path)| {
            let values = pairs.iter().zip(&fields).map(|((key, value), field)| match value {
                None => ScalarValue::try_new_null(field.data_type()).map_err(|e| e.to_string()),
                Some(value) => ScalarValue::try_from_string(value.clone(), field.data_type())
                    .map_err(|_| format!("file {path}: {value:?} is no {} for {key:?}", field.data_type())),
            });
            values.collect::<Result<Vec<_>, String>>()
        });
        Ok(Self { values: values.collect::<Result<_, _>>()?, fields })
    }
}

fn guess<'a>(values: impl Iterator<Item = &'a str>) -> DataType {
    let (mut integers, mut dates, mut any) = (true, true, false);
    for value in values {
        any = true;
        integers &= value.parse::<i64>().is_ok() && !value.starts_with('+');
        // `2024-1-5` is read by chrono too, but it is not how dates are written in folders.
        dates &= value.len() == 10 && NaiveDate::parse_from_str(value, "%Y-%m-%d").is_ok();
    }
    match (any, integers, dates) {
        (true, true, _) => DataType::Int64,
        (true, _, true) => DataType::Date32,
        _ => DataType::Utf8,
    }
}

/// `%41` to `A`: Hive and Spark write special characters so. What is no such code stays.
fn decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let code = (bytes[at] == b'%').then(|| text.get(at + 1..at + 3)).flatten();
        let code = code.filter(|code| code.bytes().all(|byte| byte.is_ascii_hexdigit()));
        match code.and_then(|code| u8::from_str_radix(code, 16).ok()) {
            Some(byte) => {
                out.push(byte);
                at += 3;
            }
            None => {
                out.push(bytes[at]);
                at += 1;
            }
        }
    }
    String::from_utf8(out).unwrap_or_else(|_| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn types_of(paths: &[&str]) -> Vec<String> {
        let partitions = Partitions::new(paths, &[]).expect("partitions");
        partitions.fields.iter().map(|f| format!("{} {}", f.name(), f.data_type())).collect()
    }

    #[test]
    fn types_are_guessed_over_all_files() {
        assert_eq!(types_of(&["y=2024/m=01/a", "y=2025/m=12/b"]), ["y Int64", "m Int64"]);
        assert_eq!(types_of(&["y=1/a", "y=x/b"]), ["y Utf8"]);
        assert_eq!(types_of(&["d=2024-02-29/a", "d=__HIVE_DEFAULT_PARTITION__/b"]), ["d Date32"]);
        assert_eq!(types_of(&["d=2024-02-30/a"]), ["d Utf8"]);
        assert_eq!(types_of(&["d=__HIVE_DEFAULT_PARTITION__/b"]), ["d Utf8"]);
        assert!(types_of(&["a.csv"]).is_empty());
    }

    #[test]
    fn values_are_decoded() {
        let partitions = Partitions::new(&["k=a%20b/x", "k=100%/x", "k=50%+2/x", "k=/x"], &[]).expect("partitions");
        let texts: Vec<String> = partitions.values.iter().map(|v| v[0].to_string()).collect();
        assert_eq!(texts, ["a b", "100%", "50%+2", ""]);
    }

    #[test]
    fn files_in_other_folders_are_named() {
        for (paths, part) in [
            (["k=1/a.csv", "b.csv"], "b.csv"),
            (["k=1/a.csv", "j=1/b.csv"], "j=1/b.csv"),
            (["k=1/k=2/a.csv", "k=1/k=2/b.csv"], "twice"),
        ] {
            let problem = Partitions::new(&paths, &[]).expect_err(part);
            assert!(problem.contains(part), "{problem}");
        }
        let declared = Column { name: "k".into(), data_type: "INT".into() };
        let problem = Partitions::new(&["k=x/a.csv"], &[declared]).expect_err("no number");
        assert!(problem.contains("\"x\""), "{problem}");
    }
}
