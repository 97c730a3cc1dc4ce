//! What the server holds for clients between their calls, and that it is counted.

use datafusion::arrow::array::StringArray;

use super::*;
use crate::engine::CancelOutcome;
use crate::memory::{Claim, Memory};
use crate::prepared::Prepared;

const MIB: u64 = 1 << 20;

/// `statement`, prepared, with two rows of `bytes` bytes together bound to it.
async fn bound(fixture: &Fixture, session: &Session, bytes: u64) -> Arc<Prepared> {
    let statement = Statement::Sql("SELECT id FROM t WHERE name <> $1".into());
    let prepared = fixture.engine.prepare(session, statement, DataType::Null, None).await.unwrap();
    bind(fixture, session, &prepared, bytes).unwrap();
    prepared
}

fn bind(fixture: &Fixture, session: &Session, prepared: &Prepared, bytes: u64) -> Result<(), Error> {
    let mut memory = fixture.engine.upload_memory(session);
    memory.grow(bytes)?;
    let text = "x".repeat(bytes as usize / 2);
    let texts: ArrayRef = Arc::new(StringArray::from(vec![text.clone(), text]));
    prepared.bind(vec![RecordBatch::try_from_iter([("1", texts)]).unwrap()], memory)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_bound_is_counted_until_nobody_has_it() {
    let fixture = Fixture::new(Config::default()).await;
    let (engine, session) = (&fixture.engine, fixture.session("ann"));
    let prepared = bound(&fixture, &session, MIB).await;
    assert_eq!(engine.memory_uploaded(), MIB);
    bind(&fixture, &session, &prepared, 2 * MIB).unwrap();
    assert_eq!(engine.memory_uploaded(), 2 * MIB, "what was bound before is given back");

    let planned = engine.plan_prepared(&session, Arc::clone(&prepared), None).await.unwrap();
    engine.close_prepared(prepared.handle(), &session);
    drop(prepared);
    assert_eq!(engine.memory_uploaded(), 2 * MIB, "a query has it");
    let (batches, _) = fixture.run(&session, Arc::clone(&planned)).await.unwrap();
    assert_eq!(lines(&batches), "1; 2; 3; 1; 2; 3");
    assert_eq!(engine.memory_uploaded(), 2 * MIB, "its ticket may be fetched again");
    assert_eq!(engine.cancel(planned.id(), &session), CancelOutcome::Cancelled);
    drop(planned);
    assert_eq!(engine.memory_reserved(), 0);

    let prepared = bound(&fixture, &session, MIB).await;
    engine.close_session(&session);
    drop(prepared);
    assert_eq!(engine.memory_uploaded(), 0, "it goes with its session");
}

#[tokio::test(flavor = "multi_thread")]
async fn many_large_binds_are_refused_before_they_are_too_much() {
    let fixture = Fixture::new(Config::default()).await;
    let session = fixture.session("ann");
    let mut prepared = Vec::new();
    for _ in 0..4 {
        prepared.push(bound(&fixture, &session, 32 * MIB).await);
    }
    let error = bind(&fixture, &session, &prepared[0], 32 * MIB).unwrap_err();
    assert!(matches!(&error, Error::Exhausted(text) if text.contains("0 B are free")), "{error}");
    assert_eq!(
        fixture.answer("SELECT count(*) FROM (SELECT DISTINCT id FROM t)").await,
        "3",
        "queries have their half"
    );
    prepared.pop().iter().for_each(|prepared| _ = fixture.engine.close_prepared(prepared.handle(), &session));
    bind(&fixture, &session, &prepared[0], 32 * MIB).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn queries_that_nobody_fetches_are_bounded_by_bytes() {
    let fixture =
        Fixture::new(Config { plan_cache_limit: ByteSize(0), planned_limit: ByteSize::mib(4), ..Config::default() });
    let fixture = fixture.await;
    let session = fixture.session("ann");
    let list = |from: usize| (from..from + 2_000).map(|id| format!("'{id:06}'")).collect::<Vec<_>>().join(",");
    for round in 0..30 {
        fixture.plan(&session, &format!("SELECT id FROM t WHERE name IN ({})", list(round * 2_000))).await;
        let (entries, bytes) = fixture.engine.planned();
        assert!(bytes <= 4 << 20 && entries <= 20, "{entries} of {bytes} bytes");
        assert!(bytes / entries > 2_000 * 100, "a list of 2,000 weighs {} bytes", bytes / entries);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn queries_that_wait_make_room_unless_their_ticket_does_not_tell_all() {
    let config = Config { plan_cache_limit: ByteSize::mib(64), ..Config::default() };
    let fixture = Fixture::new(config).await;
    let (engine, session) = (&fixture.engine, fixture.session("ann"));
    let prepared = bound(&fixture, &session, 1 << 10).await;
    let planned = engine.plan_prepared(&session, prepared, None).await.unwrap();
    let list = (0..90_000).map(|id| format!("'{id:06}'")).collect::<Vec<_>>().join(",");
    let large = fixture.plan(&session, &format!("SELECT id FROM t WHERE name IN ({list})")).await;
    let before = engine.memory().free();
    let mut upload = engine.upload_memory(&session);
    upload.grow(128 << 20).unwrap_err();
    assert_eq!(engine.planned().0, 2, "what cannot be had takes nothing from others");
    let Memory::Fair(budget) = engine.memory() else { panic!("our own") };
    assert!(budget.reclaim(u64::MAX) > 0);
    assert_eq!(
        (engine.planned().0, engine.memory().free()),
        (1, before),
        "what was reclaimed had been free to ask for"
    );
    let again = async |id, statement| engine.replan(id, &session, statement, None).await;
    assert_eq!(again(planned.id(), None).await.unwrap().id(), planned.id(), "nothing could give back what is bound");
    assert!(matches!(again(large.id(), None).await, Err(Error::Stale(_))));
    let large = again(large.id(), Some(Statement::Sql("SELECT id FROM t".into()))).await.unwrap();
    assert_eq!(lines(&fixture.run(&session, large).await.unwrap().0), "1; 2; 3");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_query_whose_client_does_not_read_lends_its_memory() {
    let fixture = Fixture::new(Config { stream_buffer: ByteSize::kib(64), ..Config::default() }).await;
    let (engine, session) = (&fixture.engine, fixture.session("ann"));
    fixture.numbers("n.parquet", 0..1_000_000);
    let held = engine.memory_reserved();
    let planned = fixture.plan(&session, "SELECT id FROM n WHERE id >= 0").await;
    let mut stream = engine.run(&session, planned, Part::Whole, None, as_they_are).unwrap();
    let first = stream.next().await.unwrap().unwrap().0.num_rows();
    let granted = engine.memory_reserved();
    let shrinks = async |to: usize| {
        while engine.memory_reserved() > to {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    };
    let patience = std::time::Duration::from_secs(10);
    tokio::time::timeout(patience, shrinks(128 << 10)).await.expect("no more than what may wait for the client");
    assert!(granted > 128 << 10, "it was granted {granted}");

    let Memory::Fair(budget) = engine.memory() else { panic!("our own") };
    let claim = Claim { principal: Principal::new("bob"), priority: 10, principal_limit: u64::MAX, shares: true };
    let other = budget.try_grant(&claim, budget.free()).expect("what was lent");
    let all = tokio::spawn(async move { stream.map_ok(|Batch(batch)| batch.num_rows()).try_collect::<Vec<_>>().await });
    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    assert!(!all.is_finished(), "it waits for its memory");
    drop(other);
    let rest = tokio::time::timeout(patience, all).await.expect("it goes on").unwrap().unwrap();
    assert_eq!(first + rest.iter().sum::<usize>(), 1_000_000);
    tokio::time::timeout(patience, shrinks(held)).await.expect("all is given back");
}

#[tokio::test(flavor = "multi_thread")]
async fn larger_answers_wait_when_much_waits_for_clients_already() {
    let fixture = Fixture::new(Config::default()).await;
    let (memory, session) = (fixture.engine.memory(), fixture.session("ann"));
    fixture.numbers("n.parquet", 0..100_000);
    let rows = async || {
        let planned = fixture.plan(&session, "SELECT id FROM n").await;
        let (batches, _) = fixture.run(&session, planned).await.unwrap();
        batches.iter().map(RecordBatch::num_rows).sum::<usize>()
    };
    assert_eq!(rows().await, 100_000);

    let left = memory.limit() / 8 * 7;
    memory.add_unsent(left);
    assert_eq!(fixture.answer("SELECT count(*) FROM n").await, "100000");
    assert_eq!(fixture.answer("SELECT id FROM n WHERE id = 7 LIMIT 1").await, "7");
    let mut waits = std::pin::pin!(rows());
    let soon = std::time::Duration::from_millis(100);
    assert!(tokio::time::timeout(soon, &mut waits).await.is_err(), "nobody has room for it");
    memory.less_unsent(left);
    assert_eq!(waits.await, 100_000);
}
