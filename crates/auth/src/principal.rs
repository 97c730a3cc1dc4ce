use std::fmt;
use std::sync::Arc;

/// Name of the principal that callers without a credential get. No user may carry it.
pub const ANONYMOUS: &str = "anonymous";

/// Who is calling, as far as permissions, limits and logs are concerned. Cloning is cheap.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Principal(Arc<str>);

impl Principal {
    /// A principal with this name. `anonymous` is the one that needs no credential.
    pub fn new(name: impl Into<Arc<str>>) -> Self {
        Self(name.into())
    }

    /// The principal of callers without a credential.
    pub fn anonymous() -> Self {
        Self::new(ANONYMOUS)
    }

    /// The name, as it stands in the config.
    pub fn name(&self) -> &str {
        &self.0
    }

    /// True for callers without a credential.
    pub fn is_anonymous(&self) -> bool {
        &*self.0 == ANONYMOUS
    }
}

impl fmt::Display for Principal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Principal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Principal({:?})", &*self.0)
    }
}

/// What an accepted credential says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Who is calling.
    pub principal: Principal,
    /// The session that the credential belongs to (a UUID), when it was a token of a login.
    pub session: Option<[u8; 16]>,
    /// When the credential itself ends, in seconds since 1970, if it ends. Tokens issued for it end no later.
    pub expires_at_seconds: Option<i64>,
}

impl Identity {
    /// An identity without session or end.
    pub fn of(principal: Principal) -> Self {
        Self { principal, session: None, expires_at_seconds: None }
    }
}
