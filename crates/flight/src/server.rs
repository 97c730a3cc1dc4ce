//! The parts put together on a listener.

use std::sync::Arc;

use arrow_flight::flight_service_server::FlightServiceServer;
use arrow_flight::sql::metadata::SqlInfoData;
use tokio::net::TcpListener;
use tonic::codec::CompressionEncoding;
use tonic::service::Routes;
use tower::ServiceBuilder;
use tracing::info;
use updraft_auth::{Authenticator, Sealer};
use updraft_engine::{Engine, SettingSpec};

use crate::call::WIRE_SETTINGS;
use crate::commands::metadata;
use crate::config::Config;
use crate::layers::layered;
use crate::service::FlightSql;
use crate::transport::{self, Drained, Patience, Stop, TlsError, TlsReloader};
use crate::wire::UploadLimits;

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
    let flight = FlightServiceServer::new(FlightSql::new(server))
        .max_decoding_message_size(message_max)
        // Only what clients send: C++ clients always say they take gzip, and results would be slower for it.
        .accept_compressed(CompressionEncoding::Gzip)
        .accept_compressed(CompressionEncoding::Zstd);
    let (health, health_service) = tonic_health::server::health_reporter();
    health.set_serving::<FlightServiceServer<FlightSql>>().await;

    let draining = stop.draining.clone();
    let drain = async move {
        draining.cancelled().await;
        info!(running = engine.running(), "draining");
        engine.drain();
        health.set_not_serving::<FlightServiceServer<FlightSql>>().await;
        health.set_service_status("", tonic_health::ServingStatus::NotServing).await;
        // Resolves only with the server.
        std::future::pending::<()>().await
    };
    let routes = Routes::new(flight).add_service(health_service).prepare();
    let service = ServiceBuilder::new().service(layered(routes, authenticator));
    tokio::select! {
        drained = transport::serve(listener, tls, config.limits, patience, service, stop) => drained,
        () = drain => unreachable!("the drain task never ends"),
    }
}
