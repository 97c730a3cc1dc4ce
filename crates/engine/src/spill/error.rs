//! What can go wrong with spilled data.
//!
//! Arrow's writer passes on nothing but `io::Error`, so that is what these travel in; its kind is what
//! [`crate::ErrorKind`] is made of.

use std::io;
use std::path::{Path, PathBuf};

use bytesize::ByteSize;

/// A step of spilling that failed. Directories are named as the operator named them.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SpillError {
    /// Nobody wants what would be written.
    #[error("the query was cancelled")]
    Cancelled,
    /// The quota of the query is used up.
    #[error(
        "the query has spilled {0}, which is all it may; hint: raise engine.query_spill_limit, or give the query \
         more memory"
    )]
    QueryLimit(ByteSize),
    /// The quota of all queries is used up.
    #[error(
        "all queries together may spill {0}, and that is used up; hint: try again later, or raise engine.spill_limit"
    )]
    Limit(ByteSize),
    /// No space, or no quota of the operating system's, in this directory.
    #[error(
        "no space for spilled data in {}: {source}; hint: free some there, or add a directory to \
         engine.spill_directories", directory.display()
    )]
    Full {
        /// Where.
        directory: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// What is read is not what was written.
    #[error("spilled data in {} was damaged: {what}", directory.display())]
    Damaged {
        /// Where.
        directory: PathBuf,
        /// What gave it away.
        what: &'static str,
    },
    /// Anything else.
    #[error("cannot {step} spilled data in {}: {source}", directory.display())]
    Failed {
        /// What was tried.
        step: &'static str,
        /// Where.
        directory: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
}

impl SpillError {
    /// What the operating system said when `step` was tried in `directory`.
    pub(super) fn of_io(step: &'static str, directory: &Path, source: io::Error) -> Self {
        let directory = directory.to_owned();
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::Full { directory, source },
            io::ErrorKind::UnexpectedEof => {
                Self::Damaged { directory, what: "a file is shorter than what was written" }
            }
            _ => Self::Failed { step, directory, source },
        }
    }
}

impl From<SpillError> for io::Error {
    fn from(error: SpillError) -> Self {
        let kind = match &error {
            SpillError::QueryLimit(_) | SpillError::Limit(_) => io::ErrorKind::QuotaExceeded,
            SpillError::Full { .. } => io::ErrorKind::StorageFull,
            SpillError::Damaged { .. } => io::ErrorKind::InvalidData,
            SpillError::Cancelled | SpillError::Failed { .. } => io::ErrorKind::Other,
        };
        Self::new(kind, error)
    }
}
