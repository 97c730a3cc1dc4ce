//! Credentials to principals: who is calling?
//!
//! The crate takes what a client sent (a password, an API token, a session token, the names in a verified client
//! certificate) and answers with a [`Principal`] or a refusal. It also seals what the server hands to clients and
//! reads back later, so that only this server can have made it.
//!
//! Never: network or gRPC types, reading files, waiting on anything but a bounded password check, and secrets in logs,
//! errors or `Debug` output.
//!
//! | module | holds |
//! |---|---|
//! | `config` | users, API tokens, certificates, limits of logging in |
//! | `credential` | the `authorization` header, parsed |
//! | `authenticator` | credential -> identity |
//! | `password` | argon2id hashes, made and checked |
//! | `verified` | passwords checked moments ago, so that one per call stays cheap |
//! | `throttle` | failed logins cost time |
//! | `api_token` | long-lived named tokens, stored as hashes |
//! | `session_token` | short-lived tokens that this server issues |
//! | `seal` | HMAC with a purpose |
//! | `clock` | time as an argument |

mod api_token;
mod authenticator;
mod clock;
mod config;
mod credential;
mod error;
mod password;
mod principal;
mod seal;
mod session_token;
mod throttle;
mod verified;

pub use api_token::new_api_token;
pub use authenticator::Authenticator;
pub use clock::Clock;
pub use config::{Config, LoginAttempts, Token, User};
pub use credential::{AUTHORIZATION_BYTES_MAX, Credential, parse_authorization};
pub use error::Error;
pub use password::hash_password;
pub use principal::{ANONYMOUS, Identity, Principal};
pub use seal::Sealer;
