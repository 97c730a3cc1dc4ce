//! The parts put together on a listener.

use std::sync::Arc;

use arrow_flight::flight_service_server::FlightServiceServer;
use arrow_flight::sql::metadata::SqlInfoData;
use tokio::net::TcpListener;
use tonic::codec::CompressionEncoding;
use tonic::server::NamedService;
use tonic::service::Routes;
use tower::ServiceBuilder;
use tracing::info;
use updraft_auth::{Authenticator, Sealer};
use updraft_engine::{Engine, SettingSpec};

use crate::call::WIRE_SETTINGS;
use crate::commands::metadata;
use crate::config::Config;
use crate::layers::{Doors, layered};
use crate::service::FlightSql;
use crate::transport::{self, Drained, Patience, Stop, TlsError, TlsReloader};
use crate::wire::UploadLimits;

/// The largest message of a call without a login, in bytes.
const STRANGERS_MESSAGE: usize = 64 << 10;

/// Why the front end could not start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The certificate, the key or the client authority cannot be used.
    #[error("set up TLS")]
    Tls(#[from] TlsError),
}

/// What every command may use.
pub(crate) struct Server {
    pub(crate) engine: Arc<Engine>,
    pub(crate) authenticator: Authenticator,
    pub(crate) sealer: Sealer,
    pub(crate) sql_info: SqlInfoData,
    /// Bytes a result message aims at.
    pub(crate) message_size: usize,
    pub(crate) upload: UploadLimits,
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server").field("engine", &self.engine).finish_non_exhaustive()
    }
}

/// The session settings that the wire adds; give them to [`Engine::new`].
pub fn settings() -> &'static [SettingSpec] {
    WIRE_SETTINGS
}

/// Serves Flight SQL and health on `listener` until told to stop. `tls` encrypts; `None` serves in the clear.
///
/// `stop.draining` makes the engine refuse new queries and health say NOT_SERVING; the rest of `stop` is
/// the transport's.
pub async fn serve(
    config: Config,
    engine: Arc<Engine>,
    authenticator: Authenticator,
    tls: Option<TlsReloader>,
    listener: TcpListener,
    stop: Stop,
) -> Drained {
    let size = |size: bytesize::ByteSize| usize::try_from(size.0).unwrap_or(usize::MAX);
    let patience = Patience::after(engine.config().idle_stream_timeout);
    let message_max = size(config.limits.max_message_size);
    let server = Arc::new(Server {
        sealer: authenticator.sealer().clone(),
        sql_info: metadata::sql_info(&engine, config.limits.max_connections)
            .expect("the codes and their types are fixed"),
        message_size: size(config.message_size),
        upload: UploadLimits { bytes: size(config.upload_limit), ..UploadLimits::default() },
        engine: Arc::clone(&engine),
        authenticator: authenticator.clone(),
    });
    let flight = FlightServiceServer::new(FlightSql::new(Arc::clone(&server)))
        .max_decoding_message_size(message_max)
        // Only what clients send: C++ clients always say they take gzip, and results would be slower for it.
        .accept_compressed(CompressionEncoding::Gzip)
        .accept_compressed(CompressionEncoding::Zstd);
    let (mut health, health_service) = tonic_health::server::health_reporter();
    health.set_serving::<FlightServiceServer<FlightSql>>().await;

    // As much is set aside for a message as it says that it has.
    let handshake = FlightServiceServer::new(FlightSql::new(server))
        .max_decoding_message_size(STRANGERS_MESSAGE)
        .accept_compressed(CompressionEncoding::Gzip)
        .accept_compressed(CompressionEncoding::Zstd);
    let health_service = health_service.max_decoding_message_size(STRANGERS_MESSAGE);
    let (draining, graceful) = (stop.draining.clone(), stop.graceful.clone());
    let drain = async move {
        draining.cancelled().await;
        info!(running = engine.running(), "draining");
        engine.drain();
        health.set_not_serving::<FlightServiceServer<FlightSql>>().await;
        health.set_service_status("", tonic_health::ServingStatus::NotServing).await;
        graceful.cancelled().await;
        // Ends the calls that watch it, which end by nothing else.
        for service in [<FlightServiceServer<FlightSql> as NamedService>::NAME, ""] {
            health.clear_service_status(service).await;
        }
        // Resolves only with the server.
        std::future::pending::<()>().await
    };
    let routes = Doors {
        for_strangers: Routes::new(handshake).add_service(health_service).prepare(),
        for_callers: Routes::new(flight).prepare(),
    };
    let service = ServiceBuilder::new().service(layered(routes, authenticator));
    tokio::select! {
        drained = transport::serve(listener, tls, config.limits, patience, service, stop) => drained,
        () = drain => unreachable!("the drain task never ends"),
    }
}
