//! `updraft serve`: builds the parts, binds, and ends in order.
//!
//! The order of the end: `/readyz` and the health service say no; new queries are refused; running ones end, or are
//! cancelled when `server.drain_grace` is over or a second signal comes; connections close.

use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytesize::ByteSize;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;
use tracing::{info, warn};
use updraft_auth::Authenticator;
use updraft_catalog::Catalog;
use updraft_engine::{Engine, ErrorKind};
use updraft_flight::{BindError, Drained, Stop, TlsError, TlsReloader};

use crate::admin::{Admin, Ready, Started};
use crate::allocator::Jemalloc;
use crate::config::{Config, Problem, Problems};

/// Plans are dropped on these threads too, and a deep one is dropped by recursion. Only what is touched takes memory.
const STACK_BYTES: usize = 64 << 20;
/// How long connections may take to close once nothing runs on them, or once they were told to end at once.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// Why a server does not start, or ends.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Settings that cannot be used, found when the parts were built.
    #[error(transparent)]
    Config(#[from] Problems),
    /// An address cannot be listened on.
    #[error("listen on {address} ({key}): {source}{hint}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// The setting that names it.
        key: &'static str,
        /// What the system says.
        #[source]
        source: std::io::Error,
        /// What to do about it.
        hint: &'static str,
    },
    /// A runtime or a signal handler cannot be made.
    #[error("start the process: {0}")]
    Process(#[source] std::io::Error),
    /// The engine cannot be built.
    #[error("start the engine: {0}")]
    Engine(#[source] updraft_engine::Error),
    /// A table of `hot.preload` does not exist, or does not fit.
    #[error("hot.preload: {0}")]
    Preload(#[source] updraft_engine::Error),
    /// The certificate, its key or the authority for clients cannot be used.
    #[error("set up TLS: {0}")]
    Tls(#[source] TlsError),
    /// The endpoint ended although nobody asked it to.
    #[error("the Flight SQL endpoint ended by itself")]
    Ended,
    /// The task of the endpoint died.
    #[error("serve Flight SQL: {0}")]
    Task(#[source] tokio::task::JoinError),
}

/// The runtime of the front end: gRPC and object stores. Queries run on the engine's own threads.
///
/// # Errors
/// The system has no threads to give.
pub fn runtime(threads: Option<NonZeroUsize>) -> Result<Runtime, Error> {
    let threads = threads.or_else(|| std::thread::available_parallelism().ok()).map_or(2, usize::from).max(2);
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(threads)
        .thread_name("updraft-io")
        .thread_stack_size(STACK_BYTES)
        .enable_all()
        .build()
        .map_err(Error::Process)
}

/// A server that runs. Dropping it cuts all connections and cancels all queries.
pub struct Running {
    /// Where Flight SQL is served; the port is the real one when port 0 was asked for.
    pub address: SocketAddr,
    /// Where `/healthz` and `/readyz` are served; none when `server.admin_listen` is `off`.
    pub admin_address: Option<SocketAddr>,
    tls: Option<TlsReloader>,
    drain_grace: Duration,
    engine: Arc<Engine>,
    ready: Ready,
    stop: Stop,
    flight: JoinHandle<Drained>,
    admin: Option<Admin>,
}

/// How a server ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ended {
    /// Queries or connections were cut, because the grace was over or a second signal came.
    pub killed: bool,
}

/// Starts a server on the current runtime. It is ready when this returns.
///
/// # Errors
/// Settings that only show as wrong when they are used (all of them, as [`Error::Config`]), and addresses that are taken.
pub async fn start(mut config: Config) -> Result<Running, Error> {
    let server = config.server;
    let authenticator = Authenticator::new(&config.auth).map_err(|problems| section_problems("auth", problems))?;
    let tls =
        config.flight.tls.is_on().then(|| TlsReloader::new(&config.flight.tls)).transpose().map_err(Error::Tls)?;
    // Addresses come first: a port that is taken should not wait for a bucket to be listed.
    let open = config.flight.allow_insecure.as_deref();
    let listener = updraft_flight::bind(server.listen, tls.is_some(), authenticator.required(), open);
    let listener = listener.map_err(|error| bind_error(error, server.listen))?;
    let address = listener.local_addr().map_err(|source| listen_error("server.listen", server.listen, source))?;
    // `auto` goes by the port that was asked for, so that it is the same at each start.
    let admin_listener = match server.admin_listen.address(server.listen) {
        Some(admin) => {
            let bound = TcpListener::bind(admin).await;
            Some(bound.map_err(|source| listen_error("server.admin_listen", admin, source))?)
        }
        None => None,
    };
    let ready = Ready::default();
    let started = Started::default();
    let admin = admin_listener
        .map(|listener| Admin::start(listener, ready.clone(), started.clone()))
        .transpose()
        .map_err(Error::Process)?;

    let memory = config.engine.memory_bytes().0;
    config.catalog.prefetch_limit = Some(ByteSize(config.catalog.prefetch_bytes(memory)));
    let catalog = Catalog::open(config.catalog, tokio::runtime::Handle::current()).await;
    let catalog = catalog.map_err(|errors| {
        let texts = errors.iter().map(|error| (String::new(), error.to_string()));
        section_problems("catalog", texts.collect())
    })?;
    let catalog = match config.hot.memory_bytes(memory) {
        0 => catalog,
        limit => catalog.with_hot(updraft_hot::Cache::new(limit)),
    };
    let engine = Engine::new(config.engine, updraft_flight::settings(), Arc::new(catalog)).map_err(Error::Engine)?;
    started.set(&engine);
    let allocator = Jemalloc::tune();
    if engine.config().memory_guard {
        engine.guard_memory(Arc::new(allocator)).map_err(Error::Process)?;
    }
    preload(&engine, &config.hot.preload).await?;
    let stop = Stop::new();
    let serving =
        updraft_flight::serve(config.flight, Arc::clone(&engine), authenticator, tls.clone(), listener, stop.clone());
    let flight = tokio::spawn(serving);
    ready.set(true);
    let admin_address = admin.as_ref().map(|admin| admin.address);
    info!(%address, admin = admin_address.map(|address| address.to_string()), tls = tls.is_some(), "listening");
    Ok(Running { address, admin_address, tls, drain_grace: server.drain_grace, engine, ready, stop, flight, admin })
}

/// Loads the tables that should be hot from the first query on. What may pass by itself, such as a store that does not
/// answer now, is no reason not to start.
async fn preload(engine: &Arc<Engine>, tables: &[String]) -> Result<(), Error> {
    if tables.is_empty() {
        return Ok(());
    }
    let began = Instant::now();
    match engine.preload(tables).await {
        Ok(()) => {
            let bytes = engine.hot().map_or(0, |cache| cache.used());
            info!(tables = tables.len(), memory = %ByteSize(bytes), elapsed = ?began.elapsed(), "hot tables loaded");
            Ok(())
        }
        Err(error) => match error.kind() {
            ErrorKind::NotFound | ErrorKind::Invalid | ErrorKind::Unsupported | ErrorKind::Exhausted => {
                Err(Error::Preload(error))
            }
            kind => {
                warn!(%error, %kind, "hot tables cannot be loaded; their queries will");
                Ok(())
            }
        },
    }
}

fn section_problems(section: &str, problems: Vec<(String, String)>) -> Problems {
    let problem = |(path, message): (String, String)| {
        let path = if path.is_empty() { section.to_owned() } else { format!("{section}.{path}") };
        Problem { path, origin: "when it is used".to_owned(), message }
    };
    Problems(problems.into_iter().map(problem).collect())
}

fn bind_error(error: BindError, asked: SocketAddr) -> Error {
    match error {
        BindError::Listen { address, source } => listen_error("server.listen", address, source),
        BindError::Exposed(message) => {
            let problem = Problem { path: "server.listen".to_owned(), origin: asked.to_string(), message };
            Problems(vec![problem]).into()
        }
    }
}

fn listen_error(key: &'static str, address: SocketAddr, source: std::io::Error) -> Error {
    let hint = match source.kind() {
        std::io::ErrorKind::AddrInUse => {
            "; hint: another process listens there, perhaps another updraft; name another port"
        }
        std::io::ErrorKind::PermissionDenied => "; hint: ports below 1024 need a privilege; name another port",
        std::io::ErrorKind::AddrNotAvailable => "; hint: this machine does not have that address",
        _ => "",
    };
    Error::Listen { address, key, source, hint }
}

impl Running {
    /// What clients connect to: `grpc://127.0.0.1:32010`, or `grpc+tls://`.
    pub fn uri(&self) -> String {
        let scheme = if self.tls.is_some() { "grpc+tls" } else { "grpc" };
        format!("{scheme}://{}", self.address)
    }

    /// The engine, for tests that look at what a client leaves behind.
    pub fn engine(&self) -> &Arc<Engine> {
        &self.engine
    }

    /// Refuses new queries from now on, and tells probes; queries that run go on.
    pub fn begin_drain(&self) {
        self.ready.set(false);
        self.stop.draining.cancel();
        // The endpoint does this too, but only when its task next runs.
        self.engine.drain();
    }

    /// How long `updraft serve` drains: `server.drain_grace`.
    pub fn drain_grace(&self) -> Duration {
        self.drain_grace
    }

    /// Reads TLS certificates anew; those in use stay when the new ones are no good.
    pub(crate) fn reload_certificates(&self) {
        let Some(tls) = self.tls.clone() else {
            info!("there is no TLS, so there are no certificates to read");
            return;
        };
        // The disk may take its time, and connections do not wait for it. The result is logged, nobody waits for it.
        drop(tokio::task::spawn_blocking(move || match tls.reload() {
            Ok(()) => info!("new TLS certificates in use"),
            Err(error) => warn!(%error, "TLS certificates cannot be used, the old ones stay in use"),
        }));
    }

    /// Ends when the endpoint has ended without being told to, and says why.
    pub(crate) async fn broken(&mut self) -> Error {
        match (&mut self.flight).await {
            Ok(_) => Error::Ended,
            Err(error) => Error::Task(error),
        }
    }

    /// Drains for at most `grace`, or until `now` is ready, and ends.
    ///
    /// While queries run, connections stay open: a new query on one of them is told that the server drains, which a
    /// client can act on, and not just that its connection has gone.
    ///
    /// # Errors
    /// The endpoint's task died.
    pub async fn drain(mut self, grace: Duration, now: impl Future<Output = ()>) -> Result<Ended, Error> {
        self.begin_drain();
        let end = async {
            tokio::select! {
                () = tokio::time::sleep(grace) => {}
                () = now => {}
            }
        };
        let mut end = std::pin::pin!(end);
        let idle = tokio::select! {
            biased;
            () = self.engine.idle() => true,
            () = &mut end => false,
        };
        self.stop.graceful.cancel();
        let ended = if idle {
            tokio::select! {
                biased;
                ended = &mut self.flight => Some(ended),
                () = &mut end => None,
            }
        } else {
            None
        };
        let killed = ended.is_none();
        let ended = match ended {
            Some(ended) => ended,
            None => {
                warn!(queries = self.engine.running(), "cutting off what still runs");
                self.stop.hard.cancel();
                // What does not even end when it is cut off ends with the process.
                tokio::time::timeout(CLOSE_TIMEOUT, &mut self.flight).await.unwrap_or(Ok(Drained::default()))
            }
        };
        // A process that exits drops nothing.
        self.engine.remove_spilled();
        ended.map_err(Error::Task)?;
        Ok(Ended { killed })
    }

    /// Ends at once, and cancels what runs.
    ///
    /// # Errors
    /// The endpoint's task died.
    pub async fn stop(self) -> Result<Ended, Error> {
        self.drain(Duration::ZERO, std::future::pending()).await
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.graceful.cancel();
        self.stop.hard.cancel();
        if let Some(admin) = self.admin.take() {
            admin.stop();
        }
    }
}

#[cfg(test)]
#[path = "serve_tests.rs"]
mod tests;
