//! The server at the gRPC level, in this process: each command, its errors, and what a client leaves behind.
#![allow(clippy::unwrap_used)]

#[path = "../support/mod.rs"]
mod support;

mod client;
mod commands;
mod ends;
mod errors;
mod fuzz;
mod limits;
mod memory;
mod prepared;
mod results;
mod sessions;
mod spills;
mod tickets;

use std::time::Duration;

use support::{Server, data};
use tempfile::TempDir;
use updraft_server::Config;

/// Makes rows for much longer than any test runs.
const LONG: &str = "SELECT a.value * b.value AS v FROM generate_series(1, 1000000) AS a \
    CROSS JOIN generate_series(1, 1000000) AS b";

/// Works for much longer than any test runs before it has a row.
const SILENT: &str = "SELECT sum(a.value * b.value) AS v FROM generate_series(1, 1000000) AS a \
    CROSS JOIN generate_series(1, 1000000) AS b";

/// Two small tables: `t` (id, name) and `dated` (a decimal, a date, a dictionary).
fn folder() -> TempDir {
    use datafusion::arrow::datatypes::DataType;
    let dir = tempfile::tempdir().unwrap();
    data::parquet(
        &dir.path().join("t.parquet"),
        &data::table(&[("id", DataType::Int64, "1 2 3"), ("name", DataType::Utf8, "a - c")]),
    );
    let dictionary = DataType::Dictionary(Box::new(DataType::Int32), Box::new(DataType::Utf8));
    data::parquet(
        &dir.path().join("dated.parquet"),
        &data::table(&[
            ("price", DataType::Decimal128(12, 2), "1.50 -"),
            ("day", DataType::Date32, "2024-02-29 -"),
            ("kind", dictionary, "x y"),
            ("word", DataType::Utf8View, "v w"),
        ]),
    );
    dir
}

/// Runs `test` against a server on [`folder`], with `change` made to its settings, and looks that nothing is left.
fn with_server<F: Future<Output = Server>>(change: impl FnOnce(&mut Config), test: impl FnOnce(Server) -> F) {
    support::run(async {
        let server = Server::start(folder(), |config| {
            config.catalog.views.insert("v".to_owned(), "SELECT id * 2 AS twice, name FROM t".to_owned());
            change(config);
        })
        .await;
        let server = test(server).await;
        nothing_runs(&server).await;
        server.running.stop().await.unwrap();
    });
}

/// No change to the settings.
fn as_it_is(_: &mut Config) {}

/// Waits, for a short time, until no query runs and no memory is taken but for what statements that are open have bound.
async fn nothing_runs(server: &Server) {
    let engine = server.running.engine();
    for _ in 0..500 {
        if engine.running() == 0 && engine.memory_reserved() as u64 == engine.memory_uploaded() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("{} queries run and {} bytes are taken", engine.running(), engine.memory_reserved());
}

/// How many files and folders are below `folder`.
fn entries(folder: &std::path::Path) -> usize {
    let Ok(entries_here) = std::fs::read_dir(folder) else { return 0 };
    entries_here.map(|entry| 1 + entries(&entry.unwrap().path())).sum()
}
