use base64::Engine;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use zeroize::Zeroizing;

use crate::Error;

/// Longest `authorization` header that is looked at, in bytes. Twice the size of a large third-party JWT; longer ones
/// are refused before anything is decoded.
pub const AUTHORIZATION_BYTES_MAX: usize = 8 * 1024;

/// What a client sent to say who it is. Not checked yet.
#[derive(Clone, PartialEq, Eq)]
pub enum Credential {
    /// Nothing.
    None,
    /// User and password, wiped from memory when dropped.
    Basic {
        /// Name of the user.
        user: String,
        /// The password as sent.
        password: Zeroizing<String>,
    },
    /// An API token or a session token.
    Bearer(Zeroizing<String>),
}

impl Credential {
    /// User and password that came by another way than the header.
    pub fn basic(user: impl Into<String>, password: impl Into<String>) -> Self {
        Self::Basic { user: user.into(), password: Zeroizing::new(password.into()) }
    }

    /// A token that came by another way than the header.
    pub fn bearer(token: impl Into<String>) -> Self {
        Self::Bearer(Zeroizing::new(token.into()))
    }
}

impl std::fmt::Debug for Credential {
    /// Says the form only: credentials do not reach a log.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::None => "None",
            Self::Basic { .. } => "Basic(..)",
            Self::Bearer(_) => "Bearer(..)",
        })
    }
}

// Go clients log in with unpadded base64 and then send padded base64 on each call, so padding is nobody's business.
const LENIENT: GeneralPurposeConfig =
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
const STANDARD: GeneralPurpose = GeneralPurpose::new(&alphabet::STANDARD, LENIENT);
const URL_SAFE: GeneralPurpose = GeneralPurpose::new(&alphabet::URL_SAFE, LENIENT);

/// Decodes base64 of either alphabet, padded or not.
pub(crate) fn decode_base64(text: &[u8]) -> Option<Vec<u8>> {
    let url_safe = text.iter().any(|b| matches!(b, b'-' | b'_'));
    if url_safe { URL_SAFE.decode(text) } else { STANDARD.decode(text) }.ok()
}

/// Reads the value of an `authorization` header: `Basic <base64 of user:password>` or `Bearer <token>`, the scheme in
/// any case. A user may not hold a colon, a password may.
///
/// Errors: [`Error::Malformed`] for everything else, whatever the bytes are.
pub fn parse_authorization(value: &[u8]) -> Result<Credential, Error> {
    if value.len() > AUTHORIZATION_BYTES_MAX {
        return Err(Error::Malformed("longer than 8 KiB"));
    }
    let value = value.trim_ascii();
    if !value.iter().all(|b| matches!(b, b' '..=b'~')) {
        return Err(Error::Malformed("holds bytes that are not printable ASCII"));
    }
    let Some(space) = value.iter().position(|b| *b == b' ') else {
        return Err(Error::Malformed("expected `Basic <base64>` or `Bearer <token>`"));
    };
    let (scheme, rest) = value.split_at(space);
    let rest = rest.trim_ascii();
    if scheme.eq_ignore_ascii_case(b"basic") {
        parse_basic(rest)
    } else if scheme.eq_ignore_ascii_case(b"bearer") {
        parse_bearer(rest)
    } else {
        Err(Error::Malformed("scheme is neither Basic nor Bearer"))
    }
}

fn parse_basic(encoded: &[u8]) -> Result<Credential, Error> {
    let decoded = Zeroizing::new(decode_base64(encoded).ok_or(Error::Malformed("Basic is not base64"))?);
    let text = std::str::from_utf8(&decoded).map_err(|_| Error::Malformed("user or password is not UTF-8"))?;
    let (user, password) = text.split_once(':').ok_or(Error::Malformed("Basic holds no colon"))?;
    Ok(Credential::basic(user, password))
}

fn parse_bearer(token: &[u8]) -> Result<Credential, Error> {
    if token.is_empty() || token.contains(&b' ') {
        return Err(Error::Malformed("Bearer wants one token"));
    }
    let token = std::str::from_utf8(token).map_err(|_| Error::Malformed("token is not ASCII"))?;
    Ok(Credential::bearer(token))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn forms_that_clients_send() {
        let basic = |user: &str, password: &str| Ok(Credential::basic(user, password));
        let cases: &[(&[u8], Result<Credential, Error>)] = &[
            (b"Basic YWxpY2U6c2VjcmV0", basic("alice", "secret")),
            // Padded and unpadded.
            (b"Basic YWxpY2U6c2VjcmV0MQ==", basic("alice", "secret1")),
            (b"Basic YWxpY2U6c2VjcmV0MQ", basic("alice", "secret1")),
            // Standard and URL-safe alphabets: the password is "??>>".
            (b"Basic YTo/Pz4+", basic("a", "??>>")),
            (b"Basic YTo_Pz4-", basic("a", "??>>")),
            (b"basic  YWxpY2U6c2VjcmV0 ", basic("alice", "secret")),
            (b"BASIC YWxpY2U6YTpi", basic("alice", "a:b")),
            (b"Basic Og==", basic("", "")),
            (b"Bearer abc", Ok(Credential::bearer("abc"))),
            (b"bearer abc.def-_~+/=", Ok(Credential::bearer("abc.def-_~+/="))),
        ];
        for (value, expected) in cases {
            assert_eq!(&parse_authorization(value), expected, "{}", String::from_utf8_lossy(value));
        }
    }

    #[test]
    fn garbage_is_malformed() {
        let long = [b"Bearer ".as_slice(), &vec![b'a'; AUTHORIZATION_BYTES_MAX]].concat();
        let cases: &[&[u8]] = &[
            b"",
            b" ",
            b"Basic",
            b"Basic ",
            b"Bearer",
            b"Bearer a b",
            b"Digest abc",
            b"Basic !!!!",
            b"Basic YWxpY2U",
            b"Basic YWxpY2U6c2VjcmV0=====",
            b"Basic /w==",
            b"Bearer \xc3\xa4",
            b"Bearer a\x00b",
            b"\xff\xfe",
            &long,
        ];
        for value in cases {
            let result = parse_authorization(value);
            assert!(matches!(result, Err(Error::Malformed(_))), "{} gave {result:?}", String::from_utf8_lossy(value));
        }
    }

    #[test]
    fn debug_shows_no_secret() {
        let shown = format!("{:?} {:?}", Credential::basic("alice", "hunter2"), Credential::bearer("hunter2"));
        assert!(!shown.contains("hunter2") && !shown.contains("alice"), "{shown}");
    }
}
