//! The scan of a table whose columns are, in part or all, in memory.
//!
//! Rows are left out before they are copied: row groups by what is known of their values, rows by filters on the columns
//! that those name, and only then are the other columns looked at. What is not in memory is read from its file by the very
//! scan there would be without the cache, in the same plan.
//!
//! - `source`: [`HotSource`], the leaf of a plan; `estimate`: how many rows it will give; `order`: sorts that it makes needless
//! - `segments`: the row groups of a table; `bounds`: what their footers say of them
//! - `queue`: which partition takes which rows next
//! - `rows`: columns in memory, cut to rows, filtered, put together; `codebook`: strings of files as codes
//! - `filter`: predicates, one after the other; `dynamic`: those that other operators make while the query runs; `routed`: by
//!   joins of partitions
//! - `again`: columns that one plan looks at twice
//! - `access`: gets the rows of segments; `cold`: from their files; `unpruned`: floats in those; `stream`: one partition

mod access;
mod again;
mod bounds;
mod codebook;
mod cold;
mod dynamic;
mod estimate;
mod filter;
mod order;
mod queue;
mod routed;
mod rows;
mod segments;
mod source;
mod stream;
mod unpruned;

#[cfg(test)]
mod tests;

pub use again::LoadOnce;
pub use bounds::{Bounds, ColumnBounds};
pub use cold::{ByPages, pays_late};
pub use order::InOrder;
pub use segments::Segments;
pub use source::{HotSource, Outlook};
