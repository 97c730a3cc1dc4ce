use std::time::Duration;

/// Why a credential or a sealed message was refused. Every text is fit for the client: it says nothing about which
/// users exist, and holds no part of what was sent.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Nothing was sent, and anonymous callers are not allowed.
    #[error("login required; hint: send user and password, or a token as `authorization: Bearer <token>`")]
    Missing,
    /// The header is not one of the forms that are understood.
    #[error("malformed authorization header: {0}")]
    Malformed(&'static str),
    /// Wrong user, wrong password or unknown token: one text for all, so that nobody can list users with it.
    #[error("wrong user, password or token")]
    Unauthenticated,
    /// The token was good once. Logging in again helps.
    #[error("token has expired; hint: log in again")]
    Expired,
    /// Too many failed logins, or too many passwords waiting to be checked.
    #[error("too many logins; hint: try again in {} s", seconds_up(.retry_after))]
    Throttled {
        /// When trying again can succeed.
        retry_after: Duration,
    },
    /// Truncated, altered, sealed for another purpose, or sealed by another server.
    #[error("seal is broken: not made by this server, or altered")]
    Seal,
    /// The operating system or the hash function refused. Not the client's fault.
    #[error("{step} failed")]
    Internal {
        /// What was being done.
        step: &'static str,
    },
}

impl Error {
    /// True when this server failed, rather than the client.
    pub fn is_internal(&self) -> bool {
        matches!(self, Self::Internal { .. })
    }
}

/// Whole seconds, rounded up: a client that waits this long is never a moment early.
fn seconds_up(duration: &Duration) -> u64 {
    duration.as_secs() + u64::from(duration.subsec_nanos() > 0)
}
