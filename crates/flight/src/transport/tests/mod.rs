//! The transport from the outside: well-behaved clients (`h2`), rude ones (raw frames), TLS.
#![allow(clippy::unwrap_used)]

mod limits;
mod rude;
mod stalled;
mod stop;
mod tls;

use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use h2::client::SendRequest;
use http_body_util::BodyExt;
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tonic::body::Body;
use tower::service_fn;

use super::{Connection, Drained, Limits, Patience, Stop, Tls, TlsReloader, bind, serve};

/// Long enough for anything that should happen, on a busy machine.
const SOON: Duration = Duration::from_secs(10);

/// A server whose answers depend on the path: `/` and `/stuck` never answer, `/wait` answers when told, `/endless`
/// streams for ever, `/read` reads what comes with the call, anything else answers with the peer's certificate names.
struct Server {
    address: SocketAddr,
    stop: Stop,
    go: Arc<Notify>,
    /// Calls that run or stream.
    open: Arc<AtomicUsize>,
    /// Chunks of 64 KiB that `/endless` has made.
    chunks: Arc<AtomicUsize>,
    /// Answers of `/endless` of which something is in memory.
    held: Arc<AtomicUsize>,
    served: JoinHandle<Drained>,
}

struct Open(Arc<AtomicUsize>);

impl Open {
    fn new(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::SeqCst);
        Self(Arc::clone(count))
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

type Answer = Pin<Box<dyn Future<Output = Result<http::Response<Body>, Infallible>> + Send>>;

fn start(limits: Limits, tls: Option<&Tls>) -> Server {
    start_with(limits, Patience(Duration::ZERO), tls)
}

fn start_with(limits: Limits, patience: Patience, tls: Option<&Tls>) -> Server {
    assert_eq!(limits.problems(), []);
    let listener = bind("127.0.0.1:0".parse().unwrap(), false, false, None).unwrap();
    let address = listener.local_addr().unwrap();
    let (stop, go, open) = (Stop::new(), Arc::new(Notify::new()), Arc::new(AtomicUsize::new(0)));
    let chunks = Arc::new(AtomicUsize::new(0));
    let held = Arc::new(AtomicUsize::new(0));
    let holding = Arc::clone(&held);
    let (go_on, opened, made) = (Arc::clone(&go), Arc::clone(&open), Arc::clone(&chunks));
    let service = service_fn(move |request: http::Request<Body>| -> Answer {
        let (go, running, made) = (Arc::clone(&go_on), Open::new(&opened), Arc::clone(&made));
        let holding = Arc::clone(&holding);
        Box::pin(async move {
            let connection = request.extensions().get::<Connection>().unwrap().clone();
            let body = match request.uri().path() {
                "/" | "/stuck" => std::future::pending().await,
                "/wait" => {
                    go.notified().await;
                    Body::new(text("done"))
                }
                "/endless" => endless(running, made, &holding),
                "/read" => {
                    let read = request.into_body().collect().await;
                    Body::new(text(&read.map_or_else(|status| status.code().to_string(), |_| "read".to_owned())))
                }
                _ => Body::new(text(&connection.certificate.join(","))),
            };
            Ok(http::Response::new(body))
        })
    });
    let tls = tls.map(|tls| TlsReloader::new(tls).unwrap());
    let served = tokio::spawn(serve(listener, tls, limits, patience, service, stop.clone()));
    Server { address, stop, go, open, chunks, held, served }
}

fn text(text: &str) -> impl http_body::Body<Data = Bytes, Error = tonic::Status> + Send + use<> {
    http_body_util::Full::new(Bytes::from(text.to_owned())).map_err(|never| match never {})
}

struct Chunk {
    bytes: Vec<u8>,
    _open: Open,
}

impl AsRef<[u8]> for Chunk {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

fn endless(running: Open, made: Arc<AtomicUsize>, held: &Arc<AtomicUsize>) -> Body {
    let chunk = Bytes::from_owner(Chunk { bytes: vec![0; 64 * 1024], _open: Open::new(held) });
    let frames = futures::stream::unfold(running, move |running| {
        let chunk = chunk.clone();
        made.fetch_add(1, Ordering::SeqCst);
        async move { Some((Ok::<_, tonic::Status>(http_body::Frame::data(chunk)), running)) }
    });
    Body::new(http_body_util::StreamBody::new(frames))
}

impl Server {
    async fn tcp(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    async fn client(&self) -> Client {
        Client::new(self.tcp().await).await
    }

    /// Waits until that many calls are open.
    async fn opened(&self, calls: usize) {
        let open = async {
            while self.open.load(Ordering::SeqCst) != calls {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let seen = || self.open.load(Ordering::SeqCst);
        tokio::time::timeout(SOON, open).await.unwrap_or_else(|_| panic!("{} calls, expected {calls}", seen()));
    }

    /// The end of serving, after `stop` was used.
    async fn end(self) -> Drained {
        tokio::time::timeout(SOON, self.served).await.expect("serve ends").unwrap()
    }
}

/// A well-behaved client.
struct Client {
    requests: SendRequest<Bytes>,
    /// Ends when the connection does.
    connection: JoinHandle<Result<(), h2::Error>>,
}

impl Client {
    async fn new<I>(io: I) -> Self
    where
        I: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
    {
        let (requests, connection) = h2::client::handshake(io).await.unwrap();
        Self { requests, connection: tokio::spawn(connection) }
    }

    /// Sends a request without a body; the answer is still to come.
    async fn send(&mut self, request: http::Request<()>) -> Result<h2::client::ResponseFuture, h2::Error> {
        let mut ready = self.requests.clone().ready().await?;
        Ok(ready.send_request(request, true)?.0)
    }

    async fn get(&mut self, path: &str) -> Result<(http::StatusCode, String), h2::Error> {
        let response = self.send(get(path)).await?.await?;
        let status = response.status();
        let mut body = response.into_body();
        let mut text = Vec::new();
        while let Some(data) = body.data().await {
            text.extend_from_slice(&data?);
        }
        Ok((status, String::from_utf8(text).unwrap()))
    }
}

fn get(path: &str) -> http::Request<()> {
    http::Request::get(format!("http://updraft.test{path}")).body(()).unwrap()
}
