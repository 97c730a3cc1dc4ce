use std::collections::HashMap;
use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tonic::body::Body;
use tower::Service;
use tracing::{Instrument, debug, info_span, warn};

use super::config::{Limits, exposure_problem};
use super::connection::{self, Connecting};
use super::sent::Patience;
use super::tls::TlsReloader;

/// Connections that the kernel keeps until they are accepted. The kernel may have a lower limit of its own.
const BACKLOG: u32 = 1024;
/// How long to wait after accepting failed for want of file handles or memory: nothing but closing others helps.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(100);
/// How long a hard stop waits for tasks to notice. Only code that never yields takes longer.
const ABORT_WAIT: Duration = Duration::from_secs(1);
/// Least time between two log lines about refused connections.
const REFUSED_LOG_INTERVAL: Duration = Duration::from_secs(1);

/// How a server is told to end, step by step. Clones are the same signal.
#[derive(Debug, Clone)]
pub struct Stop {
    /// Refuse new queries while connections stay open, so that clients hear why. Given with `graceful`.
    pub draining: CancellationToken,
    /// Accept nothing new, ask all connections to go away, wait for calls that run.
    pub graceful: CancellationToken,
    /// End everything at once.
    pub hard: CancellationToken,
}

impl Stop {
    /// A signal that nobody has given yet.
    pub fn new() -> Self {
        let graceful = CancellationToken::new();
        Self { draining: graceful.child_token(), graceful, hard: CancellationToken::new() }
    }
}

impl Default for Stop {
    fn default() -> Self {
        Self::new()
    }
}

/// How serving ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Drained {
    /// Connections that were still open at the hard stop and were cut.
    pub aborted: usize,
}

/// Why the server cannot listen.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// The config does not allow it.
    #[error("{0}")]
    Exposed(String),
    /// The system does not allow it.
    #[error("listen on {address}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

/// Starts to listen, unless that would show data to the network without TLS or login (see
/// [`exposure_problem`]). Port 0 takes a free one.
pub fn bind(
    address: SocketAddr,
    has_tls: bool,
    has_auth: bool,
    allow_insecure: Option<&str>,
) -> Result<TcpListener, BindError> {
    if let Some(problem) = exposure_problem(address, has_tls, has_auth, allow_insecure) {
        return Err(BindError::Exposed(problem));
    }
    let listen = || {
        let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
        // A restart need not wait for the old connections' TIME_WAIT.
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        socket.listen(BACKLOG)
    };
    listen().map_err(|source| BindError::Listen { address, source })
}

/// Serves HTTP/2 until told to stop; ends when the last connection has. Each request carries a
/// [`Connection`](super::Connection) in its extensions.
///
/// A call whose client takes nothing of its answer is cut when `patience` is over, unless the answer brings another, and
/// sooner once the server drains.
///
/// Dropping the future cuts all connections.
pub(crate) async fn serve<S>(
    listener: TcpListener,
    tls: Option<TlsReloader>,
    limits: Limits,
    patience: Patience,
    service: S,
    stop: Stop,
) -> Drained
where
    S: Service<http::Request<Body>, Response = http::Response<Body>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
{
    let mut connections = JoinSet::new();
    let mut watchers = JoinSet::new();
    if let Some(tls) = &tls {
        watchers.spawn(tls.clone().watch(stop.graceful.clone()));
    }
    let limits = Arc::new(limits);
    let mut gate = Gate::new(&limits);
    let mut ids = 0u64;
    loop {
        let accepted = tokio::select! {
            biased;
            () = stop.hard.cancelled() => break,
            () = stop.graceful.cancelled() => break,
            Some(ended) = connections.join_next(), if !connections.is_empty() => {
                log_end(ended);
                continue;
            }
            accepted = listener.accept() => accepted,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                accept_failed(&error, &mut gate.refused, &stop).await;
                continue;
            }
        };
        let Some(admitted) = gate.admit(peer.ip()) else {
            // Closed by drop: a server that is full spends nothing on telling so.
            continue;
        };
        ids += 1;
        let connecting = Connecting {
            id: ids,
            peer,
            tls: tls.as_ref().map(TlsReloader::acceptor),
            limits: Arc::clone(&limits),
            patience,
            draining: stop.draining.clone(),
            graceful: stop.graceful.clone(),
        };
        let span = info_span!("connection", id = ids, %peer);
        let served = connection::serve(stream, connecting, service.clone());
        connections.spawn(
            async move {
                served.await;
                drop(admitted);
            }
            .instrument(span),
        );
    }
    drop(listener);
    drain(connections, &stop).await
}

async fn drain(mut connections: JoinSet<()>, stop: &Stop) -> Drained {
    let mut drained = Drained::default();
    loop {
        tokio::select! {
            biased;
            () = stop.hard.cancelled() => break,
            ended = connections.join_next() => match ended {
                Some(ended) => log_end(ended),
                None => break,
            },
        }
    }
    while let Some(ended) = connections.try_join_next() {
        log_end(ended);
    }
    drained.aborted = connections.len();
    // Each connection takes its calls along when it is dropped.
    if tokio::time::timeout(ABORT_WAIT, connections.shutdown()).await.is_err() {
        warn!(connections = connections.len(), "connections whose calls do not yield are still there");
    }
    drained
}

fn log_end(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended
        && error.is_panic()
    {
        tracing::error!(%error, "a connection's task panicked");
    }
}

async fn accept_failed(error: &io::Error, log: &mut Sparse, stop: &Stop) {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    if matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted) {
        debug!(%error, "a connection was gone before it was accepted");
        return;
    }
    if let Some(times) = log.count() {
        warn!(%error, times, "cannot accept connections; hint: raise the limit of open files (ulimit -n)");
    }
    tokio::select! {
        () = tokio::time::sleep(ACCEPT_BACKOFF) => {}
        () = stop.graceful.cancelled() => {}
        () = stop.hard.cancelled() => {}
    }
}

/// Who gets in: a number of connections in all, and for each address.
struct Gate {
    free: Arc<Semaphore>,
    per_address_max: usize,
    per_address: Arc<Mutex<HashMap<IpAddr, usize>>>,
    refused: Sparse,
}

/// A place for one connection, given back by drop.
struct Admitted {
    _permit: tokio::sync::OwnedSemaphorePermit,
    address: IpAddr,
    per_address: Arc<Mutex<HashMap<IpAddr, usize>>>,
}

impl Gate {
    fn new(limits: &Limits) -> Self {
        Self {
            free: Arc::new(Semaphore::new(limits.max_connections.min(Semaphore::MAX_PERMITS))),
            per_address_max: limits.max_connections_per_ip,
            per_address: Arc::default(),
            refused: Sparse::default(),
        }
    }

    fn admit(&mut self, address: IpAddr) -> Option<Admitted> {
        let address = address.to_canonical();
        let Ok(permit) = Arc::clone(&self.free).try_acquire_owned() else {
            if let Some(times) = self.refused.count() {
                warn!(%address, times, "connections refused: flight.limits.max_connections are open");
            }
            return None;
        };
        let mut per_address = self.per_address.lock();
        let open = per_address.entry(address).or_default();
        if self.per_address_max > 0 && *open >= self.per_address_max {
            if let Some(times) = self.refused.count() {
                warn!(%address, times, "connections refused: flight.limits.max_connections_per_ip are open");
            }
            return None;
        }
        *open += 1;
        drop(per_address);
        Some(Admitted { _permit: permit, address, per_address: Arc::clone(&self.per_address) })
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        let mut per_address = self.per_address.lock();
        if let Some(open) = per_address.get_mut(&self.address) {
            *open -= 1;
            if *open == 0 {
                per_address.remove(&self.address);
            }
        }
    }
}

/// Lets one log line through for each interval.
#[derive(Default)]
struct Sparse {
    times: u64,
    last: Option<Instant>,
}

impl Sparse {
    /// `Some(how often since the last line)` when it is time for a line.
    fn count(&mut self) -> Option<u64> {
        self.times += 1;
        if self.last.is_some_and(|last| last.elapsed() < REFUSED_LOG_INTERVAL) {
            return None;
        }
        self.last = Some(Instant::now());
        Some(std::mem::take(&mut self.times))
    }
}

/// Data in small frames should leave at once: a query's first batch is worth more than a full packet.
pub(super) fn no_delay(stream: &TcpStream) {
    if let Err(error) = stream.set_nodelay(true) {
        debug!(%error, "TCP_NODELAY could not be set");
    }
}
