//! The hot-table cache: decoded columns of the tables that are asked for most, kept in memory.
//!
//! What it will hold: arrays per (snapshot, file, row group, column), counted in bytes, evicted at `memory_limit`. Its key
//! starts with the identity of a pinned file, so that a replaced file can never be answered from memory.
//! For now it is the seam only: settings are read and checked, and nothing is cached (`memory_limit` is 0 by default).
//!
//! Never: file access, listing, names of tables (those are the catalog's), or memory outside its budget.
//!
//! - [`Config`]: the settings of section `hot`.

mod config;

pub use config::Config;
