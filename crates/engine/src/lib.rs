//! The life of one query: plan, run, stream, cancel, and one log line at its end.
//!
//! Never: a gRPC status, a protobuf message, or a byte on a socket (that is `flight`); a path or an
//! object store (that is `catalog`).
//!
//! | module | its story |
//! |---|---|
//! | [`engine`](Engine) | the parts of the engine and what callers ask of it |
//! | `plan` | SQL text and pinned tables -> a [`Planned`] query |
//! | `run` | a planned query -> a [`QueryStream`] fed from the CPU runtime |
//! | `bridge` | the byte-bounded channel between the two runtimes |
//! | `query` | what is known of a query while it runs; its log line |
//! | `sql` | text limits, placeholders, which statements are allowed |
//! | `settings` | what a session may change, and the checks |
//! | `session`, `prepared` | the only state kept for a client, bounded and expiring |
//! | `cooperate` | joins yield, so that they can be cancelled |
//! | `interrupt` | a join that gives nothing can be cancelled too |
//! | `memory` | the shared memory pool, and where its limit comes from |
//! | `spill` | where queries spill, and the sweep at start |
//! | `names` | pinned tables as the catalog DataFusion plans against |

mod bridge;
mod config;
mod cooperate;
mod engine;
mod error;
mod expiring;
mod interrupt;
mod memory;
mod names;
mod params;
mod plan;
mod prepared;
mod query;
mod run;
mod runtime;
mod session;
mod settings;
mod spill;
mod sql;
mod substrait;

pub use bridge::Weight;
pub use config::{Config, MemoryPoolKind, Partitions};
pub use engine::{CancelOutcome, Engine, FunctionNames, TableDescription};
pub use error::{Error, ErrorKind};
pub use plan::{Planned, Statement};
pub use prepared::{Parameter, Prepared, PreparedHandle};
pub use query::QueryId;
pub use run::{Part, QueryStream};
pub use session::{Session, SessionId};
pub use settings::{SettingSpec, Settings};
pub use substrait::substrait_version;
pub use updraft_catalog::{CATALOG, SCHEMA};
