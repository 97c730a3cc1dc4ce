//! Stores over HTTP: a small server on loopback that answers as told.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::*;
use crate::{StoreConfig, TableConfig};

/// What is served: bodies by path, and how.
#[derive(Default)]
struct Server {
    files: Mutex<BTreeMap<String, Vec<u8>>>,
    /// Tag of all files, if the server knows tags.
    etag: Mutex<Option<String>>,
    /// Answer everything with this status and body instead.
    status: Mutex<Option<(u16, String)>>,
    requests: AtomicUsize,
}

impl Server {
    async fn start(self) -> (Arc<Self>, String) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let server = Arc::new(self);
        let shared = server.clone();
        tokio::spawn(async move {
            while let Ok((mut socket, _)) = listener.accept().await {
                let server = shared.clone();
                tokio::spawn(async move {
                    let mut request = Vec::new();
                    let mut buffer = [0; 4096];
                    while !request.windows(4).any(|w| w == b"\r\n\r\n") {
                        match socket.read(&mut buffer).await {
                            Ok(n) if n > 0 => request.extend_from_slice(&buffer[..n]),
                            _ => return,
                        }
                    }
                    let answer = server.answer(&String::from_utf8_lossy(&request));
                    let _ = socket.write_all(&answer).await;
                });
            }
        });
        (server, address)
    }

    fn answer(&self, request: &str) -> Vec<u8> {
        self.requests.fetch_add(1, Ordering::Relaxed);
        let mut first = request.split_whitespace();
        let (method, target) = (first.next().unwrap_or_default(), first.next().unwrap_or_default());
        let header = |name: &str| {
            let mut lines = request.lines().filter_map(|line| line.split_once(": "));
            lines.find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim().to_owned())
        };
        if let Some((status, body)) = self.status.lock().clone() {
            return reply(status, "", body.as_bytes(), true);
        }
        let path = target.split('?').next().unwrap_or_default();
        let files = self.files.lock();
        let Some(body) = files.get(path) else { return reply(404, "", b"no such file", method == "GET") };
        let etag = self.etag.lock().clone();
        if header("if-match").is_some_and(|wanted| Some(&wanted) != etag.as_ref()) {
            return reply(412, "", b"", true);
        }
        let tag = etag.map_or(String::new(), |etag| format!("ETag: {etag}\r\n"));
        let range = header("range").and_then(|range| {
            let (start, end) = range.strip_prefix("bytes=")?.split_once('-')?;
            if start.is_empty() {
                return Some((body.len().saturating_sub(end.parse().ok()?), body.len()));
            }
            Some((start.parse().ok()?, end.parse::<usize>().map_or(body.len(), |end| (end + 1).min(body.len()))))
        });
        match range {
            Some((start, end)) => {
                let range = format!("{tag}Content-Range: bytes {start}-{}/{}\r\n", end.max(1) - 1, body.len());
                reply(206, &range, &body[start..end], method == "GET")
            }
            None => reply(200, &tag, body, method == "GET"),
        }
    }
}

fn reply(status: u16, headers: &str, body: &[u8], with_body: bool) -> Vec<u8> {
    let head = format!("HTTP/1.1 {status} X\r\n{headers}Content-Length: {}\r\nConnection: close\r\n\r\n", body.len());
    let mut reply = head.into_bytes();
    if with_body {
        reply.extend_from_slice(body);
    }
    reply
}

#[tokio::test]
async fn files_of_a_web_server_with_and_without_tags() {
    for tag in [None, Some("\"v1\""), Some("W/\"v1\"")] {
        let (server, address) = Server::default().start().await;
        let batch = datafusion::arrow::array::record_batch!(("a", Int64, [1, 2])).unwrap();
        server.files.lock().insert("/d/1.parquet".into(), parquet_bytes(&batch, 10));
        server.files.lock().insert("/d/2.parquet".into(), parquet_bytes(&batch, 10));
        server.files.lock().insert("/c.csv".into(), b"a\n5\n".to_vec());
        *server.etag.lock() = tag.map(str::to_owned);
        let both = TableConfig {
            location: vec![format!("{address}/d/1.parquet"), format!("{address}/d/2.parquet")],
            ..TableConfig::default()
        };
        let config = Config {
            data: vec![format!("{address}/c.csv")],
            tables: [("both".to_owned(), both)].into(),
            ..Config::default()
        };
        let catalog = Catalog::open(config, Handle::current()).await.unwrap();
        assert_eq!(answer(&catalog, "SELECT sum(a), count(a) FROM both WHERE a > 0").await, ["6 4"], "{tag:?}");
        assert_eq!(answer(&catalog, "SELECT a FROM c").await, ["5"], "{tag:?}");
        // Replaced after the plan was made.
        let ctx = prepared(&catalog, session(&catalog), "SELECT a FROM c").await.unwrap();
        let frame = ctx.sql("SELECT a FROM c").await.unwrap();
        server.files.lock().insert("/c.csv".into(), b"a\n66\n".to_vec());
        *server.etag.lock() = tag.map(|tag| tag.replace("v1", "v2"));
        let error = frame.collect().await.expect_err("changed");
        assert_eq!(find(&error), Some(ErrorKind::Changed), "{tag:?}: {error}");
        assert_eq!(answer(&catalog, "SELECT a FROM c").await, ["66"], "{tag:?}");
        server.files.lock().remove("/c.csv");
        let (kind, text) = failure(&catalog, "SELECT a FROM c").await;
        assert_eq!(kind, Some(ErrorKind::NotFound), "{text}");
    }
}

#[tokio::test]
async fn footers_of_a_table_that_changed_are_on_their_way_before_it_is_resolved() {
    let (server, address) = Server::default().start().await;
    let file = |values: i64| {
        let batch = datafusion::arrow::array::record_batch!(("a", Int64, [values, 2])).unwrap();
        server.files.lock().insert("/d/1.parquet".into(), parquet_bytes(&batch, 10));
        *server.etag.lock() = Some(format!("\"v{values}\""));
    };
    file(1);
    let table = TableConfig { location: vec![format!("{address}/d/1.parquet")], ..TableConfig::default() };
    let config = Config { tables: [("t".to_owned(), table)].into(), ..Config::default() };
    let catalog = Catalog::open(config, Handle::current()).await.unwrap();
    let first = snapshot(&catalog, "t").await.unwrap();
    let asked = || server.requests.load(Ordering::Relaxed);
    let before = asked();
    let version = async || catalog.versions(&[name("public", "t")]).await.unwrap()[0];
    assert_eq!(version().await, Some(Version::Table(first.id())));
    assert_eq!(asked(), before + 1, "nothing has changed");
    file(7);
    let changed = version().await;
    let mut waited = 0;
    while asked() < before + 3 {
        waited += 1;
        assert!(waited < 500, "the footer is not asked for");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let second = snapshot(&catalog, "t").await.unwrap();
    assert_eq!((changed, asked()), (Some(Version::Table(second.id())), before + 4), "its footer is read once");
    assert_eq!(answer(&catalog, "SELECT a FROM t").await, ["7", "2"]);
}

fn bucket(address: &str) -> Config {
    let store = StoreConfig {
        url: "s3://bucket".into(),
        endpoint: Some(address.to_owned()),
        allow_http: true,
        access_key_id: Some("id".into()),
        secret_access_key: Some("canary-secret".into()),
        session_token: Some("canary-token".into()),
        retries: 1,
        retry_timeout: Duration::from_secs(2),
        ..StoreConfig::default()
    };
    let data = vec!["s3://bucket/data".to_owned()];
    Config { data, stores: [("mine".to_owned(), store)].into(), ..Config::default() }
}

#[tokio::test]
async fn what_an_object_store_says_becomes_a_kind() {
    let xml = |code: &str| format!("<Error><Code>{code}</Code><Message>m</Message></Error>");
    for (status, code, expected, part) in [
        (403, "InvalidAccessKeyId", ErrorKind::Denied, "s3://bucket/data"),
        (404, "NoSuchBucket", ErrorKind::NotFound, "s3://bucket/data"),
        (503, "SlowDown", ErrorKind::Unavailable, "s3://bucket/data"),
    ] {
        let (server, address) = Server::default().start().await;
        *server.status.lock() = Some((status, xml(code)));
        let errors = Catalog::open(bucket(&address), Handle::current()).await.unwrap_err();
        assert_eq!(errors.len(), 1);
        let text = errors[0].to_string();
        assert_eq!(errors[0].kind(), expected, "{status}: {text}");
        assert!(text.contains(part) && !text.contains("canary"), "{text}");
    }
}

#[tokio::test]
async fn a_dead_store_is_reported_soon() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let start = Instant::now();
    let errors = Catalog::open(bucket(&address), Handle::current()).await.unwrap_err();
    assert_eq!(errors[0].kind(), ErrorKind::Unavailable, "{}", errors[0]);
    assert!(start.elapsed() < Duration::from_secs(20));
}

#[tokio::test]
async fn secrets_are_not_printed() {
    let config = bucket("http://127.0.0.1:1");
    let printed = format!("{config:?}");
    assert!(!printed.contains("canary") && printed.contains("REDACTED"), "{printed}");
}
