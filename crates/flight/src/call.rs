//! Who calls, in which session, until when, and how results are to be encoded.

use std::sync::{Arc, LazyLock};

use datafusion::arrow::datatypes::{DataType, TimeUnit};
use tokio::time::Instant;
use tonic::metadata::{AsciiMetadataValue, KeyAndValueRef, MetadataMap};
use tonic::{Request, Status};
use updraft_auth::Sealer;
use updraft_engine::{Engine, Session, SessionId, SettingSpec, Settings};
use uuid::Uuid;

use crate::layers::{Caller, Deadline};
use crate::status::status;
use crate::wire::{SETTINGS, WireOptions};

/// A header `x-updraft-<setting>` sets a session setting for one call.
const SETTING_HEADER: &str = "x-updraft-";

/// The settings that the wire adds to those of the engine.
pub(crate) const WIRE_SETTINGS: &[SettingSpec] = &[
    SettingSpec {
        name: SETTINGS[0].0,
        doc: SETTINGS[0].1,
        default: "compatible",
        check: |value| check(SETTINGS[0].0, value),
    },
    SettingSpec {
        name: SETTINGS[1].0,
        doc: SETTINGS[1].1,
        default: "none",
        check: |value| check(SETTINGS[1].0, value),
    },
    SettingSpec { name: SETTINGS[2].0, doc: SETTINGS[2].1, default: "1", check: |value| check(SETTINGS[2].0, value) },
];

fn check(name: &str, value: &str) -> Result<String, String> {
    let mut options = WireOptions::default();
    options.set(name, value)?;
    Ok(options.get(name).unwrap_or_default())
}

/// The wire options of a session.
pub(crate) fn wire_options(settings: &Settings) -> WireOptions {
    let pairs = SETTINGS.iter().map(|(name, _)| (*name, settings.front_end(name)));
    WireOptions::parse(pairs).expect("the session holds only values that `check` returned")
}

/// One call, before its command is known.
#[derive(Debug, Clone)]
pub(crate) struct Call {
    /// The session, with what the headers of this call change.
    pub(crate) session: Session,
    pub(crate) deadline: Option<Instant>,
    pub(crate) wire: WireOptions,
    /// What the client can bind.
    pub(crate) binds: Binds,
    /// Whether the client has no other way than a cookie to find its session on another connection.
    pub(crate) wants_cookie: bool,
}

impl Call {
    /// # Errors
    /// UNAUTHENTICATED when no layer said who calls; INVALID_ARGUMENT for a setting in a header.
    pub(crate) fn of<T>(engine: &Arc<Engine>, sealer: &Sealer, request: &Request<T>) -> Result<Self, Status> {
        let caller = request.extensions().get::<Caller>();
        let caller = caller.ok_or_else(|| Status::unauthenticated("no login"))?;
        let id = match (caller.cookie, caller.token_session) {
            (Some(cookie), _) => SessionId(cookie),
            (None, Some(token)) => SessionId(token),
            // A client without token or cookie has its connection in common with itself, and nobody else.
            (None, None) => SessionId(of_connection(sealer, caller.connection)),
        };
        let session = engine.session(id, &caller.principal);
        let changes = setting_headers(request.metadata())?;
        let changes = changes.iter().map(|(name, value)| (name.as_str(), *value));
        let session = engine.with_settings(&session, changes).map_err(status)?;
        Ok(Self {
            wire: wire_options(&session.settings),
            session,
            deadline: request.extensions().get::<Deadline>().map(|deadline| deadline.0.into()),
            binds: Binds::of(caller.user_agent.as_deref()),
            wants_cookie: caller.cookie.is_none() && caller.token_session.is_none(),
        })
    }
}

/// Tells the connections of this process from those of others that seal with the same key.
static PROCESS: LazyLock<Uuid> = LazyLock::new(Uuid::new_v4);

/// A session id for a connection that nobody can make up.
fn of_connection(sealer: &Sealer, connection: u64) -> [u8; 16] {
    let sealed = sealer.seal("connection", &[PROCESS.as_bytes().as_slice(), &connection.to_be_bytes()].concat());
    let mut id = [0; 16];
    let tag = sealed.len() - id.len();
    id.copy_from_slice(&sealed[tag..]);
    id
}

fn setting_headers(metadata: &MetadataMap) -> Result<Vec<(String, &str)>, Status> {
    let mut changes = Vec::new();
    for header in metadata.iter() {
        let KeyAndValueRef::Ascii(key, value) = header else { continue };
        if let Some(name) = key.as_str().strip_prefix(SETTING_HEADER) {
            changes.push((name.replace('-', "_"), text(value, key.as_str())?));
        }
    }
    Ok(changes)
}

fn text<'a>(value: &'a AsciiMetadataValue, key: &str) -> Result<&'a str, Status> {
    value.to_str().map_err(|_| Status::invalid_argument(format!("header {key} is not text")))
}

/// What parameters a client can bind, which decides the types that are announced for them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Binds {
    /// Any Arrow type; one that is not known is announced as Null.
    Anything,
    /// The JDBC driver binds nothing but NULL to a parameter of type Null, and writes milliseconds into times
    /// and timestamps of every unit.
    LikeJava,
}

impl Binds {
    fn of(user_agent: Option<&str>) -> Self {
        match user_agent {
            Some(agent) if agent.contains("grpc-java") => Self::LikeJava,
            _ => Self::Anything,
        }
    }

    /// The type announced for a parameter without one.
    pub(crate) fn unknown(self) -> DataType {
        match self {
            Self::Anything => DataType::Null,
            Self::LikeJava => DataType::Utf8,
        }
    }

    /// The type announced for a parameter of type `data_type`. What is bound is cast back.
    pub(crate) fn announced(self, data_type: DataType) -> DataType {
        match (self, data_type) {
            (Self::LikeJava, DataType::Time32(_) | DataType::Time64(_)) => DataType::Time32(TimeUnit::Millisecond),
            (Self::LikeJava, DataType::Timestamp(_, zone)) => DataType::Timestamp(TimeUnit::Millisecond, zone),
            (_, data_type) => data_type,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_wire_setting_takes_its_default() {
        assert_eq!(WIRE_SETTINGS.len(), SETTINGS.len());
        for spec in WIRE_SETTINGS {
            assert_eq!((spec.check)(spec.default).as_deref(), Ok(spec.default), "{}", spec.name);
            assert!((spec.check)("nonsense").is_err(), "{}", spec.name);
        }
    }

    #[test]
    fn java_binds_milliseconds() {
        let micros = DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()));
        let java = Binds::of(Some("jdbc grpc-java-netty/1.71.0"));
        assert_eq!(java.announced(micros.clone()), DataType::Timestamp(TimeUnit::Millisecond, Some("UTC".into())));
        assert_eq!(java.announced(DataType::Time64(TimeUnit::Nanosecond)), DataType::Time32(TimeUnit::Millisecond));
        assert_eq!(java.announced(DataType::Int64), DataType::Int64);
        for other in [None, Some("grpc-c++/1.60"), Some("ADBC grpc-go/1.74")] {
            assert_eq!(Binds::of(other).announced(micros.clone()), micros);
        }
    }
}
