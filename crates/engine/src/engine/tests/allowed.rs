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
