//! What a query is allowed that its principal or its session has limited.

use super::*;
use crate::admission::PrincipalConfig;
use crate::error::ErrorKind;

/// Whether a call may make `mib` MiB at once.
async fn makes(fixture: &Fixture, session: &Session, mib: u64) -> bool {
    let sql = format!("SELECT length(repeat(name, {})) FROM t LIMIT 1", mib << 20);
    match fixture.run(session, fixture.plan(session, &sql).await).await {
        Ok(_) => true,
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::Exhausted, "{error}");
            false
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn parts_that_use_each_other_twice_are_counted_as_often_as_they_are_used() {
    let fixture = Fixture::new(Config::default()).await;
    let doubling = |levels: usize| {
        let level = |n: usize| format!("c{n} AS (SELECT p.x FROM c{} p, c{} q)", n - 1, n - 1);
        let levels: Vec<_> =
            std::iter::once("c0 AS (SELECT 1 AS x)".to_owned()).chain((1..=levels).map(level)).collect();
        format!("WITH {} SELECT count(*) FROM c{}", levels.join(", "), levels.len() - 1)
    };
    assert_eq!(fixture.answer(&doubling(4)).await, "1");
    for levels in [16, 40] {
        let planned = fixture.engine.plan(&fixture.session("ann"), Statement::Sql(doubling(levels).into()), None).await;
        assert!(matches!(planned, Err(Error::TooComplex(_))), "{levels} levels: {planned:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_call_makes_a_part_of_what_its_own_query_may_hold() {
    let own = PrincipalConfig { query_memory_limit: Some(ByteSize::mib(256)), ..PrincipalConfig::default() };
    let config = Config {
        query_memory_limit: Some(ByteSize::mib(128)),
        principals: [("etl".to_owned(), own)].into(),
        ..Config::default()
    };
    let fixture = Fixture::new(config).await;
    let session = fixture.session("ann");
    assert!(makes(&fixture, &session, 2).await && !makes(&fixture, &session, 4).await);
    assert!(makes(&fixture, &fixture.session("etl"), 4).await, "it may have more than others");
    fixture.engine.set(&session, "query_memory_limit", Some("16MiB")).unwrap();
    assert!(!makes(&fixture, &fixture.session("ann"), 2).await, "it wants no more than that");
}
