//! What goes over the wire: which types a client gets, how batches become messages, how uploads become batches.
//!
//! - [`options`]: what a client asked for (types, compression, endpoints), parsed from session options, headers, tickets.
//! - [`types`]: the one mapping from a query's schema to the schema clients see, and the SQL metadata of its columns.
//! - [`gather`]: small batches of a query put together.
//! - [`convert`]: record batches into that schema, cut into pieces of a bounded size; [`text`] for strings.
//! - [`encode`]: pieces into Flight messages.
//! - [`message`]: a Flight message in the frames of a gRPC response, without a copy of what is large.
//! - [`upload`]: Flight messages from clients into record batches, with every length checked before it is believed;
//!   [`upload_schema`] and [`upload_body`] hold the checks.
//!
//! Nothing here waits but `read_upload` and `gather`, and nothing here knows of queries, sessions or gRPC services.

pub(crate) mod convert;
pub(crate) mod encode;
mod gather;
mod message;
pub(crate) mod options;
#[cfg(test)]
pub(crate) mod tests;
mod text;
pub(crate) mod types;
pub(crate) mod upload;
mod upload_body;
mod upload_schema;

pub use encode::encode_for_bench;
pub(crate) use encode::{Encoder, WireError, schema_bytes};
pub(crate) use gather::Gathered;
pub(crate) use message::{COPIED_MAX, Message};
pub(crate) use options::SETTINGS;
pub use options::WireOptions;
pub(crate) use types::{wire_schema, with_column_metadata};
pub(crate) use upload::Upload;
pub use upload::{UploadError, UploadLimits, read_upload};
