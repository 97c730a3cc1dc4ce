//! What goes over the wire: which types a client gets, how batches become messages, how uploads become batches.
//!
//! - [`options`]: what a client asked for (types, compression, endpoints), parsed from session options, headers, tickets.
//! - [`types`]: the one mapping from a query's schema to the schema clients see, and the SQL metadata of its columns.
//! - [`convert`]: record batches into that schema, cut into pieces of a bounded size.
//! - [`encode`]: pieces into Flight messages.
//! - [`upload`]: Flight messages from clients into record batches, with every length checked before it is believed;
//!   [`upload_schema`] and [`upload_body`] hold the checks.
//!
//! Nothing here is async but `read_upload`, and nothing here knows of queries, sessions or gRPC services.

pub(crate) mod convert;
pub(crate) mod encode;
pub(crate) mod options;
#[cfg(test)]
pub(crate) mod tests;
pub(crate) mod types;
pub(crate) mod upload;
mod upload_body;
mod upload_schema;

pub(crate) use encode::{Encoder, WireError, schema_bytes};
pub(crate) use options::SETTINGS;
pub use options::WireOptions;
pub(crate) use types::{wire_schema, with_column_metadata};
pub(crate) use upload::Upload;
pub use upload::{UploadError, UploadLimits, read_upload};
