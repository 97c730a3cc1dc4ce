//! What can go wrong with a query, and of which kind it is.

use std::time::Duration;

use datafusion::arrow::error::ArrowError;
use datafusion::error::DataFusionError;
use datafusion::sql::sqlparser::parser::ParserError;
use updraft_auth::Principal;

use crate::query::QueryId;

/// When to try again after what passes by itself, at a time nobody knows.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// A failed step in the life of a query.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// DataFusion refused or failed.
    #[error("{}", readable(.0))]
    DataFusion(#[source] DataFusionError),
    /// The catalog could not resolve or read a table.
    #[error("{0}")]
    Catalog(#[source] Box<updraft_catalog::Error>),
    /// The SQL text is longer, deeper or has more terms than the limits allow.
    #[error("statement is too complex: {0}")]
    TooComplex(String),
    /// The statement is of a kind that is not offered.
    #[error("{0}")]
    Unsupported(String),
    /// The statement, a parameter or a setting is wrong.
    #[error("{0}")]
    Invalid(String),
    /// A table that does not exist, or that the caller may not see.
    #[error("{what} \"{name}\" does not exist; hint: {hint}")]
    NotFound {
        /// The kind of object: table, prepared statement, session, query.
        what: &'static str,
        /// Its name as the caller gave it.
        name: String,
        /// What the caller can do.
        hint: &'static str,
    },
    /// A bounded thing of the server is full.
    #[error("{0}")]
    Exhausted(String),
    /// Ended so that the server stays within its memory.
    #[error("{0}")]
    Shed(String),
    /// A table changed, or a planned query was dropped, since the ticket was given.
    #[error("{0}")]
    Stale(String),
    /// The server is shutting down.
    #[error("the server is shutting down; try again on another one, or in a moment")]
    Draining,
    /// As many queries wait as may.
    #[error("{}", queue_full(*.queued, *.limit, .principal.as_ref()))]
    QueueFull {
        /// How many wait.
        queued: usize,
        /// How many may.
        limit: usize,
        /// Whose bound it is; `None` = the server's.
        principal: Option<Principal>,
        /// When it is probably worth another try.
        retry_after: Duration,
    },
    /// A query waited for its turn as long as it may.
    #[error(
        "the query waited {} for its turn (engine.queue_timeout), and {queued} others still wait; try again later",
        rounded(*.waited)
    )]
    QueueTimeout {
        /// How long it waited.
        waited: Duration,
        /// How many wait now.
        queued: usize,
        /// When it is probably worth another try.
        retry_after: Duration,
    },
    /// The deadline of the client or the statement timeout passed.
    #[error("query ran longer than its limit of {0}; hint: raise statement_timeout or the client's deadline")]
    Deadline(String),
    /// The client did not read for too long.
    #[error("nothing of the result was read for {0}; hint: read faster, or raise engine.idle_stream_timeout")]
    Idle(String),
    /// Somebody cancelled the query.
    #[error("query was cancelled")]
    Cancelled,
    /// A panic was caught.
    #[error("query {query} failed inside the server: {message}")]
    Panicked {
        /// The query that panicked.
        query: QueryId,
        /// What the panic said; for the log.
        message: String,
    },
}

/// On what a caller decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// Bad SQL, parameter or setting.
    Invalid,
    /// A statement or feature that is not offered.
    Unsupported,
    /// A table, handle or session that does not exist.
    NotFound,
    /// The caller may not do this.
    Denied,
    /// A ticket or prepared statement that is no longer valid.
    Stale,
    /// Out of memory, spill space, or a quota.
    Exhausted,
    /// The server or an object store is not there now; a retry may help.
    Unavailable,
    /// A file is damaged.
    Corrupt,
    /// Took too long.
    Deadline,
    /// Was cancelled.
    Cancelled,
    /// A bug of ours.
    Internal,
}

impl std::fmt::Display for ErrorKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Invalid => "invalid",
            Self::Unsupported => "unsupported",
            Self::NotFound => "not_found",
            Self::Denied => "denied",
            Self::Stale => "stale",
            Self::Exhausted => "exhausted",
            Self::Unavailable => "unavailable",
            Self::Corrupt => "corrupt",
            Self::Deadline => "deadline",
            Self::Cancelled => "cancelled",
            Self::Internal => "internal",
        })
    }
}

impl From<DataFusionError> for Error {
    fn from(error: DataFusionError) -> Self {
        match error {
            // One of ours, on its way through a stream of DataFusion's.
            DataFusionError::External(inner) => match inner.downcast::<Self>() {
                Ok(ours) => *ours,
                Err(inner) => Self::DataFusion(DataFusionError::External(inner)),
            },
            error => Self::DataFusion(error),
        }
    }
}

impl From<updraft_catalog::Error> for Error {
    fn from(error: updraft_catalog::Error) -> Self {
        Self::Catalog(Box::new(error))
    }
}

impl Error {
    /// Whether memory was refused or taken away, and less of it could do.
    pub(crate) fn is_refusal(&self) -> bool {
        match self {
            Self::DataFusion(error) => crate::memory::is_refusal(error),
            Self::Shed(_) => true,
            _ => false,
        }
    }

    /// The kind, for the status a client gets.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::DataFusion(error) => kind_of(error),
            Self::Catalog(error) => catalog_kind(error.kind()),
            Self::TooComplex(_) | Self::Invalid(_) => ErrorKind::Invalid,
            Self::Unsupported(_) => ErrorKind::Unsupported,
            Self::NotFound { .. } => ErrorKind::NotFound,
            Self::Exhausted(_) | Self::Shed(_) => ErrorKind::Exhausted,
            Self::Stale(_) => ErrorKind::Stale,
            Self::Draining | Self::QueueFull { .. } | Self::QueueTimeout { .. } => ErrorKind::Unavailable,
            Self::Deadline(_) | Self::Idle(_) => ErrorKind::Deadline,
            Self::Cancelled => ErrorKind::Cancelled,
            Self::Panicked { .. } => ErrorKind::Internal,
        }
    }

    /// When it is worth another try; `None` for what does not pass by itself.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::QueueFull { retry_after, .. } | Self::QueueTimeout { retry_after, .. } => Some(*retry_after),
            other => (other.kind() == ErrorKind::Unavailable).then_some(RETRY_AFTER),
        }
    }
}

fn queue_full(queued: usize, limit: usize, principal: Option<&Principal>) -> String {
    match principal {
        None => {
            format!("the queue is full: {queued} queries wait (engine.max_queued = {limit}); try again in a moment")
        }
        Some(principal) => format!(
            "the queue is full: {queued} queries of \"{principal}\" wait (its max_queued in engine.principals = {limit}); \
             try again in a moment"
        ),
    }
}

/// `duration` for people, to the millisecond.
fn rounded(duration: Duration) -> humantime::FormattedDuration {
    humantime::format_duration(Duration::from_millis(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)))
}

fn catalog_kind(kind: updraft_catalog::ErrorKind) -> ErrorKind {
    use updraft_catalog::ErrorKind as Catalog;
    match kind {
        Catalog::NotFound => ErrorKind::NotFound,
        Catalog::Invalid => ErrorKind::Invalid,
        Catalog::Unavailable => ErrorKind::Unavailable,
        Catalog::Denied => ErrorKind::Denied,
        Catalog::Corrupt => ErrorKind::Corrupt,
        Catalog::Changed => ErrorKind::Stale,
        Catalog::Internal => ErrorKind::Internal,
    }
}

/// One exhaustive walk: a variant that DataFusion adds later must be decided here.
fn kind_of(error: &DataFusionError) -> ErrorKind {
    // What the catalog's readers raised travels inside DataFusion's, Arrow's and object_store's errors.
    if let Some(kind) = updraft_catalog::find(error) {
        return catalog_kind(kind);
    }
    match error {
        DataFusionError::ArrowError(error, _) => kind_of_arrow(error),
        DataFusionError::ParquetError(_) => ErrorKind::Corrupt,
        DataFusionError::ObjectStore(_) => ErrorKind::Unavailable,
        DataFusionError::IoError(error) => kind_of_io(error),
        DataFusionError::SQL(..)
        | DataFusionError::Plan(_)
        | DataFusionError::Configuration(_)
        | DataFusionError::SchemaError(..)
        | DataFusionError::Execution(_)
        | DataFusionError::Substrait(_) => ErrorKind::Invalid,
        DataFusionError::NotImplemented(_) => ErrorKind::Invalid,
        DataFusionError::Internal(_) | DataFusionError::ExecutionJoin(_) | DataFusionError::Ffi(_) => {
            ErrorKind::Internal
        }
        DataFusionError::ResourcesExhausted(_) => ErrorKind::Exhausted,
        DataFusionError::External(error) => kind_of_external(error.as_ref()),
        DataFusionError::Context(_, inner) | DataFusionError::Diagnostic(_, inner) => kind_of(inner),
        DataFusionError::Collection(errors) => errors.first().map_or(ErrorKind::Internal, kind_of),
        DataFusionError::Shared(inner) => kind_of(inner),
    }
}

fn kind_of_arrow(error: &ArrowError) -> ErrorKind {
    match error {
        ArrowError::ExternalError(inner) => kind_of_external(inner.as_ref()),
        ArrowError::IoError(_, error) => kind_of_io(error),
        ArrowError::CsvError(_)
        | ArrowError::JsonError(_)
        | ArrowError::AvroError(_)
        | ArrowError::IpcError(_)
        | ArrowError::ParquetError(_) => ErrorKind::Corrupt,
        ArrowError::MemoryError(_) => ErrorKind::Exhausted,
        ArrowError::NotYetImplemented(_)
        | ArrowError::CastError(_)
        | ArrowError::ParseError(_)
        | ArrowError::SchemaError(_)
        | ArrowError::ComputeError(_)
        | ArrowError::DivideByZero
        | ArrowError::ArithmeticOverflow(_)
        | ArrowError::InvalidArgumentError(_)
        | ArrowError::CDataInterface(_)
        | ArrowError::DictionaryKeyOverflowError
        | ArrowError::RunEndIndexOverflowError
        | ArrowError::OffsetOverflowError(_) => ErrorKind::Invalid,
    }
}

fn kind_of_external(error: &(dyn std::error::Error + Send + Sync + 'static)) -> ErrorKind {
    if let Some(error) = error.downcast_ref::<DataFusionError>() {
        kind_of(error)
    } else if let Some(error) = error.downcast_ref::<ArrowError>() {
        kind_of_arrow(error)
    } else if let Some(error) = error.downcast_ref::<Error>() {
        error.kind()
    } else if error.is::<regex::Error>() || error.is::<regex_syntax::Error>() {
        ErrorKind::Invalid
    } else if error.is::<crate::memory::Refused>() {
        ErrorKind::Exhausted
    } else if let Some(error) = error.downcast_ref::<std::io::Error>() {
        kind_of_io(error)
    } else {
        ErrorKind::Internal
    }
}

fn kind_of_io(error: &std::io::Error) -> ErrorKind {
    match error.kind() {
        std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => ErrorKind::Exhausted,
        std::io::ErrorKind::InvalidData => ErrorKind::Corrupt,
        _ => ErrorKind::Internal,
    }
}

/// DataFusion's text without its layers of prefixes: the user did not ask which component failed.
fn readable(error: &DataFusionError) -> String {
    let mut text = match error.find_root() {
        DataFusionError::SQL(error, _) => match error.as_ref() {
            ParserError::TokenizerError(text) | ParserError::ParserError(text) => format!("syntax error: {text}"),
            ParserError::RecursionLimitExceeded => "the statement is nested too deep".to_owned(),
        },
        DataFusionError::Context(_, inner) => inner.strip_backtrace(),
        root => root.strip_backtrace(),
    };
    for prefix in [
        "Error during planning: ",
        "Execution error: ",
        "SQL error: ",
        "Schema error: ",
        "Arrow error: ",
        "External error: ",
        "Io error: ",
        "IO error: ",
        "This feature is not implemented: ",
        "Invalid or Unsupported Configuration: ",
        "Resources exhausted: ",
        "Substrait error: ",
    ] {
        if let Some(rest) = text.strip_prefix(prefix) {
            text = rest.to_owned();
        }
    }
    text
}
