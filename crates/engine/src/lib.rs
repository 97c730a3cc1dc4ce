//! The life of one query: plan, run, stream, cancel, and one log line at its end.
//!
//! Never: a gRPC status, a protobuf message, or a byte on a socket (that is `flight`); a path or an
//! object store (that is `catalog`).
//!
//! | module | its story |
//! |---|---|
//! | [`engine`](Engine) | the parts of the engine and what callers ask of it |
//! | `plan` | SQL text and pinned tables -> a [`Planned`] query |
//! | `plan_cache` | plans that are kept for the next time their statement is asked |
//! | `result_cache` | results that are kept for the next time |
//! | `kept` | planned queries, plans and what is known of files, as what queries may ask for room |
//! | `launch` | how a query is split, what it needs, its turn, its memory, and a second try |
//! | `run` | a planned query -> a [`QueryStream`] fed from the CPU runtime |
//! | `produce` | its batches encoded and sent, in order |
//! | `parts` | a result that several streams share out among themselves |
//! | `admission` | which query may run now, which waits, which is refused |
//! | `bridge` | the byte-bounded channel between the two runtimes |
//! | `unsent` | what was made for clients and has not gone to them yet |
//! | `query` | what is known of a query while it runs; its log line |
//! | `sql` | text limits, placeholders, which statements are allowed |
//! | `settings` | what a session may change, and the checks |
//! | `session`, `prepared` | the only state kept for a client, bounded and expiring |
//! | `cooperate` | operators give way to other queries, and end when theirs was cancelled |
//! | `interrupt` | a join that gives nothing, or a window function that takes long, can be cancelled too |
//! | `passing` | what nodes that pass rows on have in common |
//! | `hidden` | what a query is planned with that is no setting of DataFusion's |
//! | `fit` | plans that live within their memory |
//! | `growing` | functions that would make more than memory in one call are refused before they do |
//! | `dense` | aggregates that find their groups by direct addressing |
//! | `memory` | one budget for all queries, and what each uses of it |
//! | `spill` | where queries spill, how much they may, and what is checked when it is read |
//! | `options` | DataFusion's options in the config: passed on, or refused with what to use instead |
//! | `not_in` | `NOT IN` of a subquery, as SQL means it |
//! | `names` | pinned tables as the catalog DataFusion plans against |

mod admission;
mod bridge;
mod config;
mod cooperate;
mod dense;
mod engine;
mod error;
mod expiring;
mod fit;
mod footprint;
mod growing;
mod hand_over;
mod hidden;
mod interrupt;
mod kept;
mod launch;
mod memory;
mod names;
mod not_in;
mod options;
mod params;
mod parts;
mod passing;
mod plan;
mod plan_cache;
mod prepared;
mod produce;
mod query;
mod result_cache;
mod run;
mod runtime;
mod session;
mod settings;
mod spill;
mod sql;
mod substrait;
mod unsent;

pub use admission::PrincipalConfig;
pub use bridge::Weight;
pub use config::{Config, MemoryPoolKind, Partitions, SpillCompression};
pub use engine::{CancelOutcome, Engine, FunctionNames, TableDescription};
pub use error::{Error, ErrorKind};
pub use memory::{Allocator, UploadMemory};
pub use options::DatafusionOptions;
pub use plan::{Planned, Statement};
pub use plan_cache::CacheFigures;
pub use prepared::{Parameter, Prepared, PreparedHandle};
pub use produce::{Encoded, Unencoded};
pub use query::{QueryId, Report, ResultCacheUse};
pub use run::{Part, QueryStream, Usage};
pub use session::{Session, SessionId};
pub use settings::{SettingSpec, Settings};
pub use substrait::substrait_version;
pub use unsent::Charge;
pub use updraft_catalog::{CATALOG, SCHEMA};
