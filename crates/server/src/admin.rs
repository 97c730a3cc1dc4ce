//! HTTP for probes: `/healthz` says that the process is alive, `/readyz` whether it takes queries.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

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

/// The running endpoint; it ends with this value.
#[derive(Debug)]
pub(crate) struct Admin {
    pub(crate) address: SocketAddr,
    stop: CancellationToken,
    task: JoinHandle<std::io::Result<()>>,
}

impl Admin {
    /// Answers on `listener` until [`Admin::stop`].
    pub(crate) fn start(listener: TcpListener, ready: Ready) -> std::io::Result<Self> {
        let address = listener.local_addr()?;
        let stop = CancellationToken::new();
        let stopped = stop.clone().cancelled_owned();
        let task =
            tokio::spawn(async move { axum::serve(listener, router(ready)).with_graceful_shutdown(stopped).await });
        Ok(Self { address, stop, task })
    }

    /// Stops answering. Connections that a probe keeps open are dropped: nothing on them is worth waiting for.
    pub(crate) fn stop(self) {
        self.stop.cancel();
        self.task.abort();
    }
}

fn router(ready: Ready) -> Router {
    Router::new().route("/healthz", get(|| async { "ok\n" })).route("/readyz", get(readyz)).with_state(ready)
}

async fn readyz(State(ready): State<Ready>) -> (StatusCode, &'static str) {
    match ready.get() {
        true => (StatusCode::OK, "ready\n"),
        false => (StatusCode::SERVICE_UNAVAILABLE, "not ready: starting or draining\n"),
    }
}

#[cfg(test)]
mod tests {
    use super::{Admin, Ready};
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
        let admin = Admin::start(listener, ready.clone()).expect("a running endpoint");
        for (serving, expected) in [(false, "503"), (true, "200"), (false, "503")] {
            ready.set(serving);
            assert_eq!(status(admin.address, "/readyz").await, expected);
            assert_eq!(status(admin.address, "/healthz").await, "200");
        }
        assert_eq!(status(admin.address, "/metrics").await, "404");
        admin.stop();
    }
}
