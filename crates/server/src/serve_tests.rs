use std::path::Path;

use datafusion::arrow::array::{ArrayRef, Int64Array, RecordBatch};
use datafusion::parquet::arrow::ArrowWriter;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;

/// A folder with a Parquet table `t` of 1000 numbers, and a CSV table `c`.
fn data() -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a folder");
    let numbers: ArrayRef = Arc::new(Int64Array::from_iter_values(0..1000));
    let batch = RecordBatch::try_from_iter([("a", numbers)]).expect("a batch");
    let mut bytes = Vec::new();
    let mut writer = ArrowWriter::try_new(&mut bytes, batch.schema(), None).expect("a writer");
    writer.write(&batch).expect("written");
    writer.close().expect("a footer");
    std::fs::write(dir.path().join("t.parquet"), bytes).expect("a file");
    std::fs::write(dir.path().join("c.csv"), "a\n1\n").expect("a file");
    dir
}

fn config(data: &Path, memory: ByteSize, preload: &[&str]) -> Config {
    let mut config = Config::default();
    config.server.listen = SocketAddr::from(([127, 0, 0, 1], 0));
    config.catalog.data = vec![data.to_str().expect("a plain path").to_owned()];
    config.engine.memory_limit = Some(ByteSize::mib(256));
    config.engine.memory_guard = false;
    config.hot.memory_limit = Some(memory);
    config.hot.preload = preload.iter().map(|name| (*name).to_owned()).collect();
    config
}

async fn ask(server: &Running, request: &str) -> (u16, Value) {
    let address = server.admin_address.expect("an endpoint");
    let mut stream = tokio::net::TcpStream::connect(address).await.expect("a connection");
    let request = format!("{request} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.expect("the request sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("an answer");
    let code = answer.split(' ').nth(1).and_then(|code| code.parse().ok()).expect("a status");
    let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    (code, serde_json::from_str(body).unwrap_or_default())
}

#[tokio::test(flavor = "multi_thread")]
async fn hot_tables_are_loaded_shown_and_let_go_of() {
    let data = data();
    let server = start(config(data.path(), ByteSize::mib(1), &["t"])).await.expect("a server");
    let status = ask(&server, "GET /status").await.1;
    let table = &status["hot"]["tables"]["public.t"];
    assert_eq!((&table["columns"], &table["loads"]), (&1.into(), &1.into()), "{status}");
    let footers = &status["metadata_cache"]["footers"];
    assert!(
        footers["entries"] == 1 && footers["used_bytes"].as_u64() > Some(0) && footers["hits"].as_u64() > Some(0),
        "{status}"
    );
    assert_eq!(ask(&server, "POST /hot/evict/public.t").await.0, 200);
    assert_eq!(ask(&server, "GET /status").await.1["hot"]["used_bytes"], 0);
    assert_eq!(ask(&server, "POST /hot/preload/t").await.0, 200);
    let cleared = ask(&server, "POST /hot/clear").await;
    assert!(cleared.1["freed_bytes"].as_u64() > Some(8000), "{cleared:?}");
    for (table, code, says) in [("missing", 404, "does not exist"), ("c", 400, "not Parquet")] {
        for what in ["preload", "evict"] {
            let (got, body) = ask(&server, &format!("POST /hot/{what}/{table}")).await;
            assert!(got == code && body["error"].to_string().contains(says), "{what}: {got} {body}");
        }
    }
    assert_eq!(ask(&server, "GET /hot/clear").await.0, 405, "looking changes nothing");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_preload_that_is_not_possible_is_an_error_at_start() {
    let data = data();
    let cases: [(ByteSize, &[&str], &[&str]); 3] = [
        (ByteSize::mib(1), &["t", "missing"], &["table \"missing\" does not exist"]),
        (ByteSize::kib(4), &["t"], &["\"public.t\" needs about 8.9 KiB", "4.0 KiB are there", "hot.memory_limit"]),
        (ByteSize::mib(1), &["c"], &["\"c\" is not Parquet"]),
    ];
    for (memory, preload, says) in cases {
        let Err(error) = start(config(data.path(), memory, preload)).await else { panic!("{preload:?} was loaded") };
        for says in says {
            assert!(error.to_string().starts_with("hot.preload: ") && error.to_string().contains(says), "{error}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_cache_nothing_is_kept() {
    let data = data();
    let server = start(config(data.path(), ByteSize(0), &[])).await.expect("a server");
    assert!(ask(&server, "GET /status").await.1["hot"].is_null());
    let (code, body) = ask(&server, "POST /hot/preload/t").await;
    assert!(code == 400 && body["error"].to_string().contains("hot.memory_limit"), "{code} {body}");
}
