//! New, replaced and removed files; files that change under a running query; many files.

use std::time::{Duration, Instant};

use datafusion::arrow::array::{Int64Array, record_batch};
use datafusion::arrow::datatypes::{DataType, Field, Schema};
use futures::StreamExt;

use super::*;

fn numbers(from: i64, rows: i64) -> RecordBatch {
    let schema = Schema::new(vec![Field::new("a", DataType::Int64, false)]);
    RecordBatch::try_new(Arc::new(schema), vec![Arc::new(Int64Array::from_iter_values(from..from + rows))]).unwrap()
}

#[tokio::test]
async fn the_next_query_sees_new_replaced_and_removed_files() {
    let f = Fixture::new();
    f.parquet("t/1.parquet", &numbers(0, 1));
    let catalog = f.open().await;
    let sql = "SELECT count(*), sum(a) FROM t";
    assert_eq!(answer(&catalog, sql).await, ["1 0"]);
    let first = snapshot(&catalog, "t").await.unwrap();
    assert!(Arc::ptr_eq(&first, &snapshot(&catalog, "t").await.unwrap()), "nothing changed: the same snapshot");
    let names = [name("public", "t"), name("public", "none"), name("elsewhere", "t")];
    let versions = catalog.versions(&names).await.unwrap();
    assert_eq!(versions, [Some(Version::Table(first.id())), None, None]);
    f.parquet("t/2.parquet", &numbers(10, 1));
    assert_eq!(answer(&catalog, sql).await, ["2 10"]);
    // Same size, and the same time: still another file.
    let time = std::fs::metadata(f.path("t/2.parquet")).unwrap().modified().unwrap();
    f.parquet("t/2.parquet", &numbers(20, 1));
    std::fs::File::options().append(true).open(f.path("t/2.parquet")).unwrap().set_modified(time).unwrap();
    assert_eq!(answer(&catalog, sql).await, ["2 20"]);
    std::fs::remove_file(f.path("t/1.parquet")).unwrap();
    assert_eq!(answer(&catalog, sql).await, ["1 20"]);
    let last = snapshot(&catalog, "t").await.unwrap();
    assert_ne!(first.id(), last.id());
    assert_eq!(catalog.versions(&names[..1]).await.unwrap(), [Some(Version::Table(last.id()))]);
    f.parquet("new.parquet", &numbers(0, 5));
    assert_eq!(answer(&catalog, "SELECT count(*) FROM new").await, ["5"]);
    std::fs::remove_dir_all(f.path("t")).unwrap();
    assert!(resolve(&catalog, &[name("public", "t")]).await.unwrap().is_empty());
}

#[tokio::test]
async fn a_listing_is_reused_only_as_long_as_the_settings_say() {
    let mut f = Fixture::new();
    f.config.list_ttl = Duration::from_millis(300);
    f.write("t/1.csv", "a\n1\n");
    let catalog = f.open().await;
    let count = async || answer(&catalog, "SELECT count(*) FROM t").await;
    assert_eq!(count().await, ["1"]);
    f.write("t/2.csv", "a\n1\n");
    assert_eq!(count().await, ["1"]);
    tokio::time::sleep(Duration::from_millis(350)).await;
    assert_eq!(count().await, ["2"]);
}

/// Runs `sql` up to its first batch, lets `change` happen, and returns how the rest ends.
async fn interrupted(
    f: &Fixture,
    sql: &str,
    change: impl FnOnce(&Fixture),
) -> Result<usize, (Option<ErrorKind>, String)> {
    let catalog = f.open().await;
    let config = SessionConfig::new()
        .with_default_catalog_and_schema(CATALOG, SCHEMA)
        .with_target_partitions(1)
        .with_batch_size(64);
    let ctx = prepared(&catalog, session_with(&catalog, config), sql).await.unwrap();
    let mut rows = ctx.sql(sql).await.unwrap().execute_stream().await.unwrap();
    let mut seen = rows.next().await.unwrap().unwrap().num_rows();
    change(f);
    while let Some(batch) = rows.next().await {
        match batch {
            Ok(batch) => seen += batch.num_rows(),
            Err(e) => return Err((find(&e), e.to_string())),
        }
    }
    Ok(seen)
}

#[tokio::test]
async fn a_file_replaced_under_a_query_is_changed_and_never_mixed() {
    let big = |from: i64| parquet_bytes(&numbers(from, 200_000), 1000);
    let lines = |from: i64| format!("a\n{}", (from..from + 2_000_000).map(|i| format!("{i:07}\n")).collect::<String>());
    for (file, old, new) in
        [("t.parquet", big(0), big(500_000)), ("t.csv", lines(0).into_bytes(), lines(3_000_000).into_bytes())]
    {
        type Change = fn(&Fixture, &str, &[u8]);
        let cases: [(&str, Change); 3] = [
            ("renamed over", |f, file, new| _ = f.write(file, new)),
            ("written in place", |f, file, new| std::fs::write(f.path(file), new).unwrap()),
            ("removed", |f, file, _| std::fs::remove_file(f.path(file)).unwrap()),
        ];
        for (how, change) in cases {
            let f = Fixture::new();
            f.write(file, &old);
            let outcome = interrupted(&f, "SELECT a FROM t", |f| change(f, file, &new)).await;
            match outcome {
                Err((kind, text)) => {
                    assert_eq!(kind, Some(ErrorKind::Changed), "{file} {how}: {text}");
                    assert!(text.contains(file) && text.contains("run the query again"), "{text}");
                }
                // A handle that was open already keeps the old rows, which is as good.
                Ok(rows) => assert!(file == "t.csv" && how != "written in place" && rows == 2_000_000, "{file} {how}"),
            }
        }
    }
}

#[tokio::test]
async fn a_file_replaced_between_plan_and_run_is_changed() {
    for (file, old, new) in [("t.csv", "a\n1\n", "a\n2\n"), ("t.json", "{\"a\":1}\n", "{\"a\":2}\n")] {
        let f = Fixture::new();
        f.write(file, old);
        let catalog = f.open().await;
        let ctx = prepared(&catalog, session(&catalog), "SELECT a FROM t").await.unwrap();
        let frame = ctx.sql("SELECT a FROM t").await.unwrap();
        f.write(file, new);
        let error = frame.collect().await.expect_err(file);
        assert_eq!(find(&error), Some(ErrorKind::Changed), "{error}");
        assert_eq!(answer(&catalog, "SELECT a FROM t").await, ["2"]);
    }
}

#[tokio::test]
async fn a_plan_keeps_its_snapshot_alive_and_a_dropped_one_leaves_nothing() {
    let f = Fixture::new();
    f.parquet("p.parquet", &numbers(0, 10)).write("c.csv", "a\n1\n");
    let catalog = f.open().await;
    let live = || catalog.workshop.registry.len();
    for table in ["p", "c"] {
        let ctx = session(&catalog);
        let plan = {
            let snapshot = snapshot(&catalog, table).await.unwrap();
            let provider = snapshot.provider();
            provider.scan(&ctx.state(), None, &[], None).await.unwrap()
        };
        catalog.current.lock().clear();
        assert_eq!(live(), 1, "{table}");
        assert!(!datafusion::physical_plan::collect(plan.clone(), ctx.task_ctx()).await.unwrap().is_empty());
        drop(plan);
        assert_eq!(live(), 0, "{table}");
    }
}

#[tokio::test]
async fn ten_thousand_files_resolve_and_plan_quickly_once_they_are_known() {
    let f = Fixture::new();
    let bytes = parquet_bytes(&record_batch!(("a", Int64, [1]), ("b", Utf8, ["x"])).unwrap(), 10);
    for file in 0..10_000 {
        let path = f.path(&format!("t/k={}", file % 10));
        std::fs::create_dir_all(&path).unwrap();
        std::fs::write(path.join(format!("{file}.parquet")), &bytes).unwrap();
    }
    let catalog = f.open().await;
    let first = Instant::now();
    snapshot(&catalog, "t").await.unwrap();
    let first = first.elapsed();
    let sql = "SELECT sum(a) FROM t WHERE k < 5";
    let again = Instant::now();
    let plan = explain(&catalog, sql).await;
    let again = again.elapsed();
    assert!(plan.contains("DataSourceExec"), "{plan}");
    // One file more: the others stay known.
    f.write("t/k=0/more.parquet", &bytes);
    let added = Instant::now();
    let with_more = snapshot(&catalog, "t").await.unwrap();
    let added = added.elapsed();
    assert_eq!(with_more.files(), 10_001);
    assert_eq!(answer(&catalog, "SELECT count(*) FROM t").await, ["10001"]);
    eprintln_times(first, again, added);
    assert!(again < Duration::from_secs(3), "{again:?}");
    assert!(added < Duration::from_secs(3), "{added:?}");
}

#[allow(clippy::print_stderr)]
fn eprintln_times(first: Duration, again: Duration, added: Duration) {
    eprintln!("10,000 files: first {first:?}, resolve and plan again {again:?}, with one more {added:?}");
}
