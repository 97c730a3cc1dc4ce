use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep_until, timeout_at};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tonic::body::Body;
use tower::Service;
use tracing::debug;

use super::arrival::Arriving;
use super::body::Joined;
use super::calls::{Begun, WithCalls};
use super::certificate;
use super::config::Limits;
use super::io::{Counted, Traffic};
use super::sent::{Answers, LOOK, Patience};
use super::serve::no_delay;
use super::tls::error_chain;

/// The client's preface (24 bytes) and the header of its first SETTINGS frame (9 bytes). Fewer mean that the HTTP/2
/// handshake is not over; hyper itself checks what they say.
const PREFACE_BYTES: u64 = 33;
/// How long a connection that was asked to go away, has no calls and moves no bytes is still waited for. A client that
/// answers the farewell is gone in one round trip; one that does not would hold up the shutdown for ever.
const FAREWELL_WAIT: Duration = Duration::from_secs(1);
/// How often such a connection is looked at.
const FAREWELL_LOOK: Duration = Duration::from_millis(100);
/// How long a client may take nothing of its answers when the server ends: other clients wait for that elsewhere.
const FAREWELL_PATIENCE: Duration = Duration::from_secs(5);
/// A moment that never comes.
const NEVER: Duration = Duration::from_secs(30 * 365 * 24 * 3600);

/// The connection that a request came over; in the extensions of each request.
#[derive(Debug, Clone)]
pub(crate) struct Connection {
    /// Number of the connection since the server started, from 1.
    pub(crate) id: u64,
    /// The other end.
    pub(crate) peer: SocketAddr,
    /// The names in the verified client certificate; empty without one.
    pub(crate) certificate: Arc<[String]>,
}

/// What one connection needs besides its socket.
pub(super) struct Connecting {
    pub(super) id: u64,
    pub(super) peer: SocketAddr,
    pub(super) tls: Option<TlsAcceptor>,
    pub(super) limits: Arc<Limits>,
    pub(super) patience: Patience,
    /// Clients that take nothing are not waited for as long as else.
    pub(super) draining: CancellationToken,
    pub(super) graceful: CancellationToken,
}

/// Serves one connection until either side ends it. Dropping the future ends its calls too.
pub(super) async fn serve<S>(stream: TcpStream, connecting: Connecting, service: S)
where
    S: Service<http::Request<Body>, Response = http::Response<Body>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
{
    no_delay(&stream);
    let start = Instant::now();
    let deadline = start + connecting.limits.handshake_timeout;
    let Some(tls) = &connecting.tls else {
        return serve_http(stream, Arc::from([]), start, connecting, service).await;
    };
    let accepted = tokio::select! {
        accepted = timeout_at(deadline, tls.accept(stream)) => accepted,
        () = connecting.graceful.cancelled() => return,
    };
    match accepted {
        Ok(Ok(stream)) => {
            let certificate = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
            let names = certificate.map(certificate::names).unwrap_or_default();
            serve_http(stream, names.into(), start, connecting, service).await;
        }
        Ok(Err(error)) => debug!(%error, "TLS handshake failed"),
        Err(_) => debug!("TLS handshake took too long"),
    }
}

async fn serve_http<I, S>(io: I, certificate: Arc<[String]>, start: Instant, connecting: Connecting, service: S)
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    S: Service<http::Request<Body>, Response = http::Response<Body>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
{
    let Connecting { id, peer, limits, patience, draining, graceful, .. } = connecting;
    let (io, traffic) = Counted::new(io);
    let (begun, answers) = (Begun::default(), Answers::default());
    let service = PerConnection {
        service,
        connection: Connection { id, peer, certificate },
        request_timeout: limits.request_timeout,
        send_buffer_max: bytes(limits.max_send_buffer) as usize,
        begun: begun.clone(),
        answers: answers.clone(),
    };
    let connection = http(&limits, begun.clone()).serve_connection(TokioIo::new(io), service);
    let mut served = WithCalls::new(connection, begun);
    let first_request = limits.first_request_timeout;
    let age = limits.max_connection_age.unwrap_or(NEVER);
    let mut phase = Phase::Handshake { until: start + limits.handshake_timeout };
    let mut looks = Looks { answers, patience, most: None, next: start + patience.look_every() };
    loop {
        let drains = looks.most.is_some();
        let asked = if drains { &graceful } else { &draining };
        tokio::select! {
            result = &mut served => {
                match result {
                    Ok(()) => debug!("connection closed"),
                    Err(error) => debug!(error = %error_chain(&error), "connection failed"),
                }
                return;
            }
            () = asked.cancelled(), if !drains => looks.hurry(),
            () = asked.cancelled(), if drains && !phase.is_farewell() => {
                if traffic.read() < PREFACE_BYTES {
                    return;
                }
                served.connection().graceful_shutdown();
                phase = Phase::farewell(&traffic);
            }
            () = sleep_until(looks.next) => {
                if looks.look() {
                    debug!("connection cut: the client takes nothing of its answers");
                    return;
                }
            }
            () = sleep_until(phase.wake()) => match phase {
                Phase::Handshake { .. } if traffic.read() < PREFACE_BYTES => {
                    debug!("HTTP/2 handshake took too long");
                    return;
                }
                Phase::Handshake { .. } => phase = Phase::FirstRequest { until: start + first_request.min(age) },
                Phase::FirstRequest { .. } if served.had_calls() => phase = Phase::Serving { until: start + age },
                Phase::FirstRequest { .. } | Phase::Serving { .. } => {
                    served.connection().graceful_shutdown();
                    phase = Phase::farewell(&traffic);
                }
                Phase::Farewell { total, since, .. } => {
                    // What is on its way to a client that pauses belongs to a call that has ended here.
                    let quiet = !served.has_calls() && !looks.answers.any_held() && traffic.total() == total;
                    if quiet && since.elapsed() >= FAREWELL_WAIT {
                        debug!("connection cut: the client did not answer the farewell");
                        return;
                    }
                    phase = if quiet { Phase::still_farewell(total, since) } else { Phase::farewell(&traffic) };
                }
            },
        }
    }
}

/// When to look at what clients take of their answers.
struct Looks {
    answers: Answers,
    patience: Patience,
    /// The patience is no more than that.
    most: Option<Duration>,
    next: Instant,
}

impl Looks {
    /// The server ends.
    fn hurry(&mut self) {
        (self.most, self.next) = (Some(FAREWELL_PATIENCE), Instant::now());
    }

    /// Whether the connection is stuck.
    fn look(&mut self) -> bool {
        let every = if self.most.is_some() { LOOK } else { self.patience.look_every() };
        self.next = Instant::now() + every;
        self.answers.look(self.patience, self.most)
    }
}

/// Where a connection is, and when to look at it again.
#[derive(Clone, Copy)]
enum Phase {
    Handshake {
        until: Instant,
    },
    FirstRequest {
        until: Instant,
    },
    Serving {
        until: Instant,
    },
    /// Asked to go away. `total` bytes had moved when it was last not quiet, at `since`.
    Farewell {
        total: u64,
        since: Instant,
        look: Instant,
    },
}

impl Phase {
    fn farewell(traffic: &Traffic) -> Self {
        Self::still_farewell(traffic.total(), Instant::now())
    }

    fn still_farewell(total: u64, since: Instant) -> Self {
        Self::Farewell { total, since, look: Instant::now() + FAREWELL_LOOK }
    }

    fn is_farewell(&self) -> bool {
        matches!(self, Self::Farewell { .. })
    }

    fn wake(&self) -> Instant {
        match self {
            Self::Handshake { until } | Self::FirstRequest { until } | Self::Serving { until } => *until,
            Self::Farewell { look, .. } => *look,
        }
    }
}

/// The config's check keeps all sizes inside u32.
fn bytes(size: bytesize::ByteSize) -> u32 {
    u32::try_from(size.as_u64()).unwrap_or(u32::MAX >> 1)
}

fn http(limits: &Limits, calls: Begun) -> http2::Builder<Begun> {
    let mut builder = http2::Builder::new(calls);
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(limits.max_concurrent_streams)
        .max_local_error_reset_streams(limits.max_local_error_reset_streams)
        .max_pending_accept_reset_streams(limits.max_pending_accept_reset_streams)
        .max_header_list_size(bytes(limits.max_header_list_size))
        .initial_stream_window_size(bytes(limits.stream_window))
        .initial_connection_window_size(bytes(limits.connection_window))
        .max_frame_size(bytes(limits.max_frame_size))
        .max_send_buf_size(bytes(limits.max_send_buffer) as usize)
        .keep_alive_timeout(limits.keepalive_timeout);
    if !limits.keepalive_interval.is_zero() {
        builder.keep_alive_interval(limits.keepalive_interval);
    }
    builder
}

/// The service as hyper wants it, which tells each request where it came from.
struct PerConnection<S> {
    service: S,
    connection: Connection,
    request_timeout: Duration,
    /// What HTTP/2 is to have of an answer, in bytes.
    send_buffer_max: usize,
    begun: Begun,
    answers: Answers,
}

impl<S> hyper::service::Service<http::Request<Incoming>> for PerConnection<S>
where
    S: Service<http::Request<Body>, Response = http::Response<Body>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
{
    type Response = http::Response<Joined>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn call(&self, request: http::Request<Incoming>) -> Self::Future {
        let mut request = request.map(|body| Body::new(Arriving::new(body, self.request_timeout)));
        request.extensions_mut().insert(self.connection.clone());
        let mut service = self.service.clone();
        let (sent, ended_by) = self.answers.begin();
        self.begun.next(ended_by);
        let send_buffer_max = self.send_buffer_max;
        Box::pin(async move {
            std::future::poll_fn(|cx| service.poll_ready(cx)).await?;
            let response = service.call(request).await?;
            if let Some(patience) = response.extensions().get::<Patience>() {
                sent.bears(*patience);
            }
            Ok(response.map(|body| Joined::new(body, sent, send_buffer_max)))
        })
    }
}
