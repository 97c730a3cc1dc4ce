//! From a TCP listener to HTTP requests: accept loop, TLS, HTTP/2, limits and shutdown.
//!
//! It drives hyper's HTTP/2 server itself because tonic's server passes "no limit" where hyper has safe defaults, knows
//! no handshake timeout, and cannot abort a connection that will not end.
//!
//! Never: anything about gRPC, Flight or who is calling (that is `layers`).
//!
//! | module | holds |
//! |---|---|
//! | `config` | limits, TLS files, when listening beyond this machine is allowed |
//! | `tls` | certificates, reloaded while running |
//! | `certificate` | the names in a client certificate |
//! | `serve` | accept loop, connection limits, drain |
//! | `connection` | one connection from its first byte to its last |
//! | `arrival` | what a client sends with a call has to arrive in time |
//! | `body` | what is sent leaves in few writes |
//! | `sent` | clients that take nothing of their answers |
//! | `calls` | the calls of a connection, in the connection's own task |
//! | `io` | a socket that counts its bytes |

mod arrival;
mod body;
mod calls;
mod certificate;
mod config;
mod connection;
mod io;
mod sent;
mod serve;
mod tls;

#[cfg(test)]
mod tests;

pub use config::{ClientCertificate, INSECURE_WORDS, Limits, Tls, exposure_problem};
pub(crate) use connection::Connection;
pub(crate) use sent::Patience;
pub(crate) use serve::serve;
pub use serve::{BindError, Drained, Stop, bind};
pub use tls::{TlsError, TlsReloader};
