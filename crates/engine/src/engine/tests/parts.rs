//! Results that several streams fetch in parts.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use super::*;
use crate::ErrorKind;
use crate::engine::CancelOutcome;
use crate::memory::{Reclaim, shed_text};
use crate::parts;
use crate::run::QueryStream;

/// A nested loop join of two partitions whose operators would work for minutes without a row, a batch for many seconds.
pub(super) const SILENT: &str =
    "SELECT a.value FROM range(1000000) a JOIN range(1000000) b ON a.value < b.value - 2000000";

/// Each of the numbers once, in three partitions.
const NUMBERS: &str = "SELECT value FROM range(100000) GROUP BY value";

const PATIENCE: Duration = Duration::from_secs(5);

async fn split(fixture: &Fixture, session: &Session, sql: &str, parts: usize) -> Arc<Planned> {
    let planned = fixture.plan(session, sql).await;
    assert_eq!(fixture.engine.split(&planned, parts).await.unwrap(), parts, "{sql}");
    planned
}

fn fetch(
    fixture: &Fixture,
    session: &Session,
    planned: &Arc<Planned>,
    index: u32,
    deadline: Option<Instant>,
) -> Result<QueryStream<Batch>, Error> {
    fixture.engine.run(session, Arc::clone(planned), Part::One { index }, deadline, as_they_are)
}

async fn rows(stream: QueryStream<Batch>) -> Result<usize, Error> {
    stream.try_fold(0, async |sum, Batch(batch)| Ok(sum + batch.num_rows())).await
}

/// Waits until the query holds nothing, which it does as long as one of its operators works.
async fn released(engine: &Engine) {
    let all = async {
        while engine.running() > 0 || engine.memory_reserved() > 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, all).await.expect("its operators end");
}

async fn with_partitions(partitions: &str) -> Fixture {
    Fixture::new(Config { target_partitions: partitions.parse().unwrap(), ..Config::default() }).await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_ends_one_stream_for_good_ends_all_and_their_operators() {
    enum By {
        Cancel,
        Deadline,
        Guard,
        Dropping,
    }
    let fixture = with_partitions("2").await;
    let (engine, session) = (&fixture.engine, fixture.session("ann"));
    let idle = engine.memory_reserved();
    assert_eq!(idle, 0);
    for by in [By::Cancel, By::Deadline, By::Guard, By::Dropping] {
        let planned = split(&fixture, &session, SILENT, 2).await;
        let deadline = matches!(by, By::Deadline).then(|| Instant::now() + Duration::from_secs(1));
        let one = fetch(&fixture, &session, &planned, 0, deadline).unwrap();
        let other = fetch(&fixture, &session, &planned, 1, None).unwrap();
        let usage = one.usage();
        let working = async {
            while usage.report().peak_bytes < 4 << 20 {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(PATIENCE, working).await.expect("one side is collected");
        match by {
            By::Cancel => assert_eq!(engine.cancel(planned.id(), &session), CancelOutcome::Cancelling),
            By::Guard => {
                let held = engine.runs.end_largest(1, |held| shed_text(held, 1 << 20)).expect("it holds memory");
                assert!(held >= 4 << 20, "{held}");
                assert_eq!(engine.runs.end_largest(1, |_| String::new()), None, "nobody else is to blame");
            }
            By::Deadline => {}
            By::Dropping => {
                drop((one, other));
                released(engine).await;
                continue;
            }
        }
        for stream in [one, other] {
            let error = rows(stream).await.unwrap_err();
            match by {
                By::Deadline => assert!(matches!(error, Error::Deadline(_)), "{error}"),
                By::Guard => assert!(matches!(error, Error::Shed(_)), "{error}"),
                _ => assert!(matches!(error, Error::Cancelled), "{error}"),
            }
        }
        released(engine).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_stream_reports_the_whole_query() {
    let fixture = with_partitions("3").await;
    let session = fixture.session("ann");
    let planned = split(&fixture, &session, NUMBERS, 3).await;
    assert_eq!(fixture.engine.memory_reserved(), 0, "nothing is held for who may never come");
    let streams: Vec<_> = (0..3).map(|index| fetch(&fixture, &session, &planned, index, None).unwrap()).collect();
    let usages: Vec<_> = streams.iter().map(QueryStream::usage).collect();
    let counts = futures::future::try_join_all(streams.into_iter().map(rows)).await.unwrap();
    assert_eq!(counts.iter().sum::<usize>(), 100_000);
    assert!(counts.iter().all(|count| *count > 0), "{counts:?}");
    for usage in &usages {
        let (report, first) = (usage.report(), usages[0].report());
        assert_eq!((report.partitions, report.attempts), (3, 1));
        assert!(report.peak_bytes > 0 && report.peak_bytes == first.peak_bytes, "{report:?} {first:?}");
    }
    released(&fixture.engine).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_is_dropped_leaves_the_others() {
    let fixture = with_partitions("3").await;
    let session = fixture.session("ann");
    let planned = split(&fixture, &session, NUMBERS, 3).await;
    drop(fetch(&fixture, &session, &planned, 1, None).unwrap());
    for index in [0, 2] {
        assert!(rows(fetch(&fixture, &session, &planned, index, None).unwrap()).await.unwrap() > 0);
    }
    released(&fixture.engine).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn parts_may_be_read_one_after_the_other_but_are_not_kept_for_ever() {
    let fixture = with_partitions("3").await;
    let (engine, session) = (&fixture.engine, fixture.session("ann"));
    let planned = split(&fixture, &session, NUMBERS, 3).await;
    let look = Duration::from_millis(100);
    let first = fetch(&fixture, &session, &planned, 0, None).unwrap();
    parts::watch_claims(&engine.cpu, &planned, look);
    tokio::time::sleep(5 * look).await;
    rows(first).await.unwrap();
    rows(fetch(&fixture, &session, &planned, 1, None).unwrap()).await.unwrap();
    assert!(engine.memory_reserved() > 0, "what the last part has is kept");
    released(engine).await;
    let error = fetch(&fixture, &session, &planned, 2, None).map(|_| ()).unwrap_err();
    assert!(matches!(error, Error::Stale(_)), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn parts_of_joins_come_one_after_the_other() {
    let fixture = with_partitions("2").await;
    let session = fixture.session("ann");
    fixture.numbers("a.parquet", 0..40_000);
    fixture.numbers("b.parquet", 20_000..100_000);
    // The second is made by each partition from its own part of both, the others from one table of all rows.
    for (rows_each, sql) in [
        (1, "SELECT a.id FROM a JOIN b USING (id)"),
        (1, "SELECT x.n FROM (SELECT id n FROM a GROUP BY id) x JOIN (SELECT id m FROM b GROUP BY id) y ON n = m"),
        (1, "SELECT id FROM a WHERE id IN (SELECT id FROM b)"),
        (2, "SELECT a.id FROM b RIGHT JOIN a USING (id)"),
        (1, "SELECT id FROM a WHERE NOT EXISTS (SELECT 1 FROM b WHERE b.id = a.id)"),
        (5, "SELECT a.id FROM a FULL JOIN b USING (id)"),
    ] {
        let planned = split(&fixture, &session, sql, 2).await;
        let all = async {
            let mut sum = 0;
            for index in 0..2 {
                sum += rows(fetch(&fixture, &session, &planned, index, None).unwrap()).await.unwrap();
            }
            sum
        };
        let sum = tokio::time::timeout(PATIENCE, all).await.unwrap_or_else(|_| panic!("{sql} hangs"));
        assert_eq!(sum, rows_each * 20_000, "{sql}");
        released(&fixture.engine).await;
    }
}

/// A join that nobody can tell the size of beforehand, and that has a build side of some 50 MB.
const SURPRISE: &str = "SELECT a.v, length(a.text) \
    FROM (SELECT value AS v, repeat('x', 400) || value AS text FROM generate_series(100001, 200000)) AS a \
    JOIN generate_series(100001, 400000) AS b ON a.v = b.value";

#[tokio::test(flavor = "multi_thread")]
async fn parts_that_were_refused_memory_are_tried_once_more_together() {
    let config = Config {
        memory_limit: Some(ByteSize::mib(32)),
        target_partitions: "2".parse().unwrap(),
        max_concurrent_queries: 1,
        ..Config::default()
    };
    let fixture = Fixture::new(config).await;
    let session = fixture.session("ann");
    let at_once = async || {
        let planned = split(&fixture, &session, SURPRISE, 2).await;
        let streams = [0, 1].map(|index| fetch(&fixture, &session, &planned, index, None).unwrap());
        let usages = streams.each_ref().map(QueryStream::usage);
        let counts = futures::future::try_join_all(streams.map(rows)).await.unwrap();
        (counts, usages.map(|usage| usage.report().attempts))
    };
    let in_turn = async || {
        let planned = split(&fixture, &session, SURPRISE, 2).await;
        let (mut counts, mut attempts) = (Vec::new(), [0, 0]);
        for index in [1, 0] {
            let stream = fetch(&fixture, &session, &planned, index, None).unwrap();
            let usage = stream.usage();
            counts.push(rows(stream).await.unwrap());
            attempts[index as usize] = usage.report().attempts;
        }
        (counts, attempts)
    };
    for (counts, attempts) in [at_once().await, in_turn().await] {
        assert_eq!(counts.iter().sum::<usize>(), 100_000);
        assert!(attempts.contains(&2) && attempts.iter().all(|attempts| *attempts <= 2), "{attempts:?}");
    }
    released(&fixture.engine).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn parts_do_not_begin_anew_once_one_of_them_has_gone() {
    let config =
        Config { memory_limit: Some(ByteSize::mib(32)), target_partitions: "2".parse().unwrap(), ..Config::default() };
    let fixture = Fixture::new(config).await;
    let session = fixture.session("ann");
    let planned = split(&fixture, &session, SURPRISE, 2).await;
    drop(fetch(&fixture, &session, &planned, 0, None).unwrap());
    until(|| fixture.engine.running() == 0).await;
    let error = rows(fetch(&fixture, &session, &planned, 1, None).unwrap()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Exhausted, "its rows would go with the part that is gone: {error}");
    released(&fixture.engine).await;
}

/// Part of the budget like a cache, it sees whether the parts of a query are locked when somebody looks for room.
#[derive(Debug)]
struct Looks {
    planned: Arc<Planned>,
    when_locked: AtomicBool,
}

impl Reclaim for Looks {
    fn reclaim(&self, _bytes: u64) -> u64 {
        0
    }

    fn held(&self) -> u64 {
        self.when_locked.fetch_or(self.planned.parts.is_locked(), Ordering::Relaxed);
        0
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn parts_are_given_up_without_a_lock_that_who_comes_next_may_want() {
    let config = Config { target_partitions: "3".parse().unwrap(), max_concurrent_queries: 1, ..Config::default() };
    let fixture = Fixture::new(config).await;
    let (engine, session) = (&fixture.engine, fixture.session("ann"));
    let planned = split(&fixture, &session, NUMBERS, 3).await;
    rows(fetch(&fixture, &session, &planned, 0, None).unwrap()).await.unwrap();
    let next = fixture.plan(&session, SILENT).await;
    let next = engine.run(&session, next, Part::Whole, None, as_they_are).unwrap();
    until(|| engine.queued() > 0).await;
    let looks = Arc::new(Looks { planned: Arc::clone(&planned), when_locked: AtomicBool::new(false) });
    engine.memory().add_reclaimer(Arc::clone(&looks) as _);
    parts::watch_claims(&engine.cpu, &planned, Duration::from_millis(50));
    until(|| engine.queued() == 0).await;
    assert!(!looks.when_locked.load(Ordering::Relaxed));
    drop(next);
    released(engine).await;
}
