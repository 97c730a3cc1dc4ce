//! What is known of the values of a column: enough to leave out rows that cannot match.

use datafusion::arrow::array::ArrayRef;
use datafusion::common::ScalarValue;
use datafusion::error::Result;

/// What is known of a column's values.
#[derive(Debug, Clone, PartialEq)]
pub struct Zone {
    /// The smallest value, of the table's column type; NULL when it is not known or there is none. Of floats it is a lower
    /// bound (-0.0 for 0.0), and not known when there is a NaN.
    pub min: ScalarValue,
    /// The largest value, likewise (0.0 for -0.0).
    pub max: ScalarValue,
    /// Number of NULLs.
    pub nulls: usize,
    /// The values ascend, and none is NULL (or NaN).
    pub sorted: bool,
}

impl Zone {
    pub(crate) fn of(data: &ArrayRef) -> Result<Self> {
        todo!()
    }

    pub(crate) fn bytes(&self) -> usize {
        self.min.size() + self.max.size()
    }
}
