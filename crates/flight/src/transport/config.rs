use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use bytesize::ByteSize;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Largest window or buffer of HTTP/2: 2^31 - 1 bytes.
const WINDOW_MAX: u64 = (1 << 31) - 1;
/// Sizes that HTTP/2 allows for one frame.
const FRAME: std::ops::RangeInclusive<u64> = 16_384..=16_777_215;

/// What has to stand in `flight.allow_insecure` before the server listens beyond this machine without TLS or without
/// login. A sentence, so that nobody sets it without having read it.
pub const INSECURE_WORDS: &str = "anyone on this network may read the data";

/// Encryption. Off while neither `certificate` nor `key` is set.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Tls {
    /// PEM file with the server's certificate, followed by the intermediate ones.
    pub certificate: Option<PathBuf>,
    /// PEM file with the private key of the certificate. Nobody but the server's user should be able to read it.
    pub key: Option<PathBuf>,
    /// PEM file with the certificates of the authorities whose client certificates are trusted.
    pub client_ca: Option<PathBuf>,
    /// Whether clients show a certificate: `off`, `optional` (checked when shown) or `required`. `auth.certificates`
    /// says which principals they stand for.
    pub client_certificate: ClientCertificate,
    /// How often the files are looked at. Changed ones take effect for new connections; files that do not fit together
    /// (a renewal that is half done) are left alone until they do.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String")]
    pub reload_interval: Duration,
}

/// Whether clients show a certificate.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ClientCertificate {
    /// Not asked for.
    #[default]
    Off,
    /// Checked when the client has one.
    Optional,
    /// Connections without one are refused.
    Required,
}

impl Default for Tls {
    fn default() -> Self {
        Self {
            certificate: None,
            key: None,
            client_ca: None,
            client_certificate: ClientCertificate::Off,
            reload_interval: Duration::from_secs(5),
        }
    }
}

impl Tls {
    /// True when connections are encrypted.
    pub fn is_on(&self) -> bool {
        self.certificate.is_some() || self.key.is_some()
    }

    /// Everything that is wrong: (key path inside this section, what is wrong and what would be right). The files
    /// themselves are read later.
    pub fn problems(&self) -> Vec<(String, String)> {
        let mut problems = Vec::new();
        let mut problem = |key: &str, text: &str| problems.push((key.to_owned(), text.to_owned()));
        match (&self.certificate, &self.key) {
            (Some(_), None) => problem("key", "is missing; set it to the PEM file of the certificate's private key"),
            (None, Some(_)) => problem("certificate", "is missing; set it to the PEM file of the key's certificate"),
            _ => {}
        }
        let asks = self.client_certificate != ClientCertificate::Off;
        if asks && !self.is_on() {
            problem("client_certificate", "needs TLS; set certificate and key, or client_certificate = \"off\"");
        }
        if asks && self.client_ca.is_none() {
            problem("client_ca", "is missing; set it to the PEM file of the authority that signs client certificates");
        }
        if !asks && self.client_ca.is_some() {
            problem("client_certificate", "is off although client_ca is set; use \"optional\" or \"required\"");
        }
        if self.reload_interval < Duration::from_millis(100) {
            problem("reload_interval", "is under 100ms; use some seconds");
        }
        problems
    }
}

/// Limits of connections, streams and messages. They hold before anybody has logged in.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Connections at one time. Further ones are closed at once. Each costs some 40 KiB while idle and a file handle, so
    /// raise the limit of open files (`ulimit -n`) with it.
    pub max_connections: usize,
    /// Connections from one address at one time, 0 = no such limit. Set it when clients do not share a proxy.
    pub max_connections_per_ip: usize,
    /// From accepting a connection to the end of its TLS and HTTP/2 handshakes. Raise it for clients on very slow links.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String")]
    pub handshake_timeout: Duration,
    /// A connection that has not sent a request after this long is asked to go away. gRPC clients come back by
    /// themselves when they need to.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String")]
    pub first_request_timeout: Duration,
    /// A connection is asked to go away when it is this old, so that load spreads anew over several servers. Running
    /// calls end first. Unset = never.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "Option<String>")]
    pub max_connection_age: Option<Duration>,
    /// From the start of a call to the last byte that the client sends with it. Raise it for large uploads over slow
    /// links.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String")]
    pub request_timeout: Duration,
    /// Calls at one time on one connection. Further ones wait in the client or are refused.
    pub max_concurrent_streams: u32,
    /// Streams that may fail by the client's fault before the connection is closed (CVE-2025-8671 and its kind).
    pub max_local_error_reset_streams: usize,
    /// Streams that may be cancelled by the client before they were looked at, after which the connection is closed
    /// (rapid reset, CVE-2023-44487).
    pub max_pending_accept_reset_streams: usize,
    /// Size of all headers of one call. JDBC clients send each unknown connection property as a header.
    #[schemars(with = "String")]
    pub max_header_list_size: ByteSize,
    /// What a client may upload on one call before the server has read it. 1 MiB fills 100 Mbit/s at 80 ms.
    #[schemars(with = "String")]
    pub stream_window: ByteSize,
    /// The same for all calls of a connection together. Bounds what one connection can make the server hold.
    #[schemars(with = "String")]
    pub connection_window: ByteSize,
    /// Largest HTTP/2 frame that clients may send. Large ones cost less CPU per byte of upload.
    #[schemars(with = "String")]
    pub max_frame_size: ByteSize,
    /// What HTTP/2 is given of a result before its client has taken it, for each call, but for one column of one message
    /// that goes beyond. A message (`flight.message_size`) and `engine.stream_buffer` wait behind it, then the query waits.
    #[schemars(with = "String")]
    pub max_send_buffer: ByteSize,
    /// How often a quiet connection is asked whether it still lives. `0s` = never.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String")]
    pub keepalive_interval: Duration,
    /// How long the answer may take before the connection is closed and its queries are cancelled.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String")]
    pub keepalive_timeout: Duration,
    /// Largest message that a client may send (a batch of parameters, for instance), also after decompression.
    #[schemars(with = "String")]
    pub max_message_size: ByteSize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_connections: 4096,
            max_connections_per_ip: 0,
            handshake_timeout: Duration::from_secs(5),
            first_request_timeout: Duration::from_secs(60),
            max_connection_age: None,
            request_timeout: Duration::from_secs(300),
            max_concurrent_streams: 128,
            max_local_error_reset_streams: 1024,
            max_pending_accept_reset_streams: 20,
            max_header_list_size: ByteSize::kib(16),
            stream_window: ByteSize::mib(1),
            connection_window: ByteSize::mib(4),
            max_frame_size: ByteSize::kib(64),
            max_send_buffer: ByteSize::kib(512),
            keepalive_interval: Duration::from_secs(30),
            keepalive_timeout: Duration::from_secs(10),
            max_message_size: ByteSize::mib(16),
        }
    }
}

impl Limits {
    /// Everything that is wrong: (key path inside this section, what is wrong and what would be right).
    pub fn problems(&self) -> Vec<(String, String)> {
        let mut problems = Vec::new();
        let mut problem = |key: &str, text: String| problems.push((key.to_owned(), text));
        if self.max_connections == 0 {
            problem("max_connections", "is 0, so nobody could connect; use 1 or more".to_owned());
        }
        if self.max_concurrent_streams == 0 {
            problem("max_concurrent_streams", "is 0, so nothing could be called; use 1 or more".to_owned());
        }
        let sizes = [
            ("max_header_list_size", self.max_header_list_size, 1024..=1 << 20),
            ("stream_window", self.stream_window, 65_535..=WINDOW_MAX),
            ("connection_window", self.connection_window, 65_535..=WINDOW_MAX),
            ("max_frame_size", self.max_frame_size, FRAME),
            ("max_send_buffer", self.max_send_buffer, 16_384..=WINDOW_MAX),
            ("max_message_size", self.max_message_size, 65_536..=WINDOW_MAX),
        ];
        for (key, size, range) in sizes {
            if !range.contains(&size.as_u64()) {
                problem(key, format!("is {size}; use {} to {}", ByteSize(*range.start()), ByteSize(*range.end())));
            }
        }
        let times = [
            ("handshake_timeout", Some(self.handshake_timeout)),
            ("first_request_timeout", Some(self.first_request_timeout)),
            ("max_connection_age", self.max_connection_age),
            ("request_timeout", Some(self.request_timeout)),
            ("keepalive_timeout", Some(self.keepalive_timeout)),
        ];
        for (key, time) in times {
            if time.is_some_and(|time| time.is_zero()) {
                problem(key, "is 0s, which no client could meet; use some seconds".to_owned());
            }
        }
        problems
    }
}

/// Why the server may not listen on `address`, or `None` when it may: beyond this machine it wants TLS and login, or
/// [`INSECURE_WORDS`] in the config.
pub fn exposure_problem(
    address: SocketAddr,
    has_tls: bool,
    has_auth: bool,
    allow_insecure: Option<&str>,
) -> Option<String> {
    let lacking = match (has_tls, has_auth) {
        (true, true) => return None,
        (false, true) => "TLS (flight.tls.certificate and flight.tls.key)",
        (true, false) => "login (auth.users, auth.tokens or auth.certificates)",
        (false, false) => {
            "TLS (flight.tls.certificate and flight.tls.key) and login (auth.users, auth.tokens or auth.certificates)"
        }
    };
    let agreed = allow_insecure.is_some_and(|words| words.trim().eq_ignore_ascii_case(INSECURE_WORDS));
    if address.ip().to_canonical().is_loopback() || agreed {
        return None;
    }
    Some(format!(
        "{address} can be reached from other machines, but there is no {lacking}; hint: configure that, listen on \
         127.0.0.1, or set flight.allow_insecure = {INSECURE_WORDS:?}"
    ))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn defaults_are_sound() {
        assert_eq!(Limits::default().problems(), []);
        assert_eq!(Tls::default().problems(), []);
        assert!(!Tls::default().is_on());
    }

    #[test]
    fn all_problems_of_limits_at_once() {
        let limits = Limits {
            max_connections: 0,
            max_concurrent_streams: 0,
            max_header_list_size: ByteSize(1),
            stream_window: ByteSize::gib(2),
            connection_window: ByteSize(1),
            max_frame_size: ByteSize::mib(16),
            max_send_buffer: ByteSize(0),
            max_message_size: ByteSize::gib(4),
            handshake_timeout: Duration::ZERO,
            first_request_timeout: Duration::ZERO,
            max_connection_age: Some(Duration::ZERO),
            request_timeout: Duration::ZERO,
            keepalive_timeout: Duration::ZERO,
            ..Limits::default()
        };
        assert_eq!(limits.problems().len(), 13, "{:?}", limits.problems());
    }

    #[test]
    fn problems_of_tls() {
        let keys = |tls: Tls| tls.problems().into_iter().map(|(key, _)| key).collect::<Vec<_>>();
        let file = || Some(PathBuf::from("x.pem"));
        assert_eq!(keys(Tls { certificate: file(), ..Tls::default() }), ["key"]);
        assert_eq!(keys(Tls { key: file(), ..Tls::default() }), ["certificate"]);
        let required = ClientCertificate::Required;
        let without_tls = Tls { client_certificate: required, ..Tls::default() };
        assert_eq!(keys(without_tls), ["client_certificate", "client_ca"]);
        assert_eq!(keys(Tls { client_ca: file(), ..Tls::default() }), ["client_certificate"]);
        let both = Tls { certificate: file(), key: file(), ..Tls::default() };
        assert_eq!(keys(both.clone()), Vec::<String>::new());
        assert_eq!(keys(Tls { reload_interval: Duration::ZERO, ..both }), ["reload_interval"]);
    }

    #[test]
    fn beyond_this_machine_only_with_tls_and_login_or_in_words() {
        let problem =
            |address: &str, tls, auth, words| exposure_problem(address.parse().unwrap(), tls, auth, words).is_some();
        for address in ["127.0.0.1:1", "127.9.9.9:1", "[::1]:1", "[::ffff:127.0.0.1]:1"] {
            assert!(!problem(address, false, false, None), "{address}");
        }
        for address in ["0.0.0.0:1", "[::]:1", "10.0.0.1:1", "[2001:db8::1]:1"] {
            assert!(problem(address, false, false, None), "{address}");
            assert!(problem(address, true, false, None), "{address}");
            assert!(problem(address, false, true, Some("true")), "{address}");
            assert!(!problem(address, true, true, None), "{address}");
            assert!(!problem(address, false, false, Some(INSECURE_WORDS)), "{address}");
        }
        let text = exposure_problem("0.0.0.0:1".parse().unwrap(), false, true, None).unwrap();
        assert!(text.contains(INSECURE_WORDS) && text.contains("flight.allow_insecure"), "{text}");
    }
}
