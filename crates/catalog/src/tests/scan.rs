//! Tables through the cache of hot columns: the same answers, of the files as they are now.

use datafusion::arrow::array::record_batch;
use updraft_hot::Cache;

use super::*;

async fn catalogs(fixture: &Fixture) -> [Catalog; 3] {
    let (plain, cold, hot) = (fixture.open().await, fixture.open().await, fixture.open().await);
    // One that lets nothing in reads its files as if it were not there.
    [plain, cold.with_hot(Cache::new(0)), hot.with_hot(Cache::new(64 << 20))]
}

async fn all_say(catalogs: &[Catalog], sql: &str, expected: &[&str]) {
    for catalog in catalogs {
        // Twice: from the files, and from memory where they are kept.
        for _ in 0..2 {
            assert_eq!(answer(catalog, sql).await, expected, "{sql}");
        }
    }
}

#[tokio::test]
async fn files_that_differ_are_one_table_whether_hot_or_not() {
    let fixture = Fixture::new();
    let old = record_batch!(("id", Int64, [1, 2, 3]), ("word", Utf8, [Some("a"), None, Some("b")])).unwrap();
    let new =
        record_batch!(("word", Utf8, ["b", "c"]), ("extra", Float64, [f64::NAN, 1.5]), ("id", Int64, [4, 5])).unwrap();
    fixture
        .parquet("t/year=2024/part=x/a.parquet", &old)
        .parquet("t/year=2025/part=__HIVE_DEFAULT_PARTITION__/b.parquet", &new);
    let catalogs = catalogs(&fixture).await;
    let all = "select id, word, extra, year, part from t order by id";
    all_say(&catalogs, all, &["1 a  2024 x", "2   2024 x", "3 b  2024 x", "4 b NaN 2025 ", "5 c 1.5 2025 "]).await;
    for (filter, expected) in [
        ("id >= 3", vec!["3", "4", "5"]),
        ("word = 'b'", vec!["3", "4"]),
        ("word is null", vec!["2"]),
        ("extra is null", vec!["1", "2", "3"]),
        ("year = 2025", vec!["4", "5"]),
        ("part is null and word <> 'c'", vec!["4"]),
        ("part = 'x' and id <> 1", vec!["2", "3"]),
        ("id + year > 2029", vec!["5"]),
        ("word || part = 'bx'", vec!["3"]),
    ] {
        all_say(&catalogs, &format!("select id from t where {filter} order by id"), &expected).await;
    }
    all_say(
        &catalogs,
        "select year, count(*), count(extra), max(id) from t group by year order by year",
        &["2024 3 0 3", "2025 2 2 5"],
    )
    .await;
    // NaN is larger than all numbers, which the footers do not know: a scan of the files alone leaves it out.
    all_say(&catalogs[1..], "select id from t where extra > 100", &["4"]).await;
    all_say(&catalogs, "select count(*), min(id), max(id) from t", &["5 1 5"]).await;
    assert!(catalogs[2].hot().unwrap().used() > 0 && catalogs[1].hot().unwrap().used() == 0);
}

#[tokio::test]
async fn a_file_that_changes_is_answered_as_it_is_now() {
    let fixture = Fixture::new();
    let [_, _, hot] = catalogs(fixture.parquet("t/a.parquet", &record_batch!(("id", Int64, [1, 2])).unwrap())).await;
    let sum = "select sum(id), count(*) from t where id > 0";
    assert_eq!(answer(&hot, sum).await, ["3 2"]);
    fixture.parquet("t/b.parquet", &record_batch!(("id", Int64, [10])).unwrap());
    assert_eq!(answer(&hot, sum).await, ["13 3"]);
    fixture.parquet("t/a.parquet", &record_batch!(("id", Int64, [100, 200, 300])).unwrap());
    assert_eq!(answer(&hot, sum).await, ["610 4"]);
    let tables = hot.hot().unwrap().statistics().tables;
    // Each version of each file once; `b` was in memory for the third answer.
    assert_eq!(tables.values().map(|table| (table.loads, table.hits)).collect::<Vec<_>>(), [(3, 2)]);
}

#[tokio::test]
async fn a_file_that_does_not_decode_is_named() {
    let fixture = Fixture::new();
    let mut bytes = parquet_bytes(&record_batch!(("id", Int64, [1, 2, 3])).unwrap(), 10);
    // The page of the column; the footer stays as it is.
    bytes[4..24].fill(0xff);
    fixture.write("t/a.parquet", bytes);
    let [_, cold, hot] = catalogs(&fixture).await;
    let sql = "select * from t where id > 1";
    query(&cold, sql).await.unwrap_err();
    for _ in 0..2 {
        let error = query(&hot, sql).await.unwrap_err();
        assert!(format!("{error:?}").contains("a.parquet"), "{error:?}");
    }
    assert_eq!(hot.hot().unwrap().used(), 0);
}
