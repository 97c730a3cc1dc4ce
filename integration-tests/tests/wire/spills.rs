//! Queries that need more memory than they get, and more disk than they may use.

use tonic::Code;

use crate::client::Wire;
use crate::{entries, nothing_runs, with_server};

/// Some 30 MB, most of it text that is nowhere twice.
const WIDE: &str = "SELECT value AS id, value % 977 AS k, repeat('x', 120) || value AS text \
    FROM generate_series(1, 200000)";

#[test]
fn the_smallest_budget_runs_a_sort_a_group_by_and_a_join() {
    with_server(
        |config| {
            config.engine.memory_limit = Some("16MiB".parse().unwrap());
            config.engine.target_partitions = "1".parse().unwrap();
            assert_eq!(config.problems(), [], "it is not smaller than the smallest");
            let mut smaller = config.clone();
            smaller.engine.memory_limit = Some("16777215B".parse().unwrap());
            assert_eq!(smaller.problems().len(), 1, "one byte less is");
        },
        |server| async {
            let mut wire = Wire::new(&server).await;
            let sorted = format!("SELECT id FROM ({WIDE}) ORDER BY k, text");
            let rows = wire.query(&sorted).await.unwrap().rows();
            assert_eq!((rows.len(), rows[0].as_str(), rows[199_999].as_str()), (200_000, "100631", "99653"));
            let grouped =
                format!("SELECT count(*), sum(n) FROM (SELECT text, k, count(*) AS n FROM ({WIDE}) GROUP BY 1, 2)");
            assert_eq!(wire.query(&grouped).await.unwrap().rows(), ["200000 200000"]);
            let joined = format!(
                "SELECT count(*), sum(b.value) FROM ({WIDE}) AS a JOIN generate_series(1, 200000, 10) AS b ON a.id = b.value"
            );
            assert_eq!(wire.query(&joined).await.unwrap().rows(), ["20000 1999920000"]);
            server
        },
    );
}

#[test]
fn a_query_beyond_its_spill_quota_fails_alone_and_leaves_nothing() {
    let spill = tempfile::tempdir().unwrap();
    let files = || entries(spill.path());
    with_server(
        |config| {
            config.engine.memory_limit = Some("32MiB".parse().unwrap());
            config.engine.query_memory_limit = Some("16MiB".parse().unwrap());
            config.engine.target_partitions = "1".parse().unwrap();
            config.engine.spill_directories = vec![spill.path().to_owned()];
            config.engine.query_spill_limit = Some("1MiB".parse().unwrap());
        },
        |server| async {
            let mut wire = Wire::new(&server).await;
            let mut other = Wire::new(&server).await;
            let sorted = format!("SELECT id, text FROM ({WIDE}) ORDER BY k, text");
            let (status, count) = tokio::join!(wire.query(&sorted), other.query("SELECT count(*) FROM t"));
            let status = status.unwrap_err();
            assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
            assert!(status.message().contains("the query has spilled 1.0 MiB, which is all it may"), "{status}");
            assert_eq!(count.unwrap().rows(), ["3"]);
            nothing_runs(&server).await;
            for _ in 0..500 {
                if server.running.engine().spilled() == 0 && files() == 2 {
                    return server;
                }
                tokio::time::sleep(std::time::Duration::from_millis(10)).await;
            }
            panic!("{} bytes and {} files are left", server.running.engine().spilled(), files());
        },
    );
    assert_eq!(files(), 0, "the process's own folder and its lock are gone too");
}
