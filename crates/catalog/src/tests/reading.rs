//! Formats, partitions, schemas that differ, statistics, and broken files.

use bytes::Bytes;
use datafusion::arrow::array::{Int64Array, StringArray, record_batch};
use datafusion::arrow::datatypes::{DataType, Field, Schema};
use datafusion::arrow::ipc::writer::{FileWriter, StreamWriter};
use datafusion::arrow_avro::writer::AvroWriter;
use datafusion::common::ScalarValue;
use datafusion::common::stats::Precision;
use futures::{StreamExt, TryStreamExt};

use super::*;
use crate::{Compression, TableConfig};

pub(super) async fn compressed(bytes: &[u8], compression: Compression) -> Vec<u8> {
    let stream = futures::stream::iter([Ok(Bytes::copy_from_slice(bytes))]).boxed();
    let pieces = compression.codec().convert_to_compress_stream(stream).unwrap();
    pieces.try_collect::<Vec<_>>().await.unwrap().concat()
}

/// Columns a and b; a from `from`.
fn batch(from: i64, rows: usize) -> RecordBatch {
    let a = Int64Array::from_iter_values((0..rows as i64).map(|i| from + i));
    let b = StringArray::from_iter_values((0..rows as i64).map(|i| format!("v{}", from + i)));
    let schema = Schema::new(vec![Field::new("a", DataType::Int64, false), Field::new("b", DataType::Utf8, false)]);
    RecordBatch::try_new(Arc::new(schema), vec![Arc::new(a), Arc::new(b)]).unwrap()
}

fn ipc_file(batches: &[RecordBatch]) -> Vec<u8> {
    let mut writer = FileWriter::try_new(Vec::new(), &batches[0].schema()).unwrap();
    batches.iter().for_each(|batch| writer.write(batch).unwrap());
    writer.finish().unwrap();
    writer.into_inner().unwrap()
}

fn ipc_stream(batches: &[RecordBatch]) -> Vec<u8> {
    let mut writer = StreamWriter::try_new(Vec::new(), &batches[0].schema()).unwrap();
    batches.iter().for_each(|batch| writer.write(batch).unwrap());
    writer.finish().unwrap();
    writer.into_inner().unwrap()
}

fn avro(batch: &RecordBatch) -> Vec<u8> {
    let mut writer = AvroWriter::new(Vec::new(), batch.schema().as_ref().clone()).unwrap();
    writer.write(batch).unwrap();
    writer.finish().unwrap();
    writer.into_inner()
}

#[tokio::test]
async fn every_format_and_compression() {
    let f = Fixture::new();
    let (csv, tsv, json) =
        ("a,b\n1,v1\n2,v2\n", "a\tb\n1\tv1\n2\tv2\n", "{\"a\":1,\"b\":\"v1\"}\n{\"a\":2,\"b\":\"v2\"}");
    f.parquet("t1.parquet", &batch(1, 2)).parquet("t2.parq", &batch(1, 2));
    f.write("t3.csv", csv).write("t4.tsv", tsv).write("t5.json", json).write("t6.ndjson", json).write("t7.jsonl", json);
    f.write("t8.arrow", ipc_file(&[batch(1, 1), batch(2, 1)])).write("t9.feather", ipc_file(&[batch(1, 2)]));
    f.write("t10.ipc", ipc_stream(&[batch(1, 1), batch(2, 1)])).write("t11.avro", avro(&batch(1, 2)));
    let kinds =
        [("gz", Compression::Gzip), ("bz2", Compression::Bzip2), ("xz", Compression::Xz), ("zst", Compression::Zstd)];
    for (at, (extension, compression)) in kinds.into_iter().enumerate() {
        f.write(&format!("t{}.csv.{extension}", 12 + at), compressed(csv.as_bytes(), compression).await);
        f.write(&format!("t{}.json.{extension}", 16 + at), compressed(json.as_bytes(), compression).await);
    }
    let catalog = f.open().await;
    for at in 1..20 {
        let t = format!("t{at}");
        assert_eq!(answer(&catalog, &format!("SELECT a, b FROM {t} ORDER BY a")).await, ["1 v1", "2 v2"], "{t}");
        assert_eq!(answer(&catalog, &format!("SELECT b FROM {t} WHERE a > 1")).await, ["v2"], "{t}");
        assert_eq!(answer(&catalog, &format!("SELECT count(*) FROM {t}")).await, ["2"], "{t}");
        assert_eq!(answer(&catalog, &format!("SELECT * FROM {t} LIMIT 1")).await.len(), 1, "{t}");
        assert_eq!(answer(&catalog, &format!("SELECT arrow_typeof(a) FROM {t} LIMIT 1")).await, ["Int64"], "{t}");
    }
}

#[tokio::test]
async fn partition_columns_prune_files_before_they_are_opened() {
    let f = Fixture::new();
    for (year, from) in [(2023, 0), (2024, 10)] {
        f.parquet(&format!("t/y={year}/d={year}-01-02/a.parquet"), &batch(from, 3));
    }
    f.parquet("t/y=2025/d=__HIVE_DEFAULT_PARTITION__/a.parquet", &batch(20, 1));
    let catalog = f.open().await;
    let types = answer(&catalog, "SELECT DISTINCT arrow_typeof(y), arrow_typeof(d) FROM t").await;
    assert_eq!(types, ["Int64 Date32"]);
    assert_eq!(
        answer(&catalog, "SELECT y, d, count(*) FROM t GROUP BY y, d ORDER BY y").await,
        ["2023 2023-01-02 3", "2024 2024-01-02 3", "2025  1"]
    );
    let plan = explain(&catalog, "SELECT a FROM t WHERE y = 2024 AND a > 10").await;
    assert!(plan.contains("y=2024") && !plan.contains("y=2023") && !plan.contains("y=2025"), "{plan}");
    assert!(!plan.contains("y@"), "the filter on the partition is answered already: {plan}");
    assert!(plan.contains("predicate=a@"), "{plan}");
    assert_eq!(answer(&catalog, "SELECT a FROM t WHERE y = 2024 AND a > 10 ORDER BY a").await, ["11", "12"]);
    assert_eq!(answer(&catalog, "SELECT count(*) FROM t WHERE d IS NULL").await, ["1"]);
    assert_eq!(answer(&catalog, "SELECT count(*) FROM t WHERE d > DATE '2023-06-01' OR y = 2023").await, ["6"]);
    assert!(answer(&catalog, "SELECT a FROM t WHERE y = 1999").await.is_empty());
    assert_eq!(answer(&catalog, "SELECT count(*) FROM t WHERE y = 1999").await, ["0"]);
    assert_eq!(answer(&catalog, "SELECT y FROM t WHERE a = 20").await, ["2025"]);
}

#[tokio::test]
async fn a_partition_column_takes_the_place_of_the_files_column() {
    let f = Fixture::new();
    f.write("t/k=x/a.csv", "k,a\nignored,1\n");
    let catalog = f.open().await;
    assert_eq!(answer(&catalog, "SELECT * FROM t").await, ["1 x"]);
}

#[tokio::test]
async fn missing_columns_are_null_in_every_format() {
    let f = Fixture::new();
    let (one, two) = (
        record_batch!(("a", Int64, [1]), ("b", Utf8, ["x"])).unwrap(),
        record_batch!(("c", Float64, [0.5]), ("a", Int64, [2])).unwrap(),
    );
    f.parquet("p/1.parquet", &one).parquet("p/2.parquet", &two);
    f.write("c/1.csv", "a,b\n1,x\n").write("c/2.csv", "c,a\n0.5,2\n");
    f.write("j/1.json", "{\"a\":1,\"b\":\"x\"}\n").write("j/2.json", "{\"c\":0.5,\"a\":2}\n");
    f.write("i/1.arrow", ipc_file(std::slice::from_ref(&one)))
        .write("i/2.arrow", ipc_stream(std::slice::from_ref(&two)));
    f.write("v/1.avro", avro(&one)).write("v/2.avro", avro(&two));
    let catalog = f.open().await;
    for t in ["p", "c", "j", "i", "v"] {
        let run = async |sql: &str| answer(&catalog, &sql.replace("FROM t", &format!("FROM {t}"))).await;
        assert_eq!(run("SELECT * FROM t ORDER BY a").await, ["1 x ", "2  0.5"], "{t}");
        assert_eq!(run("SELECT c FROM t ORDER BY a").await, ["", "0.5"], "{t}");
        assert_eq!(run("SELECT a FROM t WHERE b IS NULL").await, ["2"], "{t}");
        assert_eq!(run("SELECT count(b), count(c), count(*) FROM t").await, ["1 1 2"], "{t}");
        assert_eq!(run("SELECT b FROM t WHERE a = 2").await, [""], "{t}");
        assert_eq!(run("SELECT min(c), max(b) FROM t").await, ["0.5 x"], "{t}");
    }
}

#[tokio::test]
async fn a_type_clash_names_file_column_and_both_types() {
    let f = Fixture::new();
    f.parquet("p/1.parquet", &record_batch!(("a", Int64, [1])).unwrap());
    f.parquet("p/2.parquet", &record_batch!(("a", Utf8, ["x"])).unwrap());
    f.write("c/1.csv", "a\n1\n")
        .write("c/2.csv", "a\nx\n")
        .write("w/1.csv", "a,n\n1,\n")
        .write("w/2.csv", "a,n\n1.5,7\n");
    let catalog = f.open().await;
    for (table, types) in [("p", ["Int64", "Utf8View"]), ("c", ["Int64", "Utf8"])] {
        let (kind, text) = failure(&catalog, &format!("SELECT * FROM {table}")).await;
        assert_eq!(kind, Some(ErrorKind::Invalid));
        for part in ["\"a\"", &format!("public.{table}"), "1.", "2.", types[0], types[1]] {
            assert!(text.contains(part), "{part} in {text}");
        }
    }
    assert_eq!(answer(&catalog, "SELECT * FROM w ORDER BY a").await, ["1.0 ", "1.5 7"]);
}

#[tokio::test]
async fn counts_and_extremes_come_from_footers() {
    let f = Fixture::new();
    f.parquet("t/1.parquet", &batch(0, 3000)).parquet("t/2.parquet", &batch(5000, 100));
    let catalog = f.open().await;
    let snapshot = snapshot(&catalog, "t").await.unwrap();
    let statistics = snapshot.statistics();
    assert_eq!(statistics.num_rows, Precision::Exact(3100));
    let a = &statistics.column_statistics[0];
    assert_eq!(a.null_count, Precision::Exact(0));
    assert_eq!(a.min_value, Precision::Exact(ScalarValue::Int64(Some(0))));
    assert_eq!(a.max_value, Precision::Exact(ScalarValue::Int64(Some(5099))));
    let sql = "SELECT count(*), min(a), max(a) FROM t";
    let plan = explain(&catalog, sql).await;
    assert!(!plan.contains("DataSourceExec") && plan.contains("PlaceholderRowExec"), "{plan}");
    assert_eq!(answer(&catalog, sql).await, ["3100 0 5099"]);
    // Columns and row groups that are not asked for are not read.
    let plan = explain(&catalog, "SELECT b FROM t WHERE a = 5050").await;
    assert!(plan.contains("predicate=a@0 = 5050") && plan.contains("pruning_predicate"), "{plan}");
    let plan = explain(&catalog, "SELECT a FROM t LIMIT 5").await;
    assert!(plan.contains("limit=5") && !plan.contains("2.parquet"), "{plan}");
    assert_eq!(answer(&catalog, "SELECT b FROM t WHERE a = 5050").await, ["v5050"]);
}

#[tokio::test]
async fn one_big_file_is_read_in_parts() {
    let f = Fixture::new();
    let rows = 20_000;
    let lines: String = (0..rows).map(|i| format!("{i},\"v {i}\"\n")).collect();
    f.write("c.csv", format!("a,b\n{lines}"));
    f.write("j.json", (0..rows).map(|i| format!("{{\"a\":{i},\"b\":\"v {i}\"}}\n")).collect::<String>());
    let batches: Vec<RecordBatch> = (0..20).map(|i| batch(i * 1000, 1000)).collect();
    f.write("i.arrow", ipc_file(&batches));
    f.write("p.parquet", parquet_bytes(&batch(0, rows), 1000));
    let catalog = f.open().await;
    for t in ["c", "j", "i", "p"] {
        let sql = format!("SELECT count(DISTINCT a), sum(a), count(b) FROM {t} WHERE a >= 0");
        let config = SessionConfig::new()
            .with_default_catalog_and_schema(CATALOG, SCHEMA)
            .with_target_partitions(4)
            .with_repartition_file_min_size(1000);
        let ctx = prepared(&catalog, session_with(&catalog, config), &sql).await.unwrap();
        let frame = ctx.sql(&sql).await.unwrap();
        let plan = frame.clone().create_physical_plan().await.unwrap();
        let plan = datafusion::physical_plan::displayable(plan.as_ref()).indent(false).to_string();
        assert!(plan.contains("4 groups"), "{t}: {plan}");
        let table = pretty_format_batches(&frame.collect().await.unwrap()).unwrap().to_string();
        assert!(table.contains("| 20000 ") && table.contains("199990000"), "{t}: {table}");
    }
}

#[tokio::test]
async fn line_breaks_in_quotes_are_read_or_refused_but_never_wrong() {
    let mut f = Fixture::new();
    f.write("early.csv", "a,b\n1,\"x\ny\"\n2,z\n");
    // Far behind the part from which columns are guessed, and over the cut between two parts.
    let plain = "1,plain\n".repeat(300_000);
    f.write("late.csv", format!("a,b\n{plain}2,\"{}\"\n{plain}", "line\n".repeat(300_000)));
    let catalog = f.open().await;
    assert_eq!(answer(&catalog, "SELECT sum(a), count(*) FROM early").await, ["3 2"]);
    let sql = "SELECT sum(a), count(*) FROM late";
    let split = SessionConfig::new()
        .with_default_catalog_and_schema(CATALOG, SCHEMA)
        .with_target_partitions(4)
        .with_repartition_file_min_size(1000);
    let ctx = prepared(&catalog, session_with(&catalog, split), sql).await.unwrap();
    let error = ctx.sql(sql).await.unwrap().collect().await.expect_err("cut inside of a value");
    assert_eq!(find(&error), Some(ErrorKind::Corrupt), "{error}");
    let told = TableConfig {
        location: vec![f.path("late.csv").to_str().unwrap().to_owned()],
        newlines_in_values: Some(true),
        ..TableConfig::default()
    };
    f.config.tables.insert("late".into(), told);
    assert_eq!(answer(&f.open().await, sql).await, ["600002 600001"]);
}

#[tokio::test]
async fn csv_options() {
    let mut f = Fixture::new();
    f.write("o.txt", "# a note\n'x|y'|NA\n'it\\'s'|3\n");
    let table = TableConfig {
        location: vec![f.path("o.txt").to_str().unwrap().to_owned()],
        format: Some(crate::Format::Csv),
        header: Some(false),
        delimiter: Some('|'),
        quote: Some('\''),
        escape: Some('\\'),
        comment: Some('#'),
        null: Some("NA".into()),
        ..TableConfig::default()
    };
    f.config.tables.insert("o".into(), table);
    assert_eq!(answer(&f.open().await, "SELECT * FROM o").await.join("/").replace("x|y", "x y"), "x y /it's 3");
}

#[tokio::test]
async fn broken_files_are_named_and_other_tables_are_not_hurt() {
    let f = Fixture::new();
    let whole = parquet_bytes(&batch(0, 100), 1024);
    f.write("good.csv", "a\n1\n").write("cut.parquet", &whole[..whole.len() - 20]).write("tiny.parquet", "PAR1");
    f.write("bad.csv", "a,b\n1,2\n3,4\n5\n").write("late.csv", format!("a\n{}x\n", "1\n".repeat(5000)));
    f.write("bad.json", "{\"a\":1}\n{\"a\":\n").write("bad.arrow", "ARROW1 not really").write("bad.avro", "Obj\u{1}?");
    let file = ipc_file(&[batch(0, 10)]);
    f.write("cut.arrow", &file[..file.len() / 2]).write("bad.csv.gz", "not gzip at all");
    std::fs::rename(f.path("bad.csv.gz"), f.path("zip.csv.gz")).unwrap();
    std::fs::rename(f.path("cut.arrow"), f.path("half.arrow")).unwrap();
    for (from, to) in [("bad.json", "b1.json"), ("bad.arrow", "b2.arrow"), ("bad.avro", "b3.avro")] {
        std::fs::rename(f.path(from), f.path(to)).unwrap();
    }
    let mut page = whole.clone();
    page[20..600].fill(0xff);
    f.write("page.parquet", page);
    let catalog = f.open().await;
    let cases = [
        ("cut", "cut.parquet"),
        ("tiny", "tiny.parquet"),
        ("bad", "bad.csv"),
        ("late", "late.csv"),
        ("b1", "b1.json"),
        ("b2", "b2.arrow"),
        ("b3", "b3.avro"),
        ("half", "half.arrow"),
        ("zip", "zip.csv.gz"),
        ("page", ""),
    ];
    for (table, file) in cases {
        let (kind, text) = failure(&catalog, &format!("SELECT * FROM {table}")).await;
        assert_eq!(kind, Some(ErrorKind::Corrupt), "{table}: {text}");
        assert!(text.contains(file), "{text}");
    }
    let (_, text) = failure(&catalog, "SELECT * FROM late").await;
    assert!(text.contains("line 5001") || text.contains("5001"), "{text}");
    assert_eq!(answer(&catalog, "SELECT a FROM good").await, ["1"]);
}

#[tokio::test]
async fn columns_come_in_the_order_of_the_text() {
    let f = Fixture::new();
    f.write("t.json", "{\"zeta\":1,\"alpha\":{\"y\":1,\"x\":2},\"mid\":[1]}\n{\"late\":null,\"zeta\":2}\n");
    f.write("header.csv", "x,y\n");
    f.write("bom.csv", "\u{feff}a,b\n1,2\n");
    let catalog = f.open().await;
    let names = async |t: &str| {
        let schema = snapshot(&catalog, t).await.unwrap().schema();
        schema.fields().iter().map(|f| format!("{} {}", f.name(), f.data_type())).collect::<Vec<_>>()
    };
    let expected = ["zeta Int64", "alpha Struct(\"y\": Int64, \"x\": Int64)", "mid List(Int64)", "late Utf8"];
    assert_eq!(names("t").await, expected);
    assert_eq!(names("header").await, ["x Utf8", "y Utf8"]);
    assert_eq!(answer(&catalog, "SELECT count(*) FROM header").await, ["0"]);
    assert_eq!(answer(&catalog, "SELECT a, b FROM bom").await, ["1 2"]);
}
