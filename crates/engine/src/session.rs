//! Sessions: the settings of a client from one call to the next.

use std::sync::Arc;

use updraft_auth::Principal;

use crate::admission::{Limits, PerPrincipal};
use crate::config::Config;
use crate::error::Error;
use crate::expiring::{Expiring, WhenFull};
use crate::settings::{Defaults, SettingSpec, Settings};

/// 16 bytes that name a session: from a bearer token, a cookie, or made from a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SessionId(pub [u8; 16]);

/// Who asks, and with which settings. A value: a later change of the session does not change a query.
#[derive(Debug, Clone)]
pub struct Session {
    /// The id of the session.
    pub id: SessionId,
    /// Who calls.
    pub principal: Principal,
    /// The settings at the time of the call.
    pub settings: Arc<Settings>,
}

/// Sessions that differ from the server's defaults. One without changes costs nothing and never expires.
#[derive(Debug)]
pub(crate) struct Sessions {
    changed: Expiring<(SessionId, Principal), Arc<Settings>>,
    defaults: PerPrincipal<Defaults>,
}

impl Sessions {
    pub(crate) fn new(config: &Config, front_end: &'static [SettingSpec], limits: &PerPrincipal<Limits>) -> Self {
        Self {
            changed: Expiring::new(config.sessions_max, config.session_ttl, WhenFull::Refuse),
            defaults: limits.map(|limits| Defaults::new(config, front_end, limits)),
        }
    }

    /// What a session of `principal` starts with, and what it may change.
    pub(crate) fn defaults(&self, principal: &Principal) -> &Defaults {
        self.defaults.of(principal)
    }

    /// The canonical name of a setting, which everyone has alike.
    ///
    /// # Errors
    /// `Unsupported`, with the list of what can be set.
    pub(crate) fn setting_name(&self, name: &str) -> Result<&'static str, Error> {
        self.defaults.others().canonical(name)
    }

    /// The session `id` of `principal`. The principal is part of the key, so that nobody gets into the
    /// session of another by its id.
    pub(crate) fn get(&self, id: SessionId, principal: &Principal) -> Session {
        let settings = self.changed.get(&(id, principal.clone()));
        let settings = settings.unwrap_or_else(|| Arc::clone(self.defaults(principal).settings()));
        Session { id, principal: principal.clone(), settings }
    }

    /// Stores the session's new settings.
    ///
    /// # Errors
    /// `Exhausted` at the bound of sessions.
    pub(crate) fn put(&self, session: &Session, settings: Settings) -> Result<(), Error> {
        let key = (session.id, session.principal.clone());
        if settings == **self.defaults(&session.principal).settings() {
            self.changed.remove(&key);
            return Ok(());
        }
        self.changed.insert(key, Arc::new(settings)).map_err(|_| {
            Error::Exhausted(
                "the server has as many sessions as it may; close some, or raise engine.sessions_max".into(),
            )
        })
    }

    /// Forgets the session. Returns whether it had been changed.
    pub(crate) fn close(&self, session: &Session) -> bool {
        self.changed.remove(&(session.id, session.principal.clone())).is_some()
    }

    pub(crate) fn sweep(&self) {
        self.changed.sweep();
    }
}
