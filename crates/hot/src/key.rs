//! What a column in memory is known by: the exact file, its row group, the column in it, and the type it was read as.

use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use datafusion::arrow::datatypes::DataType;

/// The exact version of a file: equal keys hold equal bytes. Cheap to clone, to compare and to hash.
#[derive(Clone)]
pub struct FileKey(Arc<Identity>);

struct Identity {
    hash: u64,
    text: Box<str>,
}

impl FileKey {
    /// `identity` says all that tells one version of one file from all others: place, size, time, tag, version.
    pub fn new(identity: impl Into<Box<str>>) -> Self {
        let text = identity.into();
        let mut hasher = DefaultHasher::new();
        text.hash(&mut hasher);
        Self(Arc::new(Identity { hash: hasher.finish(), text }))
    }
}

impl PartialEq for FileKey {
    // The hash is a shortcut only: two files are the same when their whole identities are.
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0) || (self.0.hash == other.0.hash && self.0.text == other.0.text)
    }
}

impl Eq for FileKey {}

impl Hash for FileKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.0.hash);
    }
}

impl fmt::Debug for FileKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.text)
    }
}

/// One row group of one Parquet file.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct SegmentId {
    /// The file.
    pub file: FileKey,
    /// The row group's number in the file.
    pub row_group: u32,
}

/// One column of one segment, as a table reads it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ColumnKey {
    /// The row group.
    pub segment: SegmentId,
    /// The column's number among the top-level columns of the file.
    pub column: u32,
    /// The table's type of the column: two tables may read one file as different types.
    pub data_type: DataType,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_equal_when_the_whole_identity_is() {
        let (a, same, other) = (FileKey::new("a:1"), FileKey::new("a:1"), FileKey::new("a:2"));
        assert_eq!(a, same);
        assert_ne!(a, other);
        let forged = FileKey(Arc::new(Identity { hash: a.0.hash, text: "b".into() }));
        assert_ne!(a, forged, "an equal hash is not enough");
    }
}
