//! The settings of the process itself.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::num::NonZeroUsize;
use std::str::FromStr;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The process: addresses, logs, threads, shutdown.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ServerConfig {
    /// Address and port of the Flight SQL endpoint. Port 0 takes a free port, which the line on standard output names.
    /// Use `0.0.0.0:32010` to serve other machines; that needs TLS and users, or a setting that says in words that it may be open.
    #[schemars(with = "String")]
    pub listen: SocketAddr,
    /// Address and port of the HTTP endpoint with `/healthz`, `/readyz` and `/status`; `auto` is 127.0.0.1 and the port after
    /// that of `server.listen` (any free port when that is 0), `off` is none. Set it when a probe on another machine asks;
    /// whoever can reach it, without login, can also fill and empty the cache of hot tables (`POST /hot/...`).
    #[schemars(with = "String")]
    pub admin_listen: AdminListen,
    /// Shape of the log lines on standard error. Choose `json` when a collector reads them.
    pub log_format: LogFormat,
    /// Which log lines are written: `error`, `warn`, `info`, `debug` or `trace`, and exceptions per module after a comma,
    /// as in `info,updraft_catalog=debug`. Raise it for one module while you hunt something there.
    pub log_level: String,
    /// How long running queries may go on after SIGTERM before they are cancelled. Keep it below the time after which
    /// your supervisor kills the process.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String")]
    pub drain_grace: Duration,
    /// Threads that move bytes between clients, object stores and the engine. Not set: as many as there are cores, at least 2.
    /// They do not run queries (see `engine.target_partitions`); raise it only when many clients fetch at once and cores idle.
    pub io_threads: Option<NonZeroUsize>,
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self {
            listen: SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 32010),
            admin_listen: AdminListen::Auto,
            log_format: LogFormat::Text,
            log_level: "info".to_owned(),
            drain_grace: Duration::from_secs(30),
            io_threads: None,
        }
    }
}

impl ServerConfig {
    /// What is wrong with these settings, as (key path in this section, what is wrong and what would be right).
    pub fn problems(&self) -> Vec<(String, String)> {
        let mut problems = Vec::new();
        if let Err(error) = crate::logs::filter(&self.log_level) {
            problems.push((
                "log_level".to_owned(),
                format!("{error}; use a level such as `info`, or `info,updraft_engine=debug`"),
            ));
        }
        if let AdminListen::At(admin) = self.admin_listen
            && admin.port() != 0
            && admin == self.listen
        {
            problems.push((
                "admin_listen".to_owned(),
                format!("{admin} is also `server.listen`; choose another port, or `off`"),
            ));
        }
        problems
    }
}

/// Where the admin HTTP endpoint listens: `auto`, `off`, or an address and port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum AdminListen {
    /// Loopback, the port after the Flight SQL endpoint's.
    Auto,
    /// No admin endpoint.
    Off,
    /// This address; port 0 takes a free port.
    At(SocketAddr),
}

impl AdminListen {
    /// The address to bind when the Flight SQL endpoint was asked to listen on `listen`; none when it is off.
    pub fn address(self, listen: SocketAddr) -> Option<SocketAddr> {
        match self {
            Self::Off => None,
            Self::At(address) => Some(address),
            Self::Auto => {
                // After port 65535, and beside a port that is free by chance, there is no "next" to rely on.
                let port = if listen.port() == 0 { 0 } else { listen.port().checked_add(1).unwrap_or(0) };
                Some(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port))
            }
        }
    }
}

impl FromStr for AdminListen {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "off" => Ok(Self::Off),
            address => address.parse().map(Self::At).map_err(|_| {
                format!("`{address}` is neither `auto`, `off` nor an address and port such as `127.0.0.1:32011`")
            }),
        }
    }
}

impl TryFrom<String> for AdminListen {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl fmt::Display for AdminListen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Off => f.write_str("off"),
            Self::At(address) => address.fmt(f),
        }
    }
}

impl From<AdminListen> for String {
    fn from(admin: AdminListen) -> Self {
        admin.to_string()
    }
}

/// Shape of a log line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// One line for people.
    Text,
    /// One JSON object per line.
    Json,
}
