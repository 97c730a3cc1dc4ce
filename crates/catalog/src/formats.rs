//! File names to formats, and the options with which text is read.

use datafusion::common::parsers::CompressionTypeVariant;
use datafusion::datasource::file_format::file_compression_type::FileCompressionType;
use regex::Regex;

use crate::config::{Compression, Format, TableConfig};

/// What a file's name says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FileName<'a> {
    /// Name without extensions: the table's name when the file is one.
    pub(crate) stem: &'a str,
    pub(crate) format: Format,
    pub(crate) compression: Compression,
    /// Values are separated by tabs.
    pub(crate) tabs: bool,
}

impl<'a> FileName<'a> {
    /// `None` when the extension names no format.
    pub(crate) fn parse(name: &'a str) -> Option<Self> {
        let (plain, compression) = split_compression(name);
        let (stem, extension) = plain.rsplit_once('.')?;
        let format = match extension.to_ascii_lowercase().as_str() {
            "parquet" | "parq" => Format::Parquet,
            "csv" | "tsv" => Format::Csv,
            "ndjson" | "jsonl" | "json" => Format::Json,
            "arrow" | "feather" | "ipc" => Format::Arrow,
            "avro" => Format::Avro,
            _ => return None,
        };
        let text = matches!(format, Format::Csv | Format::Json);
        if stem.is_empty() || (compression != Compression::None && !text) {
            return None;
        }
        Some(Self { stem, format, compression, tabs: extension.eq_ignore_ascii_case("tsv") })
    }
}

/// The name without the extension of a compression, and that compression.
pub(crate) fn split_compression(name: &str) -> (&str, Compression) {
    let Some((plain, extension)) = name.rsplit_once('.') else { return (name, Compression::None) };
    match extension.to_ascii_lowercase().as_str() {
        "gz" | "gzip" => (plain, Compression::Gzip),
        "bz2" => (plain, Compression::Bzip2),
        "xz" => (plain, Compression::Xz),
        "zst" | "zstd" => (plain, Compression::Zstd),
        _ => (name, Compression::None),
    }
}

impl Compression {
    pub(crate) fn codec(self) -> FileCompressionType {
        FileCompressionType::from(match self {
            Compression::None => CompressionTypeVariant::UNCOMPRESSED,
            Compression::Gzip => CompressionTypeVariant::GZIP,
            Compression::Bzip2 => CompressionTypeVariant::BZIP2,
            Compression::Xz => CompressionTypeVariant::XZ,
            Compression::Zstd => CompressionTypeVariant::ZSTD,
        })
    }
}

/// How the text of one table is read, settled from its settings.
#[derive(Debug, Clone)]
pub(crate) struct Text {
    /// Unset: by the file's name.
    delimiter: Option<u8>,
    pub(crate) header: bool,
    pub(crate) quote: u8,
    pub(crate) escape: Option<u8>,
    pub(crate) comment: Option<u8>,
    pub(crate) null: Option<Regex>,
    pub(crate) newlines_in_values: Option<bool>,
    pub(crate) infer_rows: usize,
}

impl Text {
    /// What is wrong with the settings, if they can not be used.
    pub(crate) fn new(config: &TableConfig) -> Result<Self, String> {
        let byte = |key: &str, value: Option<char>| match value {
            Some(c) if !c.is_ascii() => Err(format!("{key} {c:?} is not an ASCII character")),
            value => Ok(value.map(|c| c as u8)),
        };
        let quote = byte("quote", config.quote)?.unwrap_or(b'"');
        let null = config.null.as_ref().map(|null| Regex::new(&format!("^(?:{})?$", regex::escape(null))));
        Ok(Self {
            delimiter: byte("delimiter", config.delimiter)?,
            header: config.header.unwrap_or(true),
            quote,
            // That a quote is doubled in a value is so in any case.
            escape: byte("escape", config.escape)?.filter(|escape| *escape != quote),
            comment: byte("comment", config.comment)?,
            null: null.transpose().map_err(|e| format!("null is not usable: {e}"))?,
            newlines_in_values: config.newlines_in_values,
            infer_rows: config.infer_rows.max(1),
        })
    }

    /// The character between the values of a file of this name.
    pub(crate) fn delimiter(&self, file: &str) -> u8 {
        let tabs = FileName::parse(file).is_some_and(|name| name.tabs);
        self.delimiter.unwrap_or(if tabs { b'\t' } else { b',' })
    }
}

/// Whether the `files` pattern of a table takes a file: against its name, or against the path below the table's folder
/// when the pattern has a `/`.
pub(crate) fn glob_matches(pattern: &str, path: &str) -> bool {
    let subject = if pattern.contains('/') { path } else { path.rsplit('/').next().unwrap_or(path) };
    glob(pattern.as_bytes(), subject.as_bytes())
}

/// `*` and `?` stay within a part of the path, `**` does not. Each `*` is tried once per position, so the work is bounded
/// by the product of the lengths for one star; patterns come from the operator.
fn glob(pattern: &[u8], text: &[u8]) -> bool {
    match pattern {
        [] => text.is_empty(),
        [b'*', b'*', b'/', rest @ ..] if glob(rest, text) => true,
        [b'*', b'*', rest @ ..] => (0..=text.len()).any(|at| glob(rest, &text[at..])),
        [b'*', rest @ ..] => {
            let end = text.iter().position(|b| *b == b'/').unwrap_or(text.len());
            (0..=end).any(|at| glob(rest, &text[at..]))
        }
        [b'?', rest @ ..] => text.first().is_some_and(|b| *b != b'/') && glob(rest, &text[1..]),
        [literal, rest @ ..] => text.first() == Some(literal) && glob(rest, &text[1..]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        let parse = |name: &'static str| FileName::parse(name).map(|n| (n.stem, n.format, n.compression, n.tabs));
        assert_eq!(parse("t.parquet"), Some(("t", Format::Parquet, Compression::None, false)));
        assert_eq!(parse("a.b.CSV.gz"), Some(("a.b", Format::Csv, Compression::Gzip, false)));
        assert_eq!(parse("t.tsv.zst"), Some(("t", Format::Csv, Compression::Zstd, true)));
        assert_eq!(parse("t.jsonl.xz"), Some(("t", Format::Json, Compression::Xz, false)));
        assert_eq!(parse("t.feather"), Some(("t", Format::Arrow, Compression::None, false)));
        for not in ["t", "t.txt", "t.gz", ".csv", "t.parquet.gz", "csv"] {
            assert_eq!(parse(not), None, "{not}");
        }
    }

    #[test]
    fn patterns() {
        for (pattern, path, expected) in [
            ("*.csv", "a/b.csv", true),
            ("*.csv", "b.csv.gz", false),
            ("part-?.parquet", "x/part-1.parquet", true),
            ("a/*.csv", "a/b.csv", true),
            ("a/*.csv", "a/c/b.csv", false),
            ("**/b.csv", "a/c/b.csv", true),
            ("**/b.csv", "b.csv", true),
        ] {
            assert_eq!(glob_matches(pattern, path), expected, "{pattern} {path}");
        }
    }
}
