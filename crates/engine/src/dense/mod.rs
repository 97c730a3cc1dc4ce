//! Aggregates whose groups are found by direct addressing instead of hashing.
//!
//! A key whose values are a small range of whole numbers, or codes of strings, is a number itself; the numbers of all
//! keys together are a place in a table. DataFusion's own accumulators do the aggregating, so answers are the same.
//! Nothing here may fail where DataFusion's aggregates would not: what is known of keys only makes it quicker.
//!
//! | module | its story |
//! |---|---|
//! | `rule` | which aggregates are replaced |
//! | `coded` | asks the scan below for strings as codes |
//! | `exec` | the plan node |
//! | `run` | partitions gather groups, which are then brought together |
//! | `groups` | the groups of one partition |
//! | `keys` | keys as digits of a slot |
//! | `codes` | the strings of a key, numbered for a whole query |
//! | `stock` | what takes over when keys are not what they seemed, or memory is short |

mod coded;
mod codes;
mod exec;
mod groups;
mod keys;
mod rule;
mod run;
mod stock;
#[cfg(test)]
mod tests;

pub(crate) use exec::DenseAggregateExec;
pub(crate) use rule::DenseAggregates;
