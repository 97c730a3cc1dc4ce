//! HTTP for probes and operators: `/healthz` says that the process is alive, `/readyz` whether it takes
//! queries, `/status` what runs, waits and is held, as JSON. `POST /hot/preload/{table}`, `/hot/evict/{table}` and
//! `/hot/clear` fill and empty the cache of hot tables.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use axum::Router;
use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::{get, post};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use updraft_catalog::StoreFigures;
use updraft_engine::{CacheFigures, Engine, Error, ErrorKind};

/// Whether the server takes queries: false until it listens and from the moment it drains.
#[derive(Debug, Clone, Default)]
pub(crate) struct Ready(Arc<AtomicBool>);

impl Ready {
    pub(crate) fn set(&self, ready: bool) {
        self.0.store(ready, Ordering::Release);
    }

    fn get(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

/// The engine, once it is there.
#[derive(Debug, Clone, Default)]
pub(crate) struct Started(Arc<OnceLock<Arc<Engine>>>);

impl Started {
    pub(crate) fn set(&self, engine: &Arc<Engine>) {
        let _ = self.0.set(Arc::clone(engine));
    }
}

/// The running endpoint; it ends with this value.
#[derive(Debug)]
pub(crate) struct Admin {
    pub(crate) address: SocketAddr,
    stop: CancellationToken,
    task: JoinHandle<std::io::Result<()>>,
}

impl Admin {
    /// Answers on `listener` until [`Admin::stop`].
    pub(crate) fn start(listener: TcpListener, ready: Ready, started: Started) -> std::io::Result<Self> {
        let address = listener.local_addr()?;
        let stop = CancellationToken::new();
        let stopped = stop.clone().cancelled_owned();
        let task =
            tokio::spawn(
                async move { axum::serve(listener, router(ready, started)).with_graceful_shutdown(stopped).await },
            );
        Ok(Self { address, stop, task })
    }

    /// Stops answering. Connections that a probe keeps open are dropped: nothing on them is worth waiting for.
    pub(crate) fn stop(self) {
        self.stop.cancel();
        self.task.abort();
    }
}

fn router(ready: Ready, started: Started) -> Router {
    let probes =
        Router::new().route("/healthz", get(|| async { "ok\n" })).route("/readyz", get(readyz)).with_state(ready);
    let engine = Router::new()
        .route("/status", get(status))
        .route("/hot/preload/{table}", post(preload))
        .route("/hot/evict/{table}", post(evict))
        .route("/hot/clear", post(clear))
        .with_state(started);
    probes.merge(engine)
}

async fn preload(State(started): State<Started>, Path(table): Path<String>) -> impl IntoResponse {
    let Some(engine) = started.0.get() else { return not_started() };
    answer(engine.preload(&[table]).await.map(|()| {
        let bytes = engine.hot().map_or(0, |cache| cache.used());
        json!({ "used_bytes": bytes })
    }))
}

async fn evict(State(started): State<Started>, Path(table): Path<String>) -> impl IntoResponse {
    let Some(engine) = started.0.get() else { return not_started() };
    answer(engine.evict(&table).await.map(|bytes| json!({ "freed_bytes": bytes })))
}

async fn clear(State(started): State<Started>) -> impl IntoResponse {
    let Some(engine) = started.0.get() else { return not_started() };
    answer(Ok(json!({ "freed_bytes": engine.hot().map_or(0, |cache| cache.clear()) })))
}

type Answer = (StatusCode, [(header::HeaderName, &'static str); 1], String);

fn not_started() -> Answer {
    as_json(StatusCode::SERVICE_UNAVAILABLE, &json!({}))
}

fn answer(outcome: Result<Value, Error>) -> Answer {
    let error = match outcome {
        Ok(value) => return as_json(StatusCode::OK, &value),
        Err(error) => error,
    };
    let code = match error.kind() {
        ErrorKind::NotFound => StatusCode::NOT_FOUND,
        ErrorKind::Invalid | ErrorKind::Unsupported => StatusCode::BAD_REQUEST,
        ErrorKind::Exhausted => StatusCode::INSUFFICIENT_STORAGE,
        ErrorKind::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    };
    as_json(code, &json!({ "error": error.to_string() }))
}

fn as_json(code: StatusCode, value: &Value) -> Answer {
    (code, [(header::CONTENT_TYPE, "application/json")], value.to_string())
}

async fn status(State(started): State<Started>) -> impl IntoResponse {
    match started.0.get() {
        Some(engine) => {
            let status = json!({
                "running": engine.running(),
                "sending": engine.sending(),
                "queued": engine.queued(),
                "memory_limit_bytes": engine.memory_limit(),
                "memory_reserved_bytes": engine.memory_reserved(),
                "memory_uploaded_bytes": engine.memory_uploaded(),
                "memory_unaccounted_bytes": engine.memory_unaccounted(),
                "memory_pressure": engine.memory_pressure(),
                "spilled_bytes": engine.spilled(),
                "planned": planned(engine),
                "plan_cache": cache(engine.plan_cache()),
                "result_cache": cache(engine.result_cache()),
                "stores": stores(engine),
                "metadata_cache": engine.metadata(),
                "hot": engine.hot().map(|cache| cache.statistics()),
            });
            as_json(StatusCode::OK, &status)
        }
        None => not_started(),
    }
}

fn stores(engine: &Engine) -> Vec<Value> {
    let one = |(url, figures): (String, StoreFigures)| {
        let StoreFigures { reads, bytes, sent_twice } = figures;
        json!({ "url": url, "reads": reads, "bytes": bytes, "sent_twice": sent_twice })
    };
    engine.stores().into_iter().map(one).collect()
}

/// Queries that wait for their client to fetch them.
fn planned(engine: &Engine) -> Value {
    let (entries, bytes) = engine.planned();
    json!({ "entries": entries, "bytes": bytes })
}

fn cache(figures: CacheFigures) -> Value {
    let CacheFigures { entries, bytes, hits, misses } = figures;
    json!({ "entries": entries, "bytes": bytes, "hits": hits, "misses": misses })
}

async fn readyz(State(ready): State<Ready>) -> (StatusCode, &'static str) {
    match ready.get() {
        true => (StatusCode::OK, "ready\n"),
        false => (StatusCode::SERVICE_UNAVAILABLE, "not ready: starting or draining\n"),
    }
}

#[cfg(test)]
mod tests {
    use super::{Admin, Ready, Started};
    use std::net::SocketAddr;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    async fn status(address: SocketAddr, path: &str) -> String {
        let mut stream = tokio::net::TcpStream::connect(address).await.expect("a connection");
        let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.expect("the request sent");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("an answer");
        answer.split(' ').nth(1).unwrap_or_default().to_owned()
    }

    #[tokio::test]
    async fn ready_follows_the_server_and_alive_does_not() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let ready = Ready::default();
        let admin = Admin::start(listener, ready.clone(), Started::default()).expect("a running endpoint");
        for (serving, expected) in [(false, "503"), (true, "200"), (false, "503")] {
            ready.set(serving);
            assert_eq!(status(admin.address, "/readyz").await, expected);
            assert_eq!(status(admin.address, "/healthz").await, "200");
        }
        assert_eq!(status(admin.address, "/status").await, "503", "the engine has not started");
        assert_eq!(status(admin.address, "/metrics").await, "404");
        admin.stop();
    }
}
