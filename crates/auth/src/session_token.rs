use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use prost::Message;
use updraft_proto::v1::TokenClaims;

use crate::{AUTHORIZATION_BYTES_MAX, Error, Sealer};

const PURPOSE: &str = "token";
/// How far the clocks of two servers with one key may differ.
const LEEWAY_SECONDS: i64 = 60;

/// Seals claims into the text that a client sends back as `Bearer`.
pub(crate) fn issue(sealer: &Sealer, claims: &TokenClaims) -> String {
    URL_SAFE_NO_PAD.encode(sealer.seal(PURPOSE, &claims.encode_to_vec()))
}

/// The claims of a token that this server issued and that has not ended. `now` is in seconds since 1970.
///
/// Errors: [`Error::Unauthenticated`] for anything else, [`Error::Expired`] for one that has ended.
pub(crate) fn open(sealer: &Sealer, token: &str, now: i64) -> Result<TokenClaims, Error> {
    if token.len() > AUTHORIZATION_BYTES_MAX {
        return Err(Error::Unauthenticated);
    }
    let sealed = URL_SAFE_NO_PAD.decode(token).map_err(|_| Error::Unauthenticated)?;
    let message = sealer.open(PURPOSE, &sealed).map_err(|_| Error::Unauthenticated)?;
    let claims = TokenClaims::decode(message).map_err(|_| Error::Unauthenticated)?;
    if now >= claims.expires_at_seconds.saturating_add(LEEWAY_SECONDS) {
        return Err(Error::Expired);
    }
    if claims.issued_at_seconds > now.saturating_add(LEEWAY_SECONDS) {
        return Err(Error::Unauthenticated);
    }
    Ok(claims)
}

/// Claims for the same login with a later end, once half of the time is over. `None` when it is too early, or when the
/// token lasts as long as the login (`login_max_age`) and the credential that it was issued for.
pub(crate) fn renewed(claims: &TokenClaims, ttl: Duration, now: i64) -> Option<TokenClaims> {
    let ttl = seconds(ttl);
    let half_over = now.saturating_sub(claims.issued_at_seconds) >= ttl / 2;
    // One that is cut short by the end of the login would be the last: only hand it out if it gains time.
    let expires_at_seconds = now.saturating_add(ttl).min(claims.login_ends_at_seconds);
    (half_over && expires_at_seconds > claims.expires_at_seconds).then(|| TokenClaims {
        issued_at_seconds: now,
        expires_at_seconds,
        ..claims.clone()
    })
}

pub(crate) fn seconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_secs()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const TTL: Duration = Duration::from_secs(3600);
    const DAY: i64 = 86_400;

    fn claims(issued: i64, expires: i64, login_ends: i64) -> TokenClaims {
        TokenClaims {
            principal: "alice".into(),
            session: vec![1; 16],
            issued_at_seconds: issued,
            expires_at_seconds: expires,
            login_ends_at_seconds: login_ends,
        }
    }

    #[test]
    fn opens_until_its_end_and_not_before_its_start() {
        let sealer = Sealer::new(&[1; 32]);
        let claims = claims(1000, 4600, 1000 + DAY);
        let token = issue(&sealer, &claims);
        assert_eq!(open(&sealer, &token, 1000), Ok(claims.clone()));
        assert_eq!(open(&sealer, &token, 4600 + LEEWAY_SECONDS - 1), Ok(claims.clone()));
        assert_eq!(open(&sealer, &token, 4600 + LEEWAY_SECONDS), Err(Error::Expired));
        assert_eq!(open(&sealer, &token, 1000 - LEEWAY_SECONDS), Ok(claims));
        assert_eq!(open(&sealer, &token, 999 - LEEWAY_SECONDS), Err(Error::Unauthenticated));
    }

    #[test]
    fn forged_tokens_are_refused() {
        let sealer = Sealer::new(&[1; 32]);
        let claims = claims(1000, 4600, 1000 + DAY);
        let token = issue(&sealer, &claims);
        let message = claims.encode_to_vec();
        let forged = [
            String::new(),
            "x".into(),
            token[1..].into(),
            format!("{token}A"),
            issue(&Sealer::new(&[2; 32]), &claims),
            URL_SAFE_NO_PAD.encode(&message),
            URL_SAFE_NO_PAD.encode(sealer.seal("ticket", &message)),
            URL_SAFE_NO_PAD.encode(sealer.seal(PURPOSE, b"\xff\xff\xff")),
            "A".repeat(AUTHORIZATION_BYTES_MAX + 1),
        ];
        for token in forged {
            assert_eq!(open(&sealer, &token, 1000), Err(Error::Unauthenticated), "{token}");
        }
    }

    #[test]
    fn renewed_in_the_second_half_while_the_login_is_young() {
        let fresh = claims(1000, 4600, 1000 + DAY);
        assert_eq!(renewed(&fresh, TTL, 2799), None, "first half");
        let next = renewed(&fresh, TTL, 2800).unwrap();
        assert_eq!((next.issued_at_seconds, next.expires_at_seconds), (2800, 6400));
        assert_eq!(next.session, fresh.session, "the session goes on");
        assert_eq!(next.login_ends_at_seconds, fresh.login_ends_at_seconds, "and ends when it would have");

        let before_last = claims(1000 + DAY - 5400, 1000 + DAY - 1800, 1000 + DAY);
        assert_eq!(renewed(&before_last, TTL, 1000 + DAY - 1801).unwrap().expires_at_seconds, 1000 + DAY);
        let last = claims(1000 + DAY - 3600, 1000 + DAY, 1000 + DAY);
        assert_eq!(renewed(&last, TTL, 1000 + DAY - 1), None, "the login is a day old");
        let cut_short = claims(1000, 2000, 2000);
        assert_eq!(renewed(&cut_short, TTL, 1999), None, "its credential ends");
    }
}
