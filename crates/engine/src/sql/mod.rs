//! SQL text to one allowed statement.

mod allowed;
mod limits;
mod parse;
mod placeholders;
mod uses;

pub(crate) use allowed::check_plan;
pub(crate) use parse::{Parsed, parse, parse_view};
pub(crate) use placeholders::Placeholders;
