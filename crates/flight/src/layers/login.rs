use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use http::header::{AUTHORIZATION, COOKIE, USER_AGENT};
use http::{HeaderMap, HeaderValue};
use tonic::body::Body;
use tonic::{Code, Status};
use tracing::{debug, error};
use updraft_auth::{AUTHORIZATION_BYTES_MAX, Authenticator, Credential, Error, Principal, parse_authorization};
use uuid::Uuid;

use crate::transport::Connection;

/// Where Flight clients with a login of their own (`ClientAuthHandler`) put their token.
const LEGACY_TOKEN: &str = "auth-token-bin";
/// The cookie that the Flight SQL specification names for sessions.
const SESSION_COOKIE: &str = "arrow_flight_session_id";
/// How much of a client's name is kept, in bytes.
const USER_AGENT_BYTES_MAX: usize = 256;

/// Who calls, and over what. In the extensions of each request, except for health checks and handshakes.
#[derive(Debug, Clone)]
pub struct Caller {
    /// The principal that the credential stands for.
    pub principal: Principal,
    /// The session of the token, when the credential is a token from a handshake. Proven by the token's seal.
    pub token_session: Option<[u8; 16]>,
    /// Number of the connection.
    pub connection: u64,
    /// The other end of the connection.
    pub peer: SocketAddr,
    /// The session that a cookie names. Only a claim: check that it is the principal's.
    pub cookie: Option<[u8; 16]>,
    /// What the client calls itself, at most 256 bytes.
    pub user_agent: Option<Arc<str>>,
}

/// Finds out who calls and says so in the request's extensions. Gives back the header with a fresh token, when the
/// caller's own is in the second half of its life.
pub(super) async fn log_in(
    authenticator: &Authenticator,
    request: &mut http::Request<Body>,
) -> Result<Option<HeaderValue>, Status> {
    if is_exempt(request.uri().path()) {
        return Ok(None);
    }
    let connection = request.extensions().get::<Connection>().cloned().unwrap_or_else(in_process);
    let credential = credential(request.headers()).map_err(|e| refusal(&e))?;
    let renewed = match &credential {
        Credential::Bearer(token) => authenticator.renew(token).and_then(|token| bearer(&token)),
        Credential::None | Credential::Basic { .. } => None,
    };
    let identity = authenticator
        .authenticate(credential, &connection.certificate, connection.peer.ip())
        .await
        .map_err(|e| refusal(&e))?;
    let caller = Caller {
        principal: identity.principal,
        token_session: identity.session,
        connection: connection.id,
        peer: connection.peer,
        cookie: session_cookie(request.headers()),
        user_agent: user_agent(request.headers()),
    };
    request.extensions_mut().insert(caller);
    Ok(renewed)
}

/// Health checks come from machines without an account; a handshake is the login.
pub(super) fn is_exempt(path: &str) -> bool {
    path.starts_with("/grpc.health.v1.Health/") || path == "/arrow.flight.protocol.FlightService/Handshake"
}

/// What a request without a connection is said to have come over: it was made inside this process.
pub(crate) fn in_process() -> Connection {
    let peer = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);
    Connection { id: 0, peer, certificate: Arc::from([]) }
}

/// The credential among the headers: `authorization`, else `auth-token-bin`.
///
/// Errors: [`Error::Malformed`], also when there are two of different content: which one counts would depend on who
/// reads them.
pub(crate) fn credential(headers: &HeaderMap) -> Result<Credential, Error> {
    if let Some(value) = single(headers, AUTHORIZATION.as_str())? {
        return parse_authorization(value.as_bytes());
    }
    match single(headers, LEGACY_TOKEN)? {
        Some(value) => legacy_token(value.as_bytes()),
        None => Ok(Credential::None),
    }
}

fn single<'a>(headers: &'a HeaderMap, name: &str) -> Result<Option<&'a HeaderValue>, Error> {
    let mut values = headers.get_all(name).iter();
    let first = values.next();
    if values.any(|other| Some(other) != first) {
        return Err(Error::Malformed("sent twice, with different content"));
    }
    Ok(first)
}

/// A token in binary metadata, which gRPC sends as base64.
fn legacy_token(value: &[u8]) -> Result<Credential, Error> {
    const MALFORMED: Error = Error::Malformed("auth-token-bin is not a token");
    if value.len() > AUTHORIZATION_BYTES_MAX {
        return Err(MALFORMED);
    }
    let unpadded = value.trim_ascii();
    let end = unpadded.iter().rposition(|b| *b != b'=').map_or(0, |last| last + 1);
    let token = STANDARD_NO_PAD.decode(&unpadded[..end]).map_err(|_| MALFORMED)?;
    let token = String::from_utf8(token).map_err(|_| MALFORMED)?;
    if token.is_empty() { Ok(Credential::None) } else { Ok(Credential::bearer(token)) }
}

/// `Bearer <token>` as a header.
pub(crate) fn bearer(token: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(&format!("Bearer {token}")).ok()?;
    value.set_sensitive(true);
    Some(value)
}

/// A refusal as the client gets it.
pub(crate) fn refusal(error: &Error) -> Status {
    let code = match error {
        Error::Missing | Error::Malformed(_) | Error::Unauthenticated | Error::Expired | Error::Seal => {
            Code::Unauthenticated
        }
        Error::Throttled { .. } => Code::ResourceExhausted,
        Error::Internal { .. } => Code::Internal,
    };
    let mut status = Status::new(code, error.to_string());
    let headers = status.metadata_mut();
    match error {
        Error::Throttled { retry_after } => {
            // What gRPC's retry design calls a pushback: clients that retry by themselves keep to it.
            let milliseconds = u64::try_from(retry_after.as_millis()).unwrap_or(u64::MAX);
            headers.insert("grpc-retry-pushback-ms", milliseconds.into());
            headers.insert("retry-after", milliseconds.div_ceil(1000).into());
        }
        Error::Internal { .. } => error!(%error, "login failed on our side"),
        _ => {
            let forms = tonic::metadata::MetadataValue::from_static("Basic realm=\"updraft\", Bearer");
            headers.insert("www-authenticate", forms);
        }
    }
    debug!(%error, "refused");
    status
}

/// The session cookie, a UUID in any of its spellings. Cookies are left by other software too, so that what cannot be
/// read is passed over.
fn session_cookie(headers: &HeaderMap) -> Option<[u8; 16]> {
    headers
        .get_all(COOKIE)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(';'))
        .filter_map(|cookie| cookie.split_once('='))
        .filter(|(name, _)| name.trim() == SESSION_COOKIE)
        .find_map(|(_, value)| Uuid::try_parse(value.trim().trim_matches('"')).ok())
        .map(Uuid::into_bytes)
}

fn user_agent(headers: &HeaderMap) -> Option<Arc<str>> {
    // `to_str` lets visible ASCII through only, so that any byte is a border.
    let text = headers.get(USER_AGENT)?.to_str().ok()?;
    Some(text[..text.len().min(USER_AGENT_BYTES_MAX)].into())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.parse().unwrap(), HeaderValue::from_str(value).unwrap())).collect()
    }

    fn many(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in pairs {
            map.append(*name, HeaderValue::from_str(value).unwrap());
        }
        map
    }

    #[test]
    fn where_credentials_come_from() {
        let cases = [
            (many(&[]), Ok(Credential::None)),
            (many(&[("authorization", "Bearer x")]), Ok(Credential::bearer("x"))),
            (many(&[("authorization", "Bearer x"), ("authorization", "Bearer x")]), Ok(Credential::bearer("x"))),
            (many(&[("auth-token-bin", "YWJj")]), Ok(Credential::bearer("abc"))),
            (many(&[("auth-token-bin", "YWJjZA==")]), Ok(Credential::bearer("abcd"))),
            (many(&[("auth-token-bin", "YWJjZA")]), Ok(Credential::bearer("abcd"))),
            (many(&[("auth-token-bin", "")]), Ok(Credential::None)),
            (many(&[("auth-token-bin", "YWJj"), ("authorization", "Bearer x")]), Ok(Credential::bearer("x"))),
        ];
        for (headers, expected) in cases {
            assert_eq!(credential(&headers), expected, "{headers:?}");
        }
        let refused = [
            many(&[("authorization", "Bearer x"), ("authorization", "Bearer y")]),
            many(&[("authorization", "")]),
            many(&[("auth-token-bin", "!")]),
            many(&[("auth-token-bin", "/w==")]),
            many(&[("auth-token-bin", &"A".repeat(AUTHORIZATION_BYTES_MAX + 1))]),
        ];
        for headers in refused {
            assert!(matches!(credential(&headers), Err(Error::Malformed(_))), "{headers:?}");
        }
    }

    #[test]
    fn the_session_cookie_among_others() {
        let id = Uuid::from_bytes([7; 16]);
        let simple = id.simple().to_string();
        let found = [
            format!("arrow_flight_session_id={id}"),
            format!("arrow_flight_session_id={simple}"),
            format!("a=b; arrow_flight_session_id=\"{id}\"; c=d"),
            format!("arrow_flight_session_id=nonsense;arrow_flight_session_id={id}"),
        ];
        for cookie in &found {
            assert_eq!(session_cookie(&headers(&[("cookie", cookie)])), Some([7; 16]), "{cookie}");
        }
        assert_eq!(session_cookie(&many(&[("cookie", "x=y"), ("cookie", &found[0])])), Some([7; 16]));
        let simple = format!("other_session={id}");
        for cookie in ["", ";;;", "=", "arrow_flight_session_id", "arrow_flight_session_id=", &simple] {
            assert_eq!(session_cookie(&headers(&[("cookie", cookie)])), None, "{cookie}");
        }
    }

    #[test]
    fn refusals_have_their_codes() {
        let cases = [
            (Error::Missing, Code::Unauthenticated),
            (Error::Malformed("x"), Code::Unauthenticated),
            (Error::Unauthenticated, Code::Unauthenticated),
            (Error::Expired, Code::Unauthenticated),
            (Error::Throttled { retry_after: std::time::Duration::from_millis(1500) }, Code::ResourceExhausted),
            (Error::Internal { step: "x" }, Code::Internal),
        ];
        for (error, code) in cases {
            assert_eq!(refusal(&error).code(), code);
        }
        let throttled = refusal(&Error::Throttled { retry_after: std::time::Duration::from_millis(1500) });
        assert_eq!(throttled.metadata().get("grpc-retry-pushback-ms").unwrap(), "1500");
        assert_eq!(throttled.metadata().get("retry-after").unwrap(), "2");
        assert!(throttled.message().contains("2 s"), "{}", throttled.message());
        assert!(refusal(&Error::Missing).metadata().contains_key("www-authenticate"));
    }

    #[test]
    fn long_user_agents_are_cut() {
        let long = "a".repeat(1000);
        assert_eq!(user_agent(&headers(&[("user-agent", &long)])).unwrap().len(), USER_AGENT_BYTES_MAX);
        assert_eq!(user_agent(&HeaderMap::new()), None);
    }

    /// Runs for 2 s, or for `UPDRAFT_FUZZ_SECONDS`.
    #[test]
    fn arbitrary_headers_are_read_or_refused() {
        let seconds = std::env::var("UPDRAFT_FUZZ_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(2);
        let pieces: [&[u8]; 10] =
            [b"Basic ", b"Bearer ", b"YWJj", b"=", b";", b"\"", b"arrow_flight_session_id", b"01", b"-", b"\xff"];
        arbtest::arbtest(|u| {
            let mut headers = HeaderMap::new();
            for _ in 0..u.int_in_range(0..=4)? {
                let name = *u.choose(&["authorization", "auth-token-bin", "cookie", "user-agent", "grpc-timeout"])?;
                let mut value = Vec::new();
                while value.len() < 500 && u.ratio(5, 6)? {
                    match u.ratio(1, 2)? {
                        true => value.extend_from_slice(u.choose(&pieces)?),
                        false => value.extend_from_slice(u.arbitrary::<&[u8]>()?),
                    }
                }
                if let Ok(value) = HeaderValue::from_bytes(&value) {
                    headers.append(name, value);
                }
            }
            if let Err(error) = credential(&headers) {
                assert!(matches!(error, Error::Malformed(_)), "{error:?}");
                assert_eq!(refusal(&error).code(), Code::Unauthenticated);
            }
            let _ = (session_cookie(&headers), user_agent(&headers), super::super::deadline::deadline(&headers));
            Ok(())
        })
        .budget(std::time::Duration::from_secs(seconds));
    }
}
