//! Messages of Updraft's own, generated from `/proto`: sealed tickets and token claims.
//!
//! Never: logic, or a message of Arrow Flight (those are `arrow-flight`'s).

/// Messages of package `updraft.v1`.
pub mod v1 {
    #![allow(clippy::all, unreachable_pub)]
    include!(concat!(env!("OUT_DIR"), "/updraft.v1.rs"));
}
