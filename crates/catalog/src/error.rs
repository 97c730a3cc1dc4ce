//! What can go wrong between a table's name and its rows.

use datafusion::arrow::error::ArrowError;
use datafusion::error::DataFusionError;
use datafusion::parquet::errors::ParquetError;

/// What kind of trouble an [`Error`] is; decisions are taken on this, never on the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// A root, bucket, folder or file that does not exist.
    NotFound,
    /// The definition or the files of a table do not fit together: schema clash, ambiguous name, bad option.
    Invalid,
    /// The store does not answer, or answers with server errors; a later try may succeed.
    Unavailable,
    /// The store refuses the credential.
    Denied,
    /// The bytes are not what the format promises: truncated Parquet, bad line in a CSV.
    Corrupt,
    /// A file was replaced or removed after the query had pinned it; running the query again helps.
    Changed,
    /// A bug of ours.
    Internal,
}

/// An error of the catalog. It names the table and the file or location; it never holds a credential.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A setting of section `catalog` is wrong.
    #[error("catalog.{key}: {problem}")]
    Setting {
        /// Key path below `catalog`.
        key: String,
        /// What is wrong, and what would be right.
        problem: String,
    },
    /// A location in the settings can not be used at all.
    #[error("location {location:?}: {problem}")]
    Location {
        /// The path or URL as configured.
        location: String,
        /// What is wrong, and what would be right.
        problem: String,
    },
    /// A data root, or the location of a configured table, does not exist.
    #[error(
        "location {location:?} does not exist; hint: check the path, or the bucket and the prefix, in the settings"
    )]
    Missing {
        /// The path or URL as configured.
        location: String,
    },
    /// Two places claim one table name.
    #[error("table \"{schema}.{name}\" is ambiguous: both {first} and {second} hold it; rename or remove one")]
    Ambiguous {
        /// Schema of the table.
        schema: String,
        /// Name of the table.
        name: String,
        /// Location found first.
        first: String,
        /// The other location.
        second: String,
    },
    /// A view has the name of a table.
    #[error("view \"{schema}.{name}\" has the name of a table ({location}); rename one of the two")]
    ViewIsTable {
        /// Schema of both.
        schema: String,
        /// Name of both.
        name: String,
        /// Where the table is.
        location: String,
    },
    /// A folder is neither a table nor a schema.
    #[error("folder {folder} can not be read as a table: {problem}")]
    Folder {
        /// The folder.
        folder: String,
        /// Why, and what would help.
        problem: String,
    },
    /// The definition of a table, or a file's place in it, is not usable.
    #[error("table {table:?}: {problem}")]
    Table {
        /// `schema.name` of the table.
        table: String,
        /// What is wrong, with the file's name where one is to blame.
        problem: String,
    },
    /// Two files of a table give a column different types.
    #[error("{0}")]
    Clash(Box<Clash>),
    /// A store could not be listed or asked.
    #[error("location {location:?}: {source}")]
    Store {
        /// The path or URL.
        location: String,
        /// What the store said.
        #[source]
        source: object_store::Error,
    },
    /// A file of a table could not be read, or not understood.
    #[error("table {table:?}: read file {file}{place}: {source}")]
    Read {
        /// `schema.name` of the table.
        table: String,
        /// The file.
        file: String,
        /// Where in the file, when the reader saw only a part of it; else empty.
        place: String,
        /// Found once, from `source`.
        kind: ErrorKind,
        /// What the reader said.
        #[source]
        source: Box<DataFusionError>,
    },
    /// A file was replaced or removed after it had been pinned.
    #[error("table {table:?} changed while it was read: file {file}; run the query again")]
    Changed {
        /// `schema.name` of the table.
        table: String,
        /// The file.
        file: String,
    },
    /// DataFusion asked for a store that no live snapshot owns.
    #[error("no object store for {url}: only tables of the catalog can be read")]
    UnknownStore {
        /// The URL asked for.
        url: String,
    },
    /// An invariant of ours does not hold.
    #[error("catalog: {what}")]
    Internal {
        /// Which one.
        what: String,
    },
}

/// A column that has two types; see [`Error::Clash`].
#[derive(Debug)]
pub struct Clash {
    /// `schema.name` of the table.
    pub table: String,
    /// The column.
    pub column: String,
    /// The file that differs.
    pub file: String,
    /// Its type there.
    pub found: String,
    /// The file (or the settings) that set the type.
    pub first_file: String,
    /// The type set there.
    pub expected: String,
}

impl std::fmt::Display for Clash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { table, column, file, found, first_file, expected } = self;
        write!(
            f,
            "table {table:?}: column {column:?} is {found} in file {file} but {expected} in {first_file}; hint: rewrite one of \
             them, or keep the files in two tables"
        )
    }
}

impl Error {
    /// The kind of this error.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Error::Setting { .. }
            | Error::Location { .. }
            | Error::Ambiguous { .. }
            | Error::ViewIsTable { .. }
            | Error::Folder { .. }
            | Error::Table { .. }
            | Error::Clash(_)
            | Error::UnknownStore { .. } => ErrorKind::Invalid,
            Error::Missing { .. } => ErrorKind::NotFound,
            Error::Store { source, .. } => find(source).unwrap_or(ErrorKind::Unavailable),
            Error::Read { kind, .. } => *kind,
            Error::Changed { .. } => ErrorKind::Changed,
            Error::Internal { .. } => ErrorKind::Internal,
        }
    }

    /// Names table and file around what a reader said. A change keeps its own words: they say what to do.
    pub(crate) fn reading(table: &str, file: &str, place: String, source: DataFusionError) -> Error {
        let kind = find(&source).unwrap_or(ErrorKind::Corrupt);
        let (table, file) = (table.to_owned(), file.to_owned());
        match kind {
            ErrorKind::Changed => Error::Changed { table, file },
            kind => Error::Read { table, file, place, kind, source: Box::new(source) },
        }
    }
}

impl From<Error> for DataFusionError {
    fn from(error: Error) -> Self {
        DataFusionError::External(Box::new(error))
    }
}

/// Whether an error of the catalog is in the chain of sources: it says which table and file it is about.
pub(crate) fn is_ours(error: &(dyn std::error::Error + 'static)) -> bool {
    std::iter::successors(Some(error), |error| error.source()).any(|error| error.is::<Error>())
}

/// The kind of the catalog's error inside `error`, wherever it is in the chain of sources; `None` when the trouble is not
/// one of reading tables. Errors of stores and of file formats are recognised too, for those that reach a query without
/// passing through this crate's readers (pages of Parquet).
pub fn find(error: &(dyn std::error::Error + 'static)) -> Option<ErrorKind> {
    let mut current = Some(error);
    // A generic store error may wrap a precise one, so the first guess holds only if nothing better follows.
    let mut guess = None;
    while let Some(e) = current {
        if let Some(ours) = e.downcast_ref::<Error>() {
            return Some(ours.kind());
        }
        if let Some(store) = e.downcast_ref::<object_store::Error>() {
            match of_store(store) {
                (kind, true) => return Some(kind),
                (kind, false) => guess = guess.or(Some(kind)),
            }
        } else if let Some(parquet) = e.downcast_ref::<ParquetError>() {
            // `External` is somebody else's error on its way through.
            if !matches!(parquet, ParquetError::External(_)) {
                guess = guess.or(Some(ErrorKind::Corrupt));
            }
        } else if let Some(ArrowError::ParquetError(_) | ArrowError::IpcError(_) | ArrowError::AvroError(_)) =
            e.downcast_ref::<ArrowError>()
        {
            guess = guess.or(Some(ErrorKind::Corrupt));
        }
        current = e.source();
    }
    guess
}

/// The kind of a store's error, and whether it is certain without looking at its source.
fn of_store(error: &object_store::Error) -> (ErrorKind, bool) {
    use object_store::Error as E;
    match error {
        E::NotFound { .. } => (ErrorKind::NotFound, false),
        E::Precondition { .. } | E::NotModified { .. } => (ErrorKind::Changed, true),
        E::PermissionDenied { .. } | E::Unauthenticated { .. } => (ErrorKind::Denied, true),
        E::InvalidPath { .. }
        | E::NotSupported { .. }
        | E::NotImplemented { .. }
        | E::UnknownConfigurationKey { .. } => (ErrorKind::Invalid, true),
        E::AlreadyExists { .. } | E::JoinError { .. } => (ErrorKind::Internal, true),
        // Timeouts, 5xx after the last retry, refused connections; local I/O errors as well.
        _ => (ErrorKind::Unavailable, false),
    }
}
