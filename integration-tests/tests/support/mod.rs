//! What the tests share: a server of the test's own on a free port, its data, and values as text.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used, reason = "each test binary uses its own part of this")]

pub mod data;
pub mod text;

use std::future::Future;
use std::path::Path;
use std::time::Duration;

use arrow_flight::sql::client::FlightSqlServiceClient;
use tempfile::TempDir;
use tonic::transport::{Channel, Endpoint};
use updraft_server::config::AdminListen;
use updraft_server::{Config, Running};

/// A server in this process, and the folder it serves.
pub struct Server {
    pub running: Running,
    pub dir: TempDir,
}

/// Runs a test on a runtime like that of the binary: its threads have room to drop deep plans.
pub fn run<F: Future>(test: F) -> F::Output {
    let runtime = updraft_server::serve::runtime(None).unwrap();
    let outcome = runtime.block_on(test);
    runtime.shutdown_timeout(Duration::from_secs(5));
    outcome
}

/// Settings of a small server on a free port that serves `dir`, without login.
pub fn config(dir: &Path) -> Config {
    let mut config = Config::default();
    config.server.listen = "127.0.0.1:0".parse().unwrap();
    config.server.admin_listen = AdminListen::Off;
    config.engine.memory_limit = Some("256MiB".parse().unwrap());
    // It looks at the whole process, where other tests have servers too.
    config.engine.memory_guard = false;
    config.engine.target_partitions = "2".parse().unwrap();
    config.engine.cpu_threads = 2;
    config.catalog.data = vec![dir.to_str().unwrap().to_owned()];
    config
}

impl Server {
    /// A server on `dir`, with `change` made to its settings.
    pub async fn start(dir: TempDir, change: impl FnOnce(&mut Config)) -> Self {
        let mut config = config(dir.path());
        change(&mut config);
        let running = updraft_server::start(config).await.unwrap();
        Self { running, dir }
    }

    /// A connection of its own: without cookies or tokens that is a session of its own.
    pub async fn channel(&self) -> Channel {
        Endpoint::new(format!("http://{}", self.running.address)).unwrap().connect().await.unwrap()
    }

    /// arrow-flight's own client.
    pub async fn client(&self) -> FlightSqlServiceClient<Channel> {
        FlightSqlServiceClient::new(self.channel().await)
    }
}
