//! The `updraft` binary, as a library so that tests can start a server in their own process.
//!
//! It reads the configuration, builds the parts, binds and drains. It is the only crate that wires the others together.
//!
//! - [`cli`]: commands, options, exit codes
//! - [`config`]: layers of settings, problems, the reference
//! - [`serve`]: build, bind, drain; `signals`: what asks for it; `admin`: HTTP for probes
//! - [`logs`]: log lines on standard error
//! - [`query`]: the Flight SQL client; [`sample`]: TPC-H as Parquet
//!
//! Never: a rule about queries, tables, users or the wire. Those are in the crates that own them.

mod admin;
mod allocator;
pub mod cli;
pub mod config;
pub mod logs;
pub mod query;
pub mod sample;
pub mod serve;
mod signals;

pub use config::Config;
pub use serve::{Ended, Error, Running, start};
