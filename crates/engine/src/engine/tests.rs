//! What is kept of statements and results, and what must never be given again: files in a folder of the test's own.
#![allow(clippy::unwrap_used)]

mod allowed;
mod fitted;
mod guarded;
mod held;
mod parts;
mod side_by_side;
mod spilling;

use std::sync::Arc;
use std::time::Duration;

use bytesize::ByteSize;
use datafusion::arrow::array::{ArrayRef, Int64Array, RecordBatch};
use datafusion::arrow::compute::concat_batches;
use datafusion::arrow::datatypes::DataType;
use datafusion::arrow::util::pretty::pretty_format_batches;
use datafusion::execution::SendableRecordBatchStream;
use datafusion::parquet::arrow::ArrowWriter;
use futures::{StreamExt, TryStreamExt};
use tempfile::TempDir;
use tokio::runtime::Handle;
use updraft_auth::Principal;
use updraft_catalog::Catalog;
use updraft_hot::Cache;

use super::Engine;
use crate::bridge::Weight;
use crate::config::Config;
use crate::error::Error;
use crate::plan::{Planned, Statement, Work};
use crate::produce::Encoded;
use crate::query::{Report, ResultCacheUse};
use crate::run::Part;
use crate::session::{Session, SessionId};

struct Batch(RecordBatch);

impl Weight for Batch {
    fn weight(&self) -> usize {
        self.0.get_array_memory_size()
    }
}

fn as_they_are(batches: SendableRecordBatchStream) -> Encoded<Batch> {
    Encoded::in_turn(batches.map_ok(Batch).map_err(Error::from))
}

struct Fixture {
    dir: TempDir,
    engine: Arc<Engine>,
}

impl Fixture {
    async fn new(config: Config) -> Self {
        Self::with_hot(config, |catalog| catalog).await
    }

    async fn with_hot(config: Config, hot: impl FnOnce(Catalog) -> Catalog) -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("t.csv"), "id,name\n1,a\n2,b\n3,c\n").unwrap();
        std::fs::write(dir.path().join("u.csv"), "id\n2\n").unwrap();
        let mut catalog =
            updraft_catalog::Config { data: vec![dir.path().to_str().unwrap().to_owned()], ..Default::default() };
        catalog.views.insert("v".to_owned(), "SELECT id FROM t WHERE id > 1".to_owned());
        let catalog = Catalog::open(catalog, Handle::current()).await.unwrap_or_else(|errors| panic!("{errors:?}"));
        let memory_limit = config.memory_limit.or(Some(ByteSize::mib(256)));
        let config = Config { cpu_threads: 2, memory_limit, ..config };
        Self { engine: Engine::new(config, &[], Arc::new(hot(catalog))).unwrap(), dir }
    }

    async fn with_results(limit: ByteSize) -> Self {
        Self::new(Config { result_cache_limit: limit, ..Config::default() }).await
    }

    /// As a careful writer does: the new file takes the place of the old one at once.
    fn write(&self, name: &str, bytes: impl AsRef<[u8]>) {
        let path = self.dir.path().join(name);
        std::fs::write(path.with_extension("new"), bytes).unwrap();
        std::fs::rename(path.with_extension("new"), path).unwrap();
    }

    /// A file of the numbers of a range.
    fn numbers(&self, name: &str, ids: std::ops::Range<i64>) {
        let ids: ArrayRef = Arc::new(Int64Array::from_iter_values(ids));
        let batch = RecordBatch::try_from_iter([("id", ids)]).unwrap();
        let mut bytes = Vec::new();
        let mut writer = ArrowWriter::try_new(&mut bytes, batch.schema(), None).unwrap();
        writer.write(&batch).unwrap();
        writer.close().unwrap();
        self.write(name, bytes);
    }

    fn session(&self, name: &str) -> Session {
        self.engine.session(SessionId([0; 16]), &Principal::new(name))
    }

    async fn plan(&self, session: &Session, sql: &str) -> Arc<Planned> {
        self.engine.plan(session, Statement::Sql(sql.into()), None).await.unwrap_or_else(|e| panic!("{sql}: {e}"))
    }

    async fn run(&self, session: &Session, planned: Arc<Planned>) -> Result<(Vec<RecordBatch>, Report), Error> {
        let stream = self.engine.run(session, planned, Part::Whole, None, as_they_are)?;
        let usage = stream.usage();
        let batches = stream.map_ok(|Batch(batch)| batch).try_collect().await?;
        Ok((batches, usage.report()))
    }

    /// What the run of `sql` gave, one line for each row, and what it used, however it ended.
    async fn outcome(&self, session: &Session, sql: &str) -> (Result<String, Error>, Report) {
        let planned = self.plan(session, sql).await;
        let stream = self.engine.run(session, planned, Part::Whole, None, as_they_are).unwrap();
        let usage = stream.usage();
        let batches: Result<Vec<_>, _> = stream.map_ok(|Batch(batch)| batch).try_collect().await;
        (batches.map(|batches| lines(&batches)), usage.report())
    }

    /// The answer, one line for each row, and what the cache of results did.
    async fn ask(&self, session: &Session, sql: &str) -> (String, ResultCacheUse) {
        let planned = self.plan(session, sql).await;
        let (batches, report) = self.run(session, planned).await.unwrap_or_else(|e| panic!("{sql}: {e}"));
        (lines(&batches), report.result_cache)
    }

    async fn answer(&self, sql: &str) -> String {
        self.ask(&self.session("ann"), sql).await.0
    }

    /// How often a plan was found, and how often not, since the last call.
    fn plans(&self, before: &mut (u64, u64)) -> (u64, u64) {
        let figures = self.engine.plan_cache();
        let (hits, misses) = std::mem::replace(before, (figures.hits, figures.misses));
        (figures.hits - hits, figures.misses - misses)
    }
}

/// Waits until that is so.
async fn until(is_so: impl Fn() -> bool) {
    let looks = async {
        while !is_so() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), looks).await.expect("it takes no minute");
}

fn lines(batches: &[RecordBatch]) -> String {
    let text = pretty_format_batches(batches).unwrap().to_string();
    let rows = text.lines().skip(3).filter(|line| line.starts_with('|'));
    let cells = |line: &str| line.trim_matches('|').split('|').map(str::trim).collect::<Vec<_>>().join(" ");
    rows.map(cells).collect::<Vec<_>>().join("; ")
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_statement_is_planned_once_until_a_file_changes() {
    let fixture = Fixture::new(Config::default()).await;
    let mut seen = (0, 0);
    for (sql, before, after) in [
        ("SELECT count(*) FROM t", "3", "1"),
        ("SELECT name FROM t WHERE id = 3", "c", ""),
        ("SELECT name FROM t WHERE id IN (SELECT id FROM u)", "b", ""),
        ("SELECT count(*), max(id) FROM v", "2 3", "1 9"),
        ("SELECT name, count(*) FROM t GROUP BY name ORDER BY name LIMIT 1", "a 1", "z 1"),
        ("SELECT sum(a.id) FROM t a JOIN t b ON a.id = b.id", "6", "9"),
    ] {
        fixture.write("t.csv", "id,name\n1,a\n2,b\n3,c\n");
        assert_eq!(fixture.answer(sql).await, before, "{sql}");
        assert_eq!(fixture.plans(&mut seen), (0, 1), "{sql}");
        for _ in 0..3 {
            assert_eq!(fixture.answer(sql).await, before, "{sql}, again");
        }
        assert_eq!(fixture.plans(&mut seen), (3, 0), "{sql}");
        fixture.write("t.csv", "id,name\n9,z\n");
        assert_eq!(fixture.answer(sql).await, after, "{sql}, of the new file");
        assert_eq!(fixture.plans(&mut seen), (0, 1), "{sql}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn plans_that_start_anew_are_run_again_and_others_are_not() {
    let fixture = Fixture::new(Config::default()).await;
    let session = fixture.session("ann");
    fixture.numbers("p.parquet", 0..1000);
    let rows = "(VALUES (1, 'a'), (2, 'b'), (3, 'b'), (NULL, 'c')) AS x(n, s)";
    for (sql, answer, again) in [
        ("SELECT 1", "1".to_owned(), true),
        ("SELECT count(*), min(id), max(id) FROM p", "1000 0 999".to_owned(), true),
        (
            &format!("SELECT s, sum(n) FROM {rows} GROUP BY s ORDER BY 2 DESC NULLS LAST LIMIT 2"),
            "b 5; a 1".to_owned(),
            true,
        ),
        (&format!("SELECT min(n), max(s) FROM {rows} WHERE n > 1"), "2 b".to_owned(), true),
        (
            &format!("SELECT n FROM {rows} UNION ALL SELECT id FROM p WHERE id = 7 ORDER BY 1 LIMIT 2"),
            "1; 2".to_owned(),
            false,
        ),
        ("SELECT id FROM p WHERE id = 7", "7".to_owned(), false),
        (
            &format!("SELECT a.n FROM {rows} JOIN (VALUES (2), (3)) AS a(n) ON a.n = x.n ORDER BY 1"),
            "2; 3".to_owned(),
            false,
        ),
        (&format!("SELECT n FROM {rows} WHERE n > (SELECT min(n) + 1 FROM {rows})"), "3".to_owned(), false),
    ] {
        for _ in 0..3 {
            assert_eq!(fixture.answer(sql).await, answer, "{sql}");
        }
        let planned = fixture.plan(&session, sql).await;
        let Work::Query(ready) = &planned.work else { panic!("{sql} is a query") };
        assert_eq!(ready.again().is_some(), again, "{sql}");
        // At the same time, and each as if it were alone.
        let (one, two) = tokio::join!(fixture.answer(sql), fixture.answer(sql));
        assert_eq!((one, two), (answer.clone(), answer), "{sql}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plan_over_columns_in_memory_is_run_again_while_they_are_there() {
    let cache = Cache::new(64 << 20);
    let hot = Arc::clone(&cache);
    let fixture = Fixture::with_hot(Config::default(), |catalog| catalog.with_hot(hot)).await;
    fixture.numbers("p.parquet", 0..1000);
    let session = fixture.session("ann");
    for (sql, before, after) in [
        ("SELECT id FROM p WHERE id = 7", "7", ""),
        ("SELECT id, count(*) FROM p WHERE id BETWEEN 7 AND 8 GROUP BY id ORDER BY id", "7 1; 8 1", "8 1"),
        ("SELECT id % 2, count(*), sum(id) FROM p WHERE id < 10 GROUP BY 1 ORDER BY 1 LIMIT 1", "0 5 20", "0 1 8"),
        // Known to be in order: no first rows are looked for, whose filter would be another in each run.
        ("SELECT id FROM p WHERE id > 6 ORDER BY id LIMIT 2", "7; 8", "8; 9"),
    ] {
        let kept = async || {
            let planned = fixture.plan(&session, sql).await;
            let Work::Query(ready) = &planned.work else { panic!("{sql} is a query") };
            ready.again()
        };
        fixture.numbers("p.parquet", 0..1000);
        // Reads the file, finds its columns in memory, and is as it was found.
        for _ in 0..3 {
            assert_eq!(fixture.answer(sql).await, before, "{sql}");
        }
        let first = kept().await;
        for _ in 0..3 {
            assert_eq!(fixture.answer(sql).await, before, "{sql}, again");
        }
        let same = first.zip(kept().await).is_some_and(|(a, b)| Arc::ptr_eq(&a, &b));
        assert!(same, "{sql} is not planned once more");
        cache.clear();
        assert_eq!(fixture.answer(sql).await, before, "{sql}, from the file");
        fixture.numbers("p.parquet", 8..1000);
        assert_eq!(fixture.answer(sql).await, after, "{sql}, of the new file");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_is_gone_is_not_answered_from_what_was_kept() {
    let fixture = Fixture::with_results(ByteSize::mib(1)).await;
    let session = fixture.session("ann");
    assert_eq!(fixture.answer("SELECT count(*) FROM u").await, "1");
    std::fs::remove_file(fixture.dir.path().join("u.csv")).unwrap();
    let gone = fixture.engine.plan(&session, Statement::Sql("SELECT count(*) FROM u".into()), None).await;
    assert!(matches!(gone, Err(Error::NotFound { .. })), "{gone:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_gets_what_was_kept_for_others() {
    let fixture = Fixture::with_results(ByteSize::mib(1)).await;
    let sql = "SELECT to_timestamp(0), count(*) FROM t";
    let ann = fixture.session("ann");
    let elsewhere = fixture.engine.with_settings(&ann, [("time_zone", "+02:00")]).unwrap();
    let mut seen = (0, 0);
    for session in [&ann, &fixture.session("bob"), &elsewhere] {
        assert_eq!(fixture.ask(session, sql).await.1, ResultCacheUse::Miss);
        assert_eq!(fixture.plans(&mut seen), (0, 1));
        assert_eq!(fixture.ask(session, sql).await.1, ResultCacheUse::Hit);
        assert_eq!(fixture.plans(&mut seen), (1, 0));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_differs_from_time_to_time_is_never_kept() {
    let fixture = Fixture::with_results(ByteSize::mib(1)).await;
    let session = fixture.session("ann");
    for sql in [
        "SELECT now()",
        "SELECT max(random()) FROM t",
        "SELECT id, uuid() FROM t",
        "SELECT current_timestamp, current_date, current_time FROM t",
        "SELECT id FROM t WHERE EXISTS (SELECT 1 FROM u WHERE now() > '1970-01-01')",
        "WITH x AS (SELECT random() r FROM t) SELECT count(r) FROM x",
        "SELECT id, rank() OVER (ORDER BY random()) FROM t",
        "EXPLAIN ANALYZE SELECT id FROM t",
        "EXPLAIN SELECT id FROM t",
        "SELECT * FROM generate_series(1, 3)",
        "SELECT count(*) FROM information_schema.tables",
        "SHOW TABLES",
        "SHOW batch_size",
    ] {
        for _ in 0..2 {
            assert_eq!(fixture.ask(&session, sql).await.1, ResultCacheUse::Off, "{sql}");
        }
    }
    assert_eq!(fixture.engine.result_cache().entries, 0);
    let times = [fixture.answer("SELECT now()").await, fixture.answer("SELECT now()").await];
    assert_ne!(times[0], times[1]);
    // What a function made when the statement was planned is not in the plan's versions.
    let mut seen = (0, 0);
    fixture.plans(&mut seen);
    for _ in 0..2 {
        fixture.answer("SELECT count(*) FROM generate_series(1, 3)").await;
        fixture.answer("SELECT count(*) FROM information_schema.tables").await;
    }
    assert_eq!(fixture.plans(&mut seen), (0, 4));
}

#[tokio::test(flavor = "multi_thread")]
async fn results_are_given_again_until_any_table_in_them_changes() {
    let fixture = Fixture::with_results(ByteSize::mib(1)).await;
    let session = fixture.session("ann");
    for (sql, before, after) in [
        ("SELECT name FROM t WHERE id IN (SELECT id FROM u)", "b", "c"),
        ("SELECT name FROM t WHERE EXISTS (SELECT 1 FROM u WHERE u.id = t.id)", "b", "c"),
        ("SELECT (SELECT max(id) FROM u) + 1", "3", "4"),
        ("SELECT v.id FROM v JOIN u ON v.id = u.id", "2", "3"),
    ] {
        fixture.write("u.csv", "id\n2\n");
        assert_eq!(fixture.ask(&session, sql).await, (before.to_owned(), ResultCacheUse::Miss), "{sql}");
        assert_eq!(fixture.ask(&session, sql).await, (before.to_owned(), ResultCacheUse::Hit), "{sql}");
        // The same question in other words.
        let shouted = format!("{sql}  -- again");
        assert_eq!(fixture.ask(&session, &shouted).await, (before.to_owned(), ResultCacheUse::Hit), "{sql}");
        let entries = fixture.engine.result_cache().entries;
        fixture.write("u.csv", "id\n3\n");
        assert_eq!(fixture.ask(&session, sql).await, (after.to_owned(), ResultCacheUse::Miss), "{sql}");
        assert_eq!(fixture.ask(&session, sql).await, (after.to_owned(), ResultCacheUse::Hit), "{sql}");
        assert_eq!(fixture.engine.result_cache().entries, entries, "the new one took the old one's place");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_cache_of_results_is_off_by_itself_and_for_a_session() {
    let fixture = Fixture::new(Config::default()).await;
    assert_eq!(fixture.ask(&fixture.session("ann"), "SELECT 1").await.1, ResultCacheUse::Off);
    let fixture = Fixture::with_results(ByteSize::mib(1)).await;
    let session = fixture.session("ann");
    let without = fixture.engine.with_settings(&session, [("updraft.result_cache", "off")]).unwrap();
    for (session, expected) in [
        (&session, ResultCacheUse::Miss),
        (&without, ResultCacheUse::Off),
        (&without, ResultCacheUse::Off),
        (&session, ResultCacheUse::Hit),
    ] {
        assert_eq!(fixture.ask(session, "SELECT id FROM t WHERE id > 1").await.1, expected);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn only_a_whole_result_is_kept() {
    let fixture = Fixture::with_results(ByteSize::mib(64)).await;
    let session = fixture.session("ann");
    // More than waits for a client who does not read.
    let many = (0..400_000).map(|id| id.to_string()).collect::<Vec<_>>().join("\n");
    fixture.write("u.csv", format!("id\n{many}\n"));
    let sql = "SELECT id, id * 2, id * 3 FROM u";
    for taken in [0, 1] {
        let planned = fixture.plan(&session, sql).await;
        let mut stream = fixture.engine.run(&session, planned, Part::Whole, None, as_they_are).unwrap();
        for _ in 0..taken {
            stream.next().await.unwrap().unwrap();
        }
        drop(stream);
        fixture.engine.idle().await;
        assert_eq!(fixture.engine.result_cache().entries, 0);
    }
    fixture.write("u.csv", "id\n1\n0\n");
    for _ in 0..2 {
        let planned = fixture.plan(&session, "SELECT 1 / id FROM u").await;
        assert!(fixture.run(&session, planned).await.is_err());
    }
    // A task that was ended gives back what it holds when it next looks, which may be after its query was counted out.
    let given_back = async {
        while fixture.engine.result_cache().bytes > 0 {
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(10), given_back)
        .await
        .expect("what was reserved is given back");
    let figures = fixture.engine.result_cache();
    assert_eq!((figures.entries, figures.hits), (0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn parameters_tell_results_and_plans_apart() {
    let fixture = Fixture::with_results(ByteSize::mib(1)).await;
    let session = fixture.session("ann");
    let statement = Statement::Sql("SELECT name FROM t WHERE id = ?".into());
    let prepared = fixture.engine.prepare(&session, statement.clone(), DataType::Null, None).await.unwrap();
    let mut seen = (0, 0);
    fixture.plans(&mut seen);
    let ask = async |ids: &[i64]| {
        let ids: ArrayRef = Arc::new(Int64Array::from(ids.to_vec()));
        let rows = RecordBatch::try_from_iter([("1", ids)]).unwrap();
        prepared.bind(vec![rows], fixture.engine.upload_memory(&session)).unwrap();
        let planned = fixture.engine.plan_prepared(&session, Arc::clone(&prepared), None).await.unwrap();
        let (batches, report) = fixture.run(&session, planned).await.unwrap();
        (lines(&batches), report.result_cache)
    };
    assert_eq!(ask(&[1]).await, ("a".to_owned(), ResultCacheUse::Miss));
    assert_eq!(ask(&[2]).await, ("b".to_owned(), ResultCacheUse::Miss));
    assert_eq!(ask(&[1]).await, ("a".to_owned(), ResultCacheUse::Hit));
    assert_eq!(ask(&[1]).await, ("a".to_owned(), ResultCacheUse::Hit));
    assert_eq!(ask(&[2, 3]).await, ("b; c".to_owned(), ResultCacheUse::Off), "several rows are several runs");
    assert_eq!(fixture.plans(&mut seen), (5, 0), "it was planned when it was prepared");
    fixture.write("t.csv", "id,name\n1,z\n");
    assert_eq!(ask(&[1]).await, ("z".to_owned(), ResultCacheUse::Miss));
    // A statement with parameters cannot be run without, although a plan of it is kept.
    let refused = fixture.engine.plan(&session, statement, None).await;
    assert!(matches!(refused, Err(Error::Invalid(_))), "{refused:?}");
}

#[tokio::test]
async fn constants_are_at_hand_and_what_is_computed_is_not() {
    let fixture = Fixture::new(Config::default()).await;
    let session = fixture.session("ann");
    fixture.numbers("n.parquet", 0..10);
    for (sql, at_hand) in [
        ("SELECT 1 AS one, 'x' AS x", true),
        ("SELECT 1 WHERE false", true),
        ("SELECT count(*) FROM n", true),
        ("SHOW time_zone", true),
        ("SELECT repeat('x', 10000)", false),
        ("SELECT random()", false),
        ("SELECT id FROM n WHERE id = 3", false),
    ] {
        // The first run makes the plan that the second has a copy of.
        let first = fixture.answer(sql).await;
        let planned = fixture.plan(&session, sql).await;
        assert_eq!(planned.is_at_hand(), at_hand, "{sql}");
        let stream = fixture.engine.run(&session, planned, Part::Whole, None, as_they_are).unwrap();
        assert!(!at_hand || fixture.engine.running() == 0, "{sql} is over before anybody has looked");
        let batches: Vec<_> = stream.map_ok(|Batch(batch)| batch).try_collect().await.unwrap();
        assert!(sql.contains("random") || lines(&batches) == first, "{sql}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_prepares_the_same_shares_what_is_known_of_it() {
    let fixture = Fixture::new(Config::default()).await;
    let statement = Statement::Sql("SELECT name FROM t WHERE id = ?".into());
    let (session, null) = (fixture.session("ann"), DataType::Null);
    let prepare = async |unknown: &DataType| {
        fixture.engine.prepare(&session, statement.clone(), unknown.clone(), None).await.unwrap()
    };
    let (first, second) = (prepare(&null).await, prepare(&null).await);
    assert!(Arc::ptr_eq(&first.described, &second.described));
    assert_ne!(first.handle(), second.handle());
    assert_eq!(prepare(&DataType::Utf8).await.parameters(), first.parameters());
    fixture.write("t.csv", "id,name\nx,7\n");
    let after = prepare(&null).await;
    assert_ne!(after.schema(), first.schema(), "described anew when its table is another");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_kept_stays_within_its_bytes_and_is_let_go_of() {
    let limit = ByteSize::kib(256);
    let fixture = Fixture::with_results(limit).await;
    let many = (0..6_000).map(|id| id.to_string()).collect::<Vec<_>>().join("\n");
    fixture.write("u.csv", format!("id\n{many}\n"));
    let asking = (0..4_u64).map(|client| {
        let fixture = &fixture;
        async move {
            let session = fixture.session(&format!("client {client}"));
            let mut random = client + 1;
            for _ in 0..20 {
                random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                // Up to 48 KB; an eighth of the limit is 32 KiB.
                let rows = (random >> 33) % 6_000;
                let sql = format!("SELECT count(*), sum(id) FROM (SELECT id FROM u WHERE id < {rows})");
                let (answer, _) = fixture.ask(&session, &sql).await;
                assert_eq!(answer.split(' ').next().unwrap(), rows.to_string());
                let planned = fixture.plan(&session, &format!("SELECT id FROM u WHERE id < {rows}")).await;
                let (batches, _) = fixture.run(&session, planned).await.unwrap();
                let ids = batches.first().map(|first| concat_batches(&first.schema(), &batches).unwrap());
                assert_eq!(ids.map_or(0, |ids| ids.num_rows()) as u64, rows);
                assert!(fixture.engine.result_cache().bytes as u64 <= limit.as_u64());
            }
        }
    });
    futures::future::join_all(asking).await;
    let before = fixture.engine.result_cache();
    assert!(before.entries > 5 && before.bytes > 64 << 10, "{before:?}");
    let freed = crate::memory::Reclaim::reclaim(fixture.engine.results().as_ref(), before.bytes as u64 / 2);
    let after = fixture.engine.result_cache();
    assert_eq!(after.bytes, before.bytes - usize::try_from(freed).unwrap());
    assert!(after.bytes <= before.bytes / 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cache_larger_than_the_memory_is_refused() {
    let config =
        Config { memory_limit: Some(ByteSize::mib(64)), result_cache_limit: ByteSize::gib(1), ..Config::default() };
    assert_eq!(config.problems().len(), 1, "{:?}", config.problems());
    let catalog = Catalog::open(updraft_catalog::Config::default(), Handle::current()).await.unwrap();
    assert!(matches!(Engine::new(config, &[], Arc::new(catalog)), Err(Error::Invalid(_))));
}
