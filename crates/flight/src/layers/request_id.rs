use std::fmt;

use uuid::Uuid;

/// Names one call in logs and in the texts of internal errors. In the extensions of each request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct RequestId(
    /// Version 7, so that sorting by it is sorting by time.
    pub(crate) Uuid,
);

impl RequestId {
    /// A new id.
    pub(crate) fn new() -> Self {
        Self(Uuid::now_v7())
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The last part of a gRPC path, for logs. A client can put anything there, so only plain names are passed on.
pub(super) fn method(path: &str) -> &str {
    let name = path.rsplit('/').next().unwrap_or_default();
    let plain = (1..=64).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_alphanumeric());
    if plain { name } else { "(other)" }
}
