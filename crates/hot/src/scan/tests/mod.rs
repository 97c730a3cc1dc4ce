//! The scan against DataFusion's own over the same files.

mod known;
mod random;
mod table;
mod told;
